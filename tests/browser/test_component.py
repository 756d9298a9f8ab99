"""The package's React component against the real service, in a real browser: what it shows, and what its answers do."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Route

from agent_sse import SimpleNotifier
from agent_sse.errors import ToolCallCancelled
from browser.console import publish_raw
from browser.monitor import press_at_rest, several, show
from browser.tabs import LOST, Agent, Room, decided
from harness import ServiceProcess, Valkey, make_token, session_name, until

SECRET_VALUE = "sk-" + "a1B2c3D4" * 6
# Keeps what a card says of its answer.
NOTES = """(card) => {
    const note = card.querySelector('.agent-sse-note');
    window.notes = [];
    new MutationObserver(() => notes.push(note.textContent)).observe(note, { subtree: true, childList: true });
}"""
NO_LEEWAY = {"AGENT_SSE_HEARTBEAT_INTERVAL": "1", "AGENT_SSE_JWT_LEEWAY": "0"}
SCHEMA = {"type": "object", "properties": {"file": {"type": "string", "maxLength": 20}}}


async def test_component_shows_calls_from_first_status_to_result(room: Room, notifier: SimpleNotifier) -> None:
    """A call's status, parameters, progress and result are shown, and how each of them ended."""
    session = session_name()
    monitor = await show(room, session)
    await monitor.page.get_by_text("No tool calls yet.").wait_for()
    async with notifier.tool_call(session, "search", {"query": "例"}, tool_call_id="c1", server="files") as call:
        await monitor.status("c1", "executing")
        await call.progress(1, total=4, message="reading")
        card = monitor.call("c1")
        await card.get_by_text("1 of 4 · reading").wait_for()
        bar = card.get_by_role("progressbar", name="Progress of search")
        assert ["4", "1"] == [await bar.get_attribute("max"), await bar.get_attribute("value")]
        call.result = {"matches": 9007199254740993}
    await monitor.status("c1", "completed")
    await card.locator("[data-success=true]").wait_for()
    assert 0 == await bar.count()
    await card.get_by_text("Server: files").wait_for()
    await card.get_by_text("Result").click()
    assert '{\n  "matches": 9007199254740993\n}' == await card.locator("pre").inner_text()

    with pytest.raises(ValueError, match="no such"):
        async with notifier.tool_call(session, "search", {}, tool_call_id="c2", parent_tool_call_id="c1"):
            raise ValueError("no such file")
    await monitor.status("c2", "failed")
    await monitor.call("c2").get_by_text("No success · no such file").wait_for()
    await monitor.call("c2").get_by_text("part of search").wait_for()
    for status in ("pending", "waiting_permission", "denied", "cancelled"):
        await notifier.tool_status(session, "other", status, tool_call_id=status)
        await monitor.status(status, status)
    order = await monitor.page.locator("[data-call]").evaluate_all("(cards) => cards.map((card) => card.dataset.call)")
    assert ["cancelled", "denied", "waiting_permission", "pending", "c1", "c2"] == order
    await notifier.clear_result(session, tool_call_id="c1")
    await card.locator("[data-success=true]").wait_for(state="detached")


async def test_component_approves(room: Room, agent: Agent) -> None:
    """Approve gives the agent its decision with nothing changed; the card goes, its outcome stays, and it went once."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session, {"file": "a.py"}, message="to fix the build", server="files")
    card = await monitor.steady("file_edit")
    for text in ("High risk", "Server: files", "The agent says:", "to fix the build", '{\n  "file": "a.py"\n}'):
        await card.get_by_text(text).wait_for()
    await monitor.button("Approve file_edit").dblclick()
    decision = await decided(asking)
    assert (True, "approved", "alice") == (decision.approved, decision.outcome, decision.resolved_by)
    assert ({"file": "a.py"}, False) == (decision.parameters, decision.edited)
    await card.wait_for(state="detached")
    await monitor.outcome("approved", "file_edit approved by alice")
    assert [True] == await monitor.tab.do("decisions.map((each) => each.result.approved)")
    assert 1 == len(room.proxy.asked("POST "))


async def test_component_takes_no_error_of_the_application_for_a_refusal(room: Room, agent: Agent) -> None:
    """What `onDecision` throws is the page's error; the card never says that the answer was not recorded."""
    session = session_name()
    monitor = await show(room, session)
    monitor.tab.expect("uncaught: .*push")
    asking = agent.ask(session)
    card = await monitor.steady("file_edit")
    await card.evaluate(NOTES)
    await monitor.tab.do("window.decisions = null")
    await press_at_rest(monitor.button("Approve file_edit"))
    assert await decided(asking)
    await card.wait_for(state="detached")
    await monitor.outcome("approved", "file_edit approved by alice")
    assert ["Sending…"] == [note for note in await monitor.tab.do("notes") if note]
    assert 1 == len(monitor.tab.errors)


async def test_component_denies_with_a_reason(room: Room, agent: Agent) -> None:
    """Deny gives the agent a no with what was written beside it."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session)
    card = await monitor.steady("file_edit")
    await card.get_by_role("textbox", name="Reason (optional)").fill("不行 — not today")
    await press_at_rest(monitor.button("Deny file_edit"))
    decision = await decided(asking)
    assert (False, "denied", "不行 — not today") == (decision.approved, decision.outcome, decision.reason)
    await monitor.outcome("denied", "file_edit denied by alice · 不行 — not today")


async def test_component_remembers_an_answer_for_the_session(room: Room, agent: Agent) -> None:
    """ "This session" with exactly these parameters answers the same question; other parameters are asked about."""
    session = session_name()
    monitor = await show(room, session)
    first = agent.ask(session, {"file": "a.py"})
    card = await monitor.steady("file_edit")
    await card.get_by_role("radio", name="this session: this tool with exactly these parameters").check()
    await press_at_rest(monitor.button("Approve file_edit"))
    assert await decided(first)
    again = await decided(agent.ask(session, {"file": "a.py"}))
    assert again
    assert (again.resolved_by or "").startswith("grant:")
    other = agent.ask(session, {"file": "b.py"})
    await card.get_by_text("b.py").wait_for()  # the first one's card is gone
    await monitor.press("Deny", "file_edit")
    assert not await decided(other)
    critical = agent.ask(session, tool="wipe", risk="critical")
    assert 0 == await (await monitor.steady("wipe")).get_by_role("radio").count()
    await monitor.press("Approve", "wipe")
    assert await decided(critical)


async def test_component_sends_an_edit_exactly(room: Room, agent: Agent) -> None:
    """The agent gets what the editor showed: the change, what was hidden as it was, every digit of large numbers."""
    session = session_name()
    monitor = await show(room, session)
    parameters = {"file": "a.py", "id": 9007199254740993, "key": SECRET_VALUE, "lines": [1, 2.5, None], "old": True}
    asking = agent.ask(session, parameters, editable=True)
    card = await monitor.steady("file_edit")
    await card.get_by_text("One secret is hidden (••••): /key").wait_for()
    shown = await card.locator("pre").inner_text()
    assert SECRET_VALUE not in await monitor.page.content()
    await monitor.edit("file_edit", shown.replace("a.py", "b.py").replace(',\n  "old": true', ""))
    added, removed = card.locator("[data-change=added]"), card.locator("[data-change=removed]")
    await added.first.wait_for()
    lines = [" ".join(text.split()) for text in await added.all_inner_texts()]
    assert 'added: + "file": "b.py",' == lines[0]
    assert await removed.count() >= 2
    await press_at_rest(monitor.button("Approve with changes: file_edit"))
    decision = await decided(asking)
    assert (True, True) == (decision.approved, decision.edited)
    assert {**parameters, "file": "b.py", "old": None} == {**decision.parameters, "old": None}
    assert "old" not in decision.parameters
    await monitor.outcome("approved", "file_edit approved with changes by alice")


async def test_component_sends_no_edit_that_is_none(room: Room, agent: Agent) -> None:
    """Another order of keys is called no change and sent as none; a number that the service would round is not sent."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session, {"a": 1, "b": {"c": 2, "d": 3}}, editable=True)
    card = await monitor.steady("file_edit")
    await monitor.edit("file_edit", '{"a": 123456789012345678.25}')
    await card.locator(".agent-sse-problem").get_by_text("123456789012345678.25 cannot be sent").wait_for()
    await card.get_by_role("textbox", name="New parameters").fill('{"b": {"d": 3, "c": 2}, "a": 1}')
    await card.get_by_text("Nothing changed yet.").wait_for()
    assert 0 == await card.locator(".agent-sse-diff").count()
    await press_at_rest(monitor.button("Approve file_edit"))
    decision = await decided(asking)
    assert (True, False) == (decision.approved, decision.edited)


async def test_component_tells_how_much_is_out_of_sight(room: Room, agent: Agent) -> None:
    """Of long parameters and of a long message a box shows the beginning, its end is counted below it until one has
    scrolled there, and the buttons stand where they were."""
    session = session_name()
    monitor = await show(room, session)
    agent.ask(session, {f"key_{number}": number for number in range(98)}, message="ok\n" * 500)
    card = await monitor.steady("file_edit")
    for label, lines in (
        ("Parameters of file_edit", range(75, 86)),
        ("What the agent says about file_edit", range(480, 500)),
    ):
        group = card.get_by_role("group", name=label, exact=True)
        more = card.locator(f"[aria-label='{label}'] + .agent-sse-more")
        below = int(str(await more.get_attribute("data-below")))
        assert below in lines, (label, below)
        await more.get_by_text(f"{below} more lines below: scroll to read them.").wait_for()
        height = await card.evaluate("(card) => card.offsetHeight")
        assert height < 1200
        await group.evaluate("(box) => box.scrollTo(0, box.scrollHeight)")
        await more.get_by_text("That is all.").wait_for()
        assert height == await card.evaluate("(card) => card.offsetHeight")


async def test_component_shows_the_requests_that_wait_longest(room: Room, notifier: SimpleNotifier) -> None:
    """Of 260 requests the first 200 are shown and the others counted; when one goes the next one comes in."""
    session = session_name()
    monitor = await show(room, session)
    for number in range(260):
        data = {"request_id": f"pr_{number}", "tool_name": f"tool_{number}", "risk_level": "low", "parameters": {}}
        await publish_raw(notifier, session, {"type": "permission_request", "data": data})
    await monitor.card("tool_0").get_by_text("1 of 260").wait_for()
    await monitor.page.get_by_text("60 more wait").wait_for()
    await monitor.card("tool_199").wait_for()
    assert 200 == await monitor.page.locator("[data-request]").count()
    cleared = {"request_id": "pr_0", "tool_name": "tool_0", "outcome": "denied"}
    await publish_raw(notifier, session, {"type": "permission_cleared", "data": cleared})
    await monitor.card("tool_200").wait_for()
    await monitor.card("tool_1").get_by_text("1 of 259").wait_for()


async def test_component_follows_a_session_that_is_opened_again(room: Room, notifier: SimpleNotifier) -> None:
    """After the session was closed "Connect now" follows what the agent has opened anew, with nothing of what was."""
    session = session_name()
    monitor = await show(room, session)
    await notifier.tool_status(session, "read", "executing", tool_call_id="c1")
    await monitor.status("c1", "executing")
    await notifier.close_session(session)
    await monitor.page.get_by_text("The session was closed.").wait_for()
    await notifier.tool_status(session, "search", "executing", tool_call_id="c2")
    await monitor.button("Connect now").click()
    await monitor.status("c2", "executing")
    assert 1 == await monitor.page.locator("[data-call]").count()
    assert 0 == await monitor.page.get_by_text("history has a gap").count()


async def test_component_keeps_an_edit_that_is_refused(room: Room, agent: Agent) -> None:
    """What cannot be sent is said before, what the service refuses after; the card and its text stay, and go on."""
    session = session_name()
    monitor = await show(room, session)
    monitor.tab.expect("status of 422")
    asking = agent.ask(session, {"file": "a.py", "key": SECRET_VALUE}, editable=True, schema=SCHEMA)
    card = await monitor.steady("file_edit")
    note, problem = card.locator(".agent-sse-note"), card.locator(".agent-sse-problem")
    await monitor.edit("file_edit", '{"file": ')
    await problem.get_by_text("This is not valid JSON").wait_for()
    await press_at_rest(monitor.button("Approve file_edit"), force=True)  # it is `aria-disabled`
    await note.get_by_text("Put the parameters right first, or leave editing.").wait_for()
    field = card.get_by_role("textbox", name="New parameters of file_edit, as JSON")
    await field.fill('{"file": null, "key": "••••"}')
    await problem.get_by_text("null at /file cannot be sent").wait_for()

    await field.fill(f'{{"file": "{"x" * 40}.py", "key": "••••"}}')
    await card.and_(monitor.page.locator("[data-steady=true]")).wait_for()
    await press_at_rest(monitor.button("Approve with changes: file_edit"))
    await note.get_by_text("Not recorded: ").wait_for()
    assert "/file" in await note.inner_text()
    assert not asking.done()
    await field.fill('{"file": "b.py", "key": "••••"}')
    await note.wait_for(state="hidden")
    assert "" == await note.text_content()
    await card.and_(monitor.page.locator("[data-steady=true]")).wait_for()
    await press_at_rest(monitor.button("Approve with changes: file_edit"))
    assert {"file": "b.py", "key": SECRET_VALUE} == (await decided(asking)).parameters


async def test_component_cancels_a_running_call(room: Room, notifier: SimpleNotifier) -> None:
    """Cancel interrupts the call's body, and the card says so; a call that cannot be cancelled has no such button."""
    session = session_name()
    monitor = await show(room, session)
    await notifier.tool_status(session, "reported", "executing", tool_call_id="c0")

    async def run() -> None:
        async with notifier.tool_call(session, "build", {}, tool_call_id="c1"):
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await monitor.button("Cancel build").click()
    with pytest.raises(ToolCallCancelled):
        await running
    await monitor.status("c1", "cancelled")
    assert 0 == await monitor.call("c1").get_by_role("button").count()
    await monitor.status("c0", "executing")
    assert 0 == await monitor.button("Cancel reported").count()


async def test_component_drops_a_card_that_expires(room: Room, agent: Agent) -> None:
    """The time left is counted; when it is over the card goes, and its outcome says why."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session, timeout=2.0)
    await monitor.card("file_edit").get_by_role("timer").get_by_text("Expires in ").wait_for()
    await monitor.outcome("expired", "file_edit expired by timeout · timeout")
    await monitor.card("file_edit").wait_for(state="detached")
    assert "expired" == (await decided(asking)).outcome


async def test_component_shows_several_in_order(room: Room, valkey: Valkey) -> None:
    """Where several are asked at a time they stand in the order of their coming, each with its place; any may be
    answered first."""
    session = session_name()
    monitor = await show(room, session)
    async with several(valkey) as (_, agent):
        asking = {}
        for tool in ("first", "second", "third"):
            asking[tool] = agent.ask(session, tool=tool)
            await monitor.card(tool).wait_for()
        cards = monitor.page.locator("[data-request]")
        assert ["first", "second", "third"] == await cards.locator("h4").all_inner_texts()
        for at in range(3):
            await cards.nth(at).get_by_text(f"{at + 1} of 3").wait_for()
        await monitor.press("Approve", "second")
        assert await decided(asking["second"])
        await monitor.card("third").get_by_text("2 of 2").wait_for()
        for tool in ("third", "first"):
            await monitor.press("Deny", tool)
            assert not await decided(asking[tool])
        await monitor.page.get_by_text("Nothing to decide.").wait_for()


async def test_component_shows_the_next_request_after_the_first(room: Room, agent: Agent) -> None:
    """One at a time, by default: the second comes when the first is answered."""
    session = session_name()
    monitor = await show(room, session)
    first = agent.ask(session, tool="first")
    await monitor.card("first").wait_for()
    second = agent.ask(session, tool="second")
    await monitor.press("Approve", "first")
    assert await decided(first)
    await monitor.press("Deny", "second")
    assert not await decided(second)
    assert 0 == await monitor.page.get_by_text(" of ").count()


async def test_component_in_two_tabs_shares_connection_and_outcome(room: Room, agent: Agent) -> None:
    """Both tabs show the card over one stream; where one answers, it goes from both; the other one leads on alone."""
    session = session_name()
    tabs = [await show(room, session) for _ in range(2)]
    await tabs[1].connected("Connected · via another tab")
    assert 1 == room.proxy.streams
    asking = agent.ask(session)
    for monitor in tabs:
        await monitor.steady("file_edit")
    await press_at_rest(tabs[1].button("Deny file_edit"))
    assert not await decided(asking)
    for monitor in tabs:
        await monitor.card("file_edit").wait_for(state="detached")
        await monitor.outcome("denied", "file_edit denied by alice")
    await tabs[0].page.close()
    await tabs[1].connected("Connected")
    asking = agent.ask(session, tool="next")
    await tabs[1].press("Approve", "next")
    assert await decided(asking)


async def test_component_says_that_another_answer_won(room: Room, agent: Agent) -> None:
    """An answer that came too late is told as such, with who decided, and not as one's own."""
    session = session_name()
    monitor = await show(room, session)
    monitor.tab.expect("status of 409")
    await monitor.page.route("**/permission-response/**", lambda route: _first_bob(route, room, session))
    asking = agent.ask(session)
    await monitor.press("Approve", "file_edit")
    decision = await decided(asking)
    assert (False, "bob") == (decision.approved, decision.resolved_by)
    await monitor.card("file_edit").wait_for(state="detached")
    await monitor.outcome("denied", "file_edit denied by bob")
    assert [] == await monitor.tab.do("decisions")


async def _first_bob(route: Route, room: Room, session: str) -> None:
    response = await room.context.request.post(
        f"{room.proxy.url}/agent_backend/api/sse/permission-response/{session}",
        headers={"Authorization": f"Bearer {make_token(session, sub='bob')}"},
        data={"approved": False, "reason": ""},
    )
    assert 200 == response.status, await response.text()
    await route.continue_()


async def test_component_keeps_its_view_over_a_restart(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier, agent: Agent
) -> None:
    """While the service is away all stays, a half-written answer too; then it goes on, with nothing missed."""
    session = session_name()
    monitor = await show(room, session)
    monitor.tab.expect(*LOST)
    await notifier.tool_status(session, "search", "executing", tool_call_id="c1")
    asking = agent.ask(session, editable=True)
    await monitor.edit("file_edit", '{"file": "mine.py"}')
    await service.stop()
    await monitor.page.locator(".connection-status[data-phase=waiting]").wait_for()
    await monitor.call("c1").wait_for()
    await notifier.tool_status(session, "search", "completed", tool_call_id="c1")
    await service.start()
    await monitor.tab.do("void dispatchEvent(new Event('online'))")  # the service is back: do not wait out the backoff
    await monitor.status("c1", "completed")
    await monitor.steady("file_edit")
    await press_at_rest(monitor.button("Approve with changes: file_edit"))
    assert {"file": "mine.py"} == (await decided(asking)).parameters


@pytest.mark.parametrize("service_settings", [NO_LEEWAY])
async def test_component_gets_a_new_token_from_its_provider(room: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """A token that expires is replaced by the provider's, also beside hooks that give none; nobody is alarmed."""
    session = session_name()
    monitor = await show(room, session, token=make_token(session, ttl=4.0), parts="provider,hooks")
    await monitor.tab.do(f"window.nextToken = '{make_token(session)}'")
    asking = agent.ask(session)
    await monitor.tab.until("() => tokensAsked > 0")
    await notifier.tool_status(session, "after", "executing", tool_call_id="c1")
    await monitor.status("c1", "executing")
    assert 0 == await monitor.page.get_by_role("alert").count()
    await monitor.press("Approve", "file_edit")
    assert await decided(asking)


@pytest.mark.parametrize("service_settings", [NO_LEEWAY])
async def test_component_ends_without_a_new_token_and_goes_on_with_one(room: Room, notifier: SimpleNotifier) -> None:
    """Without a provider an expired token ends the connection, which says so; a new one as the prop begins it anew."""
    session = session_name()
    monitor = await show(room, session, token=make_token(session, ttl=4.0))
    monitor.tab.expect("status of 401")
    await notifier.tool_status(session, "before", "executing", tool_call_id="c0")
    await monitor.page.locator(".connection-status[data-phase=ended]").get_by_text("expired").wait_for()
    await monitor.status("c0", "executing")
    await monitor.tab.do(f"setToken('{make_token(session)}')")
    await monitor.connected()
    await notifier.tool_status(session, "after", "executing", tool_call_id="c1")
    await monitor.status("c1", "executing")
    await monitor.status("c0", "executing")


async def test_component_and_hooks_share_one_stream_in_strict_mode(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier, agent: Agent
) -> None:
    """However many components show a session, and mounted twice, there is one stream; after the last one none."""
    session = session_name()
    monitor = await show(room, session, parts="strict,hooks")
    await notifier.tool_status(session, "search", "executing", tool_call_id="c1")
    asking = agent.ask(session)
    hooks = monitor.page.locator("#hooks")
    await hooks.get_by_text("open; search; 1; permission_request; undefined").wait_for()
    await monitor.steady("file_edit")
    assert (1, 1) == (len(room.proxy.asked(f"/events/{session}")), room.proxy.streams)
    await hooks.get_by_role("button", name="hook denies file_edit").click()
    assert "a hook" == (await decided(asking)).reason
    await monitor.card("file_edit").wait_for(state="detached")
    await monitor.tab.do("unmount()")
    await until(lambda: room.proxy.streams == 0, what="the stream ending")


async def test_component_works_through_a_proxy_that_holds_streams(
    room: Room, notifier: SimpleNotifier, agent: Agent
) -> None:
    """Where no stream comes through, the same is shown and answered by polling, and it says so."""
    session = session_name()
    room.proxy.buffering = True
    monitor = await show(room, session, wait=False, options={"streamTimeout": 300, "streamRetry": 600})
    await monitor.connected("Connected · via polling")
    asking = agent.ask(session)
    await monitor.press("Approve", "file_edit")
    assert await decided(asking)
    await monitor.outcome("approved", "file_edit approved by alice")
    room.proxy.buffering = False
    await monitor.connected("Connected")


async def test_component_with_the_guides_props_only(room: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """`<MCPToolMonitor sessionId token />` does what the guide's does, in the browser's language."""
    session = session_name()
    tab = await room.monitor("component-plain", session)
    asking = agent.ask(session)
    await tab.page.locator(".permission-request[data-steady=true]").wait_for()
    await press_at_rest(tab.page.locator(".approve-btn"))
    assert await decided(asking)
    await notifier.tool_result(session, "file_edit", {"ok": 1}, success=True, tool_call_id="file_edit")
    await tab.page.get_by_text("Success").wait_for()


async def test_component_shows_errors_and_the_end_of_a_session(
    room: Room, notifier: SimpleNotifier, agent: Agent
) -> None:
    """An agent's error is shown until it is put away; a closed session has no
    requests, and nothing connects to it by itself."""
    session = session_name()
    monitor = await show(room, session)
    await notifier.error(session, "the model is unavailable", code="model_unavailable")
    alert = monitor.page.get_by_role("alert")
    await alert.get_by_text("The service reports: the model is unavailable (model_unavailable)").wait_for()
    await monitor.button("Dismiss").click()
    await alert.wait_for(state="detached")
    asking = agent.ask(session)
    await monitor.card("file_edit").wait_for()
    await notifier.close_session(session)
    await monitor.page.get_by_text("The session was closed.").wait_for()
    await monitor.page.get_by_text("Nothing to decide.").wait_for()
    await monitor.page.locator(".connection-status[data-phase=ended]").wait_for()
    assert not await decided(asking)
