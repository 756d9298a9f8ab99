"""Remembered answers: how they are shown, and how one is revoked. Scripts make and apply them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from agent_sse import events, scripts
from agent_sse.store import Store

INTERNAL = frozenset({"key", "n"})  # how the scripts find and order them
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def shown(text: bytes) -> dict[str, Any]:
    """Return a remembered answer as clients see it."""
    return _shown(json.loads(text))


def listed(texts: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return remembered answers as clients see them, the oldest first."""
    return [_shown(grant) for grant in sorted(map(json.loads, texts), key=lambda grant: int(grant["n"]))]


def _shown(grant: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in grant.items() if name not in INTERNAL}


async def revoke(store: Store, session_id: str, grant_id: str, *, subject: str) -> dict[str, Any] | None:
    """Forget a remembered answer and return it; None when there is none of that id.

    What it has decided stays decided. Raises :class:`~agent_sse.errors.RedisUnavailable`,
    :class:`~agent_sse.errors.RedisRefused`.
    """
    if _ID.fullmatch(grant_id) is None:
        return None
    text = await store.run(scripts.REVOKE, session_id, grant_id, events.encode(subject))
    return shown(text) if text else None
