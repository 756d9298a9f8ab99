"""uvicorn's HTTP protocol; here a stream can reach its transport, to abort a stuck client, and every error is JSON."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TRANSPORT = "agent_sse.transport"  # key in the ASGI scope's extensions

_MALFORMED = json.dumps(
    {
        "success": False,
        "message": "this is not an HTTP/1.1 request: check its request line, its headers and its body's framing",
        "error": {"code": "malformed_request"},
    }
).encode()


class StreamProtocol(HttpToolsProtocol):
    """Puts its transport into ``scope["extensions"]`` (https://asgi.readthedocs.io/en/latest/extensions.html)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Turn Nagle's algorithm off: it would hold an event back until the client has acknowledged the one before.

        asyncio does so itself, but not for connections of a listening socket that was handed to it (workers, ``--fd``).
        """
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def on_message_begin(self) -> None:
        """Add the extension to the scope of each request."""
        super().on_message_begin()
        extension: Any = self.transport  # the specification has dictionaries here; ours is read by ourselves only
        self.scope["extensions"] = {TRANSPORT: extension}

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read, as JSON; never into a response that has begun."""
        # uvicorn declares the cycle as always there; before the first request it is None.
        begun = bool(self.cycle) and self.cycle.response_started and not self.cycle.response_complete
        if not (begun or self.pipeline):
            head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            length = f"content-length: {len(_MALFORMED)}\r\n\r\n"
            self.transport.write((head + length).encode() + _MALFORMED)
        self.transport.close()
