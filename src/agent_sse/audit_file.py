"""The audit of all sessions as lines of JSON in a file: every entry at least once, whoever restarts when. Only appends.

Of a host's processes one writes; the others stand by. How far each session is in the file is kept in Redis, under an
id that lies beside the file: it goes with the file, wherever that is mounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent_sse import events
from agent_sse.appender import Appender
from agent_sse.audit import read_entry
from agent_sse.errors import ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.registry import Registry
from agent_sse.store import Store

log = logging.getLogger("agent_sse")

POLL_INTERVAL = 1.0  # s
SLACK_MS = 120_000  # for how long a session is read on after its last entry was due: notes may be late, clocks differ
PAGE_SESSIONS = 50  # read at a time …
PAGE_ENTRIES = 10  # … and how many entries of each: one may be as large as an event
PAGES = 100  # of the same sessions in one round; then it is the others' turn
POSITIONS_PAGE = 500  # read, or looked through, at a time
CHECKPOINT_INTERVAL = 60.0  # s
SWEEP_INTERVAL = 3600.0  # s
CLOSE_GRACE = 3.0  # s
SINCE = ":since"  # stands in the hash of positions, among session ids, which begin otherwise

T = TypeVar("T")


class Positions:
    """How far each session's audit is in one file: in Redis, and here for the sessions that are being read.

    ``since_ms``: what came before is in the file (Unix, Redis' clock); that only spares reading sessions in vain.
    """

    def __init__(self, store: Store, file_id: str) -> None:
        self.since_ms = 0
        self._store = store
        self._key = store.keyspace.audit_positions(file_id)
        self._lifetime = int(store.settings.audit_retention) + 24 * 3600
        self._known: dict[str, str] = {}
        self._unsaved: dict[str, str] = {}

    async def open(self) -> None:
        """Read where the file's last writer was."""
        self.since_ms = int(await self._store.backend.command("HGET", self._key, SINCE) or 0)

    async def load(self, sessions: Sequence[str]) -> None:
        """Know these sessions' positions, and no others."""
        self._known = {name: self._known[name] for name in sessions if name in self._known}
        unknown = [name for name in sessions if name not in self._known]
        for names in _pages(unknown, POSITIONS_PAGE):
            found = await self._store.backend.command("HMGET", self._key, *names)
            for name, value in zip(names, found, strict=True):
                self._known[name] = self._unsaved.get(name) or (value.decode() if value else "")

    def start(self, session_id: str) -> str:
        """Return where to read on, as XRANGE takes it."""
        position = self._known[session_id]
        return f"({position}" if position else "-"

    def advance(self, session_id: str, entry_id: str) -> None:
        """Note that a session is in the file up to an entry."""
        self._known[session_id] = self._unsaved[session_id] = entry_id

    async def save(self) -> None:
        """Write to Redis what is new."""
        new = {**self._unsaved}
        if not new:
            return
        flat = [part for item in new.items() for part in item]
        await self._store.backend.commands([("HSET", self._key, *flat), ("EXPIRE", self._key, self._lifetime)])
        self._unsaved = {name: value for name, value in self._unsaved.items() if new.get(name) != value}

    async def checkpoint(self) -> None:
        """Write to Redis how far all sessions are."""
        self._unsaved[SINCE] = str(self.since_ms)
        await self.save()

    async def sweep(self) -> None:
        """Forget sessions that are in no index any more: their audit has expired."""
        backend, cursor = self._store.backend, b"0"
        while True:
            cursor, found = await backend.command("HSCAN", self._key, cursor, "COUNT", POSITIONS_PAGE)
            names = [name for name in found[::2] if name != SINCE.encode()]
            for page in _pages(names, POSITIONS_PAGE):
                scores = await backend.command("ZMSCORE", self._store.keyspace.audited(), *page)
                gone = [name for name, score in zip(page, scores, strict=True) if score is None]
                if gone:
                    await backend.command("HDEL", self._key, *gone)
            if cursor == b"0":
                return


class AuditFile:
    """Follows the audits of all sessions on one :class:`Store`. Owned by the service."""

    def __init__(self, store: Store, registry: Registry, path: Path) -> None:
        self._store = store
        self._registry = registry
        self._file = Appender(path)
        self._positions: Positions | None = None
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._checked = self._swept = 0.0  # the loop's time

    async def start(self) -> None:
        """Begin to follow. Raises :class:`ConfigurationError` when the file cannot be written."""
        try:
            await self._blocking(self._file.check)
        except OSError as error:
            raise ConfigurationError(
                f"AGENT_SSE_AUDIT_FILE cannot be written ({error}): let this user write it and its directory"
            ) from error
        self._task = asyncio.create_task(self._run(), name="agent-sse audit file")
        self._task.add_done_callback(_report_death)

    async def aclose(self) -> None:
        """Stop, and let another process write. What is not in the file yet, the next writer finds."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_GRACE)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """Whether it runs; readiness fails when it does not."""
        return self._task is not None and not self._task.done()

    @property
    def writing(self) -> bool:
        """Whether this process is the one that writes."""
        return self._positions is not None

    async def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    await self._turn()
                    self._tell("")
                except (RedisUnavailable, RedisRefused, OSError) as error:
                    self._tell(str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL):
                        await self._closing.wait()
        finally:
            self._positions = None
            self._file.close()

    def _tell(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.error("the audit file %s is not written, which is tried again: %s", self._file.path, trouble)
        elif self._trouble and not trouble:
            log.info("the audit file %s is written again; nothing is missing", self._file.path)
        self._trouble = trouble

    async def _turn(self) -> None:
        if self._positions is None:
            if not await self._blocking(self._file.acquire):
                return
            positions = Positions(self._store, self._file.file_id)
            await positions.open()
            self._positions = positions
        await self._round(self._positions)
        now = asyncio.get_running_loop().time()
        if now - self._checked >= CHECKPOINT_INTERVAL:
            await self._positions.checkpoint()
            self._checked = now
        if now - self._swept >= SWEEP_INTERVAL:
            await self._positions.sweep()
            self._swept = now

    async def _round(self, positions: Positions) -> None:
        """Read on in every session that may have grown."""
        now_ms, sessions = await self._registry.audited(max(0, positions.since_ms - SLACK_MS))
        await positions.load(sessions)
        complete, errors = True, list[Exception]()
        for page in _pages(sessions, PAGE_SESSIONS):
            behind: Sequence[str] = page
            for _ in range(PAGES):
                if not behind or self._closing.is_set():
                    break
                behind = await self._copy(positions, behind, errors)
            complete = complete and not behind
        if errors:
            raise errors[0]
        if complete:
            positions.since_ms = now_ms

    async def _copy(self, positions: Positions, sessions: Sequence[str], errors: list[Exception]) -> list[str]:
        """Copy some entries of each session; return those that have more. Of a failed one the error is kept."""
        replies = await asyncio.gather(*(self._read(name, positions.start(name)) for name in sessions))
        lines, behind, last = [], [], {}
        for name, rows in zip(sessions, replies, strict=True):
            if isinstance(rows, Exception):
                errors.append(rows)
                continue
            lines += [line_of(name, entry_id, fields[1]) for entry_id, fields in rows]
            if rows:
                last[name] = rows[-1][0].decode()
            if len(rows) == PAGE_ENTRIES:
                behind.append(name)
        if lines:
            await self._blocking(self._file.append, b"".join(lines))
            for name, entry_id in last.items():
                positions.advance(name, entry_id)
        await positions.save()
        return behind

    async def _read(self, session_id: str, start: str) -> list[Any] | RedisUnavailable | RedisRefused:
        key = self._store.keyspace.session(session_id).audit
        try:
            rows: list[Any] = await self._store.backend.command("XRANGE", key, start, "+", "COUNT", PAGE_ENTRIES)
        except (RedisUnavailable, RedisRefused) as error:  # a server that is away keeps no other one's sessions waiting
            return error
        return rows

    async def _blocking(self, work: Callable[..., T], *args: Any) -> T:
        """Run what may block in a thread, and do not leave before it has ended: the lock is still this one's."""
        task = asyncio.ensure_future(asyncio.to_thread(work, *args))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task], timeout=CLOSE_GRACE)
            raise


def line_of(session_id: str, entry_id: bytes, text: bytes) -> bytes:
    """Return an entry as a line."""
    entry = read_entry(entry_id, text)
    if "unreadable" in entry.data:
        log.warning("session %s: audit entry %s is none that this package wrote", session_id, entry.entry_id)
    return events.encode({"session_id": session_id, **entry.as_json()}) + b"\n"


def _pages(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s died; this process is not ready any more", task.get_name(), exc_info=task.exception())
