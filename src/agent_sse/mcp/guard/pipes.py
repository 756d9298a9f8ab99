"""Pipes of this process and of its children, as lines of bounded length. Knows nothing of JSON."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

MAX_LINE = 64 * 1024 * 1024  # bytes; a longer message is refused
CHUNK = 256 * 1024
EDGE = 4096  # bytes of a line's beginning and end that are kept when it is too long
# A server that does not read must not keep the host's cancellations from being read.
WRITE_AHEAD = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line over the limit: its first and last bytes."""

    head: bytes
    tail: bytes
    size: int


class LineReader:
    """Lines of a stream, without their ends; the last one may lack its end."""

    def __init__(self, stream: asyncio.StreamReader, limit: int = MAX_LINE) -> None:
        self._stream = stream
        self._limit = limit
        self._chunk, self._at = b"", 0
        self._parts: list[bytes] = []
        self._size = 0
        self._tail = b""

    async def next(self) -> bytes | TooLong | None:
        """Return the next line, or what is left of one that is too long; None at the end of the stream."""
        while True:
            end = self._chunk.find(b"\n", self._at)
            self._keep(self._chunk[self._at : end if end >= 0 else None])
            if end >= 0:
                self._at = end + 1
                return self._take()
            self._chunk, self._at = await self._stream.read(CHUNK), 0
            if not self._chunk:
                return self._take() if self._size else None

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._limit:
            self._parts.append(part)
        else:
            if len(self._parts) != 1 or len(self._parts[0]) > EDGE:
                self._parts = [b"".join(self._parts)[:EDGE] or part[:EDGE]]
            self._tail = (self._tail + part)[-EDGE:]

    def _take(self) -> bytes | TooLong:
        size, parts, tail = self._size, self._parts, self._tail
        self._size, self._parts, self._tail = 0, [], b""
        return b"".join(parts) if size <= self._limit else TooLong(parts[0], tail, size)


class PipeWriter(asyncio.Protocol):
    """The writing end of a pipe. ``closed`` is set when nobody reads any more."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._transport: asyncio.WriteTransport | None = None
        self._free = asyncio.Event()
        self._free.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD)

    def pause_writing(self) -> None:
        """Let writers wait."""
        self._free.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._free.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake everybody."""
        self.closed.set()
        self._free.set()

    def write(self, line: bytes) -> bool:
        """Write a line without waiting. Return whether somebody may still read it."""
        if self._transport is None or self.closed.is_set() or self._transport.is_closing():
            return False
        self._transport.write(line + b"\n" if len(line) < CHUNK else line)
        if len(line) >= CHUNK:
            self._transport.write(b"\n")
        return True

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._free.wait()

    async def finish(self, timeout: float) -> None:
        """Close once everything is written, or after ``timeout`` (s)."""
        if self._transport is not None:
            self._transport.close()
            try:
                async with asyncio.timeout(timeout):
                    await self.closed.wait()
            except TimeoutError:
                self._transport.abort()


async def reader_of(fd: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """Return a stream of what comes out of a pipe; closing the transport closes ``fd``."""
    stream = asyncio.StreamReader(limit=CHUNK)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(fd, "rb", 0))
    return stream, transport


async def writer_of(fd: int) -> PipeWriter:
    """Return a writer to a pipe; finishing it closes ``fd``."""
    loop = asyncio.get_running_loop()
    _, writer = await loop.connect_write_pipe(PipeWriter, os.fdopen(fd, "wb", 0))
    return writer


# -- this process's own -----------------------------------------------------------------------------------------------


@contextmanager
def standard_streams() -> Iterator[tuple[int, int]]:
    """Yield what standard input and output were, as pipes, and keep both from everybody else meanwhile.

    Until then whatever is printed goes to standard error: standard output carries nothing but MCP.
    """
    kept = os.dup(0), os.dup(1)
    blocking = [os.get_blocking(fd) for fd in kept]
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a file descriptor is wanted, not a path
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    threads: list[threading.Thread] = []
    try:
        yield _pollable_input(os.dup(kept[0])), _pollable_output(os.dup(kept[1]), threads)
    finally:
        for thread in threads:
            thread.join()
        for fd, target, blocks in zip(kept, (0, 1), blocking, strict=True):
            os.set_blocking(fd, blocks)  # it may be a terminal, and that is the shell's as well
            os.dup2(fd, target)
            os.close(fd)


def _can_be_polled(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _pollable_input(fd: int) -> int:
    if _can_be_polled(fd):
        return fd
    reading, writing = os.pipe()
    threading.Thread(target=copy, args=(fd, writing), name="agent-sse guard input", daemon=True).start()
    return reading


def _pollable_output(fd: int, threads: list[threading.Thread]) -> int:
    if _can_be_polled(fd):
        return fd
    reading, writing = os.pipe()
    thread = threading.Thread(target=copy, args=(reading, fd), name="agent-sse guard output", daemon=True)
    thread.start()
    threads.append(thread)
    return writing


def copy(source: int, target: int) -> None:
    """Copy until either has ended, then close both; for a thread of its own, as files cannot be polled."""
    try:
        while data := os.read(source, CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    except OSError:
        pass  # whoever reads the target sees its end
    finally:
        os.close(source)
        os.close(target)
