"""The HTTP responses: JSON with `success`, errors, and the ASGI response that is an open stream."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from agent_sse import frames
from agent_sse.auth import Principal
from agent_sse.errors import ApiError
from agent_sse.frames import EventId
from agent_sse.hub import Hub
from agent_sse.protocol import CONNECTION, StreamProtocol
from agent_sse.requests import until_left
from agent_sse.settings import Settings
from agent_sse.sinks import AsgiSink, DirectSink, Stalled
from agent_sse.stream import RETRY_MS, Connection

log = logging.getLogger("agent_sse")

STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"referrer-policy", b"no-referrer"),
)
TOKEN_EXPIRED = frames.error_frame("token_expired", "the token has expired; connect again with a new one")
JSON_HEADERS = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}


def success(data: object = None, *, message: str | None = None, status: int = 200) -> JSONResponse:
    """Return ``{"success": true, …}``."""
    body: dict[str, Any] = {"success": True}
    if message is not None:
        body["message"] = message
    if data is not None:
        body["data"] = data
    return JSONResponse(body, status, headers=JSON_HEADERS)


def failure(error: ApiError) -> JSONResponse:
    """Return ``{"success": false, "message", "error": {"code"}}``; `Retry-After` gets a jitter."""
    body: dict[str, Any] = {"success": False, "message": error.message, "error": {"code": error.code}}
    if error.data is not None:
        body["data"] = dict(error.data)
    headers: Mapping[str, str] = {**JSON_HEADERS, **error.headers}
    if error.retry_after is not None:
        headers = {**headers, "retry-after": str(error.retry_after + random.randint(0, error.retry_after))}
    return JSONResponse(body, error.status, headers=headers)


class EventStream(Response):
    """An open stream of one session; protocol.md § 4.

    ``cursor`` is None for a client without one, ``reset_reason`` says why one could not be used.
    """

    def __init__(
        self,
        hub: Hub,
        principal: Principal,
        session_id: str,
        *,
        cursor: EventId | None,
        reset_reason: str | None,
    ) -> None:
        # Starlette's Response.__init__ would render a body and compute its length.
        self.status_code = 200
        self.background = None
        self.raw_headers = [*STREAM_HEADERS, (b"heartbeat-interval", _number(hub.settings.heartbeat_interval))]
        self._hub = hub
        ends_at, last = _end(hub.settings, principal)
        self._connection = Connection(
            session_id, cursor=cursor, reset_reason=reset_reason, ends_at=ends_at, last=last
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream until the client leaves, the token expires, or the service ends it."""
        server = scope.get("extensions", {}).get(CONNECTION)
        sink = await self.open(scope, receive, send)
        if sink is not None:
            try:
                with server.going_on():
                    await sink.closed()
            except BaseException:
                sink.abort()  # the server gives up waiting
                raise

    async def open(self, scope: Scope, receive: Receive, send: Send) -> DirectSink | None:
        """Begin the stream; the sink that it has, when its connection was taken over: then the request is over.

        None when the response is complete: the stream went through ``send``, or was refused.
        """
        hub, connection = self._hub, self._connection
        if hub.closing:
            await self._come_back(send)
            return None
        try:
            # Here and not in the route: between the two a client may leave, and the place would never be given back.
            hub.join(connection)
        except ApiError as error:
            await failure(error)(scope, receive, send)
            return None
        server = scope.get("extensions", {}).get(CONNECTION)
        direct = None
        try:
            if server is not None:
                server.hold_head()
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                direct = self._take_over(server)
            finally:
                if server is not None and direct is None:
                    server.release_head()
            if direct is None:
                await self._serve(receive, send, server)
        finally:
            if direct is None:
                hub.leave(connection)
        return direct

    def _take_over(self, server: StreamProtocol | None) -> DirectSink | None:
        if server is None:
            return None
        settings = self._hub.settings
        sink = DirectSink(
            bound=settings.stream_buffer_bytes, timeout=settings.send_timeout,
            on_lost=partial(self._hub.leave, self._connection),
        )  # fmt: skip
        if not server.take_over(sink):
            return None
        self._hub.start(self._connection, sink)
        return sink

    async def _serve(self, receive: Receive, send: Send, server: StreamProtocol | None) -> None:
        settings = self._hub.settings
        sink = AsgiSink(send, bound=settings.stream_buffer_bytes, timeout=settings.send_timeout)
        self._hub.start(self._connection, sink)
        watcher = asyncio.create_task(_end_on_disconnect(receive, self._connection), name="agent-sse disconnect")
        try:
            await sink.run()
        except Stalled:
            self._hub.stalled(self._connection.session_id)
            if server is not None:
                server.abort()  # close() would wait for the flush for ever
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _come_back(self, send: Send) -> None:
        # A browser's EventSource gives up for good on any status but 200; an ended stream it opens again, elsewhere.
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = frames.retry_frame(random.randint(*RETRY_MS))
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _number(seconds: float) -> bytes:
    """Return a number as in the settings: no exponent, and no fraction when there is none."""
    text = format(Decimal(repr(seconds)), "f")
    return text.removesuffix(".0").encode()


def _end(settings: Settings, principal: Principal) -> tuple[float, bytes]:
    """Return when the stream ends, in the loop's time, and its last frame.

    With its token, or when it has been open for long (so that load can move).
    """
    now, left = asyncio.get_running_loop().time(), principal.expires_at - time.time()
    if left <= 0:  # let in by the leeway: it ends with that
        left += settings.jwt_leeway
    longest = settings.max_stream_seconds * random.uniform(0.8, 1.2)
    if longest < left:
        return now + longest, b""
    return now + max(0.0, left), TOKEN_EXPIRED


async def _end_on_disconnect(receive: Receive, connection: Connection) -> None:
    await until_left(receive)
    connection.end()
