"""A whole service process with everything that runs beside its streams: webhook, audit file, readiness, shutdown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_sse import SimpleNotifier
from agent_sse.audit_file import AuditFile
from agent_sse.webhook import Webhook
from harness import DEADLINE, PREFIX, ServiceProcess, Valkey, bearer, make_settings, make_token, serve, until

SECRET = "a-webhook-secret-of-at-least-32-bytes"


@asynccontextmanager
async def receiver() -> AsyncIterator[tuple[str, asyncio.Queue[tuple[dict[str, str], bytes]]]]:
    """An HTTP server that answers 204; yields its URL and what it gets."""
    got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            got.put_nowait((headers, await reader.readexactly(int(headers["content-length"]))))
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(receive, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", got


async def test_service_process_calls_the_webhook(valkey: Valkey) -> None:
    """A request that nobody answers reaches the URL in the settings, signed and masked, from a real process."""
    async with receiver() as (url, got):
        environment = {
            "AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_WEBHOOK_URL": url, "AGENT_SSE_WEBHOOK_SECRET": SECRET,
            "AGENT_SSE_WEBHOOK_AFTER": "0.1",
        }  # fmt: skip
        async with ServiceProcess(environment) as process, SimpleNotifier.from_url(valkey.url) as agent:
            parameters = {"file": "a.py", "password": "hunter2"}
            asking = asyncio.create_task(agent.request_permission("s1", "file_edit", parameters))
            async with asyncio.timeout(DEADLINE):
                headers, body = await got.get()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert 0 == await process.stop()
            assert "hunter2" not in process.output
            assert SECRET not in process.output
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert f"v1,{mac}" in headers["webhook-signature"].split()
    data = json.loads(body)["data"]
    assert ("s1", "file_edit", {"file": "a.py", "password": "••••"}) == (
        data["session_id"],
        data["tool_name"],
        data["parameters"],
    )


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


async def answer(http: httpx.AsyncClient, api: str, session: str) -> None:
    """Approve what is open in a session, as soon as it is."""
    headers = bearer(make_token(session))

    async def pending() -> list[dict[str, Any]]:
        data = (await http.get(f"{api}/health/{session}", headers=headers)).json()["data"]
        return list(data["pending_permissions"])

    (row,) = await until(pending, what="a request")
    body = {"approved": True, "request_id": row["request_id"]}
    assert 200 == (await http.post(f"{api}/permission-response/{session}", json=body, headers=headers)).status_code


async def test_service_process_writes_the_audit_file(valkey: Valkey, folder: Path) -> None:
    """What is decided is appended to the file in the settings, as the endpoint shows it, also after a restart."""
    path = folder / "audit.jsonl"
    environment = {"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_AUDIT_FILE": str(path)}
    async with SimpleNotifier.from_url(valkey.url) as agent, httpx.AsyncClient(timeout=DEADLINE) as http:
        for count in (1, 2):
            async with ServiceProcess(environment) as process:
                assert 200 == (await http.get(f"{process.url}/readyz")).status_code
                asking = asyncio.create_task(agent.request_permission("s1", "file_edit", {"n": count}))
                await answer(http, process.served.api, "s1")
                assert await asking
                await until(lambda count=count: len(lines_of(path)) == count, what="an entry in the file")
                reply = await http.get(f"{process.served.api}/audit/s1", headers=bearer(make_token("s1")))
                expected = [{"session_id": "s1", **entry} for entry in reply.json()["data"]["entries"]]
                assert expected == lines_of(path)
                assert 0 == await process.stop()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"AGENT_SSE_WEBHOOK_URL": "https://hooks.example.com/x"}, "AGENT_SSE_WEBHOOK_SECRET"),
        ({"AGENT_SSE_WEBHOOK_URL": "ftp://x", "AGENT_SSE_WEBHOOK_SECRET": SECRET}, "AGENT_SSE_WEBHOOK_URL"),
        ({"AGENT_SSE_AUDIT_FILE": "/proc/nothing/audit.jsonl"}, "AGENT_SSE_AUDIT_FILE"),
    ],
)
async def test_service_does_not_start_with_what_it_cannot_do(
    valkey: Valkey, environment: dict[str, str], named: str
) -> None:
    """A webhook that cannot be signed, and an audit file that cannot be written, are said at the start, by name."""
    process = ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url, **environment})
    with pytest.raises(AssertionError, match="did not start"):
        await process.start()
    assert await process.stop() != 0
    assert named in process.output
    assert SECRET not in process.output


@pytest.mark.parametrize("kind", [Webhook, AuditFile])
async def test_part_that_died_makes_the_process_not_ready(
    valkey: Valkey, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[Any]
) -> None:
    """When what tells of requests, or what writes the audit, has died, readiness says so; streams go on."""

    async def die(_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(kind, "_run", die)
    settings = make_settings(
        valkey.url, webhook_url="http://127.0.0.1:9/x", webhook_secret=SECRET, audit_file=folder / "audit.jsonl"
    )
    async with serve(settings) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        reply = await http.get(f"{served.url}/readyz")
        assert (503, "not_ready") == (reply.status_code, reply.json()["error"]["code"])
        assert 200 == (await http.get(f"{served.url}/healthz")).status_code
        assert 200 == (await http.get(f"{served.api}/health/s1", headers=bearer(make_token("s1")))).status_code
    assert "is not ready any more" in caplog.text


async def test_embedded_service_serves_agents_over_http(folder: Path) -> None:
    """With its own Valkey and nothing else to set up, a process takes events and questions over HTTP."""
    environment = {"AGENT_SSE_STATE_DIR": str(folder / "state")}
    async with ServiceProcess(environment) as process, httpx.AsyncClient(timeout=DEADLINE) as http:
        headers = bearer(make_token("s1", scope="events:publish"))
        event = {"type": "tool_status", "data": {"tool_name": "t", "status": "executing"}}
        reply = await http.post(f"{process.served.api}/publish/s1", json=event, headers=headers)
        assert 201 == reply.status_code, reply.text
        question = {"tool_name": "t", "parameters": {}, "risk_level": "low", "timeout": 1}
        url = f"{process.url}{PREFIX}/permission-request/s1?wait=30"
        reply = await http.post(url, json=question, headers=headers)
        assert (200, "expired") == (reply.status_code, reply.json()["data"]["outcome"])
        assert 0 == await process.stop(signal.SIGTERM), process.output
