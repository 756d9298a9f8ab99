"""A stream's first bytes, replay, snapshot and end, over a real uvicorn and a real Valkey."""

from __future__ import annotations

from agent_sse import SimpleNotifier
from harness import Stream, Valkey, make_settings, make_token, serve


async def test_stream_delivers_an_event_and_resumes(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An event reaches an open stream, and a stream that resumes with its id gets only what came later."""
    async with serve(make_settings(valkey.url)) as served:
        token = make_token("s1")
        async with Stream(served.events("s1", token)) as stream:
            assert stream.status == 200
            await stream.primed()
            first = await notifier.tool_status("s1", "search", "executing", tool_call_id="c1")
            event = await stream.next()
            assert (first, "tool_status") == (event.id, event.type)
        second = await notifier.tool_status("s1", "search", "completed", tool_call_id="c1")
        async with Stream(served.events("s1", token), {"Last-Event-ID": first}) as stream:
            event = await stream.next()
            assert (second, "completed") == (event.id, event.json["data"]["status"])
            assert second == await stream.primed()
