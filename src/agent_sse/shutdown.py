"""Ending streams when the process is told to stop.

uvicorn waits for open responses on SIGTERM and runs the lifespan's end only after them, so the signal itself has to
end the streams: the handler is chained in front of the server's own.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

FLUSH_GRACE = 1.0  # s; a client that takes no bytes for this long after the signal does not keep the process


@contextmanager
def on_shutdown(end: Callable[[], None]) -> Iterator[None]:
    """Call ``end`` in the running loop at SIGTERM or SIGINT, before the server's own handler."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; there the server ends the lifespan itself
        return
    loop = asyncio.get_running_loop()
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        server_handler = previous[signal.Signals(number)]
        loop.call_soon_threadsafe(end)
        server = getattr(server_handler, "__self__", None)
        if hasattr(server, "server_state"):  # uvicorn
            loop.call_soon_threadsafe(loop.call_later, FLUSH_GRACE, _abort_stuck, server)
        server_handler(number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if callable(handler):  # with the default handler the process is gone at once, and nothing is left to do
            previous[number] = handler
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)


def _abort_stuck(server: Any) -> None:
    # transport.close() waits for its buffer to be flushed, for ever when the client does not read.
    for connection in list(server.server_state.connections):
        transport = getattr(connection, "transport", None)
        if transport is not None and transport.get_write_buffer_size() > 0:
            transport.abort()
