"""The MCP server as a process: started, fed lines, watched, and ended with all that it started.

Nothing of it outlives the guard, not even a guard that is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from agent_sse.errors import ConfigurationError
from agent_sse.masking import Masker
from agent_sse.mcp.guard import messages
from agent_sse.mcp.guard.messages import Id, Message
from agent_sse.mcp.guard.pipes import CHUNK, EDGE, LineReader, PipeWriter, TooLong, reader_of, writer_of
from agent_sse.mcp.guard.sides import ServerGone
from agent_sse.terminal import escape

# Together shorter than the two seconds that hosts give the guard itself before they kill it.
GRACE_AFTER_INPUT = 1.0  # s, from the end of its input to SIGTERM
GRACE_AFTER_TERM = 0.7  # s, from SIGTERM to SIGKILL
GRACE_AFTER_END = 1.0  # s, for what a server that has ended still has in its pipes
SHOWN = 200  # characters of a line that are shown of it

# Reads the process group's number, then waits. A second line says that all is over; the end of input without one, that
# the guard is dead: then the group has to go. In a session of its own it survives what kills the guard's group.
WATCHER = """
read -r group || exit 0
read -r over && exit 0
kill -TERM -"$group" 2>/dev/null || exit 0
sleep 1
kill -KILL -"$group" 2>/dev/null
"""

log = logging.getLogger("agent_sse.guard")

_masker = Masker()


class Child:
    """A running server process; make it with :meth:`start`."""

    def __init__(self, pipes: _Pipes, process: asyncio.subprocess.Process, watcher: _Watcher) -> None:
        self._process = process
        self._watcher = watcher
        self._pipes = pipes
        self._dropped = 0
        self._stopping = False

    @classmethod
    async def start(cls, command: Sequence[str]) -> Child:
        """Start the server. Raises :class:`ConfigurationError` when there is no such command.

        It gets this process's environment without the ``AGENT_SSE_*`` settings, which hold secrets of the service.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_SSE_")}
        watcher = await _Watcher.start(environment)
        ours, theirs = _pipe_pairs()
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], start_new_session=True, env=environment
            )
        except OSError as error:
            for fd in ours:
                os.close(fd)
            await watcher.release()
            raise ConfigurationError(
                f"cannot start {escape(command[0])}: {error.strerror}; check the command after `--`"
            ) from None
        finally:
            for fd in theirs:
                os.close(fd)
        watcher.watch(process.pid)
        return cls(await _Pipes.open(*ours), process, watcher)

    # -- the server's side of a relay ---------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Write a message. Raises :class:`ServerGone`."""
        if not self._pipes.input.write(message.raw):
            raise ServerGone(self.ending())
        await self._pipes.input.drain()

    def cancel(self, request_id: Id, notification: Message) -> None:
        """Tell that a request is not wanted any more; never waits or raises."""
        self._pipes.input.write(notification.raw)

    async def run(self, receive: Callable[[Message, Id | None], Awaitable[None]]) -> None:
        """Hand on what the server says, until it has ended; :meth:`ending` then tells how."""
        reading = asyncio.create_task(self._read(receive))
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
            # Of the two ends the other one follows, unless something that it started still holds its output.
            await asyncio.wait({reading, ended}, timeout=GRACE_AFTER_END)
            if reading.done():
                reading.result()
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_AFTER_END):
                    await self._pipes.errors.ended.wait()  # its last words
        finally:
            for task in (reading, ended):
                task.cancel()
            await asyncio.gather(reading, ended, return_exceptions=True)

    async def _read(self, receive: Callable[[Message, Id | None], Awaitable[None]]) -> None:
        while (line := await self._pipes.output.next()) is not None:
            for message in self._messages(line):
                await receive(message, None)

    def _messages(self, line: bytes | TooLong) -> list[Message]:
        if isinstance(line, TooLong):
            return self._unreadable(line.head, line.tail, f"of {line.size} bytes is too long to be passed on")
        if not line.strip():
            return []
        try:
            return messages.from_server(line)
        except ValueError:
            return self._unreadable(line[:EDGE], line[-EDGE:], "is not JSON")

    def _unreadable(self, head: bytes, tail: bytes, what: str) -> list[Message]:
        """Return the error for whoever waits for what cannot be read, if it is clear who does."""
        request_id = messages.find_id(head, tail)
        if b'"method"' in head or request_id is None:
            self._drop(f"what {what}: {_shown(head)}")
            return []
        return [messages.error(request_id, messages.INTERNAL_ERROR, f"the MCP server's answer {what}")]

    def _drop(self, what: str) -> None:
        self._dropped += 1
        if self._dropped <= 5 or self._dropped & (self._dropped - 1) == 0:
            log.warning("dropped what the MCP server wrote to its standard output: %s (%d so far)", what, self._dropped)

    # -- its end ------------------------------------------------------------------------------------------------------

    def ending(self) -> str:
        """Say how the server ended, in a sentence for the host."""
        status = self._process.returncode
        if status is None:
            how = "closed its output"
        elif status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        last = self._pipes.errors.last
        return f"the MCP server {how}" + (f"; its last words: {last}" if last else "")

    async def aclose(self) -> None:
        """End the server and its whole process group: end of input, SIGTERM, SIGKILL."""
        if self._stopping:
            return
        self._stopping = True
        await self._pipes.input.finish(GRACE_AFTER_INPUT if self._process.returncode is None else 0)
        if not await self._gone(GRACE_AFTER_INPUT):
            self._signal(signal.SIGTERM)
            await self._gone(GRACE_AFTER_TERM)
        self._signal(signal.SIGKILL)  # also for what it started and left behind
        if not await self._gone(GRACE_AFTER_END):
            log.error("the MCP server (process %d) cannot be ended", self._process.pid)
        self._pipes.close()
        await self._watcher.release()

    async def _gone(self, timeout: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._process.wait()
        return self._process.returncode is not None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says so by the second
            os.killpg(self._process.pid, number)


def _shown(line: bytes) -> str:
    # Cut at the end: what is left of a credential would not look like one.
    return escape(_masker.mask_text(line.decode(errors="replace").strip()))[:SHOWN]


class _Watcher:
    """The process that ends the server's process group if this one dies, see :data:`WATCHER`."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self._process = process
        self._fd = fd

    @classmethod
    async def start(cls, environment: Mapping[str, str]) -> _Watcher:
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", WATCHER, stdin=reading, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL, start_new_session=True, env=environment,
            )  # fmt: skip
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return cls(process, writing)

    def watch(self, group: int) -> None:
        os.write(self._fd, b"%d\n" % group)

    async def release(self) -> None:
        with suppress(BrokenPipeError):
            os.write(self._fd, b"over\nover\n")  # twice: there may have been nothing to watch
        os.close(self._fd)
        await self._process.wait()


# -- pipes ------------------------------------------------------------------------------------------------------------


def _pipe_pairs() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return standard input, output and error: our ends, and the server's."""
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
    return (in_write, out_read, err_read), (in_read, out_write, err_write)


class _Errors:
    """Copies the server's standard error to ours and remembers its last line.

    In a thread: nobody may be reading ours, and that must only stop the server that talks too much.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._tail = b""
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        threading.Thread(target=self._copy, name="agent-sse guard stderr", daemon=True).start()

    @property
    def last(self) -> str:
        return next((_shown(line) for line in reversed(self._tail.splitlines()) if line.strip()), "")

    def _copy(self) -> None:
        with os.fdopen(self._fd, "rb", 0) as source, suppress(OSError):
            while data := source.read(CHUNK):
                self._tail = (self._tail + data)[-4096:]
                view = memoryview(data)
                while view:
                    view = view[os.write(2, view) :]
        with suppress(RuntimeError):  # the loop has ended before
            self._loop.call_soon_threadsafe(self.ended.set)


@dataclass(slots=True)
class _Pipes:
    input: PipeWriter
    output: LineReader
    errors: _Errors
    reading: asyncio.ReadTransport

    @classmethod
    async def open(cls, input_fd: int, output_fd: int, error_fd: int) -> _Pipes:
        errors = _Errors(error_fd)
        stream, reading = await reader_of(output_fd)
        return cls(await writer_of(input_fd), LineReader(stream), errors, reading)

    def close(self) -> None:
        self.reading.close()
