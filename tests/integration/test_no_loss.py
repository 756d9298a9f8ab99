"""A client that resumes by Last-Event-ID has every event once and in order, whatever breaks in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_sse import SimpleNotifier
from harness import Follower, ServiceProcess, Stream, Valkey, make_settings, make_token, serve, services_of, until

pytestmark = pytest.mark.usefixtures("sink")

EVENTS = 1000
SESSION = "s1"


@pytest.fixture
async def patient(valkey: Valkey) -> AsyncIterator[SimpleNotifier]:
    """A notifier that keeps trying while Valkey restarts."""
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=20) as made:
        yield made


async def publish(notifier: SimpleNotifier, start: int, count: int) -> list[str]:
    """Publish events together; the ids are in the order of the calls."""
    return await asyncio.gather(
        *(
            notifier.tool_status(SESSION, "count", "executing", tool_call_id="c", parameters={"n": start + i})
            for i in range(count)
        )
    )


def assert_complete(follower: Follower, published: list[str]) -> None:
    """Every id once, in order, with its own payload, and no reset."""
    assert [] == follower.types("stream_reset")
    assert published == follower.ids
    with_id = [event for event in follower.events if event.id is not None]
    assert list(range(len(published))) == [event.json["data"]["details"]["parameters"]["n"] for event in with_id]


async def test_no_loss_while_the_client_disconnects(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """1,000 events while the client disconnects 20 times at random: all ids once, in order."""
    choose = random.Random(2)
    cuts = set(choose.sample(range(100), 20))
    async with (
        serve(make_settings(valkey.url)) as served,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
    ):
        published: list[str] = []
        done = 0
        for step in range(100):
            burst = asyncio.create_task(publish(notifier, len(published), EVENTS // 100))
            if step in cuts:
                if choose.random() < 0.5:
                    await burst  # half of the cuts fall behind a burst, the others into one
                # A cut counts when it hits an open stream, not the pause before the client is back.
                await follower.until(lambda done=done: follower.connects > done)
                assert follower.stream is not None
                assert not follower.stream.ended
                follower.cut()
                done += 1
            published += await burst
        await follower.until_id(published[-1])
        await follower.until(lambda: follower.connects > done)
        assert_complete(follower, published)
        assert (EVENTS, 20, 21) == (len(published), done, follower.connects)


async def test_no_loss_under_load(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """1,000 events of 8 tasks and two publishers, while 24 clients are cut again and again and 2 do not read: each
    client has every id once, in order, and each task's events in the order of its calls.
    """
    tasks = 8
    choose = random.Random(3)
    settings = make_settings(valkey.url, stream_buffer_bytes=16 * 1024, heartbeat_interval=0.2)
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(SimpleNotifier.from_url(valkey.url))
        served = await stack.enter_async_context(serve(settings))
        url = served.events(SESSION, make_token(SESSION))
        followers = [await stack.enter_async_context(Follower(lambda: url)) for _ in range(24)]
        lazy = [Stream(url, receive_buffer=4096) for _ in range(2)]
        for stream in lazy:
            stack.push_async_callback(stream.close)
            await stream.open(read=False)

        async def publish_alone(task: int) -> list[str]:
            by = (notifier, other)[task % 2]
            return [
                await by.tool_status(
                    SESSION, "count", "executing", tool_call_id=str(task), parameters={"n": n, "x": "x" * 2000}
                )
                for n in range(EVENTS // tasks)
            ]

        publishing = [asyncio.create_task(publish_alone(task)) for task in range(tasks)]
        cuts = 0
        while not all(task.done() for task in publishing):
            follower = choose.choice(followers)
            if follower.stream is not None and not follower.stream.ended:
                follower.cut()
                cuts += 1
            news = len(followers[0].events)
            await followers[0].until(
                lambda news=news: len(followers[0].events) > news or all(task.done() for task in publishing)
            )
        published = await asyncio.gather(*publishing)
        entries = [event_id for event_id, _ in await valkey.entries(SESSION)]
        assert EVENTS == len(entries)
        for stream in lazy:
            stream.read()
            await until(lambda stream=stream: stream.last_id == entries[-1], what="the lazy ones' catching up")
            assert entries == [event.id for event in stream.records if event.id is not None and event.data is not None]
        for follower in followers:
            await follower.until_id(entries[-1])
            assert (entries, []) == (follower.ids, follower.types("stream_reset"))
        for ids in published:
            assert ids == [event_id for event_id in entries if event_id in set(ids)]
        assert cuts > 20


@pytest.mark.usefixtures("no_ticks")
async def test_no_loss_while_pubsub_connections_are_killed(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """1,000 events while `CLIENT KILL TYPE pubsub` strikes 20 times: all ids once, in order, on the one stream."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=60)) as served,  # no tick helps
        valkey.client() as client,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
    ):
        published: list[str] = []
        killed = 0
        for _ in range(20):
            burst = asyncio.create_task(publish(notifier, len(published), EVENTS // 20))
            # A kill counts when it hit the reader, not the pause before it reconnects.
            killed += await until(lambda: client.client_kill_filter(_type="pubsub"), what="a connection to kill")
            published += await burst
        await follower.until_id(published[-1])
        assert_complete(follower, published)
        assert killed >= 20
        assert 1 == follower.connects
        (service,) = services_of(served.app)
        assert service.hub.counters.gaps > 0


async def test_no_loss_while_the_service_restarts(valkey: Valkey, patient: SimpleNotifier) -> None:
    """1,000 events while the service is stopped, killed and started again: all ids once, in order."""
    async with (
        ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}) as process,
        Follower(lambda: process.served.events(SESSION, make_token(SESSION)), process.listening) as follower,
    ):
        published = await publish(patient, 0, 100)
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            burst = asyncio.create_task(publish(patient, len(published), 200))
            await process.stop(number)
            published += await burst
            await process.start()
            published += await publish(patient, len(published), 100)
        await follower.until_id(published[-1])
        assert_complete(follower, published)
        assert EVENTS == len(published)
        assert follower.connects >= 4  # more, when it knocks while the service is closing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_no_loss_while_valkey_restarts(valkey: Valkey, patient: SimpleNotifier, number: signal.Signals) -> None:
    """1,000 events over five restarts of Valkey: all ids once, in order, on the one stream.

    It is killed between bursts, when the append-only file holds all that was acknowledged: Valkey puts off its write
    while an earlier fsync runs, so with `everysec` a kill in the very moment may take something with it.
    """
    async with (
        serve(make_settings(valkey.url)) as served,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
    ):
        published = await publish(patient, 0, 500)
        for _ in range(5):
            if number == signal.SIGKILL:
                await written(valkey)
                await valkey.stop(number)
                burst = asyncio.create_task(publish(patient, len(published), 100))
            else:
                burst = asyncio.create_task(publish(patient, len(published), 100))
                await valkey.stop(number)
            await valkey.start()
            published += await burst
        await follower.until_id(published[-1])
        assert_complete(follower, published)
        assert 1 == follower.connects


async def test_no_loss_when_valkey_is_killed_in_a_burst(folder: Path) -> None:
    """1,000 events while Valkey is killed in the middle of publishing, writing before it answers: nothing is lost."""
    server = Valkey(folder / "k", "--appendfsync", "no")  # the kernel keeps what was written; only the process dies
    await server.start()
    try:
        async with (
            SimpleNotifier.from_url(server.url, publish_timeout=20) as notifier,
            serve(make_settings(server.url)) as served,
            Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
        ):
            published = await publish(notifier, 0, 500)
            for _ in range(5):
                burst = asyncio.create_task(publish(notifier, len(published), 100))
                await server.restart(signal.SIGKILL)
                published += await burst
            await follower.until_id(published[-1])
            assert_complete(follower, published)
    finally:
        await server.stop()


async def written(valkey: Valkey) -> None:
    """Wait until what the server acknowledged is in the file."""

    async def settled() -> bool:
        info = await client.info("persistence")
        return info["aof_buffer_length"] == 0 and info["aof_pending_bio_fsync"] == 0

    async with valkey.client() as client:
        await until(settled, what="an append-only file that is written")
