"""One gate for every way in: policy, permission, status, progress and result of one MCP tool call.

Knows no transport: the client wrapper, the server's middleware and the guard all call tools through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from agent_sse.notifier import SimpleNotifier


@dataclass(frozen=True, slots=True)
class Tool:
    """What a server says of one of its tools, in `tools/list` (JSON as on the wire). Untrusted."""

    name: str
    annotations: Mapping[str, Any] | None = None
    input_schema: Mapping[str, Any] | None = None


class Gate:
    """Decides about and reports the calls of one server's tools in one session.

    ``server`` is the name that the policy's rules and the user see; ``timeout`` (s) is for each permission.
    """

    def __init__(
        self, notifier: SimpleNotifier, session_id: str, *, server: str, policy: Any, timeout: float = 300.0
    ) -> None:
        raise NotImplementedError

    def call(self, tool: Tool, arguments: Mapping[str, Any] | None, *, tool_call_id: str | None = None) -> GatedCall:
        """Return the call as an async context manager; its body runs only when the call may.

        Entering raises :class:`~agent_sse.errors.PermissionDenied` when policy or user refuse (also: expired,
        withdrawn). A cancel from the browser cancels the body (``CancelledError`` inside it) and leaving then raises
        :class:`~agent_sse.errors.ToolCallCancelled`. An exception of the body is reported as ``failed`` and goes on;
        cancelling the task from outside is reported as ``cancelled`` and goes on.
        """
        raise NotImplementedError


class GatedCall:
    """A call on its way; use it as an async context manager."""

    arguments: dict[str, Any]  # exactly what was approved, a fresh copy: call the tool with this and nothing else
    tool_call_id: str

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        raise NotImplementedError

    def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the call is. Never blocks or raises: it is coalesced and published by another task."""
        raise NotImplementedError

    def finish(self, result: Mapping[str, Any]) -> None:
        """Set the outcome: a ``CallToolResult`` as JSON on the wire; ``isError`` makes the call ``failed``."""
        raise NotImplementedError


def refusal(error: Exception) -> dict[str, Any]:
    """Return the ``CallToolResult`` (JSON) that tells the model of a PermissionDenied or ToolCallCancelled."""
    raise NotImplementedError
