"""A notifier's way to Redis: every session has a lane that keeps its events in order, and no lane waits for another.

Each publisher counts its events per session and publish.lua checks the count, so several may be on their way at once,
and an event that is sent again because its acknowledgement was lost is stored once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from agent_sse.errors import PublishTimeout, QueueFull, RedisUnavailable
from agent_sse.store import Publish, Store

log = logging.getLogger("agent_sse")

MAX_WAITING = 10_000  # events
MAX_WAITING_BYTES = 64 * 1024 * 1024
WINDOW_EVENTS = 128  # of one session on their way
WINDOW_BYTES = 4 * 1024 * 1024
MAX_LANES = 10_000  # sessions whose counter is kept; a forgotten one starts a new publisher name
BACKOFF_CAP = 1.0  # s


class _Item:
    __slots__ = ("deadline", "event", "flying", "future", "lane", "number")

    def __init__(self, event: Publish, future: asyncio.Future[str], lane: _Lane, deadline: float) -> None:
        self.event = event
        self.future = future
        self.lane = lane
        self.deadline = deadline
        self.number = 0  # 0: not sent yet
        self.flying = False

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self, reply: Any) -> None:
        """Take Redis' answer; called once for every time that the event was sent."""
        self.lane.take(self, reply)


class _Lane:
    """One publisher of one session.

    While all goes well, events are sent as they come, each with the number of the one before as its floor. After
    the first that is not acknowledged nothing more is sent until everything that is on its way is answered; then
    what Redis does not have goes out again, in order. What timed out or was cancelled meanwhile is not sent again:
    the floor lets its number be missing.
    """

    __slots__ = (
        "_floor", "_flying", "_flying_bytes", "_owner", "_progress", "_sent", "again", "broken", "done", "failures",
        "key", "name", "session_id", "stuck", "timer", "waiting",
    )  # fmt: skip

    def __init__(self, owner: Publisher, session_id: str) -> None:
        self.session_id = session_id
        self.key = owner.key_of(session_id)
        self.name = secrets.token_urlsafe(9)
        self.done = 0  # the highest number that Redis has for certain
        self.waiting: deque[_Item] = deque()
        self.again: list[_Item] = []
        self.broken = False
        self.stuck = False  # its server has to be reached first
        self.failures = 0
        self.timer: asyncio.TimerHandle | None = None
        self._owner = owner
        self._sent = 0  # numbers given out
        self._floor = 0
        self._flying = 0
        self._flying_bytes = 0
        self._progress = False

    @property
    def idle(self) -> bool:
        return not (self._flying or self.waiting or self.again)

    def push(self) -> None:
        """Send what may be sent now."""
        waiting = self.waiting
        while waiting and self._flying < WINDOW_EVENTS and self._flying_bytes < WINDOW_BYTES:
            if self.broken or self.stuck or self.timer is not None:
                return
            item = waiting[0]
            if item.future.done() or self._send(item):
                waiting.popleft()
                if not item.flying:
                    self._owner.forget(item)

    def _send(self, item: _Item) -> bool:
        """Send an event; False when the server has to be reached first."""
        number = item.number or self._sent + 1
        try:
            posted = self._owner.post(item, self.name, number, self._floor if self._flying else self.done)
        except Exception as error:
            # A defect: who published hears of it, the rest is still served.
            log.exception("publishing an event failed")
            item.fail(error)
            return True
        if not posted:
            self.stuck = True
            self._owner.reach(self)
            return False
        if not item.number:
            item.number = self._sent = number
        self._floor = number
        item.flying = True
        self._flying += 1
        self._flying_bytes += len(item.event.payload)
        return True

    def purge(self) -> None:
        """Let go of the oldest events, as far as nobody waits for them any more."""
        while self.waiting and self.waiting[0].future.done():
            self._owner.forget(self.waiting.popleft())

    def resume(self, error: Exception | None) -> None:
        """Go on once the server is reached, or fail what waits for it."""
        self.stuck = False
        if error is not None:
            for item in self.waiting:
                item.fail(error)
        self.push()

    def take(self, item: _Item, reply: Any) -> None:
        """Take the answer to an event that was sent."""
        item.flying = False
        self._flying -= 1
        self._flying_bytes -= len(item.event.payload)
        if isinstance(reply, RedisUnavailable):
            self._keep(item)
        elif isinstance(reply, Exception):
            self.broken = self._progress = True  # without it the rest moves up: no reason to wait
            item.fail(reply)
            self._owner.forget(item)
        elif reply[0] == b"GAP":
            if not self.broken:
                self.done = 0  # Redis does not know what it acknowledged: another history, with no floor
            self._keep(item)
        else:
            self.done = max(self.done, item.number)
            self._progress = True
            if not item.future.done():
                item.future.set_result(reply[0].decode())
            self._owner.forget(item)
        if not self._flying and self.broken:
            self._recover()
        elif self.waiting and not self.broken:
            self.push()

    def _keep(self, item: _Item) -> None:
        self.broken = True
        self.again.append(item)

    def _recover(self) -> None:
        self.again.sort(key=lambda item: item.number)  # a call that took a detour is answered late
        self.waiting.extendleft(reversed(self.again))
        self.again.clear()
        self.failures = 0 if self._progress else self.failures + 1
        self.broken = self._progress = False
        if self.failures and self.waiting:
            self.timer = self._owner.later(self.failures, self._retry)
        else:
            self.push()

    def _retry(self) -> None:
        self.timer = None
        self.push()


class Publisher:
    """Publishes events of any number of sessions, each session's in the order of the calls. ``timeout`` in seconds."""

    def __init__(self, store: Store, *, timeout: float) -> None:
        self._store = store
        self._timeout = timeout
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._unanswered: dict[_Item, None] = {}  # the oldest first; who waits for them
        self._closed = False
        self._held = 0
        self._held_bytes = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._stuck: dict[str, list[_Lane]] = {}
        self._reaching: dict[str, asyncio.Task[None]] = {}

    async def aclose(self) -> None:
        """Wait for what is being published (it is bounded by the time-out), then stop."""
        while self._unanswered:
            await asyncio.wait([item.future for item in self._unanswered])
            await asyncio.sleep(0)  # who waited takes it out
        self._closed = True
        for task in self._reaching.values():
            task.cancel()
        await asyncio.gather(*self._reaching.values(), return_exceptions=True)
        timers = [self._expiry, *(lane.timer for lane in self._lanes.values())]
        for timer in timers:
            if timer is not None:
                timer.cancel()

    async def publish(self, event: Publish) -> str:
        """Publish and return the event's id, ``"<ms>-<seq>"``, once the primary has executed it.

        Raises :class:`PublishTimeout`, :class:`QueueFull`, :class:`RedisRefused`.
        """
        size = len(event.payload)
        if self._held >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} events wait for Redis already; publish fewer at a time")
        if self._held and self._held_bytes + size > MAX_WAITING_BYTES:
            raise QueueFull(f"{self._held_bytes} bytes of events wait for Redis already; publish fewer at a time")
        loop = asyncio.get_running_loop()
        lane = self._lane(event.session_id)
        item = _Item(event, loop.create_future(), lane, loop.time() + self._timeout)
        self._held += 1
        self._held_bytes += size
        self._unanswered[item] = None
        if self._expiry is None:
            self._expiry = loop.call_at(item.deadline, self._expire)
        lane.waiting.append(item)
        lane.push()
        try:
            return await item.future
        finally:
            del self._unanswered[item]
            if item.future.cancelled():
                lane.purge()

    def _lane(self, session_id: str) -> _Lane:
        lane = self._lanes.get(session_id)
        if lane is None:
            lane = self._lanes[session_id] = _Lane(self, session_id)
            if len(self._lanes) > MAX_LANES:
                idle = next((name for name, lane in self._lanes.items() if lane.idle), None)
                if idle is not None:
                    del self._lanes[idle]
        else:
            self._lanes.move_to_end(session_id)
        return lane

    def _expire(self) -> None:
        # One timer for all: they have the same time-out, so the oldest is the next.
        loop = asyncio.get_running_loop()
        self._expiry = None
        for item in self._unanswered:
            if item.deadline > loop.time() + 0.001:
                self._expiry = loop.call_at(item.deadline, self._expire)
                break
            item.fail(PublishTimeout(self._timeout, sent=item.number > 0))
            item.lane.purge()

    # -- for the lanes ------------------------------------------------------------------------------------------

    def key_of(self, session_id: str) -> str:
        """Return a key of the session: it says which server carries it."""
        return self._store.keyspace.session(session_id).events

    def post(self, item: _Item, name: str, number: int, floor: int) -> bool:
        """Send an event; False when its server has to be reached first."""
        return self._store.backend.post(self._store.publish_call(item.event, name, number, floor), item.answer)

    def forget(self, item: _Item) -> None:
        """Let go of an event that is neither waiting nor on its way any more."""
        self._held -= 1
        self._held_bytes -= len(item.event.payload)

    def later(self, failures: int, again: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Call ``again`` after a random pause, well below the time-out: the lane's next events wait for it too."""
        return None if self._closed else asyncio.get_running_loop().call_later(self._pause(failures), again)

    def _pause(self, failures: int) -> float:
        return random.uniform(0, min(BACKOFF_CAP, self._timeout / 8, 0.02 * 2 ** min(failures, 10)))

    def reach(self, lane: _Lane) -> None:
        """Let a lane go on when its server can be reached; one attempt serves all lanes of a server."""
        if self._closed:
            return
        node = self._store.backend.server_of(lane.key)
        self._stuck.setdefault(node, []).append(lane)
        if node not in self._reaching:
            self._reaching[node] = asyncio.create_task(self._reach(node), name=f"agent-sse publisher {node}")

    async def _reach(self, node: str) -> None:
        failures = 0
        lanes = self._stuck[node]
        while True:
            error: Exception | None = None
            try:
                await self._store.backend.reach(lanes[0].key)
            except RedisUnavailable:
                failures += 1
                lanes.append(lanes.pop(0))  # the first one's slot may be nobody's
                await asyncio.sleep(self._pause(failures))
                continue
            except Exception as refusal:
                error = refusal
            break
        del self._stuck[node], self._reaching[node]
        for lane in lanes:
            lane.resume(error)
