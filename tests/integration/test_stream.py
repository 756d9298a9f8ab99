"""A stream's first bytes, replay, snapshot and end, over a real uvicorn and a real Valkey."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_sse import PermissionDecision, SimpleNotifier, scripts
from agent_sse.backend import Backend
from agent_sse.store import Store
from harness import (
    DEADLINE,
    Event,
    Follower,
    Served,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    publish_unheard,
    serve,
    services_of,
    unheard,
    until,
)

pytestmark = pytest.mark.usefixtures("sink")

HEARTBEAT = 0.2  # s; short, so that tests which wait for heartbeats are short


@asynccontextmanager
async def direct_store(valkey: Valkey) -> AsyncIterator[Store]:
    """A store whose calls a test may bend."""
    backend = Backend(valkey.url)
    try:
        await backend.connect()
        yield Store(backend, make_settings(valkey.url))
    finally:
        await backend.aclose()


def shape(events: list[Event]) -> list[tuple[str | None, bool]]:
    """Each event's type, and whether it had an id."""
    return [(event.type if event.data is not None else "cursor", event.id is not None) for event in events]


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


# -- first bytes --------------------------------------------------------------------------------------------------


async def test_stream_has_the_headers_of_the_contract(valkey: Valkey, sink: str) -> None:
    """The response's headers are those of protocol.md § 4, and the server's own; a direct one ends its connection."""
    async with serve(make_settings(valkey.url)) as served, Stream(served.events("s1", make_token("s1"))) as stream:
        headers = {k: v for k, v in stream.response_headers.items() if k not in ("date", "server")}
        assert {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache, no-store, no-transform",
            "x-accel-buffering": "no",
            "referrer-policy": "no-referrer",
            "heartbeat-interval": "1",
            "transfer-encoding": "chunked",
            **({"connection": "close"} if sink == "direct" else {}),
        } == headers


async def test_stream_begins_with_retry_and_a_heartbeat(valkey: Valkey) -> None:
    """Before anything else come `retry:`, random between 1000 and 3000 ms, and a heartbeat without an id."""
    delays = set()
    async with serve(make_settings(valkey.url)) as served:
        for _ in range(20):
            stream = Stream(served.events("s1", make_token("s1")))
            try:
                await stream.open(read=False)
                assert stream._reader is not None
                await stream._reader.readline()  # the chunk's size
                first, second = await stream._reader.readuntil(b"\n\n"), await stream._reader.readuntil(b"\n\n")
            finally:
                await stream.close()
            found = re.fullmatch(rb"retry: (\d+)\n\n", first)
            assert found, first
            delays.add(int(found[1]))
            heartbeat = json.loads(second.removeprefix(b"data: "))
            assert ({"type", "timestamp"}, "heartbeat") == (heartbeat.keys(), heartbeat["type"])
            assert isinstance(heartbeat["timestamp"], float)
    assert 1000 <= min(delays)
    assert max(delays) <= 3000
    assert len(delays) > 5


# -- snapshot -----------------------------------------------------------------------------------------------------


async def snapshot_of(url: str) -> list[Event]:
    """Connect without a cursor and return what comes between the first heartbeat and the id line, that included."""
    async with Stream(url) as stream:
        await stream.primed()
        assert "heartbeat" == stream.records[0].type
        return stream.records[1:]


async def test_snapshot_of_an_unknown_session_clears_everything(valkey: Valkey) -> None:
    """Without any history: nothing to show, said so that stale cards go away, and the cursor 0-0."""
    async with serve(make_settings(valkey.url)) as served:
        records = await snapshot_of(served.events("s1", make_token("s1")))
    assert [("result_cleared", False), ("permission_cleared", False), ("cursor", True)] == shape(records)
    cleared = records[1].json["data"]
    assert {"request_id", "tool_call_id", "tool_name", "outcome", "reason", "resolved_by", "timestamp"} == set(cleared)
    assert (None, None, "none") == (cleared["request_id"], cleared["tool_call_id"], cleared["outcome"])
    assert "0-0" == records[2].id


async def test_snapshot_shows_what_runs_the_result_and_the_question(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Each unfinished call's latest status in order, the result, the presented request, and last the cursor."""
    async with serve(make_settings(valkey.url)) as served:
        url = served.events("s1", make_token("s1"))
        for call, tool, status in (
            ("c1", "read", "pending"), ("c2", "grep", "executing"), ("c3", "list", "executing"),
            ("c1", "read", "executing"), ("c3", "list", "completed"),
        ):  # fmt: skip
            await notifier.tool_status("s1", tool, status, tool_call_id=call)
        await notifier.tool_result("s1", "list", ["a", "b"], tool_call_id="c3")
        async with Stream(url) as watch:
            await watch.primed()
            asking = asyncio.create_task(notifier.request_permission("s1", "edit", {"file": "a.py"}, "high"))
            request = await watch.next("permission_request")
            records = await snapshot_of(url)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    assert [
        ("tool_status", False), ("tool_status", False), ("tool_result", False), ("permission_request", False),
        ("cursor", True),
    ] == shape(records)  # fmt: skip
    statuses = [(e.json["data"]["tool_call_id"], e.json["data"]["status"]) for e in records[:2]]
    assert [("c2", "executing"), ("c1", "executing")] == statuses
    assert ["a", "b"] == records[2].json["data"]["result"]
    assert request.json == records[3].json
    assert request.id == records[4].id


async def test_snapshot_shows_the_last_call_when_none_runs(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """With all calls finished it is the last one's final status; a result that was cleared stays away."""
    async with serve(make_settings(valkey.url)) as served:
        for call in ("c1", "c2"):
            await notifier.tool_status("s1", "read", "executing", tool_call_id=call)
            await notifier.tool_status("s1", "read", "completed", tool_call_id=call)
            await notifier.tool_result("s1", "read", call, tool_call_id=call)
        tip = await notifier.clear_result("s1")
        records = await snapshot_of(served.events("s1", make_token("s1")))
    assert [
        ("tool_status", False), ("result_cleared", False), ("permission_cleared", False), ("cursor", True),
    ] == shape(records)  # fmt: skip
    assert ("c2", "completed") == (records[0].json["data"]["tool_call_id"], records[0].json["data"]["status"])
    assert tip == records[3].id


# -- cursors ------------------------------------------------------------------------------------------------------


async def test_cursor_comes_by_header_or_query_and_the_header_wins(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Both ways resume; with both, the header counts; `0-0` asks for everything; the tip for nothing."""
    ids = [await notifier.error("s1", str(n)) for n in range(4)]
    token = make_token("s1")
    async with serve(make_settings(valkey.url)) as served:
        for query, header, expected in (
            (ids[1], None, ids[2:]),
            (None, ids[0], ids[1:]),
            (ids[0], ids[2], ids[3:]),
            ("0-0", None, ids),
            (None, "0-0", ids),
            ("garbage", ids[2], ids[3:]),
            (ids[3], None, []),
        ):
            headers = {} if header is None else {"Last-Event-ID": header}
            async with Stream(served.events("s1", token, cursor=query), headers) as stream:
                assert ids[3] == await stream.primed()
                got = stream.records[1:-1]
                assert [(event_id, "error") for event_id in expected] == [(event.id, event.type) for event in got]


BAD_CURSORS = [
    "abc", "1", "1-", "-1", "1-2-3", "01-0", "1-00", "+1-0", "1 -0", "1.0-0", "0x1-0", "1-0;", "$", "*", "+", "-",
    "(1-0", "18446744073709551616-0", "0-18446744073709551616", "9" * 400 + "-0", "１-０", "1-0\u0000", "1-0\n",
    "%", "null", "\U0001f600", "'; DROP", "1-0,2-0",
]  # fmt: skip


async def test_cursor_that_is_malformed_resets_once(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Whatever stands in a cursor's place: one `stream_reset` that says so, a snapshot, then live events."""
    tip = await notifier.tool_status("s1", "read", "executing")
    token = make_token("s1")
    async with serve(make_settings(valkey.url)) as served:
        sources = [(served.events("s1", token, cursor=quote(bad)), {}) for bad in BAD_CURSORS]
        sources += [
            (served.events("s1", token), {"Last-Event-ID": bad})
            for bad in BAD_CURSORS
            if bad.isprintable() and bad.isascii()
        ]
        sources.append((served.events("s1", token, cursor="1-0") + "&last_event_id=2-0", {}))
        for url, headers in sources:
            async with Stream(url, headers) as stream:
                assert 200 == stream.status
                assert tip == await stream.primed()
                assert [
                    ("stream_reset", False), ("tool_status", False), ("result_cleared", False),
                    ("permission_cleared", False), ("cursor", True),
                ] == shape(stream.records[1:])  # fmt: skip
                reset = stream.records[1].json["data"]
                assert ("invalid_cursor", tip) == (reset["reason"], reset["last_event_id"]), url
                assert {"reason", "last_event_id", "timestamp"} == set(reset)
        live = await Stream(*sources[0]).open()
        try:
            await live.primed()
            assert await notifier.error("s1", "x") == (await live.next()).id
        finally:
            await live.close()


async def test_cursor_that_is_empty_counts_as_none(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A browser that has no id yet sends none or an empty one: a snapshot without a reset."""
    await notifier.error("s1", "x")
    async with serve(make_settings(valkey.url)) as served:
        for url, headers in (
            (served.events("s1", make_token("s1"), cursor=""), {}),
            (served.events("s1", make_token("s1")), {"Last-Event-ID": ""}),
        ):
            async with Stream(url, headers) as stream:
                await stream.primed()
                assert [("result_cleared", False), ("permission_cleared", False)] == shape(stream.records[1:-1])


async def assert_reset(url: str, cursor: str, reason: str, tip: str) -> None:
    """Resume and expect one reset for ``reason``, then a snapshot as of ``tip``."""
    async with Stream(url, {"Last-Event-ID": cursor}) as stream:
        assert tip == await stream.primed()
        assert ("stream_reset", reason) == (stream.records[1].type, stream.records[1].json["data"]["reason"])
        assert all(event.id is None and event.type != "stream_reset" for event in stream.records[2:-1])
        assert "permission_cleared" == stream.records[-2].type


@pytest.mark.parametrize("bounds", [{"retention_events": 10}, {"retention_bytes": 2000}])
async def test_cursor_that_was_trimmed_resets_as_expired(valkey: Valkey, bounds: dict[str, int]) -> None:
    """Past the bound in events or bytes: told so; the oldest cursor from which all is there still resumes."""
    async with (
        SimpleNotifier.from_url(valkey.url, **bounds) as notifier,
        serve(make_settings(valkey.url, **bounds)) as served,
    ):
        url = served.events("s1", make_token("s1"))
        ids = [await notifier.error("s1", "x" * 100) for _ in range(40)]
        async with valkey.client() as client:
            kept = [entry[0].decode() for entry in await client.xrange("agent_sse:{s1}:events")]
        assert 1 < len(kept) < 20
        assert ids[-len(kept) :] == kept
        for cursor in (ids[0], "0-0", "1-1"):
            await assert_reset(url, cursor, "history_expired", ids[-1])
        # The one before the oldest is gone itself, but nothing after it is.
        async with Stream(url, {"Last-Event-ID": ids[-len(kept) - 1]}) as stream:
            await stream.primed()
            assert kept == [event.id for event in stream.records[1:-1]]


async def test_cursor_past_its_time_resets_as_expired(valkey: Valkey) -> None:
    """Past the retention time: told so; the last id still resumes, for nothing came after it."""
    async with (
        SimpleNotifier.from_url(valkey.url, retention_seconds=0.1) as notifier,
        serve(make_settings(valkey.url, retention_seconds=0.1)) as served,
        valkey.client() as client,
    ):
        url = served.events("s1", make_token("s1"))
        first, last = await notifier.error("s1", "1"), await notifier.error("s1", "2")

        async def gone() -> bool:
            return not await client.exists("agent_sse:{s1}:events")

        await until(gone, what="expiry of the Stream")
        await assert_reset(url, first, "history_expired", last)
        async with Stream(url, {"Last-Event-ID": last}) as stream:
            assert last == await stream.primed()
            assert [("cursor", True)] == shape(stream.records[1:])
            assert await notifier.error("s1", "3") == (await stream.next()).id


async def test_cursor_from_the_future_resets_as_lost(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An id above everything that Redis has belongs to a history that it lost."""
    tip = await notifier.error("s1", "x")
    ms, _ = tip.split("-")
    async with serve(make_settings(valkey.url)) as served:
        url = served.events("s1", make_token("s1"))
        await assert_reset(url, f"{ms}-1", "history_lost", tip)
        await assert_reset(url, f"{int(ms) + 10_000}-0", "history_lost", tip)
        await assert_reset(url, f"{2**64 - 1}-{2**64 - 1}", "history_lost", tip)


# -- heartbeats ---------------------------------------------------------------------------------------------------


def unix_time(event: Event) -> float:
    """When an event was made."""
    body = event.json
    if event.type == "heartbeat":
        return float(body["timestamp"])
    return datetime.fromisoformat(body["data"]["timestamp"]).timestamp()


async def test_heartbeats_come_only_when_nothing_else_does(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An idle stream has heartbeats without ids; each comes an interval after whatever was before it."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        for _ in range(3):
            assert (await stream.next("heartbeat")).id is None
        end = asyncio.get_running_loop().time() + 10 * HEARTBEAT
        while asyncio.get_running_loop().time() < end:
            await notifier.tool_status("s1", "read", "executing")
            await stream.next("tool_status")
        await stream.next("heartbeat")
        events = [event for event in stream.records if event.data is not None]
    for before, after in itertools.pairwise(events[1:]):
        if after.type == "heartbeat" and before.type in ("heartbeat", "tool_status"):
            assert unix_time(after) - unix_time(before) > HEARTBEAT / 2


async def test_heartbeat_repeats_the_open_question(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A presented request is sent again with each heartbeat, without an id, until it is answered."""
    token = make_token("s1")
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served,
        Stream(served.events("s1", token)) as stream,
        httpx.AsyncClient() as client,
    ):
        await stream.primed()
        asking = asyncio.create_task(notifier.request_permission("s1", "edit", {"file": "a.py"}))
        request = await stream.next("permission_request")
        assert request.id is not None
        for _ in range(2):
            repeat = await stream.next("permission_request")
            assert (None, request.json) == (repeat.id, repeat.json)
            assert "heartbeat" == stream.records[stream.records.index(repeat) - 1].type
        response = await client.post(
            f"{served.api}/permission-response/s1", json={"approved": True}, headers=bearer(token)
        )
        assert 200 == response.status_code
        assert await asking
        cleared = await stream.next("permission_cleared")
        for _ in range(3):
            await stream.next("heartbeat")
        after = stream.records[stream.records.index(cleared) + 1 :]
        assert {"heartbeat"} == {event.type for event in after}


# -- limits and ends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"max_streams": 2}, "too_many_streams"), ({"max_streams_per_session": 2}, "too_many_streams_of_session")],
)
async def test_streams_are_bounded_and_places_given_back(valkey: Valkey, limits: dict[str, int], code: str) -> None:
    """One stream too many is a 429 with Retry-After; a stream that ends makes room."""
    async with serve(make_settings(valkey.url, **limits)) as served:
        (service,) = services_of(served.app)
        url = served.events("s1", make_token("s1"))
        async with Stream(url) as first:
            async with Stream(url) as second:
                await asyncio.gather(first.primed(), second.primed())
                for _ in range(3):
                    async with httpx.AsyncClient() as client:
                        refused = await client.get(url)
                    assert (429, False, code) == (
                        refused.status_code, refused.json()["success"], refused.json()["error"]["code"],
                    )  # fmt: skip
                    assert 1 <= int(refused.headers["retry-after"]) <= 60
                if code == "too_many_streams_of_session":
                    async with Stream(served.events("s2", make_token("s2"))) as other:
                        assert 200 == other.status
            await until(lambda: service.hub.open_streams == 1, what="a place")
            async with Stream(url) as third:
                assert 200 == third.status
        await until(lambda: service.hub.open_streams == 0, what="all places")


async def test_stream_ends_cleanly_after_its_time(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """After MAX_STREAM_SECONDS the response ends whole, without an error, and the client resumes."""
    async with (
        serve(make_settings(valkey.url, max_stream_seconds=0.5)) as served,
        Follower(lambda: served.events("s1", make_token("s1"))) as follower,
    ):
        first = follower.stream
        ids = []
        while follower.connects < 3:
            ids.append(await notifier.error("s1", "x"))
            await follower.until_id(ids[-1])
        assert first is not None
        assert (True, b"") == (first.complete, first.buffer)
        assert ids == follower.ids


async def test_stream_ends_when_its_token_expires(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """In mid-stream: an `error` with `token_expired`, without an id, as the last frame."""
    async with (
        serve(make_settings(valkey.url)) as served,
        Stream(served.events("s1", make_token("s1", ttl=2))) as stream,
    ):
        await stream.primed()
        event_id = await notifier.error("s1", "x")
        assert event_id == (await stream.next()).id
        await stream.end()
        assert (True, b"") == (stream.complete, stream.buffer)
        last = stream.records[-1]
        assert ("error", "token_expired", None) == (last.type, last.json["code"], last.id)
        assert isinstance(last.json["message"], str)


@pytest.mark.parametrize("heard", [True, False], ids=["told", "message lost"])
@pytest.mark.parametrize("events", [1, 0])
async def test_stream_ends_when_its_session_is_closed(
    valkey: Valkey, notifier: SimpleNotifier, heard: bool, events: int
) -> None:
    """`close_session` ends every stream with `session_closed`, at the next tick when its message was lost."""
    await notifier.open_session("s1", "alice")
    for _ in range(events):
        await notifier.error("s1", "x")
    async with serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served, direct_store(valkey) as store:
        async with (
            Stream(served.events("s1", make_token("s1"))) as first,
            Stream(served.events("s1", make_token("s1"))) as second,
        ):
            await asyncio.gather(first.primed(), second.primed())
            await first.next("heartbeat")
            await first.next("heartbeat")
            if heard:
                await notifier.close_session("s1")
            else:
                call = store.call(scripts.CLOSE, "s1")
                await store.backend.run(unheard(call))
            for stream in (first, second):
                await stream.end()
                last = stream.records[-1]
                assert (True, "error", "session_closed") == (stream.complete, last.type, last.json["code"])
        # Whoever may still use the name finds an empty session, and stays.
        async with Stream(served.events("s1", make_token("s1"))) as stream:
            assert "0-0" == await stream.primed()
            for _ in range(4):
                await stream.next("heartbeat")


# -- Redis away, messages lost ------------------------------------------------------------------------------------


async def test_lost_last_message_is_found_with_the_heartbeat(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An event whose message was lost, with none after it to betray it, comes within a tick, once and in order."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served,
        direct_store(valkey) as store,
        Follower(lambda: served.events("s1", make_token("s1"))) as follower,
    ):
        ids = [await notifier.error("s1", "before")]
        for n in range(3):
            ids.append(await publish_unheard(store, "s1", {"type": "error", "message": str(n), "code": "x"}))
            await follower.until_id(ids[-1])
        ids.append(await notifier.error("s1", "after"))
        await follower.until_id(ids[-1])
        assert (ids, 1) == (follower.ids, follower.connects)


@pytest.mark.usefixtures("no_ticks")
async def test_gap_is_filled_in_order(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Lost messages are betrayed by the next one: what was lost comes first."""
    async with (
        serve(make_settings(valkey.url, heartbeat_interval=60)) as served,
        direct_store(valkey) as store,
        Follower(lambda: served.events("s1", make_token("s1"))) as follower,
    ):
        ids = [await notifier.error("s1", "before")]
        await follower.until_id(ids[-1])
        for n in range(500):  # more than a page
            ids.append(await publish_unheard(store, "s1", {"type": "error", "message": str(n), "code": "x"}))
        ids.append(await notifier.error("s1", "after"))
        await follower.until_id(ids[-1])
        assert ids == follower.ids


async def test_stream_opens_without_redis_and_catches_up(valkey: Valkey) -> None:
    """With Redis down a listed session's stream opens with heartbeats, and has everything once Redis is there."""
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=20) as notifier:
        ids = [await notifier.error("s1", str(n)) for n in range(3)]
        await valkey.stop()
        async with (
            serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served,
            Stream(served.events("s1", make_token("s1")), {"Last-Event-ID": ids[0]}) as resuming,
            Stream(served.events("s1", make_token("s1"))) as fresh,
            httpx.AsyncClient() as client,
        ):
            for stream in (resuming, fresh):
                assert 200 == stream.status
                for _ in range(3):
                    await stream.next("heartbeat")
                assert {"heartbeat"} == {event.type for event in stream.records}
            # Here the right itself needs Redis.
            refused = await client.get(served.events("s2", make_token()))
            assert 503 == refused.status_code
            assert "retry-after" in refused.headers
            await valkey.start()
            assert ids[2] == await resuming.primed() == await fresh.primed()
            assert ids[1:] == [event.id for event in resuming.records if event.type == "error"]
            live = await notifier.error("s1", "live")
            assert live == (await resuming.next("error")).id == (await fresh.next("error")).id


async def test_stream_outlives_redis(valkey: Valkey) -> None:
    """Redis goes away in mid-stream: heartbeats go on, and every event comes once it is back."""
    async with (
        SimpleNotifier.from_url(valkey.url, publish_timeout=20) as notifier,
        serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        ids = [await notifier.error("s1", "before")]
        await stream.next("error")
        await valkey.stop()
        for _ in range(3):
            await stream.next("heartbeat")
        waiting = asyncio.gather(*(notifier.error("s1", str(n)) for n in range(5)))
        await valkey.start()
        ids += await waiting
        while stream.last_id != ids[-1]:
            await stream.next("error")
        assert ids == [event.id for event in stream.records if event.type == "error"]
        assert not stream.ended


# -- sessions never mix -------------------------------------------------------------------------------------------

# Session names that differ by these only: what mixes them up would mix up real ones.
FAMILIES = [("", ":", ":b"), ("a", "A", "a:b"), ("", ":events", ":state"), (".", "-", "_", "..")]
RUNS = itertools.count()
PERMISSION_EVENTS = {"permission_request", "permission_response_result", "permission_cleared"}
STEPS = [
    "publish", "publish_together", "clear", "ask", "answer", "answer_of_another_session", "answer_without_id",
    "resume", "resume_from_another_session", "snapshot", "look", "trespass",
]  # fmt: skip


class Tenant:
    """A session, the only token for it, a stream that is always open, and what has to be in it and nowhere else."""

    def __init__(self, served: Served, name: str) -> None:
        self.name = name
        self.user = f"user of {name}"
        self.token = make_token(name, sub=self.user)
        self.url = served.events(name, self.token)
        self.stream = Stream(self.url)
        self.published: list[tuple[str, str, str | None]] = []  # id, type, mark
        self.status: str | None = None  # the marks of what a snapshot has to show
        self.result: str | None = None
        self.asked: dict[str, asyncio.Task[PermissionDecision]] = {}
        self.answered: dict[str, bool] = {}

    @property
    def pending(self) -> list[str]:
        return [request_id for request_id in self.asked if request_id not in self.answered]

    def mark(self, event: dict[str, Any]) -> str | None:
        """Return what an event says, after a look at whose it is."""
        kind, data = event["type"], event.get("data", {})
        if kind in ("permission_response_result", "permission_cleared"):
            assert data["request_id"] in self.asked or "none" == data["outcome"], event
            return None
        if kind == "permission_request":
            assert data["request_id"] in self.asked, event
            mark = data["parameters"]["mark"]
        elif kind == "tool_status":
            mark = data["details"]["parameters"]["mark"]
        else:
            mark = {"tool_result": data.get("result"), "error": event.get("message")}.get(kind)
        assert mark is None or self.name == mark.split()[0], event
        return mark

    def assert_snapshot(self, events: list[Event]) -> None:
        """It shows this session's state and nothing else."""
        for event in events:
            assert event.id is None
            self.mark(event.json)
        *statuses, result, permission = (event.json for event in events)
        assert ([] if self.status is None else [self.status]) == [self.mark(status) for status in statuses]
        assert ("result_cleared" if self.result is None else "tool_result", self.result) == (
            result["type"], self.mark(result),
        )  # fmt: skip
        shown = permission["data"]["request_id"]
        assert (permission["type"] == "permission_request") == (shown is not None)
        assert shown in (None, *self.pending)


class Neighbours:
    """Sessions side by side, and what may happen in them: the methods named in `STEPS`, each for two sessions."""

    def __init__(self, valkey: Valkey, notifier: SimpleNotifier, served: Served, client: httpx.AsyncClient) -> None:
        self.valkey = valkey
        self.notifier = notifier
        self.served = served
        self.client = client
        self.numbers = itertools.count()

    # What agents do.

    def emit(self, to: Tenant, kind: str) -> Awaitable[str]:
        mark = f"{to.name} {next(self.numbers)}"
        to.published.append(("", kind, mark))
        if kind == "tool_status":  # the same call in all sessions
            to.status = mark
            return self.notifier.tool_status(to.name, "t", "executing", tool_call_id="c", parameters={"mark": mark})
        if kind == "tool_result":
            to.result = mark
            return self.notifier.tool_result(to.name, "t", mark, tool_call_id="c")
        return self.notifier.error(to.name, mark)

    async def publish(self, one: Tenant, other: Tenant, flag: bool) -> None:
        for tenant in (one, other) if flag else (one, one):
            for kind in ("tool_status", "tool_result"):
                event_id = await self.emit(tenant, kind)
                tenant.published[-1] = (event_id, *tenant.published[-1][1:])

    async def publish_together(self, one: Tenant, other: Tenant, flag: bool) -> None:
        tenants = [one, other, one, other, other] if flag else [other, one, one, one, other]
        calls, places = [], []
        for tenant in tenants:
            places.append((tenant, len(tenant.published)))
            calls.append(self.emit(tenant, "error"))
        for (tenant, n), event_id in zip(places, await asyncio.gather(*calls), strict=True):
            tenant.published[n] = (event_id, *tenant.published[n][1:])

    async def clear(self, one: Tenant, _: Tenant, __: bool) -> None:
        one.published.append((await self.notifier.clear_result(one.name), "result_cleared", None))
        one.result = None

    async def ask(self, one: Tenant, _: Tenant, __: bool) -> None:
        if len(one.pending) == 3:
            return
        mark = f"{one.name} {next(self.numbers)}"
        asking = asyncio.create_task(
            self.notifier.request_permission(one.name, "t", {"mark": mark}, timeout=120, tool_call_id="p")
        )

        async def made() -> str | None:
            rows = (await self.health(one))["pending_permissions"]
            return next((row["request_id"] for row in rows if row["parameters"]["mark"] == mark), None)

        first = not one.asked
        one.asked[await until(made, what="the request")] = asking
        if first:  # nothing is before it: it is shown at once
            while (await one.stream.next("permission_request")).json["data"]["parameters"]["mark"] != mark:
                pass

    # What users do.

    async def respond(self, one: Tenant, approved: bool, request_id: str | None) -> tuple[int, dict[str, Any]]:
        body = {"approved": approved} if request_id is None else {"approved": approved, "request_id": request_id}
        url = f"{self.served.api}/permission-response/{one.name}"
        response = await self.client.post(url, json=body, headers=bearer(one.token))
        return response.status_code, response.json()

    async def settled(self, one: Tenant, request_id: str, approved: bool) -> None:
        """The agent that asked gets this answer, by this user, and its request's id."""
        one.answered[request_id] = approved
        async with asyncio.timeout(DEADLINE):
            decision = await one.asked[request_id]
        assert (request_id, approved, one.user) == (decision.request_id, decision.approved, decision.resolved_by)

    async def answer(self, one: Tenant, other: Tenant, flag: bool) -> None:
        if not one.asked:
            await self.ask(one, other, flag)
        request_id = (one.pending or [*one.asked])[0]
        before = one.answered.get(request_id)
        status, body = await self.respond(one, flag, request_id)
        if before in (None, flag):
            assert (200, before is not None) == (status, body["data"].get("already_resolved", False))
        else:
            assert (409, "already_resolved") == (status, body["error"]["code"])
        assert request_id == body["data"]["request_id"]
        if before is None:
            await self.settled(one, request_id, flag)

    async def answer_of_another_session(self, one: Tenant, other: Tenant, flag: bool) -> None:
        if not other.pending:
            await self.ask(other, one, flag)
        for request_id in other.asked:
            if request_id not in one.asked:
                status, body = await self.respond(one, flag, request_id)
                assert (404, "unknown_request") == (status, body["error"]["code"])
        await self.look(other, one, flag)

    async def answer_without_id(self, one: Tenant, _: Tenant, flag: bool) -> None:
        pending = one.pending
        status, body = await self.respond(one, flag, None)
        if status == 404:
            assert ("nothing_pending", []) == (body["error"]["code"], pending)
            return
        request_id = body["data"]["request_id"]
        assert request_id in one.asked
        if len(one.asked) == len(pending):  # nothing was answered, so the first is on the screen
            assert (200, pending[0]) == (status, request_id)
        if status == 200 and "already_resolved" not in body["data"]:
            assert request_id in pending
            await self.settled(one, request_id, flag)
        else:  # a double click
            assert (200 if one.answered[request_id] == flag else 409) == status

    async def look(self, one: Tenant, _: Tenant, __: bool) -> None:
        found = await self.health(one)
        assert one.name == found["session_id"]
        assert one.pending == [row["request_id"] for row in found["pending_permissions"]]
        assert all(not one.asked[request_id].done() for request_id in one.pending)
        ids = [event_id for event_id, _ in await self.valkey.entries(one.name)]
        assert (found["last_event_id"] in ids) if ids else (found["last_event_id"] is None)

    async def health(self, one: Tenant) -> dict[str, Any]:
        response = await self.client.get(f"{self.served.api}/health/{one.name}", headers=bearer(one.token))
        data: dict[str, Any] = response.json()["data"]
        return data

    async def trespass(self, one: Tenant, other: Tenant, flag: bool) -> None:
        if not other.pending:
            await self.ask(other, one, flag)
        api, mine = self.served.api, bearer(one.token)
        blind, aimed = {"approved": flag}, {"approved": flag, "request_id": other.pending[0]}
        for method, url, options in (
            ("GET", f"{api}/events/{other.name}", {"headers": mine}),
            ("GET", self.served.events(other.name, one.token), {}),
            ("GET", f"{api}/health/{other.name}", {"headers": mine}),
            ("POST", f"{api}/ticket/{other.name}", {"headers": mine}),
            ("POST", f"{api}/permission-response/{other.name}", {"headers": mine, "json": blind}),
            ("POST", f"{api}/permission-response/{other.name}", {"headers": mine, "json": aimed}),
        ):
            async with self.client.stream(method, url, **options) as response:
                assert 403 == response.status_code, url
                body = json.loads(await response.aread())
            assert {"success", "message", "error"} == set(body)
        rows = (await self.client.get(f"{api}/sessions", headers=mine)).json()["data"]["sessions"]
        assert [one.name] == [row["session_id"] for row in rows]
        await self.look(other, one, flag)

    # What clients do.

    async def connect(self, one: Tenant, cursor: str | None) -> list[Event]:
        """Return what comes up to the priming id: whatever has an id is this session's own."""
        async with Stream(one.url, {} if cursor is None else {"Last-Event-ID": cursor}) as stream:
            await stream.primed()
            records = list(itertools.takewhile(lambda event: event.data is not None, stream.records))
        return [event for event in records if event.type != "heartbeat"]

    async def resume(self, one: Tenant, other: Tenant, flag: bool) -> None:
        entries = await self.valkey.entries(one.name)
        if not entries:
            await self.publish(one, other, flag)
            entries = await self.valkey.entries(one.name)
        at = 0 if flag else len(entries) // 2
        got = [(event.id, event.json) for event in await self.connect(one, entries[at][0])]
        assert entries[at + 1 :] == got[: len(entries) - at - 1]
        for _, event in got[len(entries) - at - 1 :]:  # the next question may have been shown meanwhile
            assert event["type"] == "permission_request"
            one.mark(event)

    async def resume_from_another_session(self, one: Tenant, other: Tenant, flag: bool) -> None:
        mine = {event_id for event_id, _ in await self.valkey.entries(one.name)}
        theirs = [event_id for event_id, _ in await self.valkey.entries(other.name) if event_id not in mine]
        if not theirs:
            await self.publish(other, one, False)
            theirs = [event_id for event_id, *_ in other.published[-1:]]
        reset, *snapshot = await self.connect(one, theirs[0 if flag else -1])
        assert "stream_reset" == reset.type
        tip = reset.json["data"]["last_event_id"]
        assert tip in {"0-0", *(event_id for event_id, _ in await self.valkey.entries(one.name))}
        one.assert_snapshot(snapshot)

    async def snapshot(self, one: Tenant, _: Tenant, __: bool) -> None:
        one.assert_snapshot(await self.connect(one, None))

    async def settle(self, one: Tenant) -> None:
        """Withdraw what is open, and compare everything that the session's stream ever had."""
        open_requests = [one.asked[request_id] for request_id in one.pending]
        for asking in open_requests:
            asking.cancel()
        await asyncio.gather(*open_requests, return_exceptions=True)
        last = await self.emit(one, "error")
        one.published[-1] = (last, *one.published[-1][1:])
        while one.stream.last_id != last:
            await one.stream.next()
        entries = await self.valkey.entries(one.name)
        records = [event for event in one.stream.records if event.data is not None and event.type != "heartbeat"]
        assert entries == [(event.id, event.json) for event in records if event.id is not None]
        marked = [(event_id, event["type"], one.mark(event)) for event_id, event in entries]
        assert one.published == [row for row in marked if row[1] not in PERMISSION_EVENTS]
        for event in records:
            one.mark(event.json)
        for request_id in one.asked:
            told = [event for _, event in entries if event.get("data", {}).get("request_id") == request_id]
            answers = [event["data"]["approved"] for event in told if event["type"] == "permission_response_result"]
            assert ([one.answered[request_id]] if request_id in one.answered else []) == answers
            kinds = [event["type"] for event in told if event["type"] != "permission_response_result"]
            assert kinds in ([], ["permission_request", "permission_cleared"])

        async def alone() -> bool:
            return bool((await self.health(one))["connections"] == 1)

        await until(alone, what="the end of the other streams")
        found = await self.health(one)
        assert ([], last, len(entries)) == (
            found["pending_permissions"], found["last_event_id"], found["retained_events"],
        )  # fmt: skip


@settings(max_examples=14, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sampled_from(FAMILIES),
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=40, max_size=80
    ),
)
async def test_sessions_never_mix(
    valkey: Valkey, notifier: SimpleNotifier, names: tuple[str, ...], steps: list[tuple[str, int, int, bool]]
) -> None:
    """Whatever happens in sessions with similar names, none sees events, cursors, requests or answers of another."""
    base = f"x{next(RUNS)}"
    async with serve(make_settings(valkey.url, heartbeat_interval=HEARTBEAT)) as served, httpx.AsyncClient() as client:
        tenants = [Tenant(served, base + name) for name in names]
        world = Neighbours(valkey, notifier, served, client)
        try:
            for tenant in tenants:
                await tenant.stream.open()
                await tenant.stream.primed()
            for step, n, distance, flag in steps:
                one = n % len(tenants)
                other = (one + 1 + distance % (len(tenants) - 1)) % len(tenants)
                await getattr(world, step)(tenants[one], tenants[other], flag)
            for tenant in tenants:
                await world.settle(tenant)
        finally:
            asking = [task for tenant in tenants for task in tenant.asked.values()]
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, *(tenant.stream.close() for tenant in tenants), return_exceptions=True)
