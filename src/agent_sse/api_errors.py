"""What a client is told of an error: status, code and message, also of those that the frameworks raise."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from agent_sse.errors import (
    AgentSseError,
    ApiError,
    EventTooLarge,
    IdempotencyConflict,
    InvalidEvent,
    InvalidSessionId,
    PublishTimeout,
    QueueFull,
    RedisRefused,
    RedisUnavailable,
    SessionOwned,
    TooManyRequestsPending,
)
from agent_sse.keys import SESSION_ID_RULE

# For errors that a host's dependencies and middleware raise.
CODES = {
    400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    413: "body_too_large", 429: "too_many_requests", 503: "unavailable",
}  # fmt: skip
# In place of Starlette's bare phrases.
MESSAGES = {
    "Not Found": "nothing is served at this path; check it and its prefix",
    "Method Not Allowed": "this path does not take this method; the Allow header names those that it takes",
}


INTERNAL = ApiError(500, "internal_error", "an error of this service; it is in its log")


def error_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of error responses for OpenAPI."""
    schema = {
        "type": "object",
        "required": ["success", "message", "error"],
        "properties": {
            "success": {"const": False},
            "message": {"type": "string"},
            "error": {"type": "object", "required": ["code"], "properties": {"code": {"type": "string"}}},
        },
    }
    return {
        status: {"description": "error", "content": {"application/json": {"schema": schema}}} for status in statuses
    }


def to_api_error(error: Exception) -> ApiError | None:
    """Return what the client is told of an error, None for one that nobody foresaw."""
    match error:
        case AgentSseError():
            return _own(error)
        case RequestValidationError():
            first = error.errors()[0]
            field = str(first["loc"][-1])
            if field == "session_id":
                return ApiError(422, "invalid_session_id", f"session_id: {SESSION_ID_RULE}")
            return ApiError(422, "invalid_field", f"{field}: {first['msg']}")
        case HTTPException():
            code = CODES.get(error.status_code, "http_error")
            detail = str(error.detail)
            return ApiError(error.status_code, code, MESSAGES.get(detail, detail), headers=error.headers)
    return None


def _own(error: AgentSseError) -> ApiError | None:
    match error:
        case ApiError():
            return error
        case PublishTimeout():
            return ApiError(
                503, "publish_timeout",
                f"{error}; send it again with the Idempotency-Key that it had, or it may be there twice", retry_after=2,
            )  # fmt: skip
        case RedisUnavailable():
            return ApiError(503, "redis_unavailable", "the event store cannot be reached; try again", retry_after=2)
        case RedisRefused():
            return ApiError(503, "redis_refused", "the event store refused to serve; tell the operator", retry_after=10)
        case QueueFull():
            return ApiError(503, "queue_full", f"{error}; try again", retry_after=1)
        case TooManyRequestsPending():
            return ApiError(429, "too_many_pending", str(error), retry_after=5)
        case IdempotencyConflict():
            return ApiError(409, "idempotency_conflict", str(error))
        case SessionOwned():
            return ApiError(409, "session_owned", str(error))
        case InvalidSessionId():
            return ApiError(422, "invalid_session_id", str(error))
        case EventTooLarge():
            return ApiError(413, "event_too_large", str(error))
        case InvalidEvent():
            return ApiError(422, "invalid_field", str(error))
    return None
