"""The timer wheel that sends heartbeats to streams to which nothing else was sent. One per process."""

from __future__ import annotations

from agent_sse import frames
from agent_sse.stream import Connection


class Heartbeats:
    """Holds each stream in the slot in which it may be due; a stream that was busy meanwhile moves on.

    ``interval`` and ``step``, the width of a slot, are in seconds.
    """

    def __init__(self, interval: float, step: float, now: float) -> None:
        self._interval = interval
        self._step = step
        self._slot = int(now / step)
        self._slots: dict[int, list[Connection]] = {}

    def add(self, connection: Connection, now: float) -> None:
        """Take a stream that has just been written to."""
        self._put(connection, now + self._interval)

    def _put(self, connection: Connection, at: float) -> None:
        self._slots.setdefault(max(self._slot + 1, int(at / self._step)), []).append(connection)

    def send(self, now: float) -> None:
        """Write to each stream that has been idle for the interval; the frame is built once."""
        beat: bytes | None = None
        last = int(now / self._step)
        while self._slot < last:
            self._slot += 1
            for connection in self._slots.pop(self._slot, ()):
                channel = connection.channel
                if channel is None or connection not in channel.connections:
                    continue  # it has left
                rest = connection.last_write + self._interval - now
                if rest <= self._step / 2:
                    if connection.sink.idle:
                        beat = beat or channel.heartbeat()
                        # Who catches up may not have seen yet what was shown, or that it was settled.
                        shown = channel.shown.values() if connection.live else ()
                        connection.write(b"".join((beat, *map(frames.data_frame, shown))))
                    rest = self._interval
                self._put(connection, now + rest)
