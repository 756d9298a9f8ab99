"""How events get to the services: this project's notifier, Redis' pub/sub, HTTP to nchan. No pacing here."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import hiredis

from agent_sse import SimpleNotifier
from benchmarks.apps.payload import CALL, START, TOOL, mark, payload

HTTP_CONNECTIONS = 16
RETENTION = 3600.0  # s; a history serves several rounds


class Way(Protocol):
    """How events get to the service. Numbers of a session grow by one."""

    async def start(self) -> None: ...
    def put(self, session: str, number: int) -> None: ...
    async def finish(self) -> None: ...
    async def history(self, session: str, numbers: range) -> list[str]: ...
    async def aclose(self) -> None: ...


class NotifierWay:
    """Through `SimpleNotifier`, as an agent does."""

    def __init__(self, address: str) -> None:
        self.notifier = SimpleNotifier.from_url(address, publish_timeout=30.0, retention_seconds=RETENTION)
        self._tasks: set[asyncio.Task[str]] = set()
        self._failed: BaseException | None = None

    async def start(self) -> None:
        await self.notifier.__aenter__()

    async def send(self, session: str, marked: dict[str, str]) -> str:
        return await self.notifier.tool_status(
            session, TOOL, "executing", tool_call_id=CALL, parameters=marked, start_time=START
        )

    def put(self, session: str, number: int) -> None:
        # Stamped here, as the other ways do, not in the task's first step: its wait for the loop is in the latency.
        task = asyncio.create_task(self.send(session, mark(number)))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[str]) -> None:
        self._tasks.discard(task)
        self._failed = self._failed or task.exception()

    async def finish(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._failed is not None:
            raise self._failed

    async def history(self, session: str, numbers: range) -> list[str]:
        return list(await asyncio.gather(*(self.send(session, mark(number)) for number in numbers)))

    async def aclose(self) -> None:
        await self.notifier.aclose()


class _Pipe(asyncio.Protocol):
    """Writes requests without waiting for answers, and counts these: `settled` as many as were `asked`."""

    def __init__(self) -> None:
        self.asked = self.settled = 0
        self.idle = asyncio.Event()
        self.transport: Any = None
        self.failure = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.failure = self.failure or "the server closed the connection"
        self.idle.set()

    def write(self, data: bytes, answers: int = 1) -> None:
        self.asked += answers
        self.idle.clear()
        self.transport.write(data)

    def count(self, answers: int) -> None:
        self.settled += answers
        if self.settled >= self.asked:
            self.idle.set()

    async def finish(self) -> None:
        if self.asked > self.settled:
            await self.idle.wait()
        if self.failure:
            raise ConnectionError(self.failure)


class _RedisPipe(_Pipe):
    def __init__(self) -> None:
        super().__init__()
        self.reader = hiredis.Reader()
        self.replies: list[Any] = []

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        got = 0
        while (reply := self.reader.gets()) is not False:
            self.replies.append(reply)
            got += 1
        self.count(got)


class PubsubWay:
    """PUBLISH of the same payload, to a channel named after the session; XADD to `history:<session>`."""

    def __init__(self, address: str) -> None:
        self._port = int(address)
        self._pipe = _RedisPipe()

    async def start(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self._pipe, "127.0.0.1", self._port)

    def put(self, session: str, number: int) -> None:
        self._pipe.write(hiredis.pack_command(("PUBLISH", session, payload(number))))

    async def finish(self) -> None:
        await self._pipe.finish()
        self._pipe.replies.clear()

    async def history(self, session: str, numbers: range) -> list[str]:
        pipe = self._pipe
        before = len(pipe.replies)
        for number in numbers:
            pipe.write(hiredis.pack_command(("XADD", f"history:{session}", "*", "d", payload(number))))
        await pipe.finish()
        ids = [reply.decode() for reply in pipe.replies[before:]]
        pipe.replies.clear()
        return ids

    async def aclose(self) -> None:
        self._pipe.transport.close()


class _HttpPipe(_Pipe):
    """Pipelined requests; a response is counted by its status line, which nchan's bodies do not hold."""

    tail = b""

    def data_received(self, data: bytes) -> None:
        text = self.tail + data
        for refusal in (b"HTTP/1.1 4", b"HTTP/1.1 5"):
            if refusal in text:
                self.failure = text[text.index(refusal) :][:80].decode("latin-1")
                self.idle.set()
        self.tail = text[-9:]  # shorter than what is counted: nothing is counted twice
        self.count(text.count(b"HTTP/1.1 2"))


class HttpWay:
    """POST of the same payload; a session's events go over one connection, so that they stay in order."""

    def __init__(self, address: str) -> None:
        self._port = int(address)
        self._pipes = [_HttpPipe() for _ in range(HTTP_CONNECTIONS)]
        self._pipe_of: dict[str, _HttpPipe] = {}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for pipe in self._pipes:
            await loop.create_connection(lambda pipe=pipe: pipe, "127.0.0.1", self._port)  # type: ignore[misc]

    def put(self, session: str, number: int) -> None:
        pipe = self._pipe_of.setdefault(session, self._pipes[len(self._pipe_of) % len(self._pipes)])
        body = payload(number)
        pipe.write(
            b"POST /pub/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (session.encode(), len(body), body)
        )

    async def finish(self) -> None:
        for pipe in self._pipes:
            await pipe.finish()

    async def history(self, session: str, numbers: range) -> list[str]:
        for number in numbers:
            self.put(session, number)
        await self._pipe_of[session].finish()
        return []  # nchan tells no id to who publishes

    async def aclose(self) -> None:
        for pipe in self._pipes:
            pipe.transport.close()


WAYS: dict[str, Any] = {"notifier": NotifierWay, "pubsub": PubsubWay, "http": HttpWay}
