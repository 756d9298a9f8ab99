"""What each event of the stream looks like, as pydantic models: the source of its JSON Schema and the client's types.

It describes and checks what others emit, and must never build or send an event. ``python -m agent_sse.event_models``
prints the JSON Schema. A field that may be missing is never null: null is said where a field has it.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, TypeAdapter
from pydantic.json_schema import SkipJsonSchema

from agent_sse import events

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def _refuse_null(_: None) -> None:
    raise ValueError("a field without a value is left out, never null")


Absent = SkipJsonSchema[Annotated[None, AfterValidator(_refuse_null)]]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


def _tidy(schema: dict[str, Any]) -> None:
    """Put required fields first, and leave out what generators take for names and values: titles and defaults."""
    fields, required = schema["properties"], schema["required"]
    for described in fields.values():
        described.pop("title", None)
        described.pop("default", None)
    schema["properties"] = dict(sorted(fields.items(), key=lambda field: field[0] not in required))


class _Shape(BaseModel):
    # Later releases add fields: unknown ones are no error here. The tests forbid them.
    model_config = ConfigDict(strict=True, json_schema_extra=_tidy)


class RiskLevel(RootModel[events.RiskLevel]):
    """How much harm a tool call can do, in this order."""


class Status(RootModel[events.Status]):
    """Where a tool call is; `completed`, `failed`, `cancelled` and `denied` are its ends."""


class Progress(_Shape):
    """How far a running call is. It never goes backwards; at most one step in 100 ms is sent."""

    progress: float = Field(allow_inf_nan=False, description="In any unit; finite.")
    total: float | Absent = Field(None, allow_inf_nan=False, description="The end, in the unit of `progress`.")
    message: str | Absent = Field(None, description=f"At most {events.MESSAGE_LIMIT} characters.")


class ToolStatusDetails(_Shape):
    """What a call is about. Open: an agent may add keys of its own."""

    model_config = ConfigDict(extra="allow")

    parameters: Any = Field(description="As users see them: secrets are `••••`. Any JSON, an object as a rule.")
    risk_level: RiskLevel
    start_time: Time = Field(description="ISO 8601: when the call began.")
    progress: Progress | Absent = None
    parent_tool_call_id: str | Absent = Field(None, description="The call that made this one.")
    server: str | Absent = Field(None, description="The MCP server whose tool it is.")
    cancellable: bool | Absent = Field(None, description="true: `POST cancel/{session_id}` interrupts it.")
    original_parameters: Any = Field(
        None, description="Those that were asked for, as users see them, where an answer edited them."
    )


class ToolStatus(_Shape):
    """A tool call's state. `pending → executing → completed | failed | cancelled`, or over `waiting_permission`."""

    status: Status
    tool_name: str = Field(description=f"1 to {events.NAME_LIMIT} printable characters.")
    tool_call_id: str = Field(description="Which call; the tool's name when its agent gave none.")
    timestamp: Time = Field(description="ISO 8601 UTC with `Z`.")
    details: ToolStatusDetails


class PermissionRequest(_Shape):
    """A question to the user. It may come again, without an id: tell repeats by `request_id`."""

    tool_name: str = Field(description=f"1 to {events.NAME_LIMIT} printable characters.")
    parameters: Any = Field(description="As users see them: secrets are `••••`. Any JSON, an object as a rule.")
    risk_level: RiskLevel
    timestamp: Time = Field(description="When it was asked: ISO 8601 UTC with `Z`, on Redis' clock.")
    status: Literal["pending"]
    request_id: str = Field(description="`pr_…`; the answer names it.")
    tool_call_id: str = Field(description="The call that waits; the tool's name when its agent gave none.")
    expires_at: Time = Field(description="Until when it can be answered: ISO 8601 UTC with `Z`, on Redis' clock.")
    editable: bool = Field(description="Whether the answer may have a `parameters_patch`.")
    scopes: list[Literal["once", "session"]] = Field(description="What the answer's `scope` may be.")
    server: str | Absent = Field(None, description="The MCP server whose tool it is.")
    masked: list[str] | Absent = Field(None, description="JSON pointers (RFC 6901) of what is hidden in `parameters`.")
    truncated: bool | Absent = Field(None, description="true: `parameters` are cut, and `digest` is of all of them.")
    digest: str | Absent = Field(
        None, description="SHA-256 in hexadecimal of the parameters' canonical JSON; with `truncated` only."
    )
    message: str | Absent = Field(
        None, description=f"The agent's word, or a policy's reason; at most {events.MESSAGE_LIMIT} characters."
    )


class _Said(_Shape):
    """What an answer said beyond yes or no (docs/permissions.md)."""

    scope: Literal["session"] | Absent = Field(None, description="The answer holds until the session ends.")
    covers: Literal["arguments", "tool"] | Absent = Field(
        None, description="With `scope`: for the tool with these parameters, or with any."
    )
    grant_id: str | Absent = Field(None, description="`g_…`: the remembered answer, made here or decided by.")
    parameters_patch: dict[str, Any] | Absent = Field(None, description="The user's edit: JSON Merge Patch (RFC 7396).")
    edited_parameters: dict[str, Any] | Absent = Field(None, description="What comes of it, as users see it.")
    edited_digest: str | Absent = Field(
        None, description="SHA-256 in hexadecimal of the canonical JSON of `edited_parameters`."
    )


class PermissionResponseResult(_Said):
    """An answer that won. What else ends a request says `permission_cleared` only."""

    success: bool = Field(description="Always true: an answer that does not win is refused, and in no event.")
    request_id: str
    approved: bool
    reason: str = Field(description=f"The user's word, or empty; at most {events.MESSAGE_LIMIT} characters.")
    timestamp: Time = Field(description="ISO 8601 UTC with `Z`, on Redis' clock.")


class PermissionCleared(_Said):
    """A question that was shown is settled. With the outcome `none`, in a snapshot: nothing is asked, all is null."""

    request_id: str | None
    tool_call_id: str | None
    tool_name: str | None
    outcome: Literal["approved", "denied", "expired", "cancelled", "none"]
    reason: str | None = Field(description="The user's word, or `timeout`, `agent_lost`, `withdrawn`.")
    resolved_by: str | None = Field(
        description="The subject who answered or cancelled, or `timeout`, `lease`, `agent`, `grant:<id>`."
    )
    timestamp: Time = Field(description="ISO 8601 UTC with `Z`, on Redis' clock.")


class ToolResult(_Shape):
    """What a call gave. A call that was denied or cancelled has one too, with `success` false."""

    tool_name: str = Field(description=f"1 to {events.NAME_LIMIT} printable characters.")
    result: Any = Field(description="Any JSON, with secrets as `••••`; null when there is none.")
    success: bool
    timestamp: Time = Field(description="ISO 8601 UTC with `Z`.")
    tool_call_id: str = Field(description="Which call; the tool's name when its agent gave none.")
    error: str | Absent = Field(None, description="Why there is no result.")
    duration_ms: int | Absent = Field(None, description="Milliseconds; the wait for permission is in it.")


class ResultCleared(_Shape):
    """The result that is shown is to go away."""

    tool_call_id: str | None = Field(description="Whose; null: whichever is shown.")
    timestamp: Time = Field(description="ISO 8601 UTC with `Z`.")


class StreamReset(_Shape):
    """Forget what you have: the events after your cursor are not known any more, and a snapshot follows."""

    reason: Literal["history_expired", "invalid_cursor", "history_lost"]
    last_event_id: str = Field(description="`<ms>-<seq>`: the event up to which the snapshot tells.")
    timestamp: Time = Field(description="ISO 8601 UTC with `Z`, on Redis' clock.")


class Heartbeat(_Shape):
    """The connection lives."""

    timestamp: float = Field(allow_inf_nan=False, description="Unix seconds, with a fraction.")


class ServiceError(_Shape):
    """An agent's error, or why the stream ends (`token_expired`, `session_closed`, `unavailable`)."""

    message: str = Field(description=f"At most {events.MESSAGE_LIMIT} characters.")
    code: str = Field(description="`snake_case`.")


class ToolStatusEvent(_Shape):
    """The event `tool_status`."""

    type: Literal["tool_status"]
    data: ToolStatus


class PermissionRequestEvent(_Shape):
    """The event `permission_request`."""

    type: Literal["permission_request"]
    data: PermissionRequest


class PermissionResponseResultEvent(_Shape):
    """The event `permission_response_result`."""

    type: Literal["permission_response_result"]
    data: PermissionResponseResult


class PermissionClearedEvent(_Shape):
    """The event `permission_cleared`."""

    type: Literal["permission_cleared"]
    data: PermissionCleared


class ToolResultEvent(_Shape):
    """The event `tool_result`."""

    type: Literal["tool_result"]
    data: ToolResult


class ResultClearedEvent(_Shape):
    """The event `result_cleared`."""

    type: Literal["result_cleared"]
    data: ResultCleared


class StreamResetEvent(_Shape):
    """The event `stream_reset`."""

    type: Literal["stream_reset"]
    data: StreamReset


class HeartbeatEvent(Heartbeat):
    """The event `heartbeat`, whose field stands at the top."""

    type: Literal["heartbeat"]


class ServiceErrorEvent(ServiceError):
    """The event `error`, whose fields stand at the top."""

    type: Literal["error"]


Event = Annotated[
    ToolStatusEvent
    | PermissionRequestEvent
    | PermissionResponseResultEvent
    | PermissionClearedEvent
    | ToolResultEvent
    | ResultClearedEvent
    | StreamResetEvent
    | HeartbeatEvent
    | ServiceErrorEvent,
    Field(discriminator="type"),
]


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one event; ``$defs`` has each model by its name.

    Of the events whose fields stand at the top, ``$defs`` has them without the ``type`` too.
    """
    adapters: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        ("event", "validation", TypeAdapter(Event)),
        ("heartbeat", "validation", TypeAdapter(Heartbeat)),
        ("error", "validation", TypeAdapter(ServiceError)),
    ]
    roots, shared = TypeAdapter.json_schemas(adapters)
    return {"$schema": DIALECT, "title": "WireEvent", **roots[("event", "validation")], **shared}


def inlined() -> dict[str, Any]:
    """Return :func:`schema` without references, to stand inside another document, whose root ``#`` would mean there.

    https://spec.openapis.org/oas/v3.1.1.html#relative-references-in-api-description-uris
    """
    whole = schema()
    definitions = whole.pop("$defs")

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:  # none is inside itself
            return resolve(definitions[part["$ref"].removeprefix("#/$defs/")])
        return {name: resolve(value) for name, value in part.items()}

    # What it names are references too; every event's `type` is a constant, which says the same.
    return {name: resolve(value) for name, value in whole.items() if name not in ("$schema", "discriminator")}


def text() -> str:
    """Return :func:`schema` as it stands in the client's `schema/events.schema.json`: the same for the same models."""
    return json.dumps(schema(), ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(text().encode())
