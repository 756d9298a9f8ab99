"""A server of the official SDK with what 2026-07-28 has: `python modern.py stdio`, or `http PORT`.

What runs is a line in the file RUNS, if the environment names one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
from mcp.server.mcpserver import Context, Elicit, MCPServer
from mcp.server.mcpserver.resolve import Resolve
from pydantic import BaseModel

server = MCPServer("modern", instructions="for tests")


def note(what: str) -> None:
    if path := os.environ.get("RUNS"):
        with Path(path).open("a") as runs:
            runs.write(what + "\n")


class Answer(BaseModel):
    sure: bool


async def ask_whether_sure(city: str) -> Elicit[Answer]:
    return Elicit(f"Are you sure about {city}?", Answer)


@server.tool(annotations={"readOnlyHint": True})  # type: ignore[arg-type]
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@server.tool()
async def careful(city: str, answer: Annotated[Answer, Resolve(ask_whether_sure)]) -> str:
    """Ask first."""
    note(city)
    return f"{city}: {answer.sure}"


@server.tool()
async def slow(steps: int, ctx: Context[Any, Any]) -> str:
    """Say how far it is."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
        await anyio.sleep(0.02)
    return "done"


@server.tool()
async def endless(ctx: Context[Any, Any]) -> str:
    """Never end by itself."""
    await ctx.report_progress(1, None, "begun")
    try:
        await anyio.sleep_forever()
    finally:
        note("cancelled")
    raise AssertionError


@server.tool()
async def change(ctx: Context[Any, Any]) -> str:
    """Add a tool and tell everybody."""
    server.add_tool(lambda: "new", name="fresh", description="new")
    await ctx.notify_tools_changed()
    await ctx.notify_resource_updated("data://one")
    return "changed"


@server.tool()
async def talk(ctx: Context[Any, Any]) -> str:
    """Log."""
    await ctx.info("said")
    return "talked"


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("as asked")


@server.resource("data://one")
def one() -> str:
    """Return a resource."""
    return "one"


@server.resource("data://{name}/text")
def named(name: str) -> str:
    """Return a resource by name."""
    return name


@server.prompt()
def greet(name: str) -> str:
    """Greet."""
    return f"Hello, {name}"


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", port=int(sys.argv[2]))
