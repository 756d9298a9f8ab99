"""`agent_sse.mcp` for an agent that holds an MCP client: a client as before, and a user who sees and decides."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.server import Server
from mcp.server.mcpserver import Context, MCPServer
from pydantic_core import PydanticSerializationError

import agent_sse.mcp
import mcp_parts
import mcp_servers
from agent_sse import InvalidEvent, SimpleNotifier
from agent_sse.mcp import Gate, GuardedClient, PolicyFile, guard_client, load_policy
from harness import Valkey, session_name, until
from mcp_parts import Heard, Wire, client_of
from mcp_servers import DENIED, FAILS, RUNS, Browser, asked, browsing

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

ALLOW = 'version = 1\ndefault = "allow"\n'
ASK = 'version = 1\ndefault = "ask"\n'
CANCELLED = ("pending", "executing", "cancelled", "result failed")
WITHDRAWN = (
    "pending", "waiting_permission", "permission_request", "permission_cleared cancelled", "cancelled", "result failed"
)  # fmt: skip


class Room:
    """A session with a user who looks at it, and an agent's way to it."""

    def __init__(self, user: Browser, notifier: SimpleNotifier, folder: Path) -> None:
        self.user = user
        self.notifier = notifier
        self.folder = folder

    @asynccontextmanager
    async def guarded(self, server: Any, policy: str = ASK, **options: Any) -> AsyncIterator[GuardedClient]:
        """Yield a guarded client of a server in this process, or of what a transport leads to."""
        path = self.folder / "policy.toml"
        path.write_text(policy)
        client = client_of(server, Heard(), options.pop("mode", "auto"))
        notifier = options.pop("notifier", self.notifier)
        session = self.user.session
        async with guard_client(
            client, notifier, session_id=session, server="s", policy=load_policy(path), **options
        ) as gated:
            yield gated


@pytest.fixture
async def room(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> AsyncIterator[Room]:
    """A session with a user who looks at it."""
    async with browsing(valkey, session_name()) as browser:
        yield Room(browser, notifier, folder)


def text_of(result: types.CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


class Notes:
    """A server in this process, and what its tools were called with."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.server = MCPServer("notes")

        @self.server.tool()
        def write(path: str, text: str = "", token: str = "") -> str:
            self.ran.append((path, text, token))
            return f"wrote {path}"

        @self.server.tool()
        async def steps(count: int, ctx: Context[Any, Any]) -> str:
            for step in range(count):
                await ctx.report_progress(step + 1, count, f"step {step + 1}")
            return "done"


@pytest.fixture
def notes() -> Notes:
    return Notes()


# -- a client as before -----------------------------------------------------------------------------------------------


def test_guarded_client_has_the_clients_signature() -> None:
    """`call_tool` takes what `mcp.Client.call_tool` takes, and promises the same."""
    ours, theirs = inspect.signature(GuardedClient.call_tool), inspect.signature(Client.call_tool)
    assert theirs == ours
    assert inspect.signature(Client.list_tools) == inspect.signature(GuardedClient.list_tools)


async def test_guarded_client_is_a_client(notes: Notes, room: Room) -> None:
    """It can be entered instead of the client, and shares all that the client has, connected before or after."""
    async with room.guarded(notes.server, ALLOW) as outer:
        assert isinstance(outer, Client)
        assert ("notes", "2026-07-28") == (outer.server_info.name, outer.protocol_version)  # type: ignore[union-attr]
        assert ["write", "steps"] == [tool.name for tool in (await outer.list_tools()).tools]
        with pytest.raises(RuntimeError, match="entered"):
            await outer.__aenter__()
    with pytest.raises(RuntimeError, match="context manager"):
        _ = outer.session
    async with Client(notes.server) as client:
        inner = guard_client(client, room.notifier, session_id=room.user.session, server="s")
        assert client.session is inner.session
        assert (await client.list_tools()) == (await inner.list_tools())


async def test_guarded_client_raises_what_the_client_raises(room: Room) -> None:
    """A protocol error comes through unchanged, and the call has failed with its text."""
    server = MCPServer("errors")

    @server.tool()
    def wrong() -> str:
        raise MCPError(code=-32099, message="not today", data={"a": 1})

    async with Client(server) as client:
        with pytest.raises(MCPError) as expected:
            await client.call_tool("wrong")
    async with room.guarded(server, ALLOW) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("wrong")
    assert expected.value.error == caught.value.error
    assert [FAILS] == await room.user.words()
    assert ["not today"] == [data["error"] for data in await room.user.data("tool_result")]


async def test_guarded_client_takes_arguments_as_the_client_does(notes: Notes, room: Room) -> None:
    """What the client makes JSON of reaches tool and user; what no JSON can hold is a result for the model."""
    arguments: dict[str, Any] = {"path": Path("a"), "text": datetime.date(2026, 1, 2)}
    async with Client(notes.server) as unguarded:
        expected = await unguarded.call_tool("write", {"path": float("nan")})
    async with room.guarded(notes.server, ALLOW) as client:
        assert not (await client.call_tool("write", arguments)).is_error
        assert expected == await client.call_tool("write", {"path": float("nan")})
        with pytest.raises(PydanticSerializationError):
            await client.call_tool("write", {"path": object()})
        refused = await client.call_tool("write", {"path": "a\ud800"})
    assert refused.is_error
    assert "The tool was not run: a string holds a lone surrogate" in text_of(refused)
    assert [("a", "2026-01-02", "")] == notes.ran
    assert {"path": "a", "text": "2026-01-02"} == (await room.user.data("tool_status"))[0]["details"]["parameters"]


async def test_guarded_client_reports_progress_twice(notes: Notes, room: Room) -> None:
    """The caller's callback hears every step of a thousand, the Stream a few of them in order, and the last."""
    heard: list[float] = []

    async def progress(at: float, total: float | None, message: str | None) -> None:
        heard.append(at)

    async with room.guarded(notes.server, ALLOW) as client:
        result = await client.call_tool("steps", {"count": 1000}, progress_callback=progress)
    assert "done" == text_of(result)
    assert list(range(1, 1001)) == sorted(heard)
    statuses = await room.user.data("tool_status")
    shown = [data["details"]["progress"]["progress"] for data in statuses if "progress" in data["details"]]
    assert sorted(set(shown)) == shown
    assert 1000 == shown[-1]
    assert len(shown) < 200
    assert "completed" == statuses[-1]["status"]


async def test_guarded_client_runs_many_calls_at_once(notes: Notes, room: Room) -> None:
    """Each of fifty calls at a time has its own events and its own result."""
    async with room.guarded(notes.server, ALLOW) as client:
        results = await asyncio.gather(*(client.call_tool("write", {"path": str(n)}) for n in range(50)))
    assert [f"wrote {n}" for n in range(50)] == [text_of(result) for result in results]
    assert [RUNS] * 50 == await room.user.words()


async def test_guarded_client_calls_a_tool_of_a_server_that_does_not_list_it(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a list nothing is known of a tool, so it is asked about; it is called all the same."""

    asked_for: list[Any] = []

    async def on_call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.name)])

    async def on_list_tools(_: Any, params: Any) -> types.ListToolsResult:
        asked_for.append(params)
        if len(asked_for) == 1:
            raise MCPError(code=-32603, message="not now")
        return types.ListToolsResult(tools=[])

    server = Server("silent", on_call_tool=on_call_tool, on_list_tools=on_list_tools)
    async with room.guarded(server, "version = 1\n", trusted=True) as client:
        calling = asyncio.create_task(client.call_tool("secretly"))
        request = await room.user.answers()
        assert "secretly" == text_of(await calling)
    assert "high" == request["risk_level"]
    assert "did not list its tools" in caplog.text


async def test_guarded_client_waits_once_for_a_server_that_does_not_list(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that never answers `tools/list` holds up one call for a while, and no other one."""
    monkeypatch.setattr("agent_sse.mcp.tools.LIST_TIMEOUT", 0.2)
    listing: list[bool] = []

    async def on_call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text=params.name)], is_error=True)

    async def on_list_tools(_: Any, __: Any) -> types.ListToolsResult:
        listing.append(True)
        await asyncio.Event().wait()
        raise AssertionError

    server = Server("silent", on_call_tool=on_call_tool, on_list_tools=on_list_tools)
    async with room.guarded(server, ALLOW) as client:
        assert ["a", "b"] == [text_of(await client.call_tool(name)) for name in ("a", "b")]
    assert [True] == listing


async def test_guarded_client_learns_that_a_tool_has_changed(room: Room) -> None:
    """A listing that the application asks for counts at once: what was read-only no longer is."""
    server = MCPServer("changing")
    server.add_tool(lambda: "read", name="peek", annotations=types.ToolAnnotations(read_only_hint=True))
    async with room.guarded(server, "version = 1\n", trusted=True) as client:
        assert "read" == text_of(await client.call_tool("peek"))
        server.remove_tool("peek")
        server.add_tool(lambda: "gone", name="peek", annotations=types.ToolAnnotations(destructive_hint=True))
        await client.list_tools(cache_mode="refresh")
        calling = asyncio.create_task(client.call_tool("peek"))
        await room.user.answers(approved=False)
        assert (await calling).is_error
    assert [RUNS, DENIED] == await room.user.words()


# -- the user decides -------------------------------------------------------------------------------------------------


async def test_guarded_client_tells_the_model_why_it_was_denied(notes: Notes, room: Room) -> None:
    """A denial is a result with `is_error`, in the user's own words; the tool has not run."""
    async with room.guarded(notes.server) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a"}))
        await room.user.answers(approved=False, reason="not this file, use b")
        result = await calling
    assert (True, None) == (result.is_error, result.structured_content)
    assert "The tool was not run: the user denied permission. Reason: not this file, use b" == text_of(result)
    assert [] == notes.ran
    assert [DENIED] == await room.user.words()


async def test_guarded_client_tells_the_model_that_a_policy_denies(notes: Notes, room: Room) -> None:
    """Nobody is asked, and the rule's reason is what the model reads."""
    rule = '[[rules]]\ntool = "write"\ndecision = "deny"\nreason = "Nothing is written here."\n'
    async with room.guarded(notes.server, ALLOW + rule) as client:
        result = await client.call_tool("write", {"path": "a"})
    assert "The tool was not run: a policy denies this call. Reason: Nothing is written here." == text_of(result)
    assert result.is_error
    assert [] == notes.ran
    assert [("pending", "denied", "result failed")] == await room.user.words()


async def test_guarded_client_tells_the_model_that_nobody_answered(notes: Notes, room: Room) -> None:
    """A request that expires does not run the tool."""
    async with room.guarded(notes.server, timeout=0.5) as client:
        result = await client.call_tool("write", {"path": "a"})
    assert result.is_error
    assert "The tool was not run: nobody answered the permission request in time." == text_of(result)
    assert [] == notes.ran


async def test_guarded_client_calls_with_the_parameters_that_the_user_edited(notes: Notes, room: Room) -> None:
    """The tool gets the edited ones, the Stream shows both."""
    async with room.guarded(notes.server) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a", "text": "t"}))
        await room.user.answers(parameters_patch={"path": "b"})
        assert "wrote b" == text_of(await calling)
    assert [("b", "t", "")] == notes.ran
    details = (await room.user.data("tool_status"))[-1]["details"]
    assert ({"path": "b", "text": "t"}, {"path": "a", "text": "t"}) == (
        details["parameters"], details["original_parameters"]
    )  # fmt: skip


async def test_guarded_client_runs_what_was_asked_whatever_the_caller_does(notes: Notes, room: Room) -> None:
    """Arguments that the caller changes while the user thinks are not what runs."""
    arguments = {"path": "harmless"}
    async with room.guarded(notes.server) as client:
        calling = asyncio.create_task(client.call_tool("write", arguments))
        request = await room.user.asked()
        arguments["path"] = "/etc/passwd"
        await room.user.answer(request)
        await calling
    assert [("harmless", "", "")] == notes.ran


async def test_guarded_client_hides_secrets_from_events_alone(notes: Notes, room: Room) -> None:
    """The tool gets the real token, no event has it."""
    async with room.guarded(notes.server) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a", "token": "hunter2hunter2"}))
        await room.user.answers()
        await calling
    assert [("a", "", "hunter2hunter2")] == notes.ran
    assert "hunter2" not in json.dumps(await room.user.valkey.entries(room.user.session))


async def test_guarded_client_counts_the_time_out_for_the_call_only(notes: Notes, room: Room) -> None:
    """The user takes longer than `read_timeout_seconds`, and the call runs."""
    async with room.guarded(notes.server) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a"}, read_timeout_seconds=1.5))
        request = await room.user.asked()
        for _ in range(3):  # each after a second in which nothing else was sent
            await room.user.heartbeat()
        await room.user.answer(request)
        assert "wrote a" == text_of(await calling)


@pytest.mark.parametrize("wire", ["stdio", "http"])
async def test_guarded_client_asks_once_for_a_call_of_several_rounds(room: Room, wire: Wire) -> None:
    """A tool that asks its client for input in between is one call to the user."""
    async with modern_server(wire) as transport, room.guarded(transport) as client:
        assert "2026-07-28" == client.protocol_version
        calling = asyncio.create_task(client.call_tool("careful", {"city": "Bern"}))
        await room.user.answers()
        assert "Bern: True" == text_of(await calling)
    assert [asked(RUNS)] == await room.user.words()


# -- cancelling -------------------------------------------------------------------------------------------------------

every_line = pytest.mark.parametrize(
    ("wire", "mode"), [(wire, mode) for wire in ("stdio", "http") for mode in ("legacy", "2026-07-28")]
)


@asynccontextmanager
async def modern_server(wire: Wire) -> AsyncIterator[Any]:
    """Yield a transport to the SDK's server."""
    if wire == "stdio":
        yield mcp_parts.direct(mcp_parts.modern("stdio"))
    else:
        async with mcp_parts.url_of(lambda port: mcp_parts.modern("http", port)) as url:
            yield mcp_parts.streamable_http_client(url, max_sse_event_size=None)


async def natively(call: Awaitable[Any], cancel: Callable[[], Awaitable[None]]) -> None:
    """Run a call and cancel its task once ``cancel`` says so."""
    task = asyncio.ensure_future(call)
    await cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def in_a_scope(call: Awaitable[Any], cancel: Callable[[], Awaitable[None]]) -> None:
    """Run a call and cancel the scope of anyio's around it, which cancels every await in it."""
    async with anyio.create_task_group() as group:

        async def run() -> None:
            await call

        group.start_soon(run)
        await cancel()
        group.cancel_scope.cancel()


both_cancels = pytest.mark.parametrize("cancelling", [natively, in_a_scope])


@every_line
@both_cancels
async def test_guarded_client_that_is_cancelled_cancels_the_request(
    room: Room, monkeypatch: pytest.MonkeyPatch, wire: Wire, mode: str,
    cancelling: Any,
) -> None:  # fmt: skip
    """The server's tool is stopped, and the card says cancelled, however the call was cancelled."""
    monkeypatch.setenv("RUNS", str(room.folder / "runs"))

    async def running() -> None:
        while "progress" not in (await room.user.status("executing"))["details"]:
            pass

    async with (
        modern_server(wire) as transport,
        room.guarded(transport, ALLOW, mode=mode) as client,
    ):
        await cancelling(client.call_tool("endless"), running)
        await until((room.folder / "runs").exists, what="the tool having been stopped")
        (words,) = await room.user.ended()
    assert ("pending", "executing", "progress 1/0", "cancelled", "result failed") == words
    assert "cancelled\n" == (room.folder / "runs").read_text()


@both_cancels
async def test_guarded_client_that_is_cancelled_withdraws_its_question(
    notes: Notes, room: Room, cancelling: Any
) -> None:
    """The prompt goes, and the tool has not run."""

    async def being_asked() -> None:
        await room.user.asked()

    async with room.guarded(notes.server) as client:
        await cancelling(client.call_tool("write", {"path": "a"}), being_asked)
        assert [WITHDRAWN] == await room.user.ended()
    assert [] == notes.ran


@every_line
async def test_guarded_client_stops_a_call_that_the_user_cancels(
    room: Room, monkeypatch: pytest.MonkeyPatch, wire: Wire, mode: str
) -> None:
    """The server's tool is stopped, the model reads why, and the task that called goes on."""
    monkeypatch.setenv("RUNS", str(room.folder / "runs"))
    async with (
        modern_server(wire) as transport,
        room.guarded(transport, ALLOW, mode=mode) as client,
    ):
        calling = asyncio.create_task(client.call_tool("endless"))
        data = await room.user.status("executing")
        while "progress" not in data["details"]:
            data = await room.user.status("executing")
        await room.user.cancel(data["tool_call_id"], "that is enough")
        result = await calling
        assert result.is_error
        assert "The user cancelled this call while it ran. Reason: that is enough" == text_of(result)
        assert "3" == text_of(await client.call_tool("add", {"a": 1, "b": 2}))
        await until((room.folder / "runs").exists, what="the tool having been stopped")
    (words, _) = await room.user.words()
    assert ("pending", "executing", "progress 1/0", "cancelled", "result failed") == words


# -- what goes wrong --------------------------------------------------------------------------------------------------


async def test_guarded_client_runs_nothing_without_redis(notes: Notes, valkey: Valkey, room: Room) -> None:
    """The model is told to try again later; the next call, with Redis back, runs."""
    async with (
        SimpleNotifier.from_url(valkey.url, publish_timeout=1) as notifier,
        room.guarded(notes.server, ALLOW, notifier=notifier) as client,
    ):
        await valkey.stop()
        result = await client.call_tool("write", {"path": "a"})
        assert result.is_error
        assert "the service that asks the user cannot be reached" in text_of(result)
        await valkey.start()
        assert "wrote b" == text_of(await client.call_tool("write", {"path": "b"}))
    assert ["b"] == [path for path, *_ in notes.ran]


async def test_guarded_client_keeps_the_result_when_redis_goes(
    valkey: Valkey, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """A tool that has run must not look as if it had not: its result is returned, and the lost end is logged."""
    server = MCPServer("slow")

    @server.tool()
    async def work() -> str:
        await valkey.stop()
        return "worked"

    async with (
        SimpleNotifier.from_url(valkey.url, publish_timeout=1) as notifier,
        room.guarded(server, ALLOW, notifier=notifier) as client,
    ):
        result = await client.call_tool("work")
        await valkey.start()
    assert (False, "worked") == (result.is_error, text_of(result))
    assert "the end of a call of work is not published" in caplog.text


def _results() -> dict[str, types.CallToolResult]:
    deep: Any = "x"
    for _ in range(300):
        deep = {"d": deep}
    return {
        "fine": types.CallToolResult(content=[], structured_content={"a": float("nan")}),
        "deep": types.CallToolResult(content=[], structured_content=deep),
        "surrogate": types.CallToolResult(content=[types.TextContent(type="text", text="a\ud800")]),
        "bytes": types.CallToolResult(content=[], structured_content={"a": b"\xff"}),
        "object": types.CallToolResult(content=[], structured_content={"a": object()}, is_error=True),
        "large": types.CallToolResult(content=[types.TextContent(type="text", text="x" * 2_000_000)]),
        "many": types.CallToolResult(content=[types.TextContent(type="text", text=str(n)) for n in range(20_000)]),
    }


RESULTS = _results()


class Odd(Client):
    """A client that returns what no server on a wire could."""

    async def call_tool(self, name: str, *args: Any, **options: Any) -> types.CallToolResult:
        return RESULTS[name]


@pytest.mark.parametrize("kind", list(RESULTS))
async def test_guarded_client_returns_what_cannot_be_shown(notes: Notes, room: Room, kind: str) -> None:
    """A result that no event can hold is returned whole, and its card closes with a note or a shortened result."""
    (room.folder / "p").write_text(ALLOW)
    client = Odd(notes.server)
    async with guard_client(
        client, room.notifier, session_id=room.user.session, server="s", policy=room.folder / "p"
    ) as gated:
        result = await gated.call_tool(kind)
    assert RESULTS[kind] is result
    assert [FAILS if result.is_error else RUNS] == await room.user.words()
    (shown,) = await room.user.data("tool_result")
    note = {"fine": '{"a": null}', "large": "(2000000 characters)", "many": "(20000 items)"}.get(
        kind, "cannot be shown"
    )
    assert note in json.dumps(shown)
    assert len(json.dumps(shown)) < 200_000


# -- the package ------------------------------------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "code",
    [
        "from agent_sse.mcp import GuardedClient",
        "from agent_sse.mcp import guard_client",
        "import agent_sse.mcp; agent_sse.mcp.GateMiddleware",
    ],
)
def test_package_without_the_sdk_says_what_to_install(code: str) -> None:
    """Without the extra there is one clear sentence, and it is an ImportError; gate and guard do without."""
    done = python(f"import sys; sys.modules['mcp'] = None\n{code}")
    assert "agent_sse.mcp needs the package mcp: pip install 'agent-sse[mcp]'" in done.stderr.splitlines()[-1]
    assert 1 == done.returncode
    caught = python(
        "import sys; sys.modules['mcp'] = None\nfrom agent_sse.mcp import Gate\n"
        "try:\n  from agent_sse.mcp import guard_client\nexcept ImportError: print(1)"
    )
    assert "1\n" == caught.stdout


def test_package_loads_the_sdk_only_where_it_is_needed() -> None:
    """The gate alone does without it, and so does the package's name."""
    done = python(
        "import sys, agent_sse.mcp.gate\nfrom agent_sse.mcp import Gate, PolicyFile\nprint('mcp' in sys.modules)"
    )
    assert "False\n" == done.stdout, done.stderr


def test_package_offers_what_it_names() -> None:
    """Every name in `__all__` is there, and nothing else is made up."""
    assert dict.fromkeys(agent_sse.mcp.__all__, True) == {
        name: hasattr(agent_sse.mcp, name) for name in agent_sse.mcp.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = agent_sse.mcp.Nothing


def test_guard_client_takes_a_policys_path_and_refuses_what_cannot_work(notifier: Any, folder: Path) -> None:
    """A path is a file that is read again; a name that no event can carry is refused before anything runs."""
    (folder / "p.toml").write_text(ALLOW)
    gate = Gate(notifier, "s", server="s", policy=str(folder / "p.toml"))
    assert isinstance(gate._policy, PolicyFile)
    with pytest.raises(InvalidEvent, match="server"):
        Gate(notifier, "s", server="")


async def test_example_client_shows_a_call_and_asks_about_another(valkey: Valkey, folder: Path) -> None:
    """`examples/mcp_client.py` as it stands: the status is read, and the branch is named as the user says."""
    session, home = session_name(), folder / "home"
    mcp_servers.prepare(home)
    example = Path(__file__).parents[2] / "examples/mcp_client.py"
    async with browsing(valkey, session) as user:
        running = await asyncio.create_subprocess_exec(
            sys.executable, str(example), session, str(home / "repo"), stdout=asyncio.subprocess.PIPE,
            env={**mcp_servers.environment(), "AGENT_SSE_REDIS_URL": valkey.url},
        )  # fmt: skip
        request = await user.answers(parameters_patch={"branch_name": "mine"})
        output, _ = await running.communicate()
        assert 0 == running.returncode
        assert ("git", "git_create_branch") == (request["server"], request["tool_name"])
        assert "On branch main" in output.decode()
        assert "done: Created branch 'mine'" in output.decode()
        assert [RUNS, asked(RUNS)] == await user.words()
