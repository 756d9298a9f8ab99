"""What a server says of its tools, for the client wrapper and the middleware. None of it is trusted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp import MCPError

from agent_sse.mcp.gate import Tool

log = logging.getLogger("agent_sse")

LIST_PAGES = 100  # one that never ends is not followed
MAX_TOOLS = 5000
LIST_TIMEOUT = 10.0  # s, for all pages together
PAUSE = 60.0  # s, before a server that did not list its tools in time is asked again
FRESH_SECONDS = 60.0  # how long a listing is believed; tools may change, and not every server says so

ListPage = Callable[[str | None], Awaitable[Mapping[str, Any]]]


class Tools:
    """The tools by name, as they stood in `tools/list`."""

    def __init__(self) -> None:
        self._known: dict[str, Tool] = {}
        self._listing = asyncio.Lock()
        self._stale_at = 0.0  # on the loop's clock
        self._not_before = 0.0

    def learn(self, page: Mapping[str, Any]) -> None:
        """Take note of one page, as JSON on the wire."""
        for row in page.get("tools") or ():
            name = row["name"]
            if name in self._known or len(self._known) < MAX_TOOLS:
                self._known[name] = Tool(name, row.get("annotations"), row.get("inputSchema"))

    async def find(self, name: str, list_page: ListPage) -> Tool:
        """Return what the server says of a tool; ``list_page`` is asked for page after page when need be.

        Of a tool that is not listed, and when listing fails, nothing is known.
        """
        if not self._knows(name):
            async with self._listing:
                if not self._knows(name) and asyncio.get_running_loop().time() >= self._not_before:
                    await self._list(name, list_page)
        return self._known.get(name, Tool(name))

    def _knows(self, name: str) -> bool:
        return name in self._known and asyncio.get_running_loop().time() < self._stale_at

    async def _list(self, name: str, list_page: ListPage) -> None:
        loop = asyncio.get_running_loop()
        self._known = {}
        cursor: str | None = None
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                for _ in range(LIST_PAGES):
                    page = await list_page(cursor)
                    self.learn(page)
                    cursor = page.get("nextCursor")
                    if cursor is None:
                        break
            self._stale_at = loop.time() + FRESH_SECONDS
        except TimeoutError:
            self._not_before = loop.time() + PAUSE
            log.warning("the MCP server did not list its tools within %g s; nothing is known of %s", LIST_TIMEOUT, name)
        except (MCPError, ValueError) as error:
            log.warning("the MCP server did not list its tools; nothing is known of %s: %s", name, error)
