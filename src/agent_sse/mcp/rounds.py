"""Calls that wait for their client to come back with input: one call, several requests (MCP 2026-07-28).

Only the very state that the server gave, with the same tool and arguments, goes on with an approved call.
https://modelcontextprotocol.io/specification/2026-07-28/basic/utilities/multi-round-trip-requests
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from agent_sse.decisions import sha256
from agent_sse.errors import AgentSseError
from agent_sse.mcp.gate import GatedCall

log = logging.getLogger("agent_sse")

SECONDS = 600.0  # how long a client may take to find what a tool wants to know
LIMIT = 1000  # calls; the oldest are given up


class InputMissing(AgentSseError):
    """A tool asked for input, and its client never came back with it."""


class Rounds:
    """The open calls, by what their next request has to bring."""

    def __init__(self) -> None:
        self._calls: OrderedDict[str, tuple[GatedCall, asyncio.TimerHandle]] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def hold(self, name: str, arguments: object, state: object, call: GatedCall) -> None:
        """Keep a call open for the request with this state, for a while."""
        key = sha256([name, arguments, state])
        call.detach()
        timer = asyncio.get_running_loop().call_later(SECONDS, self._give_up, key)
        self._calls[key] = (call, timer)
        if len(self._calls) > LIMIT:
            self._give_up(next(iter(self._calls)))

    def take(self, name: str, arguments: object, state: object) -> GatedCall | None:
        """Return the call that this request goes on with, once; None for a new call."""
        found = None if state is None else self._calls.pop(sha256([name, arguments, state]), None)
        if found is None:
            return None
        found[1].cancel()
        return found[0]

    def _give_up(self, key: str) -> None:
        call, timer = self._calls.pop(key)
        timer.cancel()
        task = asyncio.create_task(_fail(call), name="agent-sse abandoned call")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _fail(call: GatedCall) -> None:
    error = InputMissing("the tool asked for input, and the client did not come back with it")
    try:
        await call.__aexit__(type(error), error, None)
    except AgentSseError as failure:
        log.warning("the end of call %s is not published: %s", call.tool_call_id, failure)
