"""The audit of a session: who decided what, when, on which parameters. Appended to and read, never changed.

Scripts append what is decided in Redis (`record` in _permissions.lua); here is what an agent's own policy decides.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent_sse import events
from agent_sse.frames import EventId, format_id
from agent_sse.registry import Registry
from agent_sse.shorten import shorten
from agent_sse.store import Store

AHEAD_MS = 1000  # a note of a session says so long in advance that its audit may grow, so that not each entry needs one
KNOWN_NOTES = 1000  # sessions
KEPT_BYTES = 16 * 1024  # of parameters as JSON; their digest is over all of them
ENTRY_BYTES = 64 * 1024
LARGE = ("parameters", "parameters_patch", "edited_parameters")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One entry. ``entry_id`` is ``"<ms>-<seq>"``, ``at`` the same time in ISO 8601; ``data`` as in docs/audit.md."""

    entry_id: str
    at: str
    data: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the entry as it is shown everywhere: ``id`` and ``at`` before its own fields."""
        return {"id": self.entry_id, "at": self.at, **self.data}


def read_entry(entry_id: bytes, text: bytes) -> AuditEntry:
    """Return an entry as the Stream has it. One that is no JSON object is kept as text in ``unreadable``."""
    name = entry_id.decode()
    moment = datetime.fromtimestamp(int(name.partition("-")[0]) / 1000, UTC)
    return AuditEntry(name, events.timestamp(moment), _data_of(text))


def _data_of(text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
        events.encode(data)  # what JSON cannot hold, nobody could be shown
    except (ValueError, RecursionError):
        data = None
    # None of ours; it must not hide those that are.
    return data if isinstance(data, dict) else {"kind": "unreadable", "unreadable": repr(text)}


def about(*, server: str, risk_level: str, digest: str, parameters: object, rule: str = "") -> bytes:
    """Return what an entry says of a call, as ``"name":value,`` fragments; ``parameters`` as they are shown."""
    data = {"server": server, "risk_level": risk_level, "digest": digest, "parameters": _kept(parameters)}
    if rule:
        data["rule"] = rule
    return events.encode(data)[1:-1] + b","


def kept(fragments: bytes) -> bytes:
    """Return what an entry keeps of an answer's ``"name":value`` fragments."""
    if len(fragments) <= KEPT_BYTES:
        return fragments
    return events.encode(_kept_of(json.loads(b"{" + fragments + b"}")))[1:-1]


def _kept_of(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _kept(value) if name in LARGE else value for name, value in data.items()}


def _kept(parameters: object) -> object:
    """Return parameters, which are masked already, cut to what an entry may hold."""
    return shorten(parameters, lambda value: len(events.encode(value)), KEPT_BYTES, lambda value: value)


class Audit:
    """Appends to and reads the audits on one :class:`Store`."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._noted: dict[str, int] = {}  # until when, ms

    async def append(self, session_id: str, data: Mapping[str, Any]) -> str:
        """Append an entry and return its id (https://redis.io/docs/latest/commands/xadd/).

        Large parameters are cut; an entry that is larger than 64 KiB all the same is refused.
        Raises :class:`InvalidEvent`, :class:`RedisUnavailable`, :class:`RedisRefused`.
        """
        settings, backend = self._store.settings, self._store.backend
        key = self._store.keyspace.session(session_id).audit
        entry = events.bounded(events.encode(_kept_of(data)), ENTRY_BYTES)
        await self._note(session_id)  # first: what runs in the service and reads audits must not miss the entry
        added, _ = await backend.commands(
            [
                ("XADD", key, "MAXLEN", "~", settings.audit_entries, "*", "d", entry),
                ("PEXPIRE", key, int(settings.audit_retention * 1000)),
            ]
        )
        return str(added.decode())

    async def _note(self, session_id: str) -> None:
        now = int(time.time() * 1000)
        if self._noted.get(session_id, 0) >= now:
            return
        if await self._registry.note_audit(session_id, now + AHEAD_MS):
            if len(self._noted) >= KNOWN_NOTES:
                self._noted.clear()
            self._noted[session_id] = now + AHEAD_MS

    async def read(self, session_id: str, *, after: EventId | None = None, count: int) -> list[AuditEntry]:
        """Return up to ``count`` entries after ``after``, the oldest first."""
        start = "-" if after is None else "(" + format_id(after).decode()
        key = self._store.keyspace.session(session_id).audit
        rows = await self._store.backend.command("XRANGE", key, start, "+", "COUNT", count)
        return [read_entry(entry_id, fields[1]) for entry_id, fields in rows]
