"""The readiness probe: when it publishes its token, and when it says that it did not come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_sse.keys import Keyspace
from agent_sse.readiness import Probe


class Echo:
    """Stands for the store: what is published comes back, as long as somebody is subscribed."""

    def __init__(self) -> None:
        self.keyspace = Keyspace("t")
        self.published: list[str] = []
        self.probe_of: Any = None
        self.subscribed = False

    async def probe(self, channel: str, token: str) -> None:
        self.published.append(token)
        if self.subscribed:
            self.probe_of.heard(token.encode())


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def probe(echo: Echo) -> Probe:
    made = Probe(echo, "p")  # type: ignore[arg-type]  # only what Echo has is used
    echo.probe_of = made
    return made


def subscribe(echo: Echo, probe: Probe, subscribed: bool) -> None:
    echo.subscribed = subscribed
    probe.set_subscribed(subscribed)


async def test_probe_publishes_once_its_subscription_is_confirmed(echo: Echo, probe: Probe) -> None:
    """A process that has just started is ready as soon as it is, and not two seconds later."""
    asking = asyncio.create_task(probe.ask())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [] == echo.published
    subscribe(echo, probe, True)
    assert await asking
    assert 1 == len(echo.published)


async def test_probe_without_a_subscription_is_not_ready(
    echo: Echo, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot subscribe in time is not ready, also when it could before; the wait is bounded."""
    monkeypatch.setattr("agent_sse.readiness.TIMEOUT", 0.01)
    monkeypatch.setattr("agent_sse.readiness.CACHE", 0.0)
    assert not await probe.ask()
    subscribe(echo, probe, True)
    assert await probe.ask()
    subscribe(echo, probe, False)
    assert not await probe.ask()
    assert 1 == len(echo.published)
