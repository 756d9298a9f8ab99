"""`agent_sse.mcp` for an MCP server's author: the gate inside, over every transport and in both generations."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.server import Server
from mcp.server.mcpserver import Context, Elicit, MCPServer
from mcp.server.mcpserver.resolve import Resolve
from pydantic import BaseModel

import mcp_parts
import mcp_servers
from agent_sse import SimpleNotifier
from agent_sse.mcp import Gate, GateMiddleware, load_policy, rounds
from harness import Valkey, session_name, until
from mcp_parts import Heard, Wire, client_of, outcome
from mcp_servers import DENIED, FAILS, RUNS, Browser, asked, browsing

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

GATED = Path(__file__).parents[1] / "mcp_gated.py"
ALLOW, ASK = 'version = 1\ndefault = "allow"\n', 'version = 1\ndefault = "ask"\n'
# `endless` is allowed where the others are asked about.
POLICY = ASK + '[[rules]]\ntool = ["endless", "add"]\ndecision = "allow"\n'

every_line = pytest.mark.parametrize(
    ("wire", "mode"), [(wire, mode) for wire in ("stdio", "http") for mode in ("legacy", "auto")]
)


class Room:
    """A session with a user, and servers with the gate inside."""

    def __init__(self, user: Browser, notifier: SimpleNotifier, folder: Path) -> None:
        self.user = user
        self.notifier = notifier
        self.folder = folder
        self.policy = folder / "policy.toml"

    @asynccontextmanager
    async def process(self, wire: Wire, policy: str = POLICY) -> AsyncIterator[Process]:
        """Run a server of its own, over a wire."""
        self.policy.write_text(policy)
        more = {
            "GATED_REDIS": self.user.valkey.url, "GATED_POLICY": str(self.policy), "GATED_SESSION": self.user.session,
            "RUNS": str(self.folder / "runs"),
        }  # fmt: skip
        async with AsyncExitStack() as stack:
            url = None
            if wire == "http":
                port = mcp_parts.free_port()
                command = [sys.executable, str(GATED), "http", str(port)]
                await stack.enter_async_context(mcp_parts.process(command, ready="running on http", environment=more))
                url = f"http://127.0.0.1:{port}/mcp"
            yield Process(url, more)

    def ran(self) -> list[str]:
        """Return what the tools noted."""
        path = self.folder / "runs"
        return path.read_text().splitlines() if path.exists() else []

    def gate(self, policy: str, *, session: str | None = None) -> Gate:
        self.policy.write_text(policy)
        return Gate(self.notifier, session or self.user.session, server="s", policy=load_policy(self.policy))


class Process:
    """A server that runs, and clients of it."""

    def __init__(self, url: str | None, environment: dict[str, str]) -> None:
        self._url = url
        self._environment = environment

    @asynccontextmanager
    async def client(self, mode: str, session: str) -> AsyncIterator[Client]:
        """Yield a client, of a session if the server is for many."""
        if self._url is None:
            command = [sys.executable, str(GATED), "stdio"]
            async with client_of(mcp_servers.stdio(command, self._environment), Heard(), mode) as client:
                yield client
            return
        async with httpx2.AsyncClient(headers={"x-session": session}, trust_env=False, timeout=60) as http:
            transport = streamable_http_client(self._url, http_client=http)
            async with client_of(transport, Heard(), mode) as client:
                yield client


@pytest.fixture
async def room(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> AsyncIterator[Room]:
    """A session with a user who looks at it."""
    async with browsing(valkey, session_name()) as user:
        yield Room(user, notifier, folder)


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


# -- the table --------------------------------------------------------------------------------------------------------

STEPS = ("pending", "executing", "progress 1/2", "progress 2/2", "completed", "result ok")
TABLE: list[tuple[str, Any, tuple[str, ...]]] = [
    ("add", {"a": 1, "b": 2}, RUNS),
    ("add", {"a": "x"}, FAILS),
    ("careful", {"city": "Zürich"}, RUNS),
    ("fail", None, FAILS),
    ("talk", {}, RUNS),
    ("slow", {"steps": 2}, STEPS),
    ("none", {"a": 1}, FAILS),
]


async def tour(client: Client, user: Browser | None = None) -> list[Any]:
    results = []
    for name, arguments, _ in TABLE:
        results.append(await outcome(client.call_tool(name, arguments)))
        if user is not None:
            await mcp_servers.no_gap(user.valkey, user.session)
    return results


@every_line
@pytest.mark.parametrize("policy", [ALLOW, ASK], ids=["allow", "ask"])
async def test_server_with_the_gate_has_the_tables_events_and_the_same_results(
    room: Room, wire: Wire, mode: str, policy: str
) -> None:
    """Every call has the result that it has without the gate, and is shown from its beginning to its end."""
    async with AsyncExitStack() as stack:
        if wire == "stdio":
            transport: Any = mcp_parts.direct(mcp_parts.modern("stdio"))
        else:
            url = await stack.enter_async_context(mcp_parts.url_of(lambda port: mcp_parts.modern("http", port)))
            transport = streamable_http_client(url)
        expected = await tour(await stack.enter_async_context(client_of(transport, Heard(), mode)))
    async with AsyncExitStack() as stack:
        if policy == ASK:
            await stack.enter_async_context(mcp_servers.approving(room.user.valkey, room.user.session))
        server = await stack.enter_async_context(room.process(wire, policy))
        client = await stack.enter_async_context(server.client(mode, room.user.session))
        assert ("2025-11-25" if mode == "legacy" else "2026-07-28") == client.protocol_version
        actual = await tour(client, room.user)
    assert expected == actual
    words = [row[2] if policy == ALLOW else asked(row[2]) for row in TABLE]
    assert words == await room.user.words()


# -- the user decides -------------------------------------------------------------------------------------------------


@every_line
async def test_server_tells_the_model_why_it_was_denied(room: Room, wire: Wire, mode: str) -> None:
    """The tool has not run, and the result says why in the user's words."""
    async with room.process(wire) as server, server.client(mode, room.user.session) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a"}))
        request = await room.user.answers(approved=False, reason="not now")
        result = await calling
    assert result.is_error
    assert "The tool was not run: the user denied permission. Reason: not now" == text_of(result)
    assert [] == room.ran()
    assert [DENIED] == await room.user.words()
    assert "modern" == request["server"]


@every_line
async def test_server_runs_what_the_user_edited_and_hides_secrets_from_events_alone(
    room: Room, wire: Wire, mode: str
) -> None:
    """The tool gets the edited parameters with the real token; no event has the token."""
    async with room.process(wire) as server, server.client(mode, room.user.session) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a", "token": "hunter2hunter2"}))
        request = await room.user.asked()
        with pytest.raises(AssertionError, match="invalid_parameters"):
            await room.user.answer(request, parameters_patch={"path": 1})  # the tool's schema says string
        await room.user.answer(request, parameters_patch={"path": "b"})
        assert "wrote b" == text_of(await calling)
    assert ["write b hunter2hunter2"] == room.ran()
    assert "hunter2" not in str(await room.user.valkey.entries(room.user.session))


async def test_server_of_many_keeps_their_sessions_apart(room: Room, valkey: Valkey) -> None:
    """The gate is chosen by the request: each user is asked about his own calls, and nobody sees another's."""
    async with room.process("http") as server, browsing(valkey, session_name()) as other:
        async with (
            server.client("auto", room.user.session) as client,
            server.client("legacy", other.session) as others_client,
        ):
            first = asyncio.create_task(client.call_tool("write", {"path": "a"}))
            second = asyncio.create_task(others_client.call_tool("write", {"path": "b"}))
            assert "a" == (await room.user.answers())["parameters"]["path"]
            assert "b" == (await other.answers(approved=False))["parameters"]["path"]
            assert "wrote a" == text_of(await first)
            assert (await second).is_error
        assert [asked(RUNS)] == await room.user.words()
        assert [DENIED] == await other.words()


# -- cancelling -------------------------------------------------------------------------------------------------------


async def progressing(user: Browser) -> str:
    """Wait until a call reports progress, and return its id."""
    while "progress" not in (data := await user.status("executing"))["details"]:
        pass
    return str(data["tool_call_id"])


STOPPED = ("pending", "executing", "progress 1/0", "cancelled", "result failed")


@every_line
async def test_server_stops_a_call_that_its_client_cancels(room: Room, wire: Wire, mode: str) -> None:
    """`notifications/cancelled`, or the end of the stream, stops the tool, and the card says cancelled."""
    async with room.process(wire) as server, server.client(mode, room.user.session) as client:
        calling = asyncio.create_task(client.call_tool("endless"))
        await progressing(room.user)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert [STOPPED] == await room.user.ended()
        await until(lambda: ["cancelled"] == room.ran(), what="the tool having been stopped")


@every_line
async def test_server_takes_its_question_back_when_its_client_cancels(room: Room, wire: Wire, mode: str) -> None:
    """The prompt goes, and the tool does not run."""
    async with room.process(wire) as server, server.client(mode, room.user.session) as client:
        calling = asyncio.create_task(client.call_tool("write", {"path": "a"}))
        await room.user.asked()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        (words,) = await room.user.ended()
    assert ("permission_request", "permission_cleared cancelled", "cancelled", "result failed") == words[-4:]
    assert [] == room.ran()


@every_line
async def test_server_stops_a_call_that_the_user_cancels(room: Room, wire: Wire, mode: str) -> None:
    """The model reads who did it and why, and the connection goes on."""
    async with room.process(wire) as server, server.client(mode, room.user.session) as client:
        calling = asyncio.create_task(client.call_tool("endless"))
        await room.user.cancel(await progressing(room.user), "that is enough")
        result = await calling
        assert result.is_error
        assert "The user cancelled this call while it ran. Reason: that is enough" == text_of(result)
        assert "3" == text_of(await client.call_tool("add", {"a": 1, "b": 2}))
    assert STOPPED == (await room.user.words())[0]
    assert ["cancelled"] == room.ran()


# -- several rounds ---------------------------------------------------------------------------------------------------


class Sure(BaseModel):
    sure: bool


async def first(city: str) -> Elicit[Sure]:
    return Elicit(f"{city}?", Sure)


async def second(city: str, one: Annotated[Sure, Resolve(first)]) -> Elicit[Sure]:
    return Elicit(f"{city}, really?", Sure)


class Careful:
    """A server whose tool asks its client two things, one after the other, before it runs."""

    def __init__(self, middleware: GateMiddleware) -> None:
        self.ran: list[str] = []
        self.server = MCPServer("careful", middleware=[middleware])

        async def go(city: str, one: Annotated[Sure, Resolve(first)], two: Annotated[Sure, Resolve(second)]) -> str:
            self.ran.append(city)
            return f"went to {city}"

        self.server.add_tool(go)


async def by_hand(client: Client, state: str | None = None, city: str = "Bern") -> Any:
    """Send one round of a call."""
    yes = types.ElicitResult(action="accept", content={"sure": True})
    return await client.session.call_tool(
        "go", {"city": city}, input_responses=None if state is None else dict.fromkeys(keys_of(state), yes),
        request_state=None if state is None else state.partition("|")[0], allow_input_required=True,
    )  # fmt: skip


def keys_of(state: str) -> list[str]:
    return state.partition("|")[2].split(",")


def state_of(result: Any) -> str:
    """Return what the next round has to bring: the state, and the names of what is asked."""
    assert isinstance(result, types.InputRequiredResult)
    return f"{result.request_state}|{','.join(result.input_requests or ())}"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_server_asks_once_for_a_call_of_several_rounds(room: Room, mode: str) -> None:
    """Three requests of one call are one question to the user and one card."""
    careful = Careful(GateMiddleware(room.gate(ASK)))
    async with client_of(careful.server, Heard(), mode) as client:
        calling = asyncio.create_task(client.call_tool("go", {"city": "Bern"}))
        await room.user.answers()
        assert "went to Bern" == text_of(await calling)
    assert ["Bern"] == careful.ran
    assert [asked(RUNS)] == await room.user.words()


async def test_server_keeps_calls_of_several_rounds_apart(room: Room, valkey: Valkey) -> None:
    """Two users make the same call at a time, so that the server's own state is the same: each goes on with his."""
    async with browsing(valkey, session_name()) as other:
        gates = {user.session: room.gate(ASK, session=user.session) for user in (room.user, other)}
        careful = Careful(GateMiddleware(lambda ctx: gates[(ctx.params or {})["_meta"]["session"]]))

        async def go(session: str) -> Any:
            async with client_of(careful.server, Heard(), "auto") as client:
                return await client.call_tool("go", {"city": "Bern"}, meta={"session": session})  # type: ignore[typeddict-unknown-key]

        calling = [asyncio.create_task(go(user.session)) for user in (room.user, other)]
        await asyncio.gather(room.user.answers(), other.answers())
        assert ["went to Bern"] * 2 == [text_of(result) for result in await asyncio.gather(*calling)]
        assert [asked(RUNS)] == await room.user.words()
        assert [asked(RUNS)] == await other.words()


async def test_server_asks_again_for_a_state_that_was_used(room: Room) -> None:
    """A round that is sent twice is a call of its own the second time."""
    careful = Careful(GateMiddleware(room.gate(ASK)))
    async with client_of(careful.server, Heard(), "auto") as client:
        calling = asyncio.create_task(by_hand(client))
        await room.user.answers()
        state = state_of(await calling)
        state_of(await by_hand(client, state))
        again = asyncio.create_task(by_hand(client, state))
        await room.user.answers(approved=False)
        assert (await again).is_error
    assert [] == careful.ran


async def test_server_asks_anew_for_a_state_of_another_session(room: Room, valkey: Valkey) -> None:
    """What one user approved is not approved for another, though he has the state."""
    async with browsing(valkey, session_name()) as other:
        gates = [room.gate(ASK), room.gate(ASK, session=other.session)]
        careful = Careful(GateMiddleware(lambda _: gates[0]))
        async with client_of(careful.server, Heard(), "auto") as client:
            calling = asyncio.create_task(by_hand(client))
            await room.user.answers()
            state = state_of(await calling)
            gates.reverse()
            stolen = asyncio.create_task(by_hand(client, state))
            await other.answers(approved=False)
            assert (await stolen).is_error
            gates.reverse()
            state_of(await by_hand(client, state))  # its owner goes on with it
        assert [DENIED] == await other.words()


async def test_server_refuses_a_state_that_was_tampered_with(room: Room) -> None:
    """The SDK seals the state; one that is not the server's is an error, and nothing runs."""
    careful = Careful(GateMiddleware(room.gate(ASK)))
    async with client_of(careful.server, Heard(), "auto") as client:
        calling = asyncio.create_task(by_hand(client))
        await room.user.answers()
        state = state_of(await calling)
        with pytest.raises(MCPError):
            await by_hand(client, "x" + state)
        with pytest.raises(MCPError):
            await by_hand(client, state, city="Basel")
    assert [] == careful.ran


@pytest.mark.parametrize("own", [None, "the server's own"])
async def test_server_without_a_seal_asks_anew_for_a_state_that_nobody_gave(room: Room, own: str | None) -> None:
    """A low-level server's state is not sealed: made up, changed, or with other arguments, it is a new call."""
    seen: list[Any] = []

    async def on_call_tool(_: Any, params: types.CallToolRequestParams) -> Any:
        seen.append(params.request_state)
        if len(seen) in (1, 3):
            request = types.ElicitRequest(
                params=types.ElicitRequestFormParams(message="?", requested_schema={"type": "object", "properties": {}})
            )
            return types.InputRequiredResult(input_requests={"a": request}, request_state=own)
        return types.CallToolResult(content=[types.TextContent(type="text", text="done")])

    async def on_list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="go", input_schema={"type": "object"})])

    server: Server[Any] = Server("low", on_call_tool=on_call_tool, on_list_tools=on_list_tools)
    server.middleware.append(GateMiddleware(room.gate(ASK)))
    async with client_of(server, Heard(), "auto") as client:

        async def send(state: str | None, city: str = "Bern") -> Any:
            return await client.session.call_tool(
                "go", {"city": city}, request_state=state, allow_input_required=True,
                input_responses=None if state is None else {"a": types.ElicitResult(action="decline")},
            )  # fmt: skip

        calling = asyncio.create_task(send(None))
        await room.user.answers()
        state = (await calling).request_state
        for forged, city in (("agent-sse:guess:-", "Bern"), (state, "Basel"), (state + "x", "Bern"), ("x", "Bern")):
            if forged == state + "x" and own is None:
                continue
            asking = asyncio.create_task(send(forged, city))
            await room.user.answers(approved=False)
            assert (await asking).is_error
        assert "done" == text_of(await send(state))
    assert [None, own] == seen
    assert asked(RUNS) == (await room.user.words())[0]


async def test_server_ends_a_call_that_is_cancelled_between_its_rounds(room: Room) -> None:
    """The card closes at once, and the client hears of it when it comes back."""
    careful = Careful(GateMiddleware(room.gate(ALLOW)))
    async with client_of(careful.server, Heard(), "auto") as client:
        state = state_of(await by_hand(client))
        (status, *_) = await room.user.data("tool_status")
        await room.user.cancel(status["tool_call_id"], "enough")
        assert [("pending", "executing", "cancelled", "result failed")] == await room.user.ended()
        result = await by_hand(client, state)
        assert "The user cancelled this call while it ran. Reason: enough" == text_of(result)
    assert [] == careful.ran


async def test_server_gives_up_a_call_whose_client_does_not_come_back(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that waits for its client for too long, or with too many others, has failed."""
    monkeypatch.setattr(rounds, "LIMIT", 1)
    careful = Careful(GateMiddleware(room.gate(ALLOW)))
    async with client_of(careful.server, Heard(), "auto") as client:
        await by_hand(client)
        monkeypatch.setattr(rounds, "SECONDS", 0.1)
        await by_hand(client)  # one too many, and not for long
        assert [FAILS, FAILS] == await room.user.ended(2)
    texts = {data["error"] for data in await room.user.data("tool_result")}
    assert {"the tool asked for input, and the client did not come back with it"} == texts


# -- what goes wrong --------------------------------------------------------------------------------------------------


async def test_server_runs_nothing_without_redis_and_keeps_what_has_run(
    valkey: Valkey, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """Before a call runs the model is told to try later; afterwards its result counts, and the lost end is logged."""
    server = MCPServer("s")
    ran = []

    @server.tool()
    async def work(stop: bool) -> str:
        ran.append(stop)
        if stop:
            await valkey.stop()
        return "worked"

    room.policy.write_text(ALLOW)
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=1) as notifier:
        server.middleware.append(GateMiddleware(Gate(notifier, room.user.session, server="s", policy=room.policy)))
        async with client_of(server, Heard(), "auto") as client:
            assert "worked" == text_of(await client.call_tool("work", {"stop": True}))
            assert "the end of a call of work is not published" in caplog.text
            result = await client.call_tool("work", {"stop": False})
            assert result.is_error
            assert "the service that asks the user cannot be reached" in text_of(result)
            assert [True] == ran
            await valkey.start()
            assert "worked" == text_of(await client.call_tool("work", {"stop": False}))


async def test_server_reports_progress_however_its_author_sends_it(room: Room) -> None:
    """The context's helper and the low-level notification both count; another call's token does not."""
    server = MCPServer("s", middleware=[GateMiddleware(room.gate(ALLOW))])

    @server.tool()
    async def work(ctx: Context[Any, Any]) -> str:
        session, token = ctx.request_context.session, (ctx.request_context.meta or {})["progress_token"]
        await ctx.report_progress(1, 4)
        await session.send_progress_notification(token, 2, 4, related_request_id=str(ctx.request_id))
        params = types.ProgressNotificationParams(progress_token=token, progress=3, total=4)
        await session.send_notification(types.ProgressNotification(params=params), ctx.request_id)
        await session.send_progress_notification("another", 4, 4, related_request_id=str(ctx.request_id))
        return "done"

    heard: list[float] = []

    async def progress(at: float, total: float | None, message: str | None) -> None:
        heard.append(at)

    async with client_of(server, Heard(), "legacy") as client:
        await client.call_tool("work", progress_callback=progress)
    assert [1, 2, 3] == heard
    steps = [data["details"].get("progress") for data in await room.user.data("tool_status")]
    assert {"progress": 3, "total": 4} == steps[-2]
    assert 4 not in [step["progress"] for step in steps if step]


async def test_server_passes_on_what_is_no_call_of_a_tool(room: Room) -> None:
    """Everything else goes by the gate: lists, pings, and calls that the server itself refuses as malformed."""
    server = MCPServer("s", middleware=[GateMiddleware(room.gate('version = 1\ndefault = "deny"\n'))])

    @server.resource("data://one")
    def one() -> str:
        return "one"

    async with client_of(server, Heard(), "legacy") as client:
        await client.send_ping()
        assert [] == (await client.list_tools()).tools
        assert ["data://one"] == [resource.uri for resource in (await client.list_resources()).resources]
        request = types.Request[dict[str, Any], str](method="tools/call", params={"name": 5})
        with pytest.raises(MCPError):
            await client.session.send_request(request, types.EmptyResult)
    assert [] == await room.user.words()


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_example_server_shows_a_call_and_asks_about_another(room: Room, mode: str) -> None:
    """`examples/mcp_server.py` as it stands: searching is shown with its progress, deleting is asked about."""
    example = Path(__file__).parents[2] / "examples/mcp_server.py"
    more = {"AGENT_SSE_REDIS_URL": room.user.valkey.url, "NOTES_SESSION": room.user.session}
    async with client_of(mcp_servers.stdio([sys.executable, str(example)], more), Heard(), mode) as client:
        found = await client.call_tool("find_notes", {"text": "milk"})
        assert {"result": ["shopping"]} == found.structured_content
        deleting = asyncio.create_task(client.call_tool("delete_note", {"name": "shopping"}))
        await room.user.answers(parameters_patch={"name": "ideas"})
        assert "deleted ideas: a boat" == text_of(await deleting)
    assert [STEPS, asked(RUNS)] == await room.user.words()
