"""The peers: how each is started, asked for a stream, and published to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import nchan
from benchmarks.load import Request
from benchmarks.programs import Process, environment, free_port
from benchmarks.redis_server import RedisServer

SECRET = "a-secret-for-benchmarks-of-at-least-32-bytes"  # noqa: S105 - it guards nothing
QUIET = ("--no-access-log", "--log-level", "warning")
STREAM_PATH = "/agent_backend/api/sse/events/"


@dataclass
class Service:
    """A running peer. ``pids`` are the processes whose CPU and memory are its own; ``redis`` the Redis behind it."""

    port: int
    pids: list[int]
    way: str
    address: str
    redis: RedisServer | None = None
    stack: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True, slots=True)
class Peer:
    """One column of the table. ``ready`` and ``need_id``: see load.c; ``light`` peers get a smaller share of the load,
    since they cannot take all of it (the figures are per event and per stream).
    """

    name: str
    label: str
    start: Callable[[ExitStack, Path, RedisServer | None, float], Service]
    path: str
    ready: str
    need_id: bool
    light: bool = False
    tokens: bool = True
    needs_redis: bool = True
    ours: bool = False

    @property
    def way(self) -> str:
        """How it is published to; see apps/publish.py."""
        return "notifier" if self.ours else "pubsub" if self.tokens else "http"

    @property
    def publishes_to_itself(self) -> bool:
        """Whether it takes publishes itself, so that only it knows its events."""
        return self.way == "http"

    @property
    def history(self) -> str:
        """What its storm replays: peers with the same name here read the same."""
        return self.name if self.publishes_to_itself else self.way

    def request(self, session: str, *, subject: str = "bench", cursor: str = "") -> Request:
        return Request(self.path + session, token(session, subject) if self.tokens else "", cursor)


def token(session: str, subject: str) -> str:
    """Return an HS256 token that lists the session, valid for a day."""
    now = int(time.time())
    head, claims = (
        base64.urlsafe_b64encode(json.dumps(part, separators=(",", ":")).encode()).rstrip(b"=")
        for part in (
            {"alg": "HS256", "typ": "JWT"},
            {"sub": subject, "iat": now, "exp": now + 86400, "sessions": [session]},
        )
    )
    signature = hmac.digest(SECRET.encode(), head + b"." + claims, hashlib.sha256)
    return (head + b"." + claims + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _start_ours(command: list[str]) -> Callable[[ExitStack, Path, RedisServer | None, float], Service]:
    def start(stack: ExitStack, folder: Path, redis: RedisServer | None, heartbeat: float) -> Service:
        assert redis is not None
        port = free_port()
        env = environment(
            AGENT_SSE_REDIS_URL=redis.url, AGENT_SSE_JWT_SECRET=SECRET, AGENT_SSE_MAX_STREAMS="20000",
            AGENT_SSE_MAX_STREAMS_PER_SESSION="20000", AGENT_SSE_HEARTBEAT_INTERVAL=str(heartbeat),
            AGENT_SSE_RETENTION_SECONDS="3600",
        )  # fmt: skip
        process = stack.enter_context(
            Process([sys.executable, "-m", *command, "--port", str(port)], folder / "service.log", env=env)
        )
        process.wait_for_port(port)
        return Service(port, [process.pid], "notifier", redis.url, redis)

    return start


def _start_python(app: str) -> Callable[[ExitStack, Path, RedisServer | None, float], Service]:
    def start(stack: ExitStack, folder: Path, redis: RedisServer | None, heartbeat: float) -> Service:
        assert redis is not None
        port = free_port()
        env = environment(BENCH_REDIS=redis.url, BENCH_SECRET=SECRET, BENCH_HEARTBEAT=str(heartbeat))
        command = [sys.executable, "-m", "uvicorn", f"benchmarks.apps.{app}:app", "--port", str(port)]
        command += ["--loop", "uvloop", "--http", "httptools", *QUIET]
        process = stack.enter_context(Process(command, folder / "peer.log", env=env))
        process.wait_for_port(port)
        return Service(port, [process.pid], "pubsub", str(redis.port), redis)

    return start


def _start_nchan(stack: ExitStack, folder: Path, redis: RedisServer | None, heartbeat: float) -> Service:
    server = nchan.start(stack, folder, redis, heartbeat)
    return Service(server.port, server.workers, "http", str(server.port), redis)


PEERS = (
    Peer("agent-sse", "agent-sse, direct", _start_ours(["agent_sse", "serve"]), STREAM_PATH, "id", True, ours=True),
    Peer(
        "agent-sse-asgi", "agent-sse, ASGI",
        _start_ours(
            ["uvicorn", "--factory", "agent_sse.app:create_app", *QUIET]
        ),
        STREAM_PATH, "id", True, ours=True,
    ),
    Peer("nchan", "nchan, own memory", _start_nchan, "/sub/", "head", True, tokens=False, needs_redis=False),
    Peer("nchan-redis", "nchan, Redis", _start_nchan, "/sub/", "head", True, tokens=False),
    Peer(
        "sse-starlette", "sse-starlette", _start_python("starlette_peer"), "/events/", "body", False, light=True,
    ),
    Peer("fastapi", "FastAPI SSE", _start_python("fastapi_peer"), "/events/", "body", False, light=True),
)  # fmt: skip
