"""Server-Sent Events as streamable HTTP uses them: read from a URL, written to a host. Knows no connection."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_sse.mcp.guard.pipes import MAX_LINE

PING = b": ping\n\n"


class EventTooLong(Exception):
    """An event, or a line of one, is longer than a message may be."""


@dataclass(frozen=True, slots=True)
class Event:
    """A dispatched event; ``id`` is the stream's last one so far."""

    data: bytes
    kind: str
    id: str | None


@dataclass(slots=True)
class EventParser:
    """Finds events in a stream of bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing)."""

    last_id: str | None = None
    retry: float | None = None  # s, what the server asked for
    _line: list[bytes] = field(default_factory=list)
    _data: list[bytes] = field(default_factory=list)
    _kind: str = ""
    _size: int = 0  # bytes since the last event
    _after_cr: bool = False

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that end in ``chunk``. Raises :class:`EventTooLong`."""
        found: list[Event] = []
        self._grow(len(chunk))
        after_cr, self._after_cr = self._after_cr, chunk.endswith(b"\r")
        if after_cr:
            chunk = chunk.removeprefix(b"\n")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line.append(line)
            self._field(b"".join(self._line), found)
            self._line.clear()
        self._line.append(rest)
        return found

    def _grow(self, by: int) -> None:
        self._size += by
        if self._size > MAX_LINE + 1024:
            raise EventTooLong(f"an event has more than {MAX_LINE} bytes")

    def _field(self, line: bytes, found: list[Event]) -> None:
        if not line:
            self._dispatch(found)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value:
            self.last_id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit() and len(value) < 10:
            self.retry = int(value) / 1000

    def _dispatch(self, found: list[Event]) -> None:
        data, kind = b"\n".join(self._data), self._kind or "message"
        self._data.clear()
        self._kind, self._size = "", 0
        if data:
            found.append(Event(data, kind, self.last_id))


def write(message: bytes) -> bytes:
    """Return the event that carries a message, which is one line."""
    return b"event: message\ndata: " + message + b"\n\n"
