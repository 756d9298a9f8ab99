"""The hub in moments that a network seldom shows: replies that come late, refusals, entries that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from agent_sse.channel import Channel
from agent_sse.frames import EventId
from agent_sse.hub import Hub
from agent_sse.store import Page, Snapshot, Tick
from harness import Served, Stream, Valkey, make_settings, make_token, serve, until

pytestmark = pytest.mark.usefixtures("sink")

NO_TICKS = 600.0  # s; what is found within a test's deadline is not found by a tick


def parts(served: Served, session: str = "s1") -> tuple[Hub, Channel]:
    hub: Hub = served.app.state.agent_sse.hub
    return hub, hub._channels[f"agent_sse:{{{session}}}:channel".encode()]


@asynccontextmanager
async def quiet(valkey: Valkey, notifier: SimpleNotifier) -> AsyncIterator[tuple[Served, Stream]]:
    """A service and a live stream of s1 that has one event, with no tick under way or to come."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=NO_TICKS)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        first = await notifier.error("s1", "one")
        assert first == (await stream.next()).id
        _, channel = parts(served)
        await until(lambda: next(iter(channel.connections)).live and channel.last_tick, what="the count of streams")
        yield served, stream


async def unheard(hub: Hub, notifier: SimpleNotifier, message: str) -> str:
    """Publish an event of s1 whose message the hub does not get."""
    subscriber, lost = hub._subscriber, asyncio.Event()
    heard, subscriber.on_message = subscriber.on_message, lambda channel, data: lost.set()
    event_id = await notifier.error("s1", message)
    await lost.wait()
    subscriber.on_message = heard
    return event_id


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


@pytest.mark.usefixtures("no_ticks")
async def test_events_that_come_while_a_sync_reads_outlast_an_older_answer_to_a_tick(
    valkey: Valkey, notifier: SimpleNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick's doubt does not make a sync forget what was announced since its page was read in Redis."""
    async with quiet(valkey, notifier) as (served, stream):
        hub, channel = parts(served)
        read, published = hub.store.replay, []

        async def late(*args: Any, **options: Any) -> Page:
            page = await read(*args, **options)
            if not published:
                published.append(await notifier.error("s1", "two"))
                await until(lambda: channel.seen > (channel.tip or (0, 0)), what="the event's message")
                await hub._ticks.compare([channel])
            return page

        monkeypatch.setattr(hub.store, "replay", late)
        hub.doubt(channel)
        got = (await stream.next()).id
        assert published == [got]


@pytest.mark.usefixtures("no_ticks")
async def test_event_without_a_message_is_found_by_a_tick_that_a_sync_overtakes(
    valkey: Valkey, notifier: SimpleNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync's older page moves the tip while a tick is under way: that vouches for nothing that came after it."""
    async with quiet(valkey, notifier) as (served, stream):
        hub, channel = parts(served)
        read, ask = hub.store.replay, hub.store.tick_many
        published: list[str] = []
        asked, told = asyncio.Event(), asyncio.Event()

        async def late_page(*args: Any, **options: Any) -> Page:
            page = await read(*args, **options)
            if not asked.is_set():
                published.append(await unheard(hub, notifier, "three"))
                hub._on_subscribed(channel.name)  # whatever is published from here on has its message
                await asked.wait()
            return page

        async def late_tick(*args: Any) -> list[Tick | Exception]:
            ticks = await ask(*args)
            asked.set()
            await until(lambda: channel.sync is None, what="the sync's end")
            told.set()
            return ticks

        monkeypatch.setattr(hub.store, "replay", late_page)
        monkeypatch.setattr(hub.store, "tick_many", late_tick)
        published.append(await unheard(hub, notifier, "two"))
        hub.doubt(channel)
        await told.wait()
        got = [(await stream.next()).id for _ in range(2)]
        assert published == got


@pytest.mark.usefixtures("no_ticks")
async def test_event_of_a_moment_without_subscription_reaches_a_stream_that_joins(
    valkey: Valkey, notifier: SimpleNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that is lost and made anew while a new stream's first page is on its way leaves no gap."""
    monkeypatch.setattr("agent_sse.ticks.PRESENCE_INTERVAL", NO_TICKS)  # the count of streams comes with a tick
    first = await notifier.error("s1", "one")
    async with serve(make_settings(valkey.url, heartbeat_interval=NO_TICKS)) as served:
        hub: Hub = served.app.state.agent_sse.hub
        read, published = hub.store.replay, []

        async def late(*args: Any, **options: Any) -> Page:
            page = await read(*args, **options)
            if not published:
                _, channel = parts(served)
                hub._on_lost(channel.name)
                published.append(await unheard(hub, notifier, "two"))
                hub._on_subscribed(channel.name)
            return page

        monkeypatch.setattr(hub.store, "replay", late)
        async with Stream(served.events("s1", make_token("s1")), {"Last-Event-ID": first}) as stream:
            got = [(await stream.next("error")).id]
            published.append(await notifier.error("s1", "three"))
            got.append((await stream.next("error")).id)
        assert published == got


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


@pytest.mark.usefixtures("no_ticks")
async def test_readings_that_contradict_each_other_do_not_hold_up_the_process(
    valkey: Valkey, notifier: SimpleNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot whose tip the next page calls lost is read anew, with turns for everybody else in between."""
    async with quiet(valkey, notifier) as (served, stream):
        hub, _ = parts(served)
        old, read, replay = await hub.store.snapshot("s1"), hub.store.snapshot, hub.store.replay
        second = await notifier.error("s1", "two")
        assert second == (await stream.next()).id
        readings = 0

        async def stale(session_id: str) -> Snapshot:
            nonlocal readings
            readings += 1
            return old

        async def lost(session_id: str, cursor: EventId, **options: Any) -> Page:
            return replace(await replay(session_id, cursor, **options), status="lost", ids=(), payloads=())

        monkeypatch.setattr(hub.store, "snapshot", stale)
        monkeypatch.setattr(hub.store, "replay", lost)
        async with Stream(served.events("s1", make_token("s1"))) as joining:
            await until(lambda: readings > 3, what="several readings")
            monkeypatch.setattr(hub.store, "snapshot", read)
            monkeypatch.setattr(hub.store, "replay", replay)
            await until(lambda: joining.last_id == second, what="the present state")
            third = await notifier.error("s1", "three")
            await until(lambda: joining.last_id == stream.last_id == third, what="the next event")


async def test_streams_that_left_before_their_subscription_leave_nothing(valkey: Valkey) -> None:
    """A channel whose last stream leaves while Redis is silent is forgotten by the clock too."""
    async with serve(make_settings(valkey.url, heartbeat_interval=1.0)) as served:
        hub: Hub = served.app.state.agent_sse.hub
        assert valkey.process is not None
        valkey.process.send_signal(signal.SIGSTOP)
        async with contextlib.AsyncExitStack() as stack:
            for number in range(20):
                session = f"gone{number}"
                await stack.enter_async_context(Stream(served.events(session, make_token(session))))
            await until(lambda: sum(map(len, hub._ticks._wheel._slots.values())), what="the channels' turns")
        await until(lambda: not hub.open_streams, what="the streams' end")
        valkey.process.send_signal(signal.SIGCONT)
        await until(lambda: not any(hub._ticks._wheel._slots.values()), what="an empty wheel")


async def test_what_was_read_before_a_session_was_closed_says_nothing_of_the_next(valkey: Valkey) -> None:
    """A reading that began in another era of its channel is passed on to who asked, and teaches the channel nothing."""
    async with (
        serve(make_settings(valkey.url)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        _, channel = parts(served)
        era, tip = channel.era, channel.tip
        channel.begin_era()
        channel.tip = None
        channel._observe(era, (5, 0), None)
        assert channel.tip is None
        channel._observe(channel.era, (0, 0), None)
        assert tip == channel.tip
