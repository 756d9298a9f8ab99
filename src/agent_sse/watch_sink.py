"""The sink of a watch: a stream's events as JSON, until it ends or nobody reads what is shown. Shows nothing itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from agent_sse.event_sink import EventSink
from agent_sse.watch_view import Event


class WatchSink(EventSink):
    """Calls ``show`` with each event, which takes it in before it returns; ``ended`` is set at the stream's end."""

    def __init__(self, show: Callable[[Event], None]) -> None:
        super().__init__(self._read)
        self.ended = asyncio.Event()
        self._show = show

    def _read(self, event_id: bytes | None, payload: bytes | None) -> None:
        if payload is None or self.ended.is_set():
            return
        event = json.loads(payload)
        try:
            self._show(event if isinstance(event, dict) else {"type": event})
        except OSError:
            self.ended.set()  # nobody reads the output any more (`watch s1 | head`)

    def finish(self) -> None:
        """Note the end."""
        self.ended.set()
