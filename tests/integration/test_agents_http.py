"""Agents in other languages (protocol.md § 6b): what they publish, which sessions they open, how they ask."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from agent_sse import create_router
from agent_sse.app import create_app
from agent_sse.auth import Principal
from harness import DEADLINE, PREFIX, ServiceProcess, Stream, Valkey, bearer, make_settings, make_token, serve, until
from room import PUBLISH, Room, make_room, refused

STATUS = {"type": "tool_status", "data": {"tool_name": "file_search", "status": "executing"}}
QUESTION = {"tool_name": "file_edit", "parameters": {"file": "a.py"}, "risk_level": "high", "timeout": 300}
ENDPOINTS = [
    ("POST", "publish/{}"), ("PUT", "sessions/{}"), ("DELETE", "sessions/{}"), ("POST", "permission-request/{}"),
    ("GET", "permission-request/{}/pr_x"), ("DELETE", "permission-request/{}/pr_x"),
]  # fmt: skip


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey, max_event_bytes=20_000, max_body_bytes=40_000) as made:
        yield made


async def publish(room: Room, event: Any, **headers: str) -> tuple[int, Any]:
    return await room.call("POST", "publish/{}", event, token=room.publisher, **headers)


async def ask(room: Room, wait: float = 0, **fields: Any) -> tuple[int, Any]:
    path = f"permission-request/{{}}?wait={wait}"
    return await room.call("POST", path, {**QUESTION, **fields}, token=room.publisher)


async def ask_again(room: Room, request_id: str, wait: float = 0) -> tuple[int, Any]:
    return await room.call("GET", f"permission-request/{{}}/{request_id}?wait={wait}", token=room.publisher)


async def asking(room: Room, **fields: Any) -> tuple[asyncio.Task[tuple[int, Any]], dict[str, Any]]:
    """Ask and wait for the decision; return when the user sees the request."""
    task = asyncio.create_task(ask(room, 60, **fields))
    return task, await room.presented()


# -- publishing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        STATUS,
        {"type": "tool_result", "data": {"tool_name": "t", "success": True, "result": [1, None], "tool_call_id": "c"}},
        {"type": "result_cleared", "data": {}},
        {"type": "error", "message": "no model", "code": "model_unavailable"},
    ],
    ids=lambda event: event["type"],
)
async def test_published_event_reaches_the_streams_complete(room: Room, event: Any) -> None:
    """An event of an agent's own types is 201 with its id, and comes over the stream with what was left out."""
    status, body = await publish(room, event)
    got = await room.stream.next()
    assert (201, {"success": True, "data": {"id": got.id}}) == (status, body)
    assert event["type"] == got.type
    if event["type"] == "error":
        assert event == got.json
    else:
        assert event["data"].items() <= got.json["data"].items()  # type: ignore[attr-defined]
        assert got.json["data"]["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "kind",
    [
        "permission_request",
        "permission_response_result",
        "permission_cleared",
        "stream_reset",
        "heartbeat",
        "",
        "x" * 9,
    ],
)
async def test_reserved_type_is_refused(room: Room, kind: str) -> None:
    """Nobody forges a prompt, its answer or what else the service says itself."""
    event = {"type": kind, "data": {"tool_name": "t", "request_id": "pr_x", "approved": True}}
    assert refused("reserved_type", 422, await publish(room, event)).startswith("type:")
    assert [] == await room.events()


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({}, "type"), ({"type": 5}, "type"), ({"type": "tool_status"}, "data.status"),
        ({"type": "tool_status", "data": []}, "data"), ({**STATUS, "id": "1-1"}, "id"),
        ({"type": "tool_status", "data": {"tool_name": "t", "status": "done"}}, "data.status"),
        ({"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "x": 1}}, "data.x"),
        ({"type": "tool_status", "data": {"tool_name": "", "status": "pending"}}, "tool_name"),
        ({"type": "tool_status", "data": {"tool_name": "a\u0000", "status": "pending"}}, "tool_name"),
        ({"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "details": 1}}, "data.details"),
        (
            {"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "details": {"server": 5}}},
            "data.details.server",
        ),
        (
            {"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "details": {"cancellable": "x"}}},
            "data.details.cancellable",
        ),
        ({"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "timestamp": "x"}}, "data.timestamp"),
        ({"type": "tool_result", "data": {"tool_name": "t"}}, "data.success"),
        ({"type": "tool_result", "data": {"tool_name": "t", "success": 1}}, "data.success"),
        ({"type": "error"}, "message"), ({"type": "error", "message": "m", "data": {}}, "data"),
    ],
)  # fmt: skip
async def test_wrong_event_is_refused_by_its_field(room: Room, event: Any, field: str) -> None:
    """What is no event is 422 and names the field; nothing is stored."""
    assert refused("invalid_field", 422, await publish(room, event)).startswith(field)
    assert [] == await room.events()


async def test_too_large_event_and_body_are_413(room: Room) -> None:
    """An event larger than events may be is 413, and so is a body larger than bodies may be."""
    large = {"type": "error", "message": "x", "code": "c"}
    result = {"type": "tool_result", "data": {"tool_name": "t", "success": True, "result": "x" * 20_000}}
    refused("event_too_large", 413, await publish(room, result))
    refused("body_too_large", 413, await publish(room, {**large, "message": "x" * 40_000}))
    assert [] == await room.events()


async def test_published_secrets_are_masked(room: Room) -> None:
    """What looks like a secret is masked in what is published, as it is for agents in Python."""
    key = "sk-" + "a" * 30
    await publish(room, {
        "type": "tool_status",
        "data": {"tool_name": "t", "status": "executing", "details": {
            "parameters": {"password": "hunter2", "file": "a.py"}, "token": "hunter2",
        }},
    })  # fmt: skip
    failed = {"tool_name": "t", "success": False, "result": {"k": key}, "error": f"bad {key}"}
    await publish(room, {"type": "tool_result", "data": failed})
    await publish(room, {"type": "error", "message": f"wrong key {key}"})
    found = await room.events()
    assert {"password": "••••", "file": "a.py"} == found[0]["data"]["details"]["parameters"]
    assert "hunter2" not in json.dumps(found)
    assert key not in json.dumps(found)


# -- published once ---------------------------------------------------------------------------------------------------


async def test_key_used_again_gives_the_first_id(room: Room) -> None:
    """The same event with the same key is stored once; every reply has its id."""
    replies = [await publish(room, STATUS, Idempotency_Key="k1") for _ in range(3)]
    assert 1 == len({body["data"]["id"] for _, body in replies})
    assert {201} == {status for status, _ in replies}
    assert 1 == len(await room.events())
    _, other = await publish(room, STATUS, Idempotency_Key="k2")
    assert other["data"]["id"] != replies[0][1]["data"]["id"]


async def test_key_of_another_event_is_a_conflict(room: Room) -> None:
    """A key that belongs to another event is 409, and the event is not stored."""
    await publish(room, STATUS, Idempotency_Key="k1")
    changed = {**STATUS, "data": {**STATUS["data"], "status": "completed"}}  # type: ignore[dict-item]
    refused("idempotency_conflict", 409, await publish(room, changed, Idempotency_Key="k1"))
    assert 1 == len(await room.events())


async def test_keys_of_two_publishers_are_apart(room: Room) -> None:
    """A key is its publisher's own: another subject's event with the same key is another one."""
    await publish(room, STATUS, Idempotency_Key="k1")
    other = make_token(room.session, sub="second bot", scope=PUBLISH)
    event = {"type": "error", "message": "m"}
    status, _ = await room.call("POST", "publish/{}", event, token=other, Idempotency_Key="k1")
    assert 201 == status
    assert 2 == len(await room.events())


async def test_key_holds_over_processes_and_a_restart_of_redis(valkey: Valkey) -> None:
    """Two services that get the same event at once, many times, and one after Redis restarted, store it once."""
    async with make_room(valkey) as room, serve(make_settings(valkey.url)) as second:
        headers = {**bearer(room.publisher), "Idempotency-Key": "k"}
        urls = [f"{served.api}/publish/{room.session}" for served in (room.served, second)]
        replies = await asyncio.gather(*(room.http.post(urls[n % 2], json=STATUS, headers=headers) for n in range(20)))
        ids = {reply.json()["data"]["id"] for reply in replies}
        await valkey.restart()

        async def again() -> Any:
            reply = await room.http.post(urls[0], json=STATUS, headers=headers)
            return reply if reply.status_code == 201 else None

        last = await until(again, what="Redis is back")
        assert {last.json()["data"]["id"]} == ids
        assert 1 == len(ids)
        assert 1 == len(await room.events())


async def test_key_holds_when_the_reply_was_lost(room: Room) -> None:
    """A client that left before its reply came sends again, and gets the id of the event that is stored."""
    body = json.dumps(STATUS).encode()
    head = (
        f"POST {PREFIX}/publish/{room.session} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {room.publisher}\r\n"
        f"Idempotency-Key: k\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = room.served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + body)
    stored = await room.next("tool_status")
    writer.transport.abort()
    status, reply = await publish(room, STATUS, Idempotency_Key="k")
    assert (201, stored.id) == (status, reply["data"]["id"])
    assert 1 == len(await room.events())


async def test_keys_are_bounded_expire_and_go_with_their_session(room: Room) -> None:
    """Keys live as long as events can be replayed, the last thousand at least, and end with their session."""
    key = f"agent_sse:{{{room.session}}}:once"
    async with room.valkey.client() as client:
        await client.hset(key, mapping={f"old{n}": f"d 1-1 {n}" for n in range(1024)})
        now = (await client.time())[0] * 1000
        await client.hset(key, mapping={f"new{n}": f"d 1-1 {now - n}" for n in range(1024)})
        await publish(room, STATUS, Idempotency_Key="k")
        assert 1025 == await client.hlen(key)
        assert await client.hexists(key, "new1023")
        assert 0 < await client.pttl(key) <= 600_000
    _, before = await publish(room, STATUS, Idempotency_Key="k")
    assert 200 == (await room.call("DELETE", "sessions/{}", token=room.publisher))[0]
    _, after = await publish(room, STATUS, Idempotency_Key="k")
    assert before["data"]["id"] != after["data"]["id"]


async def test_keyed_events_change_the_snapshot_as_others_do(room: Room) -> None:
    """A new client sees the latest status, result and clear, with or without a key."""
    call = {"tool_name": "t", "tool_call_id": "c"}
    result = {"type": "tool_result", "data": {**call, "success": True, "result": 7}}
    await publish(room, {"type": "tool_status", "data": {**call, "status": "executing"}}, Idempotency_Key="1")
    await publish(room, result, Idempotency_Key="2")
    async with Stream(room.served.events(room.session, room.token)) as stream:
        await stream.primed()
        shown = {event.type: event.json["data"] for event in stream.records if event.data and event.type != "heartbeat"}
    assert ("executing", 7) == (shown["tool_status"]["status"], shown["tool_result"]["result"])
    await publish(room, {"type": "tool_status", "data": {**call, "status": "completed"}}, Idempotency_Key="3")
    await publish(room, {"type": "result_cleared", "data": {"tool_call_id": "c"}}, Idempotency_Key="4")
    async with Stream(room.served.events(room.session, room.token)) as stream:
        await stream.primed()
        types = [event.type for event in stream.records if event.data]
    assert "tool_result" not in types


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "é"])
async def test_wrong_key_is_refused(room: Room, key: str) -> None:
    """A key that is none is 422 and names the header."""
    url = f"{room.served.api}/publish/{room.session}"
    headers = {**bearer(room.publisher), "Idempotency-Key": key.encode()}
    reply = await room.http.post(url, json=STATUS, headers=headers)
    assert refused("invalid_field", 422, (reply.status_code, reply.json())).startswith("Idempotency-Key:")
    assert [] == await room.events()


# -- sessions ---------------------------------------------------------------------------------------------------------


async def test_opened_session_is_its_owners(room: Room) -> None:
    """Opening registers the owner, whose token then needs no list; opening again is fine, by another owner is 409."""
    for _ in range(2):
        status, body = await room.call("PUT", "sessions/{}", {"owner": "carol"}, token=room.publisher)
        assert (200, {"session_id": room.session, "owner": "carol"}) == (status, body["data"])
    owner = make_token(sub="carol")
    assert 200 == (await room.call("GET", "health/{}", token=owner))[0]
    reply = await room.call("PUT", "sessions/{}", {"owner": "dave"}, token=room.publisher)
    refused("session_owned", 409, reply)
    assert "carol" not in reply[1]["message"]


async def test_closed_session_is_erased_but_for_its_audit(room: Room) -> None:
    """Closing ends streams, erases events and owner, and keeps the audit; closing again is fine."""
    await room.call("PUT", "sessions/{}", {"owner": "carol"}, token=room.publisher)
    waiting, shown = await asking(room)
    await room.answer(shown["request_id"])
    await waiting
    assert 200 == (await room.call("DELETE", "sessions/{}", token=room.publisher))[0]
    assert "session_closed" == (await room.next("error")).json["code"]
    await room.stream.end()
    refused("session_forbidden", 403, await room.call("GET", "health/{}", token=make_token(sub="carol")))
    assert [] == await room.events()
    assert ["approved"] == [entry["outcome"] for entry in await room.audit()]
    assert 200 == (await room.call("DELETE", "sessions/{}", token=room.publisher))[0]


@pytest.mark.parametrize("owner", ["", "x" * 257, "a\nb", 5, None, ["a"], "\ud800"])
async def test_wrong_owner_is_refused(room: Room, owner: Any) -> None:
    """An owner that can be nobody's `sub` is 422."""
    reply = await room.http.put(
        f"{room.served.api}/sessions/{room.session}", content=json.dumps({"owner": owner}).encode(),
        headers=bearer(room.publisher),
    )  # fmt: skip
    refused("invalid_field", 422, (reply.status_code, reply.json()))


# -- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("approved", "outcome"), [(True, "approved"), (False, "denied")])
async def test_answer_ends_the_waiting(room: Room, approved: bool, outcome: str) -> None:
    """Who waits gets the decision as soon as it is made."""
    waiting, shown = await asking(room, message="May I?", server="files")
    assert ("May I?", "files", "file_edit") == (shown["message"], shown["server"], shown["tool_call_id"])
    await room.answer(shown["request_id"], approved, reason="so")
    expected = {
        "approved": approved, "request_id": shown["request_id"], "outcome": outcome, "reason": "so",
        "resolved_by": "alice",
    }  # fmt: skip
    assert (200, {"success": True, "data": expected}) == await waiting


async def test_open_request_is_202_until_it_is_answered(room: Room) -> None:
    """Without waiting, and when the waiting is over, the reply says how to ask again, and until when."""
    status, body = await ask(room)
    shown = await room.presented()  # also without waiting
    data = body["data"]
    assert (202, shown["request_id"], shown["expires_at"]) == (status, data["request_id"], data["expires_at"])
    assert ("pending", 15) == (data["status"], data["ask_again_within"])
    assert (202, data) == ((await ask_again(room, data["request_id"], 0.2))[0], data)
    waiting = asyncio.create_task(ask_again(room, data["request_id"], 60))
    await until(lambda: room.served.app.state.agent_sse.waits.count == 1)
    await room.answer(data["request_id"])
    status, body = await waiting
    assert (200, True) == (status, body["data"]["approved"])


async def test_each_asking_renews_the_request(room: Room) -> None:
    """A request lives as long as somebody asks within the lease; when nobody does any more it is withdrawn."""
    _, body = await ask(room)
    request_id = body["data"]["request_id"]
    for _ in range(3):
        await room.pass_time(14_000, dead=[request_id])
        assert 202 == (await ask_again(room, request_id))[0]
    await room.pass_time(15_000, dead=[request_id])
    status, body = await ask_again(room, request_id)
    assert (200, False, "cancelled", "agent_lost") == (
        status,
        body["data"]["approved"],
        body["data"]["outcome"],
        body["data"]["reason"],
    )
    assert "cancelled" == (await room.next("permission_cleared")).json["data"]["outcome"]


async def test_expired_request_is_no_approval(room: Room) -> None:
    """After its time-out a request is expired, whatever is answered then."""
    waiting, shown = await asking(room, timeout=100)
    await room.pass_time(100_000)
    data = (await waiting)[1]["data"]
    assert (False, "expired", "timeout") == (data["approved"], data["outcome"], data["resolved_by"])
    refused("expired", 410, await room.answer(shown["request_id"]))
    assert data == (await ask_again(room, shown["request_id"]))[1]["data"]


async def test_approval_is_handed_out_once(room: Room) -> None:
    """An approval runs one tool: who asks for it a second time, or beside the first, is told no."""
    waiting, shown = await asking(room)
    other = asyncio.create_task(ask_again(room, shown["request_id"], 60))
    await until(lambda: room.served.app.state.agent_sse.waits.count == 2)
    await room.answer(shown["request_id"])
    replies = [await waiting, await other, await ask_again(room, shown["request_id"])]
    assert {200} == {status for status, _ in replies}
    assert 1 == [body["data"]["approved"] for _, body in replies].count(True)
    assert {"approved", "cancelled"} == {body["data"]["outcome"] for _, body in replies}


async def test_withdrawn_request_goes_away(room: Room) -> None:
    """Withdrawing takes the card away, is fine twice, and ends the waiting."""
    waiting, shown = await asking(room)
    path = f"permission-request/{{}}/{shown['request_id']}"
    status, body = await room.call("DELETE", path, token=room.publisher)
    assert (200, {"request_id": shown["request_id"], "status": "cancelled"}) == (status, body["data"])
    assert "cancelled" == (await room.next("permission_cleared")).json["data"]["outcome"]
    assert "cancelled" == (await waiting)[1]["data"]["outcome"]
    status, body = await room.call("DELETE", path, token=room.publisher)
    assert (200, True) == (status, body["data"]["already_resolved"])
    refused("cancelled", 410, await room.answer(shown["request_id"]))


async def test_answered_request_is_not_withdrawn(room: Room) -> None:
    """A request that was answered stays so: withdrawing it is 409 with its state."""
    waiting, shown = await asking(room)
    await room.answer(shown["request_id"], False)
    await waiting
    reply = await room.call("DELETE", f"permission-request/{{}}/{shown['request_id']}", token=room.publisher)
    refused("already_resolved", 409, reply)
    assert "denied" == reply[1]["data"]["status"]


@pytest.mark.parametrize("name", ["pr_nothing", "e:pr_x", "k:x", "%00", "x" * 500, "é"])
async def test_unknown_request_is_404(room: Room, name: str) -> None:
    """Whatever is no request's id is 404, for asking and for withdrawing."""
    for method in ("GET", "DELETE"):
        reply = await room.call(method, f"permission-request/{{}}/{name}", token=room.publisher)
        refused("unknown_request", 404, reply)


async def test_key_gets_the_request_back(room: Room) -> None:
    """An agent that asks again with its key gets the same request, also when nobody asked for long; and its answer."""
    _, first = await ask(room, idempotency_key="k")
    request_id = first["data"]["request_id"]
    await room.pass_time(60_000, dead=[request_id])
    status, second = await ask(room, idempotency_key="k")
    assert (202, request_id) == (status, second["data"]["request_id"])
    await room.answer(request_id)
    status, third = await ask(room, idempotency_key="k")
    assert (200, True, request_id) == (status, third["data"]["approved"], third["data"]["request_id"])


async def test_key_of_another_question_is_a_conflict(room: Room) -> None:
    """A key that belongs to another tool or other parameters is 409."""
    await ask(room, idempotency_key="k")
    for fields in ({"tool_name": "other"}, {"parameters": {"file": "b.py"}}):
        refused("idempotency_conflict", 409, await ask(room, idempotency_key="k", **fields))
    assert 1 == (await room.health())["pending_total"]


async def test_too_many_requests_are_429(valkey: Valkey) -> None:
    """A session has as many open requests as it may; more are 429 and say when to try again."""
    async with make_room(valkey, max_pending_permissions=1) as room:
        await ask(room)
        url = f"{room.served.api}/permission-request/{room.session}"
        reply = await room.http.post(url, json=QUESTION, headers=bearer(room.publisher))
        refused("too_many_pending", 429, (reply.status_code, reply.json()))
        assert int(reply.headers["retry-after"]) >= 5


async def test_waiting_is_bounded(valkey: Valkey) -> None:
    """So many may wait in one process, and so many of one session; one more is 429, and asks nothing."""
    for settings, code in (
        ({"max_streams": 1}, "too_many_waits"), ({"max_streams_per_session": 1}, "too_many_waits_of_session"),
    ):  # fmt: skip
        async with make_room(valkey, **settings) as room:
            waiting, shown = await asking(room)
            refused(code, 429, await ask(room))
            refused(code, 429, await ask_again(room, shown["request_id"]))
            assert 1 == (await room.health())["pending_total"]
            await room.answer(shown["request_id"])
            await waiting
            assert 202 == (await ask(room))[0]


async def test_client_that_leaves_ends_its_waiting(room: Room) -> None:
    """When the agent's connection is gone nobody renews its request any more, and the prompt goes away."""
    body = json.dumps(QUESTION).encode()
    head = (
        f"POST {PREFIX}/permission-request/{room.session}?wait=60 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {room.publisher}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, port = room.served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + body)
    shown = await room.presented()
    waits = room.served.app.state.agent_sse.waits
    assert 1 == waits.count
    writer.transport.abort()
    await until(lambda: waits.count == 0, what="the end of the waiting")
    await room.pass_time(15_000, dead=[shown["request_id"]])
    cleared = (await room.next("permission_cleared")).json["data"]
    assert ("cancelled", "agent_lost") == (cleared["outcome"], cleared["reason"])


async def test_lost_agents_card_is_closed(room: Room) -> None:
    """The card of a call whose agent is gone while it asks is closed for it."""
    call = {"tool_name": "file_edit", "tool_call_id": "c9"}
    await publish(room, {"type": "tool_status", "data": {**call, "status": "waiting_permission"}})
    _, body = await ask(room, tool_call_id="c9", parameters={"file": "a.py", "password": "hunter2"})
    await room.pass_time(15_000, dead=[body["data"]["request_id"]])
    await room.next("tool_status")
    status, result = await room.next("tool_status"), await room.next("tool_result")
    assert ("cancelled", "c9") == (status.json["data"]["status"], status.json["data"]["tool_call_id"])
    assert "••••" == status.json["data"]["details"]["parameters"]["password"]
    assert (False, "c9") == (result.json["data"]["success"], result.json["data"]["tool_call_id"])


@pytest.mark.parametrize("plain", [False, True], ids=["serve", "uvicorn"])
async def test_shutdown_ends_the_waiting_with_202(valkey: Valkey, plain: bool) -> None:
    """On SIGTERM who waits is told at once to ask again, and another process goes on with the same request."""
    environment = {"AGENT_SSE_REDIS_URL": valkey.url}
    token = make_token("s1", scope=PUBLISH)
    async with httpx.AsyncClient(timeout=DEADLINE, headers=bearer(token)) as http:
        async with ServiceProcess(environment, plain=plain) as process:
            url = f"{process.served.api}/permission-request/s1?wait=60"
            waiting = asyncio.create_task(http.post(url, json=QUESTION))
            async with Stream(process.served.events("s1", make_token("s1"))) as stream:
                await stream.next("permission_request")
            # Plain uvicorn ends by the signal itself, once everything is over.
            assert await process.stop(signal.SIGTERM) in (0, -signal.SIGTERM), process.output
            reply = await waiting
            assert 202 == reply.status_code
        async with serve(make_settings(valkey.url)) as second:
            request_id = reply.json()["data"]["request_id"]
            reply = await http.get(f"{second.api}/permission-request/s1/{request_id}")
            assert 202 == reply.status_code


async def test_edited_answer_reaches_the_agent_as_a_patch(room: Room) -> None:
    """The agent gets the patch for its own parameters, what is masked included, and what the user saw of the result."""
    waiting, shown = await asking(
        room, parameters={"file": "a.py", "api_key": "hunter2"}, editable=True,
        schema={"type": "object", "properties": {"file": {"type": "string", "maxLength": 9}}},
    )  # fmt: skip
    refused(
        "invalid_parameters", 422, await room.answer(shown["request_id"], parameters_patch={"file": "far-too-long.py"})
    )
    await room.answer(shown["request_id"], parameters_patch={"file": "b.py"})
    data = (await waiting)[1]["data"]
    assert (True, {"file": "b.py"}) == (data["approved"], data["parameters_patch"])
    assert {"file": "b.py", "api_key": "••••"} == data["edited_parameters"]


async def test_remembered_answer_decides_at_once(room: Room) -> None:
    """What the user answered for the session decides for agents over HTTP too, and names its grant."""
    waiting, shown = await asking(room)
    _, answered = await room.answer(shown["request_id"], scope="session")
    assert (await waiting)[1]["data"]["approved"]
    status, body = await ask(room)
    grant = answered["data"]["grant_id"]
    assert (200, True, f"grant:{grant}", grant) == (
        status,
        body["data"]["approved"],
        body["data"]["resolved_by"],
        body["data"]["grant_id"],
    )


async def test_closing_the_session_ends_the_waiting(room: Room) -> None:
    """A session that is closed while somebody waits gives no approval."""
    waiting, shown = await asking(room)
    await room.call("DELETE", "sessions/{}", token=room.publisher)
    data = (await waiting)[1]["data"]
    assert (False, "cancelled") == (data["approved"], data["outcome"])
    refused("unknown_request", 404, await ask_again(room, shown["request_id"]))


async def test_nothing_is_approved_without_redis(valkey: Valkey) -> None:
    """While Redis is away asking is 503, and so are publishing and opening; nothing says yes."""
    async with make_room(valkey, publish_timeout=0.5) as room:
        await valkey.stop()
        for method, path, body in (
            ("POST", "permission-request/{}", QUESTION), ("GET", "permission-request/{}/pr_x", None),
            ("DELETE", "permission-request/{}/pr_x", None), ("PUT", "sessions/{}", {"owner": "a"}),
            ("DELETE", "sessions/{}", None), ("POST", "publish/{}", STATUS),
        ):  # fmt: skip
            status, reply = await room.call(method, path, body, token=room.publisher)
            assert (503, False) == (status, reply["success"]), path
        status, reply = await publish(room, STATUS, Idempotency_Key="k")
        assert (503, "publish_timeout") == (status, reply["error"]["code"])
        await valkey.start()


@pytest.mark.parametrize("wait", ["61", "-1", "x", "", "NaN", "inf", "1e1", "0x1", "1&wait=1", "60.1", " 1", "9" * 999])
async def test_wrong_wait_is_refused(room: Room, wait: str) -> None:
    """A time that cannot be waited is 422, and nothing is asked."""
    reply = await room.call("POST", f"permission-request/{{}}?wait={wait}", QUESTION, token=room.publisher)
    assert refused("invalid_field", 422, reply).startswith("wait:")
    reply = await room.call("GET", f"permission-request/{{}}/pr_x?wait={wait}", token=room.publisher)
    assert refused("invalid_field", 422, reply).startswith("wait:")
    assert 0 == (await room.health())["pending_total"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *(({name: None}, name) for name in QUESTION),
        ({"tool_name": ""}, "tool_name"), ({"tool_name": "a\nb"}, "tool_name"), ({"tool_name": 5}, "tool_name"),
        ({"parameters": []}, "parameters"), ({"parameters": "x"}, "parameters"), ({"risk_level": "none"}, "risk_level"),
        ({"timeout": 0}, "timeout"), ({"timeout": -1}, "timeout"), ({"timeout": True}, "timeout"),
        ({"timeout": "300"}, "timeout"), ({"timeout": 10**9}, "timeout"), ({"tool_call_id": ""}, "tool_call_id"),
        ({"tool_call_id": "x" * 257}, "tool_call_id"), ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": 1}, "idempotency_key"), ({"message": "x" * 2001}, "message"), ({"server": ""}, "server"),
        ({"editable": 1}, "editable"), ({"schema": []}, "schema"), ({"input_schema": {}}, "input_schema"),
        ({"approved": True}, "approved"), ({"request_id": "pr_x"}, "request_id"), ({"session_id": "s"}, "session_id"),
    ],
)  # fmt: skip
async def test_wrong_question_is_refused_by_its_field(room: Room, fields: Any, named: str) -> None:
    """A question with a field that is missing, wrong or unknown is 422 and names it; nothing is asked."""
    assert refused("invalid_field", 422, await ask(room, **fields)).startswith(named)
    if None in fields.values():
        body = {name: value for name, value in QUESTION.items() if name != named}
        reply = await room.call("POST", "permission-request/{}", body, token=room.publisher)
        assert refused("invalid_field", 422, reply).startswith(named)
    assert 0 == (await room.health())["pending_total"]


async def test_too_large_question_is_413(room: Room) -> None:
    """Parameters that no event could show are 413."""
    refused("event_too_large", 413, await ask(room, parameters={"x": "y" * 20_000}))
    assert 0 == (await room.health())["pending_total"]


# -- bodies and rights ------------------------------------------------------------------------------------------------

BAD_BODIES: dict[str, tuple[bytes, set[int]]] = {
    "empty": (b"", {400}), "text": (b"x", {400}), "null": (b"null", {400, 422}), "list": (b"[]", {400, 422}),
    "string": (b'"tool_status"', {400, 422}), "NaN": (b'{"type": NaN}', {400}), "two": (b"{} {}", {400}),
    "name twice": (b'{"type": "error", "type": "error"}', {400}), "UTF-16": ('{"a": 1}'.encode("utf-16"), {400}),
    "deep": (b"[" * 20_000, {400}), "deep objects": (b'{"a":' * 1500 + b"1" + b"}" * 1500, {400}),
    "many digits": (b'{"timeout": ' + b"9" * 9000 + b"}", {400}), "too large": (b" " * 40_001, {413}),
    "surrogate name": (b'{"\\ud800": 1}', {422}), "unknown": (b'{"x": 1}', {422}), "no field": (b"{}", {422}),
}  # fmt: skip


@pytest.mark.parametrize(("body", "statuses"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_bad_body_is_refused_by_every_endpoint(room: Room, body: bytes, statuses: set[int]) -> None:
    """What is no JSON object of the right fields is refused in JSON, by each endpoint that reads a body."""
    for method, path, token in (
        ("POST", "publish", room.publisher), ("PUT", "sessions", room.publisher),
        ("POST", "permission-request", room.publisher), ("POST", "cancel", room.token),
        ("POST", "permission-response", room.token),
    ):  # fmt: skip
        url = f"{room.served.api}/{path}/{room.session}"
        reply = await room.http.request(method, url, content=body, headers=bearer(token))
        assert reply.status_code in statuses, (path, reply.text)
        assert reply.json()["success"] is False
        assert len(reply.json()["message"]) < 300
    assert [] == await room.events()


@pytest.mark.parametrize("depth", [150, 300, 900])
@pytest.mark.parametrize("inner", ['{"a": %s}', "[%s]"])
async def test_deep_values_never_break_the_service(room: Room, depth: int, inner: str) -> None:
    """A value nested as deep as JSON can be read is taken, or refused with 4xx, wherever it stands."""
    deep = "1"
    for _ in range(depth):
        deep = inner % deep
    value = json.loads(deep)
    for path, body in (
        ("publish", {"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "details": {"x": value}}}),
        ("publish", {"type": "tool_result", "data": {"tool_name": "t", "success": True, "result": value}}),
        ("publish", {"type": "tool_status", "data": value}),
        ("permission-request", {**QUESTION, "parameters": {"x": value}}),
        ("permission-request", {**QUESTION, "editable": True, "schema": {"x": value}}),
    ):
        status, reply = await room.call("POST", f"{path}/{{}}", body, token=room.publisher)
        assert status in {201, 202, 400, 413, 422}, reply


@pytest.mark.parametrize("text", ["\\ud800", "a\\udfffb"])
@pytest.mark.parametrize("where", ["key", "value"])
async def test_lone_surrogates_are_refused(room: Room, text: str, where: str) -> None:
    """What UTF-8 cannot carry is 422, in names and in values."""
    inner = f'{{"{text}": 1}}' if where == "key" else f'{{"a": "{text}"}}'
    bodies = [
        ("publish", '{"type": "tool_result", "data": {"tool_name": "t", "success": true, "result": %s}}'),
        ("publish", '{"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "details": %s}}'),
        ("permission-request", '{"tool_name": "t", "parameters": %s, "risk_level": "low", "timeout": 5}'),
    ]
    for path, body in bodies:
        url = f"{room.served.api}/{path}/{room.session}"
        reply = await room.http.post(url, content=(body % inner).encode(), headers=bearer(room.publisher))
        assert 422 == reply.status_code, reply.text
    assert [] == await room.events()


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_agents_endpoints_need_their_right(room: Room, method: str, path: str) -> None:
    """No token, one in the URL, one without the scope, and one for another session get nothing."""
    url = f"{room.served.api}/{path.replace('{}', room.session)}"
    reply = await room.http.request(method, url, json=QUESTION)
    refused("token_missing", 401, (reply.status_code, reply.json()))
    reply = await room.http.request(method, f"{url}?token={room.publisher}", headers=bearer(room.publisher))
    refused("token_in_url", 401, (reply.status_code, reply.json()))
    assert room.publisher not in reply.text
    refused("scope_missing", 403, await room.call(method, path, QUESTION))
    foreign = [make_token("another", scope=PUBLISH), make_token(sub="mallory", scope=PUBLISH)]
    said = {refused("session_forbidden", 403, await room.call(method, path, QUESTION, token=t)) for t in foreign}
    await room.call("PUT", "sessions/{}", {"owner": "carol"}, token=room.publisher)
    said |= {refused("session_forbidden", 403, await room.call(method, path, QUESTION, token=t)) for t in foreign}
    assert 1 == len(said)  # the same for unknown and for foreign sessions
    assert [] == await room.events()


async def test_owner_and_authorize_may_publish(valkey: Valkey) -> None:
    """Besides a token that lists the session, its owner's may publish, and whoever the application lets."""

    def authorize(principal: Principal, session_id: str) -> bool | None:
        return {"friend": True, "enemy": False}.get(principal.subject)

    settings = make_settings(valkey.url)
    async with (
        serve(app=create_app(settings, authorize=authorize)) as served,
        httpx.AsyncClient(timeout=DEADLINE) as http,
    ):
        opener = make_token("s1", sub="backend", scope=PUBLISH)
        await http.put(f"{served.api}/sessions/s1", json={"owner": "carol"}, headers=bearer(opener))
        for subject, status in (("carol", 201), ("friend", 201), ("enemy", 403), ("stranger", 403)):
            token = make_token(sub=subject, scope=PUBLISH)
            reply = await http.post(f"{served.api}/publish/s1", json=STATUS, headers=bearer(token))
            assert status == reply.status_code, subject


async def test_agents_are_served_under_a_hosts_middleware(valkey: Valkey) -> None:
    """In another application, behind its middleware, asking and leaving are the same, and errors are JSON."""
    host = FastAPI()
    router = create_router(make_settings(valkey.url))
    host.include_router(router, prefix="/host")

    @host.middleware("http")
    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    async with (
        serve(app=host, direct=False) as served,
        httpx.AsyncClient(timeout=DEADLINE, base_url=f"{served.url}/host{PREFIX}") as http,
    ):
        headers = bearer(make_token("s1", scope=PUBLISH))
        assert 201 == (await http.post("/publish/s1", json=STATUS, headers=headers)).status_code
        reply = await http.post("/publish/s1", json={"type": "heartbeat"}, headers=headers)
        refused("reserved_type", 422, (reply.status_code, reply.json()))
        asking = asyncio.create_task(http.post("/permission-request/s1?wait=60", json=QUESTION, headers=headers))

        async def listeners() -> int:
            async with valkey.client() as client:
                return int((await client.pubsub_numsub("agent_sse:{s1}:wake"))[0][1])

        await until(listeners, what="the agent waits")
        asking.cancel()  # and its connection is closed
        await asyncio.gather(asking, return_exceptions=True)

        async def nobody() -> bool:
            return await listeners() == 0

        await until(nobody, what="the end of the waiting")


async def test_browsers_may_use_every_endpoint_from_a_listed_origin(valkey: Valkey) -> None:
    """Preflights for each method and header that an endpoint takes are allowed, for listed origins only."""
    origin = "https://app.example.com"
    async with (
        serve(make_settings(valkey.url, cors_origins=(origin,))) as served,
        httpx.AsyncClient(timeout=DEADLINE) as http,
    ):
        for method, path in [*ENDPOINTS, ("POST", "cancel/{}"), ("DELETE", "grants/{}/g"), ("GET", "audit/{}")]:
            asked = {
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
            }
            url = f"{served.api}/{path.replace('{}', 's1')}"
            assert 200 == (await http.options(url, headers={**asked, "Origin": origin})).status_code, path
            assert 400 == (await http.options(url, headers={**asked, "Origin": "https://evil.example"})).status_code
