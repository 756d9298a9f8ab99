"""The publisher, a process of its own: `python -m benchmarks.apps.publish WAY ADDRESS`, commands and answers in JSON.

WAY is `notifier` (this project's SimpleNotifier; ADDRESS is Redis' URL), `pubsub` (PUBLISH, pipelined, and XADD for
what can be replayed; ADDRESS is Redis' port) or `http` (POST to nchan over a few connections; ADDRESS is its port).
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from typing import Any, Protocol

import hiredis
import redis.asyncio as redis
import uvloop

from agent_sse import SimpleNotifier, scripts
from agent_sse.backend import Backend
from agent_sse.store import Publish, Store
from benchmarks.apps.payload import CALL, START, TOOL, mark, payload

HTTP_CONNECTIONS = 16
HISTORY_WINDOW = 256  # publishes in flight while a history is written
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

    async def send(self, session: str, number: int) -> str:
        return await self.notifier.tool_status(
            session, TOOL, "executing", tool_call_id=CALL, parameters=mark(number), start_time=START
        )

    def put(self, session: str, number: int) -> None:
        task = asyncio.create_task(self.send(session, number))
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
        return list(await asyncio.gather(*(self.send(session, number) for number in numbers)))

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


class Publisher:
    """Runs the commands. Each session's numbers go on from command to command."""

    def __init__(self, way: Way, address: str) -> None:
        self._way = way
        self._address = address
        self._last: defaultdict[str, int] = defaultdict(int)

    async def paced(self, sessions: list[str], rate: float, count: int) -> dict[str, Any]:
        """Publish ``count`` events round-robin, each at its own time by the clock: ``rate`` a second in all."""
        loop = asyncio.get_running_loop()
        begin, cpu, latest = loop.time(), time.process_time(), 0.0
        for i in range(count):
            due = begin + i / rate
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            latest = max(latest, loop.time() - due)
            session = sessions[i % len(sessions)]
            self._last[session] += 1
            self._way.put(session, self._last[session])
        published = loop.time() - begin
        await self._way.finish()
        return {
            "count": count, "rate": count / max(published, 1e-9), "latest_ms": latest * 1e3,
            "seconds": loop.time() - begin, "cpu_seconds": time.process_time() - cpu,
        }  # fmt: skip

    async def history(self, sessions: list[str], events: int) -> dict[str, Any]:
        """Publish ``events`` for each session, as fast as it goes; return the id of each session's first one."""
        first: dict[str, str] = {}

        async def write(session: str) -> None:
            last = self._last[session]
            self._last[session] += events
            ids = await self._way.history(session, range(last + 1, last + events + 1))
            first[session] = ids[0] if ids else ""

        step = max(1, HISTORY_WINDOW // events) if isinstance(self._way, NotifierWay) else 1
        for at in range(0, len(sessions), step):
            await asyncio.gather(*(write(session) for session in sessions[at : at + step]))
        return {"ids": [first[session] for session in sessions]}

    async def throughput(self, tasks: int, seconds: float) -> dict[str, Any]:
        """Publish from so many tasks, each to a session of its own, an event at a time; return events a second."""
        assert isinstance(self._way, NotifierWay)
        way, loop = self._way, asyncio.get_running_loop()
        counts = [0] * tasks

        async def run(index: int, until: float) -> None:
            while loop.time() < until:
                await way.send(f"throughput-{index}", counts[index] + 1)
                counts[index] += 1

        await asyncio.gather(*(run(index, loop.time() + seconds / 5) for index in range(tasks)))
        counts[:] = [0] * tasks
        begin, cpu = loop.time(), time.process_time()
        await asyncio.gather(*(run(index, begin + seconds) for index in range(tasks)))
        elapsed = loop.time() - begin
        return {"per_second": sum(counts) / elapsed, "cpu_us": (time.process_time() - cpu) / sum(counts) * 1e6}

    async def lone(self, count: int) -> dict[str, Any]:
        """Time single publishes and redis-py's bare ``evalsha`` of the same, in turns; return medians in µs."""
        assert isinstance(self._way, NotifierWay)
        way = self._way
        settings = way.notifier.settings
        backend = Backend(self._address)
        store = Store(backend, settings)
        await backend.connect()
        calls = []
        for number in range(1, count + 1):
            event = Publish("lone-bare", payload(number), "status", CALL, False)
            calls.append(store.publish_call(event, "bench", number, number - 1))
        await backend.aclose()
        client = redis.Redis.from_url(self._address)
        await client.script_load(scripts.PUBLISH.text)
        ours, bare = [], []
        for number, call in enumerate(calls, 1):
            begin = time.perf_counter_ns()
            await way.send("lone-ours", number)
            middle = time.perf_counter_ns()
            await client.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
            ours.append(middle - begin)
            bare.append(time.perf_counter_ns() - middle)
        await client.aclose()
        warm = math.ceil(count / 10)
        return {
            "publish_us": statistics.median(ours[warm:]) / 1e3, "evalsha_us": statistics.median(bare[warm:]) / 1e3,
        }  # fmt: skip


async def main(way_name: str, address: str) -> None:
    way: Way = WAYS[way_name](address)
    await way.start()
    publisher = Publisher(way, address)
    lines = asyncio.StreamReader(limit=16 * 1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print(json.dumps({"event": "started"}), flush=True)
    while line := await lines.readline():
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer = await getattr(publisher, name)(**command)
        except Exception as error:
            answer = {"event": "error", "message": f"the publisher's {name}: {type(error).__name__}: {error}"}
        print(json.dumps({"event": name, **answer}), flush=True)
    await way.aclose()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2]))
