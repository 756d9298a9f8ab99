"""The guard as a process of its own with a gate that is a few lines: `python guard.py JSON-OPTIONS`.

Tools named `denied*` are refused, `asked*` wait for the file `answer` to hold yes or no; the rest may run. What happens
is written to `journal`, one JSON array a line. Both are in the directory `folder`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from agent_sse.errors import PermissionDenied
from agent_sse.mcp.guard.run import GuardOptions, run_guard


class FakeCall:
    def __init__(self, folder: Path, name: str, arguments: Any) -> None:
        self.folder = folder
        self.name = name
        self.arguments = dict(arguments or {})
        self.tool_call_id = "t"

    def note(self, *what: Any) -> None:
        with (self.folder / "journal").open("a") as journal:
            journal.write(json.dumps([self.name, *what]) + "\n")

    async def __aenter__(self) -> FakeCall:
        self.note("pending")
        if self.name.startswith("denied"):
            self.note("denied")
            raise PermissionDenied.__new__(PermissionDenied, "denied")
        if self.name.startswith("asked"):
            self.note("waiting")
            try:
                while not (self.folder / "answer").exists():  # noqa: ASYNC110 - a file tells nobody that it is there
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.note("withdrawn")
                raise
            self.arguments = json.loads((self.folder / "answer").read_text()) or self.arguments
        self.note("executing", self.arguments)
        return self

    async def __aexit__(self, kind: Any, error: Any, _: Any) -> None:
        if kind is not None:
            self.note("cancelled" if kind is asyncio.CancelledError else "failed", str(error))

    def progress(self, *what: Any) -> None:
        self.note("progress", *what)

    def finish(self, result: Any) -> None:
        self.note("finished", len(json.dumps(result)))


class FakeGate:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, tool: Any, arguments: Any, **_: Any) -> FakeCall:
        call = FakeCall(self.folder, tool.name, arguments)
        call.note("tool", tool.annotations)
        return call


async def main(options: dict[str, Any]) -> int:
    folder = Path(options.pop("folder"))
    return await run_guard(GuardOptions(**options), lambda _: FakeGate(folder))  # type: ignore[arg-type,return-value]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    os.environ.setdefault("AGENT_SSE_JWT_SECRET", "must not reach the server")
    sys.exit(asyncio.run(main(json.loads(sys.argv[1]))))
