"""What comes in over HTTP, checked before anything else sees it: tokens, cursors, bodies."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Literal, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from agent_sse.access_log import redact_query
from agent_sse.errors import ApiError
from agent_sse.events import MESSAGE_LIMIT, NAME_LIMIT, RiskLevel
from agent_sse.frames import EventId, parse_id

TOKENS = "agent_sse.tokens"  # key in the ASGI scope
# s for a body that is read here. That is an answer, an event or a question, and a right has been checked for it; so it
# may be shorter than limits.BODY_TIMEOUT, which is for whatever is sent to any endpoint of a server, and it must be:
# then the endpoint answers in its own words, under every server.
BODY_TIMEOUT = 10.0
KEY_LIMIT = 255  # characters of an Idempotency-Key
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_COUNT = re.compile(r"[1-9][0-9]{0,8}")

Body = TypeVar("Body", bound="RequestBody")
Name = Annotated[StrictStr, Field(min_length=1, max_length=NAME_LIMIT)]
Text = Annotated[StrictStr, Field(max_length=MESSAGE_LIMIT)]
Object = dict[str, Any]


class RequestBody(BaseModel):
    """A body that is a JSON object; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class PermissionAnswer(RequestBody):
    """The body of an answer. ``approved`` is strictly boolean."""

    approved: StrictBool = Field(description="true approves, false denies")
    reason: Text = Field("", description="shown to the agent and to other tabs")
    request_id: Annotated[StrictStr, Field(min_length=1, max_length=128)] | None = Field(
        None, description="which request is answered; without it the one that is presented"
    )
    scope: Literal["once", "session"] = Field(
        "once", description="session: remember the answer, and give it to the same questions until the session ends"
    )
    covers: Literal["arguments", "tool"] | None = Field(
        None,
        description="with scope session: the tool with these parameters (arguments, the default), or with any (tool)",
    )
    parameters_patch: Object | None = Field(
        None, description="JSON Merge Patch (RFC 7396) of the shown parameters; with request_id and approved only"
    )


class CallCancellation(RequestBody):
    """The body that cancels a tool call."""

    tool_call_id: Name
    reason: Text = Field("", description="shown to the agent and in the audit")


class SessionOpening(RequestBody):
    """The body that opens a session."""

    owner: Name = Field(description="the `sub` of who may use the session; set once")


class Question(RequestBody):
    """The body that asks for a permission."""

    tool_name: Name
    parameters: Object
    risk_level: RiskLevel
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] = Field(
        description="seconds until the request expires; at most seven days"
    )
    tool_call_id: Name | None = Field(None, description="default: the tool's name")
    idempotency_key: Name | None = Field(
        None, description="the request outlives its agent; asking again with the same key gets it back"
    )
    message: Text | None = Field(None, description="shown to the user")
    server: Name | None = Field(None, description="the MCP server whose tool it is")
    editable: StrictBool = Field(False, description="the user may edit the parameters; apply `parameters_patch` then")
    input_schema: Object | None = Field(None, alias="schema", description="JSON Schema that edits have to fit")


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


async def read_json(request: Request, limit: int) -> Any:
    """Return the JSON document that is the body; see :func:`read_body` and :func:`parse_json`."""
    return parse_json(await read_body(request, limit))


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


def check_body(model: type[Body], value: object) -> Body:
    """Return the body. Raises ApiError 400 when it is no object, 422 naming the first wrong field."""
    if not isinstance(value, dict):
        required = ", ".join(f'"{name}": …' for name, field in model.model_fields.items() if field.is_required())
        raise ApiError(400, "invalid_json", f"the body must be a JSON object such as {{{required}}}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100] or "a field's name"
        raise ApiError(422, "invalid_field", f"{field}: {first['msg']}") from None


def check_answer(value: object) -> PermissionAnswer:
    """Return the answer. Raises ApiError as :func:`check_body`, and 422 for fields that do not go together."""
    answer = check_body(PermissionAnswer, value)
    if answer.covers is not None and answer.scope != "session":
        raise _wrong("covers", 'it says what a remembered answer is for: send "scope": "session" with it')
    if answer.parameters_patch is not None:
        if answer.request_id is None:
            raise _wrong("parameters_patch", "send the request_id of the request whose parameters it edits")
        if not answer.approved:
            raise _wrong("parameters_patch", "what is denied is not edited; leave it out, or approve")
        if answer.scope == "session":
            raise _wrong("parameters_patch", 'an edited answer is for once; leave it out, or send "scope": "once"')
    return answer


def read_seconds(request: Request, name: str, *, most: float, default: float = 0.0) -> float:
    """Return a number of seconds in the query. Raises ApiError 422."""
    values = request.query_params.getlist(name)
    if not values:
        return default
    if len(values) > 1 or _SECONDS.fullmatch(values[0]) is None or float(values[0]) > most:
        raise _wrong(name, f"a number of seconds from 0 to {most:g}")
    return float(values[0])


def read_count(request: Request, name: str, *, default: int, most: int) -> int:
    """Return a whole number from 1 in the query. Raises ApiError 422."""
    values = request.query_params.getlist(name)
    if not values:
        return default
    if len(values) > 1 or _COUNT.fullmatch(values[0]) is None or int(values[0]) > most:
        raise _wrong(name, f"a whole number from 1 to {most}")
    return int(values[0])


def read_position(request: Request, name: str) -> EventId | None:
    """Return an id ``"<ms>-<seq>"`` in the query, None when there is none. Raises ApiError 422."""
    values = request.query_params.getlist(name)
    if not values:
        return None
    position = parse_id(values[0].encode("utf-8", "replace")) if len(values) == 1 else None
    if position is None:
        raise _wrong(name, "an id such as 1767323045000-0, as the entries have it")
    return position


def read_idempotency_key(request: Request) -> str | None:
    """Return the ``Idempotency-Key`` header, None when there is none. Raises ApiError 422."""
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    key = values[0].strip(" \t")
    if len(values) > 1 or not 0 < len(key) <= KEY_LIMIT or not (key.isascii() and key.isprintable()):
        raise _wrong("Idempotency-Key", f"one header of 1 to {KEY_LIMIT} printable ASCII characters")
    return key


async def until_left(receive: Receive) -> None:
    """Return when the client has left. Servers drop what is sent to one that has: only ``receive`` tells."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _wrong(field: str, message: str) -> ApiError:
    return ApiError(422, "invalid_field", f"{field}: {message}")
