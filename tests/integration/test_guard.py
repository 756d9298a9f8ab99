"""The guard on standard input and output: what it asks about, what it tells the host, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import mcp_parts
from agent_sse.mcp.gate import Tool
from agent_sse.mcp.guard import messages, tools
from agent_sse.mcp.guard.names import default_name, identity_of, url_name
from harness import processes_with, until
from mcp_parts import RawHost, hostile, journal, until_journal


@asynccontextmanager
async def guarding(folder: Path, kind: str = "plain", **options: Any) -> AsyncIterator[RawHost]:
    """Run a guard in front of a server of `hostile.py`, hands shaken; nothing of either is left afterwards."""
    os.environ["SEEN"] = str(folder / "seen")
    try:
        async with RawHost(mcp_parts.guard_command(folder, command=hostile(kind), **options)) as host:
            if kind != "crash-at-once":
                await host.initialize()
            yield host
    finally:
        del os.environ["SEEN"]
    await until(lambda: not processes_with(str(folder)), what="all processes having ended")


def seen(folder: Path) -> list[Any]:
    """Return what the server took for messages: method, name, arguments."""
    path = folder / "seen"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def happened(folder: Path, name: str) -> list[str]:
    """Return what the gate saw of a tool."""
    return [row[1] for row in journal(folder) if row[0] == name]


async def call(host: RawHost, request_id: Any, name: str, arguments: Any = None, **params: Any) -> None:
    await host.send("tools/call", {"name": name, "arguments": arguments or {}, **params}, id=request_id)


# -- the gate ---------------------------------------------------------------------------------------------------------


async def test_guard_passes_an_allowed_call_and_its_whole_answer(folder: Path) -> None:
    """What the server answers comes out as it is, fields that nobody knows included, and the gate sees the result."""
    async with guarding(folder) as host:
        await call(host, 1, "tool1", {"a": [1, None, 1.5]})
        answer = await host.answer(1)
    result = {"content": [{"type": "text", "text": "ran"}], "extra": {"a": None}}
    assert {"jsonrpc": "2.0", "id": 1, "result": result, "beside": [1]} == answer
    assert ["tools/call", "tool1", {"a": [1, None, 1.5]}] in seen(folder)
    assert ["tool", "pending", "executing", "finished"] == happened(folder, "tool1")


async def test_guard_refuses_what_is_denied_and_the_server_never_hears_of_it(folder: Path) -> None:
    """The model is told by a result with isError."""
    async with guarding(folder) as host:
        await call(host, 1, "denied")
        answer = await host.answer(1)
    assert answer["result"]["isError"]
    assert "denied" not in [row[1] for row in seen(folder)]


async def test_guard_calls_with_the_arguments_that_were_approved(folder: Path) -> None:
    """Edited arguments replace the host's; everything else of the call stays."""
    async with guarding(folder) as host:
        await call(host, 1, "asked", {"a": 1}, other={"kept": True})
        await until_journal(folder, "asked", "waiting")
        mcp_parts.answer(folder, {"a": True})
        await host.answer(1)
    assert ["tools/call", "asked", {"a": True}] in seen(folder)


async def test_guard_lets_all_else_pass_while_a_call_waits(folder: Path) -> None:
    """Pings, other calls and requests are answered while somebody is being asked."""
    async with guarding(folder) as host:
        await call(host, 1, "asked")
        await until_journal(folder, "asked", "waiting")
        await host.send("ping", id=2)
        await call(host, 3, "tool0")
        await host.answer(2)
        await host.answer(3)
        assert host.find(1) is None
        mcp_parts.answer(folder)
        await host.answer(1)


async def test_guard_tells_the_gate_what_the_server_says_of_a_tool(folder: Path) -> None:
    """A tool that no listing has shown is looked up over all pages, unseen by the host, and again after a change."""
    async with guarding(folder) as host:
        await call(host, 1, "late")
        await host.answer(1)
        await call(host, 2, "late")
        await host.answer(2)
        await host.send("vendor/changed", id=3)
        await host.answer(3)
        await call(host, 4, "late")
        await host.answer(4)
        assert [] == [m for m in host.received if m and str(m.get("id")).startswith("agent-sse")]
    noted = [row[2] for row in journal(folder) if row[:2] == ["late", "tool"]]
    assert [{"readOnlyHint": True}] * 3 == noted
    listings = [row[1] for row in seen(folder) if row[0] == "tools/list"]
    assert [None, "1", "2"] * 2 == listings


async def test_guard_learns_from_the_hosts_own_listing(folder: Path) -> None:
    """A tool that the host has listed is not looked up again."""
    async with guarding(folder) as host:
        for request_id, cursor in ((1, {}), (2, {"cursor": "1"}), (3, {"cursor": "2"})):
            await host.send("tools/list", cursor, id=request_id)
            await host.answer(request_id)
        await call(host, 4, "late")
        await host.answer(4)
    assert 3 == len([row for row in seen(folder) if row[0] == "tools/list"])
    assert ["late", "tool", {"readOnlyHint": True}] in journal(folder)


async def test_guard_watches_progress_that_the_host_did_not_ask_for(folder: Path) -> None:
    """The gate hears of it, the host does not; a host that asks gets its own token and every field."""
    async with guarding(folder) as host:
        await call(host, 1, "progress")
        await host.answer(1)
        assert not [m for m in host.received if m.get("method") == "notifications/progress"]
        await call(host, 2, "progress", _meta={"progressToken": "mine"})
        await host.answer(2)
        (told,) = [m for m in host.received if m.get("method") == "notifications/progress"]
    assert {"progressToken": "mine", "progress": 1, "total": 2, "message": "half", "extra": True} == told["params"]
    assert 2 == journal(folder).count(["progress", "progress", 1, 2, "half"])


async def test_guard_reports_a_call_that_the_server_refuses(folder: Path) -> None:
    """A JSON-RPC error passes whole, and the call has failed."""
    async with guarding(folder) as host:
        await call(host, 1, "error")
        answer = await host.answer(1)
    assert {"code": -32000, "message": "as asked", "data": {"x": 1}} == answer["error"]
    assert 1 == answer["extra"]
    assert ["error", "failed", "as asked"] in journal(folder)


async def test_guard_runs_nothing_when_nobody_can_be_asked(folder: Path) -> None:
    """Without Redis a call fails closed with a result that says so, and everything else flows."""
    async with guarding(folder) as host:
        await call(host, 1, "unreachable")
        answer = await host.answer(1)
        await host.send("ping", id=2)
        await host.answer(2)
    assert answer["result"]["isError"]
    assert "Redis is away" in answer["result"]["content"][0]["text"]
    assert "unreachable" not in [row[1] for row in seen(folder)]


async def test_guard_gives_the_result_of_a_call_that_nobody_hears_the_end_of(folder: Path) -> None:
    """What has run has run: the host gets the result even if the browser does not."""
    async with guarding(folder) as host:
        await call(host, 1, "unreported")
        answer = await host.answer(1)
    assert "ran" == answer["result"]["content"][0]["text"]


# -- cancelling -------------------------------------------------------------------------------------------------------


async def test_guard_withdraws_the_question_when_the_host_cancels(folder: Path) -> None:
    """A call that is cancelled before it is approved never reaches the server, not even as a cancellation."""
    async with guarding(folder) as host:
        await call(host, 1, "asked")
        await until_journal(folder, "asked", "waiting")
        await host.send("notifications/cancelled", {"requestId": 1})
        await until_journal(folder, "asked", "withdrawn")
        await host.send("ping", id=2)
        await host.answer(2)
        assert host.find(1) is None
    assert not [row for row in seen(folder) if row[0] in {"tools/call", "notifications/cancelled"}]


async def test_guard_cancels_a_call_at_once_that_the_host_takes_back_at_once(folder: Path) -> None:
    """A cancellation right behind the call works, and the id is free again."""
    async with guarding(folder) as host:
        lines = [
            {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "asked"}},
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}},
        ]
        await host.write(*(json.dumps(line).encode() for line in lines))
        await host.send("ping", id=2)
        await host.answer(2)
        await call(host, 1, "tool0")
        assert "ran" in str(await host.answer(1))
    assert "asked" not in [row[1] for row in seen(folder)]


async def test_guard_passes_the_cancellation_of_a_running_call_on(folder: Path) -> None:
    """The server hears the host's own words."""
    async with guarding(folder) as host:
        await call(host, 1, "hang")
        await until(lambda: ["tools/call", "hang", {}] in seen(folder))
        await host.send("notifications/cancelled", {"requestId": 1, "reason": "mine"})
        await until(lambda: ["notifications/cancelled", 1, None] in seen(folder))
        await until_journal(folder, "hang", "cancelled")
        assert host.find(1) is None


async def test_guard_cancels_in_the_server_what_the_user_cancels(folder: Path) -> None:
    """The server is told, and the host gets a result that says who did it."""
    async with guarding(folder) as host:
        await call(host, 1, "stopped-hang")
        await until(lambda: ["tools/call", "stopped-hang", {}] in seen(folder))
        (folder / "stop").touch()
        answer = await host.answer(1)
    assert answer["result"]["isError"]
    assert "alice" in str(answer)
    assert ["notifications/cancelled", 1, None] in seen(folder)


async def test_guard_ends_a_call_that_takes_too_long(folder: Path) -> None:
    """After `call_timeout` the server is told to stop, the host gets an error result, and the call has failed."""
    async with guarding(folder, call_timeout=0.2) as host:
        await call(host, 1, "hang")
        answer = await host.answer(1)
    assert answer["result"]["isError"]
    assert "did not answer within 0.2 s" in str(answer)
    assert ["notifications/cancelled", 1, None] in seen(folder)
    assert "failed" in happened(folder, "hang")


async def test_guard_gives_a_call_more_time_at_each_progress(folder: Path) -> None:
    """A tool that tells how far it is has time from then on; what it says last is its last sign of life."""
    async with guarding(folder, call_timeout=0.5) as host:
        await call(host, 1, "progress-hang")
        answer = await host.answer(1)
    assert "did not answer within 0.5 s of its last sign of life" in str(answer)


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_guard_ends_with_its_host_and_withdraws_the_question(folder: Path) -> None:
    """When the host's pipe ends, a prompt does not stay, the tool has not run, and the status is 0."""
    async with guarding(folder) as host:
        await call(host, 1, "asked")
        await until_journal(folder, "asked", "waiting")
        assert 0 == await host.close()
    assert "withdrawn" in happened(folder, "asked")
    assert "asked" not in [row[1] for row in seen(folder)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_guard_ends_on_a_signal(folder: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT withdraw what is asked, cancel what runs, and end with status 0."""
    async with guarding(folder) as host:
        await call(host, 1, "asked")
        await call(host, 2, "hang")
        await until_journal(folder, "asked", "waiting")
        await until_journal(folder, "hang", "executing")
        host.process.send_signal(number)
        assert 0 == await host.end()
    assert "withdrawn" in happened(folder, "asked")
    assert "cancelled" in happened(folder, "hang")


@pytest.mark.parametrize("kind", ["plain", "deaf"])
async def test_guard_that_is_killed_leaves_no_server_behind(folder: Path, kind: str) -> None:
    """Even SIGKILL takes with it a server that ignores the end of its input and SIGTERM, and what that has started."""
    async with guarding(folder, kind) as host:
        assert processes_with(str(folder))
        host.process.kill()
        await host.end()


async def test_guard_ends_a_server_that_does_not_want_to(folder: Path) -> None:
    """A server that ignores the end of its input and SIGTERM is killed with all that it started."""
    async with guarding(folder, "deaf") as host:
        assert 0 == await host.close()
        assert {} == processes_with(str(folder))


# -- servers that misbehave -------------------------------------------------------------------------------------------


async def test_guard_says_that_the_server_crashed_at_once(folder: Path) -> None:
    """A server that does not even start is an error to the first request, with its status and last words; then 1."""
    async with guarding(folder, "crash-at-once") as host:
        await host.send("initialize", {"protocolVersion": "2025-11-25"}, id=1)
        assert 1 == await host.end()
    assert "ended with status 3" in host.errors
    assert "no configuration" in host.errors
    answers = [m for m in host.received if m]
    assert not answers or "status 3" in answers[0]["error"]["message"]


@pytest.mark.parametrize(
    ("tool", "how"),
    [
        ("crash", "ended with status 4; its last words: out of"),
        ("kill", "was ended by SIGKILL"),
        ("mute", "closed its output"),
    ],
)
async def test_guard_tells_every_request_that_the_server_crashed(folder: Path, tool: str, how: str) -> None:
    """All that waits is answered with an error, what ran has failed, what was asked about is withdrawn; then 1."""
    async with guarding(folder) as host:
        await call(host, 1, "asked")
        await call(host, 2, "hang")
        await host.send("vendor/hang", id=3)
        await until_journal(folder, "asked", "waiting")
        await until(lambda: ["tools/call", "hang", {}] in seen(folder))
        await call(host, 4, tool)
        assert 1 == await host.end()
    answers = {m["id"]: m["error"] for m in host.received if m and "error" in m}
    assert {1, 2, 3, 4} == set(answers)
    assert all(how in error["message"] and -32000 == error["code"] for error in answers.values())
    assert "\x1b" not in str(answers)
    assert "withdrawn" in happened(folder, "asked")
    assert "failed" in happened(folder, "hang")
    assert "failed" in happened(folder, tool)


async def test_guard_drops_garbage_and_goes_on(folder: Path) -> None:
    """What is no message on the server's output is dropped, with a bounded number of lines to say so."""
    async with guarding(folder) as host:
        await call(host, 1, "garbage")
        answer = await host.answer(1)
    assert "after all" == answer["result"]["content"][0]["text"]
    assert 2 < host.errors.count("dropped what the MCP server wrote") < 15
    assert "\x1b" not in host.errors


async def test_guard_masks_secrets_in_what_it_says_of_a_server(folder: Path) -> None:
    """Neither the log nor the host is told a credential that a server writes where no message belongs."""
    async with guarding(folder) as host:
        await call(host, 1, "confess")
        answer = await host.answer(1)
        assert 1 == await host.end()
    assert "cannot log in with password=" in str(answer)
    assert "hunter2" not in str(answer)
    said = [line for line in host.errors.splitlines() if "dropped" in line or "last words" in line]
    assert [] == [line for line in said if "hunter2" in line or "sk-proj" in line]
    assert 2 <= len(said)


async def test_guard_passes_a_large_result_whole(folder: Path) -> None:
    """50 MB reach the host to the last byte, and the gate is handed them as well."""
    async with guarding(folder) as host:
        await call(host, 1, "large")
        answer = await host.answer(1)
    assert 50_000_000 == len(answer["result"]["content"][0]["text"])
    assert [row[2] > 50_000_000 for row in journal(folder) if row[:2] == ["large", "finished"]] == [True]


async def test_guard_refuses_a_result_over_the_limit(folder: Path) -> None:
    """An answer that is longer than a message may be is an error that says so, the call has failed, and all goes on."""
    async with guarding(folder) as host:
        await call(host, 1, "toolarge")
        answer = await host.answer(1)
        await call(host, 2, "tool0")
        await host.answer(2)
    assert "too long" in answer["error"]["message"]
    assert "failed" in happened(folder, "toolarge")


async def test_guard_says_of_an_answer_that_it_cannot_be_read(folder: Path) -> None:
    """Nobody waits for ever for an answer that is no UTF-8."""
    async with guarding(folder) as host:
        await call(host, 1, "unreadable")
        answer = await host.answer(1)
    assert "is not JSON" in answer["error"]["message"]
    assert "failed" in happened(folder, "unreadable")


async def test_guard_passes_a_version_on_that_nobody_knows(folder: Path) -> None:
    """Which versions do is for host and server to say, not for what stands between them."""
    async with guarding(folder, "version") as host:
        assert "1999-01-01" == host.find("init")["result"]["protocolVersion"]


async def test_guard_takes_no_answer_to_a_call_that_the_server_has_not_got(folder: Path) -> None:
    """A server that answers in advance decides nothing: the call still waits for permission."""
    async with guarding(folder, "early") as host:
        await call(host, 1, "asked")
        await until_journal(folder, "asked", "waiting")
        await host.send("ping", id=2)
        await host.answer(2)
        assert host.find(1) is None
        mcp_parts.answer(folder)
        assert "ran" in str(await host.answer(1))


async def test_guard_survives_a_server_that_talks_without_end_to_its_errors(folder: Path) -> None:
    """More noise than a pipe holds on standard error passes and holds nothing up."""
    async with guarding(folder, "loud") as host:
        await call(host, 1, "tool0")
        await host.answer(1)
        await host.until(lambda: host.errors.count("noise") == 20_000)


async def test_guard_says_that_there_is_no_such_command(folder: Path) -> None:
    """A command that does not exist is one clear line and status 2."""
    async with RawHost(mcp_parts.guard_command(folder, command=["no-such-command-here"])) as host:
        assert 2 == await host.end()
    assert "there is no command no-such-command-here" in host.errors


async def test_guard_reads_a_file_and_writes_one(folder: Path) -> None:
    """Standard input and output may be files: what is asked in one is answered in the other."""
    (folder / "in").write_bytes(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
    command = mcp_parts.guard_command(folder, command=hostile("plain"))
    environment = {**os.environ, "SEEN": str(folder / "seen")}
    with (folder / "in").open("rb") as asked, (folder / "out").open("wb") as answered:
        process = await asyncio.create_subprocess_exec(*command, stdin=asked, stdout=answered, env=environment)
        assert 0 == await process.wait()
    assert {"jsonrpc": "2.0", "id": 1, "result": {}} == json.loads((folder / "out").read_bytes())


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("npx -y @modelcontextprotocol/server-filesystem /tmp", "@modelcontextprotocol/server-filesystem"),
        ("npx -y @evil/server-filesystem@1.2 /tmp", "@evil/server-filesystem"),
        ("npx --package=@a/b run-it", "@a/b"),
        ("npx -y -p @a/b@2 run-it", "@a/b"),
        ("npm exec --yes @a/b -- x", "@a/b"),
        ("npx github:user/server", "github:user/server"),
        ("npx", "npx"),
        ("uvx mcp-server-git@2026.10 --repository .", "mcp-server-git"),
        ("uvx --from mcp-server[cli]==1.0 run-it", "mcp-server"),
        ("uvx --from git+https://me:secret@example.com/a/b@v1 run-it", "example.com/a/b"),
        ("uvx --python 3.12 --with x mcp-server-git", "mcp-server-git"),
        ("uv run server.py", "server"),
        ("uv --directory /srv/notes run server.py", "server"),
        ("python -m mcp_server_time", "mcp_server_time"),
        ("python3.11 -W error -m mcp_server_time", "mcp_server_time"),
        ("/usr/bin/python3 /srv/weather.py", "weather"),
        ("/usr/bin/python3 /srv/weather/main.py", "weather"),
        ("node --require ./x.js /srv/node_modules/@scope/server-git/dist/index.js stdio", "@scope/server-git"),
        ("node /srv/node_modules/server-git/dist/index.js stdio", "server-git"),
        ("docker run -i --rm mcp/fetch", "mcp/fetch"),
        ("docker run -i -v /a:/b -e KEY=1 --name x --network=host -p 1:2 reg.io:5000/mcp/fetch:1@sha256:ab c",
         "reg.io:5000/mcp/fetch"),
        ("podman run --mount type=bind,src=a,dst=b -w /x -u 1 --entrypoint sh image:latest", "image"),
        ("env A=1 -u B npx -y @a/b", "@a/b"),
        ("./server", "server"),
        ("/usr/local/bin/server", "server"),
    ],
)  # fmt: skip
def test_guard_names_a_server_after_its_command(command: str, name: str) -> None:
    """The name that rules trust comes from the command, never from the server."""
    assert name == default_name(command.split())


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.com/mcp", "example.com/mcp"),
        ("https://me:secret@example.com:8443/a/mcp/?key=secret#x", "example.com:8443/a/mcp"),
        ("http://example.com:80/", "example.com"),
        ("http://[::1]:9000/mcp", "[::1]:9000/mcp"),
    ],
)
def test_guard_names_a_url_after_its_place(url: str, name: str) -> None:
    """Servers at one host are told apart, and nothing that may be secret is in the name."""
    assert name == url_name(url)


def test_guard_tells_programs_of_one_name_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other words, another folder or another URL is another program; the same again is the same."""
    made = [identity_of(["./server", "a"], None), identity_of(["./server", "b"], None), identity_of([], "http://a/")]
    again = identity_of(["./server", "a"], None)
    monkeypatch.chdir(folder)
    assert 4 == len({*made, identity_of(["./server", "a"], None)})
    assert made[0] == again


# -- what is known of the tools ---------------------------------------------------------------------------------------


class Listing:
    """A server that lists one tool, and how often it has."""

    def __init__(self) -> None:
        self.tools = tools.Tools(self.ask)
        self.count = 0

    async def ask(self, method: str, *_: Any) -> messages.Message:
        self.count += 1
        annotations = {"readOnlyHint": self.count == 1}
        return messages.result(1, {"tools": [{"name": "known", "annotations": annotations}]})

    async def find(self, name: str) -> Tool:
        return await self.tools.find(name, messages.make({"id": 1, "method": "tools/call"}))


async def test_guard_does_not_list_again_for_each_call_of_a_tool_that_is_not_there() -> None:
    """A name that no listing has is looked for once in a while, and again when the tools have changed."""
    listing = Listing()
    assert [Tool("none")] * 3 == [await listing.find("none") for _ in range(3)]
    assert 1 == listing.count
    listing.tools.forget()
    await listing.find("none")
    assert 2 == listing.count


async def test_guard_believes_a_listing_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that is stale is asked for anew, and what it says now counts."""
    listing = Listing()
    first = [await listing.find("known") for _ in range(2)]
    assert 1 == listing.count
    monkeypatch.setattr(tools, "FRESH", 0.0)
    listing.tools.forget()
    await listing.find("known")
    monkeypatch.setattr(tools, "FRESH", 60.0)
    last = await listing.find("known")
    assert ([{"readOnlyHint": True}] * 2, {"readOnlyHint": False}) == ([t.annotations for t in first], last.annotations)
    assert 3 == listing.count
