"""A stream's bytes taken apart into events again, for readers that are no SSE client: a poll, a terminal.

It interprets no payload: what it calls runs inside the hub's fan-out and must not raise for what an event holds.
"""

from __future__ import annotations

from collections.abc import Callable

from agent_sse.frames import unchunked

Take = Callable[[bytes | None, bytes | None], None]


class EventSink:
    """A sink as in `sinks` that calls ``take(event_id, payload)`` for each frame; either is None when it is not there.

    An id without a payload is the cursor that ends replay or snapshot. ``take`` is done with a frame when it returns,
    so nothing waits here and there is no bound to heed.
    """

    idle = True

    def __init__(self, take: Take) -> None:
        self._take = take

    def write(self, data: bytes) -> bool:
        """Take whole frames."""
        for frame in data.split(b"\n\n"):
            event_id = payload = None
            for line in frame.split(b"\n"):
                if line.startswith(b"id: "):
                    event_id = line[4:]
                elif line.startswith(b"data: "):
                    payload = line[6:]
            if event_id is not None or payload is not None:
                self._take(event_id, payload)
        return True

    def send(self, chunked: bytes) -> bool:
        """Take what is in a chunk: whole frames."""
        return self.write(unchunked(chunked))

    def gather(self) -> None:
        """Do nothing: it writes nowhere."""

    def end_if_stalled(self, now: float) -> bool:
        """Return False: it takes everything."""
        return False

    async def drained(self) -> None:
        """Return at once."""

    def finish(self) -> None:
        """Do nothing; who cares about the end adds to it."""
