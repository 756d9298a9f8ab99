"""The one pub/sub reader of a process: keeps channels subscribed over every reconnect, and says when it could not.

Own reconnecting rather than redis-py's `PubSub`, which reconnects without a word (messages are lost
in between) and never checks that its PING is answered. Nothing here promises delivery; the hub's tip chain does.
https://redis.io/docs/latest/develop/pubsub/
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from agent_sse.backend import Backend
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.wire import ReplyError, Wire, pack

log = logging.getLogger("agent_sse")

PING_INTERVAL = 5.0  # s; a half-open connection is found within two of these
SUBSCRIBE_BATCH = 500  # channels in one command
BACKOFF_CAP = 2.0  # s
MESSAGES = (b"message", b"smessage")
CONFIRMATIONS = (b"subscribe", b"ssubscribe")


class Subscriber:
    """Keeps channels subscribed. The callbacks run in the event loop, must not block and must not raise.

    ``on_message(channel, data)``; ``on_subscribed(channel)`` whenever Redis has confirmed a subscription (the first
    and each one after a reconnect); ``on_lost(channel)`` when messages may be missing from now on.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_subscribed: Callable[[bytes], None] = lambda channel: None,
        on_lost: Callable[[bytes], None] = lambda channel: None,
    ) -> None:
        self._backend = backend
        self.on_message = on_message
        self.on_subscribed = on_subscribed
        self.on_lost = on_lost
        self._placed: dict[bytes, _Link | None] = {}
        self._unplaced: set[bytes] = set()
        self._links: dict[str, _Link] = {}
        self._work = asyncio.Event()
        self._stale_topology = False
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self.reconnects = 0

    def start(self) -> None:
        """Start reading; :meth:`aclose` ends it."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="agent-sse pub/sub")

    async def aclose(self) -> None:
        """Stop reading and close the connections."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """False once the reader has died of an error nobody foresaw; readiness fails then."""
        return self._task is not None and not self._task.done()

    def add(self, channel: bytes) -> None:
        """Subscribe to a channel; ``on_subscribed`` tells when it is so."""
        if channel not in self._placed:
            self._placed[channel] = None
            self._unplaced.add(channel)
            self._work.set()

    def remove(self, channel: bytes) -> None:
        """Unsubscribe from a channel."""
        link = self._placed.pop(channel, None)
        self._unplaced.discard(channel)
        if link is not None:
            link.unsubscribe(channel)

    async def _run(self) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                try:
                    await self._place()
                except (RedisUnavailable, RedisRefused) as error:
                    log.log(
                        logging.WARNING if self._failures == 0 else logging.DEBUG,
                        "pub/sub is down, %d channels wait: %s", len(self._unplaced), error,
                    )  # fmt: skip
                    await self._back_off()
                    self._work.set()
        finally:
            links = list(self._links.values())
            tasks = [link.task for link in links if link.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _back_off(self) -> None:
        self._failures += 1
        self._stale_topology = True
        # Full jitter, so that all processes do not come back in the same moment.
        await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP, 0.05 * 2 ** min(self._failures, 10))))

    async def _place(self) -> None:
        if self._stale_topology:
            self._stale_topology = False  # before: what is displaced meanwhile needs another look
            try:
                await self._backend.refresh()
            except (RedisUnavailable, RedisRefused):
                self._stale_topology = True
                raise
        if self._failures:
            await self._back_off()  # a link that opens and dies at once must not spin
        silent: dict[str, RedisUnavailable | RedisRefused] = {}
        for channel in list(self._unplaced):
            node = await self._backend.node_of(channel.decode())
            link = self._links.get(node)
            if node in silent:
                continue  # one shard that is away must not keep the others' channels waiting
            if link is None:
                link = _Link(self, node, sharded=self._backend.sharded)
                try:
                    await self._backend.open(node, link.wire)
                except (RedisUnavailable, RedisRefused) as error:
                    silent[node] = error
                    continue
                self._links[node] = link
                link.start()
            if channel in self._unplaced:  # not removed meanwhile
                self._unplaced.discard(channel)
                self._placed[channel] = link
                link.subscribe(channel)
        if silent:
            raise next(iter(silent.values()))

    def confirmed(self, channel: bytes, link: _Link) -> None:
        """Note that Redis confirmed a subscription on ``link``."""
        self._failures = 0
        link.confirmed = True
        if self._placed.get(channel) is link:
            self.on_subscribed(channel)

    def displaced(self, channel: bytes, link: _Link) -> None:
        """Note that Redis ended a subscription itself: the channel's slot moved to another server."""
        if self._placed.get(channel) is link:
            self._placed[channel] = None
            self._unplaced.add(channel)
            self._stale_topology = True
            self.on_lost(channel)
            self._work.set()

    def ended(self, link: _Link) -> None:
        """Place the channels of a broken link anew."""
        if self._links.get(link.node) is link:
            del self._links[link.node]
        self.reconnects += 1
        if not link.confirmed:
            self._failures += 1  # it opens and dies: wait before the next one
        self._stale_topology = True
        for channel, owner in self._placed.items():
            if owner is link:
                self._placed[channel] = None
                self._unplaced.add(channel)
                self.on_lost(channel)
        if self._unplaced:
            self._work.set()


class _Link:
    """One connection to one server: what it says goes to the subscriber, (un)subscriptions and PINGs to it."""

    def __init__(self, owner: Subscriber, node: str, *, sharded: bool) -> None:
        self.owner = owner
        self.node = node
        self.wire = Wire(self._take)
        self._prefix = "S" if sharded else ""
        self._sharded = sharded
        self._orders: dict[bytes, bool] = {}  # of this step of the loop
        self._answered = True
        self.confirmed = False
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._run(), name=f"agent-sse pub/sub {self.node}")

    def subscribe(self, channel: bytes) -> None:
        self._order(channel, True)

    def unsubscribe(self, channel: bytes) -> None:
        self._order(channel, False)

    async def _run(self) -> None:
        pinging = asyncio.create_task(self._ping(), name=f"agent-sse pub/sub {self.node} PING")
        try:
            await asyncio.wait((self.wire.lost, pinging), return_when=asyncio.FIRST_COMPLETED)
            await self.wire.aclose()
            log.info("pub/sub connection lost: %s", self.wire.reason)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
            self.wire.abort("connection closed")
            await self.wire.aclose()
            self.owner.ended(self)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, list):
            kind = reply[0]
            if kind in MESSAGES:
                self.owner.on_message(reply[1], reply[2])
            elif kind in CONFIRMATIONS:
                self.owner.confirmed(reply[1], self)
            elif kind == b"sunsubscribe":
                self.owner.displaced(reply[1], self)
            elif kind == b"pong":
                self._answered = True
        elif isinstance(reply, ReplyError):
            self.wire.abort(f"a subscription was refused: {reply}")
        else:
            self._answered = True

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while self._answered or self.wire.heard + PING_INTERVAL > loop.time():
            self._answered = False
            self.wire.write(pack(("PING",)))
            await asyncio.sleep(PING_INTERVAL)
        self.wire.abort(f"no answer to PING within {PING_INTERVAL:g} s")

    def _order(self, channel: bytes, subscribe: bool) -> None:
        if not self._orders:
            asyncio.get_running_loop().call_soon(self._send)
        self._orders[channel] = subscribe

    def _send(self) -> None:
        orders, self._orders = self._orders, {}
        for verb, wanted in (("UNSUBSCRIBE", False), ("SUBSCRIBE", True)):
            channels = [channel for channel, subscribe in orders.items() if subscribe is wanted]
            # Sharded channels of one command must share a slot, so there each gets its own, all in one write.
            size = 1 if self._sharded else SUBSCRIBE_BATCH
            for i in range(0, len(channels), size):
                self.wire.write(pack((self._prefix + verb, *channels[i : i + size])))
