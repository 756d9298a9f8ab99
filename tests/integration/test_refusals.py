"""What is refused before it reaches the application is counted by kind, and the log says so without being flooded."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent_sse import limits, protocol
from agent_sse.limits import Limits
from agent_sse.protocol import StreamProtocol
from harness import DEADLINE, serve, until

SHORT = 0.2  # s; a limit that a test waits for
NEVER = 600.0  # s

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"GET / HTTP/1.1\r\nX-A: %s\r\n\r\n" % (b"a" * (limits.MAX_HEAD_BYTES + 1))
UPGRADE = b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nx"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Place(NamedTuple):
    port: int
    waiting: asyncio.Event  # `/wait` answers once it is set
    shared: Limits[StreamProtocol]

    async def send(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and return what comes until the server closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(DEADLINE):
                return await reader.read()
        finally:
            writer.transport.abort()


@pytest.fixture
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """A server before an application that reads no body; the test's parameter names the limit that is short there."""
    if hasattr(request, "param"):
        monkeypatch.setattr(limits, request.param, SHORT)
    go = asyncio.Event()

    async def root(request: Request) -> Response:
        return Response()

    async def wait(request: Request) -> Response:
        await go.wait()
        return Response()

    app = Starlette(routes=[Route("/", root, methods=["GET", "POST"]), Route("/wait", wait, methods=["GET", "POST"])])
    async with serve(app=app, direct=True) as served:
        assert served.server is not None
        port = int(served.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        shared = await until(lambda: protocol._shared.get(served.server.server_state), what="a first connection")
        writer.transport.abort()
        yield Place(port, go, shared)
        go.set()


def said(caplog: pytest.LogCaptureFixture) -> list[Counter[str]]:
    """What each log line says was refused, by kind."""
    lines = [message for record in caplog.records if (message := record.getMessage()).startswith("refused requests: ")]
    return [Counter({code: int(n) for n, code in re.findall(r"(\d+) ([a-z]+_[a-z_]+)", line)}) for line in lines]


HEAD, BODY = "HEAD_TIMEOUT", "BODY_TIMEOUT"


@pytest.mark.parametrize(
    ("place", "data", "status", "code"),
    [
        (HEAD, GET[:-2], 408, "request_timeout"),
        (BODY, CHUNKED.replace(b"/", b"/wait", 1), 408, "request_timeout"),
        (HEAD, LARGE, 431, "headers_too_large"),
        (HEAD, LARGE + b"\0 no HTTP\r\n\r\n", 431, "headers_too_large"),
        (HEAD, b"secret no HTTP\r\n\r\n", 400, "malformed_request"),
        (HEAD, UPGRADE, 400, "upgrade_refused"),
        (HEAD, GET.replace(b"/", b"/wait", 1) + LARGE, 200, "headers_too_large"),
        (HEAD, GET.replace(b"/", b"/wait", 1) + GET[:-2], 200, "request_timeout"),
        (BODY, CHUNKED + b"1\r\nx", 200, "request_timeout"),
        (BODY, CHUNKED + b"0\r\nX-A: " + b"a" * limits.MAX_HEAD_BYTES + b"\r\n\r\n", None, "headers_too_large"),
    ],
    ids=[
        "head late", "body late", "head large", "head large and worse", "malformed", "upgrade",
        "large behind a request", "late behind a request", "body without end", "trailers large",
    ],
    indirect=["place"],
)  # fmt: skip
async def test_refusal_is_counted_once_and_said(
    place: Place, caplog: pytest.LogCaptureFixture, data: bytes, status: int | None, code: str
) -> None:
    """Each kind of refusal, also one that has no response of its own, is one in its count and in the log."""
    sending = asyncio.create_task(place.send(data))
    await until(lambda: place.shared.refused, what="a refusal")
    place.waiting.set()
    reply = await sending
    assert status == (int(reply.split()[1]) if reply else None)
    assert ({code: 1}, [{code: 1}]) == (place.shared.refused, said(caplog))
    assert "secret" not in caplog.text


async def test_connection_without_room_is_counted_once_and_said(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A connection too many is one in the count when it comes, and its 503 is not another one."""
    place.shared.room, place.shared.waiting_room = 0, 1
    assert 503 == int((await place.send(GET)).split()[1])
    assert ({limits.FULL: 1}, [{limits.FULL: 1}]) == (place.shared.refused, said(caplog))
    assert "leaves room for 0 (ulimit -n)" in caplog.text


@pytest.mark.parametrize("place", [HEAD], indirect=True)
async def test_connection_that_asks_for_nothing_is_not_refused(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A browser opens connections that it may need: that one is closed unused is no refusal."""
    assert b"" == await place.send(b"")
    assert ({}, []) == (place.shared.refused, said(caplog))


async def test_flood_of_refusals_is_one_line(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is refused, the log has one line in each while."""
    monkeypatch.setattr(limits, "SAY_REFUSED", NEVER)
    await asyncio.gather(*(place.send(b"no HTTP\r\n\r\n") for _ in range(30)))
    assert ({"malformed_request": 30}, 1) == (place.shared.refused, len(said(caplog)))


async def test_every_refusal_is_said_in_the_end(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came behind a line is in the next one, also when nothing is refused any more; a quiet while ends it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(limits, "SAY_REFUSED", SHORT)
    expected = {"malformed_request": 10, "upgrade_refused": 10}
    await asyncio.gather(*(place.send(data) for data in (b"no HTTP\r\n\r\n", UPGRADE) for _ in range(10)))
    await until(lambda: sum(said(caplog), Counter()) == expected, what="a line with the rest")
    await until(lambda: place.shared._quiet, what="a quiet while")
    assert expected == sum(said(caplog), Counter()) == place.shared.refused
    lines = len(said(caplog))
    await place.send(UPGRADE)
    assert lines + 1 == len(said(caplog)), "the first one after a quiet while is said at once"
