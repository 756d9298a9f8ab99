"""The publisher, a process of its own: `python -m benchmarks.apps.publish WAY ADDRESS LOOP`; it speaks JSON.

WAY is `notifier` (this project's SimpleNotifier; ADDRESS is Redis' URL), `pubsub` (PUBLISH, pipelined, and XADD for
what can be replayed; ADDRESS is Redis' port) or `http` (POST to nchan over a few connections; ADDRESS is its port).
LOOP is `uvloop` or `asyncio`.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import hiredis
import redis.asyncio as redis
import uvloop

from agent_sse import scripts
from agent_sse.backend import Backend
from agent_sse.store import Publish, Store
from benchmarks.apps.payload import CALL, mark, payload
from benchmarks.apps.ways import WAYS, NotifierWay, Way

HISTORY_WINDOW = 256  # publishes in flight while a history is written


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
                await way.send(f"throughput-{index}", mark(counts[index] + 1))
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
        ours, bare, parser = [], [], hiredis.Reader()
        for number, call in enumerate(calls, 1):
            parser.feed(call.packed)
            _, sha, key_count, *rest = parser.gets()
            begin = time.perf_counter_ns()
            await way.send("lone-ours", mark(number))
            middle = time.perf_counter_ns()
            await client.evalsha(sha, int(key_count), *rest)
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
    {"uvloop": uvloop.run, "asyncio": asyncio.run}[sys.argv[3]](main(sys.argv[1], sys.argv[2]))
