"""A channel's regular comparison with Redis: when it is due, and what its answer means.

A lost last message has no successor to betray it, so every channel asks now and then. The same script settles what is
overdue and renews the count of open streams.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from agent_sse import frames
from agent_sse.channel import Channel
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.frames import ZERO
from agent_sse.store import STREAM_LEASE_MS, Tick
from agent_sse.wheel import Wheel

if TYPE_CHECKING:
    from agent_sse.hub import Hub

log = logging.getLogger("agent_sse")

TICK_INTERVAL = 15.0  # s at most, also with a longer heartbeat: counts of streams are believed for 45 s
TICK_BATCH = 20  # sessions at a time: what is published meanwhile waits in Redis behind them, about 30 us for each
PRESENCE_INTERVAL = 1.0  # s; a session's count of streams is written at most this often


class Ticks:
    """The ticks of one hub's channels. ``step`` (seconds) is how often :meth:`take` is called."""

    def __init__(self, hub: Hub, step: float) -> None:
        self._hub = hub
        self._step = step
        self._interval = min(hub.settings.heartbeat_interval, TICK_INTERVAL)
        self._wheel: Wheel[Channel] = Wheel(step, 0.0)
        # A server that does not answer keeps no other one's sessions waiting: each has a queue and a task of its own,
        # and what is told of a session is told in order. An id stands for a session whose last stream has left.
        self._queues: dict[str, dict[Channel | str, None]] = {}
        self._unsaid: dict[str, float] = {}  # farewells that Redis may not have heard, until when they are worth saying
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = self._closed = False

    @property
    def alive(self) -> bool:
        """False once a task of this has died."""
        return not self._failed

    def begin(self, now: float) -> None:
        """Let the time, the loop's, begin."""
        self._wheel = Wheel(self._step, now)

    async def aclose(self) -> None:
        """Stop, and say farewell in Redis as far as it answers."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        servers: dict[str, list[str]] = {}
        for session in self._unsaid:
            servers.setdefault(self._hub.store.server_of(session), []).append(session)
        try:
            async with asyncio.timeout(1.0):
                await asyncio.gather(*map(self._say_all, servers.values()))
        except TimeoutError:
            pass
        if self._unsaid:
            log.info(
                "Redis was not told that %d sessions have no stream here; that lapses by itself", len(self._unsaid)
            )

    # -- when -----------------------------------------------------------------------------------------------------

    def at(self, channel: Channel, when: float) -> None:
        """Compare a channel with Redis at ``when``, or before."""
        if when < channel.next_tick:
            channel.next_tick = when
            self._wheel.put(channel, when)

    def at_once(self, channel: Channel) -> None:
        """Compare a channel with Redis now."""
        channel.next_tick = 0.0
        self._enqueue(channel.session_id, channel)

    def count(self, channel: Channel) -> None:
        """Let Redis know the number of streams, not more often than once a second, and not all of a crowd at a time."""
        self.at(channel, max(self._hub.now, channel.last_tick) + PRESENCE_INTERVAL * random.uniform(1, 2))

    def farewell(self, session_id: str) -> None:
        """Let Redis know that a session has no stream here any more."""
        self._unsaid.pop(session_id, None)
        self._unsaid[session_id] = self._hub.now + STREAM_LEASE_MS / 1000
        self._enqueue(session_id, session_id)

    def take(self, now: float) -> None:
        """Begin what is due."""
        for channel in self._wheel.take(now):
            if channel.next_tick <= now + self._step:  # not moved since: then it is in the wheel once more
                self._enqueue(channel.session_id, channel)
        # They were kept in the order of their ends. What Redis believed of these sessions has lapsed by itself.
        while self._unsaid and next(iter(self._unsaid.values())) <= now:
            del self._unsaid[next(iter(self._unsaid))]
        for session in self._unsaid:
            self._enqueue(session, session)

    # -- one task per server --------------------------------------------------------------------------------------

    def _enqueue(self, session_id: str, item: Channel | str) -> None:
        if self._closed:
            return
        server = self._hub.store.server_of(session_id)
        queue = self._queues.get(server)
        if queue is None:
            queue = self._queues[server] = {}
            task = asyncio.create_task(self._work(server, queue), name=f"agent-sse ticks {server}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        queue[item] = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed = True
            log.critical("%s died; this process is not ready any more", task.get_name(), exc_info=task.exception())

    async def _work(self, server: str, queue: dict[Channel | str, None]) -> None:
        try:
            while queue:
                batch = list(islice(queue, TICK_BATCH))
                for item in batch:
                    del queue[item]
                due = [item for item in batch if isinstance(item, Channel) and self._may_compare(item)]
                await self._work_off(due, [item for item in batch if isinstance(item, str)])
        finally:
            del self._queues[server]

    async def _work_off(self, due: Sequence[Channel], gone: Sequence[str]) -> None:
        try:
            await self._say(gone)
            await self.compare(due)
        except (RedisUnavailable, RedisRefused) as error:
            log.debug("ticks wait for Redis: %s", error)
            for channel in due:
                self.at(channel, self._hub.now + random.uniform(0, 2 * self._step))

    def _may_compare(self, channel: Channel) -> bool:
        """Tell whether a channel is to be compared; one that is not subscribed gets another time."""
        if not self._hub.has(channel):
            return False  # its last stream has left
        channel.next_tick = float("inf")
        if not channel.subscribed:
            self.at(channel, self._hub.now + PRESENCE_INTERVAL)
        return channel.subscribed

    async def _say_all(self, sessions: Sequence[str]) -> None:
        try:
            for start in range(0, len(sessions), TICK_BATCH):
                await self._say(sessions[start : start + TICK_BATCH])
        except (RedisUnavailable, RedisRefused) as error:
            log.debug("farewells end: %s", error)

    async def _say(self, sessions: Sequence[str]) -> None:
        """Say farewell for sessions; where it was not heard it stays to be said."""
        asked = {session: self._unsaid[session] for session in sessions if session in self._unsaid}
        gone = [session for session in asked if not self._hub.streams_of(session)]  # the others tick with their streams
        if gone:
            replies = await self._hub.store.tick_many([(session, self._hub.process_id, 0) for session in gone])
            for session, reply in zip(gone, replies, strict=True):
                if isinstance(reply, RedisUnavailable):
                    del asked[session]
        for session, until in asked.items():
            if self._unsaid.get(session) == until:  # else it came and left again, which this answer does not know
                del self._unsaid[session]

    # -- comparing ------------------------------------------------------------------------------------------------

    async def compare(self, channels: Sequence[Channel]) -> None:
        """Compare channels with Redis. Raises RedisUnavailable, RedisRefused when it answers for none of them."""
        if not channels:
            return
        hub = self._hub
        for channel in channels:
            channel.last_tick = hub.now
            # Streams that came together would be due together for ever.
            self.at(channel, hub.now + self._interval * random.uniform(0.8, 1))
            channel.ticked_tip = channel.tip
        ticks = await hub.store.tick_many([(c.session_id, hub.process_id, len(c.connections)) for c in channels])
        for channel, tick in zip(channels, ticks, strict=True):
            if isinstance(tick, Exception):
                self._refused(channel, tick)
            else:
                self._compare(channel, tick)

    def _refused(self, channel: Channel, error: Exception) -> None:
        if not isinstance(error, RedisRefused):
            log.debug("session %s: tick failed: %s", channel.session_id, error)
            self.at(channel, self._hub.now + self._step)
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
            self.at(channel, self._hub.now + max(self._step, tick.due_ms / 1000 + 0.01))
        if channel.tip is None:
            channel.tip = tick.tip
        elif buried or (tick.closed_tip is not None and ZERO < channel.tip <= tick.closed_tip):
            self._hub.close_channel(channel)  # the message was missed
            return
        elif tick.tip != channel.tip and channel.tip == channel.ticked_tip:
            # No message moved it while Redis was asked. (If one did, the chain of messages vouches for it.)
            self._hub.doubt(channel, tick.tip)
        if tick.tip == channel.tip:
            channel.shown = {json.loads(payload)["data"]["request_id"]: payload for payload in tick.shown}
