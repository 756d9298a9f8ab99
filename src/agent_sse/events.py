"""The events of protocol.md § 5 as JSON: built once, by who publishes. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, get_args

from agent_sse.errors import EventTooLarge, InvalidEvent

RiskLevel = Literal["low", "medium", "high", "critical"]
Status = Literal["pending", "waiting_permission", "executing", "completed", "failed", "cancelled", "denied"]
EventKind = Literal["status", "result", "cleared", "other"]

STATUSES: tuple[str, ...] = get_args(Status)
RISK_LEVELS: tuple[str, ...] = get_args(RiskLevel)
TERMINAL = frozenset({"completed", "failed", "cancelled", "denied"})
CONTAINERS = (dict, list, tuple)
SCALARS = frozenset({str, int, float, bool, type(None)})  # the common ones, told apart by one look
NAME_LIMIT = 256
MESSAGE_LIMIT = 2000


@lru_cache(maxsize=4)
def _second(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(now: datetime | None = None) -> str:
    """Return ISO 8601 UTC with milliseconds and ``Z``."""
    if now is not None:
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    second, ms = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(second)}.{ms:03}Z"


# What `json.dumps` would build anew for every event.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode(value: object) -> bytes:
    """Return one line of JSON (RFC 8259, UTF-8).

    Raises :class:`InvalidEvent` for NaN, Infinity, lone surrogates, cycles, keys that are not strings, and types
    that JSON does not have.
    """
    try:
        _check_keys(value)
        return _encode(value).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidEvent("a string holds a lone surrogate, which UTF-8 cannot carry") from None
    except RecursionError:
        raise InvalidEvent("the value is nested too deeply, or contains itself") from None
    except (TypeError, ValueError) as error:
        raise InvalidEvent(f"the value cannot be JSON: {error}") from None


def _check_keys(value: object) -> None:
    # json.dumps would turn 1 and True into "1" and "true", and two keys into one.
    items: Iterable[object] = ()
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise InvalidEvent(f"a JSON object's keys are strings, not {type(key).__name__}")
        items = value.values()
    elif isinstance(value, CONTAINERS):
        items = value
    for item in items:
        if type(item) not in SCALARS and isinstance(item, CONTAINERS):
            _check_keys(item)


def canonical(value: object) -> bytes:
    """Return JSON that is equal for equal values: sorted keys, no white space."""
    encode(value)  # the same refusals
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()


def bounded(payload: bytes, limit: int) -> bytes:
    """Return the payload. Raises :class:`EventTooLarge`, which names size and limit, in bytes."""
    if len(payload) > limit:
        raise EventTooLarge(len(payload), limit)
    return payload


def check_name(value: object, what: str) -> str:
    """Return a tool name or tool call id: 1 to 256 characters without control characters."""
    if not isinstance(value, str) or not value or len(value) > NAME_LIMIT or not value.isprintable():
        raise InvalidEvent(f"{what} must be 1 to {NAME_LIMIT} printable characters")
    return value


def check_risk(value: object) -> str:
    """Return a risk level. Raises :class:`InvalidEvent` for anything but the four."""
    if value not in RISK_LEVELS:
        raise InvalidEvent(f"risk_level must be one of {', '.join(RISK_LEVELS)}")
    return RISK_LEVELS[RISK_LEVELS.index(value)]  # the plain string, also for an enumeration's member


def check_status(value: object) -> str:
    """Return a tool status. Raises :class:`InvalidEvent` for anything but the seven."""
    if value not in STATUSES:
        raise InvalidEvent(f"status must be one of {', '.join(STATUSES)}")
    return STATUSES[STATUSES.index(value)]


def check_message(value: object, what: str) -> str:
    """Return a text of at most 2,000 characters."""
    if not isinstance(value, str) or len(value) > MESSAGE_LIMIT:
        raise InvalidEvent(f"{what} must be a string of at most {MESSAGE_LIMIT} characters")
    return value


def _event(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": kind, "data": data}


def tool_status(
    *,
    status: str,
    tool_name: str,
    tool_call_id: str,
    parameters: object,
    risk_level: str,
    start_time: str,
    details: Mapping[str, Any] | None = None,
    at: str | None = None,
) -> dict[str, Any]:
    """Return a ``tool_status``; ``details`` are added to the guide's three."""
    if details is not None and not isinstance(details, Mapping):
        raise InvalidEvent("details must be a mapping")
    return _event(
        "tool_status",
        {
            "status": check_status(status),
            "tool_name": check_name(tool_name, "tool_name"),
            "tool_call_id": check_name(tool_call_id, "tool_call_id"),
            "details": {
                **(details or {}),
                "parameters": parameters,
                "risk_level": check_risk(risk_level),
                "start_time": check_name(start_time, "start_time"),
            },
            "timestamp": at or timestamp(),
        },
    )


def tool_result(
    *,
    tool_name: str,
    tool_call_id: str,
    result: object,
    success: bool,
    error: str | None = None,
    duration_ms: int | None = None,
) -> dict[str, Any]:
    """Return a ``tool_result``."""
    if not isinstance(success, bool):
        raise InvalidEvent("success must be True or False")
    if error is not None and not isinstance(error, str):
        raise InvalidEvent("error must be a string")
    if duration_ms is not None and (isinstance(duration_ms, bool) or not isinstance(duration_ms, int)):
        raise InvalidEvent("duration_ms must be a whole number of milliseconds")
    data: dict[str, Any] = {
        "tool_name": check_name(tool_name, "tool_name"),
        "tool_call_id": check_name(tool_call_id, "tool_call_id"),
        "result": result,
        "success": success,
    }
    if error is not None:
        data["error"] = error
    if duration_ms is not None:
        data["duration_ms"] = duration_ms
    return _event("tool_result", {**data, "timestamp": timestamp()})


def result_cleared(tool_call_id: str | None = None, at: str | None = None) -> dict[str, Any]:
    """Return a ``result_cleared``; without a call id it clears whichever result is shown."""
    return _event("result_cleared", {"tool_call_id": tool_call_id, "timestamp": at or timestamp()})


def permission_none(at: str) -> dict[str, Any]:
    """Return the ``permission_cleared`` of a snapshot in which nothing is asked."""
    return _event(
        "permission_cleared",
        {
            "request_id": None,
            "tool_call_id": None,
            "tool_name": None,
            "outcome": "none",
            "reason": None,
            "resolved_by": None,
            "timestamp": at,
        },
    )


def stream_reset(reason: str, last_event_id: str | None, at: str) -> dict[str, Any]:
    """Return a ``stream_reset``; ``last_event_id`` is the tip that the snapshot after it stands for."""
    return _event("stream_reset", {"reason": reason, "last_event_id": last_event_id, "timestamp": at})


def error(message: str, code: str) -> dict[str, Any]:
    """Return an ``error``, whose fields stand at the top."""
    return {"type": "error", "message": check_message(message, "message"), "code": check_name(code, "code")}


def head(event: dict[str, Any]) -> bytes:
    """Return an event's JSON up to its data's last key, ``timestamp``, which a script writes on Redis' clock."""
    data = {key: value for key, value in event["data"].items() if key != "timestamp"}
    return encode({"type": event["type"], "data": data})[:-2] + b","
