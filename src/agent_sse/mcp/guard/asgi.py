"""The little of HTTP that the guard needs as a server, on bare ASGI: no framework comes between it and the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agent_sse.mcp.guard import messages
from agent_sse.mcp.guard.pipes import MAX_LINE

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# The HTTP status of an error that is the whole answer, in the protocol without a handshake.
STATUS = {
    messages.PARSE_ERROR: 400,
    messages.INVALID_REQUEST: 400,
    messages.INVALID_PARAMS: 400,
    -32020: 400,  # the headers do not match
    -32021: 400,  # a capability of the client is missing
    -32022: 400,  # the protocol version is not supported
    messages.METHOD_NOT_FOUND: 404,
}


class Refused(Exception):
    """A request that gets an HTTP error; ``body`` is the JSON-RPC error that goes with it."""

    def __init__(self, status: int, text: str, code: int = messages.INVALID_REQUEST, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.body = messages.error(None, code, text).raw
        self.headers = headers


def headers_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the request's headers, names in lower case."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


async def body_of(receive: Receive) -> bytes:
    """Return the request's body. Raises :class:`Refused` for one that is longer than a message may be."""
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionResetError("the host left while it was asking")
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > MAX_LINE:
            raise Refused(413, f"a message of more than {MAX_LINE} bytes is too long to be passed on")
        if not event.get("more_body"):
            return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Wait until the host has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(send: Send, status: int, body: bytes = b"", **headers: str) -> None:
    """Send a whole response; ``_`` in a header's name stands for ``-``."""
    fields = {"content-length": str(len(body)), **({"content-type": "application/json"} if body else {}), **headers}
    await start(send, status, **fields)
    await send({"type": "http.response.body", "body": body})


async def start(send: Send, status: int, **headers: str) -> None:
    """Send a response's head."""
    rows = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": rows})


async def start_stream(send: Send, **headers: str) -> None:
    """Send the head of a stream of events."""
    await start(
        send, 200, content_type="text/event-stream", cache_control="no-cache, no-transform", x_accel_buffering="no",
        **headers,
    )  # fmt: skip


async def until_gone(work: Awaitable[None], receive: Receive) -> bool:
    """Do ``work`` as long as the host is there. Return whether it was done."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)
