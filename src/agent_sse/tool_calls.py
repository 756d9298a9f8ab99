"""One tool call as an async context manager: the state machine of protocol.md § 5, and the permission before it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agent_sse import events
from agent_sse.cancels import Cancellation
from agent_sse.decisions import SESSION_GONE, PermissionDecision, PermissionRequest
from agent_sse.errors import AgentSseError, InvalidEvent, PermissionDenied, ToolCallCancelled
from agent_sse.progress import Progress

if TYPE_CHECKING:
    from agent_sse.notifier import SimpleNotifier

log = logging.getLogger("agent_sse")

LAST_WORDS = 2.0  # s; how long a cancelled call may take to say so


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a call is asked for and shown; see :meth:`SimpleNotifier.tool_call`. ``timeout`` in seconds.

    ``shown``: the parameters as users see them (default: with secrets masked), ``truncated`` when they are cut;
    ``rule``: the policy's that asks;
    ``check_edit`` returns why edited parameters may not run, or None.
    """

    risk_level: str = "low"
    require_permission: bool = False
    tool_call_id: str | None = None
    timeout: float = 300.0
    message: str | None = None
    idempotency_key: str | None = None
    parent_tool_call_id: str | None = None
    server: str = ""
    server_identity: str = ""
    editable: bool = False
    schema: Mapping[str, Any] | None = None
    shown: object = None
    truncated: bool = False
    rule: str = ""
    check_edit: Callable[[Any], Awaitable[str | None]] | None = None


class ToolCall:
    """A call on its way: ``pending → executing → completed | failed | cancelled``, after a permission if asked.

    Attributes: ``tool_call_id``; ``parameters``, a copy of those that were given, in the block exactly those that were
    approved; ``decision``, the :class:`PermissionDecision` when one was asked for; ``result``, what the body sets and
    the ``tool_result`` carries.
    """

    def __init__(
        self, notifier: SimpleNotifier, session_id: str, tool_name: str, parameters: object, options: CallOptions
    ) -> None:
        self.session_id = session_id
        self.tool_name = tool_name
        # What the user is asked about must not change while he is asked.
        self.parameters: Any = json.loads(events.encode(parameters))
        call_id = "call_" + secrets.token_urlsafe(12) if options.tool_call_id is None else options.tool_call_id
        self.tool_call_id = events.check_name(call_id, "tool_call_id")
        self.decision: PermissionDecision | None = None
        self.result: object = None
        self._notifier = notifier
        self._options = options
        self._details: dict[str, Any] = {"cancellable": True}
        if options.server:
            self._details["server"] = events.check_name(options.server, "server")
        if options.parent_tool_call_id is not None:
            self._details["parent_tool_call_id"] = events.check_name(options.parent_tool_call_id, "parent_tool_call_id")
        self._shown = notifier.masker.mask(self.parameters) if options.shown is None else options.shown
        # What is hidden in the parameters must not come back in what the tool says of them.
        self.masker = notifier.masker.knowing(self.parameters)
        self._start_time = events.timestamp()
        self._started = time.monotonic()
        self._progress = Progress(self._publish_step)
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._cancellation: Cancellation | None = None
        self._end_watch: Callable[[], None] | None = None
        self._begun = False
        self._entered = False
        self._failure: str | None = None
        self._on_cancel_detached: Callable[[], None] | None = None

    async def progress(self, progress: float, *, total: float | None = None, message: str | None = None) -> str | None:
        """Publish how far the call is, in any unit; ``total`` in the same one. Returns the event's id.

        There is at most one such event in 100 ms: None when this one is held back, and goes out later if none comes
        after it. What goes backwards or repeats the last one is dropped.
        """
        if self._progress.offer(self._step(progress, total, message)):
            return await self._progress.publish_due()
        return None

    def report(self, progress: float, *, total: float | None = None, message: str | None = None) -> None:
        """Do as :meth:`progress` without waiting for anything; what cannot be published is logged."""
        if self._progress.offer(self._step(progress, total, message)):
            self._progress.start()

    def fail(self, error: str) -> None:
        """Let the block end as ``failed`` with this error and its ``result``, without raising an exception."""
        self._failure = error

    def _step(self, progress: float, total: float | None, message: str | None) -> dict[str, Any]:
        if not self._entered:
            raise InvalidEvent("progress belongs inside the call's block")
        step: dict[str, Any] = {"progress": _number(progress, "progress")}
        if total is not None:
            step["total"] = _number(total, "total")
        if message is not None:
            step["message"] = self.masker.mask_text(events.check_message(message, "message"))[: events.MESSAGE_LIMIT]
        return step

    async def _publish_step(self, step: Mapping[str, Any]) -> str:
        return await self._status("executing", progress=step)

    async def __aenter__(self) -> Self:
        if self._begun:
            raise InvalidEvent("a call's block can be entered once: make another call, which gets an id of its own")
        self._begun = True
        self._task = asyncio.current_task()
        assert self._task is not None  # noqa: S101 - for mypy: this is a coroutine, so a task runs it
        self._cancelling = self._task.cancelling()
        self._start_time, self._started = events.timestamp(), time.monotonic()
        self._end_watch = await self._notifier.watch_call(self.session_id, self.tool_call_id, self._on_cancel)
        try:
            if self._options.require_permission:
                await self._status("pending")
                await self._ask()
                await self._status("executing")
            else:  # a session's events keep their order
                await asyncio.gather(self._status("pending"), self._status("executing"))
        except BaseException as error:
            await self._not_begun(error)
            raise
        self._entered = True
        return self

    async def _ask(self) -> None:
        decision = self.decision = await self._notifier.ask(self._request(), on_pending=self._say_waiting)
        if not decision:
            raise PermissionDenied(decision)
        if decision.edited:
            await self._check_edit(decision)
            self._details["original_parameters"] = self._shown
            self._shown = self._notifier.masker.mask(decision.parameters)
        self.parameters = decision.parameters

    async def _check_edit(self, decision: PermissionDecision) -> None:
        check = self._options.check_edit
        why = None if check is None else await check(decision.parameters)
        if why is not None:
            self.decision = replace(
                decision, approved=False, outcome="denied", reason=why, resolved_by="policy", parameters=None
            )
            entry = {
                "kind": "refusal", "tool_call_id": self.tool_call_id, "tool_name": self.tool_name,
                "request_id": decision.request_id, "by": "policy", "resolved_by": "policy", "reason": why,
            }  # fmt: skip
            await self._notifier.audit(self.session_id, entry)
            raise PermissionDenied(self.decision)

    async def _say_waiting(self) -> None:
        await self._status("waiting_permission")

    async def _not_begun(self, error: BaseException) -> None:
        """Close the call's card: its tool does not run."""
        self._stop_watching()
        if isinstance(error, PermissionDenied):
            decision = error.decision
            # What is erased must not come back.
            if not (decision.resolved_by is None and decision.reason == SESSION_GONE):
                await self._end_unapproved(decision)
        else:
            # Cancelled, or Redis failed.
            await self._say_last("cancelled", "cancelled" if isinstance(error, asyncio.CancelledError) else str(error))
            self._raise_if_cancelled_by_user(error)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        self._stop_watching()
        if exc is None:
            ending = asyncio.create_task(self._complete(), name="agent-sse end of a call")
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                # The tool did run: that is said, once, before the cancellation goes on. A user's comes too late.
                await self._wait_quietly(ending)
                if not self._is_cancelled_by_user_only():
                    raise
        elif isinstance(exc, asyncio.CancelledError | ToolCallCancelled):
            said = self._cancellation
            await self._say_last("cancelled", f"cancelled by {said.by}" if said is not None else "cancelled")
            self._raise_if_cancelled_by_user(exc)
        else:
            self._is_cancelled_by_user_only()  # a user's cancel that the body made an error of is taken back too
            await self._say_last("failed", str(exc) or type(exc).__name__)

    def detach(self, on_cancel: Callable[[], None] | None = None) -> None:
        """Leave the block's task without leaving the block; :meth:`attach` goes on in another.

        ``on_cancel`` is called when a user cancels the call meanwhile.
        """
        self._task, self._on_cancel_detached = None, on_cancel

    def attach(self) -> None:
        """Go on in the current task. Raises ToolCallCancelled when a user cancelled the call meanwhile."""
        self._task, self._on_cancel_detached = asyncio.current_task(), None
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        if self._cancellation is not None:
            raise ToolCallCancelled(self._cancellation.by, self._cancellation.reason)

    # -- cancelled by a user ------------------------------------------------------------------------------------

    def _on_cancel(self, cancellation: Cancellation) -> None:
        if self._cancellation is None:
            self._cancellation = cancellation
            if self._task is not None:
                self._task.cancel()
            elif self._on_cancel_detached is not None:
                self._on_cancel_detached()

    def _stop_watching(self) -> None:
        if self._end_watch is not None:
            self._end_watch()
            self._end_watch = None

    def _raise_if_cancelled_by_user(self, error: BaseException) -> None:
        if self._is_cancelled_by_user_only() and isinstance(error, asyncio.CancelledError):
            assert self._cancellation is not None  # noqa: S101 - for mypy
            raise ToolCallCancelled(self._cancellation.by, self._cancellation.reason) from error

    def _is_cancelled_by_user_only(self) -> bool:
        # As asyncio.timeout does: what this call has cancelled, it takes back; a cancellation from outside goes on.
        if self._cancellation is None or self._task is None:
            return False
        return self._task.uncancel() <= self._cancelling

    async def _wait_quietly(self, ending: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS):
                await ending
        except (AgentSseError, TimeoutError) as failure:
            self._warn(failure)

    def _warn(self, failure: Exception) -> None:
        log.warning("session %s: the end of call %s is not published: %s", self.session_id, self.tool_call_id, failure)

    async def _complete(self) -> None:
        await self._progress.close()
        await self._status("completed" if self._failure is None else "failed")
        try:
            await self._result(self.result, success=self._failure is None, error=self._failure)
        except InvalidEvent as error:
            # The tool did run: its card must close. Who called learns that the result could not be shown.
            await self._result(None, success=self._failure is None, error=f"the result cannot be shown: {error}")
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
                await self._progress.close()
                await self._status(status)
                await self._result(None, success=False, error=error[: events.MESSAGE_LIMIT])
        except (AgentSseError, TimeoutError) as failure:
            self._warn(failure)

    async def _status(self, status: str, *, progress: Mapping[str, Any] | None = None) -> str:
        return await self._notifier.tool_status(
            self.session_id, self.tool_name, status, tool_call_id=self.tool_call_id, parameters=self._shown,
            risk_level=self._options.risk_level, start_time=self._start_time,
            details={**self._details, "progress": progress} if progress is not None else self._details,
        )  # fmt: skip

    async def _result(self, result: object, *, success: bool, error: str | None = None) -> str:
        return await self._notifier.tool_result(
            self.session_id, self.tool_name, self.masker.mask(result), success=success,
            tool_call_id=self.tool_call_id, error=None if error is None else self.masker.mask_text(error),
            duration_ms=round((time.monotonic() - self._started) * 1000),
        )  # fmt: skip

    def _request(self) -> PermissionRequest:
        """Return the request; should this process die while it is open, the servers say what became of the call."""
        options = self._options
        gone = events.tool_status(
            status="cancelled", tool_name=self.tool_name, tool_call_id=self.tool_call_id, parameters=self._shown,
            risk_level=options.risk_level, start_time=self._start_time, details=self._details,
        )  # fmt: skip
        result = events.tool_result(
            tool_name=self.tool_name, tool_call_id=self.tool_call_id, result=None, success=False,
            error="the agent was lost before the tool could run",
        )  # fmt: skip
        return PermissionRequest(
            session_id=self.session_id, tool_name=self.tool_name, parameters=self.parameters,
            risk_level=options.risk_level, timeout=options.timeout, tool_call_id=self.tool_call_id,
            message=options.message, idempotency_key=options.idempotency_key,
            orphan=(events.head(gone), events.head(result)), server=options.server, editable=options.editable,
            schema=options.schema, shown=self._shown, rule=options.rule, server_identity=options.server_identity,
            truncated=options.truncated,
        )  # fmt: skip


def _why(decision: PermissionDecision) -> str:
    return f"permission {decision.outcome}" + (f": {decision.reason}" if decision.reason else "")


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidEvent(f"{what} must be a finite number")
    return value
