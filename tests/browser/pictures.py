"""Takes the picture of the component that the documentation shows, from the real parts; no test runs in this file.

``PYTHONPATH=tests python -m browser.pictures docs/component.png``
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser

from agent_sse import SimpleNotifier
from browser import chromium as chromium_path
from browser.monitor import Monitor, show
from browser.proxy import Proxy
from browser.tabs import Agent, Pages, Room, chromium
from harness import ServiceProcess, Valkey

WIDTH = 760
SESSION = "release-notes"
EDIT = {
    "file": "CHANGELOG.md",
    "section": "0.4.0",
    "text": "Fixed: uploads resume after a lost connection.",
    "push": True,
}


@asynccontextmanager
async def scene(monitor: Monitor, notifier: SimpleNotifier, agent: Agent) -> AsyncIterator[None]:
    """A finished call, one that runs, an earlier decision, and a request whose parameters are being edited."""
    reading = notifier.tool_call(SESSION, "read_file", {"path": "CHANGELOG.md"}, tool_call_id="c1", server="files")
    async with reading as read:
        read.result = {"lines": 214, "latest": "0.3.2"}
    await monitor.status("c1", "completed")
    asked = agent.ask(SESSION, {"query": "merged since v0.3.2"}, tool="search_commits", risk="medium")
    await monitor.press("Approve", "search_commits")
    await asked
    search = notifier.tool_call(
        SESSION,
        "search_commits",
        {"query": "merged since v0.3.2"},
        tool_call_id="c2",
        server="git",
        risk_level="medium",
    )
    async with search as call:
        await call.progress(37, total=52, message="reading 4f1c2e9")
        await monitor.call("c2").get_by_role("progressbar").wait_for()
        agent.ask(
            SESSION, EDIT, tool="edit_file", editable=True, server="files", message="adds what was merged this week"
        )
        await monitor.edit("edit_file", _edited(await _shown(monitor)))
        await monitor.page.locator("[data-change=added]").first.wait_for()
        await monitor.steady("edit_file")
        yield


async def _shown(monitor: Monitor) -> str:
    return await monitor.card("edit_file").locator("pre").inner_text()


def _edited(text: str) -> str:
    return text.replace('"push": true', '"push": false').replace("0.4.0", "Unreleased")


async def take(browser: Browser, room: Room, notifier: SimpleNotifier, target: Path) -> None:
    """Make the scene on a page and write its picture to ``target``."""
    monitor = await show(room, SESSION)
    await monitor.page.set_viewport_size({"width": WIDTH, "height": 1200})
    agent = Agent(notifier)
    async with scene(monitor, notifier, agent):
        await monitor.page.locator(".agent-sse-monitor").screenshot(path=target)
    await agent.leave()


async def main(target: Path) -> None:
    """Start the parts, and take the picture."""
    found = chromium_path.find() or chromium_path.install()
    with tempfile.TemporaryDirectory(prefix="as") as name:
        folder = Path(name)
        pages, valkey = Pages(folder / "pages"), Valkey(folder / "v")
        await valkey.start()
        try:
            async with (
                ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}) as service,
                Proxy(lambda: service.url, pages.folder).running() as proxy,
                chromium(found) as browser,
                SimpleNotifier.from_url(valkey.url) as notifier,
            ):
                context = await browser.new_context(device_scale_factor=2, locale="en-GB")
                await take(browser, Room(context, proxy, pages), notifier, target)
        finally:
            await valkey.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
