"""The package's React component without a mouse and without sight: focus, keys, announcements, contrast, and axe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Locator

from agent_sse import SimpleNotifier
from browser.monitor import Monitor, press_at_rest, several, show
from browser.tabs import LOST, Agent, Room, decided
from harness import ServiceProcess, Valkey, session_name

AXE = Path(__file__).parents[2] / "client/node_modules/axe-core/axe.min.js"
# Each violation as "rule: element", for every rule that axe has, best practices too.
RUN_AXE = """async () => (await axe.run(document, { resultTypes: ['violations'] })).violations.flatMap(
    ({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.any.map((each) => each.message)}`))"""
# Keeps what the live regions said, by which of them.
LISTEN = """() => {
    window.heard = [];
    for (const region of document.querySelectorAll('[data-announcer]')) {
        const kind = region.dataset.announcer;
        new MutationObserver(() => heard.push(`${kind}: ${region.textContent}`))
            .observe(region, { subtree: true, childList: true, characterData: true });
    }
}"""


async def listening(room: Room, session: str) -> Monitor:
    monitor = await show(room, session)
    await monitor.tab.do(f"({LISTEN})()")
    return monitor


async def heard(monitor: Monitor, text: str) -> None:
    await monitor.tab.until("(text) => heard.includes(text)", text)


async def test_component_is_used_by_keyboard_alone(room: Room, agent: Agent) -> None:
    """A request takes the focus; Tab goes through its card in reading order; Space on its button answers it."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session, editable=True)
    await monitor.has_focus("h4: file_edit")
    await monitor.steady("file_edit")
    order = [
        "div: Parameters of file_edit",
        "input: only this time",
        "input: Reason (optional)",
        "button: Approve file_edit",
        "button: Deny file_edit",
        "button: Edit parameters of file_edit",
    ]
    found = []
    for _ in order:
        await monitor.page.keyboard.press("Tab")
        found.append(await monitor.focused())
    assert order == found
    await monitor.page.keyboard.press("Shift+Tab")
    await monitor.page.keyboard.press("Space")
    assert not await decided(asking)
    await monitor.has_focus("h3: Permission requests")


async def test_component_moves_the_focus_from_card_to_card(room: Room, agent: Agent) -> None:
    """A request that comes after the one before was answered has the focus too, though it comes later."""
    session = session_name()
    monitor = await show(room, session)
    for tool in ("first", "second"):
        asking = agent.ask(session, tool=tool)
        await monitor.has_focus(f"h4: {tool}")
        await monitor.steady(tool)
        await monitor.button(f"Deny {tool}").focus()
        await monitor.page.keyboard.press("Enter")
        assert not await decided(asking)
        await monitor.has_focus("h3: Permission requests")


async def test_component_leaves_the_focus_to_who_is_writing(room: Room, agent: Agent) -> None:
    """A request that comes while the user writes elsewhere takes nothing, and what is typed answers nothing."""
    session = session_name()
    monitor = await listening(room, session)
    field = monitor.page.get_by_role("textbox", name="Elsewhere")
    await field.press_sequentially("one")
    asking = agent.ask(session)
    await heard(monitor, "assertive: Permission requested: file_edit, High risk")
    await monitor.steady("file_edit")
    await monitor.page.keyboard.type(" two\n")
    assert "one two" == await field.input_value()
    await monitor.press("Deny", "file_edit")
    assert "" == (await decided(asking)).reason


@pytest.mark.parametrize(
    "place",
    [
        "<dialog><button>OK</button></dialog>",
        '<div role="dialog" aria-modal="true"><button>OK</button></div>',
        '<div contenteditable="true">text</div>',
        '<iframe srcdoc="<input>"></iframe>',
    ],
)
async def test_component_takes_the_focus_out_of_no_other_place(room: Room, agent: Agent, place: str) -> None:
    """A request takes no focus out of a dialog, a rich text, or a frame, of which nobody knows what is done there."""
    session = session_name()
    monitor = await listening(room, session)
    await monitor.page.evaluate(
        """(place) => {
            document.body.insertAdjacentHTML('beforeend', place);
            const node = document.body.lastElementChild;
            node.showModal?.();
            (node.querySelector('button') ?? node).focus();
            window.before = document.activeElement;
        }""",
        place,
    )
    assert "body" != await monitor.tab.do("before.localName")
    agent.ask(session)
    await heard(monitor, "assertive: Permission requested: file_edit, High risk")
    await monitor.steady("file_edit")
    assert await monitor.tab.do("document.activeElement === before")


async def test_component_without_move_focus_moves_none(room: Room, agent: Agent) -> None:
    """With `moveFocus={false}` the focus stays where it is."""
    session = session_name()
    monitor = await show(room, session, moveFocus=False)
    agent.ask(session)
    await monitor.steady("file_edit")
    assert "body" == await monitor.tab.do("document.activeElement.localName")


async def test_component_is_never_answered_by_accident(room: Room, agent: Agent) -> None:
    """Enter and Space on what is focused by itself, Enter in the reason, a key held down, or a click on a card that has
    only just come: nothing is sent."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session)
    await monitor.has_focus("h4: file_edit")
    await monitor.button("Approve file_edit").evaluate("(button) => button.click()")
    card = monitor.card("file_edit")
    await card.get_by_text("The list has just moved: check the request and press again.").wait_for()
    await monitor.steady("file_edit")
    for key in ("Enter", "Space", "Enter"):
        await monitor.page.keyboard.press(key)
    await card.get_by_role("textbox", name="Reason (optional)").press("Enter")
    await card.get_by_role("radio", name="only this time").press("Enter")
    for name, key in (("Approve", "Enter"), ("Deny", "Enter"), ("Approve", "Space")):
        await card.get_by_role("textbox", name="Reason (optional)").focus()
        await monitor.page.keyboard.down(key)
        await monitor.button(f"{name} file_edit").focus()
        for _ in range(3):
            await monitor.page.keyboard.down(key)  # repeats
        await card.get_by_role("textbox", name="Reason (optional)").focus()
        await monitor.page.keyboard.up(key)
    await card.get_by_role("textbox", name="Reason (optional)").fill("meant")
    assert [] == room.proxy.asked("POST ")
    await monitor.button("Approve file_edit").press("Enter")
    assert "meant" == (await decided(asking)).reason
    assert 1 == len(room.proxy.asked("POST "))


async def test_component_takes_no_click_meant_for_the_card_before(room: Room, valkey: Valkey) -> None:
    """When a card goes and the next one moves into its place, a click there at once answers nothing."""
    session = session_name()
    monitor = await show(room, session)
    async with several(valkey) as (_, agent):
        first = agent.ask(session, tool="first")
        await monitor.card("first").wait_for()
        second = agent.ask(session, tool="second")
        await monitor.steady("second")
        await monitor.tab.do(
            """() => new MutationObserver(() => {
                const cards = document.querySelectorAll('[data-request]');
                if (cards.length === 1) cards[0].querySelector('.approve-btn').click();
            }).observe(document.querySelector('.agent-sse-requests'), { childList: true })"""
        )
        await monitor.press("Deny", "first")
        assert not await decided(first)
        await monitor.card("second").get_by_text("The list has just moved").wait_for()
        assert not second.done()
        assert 1 == len(room.proxy.asked("POST "))


async def test_component_takes_no_click_meant_for_a_card_that_scrolled_away(room: Room, valkey: Valkey) -> None:
    """When the page scrolls, by the user or by a script, a click at once on what came under the pointer answers
    nothing; half a second later the card takes it."""
    session = session_name()
    monitor = await show(room, session)
    async with several(valkey) as (_, agent):
        askings = [agent.ask(session, {"text": "x\n" * 9}, tool=f"tool_{number}") for number in range(3)]
        for number in range(3):
            await monitor.steady(f"tool_{number}")
        first, second = monitor.page.locator(".approve-btn").nth(0), monitor.page.locator(".approve-btn").nth(1)
        below = await box(second)
        above = await box(first)
        await monitor.page.mouse.move(above["x"] + 20, above["y"] + 10)
        await monitor.page.evaluate("(by) => scrollBy(0, by)", below["y"] - above["y"])
        await monitor.page.mouse.down()
        await monitor.page.mouse.up()
        await monitor.page.locator(".agent-sse-note", has_text="The list has just moved").wait_for()
        assert above["y"] == pytest.approx((await box(second))["y"], abs=2)
        assert [] == room.proxy.asked("POST ")
        await monitor.page.locator("[data-steady=true]").nth(1).wait_for()
        await monitor.page.mouse.down()
        await monitor.page.mouse.up()
        await monitor.page.locator(".agent-sse-outcomes li").wait_for()
        assert 1 == sum(asking.done() for asking in askings)


async def test_component_scrolls_no_card_out_of_sight(room: Room, valkey: Valkey) -> None:
    """A request that comes while another card is before the user's eyes is announced and has the focus, and nothing
    moves; where no card is in sight the page scrolls to it."""
    session = session_name()
    monitor = await listening(room, session)
    parameters = {"text": "x\n" * 9}
    async with several(valkey) as (_, agent):
        agent.ask(session, parameters, tool="first")
        await monitor.steady("first")
        agent.ask(session, parameters, tool="second")
        await monitor.steady("second")
        await monitor.tab.do("document.activeElement.blur()")
        before = await box(monitor.button("Approve first"))
        agent.ask(session, parameters, tool="third")
        await heard(monitor, "assertive: Permission requested: third, High risk")
        await monitor.has_focus("h4: third")
        assert before == await box(monitor.button("Approve first"))
        await monitor.tab.do("document.body.style.paddingTop = '3000px'; scrollTo(0, 0); document.activeElement.blur()")
        agent.ask(session, parameters, tool="fourth")
        await monitor.has_focus("h4: fourth")
        await monitor.tab.until("() => scrollY > 0")


async def box(button: Locator) -> dict[str, float]:
    """Where a button is on the screen."""
    found = await button.bounding_box()
    assert found is not None
    return {"x": found["x"], "y": found["y"]}


async def test_component_leaves_the_editor_by_escape(room: Room, agent: Agent) -> None:
    """The editor has the focus when it opens; Escape leaves it unchanged, and the focus is where it was."""
    session = session_name()
    monitor = await show(room, session)
    asking = agent.ask(session, {"file": "a.py"}, editable=True)
    await monitor.steady("file_edit")
    await monitor.button("Edit parameters of file_edit").press("Enter")
    await monitor.has_focus("textarea: New parameters of file_edit, as JSON")
    await monitor.page.keyboard.type('{"file": "b.py"}')
    await monitor.page.keyboard.press("Escape")
    await monitor.has_focus("button: Edit parameters of file_edit")
    await monitor.press("Approve", "file_edit")
    decision = await decided(asking)
    assert ({"file": "a.py"}, False) == (decision.parameters, decision.edited)


async def test_component_announces_requests_and_what_becomes_of_them(room: Room, agent: Agent) -> None:
    """A request is said at once; its last seconds, its outcome and an answer's refusal when there is a pause."""
    session = session_name()
    monitor = await listening(room, session)
    asking = agent.ask(session, timeout=25.0)
    await heard(monitor, "assertive: Permission requested: file_edit, High risk")
    await monitor.tab.until(
        "() => heard.some((text) => /^polite: The request of file_edit expires in 2\\d s/.test(text))"
    )
    await monitor.press("Deny", "file_edit")
    assert not await decided(asking)
    await heard(monitor, "polite: file_edit denied by alice")
    again = agent.ask(session, risk="critical")
    await heard(monitor, "assertive: Permission requested: file_edit, Critical risk")
    await monitor.press("Deny", "file_edit")
    assert not await decided(again)
    await monitor.tab.until("() => heard.filter((text) => text === 'polite: file_edit denied by alice').length === 2")


class Looks:
    """The component in each of its languages, on a page of its own, and what axe says of them."""

    def __init__(self, monitors: list[Monitor]) -> None:
        self.monitors = monitors
        self.found: list[str] = []

    async def check(self, state: str) -> None:
        """Run axe in both themes and at two widths, and see that nothing is wider than the page."""
        for monitor in self.monitors:
            for width, theme in ((1280, "light"), (360, "light"), (360, "dark")):
                page = monitor.page
                await page.set_viewport_size({"width": width, "height": 900})
                await page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                where = f"{state}, {theme}, {width}"
                self.found += [f"{where}: {each}" for each in await monitor.tab.do(f"({RUN_AXE})()")]
                if await monitor.tab.do("document.documentElement.scrollWidth > innerWidth"):
                    self.found.append(f"{where}: it scrolls sideways")


@asynccontextmanager
async def looks(room: Room, session: str) -> AsyncIterator[Looks]:
    monitors = [await show(room, session, language=language, options={"shareTabs": False}) for language in ("en", "zh")]
    for monitor in monitors:
        monitor.tab.expect(*LOST, "status of 422")
        await monitor.page.add_script_tag(path=AXE)
    made = Looks(monitors)
    yield made
    assert [] == made.found, "\n".join(made.found)


async def test_component_has_no_axe_violation_while_it_asks(room: Room, agent: Agent) -> None:
    """axe finds nothing, light and dark, in Chinese and English, wide and narrow: empty, asking, editing, refused."""
    session = session_name()
    async with looks(room, session) as pages:
        await pages.check("empty")
        parameters = {"file": "src/" + "very_long_name_" * 8 + ".py", "key": "sk-" + "a1B2c3D4" * 6, "text": "x\n" * 40}
        asking = agent.ask(
            session, parameters, editable=True, timeout=25.0, message="to fix it " * 20, server="files",
            schema={"type": "object", "properties": {"file": {"type": "string", "maxLength": 200}}},
        )  # fmt: skip
        for monitor in pages.monitors:
            await monitor.page.locator("[data-request][data-steady=true]").wait_for()
        await pages.check("asking")
        for monitor in pages.monitors:
            await monitor.page.locator(".permission-buttons button").nth(2).click()
            field = monitor.page.locator("textarea")
            await field.fill((await field.input_value()).replace("name_.py", f"{'name_' * 40}.py"))
            await monitor.page.locator("[data-change=added]").first.wait_for()
        await pages.check("editing")
        for monitor in pages.monitors:
            await monitor.page.locator("[data-request][data-steady=true]").wait_for()
            await press_at_rest(monitor.page.locator(".approve-btn"))
            await monitor.page.locator(".agent-sse-note", has_text="/file").wait_for()
            await monitor.page.locator("textarea").fill("{")
            await monitor.page.locator(".agent-sse-problem").wait_for()
        await pages.check("refused")
        assert not asking.done()


async def test_component_has_no_axe_violation_with_calls_and_without_connection(
    room: Room, service: ServiceProcess, valkey: Valkey
) -> None:
    """axe finds nothing with calls in every state, results open, decisions, an error, and when the service is away."""
    session = session_name()
    async with several(valkey) as (notifier, agent), looks(room, session) as pages:
        await fill(notifier, session)
        first = pages.monitors[0]
        for risk in ("low", "medium", "high", "critical"):
            agent.ask(session, risk=risk, tool=risk)
            await first.card(risk).wait_for()
        await first.press("Deny", "high")
        await first.outcome("denied", "high denied by alice")
        for monitor in pages.monitors:
            await monitor.page.get_by_role("alert").wait_for()
            await monitor.page.locator("summary").evaluate_all("(folds) => folds.forEach((fold) => fold.click())")
            await monitor.page.locator("[data-request][data-steady=true]").nth(2).wait_for()
        await pages.check("results")
        await service.stop()
        for monitor in pages.monitors:
            await monitor.page.locator(".connection-status[data-phase=waiting]").wait_for()
        await pages.check("disconnected")


async def fill(notifier: SimpleNotifier, session: str) -> None:
    """Calls in each state, with progress, results and an error."""
    for status in ("pending", "executing", "completed", "failed", "denied", "cancelled", "waiting_permission"):
        await notifier.tool_status(
            session,
            f"tool_{status}",
            status,
            tool_call_id=status,
            parameters={"query": "word " * 60},
            risk_level="medium",
        )
    await notifier.tool_result(
        session, "tool_completed", {"text": "line\n" * 60}, success=True, tool_call_id="completed"
    )
    await notifier.tool_result(
        session, "tool_failed", None, success=False, tool_call_id="failed", error="no such file: " + "x" * 200
    )
    await notifier.error(session, "the model is unavailable", code="model_unavailable")


@pytest.mark.parametrize(("theme", "background"), [("dark", "rgb(13, 17, 23)"), ("light", "rgb(255, 255, 255)")])
async def test_component_has_the_theme_it_is_told(room: Room, theme: str, background: str) -> None:
    """The prop, and `data-theme` on the page, go before what the system says."""
    session = session_name()
    by_prop = await show(room, session, theme=theme)
    by_page = await show(room, session)
    await by_page.tab.do(f"document.documentElement.dataset.theme = '{theme}'")
    for monitor in (by_prop, by_page):
        await monitor.page.emulate_media(color_scheme="light" if theme == "dark" else "dark")
        script = "getComputedStyle(document.querySelector('.agent-sse-monitor')).backgroundColor"
        assert background == await monitor.tab.do(script)


async def test_component_tells_states_apart_without_its_colours(room: Room, notifier: SimpleNotifier) -> None:
    """Where the system's colours replace its own, buttons, marks and changed lines still have an edge."""
    session = session_name()
    monitor = await show(room, session)
    await monitor.page.emulate_media(forced_colors="active", reduced_motion="reduce")
    await notifier.tool_status(session, "search", "executing", tool_call_id="c1")
    await monitor.status("c1", "executing")
    for mark in (".agent-sse-status", ".agent-sse-dot", ".agent-sse-risk"):
        script = f"getComputedStyle(document.querySelector('{mark}'))"
        edge = await monitor.tab.do(f"[{script}.borderTopWidth, {script}.borderTopColor === {script}.color]")
        assert ["1px", True] == edge, mark
