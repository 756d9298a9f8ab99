"""A server of MCP on standard input and output that does as little as one can: its one tool returns its arguments."""

from __future__ import annotations

import json
import sys
from typing import Any


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        server = {"name": "echo", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
    return {"content": [{"type": "text", "text": json.dumps(params.get("arguments"))}]}


def main() -> None:
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "id" in message:
            result = answer(message["method"], message.get("params") or {})
            out = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
            sys.stdout.buffer.write(out.encode() + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
