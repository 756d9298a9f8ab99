"""JSON Merge Patch, RFC 7396 (https://www.rfc-editor.org/rfc/rfc7396), and what a patch would touch. Pure.

Nothing here changes what it is given, and what it returns shares no list or object with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent_sse.errors import InvalidEvent
from agent_sse.masking import MASK

DEEPEST = 200  # levels, as in masking


def apply(target: object, patch: object) -> Any:
    """Return the target with the patch applied, numbers as they are in the one or the other.

    Raises :class:`InvalidEvent` when one of them is nested deeper than 200 levels, or contains itself.
    """
    return _apply(target, patch, 0)


def _apply(target: object, patch: object, depth: int) -> Any:
    if not isinstance(patch, dict):
        return _copy(patch, depth)
    _check(depth)
    made: dict[Any, Any] = {}
    if isinstance(target, dict):
        # In the target's order; what is new comes behind it, in the patch's.
        made = {name: None if name in patch else _copy(item, depth + 1) for name, item in target.items()}
    for name, item in patch.items():
        if item is None:
            made.pop(name, None)
        else:
            made[name] = _apply(target.get(name) if isinstance(target, dict) else None, item, depth + 1)
    return made


def _copy(value: object, depth: int) -> Any:
    if isinstance(value, dict):
        _check(depth)
        return {name: _copy(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        _check(depth)
        return [_copy(item, depth + 1) for item in value]
    return value


def _check(depth: int) -> None:
    if depth > DEEPEST:
        raise InvalidEvent(f"nested too deeply (more than {DEEPEST} levels), or containing itself")


def touches(patch: object, pointers: Iterable[str]) -> str | None:
    """Return the first of the JSON pointers (RFC 6901) whose value the patch would change, replace or remove.

    The pointers are those of values that exist. A part like ``0`` may be a place in an array, which a patch replaces
    whole: what such a pointer passes through counts as touched by any object there, since only an array's owner knows.
    """
    return next((pointer for pointer in pointers if _touches(patch, pointer)), None)


def _touches(patch: object, pointer: str) -> bool:
    here = patch
    for part in pointer.split("/")[1:]:
        # Anything but an object takes the place of what holds the value, and an object that of an array.
        if not isinstance(here, dict) or (part.isdecimal() and part.isascii()):
            return True
        name = part.replace("~1", "/").replace("~0", "~")
        if name not in here:
            return False
        here = here[name]
    return True


def contains_mask(patch: object) -> bool:
    """Tell whether the patch would write the mask itself, or part of a text that has it, in a name or a value."""
    stack = [patch]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and MASK in item:
            return True
        if isinstance(item, dict):
            stack += (*item, *item.values())
        elif isinstance(item, list | tuple):
            stack += item
    return False
