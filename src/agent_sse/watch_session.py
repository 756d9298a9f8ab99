"""What a watch knows of its session: the tool calls, the open requests, and how the session does. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_sse.watch_calls import Calls
from agent_sse.watch_view import Event, data_of, text_of


@dataclass(slots=True)
class Edit:
    """Parameters as the user wants them: the merge patch, and the lines of the difference (escaped)."""

    patch: dict[str, Any]
    lines: list[str]


@dataclass(slots=True)
class Asked:
    """An open request. ``since`` is when it, or this part of it, came into sight, in seconds of `time.monotonic`.

    ``skip`` lines of it are above the part that is shown, which has ``room`` lines. ``fits`` is false while the
    terminal is too small to show what must be seen before an answer; ``unseen`` lines were on no page yet, and
    ``warned`` is whether that was said.
    """

    request_id: str
    data: Mapping[str, Any]
    since: float = 0.0
    answered: bool = False
    edit: Edit | None = None
    skip: int = 0
    room: int = 0
    fits: bool = True
    unseen: int = 0
    warned: bool = False
    drawn: tuple[object, list[str]] = (None, [])  # its lines, and what they were made for

    def turn_page(self) -> None:
        """Show the next part; behind the last one comes the first."""
        self.skip += self.room  # whoever draws it knows where it ends

    def appear(self, now: float) -> None:
        """Note that it is seen from ``now`` on only: what is typed sooner was meant for what was there before."""
        self.since, self.warned = now, False

    @property
    def tool(self) -> str:
        """The tool's name, escaped."""
        return text_of(self.data.get("tool_name"))

    @property
    def scopes(self) -> tuple[str, ...]:
        """For how long it may be answered: ``once``, ``session``."""
        scopes = self.data.get("scopes")
        return tuple(map(str, scopes)) if isinstance(scopes, list) else ("once",)

    @property
    def editable(self) -> bool:
        """Whether an answer may change the parameters."""
        return self.data.get("editable") is True and isinstance(self.data.get("parameters"), dict)


class OpenRequests:
    """The open requests in the order in which they came; the first that was not answered here is the current one."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}
        self.current: Asked | None = None

    def __len__(self) -> int:
        return len(self._asked)

    def take(self, event: Event, now: float) -> bool:
        """Take an event, at the monotonic time ``now``; False for a request that is known: heartbeats repeat them."""
        kind, data = event.get("type"), data_of(event)
        request_id = data.get("request_id")
        if kind == "permission_request":
            if str(request_id) in self._asked:
                return False
            self._asked[str(request_id)] = Asked(str(request_id), data)
        elif kind == "stream_reset" or (kind == "permission_cleared" and request_id is None):
            self._asked.clear()
        elif kind == "permission_cleared":
            self._asked.pop(str(request_id), None)
        self._choose(now)
        return True

    def note(self, asked: Asked, *, answered: bool, now: float) -> None:
        """Note whether an answer to it is on its way."""
        asked.answered = answered
        self._choose(now)

    def _choose(self, now: float) -> None:
        current = next((asked for asked in self._asked.values() if not asked.answered), None)
        if current is not self.current and current is not None:
            current.appear(now)
        self.current = current


@dataclass(frozen=True, slots=True)
class Vitals:
    """How the session does. ``at``: when that was read, in Unix seconds; ``ahead``: Redis' clock less ours, seconds."""

    at: float
    latency_ms: float
    streams: int
    pending: int
    ahead: float


@dataclass(slots=True)
class Watched:
    """All of it."""

    session_id: str
    calls: Calls = field(default_factory=Calls)
    requests: OpenRequests = field(default_factory=OpenRequests)
    vitals: Vitals | None = None

    def take(self, event: Event, now: float) -> bool:
        """Take an event, at the monotonic time ``now``; False when it repeats one. No JSON object makes it fail."""
        if not self.requests.take(event, now):
            return False
        match event.get("type"):
            case "tool_status":
                self.calls.take_status(data_of(event), self.clock())
            case "tool_result":
                self.calls.take_result(data_of(event))
            case "stream_reset":
                self.calls.clear()
        return True

    def clock(self) -> float:
        """Return the time in Unix seconds by the service's clock, as far as that is known."""
        return time.time() + (0.0 if self.vitals is None else self.vitals.ahead)
