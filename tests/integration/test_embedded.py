"""The embedded Valkey with the real binary: nothing is lost, nothing is left behind, one server at a time."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis.asyncio

from agent_sse.embedded import MAX_LOG_BYTES, EmbeddedValkey, attach_url
from agent_sse.errors import ConfigurationError
from agent_sse.state_dir import socket_path, state_dir

DEADLINE = 20.0

# A service in small: starts, says so, and runs until it is killed.
OWNER = """
import asyncio, os, pathlib, sys
from agent_sse.embedded import EmbeddedValkey

async def main():
    valkey = EmbeddedValkey(pathlib.Path(sys.argv[1]))
    await valkey.start()
    if len(sys.argv) > 3 and os.fork() == 0:
        os.read(int(sys.argv[3]), 1)  # a fork that holds every descriptor open until the test ends
        os._exit(0)
    print(valkey.pid, valkey.owner, flush=True)
    await asyncio.Event().wait()

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = state_dir(tmp_path / "state")
    yield path
    if (parent := socket_path(path).parent) != path:
        shutil.rmtree(parent)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as connection:
        yield connection


@contextmanager
def service(
    directory: Path, loop: str = "asyncio", hold: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a process that owns the server; yield it and the server's pid."""
    arguments = [str(directory), loop] if hold is None else [str(directory), loop, str(hold)]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        pass_fds=() if hold is None else (hold,),
    ) as process:
        try:
            assert process.stdout is not None
            pid, owner = process.stdout.readline().split()
            assert owner == "True"
            yield process, int(pid)
        finally:
            process.kill()


async def lock_is_free(directory: Path) -> None:
    """Wait until neither server nor watchdog is left: both hold the lock. Taken by a process, which can be killed."""
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(directory / "lock"))
    try:
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Logged(logging.Handler):
    """Turns a log line of the module into an event to wait for."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start
        self._seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self._start):
            self._seen.set()

    async def wait(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._seen.wait()


@contextmanager
def logged(start: str) -> Iterator[Logged]:
    """Watch for a log line that begins so, from now on."""
    logger = logging.getLogger("agent_sse.embedded")
    handler, level = Logged(start), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def modes(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_embedded_restart_keeps_the_data(directory: Path) -> None:
    """What was written is there after an orderly stop and a new start, and nothing runs in between."""
    async with aclosing(EmbeddedValkey(directory)) as valkey:
        async with client(await valkey.start()) as connection:
            await connection.xadd("stream", {"n": 1})
        assert valkey.owner
        pid = valkey.pid
        assert pid is not None
    assert not exists(pid)
    assert not valkey.owner
    assert await attach_url(directory) is None
    async with aclosing(EmbeddedValkey(directory)) as valkey, client(await valkey.start()) as connection:
        assert await connection.xlen("stream") == 1


async def test_embedded_files_are_private(directory: Path) -> None:
    """Nothing in the state directory can be read by another user, and the server's session is its own."""
    async with aclosing(EmbeddedValkey(directory)) as valkey:
        await valkey.start()
        assert valkey.pid is not None
        assert os.getsid(valkey.pid) != os.getsid(0)  # Ctrl-C does not reach it
        files = modes(directory)
    assert {"appendonlydir", "lock", "valkey.log", "valkey.sock"} <= files.keys()
    assert {name: oct(mode) for name, mode in files.items() if mode & 0o077} == {}


async def test_embedded_second_instance_attaches(directory: Path) -> None:
    """Started at the same time, one instance owns the server and the others use the same one."""
    instances = [EmbeddedValkey(directory) for _ in range(4)]
    urls = await asyncio.gather(*(instance.start() for instance in instances))
    try:
        assert [instance.owner for instance in instances].count(True) == 1
        assert {await attach_url(directory)} == set(urls)
    finally:
        for instance in instances:
            await instance.aclose()
    assert await attach_url(directory) is None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_embedded_killed_owner_leaves_no_server(directory: Path, loop: str) -> None:
    """SIGKILL of the owner ends the server, which flushes its file first."""
    with service(directory, loop) as (process, pid):
        url = await attach_url(directory)
        assert url is not None
        async with client(url) as connection:
            await connection.set("key", "kept")
        process.kill()
        await lock_is_free(directory)
    assert not exists(pid)
    assert await attach_url(directory) is None
    assert "ready to exit, bye bye" in (directory / "valkey.log").read_text()
    async with aclosing(EmbeddedValkey(directory)) as valkey, client(await valkey.start()) as connection:
        assert await connection.get("key") == "kept"


async def test_embedded_killed_owner_with_a_surviving_fork_leaves_no_server(directory: Path) -> None:
    """A fork of the owner that keeps every descriptor open does not keep the server alive."""
    read_end, write_end = os.pipe()
    try:
        with service(directory, hold=read_end) as (process, pid):
            process.kill()
            await lock_is_free(directory)
        assert not exists(pid)
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_embedded_attached_instance_takes_over(directory: Path) -> None:
    """When the owner is killed, an attached instance starts the server again with all data."""
    with service(directory) as (process, pid):
        async with aclosing(EmbeddedValkey(directory)) as valkey:
            url = await valkey.start()
            assert not valkey.owner
            async with client(url) as connection:
                await connection.set("key", "kept")
            with logged("started") as takeover:
                process.kill()
                await takeover.wait()
            assert valkey.owner
            assert valkey.pid != pid
            async with client(url) as connection:
                assert await connection.get("key") == "kept"
    assert not exists(pid)


@pytest.mark.parametrize("victim", ["server", "watchdog"])
async def test_embedded_killed_server_is_started_again(directory: Path, victim: str) -> None:
    """SIGKILL of the server, or of its watchdog, leads to a new server on the same data."""
    async with aclosing(EmbeddedValkey(directory)) as valkey:
        url = await valkey.start()
        first = valkey.pid
        assert first is not None
        async with client(url) as connection:
            await connection.set("key", "kept")
        with logged("started") as again:
            os.kill(first if victim == "server" else os.getsid(first), signal.SIGKILL)
            await again.wait()
        assert valkey.owner
        assert valkey.pid != first
        async with client(url) as connection:
            assert await connection.get("key") == "kept"


async def test_embedded_stale_socket_does_not_hinder(directory: Path) -> None:
    """The socket file of a killed server is replaced."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(socket_path(directory)))
    assert await attach_url(directory) is None
    async with aclosing(EmbeddedValkey(directory)) as valkey:
        assert await valkey.start() == await attach_url(directory)


@pytest.mark.parametrize("name", ["d" * 120, "with space 'and' \"quotes\" #?%41"])
async def test_embedded_awkward_directory_works(tmp_path: Path, name: str) -> None:
    """A directory too long for a socket, or with characters that need quoting, serves like any other."""
    directory = state_dir(tmp_path / name)
    try:
        async with aclosing(EmbeddedValkey(directory)) as valkey, client(await valkey.start()) as connection:
            assert await connection.ping()
            assert (directory / "appendonlydir").is_dir()
    finally:
        if (parent := socket_path(directory).parent) != directory:
            shutil.rmtree(parent)


async def test_embedded_broken_file_is_a_configuration_error(directory: Path) -> None:
    """A server that cannot read its file stops at once; the error holds the log's last line."""
    (directory / "appendonlydir").mkdir()
    (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("this is no manifest\n")
    valkey = EmbeddedValkey(directory)
    with pytest.raises(ConfigurationError) as caught:
        await valkey.start()
    assert "AOF manifest" in str(caught.value)
    assert str(directory / "valkey.log") in str(caught.value)
    assert not valkey.owner
    await lock_is_free(directory)


async def test_embedded_missing_binary_starts_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no binary the start fails with the line that says what to install, and the lock is free."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match="no Valkey server found"):
        await EmbeddedValkey(directory).start()
    await lock_is_free(directory)


async def test_embedded_silent_holder_of_the_lock_is_named_by_its_log(directory: Path) -> None:
    """When the lock is held and nothing answers, the wait is bounded and the error names the log."""
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", holder, str(directory / "lock"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        with pytest.raises(ConfigurationError, match=r"valkey\.log"):
            await EmbeddedValkey(directory, start_timeout=0.2).start()
    finally:
        process.kill()
        await process.communicate()


async def test_embedded_cancelled_start_leaves_no_server(directory: Path) -> None:
    """A start that is cancelled before the server answers takes the server down again."""
    valkey = EmbeddedValkey(directory)
    task = asyncio.create_task(valkey.start())
    await asyncio.sleep(0)  # one step: the server's process is there, its answer is not
    assert valkey.owner
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await lock_is_free(directory)
    assert not valkey.owner


async def test_embedded_large_log_is_rotated_at_start(directory: Path) -> None:
    """A log beyond its bound is moved aside, so at most twice the bound is kept."""
    log = directory / "valkey.log"
    log.write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    async with aclosing(EmbeddedValkey(directory)) as valkey:
        await valkey.start()
        assert log.stat().st_size < MAX_LOG_BYTES
        assert (directory / "valkey.log.1").stat().st_size == MAX_LOG_BYTES + 1
