"""uvicorn's HTTP protocol; here a stream can take its connection over, and every error is JSON."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agent_sse.sinks import DirectSink

CONNECTION = "agent_sse.connection"  # key in the ASGI scope's extensions: the request's StreamProtocol

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; also the trailers of a chunked body


def _refusal(status: str, code: str, message: str) -> bytes:
    body = json.dumps({"success": False, "message": message, "error": {"code": code}}).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


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


class HeldHead(asyncio.Transport):
    """Stands in for a transport while uvicorn writes the head of a response."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.data = b""
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


class StreamProtocol(HttpToolsProtocol):
    """Puts itself into ``scope["extensions"]`` (https://asgi.readthedocs.io/en/latest/extensions.html)."""

    _in_head = True
    _head_bytes = 0
    _held: HeldHead | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Turn Nagle's algorithm off: it would hold an event back until the client has acknowledged the one before.

        asyncio does so itself, but not for connections of a listening socket that was handed to it (workers, ``--fd``).
        """
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Parse, with a bound on what is no body: uvicorn collects headers and trailers without one."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and self._in_head:
            self._refuse(_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Add the extension to the scope of each request."""
        super().on_message_begin()
        extension: Any = self  # the specification has dictionaries here; ours is read by ourselves only
        self.scope["extensions"] = {CONNECTION: extension}

    def abort(self) -> None:
        """Close the connection at once, whatever waits to be sent."""
        self.transport.abort()

    def hold_head(self) -> None:
        """Keep the head of the response that comes next: with :meth:`take_over` it goes out with the first bytes."""
        if not self.pipeline and self.cycle.transport is self.transport:
            self.cycle.transport = self._held = HeldHead(self.transport)

    def release_head(self) -> None:
        """Send what was kept, if it has not gone out."""
        held, self._held = self._held, None
        if held is not None:
            self.cycle.transport = self.transport
            if held.data:
                self.transport.write(held.data)

    def take_over(self, sink: DirectSink) -> bool:
        """Let ``sink`` have the connection for good, after the head of a response without a length was sent.

        HTTP is over here then, as after an upgrade to WebSocket: uvicorn forgets the request, which may return. False
        when the way is not free: under TLS, when a middleware has held the head back, when a request is queued behind
        this one, or when the client has left.
        """
        cycle = self.cycle
        if (
            self.scheme == "https"
            or self.pipeline
            or not cycle.response_started
            or cycle.response_complete
            or cycle.disconnected
            or self.transport.is_closing()
        ):
            return False
        cycle.response_complete = True  # for uvicorn; and for the request's own `receive`, which tells of a disconnect
        sink.chunked = cycle.chunked_encoding is True
        self.server_state.total_requests += 1
        siblings: set[Any] = self.connections
        siblings.discard(self)
        siblings.add(sink)  # uvicorn waits for it, and asks it for no more than `shutdown`
        sink.siblings = siblings
        sink.held = [self._held.data] if self._held is not None else None
        sink.connection_made(self.transport)
        self.transport.set_protocol(sink)
        return True

    def on_headers_complete(self) -> None:
        """Refuse an upgrade of a request with a body: the parser takes that body for the other protocol's bytes."""
        self._in_head, self._head_bytes = False, 0
        bodied = any(
            name in (b"transfer-encoding", b"content-length") and value != b"0" for name, value in self.headers
        )
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES:  # it came in one piece
            self._refuse(_HEAD_TOO_LARGE)
        elif bodied and self.parser.should_upgrade():
            self._refuse(_UPGRADE)
        else:
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
        if self.cycle:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Await the next request's head."""
        self._in_head, self._head_bytes = True, 0
        if self.cycle:  # there is none when the head was refused
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read."""
        self._refuse(_MALFORMED)

    def _refuse(self, response: bytes) -> None:
        """Send a refusal and close; never as the answer to a request before it, nor into one that has begun."""
        # uvicorn declares the cycle as always there; before the first request it is None.
        handled = bool(self.cycle) and not self.cycle.response_complete
        if handled and self._in_head and not self.cycle.response_started:
            self.cycle.keep_alive = False  # closes when that one, which came whole, is answered
            self.flow.pause_reading()
            return
        if not (handled and self.cycle.response_started):
            self.transport.write(response)
        self.transport.close()
