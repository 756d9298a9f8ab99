"""The console in a real Chromium without a mouse and without sight: axe, the keyboard, small windows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from agent_sse import SimpleNotifier
from browser.console import Console, open_console
from browser.tabs import LOST, Agent, Room, decided
from harness import ServiceProcess, session_name

AXE = Path(__file__).parents[2] / "client/node_modules/axe-core/axe.min.js"
# Each violation as "rule: element", for every rule that axe has, best practices too.
RUN_AXE = """async () => {
    const { violations, passes } = await axe.run(document);
    if (passes.length < 10) return ['axe has hardly looked at anything'];
    return violations.flatMap(
        ({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.any.map((each) => each.message)}`));
}"""
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 360, "height": 740}
LOOKS = [("en", "light"), ("en", "dark"), ("zh", "light"), ("zh", "dark")]
PARAMETERS = {"file": "src/very/long/path/" + "name_" * 30, "number": 9007199254740993}


@pytest.fixture
async def seen(room: Room) -> Room:
    """A room in whose pages axe is there; as an initial script no policy keeps it out."""
    await room.context.add_init_script(path=AXE)
    return room


async def check(console: Console) -> None:
    """Axe finds nothing, and nothing is wider than the window."""
    assert [] == await console.tab.do(f"({RUN_AXE})()"), console.page.viewport_size
    assert 0 == await console.tab.do("document.documentElement.scrollWidth - innerWidth"), console.page.viewport_size


async def look(console: Console, language: str, theme: str) -> None:
    """Choose language and theme by the page's own controls, whatever they are now."""
    await console.page.locator(".controls select").select_option(theme)
    button = console.page.locator(".controls button").filter(has_text=re.compile("^(中文|English)$"))
    if (await button.inner_text() == "中文") == (language == "zh"):
        await button.click()
    await console.page.locator(f"html[lang|={language}] body[data-theme={theme}]").wait_for()


async def check_looks(console: Console) -> None:
    """Check in both themes and both languages, wide and narrow."""
    for language, theme in LOOKS:
        await look(console, language, theme)
        for size in (WIDE, NARROW):
            await console.page.set_viewport_size(size)  # type: ignore[arg-type] # its TypedDict is not exported
            await check(console)


async def fill(notifier: SimpleNotifier, agent: Agent, session: str) -> None:
    """A call of each status, results, errors, and an open request that can be edited."""
    for status in ("pending", "executing", "completed", "failed", "denied", "cancelled"):
        await notifier.tool_status(
            session, f"tool_{status}", status, tool_call_id=status, parameters=PARAMETERS, risk_level="critical",
            details={"progress": {"progress": 3, "total": 4, "message": "third " * 20}},
        )  # fmt: skip
    await notifier.tool_result(session, "tool_failed", None, success=False, error="no " * 50, tool_call_id="failed")
    await notifier.error(session, "the model is unavailable", code="model_unavailable")
    agent.ask(session, PARAMETERS, editable=True, message="please " * 20)


async def test_console_has_no_violation_while_it_works(seen: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """With calls of every status, an error, an opened call and event, and a request that is edited: no violation, light
    and dark, in both languages, and down to 360 pixels."""
    session = session_name()
    await fill(notifier, agent, session)
    console = await open_console(seen, session)
    await console.call("failed").locator(".call-name").click()
    await console.events.nth(2).click()
    await check_looks(console)
    await look(console, "en", "dark")
    await console.press("Edit parameters of", "file_edit")
    await console.page.get_by_role("textbox", name=re.compile("New parameters")).fill('{"file": "b.py"}')
    await console.search("nothing has this")
    await check_looks(console)


async def test_console_has_no_violation_in_its_other_panels(seen: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """Health with a remembered answer, and the audit with an opened entry."""
    session = session_name()
    await notifier.open_session(session, owner="alice")
    console = await open_console(seen, session)
    asking = agent.ask(session, PARAMETERS)
    await console.request("file_edit").get_by_label(re.compile("exactly these parameters")).check()
    await console.press("Approve", "file_edit")
    assert await decided(asking)
    health = await console.open_tab("Health")
    await health.locator(".grants li").wait_for()
    await check_looks(console)
    await look(console, "en", "light")
    audit = await console.open_tab("Audit")
    await audit.locator("summary").click()
    await check_looks(console)


async def test_console_has_no_violation_before_and_after(
    seen: Room, notifier: SimpleNotifier, service: ServiceProcess
) -> None:
    """The form, with and without a problem; no session chosen; an empty one; without a service; and a closed one."""
    console = Console(await seen.visit("/"))
    await console.page.locator("#token").wait_for()
    await check_looks(console)
    console.tab.expect("401", *LOST)
    await console.page.locator("#token").fill("no token")
    await console.page.keyboard.press("Enter")
    await console.page.locator(".signin [role=alert]").wait_for()
    await check_looks(console)
    session = session_name()
    await notifier.open_session(session, owner="alice")
    console = await open_console(seen, session)
    console.tab.expect(*LOST)
    await check_looks(console)
    await service.stop()
    await console.phase("waiting")
    await check_looks(console)
    await service.start()
    await console.page.locator(".connection .agent-sse-button").click()
    await console.phase("open")
    await notifier.close_session(session)
    await console.phase("ended")
    await check_looks(console)


async def test_console_is_used_by_keyboard_alone(room: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """From the address bar: the first Tab leads to the requests, Tab and Enter answer; the list's keys choose an event,
    Escape closes it and leads back to the list; `/` leads to the search, arrow keys through the tabs."""
    session = session_name()
    for number in range(30):
        await notifier.error(session, f"number {number}")
    console = await open_console(room, session)
    keyboard = console.page.keyboard
    await keyboard.press("Tab")
    await expect(console.button("Skip to the requests")).to_be_focused()
    await keyboard.press("Enter")
    await expect(console.page.locator("#requests-title")).to_be_focused()
    asking = agent.ask(session)
    await console.request("file_edit").and_(console.page.locator("[data-steady=true]")).wait_for()
    approve = console.button("Approve file_edit")
    await expect(console.request("file_edit").get_by_role("heading")).to_be_focused()
    while not await approve.evaluate("(button) => button === document.activeElement"):
        assert await console.page.evaluate("document.activeElement.closest('.request, #requests-title') !== null")
        await keyboard.press("Tab")
    await keyboard.press("Enter")
    assert await decided(asking)
    await expect(console.page.locator("#requests-title")).to_be_focused()
    await keyboard.press("/")
    await expect(console.page.get_by_role("searchbox")).to_be_focused()
    await keyboard.type("number")
    await expect(console.count).to_have_text(re.compile("^30 of"))
    listed = console.page.get_by_role("listbox", name="Events")
    while not await listed.evaluate("(list) => list === document.activeElement"):
        await keyboard.press("Tab")
    for key, number in (("Home", 0), ("ArrowDown", 1), ("PageDown", 11), ("End", 29), ("ArrowUp", 28)):
        await keyboard.press(key)
        await expect(console.inspected).to_contain_text(f'"message": "number {number}"')
        active = await listed.get_attribute("aria-activedescendant")
        await expect(console.page.locator(f"#{active}[aria-selected=true]")).to_be_in_viewport()
    await keyboard.press("Tab")
    await keyboard.press("Escape")
    await expect(console.inspected).to_have_count(0)
    await expect(listed).to_be_focused()
    await console.page.get_by_role("tab", name="Events").focus()
    for key, tab in (
        ("ArrowRight", "Health"),
        ("ArrowRight", "Audit"),
        ("ArrowRight", "Events"),
        ("ArrowLeft", "Audit"),
    ):
        await keyboard.press(key)
        await expect(console.page.get_by_role("tab", name=tab, selected=True)).to_be_focused()
        await expect(console.page.get_by_role("tabpanel", name=tab)).to_be_visible()


async def test_console_leaves_what_is_typed_alone(room: Room, agent: Agent) -> None:
    """A request that comes while the user types in the search takes nothing, and is announced at once."""
    session = session_name()
    console = await open_console(room, session)
    search = console.page.get_by_role("searchbox")
    await search.press_sequentially("one")
    asking = agent.ask(session)
    await expect(console.page.locator("[aria-live=assertive]")).to_have_text(
        "Permission requested: file_edit, High risk"
    )
    await console.request("file_edit").and_(console.page.locator("[data-steady=true]")).wait_for()
    await console.page.keyboard.type(" /two\n")
    await expect(search).to_have_value("one /two")
    assert [] == room.proxy.asked("POST ")
    assert not asking.done()
