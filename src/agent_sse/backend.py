"""One process's way to Redis: scripts by SHA and commands, each on the server that has its key.

Whatever goes wrong leaves as `RedisUnavailable` (trying again may help) or `RedisRefused` (it will not).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.scripts import Script
from agent_sse.servers import Servers, translate
from agent_sse.wire import Arg, CommandWire, Done, ReplyError, Wire, pack, tell

__all__ = ["Arg", "Backend", "Call", "Done"]

HOPS = 5  # redirections that one call follows; a slot that moves takes two
ASKING = pack(("ASKING",))


class Call(NamedTuple):
    """A script to run. ``key`` is in the cluster slot of all its keys; ``packed`` is the EVALSHA as it is sent."""

    script: Script
    key: str
    packed: bytes

    @classmethod
    def of(cls, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Call:
        """Return the call with these keys, which share a slot, and these arguments."""
        return cls(script, keys[0], pack(("EVALSHA", script.sha, len(keys), *keys, *args)))


class Backend:
    """Runs scripts and commands on Redis, Valkey or Redis Cluster, whichever answers at ``url``.

    ``timeout`` (seconds) bounds the wait for every answer, and each step of connecting. Nothing is sent again that may
    have been executed: who calls knows what a retry may do.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self.url = url
        self.timeout = timeout
        self._servers = Servers(url, timeout)
        self._errands: set[asyncio.Task[None]] = set()
        self._refreshing = False
        self._loading: set[tuple[CommandWire, str]] = set()
        self._unloadable: dict[str, ReplyError] = {}  # why a script could not be loaded, by SHA

    async def aclose(self) -> None:
        """Close every connection; nothing connects again."""
        await self._servers.aclose()
        await asyncio.gather(*self._errands)  # they fail by themselves now

    @property
    def publish_command(self) -> str:
        """``SPUBLISH`` on a cluster that has it (Redis 7, Valkey), else ``PUBLISH``. Known once connected."""
        return "SPUBLISH" if self._servers.sharded else "PUBLISH"

    @property
    def sharded(self) -> bool:
        """Whether channels live in their slot's shard."""
        return self._servers.sharded

    @property
    def clustered(self) -> bool:
        """Whether the server is a Redis Cluster. Known once connected."""
        return self._servers.cluster is not None

    async def connect(self) -> None:
        """Find out what answers at the URL. Raises RedisUnavailable or RedisRefused."""
        await self._servers.connect()

    async def nodes(self) -> list[str]:
        """Return the names of the servers that carry channels: every primary of a cluster, else one."""
        await self._servers.connect()
        return self._servers.nodes()

    async def node_of(self, channel: str) -> str:
        """Return the name of the server that carries a channel."""
        await self._servers.connect()
        return self._servers.carrier_of(channel)

    async def refresh(self) -> None:
        """Read the cluster's topology anew; nothing on a single server."""
        await self._servers.connect()
        await self._servers.refresh()

    async def open(self, node: str, wire: Wire) -> None:
        """Connect a wire of its own to ``node``, for pub/sub, with the same handshake, TLS and ACL."""
        await self._servers.open(node, wire)

    # -- one call, now ------------------------------------------------------------------------------------------

    def server_of(self, key: str) -> str:
        """Return the name of the server that has a key, ``""`` while there is one only or that is not known."""
        return self._servers.server_of(key)

    async def reach(self, key: str) -> None:
        """Wait until calls on a key can be posted. Raises RedisUnavailable or RedisRefused."""
        await self._servers.reach_key(key)

    def post(self, call: Call, done: Done) -> bool:
        """Send a script's call with all others of this step of the loop; False when it has to be reached first.

        ``done`` is called exactly once, with the reply or an error of this package, unless False is returned; it must
        not raise. A script that the server does not know (restarted, failed over) is loaded and the call sent again
        behind it. Calls that were sent between may have run by then: a script whose order matters checks it itself
        (publish.lua's floor).
        """
        script, key, packed = call
        node = self._servers.server_of(key)
        wire = self._servers.wire(node)
        if wire is None:
            return False
        _Order(self, packed, key, script, done).send(node, wire)
        return True

    # -- several, awaited ---------------------------------------------------------------------------------------

    async def run(self, call: Call) -> Any:
        """Run one script and return its reply."""
        (result,) = await self.run_many([call])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts, those of one server in their order; a failed one gives its error in its place.

        When none was answered for want of a server, that is raised. For scripts that the server does not know see
        :meth:`post`.
        """
        return await self._gather([(packed, key, script) for script, key, packed in calls])

    async def command(self, *args: Arg) -> Any:
        """Run one command on one key."""
        return (await self.commands([args]))[0]

    async def commands(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """Run commands on one key each; the first error is raised, when all are answered."""
        results = await self._gather([(pack(tuple(args)), str(args[1]), None) for args in commands])
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    async def _gather(self, wanted: Sequence[tuple[bytes, str, Script | None]]) -> list[Any]:
        await self._servers.connect()
        answers = _Answers(len(wanted))
        waiting: dict[str, list[_Order]] = {}
        for place, (packed, key, script) in enumerate(wanted):
            order = _Order(self, packed, key, script, answers.at(place))
            node = self._servers.server_of(key)
            wire = self._servers.wire(node)
            if wire is None:
                waiting.setdefault(node, []).append(order)
            else:
                order.send(node, wire)
        for orders in waiting.values():
            self._errand(self._deliver(orders))
        results = await answers.all
        if results and all(isinstance(result, RedisUnavailable) for result in results):
            raise results[0]
        return results

    # -- detours ------------------------------------------------------------------------------------------------

    async def _deliver(self, orders: Sequence[_Order], node: str | None = None) -> None:
        """Send orders to a server as soon as it can be reached: to ``node``, else to the one that has their key."""
        try:
            servers = self._servers
            wire = await (servers.reach_key(orders[0].key) if node is None else servers.reach(node))
        except Exception as error:
            tell((order.done for order in orders), translate(error))
        else:
            for order in orders:
                order.send(self._servers.server_of(order.key) if node is None else node, wire)

    def mend(self, order: _Order, wire: CommandWire, error: ReplyError) -> None:
        """Find another way for a call that was refused without being executed, or tell who waits."""
        script, code = order.script, error.code
        if code == "NOSCRIPT" and script is not None and not order.loaded:
            order.loaded = True
            self._load(order, script, wire)
        elif code in ("MOVED", "ASK") and self.clustered and order.hops < HOPS:
            order.hops += 1
            self._redirect(order, error)
        else:
            if code == "READONLY":
                # A demoted primary keeps its clients: behind a name or a proxy only new connections reach the new one.
                self._servers.replace(wire)
            if script is not None and code == "NOSCRIPT":
                error = self._unloadable.get(script.sha, error)
            order.done(translate(error))

    def _load(self, order: _Order, script: Script, wire: CommandWire) -> None:
        loading = (wire, script.sha)

        def loaded(reply: object) -> None:
            self._loading.discard(loading)
            if isinstance(reply, ReplyError):
                self._unloadable[script.sha] = reply

        if loading not in self._loading:
            self._loading.add(loading)
            self._unloadable.pop(script.sha, None)
            wire.send(pack(("SCRIPT", "LOAD", script.text)), loaded)
        order.send(order.node, wire)

    def _redirect(self, order: _Order, error: ReplyError) -> None:
        order.asking = error.code == "ASK"
        if not (order.asking or self._refreshing):
            self._refreshing = True
            self._errand(self._refresh())
        node = self._servers.learn(str(error), order.node)
        if node is None:
            order.done(translate(error))
            return
        wire = self._servers.wire(node)
        if wire is None:
            self._errand(self._deliver([order], node))
        else:
            order.send(node, wire)

    async def _refresh(self) -> None:
        try:
            with contextlib.suppress(RedisUnavailable, RedisRefused):  # the next redirection tries again
                await self._servers.refresh()
        finally:
            self._refreshing = False

    def _errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


class _Order:
    """One call or command on its way. ``done`` is called once, whichever way it takes."""

    __slots__ = ("_backend", "_packed", "_wire", "asking", "done", "hops", "key", "loaded", "node", "script")

    def __init__(self, backend: Backend, packed: bytes, key: str, script: Script | None, done: Done) -> None:
        self._backend = backend
        self._packed = packed
        self.key = key
        self.script = script
        self.done = done
        self.hops = 0
        self.loaded = self.asking = False

    def send(self, node: str, wire: CommandWire) -> None:
        self.node, self._wire = node, wire
        if not wire.alive:
            self.done(RedisUnavailable("Redis is not available: the connection was lost"))
            return
        if self.asking:
            wire.send(ASKING, _ignore)
        wire.send(self._packed, self._reply)

    def _reply(self, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            self._backend.mend(self, self._wire, reply)
        else:
            self.done(reply)


class _Answers:
    """The answers to several orders: ``all`` is done when the last one is there."""

    def __init__(self, count: int) -> None:
        self.all: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._results: list[Any] = [None] * count
        self._missing = count
        if not count:
            self.all.set_result([])

    def at(self, place: int) -> Done:
        def done(result: Any) -> None:
            self._results[place] = result
            self._missing -= 1
            if not self._missing and not self.all.done():
                self.all.set_result(self._results)

        return done


def _ignore(reply: object) -> None:
    pass
