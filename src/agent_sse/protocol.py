"""uvicorn's HTTP protocol; here a stream can take its connection over, and every error is JSON.

It also bounds what uvicorn does not: how large a request's head is, how long its head and its body may take to come,
and how many connections there are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from agent_sse import limits
from agent_sse.held_head import HeldHead
from agent_sse.sinks import DirectSink

CHUNKED = b"transfer-encoding: chunked\r\n"  # as uvicorn writes it
CONNECTION = "agent_sse.connection"  # key in the ASGI scope's extensions: the request's StreamProtocol

_shared: WeakKeyDictionary[ServerState, limits.Limits[StreamProtocol]] = WeakKeyDictionary()


class StreamProtocol(HttpToolsProtocol):
    """Puts itself into ``scope["extensions"]`` (https://asgi.readthedocs.io/en/latest/extensions.html)."""

    _in_head = True
    _begun = False  # something of the head has come
    _head_bytes = 0
    _full = False  # there is no room for this connection
    _refused = False  # what comes now is not looked at any more
    _held: HeldHead | None = None
    _limits: limits.Limits[StreamProtocol]
    _running: RequestResponseCycle | None = None  # the request that is being answered; uvicorn's `cycle` is the last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Turn Nagle's algorithm off: it would hold an event back until the client has acknowledged the one before.

        asyncio does so itself, but not for connections of a listening socket that was handed to it (workers, ``--fd``).
        """
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shared = _shared.get(self.server_state)
        if shared is None:
            shared = limits.Limits(StreamProtocol.head_expired, StreamProtocol.body_expired)
            _shared[self.server_state] = shared
        self._limits = shared
        shared.heads.add(self)
        if len(self.connections) > shared.room:
            self._turn_away()

    def _turn_away(self) -> None:
        """Refuse the connection.

        Its refusal waits for the first bytes of its request: with those unread the kernel would answer a close with a
        reset, and the client might never see it. So only some may wait.
        """
        self._limits.count(limits.FULL)
        self._full = True
        if len(self.connections) > self._limits.room + self._limits.waiting_room:
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
            self._refuse(limits.full())
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
            if self._head_bytes > limits.MAX_HEAD_BYTES:
                self._refuse(limits.HEAD_TOO_LARGE)

    def head_expired(self) -> None:
        """Give up a head that did not come whole in time."""
        if self.transport.is_closing():
            self.transport.abort()  # what waits to be sent is not being read
        elif self._answering():
            self.cycle.keep_alive = False
            self._limits.count(limits.LATE.code)
        elif self._begun:
            self._refuse(limits.LATE)
        else:
            self.transport.close()  # nothing was asked: a browser has connections at the ready

    def body_expired(self) -> None:
        """Give up a body that did not come whole in time."""
        if self.transport.is_closing():
            self.transport.abort()
        elif self.pipeline or self.flow.read_paused:
            self._limits.bodies.add(self)  # it is this side that does not read
        elif not self._answering():
            self.transport.close()
            self._limits.count(limits.LATE.code)
        elif self.cycle.response_started:
            self.cycle.keep_alive = False
            self._limits.count(limits.LATE.code)
        else:
            self._refuse(limits.LATE)

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
            if self._way_is_free(self.cycle):
                self.cycle.keep_alive = False  # RFC 9112 § 9.6: the head says that the connection ends with the stream

    def release_head(self) -> None:
        """Send what was kept, if it has not gone out."""
        held, self._held = self._held, None
        if held is not None:
            held.cycle.transport = self.transport  # not `self.cycle`: a later request may have come
            if held.data:
                self.transport.write(held.data)
            held.keep_open()

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
        head, sink.chunked = held.data, cycle.chunked_encoding is True
        if cycle.scope["http_version"] == "1.0":  # it knows no chunks: the response ends with the connection
            head, sink.chunked = head.replace(CHUNKED, b"", 1), False
        self.server_state.total_requests += 1
        self._limits.heads.discard(self)
        self._limits.bodies.discard(self)
        siblings: set[Any] = self.connections
        siblings.discard(self)
        siblings.add(sink)  # uvicorn waits for it, and asks it for no more than `shutdown`
        sink.siblings = siblings
        sink.held = [head]
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
        if size > limits.MAX_HEAD_BYTES:  # it came in one piece
            self._refuse(limits.HEAD_TOO_LARGE)
        elif bodied and self.parser.should_upgrade():
            self._refuse(limits.UPGRADE)
        else:
            self._in_head, self._head_bytes = False, 0
            if bodied:
                self._limits.bodies.add(self)
            super().on_headers_complete()
            if self._held is not None:
                self._held.keep_open()  # for the request that is queued now

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; what comes behind the body is a trailer, which nobody reads."""
        if self._in_head:
            super().on_header(name, value)
        else:
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > limits.MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.close()
                self._limits.count(limits.HEAD_TOO_LARGE.code)

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
        self._refuse(limits.MALFORMED)

    def _refuse(self, refusal: limits.Refusal) -> None:
        """Send a refusal and close; never as the answer to a request before it, nor into one that has begun."""
        if not (self._refused or self._full):  # the first reason counts; for a full house it did when this one came
            self._limits.count(refusal.code)
        self._refused = True
        handled = self._answering()
        if handled and self._in_head and not self.cycle.response_started:
            self.cycle.keep_alive = False  # closes when that one, which came whole, is answered
            self.flow.pause_reading()
            return
        if not (handled and (self.cycle.response_started or self.pipeline)):
            self.transport.write(refusal.response)
        if handled:  # and nobody writes another response behind it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._limits.heads.discard(self)
        self._limits.heads.add(self)  # until it has taken that
