"""What a process tells Redis of its streams: counts and farewells, also while answers are late or missing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import pytest

from agent_sse.errors import RedisUnavailable
from agent_sse.hub import Hub
from agent_sse.store import STREAM_LEASE_MS, Store, Tick
from harness import Stream, Valkey, make_settings, make_token, serve, until

pytestmark = pytest.mark.usefixtures("sink")

Asked = Sequence[tuple[str, str, int]]
Ask = Callable[[Asked], Awaitable[list[Tick | Exception]]]


async def told(hub: Hub, session: str, count: int | None) -> None:
    """Wait until Redis has this count of the process's streams; None: no count at all."""
    async with asyncio.timeout(10):
        while (await hub.store.health(session)).streams.get(hub.process_id) != count:
            pass


def farewells(asked: Asked) -> list[str]:
    """The sessions that a question says have no stream."""
    return [session for session, _, count in asked if count == 0]


def bend(monkeypatch: pytest.MonkeyPatch, hub: Hub, how: Callable[[Ask, Asked], Awaitable[Any]]) -> None:
    """Let ``how`` stand before every question of the hub's ticks."""
    ask = hub.store.tick_many
    monkeypatch.setattr(hub.store, "tick_many", lambda asked: how(ask, asked))


async def test_count_of_streams_comes_to_redis_and_goes(valkey: Valkey) -> None:
    """Other processes' health sees a session's streams here soon after they come, and no more when they have left."""
    async with serve(make_settings(valkey.url)) as served:
        hub: Hub = served.app.state.agent_sse.hub
        async with Stream(served.events("s1", make_token("s1"))), Stream(served.events("s1", make_token("s1"))):
            await told(hub, "s1", 2)
        await told(hub, "s1", None)


async def test_count_of_streams_goes_with_the_process(valkey: Valkey) -> None:
    """A service that ends says farewell for the sessions that still had streams."""
    async with serve(make_settings(valkey.url)) as other:
        async with serve(make_settings(valkey.url)) as served:
            stream = await Stream(served.events("s1", make_token("s1"))).open()
            await told(served.app.state.agent_sse.hub, "s1", 1)
        await stream.close()
        assert {} == (await other.app.state.agent_sse.store.health("s1")).streams


async def test_farewell_that_redis_did_not_hear_is_said_again(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """One session's answer is missing among others that came: its farewell is not taken for said."""
    async with serve(make_settings(valkey.url)) as served:
        hub: Hub = served.app.state.agent_sse.hub
        lost = []

        async def lose_first(ask: Ask, asked: Asked) -> Any:
            replies = await ask([one for one in asked if lost or one[0] != "s1" or one[2]])
            if not lost and "s1" in farewells(asked):
                lost.append("s1")
                replies.insert([one[0] for one in asked].index("s1"), RedisUnavailable("lost"))
            return replies

        async with Stream(served.events("s1", make_token("s1"))), Stream(served.events("s2", make_token("s2"))):
            await told(hub, "s1", 1)
            await told(hub, "s2", 1)
            bend(monkeypatch, hub, lose_first)
        await told(hub, "s1", None)
        await told(hub, "s2", None)
        assert ["s1"] == lost


async def test_session_that_comes_and_goes_during_its_farewell_leaves_no_count(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a farewell says nothing of a stream that came and left since it was asked."""
    async with serve(make_settings(valkey.url)) as served:
        hub: Hub = served.app.state.agent_sse.hub
        asked_first, go_on, said = asyncio.Event(), asyncio.Event(), []

        async def hold_first(ask: Ask, asked: Asked) -> Any:
            replies = await ask(asked)
            said.append([count for _, _, count in asked])
            if farewells(asked) and not asked_first.is_set():
                asked_first.set()
                await go_on.wait()
            return replies

        async with Stream(served.events("s1", make_token("s1"))):
            await told(hub, "s1", 1)
            bend(monkeypatch, hub, hold_first)
        await asked_first.wait()
        async with Stream(served.events("s1", make_token("s1"))) as again:
            await again.primed()
            hub._ticks.at_once(next(iter(hub._channels.values())))
        await until(lambda: not hub.open_streams, what="the stream's end")
        go_on.set()
        await until(lambda: len(said) > 1 and not hub._ticks._queues, what="all that is to be said")
        assert {} == (await hub.store.health("s1")).streams
        assert ([0], [0], {}) == (said[0], said[-1], hub._ticks._unsaid)


async def test_farewells_are_not_kept_longer_than_they_are_worth(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away they wait, but not after the counts in Redis have lapsed: an outage fills no memory."""
    async with serve(make_settings(valkey.url)) as served:
        hub: Hub = served.app.state.agent_sse.hub

        async def be_away(ask: Ask, asked: Asked) -> Any:
            raise RedisUnavailable("away")

        async with Stream(served.events("s1", make_token("s1"))):
            await told(hub, "s1", 1)
            bend(monkeypatch, hub, be_away)
        await until(lambda: not hub.open_streams, what="the stream's end")
        lease = STREAM_LEASE_MS / 1000
        until_then = hub._ticks._unsaid["s1"]
        hub._ticks.take(until_then - lease / 2)
        assert ["s1"] == list(hub._ticks._unsaid)
        assert hub._ticks._queues
        hub._ticks.take(until_then)
        assert {} == hub._ticks._unsaid
        await until(lambda: not hub._ticks._queues, what="the end of what was under way")
        assert {} == hub._ticks._unsaid


async def test_ticks_that_die_end_readiness(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in what compares sessions with Redis is no quiet one: the process says that it is not ready."""
    async with serve(make_settings(valkey.url)) as served, httpx.AsyncClient() as client:
        assert 200 == (await client.get(f"{served.url}/readyz")).status_code
        hub: Hub = served.app.state.agent_sse.hub

        async def break_down(ask: Ask, asked: Asked) -> Any:
            raise LookupError("a defect")

        bend(monkeypatch, hub, break_down)
        async with Stream(served.events("s1", make_token("s1"))):
            await until(lambda: not hub.alive, what="the end of the ticks")
        assert 503 == (await client.get(f"{served.url}/readyz")).status_code


async def test_question_of_the_ticks_is_the_scripts_own(valkey: Valkey) -> None:
    """Ticks of an unknown session: no event, nothing due, nothing shown."""
    async with serve(make_settings(valkey.url)) as served:
        store: Store = served.app.state.agent_sse.store
        assert [Tick((0, 0), None, None, [])] == await store.tick_many([("nobody", "p", 0)])
