"""Names in a host's message that some server could take for other ones. Pure.

Many JSON readers, Go's among them, match names without regard to case: to them ``Method`` is ``method``, and of two
such the last one counts. The guard reads names exactly, so it lets nothing pass that the two would read differently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

MESSAGE = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
CALL_PARAMS = frozenset({"name", "arguments", "_meta", "task", "requeststate", "inputresponses"})
_EXACT = {"requeststate": "requestState", "inputresponses": "inputResponses"}


def fold(name: str) -> str:
    """Return what all spellings have in common that some reader takes for one name.

    By way of upper case and without dots above, for those to which the Turkish i is one like any other.
    """
    return name if name.isascii() and name.islower() else name.upper().casefold().replace("\u0307", "")


def misspelt(fields: Mapping[str, Any], reserved: Collection[str]) -> str | None:
    """Return a name that differs from a reserved one in its case only, None when there is none."""
    for name in fields:
        folded = fold(name)
        if folded in reserved and name != _EXACT.get(folded, folded):
            return name
    return None


def doubled(value: object) -> tuple[str, str] | None:
    """Return two names of one object that differ in their case only, at any depth; None when there are none."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if (pair := _doubled_in(item)) is not None:
                return pair
            stack.extend(inner for inner in item.values() if isinstance(inner, dict | list))
        elif isinstance(item, list):
            stack.extend(inner for inner in item if isinstance(inner, dict | list))
    return None


def _doubled_in(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name in fields:
        other = seen.setdefault(fold(name), name)
        if other is not name:
            return other, name
    return None
