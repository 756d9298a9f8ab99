"""Fixtures for every test; the parts are real, see `harness`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent_sse import SimpleNotifier
from harness import Valkey, Way


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the settings of who runs it."""
    for name in list(os.environ):
        if name.startswith("AGENT_SSE_") and not name.startswith("AGENT_SSE_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module", params=["direct", "asgi"])
def sink(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to write a stream: to its connection, or through ASGI. Whatever opens streams runs once with each.

    `serve` and `ServiceProcess` heed it: the protocol of `agent-sse serve`, or plain uvicorn's.
    """
    Way.direct = request.param == "direct"  # already for what other fixtures of the module serve
    yield request.param
    Way.direct = True


@pytest.fixture(autouse=True)
def _way(request: pytest.FixtureRequest) -> None:
    """A test that does not ask for `sink` has none left over from the one before."""
    Way.direct = "sink" not in request.fixturenames or request.getfixturevalue("sink") == "direct"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="as") as name:
        yield Path(name)


@pytest.fixture
async def valkey(folder: Path) -> AsyncIterator[Valkey]:
    """A Valkey of this test's own."""
    server = Valkey(folder / "v")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def notifier(valkey: Valkey) -> AsyncIterator[SimpleNotifier]:
    """A notifier on the test's Valkey."""
    async with SimpleNotifier.from_url(valkey.url) as made:
        yield made


@pytest.fixture
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a long heartbeat besides, no tick finds within a test's deadline what is to be found without one."""
    monkeypatch.setattr("agent_sse.ticks.TICK_INTERVAL", 600.0)
