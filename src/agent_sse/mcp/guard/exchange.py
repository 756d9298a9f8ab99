"""What goes back to a host over HTTP: the answer to one request, or a stream of what belongs to none."""

from __future__ import annotations

import asyncio
import logging

from agent_sse.mcp.guard import asgi, events
from agent_sse.mcp.guard.asgi import Send
from agent_sse.mcp.guard.messages import Message, as_object

COMMIT_AFTER = 10.0  # s; then an answer that is not there yet becomes a stream, which can be kept alive
PING_EVERY = 15.0  # s
QUEUE = 64  # messages
SLOW_HOST = 30.0  # s, for a host that does not read

log = logging.getLogger("agent_sse.guard")


class Outlet:
    """Messages on their way to a host that reads at its own pace."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue(QUEUE)
        self.closed = False

    async def put(self, message: Message) -> bool:
        """Queue a message. Return whether the host may still get it."""
        if self.closed:
            return False
        try:
            async with asyncio.timeout(SLOW_HOST):
                await self._queue.put(message)
        except TimeoutError:
            log.warning("closed a stream whose host does not read")
            self.closed = True
        return not self.closed

    def close(self) -> None:
        """Take no more messages; what is queued may still be sent."""
        if not self.closed:
            self.closed = True
            if self._queue.empty():
                self._queue.put_nowait(None)

    async def _next(self, timeout: float) -> Message | None:
        """Return the next message; None when none came in time, or none comes any more."""
        if self.closed and self._queue.empty():
            return None
        try:
            async with asyncio.timeout(timeout):
                return await self._queue.get()
        except TimeoutError:
            return None


class Exchange(Outlet):
    """The answer to a request that came by POST: one JSON body, or a stream when something comes before it."""

    def __init__(self, request: Message) -> None:
        super().__init__()
        self.request = request
        self.failed = False  # whether the answer is an error

    async def respond(self, send: Send, *, modern: bool, **headers: str) -> None:
        """Send the response, up to the answer."""
        first = await self._next(COMMIT_AFTER)
        if first is not None and first.is_response:
            error = as_object(first.body.get("error"))
            self.failed = "error" in first.body
            status = asgi.STATUS.get(error.get("code", 0), 200) if modern else 200
            await asgi.answer(send, status, first.raw, **headers)
            return
        await asgi.start_stream(send, **headers)
        message = first
        while not self.closed or message is not None:
            body = events.PING if message is None else events.write(message.raw)
            last = message is not None and message.is_response
            await send({"type": "http.response.body", "body": body, "more_body": not last})
            if last:
                return
            message = await self._next(PING_EVERY)
        await send({"type": "http.response.body", "body": b""})


class Listening(Outlet):
    """The stream that a host opens by GET, for what belongs to no request of its own."""

    async def respond(self, send: Send, **headers: str) -> None:
        """Send messages until it is closed."""
        await asgi.start_stream(send, **headers)
        message = None
        while not self.closed or message is not None:
            body = events.PING if message is None else events.write(message.raw)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            message = await self._next(PING_EVERY)
        await send({"type": "http.response.body", "body": b""})
