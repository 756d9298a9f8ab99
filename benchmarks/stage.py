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
from benchmarks.peers import Peer, Service
from benchmarks.programs import Failure, Process, cpu_seconds, rss_kib
from benchmarks.redis_server import RedisServer

SETTLE_SECONDS = 5.0
HEARTBEAT = 15.0  # s; the settings' default


class Stage:
    """Starts a peer with what it needs; ends everything when the `with` block is left, however it is left.

    With ``redis`` the peer uses one that runs already (and holds a history), instead of a fresh one.
    """

    def __init__(
        self, binary: Path, parent: Path, peer: Peer, *, heartbeat: float = HEARTBEAT, redis: RedisServer | None = None
    ) -> None:
        self.peer = peer
        self._binary = binary
        self._parent = parent
        self._heartbeat = heartbeat
        self._redis = redis
        self._stack = ExitStack()
        self.service: Service
        self.publisher: Process
        self._folder = Path()

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self._folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=self.peer.name, dir=self._parent))
            )
            self._folder.chmod(0o755)  # nginx' worker gives up root
            redis = self._redis
            if redis is None and self.peer.needs_redis:
                redis = stack.enter_context(RedisServer(self._folder))
            self.service = self.peer.start(
                stack, self._folder, redis if self.peer.needs_redis else None, self._heartbeat
            )
            self.publisher = stack.enter_context(start_publisher(self._folder, self.service.way, self.service.address))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def load(self, requests: Sequence[Request]) -> Load:
        """Start a load process with one stream per request, none open yet."""
        return self._stack.enter_context(
            Load(
                self._binary,
                self._folder,
                self.service.port,
                requests,
                ready=self.peer.ready,
                need_id=self.peer.need_id,
            )
        )

    def publish(self, sessions: Sequence[str], rate: float, count: int, *, timeout: float = 120.0) -> dict[str, Any]:
        """Publish ``count`` events in turns over the sessions, ``rate`` a second in all."""
        return command(self.publisher, "paced", timeout, sessions=list(sessions), rate=rate, count=count)

    @property
    def cpu(self) -> float:
        """CPU seconds of the service so far."""
        return cpu_seconds(self.service.pids)

    def settle(self) -> None:
        """Wait until the service does next to nothing, but not for long."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            before = self.cpu
            time.sleep(0.2)
            if self.cpu - before < 0.01:
                return

    @property
    def redis_cpu(self) -> float:
        """CPU seconds of its Redis so far; 0 without one."""
        return self.service.redis.cpu if self.service.redis is not None else 0.0

    @property
    def rss(self) -> int:
        """Resident memory of the service in KiB."""
        return rss_kib(self.service.pids)


def start_publisher(folder: Path, way: str, address: str) -> Process:
    """Start a publisher; see apps/publish.py."""
    process = Process(
        [sys.executable, "-m", "benchmarks.apps.publish", way, address], folder / "publisher.log", talk=True
    )
    if process.hear("started", 30) is None:
        process.stop()
        raise Failure(f"the publisher did not start:\n{process.last_words()}")
    return process


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
    load.expect(warm * copies, 60)
    load.reset()
    cpu, redis_cpu, load_cpu = stage.cpu, stage.redis_cpu, load.report()["cpu_seconds"]
    published = stage.publish(sessions, rate, count)
    got = load.expect(count * copies, 60)
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
