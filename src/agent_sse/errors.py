"""Every error this package raises on purpose. Knows no HTTP framework; `routes` maps these to responses.

The tree::

    AgentSseError
    ├── ConfigurationError          a setting is missing or wrong
    ├── InvalidEvent                what cannot be an event: bad type, NaN, not JSON
    │   ├── InvalidSessionId
    │   └── EventTooLarge           names size and limit
    ├── RedisUnavailable            Redis is away, loading, failing over
    │   └── PublishTimeout          not acknowledged within publish_timeout; the outcome is unknown
    ├── RedisRefused                Redis answered with an error that a retry does not mend
    ├── QueueFull                   more publishes are waiting than this notifier may hold
    ├── SessionOwned                open_session by another owner
    ├── PermissionDenied            tool_call(require_permission=True) was not approved
    ├── ToolCallCancelled           a user cancelled the running call
    ├── SchemaUnusable              a tool's JSON Schema with which nothing can be checked
    ├── IdempotencyConflict         one idempotency key, two different requests
    ├── TooManyRequestsPending      a session has as many open permission requests as it may
    └── ApiError                    what an HTTP client is told: status, code, message
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_sse.permissions import PermissionDecision


class AgentSseError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(AgentSseError):
    """A setting is missing or wrong; the message says which, and what to do."""


class InvalidEvent(AgentSseError, ValueError):
    """What was to be published cannot be an event; nothing was stored."""


class InvalidSessionId(InvalidEvent):
    """A session id does not match ``^[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}$``."""


class EventTooLarge(InvalidEvent):
    """An event's JSON is larger than ``MAX_EVENT_BYTES``; nothing was stored.

    Attributes: ``size`` and ``limit``, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the event is {size} bytes of JSON, the limit is {limit} (AGENT_SSE_MAX_EVENT_BYTES): "
            "send a reference or a summary instead"
        )
        self.size = size
        self.limit = limit


class RedisUnavailable(AgentSseError):
    """Redis cannot be reached or cannot serve now; trying again later may help."""


class PublishTimeout(RedisUnavailable):
    """Redis did not acknowledge within ``publish_timeout``.

    ``sent`` is False when the event never left this process; otherwise the
    outcome is unknown: it may have been stored.
    """

    def __init__(self, seconds: float, *, sent: bool) -> None:
        outcome = "the outcome is unknown: it may have been stored" if sent else "it was not sent"
        super().__init__(f"Redis did not acknowledge the event within {seconds:g} s; {outcome}")
        self.sent = sent


class RedisRefused(AgentSseError):
    """Redis answered with an error that trying again does not mend (out of memory, no permission)."""


class QueueFull(AgentSseError):
    """More publishes wait for Redis than this notifier may hold; nothing was stored."""


class SessionOwned(AgentSseError):
    """The session was opened by another owner; an owner is set once."""


class PermissionDenied(AgentSseError):
    """A tool call was not approved, so its body did not run.

    Attributes: ``decision``, the :class:`~agent_sse.permissions.PermissionDecision`.
    """

    def __init__(self, decision: PermissionDecision) -> None:
        super().__init__(f"permission {decision.outcome}: {decision.reason or 'no reason given'}")
        self.decision = decision


class ToolCallCancelled(AgentSseError):
    """A user cancelled a running tool call; its body was interrupted.

    Attributes: ``by``, the user's subject, and ``reason``.
    """

    def __init__(self, by: str, reason: str) -> None:
        super().__init__(f"cancelled by {by}: {reason or 'no reason given'}")
        self.by = by
        self.reason = reason


class SchemaUnusable(AgentSseError):
    """A tool's JSON Schema is wrong, too large, or needs what is not done here; what needs it is refused."""


class IdempotencyConflict(AgentSseError):
    """The idempotency key belongs to a request for another tool or other parameters."""


class TooManyRequestsPending(AgentSseError):
    """The session has as many open permission requests as it may have."""


class ApiError(AgentSseError):
    """What an HTTP client is told.

    ``status`` is the HTTP status, ``code`` a snake_case word for programs, the
    message says what is wrong and what to do. ``retry_after`` is in seconds;
    ``data`` is added to the body (the winning decision of a 409).
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
        data: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.data = data
        self.headers = dict(headers or {})
