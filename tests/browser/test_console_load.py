"""The console in a real Chromium with ten thousand events and more: all are kept, few are drawn, everything works."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from agent_sse import SimpleNotifier
from browser.console import Console, open_console
from browser.tabs import Agent, Room, decided
from harness import Valkey, session_name

KEPT = 10_000  # what the console keeps
CALLS = 250
CALLS_SHOWN = 200  # the last ones
DRAWN = 200  # rows of events; far fewer fit
RETENTION = 20_000
# A hidden tab has no animation frames; Chromium without a window hides none, so they are held back here.
HOLD_FRAMES = """(() => {
    const frames = [];
    const draw = window.requestAnimationFrame;
    window.hide = () => { window.requestAnimationFrame = (frame) => frames.push(frame); };
    window.show = () => { window.requestAnimationFrame = draw; frames.splice(0).forEach((frame) => draw(frame)); };
})()"""


@pytest.fixture
def service_settings() -> dict[str, str]:
    """A history that holds them all."""
    return {"AGENT_SSE_HEARTBEAT_INTERVAL": "1", "AGENT_SSE_RETENTION_EVENTS": str(RETENTION)}


@pytest.fixture
async def notifier(valkey: Valkey) -> AsyncIterator[SimpleNotifier]:
    """A notifier that drops none of them either."""
    async with SimpleNotifier.from_url(valkey.url, retention_events=RETENTION) as made:
        yield made


async def publish(notifier: SimpleNotifier, session: str, first: int, last: int) -> None:
    """Publish events with the numbers from ``first`` up to ``last``, of calls that run beside one another and end."""

    async def work(offset: int) -> None:
        for number in range(first + offset, last, CALLS):
            over = number + CALLS >= last
            await notifier.tool_status(
                session, f"tool_{offset % 7}", "completed" if over else "executing", tool_call_id=f"c{offset}",
                parameters={"number": f"<{number}>", "text": "lorem ipsum " * 8},
                details={"progress": {"progress": number}},
            )  # fmt: skip

    await asyncio.gather(*(work(offset) for offset in range(CALLS)))


async def all_work(console: Console, count: str) -> None:
    """Go to the oldest event and to the newest, filter and search; few rows are ever there."""
    listed = console.page.get_by_role("listbox", name="Events")
    await expect(console.count).to_have_text(re.compile(count))
    for key, place, says in (("Home", 1, "{"), ("End", KEPT, "the newest")):
        await listed.press(key)
        row = listed.get_by_role("option", selected=True)
        await expect(row).to_have_attribute("aria-posinset", str(place))
        await expect(row).to_be_in_viewport()
        await expect(console.inspected).to_contain_text(says)
        assert await console.events.count() < DRAWN
    await console.button("Close").click()
    await console.search("THE NEWEST")
    await expect(console.events).to_have_count(1)
    await console.search("lorem")
    await console.choose("Tool", "tool_3")
    await expect(console.count).to_have_text(re.compile(f"^1... of {KEPT}"))
    await console.button("Clear filter").click()
    await expect(console.count).to_have_text(re.compile(count))
    assert await console.events.count() < DRAWN
    await expect(console.page.locator(".call")).to_have_count(CALLS_SHOWN)


async def test_console_keeps_ten_thousand_events_as_they_come(
    room: Room, notifier: SimpleNotifier, agent: Agent
) -> None:
    """As fast as they are published: the last ten thousand are kept and it says how many are not; a request that comes
    meanwhile is answered; and what is read stays in sight while others come and go."""
    session = session_name()
    console = await open_console(room, session)
    publishing = asyncio.create_task(publish(notifier, session, 0, KEPT))
    asking = agent.ask(session, tool="delete")
    await console.press("Deny", "delete")
    assert not await decided(asking)
    await publishing
    await publish(notifier, session, KEPT, KEPT + 500)
    await notifier.error(session, "the newest")
    await all_work(console, f"^{KEPT} · 50[0-9] older ones dropped$")
    await console.page.locator(".events").evaluate("(list) => { list.scrollTop = 3000 * 30; }")
    row = console.page.locator(".event[aria-posinset='3005']")
    await expect(row).to_be_in_viewport()
    reading = console.page.locator(f"#{await row.get_attribute('id')}")
    await expect(reading).to_be_in_viewport()
    await publish(notifier, session, 0, 100)
    await expect(console.count).to_have_text(re.compile(f"^{KEPT} · 60[0-9] older"))
    await expect(reading).to_be_in_viewport()


async def test_console_opens_on_ten_thousand_events(room: Room, notifier: SimpleNotifier) -> None:
    """A session that has a long history: all of it is there when the console opens, and again after a reload."""
    session = session_name()
    await publish(notifier, session, 1, KEPT)
    await notifier.error(session, "the newest")
    console = await open_console(room, session)
    await all_work(console, f"^{KEPT}$")
    await console.page.reload()
    await expect(console.count).to_have_text(str(KEPT))


async def test_console_catches_up_when_its_tab_is_seen_again(
    room: Room, notifier: SimpleNotifier, agent: Agent
) -> None:
    """While the tab is hidden nothing is drawn, but all is kept and the title says that a request waits; seen again it
    shows everything."""
    session = session_name()
    await room.context.add_init_script(HOLD_FRAMES)
    console = await open_console(room, session)
    await notifier.error(session, "seen")
    await expect(console.count).to_have_text("1")
    await console.tab.do("hide()")
    await publish(notifier, session, 0, KEPT)
    asking = agent.ask(session, tool="delete")
    await expect(console.page).to_have_title(re.compile(r"^\(1\) "))
    assert 1 == await console.events.count()
    await console.tab.do("show()")
    await expect(console.count).to_have_text(re.compile(f"^{KEPT} · [0-9] older ones dropped$"))
    await console.press("Deny", "delete")
    assert not await decided(asking)
