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
from dataclasses import dataclass
from pathlib import Path

from benchmarks import floor, nchan
from benchmarks.load import Request
from benchmarks.programs import Process, environment
from benchmarks.redis_server import RedisServer

SECRET = "a-secret-for-benchmarks-of-at-least-32-bytes"  # noqa: S105 - it guards nothing
QUIET = ("--no-access-log", "--log-level", "warning")
STREAM_PATH = "/agent_backend/api/sse/events/"


# Starts the service on a port of 127.0.0.1 and returns the processes whose CPU and memory are its own. Arguments: what
# ends it, a directory, the port, the Redis, the heartbeat's interval in seconds.
Start = Callable[[ExitStack, Path, int, RedisServer | None, float], list[int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """One column of the table. ``ready`` and ``need_id``: see load.c; ``way`` is how it is published to.

    ``light`` peers get a smaller share of the load, since they cannot take all of it (the figures are per event and per
    stream). ``bare`` ones only send: they take no part where more than that is measured.
    """

    name: str
    label: str
    start: Start
    path: str
    ready: str
    need_id: bool
    way: str = "pubsub"
    light: bool = False
    bare: bool = False
    tokens: bool = True
    needs_redis: bool = True
    ours: bool = False

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


def _ours(command: list[str]) -> Start:
    def start(stack: ExitStack, folder: Path, port: int, redis: RedisServer | None, heartbeat: float) -> list[int]:
        assert redis is not None
        env = environment(
            AGENT_SSE_REDIS_URL=redis.url, AGENT_SSE_JWT_SECRET=SECRET, AGENT_SSE_MAX_STREAMS="20000",
            AGENT_SSE_MAX_STREAMS_PER_SESSION="20000", AGENT_SSE_HEARTBEAT_INTERVAL=str(heartbeat),
            AGENT_SSE_RETENTION_SECONDS="3600",
        )  # fmt: skip
        return _listening(stack, [*command, "--port", str(port)], folder, port, env)

    return start


def _python(app: str) -> Start:
    def start(stack: ExitStack, folder: Path, port: int, redis: RedisServer | None, heartbeat: float) -> list[int]:
        assert redis is not None
        env = environment(BENCH_REDIS=redis.url, BENCH_SECRET=SECRET, BENCH_HEARTBEAT=str(heartbeat))
        command = ["uvicorn", f"benchmarks.apps.{app}:app", "--port", str(port), "--loop", "uvloop"]
        return _listening(stack, [*command, "--http", "httptools", *QUIET], folder, port, env)

    return start


def _listening(stack: ExitStack, module: list[str], folder: Path, port: int, env: dict[str, str]) -> list[int]:
    process = stack.enter_context(Process([sys.executable, "-m", *module], folder / "service.log", env=env))
    process.wait_for_port(port)
    return [process.pid]


PEERS = (
    Peer(
        "agent-sse", "agent-sse, direct", _ours(["agent_sse", "serve", "--no-access-log"]),
        STREAM_PATH, "id", True, "notifier", ours=True,
    ),
    Peer(
        "agent-sse-asgi", "agent-sse, ASGI",
        _ours(["uvicorn", "--factory", "agent_sse.app:create_app", *QUIET]),
        STREAM_PATH, "id", True, "notifier", ours=True,
    ),
    Peer("nchan", "nchan, own memory", nchan.start, "/sub/", "head", True, "http", tokens=False, needs_redis=False),
    Peer("nchan-redis", "nchan, Redis", nchan.start, "/sub/", "head", True, "http", tokens=False),
    Peer(
        "sse-starlette", "sse-starlette", _python("starlette_peer"), "/events/", "body", False, light=True,
    ),
    Peer("fastapi", "FastAPI SSE", _python("fastapi_peer"), "/events/", "body", False, light=True),
    Peer(
        "floor", "C, sends only", floor.start, "/sub/", "head", True, "http",
        bare=True, tokens=False, needs_redis=False,
    ),
    Peer("floor-redis", "C, from Redis", floor.start, "/sub/", "head", True, "notifier", bare=True, tokens=False),
)  # fmt: skip
