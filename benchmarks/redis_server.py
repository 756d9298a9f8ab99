"""The Redis of a measurement: the embedded Valkey's binary, without persistence, on a port of 127.0.0.1."""

from __future__ import annotations

from pathlib import Path

from agent_sse.state_dir import find_server
from benchmarks.programs import Process, cpu_seconds, free_port


class RedisServer(Process):
    """A server that holds nothing yet; ``options`` are its own. ``url`` is for redis-py."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        super().__init__(
            [str(find_server()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--maxclients", "15000", "--dir", str(folder), *options],
            folder / "redis.log",
        )  # fmt: skip
        self.wait_for_port(self.port)

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds([self.pid])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"
