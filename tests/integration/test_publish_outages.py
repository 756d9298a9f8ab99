"""Redis goes away while a notifier publishes: acknowledged is stored once, nothing is stored twice, order holds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_sse import PublishTimeout, RedisRefused, RedisUnavailable, SimpleNotifier
from agent_sse.backend import Backend
from agent_sse.publisher import Publisher
from agent_sse.settings import Settings
from agent_sse.store import Publish, Store
from harness import Valkey, until

PATIENT = {"publish_timeout": 25, "retention_events": 10_000}


class Load:
    """Publishes numbered events from several tasks and knows what was acknowledged; ``every`` counts those."""

    def __init__(self, notifier: SimpleNotifier, *, sessions: tuple[str, ...] = ("s",), tasks: int = 24) -> None:
        self.notifier = notifier
        self.sessions = sessions
        self.tasks = tasks
        self.next = 0
        self.acknowledged: dict[str, dict[str, str]] = {session: {} for session in sessions}
        self.errors: list[Exception] = []
        self._waiters: list[tuple[int, asyncio.Event]] = []

    async def run(self, events: int) -> None:
        """Publish so many events."""
        await asyncio.gather(*(self._publish(self.next + events) for _ in range(self.tasks)))

    async def _publish(self, until_number: int) -> None:
        while self.next < until_number:
            number, self.next = self.next, self.next + 1
            session = self.sessions[number % len(self.sessions)]
            message = f"{number:06}"
            try:
                event_id = await self.notifier.error(session, message)
            except (RedisUnavailable, RedisRefused) as error:
                self.errors.append(error)
                continue
            self.acknowledged[session][message] = event_id
            for count, event in self._waiters:
                if self.count >= count:
                    event.set()

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def reached(self, count: int) -> None:
        """Wait until so many events are acknowledged."""
        event = asyncio.Event()
        self._waiters.append((count, event))
        if self.count < count:
            await event.wait()

    async def check(self, valkey: Valkey, *, lost: int = 0) -> None:
        """Compare what was acknowledged, but for the first ``lost`` events, with what is stored."""
        for session, acknowledged in self.acknowledged.items():
            entries = await valkey.entries(session)
            messages = [event["message"] for _, event in entries]
            assert len(set(messages)) == len(messages), "stored twice"
            assert sorted(messages) == messages, "out of order"
            stored = {event["message"]: event_id for event_id, event in entries}
            expected = {m: i for m, i in acknowledged.items() if int(m) >= lost}
            assert expected == {m: i for m, i in stored.items() if m in expected}


@asynccontextmanager
async def publishing(valkey: Valkey, url: str | None = None, **settings: Any) -> AsyncIterator[SimpleNotifier]:
    async with SimpleNotifier.from_url(url or valkey.url, **{**PATIENT, **settings}) as notifier:
        yield notifier


async def disturb(load: Load, events: int, every: int, disturbance: Callable[[], Awaitable[object]]) -> int:
    """Publish ``events`` events and disturb them after each ``every`` acknowledged; return how often."""
    times = 0

    async def disturber() -> None:
        nonlocal times
        for count in range(every, events, every):
            await load.reached(count)
            await disturbance()
            times += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(disturber())
        group.create_task(load.run(events))
    return times


async def test_publishing_through_killed_connections(valkey: Valkey) -> None:
    """2,000 events while the connection is killed 66 times: all are acknowledged, each stored once, in order."""
    async with publishing(valkey) as notifier, valkey.client() as client:
        load = Load(notifier)
        times = await disturb(load, 2000, 30, lambda: client.execute_command("CLIENT", "KILL", "TYPE", "normal"))
        assert (66, 2000, []) == (times, load.count, load.errors)
        await load.check(valkey)
        assert 2000 == len(await valkey.entries("s"))


async def test_publishing_when_replies_are_lost(valkey: Valkey, folder: Path) -> None:
    """Pipelines that were executed, whole or in part, and whose replies never came are sent again and stored once."""
    source = random.Random(11)
    cuts = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: bool) -> None:
        nonlocal cuts
        while data := await reader.read(65536):
            if cut and len(data) > 30 and source.random() < 0.3:  # the short ones greet a new connection
                # Some replies of the pipeline come through, the rest is lost with the connection.
                writer.write(data[: source.randrange(len(data))])
                cuts += 1
                break
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(valkey.socket)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, to_writer, cut=False), pump(to_reader, writer, cut=True))
        to_writer.close()
        writer.close()

    path = folder / "lossy.sock"
    server = await asyncio.start_unix_server(relay, path)
    async with publishing(valkey, f"unix://{path}") as notifier:
        load = Load(notifier, sessions=("s", "t"), tasks=8)
        await load.run(150)
    server.close()
    await server.wait_closed()
    assert cuts >= 5
    assert (150, []) == (load.count, load.errors)
    await load.check(valkey)
    assert 150 == len(await valkey.entries("s")) + len(await valkey.entries("t"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_publishing_through_restarts(valkey: Valkey, number: signal.Signals) -> None:
    """Valkey stops, or is killed, and comes back, three times under load: nothing acknowledged is lost."""
    async with publishing(valkey) as notifier:
        load = Load(notifier)
        assert 3 == await disturb(load, 1200, 300, lambda: valkey.restart(number))
        assert (1200, []) == (load.count, load.errors)
        await load.check(valkey)


async def test_publishing_through_script_flushes(valkey: Valkey) -> None:
    """Scripts that vanish in the middle of pipelines are loaded again; no event is lost, doubled or moved."""
    async with publishing(valkey) as notifier, valkey.client() as client:
        load = Load(notifier, sessions=("s", "t"), tasks=200)
        times = await disturb(load, 2000, 20, client.script_flush)
        assert (99, 2000, []) == (times, load.count, load.errors)
        await load.check(valkey)


async def test_publishing_before_redis_is_there(folder: Path) -> None:
    """A notifier may start first: its events, and what opens the session, wait for Redis."""
    valkey = Valkey(folder / "v")
    async with publishing(valkey) as notifier:
        opening = asyncio.create_task(notifier.open_session("s", owner="alice"))
        events = [asyncio.create_task(notifier.error("s", f"{i:06}")) for i in range(5)]
        await asyncio.sleep(0)
        await valkey.start()
        try:
            await opening
            assert await asyncio.gather(*events) == [event_id for event_id, _ in await valkey.entries("s")]
        finally:
            await valkey.stop()


async def test_sessions_are_opened_and_closed_through_an_outage(valkey: Valkey) -> None:
    """`open_session` and `close_session` outlast an outage as publishing does, and fail typed when it lasts longer."""
    async with publishing(valkey) as notifier, publishing(valkey, publish_timeout=0.2) as hasty:
        await notifier.open_session("old", owner="alice")
        await valkey.stop()
        tasks = [
            asyncio.create_task(notifier.open_session("new", owner="alice")),
            asyncio.create_task(notifier.close_session("old")),
        ]
        for use in (lambda: hasty.open_session("x", "alice"), lambda: hasty.close_session("old")):
            with pytest.raises(RedisUnavailable):
                await use()
        await valkey.start()
        await asyncio.gather(*tasks)
        async with valkey.client() as client:
            assert b"alice" == await client.hget("agent_sse:{new}:state", "owner")
            assert not await client.exists("agent_sse:{old}:state")


async def test_publishing_while_redis_is_a_replica(valkey: Valkey) -> None:
    """A server that only reads (a failover in progress) is waited for."""
    async with publishing(valkey) as notifier, valkey.client() as client:
        first = await notifier.error("s", "000000")
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        publishing_on = asyncio.create_task(notifier.error("s", "000001"))

        async def refused() -> bool:
            stats = await client.info("commandstats")
            return int(stats.get("cmdstat_evalsha", {}).get("failed_calls", 0)) >= 2

        await until(refused, what="a refused publish")
        await client.execute_command("REPLICAOF", "NO", "ONE")
        assert [first, await publishing_on] == [event_id for event_id, _ in await valkey.entries("s")]


async def test_silent_redis_is_a_time_out_with_an_unknown_outcome(valkey: Valkey) -> None:
    """A frozen Redis: what was sent may be stored, at most once; what waited was not sent; then all goes on, in order.

    The frozen server executes the old pipeline when it thaws, before or after the events that were published later.
    """
    assert valkey.process is not None
    async with publishing(valkey, publish_timeout=2) as notifier:
        load = Load(notifier, tasks=150)  # more than one pipeline holds, so that some wait
        for _ in range(2):
            await load.run(150)
            before = load.count
            valkey.process.send_signal(signal.SIGSTOP)
            await load.run(150)
            assert before == load.count
            valkey.process.send_signal(signal.SIGCONT)
            await load.run(150)
            assert before + 150 == load.count
        assert all(isinstance(error, PublishTimeout) for error in load.errors)
        assert {True, False} == {error.sent for error in load.errors if isinstance(error, PublishTimeout)}
        await load.check(valkey)
        assert 300 == len(load.errors)


async def test_absent_redis_is_a_time_out(valkey: Valkey) -> None:
    """Without Redis the error comes after publish_timeout and says so; afterwards publishing goes on."""
    async with publishing(valkey, publish_timeout=1) as notifier:
        first = await notifier.error("s", "000000")
        await valkey.stop()
        with pytest.raises(PublishTimeout, match=r"within 1 s"):
            await notifier.error("s", "000001")
        await valkey.start()
        last = await notifier.error("s", "000002")
        entries = await valkey.entries("s")
        assert [first, last] == [event_id for event_id, event in entries if event["message"] != "000001"]


async def test_cancelled_publishes_leave_the_rest_whole(valkey: Valkey) -> None:
    """Callers that give up, in flight or waiting, disturb nobody else's events."""
    source = random.Random(3)
    async with publishing(valkey) as notifier:
        tasks = [asyncio.create_task(notifier.error("s", f"{i:06}")) for i in range(600)]
        await tasks[20]
        victims = set(source.sample(range(600), 200))
        for victim in victims:
            tasks[victim].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        entries = await valkey.entries("s")
    messages = [event["message"] for _, event in entries]
    assert sorted(set(messages)) == messages
    stored = {event["message"]: event_id for event_id, event in entries}
    for number, result in enumerate(results):
        if isinstance(result, str):
            assert result == stored[f"{number:06}"]
        else:
            assert number in victims


async def test_cancelled_publishes_take_no_room(valkey: Valkey) -> None:
    """Who gives up before the time-out, while Redis is away, leaves nothing behind where others need the room."""
    store = Store(Backend(valkey.url), Settings(_env_file=None))  # type: ignore[call-arg]
    publisher = Publisher(store, timeout=25)
    event = Publish("s", b'{"x": "%s"}' % (b"x" * 1000), "other")
    await publisher.publish(event)
    await valkey.stop()
    publishes = [asyncio.create_task(publisher.publish(event)) for _ in range(300)]
    await until(lambda: publisher._held == 300, what="waiting events")
    for publish in publishes:
        publish.cancel()
    await asyncio.gather(*publishes, return_exceptions=True)
    # Those that had been sent wait for the end of their connection; nothing else is kept.
    await until(lambda: publisher._held == publisher._held_bytes == 0, what="the room")
    await publisher.aclose()
    await store.backend.aclose()


async def test_publishing_goes_on_after_a_restore(valkey: Valkey) -> None:
    """A Valkey restored from an older append-only file does not know the latest counters: publishing goes on there."""
    async with publishing(valkey) as notifier:
        load = Load(notifier)
        await load.run(50)
        await valkey.stop()
        copy = valkey.keep_copy("copy")
        await valkey.start()
        await load.run(50)
        await valkey.stop()
        valkey.put_back(copy)
        await valkey.start()
        later = Load(notifier)
        later.next = 100
        await later.run(50)
    entries = await valkey.entries("s")
    assert [*range(50), *range(100, 150)] == [int(event["message"]) for _, event in entries]
    assert [*load.acknowledged["s"].values()][:50] == [event_id for event_id, _ in entries[:50]]
    assert (50, []) == (later.count, later.errors)
    await later.check(valkey, lost=100)


async def test_publishing_goes_on_after_a_flush(valkey: Valkey) -> None:
    """FLUSHALL under load costs what was stored, nothing that is acknowledged afterwards."""
    async with publishing(valkey) as notifier, valkey.client() as client:
        load = Load(notifier, sessions=("s", "t"))
        await disturb(load, 1000, 400, client.flushall)
        assert (1000, []) == (load.count, load.errors)
        await load.run(100)
        await load.check(valkey, lost=1000)
        for session in ("s", "t"):
            messages = [event["message"] for _, event in await valkey.entries(session)]
            assert sorted(set(messages)) == messages


async def test_full_redis_refuses_and_nothing_is_damaged(valkey: Valkey) -> None:
    """At maxmemory a publish is a typed error and leaves no trace; with memory again the session goes on."""
    async with publishing(valkey, publish_timeout=5) as notifier, valkey.client() as client:
        load = Load(notifier)
        await load.run(30)
        before = await client.dump("agent_sse:{s}:state"), await client.dump("agent_sse:{s}:publishers")
        await client.config_set("maxmemory", 1)
        with pytest.raises(RedisRefused, match="maxmemory"):
            await notifier.error("s", "full")
        await asyncio.gather(*(_refused(notifier) for _ in range(300)))
        with pytest.raises(RedisRefused, match="maxmemory"):
            await notifier.open_session("new", owner="alice")
        assert before == (await client.dump("agent_sse:{s}:state"), await client.dump("agent_sse:{s}:publishers"))
        await client.config_set("maxmemory", 0)
        await load.run(30)
        assert (60, []) == (load.count, load.errors)
        await load.check(valkey)
        assert 60 == len(await valkey.entries("s"))


async def _refused(notifier: SimpleNotifier) -> None:
    with pytest.raises(RedisRefused):
        await notifier.error("s", "full")


async def test_memory_runs_out_under_load(valkey: Valkey) -> None:
    """Memory that runs out and comes back in the middle: every event is stored once or refused, in order."""
    async with publishing(valkey) as notifier, valkey.client() as client:
        load = Load(notifier, tasks=100)
        full = False

        async def switch() -> None:
            nonlocal full
            full = not full
            await client.config_set("maxmemory", 1 if full else 0)
            if full:
                await until(lambda: len(load.errors) > before, what="a refusal")
                await switch()

        before = 0
        running = asyncio.create_task(load.run(2000))
        for count in (200, 600):
            await load.reached(count)
            before = len(load.errors)
            await switch()
        await running
        assert load.errors
        assert all(isinstance(error, RedisRefused) for error in load.errors)
        assert 2000 == load.count + len(load.errors)
        await load.check(valkey)
        assert load.count == len(await valkey.entries("s"))
