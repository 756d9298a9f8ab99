"""One open stream: its cursor, and its way between `catching up` and `live`.

Live, the hub hands it every event as it comes. Whenever it cannot take one, or doubts arise, it reads the Stream after
its cursor instead, page by page, until it is at its channel's tip. So there is no buffer, no lock and no duplicate.
"""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_sse import events, frames
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.frames import EventId
from agent_sse.sinks import Sink

if TYPE_CHECKING:
    from agent_sse.channel import Channel
    from agent_sse.store import Snapshot, Store

log = logging.getLogger("agent_sse")

PAGE_EVENTS = 200
RETRY_MS = (1000, 3000)  # random between these, so that a crowd does not come back at once
BACKOFF_CAP = 2.0  # s
RESET_REASONS = {"expired": "history_expired", "lost": "history_lost"}


class Connection:
    """One client's stream of one session.

    ``cursor`` is the last event id that the client has, None when it has none (it gets a snapshot);
    ``reset_reason`` is set for a cursor that could not be read. ``page_bytes`` bounds a page.
    """

    __slots__ = (
        "_ended", "_page_bytes", "_primed", "_reset", "_store", "_task", "channel", "cursor", "last_write", "live",
        "session_id", "sink",
    )  # fmt: skip

    def __init__(
        self,
        session_id: str,
        sink: Sink,
        store: Store,
        *,
        cursor: EventId | None,
        reset_reason: str | None = None,
        page_bytes: int,
    ) -> None:
        self.session_id = session_id
        self.sink = sink
        self.cursor = cursor
        self.live = False
        self.last_write = 0.0
        self.channel: Channel | None = None
        self._store = store
        self._reset = reset_reason
        self._page_bytes = page_bytes
        self._primed = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def start(self, channel: Channel) -> None:
        """Send the first bytes and begin to catch up."""
        self.channel = channel
        self.write(frames.retry_frame(random.randint(*RETRY_MS)) + channel.heartbeat())
        self._begin(channel)

    async def aclose(self) -> None:
        """Stop catching up; the sink belongs to who made it."""
        self._ended = True
        self.live = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def end(self, last: bytes = b"") -> None:
        """End the stream with a last frame."""
        if self._ended:
            return
        self._ended = True
        self.live = False
        if self._task is not None:
            self._task.cancel()
        if last:
            self.sink.write(last)
        self.sink.finish()

    def write(self, data: bytes) -> None:
        """Write; a sink over its bound sends a live connection back to the Stream."""
        taken = self.sink.write(data)
        if self.channel is not None:
            self.last_write = self.channel.now
            if not taken and self.live:
                self.channel.lagged()
                self._begin(self.channel)

    def deliver(self, event_id: EventId, frame: bytes) -> None:
        """Take an event from the hub, if it is for this connection to take."""
        if self.live and (self.cursor is None or event_id > self.cursor):
            self.cursor = event_id
            self.write(frame)

    def reset(self, reason: str) -> None:
        """Start anew from a snapshot, because the history that the cursor belongs to is gone."""
        if self.live and self.channel is not None:
            self._reset = reason
            self._begin(self.channel)

    def _begin(self, channel: Channel) -> None:
        self.live = False
        if not self._ended:
            self._task = asyncio.create_task(self._catch_up(channel), name=f"agent-sse catch-up {self.session_id}")

    async def _catch_up(self, channel: Channel) -> None:
        failures = 0
        while True:
            try:
                await self._follow(channel)
                return
            except RedisUnavailable as error:
                failures += 1
                log.debug("session %s: a stream waits for Redis: %s", self.session_id, error)
                await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP, 0.05 * 2 ** min(failures, 10))))
            except RedisRefused as error:
                log.error("session %s: a stream ends: %s", self.session_id, error)
                self._task = None
                self.end(frames.error_frame("unavailable", "the event store refused to serve; try again later"))
                return
            except Exception:  # a bug: this stream ends, the client reconnects, and the log says why
                log.exception("session %s: a stream ends", self.session_id)
                self._task = None
                self.end()
                return

    async def _follow(self, channel: Channel) -> None:
        """Read until the cursor is at the channel's tip, then be live in the same step of the loop."""
        while True:
            await self.sink.drained()
            await channel.ready.wait()
            cursor = self.cursor
            if cursor is None or self._reset is not None:
                cursor = await self._write_snapshot()
            era, expected = channel.era, channel.tip
            page = await self._store.replay(self.session_id, cursor, events=PAGE_EVENTS, size=self._page_bytes)
            if page.status != "ok":
                channel.counted_reset()
                log.info("session %s: stream reset, history %s", self.session_id, page.status)
                self._reset = RESET_REASONS[page.status]
                continue
            if page.events:
                self.write(b"".join(frames.event_frame(raw, payload) for _, raw, payload in page.events))
                self.cursor = cursor = page.events[-1][0]
            elif expected is not None and cursor < expected:
                await channel.settled()  # the channel is ahead of Redis: let it find out why before reading again
            await self.sink.drained()
            # The history was not replaced since the page was read, and nothing is between the page and what comes live.
            if era == channel.era and channel.tip is not None and cursor >= channel.tip:
                self._go_live(cursor)
                return

    def _go_live(self, cursor: EventId) -> None:
        self.live = True
        if not self._primed:
            self._primed = True
            self.write(frames.cursor_frame(cursor))

    async def _write_snapshot(self) -> EventId:
        snapshot = await self._store.snapshot(self.session_id)
        parts = snapshot_frames(snapshot, self._reset)
        self._reset = None
        self.cursor = snapshot.tip
        self._primed = True
        for part in parts:  # a snapshot may be as large as what a session keeps
            self.write(part)
            await self.sink.drained()
        self.write(frames.cursor_frame(snapshot.tip))
        return snapshot.tip


def snapshot_frames(snapshot: Snapshot, reset_reason: str | None) -> list[bytes]:
    """Return a snapshot's frames, without ids, in the order of protocol.md § 4, after a ``stream_reset`` if any."""
    at = events.timestamp(datetime.fromtimestamp(snapshot.now_ms / 1000, UTC))
    parts: list[bytes] = []
    if reset_reason is not None:
        tip = frames.format_id(snapshot.tip).decode()
        parts.append(events.encode(events.stream_reset(reset_reason, tip, at)))
    parts += snapshot.statuses
    parts.append(snapshot.result or events.encode(events.result_cleared(at=at)))
    parts += snapshot.shown or [events.encode(events.permission_none(at))]
    return [frames.data_frame(part) for part in parts]
