"""One host's session over streamable HTTP, with a server of its own; and the server that requests without one share.

Knows HTTP only as streams that take messages.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from agent_sse.mcp.guard import messages
from agent_sse.mcp.guard.exchange import Exchange, Listening
from agent_sse.mcp.guard.messages import Id, Message, as_id, as_object, key
from agent_sse.mcp.guard.relay import Relay

UNHEARD = 256  # messages kept for a host that has no stream open
SUBSCRIPTION_META = "io.modelcontextprotocol/subscriptionId"
LOG_LEVEL_META = "io.modelcontextprotocol/logLevel"

log = logging.getLogger("agent_sse.guard")


class Serving:
    """A relay that runs in a task of its own, and when it was last used."""

    def __init__(self) -> None:
        self.relay: Relay | None = None
        self.used = time.monotonic()
        self._task: asyncio.Task[str] | None = None

    def serve(self, relay: Relay) -> None:
        """Start to pass on what the server says."""
        self.relay = relay
        self._task = asyncio.create_task(relay.run())

    @property
    def ended(self) -> bool:
        """Whether the server has ended."""
        return self._task is not None and self._task.done()

    @property
    def idle(self) -> float:
        """How long nobody has used it, in seconds; 0 while somebody does."""
        return 0.0 if self.busy else time.monotonic() - self.used

    @property
    def busy(self) -> bool:
        """Whether a host waits for something of it."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """End the server."""
        if self.relay is not None:
            await self.relay.aclose()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class Session(Serving):
    """A session of the protocol with a handshake: the host's ids and tokens are the server's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.id = secrets.token_hex(16)
        self.stream: Listening | None = None
        self._exchanges: dict[Id, Exchange] = {}
        self._unheard: deque[Message] = deque(maxlen=UNHEARD)

    @property
    def busy(self) -> bool:
        """Whether a host waits for something of it."""
        return bool(self._exchanges) or self.stream is not None

    def enter(self, message: Message) -> Exchange:
        """Return where the answer to a request will come. Raises :class:`BadMessage` while its id is in use."""
        at = key(message.request_id)
        if at in self._exchanges:
            raise messages.BadMessage(messages.INVALID_REQUEST, "a request with this id is still on its way")
        exchange = self._exchanges[at] = Exchange(message)
        return exchange

    def leave(self, exchange: Exchange) -> None:
        """Forget a request that is answered, or whose host has gone."""
        exchange.close()
        self._exchanges.pop(key(exchange.request.request_id), None)
        self.used = time.monotonic()

    async def cancelled(self, notification: Message) -> None:
        """End the response of a request that the host has cancelled: a server does not answer it."""
        request_id = as_id(notification.params.get("requestId"))
        exchange = self._exchanges.get(key(request_id)) if request_id is not None else None
        if exchange is not None:
            await exchange.put(
                messages.error(exchange.request.id, messages.REQUEST_CANCELLED, "the request was cancelled")
            )

    async def listen(self) -> Listening:
        """Open the stream for what belongs to no request, with what nobody has heard yet."""
        stream = self.stream = Listening()
        while self._unheard and await stream.put(self._unheard[0]):
            self._unheard.popleft()
        return stream

    def unlisten(self, stream: Listening) -> None:
        """Note that the stream has ended."""
        stream.close()
        if self.stream is stream:
            self.stream = None
        self.used = time.monotonic()

    async def deliver(self, message: Message, related: Id | None) -> None:
        """Pass a message to the host in the stream where it belongs, or keep it until there is one."""
        outlet = self._outlet(message, related)
        if outlet is not None and await outlet.put(message):
            return
        if message.is_response:
            log.warning("dropped an answer: the connection that it was for has gone")
            return
        if self.stream is not None and outlet is not self.stream and await self.stream.put(message):
            return
        if len(self._unheard) == UNHEARD:
            log.warning("dropped a message: the host has had no stream open for %d messages", UNHEARD)
        self._unheard.append(message)

    def _outlet(self, message: Message, related: Id | None) -> Exchange | Listening | None:
        if message.is_response:
            related = message.id if related is None else related
            return self._exchanges.get(key(related)) if related is not None else None
        if related is None and message.method == messages.PROGRESS:
            related = self._with_token(message.params.get("progressToken"))
        if related is not None and (exchange := self._exchanges.get(key(related))) is not None:
            return exchange
        # A process does not say what a message belongs to. With one request on its way there is little doubt.
        if len(self._exchanges) == 1:
            return next(iter(self._exchanges.values()))
        return self.stream

    def _with_token(self, token: object) -> Id | None:
        for exchange in self._exchanges.values():
            if exchange.request.meta.get("progressToken") == token:
                return exchange.request.id
        return None

    async def aclose(self) -> None:
        """End the server, then the streams."""
        await super().aclose()
        for exchange in list(self._exchanges.values()):
            exchange.close()
        if self.stream is not None:
            self.stream.close()


class Shared(Serving):
    """One server for requests of the protocol without a handshake, from any number of hosts.

    Their ids and progress tokens may be the same, so the server gets others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prefix = f"agent-sse-{secrets.token_hex(8)}-h"
        self._count = 0
        self._exchanges: dict[Id, Exchange] = {}

    @property
    def busy(self) -> bool:
        """Whether a host waits for something of it."""
        return bool(self._exchanges)

    def enter(self, message: Message) -> tuple[Message, Exchange]:
        """Return what the server gets, and where the answer will come."""
        self._count += 1
        own = f"{self._prefix}{self._count}"
        exchange = self._exchanges[own] = Exchange(message)
        params = message.params
        if "progressToken" in message.meta:
            params = {**params, "_meta": {**message.meta, "progressToken": own}}
        return message.replaced(id=own, params=params), exchange

    def leave(self, own: Id) -> None:
        """Forget a request that is answered, or whose host has gone."""
        exchange = self._exchanges.pop(own, None)
        if exchange is not None:
            exchange.close()
        self.used = time.monotonic()

    async def deliver(self, message: Message, related: Id | None) -> None:
        """Pass a message to the host that it is for, with the host's own ids in it."""
        named = message.id if message.is_response else _named(message)
        if named not in self._exchanges:
            named = related
        targets = [named] if named in self._exchanges else self._interested(message)
        if not targets:
            log.warning("dropped a message that belongs to no request: %s", message.method or "an answer")
        for own in targets:
            exchange = self._exchanges[own]
            await exchange.put(_restored(message, own, exchange.request))

    def _interested(self, message: Message) -> list[Id]:
        """Return who asked for logs: over a process's output these do not say which request they are of."""
        if message.method != "notifications/message":
            return []
        return [own for own, exchange in self._exchanges.items() if LOG_LEVEL_META in exchange.request.meta]

    async def aclose(self) -> None:
        """End the server, then the streams."""
        await super().aclose()
        for exchange in list(self._exchanges.values()):
            exchange.close()


def _named(message: Message) -> Id | None:
    """Return the request that a notification says it belongs to."""
    for value in (
        message.params.get("progressToken") if message.method == messages.PROGRESS else None,
        message.params.get("requestId") if message.method == messages.CANCELLED else None,
        message.meta.get(SUBSCRIPTION_META),
    ):
        if (found := as_id(value)) is not None:
            return found
    return None


def _restored(message: Message, own: Id, request: Message) -> Message:
    changes: dict[str, Any] = {}
    if message.is_response:
        changes["id"] = request.id
    for field in ("params", "result"):
        part = as_object(message.body.get(field))
        if (restored := _restored_part(part, own, request)) is not part:
            changes[field] = restored
    return message.replaced(**changes) if changes else message


def _restored_part(part: Mapping[str, Any], own: Id, request: Message) -> Mapping[str, Any]:
    changes: dict[str, Any] = {}
    if part.get("progressToken") == own:
        changes["progressToken"] = request.meta.get("progressToken")
    if part.get("requestId") == own:
        changes["requestId"] = request.id
    meta = as_object(part.get("_meta"))
    if meta.get(SUBSCRIPTION_META) == own:
        changes["_meta"] = {**meta, SUBSCRIPTION_META: request.id}
    return {**part, **changes} if changes else part
