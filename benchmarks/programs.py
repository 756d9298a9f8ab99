"""Processes that a run starts: how they are started, asked and ended, and what the kernel says that they cost."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

START_SECONDS = 30.0
STOP_SECONDS = 5.0
ROOT = Path(__file__).resolve().parents[1]


class Failure(Exception):
    """Something that a run needs did not work; the text says what."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Return this environment without the settings of whoever runs the benchmark, and with ``more``."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("AGENT_SSE_")}, "PYTHONUNBUFFERED": "1", **more}


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a killed run leaves nothing behind either


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used, user and system, all threads: the kernel's count in nanoseconds."""
    # clock_getcpuclockid(3): the clock's id is made of the process id.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def rss_kib(pids: Sequence[int]) -> int:
    """Return the resident memory of processes in KiB: their own, files', and shared memory that they have touched."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def children(pid: int) -> list[int]:
    """Return the direct children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


class Process:
    """A process in a group of its own: Ctrl-C reaches the run only, which ends everything in order."""

    def __init__(
        self, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, talk: bool = False
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                command, cwd=ROOT, env=env or environment(), start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - a run has one thread
                stdin=subprocess.PIPE if talk else subprocess.DEVNULL, stdout=subprocess.PIPE if talk else file,
                stderr=file, bufsize=0,
            )  # fmt: skip
        self.pid = self.popen.pid
        self._command = command
        self._held = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, with SIGKILL if need be."""
        with contextlib.suppress(BrokenPipeError, OSError):
            if self.popen.stdin is not None:
                self.popen.stdin.close()
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()

    def last_words(self) -> str:
        """Return the end of what it logged, for an error message."""
        return self.log.read_text("utf-8", "replace")[-1500:].strip()

    def wait_for_port(self, port: int) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.popen.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)
        raise Failure(f"{' '.join(self._command[:4])} … does not listen on port {port}:\n{self.last_words()}")

    # -- a line of text to it, a line of JSON from it --------------------------------------------------------------

    def tell(self, line: str) -> None:
        """Send one line."""
        stdin: IO[bytes] | None = self.popen.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise Failure(f"{self._command[0]} has ended:\n{self.last_words()}") from None

    def hear(self, event: str, timeout: float) -> dict[str, Any] | None:
        """Return the next line whose ``event`` is the one asked for; None when it does not come in ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while True:
            line = self._line(deadline)
            if line is None:
                return None
            answer: dict[str, Any] = json.loads(line)
            if answer["event"] == "error":
                raise Failure(str(answer["message"]))
            if answer["event"] == event:
                return answer

    def ask(self, line: str, event: str, timeout: float = 30.0) -> dict[str, Any]:
        """Send one line and return its answer."""
        self.tell(line)
        answer = self.hear(event, timeout)
        if answer is None:
            raise Failure(f"no answer to {line[:60]!r} within {timeout:.0f} s:\n{self.last_words()}")
        return answer

    def _line(self, deadline: float) -> bytes | None:
        stdout = self.popen.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._held:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                got = os.read(stdout.fileno(), 1 << 20)
                if not got:
                    raise Failure(f"{self._command[0]} ended:\n{self.last_words()}")
                self._held += got
        line, _, self._held = self._held.partition(b"\n")
        return line
