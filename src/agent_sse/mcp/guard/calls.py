"""The host's tool calls on their way through the gate. No call reaches the server in any other way.

Knows no transport, and of the gate no more than its interface.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from agent_sse.errors import AgentSseError, InvalidEvent, PermissionDenied, ToolCallCancelled
from agent_sse.mcp.gate import Gate, GatedCall, Tool, refusal
from agent_sse.mcp.guard import messages, tasks
from agent_sse.mcp.guard.flight import Flight, Rounds, text_result
from agent_sse.mcp.guard.messages import Id, Message, key
from agent_sse.mcp.guard.patience import Patience
from agent_sse.mcp.guard.sides import CallTimedOut, HostSide, ServerGone, ServerSide
from agent_sse.mcp.guard.tools import Ask, Tools
from agent_sse.terminal import escape

MAX_CALLS = 256  # calls of one host that wait for permission or an answer
SHOWN = 200  # characters of a tool's name in the log
CLOSE_TIMEOUT = 3.0  # s, for telling the browser that the calls are cancelled

log = logging.getLogger("agent_sse.guard")


class _ErrorAnswer(AgentSseError):
    """The server answered with a JSON-RPC error; the message is the error's."""

    def __init__(self, answer: Message) -> None:
        super().__init__(str(messages.as_object(answer.body.get("error")).get("message", "error")))
        self.answer = answer


class Calls:
    """Calls between one host and one server, and what is known of the tools.

    ``ask`` sends a request of the guard's own; for ``timeout`` (s) a tool may say nothing, None for ever.
    """

    def __init__(
        self, gate: Gate, ask: Ask, server: ServerSide, host: HostSide, *, prefix: str, timeout: float | None
    ) -> None:
        self._gate = gate
        self._ask = ask
        self.tools = Tools(ask)
        self.tasks = tasks.Tasks()
        self._server = server
        self._host = host
        self._timeout = timeout
        self._prefix = prefix
        self._count = 0
        self._flights: dict[Id, Flight] = {}
        self._by_token: dict[Id, Flight] = {}
        self._rounds = Rounds()

    def has(self, request_id: Id) -> bool:
        """Whether a call with this id is on its way."""
        return key(request_id) in self._flights

    # -- from the host ------------------------------------------------------------------------------------------------

    def start(self, request: Message) -> None:
        """Take a `tools/call` request. Raises :class:`BadMessage` for one that cannot be decided about."""
        name, arguments = _check(request)
        if (flight := self._rounds.take(request, name, arguments)) is not None:
            self._continue(flight, request)
            return
        if len(self._flights) >= MAX_CALLS:
            raise messages.BadMessage(
                messages.INTERNAL_ERROR, f"{MAX_CALLS} tool calls are on their way; wait for some of them", request.id
            )
        self._count += 1
        flight = Flight(request, name, arguments, f"{self._prefix}{self._count}", Patience(self._timeout))
        self._track(flight)
        flight.task = asyncio.create_task(self._run(flight), name=f"tools/call {self._count}")
        flight.task.add_done_callback(lambda _: self._untrack(flight))  # one that is cancelled at once never runs

    def _continue(self, flight: Flight, request: Message) -> None:
        self._untrack(flight)
        flight.request = request
        self._track(flight)
        flight.resume()

    def cancel(self, notification: Message) -> bool:
        """Cancel the call that a host's `notifications/cancelled` names; False when it names none."""
        request_id = messages.as_id(notification.params.get("requestId"))
        flight = self._flights.get(key(request_id)) if request_id is not None else None
        if flight is None or flight.told:
            return False
        flight.stop(notification)
        return True

    def abandon(self, request_id: Id) -> None:
        """Withdraw a call that still waits for permission: whoever asked for it has gone, so nobody hears of it."""
        flight = self._flights.get(key(request_id))
        if flight is not None and flight.call is None:
            flight.stop(messages.cancelled(request_id, "the host has gone"))

    # -- from the server ----------------------------------------------------------------------------------------------

    def answer(self, response: Message) -> bool:
        """Take a response; False when it answers no call. One to a call that the server never heard of is dropped."""
        response_id = response.id
        flight = self._flights.get(key(response_id)) if response_id is not None else None
        if flight is None:
            return False
        flight.answered(response)
        return True

    def progress(self, notification: Message) -> Id | None:
        """Take a `notifications/progress`. Return the call it is of; None when it is of none."""
        token = messages.as_id(notification.params.get("progressToken"))
        flight = self._by_token.get(key(token)) if token is not None else None
        if flight is None:
            return None
        flight.progressed(notification.params)
        return flight.request.id

    def is_own_token(self, notification: Message) -> bool:
        """Whether the guard alone asked for this progress, so that the host does not know the token."""
        token = notification.params.get("progressToken")
        return isinstance(token, str) and token.startswith(self._prefix)

    def server_gone(self, reason: str) -> None:
        """Fail all calls: the server has ended."""
        for flight in set(self._flights.values()):
            flight.lose(reason)

    async def settled(self) -> None:
        """Wait a while until the calls that are on their way have told how they ended."""
        tasks = {flight.task for flight in self._flights.values() if flight.task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
            if late:
                log.warning("the end of %d tool calls could not be reported in time", len(late))

    async def aclose(self) -> None:
        """Cancel all calls, and wait a while until that is published."""
        for flight in self._flights.values():
            if flight.task is not None:
                flight.task.cancel()
        await self.settled()

    # -- one call -----------------------------------------------------------------------------------------------------

    def _track(self, flight: Flight) -> None:
        self._flights[key(flight.request.request_id)] = flight
        self._by_token[key(flight.token)] = flight

    def _untrack(self, flight: Flight) -> None:
        self._rounds.discard(flight)
        for known, name in ((self._flights, flight.request.request_id), (self._by_token, flight.token)):
            if known.get(key(name)) is flight:
                del known[key(name)]

    async def _run(self, flight: Flight) -> None:
        try:
            answer = await self._outcome(flight)
        finally:
            self._untrack(flight)
        if answer is not None and not flight.told:
            await self._host.deliver(answer, flight.request.id)

    async def _outcome(self, flight: Flight) -> Message | None:
        """Return what the host is told at the end."""
        try:
            return await self._gated(flight)
        except asyncio.CancelledError:
            if not flight.stopped:
                raise  # the guard itself is ending
            return None if flight.lost is None else flight.error(messages.CONNECTION_CLOSED, flight.lost)
        except (PermissionDenied, ToolCallCancelled) as error:
            return flight.refused(refusal(error))
        except _ErrorAnswer as error:
            return error.answer
        except ServerGone as error:
            return flight.error(messages.CONNECTION_CLOSED, str(error))
        except CallTimedOut as error:
            return flight.refused(text_result(str(error)))
        except AgentSseError as error:
            return _unreported(flight, error)
        except Exception:
            log.exception("a tool call failed inside the guard")
            return flight.answer or flight.error(messages.INTERNAL_ERROR, "the guard failed; its log says how")

    async def _gated(self, flight: Flight) -> Message:
        tool = await self.tools.find(flight.name, flight.request)
        async with self._gate.call(tool, flight.arguments) as call:
            flight.call = call
            while True:
                answer = await self._forward(flight, call, tool)
                if answer.result is None:
                    flight.answer = answer
                    raise _ErrorAnswer(answer)
                if not self._rounds.is_open(answer):
                    return await self._finish(flight, call, answer)
                waiting = self._rounds.wait(flight, answer)
                await self._host.deliver(answer, flight.request.id)
                await waiting

    async def _finish(self, flight: Flight, call: GatedCall, answer: Message) -> Message:
        """Give the gate the result, at once or when the task has ended that the call has become."""
        if (task := tasks.of(flight.request, answer)) is not None:
            answer = await self._follow(flight, task, answer)
        flight.answer = answer
        if answer.result is None:
            raise _ErrorAnswer(answer)
        call.finish(answer.result)
        return answer

    async def _follow(self, flight: Flight, task: Mapping[str, Any], answer: Message) -> Message:
        followed = flight.task_of_server = self.tasks.follow(task, flight.patience.heard)
        flight.told = True
        try:
            await self._host.deliver(answer, flight.request.id)
            async with flight.patience.limit():
                return await followed.end(self._ask, flight.request.headers)
        except (TimeoutError, asyncio.CancelledError) as error:
            if followed.lost is None and followed.status not in tasks.ENDED:
                self._count += 1
                own, params = f"{self._prefix}t{self._count}", {"taskId": followed.id}
                self._server.cancel(
                    own, messages.make({"jsonrpc": "2.0", "id": own, "method": "tasks/cancel", "params": params})
                )
            if isinstance(error, TimeoutError):
                raise CallTimedOut(f"{flight.name} did not end {flight.patience}") from None
            raise
        finally:
            self.tasks.leave(followed)

    async def _forward(self, flight: Flight, call: GatedCall, tool: Tool) -> Message:
        message, request_id = flight.outgoing(call.arguments, tool), flight.request.request_id
        response = flight.expect()
        try:
            async with flight.patience.limit():
                await self._server.send(message)
                return await response
        except TimeoutError:
            text = f"{flight.name} did not answer {flight.patience}"
            self._server.cancel(request_id, messages.cancelled(request_id, text))
            raise CallTimedOut(text + "; it may or may not have had an effect") from None
        except asyncio.CancelledError:
            if flight.lost is None:
                notice = flight.notice or messages.cancelled(request_id, "cancelled by the user")
                self._server.cancel(request_id, notice)
            raise


def _check(request: Message) -> tuple[str, dict[str, Any] | None]:
    name, arguments = request.params.get("name"), request.params.get("arguments")
    if not isinstance(name, str):
        raise messages.BadMessage(messages.INVALID_PARAMS, "params.name has to be a string", request.id)
    if arguments is not None and not isinstance(arguments, dict):
        raise messages.BadMessage(messages.INVALID_PARAMS, "params.arguments has to be an object", request.id)
    try:
        json.dumps([name, arguments], ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # half a surrogate pair, or a number that no JSON reader agrees on
        raise messages.BadMessage(
            messages.INVALID_PARAMS, "params hold text or numbers that not every server reads alike", request.id
        ) from None
    return name, arguments


def _unreported(flight: Flight, error: AgentSseError) -> Message:
    """Answer a call whose state could not be published: before it ran it does not, afterwards its result counts."""
    if flight.answer is not None:
        log.error("a tool call's end could not be reported: %s", error)
        return flight.answer
    if flight.call is not None:
        log.error("a tool call failed: %s", error)
        return flight.refused(text_result(f"The tool call failed: {error}"))
    if isinstance(error, InvalidEvent):  # no event can hold it, so the log is all that tells of it
        log.error("a call of the tool %s was refused: %s", escape(flight.name)[:SHOWN], error)
    else:
        log.error("a tool call was not allowed, as nobody could be asked: %s", error)
    return flight.refused(refusal(error))
