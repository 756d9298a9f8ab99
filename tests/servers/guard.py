"""The guard as a process of its own with a gate that is a few lines: `python guard.py JSON-OPTIONS`.

With a `redis_url`, a `session` and the path of a `policy` it is the real gate, and nothing of the following holds.

What happens at the gate is a JSON array a line in `journal`, in the directory `folder`. The tool's name says what the
gate does: `denied…` is refused, `asked…` waits for the file `answer` with the arguments that are approved, `stopped…`
is cancelled by the user once there is a file `stop`, for `unreachable…` nobody can be asked, of `unreported…` nobody
hears the end; the rest may run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent_sse import SimpleNotifier
from agent_sse.errors import PermissionDenied, RedisUnavailable, ToolCallCancelled
from agent_sse.mcp.gate import Gate
from agent_sse.mcp.guard import calls
from agent_sse.mcp.guard.run import GuardOptions, run_guard
from agent_sse.policy_file import load_policy


async def exists(path: Path) -> None:
    while not path.exists():  # noqa: ASYNC110, ASYNC240 - a file tells nobody that it is there
        await asyncio.sleep(0.01)


class FakeCall:
    def __init__(self, folder: Path, name: str, arguments: Any) -> None:
        self.folder = folder
        self.name = name
        self.arguments = dict(arguments or {})
        self.tool_call_id = "t"
        self.stopping: asyncio.Task[None] | None = None
        self.stopped = False

    def note(self, *what: Any) -> None:
        with (self.folder / "journal").open("a") as journal:
            journal.write(json.dumps([self.name, *what]) + "\n")

    async def __aenter__(self) -> FakeCall:
        self.note("pending")
        if self.name.startswith("denied"):
            self.note("denied")
            raise PermissionDenied(SimpleNamespace(outcome="denied", reason="by policy"))  # type: ignore[arg-type]
        if self.name.startswith("unreachable"):
            raise RedisUnavailable("Redis is away")
        if self.name.startswith("asked"):
            self.note("waiting")
            try:
                await exists(self.folder / "answer")
            except asyncio.CancelledError:
                self.note("withdrawn")
                raise
            self.arguments = json.loads((self.folder / "answer").read_text()) or self.arguments
        self.note("executing", self.arguments)
        if self.name.startswith("stopped"):
            self.stopping = asyncio.create_task(self.stop(asyncio.current_task()))
        return self

    async def stop(self, body: Any) -> None:
        await exists(self.folder / "stop")
        self.stopped = True
        body.cancel()

    async def __aexit__(self, kind: Any, error: Any, _: Any) -> None:
        if self.stopping is not None:
            self.stopping.cancel()
        if self.stopped:
            self.note("cancelled", "by the user")
            raise ToolCallCancelled("alice", "enough")
        if kind is not None:
            self.note("cancelled" if kind is asyncio.CancelledError else "failed", str(error))
        if self.name.startswith("unreported"):
            raise RedisUnavailable("Redis is away")

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


def refusal(error: Exception) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"not run: {error}"}], "isError": True}


async def main(options: dict[str, Any]) -> int:
    folder = Path(options.pop("folder"))
    if "redis_url" in options:
        url, session, policy = options.pop("redis_url"), options.pop("session"), load_policy(options.pop("policy"))
        async with SimpleNotifier.from_url(url) as notifier:
            return await run_guard(
                GuardOptions(**options),
                lambda name, identity: Gate(notifier, session, server=name, server_identity=identity, policy=policy),
            )
    calls.refusal = refusal
    return await run_guard(GuardOptions(**options), lambda *_: FakeGate(folder))  # type: ignore[arg-type,return-value]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    os.environ.setdefault("AGENT_SSE_JWT_SECRET", "must not reach the server")
    sys.exit(asyncio.run(main(json.loads(sys.argv[1]))))
