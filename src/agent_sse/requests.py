"""What comes in over HTTP, checked before anything else sees it: tokens, cursors, bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, NoReturn
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from agent_sse.access_log import redact_query
from agent_sse.errors import ApiError
from agent_sse.frames import EventId, parse_id

TOKENS = "agent_sse.tokens"  # key in the ASGI scope
# s for a body that is read here. That is only the answer to a permission request, a few kilobytes, and a right has been
# checked for it; so it may be shorter than limits.BODY_TIMEOUT, which is for whatever is sent to any endpoint of a
# server, and it must be: then the endpoint answers in its own words, under every server.
BODY_TIMEOUT = 10.0


class PermissionAnswer(BaseModel):
    """The body of an answer. ``approved`` is strictly boolean; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    approved: StrictBool = Field(description="true approves, false denies")
    reason: Annotated[StrictStr, Field(max_length=2000)] = Field("", description="shown to the agent and to other tabs")
    request_id: Annotated[StrictStr, Field(min_length=1, max_length=128)] | None = Field(
        None, description="which request is answered; without it the one that is presented"
    )


def hide_token(scope: Scope) -> None:
    """Move ``?token=`` out of the URL, so that no access log, trace or error that comes later can show it.

    In place, because servers log from the same scope.
    """
    query: bytes = scope.get("query_string", b"")
    if TOKENS not in scope:
        hidden = redact_query(query)
        if hidden != query:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
            scope[TOKENS] = [value for name, value in pairs if name == "token"]
            scope["query_string"] = hidden
            _hide_in_trace(hidden)


def _hide_in_trace(query: bytes) -> None:
    # FastAPI's own OpenTelemetry spans take the query before any route runs, and do not know `token` as a secret.
    try:
        from opentelemetry import trace
    except ImportError:
        return
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("url.query", query.decode("latin-1"))


def query_tokens(request: Request) -> list[str]:
    """Return the values of ``?token=``."""
    tokens: list[str] = request.scope.get(TOKENS, [])
    return tokens


def read_cursor(request: Request) -> tuple[EventId | None, str | None]:
    """Return the cursor, or why it cannot be used; the header wins over ``?last_event_id=``. Both None: none sent."""
    values = request.headers.getlist("last-event-id") or request.query_params.getlist("last_event_id")
    if not any(values):
        return None, None
    cursor = parse_id(values[0].encode("utf-8", "replace")) if len(values) == 1 else None
    return (cursor, None) if cursor is not None else (None, "invalid_cursor")


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of at most ``limit`` bytes. It is bounded while it comes in, whatever its headers say.

    Raises ApiError 400, 408 (https://www.rfc-editor.org/rfc/rfc9110#section-15.5.9) or 413.
    """
    too_large = ApiError(413, "body_too_large", f"the body is larger than {limit} bytes; send less")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, "body_timeout", f"the body did not arrive within {BODY_TIMEOUT:g} s; send it again",
            headers={"connection": "close"},  # what comes of it yet is not waited for
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise ApiError(400, "body_incomplete", "the body ended before its declared length") from None
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Parse one JSON document as RFC 8259 has it: UTF-8, no NaN, no name twice. Raises ApiError 400."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except UnicodeDecodeError:
        raise ApiError(400, "invalid_json", "the body is not UTF-8; send JSON in UTF-8") from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body is nested too deeply") from None
    except ValueError as error:
        # The decoder's position helps; the text around it may be secret and is not repeated.
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {_plain(error)}") from None


def _plain(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    return str(error) if isinstance(error, _Refused) else "a number is too long"


class _Refused(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("a name occurs twice in one object")
    return found


def _refuse(constant: str) -> NoReturn:
    raise _Refused(f"{constant} is not JSON")


def check_answer(value: object) -> PermissionAnswer:
    """Return the answer. Raises ApiError 400 when it is no object, 422 naming the first wrong field."""
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", 'the body must be a JSON object such as {"approved": true, "reason": ""}')
    try:
        return PermissionAnswer.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100] or "a field's name"
        raise ApiError(422, "invalid_field", f"{field}: {first['msg']}") from None
