"""The package's client in a real browser: its tokens, what the service refuses it, and its answers."""

from __future__ import annotations

import time

import pytest

from agent_sse import SimpleNotifier
from browser.recorded import REFUSED, has_results, opened, publish, start
from browser.tabs import Agent, Room, decided
from harness import make_token, session_name


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


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_JWT_LEEWAY": "0", "AGENT_SSE_HEARTBEAT_INTERVAL": "1"}])
async def test_client_ends_when_its_token_expires(room: Room) -> None:
    """Without another token the end is `unauthorized`, said once to `onError` too; no attempt follows."""
    session = session_name()
    tab = await opened(await start(room, session, make_token(session, ttl=3)))
    await tab.until("() => ends.length")
    assert ["unauthorized"] == [end["code"] for end in await tab.do("ends")]
    assert "ended" == (await tab.do("client.state"))["phase"]
    assert [end["message"] for end in await tab.do("ends")] == await tab.calls("onError")
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


@pytest.mark.parametrize("again", [False, True], ids=["first stream", "resumed"])
@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_client_of_a_closed_session_ends(
    room: Room, notifier: SimpleNotifier, transport: str, again: bool
) -> None:
    """A closed session ends the client, which says so to `onError` once, and asks no more."""
    session = session_name()
    tab = await opened(await start(room, session, transport=transport, shareTabs=False))
    await publish(notifier, session, range(3))
    await has_results(tab, 3)
    if again:
        await tab.do("client.disconnect(); client.connect()")
        await opened(tab)
    await notifier.close_session(session)
    await tab.until("() => client.state.phase === 'ended'")
    end = (await tab.do("ends"))[-1]
    assert ("session_closed", None) == (end["code"], end["status"])
    assert [end["message"]] == await tab.calls("onError")
    assert 1 + again == len(room.proxy.asked("/events/"))


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
