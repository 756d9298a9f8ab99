"""`GateMiddleware`: status and approval inside an MCP server, around the tools that its author wrote."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.session import ServerSession
from pydantic import BaseModel

from agent_sse.errors import PermissionDenied, RedisUnavailable, ToolCallCancelled
from agent_sse.mcp.gate import Gate, GatedCall, Tool, refusal
from agent_sse.mcp.rounds import Rounds

Context = ServerRequestContext[Any, Any]

LIST_PAGES = 100


class GateMiddleware:
    """An MCP server's middleware: ``MCPServer(…, middleware=[GateMiddleware(gate)])``, or ``server.middleware.append``.

    Instead of one :class:`Gate` it takes a function of the request's context, so that a server of many users keeps
    their sessions apart. Take the session from what authenticates the request: what a client sends is its own claim.
    """

    def __init__(self, gate: Gate | Callable[[Context], Gate]) -> None:
        self._gate_of = (lambda _: gate) if isinstance(gate, Gate) else gate
        self._tools: dict[str, Tool] = {}
        self._rounds = Rounds()

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Pass a message on; a `tools/call` goes through the gate first."""
        params = ctx.params or {}
        name, arguments = params.get("name"), params.get("arguments")
        if ctx.method == "tools/list":
            page = await call_next(ctx)
            self._learn(_as_json(page))
            return page
        # What is malformed the server itself refuses; it never comes to a tool.
        if ctx.method != "tools/call" or not isinstance(name, str) or not isinstance(arguments, Mapping | None):
            return await call_next(ctx)
        try:
            return await self._call(ctx, call_next, name, arguments)
        except (PermissionDenied, ToolCallCancelled, RedisUnavailable) as refused:
            return refusal(refused)

    async def _call(
        self, ctx: Context, call_next: CallNext, name: str, arguments: Mapping[str, Any] | None
    ) -> HandlerResult:
        params = dict(ctx.params or {})
        call = self._rounds.take(name, arguments, params.get("requestState"))
        if call is None:
            tool = await self._tool(ctx, call_next, name)
            call = await self._gate_of(ctx).call(tool, arguments).__aenter__()
        try:
            call.attach()
            approved = call.arguments
            if arguments is not None or approved:
                params["arguments"] = approved
            session: Any = _Reporting(ctx.session, call)
            result = await call_next(replace(ctx, params=params, session=session))
        except BaseException:
            await call.__aexit__(*sys.exc_info())
            raise
        told = _as_json(result)
        if told.get("resultType") == "input_required" and told.get("requestState") is not None:
            self._rounds.hold(name, arguments, told["requestState"], call)
        else:
            call.finish(told)
            await call.__aexit__(None, None, None)
        return result

    async def _tool(self, ctx: Context, call_next: CallNext, name: str) -> Tool:
        cursor: str | None = None
        for _ in range(LIST_PAGES):
            if name in self._tools:
                break
            asked = replace(ctx, method="tools/list", params={"cursor": cursor} if cursor else None)
            page = _as_json(await call_next(asked))
            self._learn(page)
            cursor = page.get("nextCursor")
            if cursor is None:
                break
        return self._tools.get(name, Tool(name))

    def _learn(self, page: Mapping[str, Any]) -> None:
        for tool in page.get("tools", ()):
            self._tools[tool["name"]] = Tool(tool["name"], tool.get("annotations"), tool.get("inputSchema"))


class _Reporting:
    """A request's session that also tells the gate of progress, whether or not the client wants to hear of it."""

    def __init__(self, session: ServerSession, call: GatedCall) -> None:
        self._session = session
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        self._call.progress(progress, total, message)
        await self._session.report_progress(progress, total, message)


def _as_json(result: HandlerResult) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dict(result or {})
