"""Large values made small enough to be shown: long texts, lists and objects are cut and say so. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LEVELS = ((4096, 100), (512, 30), (80, 10), (20, 3))  # longest text in characters, most items of a list or object
DEEPEST = 12
OVERLAP = 256  # characters of a text's rest that are looked at for secrets, so that none is cut in half and shown


def shorten(value: object, size: Callable[[object], int], limit: int, mask: Callable[[object], object]) -> object:
    """Return the value masked, and cut as far as needed for ``size(value) <= limit`` (bytes).

    Returns the masked value itself when it fits. ``size`` is not called for what is far too large.
    """
    if _roughly(value, limit) <= limit:
        masked = mask(value)
        if size(masked) <= limit:
            return masked
    for text, items in LEVELS:
        cut = _cut(mask(_cut(value, text + OVERLAP, items, DEEPEST)), text, items, DEEPEST)
        if size(cut) <= limit:
            return cut
    return "… (too large to be shown)"


def _roughly(value: object, limit: int) -> int:
    """Return about how many characters a value has; counting ends above ``limit``."""
    total, stack = 0, [value]
    while stack and total <= limit:
        item = stack.pop()
        total += 2
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, Mapping):
            stack.extend(item.values())
            total += sum(len(key) for key in item if isinstance(key, str))
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return total


def _cut(value: Any, text: int, items: int, depth: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= text else f"{value[:text]}… ({len(value)} characters)"
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        some = {key: _cut(item, text, items, depth - 1) for key, item in list(value.items())[:items]}
        return some if len(value) <= items else {**some, "…": f"{len(value)} entries"}
    cut = [_cut(item, text, items, depth - 1) for item in value[:items]]
    return cut if len(value) <= items else [*cut, f"… ({len(value)} items)"]
