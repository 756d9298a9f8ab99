"""MCP for the tests: real servers, the guard in front of them, the official client, and a host that sends raw lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from harness import DEADLINE, until

SERVERS = Path(__file__).parent / "servers"
EVERYTHING = SERVERS / "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
GUARD = SERVERS / "guard.py"
Wire = Literal["stdio", "http"]


def everything(wire: Wire) -> list[str]:
    """Return the command of the reference server."""
    assert shutil.which("node"), "the tests need node: install Node.js 20 or later"
    assert EVERYTHING.exists(), "the tests need npm's servers: run `npm ci` in tests/servers"
    return ["node", str(EVERYTHING), "stdio" if wire == "stdio" else "streamableHttp"]


def modern(wire: Wire, port: int = 0) -> list[str]:
    """Return the command of the SDK's server that speaks 2026-07-28."""
    return [sys.executable, str(SERVERS / "modern.py"), wire, str(port)]


def hostile(kind: str) -> list[str]:
    """Return the command of a server that misbehaves."""
    return [sys.executable, str(SERVERS / "hostile.py"), kind]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@asynccontextmanager
async def process(
    command: list[str], *, ready: str, environment: dict[str, str] | None = None, stream: str = "stderr"
) -> AsyncIterator[tuple[asyncio.subprocess.Process, re.Match[str]]]:
    """Run a program until it has written a line that matches ``ready``; end it at the end."""
    running = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **(environment or {})}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    seen: list[str] = []
    found: asyncio.Future[re.Match[str]] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        assert running.stderr is not None
        while line := (await running.stderr.readline()).decode(errors="replace"):
            seen.append(line)
            if not found.done() and (match := re.search(ready, line)):
                found.set_result(match)
        if not found.done():
            found.set_exception(AssertionError("it did not start:\n" + "".join(seen)))

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(DEADLINE):
            match = await found
        yield running, match
    finally:
        if running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            await running.wait()
            await reading


@asynccontextmanager
async def url_of(command_of: Callable[[int], list[str]]) -> AsyncIterator[str]:
    """Run a server over HTTP and yield its URL."""
    port = free_port()
    command = command_of(port)
    environment = {"PORT": str(port)}
    async with process(command, ready=r"listening on port|running on http", environment=environment):
        yield f"http://127.0.0.1:{port}/mcp"


def guard_command(folder: Path, **options: Any) -> list[str]:
    """Return the command of a guard with the gate of `guard.py`."""
    folder.mkdir(parents=True, exist_ok=True)
    return [sys.executable, str(GUARD), json.dumps({"folder": str(folder), **options})]


def journal(folder: Path) -> list[list[Any]]:
    """Return what happened at the gate, as ``[tool, what, …]``."""
    path = folder / "journal"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def answer(folder: Path, arguments: dict[str, Any] | None = None) -> None:
    """Approve what waits at the gate, with other arguments if any."""
    draft = folder / "draft"
    draft.write_text(json.dumps(arguments or {}))
    draft.rename(folder / "answer")


@asynccontextmanager
async def guarded(folder: Path, host: Wire, **options: Any) -> AsyncIterator[Any]:
    """Yield a transport to a guard, over standard input and output or HTTP."""
    if host == "stdio":
        command = guard_command(folder, **options)
        yield stdio_client(StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ)))
    else:
        async with process(guard_command(folder, http_port=0, **options), ready=r"(http://[0-9.]+:\d+/mcp)") as (_, at):
            yield streamable_http_client(at[1], max_sse_event_size=None)


def direct(command: list[str]) -> Any:
    """Return a transport to a server without a guard."""
    return stdio_client(StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ)))


# -- the official client ----------------------------------------------------------------------------------------------


class Heard:
    """What a client's callbacks were told, by kind; and what they answer."""

    def __init__(self) -> None:
        self.logs: list[Any] = []
        self.notifications: list[str] = []
        self.asked: list[Any] = []

    async def log(self, params: types.LoggingMessageNotificationParams) -> None:
        self.logs.append(plain(params))

    async def message(self, message: Any) -> None:
        if hasattr(message, "method"):
            self.notifications.append(message.method)

    async def sample(self, _: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        self.asked.append(plain(params))
        return types.CreateMessageResult(
            role="assistant", content=types.TextContent(type="text", text="sampled"), model="none"
        )

    async def elicit(self, _: Any, params: Any) -> types.ElicitResult:
        self.asked.append(plain(params))
        content = {"name": "Ada", "sure": True, "integer": 4, "firstLine": "Hi"}
        return types.ElicitResult(action="accept", content=None if params.mode == "url" else content)

    async def roots(self, _: Any) -> types.ListRootsResult:
        self.asked.append("roots")
        return types.ListRootsResult(roots=[types.Root(uri="file:///project", name="root")])


def client_of(transport: Any, heard: Heard, mode: Any, **more: Any) -> Client:
    """Return a client that can do all that a server may ask of one."""
    return Client(
        transport, mode=mode, logging_callback=heard.log, message_handler=heard.message,
        sampling_callback=heard.sample, elicitation_callback=heard.elicit, list_roots_callback=heard.roots,
        cache=None, **more,
    )  # fmt: skip


def plain(value: Any) -> Any:
    """Return a model of the SDK as JSON, without what differs from one run to the next."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(value, sort_keys=True)
    # A text in base64 that holds the time: "Resource 7: This is a base64 blob created at …"
    text = re.sub("UmVzb3VyY2Ug[A-Za-z0-9+/=]+", lambda found: base64.b64decode(found[0]).decode(), text)
    for pattern, stand_in in (
        (r"\d{4}-\d\d-\d\dT[0-9:.]+Z?", "<time>"),
        (r"\d{1,2}:\d\d:\d\d( [AP]M)?", "<time>"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    ):
        text = re.sub(pattern, stand_in, text)
    return json.loads(text)


async def outcome(asking: Awaitable[Any]) -> Any:
    """Return the answer, or the error, as JSON."""
    try:
        return plain(await asking)
    except MCPError as error:
        return {"error": plain({"code": error.error.code, "message": error.error.message, "data": error.error.data})}


# -- a host of raw lines ----------------------------------------------------------------------------------------------


class RawHost:
    """A host on a guard's standard input and output that sends whatever a test likes."""

    def __init__(
        self, command: list[str], *, environment: dict[str, str] | None = None, directory: Path | None = None
    ) -> None:
        self.command = command
        self._environment = environment  # None: that of the tests
        self._directory = directory
        self.received: list[Any] = []
        self.errors = ""
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> RawHost:
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, limit=2**28, env=self._environment, cwd=self._directory,
        )  # fmt: skip
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._read_errors())]
        return self

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.received.append(json.loads(line))
            self._news.set()
        self.received.append(None)
        self._news.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.errors += line.decode(errors="replace")
            self._news.set()

    async def write(self, *lines: bytes) -> None:
        """Send lines as they are."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(line + b"\n" for line in lines))
        await self.process.stdin.drain()

    async def send(self, method: str, params: Any = None, *, id: Any = None) -> None:
        """Send a request, or a notification without an id."""
        body = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        await self.write(json.dumps(body if id is None else {**body, "id": id}).encode())

    async def until(self, condition: Callable[[], Any], what: str = "it") -> Any:
        """Wait for something to be true of what was received."""
        async with asyncio.timeout(DEADLINE):
            while not (found := condition()):
                self._news.clear()
                assert None not in self.received, f"{what} did not come, the guard ended: {self.errors}"
                await self._news.wait()
        return found

    async def answer(self, request_id: Any) -> Any:
        """Wait for the answer to a request."""
        return await self.until(lambda: self.find(request_id), f"the answer to {request_id}")

    def find(self, request_id: Any) -> Any:
        return next((m for m in self.received if m and m.get("id") == request_id and "method" not in m), None)

    async def initialize(self, version: str = "2025-11-25", **capabilities: Any) -> Any:
        """Shake hands."""
        info = {"name": "raw", "version": "1"}
        params = {"protocolVersion": version, "capabilities": capabilities, "clientInfo": info}
        await self.send("initialize", params, id="init")
        answered = await self.answer("init")
        await self.send("notifications/initialized")
        return answered

    async def end(self) -> int:
        """Wait until the guard has ended, and return its exit status."""
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
            await asyncio.gather(*self._tasks)
        return status

    async def close(self) -> int:
        """End the guard's input, and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.end()

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.end()


async def until_journal(folder: Path, *entry: Any) -> None:
    """Wait until something has happened at the gate."""
    await until(lambda: list(entry) in [row[: len(entry)] for row in journal(folder)], what=str(entry))
