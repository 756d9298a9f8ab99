"""Events as lines of text, and what shows them: a line per event here, a table in `watch_table`. Pure.

Everything that an event carries is escaped; an event may hold anything.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agent_sse.terminal import escape, summary

Event = Mapping[str, Any]

HINT = "y + Enter approves, n + Enter denies; a reason may follow"
TOO_SMALL = "make the terminal larger to answer"


class View(Protocol):
    """What shows a followed session."""

    def show(self, event: Event) -> None:
        """Show an event. It must not fail for any JSON object."""

    def say(self, line: str) -> None:
        """Show a line of this program's own."""


def text_of(value: object) -> str:
    """Return a value as one escaped line: a string as it is, anything else as JSON."""
    return escape(value) if isinstance(value, str) else summary(value, 10**9)


def data_of(event: Event) -> Mapping[str, Any]:
    """Return an event's data: an object, whatever the event holds."""
    data = event.get("data")
    return data if isinstance(data, Mapping) else {}


def describe(event: Event) -> str | None:
    """Return an event as one escaped line, None for a heartbeat. Nothing of what is to be approved is left out."""
    kind, data = event.get("type"), data_of(event)
    if kind == "heartbeat":
        return None
    details = data.get("details")
    details = details if isinstance(details, Mapping) else {}
    words: list[str] = []
    match kind:
        case "tool_status":
            words = _words(data, "tool_name", "status")
            if details.get("progress") is not None:
                words.append(progress_of(details["progress"]))
            words += [*_words(details, "risk_level"), summary(details.get("parameters"))]
        case "permission_request":
            words = [*_words(data, "tool_name", "risk_level", "message"), text_of(data.get("parameters"))]
            words += notes_of(data)
            words += [
                f"{name}={text_of(data[name])}" for name in ("server", "request_id", "expires_at") if name in data
            ]
        case "permission_response_result" | "permission_cleared":
            words = _words(data, "tool_name", "outcome", "approved", "reason", "resolved_by", "request_id")
        case "tool_result":
            words = [*_words(data, "tool_name"), "ok" if data.get("success") is True else "failed"]
            words += [*_words(data, "error"), summary(data.get("result"))]
        case "error":
            words = [summary(event.get("code")), text_of(event.get("message"))]
        case "result_cleared" | "stream_reset":
            words = _words(data, "tool_call_id", "reason")
        case _:
            words = [summary(event, 400)]
    return " ".join([text_of(data.get("timestamp", "-")), text_of(kind), *words])


def notes_of(request: Mapping[str, Any]) -> list[str]:
    """Return what of a request's parameters cannot be seen."""
    notes, masked = [], request.get("masked")
    if masked:
        notes.append(f"HIDDEN: {', '.join(map(text_of, masked)) if isinstance(masked, list) else text_of(masked)}")
    if request.get("truncated") is True:
        notes.append(f"CUT: THESE ARE NOT ALL PARAMETERS (SHA-256 of all: {text_of(request.get('digest'))})")
    return notes


def _words(data: Mapping[str, Any], *names: str) -> list[str]:
    return [text_of(data[name]) for name in names if data.get(name) not in (None, "")]


def progress_of(value: object) -> str:
    """Return a call's progress as a few words: ``1/3 reading``."""
    if not isinstance(value, Mapping):
        return summary(value)
    parts = [summary(value.get("progress"), 20)]
    if value.get("total") is not None:
        parts.append("/" + summary(value["total"], 20))
    message = value.get("message")
    return "".join(parts) + (f" {text_of(message)}" if message else "")


class LineView:
    """One line per event, for a pipe or a log. ``only`` picks events."""

    def __init__(self, write: Callable[[str], None], only: Callable[[Event], bool] = lambda _: True) -> None:
        self._write = write
        self._only = only

    def show(self, event: Event) -> None:
        """Write the event's line."""
        line = describe(event) if self._only(event) else None
        if line is not None:
            self._write(line)

    def say(self, line: str) -> None:
        """Write a line."""
        self._write(escape(line))


def pretty(value: object) -> list[str]:
    """Return a value as indented JSON, in escaped lines."""
    return [escape(line) for line in json.dumps(value, indent=2, ensure_ascii=False, default=str).split("\n")]


class LogToView(logging.Handler):
    """Shows log records in a view: a line on the screen's own output would tear the table."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Show the record's message."""
        self._view.say(record.getMessage())
