"""Events that come from outside as JSON: checked strictly, completed, made ready to be published.

Only what an agent may say of itself is taken, and secrets in it are masked; nobody forges a permission request or its
answer through here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, ValidationError

from agent_sse import events
from agent_sse.errors import ApiError
from agent_sse.keys import check_session_id
from agent_sse.masking import Masker
from agent_sse.store import Publish

Model = TypeVar("Model", bound=BaseModel)

TYPES = ("tool_status", "tool_result", "result_cleared", "error")


def _utc(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("a time is written in ISO 8601, such as 2026-01-31T12:00:00.000Z") from None
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone: end it with Z for UTC")
    try:
        return events.timestamp(moment.astimezone(UTC))
    except OverflowError:
        raise ValueError("the time is out of range") from None


Time = Annotated[str, AfterValidator(_utc)]
Number = Annotated[int | float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Progress(_Strict):
    progress: Number
    total: Number | None = None
    message: Annotated[str, Field(max_length=events.MESSAGE_LIMIT)] | None = None


class _Details(_Strict):
    # § 5 leaves the details open for what an agent wants to add.
    model_config = ConfigDict(extra="allow", strict=True)

    parameters: Any = Field(default_factory=dict)
    risk_level: events.RiskLevel = "low"
    start_time: Time | None = None
    progress: _Progress | None = None
    parent_tool_call_id: str | None = None
    server: str | None = None
    cancellable: StrictBool | None = None


class _ToolStatus(_Strict):
    status: events.Status
    tool_name: str
    tool_call_id: str | None = None
    timestamp: Time | None = None
    details: _Details = Field(default_factory=_Details)


class _ToolResult(_Strict):
    tool_name: str
    success: StrictBool
    result: Any = None
    tool_call_id: str | None = None
    error: str | None = None
    duration_ms: Annotated[int, Field(ge=0)] | None = None
    timestamp: Time | None = None


class _ResultCleared(_Strict):
    tool_call_id: str | None = None
    timestamp: Time | None = None


class _Error(_Strict):
    type: str
    message: str
    code: str = "error"


def read_event(session_id: str, value: object, *, limit: int, masker: Masker | None = None) -> Publish:
    """Return an event of protocol.md § 5, given as parsed JSON, ready to be published; ``limit`` in bytes.

    Secrets are masked, by the default names without a ``masker``. What may be left out is filled in: times,
    ``tool_call_id`` (the tool's name), ``parameters``, ``risk_level``, ``result``, ``code``. Raises :class:`ApiError`
    (``reserved_type`` for a type that only the service sends, ``invalid_field`` naming the field) and
    :class:`~agent_sse.errors.InvalidEvent`.
    """
    check_session_id(session_id)
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ApiError(422, "invalid_field", 'type: an event is an object such as {"type": "tool_status", "data": {…}}')
    kind = value["type"]
    if kind not in TYPES:
        raise ApiError(
            422, "reserved_type", f"type: only {', '.join(TYPES)} can be published; the service sends others"
        )
    masker = masker or Masker()
    if kind == "error":
        said = _check(_Error, value, ())
        event = events.error(masker.mask_text(said.message), events.check_name(said.code, "code"))
        return Publish(session_id, events.bounded(events.encode(event), limit), "other")
    if unknown := value.keys() - {"type", "data"}:
        raise ApiError(422, "invalid_field", f"{min(unknown)[:100]}: an event has type and data, nothing else")
    event, snapshot_kind, call_id, terminal = _READERS[kind](_masked(value.get("data", {}), masker))
    return Publish(session_id, events.bounded(events.encode(event), limit), snapshot_kind, call_id, terminal)


def _masked(data: object, masker: Masker) -> object:
    """Return an event's data with what a tool takes and gives masked; names and ids stay what they are."""
    if not isinstance(data, dict):
        return data
    shown = {name: masker.mask(value) if name in ("details", "result") else value for name, value in data.items()}
    if isinstance(shown.get("error"), str):
        shown["error"] = masker.mask_text(shown["error"])
    return shown


_Read = tuple[dict[str, Any], events.EventKind, str, bool]


def _read_status(value: object) -> _Read:
    data = _check(_ToolStatus, value, ("data",))
    at = data.timestamp or events.timestamp()
    given = data.details.model_dump(exclude_none=True)
    event = events.tool_status(
        status=data.status, tool_name=data.tool_name, tool_call_id=_call_id(data), details=given, at=at,
        parameters=data.details.parameters, risk_level=data.details.risk_level,
        start_time=data.details.start_time or at,
    )  # fmt: skip
    return event, "status", _call_id(data), data.status in events.TERMINAL


def _read_result(value: object) -> _Read:
    data = _check(_ToolResult, value, ("data",))
    event = events.tool_result(
        tool_name=data.tool_name, tool_call_id=_call_id(data), result=data.result, success=data.success,
        error=data.error, duration_ms=data.duration_ms,
    )  # fmt: skip
    if data.timestamp is not None:
        event["data"]["timestamp"] = data.timestamp
    return event, "result", _call_id(data), False


def _read_cleared(value: object) -> _Read:
    data = _check(_ResultCleared, value, ("data",))
    if data.tool_call_id is not None:
        events.check_name(data.tool_call_id, "tool_call_id")
    return events.result_cleared(data.tool_call_id, data.timestamp), "cleared", data.tool_call_id or "", False


_READERS = {"tool_status": _read_status, "tool_result": _read_result, "result_cleared": _read_cleared}


def _call_id(data: _ToolStatus | _ToolResult) -> str:
    return data.tool_name if data.tool_call_id is None else data.tool_call_id


def _check(model: type[Model], value: object, at: tuple[str, ...]) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in (*at, *first["loc"]))[:100]
        raise ApiError(422, "invalid_field", f"{field or 'data'}: {first['msg']}") from None
