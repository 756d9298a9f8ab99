"""The Lua scripts, one file each; a common head is put in front. Called by SHA-1, so each release brings its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

SESSION = ("_session",)
PERMISSIONS = ("_session", "_permissions")


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script as Redis knows it. ``sha`` is the SHA-1 for EVALSHA (https://redis.io/docs/latest/commands/evalsha/)."""

    name: str
    text: str
    sha: str


def _load(name: str, heads: tuple[str, ...]) -> Script:
    folder = files(__name__)
    text = "\n".join((folder / f"{part}.lua").read_text(encoding="utf-8") for part in (*heads, name))
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PUBLISH = _load("publish", SESSION)
PUBLISH_ONCE = _load("publish_once", SESSION)
REPLAY = _load("replay", SESSION)
OPEN = _load("open", SESSION)
CLOSE = _load("close", SESSION)
REQUEST = _load("request", PERMISSIONS)
WAIT = _load("wait", PERMISSIONS)
DECIDE = _load("decide", PERMISSIONS)
SNAPSHOT = _load("snapshot", PERMISSIONS)
TICK = _load("tick", PERMISSIONS)
HEALTH = _load("health", PERMISSIONS)
REVOKE = _load("revoke", PERMISSIONS)
CANCEL = _load("cancel", PERMISSIONS)
CANCELLED = _load("cancelled", PERMISSIONS)
UNANSWERED = _load("unanswered", ())
AUDITED = _load("audited", ())
