"""Parameters against a tool's JSON Schema, from any server: bounded work, no network, linear-time patterns. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import re2
from jsonschema import SchemaError, ValidationError, validators
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from agent_sse import events
from agent_sse.errors import InvalidEvent, SchemaUnusable

SCHEMA_LIMIT = 64 * 1024  # bytes
BUDGET = 100_000  # keywords evaluated
UNIQUE_LIMIT = 1000  # items; comparing all with all takes the square of it
MESSAGE = 200  # characters of a violation's message

_left: ContextVar[list[int]] = ContextVar("agent_sse_schema_budget")


class _Hidden(str):
    """Stands where a masked value is: it satisfies every keyword."""

    __slots__ = ()


def violation(schema: Mapping[str, Any], value: Any, masked: Iterable[str] = ()) -> str | None:
    """Return None when the value fits the schema, else a line: a JSON pointer and what is wrong there.

    What the pointers in ``masked`` name counts as fitting. Raises :class:`SchemaUnusable` for a schema with which
    nothing can be checked: wrong, too large, with references elsewhere, or with patterns that RE2 does not know.
    """
    try:
        validator = _validator(events.encode(schema))
    except InvalidEvent as error:
        raise SchemaUnusable(f"the schema is no JSON: {error}") from None
    token = _left.set([BUDGET])
    try:
        for pointer in masked:
            value = _hide(value, pointer.split("/")[1:])
        found = next(iter(validator.iter_errors(value)), None)
    except Unresolvable as failure:
        raise SchemaUnusable(f"it refers to what it does not contain: {str(failure)[:MESSAGE]}") from None
    except re2.error as failure:
        raise SchemaUnusable(f"it has a pattern that cannot be checked: {str(failure)[:MESSAGE]}") from None
    except RecursionError:
        raise SchemaUnusable("it is nested too deeply") from None
    finally:
        _left.reset(token)
    return None if found is None else _line(found)


def _line(error: ValidationError) -> str:
    at = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.absolute_path)
    # jsonschema's own messages repeat the value, which may be long or hidden.
    wanted = json.dumps(error.validator_value, ensure_ascii=False, default=str)[:MESSAGE]
    if error.validator == "required":
        return f"{at or '/'}: {error.message[:MESSAGE]}"
    return f"{at or '/'}: does not fit {str(error.validator)[:MESSAGE]}: {wanted}"


def _hide(value: Any, parts: list[str]) -> Any:
    if not parts:
        return _Hidden()
    name = parts[0].replace("~1", "/").replace("~0", "~")
    if isinstance(value, dict) and name in value:
        return {**value, name: _hide(value[name], parts[1:])}
    if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        place = int(name)
        return [*value[:place], _hide(value[place], parts[1:]), *value[place + 1 :]]
    return value


Keyword = Callable[[Validator, Any, Any, Mapping[str, Any]], Iterator[ValidationError] | None]


def _bounded(keyword: Keyword) -> Keyword:
    def check(validator: Validator, wanted: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
        left = _left.get()
        left[0] -= 1
        if left[0] < 0:
            raise SchemaUnusable("checking it takes too long")
        if not isinstance(instance, _Hidden):
            yield from keyword(validator, wanted, instance, schema) or ()

    return check


def _pattern(_: Validator, wanted: Any, instance: Any, __: Mapping[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _compiled(wanted).search(instance):
        yield ValidationError(f"does not match {wanted}")


def _pattern_properties(validator: Any, wanted: Any, instance: Any, _: Mapping[str, Any]) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in wanted.items():
            for name in instance:
                if _compiled(pattern).search(name):
                    yield from validator.descend(instance[name], subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, wanted: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    patterns = [_compiled(pattern) for pattern in schema.get("patternProperties", ())]
    for name in instance:
        if name in schema.get("properties", ()) or any(pattern.search(name) for pattern in patterns):
            continue
        if wanted is False:
            yield ValidationError("unknown name", path=[name])
        elif isinstance(wanted, dict):
            yield from validator.descend(instance[name], wanted, path=name)


def _unique_items(_: Validator, wanted: Any, instance: Any, __: Mapping[str, Any]) -> Iterator[ValidationError]:
    if wanted is True and isinstance(instance, list):
        if len(instance) > UNIQUE_LIMIT:
            raise SchemaUnusable(f"uniqueItems is checked for {UNIQUE_LIMIT} items at most")
        seen = {json.dumps(item, sort_keys=True) for item in instance}
        if len(seen) < len(instance):
            yield ValidationError("has two equal items")


def _unevaluated(*_: Any) -> Iterator[ValidationError]:
    raise SchemaUnusable("unevaluatedProperties and unevaluatedItems are not checked here")


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options=options)


OWN: dict[str, Keyword] = {
    "pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items, "unevaluatedProperties": _unevaluated, "unevaluatedItems": _unevaluated,
}  # fmt: skip


@lru_cache(maxsize=8)
def _bounded_class(base: Any) -> Any:
    keywords = {name: _bounded(OWN.get(name, keyword)) for name, keyword in base.VALIDATORS.items()}
    return validators.extend(base, keywords)  # type: ignore[no-untyped-call] # the stubs leave it without types


@lru_cache(maxsize=256)
def _validator(text: bytes) -> Validator:
    if len(text) > SCHEMA_LIMIT:
        raise SchemaUnusable(f"it is larger than {SCHEMA_LIMIT} bytes")
    schema = json.loads(text)
    base = validators.validator_for(schema, default=validators.validator_for({}))
    token = _left.set([BUDGET])
    try:
        base.check_schema(schema)
        made: Validator = _bounded_class(base)(schema, registry=Registry())
    except SchemaError as error:
        raise SchemaUnusable(f"it is no JSON Schema: {error.message[:MESSAGE]}") from None
    except RecursionError:
        raise SchemaUnusable("it is nested too deeply") from None
    finally:
        _left.reset(token)
    return made
