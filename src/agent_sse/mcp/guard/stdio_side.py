"""The host on standard input and output."""

from __future__ import annotations

import asyncio
import logging

from agent_sse.mcp.guard import messages
from agent_sse.mcp.guard.messages import BadMessage, Id, Message
from agent_sse.mcp.guard.pipes import LineReader, PipeWriter, TooLong
from agent_sse.mcp.guard.relay import Relay

FLUSH_TIMEOUT = 1.0  # s, for a host that does not read its last answers

log = logging.getLogger("agent_sse.guard")


class StdioHost:
    """The host behind two pipes."""

    def __init__(self, reader: LineReader, writer: PipeWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def deliver(self, message: Message, related: Id | None) -> None:
        """Write a message, and wait while the host does not read."""
        self._writer.write(message.raw)
        await self._writer.drain()

    async def run(self, relay: Relay) -> None:
        """Hand on what the host says until its end, or until it reads no more."""
        reading = asyncio.create_task(self._read(relay))
        closed = asyncio.create_task(self._writer.closed.wait())
        try:
            await asyncio.wait({reading, closed}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            for task in (reading, closed):
                task.cancel()
            await asyncio.gather(reading, closed, return_exceptions=True)

    async def _read(self, relay: Relay) -> None:
        while (line := await self._reader.next()) is not None:
            try:
                if isinstance(line, TooLong):
                    raise BadMessage(
                        messages.INVALID_REQUEST,
                        f"a message of {line.size} bytes is too long to be passed on",
                        messages.find_id(line.head, line.tail),
                    )
                if not line.strip():
                    continue
                message = messages.from_host(line)
            except BadMessage as bad:
                await relay.refuse(bad)
            else:
                await relay.from_host(message)

    async def aclose(self) -> None:
        """Write out what is left."""
        await self._writer.finish(FLUSH_TIMEOUT)
