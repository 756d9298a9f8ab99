"""`GateMiddleware`: status and approval inside an MCP server, around the tools that its author wrote."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.session import ServerSession
from mcp_types import ProgressNotification, RequestId, ServerNotification
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from agent_sse.errors import AgentSseError, ToolCallCancelled
from agent_sse.mcp.gate import Gate, GatedCall, refusal
from agent_sse.mcp.rounds import Rounds
from agent_sse.mcp.tools import Tools

Context = ServerRequestContext[Any, Any]

log = logging.getLogger("agent_sse")

# What belongs to one request only, and must not be repeated in another.
_OF_ONE_REQUEST = frozenset({"progressToken", "io.modelcontextprotocol/logLevel"})


class GateMiddleware:
    """An MCP server's middleware: ``MCPServer(…, middleware=[GateMiddleware(gate)])``, or ``server.middleware.append``.

    Instead of one :class:`Gate` it takes a function of the request's context, so that a server of many users keeps
    their sessions apart. Take the session from what authenticates the request: what a client sends is its own claim.

    What keeps a call from running is answered with a result with ``isError``, in words for the model; see
    :class:`~agent_sse.mcp.client.GuardedClient`.
    """

    def __init__(self, gate: Gate | Callable[[Context], Gate]) -> None:
        self._gate_of = (lambda _: gate) if isinstance(gate, Gate) else gate
        self._tools = Tools()
        self._rounds = Rounds()

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Pass a message on; a `tools/call` goes through the gate first."""
        params = ctx.params or {}
        name, arguments = params.get("name"), params.get("arguments")
        if ctx.method == "tools/list" and ctx.request_id is not None:
            page = await call_next(ctx)
            self._tools.learn(_as_json(page))
            return page
        # What is malformed the server itself refuses; it never comes to a tool.
        if ctx.method != "tools/call" or not isinstance(name, str) or not isinstance(arguments, Mapping | None):
            return await call_next(ctx)
        return await self._call(ctx, call_next, name, arguments)

    async def _call(
        self, ctx: Context, call_next: CallNext, name: str, arguments: Mapping[str, Any] | None
    ) -> HandlerResult:
        gate = self._gate_of(ctx)
        about = [gate.session_id, gate.server, name, arguments]
        result: HandlerResult = None
        ran = False
        try:
            call, state = self._rounds.take(about, (ctx.params or {}).get("requestState"))
            if call is None:
                tool = await self._tools.find(name, lambda cursor: _page(ctx, call_next, cursor))
                call = await gate.call(tool, arguments).__aenter__()
            async with AsyncExitStack() as stack:
                stack.push_async_exit(call)
                asked, ran = _approved(ctx, call, state), True
                result = await call_next(asked)
                told = _as_json(result)
                if told.get("resultType") == "input_required":
                    result = _with_state(result, self._rounds.hold(call, about, told.get("requestState")))
                    stack.pop_all()
                else:
                    call.finish(told)
        except AgentSseError as error:
            if result is not None:
                log.error("the end of a call of %s is not published: %s", name, error)
            elif not ran or isinstance(error, ToolCallCancelled):
                return _refusal(ctx, error)
            else:
                raise
        return result


def _refusal(ctx: Context, error: AgentSseError) -> dict[str, Any]:
    # The SDK adds nothing to what a middleware answers by itself.
    envelope = {"resultType": "complete"} if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else {}
    return {**refusal(error), **envelope}


def _approved(ctx: Context, call: GatedCall, state: object) -> Context:
    """Return the request with what was approved, and with the state that the server gave."""
    params = {key: value for key, value in (ctx.params or {}).items() if key != "requestState"}
    if state is not None:
        params["requestState"] = state
    approved = call.arguments
    if approved or params.get("arguments") is not None:
        params["arguments"] = approved
    session: Any = _Reporting(ctx.session, call, ctx.meta)
    return replace(ctx, params=params, session=session)


async def _page(ctx: Context, call_next: CallNext, cursor: str | None) -> dict[str, Any]:
    """Ask the server for its tools, as this request's client could."""
    meta = {key: value for key, value in ((ctx.params or {}).get("_meta") or {}).items() if key not in _OF_ONE_REQUEST}
    params = {**({"_meta": meta} if meta else {}), **({"cursor": cursor} if cursor is not None else {})}
    return _as_json(await call_next(replace(ctx, method="tools/list", params=params or None)))


class _Reporting:
    """A request's session that also tells the gate of progress, whether or not the client wants to hear of it."""

    def __init__(self, session: ServerSession, call: GatedCall, meta: Mapping[str, Any] | None) -> None:
        self._session = session
        self._call = call
        self._token = (meta or {}).get("progress_token")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        self._call.progress(progress, total, message)
        await self._session.report_progress(progress, total, message)

    async def send_notification(
        self, notification: ServerNotification, related_request_id: RequestId | None = None
    ) -> None:
        if isinstance(notification, ProgressNotification) and notification.params.progress_token == self._token:
            self._call.progress(notification.params.progress, notification.params.total, notification.params.message)
        await self._session.send_notification(notification, related_request_id)

    async def send_progress_notification(
        self,
        progress_token: str | int,
        progress: float,
        total: float | None = None,
        message: str | None = None,
        related_request_id: str | None = None,
    ) -> None:
        if progress_token == self._token:
            self._call.progress(progress, total, message)
        await self._session.send_progress_notification(progress_token, progress, total, message, related_request_id)


def _with_state(result: HandlerResult, state: str) -> HandlerResult:
    if isinstance(result, BaseModel):
        return result.model_copy(update={"request_state": state})
    return {**(result or {}), "requestState": state}


def _as_json(result: HandlerResult) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dict(result or {})
