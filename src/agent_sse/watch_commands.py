"""What is typed in a watch, as commands. Pure; knows nothing of sessions and what is asked in them.

The first word alone decides, and what is behind it is a reason: no reason can ever be taken for a command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Covers = Literal["arguments", "tool"]

_ANSWERS = {"y": True, "yes": True, "n": False, "no": False}
_SCOPES: dict[str, Covers | None] = {"": None, "session": "arguments", "tool": "tool"}
UNKNOWN = "type y or n, and a reason if you like; or y-session, y-tool, edit, cancel N, quit"


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the request that is shown. ``covers``: remember it for the session; None = this once."""

    approved: bool
    covers: Covers | None
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel a call, by its number in the table or its id."""

    call: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plain:
    """A word without more: ``edit`` the parameters, ``drop`` the edit, ``quit``, or ``more`` (Enter alone)."""

    word: Literal["edit", "drop", "quit", "more"]


@dataclass(frozen=True, slots=True)
class Wrong:
    """Nothing to be done; ``why`` says what to type instead."""

    why: str


Command = Reply | Cancel | Plain | Wrong


def parse(line: str) -> Command:
    """Return what a line asks for. Words are taken in upper and lower case; nothing is guessed."""
    word, _, rest = line.strip().partition(" ")
    word, rest = word.lower(), rest.strip()
    yes_or_no, _, scope = word.partition("-")
    if yes_or_no in _ANSWERS and scope in _SCOPES and not word.endswith("-"):
        if rest.lower() in ("session", "tool"):  # with fewer rights than was meant, or as a reason that says nothing
            return Wrong(f"to remember the answer, type {yes_or_no}-{rest.lower()}; for this once, {yes_or_no} alone")
        return Reply(_ANSWERS[yes_or_no], _SCOPES[scope], rest)
    match word:
        case "":
            return Plain("more")
        case "edit" | "drop" | "quit" if not rest:
            return Plain(word)
        case "cancel":
            call, _, reason = rest.partition(" ")
            return Cancel(call.removeprefix("#"), reason.strip()) if call else Wrong("cancel which call? cancel 2")
    return Wrong(UNKNOWN)
