"""Names in Redis. Pure; a session's keys carry the hash tag ``{session_id}``, so a cluster keeps them in one slot."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from agent_sse.errors import InvalidSessionId

SESSION_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}")
SESSION_ID_RULE = "a session id is 1 to 128 of A-Z a-z 0-9 . _ : - and does not start with . : -"


def check_session_id(session_id: object) -> str:
    """Return the session id. Raises :class:`InvalidSessionId` unless it follows protocol.md § 4."""
    if not isinstance(session_id, str) or SESSION_ID.fullmatch(session_id) is None:
        raise InvalidSessionId(SESSION_ID_RULE)
    return session_id


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The Redis keys and channels of one session.

    ``events`` is the Stream, ``state`` a hash (tip, owner, snapshot, bookkeeping), ``calls`` the latest status
    of every unfinished tool call, ``publishers`` each publisher's counter, ``requests`` the permission requests,
    ``queue`` the open ones in order, ``due`` what has a deadline, ``streams`` the open streams per process,
    ``closed`` the tombstone of a closed session, ``grants`` the remembered answers, ``audit`` a Stream of who decided
    what, ``once`` the idempotency keys of published events. ``channel`` carries events, ``wake`` wakes waiting agents.
    """

    events: str
    state: str
    calls: str
    publishers: str
    requests: str
    queue: str
    due: str
    streams: str
    closed: str
    channel: str
    wake: str
    grants: str
    audit: str
    once: str


class Keyspace:
    """Builds every name under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def channel(self, session_id: str) -> str:
        """Return the channel of a session whose id was checked before."""
        return f"{self.prefix}:{{{session_id}}}:channel"

    def session(self, session_id: str) -> SessionKeys:
        """Return the names of a session whose id was checked before."""
        base = f"{self.prefix}:{{{session_id}}}:"
        return SessionKeys(
            events=base + "events",
            state=base + "state",
            calls=base + "calls",
            publishers=base + "publishers",
            requests=base + "requests",
            queue=base + "queue",
            due=base + "due",
            streams=base + "streams",
            closed=base + "closed",
            channel=self.channel(session_id),
            wake=base + "wake",
            grants=base + "grants",
            audit=base + "audit",
            once=base + "once",
        )

    def owned(self, owner: str) -> str:
        """Return the name of the sorted set of the sessions that ``owner`` opened."""
        return f"{self.prefix}:owner:{digest(owner)}"

    def ticket(self, ticket: str) -> str:
        """Return the name of a stream ticket; only its digest reaches Redis."""
        return f"{self.prefix}:ticket:{digest(ticket)}"

    def unanswered(self) -> str:
        """Return the name of the sorted set of all sessions' open permission requests."""
        return f"{self.prefix}:unanswered"

    def webhook_attempts(self) -> str:
        """Return the name of the hash of how often each was told; in the slot of :meth:`unanswered`."""
        return f"{self.prefix}:webhook-attempts:{{{self.unanswered()}}}"

    def audited(self) -> str:
        """Return the name of the sorted set of the sessions that have audit entries."""
        return f"{self.prefix}:audited"

    def audit_positions(self, file_id: str) -> str:
        """Return the name of the hash of how far each session's audit is in a file."""
        return f"{self.prefix}:audit-positions:{file_id}"

    def probe(self, process_id: str) -> str:
        """Return the channel on which a process hears its own readiness probe."""
        return f"{self.prefix}:probe:{process_id}"


def digest(text: str) -> str:
    """Return the SHA-256 of ``text`` in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
