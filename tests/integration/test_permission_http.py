"""Answering over real HTTP: the statuses and bodies of protocol.md § 6, and what every open stream sees of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

import httpx
import pytest

from agent_sse import SimpleNotifier
from agent_sse.errors import EventTooLarge, InvalidEvent, TooManyRequestsPending
from agent_sse.permissions import PermissionDecision
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

pytestmark = pytest.mark.usefixtures("sink")

GAP = 1000  # ms between a clear and the next presentation
PERMISSION_TYPES = ("permission_request", "permission_response_result", "permission_cleared")


class Room:
    """A session with an agent, a service, a user and an open stream."""

    def __init__(self, valkey: Valkey, served: Served, agent: SimpleNotifier, http: httpx.AsyncClient) -> None:
        self.valkey = valkey
        self.served = served
        self.agent = agent
        self.http = http
        self.session = session_name()
        self.token = make_token(self.session)
        self.stream = Stream(served.events(self.session, self.token))
        self.asked: list[asyncio.Task[PermissionDecision]] = []

    def ask(self, tool: str = "file_edit", **options: Any) -> asyncio.Task[PermissionDecision]:
        options = {"parameters": {"file": "example.py"}, "timeout": 300.0, **options}
        task = asyncio.create_task(self.agent.request_permission(self.session, tool, **options))
        self.asked.append(task)
        return task

    async def queue(self, tool: str, **options: Any) -> asyncio.Task[PermissionDecision]:
        """Ask, and return when the request is in the queue: concurrent ones have no order."""
        task = self.ask(tool, **options)
        await until(lambda: self._is_queued(tool), what=f"{tool} is queued")
        return task

    async def _is_queued(self, tool: str) -> bool:
        return tool in [row["tool_name"] for row in (await self.health())["pending_permissions"]]

    async def answer(self, approved: bool, request_id: str | None = None, **options: Any) -> tuple[int, Any]:
        body = {"approved": approved, "reason": options.get("reason", "")}
        if request_id is not None:
            body["request_id"] = request_id
        url = f"{self.served.api}/permission-response/{self.session}"
        reply = await self.http.post(url, json=body, headers=bearer(options.get("token", self.token)))
        return reply.status_code, reply.json()

    async def presented(self) -> Event:
        """The next presentation; repeats beside a heartbeat have no id."""
        while (event := await self.stream.next("permission_request")).id is None:
            pass
        return event

    async def cleared(self) -> Event:
        return await self.stream.next("permission_cleared")

    async def pass_time(self, ms: int, *, wake: bool = True) -> None:
        async with self.valkey.client() as client:
            await let_time_pass(client, self.session, ms, wake=wake)

    async def health(self) -> Any:
        reply = await self.http.get(f"{self.served.api}/health/{self.session}", headers=bearer(self.token))
        return reply.json()["data"]


@asynccontextmanager
async def make_room(valkey: Valkey, **settings: Any) -> AsyncIterator[Room]:
    shared = {
        name: settings[name] for name in ("permission_concurrency", "max_pending_permissions") if name in settings
    }
    async with (
        SimpleNotifier.from_url(valkey.url, **shared) as agent,
        serve(make_settings(valkey.url, **settings)) as served,
        httpx.AsyncClient(timeout=DEADLINE) as http,
    ):
        room = Room(valkey, served, agent, http)
        async with room.stream:
            await room.stream.primed()
            yield room
            for task in room.asked:
                task.cancel()
            await asyncio.gather(*room.asked, return_exceptions=True)


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey) as made:
        yield made


def milliseconds(event: Event) -> int:
    assert event.id is not None
    return int(event.id.split("-")[0])


def refusal(code: str, body: Any, *, data: Any = None) -> None:
    """Check an error's whole body; the message is for people, and has to be there."""
    expected: dict[str, Any] = {"success": False, "message": body["message"], "error": {"code": code}}
    if data is not None:
        expected["data"] = data
    assert expected == body
    assert len(body["message"]) > 10


def decision_of(event: Event, **fields: Any) -> dict[str, Any]:
    """What a response's `data` says of the request that `event` presented."""
    asked = event.json["data"]
    return {
        "request_id": asked["request_id"], "tool_call_id": asked["tool_call_id"], "tool_name": asked["tool_name"],
        "reason": "", "resolved_by": "alice", **fields,
    }  # fmt: skip


# -- one answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_id", [True, False])
@pytest.mark.parametrize(("approved", "status"), [(True, "approved"), (False, "denied")])
async def test_answer_settles_the_request_and_reaches_agent_and_stream(
    room: Room, approved: bool, status: str, with_id: bool
) -> None:
    """An answer is 200 with the decision; the agent gets it, the stream sees result and clear, in this order."""
    waiting = room.ask(tool_call_id="c1")
    shown = await room.presented()
    request_id = shown.json["data"]["request_id"]
    code, body = await room.answer(approved, request_id if with_id else None, reason="用户\u2028")

    expected = decision_of(shown, approved=approved, reason="用户\u2028", status=status)
    assert (200, {"success": True, "message": body["message"], "data": expected}) == (code, body)
    assert PermissionDecision(approved, "用户\u2028", status, "alice", request_id) == await waiting  # type: ignore[arg-type]
    assert approved is bool(waiting.result())
    result, cleared = await room.stream.next(), await room.stream.next()
    assert {
        "type": "permission_response_result",
        "data": {
            "success": True, "request_id": request_id, "approved": approved, "reason": "用户\u2028",
            "timestamp": result.json["data"]["timestamp"],
        },
    } == result.json  # fmt: skip
    assert {
        "type": "permission_cleared",
        "data": {
            "request_id": request_id, "tool_call_id": "c1", "tool_name": "file_edit", "outcome": status,
            "reason": "用户\u2028", "resolved_by": "alice", "timestamp": cleared.json["data"]["timestamp"],
        },
    } == cleared.json  # fmt: skip


async def test_request_event_has_every_field_and_expires_on_redis_clock(room: Room) -> None:
    """A permission_request carries the guide's fields and the additive ones; `expires_at` is Redis' own deadline."""
    async with room.valkey.client() as client:
        before = await client.time()
        room.ask(risk_level="critical", timeout=123.456, message="May I?", tool_call_id="c7")
        shown = await room.presented()
        after = await client.time()
        data = shown.json["data"]
        (record,) = [
            value for field, value in (await client.hgetall(f"agent_sse:{{{room.session}}}:requests")).items()
            if field == data["request_id"].encode()
        ]  # fmt: skip
    asked, expires = (datetime.fromisoformat(data[name]).timestamp() for name in ("timestamp", "expires_at"))
    assert {
        "tool_name": "file_edit", "parameters": {"file": "example.py"}, "risk_level": "critical", "status": "pending",
        "request_id": data["request_id"], "tool_call_id": "c7", "message": "May I?", "timestamp": data["timestamp"],
        "expires_at": data["expires_at"], "editable": False, "scopes": ["once"],
    } == data  # fmt: skip
    assert round((expires - asked) * 1000) == 123_456
    assert before[0] * 1000 + before[1] // 1000 <= round(asked * 1000) <= after[0] * 1000 + after[1] // 1000
    assert f'"deadline":{round(expires * 1000)}'.encode() in record
    assert data["expires_at"].endswith("Z")
    assert data["timestamp"].endswith("Z")


async def test_request_without_message_has_no_message_field(room: Room) -> None:
    """`message` is there only when the agent gave one; `tool_call_id` defaults to the tool's name."""
    room.ask()
    data = (await room.presented()).json["data"]
    assert "message" not in data
    assert "file_edit" == data["tool_call_id"]


async def test_repeated_answers_after_the_decision(room: Room) -> None:
    """With the id: equal is 200 already_resolved, another one 409 with the winner, whoever sends it, however late."""
    waiting = room.ask()
    shown = await room.presented()
    request_id = shown.json["data"]["request_id"]
    await room.answer(True, request_id, reason="yes")
    await waiting
    winner = decision_of(shown, approved=True, reason="yes", status="approved")
    other = make_token(room.session, sub="bob")
    for _ in range(2):
        code, body = await room.answer(True, request_id, reason="again", token=other)
        assert (200, {**winner, "already_resolved": True}) == (code, body["data"])
        code, body = await room.answer(False, request_id, token=other)
        assert 409 == code
        refusal("already_resolved", body, data=winner)
        await room.pass_time(60_000)


async def test_double_click_without_id_is_a_repeat_until_the_gap_is_over(room: Room) -> None:
    """Within a second after the clear an answer without id repeats the decided one; later nothing is pending."""
    waiting = room.ask()
    shown = await room.presented()
    assert 200 == (await room.answer(True))[0]
    await waiting
    winner = decision_of(shown, approved=True, status="approved")
    code, body = await room.answer(True)
    assert (200, {**winner, "already_resolved": True}) == (code, body["data"])
    code, body = await room.answer(False)
    assert 409 == code
    refusal("just_replaced", body, data=winner)
    assert "next one" not in body["message"]  # there is none
    await room.pass_time(GAP)
    code, body = await room.answer(True)
    assert 404 == code
    refusal("nothing_pending", body)


@pytest.mark.parametrize("click", [True, False])
async def test_answer_without_id_never_decides_a_request_that_nobody_read(room: Room, click: bool) -> None:
    """In the gap and in the successor's first second a click counts for the request before, later for the successor."""
    first, second = await room.queue("first"), await room.queue("second")
    one = await room.presented()
    assert 200 == (await room.answer(True))[0]
    assert await first
    winner = decision_of(one, approved=True, status="approved")

    async def expect_repeat() -> None:
        code, body = await room.answer(click)
        if click:
            assert (200, {**winner, "already_resolved": True}) == (code, body["data"])
        else:
            assert 409 == code
            refusal("just_replaced", body, data=winner)

    await expect_repeat()  # in the gap
    await room.pass_time(GAP)
    two = await room.presented()
    await expect_repeat()  # in the successor's first second
    assert not second.done()
    await room.pass_time(GAP)
    code, body = await room.answer(click)
    status = "approved" if click else "denied"
    assert (200, decision_of(two, approved=click, status=status)) == (code, body["data"])
    assert click is bool(await second)


async def test_answer_in_the_gap_after_an_expiry_is_too_late(room: Room) -> None:
    """A click that comes just after its request expired is 410, not an answer to the one behind it."""
    await room.queue("first", timeout=60)
    second = await room.queue("second")
    one = (await room.presented()).json["data"]
    await room.pass_time(60_000)
    code, body = await room.answer(True)
    assert 410 == code
    refusal("expired", body, data=body["data"])
    assert one["request_id"] == body["data"]["request_id"]
    assert not second.done()


async def test_late_answers_to_expired_and_withdrawn_requests_are_gone(room: Room) -> None:
    """410 `expired` after the time-out, 410 `cancelled` after the agent withdrew; neither is ever an approval."""
    waiting = room.ask(timeout=5)
    shown = await room.presented()
    await room.pass_time(5000)
    decision = await waiting
    assert (False, "expired", "timeout", "timeout") == (
        bool(decision), decision.outcome, decision.reason, decision.resolved_by,
    )  # fmt: skip
    code, body = await room.answer(True, decision.request_id)
    assert 410 == code
    refusal(
        "expired", body,
        data=decision_of(shown, approved=False, reason="timeout", status="expired", resolved_by="timeout"),
    )  # fmt: skip
    assert "expired" == (await room.cleared()).json["data"]["outcome"]

    await room.pass_time(GAP)
    waiting = room.ask()
    shown = await room.presented()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    code, body = await room.answer(True, shown.json["data"]["request_id"])
    assert 410 == code
    refusal(
        "cancelled", body,
        data=decision_of(shown, approved=False, reason="withdrawn", status="cancelled", resolved_by="agent"),
    )  # fmt: skip
    data = (await room.cleared()).json["data"]
    assert ("cancelled", "withdrawn", "agent") == (data["outcome"], data["reason"], data["resolved_by"])


async def test_unknown_request_and_nothing_pending_are_404(room: Room) -> None:
    """An id nobody gave, and an answer without id while nothing is asked, are 404 with different codes."""
    code, body = await room.answer(True)
    assert 404 == code
    refusal("nothing_pending", body)
    room.ask()
    await room.presented()
    for unknown in ("pr_none", "e:pr_none", "k:", "\u0000", "x" * 128):
        code, body = await room.answer(True, unknown)
        assert 404 == code, unknown
        refusal("unknown_request", body)


async def test_empty_request_id_is_refused_and_answers_nothing(room: Room) -> None:
    """It names no request, and is not the same as leaving the field out: a client's bug must not approve."""
    room.ask()
    shown = await room.presented()
    for wrong in ("", "x" * 129):
        code, body = await room.answer(True, wrong)
        assert 422 == code
        refusal("invalid_field", body)
        assert "request_id" in body["message"]
    code, _ = await room.answer(False, shown.json["data"]["request_id"])
    assert 200 == code


async def test_internal_fields_are_no_request_ids(room: Room) -> None:
    """The other fields of Redis' hash cannot be addressed as if they were requests."""
    waiting = room.ask(idempotency_key="k")
    request_id = (await room.presented()).json["data"]["request_id"]
    async with room.valkey.client() as client:
        fields = [field.decode() for field in await client.hkeys(f"agent_sse:{{{room.session}}}:requests")]
    assert 4 == len(fields)
    for field in fields:
        if field != request_id:
            code, body = await room.answer(True, field)
            assert (404, "unknown_request") == (code, body["error"]["code"])
    assert not waiting.done()


WRONG_BODIES = (
    ({"approved": "true"}, 422, "invalid_field", "approved"),
    ({"approved": 1}, 422, "invalid_field", "approved"),
    ({"approved": None}, 422, "invalid_field", "approved"),
    ({}, 422, "invalid_field", "approved"),
    ({"approved": True, "reason": 1}, 422, "invalid_field", "reason"),
    ({"approved": True, "reason": "x" * 2001}, 422, "invalid_field", "reason"),
    ({"approved": True, "request_id": 7}, 422, "invalid_field", "request_id"),
    ({"approved": True, "remember": True}, 422, "invalid_field", "remember"),
    ([True], 400, "invalid_json", "object"),
    (True, 400, "invalid_json", "object"),
)


async def test_wrong_answer_bodies_decide_nothing(room: Room) -> None:
    """What is not exactly an answer is refused, names the field, and leaves the request open."""
    waiting = room.ask()
    await room.presented()
    url = f"{room.served.api}/permission-response/{room.session}"
    for body, status, code, field in WRONG_BODIES:
        reply = await room.http.post(url, json=body, headers=bearer(room.token))
        assert status == reply.status_code, body
        refusal(code, reply.json())
        assert field in reply.json()["message"]
    assert not waiting.done()
    assert [True] == [row["presented"] for row in (await room.health())["pending_permissions"]]


async def test_longest_reason_is_taken(room: Room) -> None:
    """A reason of 2,000 characters reaches the agent whole, whatever they are."""
    waiting = room.ask()
    await room.presented()
    reason = '\U0001f600"\\\u2028\n' * 400
    assert 200 == (await room.answer(False, reason=reason))[0]
    assert reason == (await waiting).reason


async def test_only_who_may_answer_decides(room: Room) -> None:
    """A token for another session, or without the scope, is 403; one in the URL is 401; the request stays open."""
    waiting = room.ask()
    await room.presented()
    assert 403 == (await room.answer(True, token=make_token("another")))[0]
    assert 403 == (await room.answer(True, token=make_token(room.session, scope="events:read")))[0]
    url = f"{room.served.api}/permission-response/{room.session}?token={room.token}"
    assert 401 == (await room.http.post(url, json={"approved": True})).status_code
    assert not waiting.done()


async def test_request_of_another_session_cannot_be_answered_through_this_one(room: Room) -> None:
    """A request id is good only in its own session."""
    elsewhere = session_name()
    foreign = asyncio.create_task(room.agent.request_permission(elsewhere, "tool"))
    async with Stream(room.served.events(elsewhere, make_token(elsewhere))) as stream:
        request_id = (await stream.next("permission_request")).json["data"]["request_id"]
    code, body = await room.answer(True, request_id)
    assert (404, "unknown_request") == (code, body["error"]["code"])
    assert not foreign.done()
    foreign.cancel()
    await asyncio.wait([foreign])


async def test_closing_every_tab_neither_approves_nor_denies(room: Room) -> None:
    """A request outlives the tabs that show it, and whoever comes back finds it."""
    waiting = room.ask()
    shown = await room.presented()
    await room.stream.close()
    await until(lambda: room.served.app.state.agent_sse.hub.open_streams == 0)
    assert not waiting.done()
    async with Stream(room.served.events(room.session, room.token)) as stream:
        assert shown.json == (await stream.next("permission_request")).json
    assert not waiting.done()


# -- several presented, many pending ------------------------------------------------------------------------------


async def test_with_several_presented_an_answer_without_id_is_ambiguous(valkey: Valkey) -> None:
    """With two at a time, two of three are presented; without an id 409 `ambiguous`, with it each gets its own."""
    async with make_room(valkey, permission_concurrency=2) as room:
        tasks = {name: await room.queue(name) for name in ("a", "b", "c")}
        first, second = await room.presented(), await room.presented()
        assert ["a", "b"] == [event.json["data"]["tool_name"] for event in (first, second)]
        code, body = await room.answer(True)
        assert 409 == code
        refusal("ambiguous", body)
        assert not any(task.done() for task in tasks.values())
        assert 200 == (await room.answer(False, second.json["data"]["request_id"]))[0]
        assert not await tasks["b"]
        assert not tasks["a"].done()
        third = await room.presented()
        assert "c" == third.json["data"]["tool_name"]


async def test_click_just_after_one_of_several_was_cleared_does_not_decide_the_other(valkey: Valkey) -> None:
    """The guide's card shows the last of two; a click as it is cleared counts for it, never for the one left over."""
    async with make_room(valkey, permission_concurrency=2) as room:
        left, gone = await room.queue("left"), await room.queue("gone", timeout=60)
        await room.presented()
        shown = await room.presented()
        await room.pass_time(60_000)
        assert "expired" == (await gone).outcome
        code, body = await room.answer(True)
        assert (410, shown.json["data"]["request_id"]) == (code, body["data"]["request_id"])
        assert not left.done()
        await room.pass_time(GAP)
        code, body = await room.answer(True)
        assert (200, "left") == (code, body["data"]["tool_name"])
        assert await left


async def test_health_lists_every_open_request_in_order(room: Room) -> None:
    """Only the first is presented, the others wait in order; each has all fields of its event."""
    for name in "abcde":
        await room.queue(name)
    shown = await room.presented()
    pending = (await room.health())["pending_permissions"]
    assert [(name, name == "a") for name in "abcde"] == [(row["tool_name"], row["presented"]) for row in pending]
    assert {**shown.json["data"], "presented": True} == pending[0]
    assert all(set(pending[0]) == set(row) for row in pending)


async def test_queued_request_can_be_answered_by_its_id(room: Room) -> None:
    """One that waits in the queue takes an answer with its id: a result, and no clear, as it was never shown."""
    room.ask("first")
    await room.presented()
    second = await room.queue("second")
    request_id = (await room.health())["pending_permissions"][1]["request_id"]
    assert 200 == (await room.answer(False, request_id))[0]
    assert "denied" == (await second).outcome
    assert "permission_response_result" == (await room.stream.next()).type
    marker = await room.agent.error(room.session, "marker")
    assert marker == (await room.stream.next()).id


async def test_request_that_expires_in_the_queue_says_so(room: Room) -> None:
    """`timeout` runs from the request: one that nobody saw ends as `never_presented`, and clears nothing."""
    room.ask("first")
    await room.presented()
    second = await room.queue("second", timeout=30)
    await room.pass_time(30_000)
    decision = await second
    assert (False, "expired", "never_presented", "timeout") == (
        bool(decision), decision.outcome, decision.reason, decision.resolved_by,
    )  # fmt: skip
    marker = await room.agent.error(room.session, "marker")
    assert marker == (await room.stream.next()).id
    code, body = await room.answer(True, decision.request_id)
    assert (410, "expired", "never_presented") == (code, body["error"]["code"], body["data"]["reason"])


async def test_many_overdue_requests_take_no_late_approval(room: Room) -> None:
    """However many are overdue at once, an answer or a waiter that comes after the deadline never finds one open."""
    tasks = [room.ask(f"t{i}", timeout=60) for i in range(150)]
    await until(lambda: _count_open(room, 150))
    async with room.valkey.client() as client:
        newest = (await client.zrevrange(f"agent_sse:{{{room.session}}}:queue", 0, 0))[0].decode()
    await room.pass_time(61_000, wake=False)
    code, body = await room.answer(True, newest)
    assert (410, "expired") == (code, body["error"]["code"])
    await room.pass_time(0)
    decisions = await asyncio.gather(*tasks)
    assert {"expired"} == {decision.outcome for decision in decisions}
    assert 1 == sum(decision.reason == "timeout" for decision in decisions)
    shown = [event for event in room.stream.records if event.id and event.data and event.type == "permission_request"]
    assert 1 == len(shown)


async def _count_open(room: Room, count: int) -> bool:
    async with room.valkey.client() as client:
        return int(await client.zcard(f"agent_sse:{{{room.session}}}:queue")) == count


async def test_too_many_open_requests_are_refused(valkey: Valkey) -> None:
    """Beyond MAX_PENDING_PERMISSIONS the agent gets a typed error; when one is settled there is room again."""
    async with make_room(valkey, max_pending_permissions=2) as room:
        room.ask("a")
        await room.presented()
        await room.queue("b")
        with pytest.raises(TooManyRequestsPending, match="2 permission requests are open"):
            await room.agent.request_permission(room.session, "c")
        await room.answer(True)
        await room.queue("c")


CANNOT_BE_ASKED: tuple[dict[str, Any], ...] = (
    {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"timeout": True},
    {"timeout": "300"}, {"timeout": None}, {"timeout": 7 * 24 * 3600 + 1}, {"risk_level": "extreme"},
    {"message": "x" * 2001}, {"message": 1}, {"parameters": {"x": float("nan")}}, {"parameters": {1: 2}},
    {"tool_call_id": ""}, {"tool_call_id": "a\nb"}, {"idempotency_key": ""}, {"idempotency_key": "x" * 257},
    {"tool": ""}, {"tool": "x" * 257}, {"parameters": "x" * 300_000},
)  # fmt: skip


async def test_request_that_cannot_be_asked_is_a_typed_error(room: Room) -> None:
    """What is out of range raises InvalidEvent (a too large one EventTooLarge) and stores nothing."""
    for options in CANNOT_BE_ASKED:
        with pytest.raises(InvalidEvent) as caught:
            await room.ask(**options)
        assert isinstance(caught.value, EventTooLarge) is (options.get("parameters") == "x" * 300_000)
    assert [] == (await room.health())["pending_permissions"]


# -- the guide's component ----------------------------------------------------------------------------------------


async def test_next_request_is_presented_a_second_after_the_clear(room: Room) -> None:
    """The guide's component, which erases its card when its own POST returns, ends up showing the next request."""
    card: Any = None
    sent = {name: await room.queue(name) for name in ("first", "second")}
    card = (await room.presented()).json["data"]
    code, _ = await room.answer(True)
    assert 200 == code
    cleared = await room.cleared()
    card = None  # the stream's permission_cleared, and the POST that returned
    second = await room.presented()
    card = second.json["data"]
    assert "second" == card["tool_name"]
    assert milliseconds(second) >= milliseconds(cleared) + GAP
    assert await sent["first"]
    assert not sent["second"].done()


async def test_reconnect_by_snapshot_clears_stale_cards(room: Room) -> None:
    """A stream without a cursor ends its snapshot with the presented request, or with a clear that names none."""

    async def last_of_snapshot() -> Any:
        async with Stream(room.served.events(room.session, room.token)) as stream:
            await stream.primed()
        *_, last, _ = stream.records
        assert last.id is None
        return last.json

    none = {"request_id": None, "tool_call_id": None, "tool_name": None, "outcome": "none", "reason": None,
            "resolved_by": None}  # fmt: skip
    stale = await last_of_snapshot()
    assert {"type": "permission_cleared", "data": {**none, "timestamp": stale["data"]["timestamp"]}} == stale
    waiting = room.ask()
    shown = await room.presented()
    assert shown.json == await last_of_snapshot()
    await room.answer(False)
    await waiting
    assert "none" == (await last_of_snapshot())["data"]["outcome"]
    room.ask(timeout=60)
    await room.pass_time(GAP)
    await room.presented()
    await room.pass_time(60_000)
    assert "none" == (await last_of_snapshot())["data"]["outcome"]  # overdue: settled by whoever looks


async def test_presented_request_is_repeated_with_the_heartbeat_until_it_is_cleared(valkey: Valkey) -> None:
    """A lost card comes back with the heartbeat, without an id, and never after the clear."""
    async with make_room(valkey, heartbeat_interval=0.1) as room:
        waiting = await room.queue("first")
        await room.queue("second")
        shown = await room.presented()
        for _ in range(3):
            repeat = await room.stream.next("permission_request")
            assert (None, shown.json) == (repeat.id, repeat.json)
        await room.answer(True)
        await waiting
        cleared = await room.cleared()
        for _ in range(4):
            assert "heartbeat" == (await room.stream.next("heartbeat", *PERMISSION_TYPES)).type
        records = room.stream.records[room.stream.records.index(cleared) :]
        assert "permission_request" not in [event.type for event in records]
        second = await room.presented()
        assert "second" == second.json["data"]["tool_name"]
        assert (None, second.json) == ((again := await room.stream.next("permission_request")).id, again.json)


# -- one winner ---------------------------------------------------------------------------------------------------


async def test_exactly_one_of_200_contradicting_answers_wins(valkey: Valkey) -> None:
    """Over several servers and users one answer wins; all others are told which, and the agent gets it once."""
    session = session_name()
    tokens = [make_token(session, sub=name) for name in ("alice", "bob", "carol", "dave")]
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(SimpleNotifier.from_url(valkey.url))
        servers = [await stack.enter_async_context(serve(make_settings(valkey.url))) for _ in range(3)]
        streams = [
            await stack.enter_async_context(Stream(server.events(session, token)))
            for server in servers for token in tokens[:2]
        ]  # fmt: skip
        for stream in streams:
            await stream.primed()
        waiting = asyncio.create_task(agent.request_permission(session, "file_edit"))
        shown = [await stream.next("permission_request") for stream in streams]
        request_id = shown[0].json["data"]["request_id"]
        client = await stack.enter_async_context(valkey.client())
        limits = httpx.Limits(max_connections=50)
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=DEADLINE, limits=limits))

        async def answer(i: int) -> tuple[int, Any]:
            body: dict[str, Any] = {"approved": i % 2 == 0, "reason": f"answer {i}"}
            if i >= 100:
                body["request_id"] = request_id
            url = f"{servers[i % 3].api}/permission-response/{session}"
            reply = await http.post(url, json=body, headers=bearer(tokens[i % len(tokens)]))
            seconds, micros = await client.time()
            answered_at[i] = int(seconds) * 1000 + int(micros) // 1000
            return reply.status_code, reply.json()

        answered_at: dict[int, int] = {}
        replies = await asyncio.gather(*(answer(i) for i in range(200)))
        decision = await waiting

        winners = [b["data"] for code, b in replies if code == 200 and "already_resolved" not in b["data"]]
        assert 1 == len(winners)
        (winner,) = winners
        cleared_at = milliseconds(await streams[0].next("permission_cleared"))
        assert (decision.approved, decision.reason, decision.resolved_by) == (
            winner["approved"], winner["reason"], winner["resolved_by"],
        )  # fmt: skip
        for i, (code, body) in enumerate(replies):
            if i < 100 and code == 404 and answered_at[i] >= cleared_at + GAP:
                refusal("nothing_pending", body)  # a slow machine: this one had no id and came after the gap
                continue
            equal = (i % 2 == 0) is winner["approved"]
            assert {True: 200, False: 409}[equal] == code
            data = {key: value for key, value in body["data"].items() if key != "already_resolved"}
            assert winner == data
            if not equal:
                assert ("already_resolved" if i >= 100 else "just_replaced") == body["error"]["code"]
        marker = await agent.error(session, "marker")
        for stream in streams:
            while (await stream.next()).id != marker:
                pass
            seen = Counter(event.type for event in stream.records if event.data and event.type in PERMISSION_TYPES)
            assert {"permission_response_result": 1, "permission_cleared": 2} == {
                kind: seen[kind] for kind in PERMISSION_TYPES[1:]
            }  # the snapshot's own clear, which names no request, is the second
            (result,) = [event for event in stream.records if event.data and event.type == PERMISSION_TYPES[1]]
            assert (winner["approved"], winner["reason"]) == (
                result.json["data"]["approved"], result.json["data"]["reason"],
            )  # fmt: skip
