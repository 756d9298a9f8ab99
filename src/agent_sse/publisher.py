"""A notifier's one ordered way to Redis: concurrent publishes gather into a pipeline, one pipeline is in flight.

Each publisher counts its events per session and publish.lua checks the count, so an event that is sent again because
its acknowledgement was lost is stored once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import OrderedDict, deque

from agent_sse.errors import PublishTimeout, QueueFull, RedisRefused, RedisUnavailable
from agent_sse.store import Publish, Store

log = logging.getLogger("agent_sse")

MAX_WAITING = 10_000  # events
BATCH_EVENTS = 128
BATCH_BYTES = 4 * 1024 * 1024
MAX_COUNTERS = 10_000  # sessions whose counter is kept; a forgotten one starts a new publisher name
BACKOFF_CAP = 1.0  # s


class _Counter:
    """One publisher of one session: ``sent`` numbers given out, ``done`` the highest that Redis has for certain."""

    __slots__ = ("done", "name", "sent")

    def __init__(self) -> None:
        self.name = secrets.token_urlsafe(9)
        self.sent = 0
        self.done = 0


class _Item:
    __slots__ = ("counter", "event", "future", "number")

    def __init__(self, event: Publish, future: asyncio.Future[str]) -> None:
        self.event = event
        self.future = future
        self.counter: _Counter | None = None
        self.number = 0  # 0: not sent yet

    def settle(self, event_id: str) -> None:
        if not self.future.done():
            self.future.set_result(event_id)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Publisher:
    """Publishes events of any number of sessions, each session's in the order of the calls. ``timeout`` in seconds."""

    def __init__(self, store: Store, *, timeout: float) -> None:
        self._store = store
        self._timeout = timeout
        self._waiting: deque[_Item] = deque()
        self._batch: list[_Item] = []
        self._filled = asyncio.Event()
        self._counters: OrderedDict[str, _Counter] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Wait for what is being published (it is bounded by the time-out), then stop."""
        pending = [item.future for item in (*self._batch, *self._waiting)]
        if pending:
            await asyncio.wait(pending)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def publish(self, event: Publish) -> str:
        """Publish and return the event's id, ``"<ms>-<seq>"``, once the primary has executed it.

        Raises :class:`PublishTimeout`, :class:`QueueFull`, :class:`RedisRefused`.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} events wait for Redis already; publish fewer at a time")
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="agent-sse publisher")
        item = _Item(event, loop.create_future())
        timer = loop.call_later(self._timeout, self._expire, item)
        self._waiting.append(item)
        self._filled.set()
        try:
            return await item.future
        finally:
            timer.cancel()  # a cancelled caller leaves a done future behind, which the sender passes over

    def _expire(self, item: _Item) -> None:
        item.fail(PublishTimeout(self._timeout, sent=item.number > 0))

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            self._batch = self._take()
            if not self._batch:
                self._filled.clear()
                continue
            try:
                await self._send(self._batch)
            except Exception as error:
                # A defect: who published hears of it (those that have their id do not), the rest is still served.
                log.exception("publishing %d events failed", len(self._batch))
                for item in self._batch:
                    item.fail(error)

    def _take(self) -> list[_Item]:
        batch: list[_Item] = []
        size = 0
        while self._waiting and len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
            item = self._waiting.popleft()
            if not item.future.done():
                batch.append(item)
                size += len(item.event.payload)
        return batch

    def _counter(self, session_id: str) -> _Counter:
        counter = self._counters.get(session_id)
        if counter is None:
            counter = self._counters[session_id] = _Counter()
            if len(self._counters) > MAX_COUNTERS:
                self._counters.popitem(last=False)
        self._counters.move_to_end(session_id)
        return counter

    async def _send(self, batch: list[_Item]) -> None:
        failures = 0
        while batch:
            try:
                left = await self._attempt(batch)
                # What was settled or refused let the rest move up: no reason to wait.
                failures = 0 if len(left) < len(batch) else failures + 1
                batch = left
            except RedisUnavailable:
                failures += 1
            except RedisRefused as error:
                for item in batch:
                    item.fail(error)
                return
            # What timed out or was cancelled meanwhile is not sent again; the floor lets its number be missing.
            batch = [item for item in batch if not item.future.done()]
            if batch and failures:
                # Well below the time-out: the next events wait for this pause too.
                await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP, self._timeout / 8, 0.02 * 2**failures)))

    async def _attempt(self, batch: list[_Item]) -> list[_Item]:
        """Send a batch; return what has to be sent again, in order."""
        await self._store.backend.connect()
        # Who timed out meanwhile was told whether the event had been sent: that must stay true.
        batch = [item for item in batch if not item.future.done()]
        floors: dict[_Counter, int] = {}
        calls = []
        for item in batch:
            if item.counter is None:
                item.counter = self._counter(item.event.session_id)
                item.counter.sent += 1
                item.number = item.counter.sent
            floor = floors.get(item.counter, item.counter.done)
            calls.append(self._store.publish_call(item.event, item.counter.name, item.number, floor))
            floors[item.counter] = item.number
        again: list[_Item] = []
        broken: set[_Counter] = set()
        if not batch:
            return again
        for item, reply in zip(batch, await self._store.backend.run_many(calls), strict=True):
            counter = item.counter or self._counter(item.event.session_id)
            if isinstance(reply, RedisUnavailable):
                broken.add(counter)
                again.append(item)
            elif isinstance(reply, Exception):
                broken.add(counter)
                item.fail(reply)
            elif reply[0] == b"GAP":
                if counter not in broken:
                    counter.done = 0  # Redis does not know what it acknowledged: another history, with no floor
                    broken.add(counter)
                again.append(item)
            else:
                counter.done = item.number
                item.settle(reply[0].decode())
        return again
