"""The floor: `floor.c`, which only sends, with publishes by HTTP or events from Redis."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.compiler import compiled
from benchmarks.programs import Process
from benchmarks.redis_server import RedisServer


def start(stack: ExitStack, folder: Path, port: int, redis: RedisServer | None, _heartbeat: float) -> list[int]:
    """Start it; it sends no heartbeats."""
    command = [str(compiled("floor", folder.parent)), str(port)]  # the run's own folder: compiled once
    if redis is not None:
        command.append(str(redis.port))
    process = stack.enter_context(Process(command, folder / "service.log"))
    process.wait_for_port(port)
    return [process.pid]
