"""Which servers answer at a Redis URL, and one wire for commands to each.

What goes wrong leaves as this package's error. A cluster's topology is redis-py's (``nodes_manager``), as are all
connections until they are made; behind sentinels each one goes to the primary that they name.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import redis.asyncio as redis
from redis import exceptions as failure
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.crc import key_slot

from agent_sse.errors import ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.sentinels import Sentinels, is_sentinel_url, sentinel_pool
from agent_sse.wire import CommandWire, ReplyError, Wire, pack

PASSING = (
    failure.ConnectionError,  # with it BusyLoadingError and MaxConnectionsError
    failure.TimeoutError,
    failure.ClusterError,
    failure.RedisClusterException,  # no node answers, or none has the slot
    OSError,
)
DENYING = (failure.AuthenticationError, failure.NoPermissionError)
PASSING_CODES = (
    "READONLY",  # a primary that has just become a replica
    "MASTERDOWN", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "LOADING", "UNKILLABLE", "TRYAGAIN", "MOVED", "ASK", "NOSCRIPT",
)  # fmt: skip
DENYING_CODES = ("NOAUTH", "WRONGPASS", "NOPERM")
CLOSED = "this connection to Redis was closed"
CROWDED = "max number of clients reached"
REPLACEMENT_PAUSE = 1.0  # s between two replacements of a server's wire: it may stay a replica for long


class Servers:
    """The servers at ``url``. ``timeout`` (seconds) bounds each step of connecting and each answer."""

    def __init__(self, url: str, timeout: float) -> None:
        self.timeout = timeout
        self.sharded = False
        self.cluster: RedisCluster | None = None
        self._wires: dict[str, CommandWire] = {}
        self._retired: set[CommandWire] = set()
        self._replaced: set[str] = set()  # the nodes whose wire was replaced a moment ago
        self._attempts: dict[str, asyncio.Task[Any]] = {}
        self._known = False
        self._suspect: str | None = None  # a node that was lost: it may be another one's slots by now
        self._closed = False
        self._url = url
        # RESP2: pub/sub messages come as plain replies, on every server alike. No socket_timeout: redis-py sends under
        # `wait_for` then, which on Python 3.11 swallows a cancellation that comes in the step in which the send ends
        # (https://github.com/python/cpython/issues/86296). No CLIENT SETINFO: it costs a round trip.
        self._options: dict[str, Any] = {
            "protocol": 2, "socket_timeout": None, "socket_connect_timeout": timeout, "driver_info": None,
        }  # fmt: skip
        self._sentinels: Sentinels | None = None
        self._links: weakref.WeakKeyDictionary[Wire, tuple[str, int]] = weakref.WeakKeyDictionary()  # for pub/sub
        self._pool = self._make_pool()

    def _make_pool(self) -> redis.ConnectionPool:
        if is_sentinel_url(self._url):
            pool = sentinel_pool(self._url, self.timeout, self._options)
            self._sentinels = pool.sentinel_manager
            return pool
        try:
            return redis.ConnectionPool.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
        except ValueError:
            # The parser's own words may hold a part of the password.
            raise ConfigurationError(
                "AGENT_SSE_REDIS_URL is not usable: write redis://host:6379/0, rediss://…, unix:///path or "
                "redis+sentinel://host:26379/service/0, and / # ? @ in a password as %2F %23 %3F %40"
            ) from None

    async def aclose(self) -> None:
        """Close every connection; nothing connects again."""
        self._closed = True
        attempts = list(self._attempts.values())
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        for wire in (*self._wires.values(), *self._retired):
            await wire.aclose()
        if self.cluster is not None:
            await self.cluster.aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()

    # -- what there is ------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Find out what answers at the URL, once. Raises RedisUnavailable or RedisRefused."""
        if self._closed:
            raise RedisRefused(CLOSED)
        while not self._known:
            await self._once("what answers", self._detect)

    async def _once(self, name: str, attempt: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        # One attempt serves all who wait: with a silent server each would take the whole time-out in turn.
        task = self._attempts.get(name)
        if task is None:
            task = self._attempts[name] = asyncio.create_task(attempt(), name=f"agent-sse Redis {name}")
            task.add_done_callback(lambda task: self._settle(name, task))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not task.cancelled() or (caller is not None and caller.cancelling()):
                raise
            raise RedisRefused(CLOSED) from None

    def _settle(self, name: str, task: asyncio.Task[Any]) -> None:
        del self._attempts[name]
        if not task.cancelled():
            task.exception()  # whoever waited got it; nobody may be left to

    async def _detect(self) -> None:
        if (wire := self.wire("")) is None:
            wire = await self._open_commands("", self._pool.make_connection)
        info = await ask(wire, "INFO")
        if isinstance(info, Exception):
            if not (isinstance(info, ReplyError) and info.code == "NOPERM"):
                raise translate(info)
            info = b""  # an ACL without INFO: a plain server is the safe guess, a cluster would answer MOVED
        fields = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
        if fields.get("cluster_enabled") == "1" and self._sentinels is None:
            await wire.aclose()
            self.cluster = await self._open_cluster()
            self.sharded = int(fields.get("redis_version", "0").partition(".")[0]) >= 7
        self._known = True

    async def _open_cluster(self) -> RedisCluster:
        with translated():
            try:
                cluster = RedisCluster.from_url(self._url, **self._options)
            except failure.RedisClusterException as error:
                raise RedisRefused(f"this URL does not suit a cluster: {error}") from None
            try:
                async with asyncio.timeout(self.timeout * 3):  # connection, CLUSTER SLOTS, COMMAND
                    _ = await cluster.initialize()
            except BaseException:
                await cluster.aclose()
                raise
            return cluster

    def nodes(self) -> list[str]:
        """Return the names of the servers that carry channels: every primary of a sharding cluster, else one."""
        if self.cluster is not None and self.sharded:
            return [str(node.name) for node in self.cluster.get_primaries()]
        return [""]

    def server_of(self, key: str) -> str:
        """Return the name of the server that has ``key``, ``""`` when there is one only or nobody has its slot."""
        if self.cluster is None:
            return ""
        slot = self.cluster.nodes_manager.slots_cache.get(key_slot(key.encode()))
        return str(slot[0].name) if slot else ""

    def carrier_of(self, channel: str) -> str:
        """Return the name of the server that carries a channel. Raises RedisUnavailable when none does now."""
        if not self.sharded:
            return ""
        node = self.server_of(channel)
        if not node:
            raise RedisUnavailable(f"no server of the cluster has the slot of {channel}")
        return node

    async def refresh(self) -> None:
        """Read the cluster's topology anew; nothing on a single server."""
        if self.cluster is not None and not self._closed:
            await self._once("topology", self._read_topology)

    async def _read_topology(self) -> None:
        with translated():
            async with asyncio.timeout(self.timeout):
                if self.cluster is not None:
                    await self.cluster.nodes_manager.initialize(last_failed_node_name=self._suspect)
                    self._suspect = None
                    for node in self._wires.keys() - self.cluster.nodes_manager.nodes_cache.keys():
                        self._retire(self._wires.pop(node))

    def learn(self, redirection: str, asked: str) -> str | None:
        """Return the name of the node at a redirection's address, which the topology may not have yet.

        Without a host it is the one of the node that was ``asked``. None when nobody can be there: a node that speaks
        TLS only may be announced with port 0.
        """
        host, _, port = "".join(redirection.split()[2:3]).rpartition(":")
        host = host or asked.rpartition(":")[0]
        if self.cluster is None or not host or not port.isdecimal() or not int(port):
            return None
        manager = self.cluster.nodes_manager
        try:
            node = manager.get_node(host=host, port=int(port))
            if node is None:
                node = ClusterNode(host, int(port), "primary", **manager.connection_kwargs)
                manager.set_nodes(manager.nodes_cache, {node.name: node})
        except OSError:  # it looks the name `localhost` up
            return None
        return str(node.name)

    # -- wires --------------------------------------------------------------------------------------------------

    def wire(self, node: str) -> CommandWire | None:
        """Return the wire to a server, None when there is none or it takes nothing now; then :meth:`reach` it."""
        wire = self._wires.get(node)
        return wire if wire is not None and not wire.congested and not wire.stale and wire.alive else None

    def replace(self, wire: CommandWire) -> None:
        """Let what comes next go over a new connection, unless this server has just got one for that."""
        for node in [node for node, held in self._wires.items() if held is wire and node not in self._replaced]:
            wire.stale = True
            self._replaced.add(node)
            asyncio.get_running_loop().call_later(REPLACEMENT_PAUSE, self._replaced.discard, node)

    async def reach(self, node: str) -> CommandWire:
        """Return the wire to a server as soon as it takes commands. Raises RedisUnavailable, RedisRefused."""
        while True:
            if self._closed:
                raise RedisRefused(CLOSED)
            if (wire := self.wire(node)) is not None:
                return wire
            held = self._wires.get(node)
            if held is not None and held.alive and not held.stale:
                await held.drained()
            else:
                await self._once(f"connect {node}", lambda: self._open_commands(node, self._maker(node)))

    async def reach_key(self, key: str) -> CommandWire:
        """Return the wire to the server that has a key. Raises RedisUnavailable, RedisRefused."""
        await self.connect()
        if self.cluster is not None and (self._suspect is not None or not self.server_of(key)):
            with contextlib.suppress(RedisUnavailable):  # what is known may do
                await self.refresh()
        self.carrier_of(key)
        return await self.reach(self.server_of(key))

    async def _open_commands(self, node: str, make: Callable[[], AbstractConnection]) -> CommandWire:
        wire = CommandWire(self.timeout, self._lost)
        with translated():
            connection = make()
            try:
                await wire.connect(connection, self._patience(connection))
            except BaseException:
                self._suspect = node
                raise
        if (before := self._wires.get(node)) is not None:
            self._retire(before)
        self._wires[node] = wire
        self._follow(connection)
        return wire

    async def open(self, node: str, wire: Wire) -> None:
        """Connect a wire of its own to ``node``, for pub/sub. Raises RedisUnavailable, RedisRefused."""
        await self.connect()
        with translated():
            connection = self._maker(node)()
            await wire.connect(connection, self._patience(connection))
        if isinstance(connection, SentinelManagedConnection):
            self._links[wire] = (connection.host, connection.port)

    def _follow(self, connection: AbstractConnection) -> None:
        # A demoted primary need not disconnect who listens to it, and it passes on only what it hears of.
        for link, address in list(self._links.items()):
            if isinstance(connection, SentinelManagedConnection) and address != (connection.host, connection.port):
                link.abort("another server is the primary now")

    def _maker(self, node: str) -> Callable[[], AbstractConnection]:
        if self.cluster is None:
            return self._pool.make_connection
        with translated():
            found = self.cluster.get_node(node_name=node) if node else self.cluster.get_default_node()
        if found is None:
            raise RedisUnavailable(f"the cluster has no node {node} any more")
        return lambda: found.connection_class(**found.connection_kwargs)

    def _patience(self, connection: AbstractConnection) -> float:
        # Each step of redis-py's handshake is a round trip, and a slow server is slow at each. Over a unix socket
        # redis-py shakes hands twice.
        authenticates = connection.username or connection.password or connection.credential_provider
        steps = sum(map(bool, (authenticates, connection.db, connection.client_name)))
        sentinels = self._sentinels is not None  # together they take no longer than one step
        return self.timeout * (1 + sentinels + steps * (2 if hasattr(connection, "path") else 1))

    def _retire(self, wire: CommandWire) -> None:
        self._retired.add(wire)
        wire.retire()

    def _lost(self, wire: CommandWire) -> None:
        self._retired.discard(wire)
        for node in [node for node, held in self._wires.items() if held is wire]:
            del self._wires[node]
            self._suspect = node


async def ask(wire: CommandWire, *command: str) -> Any:
    """Send one command and return its reply, errors too."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(reply: Any) -> None:
        if not answer.done():
            answer.set_result(reply)

    wire.send(pack(command), done)
    return await answer


def translate(error: Exception) -> Exception:
    """Return this package's error for an error reply, or for one of redis-py."""
    if isinstance(error, RedisUnavailable | RedisRefused | ConfigurationError):
        return error
    text = str(error) or type(error).__name__
    code = text.partition(" ")[0]
    # Over a unix socket redis-py hides a refusal in a ConnectionError.
    if code in DENYING_CODES or isinstance(error, DENYING) or isinstance(error.__cause__, DENYING):
        return RedisRefused(f"Redis refused this client: {text}; check user, password and ACL of AGENT_SSE_REDIS_URL")
    if isinstance(error, PASSING) or code in PASSING_CODES or text.endswith(CROWDED):
        return RedisUnavailable(f"Redis is not available: {text}")
    return RedisRefused(f"Redis answered with an error: {text}")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let errors of redis-py leave as errors of this package."""
    try:
        yield
    except (failure.RedisError, failure.RedisClusterException, OSError) as error:
        raise translate(error) from error
