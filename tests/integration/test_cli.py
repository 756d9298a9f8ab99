"""The `agent-sse` command as its users run it: real processes, a real Valkey, pipes and a pseudo-terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_sse import cli
from agent_sse.lines import REASON_LIMIT
from harness import (
    DEADLINE,
    PREFIX,
    SECRET,
    ServiceProcess,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    processes_with,
    serve,
    until,
)

HOSTILE = "rm\x1b[2J\u202e[bold red]x[/]\u2028\nid"
LARGE = json.dumps({"type": "tool_result", "data": {"tool_name": "t", "success": True, "result": "x" * 2**18}})
STATUS = '{"type": "tool_status", "data": {"tool_name": "search", "status": "executing"}}'


def environment_of(**settings: str) -> dict[str, str]:
    """The environment of a command: this process's, without its settings, and with those given."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_SSE_")}
    return {**mine, "COLUMNS": "200", **{f"AGENT_SSE_{name.upper()}": value for name, value in settings.items()}}


async def command(*arguments: str, stdin: bytes = b"", **settings: str) -> tuple[int, str, str]:
    """Run `agent-sse` to its end; return status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_sse", *arguments, env=environment_of(**settings), cwd="/",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DEADLINE):
            output, errors = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command in this process, for the many that end before they do anything; return the line it ends with."""

    def run(*arguments: str, **settings: str) -> str:
        monkeypatch.chdir("/")
        monkeypatch.setattr(sys, "argv", ["agent-sse", *arguments])
        for name, value in settings.items():
            monkeypatch.setenv(f"AGENT_SSE_{name.upper()}", value)
        with pytest.raises(SystemExit) as end:
            cli.main()
        output, errors = capsys.readouterr()
        assert (2, "") == (end.value.code, output)
        *before, last = errors.splitlines()
        assert all(not line.startswith(("agent-sse:", "Traceback")) for line in before)
        return last

    return run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


# -- serve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_with_status_0_when_told_to(valkey: Valkey, number: int) -> None:
    """SIGTERM (Docker, systemd) and SIGINT (Ctrl-C) are not failures, also with a stream open."""
    service = ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url})
    async with service:
        async with Stream(service.served.events("s1", make_token("s1"))) as stream:
            await stream.primed()
            assert 0 == await service.stop(number)
            await stream.end()
        assert "Traceback" not in service.output


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
@pytest.mark.parametrize("wanted", [True, False])
async def test_serve_writes_a_line_for_each_request_if_wanted(
    valkey: Valkey, workers: tuple[str, ...], wanted: bool
) -> None:
    """`--no-access-log` leaves these lines out and no others; without a word they are there."""
    arguments = workers if wanted else (*workers, "--no-access-log")
    async with (
        ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}, arguments=arguments) as service,
        Stream(service.served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        assert 0 == await service.stop()
    assert wanted == (f'"GET {PREFIX}/events/s1' in service.output)
    assert "Application shutdown complete" in service.output


async def test_serve_keeps_embedded_data_and_leaves_nothing_running(folder: Path) -> None:
    """Without a Redis URL the events survive a restart, and the embedded Valkey goes with the service."""
    settings = {"AGENT_SSE_STATE_DIR": str(folder)}
    service = ServiceProcess(settings)
    async with service:
        status, first, errors = await command("publish", "s1", STATUS, state_dir=str(folder))
        assert (0, "") == (status, errors)
        assert 2 <= len(processes_with(str(folder))), "the service and its Valkey"
        assert 0 == await service.stop()
    assert {} == processes_with(str(folder))
    async with ServiceProcess(settings) as service:
        async with Stream(service.served.events("s1", make_token("s1"), cursor="0-0")) as stream:
            assert first.strip() == (await stream.next()).id
        assert 0 == await service.stop()
    assert {} == processes_with(str(folder))


async def test_serve_with_workers_serves_and_ends_whole(folder: Path) -> None:
    """Two workers share one embedded Valkey; SIGTERM to the parent ends all; tokens are blank in their logs."""
    service = ServiceProcess({"AGENT_SSE_STATE_DIR": str(folder)}, arguments=("--workers", "2"))
    token = make_token("s1")
    async with service:
        async with httpx.AsyncClient(base_url=service.url, timeout=DEADLINE) as client:
            response = await client.get(f"{PREFIX}/health/s1?token={token}")
            assert 401 == response.status_code
        async with Stream(service.served.events("s1", token)) as stream:
            await stream.primed()
            status, event_id, _ = await command("publish", "s1", STATUS, state_dir=str(folder))
            assert 0 == status
            assert event_id.strip() == (await stream.next()).id
            await until(lambda: service.output.count("Application startup complete") == 2, what="two workers")
            assert 4 <= len(processes_with(str(folder))), "the parent, two workers and their Valkey"
            assert 0 == await service.stop()
            await stream.end()
    assert {} == processes_with(str(folder))
    assert "token=***" in service.output
    assert token not in service.output
    assert "Traceback" not in service.output


async def test_serve_workers_end_with_their_killed_parent(folder: Path) -> None:
    """A parent that is killed leaves neither workers nor a Valkey behind."""
    service = ServiceProcess({"AGENT_SSE_STATE_DIR": str(folder)}, arguments=("--workers", "2"))
    async with service:
        await until(lambda: service.output.count("Application startup complete") == 2, what="two workers")
        assert 4 <= len(processes_with(str(folder))), "the parent, two workers and their Valkey"
        assert -signal.SIGKILL == await service.stop(signal.SIGKILL)  # returns when nobody holds its output any more
    await until(lambda: not processes_with(str(folder)), what="end of the Valkey")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "AGENT_SSE_JWT_SECRET is missing"),
        ({"jwt_secret": "short"}, "AGENT_SSE_JWT_SECRET is too short"),
        ({"jwt_secret": SECRET, "redis_url": "http://x"}, "AGENT_SSE_REDIS_URL is not usable"),
        ({"jwt_secret": SECRET, "port": "many"}, "AGENT_SSE_PORT"),
        ({"jwt_secret": SECRET, "redis_url": "redis://x", "host": "no.such.host.invalid"}, "cannot listen on"),
        ({"jwt_secret": SECRET, "state_dir": "/dev/null/x"}, "AGENT_SSE_STATE_DIR"),
    ],
)
def test_serve_refuses_wrong_settings_in_one_line(
    refused: Callable[..., str], settings: dict[str, str], words: str
) -> None:
    """What is wrong with the settings is said in one line, with status 2 and no traceback."""
    line = refused("serve", **settings)
    assert line.startswith("agent-sse: ")
    assert words in line


async def test_serve_refuses_as_a_process() -> None:
    """The same as its user sees it: nothing on standard output, one line of errors, status 2."""
    status, output, errors = await command("serve", jwt_secret="short")
    assert (2, "") == (status, output)
    assert re.fullmatch(r"agent-sse: AGENT_SSE_JWT_SECRET is too short: [^\n]+\n", errors), errors


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_serve_says_that_its_port_is_taken(workers: str) -> None:
    """A port in use is one line and status 2."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        status, _, errors = await command(
            "serve", "--port", port, "--workers", workers, redis_url="redis://127.0.0.1:1", jwt_secret=SECRET
        )
    assert 2 == status
    assert re.fullmatch(rf"agent-sse: cannot listen on 127\.0\.0\.1:{port}: [^\n]+\n", errors), errors


async def test_serve_explains_a_valkey_that_does_not_start(folder: Path) -> None:
    """What is found out only while starting is one line in the log too, not a traceback, and a failure."""
    (folder / "appendonlydir").write_text("not a directory")
    status, output, errors = await command("serve", "--port", "0", jwt_secret=SECRET, state_dir=str(folder))
    assert 1 == status
    assert "the embedded Valkey stopped at once" in errors
    assert "Traceback" not in output + errors


async def test_serve_dev_makes_a_secret_that_the_other_commands_use(folder: Path) -> None:
    """`--dev` prints a URL with a good token in its fragment; `token` signs with the same secret, also next time."""
    service = ServiceProcess({"AGENT_SSE_STATE_DIR": str(folder), "AGENT_SSE_JWT_SECRET": ""}, arguments=("--dev",))
    kept = set()
    for _ in range(2):
        service.lines.clear()
        async with service:
            assert "DEVELOPMENT MODE" in service.output
            url = re.search(r"(http://127\.0\.0\.1:\d+)/#session=dev&token=(\S+)", service.output)
            assert url
            assert service.url == url[1]
            status, printed, errors = await command("token", "--sub", "x", "--session", "dev", state_dir=str(folder))
            assert (0, 1) == (status, len(errors.splitlines()))
            async with httpx.AsyncClient(base_url=service.url) as client:
                for token in (url[2], printed.strip()):
                    response = await client.get(f"{PREFIX}/health/dev", headers=bearer(token))
                    assert 200 == response.status_code
            kept.add((folder / "dev-secret").read_text())
            assert 0o600 == (folder / "dev-secret").stat().st_mode & 0o777
            assert 0 == await service.stop()
    assert 1 == len(kept)
    assert not any(secret in service.output for secret in kept)
    (folder / "dev-secret").chmod(0o644)
    status, _, errors = await command("token", "--sub", "x", state_dir=str(folder))
    assert 2 == status
    assert "can be read by others" in errors


# -- token ------------------------------------------------------------------------------------------------------------


async def test_token_prints_a_token_and_nothing_else(valkey: Valkey) -> None:
    """Its output is the token, which the service accepts for the sessions and rights it was made for."""
    status, output, errors = await command(
        "token", "--sub", "alice", "--session", "s1", "--session", "s2", "--scope", "events:read", jwt_secret=SECRET
    )
    assert (0, "") == (status, errors)
    token = output.removesuffix("\n")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token)
    async with ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}) as service, httpx.AsyncClient() as client:
        api = service.served.api
        statuses = [
            (await client.get(f"{api}/health/{session}", headers=bearer(token))).status_code
            for session in ("s1", "s2", "s3")
        ]
        assert [200, 200, 403] == statuses
        answer = await client.post(f"{api}/permission-response/s1", headers=bearer(token), json={"approved": True})
        assert 403 == answer.status_code
        await service.stop()


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((), {}, "set AGENT_SSE_JWT_SECRET"),
        ((), {"jwt_secret": "short"}, "too short"),
        ((), {"jwt_algorithm": "RS256"}, "RS256"),
        (("--session", "a/b"), {"jwt_secret": SECRET}, "session id"),
        (("--ttl", "-1"), {"jwt_secret": SECRET}, "lifetime"),
        (("--ttl", "nan"), {"jwt_secret": SECRET}, "lifetime"),
    ],
)
def test_token_refuses_in_one_line(
    refused: Callable[..., str], folder: Path, arguments: tuple[str, ...], settings: dict[str, str], words: str
) -> None:
    """What cannot be signed is one line on standard error, and nothing where the token would be."""
    line = refused("token", "--sub", "alice", *arguments, state_dir=str(folder), **settings)
    assert line.startswith("agent-sse: ")
    assert words in line


# -- publish ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sink")
async def test_publish_prints_the_id_of_an_event_that_arrives(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each publishable type reaches an open stream under the printed id, with what was left out filled in."""
    monkeypatch.chdir("/")
    monkeypatch.setenv("AGENT_SSE_REDIS_URL", valkey.url)
    given: list[dict[str, Any]] = [
        json.loads(STATUS),
        {
            "type": "tool_status",
            "data": {
                "tool_name": "t", "status": "completed", "tool_call_id": "c", "timestamp": "2026-01-31T13:00:00+01:00",
                "details": {"parameters": {"a": 1}, "risk_level": "high", "mine": [1], "progress": {"progress": 0.5}},
            },
        },
        {"type": "tool_result", "data": {"tool_name": "t", "success": True, "result": {"n": 10**20}}},
        {"type": "result_cleared", "data": {}},
        {"type": "error", "message": "off", "code": "model_unavailable"},
    ]  # fmt: skip
    async with (
        serve(make_settings(valkey.url)) as served,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        events = []
        for number, event in enumerate(given):
            body = json.dumps(event).encode()
            if number == 0:  # one as a process; the others need not pay for its start
                status, output, errors = await command("publish", "s1", "-", stdin=body, redis_url=valkey.url)
                assert (0, "") == (status, errors)
            else:
                output = await cli._publish("s1", body)
            arrived = await stream.next()
            assert output.strip() == arrived.id
            events.append(arrived.json)
    first, second, result, cleared, error = events
    assert "search" == first["data"]["tool_call_id"]
    assert {"parameters": {}, "risk_level": "low", "start_time": first["data"]["timestamp"]} == first["data"]["details"]
    assert "2026-01-31T12:00:00.000Z" == second["data"]["timestamp"] == second["data"]["details"]["start_time"]
    assert ({"a": 1}, [1], {"progress": 0.5}) == tuple(
        second["data"]["details"][name] for name in ("parameters", "mine", "progress")
    )
    assert ({"n": 10**20}, True, "t") == tuple(result["data"][name] for name in ("result", "success", "tool_call_id"))
    assert None is cleared["data"]["tool_call_id"]
    assert given[-1] == error


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ('{"type": "permission_request", "data": {}}', "reserved_type"),
        ('{"type": "permission_response_result", "data": {}}', "reserved_type"),
        ('{"type": "heartbeat"}', "reserved_type"),
        ('{"type": "tool_status", "data": {"tool_name": "t"}}', "data.status"),
        ('{"type": "tool_status", "data": {"tool_name": "t", "status": "done"}}', "data.status"),
        ('{"type": "tool_status", "data": {"tool_name": "", "status": "pending"}}', "tool_name"),
        ('{"type": "tool_status", "data": {"tool_name": 1, "status": "pending"}}', "data.tool_name"),
        ('{"type": "tool_status", "data": {"tool_name": "t", "status": "pending", "x": 1}}', "data.x"),
        ('{"type": "tool_result", "data": {"tool_name": "t", "success": 1}}', "data.success"),
        ('{"type": "tool_result", "data": {"tool_name": "t", "success": true, "timestamp": "now"}}', "data.timestamp"),
        ('{"type": "tool_result", "data": []}', "data"),
        ('{"type": "error", "data": {}}', "message"),
        ('{"type": "result_cleared", "data": {}, "more": 1}', "more"),
        ('{"type": "result_cleared", "data": {"tool_call_id": NaN}}', "NaN"),
        ("[]", "type"),
        ("{", "invalid_json"),
        ("", "invalid_json"),
        ('{"type": "error", "message": "' + "x" * 2001 + '"}', "2000"),
    ],
)
def test_publish_refuses_what_is_no_event(refused: Callable[..., str], event: str, words: str) -> None:
    """Anything but a well-formed event of the four types is one line that names the cause; Redis is not even asked."""
    line = refused("publish", "s1", event, redis_url="redis://127.0.0.1:1")
    assert line.startswith("agent-sse: ")
    assert words in line


async def test_publish_refuses_as_a_process(valkey: Valkey) -> None:
    """A permission request is not published by hand, a too large event is named with its size; nothing is stored."""
    for event, words in (('{"type": "permission_request"}', "reserved_type"), (LARGE, "the limit is 262144")):
        status, output, errors = await command("publish", "s1", "-", stdin=event.encode(), redis_url=valkey.url)
        assert (2, "") == (status, output)
        assert re.fullmatch(rf"agent-sse: [^\n]*{words}[^\n]*\n", errors), errors
    async with valkey.client() as client:
        assert 0 == await client.dbsize()


@pytest.mark.parametrize("arguments", [("publish", "s1", STATUS), ("watch", "s1")])
async def test_commands_say_that_no_service_runs(folder: Path, arguments: tuple[str, ...]) -> None:
    """Without a Redis URL and without a running service there is one line, and status 2."""
    status, output, errors = await command(*arguments, state_dir=str(folder))
    assert (2, "") == (status, output)
    assert re.fullmatch(r"agent-sse: no Redis: [^\n]*AGENT_SSE_REDIS_URL[^\n]*agent-sse serve[^\n]*\n", errors), errors


@pytest.mark.parametrize("arguments", [("publish", "s1", STATUS), ("watch", "s1")])
async def test_commands_fail_with_status_1_when_redis_is_away(arguments: tuple[str, ...]) -> None:
    """A Redis that does not answer is no wrong setting: one line, and status 1."""
    status, output, errors = await command(
        *arguments, redis_url=f"redis://127.0.0.1:{free_port()}", publish_timeout="0.3"
    )
    assert (1, "") == (status, output)
    assert re.fullmatch(r"agent-sse: Redis [^\n]+\n", errors), errors


# -- the command itself -----------------------------------------------------------------------------------------------


async def test_command_without_arguments_shows_help() -> None:
    """`agent-sse` alone lists the commands; `--version` prints one line."""
    _, output, errors = await command()
    assert all(word in output + errors for word in ("serve", "demo", "token", "publish", "watch"))
    status, output, _ = await command("--version")
    assert 0 == status
    assert re.fullmatch(r"agent-sse \d+\.\d+\.\d+\n", output)
    assert 2000 == REASON_LIMIT
