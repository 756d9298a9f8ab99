"""Real parts for the tests: a Valkey of one's own, the service in this loop or as a process, an SSE client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import uvicorn

from agent_sse.app import create_app
from agent_sse.auth import encode_token
from agent_sse.backend import Call
from agent_sse.protocol import StreamProtocol
from agent_sse.settings import Settings
from agent_sse.state_dir import find_server
from agent_sse.store import Publish, Store

SECRET = "a-secret-for-tests-of-at-least-32-bytes"
PREFIX = "/agent_backend/api/sse"
DEADLINE = 30.0  # s; how long a test waits for what has to happen. No test asserts on shorter times.


class Way:
    """How the services that a test starts write their streams, where it does not say itself; see the fixture `sink`."""

    direct = True


class Valkey:
    """A real server on a unix socket in a directory of its own, with an append-only file. ``port`` adds TCP."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.folder = folder
        self.options = options
        self.port = port
        self.socket = folder / "v.sock"
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    async def start(self) -> None:
        binary = os.environ.get("AGENT_SSE_TEST_SERVER") or str(find_server())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            binary, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket),
            "--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
            "--logfile", str(self.folder / "log"), *self.options,
        )  # fmt: skip
        async with self.client() as client:
            await until(lambda: _answers(client))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[redis.Redis]:
        client = redis.Redis.from_url(self.url, protocol=2)
        try:
            yield client
        finally:
            await client.aclose()

    async def entries(self, session: str) -> list[tuple[str, Any]]:
        """Return what the session's Stream holds, as ``(id, event)``, the oldest first."""
        async with self.client() as client:
            rows = await client.xrange(f"agent_sse:{{{session}}}:events")
        return [(row_id.decode(), json.loads(fields[b"d"])) for row_id, fields in rows]

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it; SIGTERM writes the append-only file out, SIGKILL is a crash."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            await self.process.wait()
        self.process = None

    async def restart(self, number: int = signal.SIGTERM) -> None:
        if number == signal.SIGKILL:
            # With `everysec` a write may be put off while the disk is being synced, and dies with the process (README).
            # With `no` the kernel has it before it is acknowledged; the command after takes along what was put off.
            async with self.client() as client:
                await client.config_set("appendfsync", "no")
                await client.set("agent_sse:kept", "1")
        await self.stop(number)
        await self.start()

    def keep_copy(self, name: str) -> Path:
        """Copy the append-only directory aside (stop or fsync first)."""
        target = self.folder / name
        shutil.copytree(self.folder / "appendonlydir", target)
        return target

    def put_back(self, copy: Path) -> None:
        """Replace the append-only directory of a stopped server by a copy: a restore from a backup."""
        shutil.rmtree(self.folder / "appendonlydir")
        shutil.copytree(copy, self.folder / "appendonlydir")


async def _answers(client: redis.Redis) -> bool:
    try:
        return bool(await client.ping())
    except (redis.ConnectionError, redis.BusyLoadingError, OSError):
        return False


async def until(condition: Callable[[], Any], *, deadline: float = DEADLINE, what: str = "condition") -> Any:
    """Poll until ``condition()`` (or its awaited value) is truthy, and return it; fail at the deadline.

    For states that nothing announces (a server's start, a count in Redis); where there is an event, await that.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert loop.time() < end, f"{what} did not come true within {deadline} s"
        await asyncio.sleep(0.01)


def processes_with(word: str) -> dict[int, str]:
    """Return the running processes with ``word`` in their command line or environment: their command lines, by id.

    See that it finds something while there is something: then its finding nothing says that nothing is left.
    """
    if not Path("/proc/self/environ").exists():  # macOS; there the environment stands behind the command line
        shown = subprocess.run(["ps", "-axEww", "-o", "pid=,command="], check=True, capture_output=True).stdout
        rows = (line.strip().partition(" ") for line in shown.decode(errors="replace").splitlines())
        return {int(pid): line for pid, _, line in rows if word in line}
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            line = (path / "cmdline").read_bytes()
            if line and word.encode() in line + b"\0" + (path / "environ").read_bytes():  # a zombie has none
                found[int(path.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def make_settings(url: str, **overrides: Any) -> Settings:
    """Settings for a test: the environment's `.env` is not read; a short heartbeat so that waits are short."""
    values: dict[str, Any] = {"redis_url": url, "jwt_secret": SECRET, "jwt_audience": "", "heartbeat_interval": 1.0}
    return Settings(_env_file=None, **{**values, **overrides})  # type: ignore[call-arg]


def make_token(*sessions: str, sub: str = "alice", scope: str | None = None, ttl: float = 3600.0) -> str:
    """A token for sessions; without any, it lists none."""
    settings = make_settings("")
    return encode_token(settings, subject=sub, sessions=list(sessions) or None, scope=scope, ttl_seconds=ttl)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class Served:
    """A running service; ``url`` without a trailing slash. ``app`` is set when it runs in this loop."""

    def __init__(self, url: str, app: Any = None, server: uvicorn.Server | None = None) -> None:
        self.url = url
        self.app = app
        self.server = server

    @property
    def api(self) -> str:
        return self.url + PREFIX

    def events(self, session: str, token: str | None = None, *, cursor: str | None = None) -> str:
        query = "&".join(
            f"{name}={value}" for name, value in (("token", token), ("last_event_id", cursor)) if value is not None
        )
        return f"{self.api}/events/{session}" + (f"?{query}" if query else "")


@asynccontextmanager
async def serve(
    settings: Settings | None = None, *, app: Any = None, direct: bool | None = None, **options: Any
) -> AsyncIterator[Served]:
    """Run the service with a real uvicorn on port 0 in this event loop; ``direct`` is the test's `Way` by default.

    ``options`` are more of uvicorn's.
    """
    app = app or create_app(settings)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5,
        http=StreamProtocol if (Way.direct if direct is None else direct) else "httptools", ws="none", **options,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as sock:
        if config.http == "httptools":  # as for sockets that uvicorn opens itself; 40 ms an answer otherwise
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Not `serve()`: it takes over this process's signal handlers.
        task = asyncio.create_task(server._serve([sock]))
        await until(lambda: server.started or task.done(), what="server start")
        if task.done():
            task.result()
            raise AssertionError("the server ended while starting")
        try:
            scheme = "https" if config.is_ssl else "http"
            yield Served(f"{scheme}://127.0.0.1:{sock.getsockname()[1]}", app, server)
        finally:
            for route_service in services_of(app):
                with contextlib.suppress(RuntimeError):
                    route_service.hub.shutdown()
                    route_service.waits.close()
            server.should_exit = True
            await task


def services_of(app: Any) -> list[Any]:
    """The `Service` objects behind an application made by `create_app`."""
    service = getattr(app.state, "agent_sse", None)
    return [service] if service is not None else []


class ServiceProcess:
    """The service as a process of its own, on port 0: ``agent-sse serve`` or plain uvicorn, as the test's `Way` is."""

    def __init__(
        self, environment: dict[str, str], *, plain: bool | None = None, arguments: tuple[str, ...] = ()
    ) -> None:
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AGENT_SSE_")},
            "AGENT_SSE_JWT_SECRET": SECRET, "PYTHONUNBUFFERED": "1", **environment,
        }  # fmt: skip
        if plain if plain is not None else not Way.direct:
            command = ["-m", "uvicorn", "--factory", "agent_sse.app:create_app", "--port", "0"]
        else:
            command = ["-m", "agent_sse", "serve", "--port", "0"]
        self.command = [sys.executable, *command, *arguments]
        self.process: asyncio.subprocess.Process | None = None
        self.lines: list[str] = []
        self.url = ""
        self._reader: asyncio.Task[None] | None = None
        self.listening = asyncio.Event()  # set while it does
        self._known = asyncio.Event()  # whether it came to that

    @property
    def served(self) -> Served:
        return Served(self.url)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    async def start(self) -> Served:
        self._known.clear()
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=self.environment, cwd="/", stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read(self.process))
        async with asyncio.timeout(DEADLINE):
            await self._known.wait()
        assert self.url, f"the service did not start:\n{self.output}"
        if "--workers" in self.command:  # the parent has bound the port and said so; a worker listens a little later
            await until(self._accepts, what="a worker listening")
        return self.served

    async def _accepts(self) -> bool:
        host, _, port = self.url.removeprefix("http://").partition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            return False
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return True

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            text = line.decode(errors="replace")
            self.lines.append(text)
            found = re.search(r"running on (http://[0-9.]+:\d+)", text)
            if found:
                self.url = found[1]
                self.listening.set()
                self._known.set()
        self.listening.clear()
        self._known.set()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and return its exit status."""
        assert self.process is not None
        self.listening.clear()
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
            if self._reader is not None:
                await self._reader
        return status

    async def __aenter__(self) -> ServiceProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.stop(signal.SIGKILL)
        elif self._reader is not None:
            await self._reader


class Event:
    """One dispatched event, or an id without data (``data`` is None)."""

    def __init__(self, event_id: str | None, data: str | None) -> None:
        self.id = event_id
        self.data = data

    @property
    def json(self) -> Any:
        return json.loads(self.data) if self.data is not None else None

    @property
    def type(self) -> str | None:
        return self.json["type"] if self.data is not None else None

    def __repr__(self) -> str:
        return f"Event({self.id}, {self.data})"


class Stream:
    """A client on a raw socket: the WHATWG parsing rules, chunked transfer coding, and a window that it alone opens.

    ``last_id`` is what a browser would send as Last-Event-ID. ``records`` are all events so far, ``buffer`` the
    bytes of an incomplete one.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        *,
        receive_buffer: int | None = None,
        trust: ssl.SSLContext | None = None,
        version: str = "1.1",
    ) -> None:
        found = re.fullmatch(r"https?://([^:/]+):(\d+)(/.*)", url)
        assert found, url
        self.host, self.port, self.target = found[1], int(found[2]), found[3]
        self.headers = headers or {}
        self.receive_buffer = receive_buffer
        self.trust = trust  # for https
        self.version = version  # of HTTP
        self.status = 0
        self.response_headers: dict[str, str] = {}
        self.last_id: str | None = None
        self.retry: int | None = None
        self.records: list[Event] = []
        self.complete = False  # the response ended with its last chunk
        self.ended = False
        self.buffer = b""
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def open(self, *, read: bool = True) -> Stream:
        """Connect and read the response's head; ``read=False`` leaves the body unread until :meth:`read`."""
        sock = socket.socket()
        if self.receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        sock.setblocking(False)
        async with asyncio.timeout(DEADLINE):
            try:
                await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
            except BaseException:
                sock.close()
                raise
            self._reader, self._writer = await asyncio.open_connection(
                sock=sock, limit=2**20, ssl=self.trust, server_hostname=self.host if self.trust else None
            )
            lines = [f"GET {self.target} HTTP/{self.version}", f"Host: {self.host}", "Accept: text/event-stream"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            head = await self._reader.readuntil(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.response_headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
        if read:
            self.read()
        return self

    def read(self) -> None:
        """Begin to read the body."""
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._reader is not None
        try:
            if self.response_headers.get("transfer-encoding") == "chunked":
                while size := int(await self._reader.readline(), 16):
                    self._feed(await self._reader.readexactly(size))
                    await self._reader.readexactly(2)
                await self._reader.readexactly(2)
                self.complete = True
            elif "content-length" not in self.response_headers:
                while data := await self._reader.read(2**16):
                    self._feed(data)
                self.complete = True
            else:
                self._feed(await self._reader.readexactly(int(self.response_headers["content-length"])))
                self.complete = True
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            self.ended = True
            self._queue.put_nowait(None)

    def _feed(self, data: bytes) -> None:
        self.buffer += data
        *blocks, self.buffer = re.split(rb"(?:\r\n\r\n|\n\n|\r\r)", self.buffer)
        for block in blocks:
            event_id, lines = None, []
            for line in re.split(rb"\r\n|\n|\r", block):
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if name == b"id" and b"\0" not in value:
                    event_id = value.decode()
                elif name == b"data":
                    lines.append(value.decode())
                elif name == b"retry" and value.isdigit():
                    self.retry = int(value)
            if event_id is not None:
                self.last_id = event_id
            if event_id is not None or lines:
                event = Event(event_id, "\n".join(lines) if lines else None)
                self.records.append(event)
                self._queue.put_nowait(event)

    async def next(self, *types: str, deadline: float = DEADLINE) -> Event:
        """Return the next data event, of one of ``types`` if given; heartbeats only when asked for."""
        async with asyncio.timeout(deadline):
            while True:
                event = await self._queue.get()
                assert event is not None, f"the stream ended; it had {self.records[-3:]}"
                if event.data is None:
                    continue
                if event.type in types or (not types and event.type != "heartbeat"):
                    return event

    async def primed(self) -> str:
        """Wait for the id without data that ends replay or snapshot, and return it."""
        async with asyncio.timeout(DEADLINE):
            while True:
                event = await self._queue.get()
                assert event is not None, f"the stream ended; it had {self.records[-3:]}"
                if event.data is None:
                    assert event.id is not None
                    return event.id

    async def end(self, deadline: float = DEADLINE) -> None:
        """Wait until the server has ended the stream."""
        assert self._task is not None
        async with asyncio.timeout(deadline):
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Leave, as a browser that closes its tab."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writer is not None:
            self._writer.transport.abort()

    async def __aenter__(self) -> Stream:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def session_name() -> str:
    """A session id that no other test uses."""
    return f"s{time.time_ns():x}{os.urandom(3).hex()}"


def unheard(call: Call) -> Call:
    """Return a call whose message goes to a channel that nobody reads."""
    return call._replace(packed=call.packed.replace(b":channel\r", b":nowhere\r"))


async def publish_unheard(store: Store, session: str, payload: dict[str, Any]) -> str:
    """Append an event whose message never arrives: it is published on a channel that nobody reads."""
    call = store.publish_call(Publish(session, json.dumps(payload).encode(), "other"), session_name(), 1, 0)
    event_id: bytes = (await store.backend.run(unheard(call)))[0]
    return event_id.decode()


class Follower:
    """A client that comes back with its last id whenever its stream ends, as a browser does, and keeps what it got.

    ``url`` is asked at every connect, so the service may have moved. One that goes away sets ``listening`` when it is
    back. ``events`` are all data events but heartbeats.
    """

    def __init__(self, url: Callable[[], str], listening: asyncio.Event | None = None) -> None:
        self.url = url
        self.listening = listening
        self.events: list[Event] = []
        self.connects = 0
        self.stream: Stream | None = None
        self._last_id: str | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ids(self) -> list[str]:
        """The ids of the events that had one, in the order of arrival."""
        return [event.id for event in self.events if event.id is not None]

    def types(self, *types: str) -> list[Event]:
        return [event for event in self.events if event.type in types]

    def cut(self) -> None:
        """Tear the connection; it comes back by itself."""
        if self.stream is not None and self.stream._writer is not None:
            self.stream._writer.transport.abort()

    async def until(self, condition: Callable[[], Any], *, deadline: float = DEADLINE) -> None:
        """Wait until ``condition()`` is true; it is looked at after every event and every connect."""
        async with asyncio.timeout(deadline):
            while not condition():
                self._news.clear()
                await self._news.wait()
                if self._task is not None and self._task.done():
                    self._task.result()  # raises what ended it

    async def until_id(self, event_id: str, *, deadline: float = DEADLINE) -> None:
        await self.until(lambda: any(event.id == event_id for event in reversed(self.events)), deadline=deadline)

    async def _run(self) -> None:
        while True:
            headers = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
            async with contextlib.AsyncExitStack() as stack:
                stream = Stream(self.url(), headers)
                stack.push_async_callback(stream.close)
                try:
                    await stream.open()
                except (OSError, asyncio.IncompleteReadError):  # nobody is there, or somebody who is leaving
                    if self.listening is None:
                        raise
                    await self.listening.wait()
                    continue
                assert stream.status == 200, stream.status
                self.stream = stream
                self.connects += 1
                while (event := await stream._queue.get()) is not None:
                    self._last_id = event.id or self._last_id
                    if event.data is not None and event.type != "heartbeat":
                        self.events.append(event)
                    self._news.set()
                self._last_id = stream.last_id or self._last_id

    async def __aenter__(self) -> Follower:
        """Return when the first stream is primed: from then on every event has to come."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._news.set())
        await self.until(lambda: self._last_id is not None)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome
