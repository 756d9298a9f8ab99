"""`GuardedClient`: an `mcp.Client` whose tool calls are shown live, and asked about where the policy says so."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Self

from mcp import Client
from mcp.client.caching import CacheMode
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    InputResponses,
    ListToolsResult,
    RequestParamsMeta,
    TextContent,
)

from agent_sse.errors import AgentSseError, ToolCallCancelled
from agent_sse.mcp.gate import Gate, GatedCall, refusal_text
from agent_sse.mcp.tools import Tools
from agent_sse.notifier import SimpleNotifier
from agent_sse.policy import Policy
from agent_sse.policy_file import PolicyFile

log = logging.getLogger("agent_sse")


def guard_client(
    client: Client,
    notifier: SimpleNotifier,
    *,
    session_id: str,
    server: str,
    policy: Policy | PolicyFile | str | os.PathLike[str] | None = None,
    trusted: bool = False,
    timeout: float = 300.0,
) -> GuardedClient:
    """Return the client with a gate around its tool calls; the arguments are those of :class:`Gate`.

    The client may be connected already, or be entered through what this returns. Raises :class:`InvalidEvent` for a
    server's name that no event can carry, and :class:`ConfigurationError` for a policy file that cannot be used.
    """
    gate = Gate(notifier, session_id, server=server, policy=policy, trusted=trusted, timeout=timeout)
    return GuardedClient(client, gate)


class GuardedClient(Client):
    """A view of an :class:`mcp.Client` that shares its connection; only ``call_tool`` differs.

    ``gate`` decides about the calls and reports them. ``session`` is the connection itself, which nothing guards.
    """

    __slots__ = ("_client", "_gate", "_tools")  # its own; `__dict__` is the client's

    def __init__(self, client: Client, gate: Gate) -> None:
        self.__dict__ = client.__dict__
        self._client = client
        self._gate = gate
        self._tools = Tools()

    async def __aenter__(self) -> Self:
        """Connect the client."""
        await self._client.__aenter__()
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: Any) -> None:
        """Disconnect the client."""
        await self._client.__aexit__(exc_type, exc_val, exc_tb)

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

        What keeps a call from running (a denial, nobody who can be asked, parameters that cannot be shown) is told in
        a result with ``is_error``, in words for the model. Once the tool has run its result is returned, whatever
        becomes of its events. Cancelling the task withdraws the open permission request, or cancels the MCP request.
        A user's cancel does that too, and returns a result with ``is_error``. ``read_timeout_seconds`` begins when
        the call may run. Raises what the client raises.
        """
        result: CallToolResult | None = None
        call: GatedCall | None = None
        try:
            tool = await self._tools.find(name, self._page)
            async with self._gate.call(tool, _as_json(arguments)) as call:
                approved = call.arguments
                result = await self._client.call_tool(
                    name, approved if arguments is not None or approved else None, read_timeout_seconds,
                    _reporting(call, progress_callback), input_responses=input_responses,
                    request_state=request_state, meta=meta,
                )  # fmt: skip
                call.finish(_shown(result))
        except AgentSseError as error:
            if result is not None:
                log.error("the end of a call of %s is not published: %s", name, error)
            elif call is None or isinstance(error, ToolCallCancelled):
                return CallToolResult(content=[TextContent(type="text", text=refusal_text(error))], is_error=True)
            else:
                raise
        return result

    async def list_tools(
        self, *, cursor: str | None = None, meta: RequestParamsMeta | None = None, cache_mode: CacheMode = "use"
    ) -> ListToolsResult:
        """List tools as :meth:`mcp.Client.list_tools` does, and learn what the server says of them."""
        page = await self._client.list_tools(cursor=cursor, meta=meta, cache_mode=cache_mode)
        self._tools.learn(page.model_dump(mode="json", by_alias=True, exclude_none=True))
        return page

    async def _page(self, cursor: str | None) -> Mapping[str, Any]:
        page = await self._client.list_tools(cursor=cursor)
        return page.model_dump(mode="json", by_alias=True, exclude_none=True)


def _as_json(arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the arguments as the client would send them: it takes what pydantic can make JSON of."""
    sent: dict[str, Any] | None = CallToolRequestParams(name="", arguments=arguments).model_dump(mode="json")[
        "arguments"
    ]
    return sent


def _shown(result: CallToolResult) -> dict[str, Any]:
    try:
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)
    except ValueError as error:  # what a server in this process put in its result need not be JSON
        log.warning("a tool's result cannot be shown: %s", error)
        text = TextContent(type="text", text="(this result cannot be shown)")
        return {"content": [text.model_dump(mode="json")], "isError": result.is_error}


def _reporting(call: GatedCall, progress_callback: ProgressFnT | None) -> ProgressFnT:
    async def report(progress: float, total: float | None, message: str | None) -> None:
        call.progress(progress, total, message)
        if progress_callback is not None:
            await progress_callback(progress, total, message)

    return report
