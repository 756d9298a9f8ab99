"""Everything that passes between one host and one server: who asked for what, and what the gate has to see.

Knows no transport.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from agent_sse.mcp.gate import Gate
from agent_sse.mcp.guard import messages
from agent_sse.mcp.guard.calls import Calls
from agent_sse.mcp.guard.messages import BadMessage, Id, Message, key
from agent_sse.mcp.guard.sides import HostSide, ServerGone, ServerSide
from agent_sse.mcp.guard.tasks import STATUS
from agent_sse.mcp.guard.tools import LIST, LIST_CHANGED

MAX_PENDING = 1024  # requests of one host that wait for an answer

log = logging.getLogger("agent_sse.guard")


class Relay:
    """One host and one server; for ``call_timeout`` (s) a tool may say nothing, None for ever."""

    def __init__(self, host: HostSide, server: ServerSide, gate: Gate, *, call_timeout: float | None = None) -> None:
        self._host = host
        self._server = server
        self._pending: dict[Id, Message] = {}
        self._own: dict[Id, asyncio.Future[Message]] = {}
        # Nobody else can have made an id or token that begins so.
        self._prefix = f"agent-sse-{secrets.token_hex(8)}-"
        self._count = 0
        self._gone: str | None = None
        self._calls = Calls(gate, self.ask, server, host, prefix=self._prefix + "p", timeout=call_timeout)

    async def run(self) -> str:
        """Pass on what the server says until it has ended, tell everybody, and return how it ended."""
        await self._server.run(self.from_server)
        reason = self._server.ending()
        await self._end(reason)
        return reason

    async def aclose(self) -> None:
        """Cancel the calls that are on their way and end the server."""
        await self._calls.aclose()
        await self._server.aclose()

    # -- from the host ------------------------------------------------------------------------------------------------

    async def from_host(self, message: Message) -> None:
        """Pass a host's message on. What cannot be is answered with an error."""
        try:
            if message.is_request:
                await self._request(message)
            elif message.method == messages.CALL:
                log.warning("dropped a tools/call without an id: nobody could be told whether it ran")
            elif message.method == messages.CANCELLED:
                self._cancel(message)
            else:
                await self._server.send(message)
        except BadMessage as bad:
            await self.refuse(bad)
        except ServerGone as gone:
            if message.is_request and self._pending.pop(key(message.request_id), None) is not None:
                await self._host.deliver(messages.error(message.id, messages.CONNECTION_CLOSED, str(gone)), message.id)

    async def _request(self, message: Message) -> None:
        request_id = message.request_id
        if key(request_id) in self._pending or self._calls.has(request_id):
            raise BadMessage(messages.INVALID_REQUEST, "a request with this id is still on its way", None)
        if self._gone is not None:
            raise BadMessage(messages.CONNECTION_CLOSED, self._gone, request_id)
        if message.method == messages.CALL:
            self._calls.start(message)
            return
        if len(self._pending) >= MAX_PENDING:
            raise BadMessage(messages.INTERNAL_ERROR, f"{MAX_PENDING} requests wait for an answer", request_id)
        self._pending[key(request_id)] = message
        await self._server.send(message)

    def _cancel(self, notification: Message) -> None:
        request_id = messages.as_id(notification.params.get("requestId"))
        if request_id is not None and not self._calls.cancel(notification):
            # A server need not answer any more, and the host does not wait for it.
            self._pending.pop(key(request_id), None)
            self._server.cancel(request_id, notification)

    async def refuse(self, bad: BadMessage) -> None:
        """Answer what cannot be passed on."""
        log.warning("refused a message of the host: %s", bad.text)
        await self._host.deliver(messages.error(bad.id, bad.code, bad.text), bad.id)

    def host_left(self, request_id: Id) -> None:
        """Withdraw a call's prompt: the connection on which its result would go has gone."""
        self._calls.abandon(request_id)

    def drop(self, request_id: Id) -> None:
        """Cancel a request whose answer nobody waits for any more."""
        notice = messages.cancelled(request_id, "the host has gone")
        if not self._calls.cancel(notice) and self._pending.pop(key(request_id), None) is not None:
            self._server.cancel(request_id, notice)

    # -- from the server ----------------------------------------------------------------------------------------------

    async def from_server(self, message: Message, related: Id | None) -> None:
        """Pass a server's message on; see :class:`HostSide` for ``related``."""
        if message.is_response:
            await self._response(message)
        elif message.method == messages.PROGRESS:
            call_id = self._calls.progress(message)
            if not self._calls.is_own_token(message):
                await self._host.deliver(message, related if call_id is None else call_id)
        else:
            if message.method == LIST_CHANGED:
                self._calls.tools.forget()
            elif message.method == STATUS:
                self._calls.tasks.notified(message)
            await self._host.deliver(message, related)

    async def _response(self, message: Message) -> None:
        response_id = message.id
        if response_id is None:  # to something that the server could not read
            await self._host.deliver(message, None)
        elif (own := self._own.get(response_id)) is not None:
            if not own.done():
                own.set_result(message)
        elif not self._calls.answer(message):
            request = self._pending.pop(key(response_id), None)
            if request is None:
                return  # cancelled meanwhile, or never asked
            if request.method == LIST:
                self._calls.tools.learn(message.result)
            self._calls.tasks.answered(request, message)
            await self._host.deliver(message, request.id)

    async def ask(self, method: str, params: Mapping[str, Any], headers: Mapping[str, str]) -> Message:
        """Ask the server something of the guard's own and return the response. Raises :class:`ServerGone`."""
        if self._gone is not None:
            raise ServerGone(self._gone)
        self._count += 1
        request_id = f"{self._prefix}{self._count}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._own[request_id] = future
        try:
            await self._server.send(
                messages.make({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}, headers)
            )
            return await future
        finally:
            del self._own[request_id]

    async def _end(self, reason: str) -> None:
        self._gone = reason
        for future in self._own.values():
            if not future.done():
                future.set_exception(ServerGone(reason))
        self._calls.server_gone(reason)
        pending, self._pending = self._pending, {}
        for request in pending.values():
            await self._host.deliver(messages.error(request.id, messages.CONNECTION_CLOSED, reason), request.id)
        await self._calls.settled()
