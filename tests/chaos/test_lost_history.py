"""Redis comes back with less than it had: every stream is told once, and then everything is right again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent_sse import SimpleNotifier
from harness import Event, Follower, Stream, Valkey, make_settings, make_token, serve, until

pytestmark = pytest.mark.usefixtures("sink")

SESSION = "s1"


def assert_told(follower: Follower, before: list[str], after: list[str]) -> None:
    """``before``, then one reset and a snapshot, then ``after``; nothing else and nothing silent."""
    (reset,) = follower.types("stream_reset")
    assert "history_lost" == reset.json["data"]["reason"]
    at = follower.events.index(reset)
    rest = follower.events[at + 1 :]
    assert before == ids(follower.events[:at])
    assert "permission_cleared" in [event.type for event in rest if event.id is None], "the snapshot"
    # What was published before the stream looked again is in the snapshot, or follows it.
    live = ids(rest)
    assert after[len(after) - len(live) :] == live


def ids(events: list[Event]) -> list[str]:
    return [event.id for event in events if event.id is not None]


async def resume(url: str, cursor: str) -> list[Event]:
    """Resume from ``cursor`` and return what came up to the id line."""
    async with Stream(url, {"Last-Event-ID": cursor}) as stream:
        await stream.primed()
        return stream.records[1:]


async def publish(notifier: SimpleNotifier, count: int) -> list[str]:
    return [await notifier.tool_status(SESSION, "read", "executing", parameters={"n": n}) for n in range(count)]


@pytest.mark.parametrize("ahead", [True, False], ids=["publishing at once", "quiet"])
async def test_restored_backup_resets_streams_and_cursors(valkey: Valkey, ahead: bool) -> None:
    """After a restore from an older append-only file: open streams and cursors of the lost part get one reset."""
    async with (
        SimpleNotifier.from_url(valkey.url, publish_timeout=20) as notifier,
        serve(make_settings(valkey.url, heartbeat_interval=0.2)) as served,
    ):
        url = served.events(SESSION, make_token(SESSION))
        async with Follower(lambda: url) as follower:
            kept = await publish(notifier, 5)
            await follower.until_id(kept[-1])
            await valkey.stop()
            backup = valkey.keep_copy("backup")
            await valkey.start()
            lost = await publish(notifier, 5)
            await follower.until_id(lost[-1])
            await valkey.stop()
            valkey.put_back(backup)
            publishing = asyncio.create_task(publish(notifier, 3)) if ahead else None
            await valkey.start()
            after = await publishing if publishing is not None else []
            await follower.until(lambda: follower.types("stream_reset"))
            after += await publish(notifier, 3)
            await follower.until_id(after[-1])
            assert_told(follower, kept + lost, after)
            assert 1 == follower.connects

        # One who was away meanwhile: a lost cursor is told, one from the part that was kept resumes over the rift.
        records = await resume(url, lost[2])
        assert ["stream_reset"] == [e.type for e in records if e.data is not None and e.type == "stream_reset"]
        assert ("history_lost", after[-1]) == (records[0].json["data"]["reason"], records[-1].id)
        assert kept[3:] + after == [event.id for event in await resume(url, kept[2]) if event.data is not None]


async def test_erased_redis_resets_streams(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """After FLUSHALL, without any broken connection: the tick finds it, with nothing published since."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=0.2)) as served,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
        valkey.client() as client,
    ):
        before = await publish(notifier, 5)
        await follower.until_id(before[-1])
        await client.flushall()
        await follower.until(lambda: follower.types("stream_reset"))
        after = await publish(notifier, 3)
        await follower.until_id(after[-1])
        assert_told(follower, before, after)


async def test_clock_that_went_back_keeps_ids_growing(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """With a tip in the future (the clock was ahead) new ids follow it: no reset, nothing lost."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=0.2)) as served,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
    ):
        before = await publish(notifier, 3)
        before.append(await set_tip_ahead(valkey))
        after = await publish(notifier, 3)
        await follower.until_id(after[-1])
        assert [] == follower.types("stream_reset")
        assert before + after == follower.ids
        assert before[-1].split("-")[0] == after[-1].split("-")[0], "the clock has not got there"
        assert after == sorted(after, key=lambda i: tuple(map(int, i.split("-"))))


async def test_history_replaced_by_one_with_lower_ids_resets_streams(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A server whose clock was ahead is replaced by one whose is not: all new ids are below the tip, and told so."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=0.2)) as served,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
        valkey.client() as client,
    ):
        before = await publish(notifier, 3)
        before.append(await set_tip_ahead(valkey))
        before += await publish(notifier, 3)
        await follower.until_id(before[-1])
        await client.flushall()
        after = await publish(notifier, 3)
        await follower.until(lambda: follower.types("stream_reset"))
        after += await publish(notifier, 3)
        await follower.until_id(after[-1])
        assert_told(follower, before, after)
        records = await resume(served.events(SESSION, make_token(SESSION)), before[-1])
        assert "history_lost" == records[0].json["data"]["reason"]
        assert after[-1] == records[-1].id


async def set_tip_ahead(valkey: Valkey) -> str:
    """Leave the session as a server whose clock was an hour ahead would, by one more event; return its id."""
    async with valkey.client() as client:
        tip = (await client.hget("agent_sse:{s1}:state", "tip")).decode()
        ahead = f"{int(tip.split('-')[0]) + 3_600_000}-0"
        last = (await client.xrevrange("agent_sse:{s1}:events", count=1))[0][1]
        # In the Stream, in the state and on the channel, as a publish does it.
        async with client.pipeline() as pipe:
            pipe.xadd("agent_sse:{s1}:events", {b"d": last[b"d"], b"p": tip, b"k": ""}, id=ahead)
            pipe.hset("agent_sse:{s1}:state", "tip", ahead)
            pipe.publish("agent_sse:{s1}:channel", ahead.encode() + b" " + tip.encode() + b" " + last[b"d"])
            await pipe.execute()
        return ahead


class Proxy:
    """A TCP address that leads to one server or another; switching cuts every connection."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(up_writer)
        pair = {asyncio.create_task(_pump(reader, up_writer)), asyncio.create_task(_pump(up_reader, writer))}
        try:
            await asyncio.wait(pair, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pair:
                task.cancel()
            await asyncio.gather(*pair, return_exceptions=True)
            for each in (writer, up_writer):
                each.transport.abort()
                self._writers.discard(each)

    def switch(self, target: int) -> None:
        self.target = target
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_promoted_replica_that_lags_resets_streams(folder: Path) -> None:
    """A failover to a replica that had not got the last events: streams are told, and follow the new primary."""
    primary = Valkey(folder / "p", "--repl-diskless-sync-delay", "0", port=free_port())
    replica = Valkey(folder / "r", port=free_port())
    await primary.start()
    await replica.start()
    try:
        async with (
            primary.client() as on_primary,
            replica.client() as on_replica,
            Proxy(primary.port).running() as proxy,
            SimpleNotifier.from_url(f"redis://127.0.0.1:{proxy.port}", publish_timeout=20) as notifier,
            serve(make_settings(f"redis://127.0.0.1:{proxy.port}", heartbeat_interval=0.2)) as served,
            Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
        ):
            await on_replica.replicaof("127.0.0.1", str(primary.port))

            async def follows() -> bool:
                info = await on_replica.info("replication")
                return info["master_link_status"] == "up"

            await until(follows, what="the replica")
            shared = await publish(notifier, 5)
            assert 1 == await on_primary.wait(1, 10_000)
            # From here on the replica gets nothing more. (A stopped replica would get it once it runs again.)
            await on_replica.replicaof("NO", "ONE")
            lost = await publish(notifier, 5)
            await follower.until_id(lost[-1])
            proxy.switch(replica.port)
            await primary.stop(signal.SIGKILL)
            after = await publish(notifier, 3)
            await follower.until(lambda: follower.types("stream_reset"))
            after += await publish(notifier, 3)
            await follower.until_id(after[-1])
            assert_told(follower, shared + lost, after)
            assert 1 == follower.connects
            url = served.events(SESSION, make_token(SESSION))
            records = await resume(url, lost[1])
            assert "history_lost" == records[0].json["data"]["reason"]
            assert shared[1:] + after == [event.id for event in await resume(url, shared[0]) if event.data is not None]
    finally:
        await primary.stop()
        await replica.stop()


async def test_two_servers_in_turn_never_pass_silently(folder: Path) -> None:
    """The way to Redis flips between two servers with different histories: at every flip one reset, then all right."""
    servers = [Valkey(folder / name, port=free_port()) for name in "ab"]
    for server in servers:
        await server.start()
    try:
        async with (
            Proxy(servers[0].port).running() as proxy,
            SimpleNotifier.from_url(f"redis://127.0.0.1:{proxy.port}", publish_timeout=20) as notifier,
            serve(make_settings(f"redis://127.0.0.1:{proxy.port}", heartbeat_interval=0.2)) as served,
            Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
        ):
            ids_of_turns = []
            for turn in range(6):
                if turn:
                    proxy.switch(servers[turn % 2].port)
                ids_of_turns.append(await publish(notifier, 5))
                await follower.until(lambda turn=turn: len(follower.types("stream_reset")) >= turn)
                ids_of_turns[-1] += await publish(notifier, 1)
                await follower.until_id(ids_of_turns[-1][-1])
            assert 5 == len(follower.types("stream_reset"))
            parts: list[list[str]] = [[]]
            for event in follower.events:
                if event.type == "stream_reset":
                    parts.append([])
                elif event.id is not None:
                    parts[-1].append(event.id)
            for expected, part in zip(ids_of_turns, parts, strict=True):
                assert expected[len(expected) - len(part) :] == part
    finally:
        for server in servers:
            await server.stop()
