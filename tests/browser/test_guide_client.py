"""The guide's own class in a real browser, as it stands in the guide, against the real service.

What holds for it holds for the package's class with only the import changed: each test runs once with either.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from browser.tabs import LOST, Agent, Room, Tab, decided
from harness import ServiceProcess, session_name, until


@pytest.fixture(params=["guide-client", "package-client"])
def name(request: pytest.FixtureRequest) -> str:
    """The page with the one class, and with the other."""
    return str(request.param)


async def approve(tab: Tab, approved: bool, reason: str) -> Any:
    return await tab.do(f"client.approvePermission({json.dumps(approved)}, {json.dumps(reason)})")


async def test_guide_client_connects_and_hears_its_heartbeat(room: Room, name: str) -> None:
    """`onConnectionOpen` comes first, then the heartbeat's Unix seconds and what a snapshot of nothing says."""
    tab = await room.client(name, session_name())
    assert await tab.called("onHeartbeat") > 1_700_000_000
    assert "none" == (await tab.called("onPermissionCleared"))["outcome"]
    await tab.called("onResultCleared")
    assert "onConnectionOpen" == (await tab.calls())[0][0]
    assert not room.proxy.asked("/poll/")


async def test_guide_client_hears_every_type_of_event(
    room: Room, notifier: SimpleNotifier, agent: Agent, name: str
) -> None:
    """Each type of event reaches its callback with the fields that the guide shows."""
    session = session_name()
    tab = await room.client(name, session)
    await tab.called("onResultCleared")

    await notifier.tool_status(session, "file_search", "executing", parameters={"query": "例"}, risk_level="medium")
    status = await tab.called("onToolStatusChange")
    assert ("executing", "file_search") == (status["status"], status["tool_name"])
    assert ({"query": "例"}, "medium") == (status["details"]["parameters"], status["details"]["risk_level"])
    assert {"timestamp", "details"} < set(status)
    assert "start_time" in status["details"]

    asking = agent.ask(session)
    request = await tab.called("onPermissionRequest")
    assert {
        "tool_name": "file_edit", "parameters": {"file": "example.py"}, "risk_level": "high", "status": "pending",
    }.items() < request.items()  # fmt: skip
    assert await approve(tab, True, "用户同意") is True
    assert (await decided(asking)).approved
    told = await tab.called("onPermissionResponseResult")
    assert (True, True, "用户同意") == (told["success"], told["approved"], told["reason"])
    cleared = await tab.called("onPermissionCleared", 2)  # the first was the snapshot's
    assert ("approved", request["request_id"]) == (cleared["outcome"], cleared["request_id"])

    await notifier.tool_result(session, "file_search", {"matches": 5})
    result = await tab.called("onToolResult")
    assert ("file_search", {"matches": 5}, True) == (result["tool_name"], result["result"], result["success"])
    await notifier.clear_result(session)
    await tab.called("onResultCleared", 2)

    await notifier.error(session, "模型不可用", code="model_unavailable")
    assert "模型不可用" == await tab.called("onError")
    assert [] == await tab.calls("onMaxReconnectAttemptsReached")


@pytest.mark.parametrize(("approved", "reason"), [(True, "用户同意"), (False, "用户拒绝")])
async def test_guide_client_answer_reaches_the_agent(
    room: Room, agent: Agent, name: str, approved: bool, reason: str
) -> None:
    """`approvePermission` returns true, and the waiting agent has the answer and its reason."""
    session = session_name()
    tab = await room.client(name, session)
    asking = agent.ask(session)
    await tab.called("onPermissionRequest")
    assert await approve(tab, approved, reason) is True
    decision = await decided(asking)
    assert (approved, reason, "alice") == (decision.approved, decision.reason, decision.resolved_by)


async def test_guide_client_answer_to_nothing_is_false(room: Room, name: str) -> None:
    """With nothing asked, `approvePermission` returns false and throws nothing."""
    tab = await room.client(name, session_name())
    tab.expect(r"status of 404")
    assert await approve(tab, True, "") is False


async def test_guide_client_health_is_the_services_json(room: Room, agent: Agent, name: str) -> None:
    """`checkHealth` returns the whole body: this client's stream and the open request are counted in it."""
    session = session_name()
    tab = await room.client(name, session)
    asking = agent.ask(session)
    request = await tab.called("onPermissionRequest")
    health = await tab.do("client.checkHealth()")
    assert health["success"] is True
    data = health["data"]
    assert (session, "ok", 1) == (data["session_id"], data["status"], data["connections"])
    assert [request["request_id"]] == [pending["request_id"] for pending in data["pending_permissions"]]
    assert await approve(tab, False, "") is True
    assert not await decided(asking)


async def test_guide_client_health_without_a_service_is_null(room: Room, service: ServiceProcess, name: str) -> None:
    """`checkHealth` returns null when nobody answers."""
    tab = await room.client(name, session_name())
    tab.expect(*LOST, "健康检查失败")
    await service.stop()
    assert await tab.do("client.checkHealth()") is None


async def test_guide_client_comes_back_after_a_restart(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier, agent: Agent, name: str
) -> None:
    """The service restarts while a card is open: `onConnectionOpen` again, the card again, and an answer counts."""
    session = session_name()
    tab = await room.client(name, session)
    tab.expect(*LOST)
    asking = agent.ask(session)
    request = await tab.called("onPermissionRequest")
    await service.stop()
    await service.start()
    await tab.called("onConnectionOpen", 2)
    await notifier.tool_status(session, "file_search", "executing", tool_call_id="c2")
    await tab.until("() => calls.some(([name, value]) => value?.tool_call_id === 'c2')")
    shown = await tab.calls("onPermissionRequest")
    assert {request["request_id"]} == {card["request_id"] for card in shown}
    assert await approve(tab, True, "用户同意") is True
    assert await decided(asking)


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_HEARTBEAT_INTERVAL": "600"}])
async def test_guide_client_snapshot_after_a_restart_has_the_card(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier, agent: Agent
) -> None:
    """The guide's class has no cursor: its next stream begins with the running call and the open card."""
    session = session_name()
    tab = await room.client("guide-client", session)
    tab.expect(*LOST)
    await notifier.tool_status(session, "file_search", "executing", tool_call_id="c1")
    asking = agent.ask(session)
    request = await tab.called("onPermissionRequest")
    await service.stop()
    await service.start()
    await tab.called("onConnectionOpen", 2)
    assert request == await tab.called("onPermissionRequest", 2)
    calls = [call[0] for call in await tab.calls()]
    after = calls[calls.index("onConnectionOpen", 1) :]
    kinds = ["onConnectionOpen", "onHeartbeat", "onToolStatusChange", "onResultCleared", "onPermissionRequest"]
    assert kinds == after
    assert await approve(tab, False, "") is True
    assert not await decided(asking)


async def test_guide_client_gives_up_after_its_attempts(room: Room, service: ServiceProcess) -> None:
    """With nobody there the guide's class tries five times, then calls `onMaxReconnectAttemptsReached`."""
    tab = await room.open("guide-client")
    tab.expect(*LOST, "达到最大重连次数")
    await tab.page.clock.install()
    await service.stop()
    await tab.connect(session_name(), "a.b.c")

    async def given_up() -> bool:
        await tab.page.clock.fast_forward(1000)  # its waits are 1, 2, 4, 8 and 16 s
        return bool(await tab.calls("onMaxReconnectAttemptsReached"))

    await until(given_up)
    assert [] == await tab.calls("onConnectionOpen")


async def test_guide_client_disconnect_ends_its_stream(room: Room, name: str) -> None:
    """After `disconnect` the connection is closed, and stays closed."""
    tab = await room.client(name, session_name())
    assert 1 == room.proxy.streams
    await tab.do("client.disconnect()")
    await until(lambda: room.proxy.streams == 0)
    opened = len(room.proxy.asked("/events/"))
    await tab.do("client.checkHealth()")
    assert opened == len(room.proxy.asked("/events/"))


async def test_guide_client_two_tabs_hear_both(room: Room, agent: Agent, name: str) -> None:
    """Two tabs have the same card; the answer of one clears it in the other."""
    session = session_name()
    tabs = [await room.client(name, session) for _ in range(2)]
    for tab in tabs:
        await tab.called("onPermissionCleared")  # the snapshot's
    asking = agent.ask(session)
    cards = [await tab.called("onPermissionRequest") for tab in tabs]
    assert cards[0]["request_id"] == cards[1]["request_id"]
    assert await approve(tabs[1], False, "用户拒绝") is True
    assert "denied" == (await decided(asking)).outcome
    for tab in tabs:
        cleared = await tab.called("onPermissionCleared", 2)
        assert (cards[0]["request_id"], "denied") == (cleared["request_id"], cleared["outcome"])
