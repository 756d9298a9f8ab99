"""JSON paths of a policy: what they select in a call's arguments, as text, with a bound on the work. Pure.

The grammar is jsonpath_rfc9535's; its evaluation is not used, because it knows no bound, recurses, and lets filters
match with a backtracking engine. https://www.rfc-editor.org/rfc/rfc9535
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jsonpath_rfc9535 import JSONPathEnvironment
from jsonpath_rfc9535.exceptions import JSONPathError
from jsonpath_rfc9535.filter_expressions import (
    ComparisonExpression,
    Expression,
    FilterContext,
    FilterExpression,
    FilterQuery,
    FunctionExtension,
    LogicalExpression,
    PrefixExpression,
)
from jsonpath_rfc9535.segments import JSONPathRecursiveDescentSegment, JSONPathSegment
from jsonpath_rfc9535.selectors import FilterSelector, IndexSelector, NameSelector, SliceSelector

PATH_LIMIT = 1000  # characters
VALUE_LIMIT = 10_000  # values visited on the way, for one path in one call
TEXT_LIMIT = 1024 * 1024  # characters of all values selected by one path in one call

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class PathError(ValueError):
    """A JSON path is wrong; the message says where, and what to write instead."""


class Unjudgeable(Exception):
    """What a path selects cannot be held against a pattern: too much of it, nested too deeply, or no JSON."""


class _Environment(JSONPathEnvironment):
    """RFC 9535 without the functions that take a pattern (a backtracking engine's) or many values (no bound)."""

    def setup_function_extensions(self) -> None:
        super().setup_function_extensions()
        for name in set(self.function_extensions) - {"length"}:
            del self.function_extensions[name]


_ENVIRONMENT = _Environment()


class Path:
    """A compiled JSON path. Raises :class:`PathError`."""

    __slots__ = ("_keys", "_segments", "text")

    def __init__(self, text: str) -> None:
        if len(text) > PATH_LIMIT:
            raise PathError(f"must have at most {PATH_LIMIT} characters")
        try:
            query = _ENVIRONMENT.compile(text)
        except JSONPathError as error:
            raise PathError(f"{text!r} is not a JSON path (RFC 9535): {_plain(error)}") from None
        except RecursionError:
            raise PathError("is nested too deeply") from None
        self.text = text
        self._segments = query.segments
        for selector in (selector for segment in query.segments for selector in segment.selectors):
            if isinstance(selector, FilterSelector):
                _check_filter(selector.expression)
        # Most paths name one value: `$.file`. They are followed without the machinery.
        self._keys = _keys(query.segments)

    def texts(self, arguments: dict[str, Any], limit: int = TEXT_LIMIT) -> list[str]:
        """Return what the path selects: strings as they are, everything else as compact JSON.

        Raises :class:`Unjudgeable`, also when that is more than ``limit`` characters.
        """
        keys = self._keys
        values = _Walk(arguments).select(self._segments) if keys is None else _follow(arguments, keys)
        texts, size = [], 0
        for value in values:
            text = value if isinstance(value, str) else _as_json(value)
            size += len(text)
            if size > limit:
                raise Unjudgeable(f"more than {limit:,} characters are selected")
            texts.append(text)
        return texts

    def __str__(self) -> str:
        return self.text


def _plain(error: JSONPathError) -> str:
    """Return the library's message, with a hint where a function is left out on purpose."""
    hint = ": of the functions only length() is offered, match with glob or regex" if "function" in str(error) else ""
    return f"{error}{hint}"


def _keys(segments: Iterable[JSONPathSegment]) -> tuple[str | int, ...] | None:
    """Return the names and indices of a path that can select one value only; None for any other."""
    keys: list[str | int] = []
    for segment in segments:
        if isinstance(segment, JSONPathRecursiveDescentSegment) or len(segment.selectors) != 1:
            return None
        selector = segment.selectors[0]
        if isinstance(selector, NameSelector):
            keys.append(selector.name)
        elif isinstance(selector, IndexSelector):
            keys.append(selector.index)
        else:
            return None
    return tuple(keys)


def _follow(value: Any, keys: tuple[str | int, ...]) -> Sequence[Any]:
    for key in keys:
        if isinstance(value, dict):
            if key not in value or not isinstance(key, str):
                return ()
        elif not isinstance(value, list) or not isinstance(key, int) or not -len(value) <= key < len(value):
            return ()
        value = value[key]
    return (value,)


def _check_filter(expression: Expression) -> None:
    """Refuse what would make a filter's cost depend on more than the value that it looks at."""
    pending = [expression]
    while pending:
        part = pending.pop()
        if isinstance(part, FilterExpression):
            pending.append(part.expression)
        elif isinstance(part, PrefixExpression):
            pending.append(part.right)
        elif isinstance(part, LogicalExpression | ComparisonExpression):
            pending += (part.left, part.right)
        elif isinstance(part, FunctionExtension):
            pending += part.args
        elif isinstance(part, FilterQuery) and not part.query.singular_query():
            raise PathError(f"has a filter with {part}: inside a filter a path may only name one value, as @.mode does")


def _as_json(value: Any) -> str:
    try:
        return _encode(value)
    except RecursionError:
        raise Unjudgeable("a value is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise Unjudgeable(f"a value is not JSON: {error}") from None


class _Walk:
    """One evaluation. Every value it comes by is counted, those that a filter refuses included."""

    __slots__ = ("_left", "_root")

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._left = VALUE_LIMIT

    def select(self, segments: Iterable[JSONPathSegment]) -> list[Any]:
        values: list[Any] = [self._root]
        for segment in segments:
            deep = isinstance(segment, JSONPathRecursiveDescentSegment)
            values = [
                child
                for value in (self._descend(values) if deep else values)
                for selector in segment.selectors
                for child in self._children(value, selector)
            ]
        return values

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._left -= 1
            if self._left < 0:
                raise Unjudgeable(f"there are more than {VALUE_LIMIT:,} values to look at")
            yield value

    def _descend(self, values: list[Any]) -> Iterator[Any]:
        # Without recursion, since the depth is the caller's choice; in the order of the document.
        pending = values[::-1]
        while pending:
            value = pending.pop()
            yield value
            inner = [child for child in self._counted(_all_of(value)) if isinstance(child, dict | list)]
            pending += reversed(inner)

    def _children(self, value: Any, selector: object) -> Iterable[Any]:
        if isinstance(selector, NameSelector):
            return self._counted((value[selector.name],) if isinstance(value, dict) and selector.name in value else ())
        if isinstance(selector, IndexSelector):
            inside = isinstance(value, list) and -len(value) <= selector.index < len(value)
            return self._counted((value[selector.index],) if inside else ())
        if isinstance(selector, SliceSelector):
            return self._counted(value[selector.slice] if isinstance(value, list) and selector.slice.step != 0 else ())
        children = self._counted(_all_of(value))
        return filter(self._passes(selector), children) if isinstance(selector, FilterSelector) else children

    def _passes(self, selector: FilterSelector) -> Any:
        def passes(child: Any) -> bool:
            try:
                context = FilterContext(env=_ENVIRONMENT, current=child, root=self._root)
                return selector.expression.evaluate(context)
            except RecursionError:
                raise Unjudgeable("a value is nested too deeply") from None
            except JSONPathError as error:
                raise Unjudgeable(f"a filter cannot be evaluated: {error}") from None

        return passes


def _all_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
