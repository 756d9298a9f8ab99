"""A server of the official SDK whose tools leave a mark when they run: `python marking.py FILE`.

A mark is a line of JSON in FILE: `run`, an id that the result's text repeats, `tool`, and `arguments` as they came.
`mark` and `brief` end at once, `linger` when it is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

TOOLS = ("mark", "brief", "linger")
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 100},
        "count": {"type": "integer", "minimum": 0},
        "more": {"type": "object"},
    },
    "required": ["text"],
}


async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[types.Tool(name=name, input_schema=SCHEMA) for name in TOOLS])


async def call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    run = uuid.uuid4().hex
    line = json.dumps({"run": run, "tool": params.name, "arguments": params.arguments}) + "\n"
    os.write(marks, line.encode())  # one write to the end: whole, however many run at once
    if params.name == "linger":
        await asyncio.Event().wait()
    return types.CallToolResult(content=[types.TextContent(type="text", text=run)])


async def main() -> None:
    server = Server("marking", on_list_tools=list_tools, on_call_tool=call_tool)
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    marks = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(main())
