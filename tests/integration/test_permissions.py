"""The waiter's side of a permission: withdrawal, dead and restarted agents, keys, lost wake-ups, an absent Redis.

Whatever goes wrong, what was not approved never runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

import agent_sse.notifier
import agent_sse.service
from agent_sse import SimpleNotifier
from agent_sse.backend import Backend, Call
from agent_sse.errors import AgentSseError, IdempotencyConflict, PermissionDenied, RedisRefused, RedisUnavailable
from agent_sse.permissions import PermissionDecision, Permissions
from agent_sse.scripts import Script
from agent_sse.settings import RedisSettings
from agent_sse.store import Store
from harness import (
    DEADLINE,
    Event,
    Served,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    serve,
    session_name,
    until,
)
from permission_time import let_time_pass

AGENT = """
import asyncio, json, sys
from agent_sse import SimpleNotifier
from agent_sse.errors import PermissionDenied

async def main(url, how, session, settings, options):
    async with SimpleNotifier.from_url(url, **settings) as notifier:
        if how == "ask":
            decision = await notifier.request_permission(session, "file_edit", {"file": "a.py"}, **options)
        else:
            try:
                async with notifier.tool_call(session, "file_edit", {"file": "a.py"}, require_permission=True, **options) as call:
                    call.result = "done"
                decision = call.decision
            except PermissionDenied as denied:
                decision = denied.decision
        print(json.dumps([decision.approved, decision.outcome, decision.reason, decision.request_id]), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], *map(json.loads, sys.argv[4:])))
"""  # noqa: E501 - a program of its own


@asynccontextmanager
async def agent_process(
    valkey: Valkey, how: str, session: str, lease: float = 15.0, **options: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An agent as a process of its own, that asks once and prints the decision."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, valkey.url, how, session, json.dumps({"permission_lease": lease}),
        json.dumps(options), cwd="/", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def printed_decision(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        return json.loads(await process.stdout.readline())


class Room:
    """A session with an open stream at a service; the answers go through another connection to Redis."""

    def __init__(self, valkey: Valkey, served: Served, permissions: Permissions) -> None:
        self.valkey = valkey
        self.served = served
        self.permissions = permissions
        self.session = session_name()
        self.stream = Stream(served.events(self.session, make_token(self.session)))

    async def presented(self) -> str:
        """The id of the request that is presented next; repeats beside a heartbeat have no event id."""
        while (event := await self.stream.next("permission_request")).id is None:
            pass
        return str(event.json["data"]["request_id"])

    async def answer(self, approved: bool, request_id: str | None = None) -> str:
        found = await self.permissions.answer(
            self.session, approved=approved, reason="", request_id=request_id, subject="alice"
        )
        return found.code

    async def pass_time(self, ms: int, *dead: str) -> None:
        async with self.valkey.client() as client:
            await let_time_pass(client, self.session, ms, dead=dead)

    async def record(self, request_id: str) -> Any:
        async with self.valkey.client() as client:
            return json.loads(await client.hget(f"agent_sse:{{{self.session}}}:requests", request_id) or b"null")

    def presentations(self) -> list[Event]:
        return [e for e in self.stream.records if e.id and e.data and e.type == "permission_request"]


@pytest.fixture
async def room(valkey: Valkey, sink: str) -> AsyncIterator[Room]:
    backend = Backend(valkey.url)
    async with serve(make_settings(valkey.url, heartbeat_interval=0.5)) as served:
        made = Room(valkey, served, Permissions(Store(backend, RedisSettings(_env_file=None))))  # type: ignore[call-arg]
        async with made.stream:
            await made.stream.primed()
            yield made
    await backend.aclose()


def ask(agent: SimpleNotifier, room: Room, tool: str = "file_edit", **options: Any) -> asyncio.Task[PermissionDecision]:
    options = {"parameters": {"file": "a.py"}, **options}
    return asyncio.create_task(agent.request_permission(room.session, tool, **options))


async def decided(waiting: asyncio.Task[PermissionDecision]) -> PermissionDecision:
    async with asyncio.timeout(DEADLINE):
        return await waiting


# -- withdrawal and death -----------------------------------------------------------------------------------------


async def test_cancelled_tool_call_withdraws_its_request_and_closes_its_card(
    room: Room, notifier: SimpleNotifier
) -> None:
    """Cancelling a call that waits clears the card, says `cancelled`, and never runs the body."""
    ran = False

    async def call() -> None:
        nonlocal ran
        async with notifier.tool_call(room.session, "file_edit", require_permission=True, tool_call_id="c1"):
            ran = True

    task = asyncio.create_task(call())
    request_id = await room.presented()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cleared = (await room.stream.next("permission_cleared")).json["data"]
    assert (request_id, "cancelled", "agent") == (cleared["request_id"], cleared["outcome"], cleared["resolved_by"])
    status, result = await room.stream.next("tool_status"), await room.stream.next("tool_result")
    assert ("cancelled", False) == (status.json["data"]["status"], result.json["data"]["success"])
    assert "gone" == await room.answer(True, request_id)
    assert not ran


async def test_killed_agent_is_settled_by_the_server_and_its_card_is_closed(room: Room) -> None:
    """After SIGKILL the lease lapses: the server cancels the request and says for the agent that its call ended."""
    async with agent_process(room.valkey, "call", room.session, lease=1.5, tool_call_id="c1") as process:
        request_id = await room.presented()
        process.kill()
        await process.wait()
        cleared = (await room.stream.next("permission_cleared")).json["data"]
        assert (request_id, "cancelled", "agent_lost", "lease") == (
            cleared["request_id"], cleared["outcome"], cleared["reason"], cleared["resolved_by"],
        )  # fmt: skip
        status = (await room.stream.next("tool_status", "tool_result")).json
        result = (await room.stream.next("tool_status", "tool_result")).json
        assert ("tool_status", "cancelled", "c1", {"file": "a.py"}) == (
            status["type"], status["data"]["status"], status["data"]["tool_call_id"],
            status["data"]["details"]["parameters"],
        )  # fmt: skip
        assert ("tool_result", False, "c1", None) == (
            result["type"], result["data"]["success"], result["data"]["tool_call_id"], result["data"]["result"],
        )  # fmt: skip
        assert result["data"]["error"]
        assert "gone" == await room.answer(True, request_id)


async def test_live_waiter_outlasts_many_leases(room: Room, valkey: Valkey) -> None:
    """A waiter renews its lease as long as it lives; the request is still open and is then approved."""
    async with SimpleNotifier.from_url(valkey.url, permission_lease=1.2) as agent:
        waiting = ask(agent, room)
        request_id = await room.presented()
        first = (await room.record(request_id))["lease"]

        async def has_outlasted() -> bool:
            return bool((await room.record(request_id))["lease"] > first + 1300)

        await until(has_outlasted)
        assert "resolved" == await room.answer(True, request_id)
        assert await decided(waiting)


async def test_keyed_request_survives_its_agent_and_is_handed_to_the_next_one(room: Room) -> None:
    """A request with a key stays when its agent is killed; a new agent gets the same one back, and its answer."""
    async with agent_process(room.valkey, "ask", room.session, lease=1.0, idempotency_key="step-1") as process:
        request_id = await room.presented()
        process.kill()
        await process.wait()
    await room.pass_time(60_000, request_id)
    assert "pending" == (await room.record(request_id))["st"]
    async with agent_process(room.valkey, "ask", room.session, idempotency_key="step-1") as process:
        await until(lambda: _lives(room, request_id))
        assert "resolved" == await room.answer(True)
        assert [True, "approved", "", request_id] == await printed_decision(process)
    assert 1 == len(room.presentations())


async def _lives(room: Room, request_id: str) -> bool:
    async with room.valkey.client() as client:
        now = await client.time()
    return bool((await room.record(request_id))["lease"] > now[0] * 1000)


async def test_approval_without_a_waiter_is_handed_over_once(room: Room, notifier: SimpleNotifier) -> None:
    """Answered while no agent lived, an approval goes to the first that asks again; a second one is not approved."""
    async with agent_process(room.valkey, "ask", room.session, idempotency_key="step-1") as process:
        request_id = await room.presented()
        process.kill()
        await process.wait()
    assert "resolved" == await room.answer(True)
    first = await decided(ask(notifier, room, idempotency_key="step-1"))
    second = await decided(ask(notifier, room, idempotency_key="step-1"))
    assert (True, request_id) == (first.approved, first.request_id)
    assert (False, "cancelled", request_id) == (second.approved, second.outcome, second.request_id)
    assert not second


async def test_two_waiters_on_one_key_share_one_approval(room: Room, valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Of several waiters on one request exactly one is approved; a denial reaches all of them."""
    async with SimpleNotifier.from_url(valkey.url) as other:
        for approved in (True, False):
            waiting = [ask(n, room, idempotency_key=f"step-{approved}") for n in (notifier, notifier, other, other)]
            request_id = await room.presented()
            assert "resolved" == await room.answer(approved, request_id)
            decisions = [await decided(task) for task in waiting]
            assert {request_id} == {decision.request_id for decision in decisions}
            assert int(approved) == sum(map(bool, decisions))
            if not approved:
                assert {"denied"} == {decision.outcome for decision in decisions}
            await room.pass_time(1000)


async def test_agent_that_cancels_as_it_is_approved_never_runs_twice(room: Room, notifier: SimpleNotifier) -> None:
    """Withdrawing what was approved in the same moment changes nothing: an approval stands, and is handed out once."""
    for step in range(10):
        key = f"step-{step}"
        waiting = ask(notifier, room, idempotency_key=key)
        request_id = await room.presented()
        answering = asyncio.create_task(room.answer(True, request_id))
        for _ in range(step):
            await asyncio.sleep(0)
        waiting.cancel()
        code = await answering
        await asyncio.wait([waiting])
        got = 0 if waiting.cancelled() else int(bool(waiting.result()))
        record = await room.record(request_id)
        assert ("approved" if code == "resolved" else "cancelled") == record["st"]
        if code == "resolved":
            again = await decided(ask(notifier, room, idempotency_key=key))
            assert request_id == again.request_id
            assert got + int(bool(again)) <= 1
        await room.pass_time(1000)


# -- keys ---------------------------------------------------------------------------------------------------------


async def test_idempotency_key_is_bound_to_tool_and_parameters(room: Room, notifier: SimpleNotifier) -> None:
    """The same question in another spelling attaches; another tool or other parameters is an IdempotencyConflict."""
    first = ask(notifier, room, parameters={"a": 1, "b": [True, None]}, idempotency_key="k")
    request_id = await room.presented()
    for tool, parameters in (
        ("file_read", {"a": 1, "b": [True, None]}), ("file_edit", {"a": 1}), ("file_edit", {"a": 1, "b": [1, None]}),
        ("file_edit", {"a": 1.5, "b": [True, None]}), ("file_edit", []),
    ):  # fmt: skip
        with pytest.raises(IdempotencyConflict):
            await decided(ask(notifier, room, tool, parameters=parameters, idempotency_key="k"))
    same = ask(notifier, room, parameters={"b": [True, None], "a": 1}, idempotency_key="k")
    elsewhere = asyncio.create_task(notifier.request_permission(session_name(), "other", idempotency_key="k"))
    assert "resolved" == await room.answer(False)
    assert [request_id] * 2 == [(await decided(task)).request_id for task in (first, same)]
    with pytest.raises(IdempotencyConflict):  # settled, it still is that question
        await decided(ask(notifier, room, "file_read", idempotency_key="k"))
    assert not elsewhere.done()
    elsewhere.cancel()
    await asyncio.wait([elsewhere])


async def test_denial_stays_for_its_key(room: Room, notifier: SimpleNotifier) -> None:
    """Asking again with the key of a denied request is denied at once; nobody is asked twice."""
    waiting = ask(notifier, room, idempotency_key="k")
    request_id = await room.presented()
    assert "resolved" == await room.answer(False)
    for again in (await decided(waiting), await decided(ask(notifier, room, idempotency_key="k"))):
        assert (False, "denied", request_id) == (again.approved, again.outcome, again.request_id)
    assert 1 == len(room.presentations())


@pytest.mark.parametrize("end", ["expired", "withdrawn"])
async def test_key_asks_anew_after_expiry_and_withdrawal(room: Room, notifier: SimpleNotifier, end: str) -> None:
    """A request that ended without an answer does not hold its key: the next one is a new question."""
    waiting = ask(notifier, room, idempotency_key="k", timeout=60)
    first = await room.presented()
    if end == "expired":
        await room.pass_time(60_000)
        assert "expired" == (await decided(waiting)).outcome
    else:
        waiting.cancel()
        await asyncio.wait([waiting])
    again = ask(notifier, room, idempotency_key="k", timeout=60)
    second = await room.presented()
    assert first != second
    assert "gone" == await room.answer(True, first)
    assert "resolved" == await room.answer(True, second)
    assert await decided(again)


# -- Redis and its messages ---------------------------------------------------------------------------------------


async def test_killed_pubsub_links_cost_no_decision(room: Room, notifier: SimpleNotifier, valkey: Valkey) -> None:
    """An answer given while the agent's pub/sub link is cut is found as soon as it is back."""
    async with valkey.client() as client:
        for _ in range(3):
            waiting = ask(notifier, room)
            request_id = await room.presented()
            await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            assert "resolved" == await room.answer(True, request_id)
            assert await decided(waiting)
            await room.pass_time(1000)


async def test_agent_that_hears_nothing_finds_the_answer_by_reading(room: Room, valkey: Valkey) -> None:
    """Wake-ups are only a short cut: without a single one, asking, presenting and deciding work."""
    async with SimpleNotifier.from_url(valkey.url, permission_lease=1.5) as agent:
        first = ask(agent, room, "first")
        one = await room.presented()
        deaf = agent._parts.permissions._wakes._subscriber  # type: ignore[union-attr]
        assert deaf is not None
        deaf.on_message = lambda channel, data: None
        second = ask(agent, room, "second")
        assert "resolved" == await room.answer(True, one)
        assert await decided(first)
        two = await room.presented()
        assert "resolved" == await room.answer(False, two)
        assert "denied" == (await decided(second)).outcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_redis_restart_loses_no_request(
    room: Room, notifier: SimpleNotifier, valkey: Valkey, number: signal.Signals
) -> None:
    """A presented and a queued request live through a restart of Redis, or its crash, and are decided after it."""
    first, second = ask(notifier, room, "first"), None
    one = await room.presented()
    second = ask(notifier, room, "second")

    async def is_queued() -> bool:
        async with valkey.client() as client:
            return int(await client.zcard(f"agent_sse:{{{room.session}}}:queue")) == 2

    await until(is_queued)
    await valkey.restart(number)
    await until(lambda: _answers(room, True, one))
    assert await decided(first)
    two = await room.presented()
    assert one != two
    assert "resolved" == await room.answer(False, two)
    assert "denied" == (await decided(second)).outcome


async def _answers(room: Room, approved: bool, request_id: str) -> bool:
    try:
        return await room.answer(approved, request_id) in ("resolved", "repeated")
    except RedisUnavailable:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_redis_gone_for_good_is_no_approval(room: Room, valkey: Valkey, number: signal.Signals) -> None:
    """Dead or hung, a Redis that does not come back ends the wait as expired; asking it anew is RedisUnavailable."""
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=0.25) as agent:
        waiting = ask(agent, room, timeout=0.5)
        await room.presented()
        assert valkey.process is not None
        valkey.process.send_signal(number)
        decision = await decided(waiting)
        assert (False, "expired", "redis_unavailable") == (decision.approved, decision.outcome, decision.reason)
        assert not decision
        ran = False
        with pytest.raises(RedisUnavailable):
            await decided(ask(agent, room))
        with pytest.raises(RedisUnavailable):
            async with agent.tool_call(room.session, "file_edit", require_permission=True):
                ran = True
        assert not ran
        waiting = ask(agent, room)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await decided(waiting)


MALFORMED = (
    b"", b"approved", b"true", b"[]", b"{}", b'{"st":"approved"}', b'{"st":true}', b'{"st":"APPROVED","to":""}',
    b'{"st":"approved","to":"","tool":"x","call":"x","reason":"x","by":"x","key":"","deadline":9e15,"lease":9e15}',
    b'{"st":"approved","to":"","tool":1,"call":2,"reason":3,"by":4,"key":"","deadline":9e15,"lease":9e15}',
    b'{"st":"approved","to":"","tool":"1","call":"1","reason":"1","by":"\xff","key":"","deadline":9e15,"lease":9e15}',
)  # fmt: skip


async def test_malformed_record_never_approves(room: Room, notifier: SimpleNotifier, valkey: Valkey) -> None:
    """A record that this package did not write ends as no approval or a typed error, and never stops the session."""
    for record in MALFORMED:
        waiting = ask(notifier, room, idempotency_key=record.hex()[:200] or "empty")
        request_id = await room.presented()
        async with valkey.client() as client:
            await client.hset(f"agent_sse:{{{room.session}}}:requests", request_id, record)
            await client.publish(f"agent_sse:{{{room.session}}}:wake", request_id)
        with contextlib.suppress(AgentSseError):
            assert not await decided(waiting), record
        # The session goes on: the broken one holds no place.
        await room.pass_time(1000)
        waiting = ask(notifier, room)
        request_id = await room.presented()
        assert "resolved" == await room.answer(True, request_id)
        assert await decided(waiting)
        await room.pass_time(1000)


@pytest.mark.parametrize("part", ["requests", "queue", "due", "state"])
async def test_evicted_part_of_a_session_never_approves_and_heals(
    room: Room, notifier: SimpleNotifier, valkey: Valkey, part: str
) -> None:
    """Redis under memory pressure drops keys whole: an open request ends unapproved, the next one works."""
    waiting = ask(notifier, room, timeout=60)
    request_id = await room.presented()
    async with valkey.client() as client:
        await client.delete(f"agent_sse:{{{room.session}}}:{part}")
        await client.publish(f"agent_sse:{{{room.session}}}:wake", request_id)
    if part == "requests":
        assert "cancelled" == (await decided(waiting)).outcome
    else:
        await room.pass_time(60_000)
        assert "expired" == (await decided(waiting)).outcome
    await room.pass_time(1000)
    waiting = ask(notifier, room)
    request_id = await room.presented()
    assert "resolved" == await room.answer(True, request_id)
    assert await decided(waiting)


async def test_closing_the_session_ends_every_wait(room: Room, notifier: SimpleNotifier) -> None:
    """`close_session` wakes who waits, presented or queued: cancelled; the stream ends; nothing is left to answer."""
    first = ask(notifier, room, "first")
    one = await room.presented()
    second = ask(notifier, room, "second", idempotency_key="k")
    await until(lambda: _waits(room, 2))
    await notifier.close_session(room.session)
    for task in (first, second):
        decision = await decided(task)
        assert (False, "cancelled") == (decision.approved, decision.outcome)
    assert "session_closed" == (await room.stream.next("error")).json["code"]
    assert "unknown" == await room.answer(True, one)
    assert "nothing" == await room.answer(True)


async def test_closed_session_is_not_brought_back_by_a_call_that_waited(room: Room, notifier: SimpleNotifier) -> None:
    """A tool call cut off by `close_session` is not approved, and publishes nothing into the erased session."""

    async def call() -> None:
        async with notifier.tool_call(room.session, "file_edit", {"file": "a.py"}, require_permission=True):
            raise AssertionError("the tool ran")

    calling = asyncio.create_task(call())
    await room.presented()
    await notifier.close_session(room.session)
    with pytest.raises(PermissionDenied):
        await calling
    async with room.valkey.client() as client:
        left = [key async for key in client.scan_iter(f"agent_sse:{{{room.session}}}:*")]
    assert {f"agent_sse:{{{room.session}}}:closed".encode()} >= {key for key in left if not key.endswith(b":streams")}


async def test_approval_that_nobody_takes_closes_the_calls_card(room: Room) -> None:
    """An agent dies and is approved before its lease lapses: once it has, the call is said to be over."""
    async with agent_process(room.valkey, "call", room.session) as process:
        request_id = await room.presented()
        process.kill()
        await process.wait()
    assert "resolved" == await room.answer(True, request_id)
    await room.stream.next("permission_cleared")
    await room.pass_time(60_000, request_id)
    status = (await room.stream.next("tool_status", "tool_result")).json
    result = (await room.stream.next("tool_status", "tool_result")).json
    assert ("tool_status", "cancelled") == (status["type"], status["data"]["status"])
    assert ("tool_result", False) == (result["type"], result["data"]["success"])
    async with room.valkey.client() as client:
        assert not await client.hexists(f"agent_sse:{{{room.session}}}:requests", f"o:{request_id}")
        rows = await client.xrange(f"agent_sse:{{{room.session}}}:audit")
    entries = [json.loads(fields[b"d"]) for _, fields in rows]
    assert [("decision", "approved"), ("lapse", None)] == [(e["kind"], e.get("outcome")) for e in entries]


async def test_denial_of_a_dead_agents_call_closes_its_card(room: Room) -> None:
    """A keyed request that is denied while its agent is dead ends the call too: nobody else would say so."""
    async with agent_process(room.valkey, "call", room.session, lease=1.0, idempotency_key="step-1") as process:
        request_id = await room.presented()
        process.kill()
        await process.wait()
    await room.pass_time(60_000, request_id)
    assert "resolved" == await room.answer(False)
    await room.stream.next("permission_cleared")
    status = (await room.stream.next("tool_status", "tool_result")).json
    result = (await room.stream.next("tool_status", "tool_result")).json
    assert ("tool_status", "cancelled") == (status["type"], status["data"]["status"])
    assert ("tool_result", False) == (result["type"], result["data"]["success"])


async def test_second_place_is_filled_without_reading_again(
    room: Room, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two requests presented at a time, the second waiter learns by the first one's presentation."""
    monkeypatch.setattr("agent_sse.permissions.REREAD_INTERVAL", 10 * DEADLINE)
    async with SimpleNotifier.from_url(valkey.url, permission_concurrency=2, permission_lease=60 * DEADLINE) as agent:
        waiting = [ask(agent, room, f"tool{i}") for i in range(4)]
        await until(lambda: _waits(room, 4))
        for _ in range(2):  # the second pair is in line together when the gap after the first one ends
            shown = [await room.presented() for _ in range(2)]
            for request_id in shown:
                assert "resolved" == await room.answer(True, request_id)
        assert all([await decided(task) for task in waiting])


async def _waits(room: Room, count: int) -> bool:
    async with room.valkey.client() as client:
        return int(await client.zcard(f"agent_sse:{{{room.session}}}:queue")) == count


async def test_unapproved_tool_call_never_runs_its_body(room: Room, notifier: SimpleNotifier) -> None:
    """Denied, expired or closed: PermissionDenied comes before the body."""

    async def end(how: str) -> None:
        match how:
            case "denied":
                await room.answer(False)
            case "expired":
                await room.pass_time(60_000)
            case "cancelled":
                await notifier.close_session(room.session)

    ran = False

    async def call() -> None:
        nonlocal ran
        async with notifier.tool_call(room.session, "file_edit", require_permission=True, timeout=60):
            ran = True

    for how in ("denied", "expired", "cancelled"):
        calling = asyncio.create_task(call())
        await room.presented()
        await end(how)
        with pytest.raises(PermissionDenied) as caught:
            await asyncio.wait_for(calling, DEADLINE)
        assert how == caught.value.decision.outcome
        assert not ran
        await room.pass_time(1000)


# -- two releases ---------------------------------------------------------------------------------------------------


class NextRelease(Backend):
    """The same scripts under other SHAs, as the next release's would be."""

    async def run_many(self, calls: Any) -> list[Any]:
        return await super().run_many([_renewed(call) for call in calls])

    def post(self, call: Any, done: Any) -> bool:
        return super().post(_renewed(call), done)


def _renewed(call: Call) -> Call:
    script = _next(call.script)
    return call._replace(script=script, packed=call.packed.replace(call.script.sha.encode(), script.sha.encode(), 1))


def _next(script: Script) -> Script:
    import hashlib

    text = "-- the next release\n" + script.text
    return Script(script.name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


async def test_two_releases_share_a_session(
    room: Room, notifier: SimpleNotifier, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a rolling upgrade agents and servers of two releases present, answer and decide for each other, in order."""
    monkeypatch.setattr(agent_sse.service, "Backend", NextRelease)
    monkeypatch.setattr(agent_sse.notifier, "Backend", NextRelease)
    token = make_token(room.session)
    async with (
        serve(make_settings(valkey.url)) as newer,
        SimpleNotifier.from_url(valkey.url) as upgraded,
        Stream(newer.events(room.session, token)) as stream,
        httpx.AsyncClient(timeout=DEADLINE) as http,
    ):
        await stream.primed()
        for asking, server in ((notifier, newer), (upgraded, room.served), (upgraded, newer)):
            waiting = ask(asking, room)
            request_id = await room.presented()
            seen = (await stream.next("permission_request")).json["data"]["request_id"]
            assert request_id == seen
            url = f"{server.api}/permission-response/{room.session}"
            reply = await http.post(url, json={"approved": True, "request_id": request_id}, headers=bearer(token))
            assert 200 == reply.status_code
            assert await decided(waiting)
            await room.pass_time(1000)
        first = await notifier.error(room.session, "from the older")
        second = await upgraded.error(room.session, "from the newer")
        assert [first, second] == [(await stream.next("error")).id, (await stream.next("error")).id]
        assert [first, second] == [(await room.stream.next("error")).id, (await room.stream.next("error")).id]
    async with valkey.client() as client:
        known = await client.script_exists(*(s.sha for s in _both_releases()))
    assert all(known)


def _both_releases() -> list[Script]:
    from agent_sse import scripts

    return [*(used := [scripts.PUBLISH, scripts.REQUEST, scripts.WAIT, scripts.DECIDE]), *map(_next, used)]


async def test_session_of_a_newer_layout_is_refused_and_left_alone(room: Room, valkey: Valkey) -> None:
    """What a newer release wrote in a way that this one cannot read is RedisRefused, 503 over HTTP, and not touched."""
    async with SimpleNotifier.from_url(valkey.url) as agent, valkey.client() as client:
        session, token = session_name(), make_token()
        await agent.open_session(session, owner="alice")
        await agent.tool_status(session, "file_edit", "executing", tool_call_id="c1")
        await client.hset(f"agent_sse:{{{session}}}:state", "layout", 2)
        keys = sorted(await client.keys(f"agent_sse:{{{session}}}:*"))
        before = [await client.dump(key) for key in keys]
        for attempt in (
            agent.error(session, "hello"), agent.request_permission(session, "file_edit", timeout=5),
            agent.open_session(session, owner="alice"), agent.close_session(session), agent.clear_result(session),
        ):  # fmt: skip
            with pytest.raises(RedisRefused, match="newer agent-sse"):
                await attempt
        async with httpx.AsyncClient(timeout=DEADLINE, headers=bearer(token)) as http:
            url = f"{room.served.api}/permission-response/{session}"
            for body in ({"approved": True}, {"approved": True, "request_id": "pr_x"}):
                reply = await http.post(url, json=body)
                assert (503, "redis_refused") == (reply.status_code, reply.json()["error"]["code"])
                assert "retry-after" in reply.headers
            reply = await http.get(f"{room.served.api}/health/{session}")
            assert (200, "degraded") == (reply.status_code, reply.json()["data"]["status"])
        assert keys == sorted(await client.keys(f"agent_sse:{{{session}}}:*"))
        assert before == [await client.dump(key) for key in keys]
