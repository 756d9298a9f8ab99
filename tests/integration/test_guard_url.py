"""The guard in front of a URL: what goes there and what does not, and servers there that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import mcp_parts
from agent_sse.errors import ConfigurationError
from agent_sse.mcp.guard import headers
from mcp_parts import RawHost, journal, until_journal

SESSION = "Mcp-Session-Id: s1\r\n"
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
}  # fmt: skip


@dataclass
class Asked:
    """A request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def said(self) -> str:
        return self.body["method"] if self.body else self.method


Script = Callable[[Asked], bytes | list[bytes] | None]


class Url:
    """A server that answers with the bytes that a script gives it; a list's parts are sent one by one."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Asked(method, path, headers, json.loads(body) if body else None)
            self.asked.append(request)
            given = self.script(request) or self.usual(request)
            for part in given if isinstance(given, list) else [given]:
                writer.write(part)
                await writer.drain()
        writer.close()

    def usual(self, asked: Asked) -> bytes:
        """Answer as a server does."""
        if asked.method != "POST":
            return b"HTTP/1.1 405 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if "id" not in asked.body or "method" not in asked.body:
            return b"HTTP/1.1 202 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        if asked.said == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "u", "version": "1"}}
            return reply(asked, result, SESSION)
        if asked.said == "tools/list":
            schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
            return reply(asked, {"tools": [{"name": "asked", "inputSchema": schema}]})
        return reply(asked, {"content": [{"type": "text", "text": "ran"}]})

    def said(self) -> list[str]:
        return [asked.said for asked in self.asked]


def reply(asked: Asked, result: Any, headers: str = "") -> bytes:
    body = json.dumps({"jsonrpc": "2.0", "id": asked.body["id"], "result": result}, indent=2).encode()
    return response(200, "application/json", body, headers)


def response(status: int, kind: str, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return (head + headers + "\r\n").encode() + body


def stream(*parts: bytes) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n", *parts]


def answer_event(asked: Asked, text: str = "ran") -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": asked.body["id"], "result": {"content": [{"text": text}]}}).encode()


@asynccontextmanager
async def url_of(script: Script) -> AsyncIterator[Url]:
    made = Url(script)
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        yield made


@asynccontextmanager
async def guarding(folder: Path, script: Script, **options: Any) -> AsyncIterator[tuple[RawHost, Url]]:
    async with url_of(script) as url, RawHost(mcp_parts.guard_command(folder, url=url.url, **options)) as host:
        yield host, url


def on_call(given: Script) -> Script:
    """Let a script answer tool calls, and GET."""
    return lambda asked: given(asked) if asked.said in {"tools/call", "GET"} else None


def broken(asked: Asked) -> Any:
    """Break a stream off after its first event, and go on with it where it is resumed."""
    if asked.method == "POST":
        first = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": 1}}).encode()
        return stream(b"id: e1\nretry: 10\ndata: " + first + b"\n\n")
    if asked.headers.get("last-event-id") == "e1":
        return stream(b'data: {"jsonrpc":"2.0","id":1,"result":{"content":[{"text":"resumed"}]}}\n\n')
    return None


def split(asked: Asked) -> Any:
    """Say things in every form that events have, in the smallest parts."""
    body = json.dumps(json.loads(answer_event(asked)), indent=1).encode()
    text = b": ping\r\n\r\nevent: endpoint\rdata: /elsewhere\r\rdata: {\n\ndata:" + body.replace(b"\n", b"\r\ndata:")
    whole = text + b"\r\n\r\n"
    return stream(*(whole[n : n + 1] for n in range(len(whole))))


GOOD: dict[str, Script] = {
    "a stream": lambda asked: stream(b"data: " + answer_event(asked) + b"\n\n"),
    "a stream that is resumed": broken,
    "every form of event": split,
    "a redirect that stays": lambda asked: (
        None if asked.path == "/mcp/" else response(307, "text/plain", b"", "Location: /mcp/\r\n")
    ),
}

BAD: dict[str, tuple[Script, str]] = {
    "an error page": (lambda _: response(500, "text/html", b"<h1>no"), "HTTP 500"),
    "no right": (lambda _: response(401, "text/plain", b""), "--header"),
    "a page": (lambda _: response(200, "text/html", b"<h1>hello"), "text/html"),
    "nothing": (lambda _: response(202, "text/plain", b""), "HTTP 202"),
    "no JSON": (lambda _: response(200, "application/json", b"{oops"), "failed"),
    "another answer": (lambda _: response(200, "application/json", b'{"id":99,"result":{}}'), "no answer"),
    "a hang-up": (lambda _: [b""], "failed"),
    "half a response": (lambda _: response(200, "application/json", b"{")[:-10], "failed"),
    "a stream without an answer": (lambda _: stream(b": nothing\n\n"), "broke off"),
    "an end of the session": (lambda _: response(404, "text/plain", b""), "ended the session"),
    "an error with a body": (
        lambda _: response(400, "application/json", b'{"jsonrpc":"2.0","id":null,"error":{"code":-1,"message":"why"}}'),
        "why",
    ),
    "a redirect elsewhere": (
        lambda _: response(307, "text/plain", b"", "Location: http://example.com/mcp?secret=1\r\n"), "redirects to",
    ),
    "a redirect that changes the method": (lambda _: response(302, "text/plain", b"", "Location: /x\r\n"), "redirects"),
    "a redirect for ever": (lambda _: response(308, "text/plain", b"", "Location: /mcp\r\n"), "for ever"),
}  # fmt: skip


@pytest.mark.parametrize("way", list(GOOD))
async def test_guard_hears_an_answer_however_it_comes(folder: Path, way: str) -> None:
    """Bodies, streams, streams that break off and are resumed: the host gets the answer."""
    async with guarding(folder, on_call(GOOD[way])) as (host, _):
        await host.initialize()
        await host.send("tools/call", {"name": "x"}, id=1)
        answer = await host.answer(1)
    assert answer["result"]["content"][0]["text"] in {"ran", "resumed"}
    assert "finished" in [row[1] for row in journal(folder)]


@pytest.mark.parametrize("way", list(BAD))
async def test_guard_tells_the_host_what_a_url_did_wrong(folder: Path, way: str) -> None:
    """The host gets an error that says it, the call has failed, and the next request is answered."""
    script, told = BAD[way]
    async with guarding(folder, on_call(script)) as (host, _):
        await host.initialize()
        await host.send("tools/call", {"name": "x"}, id=1)
        answer = await host.answer(1)
        await host.send("ping", id=2)
        await host.answer(2)
    assert told in answer["error"]["message"]
    assert "secret" not in answer["error"]["message"]
    assert "failed" in [row[1] for row in journal(folder)]


async def test_guard_says_that_nobody_listens_at_a_url(folder: Path) -> None:
    """Every request is answered with an error, and the guard stays."""
    url = f"http://127.0.0.1:{mcp_parts.free_port()}/mcp?key=secret"
    async with RawHost(mcp_parts.guard_command(folder, url=url)) as host:
        for request_id in (1, 2):
            await host.send("initialize", {"protocolVersion": "2025-11-25"}, id=request_id)
            message = (await host.answer(request_id))["error"]["message"]
            assert "failed" in message
            assert "secret" not in message
        assert 0 == await host.close()


@pytest.mark.parametrize("url", ["ftp://example.com/", "nonsense", "http://", "http://a:b/"])
async def test_guard_refuses_a_url_that_is_none(folder: Path, url: str) -> None:
    """A URL that cannot be one of an MCP server is one clear line and status 2."""
    async with RawHost(mcp_parts.guard_command(folder, url=url)) as host:
        assert 2 == await host.end()
    assert "the URL of an MCP server is http:// or https://" in host.errors


async def test_guard_keeps_the_session_of_a_url(folder: Path) -> None:
    """Session and version go with everything after the handshake, and the session is ended at the end."""
    async with guarding(folder, lambda _: None, headers={"X-Api-Key": "k"}) as (host, url):
        await host.initialize()
        await host.send("ping", id=1)
        await host.answer(1)
        assert 0 == await host.close()
    first, *rest = url.asked
    assert "mcp-session-id" not in first.headers
    assert {"s1"} == {asked.headers["mcp-session-id"] for asked in rest}
    assert {"2025-06-18"} == {asked.headers["mcp-protocol-version"] for asked in rest}
    assert {"k"} == {asked.headers["x-api-key"] for asked in url.asked}
    assert "DELETE" == url.asked[-1].method


async def test_guard_makes_the_headers_of_a_request_from_the_message(folder: Path) -> None:
    """Without a handshake each request names version, method and target; parameters are those that were approved."""
    async with guarding(folder, lambda _: None) as (host, url):
        params = {"name": "asked", "arguments": {"region": "eu"}, "_meta": MODERN}
        await host.send("tools/call", params, id=1)
        await until_journal(folder, "asked", "waiting")
        mcp_parts.answer(folder, {"region": "Zürich"})
        await host.answer(1)
        await host.send("resources/read", {"uri": "a://ü", "_meta": MODERN}, id=2)
        await host.answer(2)
    call = next(asked for asked in url.asked if asked.said == "tools/call")
    assert {"region": "Zürich"} == call.body["params"]["arguments"]
    named = {name: value for name, value in call.headers.items() if name.startswith("mcp-")}
    assert {
        "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "asked",
        "mcp-param-region": "=?base64?WsO8cmljaA==?=",
    } == named  # fmt: skip
    assert "=?base64?YTovL8O8?=" == url.asked[-1].headers["mcp-name"]


@pytest.mark.parametrize("fixed", [{}, {"authorization": "Bearer fixed"}])
async def test_guard_passes_a_hosts_authorization_on_unless_it_has_its_own(folder: Path, fixed: dict[str, str]) -> None:
    """What the host sent to the URL before it now sends to the guard; cookies and origins are of this machine."""
    async with url_of(lambda _: None) as url:
        command = mcp_parts.guard_command(folder, url=url.url, headers=fixed, http_port=0)
        async with (
            mcp_parts.process(command, ready=r"(http://[0-9.]+:\d+)/mcp") as (_, at),
            httpx.AsyncClient(base_url=at[1], trust_env=False) as http,
        ):
            response = await http.post(
                "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}},
                headers={
                    "accept": "*/*", "authorization": "Bearer host", "cookie": "a=b", "origin": "http://localhost:1",
                    "traceparent": "00-1",
                },
            )  # fmt: skip
            assert "2025-06-18" == response.json()["result"]["protocolVersion"]
    sent = url.asked[0].headers
    assert (fixed.get("authorization") or "Bearer host", "00-1") == (sent["authorization"], sent["traceparent"])
    assert {"cookie", "origin"}.isdisjoint(sent)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("X-Key: abc", ("x-key", "abc")),
        ("Authorization: Bearer ${TOKEN}", ("authorization", "Bearer t:1")),
        ("Authorization:${TOKEN}${TOKEN}", ("authorization", "t:1t:1")),
        ("X: $TOKEN", ("x", "$TOKEN")),
    ],
)
def test_guard_takes_a_header_with_what_the_environment_holds(text: str, expected: tuple[str, str]) -> None:
    """A secret need not stand on the command line."""
    assert expected == headers.configured(text, {"TOKEN": "t:1"})


@pytest.mark.parametrize("text", ["X", ": x", "a b: c", "X: ${MISSING}", "X: a\r\nY: b", "X: ü"])
def test_guard_refuses_a_header_that_is_none(text: str) -> None:
    """What is wrong is said, and no value is shown."""
    with pytest.raises(ConfigurationError):
        headers.configured(text, {})
