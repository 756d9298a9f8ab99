"""Server-Sent Events as bytes, and event ids as pairs of integers. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

EventId = tuple[int, int]
ZERO: EventId = (0, 0)

_ID = re.compile(rb"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})")
_MAX = 2**64 - 1


def parse_id(text: bytes) -> EventId | None:
    """Parse ``b"<ms>-<seq>"`` (two unsigned 64-bit numbers) in canonical form; None for anything else."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    ms, seq = int(match[1]), int(match[2])
    return (ms, seq) if ms <= _MAX and seq <= _MAX else None


def read_id(text: bytes) -> EventId:
    """Parse an id that Redis wrote, at half the cost of :func:`parse_id`. Raises ValueError for what can be none."""
    ms, _, seq = text.partition(b"-")
    return int(ms), int(seq)


def format_id(event_id: EventId) -> bytes:
    """Return ``b"<ms>-<seq>"``."""
    return b"%d-%d" % event_id


def chunk(data: bytes) -> bytes:
    """Return ``data`` (not empty: that would end the response) in the chunked transfer coding.

    https://www.rfc-editor.org/rfc/rfc9112#section-7.1
    """
    return b"%x\r\n%b\r\n" % (len(data), data)


def unchunked(chunked: bytes) -> bytes:
    """Return what is in one chunk."""
    return chunked[chunked.index(b"\n") + 1 : -2]


def event_chunk(event_id: bytes, payload: bytes) -> bytes:
    """Return :func:`event_frame` as one chunk: most streams take it so, and it is made once for all of them."""
    size = len(event_id) + len(payload) + 13
    return b"%x\r\nid: %b\ndata: %b\n\n\r\n" % (size, event_id, payload)


def event_frame(event_id: bytes, payload: bytes) -> bytes:
    """Return an event with its id. ``payload`` is one line of JSON: neither CR nor LF can occur in it."""
    return b"id: %b\ndata: %b\n\n" % (event_id, payload)


def event_frames(event_ids: Sequence[bytes], payloads: Sequence[bytes]) -> bytes:
    """Return a page of events in one piece, as :func:`event_frame` would give each."""
    parts = [b"id: ", b"", b"\ndata: ", b"", b"\n\n"] * len(event_ids)
    parts[1::5] = event_ids
    parts[3::5] = payloads
    return b"".join(parts)


def data_frame(payload: bytes) -> bytes:
    """Return an event without an id: it does not move the client's cursor."""
    return b"data: " + payload + b"\n\n"


def cursor_frame(event_id: EventId) -> bytes:
    """Return an id without data: it moves the client's cursor and dispatches nothing."""
    return b"id: %d-%d\n\n" % event_id


def retry_frame(ms: int) -> bytes:
    """Return the reconnection time for the client, in milliseconds."""
    return b"retry: %d\n\n" % ms


def heartbeat_frame(unix_seconds: float) -> bytes:
    """Return a heartbeat; its timestamp is in Unix seconds, as in the guide."""
    return b'data: {"type":"heartbeat","timestamp":%s}\n\n' % repr(round(unix_seconds, 3)).encode()


def error_frame(code: str, message: str) -> bytes:
    """Return an ``error`` event, whose fields stand at the top as in the guide."""
    return data_frame(json.dumps({"type": "error", "message": message, "code": code}, separators=(",", ":")).encode())
