"""What a client can take up: heads and bodies that do not come, connections without end, bytes behind a stream.

The server's own side runs in a thread, once with uvloop and once with asyncio, before an application that does what a
test needs; what concerns streams runs before the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import uvicorn

from agent_sse import SimpleNotifier, limits, nofile, protocol
from agent_sse import serve as service
from agent_sse.protocol import StreamProtocol
from harness import DEADLINE, PREFIX, Served, ServiceProcess, Stream, Valkey, make_settings, make_token, serve, until

SHORT = 0.2  # s; a limit that a test waits for
NEVER = 600.0  # s; one that must not be what ends a connection

LOOPS = ["asyncio", "uvloop"]


class Client:
    """A connection that sends what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> tuple[int, dict[str, str], Any]:
        """Read a response: status, headers, JSON."""
        async with asyncio.timeout(DEADLINE):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers, json.loads(body)

    async def rest(self) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    async def lines(self, word: bytes) -> bytes:
        """Read until ``word`` has come; return everything."""
        seen = b""
        async with asyncio.timeout(DEADLINE):
            while word not in seen:
                data = await self.reader.read(65536)
                assert data, seen
                seen += data
        return seen


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Client]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


class App:
    """`/wait` answers once ``go`` is set, `/half` begins before that; what has `read` in it reads the body first."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.sockets: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.sockets.append(scope["extensions"][protocol.CONNECTION].transport.get_extra_info("socket"))
        path, size, more = scope["path"], 0, True
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
        if "half" in path:
            await send(head)
        if "half" in path or "wait" in path:
            await asyncio.to_thread(self.go.wait, DEADLINE)
        while more and "read" in path:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if "half" not in path:
            await send(head)
        await send({"type": "http.response.body", "body": b"%4d" % (size // 1000)})


class Place(NamedTuple):
    url: str
    app: App
    server: uvicorn.Server

    def connections(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture
def run() -> Iterator[Callable[..., Place]]:
    """Start a server of `agent-sse serve`'s kind in a thread, with the limits that the protocol's module has now."""
    running: list[tuple[App, uvicorn.Server, threading.Thread]] = []

    def start(loop: str, *, keep_alive: float = NEVER) -> Place:
        app = App()
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, http=StreamProtocol, ws="none", loop=loop, lifespan="off",
            log_config=None, timeout_keep_alive=keep_alive, timeout_graceful_shutdown=1,  # type: ignore[arg-type]
        )  # fmt: skip
        server = service._Server(config)
        ready, startup = threading.Event(), server.startup

        async def started(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            ready.set()

        server.startup = started  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run)
        running.append((app, server, thread))
        thread.start()
        assert ready.wait(DEADLINE)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Place(f"http://127.0.0.1:{port}", app, server)

    yield start
    for app, server, thread in running:
        app.go.set()
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT", SHORT)


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the limits that were met, in order."""
    met: list[str] = []

    def watch(name: str) -> None:
        act: Callable[[StreamProtocol], None] = getattr(StreamProtocol, name)

        def note(self: StreamProtocol) -> None:
            act(self)
            met.append(name)

        monkeypatch.setattr(StreamProtocol, name, note)

    watch("head_expired")
    watch("body_expired")
    return met


@pytest.fixture
def short_body(monkeypatch: pytest.MonkeyPatch, expired: list[str]) -> None:
    monkeypatch.setattr(limits, "BODY_TIMEOUT", SHORT)


@pytest.fixture
async def taken(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set whenever the server's thread has taken what came."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    take = StreamProtocol.data_received

    def note(self: StreamProtocol, data: bytes) -> None:
        take(self, data)
        loop.call_soon_threadsafe(event.set)

    monkeypatch.setattr(StreamProtocol, "data_received", note)
    return event


@asynccontextmanager
async def trickling(client: Client, taken: asyncio.Event, piece: bytes) -> AsyncIterator[None]:
    """Send ``piece`` again and again, each time when the one before was taken."""

    async def trickle() -> None:
        while True:
            taken.clear()
            client.send(piece)
            await taken.wait()

    task = asyncio.create_task(trickle())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def assert_late(reply: tuple[int, dict[str, str], Any]) -> None:
    status, headers, body = reply
    assert (408, "application/json", "close") == (status, headers["content-type"], headers["connection"])
    assert (False, "request_timeout") == (body["success"], body["error"]["code"])
    assert "send it again" in body["message"]


async def answer_after(limit: str, expired: list[str], place: Place, client: Client) -> tuple[int, Any]:
    """Let the application answer when ``limit`` was met, not before; return status and JSON."""
    await until(lambda: limit in expired)
    place.app.go.set()
    status, _, body = await client.reply()
    return status, body


# -- heads ------------------------------------------------------------------------------------------------------------

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("short_head")
async def test_client_that_says_nothing_is_let_go(run: Callable[..., Place], loop: str) -> None:
    """A connection on which no request begins is closed without a word."""
    async with connect(run(loop).url) as client:
        assert b"" == await client.rest()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("before", [b"", GET], ids=["new", "kept alive"])
@pytest.mark.parametrize("half", [GET[:-2], GET[:1], b"\r\n"], ids=["head", "letter", "line break"])
@pytest.mark.usefixtures("short_head")
async def test_half_a_head_is_408(run: Callable[..., Place], loop: str, before: bytes, half: bytes) -> None:
    """A head that does not come whole in time is answered in JSON, and the connection closed."""
    async with connect(run(loop).url) as client:
        if before:
            client.send(before)
            assert 200 == (await client.reply())[0]
        client.send(half)
        assert_late(await client.reply())
        assert b"" == await client.rest()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("short_head")
async def test_head_that_trickles_is_408(run: Callable[..., Place], loop: str, taken: asyncio.Event) -> None:
    """The time is for the whole head: bytes that come now and then do not prolong it."""
    async with connect(run(loop).url) as client:
        client.send(GET[:-2] + b"X-A: ")
        async with trickling(client, taken, b"a"):
            assert_late(await client.reply())


@pytest.mark.parametrize("loop", LOOPS)
async def test_idle_connection_is_uvicorns_own_to_close(
    run: Callable[..., Place], loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two requests its keep-alive time counts, and none of ours."""
    monkeypatch.setattr(limits, "HEAD_TIMEOUT", NEVER)
    async with connect(run(loop, keep_alive=SHORT).url) as client:
        client.send(GET)
        assert 200 == (await client.reply())[0]
        assert b"" == await client.rest()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("short_head")
async def test_idle_connection_behind_a_late_body_is_closed(run: Callable[..., Place], loop: str) -> None:
    """A body that comes after its answer takes uvicorn's keep-alive timer away; the connection still ends."""
    async with connect(run(loop).url) as client:
        client.send(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n")
        assert 200 == (await client.reply())[0]
        client.send(b"late")
        assert b"" == await client.rest()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("path", [b"/wait", b"/half"])
@pytest.mark.usefixtures("short_head")
async def test_half_a_head_behind_a_request_waits_for_its_answer(
    run: Callable[..., Place], loop: str, path: bytes, expired: list[str]
) -> None:
    """The answer that is being made is neither cut off nor replaced; then the connection is closed."""
    place = run(loop)
    async with connect(place.url) as client:
        client.send(GET.replace(b"/ ", path + b" ") + GET[:10])
        assert (200, 0) == await answer_after("head_expired", expired, place, client)
        assert b"" == await client.rest()


async def test_large_head_behind_a_request_is_not_its_answer(run: Callable[..., Place]) -> None:
    """A head that is refused in one piece with a good request before it: that one gets its own answer, and no more."""
    place = run("asyncio")
    async with connect(place.url) as client:
        large = b"POST / HTTP/1.1\r\nX-A: %s\r\nContent-Length: 3000\r\n\r\n" % (b"a" * 40_000)
        client.send(GET.replace(b"/ ", b"/wait/read ") + large + b"x" * 3000)
        await until(lambda: any(c._refused for c in place.server.server_state.connections))  # type: ignore[union-attr]
        place.app.go.set()
        assert (200, 0) == (await client.reply())[::2]
        assert b"" == await client.rest()


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
@pytest.mark.usefixtures("short_body")
async def test_body_that_nobody_reads_and_nobody_sends_is_408(
    run: Callable[..., Place], loop: str, framing: bytes
) -> None:
    """A request whose body does not come is answered in time, whatever its endpoint does meanwhile."""
    place = run(loop)
    async with connect(place.url) as client:
        client.send(b"POST /wait HTTP/1.1\r\n" + framing + b"\r\n\r\n1")
        assert_late(await client.reply())
        place.app.go.set()  # what the endpoint says now is said to nobody
        assert b"" == await client.rest()
        await until(lambda: not place.server.server_state.tasks)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("short_body")
async def test_body_without_end_behind_its_answer_is_cut(
    run: Callable[..., Place], loop: str, taken: asyncio.Event
) -> None:
    """A client that goes on sending after it was answered is not listened to for ever."""
    async with connect(run(loop).url) as client:
        client.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert 200 == (await client.reply())[0]
        async with trickling(client, taken, b"1\r\nx\r\n"):
            with contextlib.suppress(ConnectionError):  # what it had not read yet makes the end a reset
                assert b"" == await client.rest()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("short_body")
async def test_answer_that_has_begun_outlasts_a_missing_body(
    run: Callable[..., Place], loop: str, expired: list[str]
) -> None:
    """Half an answer is not cut off; the connection is closed behind it."""
    place = run(loop)
    async with connect(place.url) as client:
        client.send(b"POST /half HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        assert (200, 0) == await answer_after("body_expired", expired, place, client)
        assert b"" == await client.rest()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("short_body")
async def test_body_that_waits_for_its_reader_is_not_late(
    run: Callable[..., Place], loop: str, expired: list[str]
) -> None:
    """While this side does not read, a client that would send is not blamed."""
    place = run(loop)
    async with connect(place.url) as client:
        client.send(b"POST /wait/read HTTP/1.1\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000)
        assert (200, 900) == await answer_after("body_expired", expired, place, client)


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
async def test_connections_over_the_limit_are_refused(
    run: Callable[..., Place], loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One too many gets a 503 that says when to come back; when another has left, the next one is served."""
    monkeypatch.setattr(nofile, "room", lambda: 32)
    place = run(loop)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(place.url)) for _ in range(32)]
        await until(lambda: place.connections() == 32)
        async with connect(place.url) as extra:
            extra.send(GET)
            status, headers, body = await extra.reply()
            assert (503, "application/json", "close") == (status, headers["content-type"], headers["connection"])
            assert 5 <= int(headers["retry-after"]) <= 10
            assert (False, "too_many_connections") == (body["success"], body["error"]["code"])
            assert b"" == await extra.rest()
        async with connect(place.url) as one, connect(place.url) as two:  # both are waited for
            await until(lambda: place.connections() == 34)
            async with connect(place.url) as third:
                with contextlib.suppress(ConnectionError):
                    assert b"" == await third.rest()
            for late in (one, two):
                late.send(GET)
                assert 503 == (await late.reply())[0]
        clients[0].writer.transport.abort()
        await until(lambda: place.connections() == 31)
        async with connect(place.url) as next_one:
            next_one.send(GET)
            assert 200 == (await next_one.reply())[0]
        assert 1 == caplog.text.count("leaves room for 32"), "it is said once in a while, not each time"


@pytest.mark.parametrize(
    ("plain", "arguments"), [(False, ()), (True, ("--loop", "uvloop")), (True, ("--loop", "asyncio"))]
)
async def test_process_never_runs_out_of_descriptors(valkey: Valkey, plain: bool, arguments: tuple[str, ...]) -> None:
    """With the operating system's real limit: refusals in JSON, nothing in the log, and it serves on afterwards."""
    http = ("--http", "agent_sse.protocol:StreamProtocol", *arguments) if plain else arguments
    process = limited(ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}, plain=plain, arguments=http), 100, 128)
    room = 75 if plain else 96  # only `agent-sse serve` raises the soft limit
    request = GET.replace(b"/ ", b"/healthz ")
    async with process:
        statuses = []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(200):
                client = await stack.enter_async_context(connect(process.url))
                client.send(request)
                statuses.append((await client.reply())[0])
            assert [200] * room + [503] * (200 - room) == statuses

        async def served() -> bool:
            async with connect(process.url) as client:
                client.send(request)
                return (await client.reply())[0] == 200

        await until(served)
        await process.stop()
    assert f"leaves room for {room}" in process.output
    assert "Traceback" not in process.output
    assert "Too many open files" not in process.output


def limited(process: ServiceProcess, soft: int, hard: int) -> ServiceProcess:
    """Have a service start with limits of open files."""
    process.command = ["/bin/sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh", *process.command]
    return process


async def test_serve_raises_its_limit_in_every_process_and_says_when_it_is_low(valkey: Valkey) -> None:
    """Two workers have room for twice what the hard limit leaves one, and one line says what more would need."""
    environment = {"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_MAX_STREAMS": "500"}
    process = limited(ServiceProcess(environment, arguments=("--workers", "2")), 64, 100)
    room = 75  # by the hard limit; by the soft one 48
    async with process, contextlib.AsyncExitStack() as stack:
        await until(lambda: process.output.count("Application startup complete") == 2, what="two workers")
        url = process.served.events("s1", make_token("s1"))

        async def opened() -> bool:
            stream = await Stream(url).open()
            if stream.status == 200:
                stack.push_async_callback(stream.close)
            else:
                await stream.close()
            return stream.status == 200

        for _ in range(2 * room):
            await until(opened, what="a connection that comes to the worker with room")
        assert {False} == {await opened() for _ in range(20)}
        assert 0 == await process.stop()
    assert f"leaves room for {room}" in process.output
    said = [line for line in process.lines if "AGENT_SSE_MAX_STREAMS" in line]
    assert 1 == len(said)
    assert f"room for {room}" in said[0]
    assert "ulimit -n 2804" in said[0]


async def test_serve_is_quiet_about_a_limit_that_does(valkey: Valkey) -> None:
    """With room for what is set nothing is said."""
    environment = {"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_MAX_STREAMS": "450"}
    async with limited(ServiceProcess(environment), 300, 600) as process:
        await process.stop()
    assert "AGENT_SSE_MAX_STREAMS" not in process.output


class Limits:
    """A system's open files, as `resource` has them: it refuses more than ``most``, as macOS does."""

    def __init__(self, soft: int, hard: int, most: int) -> None:
        self.now = (soft, hard)
        self.most = most

    def get(self, _: int) -> tuple[int, int]:
        return self.now

    def set(self, _: int, wanted: tuple[int, int]) -> None:
        if wanted[0] == resource.RLIM_INFINITY or wanted[0] > self.most:
            raise ValueError("current limit exceeds maximum limit")
        self.now = wanted


@pytest.mark.parametrize(
    ("soft", "hard", "most", "reached"),
    [
        (256, resource.RLIM_INFINITY, 61_440, 61_440),
        (256, resource.RLIM_INFINITY, 10_240, 10_240),
        (256, resource.RLIM_INFINITY, 256, 256),
        (256, resource.RLIM_INFINITY, 2**30, 2**20 - 1),
        (1024, 524_288, 2**30, 524_288),
        (1024, 524_288, 4096, 4096),
        (1024, 1024, 2**30, 1024),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 2**30, resource.RLIM_INFINITY),
    ],
)
def test_limit_is_raised_as_far_as_the_system_goes(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int, reached: int
) -> None:
    """To the hard limit; where that is none, or is refused, to the highest that is taken. The hard one stays."""
    system = Limits(soft, hard, most)
    monkeypatch.setattr(resource, "getrlimit", system.get)
    monkeypatch.setattr(resource, "setrlimit", system.set)
    nofile.raise_limit()
    assert (reached, hard) == system.now


@pytest.mark.parametrize(
    ("soft", "room"), [(64, 48), (256, 192), (1024, 768), (65_536, 63_232), (resource.RLIM_INFINITY, None)]
)
def test_room_leaves_a_reserve(monkeypatch: pytest.MonkeyPatch, soft: int, room: int | None) -> None:
    """What is not for connections is a quarter of a low limit, and 2,304 of a high one."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert room == nofile.room()
    for streams in (room or 10**6, (room or 0) + 1):
        assert (room is None or streams <= room) == (nofile.shortage(streams) is None)


@pytest.mark.parametrize("loop", LOOPS)
async def test_accepted_connections_are_kept_alive_by_the_kernel(run: Callable[..., Place], loop: str) -> None:
    """A client that vanished without a word is found: SO_KEEPALIVE comes from the listening socket."""
    place = run(loop)
    async with connect(place.url) as client:
        client.send(GET)
        assert 200 == (await client.reply())[0]
        (sock,) = place.app.sockets
        assert 0 != sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if sys.platform == "linux":
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert service.KEEPALIVE == tuple(sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)


# -- streams ----------------------------------------------------------------------------------------------------------

BESIDE = ["agent-sse serve", "asyncio", "asyncio, any server"]


@asynccontextmanager
async def serving(kind: str, valkey: Valkey) -> AsyncIterator[Served]:
    """The service as a process (uvloop), or in this loop with either way of sending."""
    if kind == "agent-sse serve":
        process = ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_HEARTBEAT_INTERVAL": "0.2"})
        async with process:
            yield process.served
            await process.stop()
        assert "Traceback" not in process.output, process.output
    else:
        made = make_settings(valkey.url, heartbeat_interval=0.2)
        async with serve(made, direct=kind == "asyncio") as served:
            yield served


def stream_head(*lines: str, version: str = "1.1") -> bytes:
    rows = [f"GET {PREFIX}/events/s1?token={make_token('s1')} HTTP/{version}", "Host: x", *lines]
    return "\r\n".join([*rows, "\r\n"]).encode()


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("line", ["Accept: text/event-stream", "Content-Length: 100000"])
async def test_open_stream_has_no_head_and_no_body_to_wait_for(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, direct: bool, line: str
) -> None:
    """No limit of the request's ends the stream, also when it announced a body that never comes."""
    monkeypatch.setattr(limits, "HEAD_TIMEOUT", SHORT)
    monkeypatch.setattr(limits, "BODY_TIMEOUT", SHORT)
    if not direct:
        monkeypatch.setattr(StreamProtocol, "take_over", lambda *_: False)
    made = make_settings(valkey.url, heartbeat_interval=SHORT)
    async with serve(made) as served, connect(served.url) as client:
        client.send(stream_head(line))
        for _ in range(8):
            assert b"HTTP/1.1 4" not in await client.lines(b'"type":"heartbeat"')


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("together", [True, False])
async def test_request_behind_a_stream_gets_no_answer_and_does_no_harm(
    valkey: Valkey, notifier: SimpleNotifier, kind: str, together: bool
) -> None:
    """A pipelined request, with the stream's own or later, puts nothing into the stream."""
    request = GET.replace(b"/ ", b"/healthz ")
    async with serving(kind, valkey) as served, connect(served.url) as client:
        client.send(stream_head() + (request if together else b""))
        seen = await client.lines(b'"type":"permission_cleared"')
        client.send(b"" if together else request)
        await notifier.error("s1", "one")
        seen += await client.lines(b'"message":"one"')
        seen += await client.lines(b'"type":"heartbeat"')
        assert 1 == seen.count(b"HTTP/1.1")


@pytest.mark.parametrize("kind", BESIDE[:2])
async def test_rubbish_on_an_open_stream_is_dropped(valkey: Valkey, notifier: SimpleNotifier, kind: str) -> None:
    """A megabyte that is no HTTP changes nothing of a stream that has its connection for itself."""
    async with serving(kind, valkey) as served, Stream(served.events("s1", make_token("s1"))) as stream:
        await stream.primed()
        assert stream._writer is not None
        stream._writer.write(b"\x00\xffrubbish" * 125_000)
        async with asyncio.timeout(DEADLINE):
            await stream._writer.drain()
        published = [await notifier.error("s1", str(number)) for number in range(3)]
        assert published == [(await stream.next("error")).id for _ in published]


@pytest.mark.parametrize("kind", BESIDE[:2])
async def test_http_1_0_client_gets_a_stream_that_it_can_read(
    valkey: Valkey, notifier: SimpleNotifier, kind: str
) -> None:
    """That version knows no chunks: the events stand bare, and the end of the connection is the end of the stream."""
    await notifier.open_session("s1", owner="alice")
    async with serving(kind, valkey) as served, connect(served.url) as client:
        client.send(stream_head(version="1.0"))
        seen = await client.lines(b'"type":"permission_cleared"')
        event_id = await notifier.error("s1", "one")
        seen += await client.lines(b'"message":"one"')
        await notifier.close_session("s1")
        head, _, body = (seen + await client.rest()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert re.match(rb"retry: \d+\n\ndata: ", body)
    assert f"\n\nid: {event_id}\ndata: ".encode() in body
    assert b"session_closed" in body
    assert b"\r\n" not in body


# -- memory -----------------------------------------------------------------------------------------------------------

OF_A_STREAM = (
    "Connection", "EventStream", "DirectSink", "AsgiSink", "StreamProtocol", "HeldHead", "HttpRequestParser",
    "RequestResponseCycle", "FlowControl",
)  # fmt: skip


@pytest.mark.parametrize(("direct", "free"), [(True, True), (True, False), (False, False)])
async def test_streams_leave_no_garbage_to_collect(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, direct: bool, free: bool
) -> None:
    """What a stream was made of is freed when it ends: nothing of it waits for the collector, which runs seldom."""
    if not free:
        monkeypatch.setattr(StreamProtocol, "take_over", lambda *_: False)
    async with serve(make_settings(valkey.url, heartbeat_interval=SHORT), direct=direct) as served:
        hub = served.app.state.agent_sse.hub

        async def visit(session: str) -> None:
            async with Stream(served.events(session, make_token(session))) as stream:
                await stream.primed()
            await until(lambda: hub.open_streams == 0)

        await visit("warm")
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(30):
                await visit(f"s{number % 3}")
            await until(lambda: not hub._visits._slots, what="the wheel's passing over the streams that are gone")
            gc.collect()
            names = [type(thing).__name__ for thing in gc.garbage]
            assert {} == {name: names.count(name) for name in OF_A_STREAM if name in names}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


def test_service_process_collects_seldom_and_not_what_stays() -> None:
    """`agent-sse serve` takes what it has built out of the collector's sight; no other process is changed."""
    code = (
        "import gc; from agent_sse import serve; before = gc.get_threshold(), gc.get_freeze_count();"
        "serve.create_app(); print(before, gc.get_threshold() == serve.GC_THRESHOLDS, gc.get_freeze_count() > 10_000)"
    )
    environment = {**os.environ, "AGENT_SSE_JWT_SECRET": "x" * 32, "AGENT_SSE_REDIS_URL": "redis://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, cwd="/", capture_output=True, text=True,
        check=True, timeout=DEADLINE,
    )  # fmt: skip
    assert "((700, 10, 10), 0) True True\n" == done.stdout
