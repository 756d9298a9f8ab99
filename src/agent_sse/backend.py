"""One process's way to Redis: which kind of server it is, scripts by SHA, pipelines, connections for pub/sub.

The only module beside `pubsub` and `embedded` that knows redis-py; whatever goes wrong leaves it as `RedisUnavailable`
(trying again may help) or `RedisRefused` (it will not).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis import exceptions as failure
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from agent_sse.errors import ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.scripts import Script

Arg = str | bytes | int
PASSING = (
    failure.ConnectionError,  # with it BusyLoadingError and MaxConnectionsError
    failure.TimeoutError,
    failure.ReadOnlyError,  # a primary that has just become a replica
    failure.ClusterError,
    failure.ClusterDownError,
    failure.SlotNotCoveredError,
    failure.TryAgainError,
    failure.MovedError,
    failure.AskError,
    failure.NoScriptError,
    OSError,
)
MAX_CONNECTIONS = 32  # commands at a time; pub/sub has connections of its own
PASSING_CODES = ("MASTERDOWN", "NOREPLICAS", "BUSY", "CLUSTERDOWN", "LOADING", "UNKILLABLE")


@dataclass(frozen=True, slots=True)
class Call:
    """A script to run: its keys are names of one session, so of one cluster slot."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Arg]


class Backend:
    """Runs scripts and commands on Redis, Valkey or Redis Cluster, whichever answers at ``url``.

    ``timeout`` (seconds) bounds every command. Nothing is retried here: who calls knows what a retry may do.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self.url = url
        self.timeout = timeout
        self._client: redis.Redis | RedisCluster | None = None
        self._sharded = False
        self._attempt: asyncio.Task[None] | None = None
        self._closed = False
        # redis-py's pools refuse a command when all connections are taken; here it waits for one.
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        try:
            redis.ConnectionPool.from_url(url)
        except ValueError:
            # The parser's own words may hold a part of the password.
            raise ConfigurationError(
                "AGENT_SSE_REDIS_URL is not usable: write redis://host:6379/0, rediss://… or unix:///path, "
                "and / # ? @ in a password as %2F %23 %3F %40"
            ) from None

    async def aclose(self) -> None:
        """Close every connection; nothing connects again."""
        self._closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.gather(self._attempt, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def publish_command(self) -> str:
        """``SPUBLISH`` on a cluster that has it (Redis 7, Valkey), else ``PUBLISH``. Known once connected."""
        return "SPUBLISH" if self._sharded else "PUBLISH"

    @property
    def sharded(self) -> bool:
        """Whether channels live in their slot's shard."""
        return self._sharded

    @property
    def clustered(self) -> bool:
        """Whether the server is a Redis Cluster. Known once connected."""
        return isinstance(self._client, RedisCluster)

    async def connect(self) -> redis.Redis | RedisCluster:
        """Return the client, finding out first what answers at the URL. Raises RedisUnavailable or RedisRefused."""
        if self._closed:
            raise RedisRefused("this connection to Redis was closed")
        while self._client is None:
            # One attempt serves all who wait: with a silent server each would take the whole time-out in turn.
            if self._attempt is None or self._attempt.done():
                self._attempt = asyncio.create_task(self._open(), name="agent-sse Redis connect")
                self._attempt.add_done_callback(_retrieve)
            await asyncio.shield(self._attempt)
        return self._client

    async def _open(self) -> None:
        with translated():
            async with asyncio.timeout(self.timeout):
                self._client = await self._detect()

    async def _detect(self) -> redis.Redis | RedisCluster:
        # RESP2: pub/sub messages come as plain replies, on every server alike. Retries off: see the class. No
        # socket_timeout: redis-py sends under `wait_for` then, which on Python 3.11 swallows a cancellation that comes
        # in the step in which the send ends (https://github.com/python/cpython/issues/86296), so a cancelled task would
        # go on for ever. Every use is under `asyncio.timeout` here instead.
        single = redis.Redis.from_url(
            self.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=None,
            socket_connect_timeout=self.timeout, max_connections=MAX_CONNECTIONS + 8,
        )  # fmt: skip
        try:
            try:
                info: dict[str, Any] = await single.info()
            except failure.NoPermissionError:
                info = {}  # an ACL without INFO: a plain server is the safe guess, a cluster would answer MOVED
        except BaseException:
            await single.aclose()
            raise
        if not info.get("cluster_enabled"):
            self._sharded = False
            return single
        await single.aclose()
        cluster = RedisCluster.from_url(
            self.url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=self.timeout,
            max_connections=MAX_CONNECTIONS + 8,
        )
        try:
            _ = await cluster.initialize()
        except BaseException:
            await cluster.aclose()
            raise
        self._sharded = int(str(info.get("redis_version", "0")).split(".")[0]) >= 7
        return cluster

    async def run(self, call: Call) -> Any:
        """Run one script and return its reply."""
        (result,) = await self.run_many([call])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts in one pipeline, in their order; a failed one gives its error in its place.

        A script that the server does not know (restarted, failed over) is loaded, and the calls that failed for
        that are run again, in order. Calls between them may have run by then: a script whose order matters
        checks it itself (publish.lua's floor).
        """
        client = await self.connect()
        async with self._slot():
            results = await self._pipeline(client, calls)
            missing = [i for i, result in enumerate(results) if isinstance(result, failure.NoScriptError)]
            if missing:
                for i in {(calls[i].script.sha, await self.node_of(calls[i].keys[0])): i for i in missing}.values():
                    await self._load(client, calls[i])
                for i, result in zip(missing, await self._pipeline(client, [calls[i] for i in missing]), strict=True):
                    results[i] = result
        if any(isinstance(result, failure.ReadOnlyError) for result in results):
            await self._leave_replica(client)
        return [translate(result) if isinstance(result, Exception) else result for result in results]

    @staticmethod
    async def _leave_replica(client: redis.Redis | RedisCluster) -> None:
        # A demoted primary keeps its clients: behind a name or a proxy only new connections reach the new one.
        if isinstance(client, redis.Redis):
            await client.connection_pool.disconnect(inuse_connections=False)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise RedisUnavailable(f"Redis is slow: no connection came free within {self.timeout:g} s") from None
        try:
            with translated():
                async with asyncio.timeout(self.timeout):
                    yield
        finally:
            self._slots.release()

    async def _pipeline(self, client: redis.Redis | RedisCluster, calls: Sequence[Call]) -> list[Any]:
        if isinstance(client, RedisCluster):
            pipe: Any = client.pipeline()
        elif len(calls) == 1:
            (call,) = calls
            try:
                return [
                    await client.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
                ]
            except failure.ResponseError as error:
                return [error]
        else:
            pipe = client.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        results: list[Any] = await pipe.execute(raise_on_error=False)
        return results

    @staticmethod
    async def _load(client: redis.Redis | RedisCluster, call: Call) -> None:
        if isinstance(client, RedisCluster):
            # Where the call goes, and nowhere else: another shard may be away.
            node = client.get_node_from_key(call.keys[0])
            await client.execute_command("SCRIPT LOAD", call.script.text, target_nodes=node)
        else:
            await client.execute_command("SCRIPT LOAD", call.script.text)

    async def command(self, *args: Arg) -> Any:
        """Run one command on one key."""
        client = await self.connect()
        async with self._slot():
            return await client.execute_command(*args)

    async def commands(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Run commands in one pipeline; the first error is raised."""
        client = await self.connect()
        async with self._slot():
            pipe: Any = client.pipeline() if isinstance(client, RedisCluster) else client.pipeline(transaction=False)
            for args in commands:
                pipe.execute_command(*args)
            results: list[Any] = await pipe.execute()
            return results

    async def nodes(self) -> list[str]:
        """Return the names of the servers that carry channels: every primary of a cluster, else one."""
        client = await self.connect()
        if isinstance(client, RedisCluster) and self._sharded:
            return [str(node.name) for node in client.get_primaries()]
        return [""]

    async def node_of(self, channel: str) -> str:
        """Return the name of the server that carries a channel."""
        client = await self.connect()
        if isinstance(client, RedisCluster) and self._sharded:
            with translated():
                return str(client.nodes_manager.get_node_from_slot(client.keyslot(channel)).name)
        return ""

    async def refresh(self) -> None:
        """Read the cluster's topology anew; nothing on a single server."""
        client = await self.connect()
        if isinstance(client, RedisCluster):
            with translated():
                async with asyncio.timeout(self.timeout):
                    await client.nodes_manager.initialize()

    async def open_connection(self, node: str) -> AbstractConnection:
        """Open a connection of its own to ``node``, for pub/sub, with the client's handshake, TLS and ACL."""
        client = await self.connect()
        with translated():
            if isinstance(client, RedisCluster):
                found = client.get_node(node_name=node) if node else client.get_default_node()
                if found is None:
                    raise RedisUnavailable(f"the cluster has no node {node} any more")
                connection: AbstractConnection = found.connection_class(**found.connection_kwargs)
            else:
                connection = client.connection_pool.make_connection()
            try:
                async with asyncio.timeout(self.timeout):
                    await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            return connection


def _retrieve(attempt: asyncio.Task[None]) -> None:
    if not attempt.cancelled():
        attempt.exception()  # whoever waited got it; nobody may be left to


def translate(error: Exception) -> Exception:
    """Return this package's error for one of redis-py."""
    if isinstance(error, RedisUnavailable | RedisRefused | ConfigurationError):
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, failure.AuthenticationError | failure.NoPermissionError):
        return RedisRefused(f"Redis refused this client: {text}; check user, password and ACL of AGENT_SSE_REDIS_URL")
    if isinstance(error, PASSING) or text.startswith(PASSING_CODES):
        return RedisUnavailable(f"Redis is not available: {text}")
    return RedisRefused(f"Redis answered with an error: {text}")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Let errors of redis-py leave as errors of this package."""
    try:
        yield
    except (failure.RedisError, OSError) as error:
        raise translate(error) from error
