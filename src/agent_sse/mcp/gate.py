"""One gate for every way in: policy, permission, status, progress and result of one MCP tool call.

Knows no transport: the client wrapper, the server's middleware and the guard all call tools through it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio

from agent_sse import events
from agent_sse.decisions import PermissionDecision, sha256
from agent_sse.errors import (
    AgentSseError,
    ConfigurationError,
    InvalidEvent,
    PermissionDenied,
    RedisUnavailable,
    ToolCallCancelled,
)
from agent_sse.masking import Masker
from agent_sse.notifier import SimpleNotifier
from agent_sse.policy import DEFAULT_POLICY, Policy, Verdict
from agent_sse.policy_file import PolicyFile
from agent_sse.shorten import shorten
from agent_sse.tool_calls import CallOptions, ToolCall

log = logging.getLogger("agent_sse")

INLINE = 64 * 1024  # bytes of arguments that the policy judges in the event loop; a thread takes larger ones


@dataclass(frozen=True, slots=True)
class Tool:
    """What a server says of one of its tools, in `tools/list` (JSON as on the wire). Untrusted."""

    name: str
    annotations: Mapping[str, Any] | None = None
    input_schema: Mapping[str, Any] | None = None


class Gate:
    """Decides about and reports the calls of one server's tools in one session.

    ``server`` is the name that the policy's rules and the user see; a remembered answer to one ``server_identity``
    holds for no other one of the same name. ``trusted`` tells whether its annotations may lower a tool's risk;
    ``policy`` is a policy, a file (or its path) that is read again when it changes, or None for the default;
    ``timeout`` (s) is for each permission. Raises :class:`InvalidEvent` for a server's name that no event can carry,
    and :class:`ConfigurationError` for a file that cannot be used.
    """

    def __init__(
        self,
        notifier: SimpleNotifier,
        session_id: str,
        *,
        server: str,
        server_identity: str = "",
        policy: Policy | PolicyFile | str | os.PathLike[str] | None = None,
        trusted: bool = False,
        timeout: float = 300.0,
    ) -> None:
        self.notifier = notifier
        self.session_id = session_id
        self.server = events.check_name(server, "server")
        self.server_identity = server_identity
        self.timeout = timeout
        self._policy = PolicyFile(policy) if isinstance(policy, str | os.PathLike) else policy
        self._trusted = trusted

    def call(self, tool: Tool, arguments: Mapping[str, Any] | None, *, tool_call_id: str | None = None) -> GatedCall:
        """Return the call as an async context manager; its body runs only when the call may.

        Entering raises :class:`~agent_sse.errors.PermissionDenied` when policy or user refuse (also: expired,
        withdrawn). A cancel from the browser cancels the body (``CancelledError`` inside it) and leaving then raises
        :class:`~agent_sse.errors.ToolCallCancelled`. An exception of the body is reported as ``failed`` and goes on;
        cancelling the task from outside is reported as ``cancelled`` and goes on. Raises :class:`InvalidEvent` for
        arguments that are not JSON.
        """
        return GatedCall(self, tool, arguments or {}, tool_call_id or "call_" + secrets.token_urlsafe(12))

    async def decide(self, tool: Tool, arguments: Mapping[str, Any], size: int) -> Verdict:
        """Return what the policy says of a call; ``size`` of its arguments in bytes."""
        policy = self._policy.current() if isinstance(self._policy, PolicyFile) else self._policy or DEFAULT_POLICY

        def judge() -> Verdict:
            return policy.decide(
                server=self.server, tool=tool.name, arguments=arguments, annotations=tool.annotations,
                trusted=self._trusted,
            )  # fmt: skip

        return judge() if size <= INLINE else await asyncio.to_thread(judge)

    def shown(self, value: object, masker: Masker) -> object:
        """Return a value as users see it: secrets masked, and cut when an event could not hold it."""
        limit = self.notifier.settings.max_event_bytes // 3
        return shorten(value, lambda item: len(events.encode(item)), limit, masker.mask)


class GatedCall:
    """A call on its way; use it as an async context manager. ``arguments`` are set inside.

    ``arguments`` is exactly what was approved, a fresh copy: call the tool with this and nothing else.
    """

    def __init__(self, gate: Gate, tool: Tool, arguments: Mapping[str, Any], tool_call_id: str) -> None:
        self.tool_call_id = tool_call_id
        self._gate = gate
        self._tool = tool
        self._frozen = events.encode(arguments)
        self._digest = sha256(arguments)
        self._call: ToolCall | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Return a fresh copy of what was approved, checked against its SHA-256."""
        arguments: dict[str, Any] = json.loads(self._frozen)
        if self._call is None or sha256(arguments) != self._digest:
            raise AgentSseError("these arguments were not approved; the tool must not run")
        return arguments

    async def __aenter__(self) -> Self:
        # In a task of its own: a cancelled scope of anyio's cancels every await in it, again and again, and what waits
        # for the user has to take its question back.
        entering = asyncio.create_task(self._enter(), name="agent-sse gate")
        try:
            await asyncio.wait({entering})
        except asyncio.CancelledError as cancelled:
            entering.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({entering})
                if not entering.cancelled() and entering.exception() is None:
                    await self.__aexit__(type(cancelled), cancelled, cancelled.__traceback__)
            raise
        entering.result()
        try:
            self.attach()
        except ToolCallCancelled as cancelled_by_user:
            await self.__aexit__(type(cancelled_by_user), cancelled_by_user, cancelled_by_user.__traceback__)
            raise
        return self

    async def _enter(self) -> None:
        arguments: dict[str, Any] = json.loads(self._frozen)
        verdict = await self._gate.decide(self._tool, arguments, len(self._frozen))
        shown = self._gate.shown(arguments, self._gate.notifier.masker)
        if verdict.decision == "deny":
            await self._deny(verdict, shown)
        call = self._tool_call(verdict, arguments, shown)
        if verdict.decision == "allow":
            await self._enter_recorded(call, self._record(verdict, shown, "approved"))
        else:
            await call.__aenter__()
            if call.decision is not None and call.decision.edited:
                self._frozen, self._digest = events.encode(call.parameters), sha256(call.parameters)
        self._call = call

    async def _enter_recorded(self, call: ToolCall, record: Coroutine[Any, Any, None]) -> None:
        """Enter the call beside writing the audit, which is there before the tool can run."""
        recording = asyncio.create_task(record)
        try:
            await call.__aenter__()
        except BaseException:
            await asyncio.gather(recording, return_exceptions=True)
            raise
        try:
            await recording
        except BaseException as error:
            await call.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        call, self._call = self._call, None
        if call is not None:
            with anyio.CancelScope(shield=True):
                await call.__aexit__(exc_type, exc, traceback)

    def detach(self, on_cancel: Callable[[], None] | None = None) -> None:
        """Leave the current task with the call still open; :meth:`attach` goes on in another.

        ``on_cancel`` is called when a user cancels the call meanwhile.
        """
        if self._call is not None:
            self._call.detach(on_cancel)

    def attach(self) -> None:
        """Go on in the current task. Raises ToolCallCancelled when a user cancelled the call meanwhile."""
        if self._call is not None:
            self._call.attach()

    def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the call is. Never blocks or raises: it is coalesced and published by another task."""
        if self._call is None or not _is_number(progress):
            return
        self._call.report(
            progress, total=total if _is_number(total) else None,
            message=_clean(message)[: events.MESSAGE_LIMIT] if isinstance(message, str) else None,
        )  # fmt: skip

    def finish(self, result: Mapping[str, Any]) -> None:
        """Set the outcome: a ``CallToolResult`` as JSON on the wire; ``isError`` makes the call ``failed``.

        Never raises: the tool has run, whatever it returned. What no event can hold is shown as a note about it.
        """
        if self._call is None:
            return
        try:
            shown = self._gate.shown(result, self._call.masker)
            events.encode(shown)
        except InvalidEvent as error:
            log.warning("the result of call %s cannot be shown: %s", self.tool_call_id, error)
            shown = {"content": [{"type": "text", "text": f"(this result cannot be shown: {error})"}]}
        self._call.result = shown
        if result.get("isError") is True:
            self._call.fail(_text(shown) or "the tool failed without a message")

    def _tool_call(self, verdict: Verdict, arguments: dict[str, Any], shown: object) -> ToolCall:
        whole = sha256(shown) == sha256(self._gate.notifier.masker.mask(arguments))

        async def check_edit(edited: Any) -> str | None:
            again = await self._gate.decide(self._tool, edited, len(events.encode(edited)))
            return _against_edit(verdict, again)

        options = CallOptions(
            risk_level=verdict.risk_level, require_permission=verdict.decision == "ask",
            tool_call_id=self.tool_call_id, server=self._gate.server, timeout=verdict.timeout or self._gate.timeout,
            editable=verdict.editable and whole, schema=self._tool.input_schema, shown=shown, rule=verdict.rule,
            check_edit=check_edit, truncated=not whole, server_identity=self._gate.server_identity,
            message=_clean(verdict.reason)[: events.MESSAGE_LIMIT] if verdict.reason else None,
        )  # fmt: skip
        return ToolCall(self._gate.notifier, self._gate.session_id, self._tool.name, arguments, options)

    async def _deny(self, verdict: Verdict, shown: object) -> None:
        notifier, session, name = self._gate.notifier, self._gate.session_id, self._tool.name
        reason = verdict.reason or "not allowed"
        details = {"server": self._gate.server}
        status: Any = {"parameters": shown, "risk_level": verdict.risk_level, "tool_call_id": self.tool_call_id}
        await asyncio.gather(
            self._record(verdict, shown, "denied"),
            notifier.tool_status(session, name, "pending", details=details, **status),
            notifier.tool_status(session, name, "denied", details=details, **status),
            notifier.tool_result(
                session, name, None, success=False, tool_call_id=self.tool_call_id, error=f"denied by policy: {reason}"
            ),
        )
        raise PermissionDenied(PermissionDecision(False, reason, "denied", f"policy:{verdict.rule}", ""))

    async def _record(self, verdict: Verdict, shown: object, outcome: str) -> None:
        entry = {
            "kind": "decision", "tool_call_id": self.tool_call_id, "tool_name": self._tool.name,
            "server": self._gate.server, "risk_level": verdict.risk_level, "digest": self._digest,
            "parameters": shown, "outcome": outcome, "by": "policy", "rule": verdict.rule,
            "resolved_by": "policy", "reason": verdict.reason,
        }  # fmt: skip
        await self._gate.notifier.audit(self._gate.session_id, entry)


def _against_edit(asked: Verdict, edited: Verdict) -> str | None:
    """Return why edited parameters may not run: the user was not asked about what the policy makes of them."""
    if edited.decision == "deny":
        return f"policy, {edited.rule}: {edited.reason or 'denied'}"
    rank = events.RISK_LEVELS.index
    if rank(edited.risk_level) > rank(asked.risk_level):
        return f"policy, {edited.rule}: the edit makes it {edited.risk_level}, and {asked.risk_level} was asked about"
    if edited.decision == "ask" and not edited.editable:
        return f"policy, {edited.rule}: nobody may edit parameters into this; ask for it as it is"
    return None


def refusal(error: AgentSseError) -> dict[str, Any]:
    """Return the ``CallToolResult`` (JSON) that tells the model why a call did not run, or was interrupted."""
    return {"content": [{"type": "text", "text": refusal_text(error)}], "isError": True}


def refusal_text(error: AgentSseError) -> str:
    """Return what the model is told: what happened, by whom, with the user's own words."""
    if isinstance(error, ToolCallCancelled):
        return "The user cancelled this call while it ran." + _said(error.reason)
    if isinstance(error, RedisUnavailable | ConfigurationError):
        return "The tool was not run: the service that asks the user cannot be reached. Try again later."
    if not isinstance(error, PermissionDenied):
        return f"The tool was not run: {error}"
    decision = error.decision
    if decision.outcome == "expired":
        return "The tool was not run: nobody answered the permission request in time."
    if decision.outcome == "cancelled" and decision.resolved_by not in {None, "agent", "lease"}:
        return "The tool was not run: the user cancelled the call." + _said(decision.reason)
    if decision.outcome == "cancelled":
        return "The tool was not run: the permission request was withdrawn." + _said(decision.reason)
    if (decision.resolved_by or "").startswith("policy"):
        return "The tool was not run: a policy denies this call." + _said(decision.reason)
    return "The tool was not run: the user denied permission." + _said(decision.reason)


def _said(reason: str | None) -> str:
    return f" Reason: {reason}" if reason else ""


def _text(result: object) -> str:
    content = result.get("content") if isinstance(result, Mapping) else None
    parts = [part.get("text") for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return "\n".join(part for part in parts if isinstance(part, str))[: events.MESSAGE_LIMIT]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # lone surrogates, which JSON cannot carry


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
