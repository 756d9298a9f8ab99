"""Where a stream's bytes go. A sink never blocks who writes and never drops; it says when it has taken enough.

The bound is the sink's whole promise: a writer that heeds `write`'s answer holds at most that much, plus one frame, per
client. `DirectSink` writes to the connection itself, `AsgiSink` through any ASGI server's `send`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from os import write
from typing import Any, Protocol, cast

from agent_sse.frames import chunk, unchunked

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
        """Take ``data``, not empty. False: over the bound, write no more until :meth:`drained`."""

    def send(self, chunked: bytes) -> bool:
        """Take a chunk of the chunked coding, made once for many streams; otherwise as :meth:`write`."""

    async def drained(self) -> None:
        """Wait until the sink is under half its bound again."""

    def gather(self) -> None:
        """Let what is written in this step of the loop leave in one piece, where each write would be a system call."""

    def finish(self) -> None:
        """End the stream after what was written."""

    def end_if_stalled(self, now: float) -> bool:
        """Give up a client that takes no byte for the time-out; asked now and then, with the loop's time."""


class Stalled(Exception):
    """The client took no byte for the whole time-out."""


class DirectSink(asyncio.Protocol):
    """A sink that is the connection's protocol: it was taken over from the HTTP server after the response's head.

    ``bound`` in bytes; ``timeout`` in seconds: a client that takes nothing of what waits for it for that long is
    aborted. ``on_lost`` is called once, when the connection is gone, whoever ended it. The server that gives the
    connection away sets ``chunked``, whether the head announced the chunked transfer coding, ``siblings``, its set of
    open connections, and ``held``, what has to go out before everything else.
    """

    __slots__ = (
        "_bound", "_clear", "_closed", "_fd", "_finished", "_gathered", "_limit", "_on_lost", "_over", "_stuck_at",
        "_stuck_since", "_taken", "_waiter", "chunked", "held", "siblings", "transport",
    )  # fmt: skip

    transport: asyncio.Transport  # set by connection_made; the HTTP server looks at it while it shuts down

    def __init__(self, *, bound: int, timeout: float, on_lost: Callable[[], None]) -> None:
        self.chunked = True
        self.siblings: set[Any] = set()
        self.held: list[bytes] | None = None  # what is gathered
        self._bound = bound
        self._limit = timeout
        self._on_lost = on_lost
        self._over = False
        self._finished = False
        self._fd = -1
        self._clear = False  # nothing waits here or in the transport: the next bytes may go to the socket itself
        self._taken = 0  # bytes that the transport was given
        self._gathered = 0  # of them in `held`
        self._stuck_at = -1  # how many of them had left when the client was last seen not to take any
        self._stuck_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether everything that was written is in the kernel."""
        return not self.held and self.transport.get_write_buffer_size() == 0

    def write(self, data: bytes) -> bool:
        """Write ``data`` as a chunk of its own; False when more than the bound waits."""
        return self._put(chunk(data) if self.chunked else data)

    def send(self, chunked: bytes) -> bool:
        """Write a chunk; False when more than the bound waits."""
        data = chunked if self.chunked else unchunked(chunked)
        # The whole service spends most of its time here: as few steps as can be. A transport that closes gives its
        # descriptor back some time, and then the number may be another connection's.
        if self._clear and not self.transport.is_closing():
            try:
                sent = write(self._fd, data)
            except OSError:  # full, or broken: the transport waits, or finds out
                sent = 0
            if sent == len(data):
                return True
            data = data[sent:]
        return self._put(data)

    def _put(self, data: bytes) -> bool:
        if self._finished:
            return True
        self._taken += len(data)
        if self.held is None:
            self._give(data)
            return not self._over
        self.held.append(data)
        self._gathered += len(data)
        if self._gathered + self.transport.get_write_buffer_size() > self._bound:
            self._release()  # a step of the loop has no bound of its own
        return not self._over

    def gather(self) -> None:
        """Write what comes in this step of the loop with one system call: that costs more than all of Python's work."""
        if self.held is None:
            self.held = []
            self._clear = False
        asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        held, self.held = self.held, None
        self._gathered = 0
        if held and not self.transport.is_closing():
            self._give(b"".join(held))

    def _give(self, data: bytes) -> None:
        self.transport.write(data)  # may call pause_writing
        self._clear = self._fd >= 0 and self.transport.get_write_buffer_size() == 0

    async def drained(self) -> None:
        """Wait until at most half the bound waits in this process."""
        while self._over:
            if self._waiter is None or self._waiter.done():
                self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def finish(self) -> None:
        """End the response and close; a client that does not take what waits for it in time is given up."""
        if self._finished:
            return
        if self.chunked:
            self._put(b"0\r\n\r\n")
        self._finished = True
        self._release()
        self._clear = False
        self.transport.close()
        if not self.idle:
            asyncio.get_running_loop().call_later(FINISH_GRACE, self.transport.abort)

    def end_if_stalled(self, now: float) -> bool:
        """Abort when nothing has left this process for the time-out although something waits."""
        waiting = self.transport.get_write_buffer_size()
        left = self._taken - waiting
        if waiting == 0 or left != self._stuck_at:
            self._stuck_at, self._stuck_since = (left if waiting else -1), now
        elif now - self._stuck_since >= self._limit:
            self.transport.abort()  # close() would wait for the flush for ever
            return True
        return False

    async def closed(self) -> None:
        """Wait until the connection is gone."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
        await self._closed

    def abort(self) -> None:
        """Close at once, whatever waits."""
        self.transport.abort()

    # -- asyncio.Protocol, and what uvicorn calls on the connections that it closes -----------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        sock = self.transport.get_extra_info("socket")
        self._fd = sock.fileno() if sock is not None else -1
        self.transport.set_write_buffer_limits(high=self._bound, low=self._bound // 2)

    def pause_writing(self) -> None:
        """More than the bound waits."""
        self._over = True

    def resume_writing(self) -> None:
        """At most half the bound waits."""
        self._over = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Drop what a client sends: it has nothing to say on a stream. Reading goes on, since it shows the end."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self._finished = True
        self._clear = False
        self.siblings.discard(self)
        self.resume_writing()
        self._on_lost()
        del self._on_lost  # who writes here knows this sink: a cycle that only the garbage collector would part
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def shutdown(self) -> None:
        """End the stream, because the server shuts down."""
        self.finish()


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

    def send(self, chunked: bytes) -> bool:
        """Queue what is in a chunk; the server does the transfer coding itself."""
        return self.write(unchunked(chunked))

    def gather(self) -> None:
        """Do nothing: :meth:`run` sends all that is queued at a time."""

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

    def end_if_stalled(self, now: float) -> bool:
        """Return False: :meth:`run` times each ``send`` itself."""
        return False

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
