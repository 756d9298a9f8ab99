"""An MCP server whose author wants its users to see and decide: its tools stay as they are, a middleware does the rest.

agent-sse serve --dev                                  # in another shell; its page shows the session
NOTES_SESSION=s1 python examples/mcp_server.py         # what an MCP host is told to start
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations

from agent_sse import SimpleNotifier
from agent_sse.mcp import Gate, GateMiddleware

SESSION = os.environ["NOTES_SESSION"]
notes = {"shopping": "milk, bread", "ideas": "a boat"}
notifier = SimpleNotifier.from_env()


@asynccontextmanager
async def lifespan(_: MCPServer) -> AsyncIterator[None]:
    async with notifier:
        await notifier.open_session(SESSION, owner="alice")
        yield


# `trusted`: the annotations below are our own, so they may lower a tool's risk. A server for many users gives, instead
# of a gate, a function of the request's context: `GateMiddleware(lambda ctx: Gate(notifier, session_of(ctx), …))`.
gate = Gate(notifier, SESSION, server="notes", trusted=True)
server = MCPServer("notes", lifespan=lifespan, middleware=[GateMiddleware(gate)])


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def find_notes(text: str, ctx: Context) -> list[str]:
    """Find the notes that hold a text. Runs at once, and its progress is shown."""
    found = []
    for count, (name, note) in enumerate(notes.items(), start=1):
        if text in note:
            found.append(name)
        await ctx.report_progress(count, len(notes), name)
    return found


@server.tool(annotations=ToolAnnotations(destructive_hint=True))
def delete_note(name: str) -> str:
    """Delete a note. The user is asked first, and may name another one."""
    return f"deleted {name}: {notes.pop(name)}"


if __name__ == "__main__":
    server.run("stdio")
