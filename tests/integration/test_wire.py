"""The connection to Redis: order, gathering, losses, silence, back-pressure, TLS; on a real Valkey behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
import uvloop

from agent_sse import RedisRefused, RedisUnavailable, SimpleNotifier, scripts
from agent_sse.backend import Backend, Call
from agent_sse.pubsub import Subscriber
from agent_sse.scripts import Script
from agent_sse.settings import RedisSettings
from agent_sse.store import Store
from agent_sse.wire import FAIR_SHARE, WRITE_SIZE, CommandWire, Wire, pack
from certificate import self_signed
from harness import DEADLINE, Valkey, make_settings, until

Pump = Callable[[bytes], Awaitable[bytes | None]]


class Proxy:
    """Stands before a Valkey. ``answer`` sees each chunk of replies: what it returns goes on, None cuts the connection.

    ``silent`` swallows everything in both directions while the connections stay open. ``delay`` (s) holds each chunk.
    """

    def __init__(self, valkey: Valkey, path: Path, *, context: ssl.SSLContext | None = None) -> None:
        self.valkey = valkey
        self.path = path
        self.context = context
        self.answer: Pump | None = None
        self.silent = False
        self.delay = 0.0
        self.connections = 0
        self.port = 0
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        up_reader, up_writer = await asyncio.open_unix_connection(self.valkey.socket)
        pumps: set[asyncio.Task[Any]] = {
            asyncio.create_task(self._pump(reader, up_writer, None)),
            asyncio.create_task(self._pump(up_reader, writer, self._seen)),
            asyncio.create_task(self._ended.wait()),
        }
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            up_writer.transport.abort()
            writer.transport.abort()
            self._tasks.discard(task)

    async def _seen(self, data: bytes) -> bytes | None:
        return data if self.answer is None else await self.answer(data)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Pump | None) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                if self.silent:
                    continue
                if self.delay:
                    await asyncio.sleep(self.delay / 2)
                data = chunk if see is None else await see(chunk)
                if data is None:
                    return
                writer.write(data)
                await writer.drain()

    async def __aenter__(self) -> Proxy:
        if self.context is None:
            self._server: asyncio.Server = await asyncio.start_unix_server(self._relay, self.path)
        else:
            self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self.context)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._ended.set()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()


@pytest.fixture
async def proxy(valkey: Valkey, folder: Path) -> AsyncIterator[Proxy]:
    async with Proxy(valkey, folder / "proxy.sock") as made:
        yield made


@asynccontextmanager
async def backend_on(url: str, **options: Any) -> AsyncIterator[Backend]:
    backend = Backend(url, **options)
    try:
        yield backend
    finally:
        await backend.aclose()


def script(text: str) -> Script:
    import hashlib

    return Script("test", text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


APPEND = script("redis.call('RPUSH', KEYS[1], ARGV[1]) return ARGV[1]")


def append(value: int, key: str = "list") -> Call:
    return Call.of(APPEND, [key], [value])


async def numbers(valkey: Valkey, key: str = "list") -> list[int]:
    async with valkey.client() as client:
        return [int(value) for value in await client.lrange(key, 0, -1)]


def connection_to(url: str) -> Any:
    return redis.ConnectionPool.from_url(url, protocol=2, driver_info=None).make_connection()


# -- taking over ------------------------------------------------------------------------------------------------


async def test_wire_takes_over_what_redis_py_connected(valkey: Valkey) -> None:
    """redis-py's connection has the parts that are taken, gives them up, and what it had read already comes first."""
    connection = connection_to(valkey.url)
    got: list[Any] = []
    wire = Wire(got.append)
    connect = connection.connect

    async def connect_and_read() -> None:
        await connect()
        reader, writer = connection._reader, connection._writer
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        writer.write(pack(("ECHO", "early")))
        await until(lambda: reader._buffer, what="the answer")  # type: ignore[union-attr]

    connection.connect = connect_and_read  # type: ignore[method-assign]
    await wire.connect(connection, DEADLINE)
    assert [b"early"] == got
    assert not connection.is_connected
    wire.write(pack(("ECHO", "late")))
    await until(lambda: len(got) == 2, what="the second answer")
    assert [b"early", b"late"] == got
    await wire.aclose()
    assert not wire.alive


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_wire_works_over_tls(valkey: Valkey, folder: Path, loop_factory: Any) -> None:
    """Publishing, a big event and pub/sub over TLS with a verified certificate, on asyncio's loop and on uvloop."""
    certificate, key = self_signed(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def main(url: str) -> list[str]:
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        async with backend_on(url) as backend, SimpleNotifier.from_url(url) as notifier:
            subscriber = Subscriber(
                backend, on_message=lambda channel, data: heard.put_nowait(data),
                on_subscribed=heard.put_nowait,
            )  # fmt: skip
            subscriber.start()
            subscriber.add(b"agent_sse:{s}:channel")
            assert b"agent_sse:{s}:channel" == await heard.get()
            ids = [await notifier.tool_result("s", "t", "x" * size) for size in (1, 200_000)]
            ids += await asyncio.gather(*(notifier.error("s", str(i)) for i in range(200)))
            messages = [await heard.get() for _ in ids]
            assert ids == [message.split(b" ", 1)[0].decode() for message in messages]
            await subscriber.aclose()
        return ids

    async with Proxy(valkey, folder / "unused", context=context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={certificate}"

        def run() -> list[str]:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(main(url))

        ids = await asyncio.to_thread(run)
    assert ids == [event_id for event_id, _ in await valkey.entries("s")]


# -- order and gathering ----------------------------------------------------------------------------------------


async def test_calls_of_one_step_arrive_in_order_in_one_write(valkey: Valkey) -> None:
    """200 callers in one step of the loop: run in their order, read by the server at one go, each answered."""
    async with backend_on(valkey.url) as backend, valkey.client() as client:
        await backend.run(append(-1))
        before = (await client.info("stats"))["total_reads_processed"]
        replies = await asyncio.gather(*(backend.run(append(i)) for i in range(200)))
        reads = (await client.info("stats"))["total_reads_processed"] - before
        assert [str(i).encode() for i in range(200)] == replies
        assert [-1, *range(200)] == await numbers(valkey)
        assert reads <= 10


async def test_cancelled_callers_leave_the_others_their_answers(valkey: Valkey) -> None:
    """Whoever gives up, at whichever step, everybody else gets the answer to the own question."""
    async with backend_on(valkey.url) as backend:
        await backend.connect()
        for steps in range(6):
            tasks = [asyncio.create_task(backend.command("ECHO", str(i))) for i in range(100)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for i, result in enumerate(results):
                assert result == str(i).encode() or (i % 3 == 0 and isinstance(result, asyncio.CancelledError))


async def test_script_that_vanishes_in_the_middle_is_loaded_and_run_again(valkey: Valkey) -> None:
    """Calls behind a SCRIPT FLUSH of the same write run after all, in their order, each once."""
    async with backend_on(valkey.url) as backend:
        await backend.run(append(0))
        results = await asyncio.gather(
            backend.run_many([append(1), append(2)]), backend.command("SCRIPT", "FLUSH"),
            backend.run_many([append(3), append(4)]), backend.run_many([append(5)]),
        )  # fmt: skip
        assert [[b"1", b"2"], b"OK", [b"3", b"4"], [b"5"]] == results
        assert list(range(6)) == await numbers(valkey)


async def test_script_that_may_not_be_loaded_is_a_refusal(valkey: Valkey) -> None:
    """An ACL user without SCRIPT hears of the missing right, not of a missing script."""
    async with valkey.client() as client:
        await client.execute_command("ACL", "SETUSER", "agent", "on", ">pw", "~*", "&*", "+@all", "-script")
    async with backend_on(f"unix://agent:pw@{valkey.socket}") as backend:
        with pytest.raises(RedisRefused, match="script"):
            await backend.run(append(0))
        assert b"PONG" == await backend.command("PING", "PONG")


async def test_wrong_password_is_a_refusal(valkey: Valkey) -> None:
    """The server's no to the password is no reason to try again."""
    async with backend_on(f"unix://agent:wrong@{valkey.socket}") as backend:
        with pytest.raises(RedisRefused, match="password"):
            await backend.command("PING", "x")


async def test_error_of_one_call_is_its_own(valkey: Valkey) -> None:
    """A refused call stands in its place among the answers of the others."""
    async with backend_on(valkey.url) as backend, valkey.client() as client:
        await client.set("text", "x")
        one, wrong, two = await backend.run_many([append(1), append(2, "text"), append(3)])
        assert (b"1", b"3") == (one, two)
        assert isinstance(wrong, RedisRefused)
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await backend.commands([("RPUSH", "list", "4"), ("RPUSH", "text", "5"), ("RPUSH", "list", "6")])
        assert [1, 3, 4, 6] == await numbers(valkey)


# -- losses -----------------------------------------------------------------------------------------------------


async def test_connection_cut_in_the_middle_of_replies(valkey: Valkey, proxy: Proxy) -> None:
    """What was answered before the cut is answered, the rest fails at once, and the next call connects anew."""
    async with backend_on(proxy.url) as backend:
        await backend.run(append(0))

        async def cut(data: bytes) -> bytes | None:
            # Ten whole replies and a part of the next; what else comes is not let through.
            proxy.answer = end
            replies = data.split(b"$")
            return b"$".join(replies[:11]) + b"$4\r\n10"

        async def end(data: bytes) -> bytes | None:
            return None

        proxy.answer = cut
        asking = [asyncio.create_task(backend.run(append(i))) for i in range(1000, 2000)]
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        async with valkey.client() as client:
            await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        results = await asyncio.gather(*asking, return_exceptions=True)
        answered = [result for result in results if isinstance(result, bytes)]
        assert [str(i).encode() for i in range(1000, 1000 + len(answered))] == answered
        assert len(answered) in (10, 11)
        assert all(isinstance(result, RedisUnavailable) for result in results[len(answered) :])
        proxy.answer = None
        assert b"7" == await backend.run(append(7))
        assert 2 == proxy.connections


async def test_half_open_connection_is_given_up(valkey: Valkey, proxy: Proxy) -> None:
    """A connection that stays open and says nothing fails its callers in time, and the next call has a new one."""
    async with backend_on(proxy.url, timeout=0.3) as backend:
        await backend.run(append(0))
        proxy.silent = True
        results = await asyncio.gather(*(backend.run(append(i)) for i in range(5)), return_exceptions=True)
        assert all(isinstance(result, RedisUnavailable) for result in results)
        proxy.silent = False
        assert b"9" == await backend.run(append(9))
        assert 2 == proxy.connections
        assert [0, 9] == await numbers(valkey)


async def test_late_answer_is_dropped_and_the_connection_lives(folder: Path) -> None:
    """A call that takes too long fails alone when the server is heard of; its late answer goes to nobody else."""
    path, parts = folder / "scripted.sock", asyncio.Queue[asyncio.StreamWriter]()
    server = await asyncio.start_unix_server(lambda reader, writer: parts.put_nowait(writer), path)
    wire = CommandWire(0.4)
    await wire.connect(connection_to(f"unix://{path}"), DEADLINE)
    writer = await parts.get()
    answers: list[Any] = []
    for name in ("first", "second"):
        wire.send(pack(("ECHO", name)), lambda reply, name=name: answers.append((name, reply)))  # type: ignore[misc]
    writer.write(b"+1\r\n")
    await until(lambda: answers, what="the first answer")
    while len(answers) < 2:  # bytes that complete no answer
        writer.write(b"*1\r\n")
        await asyncio.sleep(0.02)
    assert isinstance(answers[1][1], RedisUnavailable)
    wire.send(pack(("ECHO", "third")), lambda reply: answers.append(("third", reply)))
    writer.write(b"+2\r\n+3\r\n")
    await until(lambda: len(answers) == 3, what="the third answer")
    assert [("first", b"1"), ("third", b"3")] == answers[::2]
    wire.send(pack(("ECHO", "fourth")), lambda reply: answers.append(("fourth", reply)))
    await wire.aclose()
    assert isinstance(answers[3][1], RedisUnavailable)
    writer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_what_is_no_redis_is_an_error(folder: Path) -> None:
    """A server that speaks another protocol is told apart from one that is away, and the connection is not kept."""
    path = folder / "http.sock"

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(greet, path)
    async with backend_on(f"unix://{path}") as backend:
        with pytest.raises(RedisUnavailable, match="protocol"):
            await backend.command("PING", "x")
    server.close()
    await server.wait_closed()


async def test_slow_redis_serves(valkey: Valkey, proxy: Proxy) -> None:
    """With every answer nearly as late as the time-out allows, connecting and calling still succeed."""
    async with valkey.client() as client:
        await client.execute_command("ACL", "SETUSER", "agent", "on", ">pw", "~*", "&*", "+@all")
    proxy.delay = 0.7
    async with backend_on(f"unix://agent:pw@{proxy.path}?db=1", timeout=1.0) as backend:
        assert b"1" == await backend.run(append(1))
    assert 1 == proxy.connections


async def test_nothing_connects_after_the_end(valkey: Valkey) -> None:
    """Closing ends every connection and every wait, and later calls are refused."""
    backend = Backend(valkey.url)
    subscriber = Subscriber(backend, on_message=lambda channel, data: None)
    subscriber.start()
    subscriber.add(b"c")
    await backend.command("PING", "x")
    blocked = asyncio.create_task(backend.command("BLPOP", "none", "0"))
    async with valkey.client() as client:
        await until(lambda: _has_subscriber(client), what="the subscription")
        await subscriber.aclose()
        await backend.aclose()
        with pytest.raises(RedisUnavailable):
            await blocked
        for use in (lambda: backend.command("PING", "x"), lambda: backend.run(append(1)), backend.connect):
            with pytest.raises(RedisRefused, match="closed"):
                await use()
        await until(lambda: _is_alone(client), what="the end of the connections")


async def _has_subscriber(client: redis.Redis) -> bool:
    return any(int(row["sub"]) for row in await client.client_list())


async def _is_alone(client: redis.Redis) -> bool:
    return len(await client.client_list()) == 1


# -- much at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_big_events_wait_for_the_server(
    valkey: Valkey, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, loop_factory: Any
) -> None:
    """30 MB of events at once: the connection never holds more than a little, and all arrive in order."""
    held: list[int] = []
    write, pause, paused = Wire.write, Wire.pause_writing, asyncio.Event()

    def watched(self: Wire, data: bytes) -> None:
        write(self, data)
        held.append(self._held)

    def noticed(self: Wire) -> None:
        paused.set()
        pause(self)

    monkeypatch.setattr(Wire, "write", watched)
    monkeypatch.setattr(Wire, "pause_writing", noticed)
    settings = {"retention_bytes": 100_000_000, "publish_timeout": DEADLINE}

    async def main() -> list[str]:
        async with SimpleNotifier.from_url(proxy.url, **settings) as notifier:
            await notifier.error("s", "first")
            return await asyncio.gather(
                *(notifier.tool_result(f"s{i % 3}", "t", "x" * 250_000, tool_call_id=f"c{i}") for i in range(120))
            )

    def run() -> list[str]:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main())

    ids = await asyncio.to_thread(run)
    assert paused.is_set()
    assert max(held) <= WRITE_SIZE + 300_000
    for session in range(3):
        assert ids[session::3] == [event_id for event_id, _ in await valkey.entries(f"s{session}")]


async def test_burst_of_messages_does_not_hold_the_loop(valkey: Valkey) -> None:
    """Of thousands of messages that arrive at once, a step of the loop takes a share, and none is lost."""
    shares: list[int] = []
    current = 0
    confirmed = asyncio.Event()

    def heard(channel: bytes, data: bytes) -> None:
        nonlocal current
        if not current:
            asyncio.get_running_loop().call_soon(end_of_step)
        current += 1

    def end_of_step() -> None:
        nonlocal current
        shares.append(current)
        current = 0

    async with backend_on(valkey.url) as backend, valkey.client() as client:
        subscriber = Subscriber(backend, on_message=heard, on_subscribed=lambda channel: confirmed.set())
        subscriber.start()
        subscriber.add(b"c")
        await confirmed.wait()
        pipe = client.pipeline(transaction=False)
        for _ in range(5000):
            pipe.publish("c", "x")
        await pipe.execute()
        await until(lambda: sum(shares) == 5000, what="the messages")
        assert max(shares) <= 2 * FAIR_SHARE  # what is left of one chunk and the first of the next
        await subscriber.aclose()


async def test_store_works_through_one_connection(valkey: Valkey) -> None:
    """However many callers at once, one process has one connection for commands."""
    async with backend_on(valkey.url) as backend, valkey.client() as client:
        store = Store(backend, make_settings(valkey.url))
        assert isinstance(store.settings, RedisSettings)
        await asyncio.gather(*(store.open(f"s{i}", "alice") for i in range(100)))
        assert 100 == len(await store.sessions_of("alice"))
        assert 2 == len(await client.client_list())
    assert scripts.OPEN.sha
