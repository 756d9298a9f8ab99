"""Clients that do not read: they cost a bounded amount of memory, hold up nobody, and are let go in the end."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from agent_sse import SimpleNotifier
from harness import (
    Follower,
    ServiceProcess,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    serve,
    services_of,
    until,
)

pytestmark = pytest.mark.usefixtures("sink")

SESSION = "s1"
EVENT_BYTES = 100 * 1024
FLOOD_BYTES = 50 * 1024 * 1024
MEMORY_BOUND_KIB = 8 * 1024


def resident_kib(pid: int) -> int:
    """The resident memory of a process."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=True, capture_output=True).stdout)


@asynccontextmanager
async def unread(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[Stream]:
    """A client with a small window that does not read."""
    stream = Stream(url, headers, receive_buffer=4096)
    try:
        yield await stream.open(read=False)
    finally:
        await stream.close()


async def flood(notifier: SimpleNotifier, size: int, follower: Follower, pid: int) -> tuple[list[str], int]:
    """Publish ``size`` bytes in large events, never further ahead of ``follower`` than a burst.

    Returns the ids and the most memory that the process had meanwhile, in KiB.
    """
    ids: list[str] = []
    most = 0
    for _ in range(size // EVENT_BYTES // 8):
        ids += await asyncio.gather(*(notifier.tool_result(SESSION, "read", "x" * EVENT_BYTES) for _ in range(8)))
        await follower.until_id(ids[-1])
        most = max(most, resident_kib(pid))
    return ids, most


@pytest.mark.parametrize("retained", [16, 128])
async def test_slow_client_costs_no_memory_and_holds_up_nobody(valkey: Valkey, retained: int) -> None:
    """A client that does not read while 50 MB are published: under 8 MB more memory, the other client has everything,
    and once it reads again it gets every retained event, or one `stream_reset` and a snapshot, then the live ones.
    """
    bounds = {"retention_bytes": retained * 1024 * 1024, "retention_events": 10_000}
    environment = {
        "AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_SEND_TIMEOUT": "120",
        **{f"AGENT_SSE_{name.upper()}": str(value) for name, value in bounds.items()},
    }  # fmt: skip
    async with (
        SimpleNotifier.from_url(valkey.url, **bounds) as notifier,
        ServiceProcess(environment) as process,
        Follower(lambda: process.served.events(SESSION, make_token(SESSION))) as other,
    ):
        assert process.process is not None
        pid = process.process.pid
        warm_up, _ = await flood(notifier, 8 * 1024 * 1024, other, pid)
        url = process.served.events(SESSION, make_token(SESSION))
        async with unread(url, {"Last-Event-ID": warm_up[-1]}) as stuck:
            before = resident_kib(pid)
            published, most = await flood(notifier, FLOOD_BYTES, other, pid)
            assert most - before < MEMORY_BOUND_KIB
            assert warm_up + published == other.ids

            stuck.read()
            await until(lambda: stuck.last_id == published[-1], what="the stuck client's catching up")
            last = await notifier.tool_status(SESSION, "read", "completed")
            while (await stuck.next()).id != last:
                pass
        assert_told_or_complete(stuck, [*published, last], complete=retained > 50)


def assert_told_or_complete(stream: Stream, published: list[str], *, complete: bool) -> None:
    """Every event in order, or the first ones, one `stream_reset` with its snapshot, and the last ones."""
    records = [event for event in stream.records if event.type != "heartbeat"]
    resets = [i for i, event in enumerate(records) if event.type == "stream_reset"]
    assert ([], complete) == (resets, True) or (1, complete) == (len(resets), False)
    if not resets:
        assert published == [event.id for event in records if event.data is not None]
        return
    (at,) = resets
    assert "history_expired" == records[at].json["data"]["reason"]
    first = [event.id for event in records[:at] if event.data is not None]
    assert published[: len(first)] == first
    snapshot, rest = records[at + 1 : at + 3], records[at + 3 :]
    assert [("tool_result", None), ("permission_cleared", None)] == [(event.type, event.id) for event in snapshot]
    assert rest[0].data is None, "an id without data ends the snapshot"
    after = published.index(str(rest[0].id)) + 1
    assert published[after:] == [event.id for event in rest[1:] if event.data is not None]
    assert after > len(first)


async def test_stuck_client_is_disconnected_and_its_place_given_back(
    valkey: Valkey, notifier: SimpleNotifier, sink: str
) -> None:
    """A client that never reads again is let go after the send time-out."""
    async with serve(make_settings(valkey.url, send_timeout=0.3, max_streams=2)) as served:
        (service,) = services_of(served.app)
        url = served.events(SESSION, make_token(SESSION))
        async with Follower(lambda: url) as other, unread(url) as stuck:
            assert 2 == service.hub.open_streams
            ids: list[str] = []
            while service.hub.open_streams == 2:
                ids.append(await notifier.tool_result(SESSION, "read", "x" * EVENT_BYTES))
                await other.until_id(ids[-1])
                assert len(ids) < 1000, "the client is still there after 100 MB"
            assert (1, 1) == (service.hub.counters.stalls, service.hub.open_streams)
            assert ids == other.ids
            if (
                sink == "direct"
            ):  # else the server keeps the socket until the client reads or leaves: it cannot be reached
                assert served.server is not None
                connections = served.server.server_state.connections
                await until(lambda: len(connections) == 1, what="the end of the connection")
            async with httpx.AsyncClient(headers=bearer(make_token(SESSION))) as client:
                health = (await client.get(f"{served.api}/health/{SESSION}")).json()["data"]
            assert 1 == health["connections"]
            async with Stream(url) as third:
                assert 200 == third.status
            stuck.read()
            await stuck.end()
            assert not stuck.complete
