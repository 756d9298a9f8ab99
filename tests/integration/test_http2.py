"""Streams under HTTP/2, which uvicorn does not speak: a real hypercorn with TLS, and a client that agrees on it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import hypercorn
import hypercorn.asyncio
import pytest

from agent_sse import SimpleNotifier
from agent_sse.app import create_app
from agent_sse.hub import Hub
from agent_sse.sinks import AsgiSink
from certificate import self_signed
from harness import DEADLINE, PREFIX, Event, Valkey, bearer, make_settings, make_token, until

RST_STREAM = b"\x00\x00\x04\x03\x00"  # RFC 9113 § 6.4: before the stream's number and a code
CANCEL = 8  # § 7: what a browser says of a stream whose tab was closed


class Place(NamedTuple):
    """The hub of a service behind hypercorn, and a client with one connection for all of its requests."""

    http: httpx.AsyncClient
    hub: Hub


@pytest.fixture
async def place(valkey: Valkey, folder: Path) -> AsyncIterator[Place]:
    app = create_app(make_settings(valkey.url, heartbeat_interval=0.2))
    public, private = self_signed(folder)
    config, stop = hypercorn.Config(), asyncio.Event()
    config.errorlog = None  # it would say on the terminal where it runs
    config.certfile, config.keyfile = str(public), str(private)
    sock = socket.create_server(("127.0.0.1", 0))  # listens from here on: who connects too early waits
    port = sock.getsockname()[1]
    config.bind = [f"fd://{sock.detach()}"]
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    try:
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{port}{PREFIX}", http1=False, http2=True, timeout=DEADLINE,
            verify=ssl.create_default_context(cafile=public), limits=httpx.Limits(max_connections=1),
        ) as http:  # fmt: skip
            assert 401 == (await http.get("/sessions")).status_code  # the lifespan has begun
            yield Place(http, app.state.agent_sse.hub)
            app.state.agent_sse.hub.shutdown()
    finally:
        stop.set()
        await serving


class Http2Stream:
    """An event stream: the head of its response, and the events in it."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events = self._read(response.aiter_lines())

    async def _read(self, lines: AsyncIterator[str]) -> AsyncIterator[Event]:
        fields: dict[str, str] = {}
        async for line in lines:
            if line:
                name, _, fields[name] = line.partition(": ")
            else:
                if fields.keys() & {"id", "data"}:
                    yield Event(fields.get("id"), fields.get("data"))
                fields = {}

    async def next(self, kind: str | None) -> Event:
        """Return the next event of a type; None: the next id without data, which ends replay or snapshot."""
        async with asyncio.timeout(DEADLINE):
            async for event in self._events:
                if event.type == kind:
                    return event
        raise AssertionError(f"the stream ended before {kind} came")

    async def rest(self) -> list[Event]:
        """Return what comes until the response's end; raises what httpx does when it has none."""
        async with asyncio.timeout(DEADLINE):
            return [event async for event in self._events]

    async def cancel(self) -> None:
        """Tell the server that nobody reads any more; httpx would only stop reading."""
        frame = RST_STREAM + self.response.extensions["stream_id"].to_bytes(4) + CANCEL.to_bytes(4)
        await self.response.extensions["network_stream"].write(frame)


@asynccontextmanager
async def opened(place: Place, session: str, **headers: str) -> AsyncIterator[Http2Stream]:
    headers |= bearer(make_token(session))
    async with place.http.stream("GET", f"/events/{session}", headers=headers) as response:
        assert (200, "HTTP/2") == (response.status_code, response.http_version)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "connection" not in response.headers  # RFC 9113 § 8.2.2
        yield Http2Stream(response)


async def test_stream_under_http2_goes_through_asgi(place: Place, notifier: SimpleNotifier) -> None:
    """Events with their ids, and heartbeats; who comes back with an id gets what came after it."""
    async with opened(place, "s1") as stream:
        await stream.next(None)
        (channel,) = place.hub._channels.values()
        assert [AsgiSink] == [type(connection._sink) for connection in channel.connections]
        ids = [await notifier.error("s1", str(number)) for number in range(3)]
        assert ids == [(await stream.next("error")).id for _ in ids]
        await stream.next("heartbeat")
        ids += [await notifier.error("s1", str(number)) for number in range(3, 5)]
        async with opened(place, "s1", **{"Last-Event-ID": ids[0]}) as resumed:
            assert ids[1:] == [(await resumed.next("error")).id for _ in ids[1:]]


async def test_one_http2_connection_carries_many_tabs(place: Place, notifier: SimpleNotifier) -> None:
    """More streams than HTTP/1.1 leaves a browser, with the answers to their requests; one that is closed is gone."""
    sessions = [f"s{number}" for number in range(12)]
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(opened(place, session)) for session in sessions]
        for stream in streams:
            await stream.next(None)
        asking = [asyncio.create_task(notifier.request_permission(session, "t")) for session in sessions]
        for session, stream in zip(sessions, streams, strict=True):
            await stream.next("permission_request")
            reply = await place.http.post(
                f"/permission-response/{session}", json={"approved": True}, headers=bearer(make_token(session))
            )
            assert (200, "HTTP/2") == (reply.status_code, reply.http_version)
        assert all(await asyncio.gather(*asking))
        for left, stream in enumerate(reversed(streams)):
            assert "approved" == (await stream.next("permission_cleared")).json["data"]["outcome"]
            assert len(sessions) - left == place.hub.open_streams
            await stream.cancel()
            await until(lambda left=left: place.hub.open_streams < len(sessions) - left, what="the stream's end")
        assert 0 == place.hub.open_streams


async def test_stream_under_http2_ends_whole_with_the_service(place: Place) -> None:
    """The response of a service that shuts down has an end: the client can tell it from a connection that broke."""
    async with opened(place, "s1") as stream:
        await stream.next(None)
        place.hub.shutdown()
        assert [] == [event for event in await stream.rest() if event.type != "heartbeat"]
