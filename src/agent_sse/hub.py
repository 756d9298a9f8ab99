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
from collections.abc import Callable, Iterable
from typing import Any

from agent_sse import frames
from agent_sse.channel import PAGE_EVENTS, RESET_REASONS, Channel, Counters
from agent_sse.errors import ApiError, RedisRefused, RedisUnavailable
from agent_sse.frames import ZERO, EventId, read_id
from agent_sse.pubsub import Subscriber
from agent_sse.readiness import Probe
from agent_sse.settings import Settings
from agent_sse.sinks import Sink
from agent_sse.store import Store, Tick
from agent_sse.stream import Connection
from agent_sse.wheel import Wheel

log = logging.getLogger("agent_sse")

TICK_INTERVAL = 15.0  # s at most, also with a longer heartbeat: counts of streams are believed for 45 s
TICK_BATCH = 20  # sessions at a time: what is published meanwhile waits in Redis behind them, about 30 us for each
MAX_STEP = 0.1  # s; the fewer are due in one step, the shorter events wait behind their heartbeats and ticks
PRESENCE_INTERVAL = 1.0  # s; a session's count of streams is written at most this often
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
        self._farewells: set[str] = set()
        self._urgent: dict[Channel, None] = {}  # to be compared with Redis at once
        self._owned: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._time: Callable[[], float] = time.monotonic  # the loop's, from `run` on
        self._tasks: list[asyncio.Task[None]] = []
        self._kick = asyncio.Event()
        self._step = min(MAX_STEP, settings.heartbeat_interval / 4, settings.send_timeout / 4)
        self.tolerance = self._step / 2
        self._visits: Wheel[Connection] = Wheel(self._step, 0.0)
        self._ticks: Wheel[Channel] = Wheel(self._step, 0.0)
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
        self._visits, self._ticks = Wheel(self._step, self.now), Wheel(self._step, self.now)
        self._subscriber.start()
        self._subscriber.add(self._probe.channel.encode())
        for work, name in ((self._run_clock, "clock"), (self._run_ticks, "ticks")):
            task = asyncio.create_task(work(), name=f"agent-sse {name}")
            task.add_done_callback(_report_death)
            self._tasks.append(task)

    async def aclose(self) -> None:
        """End every stream, say farewell in Redis as far as it answers, stop."""
        self.shutdown()
        tasks = [*self._tasks, *self._owned]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._farewells:
            try:
                async with asyncio.timeout(1.0):
                    await self._tick(())
            except (RedisUnavailable, RedisRefused, TimeoutError):
                log.info("Redis was not told of the closed streams; their counts lapse by themselves")
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
        return self._subscriber.alive and bool(self._tasks) and not any(task.done() for task in self._tasks)

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
        self._count_soon(channel)

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
            self._count_soon(channel)
            return
        del self._channels[channel.name]
        self._subscriber.remove(channel.name)
        if channel.sync is not None:
            channel.sync.cancel()
        self._farewells.add(channel.session_id)
        self._kick.set()

    def own(self, task: asyncio.Task[Any]) -> None:
        """See to it that a task is awaited, at the latest when the hub ends."""
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)

    def stalled(self, session_id: str) -> None:
        """Count and log a client that was given up."""
        self.counters.stalls += 1
        log.info("session %s: a client took no bytes for too long and is disconnected", session_id)

    def heartbeat(self) -> bytes:
        """Return a heartbeat frame, built once for all that get one at this moment."""
        if self._beat[0] != self.now:
            self._beat = (self.now, frames.heartbeat_frame(time.time()))
        return self._beat[1]

    def _name(self, session_id: str) -> bytes:
        return self.store.keyspace.session(session_id).channel.encode()

    # -- from Redis ---------------------------------------------------------------------------------------------

    def _on_subscribed(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            channel.set_subscribed(True)
            if channel.tip is not None:
                self._tick_now(channel)  # what was published meanwhile has no message

    def _on_lost(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            channel.set_subscribed(False)

    def _on_message(self, name: bytes, data: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None:
            self._probe.heard(data)
            return
        self.now = self._time()
        if data == b"closed":
            self._close_channel(channel)
            return
        head, _, rest = data.partition(b" ")
        before, _, payload = rest.partition(b" ")
        event_id = read_id(head)
        # Most messages continue the one before: then `before` is known without reading it.
        prev = channel.tip if before == channel.raw_tip else read_id(before)
        if event_id is None or prev is None:
            log.warning("session %s: a message that is none of ours on its channel", channel.session_id)
            return
        if channel.sync is not None:
            channel.seen = max(channel.seen, event_id)
        elif channel.tip is None:
            channel.tip = event_id  # nobody is live yet; catching up covers it
        elif prev == channel.tip and event_id > prev:
            self._fan_out(channel, event_id, head, payload)
        else:
            self.doubt(channel, event_id)

    def _fan_out(self, channel: Channel, event_id: EventId, raw_id: bytes, payload: bytes) -> None:
        channel.tip, channel.raw_tip = event_id, raw_id
        self.counters.events += 1
        if payload.startswith(PERMISSION_EVENT):
            self._note_permission(channel, payload)
        frame, now = frames.encoded(frames.event_frame(raw_id, payload)), self.now
        for connection in channel.connections:
            connection.deliver(event_id, frame, now)

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
            tip = read_id(raw_id) or ZERO
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
        self._tick_now(channel)
        for connection in list(channel.connections):
            if connection.live:
                channel.counted_reset()
                connection.reset(reason)

    def _close_channel(self, channel: Channel) -> None:
        last = frames.error_frame("session_closed", "the session was closed")
        for connection in list(channel.connections):
            connection.end(last)
        # A stream that joins before the last of these has left belongs to a session of the same name, not to this one.
        channel.tip, channel.raw_tip, channel.compared = None, None, False
        channel.shown.clear()
        channel.begin_era()
        self._tick_now(channel)

    # -- the clock ----------------------------------------------------------------------------------------------

    def _tick_at(self, channel: Channel, at: float) -> None:
        """Compare a channel with Redis at ``at``, or before."""
        if at < channel.next_tick:
            channel.next_tick = at
            self._ticks.put(channel, at)

    def _tick_now(self, channel: Channel) -> None:
        channel.next_tick = 0.0
        self._urgent[channel] = None
        self._kick.set()

    def _count_soon(self, channel: Channel) -> None:
        """Let Redis know the number of streams, not more often than once a second, and not all of a crowd at a time."""
        self._tick_at(channel, max(self.now, channel.last_tick) + PRESENCE_INTERVAL * random.uniform(1, 2))

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
            self._kick.set()

    async def _run_ticks(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._kick.wait()
            self._kick.clear()
            due = self._due(loop.time())
            if due or self._farewells:
                try:
                    await self._tick(due)
                except (RedisUnavailable, RedisRefused) as error:
                    log.debug("ticks wait for Redis: %s", error)
                    for channel in due:
                        self._tick_at(channel, loop.time() + random.uniform(0, 2 * self._step))

    def _due(self, now: float) -> list[Channel]:
        """Return the channels to compare now; each has to be given its next time. An unsubscribed one gets it later."""
        urgent, self._urgent = self._urgent, {}
        for channel in self._ticks.take(now):
            if channel.next_tick <= now + self._step:  # not moved since: then it is in the wheel once more
                urgent[channel] = None
        due = []
        for channel in urgent:
            if self._channels.get(channel.name) is not channel:
                continue  # its last stream has left
            channel.next_tick = float("inf")
            if channel.subscribed:
                due.append(channel)
            else:
                self._tick_at(channel, now + PRESENCE_INTERVAL)
        return due

    async def _tick(self, due: Iterable[Channel]) -> None:
        channels = list(due)
        self._farewells = {s for s in self._farewells if self._name(s) not in self._channels}
        farewells = list(self._farewells)  # the others have streams again, and tick with them
        for start in range(0, len(channels), TICK_BATCH):
            await self._tick_batch(channels[start : start + TICK_BATCH])
        for start in range(0, len(farewells), TICK_BATCH):
            batch = farewells[start : start + TICK_BATCH]
            await self.store.tick_many([(session, self.process_id, 0) for session in batch])
            self._farewells.difference_update(batch)

    async def _tick_batch(self, batch: list[Channel]) -> None:
        for channel in batch:
            channel.last_tick = self.now
            # Streams that came together would be due together for ever.
            self._tick_at(
                channel, self.now + min(self.settings.heartbeat_interval, TICK_INTERVAL) * random.uniform(0.8, 1)
            )
            channel.ticked_tip = channel.tip
        ticks = await self.store.tick_many([(c.session_id, self.process_id, len(c.connections)) for c in batch])
        for channel, tick in zip(batch, ticks, strict=True):
            if isinstance(tick, Exception):
                self._tick_failed(channel, tick)
            else:
                self._compare(channel, tick)

    def _tick_failed(self, channel: Channel, error: Exception) -> None:
        if not isinstance(error, RedisRefused):
            log.debug("session %s: tick failed: %s", channel.session_id, error)
            self._tick_at(channel, self.now + self._step)
            return
        # Trying again will not mend it, and who waits for this channel would wait for ever.
        waiting = [connection for connection in channel.connections if not connection.live]
        log.warning("session %s: %d streams end: %s", channel.session_id, len(waiting), error)
        for connection in waiting:
            connection.end(frames.error_frame("unavailable", "the event store refused to serve; try again later"))

    def _compare(self, channel: Channel, tick: Tick) -> None:
        # A tombstone that was not there before tells more than the tip, which a session without events does not have.
        buried = channel.compared and tick.closed_tip is not None and tick.closed_tip != channel.tombstone
        channel.compared, channel.tombstone = True, tick.closed_tip
        if tick.due_ms is not None:
            self._tick_at(channel, self.now + max(self._step, tick.due_ms / 1000 + 0.01))
        if channel.tip is None:
            channel.tip = tick.tip
        elif buried or (tick.closed_tip is not None and ZERO < channel.tip <= tick.closed_tip):
            self._close_channel(channel)  # the message was missed
            return
        elif tick.tip != channel.tip and channel.tip == channel.ticked_tip:
            # No message moved it while Redis was asked. (If one did, the chain of messages vouches for it.)
            self.doubt(channel, tick.tip)
        if tick.tip == channel.tip:
            channel.shown = {json.loads(payload)["data"]["request_id"]: payload for payload in tick.shown}


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s died; this process is not ready any more", task.get_name(), exc_info=task.exception())
