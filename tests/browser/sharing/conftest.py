"""Fixtures for tabs that share a session: parts like those beside, but one browser and one service for a whole module,
since each test has sessions, a profile and an origin of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from agent_sse import SimpleNotifier
from browser.proxy import Proxy
from browser.tabs import FLAGS, Agent, Pages, Room
from harness import ServiceProcess, Valkey


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium_binary: Path) -> AsyncIterator[Browser]:
    """A Chromium with the back/forward cache, which Playwright turns off unless told otherwise."""
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(
            executable_path=chromium_binary, args=FLAGS, ignore_default_args=["--disable-back-forward-cache"]
        )
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def valkey() -> AsyncIterator[Valkey]:
    """A Valkey of this module's own."""
    with tempfile.TemporaryDirectory(prefix="as") as name:
        server = Valkey(Path(name) / "v")
        await server.start()
        yield server
        await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(valkey: Valkey) -> AsyncIterator[ServiceProcess]:
    """The module's service; its heartbeats are quick, and a token is good until it expires and no longer."""
    settings = {"AGENT_SSE_HEARTBEAT_INTERVAL": "1", "AGENT_SSE_JWT_LEEWAY": "0"}
    async with ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url, **settings}) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def service(process: ServiceProcess) -> AsyncIterator[ServiceProcess]:
    """The same, for a test to stop and start; it runs for the next one."""
    yield process
    if not process.listening.is_set():
        await process.start()


@pytest_asyncio.fixture(loop_scope="module")
async def notifier(valkey: Valkey) -> AsyncIterator[SimpleNotifier]:
    """A notifier on the module's Valkey."""
    async with SimpleNotifier.from_url(valkey.url) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def agent(notifier: SimpleNotifier) -> AsyncIterator[Agent]:
    """An agent that asks for permission."""
    made = Agent(notifier)
    yield made
    await made.leave()


@pytest_asyncio.fixture(loop_scope="module")
async def room(browser: Browser, service: ServiceProcess, pages: Pages) -> AsyncIterator[Room]:
    """Tabs of one profile, on an origin of their own. A test fails when a page complained of what it did not expect."""
    context = await browser.new_context()
    async with Proxy(lambda: service.url, pages.folder).running() as proxy:
        made = Room(context, proxy, pages)
        yield made
        await context.close()
    complaints = made.complaints()
    assert not complaints, "\n".join(complaints)
