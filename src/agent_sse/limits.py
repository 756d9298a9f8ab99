"""What a client may take up of a process before it is known, and what it is told when it takes more."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from agent_sse import nofile
from agent_sse.deadlines import Deadlines

log = logging.getLogger("agent_sse")

T = TypeVar("T", bound=Hashable)

MAX_HEAD_BYTES = 32 * 1024  # request line and headers; also the trailers of a chunked body
HEAD_TIMEOUT = 10.0  # s for a head to come whole: from connecting, or from its first byte on a connection kept alive
# s from the head for the body, also one that nobody reads. The largest that is taken by default, 1 MiB, comes in that
# time at 280 kbit/s, which a phone on a slow network still has; an answer to a permission request at 4 kbit/s. The one
# endpoint of ours that reads a body is done with it sooner (requests.BODY_TIMEOUT, the same status); this is for all
# others, a host application's too, and for what comes after an answer.
BODY_TIMEOUT = 30.0
MAX_CONNECTIONS = 100_000  # of one process, where the limit of open files is as good as none
RETRY_AFTER = 5  # s, up to twice as much: when there are too many connections
SAY_FULL = 10.0  # s at least between two log lines that say so


def refusal(status: str, code: str, message: str, *headers: str) -> bytes:
    """Return a whole response in JSON, after which the connection is closed."""
    body = json.dumps({"success": False, "message": message, "error": {"code": code}}).encode()
    lines = ["content-type: application/json", "connection: close", f"content-length: {len(body)}", *headers]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode() + body


MALFORMED = refusal(
    "400 Bad Request", "malformed_request",
    "this is not an HTTP/1.1 request: check its request line, its headers and its body's framing",
)  # fmt: skip
HEAD_TOO_LARGE = refusal(
    "431 Request Header Fields Too Large", "headers_too_large",
    f"request line and headers are larger than {MAX_HEAD_BYTES} bytes; send fewer or shorter ones",
)  # fmt: skip
UPGRADE = refusal(
    "400 Bad Request", "upgrade_refused",
    "a request with a body cannot ask for an upgrade here: send it as HTTP/1.1, without an Upgrade header",
)  # fmt: skip


LATE = refusal(
    "408 Request Timeout", "request_timeout",
    f"the request did not come whole in time: {HEAD_TIMEOUT:g} s for its headers, {BODY_TIMEOUT:g} s for its body; "
    "send it again",
)  # fmt: skip


def full() -> bytes:
    """Return what a connection is told for which there is no room."""
    return refusal(
        "503 Service Unavailable", "too_many_connections", "this process has no room for more connections; try again",
        f"retry-after: {RETRY_AFTER + random.randint(0, RETRY_AFTER)}",
    )  # fmt: skip


class Limits(Generic[T]):
    """What the connections of one server share; they are told when a head or a body of theirs is late."""

    def __init__(self, head_expired: Callable[[T], None], body_expired: Callable[[T], None]) -> None:
        self.heads = Deadlines(HEAD_TIMEOUT, head_expired)
        self.bodies = Deadlines(BODY_TIMEOUT, body_expired)
        # The operating system's bound is the setting: there is no use for a lower one besides AGENT_SSE_MAX_STREAMS.
        room = nofile.room()
        self.room = MAX_CONNECTIONS if room is None else min(room, MAX_CONNECTIONS)
        self.waiting_room = nofile.OWN // 2 if room is None else min(nofile.OWN // 2, room // 16)
        self._refused = 0
        self._say_at = 0.0

    def count_refused(self, now: float) -> None:
        """Count a connection for which there is no room, and say so now and then."""
        self._refused += 1
        if now >= self._say_at:
            log.warning(
                "refused %d connections: the limit of open files leaves room for %d (ulimit -n)",
                self._refused, self.room,
            )  # fmt: skip
            self._refused, self._say_at = 0, now + SAY_FULL
