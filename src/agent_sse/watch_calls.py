"""The tool calls that a watch knows: how far each is, how it ended, and which of them to show. Pure and bounded.

Everything an event carries is taken as text and escaped here, before anything could show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent_sse.terminal import summary
from agent_sse.watch_view import progress_of, text_of

MAX_CALLS = 1000
DEEPEST = 8  # levels of calls within calls that are shown
ABOUT_LIMIT = 400  # characters of parameters, results and errors in the table
ENDED = frozenset({"completed", "failed", "cancelled", "denied"})


@dataclass(slots=True)
class Call:
    """A tool call. ``number`` is what a user names it by; times in Unix seconds, ``duration`` in seconds.

    ``share`` is how far it is, 0 to 1, None when nobody knows; ``step`` the same in words.
    """

    number: int
    key: str  # the call's id, as it is
    began: float
    tool: str = ""
    server: str = ""
    parent: str = ""  # an id as it is, to be compared only
    status: str = ""
    risk: str = ""
    parameters: str = ""
    step: str = ""
    share: float | None = None
    outcome: str = ""
    failed: bool = False
    ended: float | None = None
    duration: float | None = None
    updated: int = 0

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.status not in ENDED

    def seconds(self, now: float) -> float:
        """Return how long it took, or has taken until ``now``."""
        if self.duration is not None and not self.running:
            return self.duration
        return max(0.0, (now if self.ended is None else self.ended) - self.began)


class Calls:
    """The calls of a session, the ``MAX_CALLS`` last of them; those that have ended go first."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._numbers = 0
        self._updates = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(call.running for call in self._calls.values())

    def clear(self) -> None:
        """Forget all; numbers go on, so that none ever means another call."""
        self._calls.clear()

    def find(self, name: str) -> Call | None:
        """Return the call of a number, or else of an id."""
        if name.isascii() and name.isdecimal():
            return next((call for call in self._calls.values() if str(call.number) == name), None)
        return self._calls.get(name)

    def take_status(self, data: Mapping[str, Any], now: float) -> None:
        """Take a ``tool_status``; one that is not final after a final one begins the call anew."""
        key, status = _key(data), text_of(data.get("status"))
        call = self._calls.get(key)
        if call is None or (not call.running and status not in ENDED):
            call = self._add(key, now)
        details = data.get("details")
        details = details if isinstance(details, Mapping) else {}
        began, at = moment(details.get("start_time")), moment(data.get("timestamp"))
        call.tool, call.status = text_of(data.get("tool_name")), status
        call.risk, call.parameters = text_of(details.get("risk_level")), summary(details.get("parameters"), ABOUT_LIMIT)
        server = details.get("server")
        call.server = text_of(server) if isinstance(server, str) else ""
        call.parent = str(details.get("parent_tool_call_id", ""))
        call.began = call.began if began is None else began
        progress = details.get("progress")
        call.step, call.share = ("", None) if progress is None else (progress_of(progress), share_of(progress))
        call.ended = (at or now) if status in ENDED else None
        self._touch(call)

    def take_result(self, data: Mapping[str, Any]) -> None:
        """Take a ``tool_result`` of a call that is known."""
        call = self._calls.get(_key(data))
        if call is None:
            return
        error, took = data.get("error"), data.get("duration_ms")
        call.failed = data.get("success") is not True
        call.outcome = text_of(error)[:ABOUT_LIMIT] if error else summary(data.get("result"), ABOUT_LIMIT)
        if isinstance(took, int | float) and 0 <= took < 1e15:
            call.duration = took / 1000
        self._touch(call)

    def _add(self, key: str, now: float) -> Call:
        self._calls.pop(key, None)
        self._numbers += 1
        call = self._calls[key] = Call(self._numbers, key, now)
        if len(self._calls) > MAX_CALLS:
            ended = (key for key, other in self._calls.items() if not other.running and other is not call)
            del self._calls[next(ended, next(iter(self._calls)))]
        return call

    def _touch(self, call: Call) -> None:
        self._updates += 1
        call.updated = self._updates

    def rows(self, room: int) -> list[tuple[int, Call]]:
        """Return up to ``room`` calls with their depth, those within a call behind it, else the oldest first.

        What runs is shown rather than what has ended, and what changed last rather than what has not.
        """
        calls = list(self._calls.values())
        if len(calls) > room:
            calls.sort(key=lambda call: (call.running, call.updated), reverse=True)
            calls = sorted(calls[: max(0, room)], key=lambda call: call.number)
        return _as_tree(calls)


def _as_tree(calls: Sequence[Call]) -> list[tuple[int, Call]]:
    places = {call.key: call for call in calls}
    below: dict[str, list[Call]] = {}
    for call in calls:
        above = call.parent if call.parent in places and places[call.parent].number < call.number else ""
        below.setdefault(above, []).append(call)  # a parent is older, so there are no circles
    rows: list[tuple[int, Call]] = []
    stack = [(0, call) for call in reversed(below.get("", []))]
    while stack:
        depth, call = stack.pop()
        rows.append((depth, call))
        stack += [(min(depth + 1, DEEPEST), child) for child in reversed(below.get(call.key, []))]
    return rows


def share_of(progress: object) -> float | None:
    """Return a progress as a number from 0 to 1, None when it has no total that makes sense."""
    if not isinstance(progress, Mapping):
        return None
    done, total = progress.get("progress"), progress.get("total")
    if isinstance(done, bool) or isinstance(total, bool):
        return None
    if not isinstance(done, int | float) or not isinstance(total, int | float) or not total > 0:
        return None
    try:
        share = done / total
    except OverflowError:
        return None
    return min(1.0, max(0.0, share)) if math.isfinite(share) else None


def moment(value: object) -> float | None:
    """Return a time of an event (ISO 8601) in Unix seconds, None for what is none."""
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def _key(data: Mapping[str, Any]) -> str:
    return str(data.get("tool_call_id"))
