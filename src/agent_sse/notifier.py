"""`SimpleNotifier`: what an agent's process imports to say what its tools do and to ask before a risky one runs.

Never imports the web layer. protocol.md § 8 is its contract.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent_sse import events
from agent_sse.backend import Backend
from agent_sse.errors import AgentSseError, ConfigurationError, InvalidEvent, RedisUnavailable, SessionOwned
from agent_sse.keys import check_session_id
from agent_sse.permissions import PermissionDecision, PermissionRequest, Permissions
from agent_sse.publisher import Publisher
from agent_sse.redis_url import find_redis
from agent_sse.settings import RedisSettings, Settings, describe
from agent_sse.store import Publish, Store
from agent_sse.tool_calls import ToolCall

REMEMBERED_CALLS = 10_000  # unfinished calls whose start time is remembered

T = TypeVar("T")


class _Explicit(Settings):
    """The service's settings, from keyword arguments only; a misspelt one is an error."""

    model_config = SettingsConfigDict(extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


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
        self._parts: tuple[Backend, Store, Publisher, Permissions] | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._starts: OrderedDict[tuple[str, str], str] = OrderedDict()

    @classmethod
    def from_url(cls, url: str, **settings: Any) -> Self:
        """Return a notifier for a Redis URL; ``settings`` are those of the service in lower case (``key_prefix=…``).

        Raises :class:`ConfigurationError` for an unknown or wrong one.
        """
        try:
            return cls(_Explicit(redis_url=url, **settings))
        except ValidationError as error:
            raise ConfigurationError(describe(error)) from None

    @classmethod
    def from_env(cls, **settings: Any) -> Self:
        """Return a notifier with the service's ``AGENT_SSE_*`` environment variables and ``.env``.

        Without ``AGENT_SSE_REDIS_URL`` it uses the embedded Valkey of the service that runs for this user. ``settings``
        win over the environment. Raises :class:`ConfigurationError` for an unknown or wrong one.
        """
        unknown = sorted(settings.keys() - Settings.model_fields.keys())
        if unknown:  # in the environment and in `.env` others may stand, here it is a misspelt one
            raise ConfigurationError(f"there is no setting {', '.join(unknown)}")
        try:
            return cls(RedisSettings(**settings))
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
            backend, _, publisher, permissions = parts
            await publisher.aclose()
            await permissions.aclose()
            await backend.aclose()

    async def _ready(self) -> tuple[Backend, Store, Publisher, Permissions]:
        if self._parts is None:
            async with self._starting:
                if self._closed:
                    raise AgentSseError("this notifier is closed; make a new one")
                if self._parts is None:
                    url = await find_redis(self.settings)
                    # Half of it: a connection that went silent leaves time for a try on another one.
                    backend = Backend(url, timeout=self.settings.publish_timeout / 2)
                    store = Store(backend, self.settings)
                    publisher = Publisher(store, timeout=self.settings.publish_timeout)
                    self._parts = (backend, store, publisher, Permissions(store))
        return self._parts

    # -- sessions -----------------------------------------------------------------------------------------------

    async def open_session(self, session_id: str, owner: str) -> None:
        """Register who may use the session. Raises :class:`SessionOwned` if another owner did; an owner is set once."""
        check_session_id(session_id)
        events.check_name(owner, "owner (the token's `sub`)")
        _, store, _, _ = await self._ready()
        if not await self._patiently(lambda: store.open(session_id, owner)):
            raise SessionOwned(f"session {session_id} belongs to another owner")

    async def close_session(self, session_id: str) -> None:
        """Erase the session: its events, requests, owner. Open streams end with ``session_closed``."""
        check_session_id(session_id)
        _, store, _, _ = await self._ready()
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
            parameters={} if parameters is None else parameters, risk_level=risk_level,
            start_time=self._start_of(session_id, call_id, terminal, at) if start_time is None else start_time,
            details=details, at=at,
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
            tool_name=tool_name, tool_call_id=call_id, result=result, success=success, error=error,
            duration_ms=duration_ms,
        )  # fmt: skip
        return await self._publish(session_id, event, "result", call_id)

    async def clear_result(self, session_id: str, tool_call_id: str | None = None) -> str:
        """Publish a ``result_cleared``; without a ``tool_call_id`` it clears whichever result is shown."""
        if tool_call_id is not None:
            events.check_name(tool_call_id, "tool_call_id")
        return await self._publish(session_id, events.result_cleared(tool_call_id), "cleared", tool_call_id or "")

    async def error(self, session_id: str, message: str, *, code: str = "error") -> str:
        """Publish an ``error``."""
        return await self._publish(session_id, events.error(message, code), "other", "")

    async def _publish(
        self, session_id: str, event: Mapping[str, Any], kind: events.EventKind, call_id: str, *, terminal: bool = False
    ) -> str:
        check_session_id(session_id)
        payload = events.bounded(events.encode(event), self.settings.max_event_bytes)
        publisher = (self._parts or await self._ready())[2]
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
    ) -> PermissionDecision:
        """Ask the user and wait for the decision, which is truthy only when approved.

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
                message=message, idempotency_key=idempotency_key,
            )
        )  # fmt: skip

    async def ask(self, request: PermissionRequest) -> PermissionDecision:
        """Ask with a :class:`PermissionRequest`; see :meth:`request_permission`."""
        check_session_id(request.session_id)
        return await (await self._ready())[3].ask(request)

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
    ) -> ToolCall:
        """Return an async context manager around one tool call, which publishes each of its states.

        The body runs only when nothing has to be asked or the user approved; otherwise
        :class:`~agent_sse.errors.PermissionDenied` is raised before it. Set ``call.result`` in the body. ``timeout``
        (seconds) is for the permission.
        """
        check_session_id(session_id)
        return ToolCall(
            self, session_id, tool_name, {} if parameters is None else parameters, risk_level=risk_level,
            require_permission=require_permission, tool_call_id=tool_call_id, timeout=_seconds(timeout),
            message=message, idempotency_key=idempotency_key, parent_tool_call_id=parent_tool_call_id,
        )  # fmt: skip


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidEvent("timeout must be a number of seconds")
    return float(value)
