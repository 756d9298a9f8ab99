"""HTTP headers of streamable HTTP: what has to agree with a message, what is made from one, what goes on to a URL.

Pure: knows no connection. https://modelcontextprotocol.io/specification/draft/basic/transports
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from agent_sse.errors import ConfigurationError
from agent_sse.mcp.guard.messages import CALL, PROTOCOL_VERSION_META, Message

SESSION_ID = "mcp-session-id"
VERSION = "mcp-protocol-version"
METHOD = "mcp-method"
NAME = "mcp-name"
LAST_EVENT_ID = "last-event-id"
PARAM = "mcp-param-"

# Revisions with a handshake; every other value of the version's header is of the protocol without one.
HANDSHAKE_VERSIONS = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"})
_NAMED = {CALL: "name", "prompts/get": "name", "resources/read": "uri"}
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

# Not passed from a host to a URL: of one connection, of another origin, or made anew from the message itself.
_KEPT_BACK = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "connection", "content-encoding", "content-length",
        "content-type", "cookie", "expect", "host", "keep-alive", "last-event-id", "mcp-method", "mcp-name",
        "mcp-protocol-version", "mcp-session-id", "origin", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "referer", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
    }
)  # fmt: skip
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN = re.compile(r"[\x20-\x7e]*")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def passed_on(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return what of a host's request goes on to a URL: its `Authorization` among others."""
    return {
        name: value
        for name, value in headers
        if name not in _KEPT_BACK and not name.startswith("sec-") and value.isascii()
    }


def configured(text: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return name and value of ``Name: value``, in which ``${VARIABLE}`` stands for what the environment holds.

    So that a secret need not stand on the command line. Raises :class:`ConfigurationError`.
    """
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise ConfigurationError("a header is written as 'Name: value'")

    def look_up(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ConfigurationError(f"the header {name} needs the environment variable {found[1]}, which is not set")
        return environment[found[1]]

    value = re.sub(r"\$\{(\w+)\}", look_up, value).strip()
    if not _PLAIN.fullmatch(value):
        raise ConfigurationError(f"the header {name} may hold printable ASCII only")
    return name.lower(), value


def is_local(host: str, origin: str | None, port: int) -> bool:
    """Whether a request is for this machine and not from a page elsewhere (DNS rebinding).

    ``host`` and ``origin`` are the headers.
    """
    named = urlsplit(f"//{host}")
    try:
        right = named.hostname in _LOOPBACK and (named.port or 80) == port
    except ValueError:
        return False
    return right and (origin is None or urlsplit(origin).hostname in _LOOPBACK)


def mismatch(message: Message, headers: list[tuple[str, str]]) -> str | None:
    """Return what in a request's headers says something else than the message, None when nothing does.

    Whoever routes by the headers must not see another call than the gate.
    """
    names = [name for name, _ in headers]
    found = dict(headers)
    for name in (VERSION, METHOD, NAME):
        if names.count(name) > 1:
            return f"{name} stands more than once"
    wanted = {VERSION: message.meta.get(PROTOCOL_VERSION_META), METHOD: message.method}
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} is not what the message says"
    field = _NAMED.get(message.method or "")
    target = message.params.get(field) if field else None
    if target is not None and decode(found.get(NAME)) != target:
        return f"{NAME} is not what the message says"
    return None


def of(message: Message) -> dict[str, str]:
    """Return the headers that a request of the protocol without a handshake has to have."""
    made = {VERSION: str(message.meta.get(PROTOCOL_VERSION_META)), METHOD: message.method or ""}
    field = _NAMED.get(message.method or "")
    target = message.params.get(field) if field else None
    return {**made, NAME: encode(target)} if isinstance(target, str) else made


def with_arguments(
    headers: Mapping[str, str], schema: Mapping[str, Any] | None, arguments: Mapping[str, Any]
) -> dict[str, str]:
    """Return a call's headers with the ``Mcp-Param-*`` that its tool's schema asks for, after the approved arguments.

    Without a schema the host's own stay.
    """
    if schema is None:
        return dict(headers)
    made = {name: value for name, value in headers.items() if not name.startswith(PARAM)}
    for path, token in _annotated(schema):
        value: Any = arguments
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, bool):
            made[PARAM + token.lower()] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            made[PARAM + token.lower()] = encode(str(value))
    return made


def _annotated(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or len(path) > 16:
        return
    for name, below in properties.items():
        if isinstance(below, Mapping):
            token = below.get("x-mcp-header")
            if isinstance(token, str) and _TOKEN.fullmatch(token):
                yield (*path, name), token
            yield from _annotated(below, (*path, name))


def encode(value: str) -> str:
    """Return ``value`` as it can stand in a header: as it is, or in base64 between marks."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode(errors='surrogatepass')).decode()}?="


def decode(value: str | None) -> str | None:
    """Return what :func:`encode` was given; None for what it would never have made."""
    found = _SENTINEL.fullmatch(value or "")
    if found is None:
        return value
    try:
        decoded = base64.b64decode(found[1], validate=True)
        return decoded.decode() if base64.b64encode(decoded).decode() == found[1] else None
    except (binascii.Error, UnicodeDecodeError):
        return None
