"""The console as a test sees it: its parts by what a user finds, and what its page asked for and was refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from playwright.async_api import Locator, expect

from agent_sse import SimpleNotifier
from browser.monitor import press_at_rest
from browser.tabs import Room, Tab
from harness import DEADLINE, make_token, until

expect.set_options(timeout=DEADLINE * 1000)

# Before any script of the page: what its policy refuses, for `Console.violations`.
WATCH_POLICY = """(() => {
    window.refused = [];
    document.addEventListener('securitypolicyviolation', ({ effectiveDirective, blockedURI }) =>
        refused.push(`${effectiveDirective}: ${blockedURI}`));
})()"""


class Console:
    """The console on a page, in English. ``tab`` is its page."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        self.page = tab.page
        self.events = self.page.locator(".event")
        self.count = self.page.locator(".count")
        self.inspected = self.page.locator(".inspector .code pre")
        self.alert = self.page.locator(".problems[role=alert]")
        self.outcomes = self.page.locator(".outcomes li")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def request(self, tool: str) -> Locator:
        return self.page.get_by_role("article", name=f"Permission request: {tool}", exact=True)

    def request_of(self, request_id: str) -> Locator:
        return self.page.locator(f'.agent-sse-request[data-request="{request_id}"]')

    def call(self, call_id: str) -> Locator:
        return self.page.locator(f'.call[data-call="{call_id}"]')

    async def phase(self, phase: str) -> None:
        """Wait until the connection is there."""
        await self.page.locator(f".connection [data-phase={phase}]").wait_for()

    async def press(self, name: str, tool: str) -> None:
        """Press a button of the tool's card once that takes it: ``Approve``, ``Deny``, ``Edit parameters of``."""
        await press_at_rest(self.request(tool).get_by_role("button", name=f"{name} {tool}", exact=True))

    async def status(self, call_id: str, status: str) -> None:
        """Wait for a call's status."""
        await self.call(call_id).and_(self.page.locator(f"[data-status={status}]")).wait_for()

    async def open_tab(self, name: str) -> Locator:
        """Choose ``Events``, ``Health`` or ``Audit``; returns its panel."""
        await self.page.get_by_role("tab", name=name, exact=True).click()
        return self.page.get_by_role("tabpanel", name=name, exact=True)

    async def choose(self, label: str, value: str) -> None:
        """Choose in a filter: ``Type``, ``Tool``, ``Status``; empty for all."""
        await self.page.get_by_role("combobox", name=label, exact=True).select_option(value)

    async def search(self, text: str) -> None:
        await self.page.get_by_role("searchbox", name="Search the JSON").fill(text)

    async def copied(self, name: str) -> str:
        """Press a button that copies, and return what is in the clipboard."""
        await self.tab.do("navigator.clipboard.writeText('')")
        await self.button(name).click()
        await self.page.locator(".notice").get_by_text("Copied.").wait_for()
        return str(await until(lambda: self.tab.do("navigator.clipboard.readText()"), what="a copy"))

    async def violations(self) -> list[str]:
        """What the page's policy has refused, as ``directive: what``."""
        return list(await self.tab.do("refused"))

    async def kept(self) -> dict[str, str]:
        """What the tab's storage has under the console's key; empty when nothing."""
        return dict(json.loads(await self.tab.do("sessionStorage.getItem('agent-sse-console') ?? '{}'")))


async def open_console(room: Room, session: str = "", token: str | None = None, *, wait: bool = True) -> Console:
    """Open the console in a new tab with the token in the fragment, and wait until it follows the session."""
    fragment = {"session": session, "token": make_token(session) if token is None else token}
    console = Console(await room.visit("/#" + urlencode({name: value for name, value in fragment.items() if value})))
    if wait and session:
        await console.phase("open")
    return console


async def publish_raw(notifier: SimpleNotifier, session: str, event: Mapping[str, Any]) -> str:
    """Append any JSON object to the session's Stream, also what no publisher could."""
    return await notifier._publish(session, event, "other", "")
