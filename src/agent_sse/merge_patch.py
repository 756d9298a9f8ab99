"""JSON Merge Patch, RFC 7396 (https://www.rfc-editor.org/rfc/rfc7396), and what a patch would touch. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent_sse.errors import InvalidEvent
from agent_sse.masking import MASK

DEEPEST = 200


def apply(target: object, patch: object, depth: int = 0) -> Any:
    """Return the target with the patch applied; both stay as they are. Raises :class:`InvalidEvent` at 200 levels."""
    if depth > DEEPEST:
        raise InvalidEvent(f"a patch may be nested {DEEPEST} levels deep")
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = apply(made.get(name), value, depth + 1)
    return made


def touches(patch: object, pointers: Iterable[str]) -> str | None:
    """Return the first of the JSON pointers (RFC 6901) whose value the patch would change, replace or remove."""
    return next((pointer for pointer in pointers if _touches(patch, pointer)), None)


def _touches(patch: object, pointer: str) -> bool:
    here = patch
    for part in pointer.split("/")[1:]:
        if not isinstance(here, dict):
            return True  # a null or another value in place of what holds it
        name = part.replace("~1", "/").replace("~0", "~")
        if name not in here:
            return False
        here = here[name]
    return True


def contains_mask(patch: object) -> bool:
    """Tell whether the patch would write the mask itself, in a name or a value."""
    stack = [patch]
    while stack:
        item = stack.pop()
        if isinstance(item, str) and MASK in item:
            return True
        if isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return False
