"""What a client may take up of a process before it is known, and what it is told when it takes more."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

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
SAY_REFUSED = 10.0  # s at least between two log lines that say what was refused


class Refusal(NamedTuple):
    """A whole response, after which the connection is closed; it is counted by its ``code``."""

    code: str
    response: bytes


def refusal(status: str, code: str, message: str, *headers: str) -> Refusal:
    """Return a refusal whose response is JSON."""
    body = json.dumps({"success": False, "message": message, "error": {"code": code}}).encode()
    lines = ["content-type: application/json", "connection: close", f"content-length: {len(body)}", *headers]
    return Refusal(code, "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode() + body)


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


FULL = "too_many_connections"


def full() -> Refusal:
    """Return what a connection is told for which there is no room."""
    return refusal(
        "503 Service Unavailable", FULL, "this process has no room for more connections; try again",
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
        self.refused = Counter[str]()  # since the start, by the refusal's code
        self._said = Counter[str]()  # what the log has of it
        self._quiet = True  # nothing was said lately
        self._loop = asyncio.get_running_loop()

    def count(self, code: str) -> None:
        """Count a refusal. The log has the first at once and those behind it now and then: a flood is no flood there.

        What was sent, and from where, is not said: it is anybody's, before any token was seen.
        """
        self.refused[code] += 1
        if self._quiet:
            self._say()

    def _say(self) -> None:
        news = self.refused - self._said
        self._quiet = not news
        if news:
            hint = f"; the limit of open files leaves room for {self.room} (ulimit -n)" if FULL in news else ""
            kinds = ", ".join(f"{count} {code}" for code, count in sorted(news.items()))
            log.warning("refused requests: %s%s", kinds, hint)
            self._said = self.refused.copy()
            self._loop.call_later(SAY_REFUSED, self._say)
