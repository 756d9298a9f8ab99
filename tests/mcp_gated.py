"""The SDK's server of the other tests with the gate inside: `python mcp_gated.py stdio`, or `http PORT`.

The environment names the Redis, the policy and, where the request itself does not, the session.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "servers"))

import modern

from agent_sse import SimpleNotifier
from agent_sse.mcp import Gate, GateMiddleware, PolicyFile

notifier = SimpleNotifier.from_url(os.environ["GATED_REDIS"])
policy = PolicyFile(os.environ["GATED_POLICY"])


def gate_of(ctx: Any) -> Gate:
    """Return the gate of the session that the request is of; here a header says which."""
    session = os.environ["GATED_SESSION"] if ctx.request is None else ctx.request.headers["x-session"]
    return Gate(notifier, session, server="modern", policy=policy, trusted=True)


@modern.server.tool()
def write(path: str, token: str = "") -> str:
    """Write."""
    modern.note(f"write {path} {token}".rstrip())
    return f"wrote {path}"


modern.server.middleware.append(GateMiddleware(gate_of))

if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        modern.server.run("stdio")
    else:
        modern.server.run("streamable-http", port=int(sys.argv[2]))
