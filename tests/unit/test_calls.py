"""A script's call as it is sent: the short way, from what was packed before, is the long way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_sse import scripts
from agent_sse.backend import Backend, Call
from agent_sse.keys import SESSION_ID
from agent_sse.scripts import Script
from agent_sse.settings import RedisSettings
from agent_sse.store import Store

SCRIPTS = [
    scripts.PUBLISH, scripts.REPLAY, scripts.OPEN, scripts.CLOSE, scripts.REQUEST, scripts.WAIT, scripts.DECIDE,
    scripts.SNAPSHOT, scripts.TICK, scripts.HEALTH, scripts.REVOKE, scripts.CANCEL, scripts.CANCELLED,
    scripts.PUBLISH_ONCE,
]  # fmt: skip
OF_SESSION = ("events", "state", "channel", "calls", "publishers", "closed")
OF_PERMISSIONS = ("requests", "queue", "due", "wake", "streams", "grants", "audit")
KEYED = {scripts.CLOSE, scripts.PUBLISH_ONCE}
SHORT = {scripts.PUBLISH, scripts.REPLAY, scripts.OPEN}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
@given(
    session=st.from_regex(SESSION_ID, fullmatch=True),
    args=st.lists(st.binary(max_size=30) | st.text(max_size=10) | st.integers(0, 2**63), max_size=5),
)
def test_call_is_the_same_as_one_packed_as_a_whole(script: Script, session: str, args: list[bytes | str | int]) -> None:
    """Whatever the session's id and the arguments, NULs among them: its keys, the bounds, then the arguments."""
    settings = RedisSettings(key_prefix="p.q", retention_events=7)
    store = Store(Backend("redis://localhost:1"), settings)
    names = OF_SESSION + (() if script in SHORT else OF_PERMISSIONS) + (("once",) if script in KEYED else ())
    keys = [f"p.q:{{{session}}}:{name}" for name in names]
    retention, life = int(settings.retention_seconds * 1000), int(settings.session_ttl * 1000)
    bounds = [retention, 7, settings.retention_bytes, life, "PUBLISH"]
    if script not in SHORT:
        bounds += [int(settings.audit_retention * 1000), settings.audit_entries]
    for _ in range(2):  # the second one is made of what the first has left
        call = store.call(script, session, *args)
        assert Call.of(script, keys, [*bounds, *args]).packed == call.packed
        assert f"{{{session}}}" == call.key
