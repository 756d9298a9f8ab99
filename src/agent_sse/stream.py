"""One open stream: its cursor, and its way between `catching up` and `live`.

Live, the hub hands it every event as it comes. Whenever it cannot take one, or doubts arise, it reads the Stream after
its cursor instead, page by page, until it is at its channel's tip. So there is no buffer, no lock and no duplicate.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from agent_sse import events, frames
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.frames import EventId
from agent_sse.sinks import Sink

if TYPE_CHECKING:
    from agent_sse.channel import Channel

log = logging.getLogger("agent_sse")

RETRY_MS = (1000, 3000)  # random between these, so that a crowd does not come back at once
BACKOFF_CAP = 2.0  # s


class Connection:
    """One client's stream of one session.

    ``cursor`` is the last event id that the client has, None when it has none (it gets a snapshot);
    ``reset_reason`` is set for a cursor that could not be read. ``ends_at``, in the loop's time, is when the hub ends
    it, with ``last`` as its last frame.
    """

    __slots__ = (
        "_ended", "_primed", "_reset", "_sink", "_task", "channel", "cursor", "ends_at", "last", "last_write", "live",
        "session_id",
    )  # fmt: skip

    def __init__(
        self,
        session_id: str,
        *,
        cursor: EventId | None,
        reset_reason: str | None = None,
        ends_at: float = float("inf"),
        last: bytes = b"",
    ) -> None:
        self.session_id = session_id
        self.cursor = cursor
        self.ends_at = ends_at
        self.last = last
        self.live = False
        self.last_write = 0.0
        self.channel: Channel | None = None  # set while the hub holds a place for it
        self._sink: Sink | None = None
        self._reset = reset_reason
        self._primed = False
        self._ended = False
        self._task: asyncio.Task[None] | None = None

    def start(self, sink: Sink) -> None:
        """Send the first bytes to ``sink`` and begin to catch up. The hub has given it a place before."""
        channel = self.channel
        if channel is None or self._ended:  # ended by the service meanwhile
            if self.last:
                sink.write(self.last)
            sink.finish()
            return
        self._sink = sink
        # First its task, then the end of the gathering: what can be read without waiting goes out with the first bytes.
        self._begin(channel)
        sink.gather()
        self.write(frames.retry_frame(random.randint(*RETRY_MS)) + channel.heartbeat())

    def stop(self) -> asyncio.Task[None] | None:
        """Write nothing more; return what has to be awaited. The sink belongs to who made it."""
        self._ended = True
        self.live = False
        self.channel = self._sink = None  # the wheel may hold this for as long as a heartbeat's interval
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            return task
        return None

    def end(self, last: bytes = b"") -> None:
        """End the stream with a last frame."""
        if self._ended:
            return
        self._ended = True
        self.live = False
        self.last = last
        if self._task is not None:
            self._task.cancel()
        if self._sink is not None:
            if last:
                self._sink.write(last)
            self._sink.finish()

    def write(self, data: bytes) -> None:
        """Write to this client only; a sink over its bound sends a live connection back to the Stream."""
        if self._sink is not None and self.channel is not None:
            taken = self._sink.write(data)
            self.last_write = self.channel.now
            if not taken and self.live:
                self._lag()

    def deliver(self, event_id: EventId, chunk: bytes, now: float) -> None:
        """Take an event from the hub, as a chunk, if it is for this connection to take."""
        if self.live and (self.cursor is None or event_id > self.cursor) and self._sink is not None:
            self.cursor = event_id
            self.last_write = now
            if not self._sink.send(chunk):
                self._lag()

    def _lag(self) -> None:
        """Go back to the Stream until the client has read what waits for it."""
        if self.channel is not None:
            self.channel.lagged()
            self._begin(self.channel)

    def reset(self, reason: str) -> None:
        """Start anew from a snapshot, because the history that the cursor belongs to is gone."""
        if self.live and self.channel is not None:
            self._reset = reason
            self._begin(self.channel)

    def visit(self, now: float, interval: float, patience: float) -> float | None:
        """Do what time asks for: end the stream, give up a stuck client, send a heartbeat after ``interval`` (seconds).

        Return when to come again, None when there is nothing more to do here: within ``patience``, and four times in
        it while something waits for the client, or nobody would see in time that it takes nothing.
        """
        channel, sink = self.channel, self._sink
        if channel is None or self._ended:
            return None
        if now >= self.ends_at:
            self.end(self.last)
            return None
        if sink is not None:
            if sink.end_if_stalled(now):
                channel.stalled()
                return None
            if self.last_write + interval <= now + channel.tolerance and sink.idle:
                # Who catches up may not have seen yet what was shown, or that it was settled.
                shown = channel.shown.values() if self.live else ()
                self.write(b"".join((channel.heartbeat(), *map(frames.data_frame, shown))))
        beat = max(self.last_write, now - interval + channel.tolerance) + interval
        look = now + (patience if sink is None or sink.idle else patience / 4)
        return min(beat, look, self.ends_at)

    def _begin(self, channel: Channel) -> None:
        self.live = False
        if not self._ended and self._sink is not None:
            self._task = asyncio.create_task(self._catch_up(channel, self._sink), name="agent-sse catch-up")

    async def _catch_up(self, channel: Channel, sink: Sink) -> None:
        failures = 0
        while True:
            try:
                await self._follow(channel, sink)
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

    async def _follow(self, channel: Channel, sink: Sink) -> None:
        """Read until the cursor is at the channel's tip, then be live in the same step of the loop."""
        while True:
            await sink.drained()
            await channel.until_subscribed()
            era = channel.era
            if self.cursor is None or self._reset is not None:
                cursor = await self._write_snapshot(channel, sink)
            else:
                cursor = await self._write_page(channel, sink, self.cursor)
            await sink.drained()
            # Neither the history nor the subscription was replaced since the reading was asked for, and nothing is
            # between it and what comes live.
            if (
                self._reset is None
                and era == channel.era
                and channel.subscribed
                and channel.tip is not None
                and cursor >= channel.tip
            ):
                self._go_live(cursor)
                return

    async def _write_page(self, channel: Channel, sink: Sink, cursor: EventId) -> EventId:
        expected = channel.tip
        page = await channel.page(cursor)
        if page.status is not None:
            channel.counted_reset()
            log.info("session %s: stream reset, %s", self.session_id, page.status)
            self._reset = page.status
            # A snapshot that is shared would lead here again: it is older than what this page says.
            channel.distrust()
            await asyncio.sleep(0)
        elif page.data:
            sink.gather()
            self.write(page.data)
            self.cursor = cursor = page.last
        elif expected is not None and cursor < expected:
            await channel.settled()  # the channel is ahead of Redis: let it find out why before reading again
        return cursor

    def _go_live(self, cursor: EventId) -> None:
        self.live = True
        self._task = None  # before the write: that may begin another one
        if not self._primed:
            self._primed = True
            self.write(frames.cursor_frame(cursor))

    async def _write_snapshot(self, channel: Channel, sink: Sink) -> EventId:
        snapshot = await channel.snapshot()
        reason, self._reset = self._reset, None
        self.cursor = snapshot.tip
        self._primed = True
        if reason is not None:
            tip = frames.format_id(snapshot.tip).decode()
            self.write(frames.data_frame(events.encode(events.stream_reset(reason, tip, snapshot.at))))
        for part in snapshot.parts:  # a snapshot may be as large as what a session keeps
            self.write(part)
            await sink.drained()
        self.write(frames.cursor_frame(snapshot.tip))
        return snapshot.tip
