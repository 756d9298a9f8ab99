"""Cancelling a tool call from the browser: what waits is withdrawn, what runs interrupted, what is lost closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from agent_sse.errors import PermissionDenied, ToolCallCancelled
from agent_sse.tool_calls import ToolCall
from harness import DEADLINE, Valkey, make_token, session_name
from room import PUBLISH, Room, make_room, refused


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey) as made:
        yield made


async def cancel(room: Room, call_id: str, reason: str = "") -> tuple[int, Any]:
    return await room.call("POST", "cancel/{}", {"tool_call_id": call_id, "reason": reason})


class Running:
    """A call whose body waits for ``go``; ``task`` ends with the call."""

    def __init__(self, room: Room, call_id: str, *, agent: SimpleNotifier | None = None, **options: Any) -> None:
        self.call: ToolCall = (agent or room.agent).tool_call(
            room.session, "file_edit", {"file": "a.py"}, tool_call_id=call_id, **options
        )
        self.inside = asyncio.Event()
        self.go = asyncio.Event()
        self.interrupted = False
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.call:
            self.inside.set()
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.interrupted = True
                raise

    async def begun(self) -> Running:
        async with asyncio.timeout(DEADLINE):
            await self.inside.wait()
        return self

    async def ended(self) -> Exception | None:
        async with asyncio.timeout(DEADLINE):
            (outcome,) = await asyncio.gather(self.task, return_exceptions=True)
        assert outcome is None or isinstance(outcome, Exception)
        return outcome


async def card(room: Room, call_id: str) -> list[Any]:
    """What a call's card was told: its statuses and results."""
    data = [event["data"] for event in await room.events() if event["data"].get("tool_call_id") == call_id]
    return [item.get("status", item.get("error")) for item in data if "status" in item or "success" in item]


async def test_cancelled_call_is_interrupted_and_its_card_closed(room: Room) -> None:
    """A running body gets the cancellation, the call ends as cancelled, and who called learns by whom and why."""
    running = await Running(room, "c1").begun()
    status, body = await cancel(room, "c1", "wrong file")
    assert (202, {"tool_call_id": "c1", "status": "cancelling"}) == (status, body["data"])
    error = await running.ended()
    assert isinstance(error, ToolCallCancelled)
    assert ("alice", "wrong file", True) == (error.by, error.reason, running.interrupted)
    assert ["pending", "executing", "cancelled", "cancelled by alice"] == await card(room, "c1")
    (entry,) = await room.audit()
    assert ("cancellation", "c1", "alice", "wrong file") == (
        entry["kind"],
        entry["tool_call_id"],
        entry["resolved_by"],
        entry["reason"],
    )


async def test_cancelling_a_waiting_call_withdraws_its_prompt(room: Room) -> None:
    """A call that waits for permission never runs: its request is withdrawn, its card and its prompt go away."""
    running = Running(room, "c1", require_permission=True, risk_level="high")
    shown = await room.presented()
    status, body = await cancel(room, "c1", "no need")
    assert (200, {"tool_call_id": "c1", "status": "withdrawn"}) == (status, body["data"])
    cleared = (await room.next("permission_cleared")).json["data"]
    assert ("cancelled", "no need", "alice") == (cleared["outcome"], cleared["reason"], cleared["resolved_by"])
    error = await running.ended()
    assert isinstance(error, PermissionDenied)
    assert (False, "cancelled", "no need") == (running.inside.is_set(), error.decision.outcome, error.decision.reason)
    assert "cancelled" in await card(room, "c1")
    refused("cancelled", 410, await room.answer(shown["request_id"]))
    kinds = [(entry["kind"], entry.get("by")) for entry in await room.audit()]
    assert [("decision", "cancel"), ("cancellation", None)] == kinds


async def test_cancelling_a_queued_call_keeps_it_from_being_shown(room: Room) -> None:
    """A call that waits in the queue is withdrawn without ever being presented; the one before it stays."""
    first = room.ask("other")
    await room.presented()
    running = Running(room, "c2", require_permission=True)
    await room.is_queued("file_edit")
    assert 200 == (await cancel(room, "c2"))[0]
    assert isinstance(await running.ended(), PermissionDenied)
    assert ["other"] == [row["tool_name"] for row in (await room.health())["pending_permissions"]]
    assert not first.done()


async def test_only_the_named_call_is_cancelled(room: Room) -> None:
    """Other calls of the session go on."""
    one, two = await Running(room, "c1").begun(), await Running(room, "c2").begun()
    await cancel(room, "c1")
    assert isinstance(await one.ended(), ToolCallCancelled)
    two.go.set()
    assert await two.ended() is None


async def test_cancel_that_came_before_the_body_began_interrupts_it(room: Room) -> None:
    """Between the approval and the body's first step a cancellation is not lost."""
    async with SimpleNotifier.from_url(room.valkey.url) as agent:
        running = Running(room, "c1", agent=agent)
        while (await room.next("tool_status")).json["data"]["status"] != "executing":
            pass
        await cancel(room, "c1")
        assert isinstance(await running.ended(), ToolCallCancelled)


async def test_second_cancel_while_the_call_ends_is_harmless(room: Room) -> None:
    """Cancelling twice interrupts once; when the call is over there is nothing to cancel."""
    running = await Running(room, "c1").begun()
    replies = await asyncio.gather(cancel(room, "c1"), cancel(room, "c1"))
    assert {status for status, _ in replies} <= {202, 404}
    assert isinstance(await running.ended(), ToolCallCancelled)
    assert ["pending", "executing", "cancelled", "cancelled by alice"] == await card(room, "c1")
    refused("unknown_call", 404, await cancel(room, "c1"))


@pytest.mark.parametrize("call_id", ["nothing", "c:c1", "\u0000", "x" * 256, "汉"])
async def test_unknown_call_is_404(room: Room, call_id: str) -> None:
    """A call that is not there, or is over, is 404."""
    running = await Running(room, "c1").begun()
    refused("unknown_call", 404, await cancel(room, call_id))
    running.go.set()
    assert await running.ended() is None
    refused("unknown_call", 404, await cancel(room, "c1"))


async def test_call_whose_agent_does_not_listen_is_409(room: Room) -> None:
    """A call that is only reported, by status events, cannot be cancelled from here, and goes on unchanged."""
    await room.agent.tool_status(room.session, "t", "executing", tool_call_id="c1")
    refused("not_cancellable", 409, await cancel(room, "c1"))
    assert ["executing"] == await card(room, "c1")
    assert [] == await room.audit()


async def test_lost_message_costs_time_only(room: Room) -> None:
    """A cancellation whose message nobody heard is found when the agent looks again."""
    async with room.valkey.client() as client:
        running = await Running(room, "c1").begun()
        # What the script does, without its message.
        key = f"agent_sse:{{{room.session}}}"
        await client.hset(f"{key}:requests", "c:c1", '{"reason":"x","by":"alice"}')
        now = (await client.time())[0] * 1000
        await client.zadd(f"{key}:due", {"c:c1": now + 60_000})
        error = await running.ended()
        assert isinstance(error, ToolCallCancelled)
        assert not await client.hexists(f"{key}:requests", "c:c1")
        assert await client.zscore(f"{key}:due", "c:c1") is None


async def test_dead_agents_card_is_closed_after_the_grace(room: Room) -> None:
    """When no agent takes a cancellation the card is closed for it, once, and the call is unknown then."""
    await room.agent.tool_status(
        room.session, "file_edit", "executing", tool_call_id="c1", parameters={"status": "executing", "file": "a.py"},
        details={"cancellable": True},
    )  # fmt: skip
    assert 202 == (await cancel(room, "c1"))[0]
    async with room.valkey.client() as client:
        # The grace is over: five seconds later, as Redis' clock has it.
        await client.zadd(f"agent_sse:{{{room.session}}}:due", {"c:c1": 1})
    await room.next("tool_status")
    status, result = await room.next("tool_status"), await room.next("tool_result")
    assert ("cancelled", "c1", {"status": "executing", "file": "a.py"}) == (
        status.json["data"]["status"],
        status.json["data"]["tool_call_id"],
        status.json["data"]["details"]["parameters"],
    )
    assert (False, "c1", "file_edit") == tuple(
        result.json["data"][name] for name in ("success", "tool_call_id", "tool_name")
    )
    assert "does not answer" in result.json["data"]["error"]
    refused("unknown_call", 404, await cancel(room, "c1"))
    assert 3 == len(await room.events())


async def test_cancelling_needs_its_right_and_a_good_body(room: Room) -> None:
    """Reading and publishing give no right to cancel; a body that names no call is 422."""
    running = await Running(room, "c1").begun()
    body = {"tool_call_id": "c1"}
    for scope in ("events:read", PUBLISH):
        token = make_token(room.session, scope=scope)
        refused("scope_missing", 403, await room.call("POST", "cancel/{}", body, token=token))
    foreign = make_token(session_name())
    refused("session_forbidden", 403, await room.call("POST", "cancel/{}", body, token=foreign))
    for wrong in ({}, {"tool_call_id": ""}, {"tool_call_id": 1}, {"tool_call_id": "x" * 257}, {**body, "reason": 1},
                  {**body, "reason": "x" * 2001}, {**body, "all": True}):  # fmt: skip
        refused("invalid_field", 422, await room.call("POST", "cancel/{}", wrong))
    assert not running.task.done()
    running.go.set()
    assert await running.ended() is None
