"""Live status and human approval around MCP tool calls: for a client, inside a server, or as a guard in front of one.

The client and the middleware need the extra ``agent-sse[mcp]``, gate and guard do not. Never imported by the service:
`import mcp` patches uvicorn's signal handling.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agent_sse.errors import ConfigurationError

if TYPE_CHECKING:
    from agent_sse.mcp.client import GuardedClient, guard_client
    from agent_sse.mcp.gate import Gate, GatedCall, Tool
    from agent_sse.mcp.middleware import GateMiddleware
    from agent_sse.policy import Policy
    from agent_sse.policy_file import PolicyFile, load_policy

__all__ = [
    "Gate",
    "GateMiddleware",
    "GatedCall",
    "GuardedClient",
    "McpMissing",
    "Policy",
    "PolicyFile",
    "Tool",
    "guard_client",
    "load_policy",
]

_HOMES = {
    "Gate": "agent_sse.mcp.gate",
    "GateMiddleware": "agent_sse.mcp.middleware",
    "GatedCall": "agent_sse.mcp.gate",
    "GuardedClient": "agent_sse.mcp.client",
    "Policy": "agent_sse.policy",
    "PolicyFile": "agent_sse.policy_file",
    "Tool": "agent_sse.mcp.gate",
    "guard_client": "agent_sse.mcp.client",
    "load_policy": "agent_sse.policy_file",
}
_OF_THE_SDK = frozenset({"GateMiddleware", "GuardedClient", "guard_client"})


class McpMissing(ConfigurationError, ImportError):
    """The package of MCP's SDK is not installed."""


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562): the gate does without the SDK, which takes its time."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _OF_THE_SDK and find_spec("mcp") is None:
        raise McpMissing(f"{name} of agent_sse.mcp needs the package mcp: pip install 'agent-sse[mcp]'")
    return getattr(import_module(_HOMES[name]), name)
