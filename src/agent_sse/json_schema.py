"""Parameters against a tool's JSON Schema, from any server: bounded work, no network, linear-time patterns. Pure.

No text of the values gets into what is said about them, and nothing that a server can write as a schema raises anything
but :class:`~agent_sse.errors.SchemaUnusable`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from jsonschema import ValidationError, validators
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from agent_sse import events, schema_keywords
from agent_sse.errors import InvalidEvent, SchemaUnusable
from agent_sse.schema_keywords import NAME, Hidden
from agent_sse.terminal import escape

SCHEMA_LIMIT = 64 * 1024  # bytes
SCHEMA_DEEPEST = 64  # levels
VALUE_DEEPEST = 200  # levels, as in masking
BUDGET = 50_000  # units of about 10 µs: a keyword's evaluation is one, and what is large costs more
META_BUDGET = 150_000  # for the check of the schema itself, once
LINE = 200  # characters of what is said

_T = TypeVar("_T")


# What jsonschema quotes in its messages is of these types, so that none is long, and none says what a text is.
class _Object(dict[str, Any]):
    def __repr__(self) -> str:
        return "this object"


class _Array(list[Any]):
    def __repr__(self) -> str:
        return "this array"


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "this text"


class _Name(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self[:NAME]}…'"


def violation(schema: Mapping[str, Any], value: object, masked: Iterable[str] = ()) -> str | None:
    """Return None when the value fits the schema, else a line: a JSON pointer (RFC 6901) and what is wrong there.

    Values that the pointers in ``masked`` name fit every keyword that looks at them: only the agent knows them. The
    line has at most 200 characters; it names keys and numbers, and quotes no text. ``format`` is not checked.

    Raises :class:`SchemaUnusable` for a schema with which nothing can be checked: one that is wrong, large, refers to
    others, has a pattern that RE2 does not know, or takes too long.
    """
    try:
        text = events.encode(schema)
    except InvalidEvent as error:
        raise SchemaUnusable(f"it is no JSON: {error}") from None
    compiled = _compiled(text)
    if isinstance(compiled, str):
        raise SchemaUnusable(compiled)
    return _usable(lambda: schema_keywords.within(BUDGET, len(text) >> 4, lambda: _first(compiled, value, masked)))


def _first(validator: Validator, value: object, masked: Iterable[str]) -> str | None:
    try:
        copied = _copied(value, VALUE_DEEPEST, _Text)
    except InvalidEvent as error:
        return str(error)
    for pointer in masked:
        copied = _hide(copied, pointer.split("/")[1:])
    found = None if isinstance(copied, Hidden) else next(iter(validator.iter_errors(copied)), None)
    return None if found is None else _line(found)


def _usable(call: Callable[[], _T]) -> _T:
    """Call, and make of whatever is wrong with a schema a :class:`SchemaUnusable`."""
    try:
        return call()
    except SchemaUnusable:
        raise
    except Unresolvable as error:
        raise SchemaUnusable(f"it refers to what it does not contain: {_cut(str(error))}") from None
    except RecursionError:
        raise SchemaUnusable("it is nested too deeply, or refers to itself without end") from None
    except Exception as error:
        # References reach what no meta-schema has seen, and there is no end to what a keyword may stumble over there.
        raise SchemaUnusable(f"it cannot be evaluated: {type(error).__name__}") from error


def _line(error: ValidationError) -> str:
    # Of the alternatives of an `anyOf`, the one that nearly fits says more than that none does.
    nearest = best_match([error]) or error
    at = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in nearest.absolute_path)
    message = "nothing is allowed here" if nearest.validator is None else nearest.message
    return _cut(f"{at}: {message}" if at else message)


def _cut(text: str) -> str:
    line = escape(text[: LINE + 1])
    return line if len(line) <= LINE else line[: LINE - 1] + "…"


def _copied(value: Any, room: int, text: type[str] | None) -> Any:
    """Return a copy that says little of itself; texts become ``text``, or only long ones names."""
    if isinstance(value, str):
        return text(value) if text else _Name(value) if len(value) > NAME else value
    if isinstance(value, dict | list | tuple) and room == 0:
        raise InvalidEvent("the value is nested too deeply")
    if isinstance(value, dict):
        return _Object({_copied(name, room, None): _copied(item, room - 1, text) for name, item in value.items()})
    if isinstance(value, list | tuple):
        return _Array(_copied(item, room - 1, text) for item in value)
    return value


def _hide(value: Any, parts: list[str]) -> Any:
    if not parts:
        return Hidden()
    name: Any = parts[0].replace("~1", "/").replace("~0", "~")
    if isinstance(value, list):
        name = int(name) if name.isdecimal() and len(name) < 10 and int(name) < len(value) else None
    if (isinstance(value, dict) and name in value) or (isinstance(value, list) and name is not None):
        value[name] = _hide(value[name], parts[1:])  # in the copy
    return value


@lru_cache(maxsize=8)
def _dialect(base: Any) -> tuple[Any, Any]:
    """Return the bounded class of a dialect, and its validator of schemas."""
    made = schema_keywords.bounded(base)
    return made, made(base.META_SCHEMA, registry=Registry())


@lru_cache(maxsize=256)
def _compiled(text: bytes) -> Validator | str:
    """Return a schema's validator, or why there is none: that is not found out a second time either."""
    try:
        return _usable(lambda: schema_keywords.within(META_BUDGET, 0, lambda: _compile(text)))
    except SchemaUnusable as error:
        return str(error)


def _compile(text: bytes) -> Validator:
    if len(text) > SCHEMA_LIMIT:
        raise SchemaUnusable(f"it is larger than {SCHEMA_LIMIT} bytes")
    try:
        schema = _copied(json.loads(text), SCHEMA_DEEPEST, None)
    except InvalidEvent:
        raise SchemaUnusable(f"it is nested deeper than {SCHEMA_DEEPEST} levels") from None
    made, meta = _dialect(validators.validator_for(schema, default=validators.Draft202012Validator))
    wrong = next(iter(meta.iter_errors(schema)), None)
    if wrong is not None:
        raise SchemaUnusable(f"it is no JSON Schema: {_line(wrong)}")
    resource = specification_with(made.ID_OF(made.META_SCHEMA)).create_resource(schema)
    # Read for anchors and ids now, so that not every reference does it.
    registry = Registry().with_resource(resource.id() or "", resource).crawl()
    validator: Validator = made(schema, registry=registry)
    return validator
