"""The bytes of Server-Sent Events, read back by the book, and event ids."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_sse import frames
from agent_sse.events import encode
from harness import Event, Stream

LARGEST = 2**64 - 1
NUMBERS = st.integers(min_value=0, max_value=LARGEST)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def read(data: bytes) -> list[Event]:
    """Parse bytes as the test client does, which follows the WHATWG rules."""
    stream = Stream("http://localhost:1/")
    stream._feed(data)
    assert b"" == stream.buffer, "an incomplete frame"
    return stream.records


@given(ms=NUMBERS, seq=NUMBERS)
@example(ms=0, seq=0)
@example(ms=LARGEST, seq=LARGEST)
def test_id_survives_writing_and_reading(ms: int, seq: int) -> None:
    """Every id that Redis can give is written and read back unchanged."""
    assert (ms, seq) == frames.parse_id(frames.format_id((ms, seq)))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"-", b"1", b"1-", b"-1", b"1-1-1", b"01-1", b"1-01", b"+1-1", b"1--1", b"1-1 ", b" 1-1", b"1-1\n",
        b"1_0-1", b"0x1-1", b"1.0-1", b"1e3-0", b"$", b"*", b"1-*", b"(1-1", b"1-\xd9\xa1", "١-١".encode(),
        b"18446744073709551616-0", b"0-18446744073709551616", b"9" * 5000 + b"-0", b"0-" + b"9" * 5000, b"\x00-0",
    ],
)  # fmt: skip
def test_id_that_is_not_canonical_is_none(text: bytes) -> None:
    """What Redis would not write as an id is none, so that one event has one cursor."""
    assert frames.parse_id(text) is None


@given(st.binary(max_size=50))
def test_id_from_any_bytes_is_canonical_or_none(text: bytes) -> None:
    """Parsing never raises, and what it accepts is exactly what would be written."""
    parsed = frames.parse_id(text)
    assert parsed is None or text == frames.format_id(parsed)


@given(
    ms=NUMBERS, seq=NUMBERS, value=st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))
)
@example(ms=1, seq=0, value="\r\n\r\n\u2028\u2029\x85\x0b\x0c\x00id: 9-9\ndata: x\n\n")
def test_event_frame_is_one_event_whatever_it_carries(ms: int, seq: int, value: object) -> None:
    """An event's JSON comes back unchanged as one event with its id: no text in it can end a line or forge one."""
    event_id = frames.format_id((ms, seq))
    payload = encode({"type": "x", "data": value})
    (event,) = read(frames.event_frame(event_id, payload))
    chunked = frames.event_chunk(event_id, payload)
    assert frames.chunk(frames.event_frame(event_id, payload)) == chunked
    assert frames.event_frame(event_id, payload) == frames.unchunked(chunked)
    assert (event_id.decode(), {"type": "x", "data": value}) == (event.id, event.json)


def test_data_frame_has_no_id() -> None:
    """Snapshot events and heartbeats do not move the client's cursor."""
    (event,) = read(frames.data_frame(b'{"type":"x"}'))
    assert (None, {"type": "x"}) == (event.id, event.json)


def test_cursor_frame_moves_the_cursor_and_dispatches_nothing() -> None:
    """The priming frame is an id without data."""
    (event,) = read(frames.cursor_frame((5, 1)))
    assert ("5-1", None) == (event.id, event.data)


def test_retry_frame_sets_the_reconnection_time_only() -> None:
    """`retry:` alone is no event."""
    stream = Stream("http://localhost:1/")
    stream._feed(frames.retry_frame(1234))
    assert (1234, []) == (stream.retry, stream.records)


@pytest.mark.parametrize("seconds", [0.0, 1642234200.123, 1642234200.1239999, 253402300799.999])
def test_heartbeat_frame_has_the_guides_fields(seconds: float) -> None:
    """A heartbeat's timestamp is a JSON float of Unix seconds at the top, at millisecond precision."""
    (event,) = read(frames.heartbeat_frame(seconds))
    body = event.json
    assert ["type", "timestamp"] == list(body)
    assert "heartbeat" == body["type"]
    assert isinstance(body["timestamp"], float)
    assert round(seconds, 3) == body["timestamp"]


@given(code=TEXTS, message=TEXTS)
def test_error_frame_has_its_fields_at_the_top(code: str, message: str) -> None:
    """An error is one event with `type`, `message` and `code` at the top, whatever they hold."""
    (event,) = read(frames.error_frame(code, message))
    assert {"type": "error", "message": message, "code": code} == event.json


@given(st.lists(st.tuples(NUMBERS, NUMBERS, TEXTS), max_size=5), st.data())
def test_frames_in_a_row_stay_apart_however_they_are_cut(rows: list[tuple[int, int, str]], data: st.DataObject) -> None:
    """Frames joined into one write and cut anywhere by the network are the same events in the same order."""
    joined = b"".join(frames.event_frame(b"%d-%d" % (ms, seq), encode(text)) for ms, seq, text in rows)
    cut = data.draw(st.integers(0, len(joined)))
    stream = Stream("http://localhost:1/")
    stream._feed(joined[:cut])
    stream._feed(joined[cut:])
    assert [(f"{ms}-{seq}", json.dumps(text)) for ms, seq, text in rows] == [
        (event.id, json.dumps(event.json)) for event in stream.records
    ]
