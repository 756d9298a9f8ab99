"""What a server says of its tools, as far as the guard has heard of it or asks by itself. None of it is trusted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agent_sse.mcp.gate import Tool
from agent_sse.mcp.guard.messages import Message, as_object
from agent_sse.mcp.guard.sides import ServerGone

LIST = "tools/list"
LIST_CHANGED = "notifications/tools/list_changed"
MAX_TOOLS = 5000
MAX_PAGES = 100
LIST_TIMEOUT = 10.0  # s, for all pages together
PAUSE = 60.0  # s, before a server that did not list its tools is asked again

# What belongs to one request only, and must not be repeated in another.
_OF_ONE_REQUEST = frozenset({"progressToken", "io.modelcontextprotocol/logLevel"})

log = logging.getLogger("agent_sse.guard")

Ask = Callable[[str, Mapping[str, Any], Mapping[str, str]], Awaitable[Message]]


class Tools:
    """The tools by name.

    ``ask`` sends a request of the guard's own (method, parameters, HTTP headers) and returns the response.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._known: dict[str, Tool] = {}
        self._listing = asyncio.Lock()
        self._not_before = 0.0  # the loop's time before which it is not asked again

    def learn(self, result: Mapping[str, Any] | None) -> None:
        """Take note of one page of tools."""
        listed = (result or {}).get("tools")
        for row in listed if isinstance(listed, list) else []:
            tool = as_object(row)
            name = tool.get("name")
            if isinstance(name, str) and (name in self._known or len(self._known) < MAX_TOOLS):
                annotations, schema = tool.get("annotations"), tool.get("inputSchema")
                self._known[name] = Tool(
                    name,
                    annotations if isinstance(annotations, dict) else None,
                    schema if isinstance(schema, dict) else None,
                )

    def forget(self) -> None:
        """Forget all: the server says that its tools have changed."""
        self._known.clear()

    def known(self, name: str) -> Tool | None:
        """Return what is known of a tool, without asking."""
        return self._known.get(name)

    async def find(self, name: str, call: Message) -> Tool:
        """Return what the server says of a tool, asking it if need be; ``call`` is the call that makes one ask.

        A tool that it does not list, or a server that does not answer, is one of which nothing is known.
        """
        if name not in self._known:
            async with self._listing:
                if name not in self._known and asyncio.get_running_loop().time() >= self._not_before:
                    await self._list(call)
        return self._known.get(name) or Tool(name)

    async def _list(self, call: Message) -> None:
        # The protocol without a handshake wants its envelope in every request.
        meta = {k: v for k, v in call.meta.items() if k not in _OF_ONE_REQUEST} if call.is_modern else None
        cursor: str | None = None
        seen: set[str] = set()
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                for _ in range(MAX_PAGES):
                    params: dict[str, Any] = {} if meta is None else {"_meta": meta}
                    params.update({} if cursor is None else {"cursor": cursor})
                    page = (await self._ask(LIST, params, call.headers)).result
                    self.learn(page)
                    cursor = (page or {}).get("nextCursor")
                    if not isinstance(cursor, str) or cursor in seen:
                        return
                    seen.add(cursor)
        except TimeoutError:
            self._not_before = asyncio.get_running_loop().time() + PAUSE
            log.warning("the MCP server did not list its tools within %.0f s", LIST_TIMEOUT)
        except ServerGone:
            pass  # the call itself will be told
