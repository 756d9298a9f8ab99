"""The HTTP responses: JSON with `success`, errors, and the ASGI response that is an open stream."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from agent_sse import frames
from agent_sse.auth import Principal
from agent_sse.errors import ApiError
from agent_sse.frames import EventId
from agent_sse.hub import Hub
from agent_sse.protocol import TRANSPORT
from agent_sse.sinks import AsgiSink, Stalled
from agent_sse.stream import RETRY_MS, Connection

log = logging.getLogger("agent_sse")

STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"referrer-policy", b"no-referrer"),
)
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
        self.raw_headers = list(STREAM_HEADERS)
        self._hub = hub
        self._principal = principal
        self._session_id = session_id
        self._cursor = cursor
        self._reset_reason = reset_reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream until the client leaves, the token expires, or the service ends it."""
        if self._hub.closing:
            await self._come_back(send)
            return
        settings = self._hub.settings
        sink = AsgiSink(send, bound=settings.stream_buffer_bytes, timeout=settings.send_timeout)
        connection = Connection(
            self._session_id, sink, self._hub.store, cursor=self._cursor, reset_reason=self._reset_reason,
            page_bytes=settings.stream_buffer_bytes,
        )  # fmt: skip
        try:
            # Here and not in the route: between the two a client may leave, and the place would never be given back.
            self._hub.join(connection)
        except ApiError as error:
            await failure(error)(scope, receive, send)
            return
        watcher: asyncio.Task[None] | None = None
        timer = self._end_in_time(connection)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            watcher = asyncio.create_task(_end_on_disconnect(receive, connection), name="agent-sse disconnect")
            await sink.run()
        except Stalled:
            self._hub.counters.stalls += 1
            log.info("session %s: a client took no bytes for too long and is disconnected", self._session_id)
            transport = scope.get("extensions", {}).get(TRANSPORT)
            if transport is not None:
                transport.abort()  # close() would wait for the flush for ever
        finally:
            timer.cancel()
            self._hub.leave(connection)
            await connection.aclose()
            if watcher is not None:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)

    async def _come_back(self, send: Send) -> None:
        # A browser's EventSource gives up for good on any status but 200; an ended stream it opens again, elsewhere.
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = frames.retry_frame(random.randint(*RETRY_MS))
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _end_in_time(self, connection: Connection) -> asyncio.TimerHandle:
        """End the stream when its token expires, or when it has been open for long (so that load can move)."""
        settings, now = self._hub.settings, time.time()
        left = self._principal.expires_at - now
        if left <= 0:  # let in by the leeway: it ends with that
            left += settings.jwt_leeway
        longest = settings.max_stream_seconds * random.uniform(0.8, 1.2)
        loop = asyncio.get_running_loop()
        if longest < left:
            return loop.call_later(longest, connection.end)
        last = frames.error_frame("token_expired", "the token has expired; connect again with a new one")
        return loop.call_later(max(0.0, left), connection.end, last)


async def _end_on_disconnect(receive: Receive, connection: Connection) -> None:
    # uvicorn's send() returns silently after a disconnect: only receive() tells.
    while (await receive())["type"] != "http.disconnect":
        pass
    connection.end()
