"""One tool call on its way: what was asked, what is sent on, and the rounds of a call that asks for input in between.

Sends nothing by itself.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agent_sse.errors import AgentSseError
from agent_sse.mcp.gate import GatedCall, Tool
from agent_sse.mcp.guard import headers, messages
from agent_sse.mcp.guard.messages import Id, Message, as_object
from agent_sse.mcp.guard.patience import Patience
from agent_sse.mcp.guard.sides import ServerGone
from agent_sse.mcp.guard.tasks import Followed

REFUSED = -32000  # among the codes that are left to implementations
ROUND_TIMEOUT = 600.0  # s; how long a host may take to find what a tool wants to know


class RoundAbandoned(AgentSseError):
    """A tool asked for input and the host never came back with it."""


def canonical(value: object) -> str:
    """Return JSON that is the same for the same value: 1, 1.0 and true are three."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def text_result(text: str) -> dict[str, Any]:
    """Return a ``CallToolResult`` that tells the model what went wrong."""
    return {"content": [{"type": "text", "text": text}], "isError": True}


@dataclass(slots=True, eq=False)
class Flight:
    """A call's state; ``own_token`` is for its progress when the host wants to hear nothing of that."""

    request: Message
    name: str
    arguments: dict[str, Any] | None
    own_token: str
    patience: Patience
    task: asyncio.Task[None] | None = None
    call: GatedCall | None = None  # set once it may run
    answer: Message | None = None  # the server's last word
    stopped: bool = False
    notice: Message | None = None  # with which the host cancelled it
    lost: str | None = None  # how the server ended
    task_of_server: Followed | None = None  # which the call has become
    told: bool = False  # whether the host has its answer, and waits for no other
    _response: asyncio.Future[Message] | None = None
    _round: asyncio.Future[None] | None = None  # the host's coming back

    @property
    def token(self) -> Id:
        """The progress token that the server is given."""
        token = messages.as_id(self.request.meta.get("progressToken"))
        return self.own_token if token is None else token

    def result(self, value: Mapping[str, Any]) -> Message:
        """Answer the host with a result."""
        # The protocol without a handshake names the kind of every result.
        kind = {"resultType": "complete"} if self.request.is_modern else {}
        return messages.result(self.request.request_id, {**kind, **value})

    def refused(self, value: Mapping[str, Any]) -> Message:
        """Answer the host with a result that tells the model what went wrong.

        A host that wanted a task has no use for a result, so it gets an error with the same words.
        """
        if not isinstance(self.request.params.get("task"), dict):
            return self.result(value)
        texts = [as_object(part).get("text") for part in value.get("content", [])]
        return self.error(REFUSED, " ".join(text for text in texts if isinstance(text, str)))

    def error(self, code: int, text: str) -> Message:
        """Answer the host with an error."""
        return messages.error(self.request.id, code, text)

    def outgoing(self, approved: Mapping[str, Any], tool: Tool) -> Message:
        """Return what the server gets: the host's own bytes, unless something has to be another."""
        changes: dict[str, Any] = {}
        if canonical(approved) != canonical(self.arguments or {}):
            changes["arguments"] = dict(approved)
        if self.token == self.own_token:
            changes["_meta"] = {**self.request.meta, "progressToken": self.own_token}
        message = self.request.replaced(params={**self.request.params, **changes}) if changes else self.request
        if not message.is_modern:
            return message
        return replace(message, headers=headers.with_arguments(message.headers, tool.input_schema, approved))

    # -- what happens to it -------------------------------------------------------------------------------------------

    def expect(self) -> asyncio.Future[Message]:
        """Return the future of the server's answer, which counts from now on."""
        self.told = False
        self._response = asyncio.get_running_loop().create_future()
        return self._response

    def answered(self, response: Message) -> None:
        """Take the server's answer, if it has been asked."""
        if self._response is not None and not self._response.done():
            self._response.set_result(response)

    def progressed(self, params: Mapping[str, Any]) -> None:
        """Tell the gate how far the call is; what is no number is passed over."""
        progress, text = _number(params.get("progress")), params.get("message")
        if self.call is not None and progress is not None:
            self.patience.heard()
            self.call.progress(progress, _number(params.get("total")), text if isinstance(text, str) else None)

    def stop(self, notice: Message) -> None:
        """Cancel it because the host wants so, with the host's own words for the server."""
        self.stopped, self.notice = True, notice
        if self.task is not None:
            self.task.cancel()

    def lose(self, reason: str) -> None:
        """Fail it because the server has gone; one that waits for permission needs none any more."""
        self.lost = reason
        if self._response is not None and not self._response.done():
            self._response.set_exception(ServerGone(reason))
        elif self._round is not None and not self._round.done():
            self._round.set_exception(ServerGone(reason))
        elif self.task_of_server is not None:
            self.task_of_server.lose(reason)
        elif self.task is not None and self.answer is None:
            self.stopped = True
            self.task.cancel()

    def resume(self) -> None:
        """Go on: the host has come back with the input."""
        if self._round is not None and not self._round.done():
            self._round.set_result(None)

    def pause(self) -> Awaitable[None]:
        """Note that the host is about to have this request's answer; return what waits until it comes back.

        That raises :class:`RoundAbandoned` when it does not.
        """
        self.told, self._response = True, None
        self._round = asyncio.get_running_loop().create_future()
        return self._next_round(self._round)

    async def _next_round(self, coming: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(ROUND_TIMEOUT):
                await coming
        except TimeoutError:
            raise RoundAbandoned(f"{self.name} asked for input, and the host never continued the call") from None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


@dataclass(slots=True)
class Rounds:
    """Calls that wait for the host's input (``resultType: "input_required"``, 2026-07-28).

    The host retries such a call under another id. What was approved was the tool with these arguments, so exactly they,
    with the very state that the server gave out, go on without a question, once; anything else is a new call.
    """

    _waiting: dict[tuple[str, str, str], Flight] = field(default_factory=dict)

    @staticmethod
    def is_open(answer: Message) -> bool:
        """Whether a result is a question to the host and not the end."""
        return (answer.result or {}).get("resultType") == "input_required"

    def wait(self, flight: Flight, answer: Message) -> Awaitable[None]:
        """Let a call wait; do so before the host is told."""
        asked = answer.result or {}
        self._waiting[_round_key(flight.name, flight.arguments, asked, as_object(asked.get("inputRequests")))] = flight
        return flight.pause()

    def take(self, request: Message, name: str, arguments: Mapping[str, Any] | None) -> Flight | None:
        """Return the call that a request continues, if any; no second request does."""
        params = request.params
        if "requestState" not in params and "inputResponses" not in params:
            return None
        responses = as_object(params.get("inputResponses"))
        return self._waiting.pop(_round_key(name, arguments, params, responses), None)

    def discard(self, flight: Flight) -> None:
        """Forget a call."""
        for at in [at for at, waiting in self._waiting.items() if waiting is flight]:
            del self._waiting[at]


def _round_key(
    name: str, arguments: Mapping[str, Any] | None, state: Mapping[str, Any], asked: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Without a state of the server's the names of what it asked for have to be the same."""
    given = state.get("requestState")
    return name, canonical(arguments or {}), canonical([given, None if given is not None else sorted(asked)])
