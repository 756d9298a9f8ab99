"""How `agent-sse watch` shows a session: a line per event, or a table drawn anew. Knows neither Redis nor asyncio.

Everything that an event carries is escaped and shown as `Text`, never as markup; an event may hold anything.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from rich.cells import chop_cells
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent_sse.terminal import escape, summary

Event = Mapping[str, Any]

MAX_CALLS = 200
ENDED = frozenset({"completed", "failed", "cancelled", "denied"})
STYLES = {
    "pending": "dim", "executing": "yellow", "waiting_permission": "bold yellow", "completed": "green",
    "failed": "red", "cancelled": "red", "denied": "red", "low": "dim", "medium": "", "high": "yellow",
    "critical": "bold red",
}  # fmt: skip
HINT = "y + Enter approves, n + Enter denies; a reason may follow"


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
            words += [f"{name}={text_of(data.get(name))}" for name in ("request_id", "expires_at")]
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


class TableView:
    """The session as a table of its calls, with what is asked below it. :meth:`render` draws it as of now."""

    def __init__(self, session_id: str, console: Console) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.typed = ""
        self.online: Callable[[], bool] = lambda: True
        self._session = session_id
        self._console = console
        self._calls: dict[str, dict[str, Any]] = {}
        self._asked: dict[str, Mapping[str, Any]] = {}
        self._said = Text("waiting for events", "dim")

    def show(self, event: Event) -> None:
        """Take an event into the picture."""
        kind, data = event.get("type"), data_of(event)
        match kind:
            case "tool_status":
                self._take_status(data)
            case "tool_result":
                self._take_result(data)
            case "permission_request":
                self._asked[text_of(data.get("request_id"))] = data
            case "permission_cleared":
                if data.get("request_id") is None:
                    self._asked.clear()
                self._asked.pop(text_of(data.get("request_id")), None)
            case "stream_reset":
                self._calls.clear()
                self._asked.clear()
        if kind in ("permission_response_result", "stream_reset", "error") or (
            kind == "permission_cleared" and data.get("request_id") is not None
        ):
            self._said = Text(describe(event) or "", no_wrap=True, overflow="ellipsis")
        self.changed()

    def say(self, line: str) -> None:
        """Show a line below the table."""
        self._said = Text(escape(line), "bold", no_wrap=True, overflow="ellipsis")
        self.changed()

    def _take_status(self, data: Mapping[str, Any]) -> None:
        key, status = text_of(data.get("tool_call_id")), text_of(data.get("status"))
        details = data.get("details")
        details = details if isinstance(details, Mapping) else {}
        call = self._calls.pop(key, None)
        if call is None or (call["status"] in ENDED and status not in ENDED):
            call = {"began": time.time(), "result": None}
        began, at = _moment(details.get("start_time")), _moment(data.get("timestamp"))
        call |= {
            "tool": text_of(data.get("tool_name")), "status": status, "risk": text_of(details.get("risk_level")),
            "began": call["began"] if began is None else began, "progress": details.get("progress"),
            "parameters": details.get("parameters"), "ended": (at or time.time()) if status in ENDED else None,
        }  # fmt: skip
        self._calls[key] = call
        while len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]

    def _take_result(self, data: Mapping[str, Any]) -> None:
        call = self._calls.get(text_of(data.get("tool_call_id")))
        if call is not None:
            error = data.get("error")
            call["result"] = text_of(error) if error else summary(data.get("result"), 400)

    def render(self) -> RenderableType:
        """Return the picture, as high as the terminal at most."""
        height = self._console.height
        asked = next(iter(self._asked.values()), None)
        # Lines that are there whatever happens: head, table header and caption, said, foot; and the panel's frame.
        panel, rows = self._panel(asked, max(3, height - 12)) if asked is not None else (None, 0)
        head = Text.assemble(
            (f" {escape(self._session)} ", "reverse"), ("" if self.online() else "  Redis is away", "red")
        )
        foot = Text(f"{HINT}\n> {self.typed[-self._console.width + 3 :]}" if panel else "Ctrl-C ends", "dim")
        table = self._table(max(0, height - rows - 7))
        return Group(head, table, *([panel] if panel else []), self._said, foot)

    def _table(self, room: int) -> Table:
        table = Table(expand=True, box=None, pad_edge=False, header_style="bold")
        table.add_column("Tool", no_wrap=True, ratio=2)
        table.add_column("Status", no_wrap=True, min_width=18)
        table.add_column("Time", no_wrap=True, justify="right", min_width=7)
        table.add_column("Progress, parameters, result", no_wrap=True, overflow="ellipsis", ratio=5)
        hidden = max(0, len(self._calls) - room)
        for call in list(self._calls.values())[hidden:]:
            about = call["result"] or summary(call["parameters"], 400)
            if call["progress"] is not None and call["status"] not in ENDED:
                about = f"{progress_of(call['progress'])}  {about}"
            table.add_row(
                Text(call["tool"]), Text(call["status"], STYLES.get(call["status"], "")),
                Text(f"{max(0.0, (call['ended'] or time.time()) - call['began']):.1f} s"), Text(about),
            )  # fmt: skip
        if hidden > 0:
            table.caption = f"{hidden} earlier calls are not shown"
        return table

    def _panel(self, data: Mapping[str, Any], room: int) -> tuple[Panel, int]:
        """Return the request and its height; what has no room is counted, or it would be approved unseen."""
        width = max(20, self._console.width - 4)
        risk, left = text_of(data.get("risk_level")), _moment(data.get("expires_at"))
        texts = [text_of(data.get("tool_name")), *_words(data, "message"), *pretty(data.get("parameters"))]
        lines = [part for line in texts for part in (chop_cells(line, width) or [""])]
        body = Text.assemble("risk ", (risk, STYLES.get(risk, "")), no_wrap=True)
        if left is not None:
            body.append(f"  {max(0, round(left - time.time()))} s left", "dim")
        body.append("\n" + lines[0], "bold")
        body.append("".join("\n" + line for line in lines[1:room]))
        if len(lines) > room:
            body.append(f"\n{len(lines) - room} MORE LINES ARE NOT SHOWN: make the terminal higher", "bold red")
        more = f", {len(self._asked) - 1} more wait" if len(self._asked) > 1 else ""
        return Panel(body, title=f"Permission{more}", border_style="yellow"), min(len(lines), room) + 4


def pretty(value: object) -> list[str]:
    """Return a value as indented JSON, in escaped lines."""
    return [escape(line) for line in json.dumps(value, indent=2, ensure_ascii=False, default=str).split("\n")]


def _moment(value: object) -> float | None:
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


class LogToView(logging.Handler):
    """Shows log records in a view: a line on the screen's own output would tear the table."""

    def __init__(self, view: View) -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Show the record's message."""
        self._view.say(record.getMessage())
