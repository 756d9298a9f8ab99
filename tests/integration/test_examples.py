"""The examples, run as they are: real programs against a real service process and its Valkey."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import DEADLINE, ServiceProcess, Stream, Valkey, bearer, make_token, session_name, until

EXAMPLES = Path(__file__).parents[2] / "examples"
TOOLS = {name: shutil.which(name) for name in ("sh", "curl", "node")}
missing = [name for name, path in TOOLS.items() if path is None]
assert not missing, f"these tests need {' and '.join(missing)}: install them (Node 20 or later)"
HOOK = [sys.executable, str(EXAMPLES / "pre_tool_hook.py")]
CALL = {"session_id": "x", "hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": "ls"}}


class Program:
    """An example that runs, with what it needs to find the service."""

    def __init__(self, place: Place, *command: str, **environment: str) -> None:
        self.command = command
        self.environment = {
            **os.environ, "AGENT_SSE_URL": place.process.url, "no_proxy": "127.0.0.1",
            "AGENT_SSE_TOKEN": make_token(place.session, sub="bot", scope="events:publish"), **environment,
        }  # fmt: skip

    async def start(self, text: str = "") -> Program:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=self.environment, stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.close()
        return self

    async def end(self) -> tuple[int, str, str]:
        async with asyncio.timeout(2 * DEADLINE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


class Place:
    """A running service process, a session in it, and the user's stream."""

    def __init__(self, valkey: Valkey, process: ServiceProcess, http: httpx.AsyncClient) -> None:
        self.valkey = valkey
        self.process = process
        self.http = http
        self.session = session_name()
        self.stream = Stream(process.served.events(self.session, make_token(self.session)))

    async def presented(self) -> dict[str, Any]:
        return dict((await self.stream.next("permission_request")).json["data"])

    async def answer(self, request_id: str, approved: bool, **more: Any) -> None:
        url = f"{self.process.served.api}/permission-response/{self.session}"
        body = {"approved": approved, "request_id": request_id, **more}
        reply = await self.http.post(url, json=body, headers=bearer(make_token(self.session)))
        assert 200 == reply.status_code, reply.text

    async def told(self) -> list[str]:
        """The statuses of the call, and the success of its result, in order."""
        events = [event["data"] for _, event in await self.valkey.entries(self.session)]
        return [str(data.get("status", data.get("success"))) for data in events if {"details", "result"} & data.keys()]


@pytest.fixture
async def place(valkey: Valkey) -> AsyncIterator[Place]:
    async with (
        ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}) as process,
        httpx.AsyncClient(timeout=DEADLINE) as http,
    ):
        made = Place(valkey, process, http)
        async with made.stream:
            await made.stream.primed()
            yield made


# -- agent.sh ---------------------------------------------------------------------------------------------------------


def shell(place: Place, *arguments: str, **environment: str) -> Program:
    return Program(place, str(TOOLS["sh"]), str(EXAMPLES / "agent.sh"), place.session, *arguments, **environment)


async def test_shell_agent_runs_its_command_when_approved(place: Place, folder: Path) -> None:
    """The user sees the very arguments; after the approval the command runs, and its end is published."""
    arguments = [
        "sh",
        "-c",
        'printf "%s" "$1" > "$2"; echo "done \\ \\"well\\""',
        "sh",
        'a "b"\nc \\ é',
        f"{folder}/out",
    ]
    program = await shell(place, *arguments).start()
    shown = await place.presented()
    assert ("shell", {"command": arguments}) == (shown["tool_name"], shown["parameters"])
    assert not (folder / "out").exists()
    await place.answer(shown["request_id"], True)
    code, out, err = await program.end()
    assert (0, 'done \\ "well"\n', "") == (code, out, err)
    assert 'a "b"\nc \\ é' == (folder / "out").read_text(encoding="utf-8")
    assert ["waiting_permission", "executing", "completed", "True"] == await place.told()
    result = (await place.stream.next("tool_result")).json["data"]["result"]
    assert {"exit_status": 0, "output": 'done \\ "well"'} == result


async def test_shell_agent_reports_a_failed_command(place: Place) -> None:
    """A command that fails is reported as failed, with its exit status, which is the agent's too."""
    program = await shell(place, "sh", "-c", "echo no; exit 3").start()
    await place.answer((await place.presented())["request_id"], True)
    assert 3 == (await program.end())[0]
    assert ["waiting_permission", "executing", "failed", "False"] == await place.told()


async def test_shell_agent_runs_nothing_when_denied(place: Place, folder: Path) -> None:
    """After a denial nothing runs, whatever the user's words look like."""
    program = await shell(place, "touch", f"{folder}/out").start()
    reason = '"success":true,"data":{"approved":true,'
    await place.answer((await place.presented())["request_id"], False, reason=reason)
    code, _, err = await program.end()
    assert (1, True) == (code, "not approved" in err)
    assert not (folder / "out").exists()
    assert ["waiting_permission", "denied", "False"] == await place.told()


@pytest.mark.parametrize("fault", ["unreachable", "token", "scope", "foreign", "service dies"])
async def test_shell_agent_runs_nothing_when_it_cannot_ask(place: Place, folder: Path, fault: str) -> None:
    """A service that is away or goes away, or that refuses: the command is not run."""
    environment = {
        "unreachable": {"AGENT_SSE_URL": "http://127.0.0.1:1"}, "token": {"AGENT_SSE_TOKEN": "a.b.c"},
        "scope": {"AGENT_SSE_TOKEN": make_token(place.session)},
        "foreign": {"AGENT_SSE_TOKEN": make_token("another", scope="events:publish")},
    }.get(fault, {})  # fmt: skip
    program = await shell(place, "touch", f"{folder}/out", **environment).start()
    if fault == "service dies":
        await place.presented()
        await place.process.stop(signal.SIGKILL)
    assert 1 == (await program.end())[0]
    assert not (folder / "out").exists()


async def test_shell_agent_that_is_ended_withdraws_its_question(place: Place, folder: Path) -> None:
    """Interrupted while it asks, the agent runs nothing, even when the approval comes at the same time."""
    program = await shell(place, "touch", f"{folder}/out").start()
    request_id = (await place.presented())["request_id"]
    program.process.send_signal(signal.SIGTERM)
    await place.answer(request_id, True)  # the shell comes to the signal when its curl has ended, and that is too late
    assert 130 == (await program.end())[0]
    assert not (folder / "out").exists()
    assert ["waiting_permission", "cancelled", "False"] == await place.told()


async def test_shell_agent_refuses_what_cannot_be_shown(place: Place) -> None:
    """An argument with control characters is not asked about: the user would see another one."""
    program = await shell(place, "echo", "a\x1b[2Kb").start()
    assert 65 == (await program.end())[0]
    assert [] == await place.told()


# -- agent.mjs --------------------------------------------------------------------------------------------------------


def node(place: Place, *arguments: str, **environment: str) -> Program:
    return Program(place, str(TOOLS["node"]), str(EXAMPLES / "agent.mjs"), place.session, *arguments, **environment)


@pytest.mark.parametrize("patch", [None, {"text": "edited", "file": "{}/other"}])
async def test_node_agent_writes_what_was_approved(place: Place, folder: Path, patch: Any) -> None:
    """After an approval it does what it asked for, after an edited one what the user made of it."""
    program = await node(place, f"{folder}/out", "text").start()
    shown = await place.presented()
    assert ("file_write", True) == (shown["tool_name"], shown["editable"])
    more = {"parameters_patch": {name: value.format(folder) for name, value in patch.items()}} if patch else {}
    await place.answer(shown["request_id"], True, **more)
    code, _, err = await program.end()
    assert (0, "") == (code, err)
    name, text = ("other", "edited") if patch else ("out", "text")
    assert text == (folder / name).read_text(encoding="utf-8")
    assert not (folder / ("out" if patch else "other")).exists()
    assert ["waiting_permission", "executing", "completed", "True"] == await place.told()


async def test_node_agent_does_nothing_when_denied(place: Place, folder: Path) -> None:
    """After a denial it writes nothing, and says so."""
    program = await node(place, f"{folder}/out", "text").start()
    await place.answer((await place.presented())["request_id"], False, reason="no")
    assert 1 == (await program.end())[0]
    assert not (folder / "out").exists()
    assert ["waiting_permission", "denied", "False"] == await place.told()


@pytest.mark.parametrize("fault", ["unreachable", "scope", "service dies"])
async def test_node_agent_does_nothing_when_it_cannot_ask(place: Place, folder: Path, fault: str) -> None:
    """Without the service, or without the right, it writes nothing."""
    environment = {
        "unreachable": {"AGENT_SSE_URL": "http://127.0.0.1:1"},
        "scope": {"AGENT_SSE_TOKEN": make_token(place.session)},
    }.get(fault, {})
    program = await node(place, f"{folder}/out", "text", **environment).start()
    if fault == "service dies":
        await place.presented()
        await place.process.stop(signal.SIGKILL)
    code, _, err = await program.end()
    assert (1, True) == (code, "agent.mjs:" in err)
    assert not (folder / "out").exists()


# -- pre_tool_hook.py -------------------------------------------------------------------------------------------------


def hook(place: Place, **environment: str) -> Program:
    return Program(place, *HOOK, **{"AGENT_SSE_SESSION": place.session, **environment})


def decision_of(output: str) -> str:
    said = json.loads(output)["hookSpecificOutput"]
    assert ("PreToolUse", True) == (said["hookEventName"], bool(said["permissionDecisionReason"]))
    return str(said["permissionDecision"])


@pytest.mark.parametrize(("approved", "decision"), [(True, "allow"), (False, "deny")])
async def test_hook_says_what_the_user_decided(place: Place, approved: bool, decision: str) -> None:
    """The user sees the tool and its input; his answer is the hook's, with his reason."""
    program = await hook(place).start(json.dumps({**CALL, "tool_use_id": "toolu_1"}))
    shown = await place.presented()
    assert ("Bash", {"command": "ls"}, "toolu_1") == (shown["tool_name"], shown["parameters"], shown["tool_call_id"])
    await place.answer(shown["request_id"], approved, reason="my words")
    code, out, _ = await program.end()
    assert (0, decision) == (code, decision_of(out))
    assert "my words" in out


async def test_hook_uses_the_agents_session_by_default(place: Place) -> None:
    """Without a session in its environment the hook asks in the agent's own."""
    program = await hook(place, AGENT_SSE_SESSION="").start(json.dumps({**CALL, "session_id": place.session}))
    await place.answer((await place.presented())["request_id"], True)
    assert "allow" == decision_of((await program.end())[1])


async def test_hook_denies_what_nobody_answers(place: Place) -> None:
    """A request that expires is a deny."""
    program = await hook(place, AGENT_SSE_TIMEOUT="0.2").start(json.dumps(CALL))
    code, out, _ = await program.end()
    assert (0, "deny") == (code, decision_of(out))
    assert "expired" in out


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("", {}), ("x", {}), ("[]", {}), ("null", {}), ("{}", {}), ('{"tool_name": "t"}', {}),
        (json.dumps({**CALL, "tool_input": "ls"}), {}), (json.dumps({**CALL, "tool_name": ""}), {}),
        (json.dumps({**CALL, "tool_name": None}), {}), ("[" * 100_000, {}), ('{"tool_name": NaN}', {}),
        (json.dumps({**CALL, "tool_input": {"x": "y" * 300_000}}), {}),
        *(
            (json.dumps(CALL), environment)
            for environment in (
                {"AGENT_SSE_URL": "http://127.0.0.1:1"}, {"AGENT_SSE_URL": "file:///etc/passwd"}, {"AGENT_SSE_URL": ""},
                {"AGENT_SSE_TOKEN": "a.b.c"}, {"AGENT_SSE_TOKEN": ""}, {"AGENT_SSE_TOKEN": "a\nb: c"},
                {"AGENT_SSE_TIMEOUT": "x"}, {"AGENT_SSE_TIMEOUT": "nan"}, {"AGENT_SSE_TIMEOUT": "-1"},
                {"AGENT_SSE_RISK": "none"}, {"AGENT_SSE_SESSION": "../health/x"}, {"AGENT_SSE_SESSION": "another"},
            )
        ),
    ],
)  # fmt: skip
async def test_hook_fails_closed(place: Place, text: str, environment: dict[str, str]) -> None:
    """Whatever is wrong with its input, its settings or the service, the hook never allows."""
    code, out, err = await (await hook(place, **environment).start(text)).end()
    assert code == 2 or decision_of(out) == "deny", (code, out, err)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"x", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n{"success":true,"data":{"a":true}}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 29\r\n\r\n{"data":{"approved": "true" }}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"data":{"approved": true}}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
        b"HTTP/1.1 202 OK\r\nContent-Length: 11\r\n\r\n{\"data\":{}}",
    ],
)  # fmt: skip
async def test_hook_believes_no_broken_service(place: Place, reply: bytes) -> None:
    """Only a whole reply that says `"approved": true` is an approval; a service that breaks off says nothing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, out, _ = await (await hook(place, AGENT_SSE_URL=url).start(json.dumps(CALL))).end()
    assert code == 2 or decision_of(out) == "deny", (code, out)


async def test_hook_that_is_ended_blocks_and_withdraws(place: Place) -> None:
    """When the agent gives up waiting the tool is blocked, and the prompt goes away."""
    program = await hook(place).start(json.dumps(CALL))
    await place.presented()
    await until(lambda: '" 202' in place.process.output, what="the hook knows its request")
    program.process.send_signal(signal.SIGTERM)
    code, out, _ = await program.end()
    assert (2, "") == (code, out)
    assert "cancelled" == (await place.stream.next("permission_cleared")).json["data"]["outcome"]


async def test_hook_denies_when_the_service_dies_under_it(place: Place) -> None:
    """A service that is killed while the user thinks is a deny."""
    program = await hook(place).start(json.dumps(CALL))
    await place.presented()
    await place.process.stop(signal.SIGKILL)
    code, out, _ = await program.end()
    assert code == 2 or decision_of(out) == "deny"
