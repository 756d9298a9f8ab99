"""What one request may cost Redis: a schema, an audit entry and a remembered answer are bounded, whatever is asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sse import audit
from agent_sse.decisions import sha256
from agent_sse.errors import InvalidEvent
from agent_sse.json_schema import SCHEMA_LIMIT
from harness import Valkey
from room import Room, make_room, refused

LARGE = {"text": "x" * 100_000, "list": ["y" * 100] * 500}
CUT = audit.KEPT_BYTES


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey) as made:
        yield made


def size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def schema_of(length: int) -> dict[str, Any]:
    """Return a schema whose JSON has this length."""
    schema = {"type": "object", "description": ""}
    return {**schema, "description": "x" * (length - len(json.dumps(schema, separators=(",", ":"))))}


async def kept_schema(room: Room, request_id: str) -> bytes | None:
    async with room.valkey.client() as client:
        kept: bytes | None = await client.hget(f"agent_sse:{{{room.session}}}:requests", f"s:{request_id}")
    return kept


async def test_schema_up_to_the_limit_is_kept(room: Room) -> None:
    """A schema that can be checked goes with the request, which is editable."""
    waiting = room.ask(editable=True, schema=schema_of(SCHEMA_LIMIT))
    shown = await room.presented()
    assert shown["editable"]
    assert SCHEMA_LIMIT == len(await kept_schema(room, shown["request_id"]) or b"")
    assert 200 == (await room.answer(shown["request_id"], parameters_patch={"file": "b.py"}))[0]
    assert {"file": "b.py"} == (await waiting).parameters


@pytest.mark.parametrize(
    "schema",
    [
        schema_of(SCHEMA_LIMIT + 1), schema_of(30_000_000), {"enum": ["\u0001" * 20_000]},
        {"properties": {f"p{n}": {"type": "string"} for n in range(100_000)}},
    ],
    ids=["a byte too large", "30 MB", "large as JSON only", "many properties"],
)  # fmt: skip
async def test_schema_beyond_the_limit_is_not_kept_and_nothing_can_be_edited(room: Room, schema: Any) -> None:
    """Without its check there is no edit: the request takes yes or no, and Redis holds nothing of the schema."""
    waiting = room.ask(editable=True, schema=schema)
    shown = await room.presented()
    assert not shown["editable"]
    assert await kept_schema(room, shown["request_id"]) is None
    reply = await room.answer(shown["request_id"], parameters_patch={"file": "b.py"})
    refused("not_editable", 422, reply)
    assert 200 == (await room.answer(shown["request_id"]))[0]
    assert {"file": "a.py"} == (await waiting).parameters


async def test_entry_of_large_parameters_is_cut_and_its_digest_is_not(room: Room) -> None:
    """The audit and the remembered answer keep the beginning of large parameters, and the digest of all of them."""
    waiting = room.ask(parameters=LARGE)
    shown = await room.presented()
    assert LARGE == shown["parameters"]
    await room.answer(shown["request_id"], scope="session")
    assert LARGE == (await waiting).parameters
    assert await room.ask(parameters=LARGE)
    answered, by_grant = await room.audit()
    (grant,) = (await room.health())["grants"]
    for item in (answered, by_grant, grant):
        assert size(item["parameters"]) <= CUT
        assert "(100000 characters)" in item["parameters"]["text"]
        assert sha256(LARGE) == item["digest"]


async def test_entry_of_a_large_edit_is_cut_and_what_runs_is_not(room: Room) -> None:
    """Patch and result are cut in the audit only: answer and event say all of them, and the agent runs them."""
    waiting = room.ask(editable=True)
    shown = await room.presented()
    patch = {"text": "x" * 40_000}
    _, body = await room.answer(shown["request_id"], parameters_patch=patch)
    edited = {"file": "a.py", **patch}
    assert (patch, edited) == (body["data"]["parameters_patch"], body["data"]["edited_parameters"])
    assert edited == (await waiting).parameters
    (entry,) = await room.audit()
    assert "approved" == entry["outcome"]
    assert sha256(edited) == entry["edited_digest"]
    for name in ("parameters_patch", "edited_parameters"):
        assert size(entry[name]) <= CUT
        assert "(40000 characters)" in entry[name]["text"]


async def test_agents_own_entry_is_bounded(room: Room) -> None:
    """What a policy decides is cut likewise, and an entry that is too large in any other way is refused."""
    entry = {"kind": "decision", "parameters": LARGE, "digest": sha256(LARGE), "by": "policy"}
    await room.agent.audit(room.session, entry)
    (kept,) = await room.audit()
    assert size(kept["parameters"]) <= CUT
    assert sha256(LARGE) == kept["digest"]
    with pytest.raises(InvalidEvent):
        await room.agent.audit(room.session, {"kind": "note", "text": "x" * audit.ENTRY_BYTES})
    assert 1 == len(await room.audit())
