"""JSON-RPC messages as bytes and as what they say; what comes from the host is read strictly.

Guard and server must never read one line differently, or a call slips past the gate. Knows no transport.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from agent_sse.mcp.guard import spelling
from agent_sse.terminal import escape

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
CONNECTION_CLOSED = -32000  # the code that the official SDKs give when a connection ends before the answer
REQUEST_CANCELLED = -32800

CALL = "tools/call"
CANCELLED = "notifications/cancelled"
PROGRESS = "notifications/progress"
PROTOCOL_VERSION_META = "io.modelcontextprotocol/protocolVersion"

Id = str | int

_NONE: Mapping[str, str] = MappingProxyType({})
# An id at a place where it can only be the message's own: before `params` or `result`, or last of all.
_ID = rb'"id"\s*:\s*("[^"\\]{0,200}"|-?\d{1,18})'
_HEAD_ID, _TAIL_ID = re.compile(_ID + rb"\s*[,}]"), re.compile(_ID + rb"\s*\}\s*$")
_BODY = re.compile(rb'"(?:params|result|error)"\s*:')
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d{0,17})")


class BadMessage(Exception):
    """A line that is not passed on; ``id`` is that of the request, if it can be told."""

    def __init__(self, code: int, text: str, request_id: Id | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.id = request_id


@dataclass(frozen=True, slots=True)
class Message:
    """One message: ``raw`` is its JSON on one line, without the line's end; ``headers`` those of the HTTP request."""

    raw: bytes
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)

    @property
    def method(self) -> str | None:
        """The method of a request or notification, None for a response."""
        method = self.body.get("method")
        return method if isinstance(method, str) else None

    @property
    def id(self) -> Id | None:
        """The id; None when there is none, or one of a type that MCP does not know."""
        return as_id(self.body.get("id"))

    @property
    def request_id(self) -> Id:
        """The id of what is known to be a request; :func:`from_host` lets none pass that has another type of it."""
        found = self.id
        if found is None:
            raise BadMessage(INVALID_REQUEST, "a request's id is a string or an integer")
        return found

    @property
    def is_request(self) -> bool:
        """Whether it wants an answer."""
        return self.method is not None and "id" in self.body

    @property
    def is_response(self) -> bool:
        """Whether it is an answer."""
        return self.method is None

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters by name; empty when there are none."""
        return as_object(self.body.get("params"))

    @property
    def meta(self) -> Mapping[str, Any]:
        """What stands in ``params._meta``."""
        return as_object(self.params.get("_meta"))

    @property
    def result(self) -> Mapping[str, Any] | None:
        """A response's result; None for an error."""
        result = self.body.get("result")
        return result if isinstance(result, dict) else None

    @property
    def is_modern(self) -> bool:
        """Whether it is a request of the protocol without a handshake (2026-07-28): it carries its own version."""
        return PROTOCOL_VERSION_META in self.meta

    def replaced(self, **fields: Any) -> Message:
        """Return it with other top-level fields, in the same order."""
        return make({**self.body, **fields}, self.headers)


def as_id(value: object) -> Id | None:
    """Return ``value`` if it can be an id."""
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def as_object(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def key(value: Id) -> Id:
    """Return what an id or token is compared by: the official SDKs take ``"7"`` in an answer for ``7``."""
    return int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


def encode(body: object) -> bytes:
    """Return compact JSON on one line."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only write escaped
        return json.dumps(body, separators=(",", ":")).encode()


def make(body: Mapping[str, Any], headers: Mapping[str, str] = _NONE) -> Message:
    """Return the message that says ``body``."""
    return Message(encode(body), body, headers)


def result(request_id: Id, value: Mapping[str, Any]) -> Message:
    """Return the answer to a request."""
    return make({"jsonrpc": "2.0", "id": request_id, "result": value})


def error(request_id: Id | None, code: int, text: str) -> Message:
    """Return the error that answers a request."""
    return make({"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}})


def cancelled(request_id: Id, reason: str) -> Message:
    """Return the notification that a request is not wanted any more."""
    return make({"jsonrpc": "2.0", "method": CANCELLED, "params": {"requestId": request_id, "reason": reason}})


# -- what comes in ----------------------------------------------------------------------------------------------------


def from_host(raw: bytes, headers: Mapping[str, str] = _NONE) -> Message:
    """Read what a host sent. Raises :class:`BadMessage` for all that a server could read in another way.

    Of a key that stands twice the last one counts, and the message is encoded anew: the server then sees only that.
    """
    doubled = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal doubled
        found = dict(items)
        doubled = doubled or len(found) != len(items)
        return found

    try:
        body = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise BadMessage(PARSE_ERROR, f"this is not JSON that can be passed on: {problem}", find_id(raw)) from None
    _check(body)
    return make(body, headers) if doubled else Message(one_line(raw), body, headers)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON knows no {name}")


def _check(body: object) -> None:
    if isinstance(body, list):
        raise BadMessage(
            INVALID_REQUEST, "batches are not passed on (MCP has none since 2025-06-18): send one message at a time"
        )
    if not isinstance(body, dict):
        raise BadMessage(INVALID_REQUEST, "a message is a JSON object")
    request_id = as_id(body.get("id"))
    _check_spelling(body, request_id)
    if "method" in body:
        if not isinstance(body["method"], str):
            raise BadMessage(INVALID_REQUEST, "a method is a string", request_id)
        if "id" in body and request_id is None:
            raise BadMessage(INVALID_REQUEST, "a request's id is a string or an integer")
    elif "result" not in body and "error" not in body:
        raise BadMessage(INVALID_REQUEST, "this is neither a request nor a response: it has no method", request_id)


def _check_spelling(body: Mapping[str, Any], request_id: Id | None) -> None:
    """Refuse names that a server which does not look at their case takes for others."""
    wrong = spelling.misspelt(body, spelling.MESSAGE)
    if wrong is None and body.get("method") == CALL:
        params = as_object(body.get("params"))
        wrong = spelling.misspelt(params, spelling.CALL_PARAMS)
        if wrong is None and (pair := spelling.doubled(params.get("arguments"))) is not None:
            raise BadMessage(
                INVALID_PARAMS, f"the arguments {_quoted(*pair)} differ in their case only: not every server reads"
                " that alike; send one of them", request_id,
            )  # fmt: skip
    if wrong is not None:
        raise BadMessage(
            INVALID_REQUEST, f"the name {_quoted(wrong)} differs in its case only from one that means something: not"
            " every server reads that alike", request_id,
        )  # fmt: skip


def _quoted(*names: str) -> str:
    return " and ".join(escape(json.dumps(name[:100])) for name in names)  # ASCII: two may look the same


def from_server(raw: bytes) -> list[Message]:
    """Read what a server sent: one message, or several in a batch. Raises ValueError for what is none."""
    try:
        body = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(body, list):
        return [make(one) for one in body if isinstance(one, dict)]
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    return [Message(one_line(raw), body)]


def one_line(raw: bytes) -> bytes:
    r"""Return JSON without line ends, which can only be white space in it.

    A bare ``\r`` ends a line for servers that read with universal newlines (Python's SDK does): what stands between two
    of them would be a message of its own there.
    """
    raw = raw.strip(b" \t\r\n")
    return raw.translate(_SPACES) if b"\r" in raw or b"\n" in raw else raw


_SPACES = bytes.maketrans(b"\r\n", b"  ")


def find_id(head: bytes, tail: bytes | None = None) -> Id | None:
    """Return the id of a message that cannot be read, from its first and last bytes, when there is no doubt."""
    tail = head if tail is None else tail
    start = _BODY.search(head)
    before = head[: start.start()] if start else head
    found = _TAIL_ID.search(tail) or _HEAD_ID.search(before)
    if found is None or b"[" in before[:1]:
        return None
    return as_id(json.loads(found[1]))
