"""The audit file on a real Valkey and a real disk: complete, whoever restarts, rotates or stands by."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_sse import ConfigurationError, RedisUnavailable
from agent_sse.appender import Appender
from agent_sse.audit_file import PAGE_ENTRIES, AuditFile, Positions
from agent_sse.backend import Backend
from agent_sse.registry import Registry
from agent_sse.store import Store
from harness import DEADLINE, Valkey, make_settings, until

DAY = 24 * 3_600_000  # ms


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds so short that a test need not wait for them."""
    monkeypatch.setattr("agent_sse.audit_file.POLL_INTERVAL", 0.02)


class Desk:
    """One process's store and index; appends audit entries as the scripts do, and looks at files."""

    def __init__(self, url: str, folder: Path) -> None:
        self.backend = Backend(url)
        self.store = Store(self.backend, make_settings(url))
        self.registry = Registry(self.store)
        self.path = folder / "audit.jsonl"
        self.added: list[tuple[str, str]] = []

    async def add(
        self, session: str, n: int = 0, *, note: bool = True, text: bytes | None = None, ahead: int = 0
    ) -> tuple[str, str]:
        """Append an entry and note it, ``ahead`` ms into the future; return its session and id."""
        key = self.store.keyspace.session(session).audit
        entry = json.dumps({"kind": "decision", "n": n, "工具": "编辑"}, ensure_ascii=False).encode()
        name = await self.backend.command("XADD", key, "*", "d", entry if text is None else text)
        if note:
            await self.registry.note_audit(session, int(time.time() * 1000) + ahead)
        self.added.append((session, name.decode()))
        return self.added[-1]

    def make(self, path: Path | None = None) -> AuditFile:
        return AuditFile(self.store, self.registry, path or self.path)

    @asynccontextmanager
    async def following(self, path: Path | None = None) -> AsyncIterator[AuditFile]:
        made = self.make(path)
        await made.start()
        try:
            yield made
            assert made.alive
        finally:
            await made.aclose()

    async def round(self, audit: AuditFile) -> None:
        """Wait until a round is over that began later than now: what there is, is in the file, also a second time."""
        before = int(time.time() * 1000)
        await until(lambda: audit._positions is not None and audit._positions.since_ms > before, what="a round")

    def lines(self, path: Path | None = None) -> list[Any]:
        return [json.loads(line) for line in (path or self.path).read_bytes().splitlines()]

    def ids(self, *paths: Path) -> list[tuple[str, str]]:
        return [(line["session_id"], line["id"]) for path in paths or (self.path,) for line in self.lines(path)]

    async def __aenter__(self) -> Desk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.aclose()


@pytest.fixture
async def desk(valkey: Valkey, folder: Path) -> AsyncIterator[Desk]:
    async with Desk(valkey.url, folder) as made:
        yield made


# -- complete -------------------------------------------------------------------------------------------------------


async def test_audit_file_gets_every_entry_of_every_session(desk: Desk) -> None:
    """A line of JSON for each entry, in a session's order, with its session and id; nobody else can read the file."""
    async with desk.following() as audit:
        for n in range(10):
            await desk.add(f"s{n % 3}", n)
        await desk.round(audit)
    assert sorted(desk.added) == sorted(desk.ids())
    first = next(line for line in desk.lines() if line["n"] == 0)
    assert ["session_id", "id", "at", "kind", "n", "工具"] == list(first)
    assert first["at"].endswith("Z")
    assert "编辑" in desk.path.read_text(encoding="utf-8")
    for session in ("s0", "s1", "s2"):
        ours = [line["n"] for line in desk.lines() if line["session_id"] == session]
        assert sorted(ours) == ours
    assert 0o600 == stat.S_IMODE(desk.path.stat().st_mode)


async def test_audit_file_gets_more_than_a_page_of_all(desk: Desk) -> None:
    """More sessions than are read at a time, and more entries in one than a page has: all of them, each once."""
    await asyncio.gather(*(desk.add(f"s{n % 120}", n) for n in range(360)))
    await asyncio.gather(*(desk.add("busy", n) for n in range(95)))
    async with desk.following() as audit:
        await desk.round(audit)
    assert sorted(desk.added) == sorted(desk.ids())


async def test_audit_file_shares_its_rounds_between_sessions(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session with more than a round takes is gone on with in the next one, and nothing is taken for complete."""
    monkeypatch.setattr("agent_sse.audit_file.PAGES", 2)
    await asyncio.gather(*(desk.add("busy", n) for n in range(95)))
    await desk.add("other")
    async with desk.following() as audit:
        await desk.round(audit)
    assert sorted(desk.added) == sorted(desk.ids())


async def test_audit_file_gets_what_came_while_nobody_followed(desk: Desk) -> None:
    """Entries of known and unknown sessions from before a start are there after it, and none is there twice."""
    await desk.add("s1", 1)
    for n in range(2, 5):
        async with desk.following() as audit:
            await desk.round(audit)
        await desk.add("s1", n)
        await desk.add(f"new{n}", n)
    async with desk.following() as audit:
        await desk.round(audit)
    assert sorted(desk.added) == sorted(desk.ids())


async def test_audit_file_gets_entries_whose_note_is_late_or_lost(desk: Desk) -> None:
    """An entry that nobody noted comes with the session's next one."""
    async with desk.following() as audit:
        await desk.add("s1", 1)
        await desk.round(audit)
        await desk.add("s1", 2, note=False)
        await desk.add("s2", 3, note=False)
        await desk.round(audit)
        await desk.add("s2", 4)
        await desk.round(audit)
    assert sorted(desk.added) == sorted(desk.ids())


async def test_audit_file_reads_on_in_a_session_that_was_quiet(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is not looked at any more, and then goes on, does so after its last entry in the file."""
    monkeypatch.setattr("agent_sse.audit_file.SLACK_MS", 0)
    async with desk.following() as audit:
        for n in range(3):
            await desk.add("s1", n, ahead=200)
            await until(lambda n=n: desk.path.exists() and len(desk.ids()) == n + 1, what="its line")
            await until(lambda: audit._positions and "s1" not in audit._positions._known, what="its being out of sight")
    assert desk.added == desk.ids()


async def test_audit_file_keeps_what_it_cannot_read(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """An entry that is none of this package's is kept as text, warned of, and holds nothing up."""
    await desk.add("s1", text=b"no json\n\xff")
    await desk.add("s1", text=b"[1]")
    await desk.add("s1", text=b'{"a": NaN}')
    await desk.add("s1", text=b'{"a": "\\ud800"}')
    await desk.add("s1", text=b"[" * 100_000)
    await desk.add("s1", 1)
    async with desk.following() as audit:
        await desk.round(audit)
    assert desk.added == desk.ids()
    assert ["b'no json\\n\\xff'", "b'[1]'"] == [line["unreadable"] for line in desk.lines()[:2]]
    assert [True] * 5 + [False] == ["unreadable" in line for line in desk.lines()]
    assert 5 == len([record for record in caplog.records if "none that this package wrote" in record.getMessage()])


# -- who restarts ---------------------------------------------------------------------------------------------------


async def test_audit_file_goes_on_when_redis_restarts(
    desk: Desk, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis is away for some rounds: one line in the log, and afterwards every entry, once."""
    caplog.set_level(logging.INFO)
    async with desk.following() as audit:
        await desk.add("s1", 1)
        await desk.round(audit)
        await valkey.stop()
        await until(lambda: audit._trouble, what="trouble")
        await valkey.start()
        await until(lambda: not audit._trouble, what="the end of it")
        await until(lambda: _reached(desk), what="Redis")
        await desk.add("s1", 2)
        await desk.round(audit)
    assert desk.added == desk.ids()
    told = [record.getMessage() for record in caplog.records if "audit file" in record.getMessage()]
    assert ["is not written", "is written again"] == [
        next(part for part in ("is not written", "is written again") if part in line) for line in told
    ]


async def _reached(desk: Desk) -> bool:
    with contextlib.suppress(RedisUnavailable):
        await desk.store.ping()
        return True
    return False


FOLLOWER = """
import asyncio, sys
from pathlib import Path
from agent_sse import audit_file
from agent_sse.backend import Backend
from agent_sse.registry import Registry
from agent_sse.settings import Settings
from agent_sse.store import Store

audit_file.POLL_INTERVAL = 0.02

async def main():
    settings = Settings(_env_file=None)
    store = Store(Backend(settings.redis_url), settings)
    follower = audit_file.AuditFile(store, Registry(store), Path(sys.argv[1]))
    await follower.start()
    while not follower.writing:
        await asyncio.sleep(0.01)
    print("writing", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_audit_file_of_a_killed_process_is_taken_over(desk: Desk, valkey: Valkey) -> None:
    """The process that writes is killed among entries: the one that stood by goes on, complete, at least once each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FOLLOWER, str(desk.path), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "AGENT_SSE_REDIS_URL": valkey.url},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            assert b"writing\n" == await process.stdout.readline()
        async with desk.following() as audit:
            for n in range(50):
                await desk.add("s1", n)
            await until(desk.ids, what="lines")
            assert not audit.writing
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await desk.add("s1", 50)
            await desk.round(audit)
            assert audit.writing
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    ids = desk.ids()
    assert desk.added == list(dict.fromkeys(ids))
    assert len(ids) - len(desk.added) <= PAGE_ENTRIES


async def test_audit_file_has_one_writer_of_several(desk: Desk, valkey: Valkey, folder: Path) -> None:
    """Of two followers one writes, each entry once; when it leaves, the other one does."""
    async with Desk(valkey.url, folder) as other, other.following() as second:
        async with desk.following() as first:
            await until(lambda: first.writing or second.writing, what="a writer")
            assert first.writing != second.writing
            for n in range(20):
                await desk.add(f"s{n % 4}", n)
            await desk.round(first if first.writing else second)
            assert first.writing != second.writing
        await desk.add("s1", 20)
        await desk.round(second)
    assert sorted(desk.added) == sorted(desk.ids())


async def test_audit_files_of_two_hosts_are_both_complete(desk: Desk, valkey: Valkey, folder: Path) -> None:
    """Two files know nothing of each other: each has every entry once."""
    elsewhere = folder / "elsewhere.jsonl"
    async with desk.following() as first, desk.following(elsewhere) as second:
        for n in range(20):
            await desk.add(f"s{n % 4}", n)
        await desk.round(first)
        await desk.round(second)
    assert sorted(desk.added) == sorted(desk.ids())
    assert sorted(desk.added) == sorted(desk.ids(elsewhere))


async def test_audit_file_that_is_moved_with_its_lock_goes_on(desk: Desk, folder: Path) -> None:
    """A volume that is mounted elsewhere, by a host of another name: nothing is written a second time."""
    await desk.add("s1", 1)
    async with desk.following() as audit:
        await desk.round(audit)
    moved = folder / "moved" / "log.jsonl"
    moved.parent.mkdir()
    shutil.move(desk.path, moved)
    shutil.move(desk.path.with_name("audit.jsonl.lock"), moved.with_name("log.jsonl.lock"))
    await desk.add("s1", 2)
    async with desk.following(moved) as audit:
        await desk.round(audit)
    assert desk.added == desk.ids(moved)


async def test_audit_file_repeats_what_redis_was_not_told_of(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after writing and before noting how far: the entry is there twice, under one id."""
    save = Positions.save

    async def lost(positions: Positions) -> None:
        positions._unsaved.clear()

    monkeypatch.setattr(Positions, "save", lost)
    await desk.add("s1", 1)
    async with desk.following() as audit:
        await desk.round(audit)
    monkeypatch.setattr(Positions, "save", save)
    async with desk.following() as audit:
        await desk.round(audit)
    assert desk.added * 2 == desk.ids()


async def test_audit_file_whose_position_cannot_be_saved_saves_it_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis fails when the position is written: it comes later, and what is in the file is not written again."""
    failures, save = [RedisUnavailable("away"), RedisUnavailable("away")], Positions.save

    async def failing(positions: Positions) -> None:
        if positions._unsaved and failures:
            raise failures.pop()
        await save(positions)

    monkeypatch.setattr(Positions, "save", failing)
    await desk.add("s1", 1)
    async with desk.following() as audit:
        await desk.round(audit)
    async with desk.following() as audit:
        await desk.round(audit)
    assert ([], desk.added) == (failures, desk.ids())


async def test_audit_file_checkpoint_spares_old_sessions(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete is noted; a position that no index has a session for is forgotten, the others are kept."""
    monkeypatch.setattr("agent_sse.audit_file.CHECKPOINT_INTERVAL", 0.0)
    monkeypatch.setattr("agent_sse.audit_file.SWEEP_INTERVAL", 0.0)
    for n in range(3):
        await desk.add(f"s{n}", n)
    async with desk.following() as audit:
        await desk.round(audit)
        assert audit._positions is not None
        key = audit._positions._key
        await desk.backend.command("ZREM", desk.store.keyspace.audited(), "s1")

        async def swept() -> bool:
            return [b":since", b"s0", b"s2"] == sorted(await desk.backend.command("HKEYS", key))

        await until(swept, what="the sweep")
        assert int(await desk.backend.command("HGET", key, ":since")) > int(time.time() * 1000) - DAY
        assert 0 < await desk.backend.command("TTL", key)


async def test_audit_file_on_a_cluster_reads_sessions_of_every_slot(folder: Path) -> None:
    """Index, positions and audits lie in different slots: nothing crosses them."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] % 20_000 + 10_000
    server = Valkey(folder / "c", "--cluster-enabled", "yes", port=port)
    await server.start()
    try:
        async with server.client() as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def whole() -> bool:
                return b"cluster_state:ok" in await client.execute_command("CLUSTER", "INFO")

            await until(whole, what="the cluster")
        async with Desk(f"redis://127.0.0.1:{port}", folder) as desk, desk.following() as audit:
            for n in range(40):
                await desk.add(f"s{n % 20}", n)
            await desk.round(audit)
            assert desk.backend.clustered
            assert sorted(desk.added) == sorted(desk.ids())
    finally:
        await server.stop()


# -- the file -------------------------------------------------------------------------------------------------------


async def test_audit_file_is_opened_anew_when_it_is_rotated(desk: Desk) -> None:
    """Renamed: the new entries are in a new file. Removed: they are in a new one too. Truncated: from the start."""
    async with desk.following() as audit:
        await desk.add("s1", 1)
        await desk.round(audit)
        old = desk.path.rename(desk.path.with_name("audit.jsonl.1"))
        await desk.add("s1", 2)
        await desk.round(audit)
        assert desk.added == desk.ids(old, desk.path)
        desk.path.unlink()
        await desk.add("s1", 3)
        await desk.round(audit)
        assert desk.added[2:] == desk.ids()
        os.truncate(desk.path, 0)
        await desk.add("s1", 4)
        await desk.round(audit)
        assert desk.added[3:] == desk.ids()


async def test_audit_file_that_cannot_be_written_is_tried_again(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A directory takes the file's place for a while: logged once, and then nothing is missing."""
    async with desk.following() as audit:
        await desk.add("s1", 1)
        await desk.round(audit)
        old = desk.path.rename(desk.path.with_name("audit.jsonl.1"))
        desk.path.mkdir()
        await desk.add("s1", 2)
        await until(lambda: audit._trouble, what="trouble")
        await desk.add("s1", 3)
        desk.path.rmdir()
        await desk.round(audit)
        assert audit.alive
    assert desk.added == desk.ids(old, desk.path)
    assert 1 == len([record for record in caplog.records if record.levelno == logging.ERROR])


@pytest.mark.parametrize("wrong", ["no/such/directory.jsonl", "a-directory", "a-pipe"])
async def test_audit_file_that_cannot_be_written_at_the_start_is_refused(desk: Desk, folder: Path, wrong: str) -> None:
    """A missing directory, a directory in the file's place and a pipe are named with the setting."""
    (folder / "a-directory").mkdir()
    os.mkfifo(folder / "a-pipe")
    audit = desk.make(folder / wrong)
    with pytest.raises(ConfigurationError, match="AGENT_SSE_AUDIT_FILE"):
        await audit.start()
    await audit.aclose()


def test_appender_begins_a_new_line_after_a_torn_one(folder: Path) -> None:
    """A crash left half a line: the next one is whole."""
    path = folder / "log"
    path.write_bytes(b'{"a":1}\n{"half')
    appender = Appender(path)
    appender.append(b'{"b":2}\n')
    appender.append(b'{"c":3}\n')
    appender.close()
    assert b'{"a":1}\n{"half\n{"b":2}\n{"c":3}\n' == path.read_bytes()


FULL = """
import resource, sys
from pathlib import Path
from agent_sse.appender import Appender

appender = Appender(Path(sys.argv[1]))
appender.append(b"1" * 99 + b"\\n")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
for _ in range(2):
    try:
        appender.append(b"2" * 99 + b"\\n")
    except OSError as error:
        print(type(error).__name__, Path(sys.argv[1]).stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
appender.append(b"3" * 99 + b"\\n")
"""


def test_appender_on_a_full_disk_leaves_no_half_line(folder: Path) -> None:
    """Only a part of a batch fits: it is taken back, the error is raised, and later lines are whole."""
    path = folder / "log"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], check=True, capture_output=True, text=True)
    assert ["OSError 100"] * 2 == done.stdout.splitlines()
    assert b"1" * 99 + b"\n" + b"3" * 99 + b"\n" == path.read_bytes()


def test_appender_lock_is_one_processs_and_its_id_stays(folder: Path) -> None:
    """The second one does not get the lock before the first one closes; garbage in its file becomes an id."""
    path = folder / "log"
    (folder / "log.lock").write_bytes(b"x" * 1000)
    first, second = Appender(path), Appender(path)
    assert first.acquire()
    assert first.acquire()  # it has it
    assert not second.acquire()
    first.close()
    assert second.acquire()
    assert first.file_id == second.file_id == (folder / "log.lock").read_text()
    assert 32 == len(first.file_id)
    second.close()
