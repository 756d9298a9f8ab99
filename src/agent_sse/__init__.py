"""agent-sse: live tool events for the browser over Server-Sent Events, and the user's permission back.

Importing this package does not import the web layer; the service is `agent_sse.app`, its router
`agent_sse.create_router`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_sse.errors import (
    AgentSseError,
    ConfigurationError,
    EventTooLarge,
    IdempotencyConflict,
    InvalidEvent,
    InvalidSessionId,
    PermissionDenied,
    PublishTimeout,
    QueueFull,
    RedisRefused,
    RedisUnavailable,
    SessionOwned,
    TooManyRequestsPending,
)
from agent_sse.notifier import SimpleNotifier
from agent_sse.permissions import PermissionDecision
from agent_sse.tool_calls import ToolCall

if TYPE_CHECKING:
    from agent_sse.app import create_app
    from agent_sse.routes import create_router

__version__ = "0.1.0"
__all__ = [
    "AgentSseError",
    "ConfigurationError",
    "EventTooLarge",
    "IdempotencyConflict",
    "InvalidEvent",
    "InvalidSessionId",
    "PermissionDecision",
    "PermissionDenied",
    "PublishTimeout",
    "QueueFull",
    "RedisRefused",
    "RedisUnavailable",
    "SessionOwned",
    "SimpleNotifier",
    "TooManyRequestsPending",
    "ToolCall",
    "create_app",
    "create_router",
]


def __getattr__(name: str) -> Any:
    """Import the web layer only when it is asked for (PEP 562)."""
    if name == "create_app":
        from agent_sse.app import create_app

        return create_app
    if name == "create_router":
        from agent_sse.routes import create_router

        return create_router
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
