"""A session in the terminal: its calls as a table, how it does, and what is asked. Knows neither Redis nor keys.

Everything that an event carries becomes `Text`, never markup; `watch_session` has escaped it before.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent_sse.terminal import escape
from agent_sse.watch_calls import Call
from agent_sse.watch_panel import FRAME, STYLES, WIDE, clock, fits, hint_for, panel_of
from agent_sse.watch_session import Watched
from agent_sse.watch_view import TOO_SMALL, Event, data_of, describe, text_of

SHORT = {"waiting_permission": "waiting", "executing": "running", "medium": "med", "critical": "crit"}
AROUND = 4  # lines that are there whatever happens: head, what was said, foot
LEAST_PANEL = FRAME + 2  # lines
TABLE_FRAME = 2  # its header and its caption
TABLE_ROWS = 3  # that it keeps beside a large request
WIDE_BAR, BAR = 12, 6  # columns
STALE = 15.0  # s; a look at Redis is older than that only when one failed


class TableView:
    """The session as a picture, which :meth:`render` draws; ``changed`` is called when there is something new."""

    def __init__(self, console: Console, watched: Watched) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.typed = ""
        self.online: Callable[[], bool] = lambda: True
        self._console = console
        self._watched = watched
        self._waiting = True
        self._said = Text("waiting for events", "dim")
        self._sight: object = None  # what of a request is on the screen; None = nothing, or nobody knows

    def show(self, event: Event) -> None:
        """Take note of an event; the session has it already."""
        kind, data = event.get("type"), data_of(event)
        if self._waiting and kind != "heartbeat":
            self._waiting, self._said = False, Text()
        if kind == "permission_cleared" and data.get("request_id") is not None:
            words = (text_of(data[name]) for name in ("resolved_by", "reason") if data.get(name))
            line = f"{text_of(data.get('outcome'))}: {text_of(data.get('tool_name'))}, by {', '.join(words)}"
            self._said = Text(line, no_wrap=True, overflow="ellipsis")
        elif kind in ("stream_reset", "error"):
            self._said = Text(describe(event) or "", no_wrap=True, overflow="ellipsis")
        self.changed()

    def say(self, line: str) -> None:
        """Show a line below the table."""
        self._said = Text(escape(line), "bold", no_wrap=True, overflow="ellipsis")
        self.changed()

    def render(self, *, last: bool = False) -> RenderableType:
        """Return the picture, as high as the terminal at most. ``last``: nothing can be typed any more."""
        width, height = self._console.size
        asked = self._watched.requests.current
        panel, rows = None, 0
        if asked is not None and not last:
            room = max(LEAST_PANEL, height - AROUND - TABLE_FRAME - TABLE_ROWS)
            asked.fits = height >= AROUND + LEAST_PANEL and fits(asked, width=width, height=room)
            if not asked.fits:
                return self._too_small(width, height)
            vitals = self._watched.vitals
            waiting = max(len(self._watched.requests), 0 if vitals is None else vitals.pending)
            panel, rows = panel_of(asked, waiting, width=width, height=room, now=self._watched.clock())
        parts: list[RenderableType] = [self._head()]
        room = height - AROUND - TABLE_FRAME - rows
        if room > 0:
            parts.append(self._table(room, width))
        if panel is not None:
            parts.append(panel)
        parts.append(self._said)
        if not last:
            hint = Text(hint_for(asked, width), "dim", no_wrap=True, overflow="ellipsis")
            parts += [hint, self._input(width)]
        return Group(*parts)

    def _too_small(self, width: int, height: int) -> RenderableType:
        notice = [Text(part, "bold red", no_wrap=True) for part in textwrap.wrap(TOO_SMALL, max(2, width))]
        notice = notice[: max(0, height - 1)]
        above = [self._head(), self._said][: max(0, height - 1 - len(notice))]
        return Group(*above, *notice, self._input(width))

    def _input(self, width: int) -> Text:
        return Text(f"> {self.typed[-width + 4 :]}▏" if width > 10 else ">", no_wrap=True)

    def appeared(self) -> None:
        """Note that the last picture stands on the screen now: what is new of a request can be read from now on."""
        asked = self._watched.requests.current
        sight = None if asked is None else (asked.request_id, asked.edit, asked.skip, asked.fits, self._console.size)
        if asked is not None and sight != self._sight:
            asked.appear(time.monotonic())
        self._sight = sight

    def covered(self) -> None:
        """Note that nobody can read the picture until it is drawn anew."""
        self._sight = None
        if self._watched.requests.current is not None:
            self._watched.requests.current.appear(math.inf)

    def _head(self) -> Text:
        watched = self._watched
        calls, vitals = watched.calls, watched.vitals
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(f" {escape(watched.session_id)} ", "reverse")
        head.append("  ● live" if self.online() else "  ○ Redis is away", "green" if self.online() else "bold red")
        head.append(f"  {calls.running} of {_count(len(calls), 'call')} running", "dim")
        if vitals is not None:
            ago = max(0.0, watched.clock() - vitals.ahead - vitals.at)
            head.append(f"  {_count(vitals.streams, 'stream')}", "dim")
            head.append(f"  Redis {vitals.latency_ms:.1f} ms, {clock(ago)} ago", "red" if ago > STALE else "dim")
        return head

    def _table(self, room: int, width: int) -> Table:
        table = Table(expand=True, box=None, padding=(0, 1, 0, 0), header_style="bold")
        wide = width >= WIDE
        table.add_column("#", no_wrap=True, justify="right", min_width=2)
        table.add_column("Tool", no_wrap=True, overflow="ellipsis", ratio=3, min_width=10)
        table.add_column("Status", no_wrap=True, min_width=18 if wide else 9)
        table.add_column("Risk", no_wrap=True, min_width=8 if wide else 4)
        table.add_column("Time", no_wrap=True, justify="right", min_width=6)
        table.add_column("", no_wrap=True, width=WIDE_BAR if wide else BAR)
        table.add_column("Progress, result, parameters" if wide else "Progress, result", no_wrap=True,
                         overflow="ellipsis", ratio=7 if wide else 4)  # fmt: skip
        rows, now = self._watched.calls.rows(room), self._watched.clock()
        for depth, call in rows:
            table.add_row(*_cells(depth, call, now, wide))
        hidden = len(self._watched.calls) - len(rows)
        if hidden > 0:
            table.caption = Text(f"{_count(hidden, 'more call')} not shown", "dim")
        return table


def _cells(depth: int, call: Call, now: float, wide: bool) -> list[RenderableType]:
    tool = Text("  " * (depth - 1) + "└ " if depth else "")
    tool.append(call.tool)
    if call.server:
        tool.append(f" @{call.server}", "dim")
    status, risk = call.status, call.risk
    if not wide:
        status, risk = SHORT.get(status, status), SHORT.get(risk, risk)
    return [
        Text(str(call.number), "dim"), tool, Text(status, STYLES.get(call.status, "")),
        Text(risk, STYLES.get(call.risk, "")), Text(_duration(call.seconds(now))),
        _bar(call, now, WIDE_BAR if wide else BAR), _about(call),
    ]  # fmt: skip


def _bar(call: Call, now: float, width: int) -> RenderableType:
    """Return how far a running call is; the bar of one that does not say wanders. A row that has ended has none."""
    if call.status != "executing":
        return Text()
    if call.share is None:
        at, size = int(now * 4) % width, width // 3  # not rich's own, whose parts only colours tell apart
        return Text("".join("━" if (place - at) % width < size else "─" for place in range(width)), "bar.pulse")
    return ProgressBar(total=1.0, completed=call.share)


def _about(call: Call) -> Text:
    if call.running:
        return Text("  ".join(filter(None, (call.step, call.parameters))))
    if call.outcome:
        return Text(call.outcome, "red" if call.failed else "")
    return Text(call.parameters, "dim")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
