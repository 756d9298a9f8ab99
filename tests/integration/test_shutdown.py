"""SIGTERM with streams open: a prompt exit, whole last frames, and clients that resume elsewhere without loss."""

from __future__ import annotations

import asyncio
import signal

import pytest

from agent_sse import SimpleNotifier
from harness import ServiceProcess, Stream, Valkey, make_token, until

pytestmark = pytest.mark.usefixtures("sink")

SESSION = "s1"
STREAMS = 300
EXIT_DEADLINE = 10.0  # s; ten times the goal


async def test_sigterm_ends_300_streams_and_they_resume_elsewhere(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The process exits although one client is stuck; every other has whole frames and misses no event afterwards."""
    environment = {"AGENT_SSE_REDIS_URL": valkey.url}
    token = make_token(SESSION)
    async with ServiceProcess(environment) as first, ServiceProcess(environment) as second:
        streams = [Stream(first.served.events(SESSION, token)) for _ in range(STREAMS)]
        stuck = Stream(first.served.events("s2", make_token("s2")), receive_buffer=4096)
        resumed: list[Stream] = []
        try:
            await stuck.open(read=False)
            for start in range(0, STREAMS, 50):
                await asyncio.gather(*(stream.open() for stream in streams[start : start + 50]))
            await asyncio.gather(*(stream.primed() for stream in streams))
            for _ in range(150):  # more than the sockets and buffers between it and the service hold
                await notifier.tool_result("s2", "read", "x" * 100_000)
            published = [await notifier.tool_result(SESSION, "read", "x" * 50_000) for _ in range(3)]
            await until(lambda: all(stream.last_id == published[-1] for stream in streams), what="delivery")

            burst = asyncio.create_task(_publish(notifier, 100))
            async with asyncio.timeout(EXIT_DEADLINE):
                await first.stop(signal.SIGTERM)
            meanwhile = await burst
            await asyncio.gather(*(stream.end() for stream in streams))
            assert [True] * STREAMS == [stream.complete for stream in streams]
            assert [b""] * STREAMS == [stream.buffer for stream in streams]

            cursors = [str(stream.last_id) for stream in streams]
            resumed = [Stream(second.served.events(SESSION, token), {"Last-Event-ID": cursor}) for cursor in cursors]
            for start in range(0, STREAMS, 50):
                await asyncio.gather(*(stream.open() for stream in resumed[start : start + 50]))
            await until(lambda: all(stream.last_id == meanwhile[-1] for stream in resumed), what="catching up")
            everything = published + meanwhile
            for before, after in zip(streams, resumed, strict=True):
                assert everything == [
                    event.id for stream in (before, after) for event in stream.records if event.id and event.data
                ]
                assert "stream_reset" not in {event.type for event in after.records}
        finally:
            await asyncio.gather(*(stream.close() for stream in (*streams, *resumed, stuck)))


async def _publish(notifier: SimpleNotifier, count: int) -> list[str]:
    return [await notifier.tool_status(SESSION, "read", "executing") for _ in range(count)]
