"""An open permission request as a panel of the terminal, never higher than the room for it, and never cut in silence.

Lines come here escaped, and become `Text`, never markup.
"""

from __future__ import annotations

from rich.cells import chop_cells
from rich.panel import Panel
from rich.text import Text

from agent_sse.watch_calls import moment
from agent_sse.watch_session import Asked
from agent_sse.watch_view import HINT, notes_of, pretty, text_of

STYLES = {
    "pending": "dim", "executing": "yellow", "waiting_permission": "bold yellow", "completed": "green",
    "failed": "red", "cancelled": "red", "denied": "red", "low": "dim", "medium": "", "high": "yellow",
    "critical": "bold red",
}  # fmt: skip
FRAME = 4  # lines: the border, the line of the risk, the line of what is missing
LEAST_COLUMNS = 24  # the risk, and how many lines are not shown, are not cut then
WIDE = 100  # columns; below that, words are short


def fits(asked: Asked, *, width: int, height: int) -> bool:
    """Return whether so many columns and lines show the whole tool name, the risk, and how much is not shown."""
    return width >= LEAST_COLUMNS and len(chop_cells(asked.tool, width - 4)) <= height - FRAME


def panel_of(asked: Asked, waiting: int, *, width: int, height: int, now: float) -> tuple[Panel, int]:
    """Return the request in up to ``height`` lines (at least 6), and how many it takes.

    Only for one that :func:`fits`. ``waiting`` requests are open in all; ``now`` is the service's time. What has no
    room is counted, or it would be approved unseen: `Asked.skip` says where the part begins that is shown.
    """
    lines = _lines(asked, width - 4)
    room = asked.room = height - FRAME
    if asked.skip >= len(lines):
        asked.skip = 0
    part = lines[asked.skip : asked.skip + room]
    seen = len(lines) - asked.unseen
    if asked.skip <= seen:  # from the first page on, none left out
        asked.unseen = len(lines) - max(seen, asked.skip + len(part))
    body = _head(asked, now)
    for number, line in enumerate(part, asked.skip):
        body.append("\n")
        body.append(line, _style(asked, line, number))
    above, below = asked.skip, len(lines) - asked.skip - len(part)
    if above or below:
        missing = f"\nNOT SHOWN: {above + below} MORE LINES, Enter turns the page"
        body.append(missing + (f" ({above} above)" if above else ""), "bold red")
    title = f"Permission 1 of {waiting}" + (", edited by you" if asked.edit is not None else "")
    return Panel(body, title=title, border_style="yellow"), len(part) + 3 + bool(above or below)


def _head(asked: Asked, now: float) -> Text:
    risk, expires = text_of(asked.data.get("risk_level")), moment(asked.data.get("expires_at"))
    head = Text.assemble("risk ", (risk, STYLES.get(risk, "")), no_wrap=True, overflow="ellipsis")
    if expires is not None:
        left = max(0, round(expires - now))
        head.append(f"  {clock(left)} left", "bold red" if left <= 10 else "dim")
    return head


def _lines(asked: Asked, width: int) -> list[str]:
    """Return all that there is to read, no line wider than ``width``; made once, since it may be thousands of lines."""
    made_for = (width, asked.edit)
    if asked.drawn[0] != made_for:
        named = (("server", "server"), ("says:", "message"))
        texts = [asked.tool, *(f"{word} {text_of(asked.data[name])}" for word, name in named if asked.data.get(name))]
        texts += notes_of(asked.data)
        texts += pretty(asked.data.get("parameters")) if asked.edit is None else asked.edit.lines
        asked.drawn = (made_for, [part for text in texts for part in (chop_cells(text, width) or [""])])
        asked.unseen = len(asked.drawn[1])
    return asked.drawn[1]


def _style(asked: Asked, line: str, number: int) -> str:
    if number == 0:
        return "bold"
    if line.startswith(("HIDDEN: ", "CUT: ")):
        return "bold red"
    if asked.edit is not None:
        return {"+": "green", "-": "red"}.get(line[:1], "")
    return ""


def hint_for(asked: Asked | None, width: int) -> str:
    """Return what can be typed now, in one line."""
    if asked is None:
        return "cancel N + Enter cancels a call · quit, or Ctrl-C"
    if asked.edit is not None:
        return "y approves the edited · n denies · edit · drop · quit"
    words = [HINT if width >= WIDE else "y/n [reason]"]
    if "session" in asked.scopes:
        words.append("y-session · y-tool")
    if asked.editable:
        words.append("edit")
    return " · ".join([*words, "cancel N", "quit"])


def clock(seconds: float) -> str:
    """Return a duration of whole seconds: ``59 s``, ``4:05``, ``1:00:00``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
