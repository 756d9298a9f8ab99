"""Large values made small enough to be shown: long texts, lists and objects are cut and say so. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

LEVELS = ((4096, 100), (512, 30), (80, 10), (20, 3))  # longest text in characters, most items of a list or object
DEEPEST = 12
OVERLAP = 1024  # characters of a text's rest that are looked at for secrets, so that none is cut in half and shown


def shorten(value: object, size: Callable[[object], int], limit: int, mask: Callable[[object], object]) -> object:
    """Return the value masked, and cut as far as needed for ``size(value) <= limit`` (bytes).

    Returns the masked value itself when it fits. However large the value is, no more than about ``limit`` of it is
    looked at, copied, masked and measured at a time.
    """
    if _roughly(value, limit) <= limit:
        masked = mask(value)
        if size(masked) <= limit:
            return masked
    for text, items in LEVELS:
        if _roughly(value, limit, text, items, DEEPEST) <= limit:
            cut = _told(mask(_cut(value, text + OVERLAP, items, DEEPEST)), value, text, items)
            if size(cut) <= limit:
                return cut
    return "… (too large to be shown)"


def _roughly(
    value: object, limit: int, text: int = sys.maxsize, items: int = sys.maxsize, depth: int = sys.maxsize
) -> int:
    """Return about how many characters a value has, cut or whole; counting ends above ``limit``."""
    total, stack = 0, [(value, depth)]
    while stack and total <= limit:
        item, levels = stack.pop()
        total += 2
        if isinstance(item, str):
            total += min(len(item), text)
        elif levels > 0 and isinstance(item, Mapping):
            for key, part in islice(item.items(), min(items, limit)):
                total += len(key) if isinstance(key, str) else 0
                stack.append((part, levels - 1))
        elif levels > 0 and isinstance(item, list | tuple):
            stack.extend((part, levels - 1) for part in islice(item, min(items, limit)))
    return total


def _cut(value: Any, text: int, items: int, depth: int) -> Any:
    if isinstance(value, str):
        return value[:text]
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {key: _cut(item, text, items, depth - 1) for key, item in islice(value.items(), items)}
    return [_cut(item, text, items, depth - 1) for item in value[:items]]


def _told(cut: Any, value: Any, text: int, items: int) -> Any:
    """Return what was cut and masked without the overlap of its texts, saying how much of the value it is."""
    if isinstance(cut, str):
        is_whole = len(cut) <= text and not (isinstance(value, str) and len(value) > text + OVERLAP)
        return cut if is_whole or not isinstance(value, str) else f"{cut[:text]}… ({len(value)} characters)"
    if isinstance(cut, Mapping) and isinstance(value, Mapping):
        some = {key: _told(item, value.get(key), text, items) for key, item in cut.items()}
        return some if len(value) <= items else {**some, "…": f"{len(value)} entries"}
    if isinstance(cut, list) and isinstance(value, list | tuple):
        listed = [_told(item, whole, text, items) for item, whole in zip(cut, value, strict=False)]
        return listed if len(value) <= items else [*listed, f"… ({len(value)} items)"]
    return cut
