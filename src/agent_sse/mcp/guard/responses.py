"""What comes back from a URL: messages out of a body or a stream, redirects that may be followed, words for errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx

from agent_sse.mcp.guard import messages
from agent_sse.mcp.guard.events import EventParser
from agent_sse.mcp.guard.messages import Message
from agent_sse.mcp.guard.pipes import MAX_LINE

log = logging.getLogger("agent_sse.guard")


class Failed(Exception):
    """A request that will have no answer; the message is for the host."""


async def messages_of(response: httpx.Response, parser: EventParser) -> AsyncIterator[Message]:
    """Return the messages of a stream of events."""
    async for chunk in response.aiter_bytes():
        for event in parser.feed(chunk):
            if event.kind != "message":  # `endpoint` of 2024-11-05 would lead a host past the guard
                continue
            try:
                found = messages.from_server(event.data)
            except ValueError:
                log.warning("dropped an event of %d bytes that is no message", len(event.data))
                continue
            for message in found:
                yield message


async def body_of(response: httpx.Response) -> bytes:
    """Return a whole body. Raises :class:`Failed` for one that is longer than a message may be."""
    parts: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_LINE:
            raise Failed(f"the MCP server's answer of more than {MAX_LINE} bytes is too long to be passed on")
    return b"".join(parts)


def redirected(url: httpx.URL, response: httpx.Response) -> httpx.URL:
    """Return where a redirect leads. Raises :class:`Failed` when that is another place, or another kind of request."""
    target = url.join(response.headers["location"])
    same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
    if not same or target.userinfo != url.userinfo or response.status_code not in {307, 308}:
        raise Failed(f"the MCP server redirects to {shown(str(target))}; use that URL if it is the right one")
    return target


def shown(url: str) -> str:
    """Return a URL without what may be secret in it."""
    return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))


def told(error: Exception) -> str:
    """Return what to say of an error."""
    return str(error) or type(error).__name__
