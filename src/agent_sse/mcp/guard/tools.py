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
FRESH = 60.0  # s; how long a listing is believed: tools may change, and not every server says so
MISSING = 10.0  # s, before a whole listing is looked through again for a tool that is not in it

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
        self._stale_at: dict[str, float] = {}  # times of the loop
        self._listing = asyncio.Lock()
        self._not_before = 0.0  # the loop's time before which it is not asked again
        self._complete_until = 0.0  # until when a tool that is not known is none of the server's
        self._changes = 0

    def learn(self, result: Mapping[str, Any] | None) -> None:
        """Take note of one page of tools."""
        listed = (result or {}).get("tools")
        stale_at = asyncio.get_running_loop().time() + FRESH
        for row in listed if isinstance(listed, list) else []:
            tool = as_object(row)
            name = tool.get("name")
            if isinstance(name, str) and (name in self._known or len(self._known) < MAX_TOOLS):
                self._stale_at[name] = stale_at
                annotations, schema = tool.get("annotations"), tool.get("inputSchema")
                self._known[name] = Tool(
                    name,
                    annotations if isinstance(annotations, dict) else None,
                    schema if isinstance(schema, dict) else None,
                )

    def forget(self) -> None:
        """Forget all: the server says that its tools have changed."""
        self._known.clear()
        self._stale_at.clear()
        self._complete_until = 0.0
        self._changes += 1

    async def find(self, name: str, call: Message) -> Tool:
        """Return what the server says of a tool, asking it if need be; ``call`` is the call that makes one ask.

        A tool that it does not list, or a server that does not answer, is one of which nothing is known.
        """
        if self._may_ask_about(name):
            async with self._listing:
                if self._may_ask_about(name):
                    await self._list(call)
        return self._known[name] if self._is_fresh(name) else Tool(name)

    def _is_fresh(self, name: str) -> bool:
        return asyncio.get_running_loop().time() < self._stale_at.get(name, 0.0)

    def _may_ask_about(self, name: str) -> bool:
        now = asyncio.get_running_loop().time()
        is_missing = name not in self._known and now < self._complete_until
        return not self._is_fresh(name) and not is_missing and now >= self._not_before

    async def _list(self, call: Message) -> None:
        # The protocol without a handshake wants its envelope in every request.
        meta = {k: v for k, v in call.meta.items() if k not in _OF_ONE_REQUEST} if call.is_modern else None
        cursor: str | None = None
        seen: set[str] = set()
        self._prune()
        changes = self._changes
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                for _ in range(MAX_PAGES):
                    params: dict[str, Any] = {} if meta is None else {"_meta": meta}
                    params.update({} if cursor is None else {"cursor": cursor})
                    page = (await self._ask(LIST, params, call.headers)).result
                    self.learn(page)
                    cursor = (page or {}).get("nextCursor")
                    if not isinstance(cursor, str) or cursor in seen:
                        break
                    seen.add(cursor)
            if changes == self._changes:
                self._complete_until = asyncio.get_running_loop().time() + MISSING
        except TimeoutError:
            self._not_before = asyncio.get_running_loop().time() + PAUSE
            log.warning("the MCP server did not list its tools within %.0f s", LIST_TIMEOUT)
        except ServerGone:
            pass  # the call itself will be told

    def _prune(self) -> None:
        """Forget what is stale: a tool that is gone must not keep its place."""
        for name in [name for name in self._known if not self._is_fresh(name)]:
            del self._known[name], self._stale_at[name]
