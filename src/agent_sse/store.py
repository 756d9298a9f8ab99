"""The sessions in Redis, as typed calls: append, replay, snapshot, tick, health, owners, tickets. Never SSE or HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from agent_sse import scripts
from agent_sse.backend import Arg, Backend, Call
from agent_sse.frames import ZERO, EventId, format_id, read_id
from agent_sse.keys import Keyspace
from agent_sse.scripts import Script
from agent_sse.settings import RedisSettings
from agent_sse.wire import pack, pack_items

STREAM_LEASE_MS = 45_000  # how long a process's count of open streams is believed
TICKET_SECONDS = 30
OWNED_LIMIT = 1000
OWNED_SECONDS = 30 * 24 * 3600  # an index in another slot: entries are checked when read, so a long life does no harm


@dataclass(frozen=True, slots=True)
class Publish:
    """One event on its way: its JSON and what it changes in the snapshot."""

    session_id: str
    payload: bytes
    kind: str
    call_id: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a cursor. ``status`` says whether the history after it is complete; if not, there are none.

    ``ids`` as Redis writes them, ``payloads`` as JSON; ``closed_tip`` is set for a minute after ``close_session``.
    """

    status: Literal["ok", "expired", "lost"]
    tip: EventId
    closed_tip: EventId | None
    ids: Sequence[bytes]
    payloads: Sequence[bytes]

    @property
    def last(self) -> EventId:
        """The id of the last event. There is one."""
        return read_id(self.ids[-1])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a client without a usable cursor has to see, as it was at ``tip``; payloads are JSON."""

    tip: EventId
    closed_tip: EventId | None
    statuses: Sequence[bytes]
    result: bytes | None
    shown: Sequence[bytes]
    now_ms: int


class Tick(NamedTuple):
    """A session as Redis has it now. ``closed_tip`` is set for a minute after ``close_session``."""

    tip: EventId
    closed_tip: EventId | None
    due_ms: int | None
    shown: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Health:
    """What the health endpoint tells."""

    tip: EventId
    retained_events: int
    streams: dict[str, int]
    pending: Sequence[tuple[bool, bytes]]
    pending_total: int
    grants: Sequence[bytes]


class Store:
    """Session operations on one :class:`Backend`, with the bounds of the settings."""

    def __init__(self, backend: Backend, settings: RedisSettings) -> None:
        self.backend = backend
        self.keyspace = Keyspace(settings.key_prefix)
        self.settings = settings
        self._bounds: tuple[Arg, ...] = (
            int(settings.retention_seconds * 1000),
            settings.retention_events,
            settings.retention_bytes,
            int(settings.session_ttl * 1000),
        )
        self._audit_bounds: tuple[Arg, ...] = (int(settings.audit_retention * 1000), settings.audit_entries)
        self._heads: dict[tuple[str, int, int, str], bytes] = {}  # one per script and length of a session id

    def call(self, script: Script, session_id: str, *args: Arg) -> Call:
        """Return the call of a session script, whose first keys and arguments are always the same."""
        name = session_id.encode()
        shape = (script.name, len(name), len(args), self.backend.publish_command)
        head = self._heads.get(shape)
        if head is None:
            head = self._heads[shape] = self._head(script, *shape[1:])
        return Call(script, f"{{{session_id}}}", head.replace(b"\0" * len(name), name) + pack_items(args))

    def _head(self, script: Script, length: int, count: int, publish_command: str) -> bytes:
        """Return all of a call but its last ``count`` arguments, for a session id of ``length`` NULs.

        Packing the keys anew would be half of what a call costs this process.
        """
        k = self.keyspace.session("\0" * length)
        keys: tuple[str, ...] = (k.events, k.state, k.channel, k.calls, k.publishers, k.closed)
        bounds = (*self._bounds, publish_command)
        if script not in (scripts.PUBLISH, scripts.REPLAY, scripts.OPEN):
            keys = (*keys, k.requests, k.queue, k.due, k.wake, k.streams, k.grants, k.audit)
            bounds = (*bounds, *self._audit_bounds)
        if script in (scripts.CLOSE, scripts.PUBLISH_ONCE):
            keys = (*keys, k.once)
        last = ("",) * count
        packed = pack(("EVALSHA", script.sha, len(keys), *keys, *bounds, *last))
        return packed[: len(packed) - len(pack_items(last))]

    def server_of(self, session_id: str) -> str:
        """Return the name of the server that has a session, ``""`` while there is one only or that is not known."""
        return self.backend.server_of(f"{{{session_id}}}")

    def publish_call(self, event: Publish, publisher: str, count: int, floor: int) -> Call:
        """Return the call that appends an event. See publish.lua for ``count`` and ``floor``."""
        return self.call(
            scripts.PUBLISH, event.session_id, event.payload, publisher, count, floor, event.kind, event.call_id,
            "1" if event.terminal else "0",
        )  # fmt: skip

    async def run(self, script: Script, session_id: str, *args: Arg) -> Any:
        """Run a session script on its server. Raises :class:`RedisUnavailable`, :class:`RedisRefused`."""
        await self.backend.connect()  # the publish command is known from here on
        return await self.backend.run(self.call(script, session_id, *args))

    async def replay(self, session_id: str, cursor: EventId, *, events: int, size: int) -> Page:
        """Read up to ``events`` events and about ``size`` bytes after ``cursor``."""
        reply = await self.run(scripts.REPLAY, session_id, format_id(cursor), events, size)
        status: Literal["ok", "expired", "lost"] = reply[0].decode()
        return Page(status, read_id(reply[1]), read_id(reply[2]) if reply[2] else None, reply[3::2], reply[4::2])

    async def snapshot(self, session_id: str) -> Snapshot:
        """Read the session's present state at one moment."""
        tip, closed, last, result, calls, shown, now = await self.run(scripts.SNAPSHOT, session_id)
        statuses = sorted(
            (read_id(event_id), payload) for event_id, payload in (value.split(b" ", 1) for value in calls[1::2])
        )
        payloads = [payload for _, payload in statuses] or ([last] if last else [])
        return Snapshot(read_id(tip), read_id(closed) if closed else None, payloads, result or None, shown, int(now))

    async def tick_many(self, sessions: Sequence[tuple[str, str, int]]) -> list[Tick | Exception]:
        """Tick sessions in one pipeline; each is ``(session id, process id, its open streams)``."""
        await self.backend.connect()
        replies = await self.backend.run_many(
            [self.call(scripts.TICK, session, process, count, STREAM_LEASE_MS) for session, process, count in sessions]
        )
        return [reply if isinstance(reply, Exception) else self._tick(reply) for reply in replies]

    @staticmethod
    def _tick(reply: Sequence[Any]) -> Tick:
        tip, closed, due, shown = reply
        due_ms = int(due)
        return Tick(read_id(tip), read_id(closed) if closed else None, due_ms if due_ms >= 0 else None, shown)

    async def health(self, session_id: str) -> Health:
        """Read what the health endpoint tells; counts of processes that stopped renewing them are left out."""
        tip, retained, streams, pending, now, total, grants = await self.run(scripts.HEALTH, session_id)
        counts: dict[str, int] = {}
        for process, value in zip(streams[::2], streams[1::2], strict=True):
            count, until = value.split()
            if int(until) > int(now):
                counts[process.decode()] = int(count)
        rows = [(flag == b"1", payload) for flag, payload in zip(pending[::2], pending[1::2], strict=True)]
        return Health(read_id(tip), int(retained), counts, rows, int(total), grants)

    async def open(self, session_id: str, owner: str) -> bool:
        """Register the owner; False when another one owns the session."""
        if await self.run(scripts.OPEN, session_id, owner) == b"owned":
            return False
        if owner:
            key, now = self.keyspace.owned(owner), int(time.time())
            await self.backend.commands(
                [
                    ("ZADD", key, now, session_id),
                    ("ZREMRANGEBYRANK", key, 0, -OWNED_LIMIT - 1),
                    ("EXPIRE", key, OWNED_SECONDS),
                ]
            )
        return True

    async def close(self, session_id: str) -> None:
        """Erase the session; open streams end."""
        await self.run(scripts.CLOSE, session_id)

    async def owner_of(self, session_id: str) -> str | None:
        """Return the registered owner, None when there is none or the session is unknown."""
        value = await self.backend.command("HGET", self.keyspace.session(session_id).state, "owner")
        return value.decode() if value is not None else None

    async def sessions_of(self, owner: str) -> list[str]:
        """Return the sessions that ``owner`` opened and that still exist, the newest first, 1,000 at most."""
        key = self.keyspace.owned(owner)
        members = [m.decode() for m in await self.backend.command("ZREVRANGE", key, 0, OWNED_LIMIT - 1)]
        if not members:
            return []
        await self.backend.command("EXPIRE", key, OWNED_SECONDS)
        owners = await self.backend.commands([("HGET", self.keyspace.session(m).state, "owner") for m in members])
        gone = [m for m, found in zip(members, owners, strict=True) if found is None or found.decode() != owner]
        if gone:
            await self.backend.command("ZREM", key, *gone)
        return [m for m in members if m not in set(gone)]

    async def tips_of(self, sessions: Sequence[str]) -> list[EventId]:
        """Return each session's last event id, (0, 0) for an unknown one."""
        if not sessions:
            return []
        tips = await self.backend.commands([("HGET", self.keyspace.session(s).state, "tip") for s in sessions])
        return [read_id(tip) if tip else ZERO for tip in tips]

    async def keep_ticket(self, ticket: str, content: dict[str, Any]) -> None:
        """Store a stream ticket for 30 s; only its SHA-256 reaches Redis."""
        await self.backend.command("SET", self.keyspace.ticket(ticket), json.dumps(content), "EX", TICKET_SECONDS)

    async def take_ticket(self, ticket: str) -> dict[str, Any] | None:
        """Take a ticket; it can be taken once (https://redis.io/docs/latest/commands/getdel/)."""
        value = await self.backend.command("GETDEL", self.keyspace.ticket(ticket))
        content: dict[str, Any] | None = json.loads(value) if value else None
        return content

    async def ping(self) -> float:
        """Return Redis' round trip in milliseconds."""
        started = time.perf_counter()
        await self.backend.command("EXISTS", self.keyspace.probe(""))
        return (time.perf_counter() - started) * 1000

    async def probe(self, channel: str, token: str) -> None:
        """Publish a token on this process's own probe channel."""
        await self.backend.command(self.backend.publish_command, channel, token)
