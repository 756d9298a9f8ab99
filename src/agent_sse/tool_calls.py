"""One tool call as an async context manager: the state machine of protocol.md § 5, and the permission before it."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agent_sse import events
from agent_sse.errors import AgentSseError, InvalidEvent, PermissionDenied
from agent_sse.permissions import SESSION_GONE, PermissionDecision, PermissionRequest

if TYPE_CHECKING:
    from agent_sse.notifier import SimpleNotifier

log = logging.getLogger("agent_sse")

LAST_WORDS = 2.0  # s; how long a cancelled call may take to say so


class ToolCall:
    """A call on its way: ``pending → executing → completed | failed | cancelled``, after a permission if asked.

    Attributes: ``tool_call_id``; ``decision``, the :class:`PermissionDecision` when one was asked for; ``result``, what
    the body sets and the ``tool_result`` carries.
    """

    def __init__(
        self,
        notifier: SimpleNotifier,
        session_id: str,
        tool_name: str,
        parameters: object,
        *,
        risk_level: str,
        require_permission: bool,
        tool_call_id: str | None,
        timeout: float,
        message: str | None,
        idempotency_key: str | None,
        parent_tool_call_id: str | None,
    ) -> None:
        self.session_id = session_id
        self.tool_name = tool_name
        self.parameters = parameters
        if tool_call_id is None:
            tool_call_id = "call_" + secrets.token_urlsafe(12)
        self.tool_call_id = events.check_name(tool_call_id, "tool_call_id")
        self.decision: PermissionDecision | None = None
        self.result: object = None
        self._notifier = notifier
        self._risk_level = risk_level
        self._require_permission = require_permission
        self._timeout = timeout
        self._message = message
        self._key = idempotency_key
        self._details: dict[str, Any] = {}
        if parent_tool_call_id is not None:
            self._details["parent_tool_call_id"] = events.check_name(parent_tool_call_id, "parent_tool_call_id")
        self._start_time = events.timestamp()
        self._started = time.monotonic()
        self._begun = False
        self._entered = False
        self._completed = False

    async def progress(self, progress: float, *, total: float | None = None, message: str | None = None) -> str:
        """Publish how far the call is, in any unit; ``total`` in the same one. Returns the event's id."""
        if not self._entered:
            raise InvalidEvent("progress belongs inside the call's block")
        step: dict[str, Any] = {"progress": _number(progress, "progress")}
        if total is not None:
            step["total"] = _number(total, "total")
        if message is not None:
            step["message"] = events.check_message(message, "message")
        return await self._status("executing", progress=step)

    async def __aenter__(self) -> Self:
        if self._begun:
            raise InvalidEvent("a call's block can be entered once: make another call, which gets an id of its own")
        self._begun = True
        self._start_time, self._started = events.timestamp(), time.monotonic()
        await self._status("pending")
        try:
            if self._require_permission:
                await self._status("waiting_permission")
                self.decision = await self._notifier.ask(self._request())
                if not self.decision:
                    gone = self.decision.resolved_by is None and self.decision.reason == SESSION_GONE
                    if not gone:  # what is erased must not come back
                        await self._end_unapproved(self.decision)
                    raise PermissionDenied(self.decision)
            await self._status("executing")
        except PermissionDenied:
            raise
        except BaseException as error:
            # Cancelled, or Redis failed: the tool does not run, and no card may stay open for it.
            await self._say_last("cancelled", "cancelled" if isinstance(error, asyncio.CancelledError) else str(error))
            raise
        self._entered = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        if exc is None:
            try:
                await self._complete()
            except asyncio.CancelledError:
                # The tool did run; what is not said yet is said before the cancellation goes on.
                await self._complete_quietly()
                raise
        elif isinstance(exc, asyncio.CancelledError):
            await self._say_last("cancelled", "cancelled")
        else:
            await self._say_last("failed", str(exc) or type(exc).__name__)

    async def _complete_quietly(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._complete()
        except (AgentSseError, TimeoutError) as failure:
            log.warning(
                "session %s: the end of call %s is not published: %s", self.session_id, self.tool_call_id, failure
            )

    async def _complete(self) -> None:
        if not self._completed:
            await self._status("completed")
            self._completed = True
        try:
            await self._result(self.result, success=True)
        except InvalidEvent as error:
            # The tool did run: its card must close. Who called learns that the result could not be shown.
            await self._result(None, success=True, error=f"the result cannot be shown: {error}")
            raise

    async def _end_unapproved(self, decision: PermissionDecision) -> None:
        status = "denied" if decision.outcome == "denied" else "cancelled"
        await self._status(status)
        await self._result(None, success=False, error=_why(decision))

    async def _say_last(self, status: str, error: str) -> None:
        """Publish an end beside an exception that is on its way; failing to must not hide that one."""
        error = error.encode("utf-8", "replace").decode()  # a file name's lone surrogates, which JSON cannot carry
        try:
            async with asyncio.timeout(LAST_WORDS):
                await self._status(status)
                await self._result(None, success=False, error=error[: events.MESSAGE_LIMIT])
        except (AgentSseError, TimeoutError) as failure:
            log.warning(
                "session %s: the end of call %s is not published: %s", self.session_id, self.tool_call_id, failure
            )

    async def _status(self, status: str, *, progress: dict[str, Any] | None = None) -> str:
        return await self._notifier.tool_status(
            self.session_id, self.tool_name, status, tool_call_id=self.tool_call_id, parameters=self.parameters,
            risk_level=self._risk_level, start_time=self._start_time,
            details={**self._details, "progress": progress} if progress is not None else self._details,
        )  # fmt: skip

    async def _result(self, result: object, *, success: bool, error: str | None = None) -> str:
        return await self._notifier.tool_result(
            self.session_id, self.tool_name, result, success=success, tool_call_id=self.tool_call_id, error=error,
            duration_ms=round((time.monotonic() - self._started) * 1000),
        )  # fmt: skip

    def _request(self) -> PermissionRequest:
        """Return the request; should this process die while it is open, the servers say what became of the call."""
        gone = events.tool_status(
            status="cancelled", tool_name=self.tool_name, tool_call_id=self.tool_call_id, parameters=self.parameters,
            risk_level=self._risk_level, start_time=self._start_time, details=self._details,
        )  # fmt: skip
        result = events.tool_result(
            tool_name=self.tool_name, tool_call_id=self.tool_call_id, result=None, success=False,
            error="the agent was lost before the tool could run",
        )  # fmt: skip
        return PermissionRequest(
            session_id=self.session_id, tool_name=self.tool_name, parameters=self.parameters,
            risk_level=self._risk_level, timeout=self._timeout, tool_call_id=self.tool_call_id, message=self._message,
            idempotency_key=self._key, orphan=(events.head(gone), events.head(result)),
        )  # fmt: skip


def _why(decision: PermissionDecision) -> str:
    return f"permission {decision.outcome}" + (f": {decision.reason}" if decision.reason else "")


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidEvent(f"{what} must be a finite number")
    return value
