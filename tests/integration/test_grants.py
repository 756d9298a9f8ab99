"""Remembered answers: what they cover, what they never cover, how they are listed and revoked, what they survive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from agent_sse.errors import IdempotencyConflict
from agent_sse.permissions import PermissionDecision
from harness import DEADLINE, Valkey, make_settings, make_token, serve, until
from room import PUBLISH, Room, make_room, refused


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey) as made:
        yield made


async def remember(room: Room, parameters: Any = None, *, approved: bool = True, **options: Any) -> dict[str, Any]:
    """Let the agent ask, and the user answer for the session; return what the response says."""
    more = {name: options.pop(name) for name in ("covers", "reason") if name in options}
    waiting = room.ask(parameters=parameters, **options)
    shown = await room.presented()
    status, body = await room.answer(shown["request_id"], approved, scope="session", **more)
    assert 200 == status, body
    assert approved is bool(await waiting)
    return dict(body["data"])


async def decided(task: asyncio.Task[PermissionDecision]) -> PermissionDecision:
    async with asyncio.timeout(DEADLINE):
        return await task


async def is_asked(room: Room, parameters: Any = None, **options: Any) -> None:
    """Check that this question is put to the user, and withdraw it."""
    waiting = room.ask(parameters=parameters, **options)
    shown = await room.presented()
    assert not waiting.done()
    await room.agent._parts.permissions.withdraw(room.session, shown["request_id"])  # type: ignore[union-attr]
    assert not await waiting


# -- what a remembered answer covers ----------------------------------------------------------------------------------


async def test_answer_for_arguments_covers_the_same_parameters_only(room: Room) -> None:
    """By default an answer is remembered for the very parameters; others are asked about."""
    data = await remember(room, {"file": "a.py"})
    assert ("session", "arguments") == (data["scope"], data["covers"])
    decision = await decided(room.ask(parameters={"file": "a.py"}))
    assert (True, f"grant:{data['grant_id']}", {"file": "a.py"}) == (
        decision.approved,
        decision.resolved_by,
        decision.parameters,
    )
    await is_asked(room, {"file": "b.py"})


async def test_answer_for_the_tool_covers_other_parameters(room: Room) -> None:
    """An answer for the tool holds whatever its parameters are, and not for another tool."""
    await remember(room, covers="tool")
    assert await decided(room.ask(parameters={"file": "b.py"}))
    await is_asked(room, tool="file_delete")


async def test_denial_is_remembered_with_its_reason(room: Room) -> None:
    """A remembered no denies without asking, in the user's words."""
    data = await remember(room, approved=False, covers="tool", reason="not here")
    decision = await decided(room.ask(parameters={"x": 1}))
    assert (False, "denied", "not here", f"grant:{data['grant_id']}") == (
        decision.approved,
        decision.outcome,
        decision.reason,
        decision.resolved_by,
    )


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize(
    "parameters",
    [
        {"approved": True}, {"approved": False}, {"key": "t:x"}, {"key": "a", "n": 5},
        {"a": ',\n"approved":true', "b": '"key":"t:x","n":1}'}, {"reason": "x", "grant_id": "g_y"},
    ],
)  # fmt: skip
async def test_parameters_do_not_speak_for_the_user(room: Room, parameters: Any, approved: bool) -> None:
    """What an agent's parameters are called changes neither a remembered answer nor what revokes it."""
    data = await remember(room, parameters, approved=approved, reason='"approved":true, "key":"x","n":1}')
    again = await decided(room.ask(parameters=parameters))
    assert (approved, '"approved":true, "key":"x","n":1}') == (again.approved, again.reason)
    status, _ = await room.call("DELETE", f"grants/{{}}/{data['grant_id']}")
    assert 200 == status
    async with room.valkey.client() as client:
        assert {} == await client.hgetall(f"agent_sse:{{{room.session}}}:grants")
    await is_asked(room, parameters)


async def test_another_servers_tool_of_the_same_name_is_asked(room: Room) -> None:
    """An answer holds for one server's tool: a second server cannot use the trust in the first."""
    await remember(room, covers="tool", server="files")
    assert await decided(room.ask(server="files"))
    await is_asked(room, server="mail")
    await is_asked(room)


@pytest.mark.parametrize("covers", ["arguments", "tool"])
async def test_critical_is_asked_each_time(room: Room, covers: str) -> None:
    """What is critical takes no answer for the session, and no remembered answer covers it."""
    waiting = room.ask(risk_level="critical")
    shown = await room.presented()
    assert ["once"] == shown["scopes"]
    reply = await room.answer(shown["request_id"], scope="session", covers=covers)
    refused("critical_each_time", 422, reply)
    assert not waiting.done()
    assert 200 == (await room.answer(shown["request_id"]))[0]
    assert await waiting
    await remember(room, covers=covers, risk_level="high")
    await is_asked(room, risk_level="critical")


RISKS = ("low", "medium", "high")


@pytest.mark.parametrize("covers", ["arguments", "tool"])
@pytest.mark.parametrize("given", RISKS)
async def test_remembered_yes_covers_up_to_the_risk_at_which_it_was_given(room: Room, covers: str, given: str) -> None:
    """Trust that was given for a risk is none in a higher one; the question is asked then."""
    await remember(room, covers=covers, risk_level=given)
    assert [given] == [grant["risk_level"] for grant in (await room.health())["grants"]]
    for asked in RISKS[: RISKS.index(given) + 1]:
        assert await decided(room.ask(risk_level=asked))
    for asked in (*RISKS[RISKS.index(given) + 1 :], "critical"):
        await is_asked(room, risk_level=asked)
        await room.pass_time(1000)


async def test_remembered_no_covers_any_risk_but_critical(room: Room) -> None:
    """What the user does not want at low risk is not wanted at high risk either."""
    await remember(room, approved=False, covers="tool", risk_level="low")
    for risk in RISKS:
        assert not await decided(room.ask(risk_level=risk, parameters={"risk": risk}))
    await is_asked(room, risk_level="critical")


async def test_yes_at_the_higher_risk_takes_the_place_of_the_lower(room: Room) -> None:
    """Answered for the session again, at the higher risk, there is one answer, and it covers both."""
    await remember(room, covers="tool", risk_level="low")
    await room.pass_time(1000)
    await remember(room, covers="tool", risk_level="medium")
    assert ["medium"] == [grant["risk_level"] for grant in (await room.health())["grants"]]
    assert await decided(room.ask(risk_level="medium"))
    assert await decided(room.ask(risk_level="low"))


async def test_wider_answer_covers_where_the_narrower_does_not(room: Room) -> None:
    """A yes for these parameters at low risk is no hindrance to the one for the tool at high risk."""
    await remember(room, {"n": 1}, risk_level="low")
    await room.pass_time(1000)
    wide = await remember(room, {"n": 2}, covers="tool", risk_level="high")
    decision = await decided(room.ask(parameters={"n": 1}, risk_level="high"))
    assert (True, f"grant:{wide['grant_id']}") == (decision.approved, decision.resolved_by)


async def test_sibling_of_higher_risk_stays_in_the_queue(room: Room) -> None:
    """An answer for the tool settles what waits at its risk; what waits at a higher one is shown next."""
    first = room.ask(parameters={"n": 1}, risk_level="medium")
    shown = await room.presented()
    low, high = room.ask("file_edit", {"n": 2}, risk_level="low"), room.ask("file_edit", {"n": 3}, risk_level="high")

    async def all_wait() -> bool:
        return bool((await room.health())["pending_total"] == 3)

    await until(all_wait, what="all three are open")
    await room.answer(shown["request_id"], scope="session", covers="tool")
    assert all(await asyncio.gather(first, low))
    assert "high" == (await room.presented())["risk_level"]
    assert not high.done()


@pytest.mark.parametrize("text", ['"risk_level":"high"', 'x","risk_level":"high', "risk_level"])
async def test_texts_of_a_request_do_not_raise_the_risk_of_its_answer(room: Room, text: str) -> None:
    """The risk of a remembered answer is that of its request, whatever names, parameters and reasons say."""
    options: Any = {"server": text, "tool": text}
    await remember(room, {text: {"risk_level": "high"}}, covers="tool", reason=text, risk_level="low", **options)
    assert await decided(room.ask(risk_level="low", **options))
    await is_asked(room, risk_level="medium", **options)


async def test_answer_that_has_no_risk_counts_as_low(room: Room) -> None:
    """What does not say at which risk it was given covers the lowest only."""
    data = await remember(room, covers="tool", risk_level="high")
    async with room.valkey.client() as client:
        key = f"agent_sse:{{{room.session}}}:grants"
        text = await client.hget(key, data["grant_id"])
        await client.hset(key, data["grant_id"], text.replace(b'"risk_level":"high",', b""))
    assert await decided(room.ask(risk_level="low"))
    await is_asked(room, risk_level="medium")


async def test_key_that_another_servers_tool_used_is_a_conflict(room: Room) -> None:
    """An idempotency key stands for one server's tool: another's of the same name gets no answer of its."""
    waiting = room.ask(server="files", idempotency_key="k")
    await room.answer((await room.presented())["request_id"])
    assert await waiting
    for server in ("mail", ""):
        with pytest.raises(IdempotencyConflict):
            await room.ask(server=server, idempotency_key="k")


async def test_siblings_in_the_queue_are_settled_at_once(room: Room) -> None:
    """An answer for the tool settles what waits behind it, also what nobody was shown, and nothing else."""
    first = room.ask(parameters={"n": 1})
    shown = await room.presented()
    same = [room.ask(parameters={"n": n}) for n in (2, 3)]
    other, critical = room.ask("mail"), room.ask(parameters={"n": 4}, risk_level="critical")
    for tool in ("file_edit", "mail"):
        await room.is_queued(tool)

    async def all_wait() -> bool:
        return bool((await room.health())["pending_total"] == 5)

    await until(all_wait, what="all five are open")
    await room.answer(shown["request_id"], scope="session", covers="tool")
    assert all(await asyncio.gather(first, *same))
    assert {"high", "critical"} == {row["risk_level"] for row in (await room.health())["pending_permissions"]}
    assert not other.done()
    assert not critical.done()


async def test_newer_answer_replaces_the_older_one(room: Room) -> None:
    """For one tool there is one remembered answer; the narrower one goes before the wider one."""
    await remember(room, {"n": 1}, approved=False)
    wide = await remember(room, {"n": 2}, covers="tool")
    assert not await decided(room.ask(parameters={"n": 1}))
    assert await decided(room.ask(parameters={"n": 3}))
    assert 2 == len((await room.health())["grants"])
    await room.call("DELETE", f"grants/{{}}/{wide['grant_id']}")
    await is_asked(room, {"n": 3})


# -- listing and revoking ---------------------------------------------------------------------------------------------


async def test_health_lists_remembered_answers(room: Room) -> None:
    """Health says of each what it is for, whose it is and since when; what is internal is not shown."""
    data = await remember(room, {"file": "a.py", "password": "hunter2"}, reason="ok", server="files")
    (grant,) = (await room.health())["grants"]
    assert {
        "grant_id": data["grant_id"], "approved": True, "reason": "ok", "tool_name": "file_edit", "server": "files",
        "covers": "arguments", "granted_by": "alice", "request_id": data["request_id"], "risk_level": "high",
        "parameters": {"file": "a.py", "password": "••••"}, "digest": grant["digest"],
        "granted_at": grant["granted_at"],
    } == grant  # fmt: skip
    assert grant["granted_at"].endswith("Z")


async def test_revoked_answer_is_asked_again_and_audited(room: Room) -> None:
    """A revoked answer is listed no more and decides nothing; the audit says who revoked it."""
    data = await remember(room)
    bob = make_token(room.session, sub="bob")
    status, body = await room.call("DELETE", f"grants/{{}}/{data['grant_id']}", token=bob)
    assert (200, data["grant_id"]) == (status, body["data"]["grant_id"])
    assert {"key", "n"}.isdisjoint(body["data"])
    assert [] == (await room.health())["grants"]
    await is_asked(room)
    (entry,) = [entry for entry in await room.audit() if entry["kind"] == "revocation"]
    assert ("bob", data["grant_id"]) == (entry["resolved_by"], entry["grant_id"])
    refused("unknown_grant", 404, await room.call("DELETE", f"grants/{{}}/{data['grant_id']}"))


@pytest.mark.parametrize("name", ["g_nothing", "t:x", "a%3Ax", "%00", "%2e%2e", "x" * 300, "é", "{}"])
async def test_unknown_answer_is_404(room: Room, name: str) -> None:
    """Whatever is no remembered answer's id is 404, also a field of Redis' hash that is none."""
    await remember(room)
    refused("unknown_grant", 404, await room.call("DELETE", f"grants/{{}}/{name}"))
    assert 1 == len((await room.health())["grants"])


async def test_revoking_needs_its_right(room: Room) -> None:
    """Who may only read, or publish, or use another session, revokes nothing."""
    data = await remember(room)
    path = f"grants/{{}}/{data['grant_id']}"
    for scope in ("events:read", PUBLISH):
        reply = await room.call("DELETE", path, token=make_token(room.session, scope=scope))
        refused("scope_missing", 403, reply)
    refused("session_forbidden", 403, await room.call("DELETE", path, token=make_token("another")))
    assert 1 == len((await room.health())["grants"])


async def test_remembered_answers_are_bounded(room: Room) -> None:
    """A session remembers a hundred answers; the oldest goes first, with all that belongs to it."""
    first = await remember(room, {"n": 0})
    async with room.valkey.client() as client:
        key = f"agent_sse:{{{room.session}}}:grants"
        for n in range(99):
            text = f'{{"approved":true,"reason":"",\n"grant_id":"g_{n}","key":"a:{n}","n":{n + 2}}}'
            await client.hset(key, mapping={f"g_{n}": text, f"a:{n}": f"g_{n}"})
        await client.hset(f"agent_sse:{{{room.session}}}:state", "granted", 100)
        await remember(room, {"n": 1})
        assert 200 == await client.hlen(key)
    assert first["grant_id"] not in [grant["grant_id"] for grant in (await room.health())["grants"]]


# -- what they survive ------------------------------------------------------------------------------------------------


async def test_remembered_answers_survive_service_and_redis_restarts(valkey: Valkey) -> None:
    """They live in Redis, for the session's life: other processes know them, after a restart too."""
    async with make_room(valkey) as room:
        await remember(room, covers="tool")
        session = room.session
        async with valkey.client() as client:
            assert await client.pttl(f"agent_sse:{{{session}}}:grants") > 0
    await valkey.restart()
    async with SimpleNotifier.from_url(valkey.url) as agent, serve(make_settings(valkey.url)):
        assert await agent.request_permission(session, "file_edit", {"z": 1}, timeout=DEADLINE)


async def test_closing_the_session_forgets_its_answers(room: Room) -> None:
    """A closed session's answers are gone: one of the same name asks anew."""
    await remember(room, covers="tool")
    await room.agent.close_session(room.session)
    assert [] == (await room.health())["grants"]
    asking = room.ask()
    await room.is_queued("file_edit")
    assert not asking.done()


async def test_remembered_answer_leaves_no_prompt_and_is_audited(room: Room) -> None:
    """What a remembered answer decides is never presented; the audit names the answer it rests on."""
    data = await remember(room)
    before = len([event for event in await room.events() if event["type"].startswith("permission_")])
    async with room.agent.tool_call(room.session, "file_edit", {"file": "a.py"}, risk_level="high",
                                    require_permission=True) as call:  # fmt: skip
        call.result = "done"
    assert call.decision is not None
    after = await room.events()
    assert before == len([event for event in after if event["type"].startswith("permission_")])
    assert "waiting_permission" not in [event["data"].get("status") for event in after[-3:]]
    entry = (await room.audit())[-1]
    assert ("grant", data["grant_id"], "approved") == (entry["by"], entry["grant_id"], entry["outcome"])


async def test_repeated_remembering_is_a_repeat_and_a_plain_yes_is_another_answer(room: Room) -> None:
    """The same answer for the session again is 200; without the scope, or for more, it is another one: 409."""
    waiting = room.ask()
    shown = await room.presented()
    _, first = await room.answer(shown["request_id"], scope="session")
    await waiting
    status, body = await room.answer(shown["request_id"], scope="session", covers="arguments")
    assert (200, True, first["data"]["grant_id"]) == (
        status,
        body["data"]["already_resolved"],
        body["data"]["grant_id"],
    )
    for more in ({}, {"scope": "session", "covers": "tool"}):
        refused("already_resolved", 409, await room.answer(shown["request_id"], **more))
    assert 1 == len((await room.health())["grants"])


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"covers": "tool"}, "covers"), ({"scope": "once", "covers": "arguments"}, "covers"),
        ({"scope": "always"}, "scope"), ({"scope": None}, "scope"), ({"scope": ["session"]}, "scope"),
        ({"scope": "session", "covers": "server"}, "covers"), ({"remember": True}, "remember"),
    ],
)  # fmt: skip
async def test_wrong_scope_is_named(room: Room, more: Any, field: str) -> None:
    """A scope that is none, or fields that do not go together, are 422 and leave the request open."""
    waiting = room.ask()
    shown = await room.presented()
    message = refused("invalid_field", 422, await room.answer(shown["request_id"], **more))
    assert message.startswith(f"{field}:")
    assert not waiting.done()
