"""The guard as a process: what it is told to do, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from agent_sse.errors import ConfigurationError, InvalidEvent
from agent_sse.mcp.gate import Gate
from agent_sse.mcp.guard.child import Child
from agent_sse.mcp.guard.http_side import PATH, HttpHost
from agent_sse.mcp.guard.names import default_name, identity_of, url_name
from agent_sse.mcp.guard.pipes import LineReader, reader_of, standard_streams, writer_of
from agent_sse.mcp.guard.relay import Relay
from agent_sse.mcp.guard.serve_http import HOST, http_server
from agent_sse.mcp.guard.sides import ServerSide
from agent_sse.mcp.guard.stdio_side import StdioHost
from agent_sse.mcp.guard.url_side import UrlServer
from agent_sse.terminal import escape

log = logging.getLogger("agent_sse.guard")

CALL_TIMEOUT = 600.0  # s; the time-out that hosts give a call is mostly shorter

EXIT_CRASHED = 1
EXIT_CONFIGURATION = 2


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What to guard: a ``command`` to start, or a ``url``.

    ``headers`` go with every request to the URL. ``http_port`` serves streamable HTTP instead of standard input and
    output, 0 takes a free port. For ``call_timeout`` (s) a tool may give no sign of life, None for ever.
    """

    command: Sequence[str] = ()
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    http_port: int | None = None
    server_name: str | None = None
    call_timeout: float | None = CALL_TIMEOUT

    @property
    def name(self) -> str:
        """The name that the policy's rules and the user see. Never what the server says of itself: rules trust it."""
        return self.server_name or (default_name(self.command) if self.url is None else url_name(self.url))

    @property
    def identity(self) -> str:
        """What tells the server from another one of the same name."""
        return identity_of(self.command, self.url)

    def check(self) -> None:
        """Find what cannot work. Raises :class:`ConfigurationError`."""
        if bool(self.command) == (self.url is not None):
            raise ConfigurationError("give one server to guard: a command after `--`, or a URL")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in {"http", "https"} or not parts.hostname or not _has_good_port(parts):
                raise ConfigurationError("the URL of an MCP server is http:// or https://, a host, and a path")
        elif shutil.which(self.command[0]) is None:
            raise ConfigurationError(f"there is no command {escape(self.command[0])}; check what stands after `--`")


async def run_guard(options: GuardOptions, make_gate: Callable[[str, str], Gate]) -> int:
    """Guard until the host leaves or a signal comes; return the process's exit status.

    0: the host left, or SIGTERM or SIGINT; 1: the server ended by itself; 2: it cannot be started.
    ``make_gate`` is given the server's name and identity.
    """
    stopped = asyncio.Event()
    try:
        options.check()
        gate = make_gate(options.name, options.identity)
        with _signals(stopped):
            if options.http_port is not None:
                return await _over_http(options, gate, options.http_port, stopped)
            with standard_streams() as (reading, writing):
                return await _over_stdio(options, gate, reading, writing, stopped)
    except (ConfigurationError, InvalidEvent) as error:  # the second: a name that no event can carry
        log.error("%s", error)
        return EXIT_CONFIGURATION


async def _over_stdio(options: GuardOptions, gate: Gate, reading: int, writing: int, stopped: asyncio.Event) -> int:
    stream, transport = await reader_of(reading)
    host = StdioHost(LineReader(stream), await writer_of(writing))
    try:
        server = await connect(options)
        relay = Relay(host, server, gate, call_timeout=options.call_timeout)
        serving = asyncio.create_task(relay.run())
        listening = asyncio.create_task(host.run(relay))
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({serving, listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                log.error("%s", serving.result())
                return EXIT_CRASHED
            if listening.done():
                listening.result()
            return 0
        finally:
            stopping.cancel()
            listening.cancel()
            await asyncio.gather(listening, stopping, return_exceptions=True)
            await relay.aclose()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    finally:
        transport.close()
        await host.aclose()


async def _over_http(options: GuardOptions, gate: Gate, port: int, stopped: asyncio.Event) -> int:
    def make_host(port: int) -> HttpHost:
        return HttpHost(lambda: connect(options), gate, port=port, call_timeout=options.call_timeout)

    async with http_server(port, make_host) as (bound, serving):
        print(f"agent-sse guard of {options.name}: http://{HOST}:{bound}{PATH}", file=sys.stderr, flush=True)
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    return 0 if stopped.is_set() else EXIT_CRASHED


async def connect(options: GuardOptions) -> ServerSide:
    """Start the server, or get ready for its URL. Raises :class:`ConfigurationError`."""
    if options.url is not None:
        return UrlServer(options.url, options.headers)
    return await Child.start(options.command)


@contextmanager
def _signals(stopped: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _has_good_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False
