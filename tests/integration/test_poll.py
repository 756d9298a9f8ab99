"""Long polling: the stream's cursor, order and no-loss rules, one answer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from agent_sse import SimpleNotifier
from harness import DEADLINE, PREFIX, Served, Stream, Valkey, bearer, make_settings, make_token, serve, until

pytestmark = pytest.mark.usefixtures("sink")


async def poll(
    http: httpx.AsyncClient, served: Served, session: str = "s1", *, token: str | None = None, **query: Any
) -> dict[str, Any]:
    """Return the ``data`` of one poll that succeeds."""
    reply = await http.get(
        f"{served.api}/poll/{session}",
        params=query,
        headers=bearer(token or make_token(session)),
        timeout=DEADLINE + 60,
    )
    assert (200, "no-store") == (reply.status_code, reply.headers["cache-control"]), reply.text
    body = reply.json()
    assert body["success"] is True
    return dict(body["data"])


@asynccontextmanager
async def asked(notifier: SimpleNotifier, served: Served, session: str = "s1") -> AsyncIterator[None]:
    """An open permission request that is shown."""
    asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {"file": "a.py"}, "high"))
    async with Stream(served.events(session, make_token(session))) as stream:
        await stream.next("permission_request")
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_poll_without_a_cursor_is_the_streams_snapshot(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The first poll answers at once with what a new stream shows, and with the cursor that primes it."""
    await notifier.tool_status("s1", "search", "executing", tool_call_id="c1", parameters={"n": 2**60, "x": 0.1})
    await notifier.tool_result("s1", "search", {"text": "</script>\u202e"}, success=True, tool_call_id="c0")
    async with (
        serve(make_settings(valkey.url)) as served,
        asked(notifier, served),  # what is not there has the time of the reading
        httpx.AsyncClient() as http,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        tip = await stream.primed()
        shown = [event.json for event in stream.records if event.data is not None and event.type != "heartbeat"]
        data = await poll(http, served)
    assert (tip, None) == (data["last_event_id"], data["reset"])
    assert [{"id": None, **event} for event in shown] == data["events"]


async def test_poll_waits_for_the_next_event(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A poll that is up to date is answered by the next event, with its id as the cursor to go on from."""
    async with serve(make_settings(valkey.url)) as served, httpx.AsyncClient() as http:
        cursor = (await poll(http, served))["last_event_id"]
        waiting = asyncio.create_task(poll(http, served, last_event_id=cursor, wait=30))
        await until(lambda: served.app.state.agent_sse.hub.open_streams, what="a poll that waits")
        event_id = await notifier.tool_status("s1", "search", "executing", tool_call_id="c1")
        data = await waiting
        assert ([event_id], event_id) == ([event["id"] for event in data["events"]], data["last_event_id"])
        assert {"events": [], "last_event_id": event_id, "reset": None} == await poll(
            http, served, last_event_id=event_id, wait=0
        )
        assert 0 == served.app.state.agent_sse.hub.open_streams


async def test_poll_takes_the_header_only(valkey: Valkey) -> None:
    """A token in a poll's URL is 401, as everywhere but on the stream."""
    async with serve(make_settings(valkey.url)) as served, httpx.AsyncClient() as http:
        reply = await http.get(f"{served.url}{PREFIX}/poll/s1", params={"token": make_token("s1")})
        assert (401, "token_in_url") == (reply.status_code, reply.json()["error"]["code"])
