"""uvicorn's HTTP protocol with one addition: a stream can reach its transport, to abort a client that is stuck."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TRANSPORT = "agent_sse.transport"  # key in the ASGI scope's extensions


class StreamProtocol(HttpToolsProtocol):
    """Puts its transport into ``scope["extensions"]`` (https://asgi.readthedocs.io/en/latest/extensions.html)."""

    def on_message_begin(self) -> None:
        """Add the extension to the scope of each request."""
        super().on_message_begin()
        extension: Any = self.transport  # the specification has dictionaries here; ours is read by ourselves only
        self.scope["extensions"] = {TRANSPORT: extension}
