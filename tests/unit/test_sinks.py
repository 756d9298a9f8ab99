"""`DirectSink` on a transport that a test moves by hand, and on real ones; `AsgiSink` on a `send` of the test's own."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from agent_sse.frames import chunk
from agent_sse.sinks import AsgiSink, DirectSink, Stalled
from harness import until

BOUND = 1000
TIMEOUT = 10.0
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Pipe(asyncio.Transport):
    """A transport whose kernel takes what `take` says, with asyncio's rules for pausing and closing."""

    def __init__(self) -> None:
        self.sent = b""
        self.buffer = b""
        self.writes = 0
        self.room = 0  # what the kernel would take at once
        self.closing = False
        self.aborted = False
        self.protocol: DirectSink | None = None
        self._high, self._low = 64 * 1024, 16 * 1024
        self._paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        self._high, self._low = high, low
        self._check()

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.aborted
        self.writes += 1
        self.buffer += bytes(data)
        taken, self.room = min(self.room, len(self.buffer)), max(0, self.room - len(self.buffer))
        self.take(taken)

    def take(self, count: int) -> None:
        """Let the client take ``count`` bytes."""
        self.sent, self.buffer = self.sent + self.buffer[:count], self.buffer[count:]
        self._check()
        if self.closing and not self.buffer:
            self._lose()

    def _check(self) -> None:
        assert self.protocol is not None
        if not self._paused and len(self.buffer) > self._high:
            self._paused = True
            self.protocol.pause_writing()
        elif self._paused and len(self.buffer) <= self._low:
            self._paused = False
            self.protocol.resume_writing()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.buffer:
                self._lose()

    def abort(self) -> None:
        if not self.aborted:
            self.closing = self.aborted = True
            self.buffer = b""
            self._lose()

    def _lose(self) -> None:
        assert self.protocol is not None
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


def taken_over(pipe: Pipe, *, bound: int = BOUND, lost: Callable[[], None] = lambda: None) -> DirectSink:
    """A sink on ``pipe``, as the HTTP protocol hands a connection over."""
    sink = DirectSink(bound=bound, timeout=TIMEOUT, on_lost=lost)
    pipe.protocol = sink
    sink.held = [HEAD]
    sink.connection_made(pipe)
    return sink


def unchunked(data: bytes) -> tuple[bytes, bool]:
    """Return the body of a chunked response, and whether its last chunk was there."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        assert b"\r\n" == data[count : count + 2]
        if count == 0:
            assert b"\r\n" == data
            return body, True
        body, data = body + data[:count], data[count + 2 :]
    return body, False


# -- writing ----------------------------------------------------------------------------------------------------------


async def test_first_bytes_leave_with_the_head_in_one_write() -> None:
    """What is gathered in a step leaves at its end, in order, behind the head; later writes leave at once."""
    pipe = Pipe()
    sink = taken_over(pipe)
    sink.gather()
    assert sink.write(b"one")
    assert sink.send(chunk(b"two"))
    assert (0, False) == (pipe.writes, sink.idle)
    await asyncio.sleep(0)
    assert (1, HEAD + b"3\r\none\r\n3\r\ntwo\r\n") == (pipe.writes, pipe.buffer)
    sink.write(b"three")
    assert (2, False) == (pipe.writes, sink.idle)
    pipe.take(1000)
    assert sink.idle


async def test_gathering_is_bounded_too() -> None:
    """A step of the loop in which much is written, as from pages that are there already, holds no more than others."""
    pipe = Pipe()
    sink = taken_over(pipe)
    sink.gather()
    assert sink.write(b"x" * 900)
    sink.gather()
    assert not sink.write(b"y" * 200)
    waiting = asyncio.ensure_future(sink.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    pipe.take(1000)
    await waiting


@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=40),
    takes=st.lists(st.integers(0, 1500), min_size=1, max_size=40),
)
def test_writer_that_heeds_the_answers_holds_the_bound_and_loses_nothing(sizes: list[int], takes: list[int]) -> None:
    """However the client takes it: at most the bound and a frame wait, and every byte comes, in order, once."""

    async def run() -> None:
        pipe = Pipe()
        sink = taken_over(pipe)
        pace = itertools.cycle(takes)
        frames = [bytes([65 + n % 26]) * size for n, size in enumerate(sizes)]
        sink.gather()
        for n, frame in enumerate(frames):
            if n % 5 == 4:
                sink.gather()
            going_on = sink.write(frame) if n % 3 == 0 else sink.send(chunk(frame))
            assert len(pipe.buffer) <= BOUND + max(len(chunk(f)) for f in frames) + len(HEAD)
            if not going_on:
                drained = asyncio.ensure_future(sink.drained())
                while not drained.done():
                    pipe.take(next(pace) + 10)
                    await asyncio.sleep(0)
                assert len(pipe.buffer) <= BOUND // 2
            elif n % 4 == 0:
                pipe.take(next(pace))
                await asyncio.sleep(0)
        sink.finish()
        pipe.take(10**6)
        assert pipe.sent.startswith(HEAD)
        assert (b"".join(frames), True) == unchunked(pipe.sent.removeprefix(HEAD))

    asyncio.run(run())


async def test_wait_that_was_cancelled_does_not_spoil_the_next() -> None:
    """Whoever waits for room after that gets it when the client has taken enough, and not before."""
    pipe = Pipe()
    sink = taken_over(pipe)
    sink.gather()
    sink.write(b"x" * 1100)
    first = asyncio.ensure_future(sink.drained())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.ensure_future(sink.drained())
    pipe.take(300)
    await asyncio.sleep(0)
    assert not second.done()
    pipe.take(400)
    await second


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_finish_ends_the_response_behind_what_waits() -> None:
    """What was written before the end is sent, then the last chunk, then the connection closes; the rest is void."""
    lost: list[bool] = []
    pipe = Pipe()
    sink = taken_over(pipe, lost=lambda: lost.append(True))
    sink.gather()
    sink.write(b"last words")
    sink.finish()
    sink.finish()
    assert sink.write(b"too late")
    assert sink.send(chunk(b"too late"))
    assert (True, False, []) == (pipe.closing, sink.idle, lost)
    pipe.take(10**6)
    await asyncio.sleep(0)
    assert ((b"last words", True), [True]) == (unchunked(pipe.sent.removeprefix(HEAD)), lost)
    await asyncio.sleep(0)
    assert 1 == pipe.writes


async def test_finish_gives_up_a_client_that_does_not_take_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bytes unread the connection is aborted after the grace, and its owner told once."""
    monkeypatch.setattr("agent_sse.sinks.FINISH_GRACE", 0.01)
    gone = asyncio.Event()
    lost: list[bool] = []

    def on_lost() -> None:
        lost.append(True)
        gone.set()

    pipe = Pipe()
    sink = taken_over(pipe, lost=on_lost)
    sink.gather()
    sink.write(b"x" * 5000)
    closed = asyncio.ensure_future(sink.closed())
    sink.finish()
    await asyncio.wait_for(gone.wait(), 30)
    await closed
    assert (True, [True]) == (pipe.aborted, lost)


async def test_lost_connection_wakes_who_waits_and_takes_no_more() -> None:
    """A client that leaves lets a waiting writer go on, into nothing."""
    pipe = Pipe()
    sink = taken_over(pipe)
    sink.siblings = {sink}
    sink.gather()
    sink.write(b"x" * 5000)
    waiting = asyncio.ensure_future(sink.drained())
    await asyncio.sleep(0)
    pipe.abort()
    await waiting
    assert set() == sink.siblings
    assert sink.write(b"more")
    sink.gather()
    assert sink.write(b"more")
    sink.finish()
    await asyncio.sleep(0)


async def test_stalled_is_who_takes_nothing_for_the_whole_time() -> None:
    """A byte now and then is enough; nothing to take is no stall; the time counts from the first look, and anew."""
    pipe = Pipe()
    sink = taken_over(pipe)
    sink.gather()
    sink.write(b"x" * 500)
    await asyncio.sleep(0)
    now = 100.0
    for _ in range(10):  # slow
        assert not sink.end_if_stalled(now)
        pipe.take(1)
        now += TIMEOUT
    assert not sink.end_if_stalled(now)
    pipe.take(10**6)
    assert not sink.end_if_stalled(now + 5 * TIMEOUT)  # idle
    assert not sink.end_if_stalled(now + 9 * TIMEOUT)
    now += 20 * TIMEOUT
    sink.write(b"y" * 10)
    assert not sink.end_if_stalled(now)
    sink.write(b"z" * 10)  # what comes is no sign of life
    assert not sink.end_if_stalled(now + TIMEOUT - 0.1)
    assert not pipe.aborted
    assert sink.end_if_stalled(now + TIMEOUT)
    assert pipe.aborted


# -- real transports --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_frames_keep_their_order_whoever_writes_them(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What the full socket leaves of a frame, and what comes behind it, goes by the transport: nothing overtakes."""

    async def run() -> None:
        near, far = socket.socketpair()
        far.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        lost = asyncio.Event()
        sink = DirectSink(bound=10**6, timeout=TIMEOUT, on_lost=lost.set)
        await asyncio.get_running_loop().create_connection(lambda: sink, sock=near)
        sink.held = [HEAD]
        sink.gather()
        await until(lambda: sink.idle)
        expected, got, waited = b"", bytearray(), 0
        for number in range(300):
            data = b"%d " % number * (1 + number % 977)
            expected += data
            sink.send(chunk(data))
            waited += not sink.idle
            if number % 3 == 0:
                got += await asyncio.get_running_loop().sock_recv(far, 3000)
        sink.finish()
        while data := await asyncio.get_running_loop().sock_recv(far, 70_000):
            got += data
        assert (expected, True) == unchunked(bytes(got).removeprefix(HEAD))
        assert 0 < waited < 300  # both ways were taken
        await lost.wait()
        far.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_closing_connection_is_written_to_no_more(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Between the end of a transport and `connection_lost` nothing goes to its socket any more."""

    async def run() -> None:
        lost = asyncio.Event()
        sink = DirectSink(bound=BOUND, timeout=TIMEOUT, on_lost=lost.set)
        server = await asyncio.get_running_loop().create_server(lambda: sink, "127.0.0.1", 0)
        far = socket.create_connection(server.sockets[0].getsockname())
        far.setblocking(False)
        await until(lambda: hasattr(sink, "transport"))
        sink.write(b"before")
        sink.send(chunk(b"direct"))
        sink.transport.abort()
        sink.send(chunk(b"after"))
        async with asyncio.timeout(30):
            await lost.wait()
        sink.send(chunk(b"late"))
        got = b""
        while data := await asyncio.get_running_loop().sock_recv(far, 100):
            got += data
        assert (b"beforedirect", False) == unchunked(got)
        far.close()
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_bound_holds_on_real_connections(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """On either loop's transport a writer is told at the bound, woken below it, and every byte comes."""

    async def run() -> None:
        near, far = socket.socketpair()
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        lost = asyncio.Event()
        sink = DirectSink(bound=20_000, timeout=TIMEOUT, on_lost=lost.set)
        await asyncio.get_running_loop().create_connection(lambda: sink, sock=near)
        sink.held = [HEAD]
        sink.gather()
        frame, most, stops = chunk(b"x" * 5000), 0, 0
        got = bytearray()

        async def read() -> None:
            while data := await asyncio.get_running_loop().sock_recv(far, 7000):
                got.extend(data)

        reading: asyncio.Task[None] | None = None
        for _ in range(200):
            if not sink.send(frame):
                stops += 1
                reading = reading or asyncio.create_task(read())
                async with asyncio.timeout(30):
                    await sink.drained()
                assert sink.transport.get_write_buffer_size() <= 10_000
            most = max(most, sink.transport.get_write_buffer_size())
        assert reading is not None
        await until(lambda: sink.idle, what="an empty buffer")  # what waits longer than the grace would be given up
        sink.finish()
        async with asyncio.timeout(30):
            await lost.wait()
            await reading
        far.close()
        assert (b"x" * 10**6, True) == unchunked(bytes(got).removeprefix(HEAD))
        assert most <= 20_000 + len(frame) + len(HEAD)
        assert stops > 1

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


# -- through ASGI -----------------------------------------------------------------------------------------------------


class Client:
    """The other side of `send`: it takes a message when it is told to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.ended = False
        self.ready = asyncio.Event()

    async def send(self, message: Any) -> None:
        await self.ready.wait()
        self.bodies.append(message["body"])
        self.ended = not message["more_body"]


async def test_asgi_sink_bounds_and_ends() -> None:
    """Over the bound the writer is told, under half of it woken; the end comes behind everything."""
    client = Client()
    sink = AsgiSink(client.send, bound=BOUND, timeout=TIMEOUT)
    running = asyncio.ensure_future(sink.run())
    assert sink.write(b"x" * 900)
    assert not sink.send(chunk(b"y" * 200))
    waiting = asyncio.ensure_future(sink.drained())
    await asyncio.sleep(0)
    assert (False, False) == (waiting.done(), sink.idle)
    client.ready.set()
    await waiting
    sink.write(b"last words")
    sink.finish()
    sink.write(b"too late")
    await running
    assert (b"x" * 900 + b"y" * 200 + b"last words", True) == (b"".join(client.bodies), client.ended)


@pytest.mark.parametrize("finish", [True, False], ids=["at the end", "on the way"])
async def test_asgi_sink_gives_up_who_takes_nothing(monkeypatch: pytest.MonkeyPatch, finish: bool) -> None:
    """One `send` has the time-out, and the last ones the grace."""
    monkeypatch.setattr("agent_sse.sinks.FINISH_GRACE", 0.01)
    sink = AsgiSink(Client().send, bound=BOUND, timeout=600 if finish else 0.01)
    running = asyncio.ensure_future(sink.run())
    sink.write(b"x")
    await asyncio.sleep(0)
    if finish:
        sink.finish()
    with pytest.raises(Stalled):
        await asyncio.wait_for(running, 30)
