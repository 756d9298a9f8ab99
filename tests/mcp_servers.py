"""Five real MCP servers, a table of calls to each, and what a session's Stream says of every one of them.

As a program it runs one of the Python servers over streamable HTTP, which their own commands do not: the server that
the package makes, with the SDK's transport. `python mcp_servers.py git HOME PORT`
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import mcp_parts
from harness import Served, Stream, Valkey, bearer, make_settings, make_token, serve, until
from mcp_parts import Wire
from permission_time import let_time_pass

FILESYSTEM = mcp_parts.SERVERS / "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js"

RUNS = ("pending", "executing", "completed", "result ok")
FAILS = ("pending", "executing", "failed", "result failed")
STEPS = ("pending", "executing", "progress 1/2", "progress 2/2", "completed", "result ok")
CANCELLED = ("pending", "executing", "cancelled", "result failed")
QUESTION = ("waiting_permission", "permission_request", "permission_response_result", "permission_cleared approved")
DENIED = (
    "pending", "waiting_permission", "permission_request", "permission_response_result", "permission_cleared denied",
    "denied", "result failed",
)  # fmt: skip


def asked(words: Sequence[str]) -> tuple[str, ...]:
    """Return what the Stream says of such a call when the user is asked and approves."""
    return (words[0], *QUESTION, *words[1:])


@dataclass(frozen=True)
class Row:
    """A call: `{home}` and `{site}` in its arguments stand for a directory and a web site of the test's own."""

    tool: str
    arguments: dict[str, Any] | None
    events: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)  # arguments of `call_tool`
    guarded: tuple[str, ...] = ()  # the events through the guard, where they differ


REPO = "{home}/repo"

GIT = (
    Row("git_status", {"repo_path": REPO}, RUNS),
    Row("git_diff_unstaged", {"repo_path": REPO, "context_lines": 1}, RUNS),
    Row("git_add", {"repo_path": REPO, "files": ["a.txt"]}, RUNS),
    Row("git_commit", {"repo_path": REPO, "message": "Grüße 🌍"}, RUNS),
    Row("git_log", {"repo_path": REPO, "max_count": 2}, RUNS),
    Row("git_show", {"repo_path": REPO, "revision": "HEAD"}, RUNS),
    Row("git_create_branch", {"repo_path": REPO, "branch_name": "b"}, RUNS),
    Row("git_checkout", {"repo_path": REPO, "branch_name": "nowhere"}, FAILS),
    Row("git_status", {"repo_path": "{home}/elsewhere"}, FAILS),
    Row("git_log", {"repo_path": REPO, "max_count": "many"}, FAILS),
    Row("git_add", None, FAILS),
    Row("git_push", {"repo_path": REPO}, FAILS),
)
ZURICH = {"source_timezone": "Europe/Zurich", "time": "12:30", "target_timezone": "Asia/Tokyo"}
TIME = (
    Row("get_current_time", {"timezone": "Europe/Zurich"}, RUNS),
    Row("convert_time", ZURICH, RUNS),
    Row("convert_time", {**ZURICH, "time": "25:99"}, FAILS),
    Row("get_current_time", {"timezone": "Nowhere/At_All"}, FAILS),
    Row("get_current_time", {}, FAILS),
    Row("convert_time", {**ZURICH, "time": [1]}, FAILS),
    Row("stop_time", {"at": 1}, FAILS),
)
FETCH = (
    Row("fetch", {"url": "{site}/data.json"}, RUNS),
    Row("fetch", {"url": "{site}/page.html"}, RUNS),
    Row("fetch", {"url": "{site}/page.html", "raw": True}, RUNS),
    Row("fetch", {"url": "{site}/long.txt", "max_length": 100, "start_index": 50}, RUNS),
    Row("fetch", {"url": "{site}/none"}, FAILS),
    Row("fetch", {"url": "no address"}, FAILS),
    Row("fetch", {"url": "{site}/data.json", "max_length": "9"}, FAILS),
    Row("fetch", None, FAILS),
    Row("post", {"url": "{site}/data.json"}, FAILS),
)
EVERYTHING = (
    Row("echo", {"message": 'Grüße 🌍 \u2028 " \\ \u0000'}, RUNS),
    Row("echo", {"message": "x" * 300_000}, RUNS),
    Row("echo", {}, FAILS),
    Row("get-sum", {"a": 1, "b": 2.5}, RUNS),
    Row("get-sum", {"a": "one"}, FAILS),
    Row("get-structured-content", {"location": "New York"}, RUNS),
    Row("get-tiny-image", None, RUNS),
    Row("get-resource-links", {"count": 3}, RUNS),
    Row("get-annotated-message", {"messageType": "error", "includeImage": True}, RUNS),
    Row("trigger-long-running-operation", {"duration": 0.5, "steps": 2}, STEPS),
    Row("trigger-sampling-request", {"prompt": "say", "maxTokens": 5}, RUNS),
    Row("trigger-elicitation-request", {}, RUNS),
    # A client that waits no longer has failed; to the guard it has cancelled the call.
    Row("trigger-long-running-operation", {"duration": 60}, FAILS, {"read_timeout_seconds": 0.2}, guarded=CANCELLED),
    Row("no-such-tool", {"a": 1}, FAILS),
)
FILES = (
    Row("write_file", {"path": "{home}/files/new.txt", "content": "one\ntwo\n"}, RUNS),
    Row("read_text_file", {"path": "{home}/files/new.txt", "head": 1}, RUNS),
    Row(
        "edit_file",
        {"path": "{home}/files/new.txt", "edits": [{"oldText": "two", "newText": "three"}], "dryRun": False},
        RUNS,
    ),
    Row("read_multiple_files", {"paths": ["{home}/files/new.txt", "{home}/files/none"]}, RUNS),
    Row("create_directory", {"path": "{home}/files/sub"}, RUNS),
    Row("move_file", {"source": "{home}/files/new.txt", "destination": "{home}/files/sub/new.txt"}, RUNS),
    Row("directory_tree", {"path": "{home}/files"}, RUNS),
    Row("search_files", {"path": "{home}/files", "pattern": "**/*.txt"}, RUNS),
    Row("get_file_info", {"path": "{home}/files/sub/new.txt"}, RUNS),
    Row("read_text_file", {"path": "/etc/passwd"}, FAILS),
    Row("edit_file", {"path": "{home}/files/sub/new.txt", "edits": [{"oldText": "none", "newText": ""}]}, FAILS),
    Row("write_file", {"path": 1}, FAILS),
    Row("delete_file", {"path": "{home}/files/sub/new.txt"}, FAILS),
)


@dataclass(frozen=True)
class Server:
    """How to start a server on a home directory, over each wire that it knows, and what to call."""

    name: str
    rows: tuple[Row, ...]
    command: Callable[[Path], list[str]]
    serve: Callable[[Path, int], list[str]] | None  # over streamable HTTP
    modes: tuple[str, ...]
    versions: tuple[str, ...]  # that the modes come to


def _over_http(name: str) -> Callable[[Path, int], list[str]]:
    return lambda home, port: [sys.executable, __file__, name, str(home), str(port)]


SERVERS = {
    "git": Server(
        "git", GIT, lambda home: [sys.executable, "-m", "mcp_server_git", "--repository", str(home / "repo")],
        _over_http("git"), ("legacy", "2026-07-28"), ("2025-11-25", "2026-07-28"),
    ),
    "time": Server(
        "time", TIME, lambda _: [sys.executable, "-m", "mcp_server_time", "--local-timezone", "Europe/Zurich"],
        _over_http("time"), ("legacy", "auto"), ("2025-11-25", "2026-07-28"),
    ),
    "fetch": Server(
        "fetch", FETCH, lambda _: [sys.executable, "-m", "mcp_server_fetch", "--allow-private-ips"],
        _over_http("fetch"), ("legacy", "auto"), ("2025-11-25", "2026-07-28"),
    ),
    "everything": Server(
        "everything", EVERYTHING, lambda _: mcp_parts.everything("stdio"),
        lambda _, __: mcp_parts.everything("http"), ("legacy", "auto"), ("2025-11-25", "2025-11-25"),
    ),
    "filesystem": Server(
        "filesystem", FILES, lambda home: ["node", str(FILESYSTEM), str(home / "files")],
        None, ("legacy", "auto"), ("2025-11-25", "2025-11-25"),
    ),
}  # fmt: skip


# -- what they work on ------------------------------------------------------------------------------------------------


def prepare(home: Path) -> None:
    """Make the directory that the servers work on anew, the same every time."""
    shutil.rmtree(home, ignore_errors=True)
    repo = home / "repo"
    repo.mkdir(parents=True)
    (home / "files").mkdir()
    (repo / "a.txt").write_text("one\n")
    for command in ("init -q -b main", "add a.txt", "commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=repo, check=True, env=environment())
    (repo / "a.txt").write_text("two\n")


def environment() -> dict[str, str]:
    """Return an environment in which a commit is the same whenever and by whomever it is made."""
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "a"), ("EMAIL", "a@example.com"), ("DATE", "1767225600 +0000"))}  # fmt: skip
    return {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "NO_PROXY": "*"}


PAGES = {
    "/data.json": ("application/json", '{"a": [1, 2]}'),
    "/page.html": ("text/html", "<html><body><article><h1>T</h1><p>Some words here.</p></article></body></html>"),
    "/long.txt": ("text/plain", "0123456789" * 1000),
}


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, text = PAGES.get(self.path, ("text/plain", "none"))
        self.send_response(200 if self.path in PAGES else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def web_site() -> Iterator[str]:
    """Serve a few pages on this machine alone, and yield their address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def filled(value: Any, places: dict[str, str]) -> Any:
    """Return arguments with the names of the places filled in."""
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", place)
        return value
    if isinstance(value, dict):
        return {key: filled(item, places) for key, item in value.items()}
    return [filled(item, places) for item in value] if isinstance(value, list) else value


# -- ways to them -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def transport_to(server: Server, wire: Wire, home: Path) -> AsyncIterator[Any]:
    """Start a server, and yield what a client takes to speak with it."""
    if wire == "stdio":
        yield stdio(server.command(home))
    else:
        async with url_of(server, home) as url:
            yield mcp_parts.streamable_http_client(url, max_sse_event_size=None)


@asynccontextmanager
async def transport_through_guard(
    server: Server, wire: Wire, home: Path, options: Sequence[str], more: dict[str, str]
) -> AsyncIterator[Any]:
    """Do the same with `agent-sse guard` between: it speaks with client and server over the same wire, if both can."""
    guard = [sys.executable, "-m", "agent_sse", "guard", "--name", server.name, *options]
    async with contextlib.AsyncExitStack() as stack:
        if wire == "stdio":
            yield stdio([*guard, "--", *server.command(home)], more)
            return
        if server.serve is None:
            behind = ["--", *server.command(home)]
        else:
            behind = ["--url", await stack.enter_async_context(url_of(server, home))]
        command = [*guard, "--http", "0", *behind]
        ready = r"(http://[0-9.]+:\d+/mcp)"
        _, found = await stack.enter_async_context(
            mcp_parts.process(command, ready=ready, environment={**environment(), **more})
        )
        yield mcp_parts.streamable_http_client(found[1], max_sse_event_size=None)


def stdio(command: list[str], more: dict[str, str] | None = None) -> Any:
    """Return a transport to a program on its standard input and output."""
    parameters = mcp_parts.StdioServerParameters(
        command=command[0], args=command[1:], env={**environment(), **(more or {})}
    )
    return mcp_parts.stdio_client(parameters)


@asynccontextmanager
async def url_of(server: Server, home: Path) -> AsyncIterator[str]:
    """Run a server over streamable HTTP and yield its address."""
    assert server.serve is not None
    port = mcp_parts.free_port()
    ready = r"listening on port|running on http"
    more = {**environment(), "PORT": str(port)}
    async with mcp_parts.process(server.serve(home, port), ready=ready, environment=more):
        yield f"http://127.0.0.1:{port}/mcp"


# -- the user ---------------------------------------------------------------------------------------------------------


class Browser:
    """A user of one session, with a browser's means: the stream and the endpoints of a service."""

    def __init__(self, valkey: Valkey, session: str, served: Served, http: httpx.AsyncClient, stream: Stream) -> None:
        self.valkey = valkey
        self.session = session
        self._served = served
        self._http = http
        self._stream = stream
        self._seen: set[str] = set()

    async def asked(self) -> dict[str, Any]:
        """Wait for a permission request and return its data; heartbeats show an open one again."""
        while True:
            data: dict[str, Any] = (await self._stream.next("permission_request", deadline=600)).json["data"]
            if data["request_id"] not in self._seen:
                self._seen.add(data["request_id"])
                return data

    async def status(self, wanted: str) -> dict[str, Any]:
        """Wait for a status of any call and return the event's data."""
        while (data := (await self._stream.next("tool_status")).json["data"])["status"] != wanted:
            pass
        return dict(data)

    async def heartbeat(self) -> None:
        """Wait for a heartbeat: a second in which nothing else happened."""
        await self._stream.next("heartbeat")

    async def answer(self, request: dict[str, Any], *, approved: bool = True, reason: str = "so", **more: Any) -> None:
        """Answer a request."""
        body = {"approved": approved, "reason": reason, "request_id": request["request_id"], **more}
        await self._post("permission-response", body)

    async def answers(self, **more: Any) -> dict[str, Any]:
        """Wait for a request, answer it and return it."""
        request = await self.asked()
        await self.answer(request, **more)
        return request

    async def cancel(self, tool_call_id: str, reason: str = "enough") -> None:
        """Cancel a call."""
        await self._post("cancel", {"tool_call_id": tool_call_id, "reason": reason})

    async def _post(self, what: str, body: dict[str, Any]) -> None:
        url = f"{self._served.api}/{what}/{self.session}"
        response = await self._http.post(url, json=body, headers=bearer(make_token(self.session)))
        assert response.json()["success"], response.text

    async def audit(self) -> list[dict[str, Any]]:
        """Return who decided what, the oldest first."""
        url = f"{self._served.api}/audit/{self.session}"
        response = await self._http.get(url, headers=bearer(make_token(self.session)))
        return list(response.json()["data"]["entries"])

    async def data(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of the session's events of one kind."""
        return [event["data"] for _, event in await self.valkey.entries(self.session) if event["type"] == kind]

    async def words(self) -> list[tuple[str, ...]]:
        """Return what the Stream says of each call, in the order of their beginnings."""
        calls = words_of([event for _, event in await self.valkey.entries(self.session)])
        return [tuple(words) for words in calls.values()]

    async def ended(self, count: int = 1) -> list[tuple[str, ...]]:
        """Wait until so many calls have their result, and return what the Stream says of each call."""

        async def all_have() -> list[tuple[str, ...]] | None:
            calls = await self.words()
            return calls if sum(words[-1].startswith("result") for words in calls) >= count else None

        return list(await until(all_have, what="the calls having ended"))


@asynccontextmanager
async def browsing(valkey: Valkey, session: str, **settings: Any) -> AsyncIterator[Browser]:
    """Yield a user who looks at a session."""
    async with (
        serve(make_settings(valkey.url, **settings)) as served, httpx.AsyncClient(trust_env=False) as http,
        Stream(served.events(session, make_token(session))) as stream,
    ):  # fmt: skip
        yield Browser(valkey, session, served, http, stream)


@asynccontextmanager
async def approving(valkey: Valkey, session: str) -> AsyncIterator[None]:
    """Let a user approve whatever is asked in a session."""
    async with browsing(valkey, session) as user:

        async def approve() -> None:
            while True:
                await user.answers()

        task = asyncio.create_task(approve())
        try:
            yield
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def no_gap(valkey: Valkey, session: str) -> None:
    """Let the second pass that has to lie between two prompts."""
    async with valkey.client() as redis:
        await let_time_pass(redis, session, 1000)


# -- what became of the calls -----------------------------------------------------------------------------------------


def words_of(events: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return for each tool call of a session what its Stream says, as words, in order."""
    calls: dict[str, list[str]] = {}
    by_request: dict[str, str] = {}
    for event in events:
        data = event["data"]
        call_id = data.get("tool_call_id") or by_request[data["request_id"]]
        if event["type"] == "permission_request":
            by_request[data["request_id"]] = call_id
        calls.setdefault(call_id, []).append(_word(event["type"], data))
    return calls


def _word(kind: str, data: dict[str, Any]) -> str:
    if kind == "tool_status":
        step = data["details"].get("progress")
        return str(data["status"]) if step is None else f"progress {step['progress']:g}/{step.get('total', 0):g}"
    if kind == "tool_result":
        return f"result {'ok' if data['success'] else 'failed'}"
    return f"{kind} {data['outcome']}" if kind == "permission_cleared" else kind


def _run_over_http(name: str, home: Path, port: int) -> None:
    if name == "git":
        from mcp_server_git.server import create_server as git

        git(home / "repo").run("streamable-http", port=port)
    elif name == "time":
        from mcp_server_time.server import create_server as time

        time("Europe/Zurich").run("streamable-http", port=port)
    else:
        from mcp_server_fetch.server import create_server as fetch

        fetch(allow_private_ips=True).run("streamable-http", port=port)


if __name__ == "__main__":
    _run_over_http(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
