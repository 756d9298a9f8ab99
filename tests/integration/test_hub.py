"""The hub in moments that a network seldom shows: replies that come late, refusals, entries that are gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from agent_sse.channel import Channel
from agent_sse.hub import Hub
from agent_sse.store import Page
from harness import Served, Stream, Valkey, make_settings, make_token, serve, until

pytestmark = pytest.mark.usefixtures("sink")

NO_TICKS = 600.0  # s; what is found within a test's deadline is not found by a tick


def parts(served: Served, session: str = "s1") -> tuple[Hub, Channel]:
    hub: Hub = served.app.state.agent_sse.hub
    return hub, hub._channels[f"agent_sse:{{{session}}}:channel".encode()]


@pytest.mark.usefixtures("no_ticks")
async def test_event_that_comes_while_an_empty_page_is_on_its_way_is_delivered(
    valkey: Valkey, notifier: SimpleNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync hears of an event after Redis has said that there is none: it reads again, and waits for no tick."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=NO_TICKS)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        first = await notifier.error("s1", "one")
        assert first == (await stream.next()).id
        hub, channel = parts(served)
        await until(lambda: next(iter(channel.connections)).live)
        read, published = hub.store.replay, []

        async def late(*args: Any, **options: Any) -> Page:
            page = await read(*args, **options)
            if not published:
                published.append(await notifier.error("s1", "two"))
                await until(lambda: channel.seen > (channel.tip or (0, 0)), what="the event's message")
            return page

        monkeypatch.setattr(hub.store, "replay", late)
        hub.doubt(channel)
        event = await stream.next()
        assert (published[0], "two") == (event.id, event.json["message"])


async def test_stream_of_a_session_that_redis_refuses_ends_with_an_error(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """A session of a newer release cannot be read: the stream says so and ends, it does not wait for ever."""
    await notifier.error("s1", "one")
    async with valkey.client() as client:
        await client.hset("agent_sse:{s1}:state", "layout", "99")
    async with (
        serve(make_settings(valkey.url)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        assert "unavailable" == (await stream.next("error")).json["code"]
        await stream.end()
        assert stream.complete


async def test_deleted_last_event_is_lost_history(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Somebody deletes the newest entry: a client that lacks it is told, and nobody asks again and again for it."""
    async with serve(make_settings(valkey.url)) as served:
        first = await notifier.error("s1", "one")
        second = await notifier.error("s1", "two")
        async with valkey.client() as client:
            assert 1 == await client.xdel("agent_sse:{s1}:events", second)
        async with Stream(served.events("s1", make_token("s1")), {"Last-Event-ID": first}) as stream:
            reset = await stream.next()
            assert ("stream_reset", "history_lost") == (reset.type, reset.json["data"]["reason"])
            assert second == await stream.primed()
            third = await notifier.error("s1", "three")
            assert third == (await stream.next("error")).id


async def test_a_demoted_primary_is_left(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """READONLY means that the primary is elsewhere: connections to this one are not kept, and publishing goes on."""
    await notifier.error("s1", "one")
    async with valkey.client() as client:
        before = {row["id"] for row in await client.client_list()}
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")  # nobody is there: it only turns read-only

        async def others() -> set[str]:
            return {row["id"] for row in await client.client_list()} - before

        publishing = asyncio.create_task(notifier.error("s1", "two"))
        await until(others, what="a new connection")
        await client.execute_command("REPLICAOF", "NO", "ONE")
        assert await publishing
