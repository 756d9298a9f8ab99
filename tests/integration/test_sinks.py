"""The two ways to write a stream: which one is taken when, and that a stream is the same on both."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_sse import SimpleNotifier
from agent_sse.app import create_app
from agent_sse.frames import parse_id
from agent_sse.hub import Hub
from agent_sse.protocol import StreamProtocol
from agent_sse.routes import router_of
from agent_sse.service import Service
from agent_sse.sinks import AsgiSink, DirectSink
from agent_sse.stream import Connection
from certificate import self_signed
from harness import (
    DEADLINE,
    Served,
    ServiceProcess,
    Stream,
    Valkey,
    make_settings,
    make_token,
    serve,
    until,
)

S = "s1"
LONG = 600.0  # s; with such a heartbeat nothing is written, or found, because of one
TYPES = {"direct": DirectSink, "asgi": AsgiSink}


def hub_of(served: Served) -> Hub:
    hub: Hub = served.app.state.agent_sse.hub
    return hub


def connections(hub: Hub, session: str = S) -> list[Connection]:
    channel = hub._channels.get(f"agent_sse:{{{session}}}:channel".encode())
    return list(channel.connections) if channel is not None else []


def sinks(hub: Hub, session: str = S) -> list[Any]:
    return [connection._sink for connection in connections(hub, session)]


@asynccontextmanager
async def hosted(valkey: Valkey, *middleware: Any, **settings: Any) -> AsyncIterator[tuple[Served, Hub]]:
    """Serve a host with the router in it; ``middleware`` the innermost first."""
    host = FastAPI()
    for each in middleware:
        host.add_middleware(each)
    service = Service(make_settings(valkey.url, **settings))
    host.include_router(router_of(service))
    host.state.agent_sse = service
    async with serve(app=host) as served:
        yield served, service.hub


async def delivers(served: Served, notifier: SimpleNotifier, **options: Any) -> Stream:
    """Open a stream that gets an event; the caller closes it."""
    stream = await Stream(served.events(S, make_token(S)), **options).open()
    assert 200 == stream.status
    await stream.primed()
    event_id = await notifier.tool_status(S, "t", "executing")
    assert event_id == (await stream.next()).id
    return stream


# -- which one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "mounted"])
async def test_streams_use_the_sink_that_the_test_names(
    valkey: Valkey, notifier: SimpleNotifier, sink: str, mounted: bool
) -> None:
    """`direct` tests write to the connection, `asgi` tests through `send`; and so for a router in a host."""
    place = hosted(valkey) if mounted else serve(make_settings(valkey.url))
    async with place as given:
        served = given if isinstance(given, Served) else given[0]
        stream = await delivers(served, notifier)
        assert [TYPES[sink]] == [type(found) for found in sinks(hub_of(served))]
        await stream.close()


async def test_process_uses_the_sink_that_the_test_names(valkey: Valkey, sink: str) -> None:
    """In a process of its own it shows at the end of a stream: a connection that was taken over ends with it."""
    environment = {"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_MAX_STREAM_SECONDS": "0.2"}
    async with ServiceProcess(environment) as process:
        stream = Stream(process.served.events(S, make_token(S)))
        await stream.open()
        await stream.end()
        assert stream.complete
        assert stream._reader is not None
        assert stream._writer is not None
        rest = b""
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                stream._writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                rest = await stream._reader.read()
        await stream.close()
    assert (sink == "asgi") == rest.startswith(b"HTTP/1.1 200 OK")
    assert sink == "asgi" or rest == b""


async def test_stream_under_tls_goes_through_asgi(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> None:
    """Under TLS the transport is not the connection; the stream works all the same, under either protocol class."""
    public, private = self_signed(folder)
    trust = ssl.create_default_context(cafile=public)
    for direct in (True, False):
        settings = make_settings(valkey.url)
        async with serve(settings, direct=direct, ssl_certfile=public, ssl_keyfile=private) as served:
            assert served.url.startswith("https://")
            stream = await delivers(served, notifier, trust=trust)
            assert [AsgiSink] == [type(found) for found in sinks(hub_of(served))]
            hub_of(served).shutdown()
            await stream.end()
            assert (True, b"") == (stream.complete, stream.buffer)
            await stream.close()


class Stamp:
    """A plain ASGI middleware: it adds a header and passes everything on as it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"host")]
            await send(message)

        await self.app(scope, receive, stamped)


class Shout(Stamp):
    """A middleware that changes the body, and says so in the head as it should."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def loud(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-encoding", b"x-shout")]
            elif message["type"] == "http.response.body":
                message["body"] = message["body"].upper()
            await send(message)

        await self.app(scope, receive, loud)


class Poll(Stamp):
    """A recipe that is copied a lot: it cancels the application when the client leaves, by asking `receive` itself."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue()
        handling = asyncio.ensure_future(self.app(scope, messages.get, send))

        async def poll() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                messages.put_nowait(message)
            handling.cancel()

        polling = asyncio.create_task(poll())
        try:
            await handling
        except asyncio.CancelledError:
            pass
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)


def base_http(app: ASGIApp) -> ASGIApp:
    from starlette.middleware.base import BaseHTTPMiddleware

    async def stamp(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Stamp"] = "host"
        return response

    return BaseHTTPMiddleware(app, stamp)


gzip_all = partial(GZipMiddleware, exclude_content_types=())


@pytest.mark.parametrize(
    "middleware",
    [(base_http,), (base_http, base_http), (Stamp, base_http), (base_http, Stamp), (gzip_all,)],
    ids=["base", "base twice", "base around plain", "plain around base", "gzip of everything"],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_stream_behind_what_holds_its_head_goes_through_asgi(
    valkey: Valkey, notifier: SimpleNotifier, middleware: tuple[Any, ...], version: str
) -> None:
    """A middleware that keeps the head until the first bytes of the body gets those: the connection is not taken."""
    async with hosted(valkey, *middleware) as (served, hub):
        stream = await delivers(served, notifier, version=version)
        assert [AsgiSink] == [type(found) for found in sinks(hub)]
        await stream.close()
        await until(lambda: hub.open_streams == 0, what="the place")


async def test_stream_behind_a_middleware_that_passes_on_is_taken_over(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """What only adds to the head is no hindrance, and what it added is there; nor is compression that leaves it out."""
    async with hosted(valkey, Stamp, GZipMiddleware) as (served, hub):
        stream = await delivers(served, notifier, headers={"Accept-Encoding": "gzip"})
        assert ([DirectSink], "host") == ([type(found) for found in sinks(hub)], stream.response_headers["x-stamp"])
        await stream.close()
        await until(lambda: hub.open_streams == 0, what="the place")


async def test_head_of_a_taken_over_connection_says_that_it_closes(valkey: Valkey) -> None:
    """No proxy keeps the connection for its next request, which nobody would answer (RFC 9112 § 9.6)."""
    async with serve(make_settings(valkey.url)) as served, Stream(served.events(S, make_token(S))) as stream:
        assert "close" == stream.response_headers["connection"]


async def test_middleware_of_the_stand_alone_application_sees_streams(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """Streams go past FastAPI only while nobody has put anything in their way."""
    app = create_app(make_settings(valkey.url))
    app.add_middleware(Stamp)
    async with serve(app=app) as served:
        stream = await delivers(served, notifier)
        assert "host" == stream.response_headers["x-stamp"]
        await stream.close()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_stream_behind_a_middleware_that_encodes_the_body_is_encoded(
    valkey: Valkey, sink: str, version: str
) -> None:
    """A body that the head declares as encoded passes through who encodes it."""
    async with hosted(valkey, Shout) as (served, hub):
        stream = await Stream(served.events(S, make_token(S)), version=version).open(read=False)
        assert "x-shout" == stream.response_headers["content-encoding"]
        assert stream._reader is not None
        async with asyncio.timeout(DEADLINE):
            await stream._reader.readline()
            assert b"RETRY:" == (await stream._reader.readline())[:6]
        assert [AsgiSink] == [type(found) for found in sinks(hub)]
        await stream.close()


async def test_stream_behind_a_middleware_that_polls_for_the_client_lives(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """`receive` says that the client has left when it has, not before: who ends the request on it may do so."""
    async with hosted(valkey, Poll) as (served, hub):
        stream = await delivers(served, notifier)
        assert [TYPES[sink]] == [type(found) for found in sinks(hub)]
        await stream.close()
        await until(lambda: hub.open_streams == 0, what="the place")


# -- requests around it -----------------------------------------------------------------------------------------------


def request(target: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


def target(served: Served, token: str | None = None) -> str:
    return served.events(S, token or make_token(S)).removeprefix(served.url)


@asynccontextmanager
async def connected(served: Served, *, receive_buffer: int | None = None) -> AsyncIterator[Stream]:
    """A client that has sent nothing yet; it writes by `_writer`, and `open` would be the wrong way."""
    stream = Stream(served.url + "/")
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (stream.host, stream.port))
    stream._reader, stream._writer = await asyncio.open_connection(sock=sock)
    stream.response_headers = {"transfer-encoding": "chunked"}
    try:
        yield stream
    finally:
        await stream.close()


def send(stream: Stream, data: bytes) -> None:
    assert stream._writer is not None
    stream._writer.write(data)


async def head_of(stream: Stream) -> bytes:
    assert stream._reader is not None
    async with asyncio.timeout(DEADLINE):
        return await stream._reader.readuntil(b"\r\n\r\n")


class Gate:
    """A middleware that lets the head of a response pass when it is told to."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    def __call__(self, app: ASGIApp) -> ASGIApp:
        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            async def later(message: Message) -> None:
                if message["type"] == "http.response.start" and "/events/" in scope["path"]:
                    self.reached.set()
                    await self.open.wait()
                await send(message)

            await app(scope, receive, later)

        return gated


def protocols(served: Served) -> list[Any]:
    assert served.server is not None
    return list(served.server.server_state.connections)


async def test_request_that_comes_while_the_head_waits_does_not_take_the_stream_away(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """A second request on the connection, before the stream's head has gone out, waits for the stream's end."""
    gate = Gate()
    async with hosted(valkey, gate) as (served, hub), connected(served) as stream:
        send(stream, request(target(served)))
        await gate.reached.wait()
        send(stream, request("/openapi.json"))
        (protocol,) = protocols(served)
        await until(lambda: protocol.pipeline, what="the second request")
        gate.open.set()
        assert b"text/event-stream" in await head_of(stream)
        stream.read()
        await stream.primed()
        event_id = await notifier.tool_status(S, "t", "executing")
        assert event_id == (await stream.next()).id
        hub.shutdown()
        await stream.end()
        assert stream.complete
        assert b"application/json" in await head_of(stream)


async def test_second_request_behind_a_stream_is_never_answered_into_it(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """Two requests sent together: the stream is whole, and what comes after it is the second answer or nothing."""
    async with serve(make_settings(valkey.url)) as served, connected(served) as stream:
        send(stream, request(target(served)) + request("/healthz"))
        await head_of(stream)
        stream.read()
        await stream.primed()
        event_id = await notifier.tool_status(S, "t", "executing")
        assert event_id == (await stream.next()).id
        hub_of(served).shutdown()
        await stream.end()
        assert (True, b"") == (stream.complete, stream.buffer)
        assert b"application/json" in await head_of(stream)


async def test_client_that_leaves_after_a_request_with_a_body_is_noticed(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """A body on a stream's request is read and dropped, so that the end of the connection is seen behind it."""
    await notifier.open_session(S, "alice")
    async with serve(make_settings(valkey.url, heartbeat_interval=LONG)) as served, connected(served) as stream:
        size = 8 * 1024 * 1024
        send(stream, request(target(served, make_token()), f"Content-Length: {size}", body=b"x" * size))
        await head_of(stream)
        stream.read()
        await stream.primed()
        await stream.close()
        await until(lambda: hub_of(served).open_streams == 0, what="the place")


# -- slow clients -----------------------------------------------------------------------------------------------------


def narrow(served: Served) -> None:
    """Let the kernel take little for each connection that comes, so that what waits is in this process."""
    assert served.server is not None
    for server in served.server.servers:
        for sock in server.sockets:
            sock._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


async def test_what_waits_from_an_earlier_response_counts(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A stream behind a response that the client has not read is bounded from its first byte."""
    app = create_app(make_settings(valkey.url, stream_buffer_bytes=1000, heartbeat_interval=LONG))

    @app.get("/large")
    async def large() -> Response:
        return Response(b"x" * 60_000)  # less than what uvicorn waits for

    async with serve(app=app, direct=True) as served:
        narrow(served)
        hub = hub_of(served)
        async with connected(served, receive_buffer=4096) as stuck:
            assert stuck._writer is not None
            stuck._writer.transport.pause_reading()
            send(stuck, request("/large"))
            (protocol,) = await until(lambda: protocols(served), what="the connection")
            await until(lambda: protocol.transport and protocol.transport.get_write_buffer_size(), what="a rest")
            send(stuck, request(target(served)))
            await until(lambda: sinks(hub), what="the stream")
            (sink,) = sinks(hub)
            assert isinstance(sink, DirectSink)
            waited = sink.transport.get_write_buffer_size()
            assert waited > 1000
            async with Stream(served.events(S, make_token(S))) as other:
                await other.primed()
                for _ in range(50):
                    last = await notifier.tool_result(S, "t", "x" * 1000)
                while other.last_id != last:
                    await other.next()
            assert sink.transport.get_write_buffer_size() < waited + 3000


async def test_slow_client_lags_and_catches_up(valkey: Valkey, notifier: SimpleNotifier, sink: str) -> None:
    """Over the bound a client goes back to the Stream, holds no more than bound and frame, and misses nothing."""
    bound, size = 32 * 1024, 4 * 1024
    settings = make_settings(valkey.url, stream_buffer_bytes=bound, heartbeat_interval=LONG)
    async with serve(settings) as served, Stream(served.events(S, make_token(S))) as other:
        narrow(served)
        hub = hub_of(served)
        await other.primed()
        slow = Stream(served.events(S, make_token(S)), receive_buffer=4096)
        await slow.open(read=False)
        assert slow._writer is not None
        slow._writer.transport.pause_reading()
        await until(lambda: all(c.live for c in connections(hub)), what="both being live")
        ids = []
        for _ in range(100):
            ids.append(await notifier.tool_result(S, "t", "x" * size))
            while other.last_id != ids[-1]:
                await other.next()
            for each in sinks(hub):
                waits = each._size if isinstance(each, AsgiSink) else each.transport.get_write_buffer_size()
                assert waits <= bound + 2 * size
        assert hub.counters.lags > 0
        assert [True, False] == [c.live for c in connections(hub)]
        slow._writer.transport.resume_reading()
        slow.read()
        await until(lambda: slow.last_id == ids[-1], what="catching up")
        ids.append(await notifier.tool_result(S, "t", "x" * size))
        await until(lambda: slow.last_id == ids[-1], what="being live")
        assert ids == [event.id for event in slow.records if event.id and event.data]
        assert (0, [True, True]) == (hub.counters.stalls, [c.live for c in connections(hub)])
        await slow.close()


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half closed"])
async def test_client_that_stalls_while_it_catches_up_is_let_go(
    valkey: Valkey, notifier: SimpleNotifier, sink: str, half_closed: bool
) -> None:
    """A client that asks for everything and takes nothing loses its place; that it says goodbye does not keep it."""
    for _ in range(100):
        await notifier.tool_result(S, "t", "x" * 50_000)
    settings = make_settings(valkey.url, stream_buffer_bytes=32 * 1024, send_timeout=0.3, heartbeat_interval=LONG)
    async with serve(settings) as served:
        narrow(served)
        hub = hub_of(served)
        async with connected(served, receive_buffer=4096) as stuck:
            assert stuck._writer is not None
            stuck._writer.transport.pause_reading()
            send(stuck, request(target(served) + "&last_event_id=0-0"))
            await until(lambda: connections(hub), what="the stream")
            (connection,) = connections(hub)
            if half_closed:
                stuck._writer.write_eof()
            await until(lambda: hub.open_streams == 0, what="the place")
            assert (1, False) == (hub.counters.stalls, connection.live)
            assert connection._task is None


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_place_is_given_back_whenever_the_client_leaves(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """Before the right is known, before the head, in the step of the head, right after it: no place is kept."""
    gate = Gate()
    gate.open.set()
    await notifier.open_session(S, "alice")
    async with hosted(valkey, gate, heartbeat_interval=LONG) as (served, hub):
        owner = target(served, make_token())  # the right is Redis' to give: the request waits for it
        for _ in range(20):
            async with connected(served) as stream:
                send(stream, request(owner))
        await until(lambda: not protocols(served), what="the end of the connections")
        await until(lambda: hub.open_streams == 0, what="the places of who left before the right was known")
        gate.open.clear()
        gate.reached.clear()
        async with connected(served) as stream:
            send(stream, request(target(served)))
            await gate.reached.wait()
            assert 1 == hub.open_streams
        await until(lambda: not protocols(served), what="the end of the connections")
        gate.open.set()
        await until(lambda: hub.open_streams == 0, what="the place of who left before the head")
        for steps in range(30):
            async with connected(served) as stream:
                send(stream, request(target(served)))
                for _ in range(steps):
                    await asyncio.sleep(0)
        for _ in range(10):
            async with connected(served) as stream:
                send(stream, request(target(served)))
                await head_of(stream)
        await until(lambda: hub.open_streams == 0 and not protocols(served), what="every place")
        assert {} == hub._channels
        stream = await delivers(served, notifier)
        assert [TYPES[sink]] == [type(found) for found in sinks(hub)]
        await stream.close()


@pytest.mark.parametrize("way", ["gone", "closing"])
@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "mounted"])
async def test_client_that_leaves_in_the_step_of_taking_over_gets_its_place_back(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, mounted: bool, way: str
) -> None:
    """The connection is lost in the very step in which it changes hands: the new owner hears of it, nobody else."""
    taken: list[bool] = []
    take_over = StreamProtocol.take_over

    def leaving(self: StreamProtocol, sink: DirectSink) -> bool:
        if way == "closing":
            self.transport.abort()
        taken.append(take_over(self, sink))
        if way == "gone":
            self.transport.abort()
        return taken[-1]

    monkeypatch.setattr(StreamProtocol, "take_over", leaving)
    place = hosted(valkey) if mounted else serve(make_settings(valkey.url))
    async with place as given:
        served = given if isinstance(given, Served) else given[0]
        server = served.server
        assert server is not None
        async with connected(served) as stream:
            send(stream, request(target(served)))
            assert stream._reader is not None
            async with asyncio.timeout(DEADLINE):
                with contextlib.suppress(ConnectionError):
                    await stream._reader.read()
        await until(lambda: not server.server_state.connections, what="the end of the connection")
        await until(lambda: not server.server_state.tasks, what="the end of the request")
        assert 0 == hub_of(served).open_streams
    assert [way == "gone"] == taken


async def test_shutdown_ends_streams_with_their_last_chunk(valkey: Valkey, notifier: SimpleNotifier, sink: str) -> None:
    """Whoever ends the streams, the hub or the server, each is whole: an event that was acknowledged is in it."""
    for by_server in (False, True):
        async with serve(make_settings(valkey.url, heartbeat_interval=LONG)) as served:
            streams = [Stream(served.events(S, make_token(S))) for _ in range(20)]
            for stream in streams:
                await stream.open()
                await stream.primed()
            event_id = await notifier.tool_status(S, "t", "executing")
            await until(lambda s=streams, e=event_id: all(x.last_id == e for x in s), what="delivery")  # type: ignore[misc]
            if by_server and sink == "direct":
                for protocol in protocols(served):
                    protocol.shutdown()
            else:
                hub_of(served).shutdown()
            await asyncio.gather(*(stream.end() for stream in streams))
            assert [(True, b"")] * 20 == [(stream.complete, stream.buffer) for stream in streams]
            await until(lambda s=served: hub_of(s).open_streams == 0, what="the places")  # type: ignore[misc]
            await asyncio.gather(*(stream.close() for stream in streams))


# -- many clients, one reading ----------------------------------------------------------------------------------------


class Readings:
    """Counts, and may hold up, what a hub reads of the Streams."""

    def __init__(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: list[Any] = []
        self.snapshots = 0
        self.open = asyncio.Event()
        self.open.set()
        replay, snapshot = hub.store.replay, hub.store.snapshot

        async def counted(session: str, cursor: Any, **options: Any) -> Any:
            self.pages.append(cursor)
            page = await replay(session, cursor, **options)
            await self.open.wait()
            return page

        async def counted_snapshot(session: str) -> Any:
            self.snapshots += 1
            return await snapshot(session)

        monkeypatch.setattr(hub.store, "replay", counted)
        monkeypatch.setattr(hub.store, "snapshot", counted_snapshot)


@asynccontextmanager
async def crowd(urls: list[str]) -> AsyncIterator[list[Stream]]:
    streams = [Stream(url) for url in urls]
    try:
        await asyncio.gather(*(stream.open() for stream in streams))
        yield streams
    finally:
        await asyncio.gather(*(stream.close() for stream in streams))


def got(stream: Stream) -> list[str]:
    return [event.id for event in stream.records if event.id is not None and event.data is not None]


async def test_resuming_crowd_shares_its_readings(
    valkey: Valkey, notifier: SimpleNotifier, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 clients that come back with one cursor cost Redis a few readings, not 50, and each has every event."""
    ids = [await notifier.error(S, str(n)) for n in range(450)]  # three pages
    async with serve(make_settings(valkey.url)) as served:
        readings = Readings(hub_of(served), monkeypatch)
        readings.open.clear()
        async with crowd([served.events(S, make_token(S), cursor=ids[9])] * 50) as streams:
            await until(lambda: hub_of(served).open_streams == 50, what="the crowd")
            readings.open.set()
            await asyncio.gather(*(stream.primed() for stream in streams))
            assert [ids[10:]] * 50 == [got(stream) for stream in streams]
        assert len(readings.pages) <= 15, readings.pages


async def test_crowd_without_cursors_shares_its_snapshot(
    valkey: Valkey, notifier: SimpleNotifier, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 clients without a cursor cost Redis a few snapshots, all of one state, and are live after it."""
    for n in range(5):
        await notifier.tool_status(S, "t", "executing", tool_call_id=str(n))
    async with serve(make_settings(valkey.url)) as served:
        readings = Readings(hub_of(served), monkeypatch)
        async with crowd([served.events(S, make_token(S))] * 50) as streams:
            await asyncio.gather(*(stream.primed() for stream in streams))
            live = await notifier.error(S, "live")
            await until(lambda: all(stream.last_id == live for stream in streams), what="delivery")
            for stream in streams:
                shown = [event.type for event in stream.records if event.data and event.type != "heartbeat"]
                assert ["tool_status"] * 5 + ["result_cleared", "permission_cleared", "error"] == shown
        assert readings.snapshots <= 10


async def test_snapshot_is_enough_to_be_live(
    valkey: Valkey, notifier: SimpleNotifier, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes without a cursor costs one reading: its snapshot is up to the tip, nothing is read after it."""
    await notifier.error(S, "before")
    async with serve(make_settings(valkey.url, heartbeat_interval=LONG)) as served:
        readings = Readings(hub_of(served), monkeypatch)
        async with Stream(served.events(S, make_token(S))) as stream:
            await stream.primed()
            await until(lambda: next(iter(connections(hub_of(served)))).live, what="being live")
            live = await notifier.error(S, "live")
            await until(lambda: stream.last_id == live, what="delivery")
        assert (1, []) == (readings.snapshots, readings.pages)


async def test_crowd_with_different_cursors_gets_each_its_own(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """Sharing goes by cursor: 60 clients at 60 places each get exactly what they lack, while more is published."""
    ids = [await notifier.error(S, str(n)) for n in range(300)]
    async with serve(make_settings(valkey.url)) as served:
        cursors = [n * 5 for n in range(60)]
        publishing = asyncio.create_task(_publish(notifier, 200))
        async with crowd([served.events(S, make_token(S), cursor=ids[n]) for n in cursors]) as streams:
            ids += await publishing
            await until(lambda: all(stream.last_id == ids[-1] for stream in streams), what="the crowd's catching up")
            assert [ids[n + 1 :] for n in cursors] == [got(stream) for stream in streams]


async def _publish(notifier: SimpleNotifier, count: int) -> list[str]:
    return [await notifier.error(S, str(n)) for n in range(count)]


async def test_shared_readings_are_exact_while_events_are_published(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """Clients that come and go in crowds, while several tasks publish: each has every id after its cursor, once."""
    ids = [await notifier.error(S, "first")]
    async with serve(make_settings(valkey.url, max_streams_per_session=1000)) as served:
        publishing = [asyncio.create_task(_publish(notifier, 150)) for _ in range(4)]
        seen: list[tuple[str, list[str]]] = []
        cursor = ids[0]
        while not all(task.done() for task in publishing):
            async with crowd([served.events(S, make_token(S), cursor=cursor)] * 20) as streams:
                await asyncio.gather(*(stream.primed() for stream in streams))
                seen += [(cursor, got(stream)) for stream in streams]
                cursor = str(streams[0].last_id)
        await asyncio.gather(*publishing)
        everything = [event_id for event_id, _ in await valkey.entries(S)]
        async with crowd([served.events(S, make_token(S), cursor=ids[0])] * 20) as streams:
            await until(lambda: all(stream.last_id == everything[-1] for stream in streams), what="catching up")
            seen += [(ids[0], got(stream)) for stream in streams]
    assert 601 == len(everything)
    for start, found in seen:
        at = everything.index(start) + 1
        assert everything[at : at + len(found)] == found
    assert {600} == {len(found) for _, found in seen[-20:]}


async def test_pages_read_before_a_reset_are_not_shared_after_it(
    valkey: Valkey, notifier: SimpleNotifier, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that is under way while the history is replaced serves nobody as the new history."""
    old = [await notifier.error(S, f"old {n}") for n in range(3)]
    async with serve(make_settings(valkey.url, heartbeat_interval=0.2)) as served, valkey.client() as client:
        hub = hub_of(served)
        readings = Readings(hub, monkeypatch)
        async with crowd([served.events(S, make_token(S))] * 2) as first:
            await asyncio.gather(*(stream.primed() for stream in first))
            readings.open.clear()
            async with crowd([served.events(S, make_token(S), cursor=old[0])] * 10) as streams:
                await until(lambda: parse_id(old[0].encode()) in readings.pages, what="a reading")
                await client.flushall()
                for n in range(3):
                    await notifier.error(S, f"new {n}")
                readings.open.set()
                last = await notifier.error(S, "last")
                await until(lambda: all(s.last_id == last for s in (*first, *streams)), what="the new history")
                live = await notifier.error(S, "live")
                await until(lambda: all(s.last_id == live for s in (*first, *streams)), what="being live")
                for stream in streams:
                    kinds = [event.type for event in stream.records if event.data and event.type != "heartbeat"]
                    assert 1 == kinds.count("stream_reset"), kinds
                    at = kinds.index("stream_reset")
                    events = [e for e in stream.records if e.data and e.type != "heartbeat"]
                    before = [e.json.get("message") for e in events[:at]]
                    after = [e.json.get("message", "") for e in events[at + 1 :] if e.id]
                    assert before in ([], ["old 1", "old 2"])
                    assert "live" == after[-1]
                    assert not any(message.startswith("old") for message in after)
