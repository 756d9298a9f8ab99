"""One peer's life in a measurement: a fresh Redis, the service, the publisher, the load; and what is read from them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.load import Load, Request
from benchmarks.peers import Peer
from benchmarks.programs import START_SECONDS, Failure, Process, cpu_seconds, free_port, rss_kib
from benchmarks.redis_server import RedisServer

SETTLE_SECONDS = 3.0
HEARTBEAT = 15.0  # s; the settings' default


class Stage:
    """Starts a peer with what it needs; ends everything when the `with` block is left, however it is left.

    With ``redis`` the peer uses one that runs already (and holds a history), instead of a fresh one. Without
    ``publishing`` there is no publisher.
    """

    def __init__(
        self,
        binary: Path,
        parent: Path,
        peer: Peer,
        *,
        heartbeat: float = HEARTBEAT,
        redis: RedisServer | None = None,
        publishing: bool = True,
    ) -> None:
        self.peer = peer
        self.redis = redis
        self.port = 0
        self.pids: list[int] = []
        self.publisher: Process | None = None
        self._binary = binary
        self._parent = parent
        self._heartbeat = heartbeat
        self._publishing = publishing
        self._stack = ExitStack()
        self._folder = Path()

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix=self.peer.name, dir=self._parent))
            self._folder = Path(name)
            self._folder.chmod(0o755)  # nginx' worker gives up root
            if self.redis is None and self.peer.needs_redis:
                self.redis = stack.enter_context(RedisServer(self._folder))
            self.port = free_port()
            if not self.peer.publishes_to_itself:
                self._start_publisher(stack)  # both at a time: most of a start is Python's imports
            self.pids = self.peer.start(stack, self._folder, self.port, self.redis, self._heartbeat)
            if self.peer.publishes_to_itself:
                self._start_publisher(stack)
            if self.publisher is not None:
                wait_for_publisher(self.publisher)
            self._stack = stack.pop_all()
        return self

    def _start_publisher(self, stack: ExitStack) -> None:
        if self._publishing:
            address = publisher_address(self.peer.way, self.port, self.redis)
            self.publisher = stack.enter_context(publisher_process(self._folder, self.peer.way, address))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, requests: Sequence[Request]) -> Load:
        """Start a load process with one stream per request, none open yet."""
        peer = self.peer
        load = Load(self._binary, self._folder, self.port, requests, ready=peer.ready, need_id=peer.need_id)
        return self._stack.enter_context(load)

    def publish(self, sessions: Sequence[str], rate: float, count: int, *, timeout: float = 120.0) -> dict[str, Any]:
        """Publish ``count`` events in turns over the sessions, ``rate`` a second in all."""
        assert self.publisher is not None
        return command(self.publisher, "paced", timeout, sessions=list(sessions), rate=rate, count=count)

    @property
    def cpu(self) -> float:
        """CPU seconds of the service so far."""
        return cpu_seconds(self.pids)

    def settle(self) -> None:
        """Wait until the service does next to nothing, but not for long."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            before = self.cpu
            time.sleep(0.15)
            if self.cpu - before < 0.015:
                return

    @property
    def redis_cpu(self) -> float:
        """CPU seconds of its Redis so far; 0 without one."""
        return self.redis.cpu if self.redis is not None else 0.0

    @property
    def rss(self) -> int:
        """Resident memory of the service in KiB."""
        return rss_kib(self.pids)


def publisher_address(way: str, port: int, redis: RedisServer | None) -> str:
    """Return where a publisher has to publish to; see apps/publish.py."""
    if way == "http" or redis is None:
        return str(port)
    return redis.url if way == "notifier" else str(redis.port)


def publisher_process(folder: Path, way: str, address: str, loop: str = "uvloop") -> Process:
    """Start a publisher, which is not ready at once; see apps/publish.py."""
    command_line = [sys.executable, "-m", "benchmarks.apps.publish", way, address, loop]
    return Process(command_line, folder / "publisher.log", talk=True)


def wait_for_publisher(publisher: Process) -> None:
    """Wait until a publisher is ready."""
    if publisher.hear("started", START_SECONDS) is None:
        raise Failure(f"the publisher did not start:\n{publisher.last_words()}")


def command(publisher: Process, name: str, timeout: float, **arguments: Any) -> dict[str, Any]:
    """Let a publisher run one command."""
    return publisher.ask(json.dumps({"do": name, **arguments}), name, timeout)


def delivery(
    stage: Stage, load: Load, sessions: Sequence[str], *, rate: float, count: int, copies: int
) -> dict[str, float]:
    """Publish and measure the delivery: each event goes to ``copies`` streams. The first moments are not measured."""
    warm = max(1, min(count // 8, len(sessions)))
    load.reset()
    stage.publish(sessions, rate, warm)
    load.expect(warm * copies)
    load.reset()
    cpu, redis_cpu, load_cpu = stage.cpu, stage.redis_cpu, load.report()["cpu_seconds"]
    published = stage.publish(sessions, rate, count)
    got = load.expect(count * copies)
    events = max(1, got["events"])
    return {
        "cpu_us": (stage.cpu - cpu) / events * 1e6,
        "redis_cpu_us": (stage.redis_cpu - redis_cpu) / events * 1e6,
        "p50_ms": got["p50_us"] / 1e3,
        "p99_ms": got["p99_us"] / 1e3,
        "events": got["events"],
        "lost": count * copies - got["events"] + got["lost"],
        "doubled": got["doubled"],
        "load_cpu_us": (got["cpu_seconds"] - load_cpu) / events * 1e6,
        "publisher_late_ms": published["latest_ms"],
        "publisher_cpu_us": published["cpu_seconds"] / count * 1e6,
    }
