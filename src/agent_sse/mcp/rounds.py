"""Calls that wait for their client to come back with input: one call, several requests (MCP 2026-07-28).

A call goes on only with the state that its client was given for it, in the same session, with the same tool,
arguments and state of the server's; that state carries a token of ours, since servers give the same to many.
https://modelcontextprotocol.io/specification/2026-07-28/basic/utilities/multi-round-trip-requests
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from agent_sse.decisions import sha256
from agent_sse.errors import AgentSseError, ToolCallCancelled
from agent_sse.mcp.gate import GatedCall

log = logging.getLogger("agent_sse")

SECONDS = 600.0  # how long a client may take to find what a tool wants to know
LIMIT = 1000  # calls; the oldest are given up
PREFIX = "agent-sse:"


class InputMissing(AgentSseError):
    """A tool asked for input, and its client never came back with it."""


@dataclass(slots=True)
class _Held:
    call: GatedCall
    digest: str
    timer: asyncio.TimerHandle
    cancelled: ToolCallCancelled | None = None


class Rounds:
    """The open calls, by the token that their next request has to bring."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def hold(self, call: GatedCall, about: object, state: str | None) -> str:
        """Keep a call open for a while. Returns the state for its client, which holds the server's."""
        token = secrets.token_urlsafe(16)
        timer = asyncio.get_running_loop().call_later(SECONDS, self._give_up, token)
        self._held[token] = _Held(call, sha256([about, state]), timer)
        call.detach(lambda: self._cancel(token))
        if len(self._held) > LIMIT:
            self._give_up(next(iter(self._held)))
        return f"{PREFIX}{token}:" + ("-" if state is None else f"+{state}")

    def take(self, about: object, state: object) -> tuple[GatedCall | None, object]:
        """Return the call that this request goes on with, once, or None for a new call; and the server's own state.

        The call goes on in the current task. Raises :class:`ToolCallCancelled` when a user cancelled it meanwhile.
        """
        if not isinstance(state, str) or not state.startswith(PREFIX):
            return None, state
        token, _, rest = state.removeprefix(PREFIX).partition(":")
        own = rest[1:] if rest.startswith("+") else None
        held = self._held.get(token)
        if held is None or held.digest != sha256([about, own]):
            return None, own
        del self._held[token]
        held.timer.cancel()
        if held.cancelled is not None:
            raise held.cancelled
        held.call.attach()
        return held.call, own

    def _give_up(self, token: str) -> None:
        held = self._held.pop(token)
        held.timer.cancel()
        if held.cancelled is None:
            self._end(held, InputMissing("the tool asked for input, and the client did not come back with it"))

    def _cancel(self, token: str) -> None:
        held = self._held[token]
        try:
            held.call.attach()
        except ToolCallCancelled as cancelled:
            # Its client comes back to hear of it.
            held.cancelled = cancelled
            self._end(held, cancelled)

    def _end(self, held: _Held, error: AgentSseError) -> None:
        task = asyncio.create_task(_end(held.call, error), name="agent-sse call without a client")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _end(call: GatedCall, error: AgentSseError) -> None:
    try:
        await call.__aexit__(type(error), error, None)
    except AgentSseError as failure:
        if failure is not error:
            log.warning("the end of call %s is not published: %s", call.tool_call_id, failure)
