"""Two small indexes over all sessions: which permission requests are open, and which audits may have grown.

What they say is a hint, read by what runs in the service; the truth is in each session's own keys.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_sse import scripts
from agent_sse.backend import Arg, Call
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.keys import SESSION_ID
from agent_sse.store import Store

log = logging.getLogger("agent_sse")

UNANSWERED_LIMIT = 100_000
UNANSWERED_SECONDS = 8 * 24 * 3600  # longer than any request may stay open
AUDITED_LIMIT = 100_000

_MEMBER = re.compile(rf"({SESSION_ID.pattern}) ([A-Za-z0-9_-]{{1,128}})")


class Registry:
    """The indexes on one :class:`Store`. What a caller notes is best effort: Redis' errors are logged, not raised."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def note_request(self, session_id: str, request_id: str, created_ms: int) -> None:
        """Note that a request was made at ``created_ms`` (Unix, Redis' clock); noting it again changes nothing."""
        key = self._store.keyspace.unanswered()
        replies = await self._write(
            session_id,
            ("ZADD", key, "NX", created_ms, f"{session_id} {request_id}"),
            # From the top, where those are that were dealt with and wait for their deadline, then the newest: a flood
            # does not push out what is about to be told.
            ("ZREMRANGEBYRANK", key, UNANSWERED_LIMIT, -1),
            ("EXPIRE", key, UNANSWERED_SECONDS),
        )
        if replies and replies[1]:
            log.warning("more than %d requests are open: the webhook will not tell of %d", UNANSWERED_LIMIT, replies[1])

    async def settled(self, session_id: str, request_id: str) -> None:
        """Note that a request is not open any more."""
        keyspace, member = self._store.keyspace, f"{session_id} {request_id}"
        await self._write(
            session_id, ("ZREM", keyspace.unanswered(), member), ("HDEL", keyspace.webhook_attempts(), member)
        )

    async def note_audit(self, session_id: str, until_ms: int) -> bool:
        """Note that a session's audit may grow until ``until_ms`` (Unix, Redis' clock). Return whether that worked."""
        key = self._store.keyspace.audited()
        replies = await self._write(
            session_id,
            ("ZADD", key, "GT", until_ms, session_id),
            ("ZREMRANGEBYRANK", key, 0, -AUDITED_LIMIT - 1),
            ("EXPIRE", key, int(self._store.settings.audit_retention) + 24 * 3600),
        )
        return bool(replies)

    async def audited(self, since_ms: int) -> tuple[int, list[str]]:
        """Return Redis' time, Unix ms, and the sessions whose audit may have grown since ``since_ms``.

        Raises :class:`RedisUnavailable`, :class:`RedisRefused`.
        """
        retention_ms = int(self._store.settings.audit_retention * 1000)
        call = Call.of(scripts.AUDITED, [self._store.keyspace.audited()], [since_ms, retention_ms, AUDITED_LIMIT])
        now, *sessions = await self._store.backend.run(call)
        return int(now), [session.decode() for session in sessions]

    async def _write(self, session_id: str, *commands: Sequence[Arg]) -> Sequence[Any]:
        try:
            return await self._store.backend.commands(commands)
        except (RedisUnavailable, RedisRefused) as error:
            log.warning("session %s: the index over sessions was not written: %s", session_id, error)
            return ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that this process may tell of until its lease ends. ``attempt`` counts from 1."""

    session_id: str
    request_id: str
    attempt: int
    redis_ms: int
    taken_at: float

    @property
    def member(self) -> str:
        """What stands for the request in the index."""
        return f"{self.session_id} {self.request_id}"

    @property
    def name(self) -> tuple[str, str]:
        """Session and request, for log lines."""
        return self.session_id, self.request_id

    def now_ms(self) -> int:
        """Return Redis' time now, Unix ms, as far as this process's clock runs like it."""
        return self.redis_ms + int((time.monotonic() - self.taken_at) * 1000)


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that waits for its answer. ``data`` is that of its ``permission_request`` event."""

    data: Mapping[str, Any]
    presented: bool
    deadline_ms: int


class Unanswered:
    """The open requests as a queue: each is due ``after_ms`` after it was made, and goes to one process at a time.

    A process that dies with one leaves it to another when ``lease_ms`` are over. Raises :class:`RedisUnavailable` and
    :class:`RedisRefused` everywhere.
    """

    def __init__(self, store: Store, *, after_ms: int, lease_ms: int) -> None:
        self._store = store
        self._key = store.keyspace.unanswered()
        self._attempts = store.keyspace.webhook_attempts()
        self._after_ms = after_ms
        self._lease_ms = lease_ms

    async def claim(self, limit: int) -> tuple[float | None, list[Claim]]:
        """Take up to ``limit`` due requests. Returns the seconds until the next is due too, None when there is none."""
        call = Call.of(scripts.UNANSWERED, [self._key, self._attempts], [self._after_ms, self._lease_ms, limit])
        reply = await self._store.backend.run(call)
        taken_at, claims = time.monotonic(), []
        for member, attempt in zip(reply[2::2], reply[3::2], strict=True):
            found = _MEMBER.fullmatch(member.decode(errors="replace"))
            if found is None:
                log.warning("the index of open requests held what is none, which is dropped")
                await self._store.backend.command("ZREM", self._key, member)
            else:
                claims.append(Claim(found[1], found[2], int(attempt), int(reply[0]), taken_at))
        return (int(reply[1]) / 1000 if int(reply[1]) >= 0 else None), claims

    async def read(self, claim: Claim) -> OpenRequest | None:
        """Return the request as it is now, None when it does not wait for an answer any more."""
        key, request_id = self._store.keyspace.session(claim.session_id).requests, claim.request_id
        record, event = await self._store.backend.command("HMGET", key, request_id, f"e:{request_id}")
        if record is None or event is None:
            return None
        try:
            r, data = json.loads(record), json.loads(event)["data"]
            # What is overdue stays pending until a script comes by: at its deadline, or when its agent is lost, unless
            # a restarted one may come back with the key.
            end = r["deadline"] if r["key"] else min(r["deadline"], r["lease"])
            if r["st"] != "pending" or claim.now_ms() >= end:
                return None
            return OpenRequest(dict(data), r["shown"] > 0, int(r["deadline"]))
        except (ValueError, TypeError, KeyError):
            return None  # none of ours; no script would take it for a request

    async def postpone(self, claim: Claim, delay_ms: int, *, counted: bool = True) -> None:
        """Let a request be due again after ``delay_ms``; ``counted``: this was one of its attempts."""
        due = claim.now_ms() + delay_ms - self._after_ms
        commands: list[tuple[Arg, ...]] = [("ZADD", self._key, "XX", due, claim.member)]  # XX: it may be settled by now
        if not counted:
            commands.append(("HINCRBY", self._attempts, claim.member, -1))
        await self._store.backend.commands(commands)

    async def finish(self, claim: Claim, deadline_ms: int) -> None:
        """Have done with a request that is still open: it stays in the index, so that it is not told when noted again.

        At its deadline it is taken once more, and found not to wait any longer.
        """
        await self._store.backend.commands(
            [
                ("ZADD", self._key, "XX", deadline_ms - self._after_ms, claim.member),
                ("HDEL", self._attempts, claim.member),
            ]
        )

    async def forget(self, claim: Claim) -> None:
        """Drop a request that is not open any more."""
        await self._store.backend.commands([("ZREM", self._key, claim.member), ("HDEL", self._attempts, claim.member)])
