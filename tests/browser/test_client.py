"""The package's client in a real browser against the real service: what it does beyond the guide's class.

What both do is in `test_guide_client`; what several tabs do, in `test_tabs`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from browser.tabs import LOST, Agent, Room, Tab, decided
from harness import ServiceProcess, Valkey, make_token, session_name, until

REFUSED = r"status of 4\d\d"  # what Chromium itself writes of such an answer
MANY = {"retention_events": 10_000}
UNDER_LOAD = 2000
NEVER = 600_000  # ms; a wait that no test sees the end of


async def start(room: Room, session: str, token: str | None = None, **options: Any) -> Tab:
    """Open a page with a client, and connect it. ``tokens`` beside the client's options are its provider's."""
    tab = await room.open("client")
    arguments = json.dumps([session, make_token(session) if token is None else token, options])
    await tab.do(f"start(...{arguments})")
    return tab


async def opened(tab: Tab, via: str = "stream") -> Tab:
    """Wait until the client is connected, and how, and has its cursor."""
    await tab.until("(via) => client.state.phase === 'open' && client.state.via === via && client.lastEventId", via)
    return tab


async def has_results(tab: Tab, count: int) -> list[Any]:
    """Wait for that many results, and return all that came."""
    await tab.until("(count) => results(events).length >= count", count)
    return list(await tab.do("results(events)"))


async def publish(notifier: SimpleNotifier, session: str, numbers: range) -> None:
    """Publish results that are numbers, each once its predecessor is in the Stream."""
    for number in numbers:
        await notifier.tool_result(session, "count", number)


@pytest.fixture
async def retaining(valkey: Valkey) -> AsyncIterator[SimpleNotifier]:
    """A notifier that lets many events be replayed."""
    async with SimpleNotifier.from_url(valkey.url, **MANY) as made:
        yield made


async def test_client_keeps_its_token_out_of_every_url(room: Room, notifier: SimpleNotifier, agent: Agent) -> None:
    """Stream, answer, health: the token is in no request line, by `fetch` and with the browser's `EventSource`."""
    session, token = session_name(), make_token()
    for transport in ("fetch", "eventsource"):
        tab = await opened(await start(room, session, make_token(session), transport=transport))
        await publish(notifier, session, range(3))
        await has_results(tab, 3)
        asking = agent.ask(session)
        await tab.called("onPermissionRequest")
        assert await tab.do("client.approvePermission(true)") is True
        assert await decided(asking)
        assert (await tab.do("client.checkHealth()"))["success"] is True
        await tab.do("client.disconnect()")
    assert room.proxy.asked("POST /agent_backend/api/sse/ticket/")
    assert [] == room.proxy.asked(token.partition(".")[0])  # the head of every token is the same


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
    """Without a network it makes no attempt; with it, one at once, however long the backoff: nothing is missed."""
    session = session_name()
    tab = await opened(await start(room, session, reconnectDelay=NEVER, maxReconnectDelay=NEVER))
    tab.expect(*LOST)
    await publish(notifier, session, range(3))
    await has_results(tab, 3)
    await room.context.set_offline(True)
    room.proxy.cut()
    await tab.until("() => client.state.phase === 'offline'")
    attempts = len(room.proxy.asked("/events/"))
    await publish(notifier, session, range(3, 6))
    assert attempts == len(room.proxy.asked("/events/"))
    await room.context.set_offline(False)
    assert list(range(6)) == await has_results(tab, 6)
    assert (await tab.do("client.state"))["phase"] == "open"


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
    """2,000 events are published while the service restarts twice: each arrives once, in order."""
    session = session_name()
    tab = await opened(await start(room, session, reconnectDelay=100, maxReconnectDelay=300, maxReconnectAttempts=1000))
    tab.expect(*LOST)
    publishing = asyncio.create_task(publish(retaining, session, range(UNDER_LOAD)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        await has_results(tab, 1)
        await service.stop(number)
        await service.start()
        await opened(tab)
    await publishing
    assert list(range(UNDER_LOAD)) == await has_results(tab, UNDER_LOAD)
    assert 3 <= len(await tab.calls("onConnectionOpen"))
    assert [] == await tab.do("events.filter(({ type }) => type === 'stream_reset')")


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_JWT_LEEWAY": "0", "AGENT_SSE_HEARTBEAT_INTERVAL": "1"}])
async def test_client_ends_when_its_token_expires(room: Room) -> None:
    """Without another token the end is `unauthorized`, said once to `onError` too; no attempt follows."""
    session = session_name()
    tab = await opened(await start(room, session, make_token(session, ttl=3)))
    await tab.until("() => ends.length")
    assert ["unauthorized"] == [end["code"] for end in await tab.do("ends")]
    assert "ended" == (await tab.do("client.state"))["phase"]
    assert await tab.calls("onError")
    assert [] == await tab.calls("onMaxReconnectAttemptsReached")
    assert 1 == len(room.proxy.asked("/events/"))


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_JWT_LEEWAY": "0", "AGENT_SSE_HEARTBEAT_INTERVAL": "1"}])
@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_client_goes_on_with_its_providers_next_token(
    room: Room, notifier: SimpleNotifier, transport: str
) -> None:
    """With a `tokenProvider` an expired token is replaced, and no event is lost or doubled by it."""
    session = session_name()
    tokens = [make_token(session, ttl=3), make_token(session)]
    tab = await opened(await start(room, session, "", tokens=tokens, transport=transport))
    tab.expect(REFUSED)
    await publish(notifier, session, range(5))
    await tab.until("() => asked.length >= 2")
    await publish(notifier, session, range(5, 10))
    assert list(range(10)) == await has_results(tab, 10)
    await opened(tab)
    assert [] == await tab.do("ends")


async def test_client_polls_behind_a_buffering_proxy_and_comes_back(room: Room, notifier: SimpleNotifier) -> None:
    """A proxy holds streams back: events come by polls; once it lets them through, by a stream: each once, in order."""
    session = session_name()
    room.proxy.buffering = True
    tab = await opened(await start(room, session, streamTimeout=500, streamRetry=500), "poll")
    assert room.proxy.asked("/poll/")
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


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
@pytest.mark.parametrize(
    ("token", "code", "status"),
    [("nonsense", "unauthorized", 401), (make_token("another"), "forbidden", 403)],
    ids=["401", "403"],
)
async def test_client_refused_ends_with_a_typed_error(
    room: Room, transport: str, token: str, code: str, status: int
) -> None:
    """401 and 403 are final: one attempt, and an AgentSSEError that has the status, and not the token."""
    tab = await start(room, session_name(), token, transport=transport)
    tab.expect(REFUSED)
    await tab.until("() => ends.length")
    (end,) = await tab.do("ends")
    assert (code, status) == (end["code"], end["status"])
    assert token not in end["message"]
    assert 1 == len(room.proxy.requests)
    refused = await tab.do("outcome(client.request('/sessions'))") if status == 401 else None
    assert refused is None or 401 == refused["error"]["status"]


@pytest.mark.parametrize(
    "service_settings", [{"AGENT_SSE_MAX_STREAMS_PER_SESSION": "1", "AGENT_SSE_HEARTBEAT_INTERVAL": "1"}]
)
async def test_client_limited_waits_as_it_was_told_and_comes_in(room: Room, notifier: SimpleNotifier) -> None:
    """429 is not final: the state says `limited` and until when; when there is room, the client comes in."""
    session = session_name()
    first = await opened(await start(room, session, shareTabs=False))
    second = await start(room, session, shareTabs=False, reconnectDelay=100)
    second.expect(REFUSED)
    state = await second.until("() => states.find(({ phase, error }) => phase === 'waiting' && error)")
    assert ("limited", 429) == (state["error"]["code"], state["error"]["status"])
    assert state["error"]["retryAfter"] >= 1
    assert state["retryAt"] >= time.time() * 1000 - 60_000
    await first.do("client.disconnect()")
    await opened(second)
    await publish(notifier, session, range(3))
    assert [0, 1, 2] == await has_results(second, 3)


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


async def test_client_double_click_is_sent_once(room: Room, agent: Agent) -> None:
    """Two equal answers to one request are one POST, with the id of the request shown; both say true."""
    session = session_name()
    tab = await opened(await start(room, session))
    asking = agent.ask(session)
    await tab.called("onPermissionRequest")
    both = await tab.do("Promise.all([client.approvePermission(true, 'yes'), client.approvePermission(true, 'yes')])")
    assert [True, True] == both
    assert await decided(asking)
    assert 1 == len(room.proxy.asked("POST /agent_backend/api/sse/permission-response/"))


async def test_client_answer_that_comes_second_has_the_decision_that_won(room: Room, agent: Agent) -> None:
    """`answer` throws 409 with the winner in `data`; `approvePermission` says false."""
    session = session_name()
    tab = await opened(await start(room, session))
    tab.expect(REFUSED)
    asking = agent.ask(session)
    request = (await tab.called("onPermissionRequest"))["request_id"]
    won = await tab.do(f"outcome(client.answer('{request}', {{ approved: false, reason: '不' }}))")
    assert (False, "denied") == (won["value"]["approved"], won["value"]["status"])
    assert not await decided(asking)
    lost = (await tab.do(f"outcome(client.answer('{request}', {{ approved: true }}))"))["error"]
    assert (409, False, "不") == (lost["status"], lost["data"]["approved"], lost["data"]["reason"])
    assert await tab.do(f"client.approvePermission(true, '', '{request}')") is False


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


async def test_client_comes_back_with_its_page(room: Room, notifier: SimpleNotifier) -> None:
    """A user goes to another page and back: wherever the browser kept the page, the client connects again."""
    session = session_name()
    tab = await opened(await start(room, session))
    await publish(notifier, session, range(2))
    await has_results(tab, 2)
    await tab.page.goto(f"{room.proxy.url}/pages/none.html")
    tab.expect(r"status of 404")
    await until(lambda: room.proxy.streams == 0)
    await publish(notifier, session, range(2, 4))
    await tab.page.go_back()
    if await tab.do("'client' in window"):  # from the back/forward cache, else the page is new
        assert list(range(4)) == await has_results(tab, 4)
    else:
        await tab.do(f"start('{session}', '{make_token(session)}', {{ lastEventId: '0-0' }})")
        assert list(range(4)) == await has_results(tab, 4)
