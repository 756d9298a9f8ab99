"""What the API's page says of bodies that come in and go out, as JSON Schema. Nothing is checked by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
NULLABLE: Schema = {"type": ["string", "null"]}
TIME: Schema = {"type": "string", "format": "date-time"}


def listed(item: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": item}


def shape(properties: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object; ``optional`` are the properties that need not be there."""
    return {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}


def answer_docs(data: Schema, description: str = "done") -> dict[str, Any]:
    """Return the description of a response ``{"success": true, "data": …}``."""
    schema = {
        "type": "object", "required": ["success", "data"],
        "properties": {"success": {"const": True}, "message": TEXT, "data": data},
    }  # fmt: skip
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def body_docs(schema: type[BaseModel] | Schema) -> dict[str, Any]:
    """Return the description of a request's body."""
    described = schema.model_json_schema() if isinstance(schema, type) else schema
    return {"required": True, "content": {"application/json": {"schema": described}}}


def query_docs(*parameters: tuple[str, str, Schema, str]) -> list[dict[str, Any]]:
    """Return the description of what is read by hand: name, place (``query`` or ``header``), schema, description."""
    return [
        {"name": name, "in": place, "schema": schema, "description": description}
        for name, place, schema, description in parameters
    ]


ANSWERED = answer_docs(
    shape(
        {
            "request_id": TEXT, "tool_call_id": TEXT, "tool_name": TEXT, "approved": FLAG, "reason": TEXT,
            "status": TEXT, "resolved_by": NULLABLE,
        },
        optional={
            "already_resolved": FLAG, "scope": TEXT, "covers": TEXT, "grant_id": TEXT, "parameters_patch": OBJECT,
            "edited_parameters": OBJECT,
        },
    ),
    "the decision that stands",
)  # fmt: skip
GRANT = shape(
    {
        "grant_id": TEXT, "tool_name": TEXT, "server": TEXT, "risk_level": TEXT, "parameters": {}, "covers": TEXT,
        "approved": FLAG, "reason": TEXT, "granted_by": TEXT, "granted_at": TIME, "request_id": TEXT, "digest": TEXT,
    }
)  # fmt: skip
HEALTH = answer_docs(
    shape(
        {
            "session_id": TEXT, "status": {"enum": ["ok", "degraded"]}, "connections": COUNT,
            "pending_permissions": listed(OBJECT), "pending_total": COUNT, "grants": listed(GRANT),
            "last_event_id": NULLABLE,
            "redis": shape({"ok": FLAG, "latency_ms": {"type": ["number", "null"]}}), "retained_events": COUNT,
            "timestamp": TIME,
        }
    ),
    "the session as it is now",
)  # fmt: skip
TICKET = answer_docs(shape({"token": TEXT, "expires_in": COUNT}), "a ticket")
SESSIONS = answer_docs(
    shape({"sessions": listed(shape({"session_id": TEXT, "owned": FLAG, "last_event_id": NULLABLE}))}), "the sessions"
)
POLLED = answer_docs(
    shape(
        {
            "events": listed(shape({"id": NULLABLE, "type": TEXT, "data": OBJECT})),
            "last_event_id": {"type": ["string", "null"], "description": "send it with the next poll"},
            "reset": {"enum": [None, "history_expired", "invalid_cursor", "history_lost"]},
        }
    ),
    "events in order; none: nothing happened in time, poll again",
)  # fmt: skip
CANCELLED = shape({"tool_call_id": TEXT, "status": {"enum": ["withdrawn", "cancelling"]}})
REVOKED = answer_docs(GRANT, "the remembered answer, which is forgotten")
AUDIT = answer_docs(
    shape(
        {
            "entries": listed(shape({"id": TEXT, "at": TIME, "kind": TEXT})),
            "next": {"type": ["string", "null"], "description": "send it as `after` to read on; null: no more"},
        }
    ),
    "entries, the oldest first",
)  # fmt: skip
PUBLISHED = answer_docs(shape({"id": TEXT}), "stored")
EVENT: Schema = {
    **shape({"type": {"enum": ["tool_status", "tool_result", "result_cleared", "error"]}}),
    "description": "as in the stream; `error` has `message` and `code` at its top, the others have `data`",
    "example": {"type": "tool_status", "data": {"tool_name": "file_search", "status": "executing"}},
}
OPENED = answer_docs(shape({"session_id": TEXT, "owner": TEXT}), "open")
CLOSED = answer_docs(shape({"session_id": TEXT}), "closed and erased")
DECISION = answer_docs(
    shape(
        {
            "approved": {"type": "boolean", "description": "anything but true means: do not run"}, "request_id": TEXT,
            "outcome": {"enum": ["approved", "denied", "expired", "cancelled"]}, "reason": NULLABLE,
            "resolved_by": NULLABLE,
        },
        optional={"parameters_patch": OBJECT, "edited_parameters": OBJECT, "edited_digest": TEXT, "grant_id": TEXT},
    ),
    "the decision",
)  # fmt: skip
OPEN = answer_docs(
    shape(
        {
            "request_id": TEXT, "status": {"const": "pending"}, "expires_at": TIME,
            "ask_again_within": {"type": "number", "description": "seconds; if nobody asks, it is withdrawn"},
        }
    ),
    "still open: ask again",
)  # fmt: skip
WITHDRAWN = answer_docs(
    shape({"request_id": TEXT, "status": TEXT}, optional={"already_resolved": FLAG}), "not open any more"
)
