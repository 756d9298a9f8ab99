"""`SimpleNotifier`: what an agent's process imports to say what its tools do and to ask before a risky one runs.

Never imports the web layer. protocol.md § 8 is its contract.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from agent_sse import events
from agent_sse.audit import Audit
from agent_sse.backend import Backend
from agent_sse.cancels import Cancels, OnCancel
from agent_sse.decisions import PermissionDecision, PermissionRequest
from agent_sse.errors import AgentSseError, ConfigurationError, InvalidEvent, RedisUnavailable, SessionOwned
from agent_sse.keys import check_session_id
from agent_sse.masking import Masker
from agent_sse.permissions import OnPending, Permissions
from agent_sse.publisher import Publisher
from agent_sse.redis_url import find_redis
from agent_sse.registry import Registry
from agent_sse.settings import ExplicitSettings, RedisSettings, Settings, describe
from agent_sse.store import Publish, Store
from agent_sse.tool_calls import CallOptions, ToolCall
from agent_sse.wakes import Wakes

REMEMBERED_CALLS = 10_000  # unfinished calls whose start time is remembered

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Parts:
    backend: Backend
    store: Store
    publisher: Publisher
    permissions: Permissions
    cancels: Cancels
    audit: Audit


class SimpleNotifier:
    """Publishes tool events of any number of sessions and asks for permissions, over one ordered way to Redis.

    Use it as an async context manager, or call :meth:`aclose` at the end; one per process and event loop is enough.
    Every publishing method returns the event's id (``"<ms>-<seq>"``) once Redis' primary has executed it, or raises:
    :class:`InvalidEvent` (with :class:`EventTooLarge`) and :class:`QueueFull` when nothing was sent,
    :class:`PublishTimeout` when Redis did not acknowledge within ``publish_timeout`` and the outcome is unknown,
    :class:`RedisRefused` when Redis answered with an error. An event is never stored twice.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self.masker = Masker(settings.mask_keys)
        self._parts: _Parts | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._starts: OrderedDict[tuple[str, str], str] = OrderedDict()

    @classmethod
    def from_url(cls, url: str, **settings: Any) -> Self:
        """Return a notifier for a Redis URL; ``settings`` are those of the service in lower case (``key_prefix=…``).

        Raises :class:`ConfigurationError` for an unknown or wrong one.
        """
        try:
            return cls(ExplicitSettings(redis_url=url, **settings))
        except ValidationError as error:
            raise ConfigurationError(describe(error)) from None

    @classmethod
    def from_env(cls, *, env_file: Path | None = Path(".env"), **settings: Any) -> Self:
        """Return a notifier with the service's ``AGENT_SSE_*`` environment variables and those of ``env_file``.

        Without ``AGENT_SSE_REDIS_URL`` it uses the embedded Valkey of the service that runs for this user. ``settings``
        win over the environment, and that over the file. ``env_file=None`` reads none: what others start in a folder of
        their choice must not believe what lies there. Raises :class:`ConfigurationError` for an unknown or wrong one.
        """
        unknown = sorted(settings.keys() - Settings.model_fields.keys())
        if unknown:  # in the environment and in `.env` others may stand, here it is a misspelt one
            raise ConfigurationError(f"there is no setting {', '.join(unknown)}")
        try:
            return cls(RedisSettings(_env_file=env_file, **settings))
        except ValidationError as error:
            raise ConfigurationError(describe(error)) from None

    async def __aenter__(self) -> Self:
        await self._ready()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Wait until what is being published is acknowledged or has failed, then close the connections.

        A closed notifier stays closed: using it again raises. Closing it again does nothing.
        """
        self._closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.publisher.aclose()
            await parts.cancels.aclose()
            await parts.permissions.aclose()
            await parts.backend.aclose()

    async def connect(self) -> None:
        """Find Redis and connect now, rather than with the first event.

        Raises :class:`ConfigurationError`, :class:`RedisUnavailable`, :class:`RedisRefused`.
        """
        await (await self._ready()).backend.connect()

    async def _ready(self) -> _Parts:
        if self._parts is None:
            async with self._starting:
                if self._closed:
                    raise AgentSseError("this notifier is closed; make a new one")
                if self._parts is None:
                    self._parts = self._made(await find_redis(self.settings))
        return self._parts

    def _made(self, url: str) -> _Parts:
        # Half of it: a connection that went silent leaves time for a try on another one.
        backend = Backend(url, timeout=self.settings.publish_timeout / 2)
        store, wakes = Store(backend, self.settings), Wakes(backend)
        registry = Registry(store)
        return _Parts(
            backend, store, Publisher(store, timeout=self.settings.publish_timeout),
            Permissions(store, wakes, registry), Cancels(store, wakes), Audit(store, registry),
        )  # fmt: skip

    # -- sessions -----------------------------------------------------------------------------------------------

    async def open_session(self, session_id: str, owner: str) -> None:
        """Register who may use the session. Raises :class:`SessionOwned` if another owner did; an owner is set once."""
        check_session_id(session_id)
        events.check_name(owner, "owner (the token's `sub`)")
        store = (await self._ready()).store
        if not await self._patiently(lambda: store.open(session_id, owner)):
            raise SessionOwned(f"session {session_id} belongs to another owner")

    async def close_session(self, session_id: str) -> None:
        """Erase the session: its events, requests, owner. Open streams end with ``session_closed``."""
        check_session_id(session_id)
        store = (await self._ready()).store
        await self._patiently(lambda: store.close(session_id))
        for key in [key for key in self._starts if key[0] == session_id]:
            del self._starts[key]

    async def _patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat what a repetition does not change until Redis has answered, or ``publish_timeout`` is over."""
        loop = asyncio.get_running_loop()
        until, failures = loop.time() + self.settings.publish_timeout, 0
        while True:
            try:
                return await operation()
            except RedisUnavailable:
                failures += 1
                delay = random.uniform(0, min(1.0, 0.02 * 2**failures))
                if loop.time() + delay >= until:
                    raise
                await asyncio.sleep(delay)

    # -- events -------------------------------------------------------------------------------------------------

    async def tool_status(
        self,
        session_id: str,
        tool_name: str,
        status: str,
        *,
        tool_call_id: str | None = None,
        parameters: object = None,
        risk_level: str = "low",
        start_time: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish a ``tool_status``.

        ``status`` is one of pending, waiting_permission, executing, completed, failed, cancelled, denied; transitions
        are the caller's affair. Without a ``tool_call_id`` calls of one tool count as one call. ``start_time``
        (ISO 8601) defaults to the time of the call's first status; ``details`` are added to those of the guide.
        """
        call_id = tool_name if tool_call_id is None else tool_call_id
        at = events.timestamp()
        # Before anything is remembered of the call.
        check_session_id(session_id)
        terminal = events.check_status(status) in events.TERMINAL
        events.check_name(call_id, "tool_call_id")
        event = events.tool_status(
            status=status, tool_name=tool_name, tool_call_id=call_id,
            parameters={} if parameters is None else self.masker.mask(parameters), risk_level=risk_level,
            start_time=self._start_of(session_id, call_id, terminal, at) if start_time is None else start_time,
            details=details if not details else self.masker.mask(details), at=at,
        )  # fmt: skip
        return await self._publish(session_id, event, "status", call_id, terminal=terminal)

    def _start_of(self, session_id: str, call_id: str, terminal: bool, at: str) -> str:
        key = (session_id, call_id)
        if terminal:
            return self._starts.pop(key, at)
        start = self._starts.setdefault(key, at)
        if len(self._starts) > REMEMBERED_CALLS:
            self._starts.popitem(last=False)
        return start

    async def tool_result(
        self,
        session_id: str,
        tool_name: str,
        result: object,
        *,
        success: bool = True,
        tool_call_id: str | None = None,
        error: str | None = None,
        duration_ms: int | None = None,
    ) -> str:
        """Publish a ``tool_result``."""
        call_id = tool_name if tool_call_id is None else tool_call_id
        event = events.tool_result(
            tool_name=tool_name, tool_call_id=call_id, result=self.masker.mask(result), success=success,
            error=self.masker.mask_text(error) if isinstance(error, str) else error, duration_ms=duration_ms,
        )  # fmt: skip
        return await self._publish(session_id, event, "result", call_id)

    async def clear_result(self, session_id: str, tool_call_id: str | None = None) -> str:
        """Publish a ``result_cleared``; without a ``tool_call_id`` it clears whichever result is shown."""
        if tool_call_id is not None:
            events.check_name(tool_call_id, "tool_call_id")
        return await self._publish(session_id, events.result_cleared(tool_call_id), "cleared", tool_call_id or "")

    async def error(self, session_id: str, message: str, *, code: str = "error") -> str:
        """Publish an ``error``."""
        event = events.error(message, code)
        event["message"] = self.masker.mask_text(event["message"])
        return await self._publish(session_id, event, "other", "")

    async def _publish(
        self, session_id: str, event: Mapping[str, Any], kind: events.EventKind, call_id: str, *, terminal: bool = False
    ) -> str:
        check_session_id(session_id)
        payload = events.bounded(events.encode(event), self.settings.max_event_bytes)
        publisher = (self._parts or await self._ready()).publisher
        return await publisher.publish(Publish(session_id, payload, kind, call_id, terminal))

    # -- permissions and calls ----------------------------------------------------------------------------------

    async def request_permission(
        self,
        session_id: str,
        tool_name: str,
        parameters: object = None,
        risk_level: str = "high",
        *,
        timeout: float = 300.0,
        tool_call_id: str | None = None,
        message: str | None = None,
        idempotency_key: str | None = None,
        server: str = "",
        editable: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> PermissionDecision:
        """Ask the user and wait for the decision, which is truthy only when approved.

        Run the tool with the decision's ``parameters`` then. With ``editable`` the user may edit them, as far as they
        fit ``schema`` (JSON Schema); a remembered answer for a tool of this ``server`` decides without asking.

        ``timeout`` in seconds runs from now, on Redis' clock. Cancelling the task withdraws the request. With an
        ``idempotency_key`` the request outlives this process until its deadline, and asking again with the same key,
        tool and parameters gets it back. Raises :class:`IdempotencyConflict`, :class:`TooManyRequestsPending`,
        :class:`InvalidEvent`, :class:`RedisUnavailable`.
        """
        return await self.ask(
            PermissionRequest(
                session_id=session_id, tool_name=tool_name, parameters={} if parameters is None else parameters,
                risk_level=risk_level, timeout=_seconds(timeout),
                tool_call_id=tool_name if tool_call_id is None else tool_call_id,
                message=message, idempotency_key=idempotency_key, server=server, editable=editable, schema=schema,
            )
        )  # fmt: skip

    async def ask(self, request: PermissionRequest, *, on_pending: OnPending | None = None) -> PermissionDecision:
        """Ask with a :class:`PermissionRequest`; see :meth:`request_permission` and :meth:`Permissions.ask`."""
        check_session_id(request.session_id)
        return await (await self._ready()).permissions.ask(request, on_pending=on_pending)

    async def audit(self, session_id: str, entry: Mapping[str, Any]) -> str:
        """Append an entry to the session's audit and return its id; for decisions that are made here."""
        check_session_id(session_id)
        return await (await self._ready()).audit.append(session_id, entry)

    async def watch_call(self, session_id: str, tool_call_id: str, on_cancel: OnCancel) -> Callable[[], None]:
        """Call ``on_cancel`` when a user cancels the call. Returns what ends the watching."""
        return (self._parts or await self._ready()).cancels.watch(session_id, tool_call_id, on_cancel)

    def tool_call(
        self,
        session_id: str,
        tool_name: str,
        parameters: object = None,
        *,
        risk_level: str = "low",
        require_permission: bool = False,
        tool_call_id: str | None = None,
        timeout: float = 300.0,
        message: str | None = None,
        idempotency_key: str | None = None,
        parent_tool_call_id: str | None = None,
        server: str = "",
        editable: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> ToolCall:
        """Return an async context manager around one tool call, which publishes each of its states.

        The body runs only when nothing has to be asked or the user approved; otherwise
        :class:`~agent_sse.errors.PermissionDenied` is raised before it. Run the tool with ``call.parameters``, exactly
        what was approved, and set ``call.result``. A user's cancel interrupts the body, and leaving the block raises
        :class:`~agent_sse.errors.ToolCallCancelled`.

        ``timeout`` (seconds) is for the permission, ``message`` for the user, ``server`` whose tool it is. ``editable``
        lets the user edit the parameters in the answer, as far as they fit ``schema`` (JSON Schema).
        """
        check_session_id(session_id)
        options = CallOptions(
            risk_level=risk_level, require_permission=require_permission, tool_call_id=tool_call_id,
            timeout=_seconds(timeout), message=message, idempotency_key=idempotency_key,
            parent_tool_call_id=parent_tool_call_id, server=server, editable=editable, schema=schema,
        )  # fmt: skip
        return ToolCall(self, session_id, tool_name, {} if parameters is None else parameters, options)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidEvent("timeout must be a number of seconds")
    return float(value)
