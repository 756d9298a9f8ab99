"""Cancelling a tool call from the browser: what waits is withdrawn, what runs interrupted, what is lost closed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent_sse import SimpleNotifier, scripts
from agent_sse.errors import PermissionDenied, ToolCallCancelled
from agent_sse.tool_calls import ToolCall
from harness import DEADLINE, Valkey, make_token, session_name, until
from mcp_parts import SERVERS, RawHost
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


async def test_cancellation_that_the_body_makes_an_error_of_leaves_the_task_uncancelled(room: Room) -> None:
    """A body that raises its own error when it is interrupted has failed, and its task may go on waiting."""
    inside = asyncio.Event()

    async def call() -> None:
        async with room.agent.tool_call(room.session, "file_edit", {}, tool_call_id="c1"):
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError("interrupted") from None

    async def work() -> int:
        with pytest.raises(ValueError, match="interrupted"):
            await call()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    working = asyncio.create_task(work())
    async with asyncio.timeout(DEADLINE):
        await inside.wait()
        await cancel(room, "c1")
        assert 0 == await working
    assert ["pending", "executing", "failed", "interrupted"] == await card(room, "c1")


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


# -- running calls whose agent is gone --------------------------------------------------------------------------------


async def leases(room: Room) -> dict[str, float]:
    """The leases of running calls, in ms since 1970."""
    async with room.valkey.client() as client:
        rows = await client.zrange(f"agent_sse:{{{room.session}}}:due", 0, -1, withscores=True)
    return {name.decode(): score for name, score in rows if name[:2] in (b"l:", b"h:")}


async def is_leased(room: Room, member: str) -> None:
    async def found() -> bool:
        return member in await leases(room)

    await until(found, what=f"{member} being leased")


async def put_due(room: Room, member: str) -> None:
    """Let a lease be over."""
    async with room.valkey.client() as client:
        await client.zadd(f"agent_sse:{{{room.session}}}:due", {member: 1})


async def test_killed_agents_running_call_is_closed(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL while the tool runs: when the lease is over the card closes as failed, and nothing is left of it."""
    monkeypatch.setenv("AGENT_SSE_REDIS_URL", room.valkey.url)
    marking = [sys.executable, str(SERVERS / "marking.py"), str(tmp_path / "marks")]
    options = json.dumps({"session": room.session, "timeout": 300, "command": marking})
    async with RawHost([sys.executable, str(SERVERS / "agent.py"), options]) as agent:
        await agent.write(json.dumps({"id": "1", "tool": "linger", "arguments": {"text": "x"}}).encode())
        shown = await room.presented()
        await room.answer(shown["request_id"])
        while (await room.next("tool_status")).json["data"]["status"] != "executing":
            pass
        agent.process.send_signal(signal.SIGKILL)
        await agent.end()
    call_id = shown["tool_call_id"]
    assert {f"l:{call_id}"} <= set(await leases(room))
    await room.pass_time(30_000, dead=[f"l:{call_id}", f"h:{call_id}"])
    await room.health()
    status, result = await room.next("tool_status"), await room.next("tool_result")
    assert ("failed", call_id) == (status.json["data"]["status"], status.json["data"]["tool_call_id"])
    assert (False, call_id, "the agent was lost while the tool ran") == tuple(
        result.json["data"][name] for name in ("success", "tool_call_id", "error")
    )
    assert {} == await leases(room)
    refused("unknown_call", 404, await cancel(room, call_id))


async def test_living_agents_call_keeps_its_lease(room: Room) -> None:
    """An agent renews the leases of what it runs, and gives them back at the end: it closes its cards itself."""
    running = await Running(room, "c1").begun()
    await is_leased(room, "l:c1")
    async with room.valkey.client() as client:
        soon = (await client.time())[0] * 1000 + 10_000
        await client.zadd(f"agent_sse:{{{room.session}}}:due", {"l:c1": soon})

    async def is_renewed() -> bool:
        return (await leases(room))["l:c1"] > soon + 10_000

    await until(is_renewed, what="the lease being renewed")
    await room.health()
    assert ["pending", "executing"] == await card(room, "c1")
    running.go.set()
    assert await running.ended() is None
    assert ["pending", "executing", "completed", None] == await card(room, "c1")

    async def is_given_back() -> bool:
        return not await leases(room)

    await until(is_given_back, what="the lease being given back")


async def test_lapsed_lease_leaves_a_waiting_call_to_its_request(room: Room) -> None:
    """What waits for permission ends by its request's own rules: the prompt stays, and its answer counts."""
    running = Running(room, "c1", require_permission=True)
    shown = await room.presented()
    await is_leased(room, "l:c1")
    await put_due(room, "l:c1")
    await room.health()
    assert {"failed", "cancelled"}.isdisjoint(await card(room, "c1"))
    assert 200 == (await room.answer(shown["request_id"]))[0]
    await running.begun()
    assert {"l:c1", "h:c1"} == set(await leases(room))
    await put_due(room, "h:c1")
    await room.health()
    assert {"l:c1"} == set(await leases(room))
    running.go.set()
    assert await running.ended() is None
    assert "completed" in await card(room, "c1")


@pytest.mark.parametrize(
    ("status", "member", "expected"),
    [
        ("pending", "l:c1", "cancelled"), ("executing", "l:c1", "failed"), ("executing", "h:c1", None),
        ("waiting_permission", "l:c1", None), ("waiting_permission", "h:c1", "cancelled"), ("completed", "l:c1", None),
    ],
)  # fmt: skip
async def test_lapsed_lease_closes_what_nothing_else_would(
    room: Room, status: str, member: str, expected: str | None
) -> None:
    """A call that waits is closed when it was handed its approval, any other when it has not ended; once."""
    await room.agent.tool_status(room.session, "t", status, tool_call_id="c1", parameters={"status": "executing"})
    await put_due(room, member)
    await room.health()
    await room.health()
    assert {} == await leases(room)
    told = await card(room, "c1")
    assert [status] if expected is None else [status, expected] == told[:2]
    assert (1 if expected is None else 3) == len(told)


async def test_reported_calls_have_no_lease(room: Room) -> None:
    """Calls that are only reported by status events stay open as long as it takes."""
    await room.agent.tool_status(room.session, "t", "executing", tool_call_id="c1", details={"cancellable": True})
    async with room.agent.tool_call(room.session, "t", tool_call_id="c2"):
        await is_leased(room, "l:c2")
    assert "l:c1" not in await leases(room)


async def test_lease_comes_back_for_nothing_that_is_gone(room: Room) -> None:
    """A closed session stays erased, though the agent of a call of it still looks for cancellations."""
    running = await Running(room, "c1").begun()
    await is_leased(room, "l:c1")
    async with room.valkey.client() as client:
        assert await client.pttl(f"agent_sse:{{{room.session}}}:due") > 0
    await room.agent.close_session(room.session)
    parts = room.agent._parts
    assert parts is not None
    assert [None] == await parts.store.run(scripts.CANCELLED, room.session, 15_000, 1, "c1", "c0")
    assert {} == await leases(room)
    running.go.set()
    assert await running.ended() is None


# -- rights and bodies -------------------------------------------------------------------------------------------------


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
