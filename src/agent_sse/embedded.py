"""The embedded Valkey: one server per state directory, started by one process, shared by all, gone when its owner is.

Nothing here reads settings or Redis data; of the protocol it speaks only PING.

Who may start the server is decided by one lock file, and the lock is held by the *server and its watchdog*, not by
the service: it is free exactly when nobody writes to the append-only file any more. Every process follows one rule,
at start-up and whenever the server has gone: take the lock and start a server, or attach to the one that answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM

from agent_sse.errors import AgentSseError, ConfigurationError
from agent_sse.state_dir import find_server, socket_path, socket_url

logger = logging.getLogger(__name__)

MAX_LOG_BYTES = 1024 * 1024
START_TIMEOUT = 10.0
LOADING_TIMEOUT = 300.0  # a server that answers LOADING is reading a large append-only file
STOP_GRACE = 5.0  # then SIGKILL; what was written is in the page cache and survives that
PING_TIMEOUT = 1.0
POLL_INTERVAL = 0.05
MAX_BACKOFF = 5.0
STABLE_AFTER = 30.0  # a server that lived this long is restarted at once


# The server's parent is this small process. Its standard input is a pipe whose other end only the service holds: it
# closes when the service ends, however it ends, SIGKILL included, on every Unix. (PR_SET_PDEATHSIG alone exists only
# on Linux, and fires when the *thread* that forked ends; the watchdog has one thread, so there it guards the
# watchdog's own death.) getppid covers a fork of the service that keeps the pipe open without knowing it.
# A source string, because importing the package would cost a process of 40 MB; handlers, not SIG_IGN, because the
# server would inherit ignored signals.
_WATCHDOG = """\
# agent-sse: stops the embedded Valkey when its service has gone
import ctypes, os, select, signal, subprocess, sys
owner, lock, grace, *command = sys.argv[1:]
wake, alarm = os.pipe()
os.set_blocking(alarm, False)
signal.set_wakeup_fd(alarm)
for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: None
server = subprocess.Popen(
    command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[int(lock)], preexec_fn=lambda: prctl(1, signal.SIGTERM)
)
try:
    os.write(1, b"%d" % server.pid)
    while server.poll() is None and os.getppid() == int(owner):
        ready = select.select([0, wake], [], [], 1)[0]
        if 0 in ready:
            break
        if wake in ready:
            os.read(wake, 64)
finally:
    server.terminate()
    try:
        server.wait(float(grace))
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
sys.exit(server.returncode if server.returncode >= 0 else 128 - server.returncode)
"""


async def attach_url(directory: Path) -> str | None:
    """Return the URL of the server that a running service has started, None when none answers. Never starts one."""
    link = await _Link.open(socket_path(directory))
    if link is None:
        return None
    link.close()
    return socket_url(directory)


class EmbeddedValkey:
    """This process's part in the server of one state directory, as returned by :func:`state_dir`.

    After :meth:`start` a background task watches the server: when it has gone, with its owner or by itself, the first
    process to get the lock starts it again on the same data, the others attach. ``start_timeout`` is in seconds.
    """

    def __init__(self, directory: Path, *, start_timeout: float = START_TIMEOUT) -> None:
        self._directory = directory
        self._start_timeout = start_timeout
        self._log = directory / "valkey.log"
        self._socket = socket_path(directory)
        self._server: _Server | None = None
        self._link: _Link | None = None
        self._supervision: asyncio.Task[None] | None = None

    @property
    def owner(self) -> bool:
        """True while the server was started by this instance and goes with it."""
        return self._server is not None

    @property
    def pid(self) -> int | None:
        """The server's process id when this instance is the owner."""
        return self._server.pid if self._server is not None else None

    async def start(self) -> str:
        """Start the server or attach to the one that runs, and return its URL once it answers.

        Raises :class:`ConfigurationError` when there is no binary, the directory cannot be used, or no server answers.
        """
        if self._supervision is None:
            await self._connect()
            self._supervision = asyncio.create_task(self._supervise(), name="agent-sse: embedded Valkey")
            self._supervision.add_done_callback(_report)
        return socket_url(self._directory)

    async def aclose(self) -> None:
        """Leave the server; the owner stops it, and returns when it has written its file and gone."""
        task, self._supervision = self._supervision, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._release()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        deadline = begin + self._start_timeout
        try:
            while True:
                if self._server is None:
                    self._server = self._start_if_free()
                elif self._server.exited.is_set():
                    raise ConfigurationError(f"the embedded Valkey stopped at once: {self._server.last_words()}")
                link = await _Link.open(self._socket)
                if link is not None and link.ready:
                    await self._settle(link)
                    return
                if link is not None:
                    link.close()
                    deadline = min(begin + LOADING_TIMEOUT, loop.time() + self._start_timeout)
                if loop.time() > deadline:
                    raise ConfigurationError(f"the embedded Valkey does not answer; its log: {self._log}")
                await asyncio.sleep(POLL_INTERVAL)
        except BaseException:
            await self._release()
            raise

    async def _settle(self, link: _Link) -> None:
        if self._server is not None:
            link.close()
            await self._server.reported.wait()
            logger.info("started the embedded Valkey, pid %s, data in %s", self._server.pid, self._directory)
        else:
            self._link = link  # kept open and idle: its end tells at once that the server has gone
            logger.info("attached to the embedded Valkey of another process, data in %s", self._directory)

    def _start_if_free(self) -> _Server | None:
        import fcntl  # not on Windows, where this module must still import

        try:
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
                return _Server(self._command(), self._directory, self._log, lock)
            finally:
                os.close(lock)  # not LOCK_UN: watchdog and server hold the same lock by inheritance
        except OSError as error:
            raise ConfigurationError(f"cannot start the embedded Valkey in {self._directory}: {error}") from error

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "timeout": "0",  # attached processes hold an idle connection
            "daemonize": "no",
            "logfile": str(self._log),
            "loglevel": "notice",
        }
        return [str(find_server()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        delay = 0.0
        connected_at = loop.time()
        while True:
            if self._server is not None:
                await self._server.exited.wait()
                logger.warning("the embedded Valkey stopped: %s", self._server.last_words())
            elif self._link is not None:
                await self._link.ended()
                logger.warning("the embedded Valkey's owner or server has gone")
            await self._release()
            if loop.time() - connected_at > STABLE_AFTER:
                delay = 0.0
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(MAX_BACKOFF, max(0.1, 2 * delay))
            try:
                await self._connect()
            except AgentSseError as error:
                logger.error("%s", error)
            connected_at = loop.time()

    async def _release(self) -> None:
        link, self._link = self._link, None
        server, self._server = self._server, None
        if link is not None:
            link.close()
        if server is not None:
            await server.stop()


class _Server:
    """A server that this process started, through its watchdog. ``lock`` is passed on to both."""

    def __init__(self, command: list[str], directory: Path, log: Path, lock: int) -> None:
        self.pid: int | None = None
        self.reported = asyncio.Event()
        self.exited = asyncio.Event()
        self._log = log
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        self._log_start = log.stat().st_size if log.exists() else 0
        life, self._life = os.pipe()
        watchdog = [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(os.getpid()), str(lock), str(STOP_GRACE)]
        try:
            with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as errors:
                # Popen, not asyncio's subprocess: that one kills its child when it is garbage-collected.
                self._process = subprocess.Popen(  # noqa: S603 - fixed words, a checked binary and our own paths
                    [*watchdog, *command],
                    stdin=life,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    bufsize=0,
                    cwd=directory,
                    pass_fds=[lock],
                    umask=0o077,
                    start_new_session=True,  # Ctrl-C in the terminal is for the service, which ends its streams first
                )
        except BaseException:
            os.close(self._life)
            raise
        finally:
            os.close(life)
        assert self._process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        self._output = self._process.stdout
        asyncio.get_running_loop().add_reader(self._output.fileno(), self._read)

    def _read(self) -> None:
        # The server's pid, written at once and shorter than any pipe's atomic size; then the end of the watchdog.
        data = self._output.read(64)
        if data:
            self.pid = int(data)
        else:
            asyncio.get_running_loop().remove_reader(self._output.fileno())
            self.exited.set()
        self.reported.set()

    def last_words(self) -> str:
        """Return the last line that the exited server logged since it was started, its status, and where the log is."""
        text = ""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log.stat().st_size - 4096))
            text = log.read().decode("utf-8", "replace")
        last = next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "nothing was logged")
        printable = "".join(c if c.isprintable() else "?" for c in last)
        return f"{printable} (status {self._process.wait()}, log: {self._log})"

    async def stop(self) -> None:
        """Let the watchdog stop the server, and wait until both have gone."""
        os.close(self._life)
        try:
            async with asyncio.timeout(STOP_GRACE + 2):
                await self.exited.wait()
        except TimeoutError:
            self._process.kill()
            await self.exited.wait()
        returncode = self._process.wait()  # it has closed its output: there is nothing to wait for
        self._output.close()
        if returncode < 0 and self.pid is not None:
            # The watchdog itself was killed. Linux tells the server, other systems do not.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, SIGTERM)


class _Link:
    """A connection to a server that has answered PING. ``ready`` is False while it loads its data."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: bool) -> None:
        self.ready = ready
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> _Link | None:
        """Connect and PING; None when nothing answers, as on the socket file of a killed server."""
        writer = None
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"PING\r\n")
                answer = await reader.readline()
            if answer.startswith((b"+PONG", b"-LOADING")):
                link, writer = cls(reader, writer, answer.startswith(b"+")), None
                return link
        except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: a line without end
            pass
        finally:
            if writer is not None:
                writer.close()
        return None

    async def ended(self) -> None:
        """Wait until the server has closed the connection."""
        with contextlib.suppress(OSError):
            while await self._reader.read(4096):
                pass

    def close(self) -> None:
        """Close the connection without waiting: nothing is left to be sent."""
        self._writer.close()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("the embedded Valkey is no longer watched", exc_info=task.exception())
