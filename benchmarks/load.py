"""The load: one process of `load.c` with its connections."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.programs import Failure, Process

STALL_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Request:
    """One stream to open: the URL's path and query, a bearer token and a cursor (empty: none)."""

    target: str
    token: str = ""
    cursor: str = ""


class Load(Process):
    """The streams of one measurement. See load.c for ``ready`` and ``need_id``."""

    def __init__(
        self, binary: Path, folder: Path, port: int, requests: Sequence[Request], *, ready: str, need_id: bool
    ) -> None:
        handle, name = tempfile.mkstemp(dir=folder, suffix=".requests")
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.writelines(f"{request.target}\t{request.token}\t{request.cursor}\n" for request in requests)
        super().__init__(
            [str(binary), str(port), name, ready, str(int(need_id))], folder / "load.log", talk=True
        )  # fmt: skip
        self.connections = len(requests)
        self.hear("started", 30)

    def open(self, *, width: int = 200, each: int = 0, timeout: float = 60.0) -> dict[str, Any]:
        """Open every stream, at most ``width`` at a time, and wait until each is ready and has ``each`` events.

        Raises :class:`Failure` when one fails.
        """
        self.tell(f"open {width} {each}")
        answer = self.hear("opened", timeout)
        if answer is None:
            answer = self.report()
            raise Failure(
                f"after {timeout:.0f} s only {answer['complete']} of {self.connections} streams are there: {answer}"
            )
        if answer["failed"] or answer["ended"]:
            raise Failure(
                f"{answer['failed'] + answer['ended']} of {self.connections} streams failed: {answer['error']}"
            )
        return answer

    def expect(self, events: int) -> dict[str, Any]:
        """Wait until so many events have come since the last reset, or until none has come for some seconds."""
        self.tell(f"expect {events}")
        before = -1
        while (answer := self.hear("expected", STALL_SECONDS)) is None:
            now = self.report()["events"]
            if now == before:
                return self.report()
            before = now
        return answer

    def reset(self) -> None:
        """Count and measure from here on."""
        self.ask("reset", "reset")

    def report(self) -> dict[str, Any]:
        """Return what has come since the last reset."""
        return self.ask("report", "report")

    def ids(self) -> list[str]:
        """Return the id of each stream's first event."""
        return list(self.ask("ids", "ids")["ids"])

    def close(self) -> None:
        """Close every stream; they can be opened anew."""
        self.ask("close", "closed")
