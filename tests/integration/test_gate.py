"""The gate: what a policy's three answers come to, for one call, on a real Valkey with a real user."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent_sse import InvalidEvent, PermissionDenied, SimpleNotifier
from agent_sse.cancels import Cancellation
from agent_sse.decisions import sha256
from agent_sse.errors import AgentSseError, ToolCallCancelled
from agent_sse.mcp.gate import Gate, Tool
from agent_sse.policy_file import PolicyFile
from harness import Valkey, session_name
from mcp_servers import DENIED, FAILS, RUNS, Browser, asked, browsing

POLICY = """
version = 1
default = "ask"

[[rules]]
name = "reads"
tool = "read"
decision = "allow"

[[rules]]
name = "never"
tool = "*"
decision = "deny"
reason = "Nothing of the system's."
arguments = { path = "$.path", glob = ["/etc/**"] }

[[rules]]
name = "delicate"
tool = "write"
decision = "ask"
set_risk = "critical"
reason = "What is delicate is asked about each time."
arguments = { path = "$.path", glob = ["delicate/**"] }

[[rules]]
name = "untouched"
tool = "write"
decision = "ask"
editable = false
arguments = { path = "$.path", glob = ["untouched/**"] }

[[rules]]
name = "as-it-stands"
tool = "deploy"
decision = "ask"
set_risk = "critical"
editable = false
"""
DONE = {"content": [{"type": "text", "text": "done"}]}


class Room:
    """A gate with a policy of its own, and a user."""

    def __init__(self, notifier: SimpleNotifier, user: Browser, folder: Path) -> None:
        self.notifier = notifier
        self.user = user
        self.policy = folder / "policy.toml"
        self.policy.write_text(POLICY)
        self.gate = Gate(notifier, user.session, server="files", policy=PolicyFile(self.policy))
        self.ran: list[Any] = []

    async def run(self, name: str, arguments: dict[str, Any] | None = None, schema: Any = None) -> None:
        """Call a tool that notes what it was called with."""
        async with self.gate.call(Tool(name, None, schema), arguments) as call:
            self.ran.append(call.arguments)
            call.finish(DONE)

    async def decisions(self) -> list[dict[str, Any]]:
        return [entry for entry in await self.user.audit() if entry["kind"] == "decision"]


@pytest.fixture
async def room(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> AsyncIterator[Room]:
    """A gate and a user who looks at its session."""
    async with browsing(valkey, session_name()) as user:
        yield Room(notifier, user, folder)


def picked(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(key) for key in ("tool_name", "server", "outcome", "by", "rule", "resolved_by", "reason"))


# -- allow, deny, ask -------------------------------------------------------------------------------------------------


async def test_gate_runs_what_the_policy_allows_and_keeps_it_in_the_audit(room: Room) -> None:
    """Nobody is asked; who allowed which parameters is there afterwards."""
    await room.run("read", {"path": "a"})
    assert [{"path": "a"}] == room.ran
    assert [RUNS] == await room.user.words()
    (entry,) = await room.decisions()
    assert ("read", "files", "approved", "policy", "reads", "policy", None) == picked(entry)
    assert (sha256({"path": "a"}), {"path": "a"}) == (entry["digest"], entry["parameters"])


async def test_gate_refuses_what_the_policy_denies_and_keeps_it_in_the_audit(room: Room) -> None:
    """The body does not run, the card closes with the rule's reason."""
    with pytest.raises(PermissionDenied, match="Nothing of the system's") as caught:
        await room.run("write", {"path": "/etc/passwd"})
    assert [] == room.ran
    assert ("denied", "policy:never") == (caught.value.decision.outcome, caught.value.decision.resolved_by)
    assert [("pending", "denied", "result failed")] == await room.user.words()
    (result,) = await room.user.data("tool_result")
    assert "denied by policy: Nothing of the system's." == result["error"]
    (entry,) = await room.decisions()
    assert ("write", "files", "denied", "policy", "never", "policy", "Nothing of the system's.") == picked(entry)


@pytest.mark.parametrize("approved", [True, False])
async def test_gate_asks_and_keeps_the_answer_in_the_audit(room: Room, approved: bool) -> None:
    """The user decides, and the audit says that it was the user, and which rule asked."""
    calling = asyncio.create_task(room.run("write", {"path": "a"}))
    request = await room.user.answers(approved=approved)
    await asyncio.gather(calling, return_exceptions=True)
    assert ("files", "high", True) == (request["server"], request["risk_level"], request["editable"])
    assert [asked(RUNS) if approved else DENIED] == await room.user.words()
    assert ([{"path": "a"}] if approved else []) == room.ran
    (entry,) = await room.decisions()
    assert ("write", "files", "approved" if approved else "denied") == picked(entry)[:3]
    assert ("default", "alice") == (entry["rule"], entry["resolved_by"])
    assert sha256({"path": "a"}) == entry["digest"]


async def test_gate_without_a_policy_asks_unless_a_trusted_server_only_reads(
    notifier: SimpleNotifier, room: Room
) -> None:
    """The default: a read-only tool of a trusted server runs, of another one it is asked about."""
    reader = Tool("look", {"readOnlyHint": True})
    trusted = Gate(notifier, room.user.session, server="mine", trusted=True)
    async with trusted.call(reader, {}) as call:
        call.finish(DONE)
    stranger = Gate(notifier, room.user.session, server="other")

    async def run() -> None:
        async with stranger.call(reader, {}) as call:
            call.finish(DONE)

    calling = asyncio.create_task(run())
    assert "medium" == (await room.user.answers())["risk_level"]
    await calling


async def test_gate_heeds_a_policy_that_changes_with_the_next_call(room: Room) -> None:
    """The file is read again: what ran is denied, without a restart."""
    await room.run("read", {"path": "a"})
    room.policy.write_text('version = 1\ndefault = "deny"\n')
    with pytest.raises(PermissionDenied):
        await room.run("read", {"path": "a"})
    room.policy.write_text("version = 2\n")
    with pytest.raises(PermissionDenied):
        await room.run("read", {"path": "a"})
    room.policy.write_text(POLICY)
    await room.run("read", {"path": "b"})
    assert [{"path": "a"}, {"path": "b"}] == room.ran


# -- parameters -------------------------------------------------------------------------------------------------------


async def test_gate_runs_exactly_what_was_asked(room: Room) -> None:
    """Neither the caller's changes while the user thinks nor the body's to its copy reach what runs."""
    arguments = {"path": "a", "deep": {"list": [1]}}
    call = room.gate.call(Tool("write"), arguments)

    async def run() -> None:
        async with call:
            call.arguments["path"] = "c"
            room.ran.append(call.arguments)

    calling = asyncio.create_task(run())
    request = await room.user.asked()
    arguments["path"] = "b"
    arguments["deep"]["list"].append(2)  # type: ignore[index]
    await room.user.answer(request)
    await calling
    assert [{"path": "a", "deep": {"list": [1]}}] == room.ran
    with pytest.raises(AgentSseError, match="not approved"):
        _ = call.arguments


async def test_gate_runs_what_the_user_edited(room: Room) -> None:
    """The edited parameters run, and stand in the events beside the original ones."""
    calling = asyncio.create_task(room.run("write", {"path": "a", "mode": 1}))
    await room.user.answers(parameters_patch={"path": "b", "mode": None})
    await calling
    assert [{"path": "b"}] == room.ran
    (entry,) = await room.decisions()
    assert {"path": "b"} == entry["edited_parameters"]


async def test_gate_checks_an_edit_against_the_policy(room: Room) -> None:
    """An edit into what a rule denies does not run, and the audit says that the policy refused it."""
    calling = asyncio.create_task(room.run("write", {"path": "a"}))
    await room.user.answers(parameters_patch={"path": "/etc/passwd"})
    with pytest.raises(PermissionDenied, match="never: Nothing of the system's"):
        await calling
    assert [] == room.ran
    (words,) = await room.user.words()
    assert ("denied", "result failed") == words[-2:]
    refusals = [entry for entry in await room.user.audit() if entry["kind"] == "refusal"]
    assert ["policy, never: Nothing of the system's."] == [entry["reason"] for entry in refusals]


@pytest.mark.parametrize(
    ("path", "why"), [("delicate/a", "delicate: the edit makes it critical"), ("untouched/a", "untouched: nobody may")]
)
async def test_gate_lets_no_edit_reach_what_was_not_asked_about(room: Room, path: str, why: str) -> None:
    """An edit into what the policy holds for riskier, or lets nobody edit, does not run."""
    calling = asyncio.create_task(room.run("write", {"path": "a"}))
    await room.user.answers(parameters_patch={"path": path})
    with pytest.raises(PermissionDenied, match=why):
        await calling
    assert [] == room.ran


async def test_gate_tells_the_user_why_a_rule_asks(room: Room) -> None:
    """The rule's reason is the prompt's message."""
    calling = asyncio.create_task(room.run("write", {"path": "delicate/a"}))
    request = await room.user.answers()
    await calling
    assert "What is delicate is asked about each time." == request["message"]


async def test_gate_lets_nothing_be_edited_that_the_policy_keeps(room: Room) -> None:
    """A rule with `editable = false` takes yes or no, at the risk that it sets."""
    calling = asyncio.create_task(room.run("deploy", {"to": "production"}))
    request = await room.user.asked()
    assert (False, "critical", ["once"]) == (request["editable"], request["risk_level"], request["scopes"])
    with pytest.raises(AssertionError, match="not_editable"):
        await room.user.answer(request, parameters_patch={"to": "staging"})
    await room.user.answer(request)
    await calling


async def test_gate_asks_about_a_megabyte_and_runs_it_whole(room: Room) -> None:
    """Large parameters are shown cut and cannot be edited; the digest is of all, and all of it runs."""
    arguments = {"path": "a", "text": "0123456789" * 100_000, "lines": list(range(1000))}
    calling = asyncio.create_task(room.run("write", arguments))
    request = await room.user.answers()
    await calling
    assert [arguments] == room.ran
    assert (False, True, ["once"], sha256(arguments)) == (
        request["editable"], request["truncated"], request["scopes"], request["digest"]
    )  # fmt: skip
    shown = request["parameters"]
    assert ("a", "… (1000000 characters)", "… (1000 items)") == (
        shown["path"], shown["text"][-22:], shown["lines"][-1]
    )  # fmt: skip
    (entry,) = await room.decisions()
    assert sha256(arguments) == entry["digest"]
    for _, event in await room.user.valkey.entries(room.user.session):
        assert len(json.dumps(event)) < 100_000


async def test_gate_judges_large_parameters_too(room: Room) -> None:
    """The policy sees all of them, not what is shown."""
    with pytest.raises(PermissionDenied):
        await room.run("write", {"text": "x" * 1_000_000, "path": "/etc/passwd"})


async def test_gate_hides_secrets_from_all_but_the_tool(room: Room) -> None:
    """Neither events nor prompt nor audit have them; an edit of something else leaves them as they are."""
    arguments = {"path": "a", "password": "hunter2hunter2", "header": "Authorization: Bearer abcdefghijklmnop1234"}
    calling = asyncio.create_task(room.run("write", arguments))
    request = await room.user.answers(parameters_patch={"path": "b"})
    await calling
    assert [{**arguments, "path": "b"}] == room.ran
    assert ("••••", ["/password", "/header"]) == (
        request["parameters"]["password"],
        sorted(request["masked"], reverse=True),
    )
    said = json.dumps([await room.user.valkey.entries(room.user.session), await room.user.audit()])
    assert "hunter2" not in said
    assert "abcdefghijklmnop" not in said


async def test_gate_hides_the_parameters_secrets_in_all_that_follows(room: Room) -> None:
    """What is hidden in the parameters does not come back in progress, result or error."""
    arguments = {"path": "a", "password": "s3cr3t-value-2"}
    for name, failing in (("first", False), ("second", True)):
        calling = asyncio.create_task(_repeat_secret(room, name, arguments, failing))
        await room.user.answers()
        await asyncio.gather(calling, return_exceptions=True)
    said = json.dumps([await room.user.valkey.entries(room.user.session), await room.user.audit()])
    assert all(word in said for word in ("trying", "it was", "no entry for"))
    assert "s3cr3t-value-2" not in said


async def _repeat_secret(room: Room, name: str, arguments: dict[str, Any], failing: bool) -> None:
    async with room.gate.call(Tool(name), arguments) as call:
        call.progress(1, message="trying s3cr3t-value-2")
        if failing:
            raise LookupError("no entry for s3cr3t-value-2")
        call.finish(
            {"content": [{"type": "text", "text": "it was s3cr3t-value-2"}], "structuredContent": {"s3cr3t-value-2": 1}}
        )


async def test_gate_hides_secrets_in_results(room: Room) -> None:
    """What a tool returns is shown without them; an error text too."""
    async with room.gate.call(Tool("read"), {}) as call:
        text = "the key is sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789"
        call.finish({"content": [{"type": "text", "text": text}], "isError": True, "token": "hunter2hunter2"})
    said = json.dumps(await room.user.valkey.entries(room.user.session))
    assert "hunter2" not in said
    assert "abcdefghijklmnopqrstuvwxyz" not in said
    assert [FAILS] == await room.user.words()


@pytest.mark.parametrize("arguments", [{"a": float("nan")}, {"a": "\ud800"}, {"a": object()}, {1: 2}])
async def test_gate_refuses_what_is_not_json_before_anybody_hears_of_it(room: Room, arguments: Any) -> None:
    """Parameters that no event can hold do not run, and leave no card."""
    with pytest.raises(InvalidEvent):
        room.gate.call(Tool("read"), arguments)
    assert [] == await room.user.words()


async def test_gate_refuses_what_is_nested_too_deeply(room: Room) -> None:
    """Parameters that could not be shown do not run, and leave no card."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    with pytest.raises(InvalidEvent, match="nested"):
        await room.run("read", {"a": deep})
    assert [] == room.ran
    assert [] == await room.user.words()


# -- the end of a call ------------------------------------------------------------------------------------------------


async def test_gate_says_failed_for_a_result_that_is_an_error(room: Room) -> None:
    """`isError` makes the call failed; its texts are the error, its content is the result."""
    async with room.gate.call(Tool("read"), {}) as call:
        call.finish({"content": [{"type": "text", "text": "no such file"}, {"type": "image"}], "isError": True})
    assert [FAILS] == await room.user.words()
    (result,) = await room.user.data("tool_result")
    assert ("no such file", 2) == (result["error"], len(result["result"]["content"]))


@pytest.mark.parametrize(
    "result", [{"isError": True}, {"content": "odd", "isError": True}, {"content": [1, {"text": 1}], "isError": True}]
)
async def test_gate_takes_errors_of_any_shape(room: Room, result: dict[str, Any]) -> None:
    """A result that says only that it is an error fails the call with a text of ours."""
    async with room.gate.call(Tool("read"), {}) as call:
        call.finish(result)
    (data,) = await room.user.data("tool_result")
    assert "the tool failed without a message" == data["error"]


async def test_gate_drops_progress_that_is_none(room: Room) -> None:
    """What a server says of its progress is not believed: only finite numbers and texts that JSON can hold count."""
    call = room.gate.call(Tool("read"), {})
    call.progress(1)
    async with call:
        for value in (float("nan"), float("inf"), "1", None, True):
            call.progress(value)  # type: ignore[arg-type]
        call.progress(1, float("nan"), "half \ud800")
        call.finish(DONE)
    call.progress(2)
    assert [("pending", "executing", "progress 1/0", "completed", "result ok")] == await room.user.words()
    (step,) = [
        data["details"]["progress"] for data in await room.user.data("tool_status") if "progress" in data["details"]
    ]
    assert {"progress": 1, "message": "half ?"} == step


async def test_gate_repeats_no_status(room: Room) -> None:
    """Whatever a server floods it with, no two statuses in a row say the same, and the end is said once."""
    async with room.gate.call(Tool("read"), {}) as call:
        for value in (1, 2, 2, 1, 3, 3, 2, 3):
            for message in ("a", "b", "a"):
                call.progress(value, 3, message)
                await asyncio.sleep(0)
        call.finish(DONE)
    statuses = [{**data, "timestamp": ""} for data in await room.user.data("tool_status")]
    assert [] == [before for before, after in pairwise(statuses) if before == after]
    assert ["completed"] == [data["status"] for data in statuses if data["status"] not in ("pending", "executing")]
    assert {"progress": 3, "total": 3, "message": "a"} == statuses[-2]["details"]["progress"]


async def test_gate_is_interrupted_by_a_user(room: Room) -> None:
    """A cancel interrupts the body, and leaving raises who did it; the task itself is not cancelled."""
    running = asyncio.Event()

    async def run() -> None:
        async with room.gate.call(Tool("read"), {}, tool_call_id="c1"):
            running.set()
            await asyncio.Event().wait()

    calling = asyncio.create_task(run())
    await running.wait()
    await room.user.cancel("c1", "enough")
    with pytest.raises(ToolCallCancelled) as caught:
        await calling
    assert ("alice", "enough") == (caught.value.by, caught.value.reason)
    assert 0 == calling.cancelling()
    assert [("pending", "executing", "cancelled", "result failed")] == await room.user.words()


async def test_gate_that_is_cancelled_when_all_is_done_says_so(room: Room) -> None:
    """A user's cancel that comes after the body is too late: the call has completed, and nobody is cancelled."""
    async with room.gate.call(Tool("read"), {}, tool_call_id="c1") as call:
        call.finish(DONE)
        assert call._call is not None
        # The message comes while the body does not wait for anything any more.
        call._call._on_cancel(Cancellation("alice", "late"))
    await asyncio.sleep(0)
    assert [RUNS] == await room.user.words()


async def test_gate_in_a_cancelled_scope_ends_its_call(room: Room) -> None:
    """anyio cancels every await in a scope, again and again; the call's end is published all the same."""
    with anyio.CancelScope() as scope:
        async with room.gate.call(Tool("read"), {}):
            scope.cancel()
            await anyio.sleep_forever()
    assert [("pending", "executing", "cancelled", "result failed")] == await room.user.words()


async def test_gate_in_a_cancelled_scope_takes_its_question_back(room: Room) -> None:
    """The same while the user is asked: the prompt goes, and the body does not run."""
    async with anyio.create_task_group() as group:
        group.start_soon(room.run, "write", {"path": "a"})
        await room.user.asked()
        group.cancel_scope.cancel()
    (words,) = await room.user.words()
    assert ("permission_cleared cancelled", "cancelled", "result failed") == words[-3:]
    assert [] == room.ran


async def test_gates_calls_go_on_in_another_task(room: Room) -> None:
    """A call can be left open by one task and ended by another, and a user's cancel in between is told."""
    told = asyncio.Event()
    call = room.gate.call(Tool("read"), {}, tool_call_id="c1")
    await call.__aenter__()
    call.detach(told.set)
    await room.user.cancel("c1", "enough")
    await told.wait()

    async def go_on() -> None:
        call.attach()

    with pytest.raises(ToolCallCancelled) as caught:
        await asyncio.create_task(go_on())
    await call.__aexit__(ToolCallCancelled, caught.value, None)
    await call.__aexit__(None, None, None)
    assert [("pending", "executing", "cancelled", "result failed")] == await room.user.words()


async def test_gate_asks_about_what_is_cut_whatever_was_remembered(room: Room) -> None:
    """A yes for the tool does not cover parameters that nobody has seen whole, and one to these covers nothing else."""
    calling = asyncio.create_task(room.run("write", {"path": "a"}))
    await room.user.answers(scope="session", covers="tool")
    await calling
    await room.run("write", {"path": "b"})  # covered
    for _ in range(2):
        calling = asyncio.create_task(room.run("write", {"path": "a", "text": "x" * 300_000}))
        await room.user.answers(scope="session", covers="tool")
        await calling
    assert ["answer", "grant", "answer", "answer"] == [entry["by"] for entry in await room.decisions()]
