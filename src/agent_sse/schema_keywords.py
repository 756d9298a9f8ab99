"""JSON Schema's keywords at a price: within a budget, and with RE2 for patterns. Pure.

Most are jsonschema's own. Those are written anew that read patterns, or compare all items with all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

import re2
from jsonschema import ValidationError, validators
from referencing.jsonschema import lookup_recursive_ref

from agent_sse.errors import SchemaUnusable

NAME = 60  # characters of a name or a value that is quoted
_MATCHED = 1024  # characters × instructions of a pattern that are a unit
_CODE_POINT = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}|.)", re.DOTALL)

_T = TypeVar("_T")
Keyword = Callable[[Any, Any, Any, Any], Iterable[ValidationError] | None]

# What is left, and what a dynamic reference costs, for which jsonschema may read the whole schema once more.
_left: ContextVar[list[int]] = ContextVar("agent_sse_schema_budget")


class Hidden(str):
    """Stands where a masked value is: it fits whatever is asked of it, and is equal to nothing else."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "what is hidden"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def within(units: int, dynamic: int, call: Callable[[], _T]) -> _T:
    """Call, with a budget in units of about 10 µs; a dynamic reference costs ``dynamic``.

    Raises :class:`SchemaUnusable` when it is spent.
    """
    token = _left.set([units, dynamic])
    try:
        return call()
    finally:
        _left.reset(token)


def _spend(units: int) -> None:
    left = _left.get()
    left[0] -= units
    if left[0] < 0:
        raise SchemaUnusable("checking it takes too long")


def _bounded(name: str, keyword: Keyword) -> Keyword:
    """Return the keyword's function with a price, and with one error at most: nobody is told of a second one."""
    each, dynamic = name in _EACH, name in {"$dynamicRef", "$recursiveRef"}
    least = 3 if name.endswith("Ref") or name == "$ref" else 1

    def check(validator: Any, wanted: Any, instance: Any, schema: Any) -> tuple[ValidationError, ...]:
        if isinstance(instance, Hidden):
            return ()
        units = least + (len(wanted) >> 3 if isinstance(wanted, dict | list | str) else 0)
        if each and isinstance(instance, dict | list):
            units += len(instance)
        _spend(units + _left.get()[1] if dynamic else units)
        found = next(iter(keyword(validator, wanted, instance, schema) or ()), None)
        return () if found is None else (found,)

    return check


def _matches(pattern: str, text: str) -> bool:
    compiled = _regex(str(pattern))
    _spend((compiled.programsize >> 4) + len(text) * compiled.programsize // _MATCHED)
    return compiled.search(text) is not None


@lru_cache(maxsize=512)
def _regex(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors, options.never_capture, options.max_mem = False, True, 2**20
    try:
        # ECMA-262's escapes of code points, which RE2 writes otherwise.
        return re2.compile(_CODE_POINT.sub(_code_point, pattern), options)
    except re2.error as error:
        raise SchemaUnusable(f"it has a pattern that RE2 does not know: {pattern[:NAME]!r}") from error


def _code_point(match: re.Match[str]) -> str:
    return f"\\x{{{match[1] or match[2]}}}" if match[1] or match[2] else match[0]


def _key(value: Any) -> Any:
    """Return what is equal and hashable for equal JSON values: 1 is 1.0, and true is not 1."""
    if isinstance(value, dict):
        _spend(1 + (len(value) >> 2))
        return "object", frozenset((name, _key(item)) for name, item in value.items())
    if isinstance(value, list):
        _spend(1 + (len(value) >> 2))
        return "array", tuple(_key(item) for item in value)
    if isinstance(value, float):
        return "number", str(int(value) if value.is_integer() else value)
    # Numbers as texts: hashes of integers can be made to collide.
    return value if isinstance(value, str) else (type(value).__name__.replace("int", "number"), str(value))


def _const(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if _key(instance) != _key(wanted):
        yield ValidationError(f"{instance!r} is not {_shown([wanted])}")


def _enum(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if instance not in wanted if isinstance(instance, str) else _key(instance) not in map(_key, wanted):
        yield ValidationError(f"{instance!r} is not one of: {_shown(wanted)}")


def _unique_items(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if wanted is True and isinstance(instance, list) and len(set(map(_key, instance))) < len(instance):
        yield ValidationError("this array has two equal items")


def _pattern(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(wanted, instance):
        yield ValidationError(f"{instance!r} does not match {wanted!r}")


def _below(validator: Any, subschema: Any, instance: Any, name: Any) -> Iterator[ValidationError]:
    if subschema is False:
        yield ValidationError("nothing is allowed here", path=[name])  # jsonschema leaves the path out
    else:
        yield from validator.descend(instance[name], subschema, path=name)


def _properties(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for name, subschema in wanted.items():
            if name in instance:
                yield from _below(validator, subschema, instance, name)


def _pattern_properties(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in wanted.items():
            for name in instance:
                if _matches(pattern, name):
                    yield from _below(validator, subschema, instance, name)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict) and wanted is not True:
        known = _named(instance, schema)
        extra = [name for name in instance if name not in known]
        if wanted is False and extra:
            yield ValidationError(f"{_shown(extra)}: no such name is allowed")
        elif wanted is not False:
            for name in extra:
                yield from validator.descend(instance[name], wanted, path=name)


def _unevaluated_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict) and wanted is not True:
        seen = _evaluated(validator, instance, schema, outermost=True)
        for name in instance.keys() - seen:
            yield from _below(validator, wanted, instance, name)


def _unevaluated_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, list) and wanted is not True:
        seen = _evaluated(validator, instance, schema, outermost=True)
        for place in range(len(instance)):
            if place not in seen:
                yield from _below(validator, wanted, instance, place)


def _named(instance: dict[str, Any], schema: Mapping[str, Any]) -> set[Any]:
    patterns = schema.get("patternProperties", ())
    named: set[Any] = instance.keys() & schema.get("properties", {}).keys()
    return named | {name for name in instance if any(_matches(pattern, name) for pattern in patterns)}


def _evaluated(validator: Any, instance: Any, schema: Any, *, outermost: bool = False) -> set[Any]:
    """Return names or places that a schema, which is known to fit, looks at (JSON Schema core, 11)."""
    if not isinstance(schema, dict):
        return set()
    _spend(5 + len(instance))
    whole = set(instance if isinstance(instance, dict) else range(len(instance)))
    if isinstance(instance, dict):
        everything = {"additionalProperties"} if outermost else {"additionalProperties", "unevaluatedProperties"}
        seen = _named(instance, schema)
    else:
        everything = {"additionalItems"} if outermost else {"additionalItems", "unevaluatedItems"}
        first = schema.get("prefixItems", schema.get("items"))
        seen = set(range(len(first))) if isinstance(first, list) else set()
        if not isinstance(schema.get("items", []), list):
            return whole
        if "contains" in schema:
            wanted = validator.evolve(schema=schema["contains"])
            seen |= {place for place, item in enumerate(instance) if wanted.is_valid(item)}
    if everything & schema.keys():
        return whole
    for below in _in_place(validator, instance, schema):
        if below.is_valid(instance):
            seen |= _evaluated(below, instance, below.schema)
    return seen


def _in_place(validator: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    """Return validators of the subschemas that look at the same value."""
    # A keyword has no other way to follow a reference; jsonschema's own do so.
    found = [validator._resolver.lookup(schema[name]) for name in ("$ref", "$dynamicRef") if name in schema]
    if "$recursiveRef" in schema:
        found.append(lookup_recursive_ref(validator._resolver))
    for reference in found:
        yield validator.evolve(schema=reference.contents, _resolver=reference.resolver)
    subschemas = [each for name in ("allOf", "anyOf", "oneOf") for each in schema.get(name, ())]
    subschemas += [each for name, each in schema.get("dependentSchemas", {}).items() if name in instance]
    if "if" in schema:
        fits = validator.evolve(schema=schema["if"]).is_valid(instance)
        subschemas += [schema["if"], schema.get("then", True)] if fits else [schema.get("else", True)]
    for each in subschemas:
        yield validator.evolve(schema=each)


def _shown(values: list[Any]) -> str:
    if any(isinstance(value, dict | list) for value in values):
        return "what is allowed"
    first = [value[:NAME] if isinstance(value, str) else value for value in values[:8]]
    some = ", ".join(json.dumps(value, ensure_ascii=False) for value in first)
    return f"{some}, …" if len(values) > 8 else some


_EACH = frozenset(
    ("items", "additionalItems", "contains", "patternProperties", "additionalProperties", "propertyNames",
     "unevaluatedItems", "unevaluatedProperties")
)  # fmt: skip
_OWN: dict[str, Keyword] = {
    "const": _const, "enum": _enum, "uniqueItems": _unique_items, "pattern": _pattern,
    "properties": _properties, "patternProperties": _pattern_properties, "additionalProperties": _additional_properties,
    "unevaluatedProperties": _unevaluated_properties, "unevaluatedItems": _unevaluated_items,
}  # fmt: skip


def bounded(base: Any) -> Any:
    """Return a dialect's class of validators with all keywords at their price."""
    keywords = {name: _bounded(name, _OWN.get(name, keyword)) for name, keyword in base.VALIDATORS.items()}
    if "extends" in keywords:  # draft 3, whose `properties` know `required`
        keywords["properties"] = _bounded("properties", base.VALIDATORS["properties"])
    made = validators.extend(base, keywords)  # type: ignore[no-untyped-call] # the stubs leave it without types

    def evolve(self: Any, **changes: Any) -> Any:
        # jsonschema's would change to another class, without bounds, where a schema inside names its dialect.
        resolver = changes.get("_resolver", self._resolver)
        return made(changes.get("schema", self.schema), registry=self._registry, _resolver=resolver)

    made.evolve = evolve
    return made
