"""One session's streams in one process, and what is known of its history. The hub works on it; connections read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agent_sse import events, frames
from agent_sse.frames import ZERO, EventId

if TYPE_CHECKING:
    from agent_sse.hub import Hub
    from agent_sse.store import Snapshot
    from agent_sse.stream import Connection

T = TypeVar("T")

PAGE_EVENTS = 200
SHARED_SECONDS = 0.25  # how long what was read for one connection serves others that ask for the same
SHARED_READS = 8  # per channel; more than these are shared only while they are under way
RESET_REASONS = {"expired": "history_expired", "lost": "history_lost"}


@dataclass(slots=True)
class Counters:
    """What happened since the start; every reset, lag and loss is counted."""

    events: int = 0
    gaps: int = 0
    resets: int = 0
    lags: int = 0
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """Events after a cursor, as frames; none: ``b""``. ``status`` is a ``stream_reset`` reason when there is a gap."""

    status: str | None
    last: EventId
    data: bytes


@dataclass(frozen=True, slots=True)
class EncodedSnapshot:
    """A session's state at ``tip``, as frames; ``at`` is the time of the reading, ISO 8601."""

    tip: EventId
    at: str
    parts: tuple[bytes, ...]


class Channel:
    """The streams of one session in this process, and the last event id that was passed on to them."""

    __slots__ = (
        "_reads", "_waiting", "compared", "connections", "era", "hub", "last_tick", "name", "next_tick", "raw_tip",
        "seen", "session_id", "shown", "subscribed", "sync", "ticked_tip", "tip", "tombstone",
    )  # fmt: skip

    def __init__(self, hub: Hub, session_id: str, name: bytes) -> None:
        self.hub = hub
        self.session_id = session_id
        self.name = name
        self.connections: dict[Connection, None] = {}
        self.tip: EventId | None = None
        self.raw_tip: bytes | None = None  # as Redis writes it, when it came with a message
        self.era = 0  # counts the times that what comes live ceased to continue what was read before
        self.seen: EventId = ZERO  # highest id that Redis has told of, for a sync that is running
        self.sync: asyncio.Task[None] | None = None
        self.subscribed = False
        self.shown: dict[str, bytes] = {}  # open presented permission requests at `tip`
        self.last_tick = 0.0
        self.next_tick = float("inf")
        self.ticked_tip: EventId | None = None  # `tip` when the last tick was sent, or as a sync left it since
        self.tombstone: EventId | None = None  # of a session closed before, as of the last look at Redis
        self.compared = False  # whether that is known
        self._waiting: asyncio.Future[None] | None = None
        self._reads: dict[tuple[EventId | None, EventId | None], asyncio.Task[Any]] | None = None

    @property
    def now(self) -> float:
        """The loop's time, as of this step of the hub."""
        return self.hub.now

    @property
    def tolerance(self) -> float:
        """How early a heartbeat may be, in seconds."""
        return self.hub.tolerance

    def heartbeat(self) -> bytes:
        """Return a heartbeat frame."""
        return self.hub.heartbeat()

    def lagged(self) -> None:
        """Count a connection that went back to catching up."""
        self.hub.counters.lags += 1

    def counted_reset(self) -> None:
        """Count a stream reset."""
        self.hub.counters.resets += 1

    def stalled(self) -> None:
        """Count a client that was given up."""
        self.hub.stalled(self.session_id)

    # -- subscription ---------------------------------------------------------------------------------------------

    def set_subscribed(self, subscribed: bool) -> None:
        """Note that Redis has confirmed the subscription, or that it may be gone."""
        self.subscribed = subscribed
        if not subscribed:
            self.begin_era()
        elif self._waiting is not None:
            self._waiting.set_result(None)
            self._waiting = None

    async def until_subscribed(self) -> None:
        """Wait until what is published reaches this process: what is read from then on leaves no gap."""
        while not self.subscribed:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiting)

    # -- reading the Stream -----------------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Wait until the Stream has said what is after the tip, or that the tip is gone."""
        self.hub.doubt(self)
        if self.sync is not None:
            await asyncio.wait({self.sync})

    async def page(self, cursor: EventId) -> EncodedPage:
        """Read the next events after ``cursor``. Connections that ask for the same at about the same time share it."""
        return await self._shared((cursor, self.tip), partial(self._read_page, cursor))

    async def snapshot(self) -> EncodedSnapshot:
        """Read the session's present state; shared likewise."""
        return await self._shared((None, self.tip), self._read_snapshot)

    def begin_era(self) -> None:
        """Note that what comes live may not continue what was read so far: nothing of that is shared any more."""
        self.era += 1
        self._reads = None

    def distrust(self) -> None:
        """Share nothing whose reading is over: it has just contradicted itself. What is under way is newer."""
        self._reads = {key: task for key, task in (self._reads or {}).items() if not task.done()}

    async def _shared(
        self, key: tuple[EventId | None, EventId | None], read: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        if len(self.connections) < 2:
            return await read()
        if self._reads is None:
            self._reads = {}
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(read(), name="agent-sse read")
            task.add_done_callback(partial(self._read_ended, key))
            self.hub.own(task)
        result: T = await asyncio.shield(task)
        return result

    def _read_ended(self, key: tuple[EventId | None, EventId | None], task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None or len(self._reads or ()) > SHARED_READS:
            self._unshare(key, task)
        else:
            task.get_loop().call_later(SHARED_SECONDS, self._unshare, key, task)

    def _unshare(self, key: tuple[EventId | None, EventId | None], task: asyncio.Task[Any]) -> None:
        if self._reads is not None and self._reads.get(key) is task:
            del self._reads[key]

    async def _read_page(self, cursor: EventId) -> EncodedPage:
        era = self.era
        page = await self.hub.store.replay(
            self.session_id, cursor, events=PAGE_EVENTS, size=self.hub.settings.stream_buffer_bytes
        )
        if page.status != "ok":
            return EncodedPage(RESET_REASONS[page.status], cursor, b"")
        self._observe(era, page.tip, page.closed_tip)
        last = page.last if page.ids else cursor
        return EncodedPage(None, last, frames.event_frames(page.ids, page.payloads))

    async def _read_snapshot(self) -> EncodedSnapshot:
        era = self.era
        snapshot = await self.hub.store.snapshot(self.session_id)
        self._observe(era, snapshot.tip, snapshot.closed_tip)
        at = events.timestamp(datetime.fromtimestamp(snapshot.now_ms / 1000, UTC))
        parts = tuple(frames.data_frame(part) for part in snapshot_events(snapshot, at))
        return EncodedSnapshot(snapshot.tip, at, parts)

    def _observe(self, era: int, tip: EventId, closed_tip: EventId | None) -> None:
        if era != self.era:
            return  # of a session that was closed meanwhile, say, when another of its name has begun
        # A message that came first has set the tip already; the connection then reads on until it is there.
        if self.tip is None:
            self.tip = tip
        if not self.compared:
            self.compared, self.tombstone = True, closed_tip


def snapshot_events(snapshot: Snapshot, at: str) -> list[bytes]:
    """Return a snapshot's events as JSON, in the order of protocol.md § 4."""
    parts = list(snapshot.statuses)
    parts.append(snapshot.result or events.encode(events.result_cleared(at=at)))
    return parts + (list(snapshot.shown) or [events.encode(events.permission_none(at))])
