"""The head of a response, held back until it is known who writes the rest. Knows uvicorn, nothing of streams."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class HeldHead(asyncio.Transport):
    """Stands in for the transport of ``cycle``, a request, while uvicorn writes the head of its response."""

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self.data = b""
        self.cycle = cycle
        self._keep_alive = cycle.keep_alive
        self._transport = transport

    def keep_open(self) -> None:
        """Let the connection serve more requests after this one, unless the head has said already that it will not."""
        if not self.data:
            self.cycle.keep_alive = self._keep_alive

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep ``data``."""
        self.data += data

    def is_closing(self) -> bool:
        """Whether the connection is."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection after what was kept."""
        data, self.data = self.data, b""
        self._transport.write(data)
        self._transport.close()
