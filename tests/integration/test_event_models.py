"""The models of the stream's events against what the real parts send: they have each field of it, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, RootModel, TypeAdapter

from agent_sse import PermissionDenied, event_models
from agent_sse.errors import ToolCallCancelled
from agent_sse.events import STATUSES
from agent_sse.mcp.gate import Gate, Tool
from harness import Stream, Valkey, make_token
from room import Room, make_room

EVENT: TypeAdapter[Any] = TypeAdapter(event_models.Event)
POLICY = """
version = 1
default = "ask"

[[rules]]
name = "never"
tool = "format"
decision = "deny"
reason = "Nothing is formatted here."
"""


def fields_set(value: Any) -> Iterator[str]:
    """`Model.field` for each field that a validated value has, also of what is inside it."""
    if isinstance(value, BaseModel) and not isinstance(value, RootModel):
        for name in value.model_fields_set:
            yield f"{type(value).__name__}.{name}"
            yield from fields_set(getattr(value, name))


def fields_of(model: Any) -> Iterator[str]:
    """`Model.field` for each field of a model, or of the models in an annotation."""
    if isinstance(model, type) and issubclass(model, BaseModel) and not issubclass(model, RootModel):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}"
            yield from fields_of(field.annotation)
    for part in get_args(model):
        yield from fields_of(part)


# -- what agents and users do, once each ------------------------------------------------------------------------------


async def report(room: Room) -> None:
    """Publish each type that may be, with all that it may have, from Python and over HTTP."""
    agent, session = room.agent, room.session
    await agent.tool_status(session, "file_search", "executing", parameters={"query": "example"}, risk_level="medium")
    await agent.tool_status(session, "file_search", "completed")
    await agent.tool_result(session, "file_search", {"matches": 5})
    await agent.tool_result(session, "file_search", None, success=False, error="no such folder", duration_ms=12)
    await agent.clear_result(session, "file_search")
    await agent.clear_result(session)
    await agent.error(session, "the model is unavailable", code="model_unavailable")
    # null is taken there, and left out.
    progress = {"progress": 1, "total": None, "message": None}
    for body in (
        {"type": "tool_status", "data": {"tool_name": "a", "status": "executing", "details": {"progress": progress}}},
        {"type": "tool_result", "data": {"tool_name": "a", "success": True, "error": None, "duration_ms": None}},
        {"type": "result_cleared", "data": {}},
        {"type": "error", "message": "the model is unavailable"},
    ):
        status, reply = await room.call("POST", "publish/{}", body, token=room.publisher)
        assert 201 == status, reply


async def run_calls(room: Room) -> None:
    """One call with progress, parent and server, one that fails, one that a user cancels."""
    agent, session, inside = room.agent, room.session, asyncio.Event()
    async with agent.tool_call(session, "index", {}, parent_tool_call_id="plan", server="files") as call:
        await call.progress(1, total=3, message="reading")
        await call.progress(2.5)
        call.result = [1]
    with pytest.raises(OSError, match="no space"):
        async with agent.tool_call(session, "copy"):
            raise OSError("no space is left")

    async def build() -> None:
        async with agent.tool_call(session, "build", tool_call_id="b1"):
            inside.set()
            await asyncio.Event().wait()

    building = asyncio.create_task(build())
    await inside.wait()
    assert 202 == (await room.call("POST", "cancel/{}", {"tool_call_id": "b1", "reason": "wrong one"}))[0]
    with pytest.raises(ToolCallCancelled):
        await building


async def answer(room: Room) -> None:
    """A yes with an edit, a no, and a yes for the session, which settles a question that waits beside it."""

    async def edit() -> None:
        async with room.agent.tool_call(
            room.session, "file_edit", {"file": "a.py", "password": "hunter2"}, risk_level="high",
            require_permission=True, editable=True, schema={"type": "object"}, message="may I?", server="files",
        ) as call:  # fmt: skip
            assert "b.py" == call.parameters["file"]

    editing = asyncio.create_task(edit())
    shown = await room.presented()
    assert 200 == (await room.answer(shown["request_id"], parameters_patch={"file": "b.py"}))[0]
    await editing
    denied = room.ask("shell", {"command": "ls"})
    shown = await room.presented()
    assert 200 == (await room.answer(shown["request_id"], False, reason="not now"))[0]
    assert "denied" == (await denied).outcome
    first, second = room.ask("file_edit", {"file": "a.py"}), room.ask("file_edit", {"file": "b.py"})
    shown = await room.presented()
    await room.presented()
    assert 200 == (await room.answer(shown["request_id"], scope="session", covers="tool"))[0]
    assert (await first).approved
    assert (await second).approved


async def leave_unanswered(room: Room) -> None:
    """Questions that expire, are withdrawn, are cancelled with their call, and whose agents are lost."""
    asked = room.ask("shell", {"command": "a"}, timeout=60)
    await room.presented()
    await room.pass_time(61_000)
    assert "expired" == (await asked).outcome
    asked = room.ask("shell", {"command": "b"})
    await room.presented()
    asked.cancel()
    await cleared(room, "withdrawn")
    asked = room.ask("shell", {"command": "c"}, tool_call_id="c")
    await room.presented()
    assert 200 == (await room.call("POST", "cancel/{}", {"tool_call_id": "c"}))[0]
    assert "cancelled" == (await asked).outcome
    question = {"tool_name": "shell", "parameters": {}, "risk_level": "critical", "timeout": 60}
    asking = asyncio.create_task(room.call("POST", "permission-request/{}?wait=1", question, token=room.publisher))
    lost = (await room.presented())["request_id"]
    await asking
    await room.pass_time(20_000, dead=[lost])
    await cleared(room, "agent_lost")


async def lose_agent(room: Room) -> None:
    """A call whose agent does not take its cancellation: Redis' own script says how it ended."""
    details = {"cancellable": True}
    body = {"type": "tool_status", "data": {"tool_name": "gone", "status": "executing", "details": details}}
    await room.call("POST", "publish/{}", body, token=room.publisher)
    assert 202 == (await room.call("POST", "cancel/{}", {"tool_call_id": "gone"}))[0]
    await room.pass_time(10_000, dead=["c:gone"])
    while (await room.next("tool_result")).json["data"]["tool_call_id"] != "gone":
        pass


async def pass_gate(room: Room, folder: Path) -> None:
    """A call that a policy denies, and one whose parameters are too large to be shown whole."""
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    gate = Gate(room.agent, room.session, server="disks", policy=policy)
    with pytest.raises(PermissionDenied, match="Nothing is formatted"):
        async with gate.call(Tool("format"), {}):
            raise AssertionError("it must not run")

    async def write() -> None:
        async with gate.call(Tool("write"), {"text": "a" * 200_000}) as call:
            call.finish({"content": []})

    writing = asyncio.create_task(write())
    shown = await room.presented()
    assert shown["truncated"] is True
    await room.answer(shown["request_id"])
    await writing


async def cleared(room: Room, reason: str) -> None:
    while (await room.next("permission_cleared")).json["data"]["reason"] != reason:
        pass


async def look_again(room: Room, url: str) -> list[str]:
    """Return what a stream says at its beginning, up to its cursor."""
    async with Stream(url) as stream:
        await stream.primed()
        return [event.data for event in stream.records if event.data is not None]


async def test_every_event_fits_its_model_and_every_field_is_sent(valkey: Valkey, folder: Path) -> None:
    """A field that the models lack or do not know as null, and one that nobody sends, are errors here."""
    async with make_room(valkey, permission_concurrency=2) as room:
        await report(room)
        await run_calls(room)
        await answer(room)
        await leave_unanswered(room)
        await lose_agent(room)
        await pass_gate(room, folder)
        asked = room.ask("shell", {"command": "d"})
        await room.presented()
        seen = await look_again(room, room.served.events(room.session, room.token))
        seen += await look_again(room, room.served.events(room.session, room.token, cursor="nonsense"))
        await room.next("heartbeat")
        async with Stream(room.served.events(room.session, make_token(room.session, ttl=1))) as stream:
            await stream.next("error")
        await room.agent.close_session(room.session)
        await room.stream.end()
        assert not await asked
        seen += [event.data for event in (*room.stream.records, *stream.records) if event.data is not None]
    events = [EVENT.validate_json(data, extra="forbid") for data in seen]
    assert set(fields_of(event_models.Event)) == {name for event in events for name in fields_set(event)}
    assert set(STATUSES) == {event.data.status.root for event in events if event.type == "tool_status"}
    assert {"approved", "denied", "expired", "cancelled", "none"} == {
        event.data.outcome for event in events if event.type == "permission_cleared"
    }
    assert {"error", "model_unavailable", "token_expired", "session_closed"} == {
        event.code for event in events if event.type == "error"
    }
