"""A poll's page: what it takes, when it has something to say, and where it stops."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_sse import events, frames
from agent_sse.polling import PAGE_BYTES, PAGE_EVENTS, Page

RESET = frames.data_frame(events.encode(events.stream_reset("history_lost", "9-0", "2026-01-01T00:00:00.000Z")))
STATE = frames.data_frame(events.encode(events.result_cleared(at="2026-01-01T00:00:00.000Z")))
ASKED = frames.data_frame(b'{"type":"permission_request","data":{"request_id":"r"}}')


def event(number: int, size: int = 0) -> bytes:
    payload = b'{"type":"tool_result","data":{"result":"%b"}}' % (b"x" * size)
    return frames.event_frame(b"%d-0" % number, payload)


def data_of(page: Page) -> dict[str, Any]:
    body = json.loads(page.body())
    assert body["success"] is True
    return dict(body["data"])


def ids(page: Page) -> list[str | None]:
    return [item["id"] for item in data_of(page)["events"]]


def test_page_begins_with_its_cursor_and_nothing_to_say() -> None:
    """First bytes and heartbeats are nothing to say, and nothing is known by them."""
    page = Page(b"3-0")
    page.write(frames.retry_frame(1000) + frames.heartbeat_frame(1.0))
    assert (False, False, False) == (page.known, page.read.is_set(), page.ready.is_set())
    assert {"events": [], "last_event_id": "3-0", "reset": None} == data_of(page)


def test_page_is_ready_at_its_first_event() -> None:
    """An event is something to say; what comes before the answer is built is part of it."""
    page = Page(b"3-0")
    page.write(frames.cursor_frame((3, 0)))
    assert (True, True, False) == (page.known, page.read.is_set(), page.ready.is_set())
    page.send(frames.chunk(event(4)))
    page.write(event(5) + event(6))
    assert page.ready.is_set()
    assert (["4-0", "5-0", "6-0"], "6-0") == (ids(page), data_of(page)["last_event_id"])


def test_page_is_not_ready_before_its_snapshot_is_whole() -> None:
    """Half a snapshot is none: only its cursor ends it, after a reset too."""
    page = Page(None)
    for part in (RESET, STATE, ASKED):
        page.write(part)
        assert not page.ready.is_set()
    page.write(frames.cursor_frame((9, 0)))
    assert page.ready.is_set()
    data = data_of(page)
    assert ["stream_reset", "result_cleared", "permission_request"] == [item["type"] for item in data["events"]]
    assert ("9-0", "history_lost") == (data["last_event_id"], data["reset"])


def test_page_that_waits_is_reset_as_a_whole() -> None:
    """A reset while a poll waits comes with its snapshot."""
    page = Page(b"3-0")
    page.write(frames.cursor_frame((3, 0)))
    page.write(RESET + STATE)
    assert not page.ready.is_set()
    page.write(frames.cursor_frame((9, 0)))
    assert (True, "history_lost") == (page.ready.is_set(), data_of(page)["reset"])


@pytest.mark.parametrize("first", [event(4), ASKED])
def test_page_leaves_a_reset_after_events_to_the_next_poll(first: bytes) -> None:
    """A reset is the first of an answer: what has begun already ends before it, at its own cursor."""
    page = Page(b"3-0")
    page.write(frames.cursor_frame((3, 0)) + first)
    before = page.body()
    page.write(RESET + STATE + frames.cursor_frame((9, 0)) + event(10))
    assert before == page.body()


def test_page_is_ready_when_an_open_request_is_repeated() -> None:
    """A repeated request comes without an id, and moves no cursor."""
    page = Page(b"3-0")
    page.write(frames.cursor_frame((3, 0)) + frames.heartbeat_frame(1.0) + ASKED)
    assert (True, [None], "3-0") == (page.ready.is_set(), ids(page), data_of(page)["last_event_id"])


def test_page_holds_so_many_events() -> None:
    """The rest is for the next poll, which goes on at the last that was taken."""
    page = Page(b"0-0")
    page.write(
        b"".join(event(number) for number in range(1, PAGE_EVENTS + 3)) + frames.cursor_frame((PAGE_EVENTS + 2, 0))
    )
    assert (PAGE_EVENTS, f"{PAGE_EVENTS}-0") == (len(ids(page)), data_of(page)["last_event_id"])


def test_page_holds_so_many_bytes() -> None:
    """An event that does not fit ends the page, also when a smaller one comes after it."""
    page = Page(b"0-0")
    page.write(event(1, PAGE_BYTES // 2) + event(2, PAGE_BYTES // 2) + event(3))
    assert (["1-0"], "1-0") == (ids(page), data_of(page)["last_event_id"])


def test_page_holds_one_event_of_any_size() -> None:
    """The first is taken however large it is, or nobody would ever get past it."""
    page = Page(b"0-0")
    page.write(event(1, PAGE_BYTES + 1) + event(2))
    assert ["1-0"] == ids(page)


def test_page_keeps_what_events_carry_as_it_is() -> None:
    """Numbers, escapes and spaces of an event are in the answer as they are in Redis."""
    data = rb'{"n":12345678901234567890123,"x":1.50,"t":"\u202e\ud800"}'
    page = Page(b"0-0")
    page.write(frames.event_frame(b"1-0", b'{ "type" : "tool_result", "data" : ' + data + b"}"))
    assert b'{"id":"1-0","type":"tool_result","data":' + data + b"}" in page.body()


def test_page_has_an_errors_fields_in_data() -> None:
    """What stands at the top of an event is in `data` here."""
    page = Page(b"0-0")
    page.write(frames.event_frame(b"1-0", b'{"type":"error","message":"a, \\"b\\"","code":"c"}'))
    page.write(frames.error_frame("session_closed", "closed"))
    assert [
        {"id": "1-0", "type": "error", "data": {"message": 'a, "b"', "code": "c"}},
        {"id": None, "type": "error", "data": {"message": "closed", "code": "session_closed"}},
    ] == data_of(page)["events"]


def test_page_leaves_to_the_status_that_redis_refused() -> None:
    """The last word of a stream that cannot be served is no event of a poll."""
    page = Page(b"0-0")
    page.write(frames.error_frame("unavailable", "refused"))
    page.finish()
    assert (True, True, True, False) == (page.empty, page.ended, page.ready.is_set(), page.known)


def test_page_of_something_else_is_json_still() -> None:
    """An event that is none of ours breaks no answer."""
    page = Page(b"0-0")
    page.write(frames.event_frame(b"1-0", b"[1]"))
    assert [{"id": "1-0", "type": None, "data": [1]}] == data_of(page)["events"]
