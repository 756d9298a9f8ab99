"""`GuardedClient`: an `mcp.Client` whose tool calls are shown live, and asked about where the policy says so."""

from __future__ import annotations

from typing import Any

from mcp import Client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult, InputResponses, RequestParamsMeta, TextContent

from agent_sse.errors import PermissionDenied, ToolCallCancelled
from agent_sse.mcp.gate import Gate, GatedCall, Tool, refusal_text

LIST_PAGES = 100  # of a server's tools; one that never ends is not followed


class GuardedClient:
    """Wraps a connected :class:`mcp.Client`; everything but ``call_tool`` is the client's own.

    ``gate`` decides about the calls and reports them. A call that is not allowed returns a result with ``is_error``
    whose text tells the model why, with the user's own words.
    """

    def __init__(self, client: Client, gate: Gate) -> None:
        self._client = client
        self._gate = gate
        self._tools: dict[str, Tool] = {}

    def __getattr__(self, name: str) -> Any:
        """Return what the client has."""
        return getattr(self._client, name)

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        read_timeout_seconds: float | None = None,
        progress_callback: ProgressFnT | None = None,
        *,
        input_responses: InputResponses | None = None,
        request_state: str | None = None,
        meta: RequestParamsMeta | None = None,
    ) -> CallToolResult:
        """Call a tool as :meth:`mcp.Client.call_tool` does, if policy and user allow it.

        Cancelling the task withdraws the open permission request, or cancels the MCP request. A user's cancel does
        that too, and returns a result with ``is_error``. Raises what the client raises, and what publishing raises.
        """
        tool = await self._tool(name)
        try:
            async with self._gate.call(tool, arguments) as call:
                result = await self._client.call_tool(
                    name, call.arguments if arguments is not None or call.arguments else None, read_timeout_seconds,
                    _reporting(call, progress_callback), input_responses=input_responses,
                    request_state=request_state, meta=meta,
                )  # fmt: skip
                call.finish(result.model_dump(mode="json", by_alias=True, exclude_none=True))
                return result
        except (PermissionDenied, ToolCallCancelled) as refused:
            return CallToolResult(content=[TextContent(type="text", text=refusal_text(refused))], is_error=True)

    async def list_tools(self, **options: Any) -> Any:
        """List tools as :meth:`mcp.Client.list_tools` does, and learn what the server says of them."""
        page = await self._client.list_tools(**options)
        self._learn(page)
        return page

    def _learn(self, page: Any) -> None:
        for tool in page.tools:
            hints = tool.annotations
            self._tools[tool.name] = Tool(
                tool.name,
                hints.model_dump(mode="json", by_alias=True, exclude_none=True) if hints is not None else None,
                tool.input_schema,
            )

    async def _tool(self, name: str) -> Tool:
        if name not in self._tools:
            cursor: str | None = None
            for _ in range(LIST_PAGES):
                page = await self._client.list_tools(cursor=cursor)
                self._learn(page)
                cursor = page.next_cursor
                if name in self._tools or cursor is None:
                    break
        return self._tools.get(name, Tool(name))


def _reporting(call: GatedCall, progress_callback: ProgressFnT | None) -> ProgressFnT:
    async def report(progress: float, total: float | None, message: str | None) -> None:
        call.progress(progress, total, message)
        if progress_callback is not None:
            await progress_callback(progress, total, message)

    return report
