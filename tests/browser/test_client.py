"""The package's client in a real browser against the real service: what it does beyond the guide's class.

What both do is in `test_guide_client`; what several tabs do, in `test_tabs`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from agent_sse import SimpleNotifier
from browser.recorded import has_results, opened, publish, start
from browser.tabs import LOST, Agent, Room, decided
from harness import ServiceProcess, Valkey, make_token, session_name, until

MANY = {"retention_events": 100_000}
UNDER_LOAD = 2000
PACE = 0.001  # s between two events: some thousand last over both restarts
NEVER = 600_000  # ms; a wait that no test sees the end of


@pytest.fixture
async def retaining(valkey: Valkey) -> AsyncIterator[SimpleNotifier]:
    """A notifier that lets many events be replayed."""
    async with SimpleNotifier.from_url(valkey.url, **MANY) as made:
        yield made


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_client_loses_nothing_when_its_connection_tears(
    room: Room, retaining: SimpleNotifier, transport: str
) -> None:
    """Connections are cut again and again while events are published: each arrives once, in order."""
    session = session_name()
    options = {"reconnectDelay": 50, "maxReconnectDelay": 100, "maxReconnectAttempts": 1000}
    tab = await opened(await start(room, session, transport=transport, **options))
    tab.expect(*LOST)
    for first in range(0, 300, 100):
        await publish(retaining, session, range(first, first + 50))
        room.proxy.cut()
        await publish(retaining, session, range(first + 50, first + 100))
    assert list(range(300)) == await has_results(tab, 300)
    assert [] == await tab.do("events.filter(({ type }) => type === 'stream_reset')")


async def test_client_waits_offline_and_returns_with_the_network(room: Room, notifier: SimpleNotifier) -> None:
    """Without a network it makes no attempt, in a minute neither; with it, one at once, however long the backoff."""
    session = session_name()
    tab = await room.open("client")
    tab.expect(*LOST)
    await tab.page.clock.install()
    options = {"reconnectDelay": NEVER, "maxReconnectDelay": NEVER}
    await tab.do(f"start('{session}', '{make_token(session)}', {json.dumps(options)})")
    await opened(tab)
    await publish(notifier, session, range(3))
    await has_results(tab, 3)
    await room.context.set_offline(True)
    room.proxy.cut()
    await tab.until("() => client.state.phase === 'offline'")
    await publish(notifier, session, range(3, 6))
    await tab.page.clock.fast_forward(60_000)
    await room.context.set_offline(False)
    assert list(range(6)) == await has_results(tab, 6)
    phases = await tab.do("states.map(({ phase }) => phase)")
    assert ["connecting", "open"] == phases[phases.index("offline") + 1 :]


@pytest.mark.parametrize("minutes", [30, 24 * 60])
async def test_client_with_an_old_cursor_is_reset(room: Room, valkey: Valkey, minutes: int) -> None:
    """A tab that slept too long is told `stream_reset`, then the present state; and goes on from there."""
    session = session_name()
    async with SimpleNotifier.from_url(valkey.url, retention_events=10) as short:
        await publish(short, session, range(500))
        await short.tool_status(session, "file_search", "executing", tool_call_id="running")
        cursor = f"{int(time.time() * 1000) - minutes * 60_000}-0"
        tab = await start(room, session, lastEventId=cursor)
        await tab.until("() => events.some(({ type }) => type === 'tool_status')")
        first, *rest = await tab.do("events.filter(({ type }) => type !== 'heartbeat')")
        assert ("stream_reset", "history_expired") == (first["type"], first["data"]["reason"])
        assert "running" in [event["data"].get("tool_call_id") for event in rest]
        await opened(tab)
        await publish(short, session, range(500, 503))
        assert [500, 501, 502] == await has_results(tab, 3)


async def test_client_loses_nothing_while_the_service_restarts_under_load(
    room: Room, service: ServiceProcess, retaining: SimpleNotifier
) -> None:
    """2,000 events and more are published while the service restarts twice: each arrives once, in order."""
    session = session_name()
    tab = await opened(await start(room, session, reconnectDelay=100, maxReconnectDelay=300, maxReconnectAttempts=1000))
    tab.expect(*LOST)
    over = asyncio.Event()

    async def publish_throughout() -> int:
        numbers = itertools.count()
        while (number := next(numbers)) < UNDER_LOAD or not over.is_set():
            await retaining.tool_result(session, "count", number)
            await asyncio.sleep(PACE)
        return number

    publishing = asyncio.create_task(publish_throughout())
    for way in (signal.SIGTERM, signal.SIGKILL):
        await has_results(tab, 1)
        await service.stop(way)
        await service.start()
        await opened(tab)
    over.set()
    count = await publishing
    assert list(range(count)) == await has_results(tab, count)
    assert 3 <= len(await tab.calls("onConnectionOpen"))
    assert [] == await tab.do("events.filter(({ type }) => type === 'stream_reset')")


async def test_client_polls_behind_a_buffering_proxy_and_comes_back(room: Room, notifier: SimpleNotifier) -> None:
    """A proxy holds streams back: events come by polls. It lets one go that says what polls said already: the client is
    back on a stream, and has each event once, in order."""
    session = session_name()
    room.proxy.buffering = True
    tab = await opened(await start(room, session, streamTimeout=3000, streamRetry=100), "poll")
    assert room.proxy.asked("/poll/")
    await until(lambda: len(room.proxy.asked("/events/")) >= 2 and room.proxy.streams, what="a stream held back")
    await publish(notifier, session, range(20))
    assert list(range(20)) == await has_results(tab, 20)
    publishing = asyncio.create_task(publish(notifier, session, range(20, 200)))
    room.proxy.buffering = False
    await opened(tab, "stream")
    await publishing
    await publish(notifier, session, range(200, 220))
    assert list(range(220)) == await has_results(tab, 220)
    assert [] == await tab.do("events.filter(({ type }) => type === 'stream_reset')")


async def test_client_answers_while_it_polls(room: Room, agent: Agent) -> None:
    """Where only polls get through, a request is shown and its answer reaches the agent."""
    session = session_name()
    room.proxy.buffering = True
    tab = await opened(await start(room, session, streamTimeout=500), "poll")
    asking = agent.ask(session)
    await tab.called("onPermissionRequest")
    assert await tab.do("client.approvePermission(true, '同意')") is True
    assert "同意" == (await decided(asking)).reason
    assert "approved" == (await tab.called("onPermissionCleared", 2))["outcome"]


async def test_client_gives_up_after_its_attempts_and_can_begin_anew(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier
) -> None:
    """With nobody there `max_attempts` ends it; `connect` begins anew, after the last event it had."""
    session = session_name()
    tab = await opened(await start(room, session, reconnectDelay=10, maxReconnectAttempts=3))
    tab.expect(*LOST)
    await publish(notifier, session, range(3))
    await has_results(tab, 3)
    await service.stop()
    await tab.called("onMaxReconnectAttemptsReached")
    assert ["max_attempts"] == [end["code"] for end in await tab.do("ends")]
    await publish(notifier, session, range(3, 6))
    await service.start()
    await tab.do("client.connect()")
    assert list(range(6)) == await has_results(tab, 6)


async def test_client_leaves_a_connection_that_says_nothing(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier
) -> None:
    """A service that hangs without closing anything: after two heartbeats the client tries anew, and resumes."""
    session = session_name()
    tab = await opened(await start(room, session, reconnectDelay=100, maxReconnectAttempts=1000))
    tab.expect(*LOST)
    assert service.process is not None
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        await until(lambda: len(room.proxy.asked("/events/")) >= 2, what="a second attempt")
        assert "open" != (await tab.do("client.state"))["phase"]
        await publish(notifier, session, range(3))
    finally:
        os.kill(service.process.pid, signal.SIGCONT)
    assert [0, 1, 2] == await has_results(tab, 3)


async def test_client_iterates_until_it_is_disconnected(room: Room, notifier: SimpleNotifier) -> None:
    """`for await` gives each event in order, and ends with `disconnect`."""
    session = session_name()
    tab = await opened(await start(room, session))
    await tab.do("""void (window.read = (async () => {
        const read = [];
        for await (const { type, data } of client) if (type === 'tool_result') read.push(data.result);
        return read;
    })())""")
    await publish(notifier, session, range(50))
    await has_results(tab, 50)
    await tab.do("client.disconnect()")
    assert list(range(50)) == await tab.do("read")


@pytest.mark.parametrize("browser_options", [{"ignore_default_args": ["--disable-back-forward-cache"]}])
@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_client_comes_back_with_its_page(room: Room, notifier: SimpleNotifier, transport: str) -> None:
    """A user goes to another page and back: the client kept nothing open meanwhile, and the page, which the browser
    kept as it was, has what it missed."""
    session = session_name()
    tab = await opened(await start(room, session, transport=transport))
    await publish(notifier, session, range(2))
    await has_results(tab, 2)
    await tab.page.goto(f"{room.proxy.url}{room.pages.build('guide-client')}")
    await until(lambda: room.proxy.streams == 0)
    await publish(notifier, session, range(2, 4))
    await tab.do("void history.back()")
    assert list(range(4)) == await has_results(tab, 4)
    assert "open" == (await tab.do("client.state"))["phase"]
