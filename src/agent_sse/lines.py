"""Lines that answer what a watch shows: typed at a terminal, from a pipe or a file, or the same one for ever.

Knows nothing of sessions and what is asked in them.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LINES_AHEAD = 100
REASON_LIMIT = 2000  # characters


class Lines(Protocol):
    """Where answers come from. ``typed``: from a person at a terminal."""

    typed: bool

    async def next(self) -> str | None:
        """Return the next line, None when there are no more."""


class InputLines:
    """Lines of standard input, of a terminal with or without its line discipline, a pipe or a file.

    ``on_change`` is called with what is typed of the next line so far.
    """

    def __init__(self, on_change: Callable[[str], None] = lambda _: None, *, fd: int = 0) -> None:
        self.typed = os.isatty(fd)
        self._fd = fd
        self._on_change = on_change
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""
        self._escape = ""  # of a key that sends several characters (an arrow, F1), what came of it so far
        self._lines: deque[str] = deque()
        self._ended = False
        self._some = asyncio.Event()
        self._reading = False

    async def next(self) -> str | None:
        """Return the next line, None at the end of the input."""
        while not self._lines and not self._ended:
            self._some.clear()
            self._listen()
            if not self._lines and not self._ended:
                await self._some.wait()
        return self._lines.popleft() if self._lines else None

    def close(self) -> None:
        """Stop reading."""
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._reading = False

    def _listen(self) -> None:
        if self._reading:
            return
        try:
            asyncio.get_running_loop().add_reader(self._fd, self._read)
            self._reading = True
        except PermissionError:
            self._read()  # a file is always ready, and epoll does not take one
        except (OSError, ValueError):
            self._end()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        except OSError:  # closed, or the terminal has gone
            data = b""
        if not data:
            self._end()
            return
        for char in self._decoder.decode(data):
            self._take(char)
        self._on_change(self._partial)
        self._some.set()
        if len(self._lines) > LINES_AHEAD:
            self.close()

    def _take(self, char: str) -> None:
        if self._escape:
            # https://en.wikipedia.org/wiki/ANSI_escape_code#Terminal_input_sequences
            begun = self._escape in ("\x1b[", "\x1bO") or len(self._escape) > 2
            self._escape += char
            if not (char in "[O" if not begun else "\x20" <= char <= "\x3f"):
                self._escape = ""
        elif char in "\r\n":
            self._lines.append(self._partial)
            self._partial = ""
        elif char in "\x7f\b":
            self._partial = self._partial[:-1]
        elif char == "\x15":  # Ctrl-U
            self._partial = ""
        elif char == "\x1b" and self.typed:
            self._escape = char
        elif char.isprintable() and len(self._partial) < REASON_LIMIT:
            self._partial += char

    def _end(self) -> None:
        self.close()
        if self._partial:
            self._lines.append(self._partial)
        self._partial, self._ended = "", True
        self._some.set()


class FixedLines:
    """The same line for ever, for a run without a person."""

    typed = False

    def __init__(self, line: str) -> None:
        self._line = line

    async def next(self) -> str | None:
        """Return the line."""
        return self._line


@contextmanager
def single_keys() -> Iterator[None]:
    """Take keys one by one and without echo: the picture shows them where the next drawing does not wipe them out."""
    import termios

    before = termios.tcgetattr(0)
    changed = termios.tcgetattr(0)
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(0, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
