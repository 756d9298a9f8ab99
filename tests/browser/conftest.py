"""Fixtures of the browser tests: a real Chromium, a real service behind a proxy, and the pages that Chromium shows."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser

from agent_sse import SimpleNotifier
from browser import chromium as chromium_path
from browser.proxy import Proxy
from browser.tabs import Agent, Pages, Room, chromium
from harness import ServiceProcess, Valkey

SHOTS = os.environ.get("AGENT_SSE_TEST_SHOTS")  # a folder for screenshots of what failed; read before it is cleaned


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Let fixtures see whether their test failed."""
    report = yield
    if call.when == "call":
        item.stash[FAILED] = report.failed
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def chromium_binary() -> Path:
    """The Chromium of this machine; `make test` has installed one where there was none."""
    try:
        found = chromium_path.find()
    except chromium_path.NoChromium as error:
        pytest.fail(str(error))
    if found is None:
        pytest.fail("these tests need Chromium: run `.venv/bin/python tests/browser/chromium.py`, which installs it")
    return found


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """The tests' pages."""
    return Pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def browser_options() -> dict[str, Any]:
    """More of Playwright's options for Chromium; a test overrides it by parametrizing."""
    return {}


@pytest.fixture
async def browser(chromium_binary: Path, browser_options: dict[str, Any]) -> AsyncIterator[Browser]:
    """A Chromium of this test's own."""
    async with chromium(chromium_binary, **browser_options) as started:
        yield started


@pytest.fixture
def service_settings() -> dict[str, str]:
    """The service's environment beside Redis; a test overrides it by parametrizing."""
    return {"AGENT_SSE_HEARTBEAT_INTERVAL": "1"}


@pytest.fixture
async def service(valkey: Valkey, service_settings: dict[str, str]) -> AsyncIterator[ServiceProcess]:
    """The service as a process, `agent-sse serve`; a test may stop and start it."""
    async with ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url, **service_settings}) as process:
        yield process


@pytest.fixture
async def proxy(service: ServiceProcess, pages: Pages) -> AsyncIterator[Proxy]:
    """The origin that the browser sees."""
    async with Proxy(lambda: service.url, pages.folder).running() as running:
        yield running


@pytest.fixture
async def room(browser: Browser, proxy: Proxy, pages: Pages, request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    """Tabs of one profile. A test fails when a page logged an error or a warning that it does not expect."""
    context = await browser.new_context()
    made = Room(context, proxy, pages)
    yield made
    if SHOTS and request.node.stash.get(FAILED, False):
        await made.save(Path(SHOTS), re.sub(r"\W+", "-", request.node.name))
    await context.close()
    complaints = made.complaints()
    assert not complaints, "\n".join(complaints)


@pytest.fixture
async def agent(notifier: SimpleNotifier) -> AsyncIterator[Agent]:
    """An agent that asks for permission."""
    made = Agent(notifier)
    yield made
    await made.leave()
