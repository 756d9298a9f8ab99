"""The terminal while a watch has it: the other screen, keys one by one, drawing, and giving it away for a while.

Whatever happens, the terminal is given back as it was. Knows nothing of what is drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from agent_sse.lines import single_keys

REFRESH = 0.5  # s; times go on while nothing happens
FRAME = 0.1  # s between two pictures: a burst of events is drawn ten times a second


class Drawn(Protocol):
    """What is drawn."""

    def render(self) -> RenderableType:
        """Return the picture as of now."""

    def appeared(self) -> None:
        """Note that the last picture stands on the screen now."""

    def covered(self) -> None:
        """Note that it no longer does, as far as one can know."""


class Screen:
    """The terminal, taken by :meth:`taken`. ``dirty`` is set by whoever has something new to be drawn."""

    def __init__(self, console: Console, drawn: Drawn) -> None:
        self.dirty = asyncio.Event()
        self._console = console
        self._drawn = drawn
        self._live: Live | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the terminal for the block."""
        loop = asyncio.get_running_loop()
        # Also when another stopped the process: whatever was written to the terminal meanwhile covers the picture.
        loop.add_signal_handler(signal.SIGCONT, self._cover)
        loop.add_signal_handler(signal.SIGWINCH, self._cover)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        try:
            with contextlib.ExitStack() as self._stack:
                self._take()
                yield
        finally:
            self._live = None
            loop.remove_signal_handler(signal.SIGCONT)
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_signal_handler(signal.SIGTSTP)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Give the terminal to another program for the block, in the state in which it was found."""
        self._live = None
        self._stack.close()
        self._cover()
        try:
            yield
        finally:
            self._take()
            termios.tcflush(0, termios.TCIFLUSH)  # what was typed there is no answer here
            self.dirty.set()

    async def draw(self) -> None:
        """Draw for ever: what is new soon, and times twice a second."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH):
                    await self.dirty.wait()
            self.dirty.clear()
            if self._live is not None:
                self._live.update(self._drawn.render(), refresh=True)
                self._drawn.appeared()  # not before it is written: Ctrl-S may hold it back for long
            await asyncio.sleep(FRAME)

    def _take(self) -> None:
        self._stack.enter_context(single_keys())
        self._live = self._stack.enter_context(
            Live(self._drawn.render(), console=self._console, screen=True, auto_refresh=False)
        )
        self._drawn.appeared()

    def _cover(self) -> None:
        self._drawn.covered()
        self.dirty.set()

    def _suspend(self) -> None:
        """Do what Ctrl-Z does elsewhere."""
        if self._live is not None:
            with self.lent():
                os.kill(os.getpid(), signal.SIGSTOP)
