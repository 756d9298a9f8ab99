"""The one pub/sub reader of a process: keeps channels subscribed over every reconnect, and says when it could not.

Own reconnecting on redis-py's connections rather than its `PubSub`, which reconnects without a word (messages are lost
in between) and never checks that its PING is answered. Nothing here promises delivery; the hub's tip chain does.
https://redis.io/docs/latest/develop/pubsub/
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from agent_sse.backend import Backend
from agent_sse.errors import RedisRefused, RedisUnavailable

log = logging.getLogger("agent_sse")

PING_INTERVAL = 5.0  # s; a half-open connection is found within two of these
FAIR_SHARE = 64  # messages taken in a row before other tasks get a turn
SUBSCRIBE_BATCH = 500  # channels in one command
BACKOFF_CAP = 2.0  # s


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
            for link in links:
                link.task.cancel()
            await asyncio.gather(*(link.task for link in links), return_exceptions=True)

    async def _back_off(self) -> None:
        self._failures += 1
        self._stale_topology = True
        # Full jitter, so that all processes do not come back in the same moment.
        await asyncio.sleep(random.uniform(0, min(BACKOFF_CAP, 0.05 * 2 ** min(self._failures, 10))))

    async def _place(self) -> None:
        if self._stale_topology:
            await self._backend.refresh()
            self._stale_topology = False
        if self._failures:
            await self._back_off()  # a link that opens and dies at once must not spin
        silent: dict[str, RedisUnavailable | RedisRefused] = {}
        for channel in list(self._unplaced):
            node = await self._backend.node_of(channel.decode())
            link = self._links.get(node)
            if node in silent:
                continue  # one shard that is away must not keep the others' channels waiting
            if link is None:
                try:
                    connection = await self._backend.open_connection(node)
                except (RedisUnavailable, RedisRefused) as error:
                    silent[node] = error
                    continue
                link = self._links[node] = _Link(self, node, connection, sharded=self._backend.sharded)
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
    """One connection to one server: a reader, and a sender of (un)subscriptions and PINGs."""

    def __init__(self, owner: Subscriber, node: str, connection: AbstractConnection, *, sharded: bool) -> None:
        self.owner = owner
        self.node = node
        self._connection = connection
        self._prefix = "S" if sharded else ""
        self._sharded = sharded
        self._orders: dict[bytes, bool] = {}
        self._ordered = asyncio.Event()
        self._answered = True
        self.confirmed = False
        self.task = asyncio.create_task(self._run(), name=f"agent-sse pub/sub {node}")

    def subscribe(self, channel: bytes) -> None:
        self._orders[channel] = True
        self._ordered.set()

    def unsubscribe(self, channel: bytes) -> None:
        self._orders[channel] = False
        self._ordered.set()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._send())
        except* (RedisError, OSError) as errors:
            log.info("pub/sub connection lost: %s", errors.exceptions[0])
        finally:
            await self._connection.disconnect(nowait=True)
            self.owner.ended(self)

    async def _read(self) -> None:
        taken = 0
        while True:
            reply: Any = await self._connection.read_response(
                timeout=math.inf, disconnect_on_error=False, push_request=True
            )
            taken += 1
            if taken % FAIR_SHARE == 0:
                await asyncio.sleep(0)  # a full buffer is parsed without ever suspending
            if not isinstance(reply, list):
                self._answered = True
                continue
            match reply[0]:
                case b"message" | b"smessage":
                    self.owner.on_message(reply[1], reply[2])
                case b"subscribe" | b"ssubscribe":
                    self.owner.confirmed(reply[1], self)
                case b"sunsubscribe":
                    self.owner.displaced(reply[1], self)
                case b"pong":
                    self._answered = True

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        next_ping = loop.time() + PING_INTERVAL
        while True:
            try:
                async with asyncio.timeout_at(next_ping):
                    await self._ordered.wait()
            except TimeoutError:
                if not self._answered:
                    raise ConnectionError(f"no answer to PING within {PING_INTERVAL:g} s") from None
                self._answered = False
                next_ping = loop.time() + PING_INTERVAL
                async with asyncio.timeout(PING_INTERVAL):  # a peer that does not read must not hold this up either
                    await self._connection.send_command("PING", check_health=False)
                continue
            self._ordered.clear()
            orders, self._orders = self._orders, {}
            for verb, wanted in (("UNSUBSCRIBE", False), ("SUBSCRIBE", True)):
                channels = [channel for channel, subscribe in orders.items() if subscribe is wanted]
                if channels:
                    await self._command(self._prefix + verb, channels)

    async def _command(self, verb: str, channels: list[bytes]) -> None:
        # Sharded channels of one command must share a slot, so there each gets its own, all in one write.
        size = 1 if self._sharded else SUBSCRIBE_BATCH
        commands: list[list[str | bytes]] = [[verb, *channels[i : i + size]] for i in range(0, len(channels), size)]
        async with asyncio.timeout(PING_INTERVAL):
            await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
