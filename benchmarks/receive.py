"""What it costs to receive a pub/sub message: the bare parse, this project's way, a hiredis reader, redis-py's PubSub.

``python -m benchmarks.receive`` starts a server of its own and prints CPU microseconds per message of this process, by
the kernel's accounting. Each way receives the same messages, 300 bytes each, in turns; the median of the rounds counts.
What comes one at a time is dominated by waking up, the same for all; bursts show what a message itself costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import hiredis
import redis.asyncio as redis
import uvloop

from agent_sse.backend import Backend
from agent_sse.pubsub import Subscriber
from agent_sse.state_dir import find_server

CHANNEL = b"agent_sse:{s1}:channel"
PAYLOAD = b"1795375201212-0 1795375201211-0 " + b"x" * 268
FEED = """
import socket, sys
sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])
one = b"*3\\r\\n$7\\r\\nPUBLISH\\r\\n$%d\\r\\n%s\\r\\n$%d\\r\\n%s\\r\\n" % (
    len(sys.argv[2]), sys.argv[2].encode(), len(sys.argv[3]), sys.argv[3].encode())
left = int(sys.argv[4])
print(flush=True)
sys.stdin.readline()
while left:
    some = min(left, int(sys.argv[5]))
    sock.sendall(one * some)
    answers = b""
    while answers.count(b"\\r\\n") < some:
        answers += sock.recv(65536)
    left -= some
"""


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measured(url: str, count: int, burst: int, received: asyncio.Event) -> float:
    """CPU seconds of this process until the last message is received."""
    path = url.removeprefix("unix://")
    arguments = [sys.executable, "-c", FEED, path, CHANNEL.decode(), PAYLOAD.decode(), str(count), str(burst)]
    pipe = asyncio.subprocess.PIPE
    feeder = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe)
    assert feeder.stdin is not None
    assert feeder.stdout is not None
    await feeder.stdout.readline()  # starting it costs this process milliseconds
    started = cpu()
    feeder.stdin.write(b"\n")
    async with asyncio.timeout(120):
        await received.wait()
    used = cpu() - started
    assert 0 == await feeder.wait()
    return used


async def with_wire(url: str, count: int, burst: int) -> float:
    left, ready, received = count, asyncio.Event(), asyncio.Event()

    def heard(channel: bytes, data: bytes) -> None:
        nonlocal left
        left -= 1
        if not left:
            received.set()

    backend = Backend(url)
    subscriber = Subscriber(backend, on_message=heard, on_subscribed=lambda channel: ready.set())
    subscriber.start()
    subscriber.add(CHANNEL)
    await ready.wait()
    used = await measured(url, count, burst, received)
    await subscriber.aclose()
    await backend.aclose()
    return used


async def with_read_response(url: str, count: int, burst: int) -> float:
    """redis-py's connection and its hiredis parser, one awaited reply at a time."""
    connection = redis.ConnectionPool.from_url(url, protocol=2, socket_timeout=None).make_connection()
    await connection.connect()
    await connection.send_command("SUBSCRIBE", CHANNEL)
    await connection.read_response()
    received = asyncio.Event()

    async def read() -> None:
        left = count
        while left:
            reply = await connection.read_response(timeout=float("inf"), push_request=True)
            left -= reply[0] == b"message"
        received.set()

    reading = asyncio.create_task(read())
    used = await measured(url, count, burst, received)
    await reading
    await connection.disconnect()
    return used


async def with_pubsub(url: str, count: int, burst: int) -> float:
    client = redis.Redis.from_url(url, protocol=2)
    received = asyncio.Event()
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(CHANNEL)

        async def read() -> None:
            left = count
            async for _ in pubsub.listen():
                left -= 1
                if not left:
                    received.set()
                    return

        reading = asyncio.create_task(read())
        used = await measured(url, count, burst, received)
        await reading
    await client.aclose()
    return used


async def bare_parse(url: str, count: int, burst: int) -> float:
    """hiredis alone, fed from memory in chunks of 16 KiB: what no way can go below."""
    message = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(CHANNEL), CHANNEL, len(PAYLOAD), PAYLOAD)
    block = message * 45
    reader = hiredis.Reader()
    started = cpu()
    left = count
    while left > 0:
        reader.feed(block)
        while reader.gets() is not False:
            left -= 1
    return cpu() - started


WAYS: dict[str, Callable[[str, int, int], Awaitable[float]]] = {
    "bare hiredis parse, no socket": bare_parse,
    "agent_sse.pubsub.Subscriber": with_wire,
    "redis-py connection, read_response": with_read_response,
    "redis-py PubSub.listen": with_pubsub,
}


async def compare(url: str, count: int, burst: int, rounds: int) -> dict[str, float]:
    results: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            results[name].append(await way(url, count, burst) / count * 1e6)
    return {name: statistics.median(values) for name, values in results.items()}


def wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(str(path)):
            assert server.poll() is None, "the server did not start"
            os.sched_yield()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="as") as folder:
        path = Path(folder) / "v.sock"
        command = [str(find_server()), "--port", "0", "--unixsocket", str(path), "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                wait_for(path, server)
                print("CPU µs per message received, in bursts of 50 / one at a time")
                for name, factory in (("uvloop", uvloop.new_event_loop), ("asyncio", asyncio.new_event_loop)):
                    with asyncio.Runner(loop_factory=factory) as runner:
                        bursts, singles = (
                            runner.run(compare(f"unix://{path}", options.messages, burst, options.rounds))
                            for burst in (50, 1)
                        )
                    for way, figure in bursts.items():
                        print(f"  {name:8} {way:36} {figure:6.2f} / {singles[way]:6.2f}")
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
