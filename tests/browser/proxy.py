"""The origin that the browser sees: the tests' pages and, behind them, the real service, as a reverse proxy shows both.

It can do what proxies in the field do: hold back a stream, lose its connections, have no upstream for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

MAX_HEAD = 64 * 1024
CHUNK = 64 * 1024
PAGES = "/pages/"


class Proxy:
    """One connection per request; ``url`` without a trailing slash. ``requests``: ``"GET /path?query"``, in order.

    ``upstream`` is asked at each request, so the service may have moved; while nobody is there connections are closed.
    ``streams`` counts the open requests for events. With ``buffering`` an answer is kept until it is complete: headers
    too, as nginx does with `proxy_buffering on`; turning it off lets go what was kept. Streams that flow already go on.
    """

    def __init__(self, upstream: Callable[[], str], pages: Path) -> None:
        self.upstream = upstream
        self.pages = pages
        self.url = ""
        self.requests: list[str] = []
        self.streams = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def buffering(self) -> bool:
        return not self._flowing.is_set()

    @buffering.setter
    def buffering(self, on: bool) -> None:
        if on:
            self._flowing.clear()
        else:
            self._flowing.set()

    def asked(self, part: str) -> list[str]:
        """The requests so far that contain ``part``."""
        return [request for request in self.requests if part in request]

    def cut(self) -> None:
        """Tear every connection."""
        for writer in self._writers:
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MAX_HEAD)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut()  # ends its tasks too: one that is cancelled makes asyncio.streams of 3.11 log an error
            await asyncio.gather(*self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        async with self._closing(writer):
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)

    @asynccontextmanager
    async def _closing(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, _, rest = head.partition(b"\r\n")
        method, target, _ = first.decode("latin-1").split(" ")
        if target.startswith(PAGES):
            await self._send_page(urlsplit(target).path.removeprefix(PAGES), writer)
            return
        self.requests.append(f"{method} {target}")
        lines = [line for line in rest.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
        forwarded = b"\r\n".join([first, *lines, b"Connection: close", b"", b""])
        stream = method == "GET" and "/events/" in target
        self.streams += stream
        try:
            await self._forward(forwarded, reader, writer)
        finally:
            self.streams -= stream

    async def _send_page(self, name: str, writer: asyncio.StreamWriter) -> None:
        path = (self.pages / name).resolve()
        found = path.is_relative_to(self.pages.resolve()) and path.is_file()
        body = path.read_bytes() if found else b"there is no such page"
        kind = (found and mimetypes.guess_type(path.name)[0]) or "text/plain"
        writer.write(
            f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}\r\nContent-Type: {kind}; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()

    async def _forward(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.upstream().removeprefix("http://").partition(":")
        back_reader, back_writer = await asyncio.open_connection(host, int(port))
        async with self._closing(back_writer):
            back_writer.write(head)
            # The first to end ends both: a browser that leaves, or an answer that is complete.
            pumps = {
                asyncio.create_task(self._pump(reader, back_writer)),
                asyncio.create_task(self._pump_answer(back_reader, writer)),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()

    async def _pump_answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.buffering:
            writer.write(await self._kept(reader))
        await self._pump(reader, writer)

    async def _kept(self, reader: asyncio.StreamReader) -> bytes:
        """All of the answer, or what came of it until buffering was turned off."""
        kept = bytearray()

        async def keep() -> None:
            while data := await reader.read(CHUNK):
                kept.extend(data)

        tasks = {asyncio.create_task(keep()), asyncio.create_task(self._flowing.wait())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return bytes(kept)
