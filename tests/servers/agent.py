"""An agent as a process of its own: `python agent.py JSON-OPTIONS`, one call a line on its standard input.

A line is `{"id", "tool", "arguments"}`, and the answer on standard output `{"id", "ran", "text"}`. With the `command`
of a server in its options, the agent is an `mcp.Client` within a `GuardedClient` that asks about every call, or with
`plain` the client alone. Without, it runs tools of its own within `notifier.tool_call`, under the `key` of the line:
they leave a line in the file `marks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

from agent_sse import SimpleNotifier
from agent_sse.errors import PermissionDenied
from agent_sse.mcp.client import GuardedClient
from agent_sse.mcp.gate import Gate

Outcome = tuple[bool, str]
Call = Callable[[dict[str, Any]], Awaitable[Outcome]]


@asynccontextmanager
async def guarded(notifier: SimpleNotifier, options: dict[str, Any]) -> AsyncIterator[Call]:
    command = options["command"]
    server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    gate = Gate(notifier, options["session"], server="marking", timeout=options.get("timeout", 300.0))
    async with Client(server) as client:
        wrapped = client if options.get("plain") else GuardedClient(client, gate)

        async def call(line: dict[str, Any]) -> Outcome:
            result = await wrapped.call_tool(line["tool"], line["arguments"])
            return not result.is_error, getattr(result.content[0], "text", "")

        yield call


@asynccontextmanager
async def keyed(notifier: SimpleNotifier, options: dict[str, Any]) -> AsyncIterator[Call]:
    async def call(line: dict[str, Any]) -> Outcome:
        try:
            async with notifier.tool_call(
                options["session"], line["tool"], line["arguments"], risk_level="high", require_permission=True,
                tool_call_id=line["id"], timeout=options.get("timeout", 300.0), idempotency_key=line.get("key"),
            ) as running:  # fmt: skip
                with Path(options["marks"]).open("a") as marks:  # noqa: ASYNC230 - a line
                    marks.write(json.dumps({"tool": line["tool"], "arguments": running.parameters}) + "\n")
                running.result = "marked"
        except PermissionDenied as refused:
            return False, str(refused)
        return True, "marked"

    yield call


async def main(options: dict[str, Any]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with (
        SimpleNotifier.from_env() as notifier,
        (guarded if "command" in options else keyed)(notifier, options) as call,
        asyncio.TaskGroup() as calls,
    ):

        async def answer(line: dict[str, Any]) -> None:
            ran, text = await call(line)
            print(json.dumps({"id": line["id"], "ran": ran, "text": text}), flush=True)

        while line := await reader.readline():
            calls.create_task(answer(json.loads(line)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(json.loads(sys.argv[1])))
