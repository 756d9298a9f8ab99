"""The guard's HTTP server: uvicorn on one port of this machine, without its logging and its signal handlers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from agent_sse.errors import ConfigurationError
from agent_sse.mcp.guard.http_side import HttpHost

HOST = "127.0.0.1"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the guard: it has prompts to withdraw and processes to end first."""
        yield


@asynccontextmanager
async def http_server(port: int, make_host: Callable[[int], HttpHost]) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    """Serve on ``port``, a free one for 0; yield it, and the task that serves.

    Raises :class:`ConfigurationError` when the port is in use.
    """
    listener = _listen(port)
    port = listener.getsockname()[1]
    host = make_host(port)
    config = uvicorn.Config(
        host, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, date_header=False,
        timeout_graceful_shutdown=2, limit_concurrency=512,
    )  # fmt: skip
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    sweeping = asyncio.create_task(host.sweep())
    try:
        yield port, serving
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        await host.aclose()
        server.should_exit = True
        await serving
        listener.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"cannot listen on {HOST}:{port}: {error.strerror}; choose another --http") from None
    return listener
