"""All streams of one process: one pub/sub reader, a channel per session, fan-out, ticks and heartbeats.

A channel passes a message on only when it continues its tip; any doubt is settled by reading the Stream. Nothing here
knows HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

from agent_sse import frames
from agent_sse.channel import PAGE_EVENTS, RESET_REASONS, Channel, Counters
from agent_sse.errors import ApiError, RedisRefused, RedisUnavailable
from agent_sse.frames import ZERO, EventId, read_id
from agent_sse.pubsub import Subscriber
from agent_sse.readiness import Probe
from agent_sse.settings import Settings
from agent_sse.sinks import Sink
from agent_sse.store import Store
from agent_sse.stream import Connection
from agent_sse.ticks import Ticks
from agent_sse.wheel import Wheel

log = logging.getLogger("agent_sse")

MAX_STEP = 0.1  # s; the fewer are due in one step, the shorter events wait behind their heartbeats and ticks
PERMISSION_EVENT = b'{"type":"permission_'


class Hub:
    """Owns the reader, the channels and the clock of one process. ``start`` before use, ``aclose`` after."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.process_id = secrets.token_hex(8)
        self.counters = Counters()
        self.now = 0.0
        self._channels: dict[bytes, Channel] = {}
        self._count = 0
        self._owned: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._time: Callable[[], float] = time.monotonic  # the loop's, from `run` on
        self._clock: asyncio.Task[None] | None = None
        self._step = min(MAX_STEP, settings.heartbeat_interval / 4, settings.send_timeout / 4)
        self.tolerance = self._step / 2
        self._visits: Wheel[Connection] = Wheel(self._step, 0.0)
        self._ticks = Ticks(self, self._step)
        self._beat: tuple[float, bytes] = (-1.0, b"")
        self._subscriber = Subscriber(
            store.backend, on_message=self._on_message, on_subscribed=self._on_subscribed, on_lost=self._on_lost
        )
        self._probe = Probe(store, self.process_id)

    # -- life ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the reader and the clock."""
        # Kept, because on Python 3.11 each look at the running loop asks the kernel for the process's id.
        self._time = asyncio.get_running_loop().time
        self.now = self._time()
        self._visits = Wheel(self._step, self.now)
        self._ticks.begin(self.now)
        self._subscriber.start()
        self._subscriber.add(self._probe.channel.encode())
        self._clock = asyncio.create_task(self._run_clock(), name="agent-sse clock")
        self._clock.add_done_callback(_report_death)

    async def aclose(self) -> None:
        """End every stream, say farewell in Redis as far as it answers, stop."""
        self.shutdown()
        tasks = [*self._owned, *([self._clock] if self._clock is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._ticks.aclose()
        await self._subscriber.aclose()

    def shutdown(self) -> None:
        """End every stream at once and take no new ones: clients reconnect, elsewhere or later, and resume."""
        self._closing = True
        for channel in list(self._channels.values()):
            for connection in list(channel.connections):
                connection.end()

    @property
    def alive(self) -> bool:
        """Whether reader, clock and ticks run; readiness fails when they do not."""
        return self._subscriber.alive and self._ticks.alive and self._clock is not None and not self._clock.done()

    @property
    def closing(self) -> bool:
        """Whether no new streams are taken, because the process is about to end."""
        return self._closing

    @property
    def open_streams(self) -> int:
        """How many streams this process has open."""
        return self._count

    def streams_of(self, session_id: str) -> int:
        """How many streams of a session this process has open."""
        channel = self._channels.get(self._name(session_id))
        return len(channel.connections) if channel is not None else 0

    def has(self, channel: Channel) -> bool:
        """Whether a channel has streams still."""
        return self._channels.get(channel.name) is channel

    async def probe(self) -> bool:
        """Whether this process is ready: its tasks run, and a message that it publishes comes back to it."""
        return self.alive and await self._probe.ask()

    # -- streams ------------------------------------------------------------------------------------------------

    def join(self, connection: Connection) -> None:
        """Give a stream its place, until :meth:`leave`. Raises ApiError 429 when there are too many."""
        name = self._name(connection.session_id)
        channel = self._channels.get(name)
        if self._count >= self.settings.max_streams:
            raise ApiError(429, "too_many_streams", "this server has no free stream; try again later", retry_after=5)
        if channel is not None and len(channel.connections) >= self.settings.max_streams_per_session:
            raise ApiError(
                429, "too_many_streams_of_session", "the session has too many open streams; close one", retry_after=5
            )
        self.now = self._time()
        if channel is None:
            channel = self._channels[name] = Channel(self, connection.session_id, name)
            self._subscriber.add(name)
        self._count += 1
        channel.connections[connection] = None
        connection.channel = channel
        self._ticks.count(channel)

    def start(self, connection: Connection, sink: Sink) -> None:
        """Let a stream that has its place write to ``sink``: first bytes, what it missed, then what comes."""
        connection.start(sink)
        soon = self.now + min(self.settings.heartbeat_interval, self.settings.send_timeout)
        self._visits.put(connection, min(soon, connection.ends_at))

    def leave(self, connection: Connection) -> None:
        """Take back the place that :meth:`join` gave."""
        channel = connection.channel
        task = connection.stop()
        if task is not None:
            self.own(task)
        if channel is None or connection not in channel.connections:
            return
        del channel.connections[connection]
        self._count -= 1
        if channel.connections:
            self._ticks.count(channel)
            return
        del self._channels[channel.name]
        self._subscriber.remove(channel.name)
        if channel.sync is not None:
            channel.sync.cancel()
        self._ticks.farewell(channel.session_id)

    def own(self, task: asyncio.Task[Any]) -> None:
        """See to it that a task is awaited, at the latest when the hub ends."""
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)

    def stalled(self, session_id: str) -> None:
        """Count and log a client that was given up."""
        self.counters.stalls += 1
        log.info("session %s: a client took no bytes for too long and is disconnected", session_id)

    def heartbeat(self) -> bytes:
        """Return a heartbeat frame, built once for all that get one in the same millisecond."""
        if self.now - self._beat[0] >= 0.001:
            self._beat = (self.now, frames.heartbeat_frame(time.time()))
        return self._beat[1]

    def _name(self, session_id: str) -> bytes:
        return self.store.keyspace.channel(session_id).encode()

    # -- from Redis ---------------------------------------------------------------------------------------------

    def _on_subscribed(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None:
            if name == self._probe.channel.encode():
                self._probe.set_subscribed(True)
        else:
            channel.set_subscribed(True)
            if channel.tip is not None:
                self._ticks.at_once(channel)  # what was published meanwhile has no message

    def _on_lost(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            channel.set_subscribed(False)
        elif name == self._probe.channel.encode():
            self._probe.set_subscribed(False)

    def _on_message(self, name: bytes, data: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None:
            self._probe.heard(data)
            return
        self.now = self._time()
        try:
            raw_id, before, payload = data.split(b" ", 2)
            event_id = read_id(raw_id)
            # Most messages continue the one before: then `before` is known without reading it.
            prev = channel.tip if before == channel.raw_tip else read_id(before)
        except ValueError:
            self._on_notice(channel, data)
            return
        if channel.sync is not None:
            channel.seen = max(channel.seen, event_id)
        elif channel.tip is None:
            channel.tip = event_id  # nobody is live yet; catching up covers it
        elif prev == channel.tip and event_id > prev:
            self._fan_out(channel, event_id, raw_id, payload)
        else:
            self.doubt(channel, event_id)

    def _on_notice(self, channel: Channel, data: bytes) -> None:
        if data == b"closed":
            self.close_channel(channel)
        else:
            log.warning("session %s: a message that is none of ours on its channel", channel.session_id)

    def _fan_out(self, channel: Channel, event_id: EventId, raw_id: bytes, payload: bytes) -> None:
        channel.tip, channel.raw_tip = event_id, raw_id
        self.counters.events += 1
        if payload.startswith(PERMISSION_EVENT):
            self._note_permission(channel, payload)
        chunk, now = frames.event_chunk(raw_id, payload), self.now
        for connection in channel.connections:
            connection.deliver(event_id, chunk, now)

    @staticmethod
    def _note_permission(channel: Channel, payload: bytes) -> None:
        """Keep what a heartbeat repeats as of the tip: a settled request must not come back."""
        event = json.loads(payload)
        request_id = event["data"].get("request_id")
        if event["type"] == "permission_request":
            channel.shown[request_id] = payload
        elif event["type"] == "permission_cleared":
            channel.shown.pop(request_id, None)

    # -- doubt --------------------------------------------------------------------------------------------------

    def doubt(self, channel: Channel, seen: EventId = ZERO) -> None:
        """Let the Stream say what came after the tip, up to ``seen`` at least, once for the whole channel."""
        if channel.sync is not None:
            # The page that is on its way may be older than `seen`, and than what was announced since it was asked for.
            channel.seen = max(channel.seen, seen)
        else:
            channel.seen = seen
            self.counters.gaps += 1
            channel.sync = asyncio.create_task(self._sync(channel), name=f"agent-sse sync {channel.session_id}")
            self.own(channel.sync)

    async def _sync(self, channel: Channel) -> None:
        failures = 0
        try:
            while True:
                try:
                    if await self._sync_page(channel):
                        return
                    failures = 0
                except (RedisUnavailable, RedisRefused) as error:
                    failures += 1
                    log.debug("session %s: waiting to read what was missed: %s", channel.session_id, error)
                    await asyncio.sleep(random.uniform(0, min(2.0, 0.05 * 2 ** min(failures, 10))))
        finally:
            channel.sync = None

    async def _sync_page(self, channel: Channel) -> bool:
        tip, seen = channel.tip or ZERO, channel.seen
        page = await self.store.replay(
            channel.session_id, tip, events=PAGE_EVENTS, size=self.settings.stream_buffer_bytes
        )
        if page.status != "ok":
            self._reset(channel, RESET_REASONS[page.status], page.tip)
            return True
        for raw_id, payload in zip(page.ids, page.payloads, strict=True):
            tip = read_id(raw_id)
            self._fan_out(channel, tip, raw_id, payload)
        channel.ticked_tip = channel.tip  # a tick under way may know of more, and no chain of messages vouches for that
        # What was announced while reading is in the Stream by now: read again. An announcement from before the
        # reading that the Stream does not know came from a server that is no longer the primary.
        return tip >= page.tip and (tip >= channel.seen or (seen == channel.seen and not page.ids))

    def _reset(self, channel: Channel, reason: str, tip: EventId) -> None:
        log.warning("session %s: %s, %d streams start anew", channel.session_id, reason, len(channel.connections))
        channel.tip, channel.raw_tip = tip, None
        channel.shown.clear()
        channel.begin_era()
        self._ticks.at_once(channel)
        for connection in list(channel.connections):
            if connection.live:
                channel.counted_reset()
                connection.reset(reason)

    def close_channel(self, channel: Channel) -> None:
        """End the streams of a session that was closed."""
        last = frames.error_frame("session_closed", "the session was closed")
        for connection in list(channel.connections):
            connection.end(last)
        # A stream that joins before the last of these has left belongs to a session of the same name, not to this one.
        channel.tip, channel.raw_tip, channel.compared = None, None, False
        channel.shown.clear()
        channel.begin_era()
        self._ticks.at_once(channel)

    # -- the clock ----------------------------------------------------------------------------------------------

    async def _run_clock(self) -> None:
        """Send heartbeats. It never waits for Redis, so that a stream stays alive while Redis does not answer."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._step)
            self.now = loop.time()
            for connection in self._visits.take(self.now):
                again = connection.visit(self.now, self.settings.heartbeat_interval, self.settings.send_timeout)
                if again is not None:
                    self._visits.put(connection, again)
            self._ticks.take(self.now)


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s died; this process is not ready any more", task.get_name(), exc_info=task.exception())
