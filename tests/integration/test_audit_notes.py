"""The index of sessions whose audit may have grown: in time for each entry, without a note for each of them."""

from __future__ import annotations

from agent_sse import SimpleNotifier
from harness import Valkey, session_name


async def test_entries_in_quick_succession_share_a_note_that_reaches_beyond_them(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """Of a session's many entries each is covered by a note: the time until which the audit may grow is later."""
    session = session_name()
    async with valkey.client() as client:
        for number in range(50):
            entry_id = await notifier.audit(session, {"kind": "decision", "number": number})
            until = await client.zscore("agent_sse:audited", session)
            assert until is not None
            assert int(entry_id.partition("-")[0]) <= until
        stats = await client.info("commandstats")
    assert stats["cmdstat_zadd"]["calls"] < 25
    assert 50 == stats["cmdstat_xadd"]["calls"]
