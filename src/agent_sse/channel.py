"""One session's streams in one process, and what is known of its history. The hub works on it; connections read it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_sse import frames
from agent_sse.frames import ZERO, EventId

if TYPE_CHECKING:
    from agent_sse.hub import Hub
    from agent_sse.stream import Connection


@dataclass(slots=True)
class Counters:
    """What happened since the start; every reset, lag and loss is counted."""

    events: int = 0
    gaps: int = 0
    resets: int = 0
    lags: int = 0
    stalls: int = 0


class Channel:
    """The streams of one session in this process, and the last event id that was passed on to them."""

    __slots__ = (
        "compared", "connections", "era", "hub", "last_tick", "name", "next_tick", "ready", "seen", "session_id",
        "shown", "subscribed", "sync", "ticked_tip", "tip", "tombstone",
    )  # fmt: skip

    def __init__(self, hub: Hub, session_id: str, name: bytes) -> None:
        self.hub = hub
        self.session_id = session_id
        self.name = name
        self.connections: dict[Connection, None] = {}
        self.tip: EventId | None = None
        self.era = 0  # counts the times that the history was replaced
        self.seen: EventId = ZERO  # highest id that was announced while a sync was running
        self.sync: asyncio.Task[None] | None = None
        self.subscribed = False
        self.ready = asyncio.Event()  # subscribed, and the tip is known
        self.shown: dict[str, bytes] = {}  # open presented permission requests at `tip`
        self.last_tick = 0.0
        self.next_tick = 0.0
        self.ticked_tip: EventId | None = None
        self.tombstone: EventId | None = None  # of a session closed before, as of the last tick
        self.compared = False  # whether that is known

    @property
    def now(self) -> float:
        """The loop's time, as of this step of the hub."""
        return self.hub.now

    def heartbeat(self) -> bytes:
        """Return a heartbeat frame."""
        return frames.heartbeat_frame(time.time())

    async def settled(self) -> None:
        """Wait until the Stream has said what is after the tip, or that the tip is gone."""
        self.hub.doubt(self)
        if self.sync is not None:
            await asyncio.wait({self.sync})

    def lagged(self) -> None:
        """Count a connection that went back to catching up."""
        self.hub.counters.lags += 1

    def counted_reset(self) -> None:
        """Count a stream reset."""
        self.hub.counters.resets += 1
