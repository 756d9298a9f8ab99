"""`agent-sse audit`: a session's audit in the terminal, escaped."""

from __future__ import annotations

import json

from agent_sse.audit import Audit, AuditEntry
from agent_sse.backend import Backend
from agent_sse.errors import InvalidEvent
from agent_sse.frames import parse_id
from agent_sse.keys import check_session_id
from agent_sse.redis_url import find_redis
from agent_sse.registry import Registry
from agent_sse.settings import RedisSettings
from agent_sse.store import Store
from agent_sse.terminal import escape, summary

PAGE = 500


async def run(settings: RedisSettings, session_id: str, *, after: str = "", as_json: bool = False) -> None:
    """Print the entries after an id (``"<ms>-<seq>"``), all without one. Raises :class:`InvalidEvent` for a bad id."""
    check_session_id(session_id)
    cursor = parse_id(after.encode("utf-8", "replace")) if after else None
    if after and cursor is None:
        raise InvalidEvent("--after takes the id of an entry, such as 1700000000000-0")
    backend = Backend(await find_redis(settings), timeout=settings.publish_timeout)
    store = Store(backend, settings)
    audit = Audit(store, Registry(store))
    try:
        while entries := await audit.read(session_id, after=cursor, count=PAGE):
            for entry in entries:
                print(escape(json.dumps(entry.as_json(), ensure_ascii=False)) if as_json else line_of(entry))
            cursor = parse_id(entries[-1].entry_id.encode())
    finally:
        await backend.aclose()


def line_of(entry: AuditEntry) -> str:
    """Return an entry as one line: when, what, of which tool, decided by whom, and on which parameters."""
    data = entry.data
    who = (
        f"{data.get('by', data.get('kind'))} ({data.get('resolved_by')})" if data.get("resolved_by") else data.get("by")
    )
    words = [
        entry.at,
        str(data.get("outcome") or data.get("kind")).ljust(9),
        str(data.get("tool_name") or data.get("tool_call_id") or data.get("grant_id") or ""),
        f"by {who}",
    ]
    if data.get("rule"):
        words.append(f"rule {data['rule']}")
    if data.get("reason"):
        words.append(f"because {summary(data['reason'])}")
    if "parameters" in data:
        words.append(summary(data.get("edited_parameters", data["parameters"])))
    if data.get("digest"):
        words.append(f"sha256:{str(data.get('edited_digest', data['digest']))[:16]}")
    return escape("  ".join(words))
