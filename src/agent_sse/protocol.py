"""uvicorn's HTTP protocol; here a stream can take its connection over, and every error is JSON.

It also bounds what uvicorn does not: how large a request's head is, how long its head and its body may take to come,
and how many connections there are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from agent_sse import nofile
from agent_sse.deadlines import Deadlines
from agent_sse.sinks import DirectSink

log = logging.getLogger("agent_sse")

CONNECTION = "agent_sse.connection"  # key in the ASGI scope's extensions: the request's StreamProtocol

MAX_HEAD_BYTES = 32 * 1024  # request line and headers; also the trailers of a chunked body
HEAD_TIMEOUT = 10.0  # s for a head to come whole: from connecting, or from its first byte on a connection kept alive
# s from the head for the body, also one that nobody reads. The largest that is taken by default, 1 MiB, comes in that
# time at 280 kbit/s, which a phone on a slow network still has; an answer to a permission request at 1 kbit/s. Whoever
# reads a body bounds that first (requests.BODY_TIMEOUT); this is for the others, and for what comes after an answer.
BODY_TIMEOUT = 30.0
RETRY_AFTER = 5  # s, up to twice as much: when there are too many connections
SAY_FULL = 10.0  # s at least between two log lines that say so


def _refusal(status: str, code: str, message: str, *headers: str) -> bytes:
    body = json.dumps({"success": False, "message": message, "error": {"code": code}}).encode()
    lines = ["content-type: application/json", "connection: close", f"content-length: {len(body)}", *headers]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode() + body


_MALFORMED = _refusal(
    "400 Bad Request", "malformed_request",
    "this is not an HTTP/1.1 request: check its request line, its headers and its body's framing",
)  # fmt: skip
_HEAD_TOO_LARGE = _refusal(
    "431 Request Header Fields Too Large", "headers_too_large",
    f"request line and headers are larger than {MAX_HEAD_BYTES} bytes; send fewer or shorter ones",
)  # fmt: skip
_UPGRADE = _refusal(
    "400 Bad Request", "upgrade_refused",
    "a request with a body cannot ask for an upgrade here: send it as HTTP/1.1, without an Upgrade header",
)  # fmt: skip


_LATE = _refusal(
    "408 Request Timeout", "request_timeout",
    f"the request did not come whole in time: {HEAD_TIMEOUT:g} s for its headers, {BODY_TIMEOUT:g} s for its body; "
    "send it again",
)  # fmt: skip


def _full() -> bytes:
    return _refusal(
        "503 Service Unavailable", "too_many_connections", "this process has no room for more connections; try again",
        f"retry-after: {RETRY_AFTER + random.randint(0, RETRY_AFTER)}",
    )  # fmt: skip


class HeldHead(asyncio.Transport):
    """Stands in for the transport of ``cycle``, a request, while uvicorn writes the head of its response."""

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self.data = b""
        self.cycle = cycle
        self._transport = transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep ``data``."""
        self.data += data

    def is_closing(self) -> bool:
        """Whether the connection is."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection after what was kept."""
        self._transport.write(self.data)
        self._transport.close()


class _Limits:
    """What the connections of one server share."""

    def __init__(self) -> None:
        self.heads: Deadlines[StreamProtocol] = Deadlines(HEAD_TIMEOUT, StreamProtocol.head_expired)
        self.bodies: Deadlines[StreamProtocol] = Deadlines(BODY_TIMEOUT, StreamProtocol.body_expired)
        # The operating system's bound is the setting: there is no use for a lower one besides AGENT_SSE_MAX_STREAMS.
        room = nofile.room()
        self.room = sys.maxsize if room is None else room
        self.waiting_room = nofile.OWN // 2 if room is None else min(nofile.OWN // 2, room // 16)
        self._refused = 0
        self._say_at = 0.0

    def count_refused(self, now: float) -> None:
        """Count a connection for which there is no room, and say so now and then."""
        self._refused += 1
        if now >= self._say_at:
            log.warning(
                "refused %d connections: the limit of open files leaves room for %d (ulimit -n)",
                self._refused, self.room,
            )  # fmt: skip
            self._refused, self._say_at = 0, now + SAY_FULL


_limits: WeakKeyDictionary[ServerState, _Limits] = WeakKeyDictionary()


class StreamProtocol(HttpToolsProtocol):
    """Puts itself into ``scope["extensions"]`` (https://asgi.readthedocs.io/en/latest/extensions.html)."""

    _in_head = True
    _begun = False  # something of the head has come
    _head_bytes = 0
    _full = False  # there is no room for this connection
    _refused = False  # what comes now is not looked at any more
    _held: HeldHead | None = None
    _limits: _Limits
    _running: RequestResponseCycle | None = None  # the request that is being answered; uvicorn's `cycle` is the last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Turn Nagle's algorithm off: it would hold an event back until the client has acknowledged the one before.

        asyncio does so itself, but not for connections of a listening socket that was handed to it (workers, ``--fd``).
        """
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limits = _limits.get(self.server_state)
        if limits is None:
            limits = _limits[self.server_state] = _Limits()
        self._limits = limits
        limits.heads.add(self)
        if len(self.connections) > limits.room:
            self._turn_away()

    def _turn_away(self) -> None:
        """Refuse the connection.

        Its refusal waits for the first bytes of its request: with those unread the kernel would answer a close with a
        reset, and the client might never see it. So only some may wait.
        """
        limits = self._limits
        limits.count_refused(self.loop.time())
        self._full = True
        if len(self.connections) > limits.room + limits.waiting_room:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._limits.heads.discard(self)
        self._limits.bodies.discard(self)
        running = self._running
        if running is not None and not running.response_complete:  # uvicorn tells the last request only
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        self._let_go()

    def data_received(self, data: bytes) -> None:
        """Parse, with a bound on what is no body: uvicorn collects headers and trailers without one."""
        if self._full:
            self._refuse(_full())
        if self._refused:
            return
        if self._in_head:
            self._begun = True
            self._head_bytes += len(data)
        super().data_received(data)
        # uvicorn's keep-alive timer ends with the first byte that comes, be it a line break before a request or the
        # body of one that was answered already.
        waiting = self._in_head and (self._begun or not self._answering())
        if waiting and not self.transport.is_closing() and self in self.connections:  # and not a WebSocket's now
            self._limits.heads.add(self)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_HEAD_TOO_LARGE)

    def head_expired(self) -> None:
        """Give up a head that did not come whole in time."""
        if self.transport.is_closing():
            self.transport.abort()  # what waits to be sent is not being read
        elif self._answering():
            self.cycle.keep_alive = False
        elif self._begun:
            self._refuse(_LATE)
        else:
            self.transport.close()

    def body_expired(self) -> None:
        """Give up a body that did not come whole in time."""
        if self.transport.is_closing():
            self.transport.abort()
        elif self.pipeline or self.flow.read_paused:
            self._limits.bodies.add(self)  # it is this side that does not read
        elif not self._answering():
            self.transport.close()
        elif self.cycle.response_started:
            self.cycle.keep_alive = False
        else:
            self._refuse(_LATE)

    def _answering(self) -> bool:
        # uvicorn declares the cycle as always there; before the first request it is None.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def on_message_begin(self) -> None:
        """Add the extension to the scope of each request."""
        super().on_message_begin()
        self._begun = True
        extension: Any = self  # the specification has dictionaries here; ours is read by ourselves only
        self.scope["extensions"] = {CONNECTION: extension}

    def abort(self) -> None:
        """Close the connection at once, whatever waits to be sent."""
        self.transport.abort()

    def hold_head(self) -> None:
        """Keep the head of the response that comes next: with :meth:`take_over` it goes out with the first bytes."""
        if not self.pipeline and self.cycle.transport is self.transport:
            self.cycle.transport = self._held = HeldHead(self.transport, self.cycle)
            if self.scope["http_version"] == "1.0" and self._way_is_free(self.cycle):
                self.cycle.chunked_encoding = False  # that version has no chunks; the response ends with the connection

    def release_head(self) -> None:
        """Send what was kept, if it has not gone out."""
        held, self._held = self._held, None
        if held is not None:
            held.cycle.transport = self.transport  # not `self.cycle`: a later request may have come
            if held.data:
                self.transport.write(held.data)
            if held.cycle.chunked_encoding is False:  # uvicorn would want to know the response's length
                held.cycle.disconnected = True
                self.transport.close()

    def take_over(self, sink: DirectSink) -> bool:
        """Let ``sink`` have the connection for good, after the head of a response without a length was sent.

        HTTP is over here then, as after an upgrade to WebSocket: uvicorn forgets the request, which may return. False
        when the way is not free: under TLS, when a middleware has held the head back, when a request is queued behind
        this one, when a middleware encodes the body, or when the client has left.
        """
        held = self._held
        if held is None or b"\r\ncontent-encoding: " in held.data:
            return False
        cycle = held.cycle
        if not cycle.response_started or not self._way_is_free(cycle):
            return False
        cycle.response_complete = True  # the request may return now; see `going_on` for one that does not
        sink.chunked = cycle.chunked_encoding is True
        self.server_state.total_requests += 1
        self._limits.heads.discard(self)
        self._limits.bodies.discard(self)
        siblings: set[Any] = self.connections
        siblings.discard(self)
        siblings.add(sink)  # uvicorn waits for it, and asks it for no more than `shutdown`
        sink.siblings = siblings
        sink.held = [held.data]
        cycle.transport = self.transport
        self.flow.resume_reading()  # paused when the request has a large body: then nobody would see the client leave
        self.transport.set_protocol(sink)  # first: setting the bound may pause whoever has the connection
        sink.connection_made(self.transport)
        self._let_go()
        return True

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Let the request of a connection that was taken over last as long: `receive` tells of its end, not before."""
        cycle = self.cycle
        cycle.response_complete = False
        try:
            yield
        finally:
            cycle.disconnected = True
            cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _let_go(self) -> None:
        # Without its cycles it is freed at once, and the garbage collector, which looks seldom, has nothing to find.
        self.parser = None  # type: ignore[assignment]  # as uvicorn does when a connection is lost
        self._held = None
        holders: tuple[Any, ...] = (self, self.cycle, self._running)  # any of them and its scope may be None
        for holder in holders:
            if holder is not None and holder.scope is not None:
                holder.scope.pop("extensions", None)

    def _way_is_free(self, cycle: RequestResponseCycle) -> bool:
        return not (
            self.scheme == "https"
            or self.pipeline
            or cycle.response_complete
            or cycle.disconnected
            or self.transport.is_closing()
        )

    def on_headers_complete(self) -> None:
        """Refuse an upgrade of a request with a body: the parser takes that body for the other protocol's bytes."""
        if self._refused:
            return
        self._limits.heads.discard(self)
        size, bodied = len(self.url), False
        for name, value in self.headers:
            size += len(name) + len(value) + 4  # ": " and the line's end
            if name in (b"transfer-encoding", b"content-length") and value != b"0":
                bodied = True
        if size > MAX_HEAD_BYTES:  # it came in one piece
            self._refuse(_HEAD_TOO_LARGE)
        elif bodied and self.parser.should_upgrade():
            self._refuse(_UPGRADE)
        else:
            self._in_head, self._head_bytes = False, 0
            if bodied:
                self._limits.bodies.add(self)
            super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes behind the body is a trailer, which nobody reads."""
        if self._in_head:
            super().on_header(name, value)
        else:
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless the head was refused."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Await the next request's head."""
        if not self._refused:
            self._in_head, self._begun, self._head_bytes = True, False, 0
            self._limits.bodies.discard(self)
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read."""
        self._refuse(_MALFORMED)

    def _refuse(self, response: bytes) -> None:
        """Send a refusal and close; never as the answer to a request before it, nor into one that has begun."""
        self._refused = True
        handled = self._answering()
        if handled and self._in_head and not self.cycle.response_started:
            self.cycle.keep_alive = False  # closes when that one, which came whole, is answered
            self.flow.pause_reading()
            return
        if not (handled and (self.cycle.response_started or self.pipeline)):
            self.transport.write(response)
        if handled:  # and nobody writes another response behind it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._limits.heads.discard(self)
        self._limits.heads.add(self)  # until it has taken that
