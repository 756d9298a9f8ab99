"""The package's component as a test sees it: its cards, buttons and words by what a user or a screen reader finds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Locator

from agent_sse import SimpleNotifier
from browser.tabs import Agent, Room, Tab
from harness import Valkey, make_token

FOCUSED = """() => {
    const node = document.activeElement;
    const named = node.getAttribute('aria-label') ?? node.closest('label')?.textContent.trim();
    return `${node.localName}: ${named ?? node.textContent.trim()}`;
}"""

FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"


async def press_at_rest(button: Locator, *, force: bool = False) -> None:
    """Bring a card's button into sight, and press it once its card has not moved on the screen for long enough. With
    ``force`` also one that is `aria-disabled`."""
    await button.scroll_into_view_if_needed()
    await button.evaluate(FRAMES)  # the page hears of its scrolling with the next frame
    card = button.locator("xpath=ancestor::article")
    await card.and_(button.page.locator("[data-steady=true]")).wait_for()
    await button.click(force=force)


class Monitor:
    """`MCPToolMonitor` on a page. ``tab`` is its page."""

    def __init__(self, tab: Tab, session: str) -> None:
        self.tab = tab
        self.page = tab.page
        self.session = session

    def card(self, tool: str) -> Locator:
        return self.page.get_by_role("article", name=f"Permission request: {tool}", exact=True)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def call(self, call_id: str) -> Locator:
        return self.page.locator(f'[data-call="{call_id}"]')

    async def steady(self, tool: str) -> Locator:
        """Wait for the tool's card, until it takes an answer."""
        card = self.card(tool)
        await card.and_(self.page.locator("[data-steady=true]")).wait_for()
        return card

    async def press(self, name: str, tool: str) -> None:
        """Press a button of the tool's card once that takes it: ``Approve``, ``Deny``, ``Edit parameters of``."""
        await press_at_rest(self.card(tool).get_by_role("button", name=f"{name} {tool}", exact=True))

    async def edit(self, tool: str, parameters: str) -> None:
        """Open the tool's editor and put a JSON text into it."""
        await self.press("Edit parameters of", tool)
        await self.page.get_by_role("textbox", name=f"New parameters of {tool}, as JSON").fill(parameters)

    async def outcome(self, outcome: str, text: str) -> None:
        """Wait until the last decisions tell of one, with its whole text."""
        await self.page.locator(f'[data-outcome="{outcome}"]').get_by_text(text, exact=True).wait_for()

    async def connected(self, words: str = "Connected") -> None:
        await self.page.locator(".connection-status[data-phase=open]").get_by_text(words, exact=True).wait_for()

    async def status(self, call_id: str, status: str) -> None:
        """Wait for a call's status."""
        await self.call(call_id).locator(f'.agent-sse-status[data-status="{status}"]').wait_for()

    async def focused(self) -> str:
        """What has the focus: its element, and its name, its label or its text."""
        return str(await self.tab.do(f"({FOCUSED})()"))

    async def has_focus(self, what: str) -> None:
        """Wait until ``what`` has the focus, see `focused`."""
        await self.tab.until(f"(what) => what === ({FOCUSED})()", what)


async def show(
    room: Room, session: str, *, token: str | None = None, parts: str = "", wait: bool = True, **props: Any
) -> Monitor:
    """Open the component in a new tab and wait until it is connected; ``props`` are its own."""
    fragment = {"session": session, "token": token or make_token(session), "with": parts, "props": json.dumps(props)}
    monitor = Monitor(await room.open("component", fragment), session)
    if wait:
        await monitor.page.locator(".connection-status[data-phase=open]").wait_for()
    return monitor


@asynccontextmanager
async def several(valkey: Valkey) -> AsyncIterator[tuple[SimpleNotifier, Agent]]:
    """A notifier and an agent of whose requests four are shown at a time."""
    async with SimpleNotifier.from_url(valkey.url, permission_concurrency=4) as notifier:
        agent = Agent(notifier)
        yield notifier, agent
        await agent.leave()
