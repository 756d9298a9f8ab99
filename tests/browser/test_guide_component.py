"""The guide's React component in a real browser, unchanged, with its own class and with the package's."""

from __future__ import annotations

import asyncio

import pytest

from agent_sse import SimpleNotifier
from browser.tabs import LOST, Agent, Room, Tab, decided, read_by_a_person
from harness import ServiceProcess, session_name

# Writes down each card that comes (its parameters) and goes ("-"), from what the page really shows.
WATCH = """() => {
    window.cards = [];
    const look = () => {
        const lines = [...document.querySelectorAll('.permission-request p')].map((line) => line.textContent);
        const now = lines.length ? lines[2] : '-';
        if (now !== (cards.at(-1) ?? '-')) cards.push(now);
    };
    new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
    look();
}"""


@pytest.fixture(params=["guide-monitor", "package-monitor"])
def name(request: pytest.FixtureRequest) -> str:
    """The page with the one class, and with the other."""
    return str(request.param)


async def connected(room: Room, name: str, session: str) -> Tab:
    tab = await room.monitor(name, session)
    await tab.page.get_by_text("状态: 已连接").wait_for()
    await tab.do(WATCH)
    return tab


async def card_is(tab: Tab, file: str) -> None:
    await tab.until("(text) => cards.at(-1) === text", f'参数: {{"file":"{file}"}}')


async def no_card(tab: Tab) -> None:
    await tab.until("() => (cards.at(-1) ?? '-') === '-'")


async def test_guide_component_shows_status_and_card(
    room: Room, notifier: SimpleNotifier, agent: Agent, name: str
) -> None:
    """The running tool and the request are shown with the fields that the guide's component reads."""
    session = session_name()
    tab = await connected(room, name, session)
    await notifier.tool_status(session, "file_search", "executing", parameters={"query": "例"})
    await tab.page.get_by_text("状态: executing").wait_for()
    assert ["工具: file_search", "状态: executing"] == (await tab.page.locator(".tool-status p").all_inner_texts())[:2]
    assert "Invalid Date" not in await tab.page.locator(".tool-status").inner_text()

    asking = agent.ask(session)
    await card_is(tab, "example.py")
    lines = await tab.page.locator(".permission-request p").all_inner_texts()
    assert ["工具: file_edit", "风险级别: high", '参数: {"file":"example.py"}'] == lines
    assert ["同意", "拒绝"] == await tab.page.get_by_role("button").all_inner_texts()
    await tab.page.get_by_role("button", name="拒绝").click()
    assert not await decided(asking)


@pytest.mark.parametrize("answer", [("同意", True, "用户同意"), ("拒绝", False, "用户拒绝")])
async def test_guide_component_button_answers_the_agent(
    room: Room, agent: Agent, name: str, answer: tuple[str, bool, str]
) -> None:
    """A click gives the agent its decision, and the card goes."""
    button, approved, reason = answer
    session = session_name()
    tab = await connected(room, name, session)
    asking = agent.ask(session)
    await card_is(tab, "example.py")
    await tab.page.get_by_role("button", name=button).click()
    decision = await decided(asking)
    assert (approved, reason) == (decision.approved, decision.reason)
    await no_card(tab)


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_HEARTBEAT_INTERVAL": "600"}])
async def test_guide_component_next_request_is_not_erased(
    room: Room, notifier: SimpleNotifier, agent: Agent, name: str
) -> None:
    """Of two requests the second is shown once the first is answered, and stays: no heartbeat has to bring it back."""
    session = session_name()
    tab = await connected(room, name, session)
    first = agent.ask(session, {"file": "a.py"})
    await card_is(tab, "a.py")
    second = agent.ask(session, {"file": "b.py"})
    await tab.page.get_by_role("button", name="同意").click()
    assert await decided(first)
    await card_is(tab, "b.py")
    await notifier.tool_status(session, "after", "executing")
    await tab.page.get_by_text("工具: after").wait_for()
    assert ['参数: {"file":"a.py"}', "-", '参数: {"file":"b.py"}'] == await tab.do("cards")
    await read_by_a_person()
    await tab.page.get_by_role("button", name="拒绝").click()
    assert not await decided(second)
    await no_card(tab)


async def test_guide_component_double_click_approves_one_request(room: Room, agent: Agent, name: str) -> None:
    """A double click on the first card never answers the second, which nobody read."""
    session = session_name()
    tab = await connected(room, name, session)
    tab.expect(r"status of 40[49]")
    first = agent.ask(session, {"file": "a.py"})
    await card_is(tab, "a.py")
    second = agent.ask(session, {"file": "b.py"})
    await tab.page.get_by_role("button", name="同意").dblclick()
    assert await decided(first)
    await card_is(tab, "b.py")
    assert not second.done()
    await read_by_a_person()
    await tab.page.get_by_role("button", name="拒绝").click()
    assert "用户拒绝" == (await decided(second)).reason


async def test_guide_component_goes_on_after_a_restart(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier, agent: Agent, name: str
) -> None:
    """After the service's restart the open card can be answered, and the next one comes."""
    session = session_name()
    tab = await connected(room, name, session)
    tab.expect(*LOST)
    first = agent.ask(session, {"file": "a.py"})
    await card_is(tab, "a.py")
    await service.stop()
    await service.start()
    await notifier.tool_status(session, "after", "executing")
    await tab.page.get_by_text("工具: after").wait_for()
    await card_is(tab, "a.py")
    await tab.page.get_by_role("button", name="同意").click()
    assert await decided(first)
    second = agent.ask(session, {"file": "b.py"})
    await card_is(tab, "b.py")
    await read_by_a_person()
    await tab.page.get_by_role("button", name="同意").click()
    assert await decided(second)


async def test_guide_component_drops_a_card_that_was_settled_meanwhile(
    room: Room, service: ServiceProcess, agent: Agent, name: str
) -> None:
    """A request that its agent withdrew while the service was away is gone when the stream is back."""
    session = session_name()
    tab = await connected(room, name, session)
    tab.expect(*LOST)
    asking = agent.ask(session)
    await card_is(tab, "example.py")
    await service.stop()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await service.start()
    await no_card(tab)


async def test_guide_component_two_tabs_agree(room: Room, agent: Agent, name: str) -> None:
    """Two tabs show the card; one answers, and it goes from both."""
    session = session_name()
    tabs = [await connected(room, name, session) for _ in range(2)]
    asking = agent.ask(session)
    for tab in tabs:
        await card_is(tab, "example.py")
    await tabs[0].page.get_by_role("button", name="同意").click()
    assert await decided(asking)
    for tab in tabs:
        await no_card(tab)
