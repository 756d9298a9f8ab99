"""The console in a real Chromium against the real service: what a user sees of a session, and decides."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from playwright.async_api import expect

from agent_sse import SimpleNotifier
from agent_sse.errors import ToolCallCancelled
from browser.console import Console, open_console
from browser.tabs import LOST, Agent, Room, decided
from harness import DEADLINE, PREFIX, ServiceProcess, Stream, bearer, make_token, session_name


async def test_console_lists_the_sessions_and_switches_between_them(room: Room, notifier: SimpleNotifier) -> None:
    """The sessions of the token are listed; choosing another one shows its events and only these, and the address names
    it."""
    first, second = session_name(), session_name()
    for session, tool in ((first, "read"), (second, "write")):
        await notifier.open_session(session, owner="alice")
        await notifier.tool_status(session, tool, "executing", tool_call_id=tool)
    console = await open_console(room, token=make_token(first, second))
    listed = console.page.locator("nav.sessions li button")
    await expect(console.page.get_by_text("Choose a session.")).to_be_visible()
    await expect(listed).to_have_count(2)
    for session, tool, other in ((first, "read", "write"), (second, "write", "read")):
        await listed.filter(has_text=session).click()
        await console.status(tool, "executing")
        await expect(console.page.locator("nav.sessions [aria-current=true] .name")).to_have_text(session)
        await expect(console.call(other)).to_have_count(0)
        await expect(console.count).to_have_text("1")
        assert console.page.url.endswith(f"/#session={session}")


async def test_console_signs_in_by_its_form(room: Room) -> None:
    """Without a token in the address the form asks for one; what it gets is the same as the fragment's."""
    session = session_name()
    console = Console(await room.visit("/"))
    await console.page.get_by_label("Token").fill(f" {make_token(session)} ")
    await console.page.get_by_label("Session id").fill(session)
    await console.page.keyboard.press("Enter")
    await console.phase("open")
    assert console.page.url.endswith(f"/#session={session}")


async def test_console_shows_calls_as_they_go(room: Room, notifier: SimpleNotifier) -> None:
    """A call shows its status, its progress while it runs, its time, and when it is opened parameters and result."""
    session = session_name()
    console = await open_console(room, session)
    async with notifier.tool_call(session, "read", {"file": "a.py"}, tool_call_id="c1", server="files") as call:
        await console.status("c1", "executing")
        await call.progress(2, total=5, message="second of five")
        await expect(console.call("c1").locator("progress")).to_have_attribute("value", "2")
        await expect(console.call("c1")).to_contain_text("2 / 5 · second of five")
        call.result = {"lines": 9007199254740993}
    await console.status("c1", "completed")
    await expect(console.call("c1").locator("progress")).to_have_count(0)
    await expect(console.call("c1").locator(".took")).to_have_text(re.compile(r"^\d+ ms$|^\d+\.\d s$"))
    with pytest.raises(ValueError, match="no such file"):
        async with notifier.tool_call(session, "write", tool_call_id="c2"):
            raise ValueError("no such file")
    await console.status("c2", "failed")
    await expect(console.call("c2").locator(".call-error")).to_contain_text("no such file")
    await expect(console.page.locator(".call .tool")).to_have_text(["write", "read"])
    await console.call("c1").locator(".call-name").click()
    await expect(console.call("c1")).to_contain_text("files")
    await expect(console.call("c1").locator("pre")).to_have_text(
        ['{\n  "file": "a.py"\n}', '{\n  "lines": 9007199254740993\n}']
    )
    await console.call("c1").get_by_role("button", name="Its events").click()
    await expect(console.count).to_have_text(re.compile("^[1-9] of "))
    assert set() == {text for text in await console.events.all_inner_texts() if "read" not in text}


async def test_console_shows_the_whole_name_of_a_tool(room: Room, notifier: SimpleNotifier) -> None:
    """Beside a server's name, a status and a button a tool's name is never cut while the row is wide enough for it."""
    session = session_name()
    console = await open_console(room, session)
    for tool, status in (("delete_file", "executing"), ("read_multiple_files", "waiting_permission")):
        details = {"server": "mcp_server_filesystem" * 2, "cancellable": True}
        await notifier.tool_status(session, tool, status, tool_call_id=tool, details=details)
        await console.status(tool, status)
    for width in (360, 900, 1024, 1350, 1440, 1920):
        await console.page.set_viewport_size({"width": width, "height": 900})
        cut = "(names) => names.filter((name) => name.scrollWidth > name.clientWidth).map((name) => name.textContent)"
        assert [] == await console.page.locator(".call .tool").evaluate_all(cut), width


async def test_console_approves_and_denies(room: Room, agent: Agent) -> None:
    """The buttons of a request answer it, with the reason; below it stands what was decided, in the title how many
    requests wait."""
    session = session_name()
    console = await open_console(room, session)
    asking = agent.ask(session, {"id": 9007199254740993}, tool="file_edit")
    await expect(console.page).to_have_title(re.compile(r"^\(1\) "))
    await expect(console.request("file_edit").locator("pre")).to_have_text('{\n  "id": 9007199254740993\n}')
    await console.request("file_edit").get_by_label("Reason (optional)").fill("looks right")
    await console.press("Approve", "file_edit")
    decision = await decided(asking)
    assert (True, "looks right", "alice") == (decision.approved, decision.reason, decision.resolved_by)
    await expect(console.outcomes).to_have_text(re.compile("file_edit approved by alice · looks right$"))
    asking = agent.ask(session, tool="delete", risk="critical")
    await console.press("Deny", "delete")
    assert not await decided(asking)
    await expect(console.outcomes.nth(1)).to_have_text(re.compile("delete denied by alice$"))
    await expect(console.page.get_by_text("Nothing to decide.")).to_be_visible()
    await expect(console.page).to_have_title(re.compile(f"^{session}"))


async def test_console_approves_with_changes_and_for_the_session(room: Room, agent: Agent) -> None:
    """Edited parameters are what the agent gets; an answer for the session stands in health until it is forgotten; and
    both are in the audit."""
    session = session_name()
    console = await open_console(room, session)
    asking = agent.ask(session, {"file": "a.py", "n": 9007199254740993}, editable=True)
    await console.press("Edit parameters of", "file_edit")
    field = console.page.get_by_role("textbox", name="New parameters of file_edit, as JSON")
    await field.fill((await field.input_value()).replace("a.py", "b.py"))
    await console.press("Approve with changes:", "file_edit")
    assert {"file": "b.py", "n": 9007199254740993} == (await decided(asking)).parameters
    asking = agent.ask(session, tool="list")
    await console.request("list").get_by_label("this tool with any parameters").check()
    await console.press("Approve", "list")
    assert await decided(asking)
    health = await console.open_tab("Health")
    await expect(health.locator(".grants li")).to_have_text(re.compile("list.*approved.*any parameters.*by alice"))
    await expect(health.locator(".facts dd").first).to_have_text("ok")
    audit = await console.open_tab("Audit")
    await expect(audit.locator(".entries li")).to_have_count(2)
    await expect(audit.locator(".entries summary").first).to_contain_text("file_edit approved")
    await audit.locator(".entries summary").first.click()
    assert "9007199254740993" in await audit.locator(".entries pre").inner_text()
    health = await console.open_tab("Health")
    await console.button("Forget the answer for list").click()
    await expect(health.get_by_text("None: every request is asked about.")).to_be_visible()
    again = agent.ask(session, tool="list")
    await console.press("Deny", "list")
    assert not await decided(again)


async def test_console_cancels_a_call(room: Room, notifier: SimpleNotifier) -> None:
    """A running call that can be stopped has a button that does it."""
    session = session_name()
    console = await open_console(room, session)

    async def work() -> None:
        async with notifier.tool_call(session, "endless", tool_call_id="c1"):
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await console.button("Cancel endless").click()
    with pytest.raises(ToolCallCancelled):
        async with asyncio.timeout(DEADLINE):
            await working
    await console.status("c1", "cancelled")
    await expect(console.button("Cancel endless")).to_have_count(0)
    await expect(console.page.locator(".notice")).to_have_text("The agent is told to stop it.")


async def test_console_in_two_tabs_shows_one_decision(room: Room, agent: Agent) -> None:
    """Two tabs use one connection; what is decided in one goes from the other, which says by whom."""
    session = session_name()
    first = await open_console(room, session)
    second = await open_console(room, session)
    await expect(second.page.locator(".connection")).to_contain_text("via another tab")
    asking = agent.ask(session)
    await first.request("file_edit").wait_for()
    await second.press("Deny", "file_edit")
    assert not await decided(asking)
    for console in (first, second):
        await expect(console.request("file_edit")).to_have_count(0)
        await expect(console.outcomes).to_have_text(re.compile("file_edit denied by alice$"))
    assert 1 == room.proxy.streams


async def test_console_loses_nothing_over_a_restart_of_the_service(
    room: Room, notifier: SimpleNotifier, service: ServiceProcess
) -> None:
    """The service goes and comes back: the console says so, reconnects, and has every event once, in order."""
    session = session_name()
    console = await open_console(room, session)
    console.tab.expect(*LOST)
    for number in range(3):
        await notifier.tool_status(session, "read", "executing", tool_call_id=f"before-{number}")
    await expect(console.count).to_have_text("3")
    await service.stop()
    await console.phase("waiting")
    for number in range(20):
        await notifier.tool_status(session, "read", "executing", tool_call_id=f"while-{number}")
    await service.start()
    await console.tab.do("void dispatchEvent(new Event('online'))")  # the service is back: do not wait out the backoff
    await console.phase("open")
    await notifier.tool_status(session, "read", "executing", tool_call_id="after")
    await expect(console.count).to_have_text("24")
    ids = [f"before-{number}" for number in range(3)] + [f"while-{number}" for number in range(20)] + ["after"]
    entries = await exported(console)
    assert ids == [entry["event"]["data"]["tool_call_id"] for entry in entries]


async def exported(console: Console) -> list[Any]:
    """Press Export, and return the lines of the file that the browser saves."""
    async with console.page.expect_download() as saving:
        await console.button("Export").click()
    path = await (await saving.value).path()
    return [json.loads(line) for line in (await asyncio.to_thread(path.read_text, "utf-8")).splitlines()]


async def test_console_disconnects_and_reconnects(room: Room, notifier: SimpleNotifier) -> None:
    """Disconnected by its button it has no stream; Reconnect goes on with what was missed."""
    session = session_name()
    console = await open_console(room, session)
    await console.button("Disconnect").click()
    await console.phase("idle")
    await notifier.error(session, "missed", code="example")
    await console.button("Reconnect").click()
    await console.phase("open")
    await expect(console.count).to_have_text("1")
    await expect(console.alert).to_contain_text("example: missed")
    await console.button("Dismiss").click()
    await expect(console.alert).to_be_empty()


async def test_console_tells_when_something_came_last(room: Room) -> None:
    """While heartbeats come, byte and heartbeat are never told to be old."""
    session = session_name()
    console = await open_console(room, session)
    async with Stream(f"{room.proxy.url}{PREFIX}/events/{session}", bearer(make_token(session))) as stream:
        for _ in range(5):
            await stream.next("heartbeat")
    await expect(console.page.locator(".pulse")).to_have_text(
        re.compile("^last byte [0-2] s ago *heartbeat [0-2] s ago$")
    )


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_JWT_LEEWAY": "0", "AGENT_SSE_HEARTBEAT_INTERVAL": "1"}])
async def test_console_asks_for_another_token_when_one_expires(room: Room, service_settings: dict[str, str]) -> None:
    """When the token expires while it is used, or has before, the form says so and keeps the session, not the token."""
    session = session_name()
    expired = make_token(session, ttl=3)  # the second tab finds it so
    for _ in range(2):
        console = await open_console(room, session, expired, wait=False)
        console.tab.expect("401")
        await expect(console.page.locator(".signin [role=alert]")).to_contain_text("does not take this token")
        await expect(console.page.locator("#session")).to_have_value(session)
        assert {} == await console.kept()
    await console.page.get_by_label("Token").fill(make_token(session))
    await console.button("Sign in").click()
    await console.phase("open")


async def test_console_says_that_the_session_was_closed(room: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """A closed session is said to be closed, its request is gone, and nothing tries to connect. When the agent has
    opened it again, "Connect now" follows it, with nothing of what was."""
    session = session_name()
    await notifier.open_session(session, owner="alice")
    console = await open_console(room, session)
    agent.ask(session)
    await notifier.tool_status(session, "read", "executing", tool_call_id="c1")
    await console.request("file_edit").wait_for()
    await console.status("c1", "executing")
    await notifier.close_session(session)
    await console.phase("ended")
    await expect(console.alert).to_contain_text("The session was closed.")
    await expect(console.request("file_edit")).to_have_count(0)
    await notifier.open_session(session, owner="alice")
    await notifier.tool_status(session, "search", "executing", tool_call_id="c2")
    await console.button("Connect now").click()
    await console.status("c2", "executing")
    await expect(console.page.locator(".call .tool")).to_have_text(["search"])
    await expect(console.alert).to_be_empty()


async def test_console_signs_out(room: Room) -> None:
    """Signing out ends the stream and leaves neither token nor session in the tab, also over a reload."""
    session = session_name()
    console = await open_console(room, session)
    await expect(console.page).to_have_title(f"{session} · agent-sse console")
    await console.button("Sign out").click()
    await expect(console.page).to_have_title("agent-sse console")
    for _ in range(2):
        await expect(console.page.locator("#token")).to_have_value("")
        await expect(console.page.locator("#session")).to_have_value("")
        assert ({}, f"{room.proxy.url}/") == (await console.kept(), console.page.url.rstrip("#"))
        await console.page.reload()
    assert 0 == room.proxy.streams


async def test_console_speaks_chinese_and_goes_dark(room: Room, agent: Agent) -> None:
    """Language and theme change at once, for the cards too, and stay over a reload."""
    session = session_name()
    console = await open_console(room, session)
    agent.ask(session)
    await console.button("中文").click()
    await console.page.get_by_role("combobox", name="主题").select_option("dark")
    for _ in range(2):
        await expect(console.page.locator("h1")).to_have_text("agent-sse 控制台")
        await expect(console.page.locator(".agent-sse-approve")).to_have_text("同意")
        assert "zh-CN dark" == await console.tab.do("`${document.documentElement.lang} ${document.body.dataset.theme}`")
        assert "rgb(255, 255, 255)" != await console.tab.do("getComputedStyle(document.body).backgroundColor")
        await console.page.reload()
