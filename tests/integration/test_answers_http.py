"""Answers that say more than yes or no: edited parameters over real HTTP, from the question to what is run."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_sse.permissions import PermissionDecision
from harness import DEADLINE, Valkey, bearer
from room import Room, make_room, refused

BIG = 2**53 + 1  # no double holds it
SCHEMA = {
    "type": "object",
    "properties": {"file": {"type": "string", "pattern": "^[a-z.]+$"}, "lines": {"type": "integer", "maximum": 100}},
    "required": ["file"],
}


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey, max_event_bytes=40_000, max_body_bytes=100_000) as made:
        yield made


async def asked(room: Room, parameters: Any, **options: Any) -> tuple[asyncio.Task[PermissionDecision], dict[str, Any]]:
    task = room.ask(parameters=parameters, **{"editable": True, **options})
    return task, await room.presented()


async def edit(room: Room, shown: dict[str, Any], patch: Any, **more: Any) -> tuple[int, Any]:
    return await room.answer(shown["request_id"], parameters_patch=patch, **more)


async def send(room: Room, shown: dict[str, Any], patch: str) -> tuple[int, Any]:
    """Answer with a patch that is written as it stands here."""
    body = f'{{"approved": true, "request_id": "{shown["request_id"]}", "parameters_patch": {patch}}}'
    url = f"{room.served.api}/permission-response/{room.session}"
    reply = await room.http.post(url, content=body.encode("utf-8", "surrogatepass"), headers=bearer(room.token))
    return reply.status_code, reply.json()


# -- what runs is what was approved -----------------------------------------------------------------------------------


async def test_edited_parameters_are_what_the_agent_runs(room: Room) -> None:
    """Response, events, audit and decision agree on the patch, and on the parameters that come out of it."""
    waiting, shown = await asked(room, {"file": "a.py", "lines": 3, "old": True})
    assert (True, {"file": "a.py", "lines": 3, "old": True}) == (shown["editable"], shown["parameters"])
    patch, after = {"file": "b.py", "old": None}, {"file": "b.py", "lines": 3}
    status, body = await edit(room, shown, patch, reason="there")
    expected = {"parameters_patch": patch, "edited_parameters": after}
    assert (200, expected) == (status, {name: body["data"][name] for name in expected})
    assert "scope" not in body["data"]
    decision = await waiting
    assert (True, True, after) == (decision.approved, decision.edited, decision.parameters)
    told = {event["type"]: event["data"] for event in await room.events()}
    for kind in ("permission_response_result", "permission_cleared"):
        assert expected == {name: told[kind][name] for name in expected}, kind
    (entry,) = await room.audit()
    assert expected == {name: entry[name] for name in expected}
    assert {"file": "a.py", "lines": 3, "old": True} == entry["parameters"]
    canonical = json.dumps(after, separators=(",", ":"), sort_keys=True).encode()
    assert hashlib.sha256(canonical).hexdigest() == entry["edited_digest"]


async def test_edited_call_shows_both_and_runs_the_edited_one(room: Room) -> None:
    """In a `tool_call` block the parameters are the edited ones; its status says what they were."""
    call = room.agent.tool_call(
        room.session, "file_edit", {"file": "a.py"}, risk_level="high", require_permission=True, editable=True,
        tool_call_id="c1",
    )  # fmt: skip
    entering = asyncio.create_task(call.__aenter__())
    shown = await room.presented()
    await edit(room, shown, {"file": "b.py"})
    await entering
    assert {"file": "b.py"} == call.parameters
    while (status := (await room.next("tool_status")).json["data"])["status"] != "executing":
        pass
    assert ({"file": "b.py"}, {"file": "a.py"}) == (
        status["details"]["parameters"],
        status["details"]["original_parameters"],
    )
    await call.__aexit__(None, None, None)


async def test_what_the_patch_does_not_name_stays_exact(room: Room) -> None:
    """Numbers that no double holds, 1.0 beside 1, and the order of lists survive an edit of something else."""
    parameters = {"big": BIG, "float": 1.0, "int": 1, "list": [BIG, 1.0, None], "deep": {"big": BIG, "keep": 0.1}}
    waiting, shown = await asked(room, parameters)
    await edit(room, shown, {"deep": {"new": BIG}, "gone": None})
    expected = {**parameters, "deep": {"big": BIG, "keep": 0.1, "new": BIG}}
    got = (await waiting).parameters
    assert json.dumps(expected, sort_keys=True) == json.dumps(got, sort_keys=True)  # 1 == 1.0 in Python


# https://www.rfc-editor.org/rfc/rfc7396#appendix-A, those whose target and patch are objects
RFC_7396 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}), ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}), ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}), ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}), ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}), ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("target", "patch", "result"), RFC_7396)
async def test_patch_is_a_json_merge_patch(room: Room, target: Any, patch: Any, result: Any) -> None:
    """The RFC's own examples come out as it says."""
    waiting, shown = await asked(room, target)
    _, body = await edit(room, shown, patch)
    decision = await waiting
    assert json.dumps(result) == json.dumps(decision.parameters)
    assert result == body["data"]["edited_parameters"]


async def test_patch_that_changes_nothing_is_a_plain_approval(room: Room) -> None:
    """What was looked at and left as it is was not edited."""
    waiting, shown = await asked(room, {"file": "a.py"})
    status, body = await edit(room, shown, {"file": "a.py", "gone": None})
    assert (200, False) == (status, "edited_parameters" in body["data"])
    decision = await waiting
    assert (True, False, {"file": "a.py"}) == (decision.approved, decision.edited, decision.parameters)


async def test_same_edit_again_is_a_repeat_and_another_one_a_conflict(room: Room) -> None:
    """The same edit repeated is 200; another edit, or a plain yes, is another answer: 409 with the winner."""
    waiting, shown = await asked(room, {"file": "a.py"})
    await edit(room, shown, {"file": "b.py"})
    await waiting
    status, body = await edit(room, shown, {"file": "b.py"})
    assert (200, True, {"file": "b.py"}) == (
        status,
        body["data"]["already_resolved"],
        body["data"]["edited_parameters"],
    )
    reply = await edit(room, shown, {"file": "c.py"})
    refused("already_resolved", 409, reply)
    assert {"file": "b.py"} == reply[1]["data"]["parameters_patch"]
    refused("already_resolved", 409, await room.answer(shown["request_id"]))
    assert {"file": "b.py"} == waiting.result().parameters


async def test_one_of_many_edits_wins(room: Room) -> None:
    """Of edits that come at once one wins, and it is what runs; the others are told."""
    waiting, shown = await asked(room, {"n": 0})
    replies = await asyncio.gather(*(edit(room, shown, {"n": n}) for n in range(1, 9)))
    assert [200, *[409] * 7] == sorted(status for status, _ in replies)
    (winner,) = [body["data"]["edited_parameters"] for status, body in replies if status == 200]
    assert winner == (await waiting).parameters
    assert {winner["n"]} == {body["data"]["edited_parameters"]["n"] for _, body in replies}


# -- what cannot be edited --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"request_id": None}, "parameters_patch"), ({"approved": False}, "parameters_patch"),
        ({"scope": "session"}, "parameters_patch"), ({"scope": "session", "covers": "tool"}, "parameters_patch"),
        ({"covers": "tool"}, "covers"), ({"parameters_patch": []}, "parameters_patch"),
        ({"parameters_patch": "x"}, "parameters_patch"), ({"parameters_patch": 1}, "parameters_patch"),
    ],
)  # fmt: skip
async def test_patch_goes_with_one_named_approval_only(room: Room, body: Any, field: str) -> None:
    """A patch needs the request's id, an approval and the scope `once`; anything else is 422 and says why."""
    waiting, shown = await asked(room, {"file": "a.py"})
    whole = {"approved": True, "request_id": shown["request_id"], "parameters_patch": {"file": "b.py"}, **body}
    whole = {name: value for name, value in whole.items() if value is not None}
    assert refused("invalid_field", 422, await room.call("POST", "permission-response/{}", whole)).startswith(field)
    assert not waiting.done()


async def test_request_that_is_not_editable_takes_no_patch(room: Room) -> None:
    """Without `editable` there is yes and no; the request stays open."""
    waiting, shown = await asked(room, {"file": "a.py"}, editable=False)
    assert shown["editable"] is False
    refused("not_editable", 422, await edit(room, shown, {"file": "b.py"}))
    assert not waiting.done()


@pytest.mark.parametrize(
    "patch",
    [
        {"password": "x"}, {"password": None}, {"password": {"a": 1}}, {"a": {"token": "x"}}, {"a": None}, {"a": "x"},
        {"a": {"b": "••••"}}, {"new": "••••"}, {"list": [1, "••••"]}, {"list": [{"api_key": "x"}]}, {"••••": 1},
    ],
)  # fmt: skip
async def test_masked_values_cannot_be_edited(room: Room, patch: Any) -> None:
    """What the user does not see he cannot change, delete or write back as ••••; not in what holds it either."""
    parameters = {
        "file": "a.py", "password": "hunter2", "a": {"token": "hunter2", "b": 1}, "list": [{"api_key": "hunter2"}],
    }  # fmt: skip
    waiting, shown = await asked(room, parameters)
    assert "hunter2" not in json.dumps(shown)
    assert {"/password", "/a/token", "/list/0/api_key"} == set(shown["masked"])
    status, body = await edit(room, shown, patch)
    assert (422, "masked_value") == (status, body["error"]["code"]), body
    assert not waiting.done()
    await edit(room, shown, {"file": "b.py", "a": {"b": 2}})
    expected = {**parameters, "file": "b.py", "a": {"token": "hunter2", "b": 2}}
    assert expected == (await waiting).parameters


@pytest.mark.parametrize(
    "patch",
    [{"note": "sk-" + "a" * 30}, {"new": {"password": "x1"}}, {"cmd": "use ghp_" + "a1" * 18}],
)
async def test_secret_is_not_written_into_an_edit(room: Room, patch: Any) -> None:
    """What would be hidden where it is shown cannot be typed in: nobody else could see what is approved."""
    waiting, shown = await asked(room, {"file": "a.py"})
    status, body = await edit(room, shown, patch)
    assert (422, "masked_value") == (status, body["error"]["code"]), body
    assert not waiting.done()


async def test_real_values_never_reach_redis(room: Room) -> None:
    """Before and after an edit, the secret that the agent's tool needs is only with the agent."""
    waiting, shown = await asked(room, {"file": "a.py", "password": "hunter2"}, schema=SCHEMA)
    await edit(room, shown, {"file": "b.py"})
    assert "hunter2" == (await waiting).parameters["password"]
    async with room.valkey.client() as client:
        dumps = [await client.dump(key) async for key in client.scan_iter()]
        hashes = [
            await client.hgetall(f"agent_sse:{{{room.session}}}:{name}") for name in ("requests", "state", "calls")
        ]
    assert dumps
    assert not any(b"hunter2" in dump for dump in dumps)
    assert b"hunter2" not in repr(hashes).encode()


@pytest.mark.parametrize(
    "patch", [{"file": "B.py"}, {"file": None}, {"lines": 101}, {"lines": "3"}, {"file": {"a": 1}}]
)
async def test_edit_has_to_fit_the_tools_schema(room: Room, patch: Any) -> None:
    """What the tool would not take is 422 and says where; the request stays open for a better one."""
    waiting, shown = await asked(room, {"file": "a.py"}, schema=SCHEMA)
    message = refused("invalid_parameters", 422, await edit(room, shown, patch))
    assert message.startswith("parameters_patch:")
    assert not waiting.done()
    assert 200 == (await edit(room, shown, {"lines": 100}))[0]
    assert {"file": "a.py", "lines": 100} == (await waiting).parameters


async def test_too_large_edit_is_413(room: Room) -> None:
    """An edit that no event could show is 413, and the request stays open."""
    waiting, shown = await asked(room, {"file": "a.py"})
    refused("edit_too_large", 413, await edit(room, shown, {"file": "x" * 50_000}))
    assert not waiting.done()


async def test_patch_for_a_request_that_is_over_or_unknown_says_so(room: Room) -> None:
    """An edit comes too late like any answer: 410 for an expired request, 404 for one that is not known."""
    waiting, shown = await asked(room, {"file": "a.py"}, timeout=100.0)
    await room.pass_time(100_000)
    assert not await waiting
    refused("expired", 410, await edit(room, shown, {"file": "b.py"}))
    for name in ("pr_nothing", "e:" + shown["request_id"], "s:x", "\u0000"):
        refused("unknown_request", 404, await edit(room, {"request_id": name}, {"file": "b.py"}))


@pytest.mark.parametrize("depth", [150, 250, 900])
@pytest.mark.parametrize("inner", ['{"a": %s}', "[%s]"])
async def test_deep_patches_never_break_the_service(room: Room, depth: int, inner: str) -> None:
    """A patch nested as deep as JSON can be read is applied, or refused with 4xx while the request stays open."""
    deep = "1"
    for _ in range(depth):
        deep = inner % deep
    waiting, shown = await asked(room, {"file": "a.py"}, schema={"type": "object"})
    status, body = await send(room, shown, f'{{"a": {deep}}}')
    assert status in {200, 400, 413, 422}, body
    if status == 200:
        assert (await waiting).parameters == {"file": "a.py", "a": json.loads(deep)}
    else:
        assert not waiting.done()


@pytest.mark.parametrize(
    "patch", ['{"\\ud800": 1}', '{"a": "\\udfff"}', '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}']
)
async def test_patch_that_is_no_json_is_refused(room: Room, patch: str) -> None:
    """Lone surrogates, NaN, Infinity and names that stand twice are 4xx; the request stays open."""
    waiting, shown = await asked(room, {"file": "a.py"})
    status, body = await send(room, shown, patch)
    assert (status in {400, 422}, False) == (True, body["success"])
    assert not waiting.done()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396 § 2, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


@given(parameters=OBJECTS, patch=OBJECTS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
async def test_any_edit_is_exact_or_refused(room: Room, parameters: Any, patch: Any) -> None:
    """Whatever the parameters and the patch: what the agent runs is what RFC 7396 makes of them, or 4xx and nothing."""
    async with asyncio.timeout(DEADLINE):
        task = room.ask(parameters=parameters, editable=True)
        await room.is_queued("file_edit")
        (row,) = (await room.health())["pending_permissions"]
        status, body = await send(room, row, json.dumps(patch))
        if status == 200:
            decision = await task
            assert json.dumps(merged(parameters, patch), sort_keys=True) == json.dumps(
                decision.parameters, sort_keys=True
            )
        else:
            assert status in {400, 413, 422}, body
            assert not task.done()
            await room.answer(row["request_id"], False)
            await task


async def test_prompts_message_shows_no_secret(room: Room) -> None:
    """What an agent writes beside its question is masked like the parameters."""
    waiting = room.ask(message="run it with password=hunter2hunter2")
    shown = await room.presented()
    assert "hunter2" not in json.dumps([shown, await room.health()])
    await room.answer(shown["request_id"])
    await waiting
