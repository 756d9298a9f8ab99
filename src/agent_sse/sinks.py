"""Where a stream's bytes go. A sink never blocks who writes and never drops; it says when it has taken enough.

The bound is the sink's whole promise: a writer that heeds `write`'s answer holds at most that much, plus one frame, per
client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

# ASGI's `send`; spelt out here, so that this module needs no web framework.
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SEND_BYTES = 64 * 1024  # in one send, so that its time-out means a rate: 2 KiB/s with the default
FINISH_GRACE = 0.5  # s; how long a client may take for its last bytes when the stream ends


class Sink(Protocol):
    """What a connection writes to."""

    @property
    def idle(self) -> bool:
        """Whether everything that was written has left this process."""

    def write(self, data: bytes) -> bool:
        """Take ``data``. False: over the bound, write no more until :meth:`drained`."""

    async def drained(self) -> None:
        """Wait until the sink is under half its bound again."""

    def finish(self) -> None:
        """End the stream after what was written."""


class Stalled(Exception):
    """The client took no byte for the whole time-out."""


class AsgiSink:
    """A sink for any ASGI server: a bounded queue before ``await send(...)``.

    ``bound`` in bytes; ``timeout`` in seconds is how long one ``send`` may take. :meth:`run` does the sending.
    """

    def __init__(self, send: Send, *, bound: int, timeout: float) -> None:
        self._send = send
        self._bound = bound
        self._limit = timeout
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._finish_by: float | None = None
        self._timeout: asyncio.Timeout | None = None

    @property
    def idle(self) -> bool:
        """Whether everything that was written has been handed to the server."""
        return self._size == 0

    def write(self, data: bytes) -> bool:
        """Queue ``data``; False when more than the bound is queued."""
        if self._finish_by is not None:
            return True
        self._chunks.append(data)
        self._size += len(data)
        self._wake.set()
        if self._size > self._bound:
            self._drained.clear()
            return False
        return True

    async def drained(self) -> None:
        """Wait until at most half the bound is queued."""
        await self._drained.wait()

    def finish(self) -> None:
        """Send what is queued, then end the response; a client that does not take it in time is given up."""
        if self._finish_by is None:
            self._finish_by = asyncio.get_running_loop().time() + FINISH_GRACE
            self._wake.set()
            if self._timeout is not None:
                self._timeout.reschedule(min(self._finish_by, self._timeout.when() or self._finish_by))

    async def run(self) -> None:
        """Send until :meth:`finish`. Raises :class:`Stalled`."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._chunks:
                body = b"".join(self._chunks)
                self._chunks.clear()
                for start in range(0, len(body), SEND_BYTES):
                    part = body[start : start + SEND_BYTES]
                    await self._put({"type": "http.response.body", "body": part, "more_body": True})
                    self._size -= len(part)
                if self._size <= self._bound // 2:
                    self._drained.set()
            if self._finish_by is not None:
                await self._put({"type": "http.response.body", "body": b"", "more_body": False})
                return

    async def _put(self, message: dict[str, Any]) -> None:
        until = asyncio.get_running_loop().time() + self._limit
        try:
            async with asyncio.timeout_at(min(until, self._finish_by or until)) as self._timeout:
                await self._send(message)
        except TimeoutError:
            raise Stalled from None
        finally:
            self._timeout = None
