"""What a relay stands between: a host that asks and a server that answers, whatever carries their messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from agent_sse.errors import AgentSseError
from agent_sse.mcp.guard.messages import Id, Message


class ServerGone(AgentSseError):
    """The MCP server has ended or cannot be reached; the message says how."""


class CallTimedOut(AgentSseError):
    """A tool did not answer in time."""


class HostSide(Protocol):
    """Where answers, notifications and the server's own requests go."""

    async def deliver(self, message: Message, related: Id | None) -> None:
        """Pass a message to the host. ``related`` is the host's request in whose stream it came, if that is known."""


class ServerSide(Protocol):
    """Where the host's messages go."""

    async def send(self, message: Message) -> None:
        """Pass a message to the server. Raises :class:`ServerGone`."""

    def cancel(self, request_id: Id, notification: Message) -> None:
        """Tell the server that a request is not wanted any more; never waits or raises."""

    async def run(self, receive: Callable[[Message, Id | None], Awaitable[None]]) -> None:
        """Hand on what the server says, until it has ended."""

    def ending(self) -> str:
        """Say how the server ended, in a sentence for the host."""

    async def aclose(self) -> None:
        """End the connection, and the server if it is this process's own."""
