"""The table: every call to five real servers has its events, and the result that it has without agent-sse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from mcp import Client, MCPError

import mcp_servers
from agent_sse import SimpleNotifier
from agent_sse.mcp.client import GuardedClient
from agent_sse.mcp.gate import Gate
from agent_sse.policy_file import load_policy
from harness import Stream, Valkey, bearer, make_settings, make_token, serve, session_name, until
from mcp_parts import Heard, Wire, client_of, plain
from mcp_servers import SERVERS, Row, Server
from permission_time import let_time_pass

# The SDK says of half of what the handshake's generation can do that the next one cannot.
pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

Way = Literal["client", "guard"]
Decision = Literal["allow", "ask"]
Line = tuple[str, Wire, str, str]  # server, wire, mode of the client, the protocol that it comes to

LINES: list[Any] = [
    (server.name, wire, mode, version)
    for server in SERVERS.values()
    for wire in ("stdio", "http")
    for mode, version in zip(server.modes, server.versions, strict=True)
    if wire == "stdio" or server.serve is not None
]
# A server that knows no HTTP has it from the guard.
GUARD_LINES = [*LINES, ("filesystem", "http", "legacy", "2025-11-25")]
# How a question goes through the guard does not depend on the line, so each server has one.
ASKING_LINES = [next(line for line in LINES if line[0] == name) for name in SERVERS]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A web site of a few pages."""
    with mcp_servers.web_site() as url:
        yield url


@pytest.fixture(scope="module")
def unwrapped() -> dict[Any, list[Any]]:
    """What the servers say without agent-sse, by server, wire and mode; each is asked once."""
    return {}


async def said(client: Client, row: Row, places: dict[str, str]) -> Any:
    """Call a tool and return all that came back: every field of the result, or the error."""
    try:
        result = await client.call_tool(row.tool, mcp_servers.filled(row.arguments, places), **row.more)
    except MCPError as error:
        return {"error": plain({"code": error.error.code, "message": error.error.message, "data": error.error.data})}
    return plain(result.model_dump(mode="json"))


async def tour(client: Client, server: Server, places: dict[str, str], after: Any = None) -> list[Any]:
    results = []
    for row in server.rows:
        results.append(await said(client, row, places))
        if after is not None:
            await after()
    return results


async def expected_of(unwrapped: dict[Any, list[Any]], line: Line, home: Path, site: str) -> list[Any]:
    """Return what a server says to a client that nothing stands before."""
    name, wire, mode, version = line
    if line not in unwrapped:
        server = SERVERS[name]
        mcp_servers.prepare(home)
        async with (
            mcp_servers.transport_to(server, wire, home) as transport,
            client_of(transport, Heard(), mode) as client,
        ):
            assert version == client.protocol_version
            unwrapped[line] = await tour(client, server, {"home": str(home), "site": site})
    return unwrapped[line]


@asynccontextmanager
async def answering(valkey: Valkey, session: str) -> AsyncIterator[None]:
    """Be a user who approves whatever is asked, with a browser's means: the stream and the answer's endpoint."""
    token = make_token(session)
    async with (
        serve(make_settings(valkey.url)) as served, httpx.AsyncClient(trust_env=False) as http,
        Stream(served.events(session, token)) as stream,
    ):  # fmt: skip

        async def answer() -> None:
            while True:
                request = (await stream.next("permission_request", deadline=600)).json["data"]
                said = {"approved": True, "reason": "so", "request_id": request["request_id"]}
                url = f"{served.api}/permission-response/{session}"
                response = await http.post(url, json=said, headers=bearer(token))
                # Heartbeats show an open request again.
                assert response.json()["success"], response.text

        task = asyncio.create_task(answer())
        try:
            yield
            assert not task.done(), task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the same name for all, since results name it."""
    return tmp_path_factory.mktemp("servers") / "home"


async def check(valkey: Valkey, session: str, server: Server, way: Way, decision: Decision) -> None:
    """The session's Stream holds for each row of the table the events that stand there, and nothing else."""
    expected = []
    for row in server.rows:
        words = row.guarded if way == "guard" and row.guarded else row.events
        expected.append((row.tool, words if decision == "allow" else mcp_servers.asked(words)))

    async def ended() -> dict[str, list[str]] | None:
        calls = mcp_servers.words_of([event for _, event in await valkey.entries(session)])
        return calls if all(words[-1].startswith("result") for words in calls.values()) else None

    # A client that gives a call up does not wait for the guard to say so.
    calls = await until(ended, what="the calls having ended")
    actual = [(row.tool, tuple(words)) for row, words in zip(server.rows, calls.values(), strict=True)]
    assert expected == actual


async def run(valkey: Valkey, way: Way, decision: Decision, line: Line, home: Path, site: str) -> tuple[str, list[Any]]:
    """Make the tour one way; return the session and the results."""
    name, wire, mode, version = line
    server, session, places = SERVERS[name], session_name(), {"home": str(home), "site": site}
    policy = home / "policy.toml"
    mcp_servers.prepare(home)
    policy.write_text(f'version = 1\ndefault = "{decision}"\n[[rules]]\ntool = "*"\nrisk = ["low", "medium", "high"]\n'
                      f'decision = "{decision}"\n')  # fmt: skip

    async def no_gap() -> None:
        """Let the second pass that has to lie between two prompts."""
        async with valkey.client() as redis:
            await let_time_pass(redis, session, 1000)

    after = no_gap if decision == "ask" else None
    async with answering(valkey, session), SimpleNotifier.from_url(valkey.url) as notifier:
        if way == "client":
            gate = Gate(notifier, session, server=name, policy=load_policy(policy))
            async with (
                mcp_servers.transport_to(server, wire, home) as transport,
                client_of(transport, Heard(), mode) as client,
            ):
                results = await tour(GuardedClient(client, gate), server, places, after)
        else:
            options = ["--session", session, "--policy", str(policy)]
            more = {"AGENT_SSE_REDIS_URL": valkey.url}
            async with (
                mcp_servers.transport_through_guard(server, wire, home, options, more) as transport,
                client_of(transport, Heard(), mode) as client,
            ):
                assert version == client.protocol_version
                results = await tour(client, server, places, after)
    return session, results


@pytest.mark.parametrize("line", LINES, ids="-".join)
@pytest.mark.parametrize("decision", ["allow", "ask"])
async def test_guarded_client_has_the_tables_events_and_the_clients_results(
    valkey: Valkey, home: Path, site: str, unwrapped: dict[Any, Any], line: Line,
    decision: Decision,
) -> None:  # fmt: skip
    """Every call through a GuardedClient gives what the client gives, and is shown from its beginning to its end."""
    expected = await expected_of(unwrapped, line, home, site)
    session, actual = await run(valkey, "client", decision, line, home, site)
    assert expected == actual
    await check(valkey, session, SERVERS[line[0]], "client", decision)


@pytest.mark.parametrize(
    ("decision", "line"),
    [*(("allow", line) for line in GUARD_LINES), *(("ask", line) for line in ASKING_LINES)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_guard_has_the_tables_events_and_the_servers_results(
    valkey: Valkey, home: Path, site: str, unwrapped: dict[Any, Any], decision: Decision, line: Line
) -> None:
    """The same calls through `agent-sse guard` as a process have the same results and the same events."""
    name, wire, *rest = line
    direct = line if wire == "stdio" or SERVERS[name].serve is not None else (name, "stdio", *rest)
    expected = await expected_of(unwrapped, direct, home, site)
    session, actual = await run(valkey, "guard", decision, line, home, site)
    assert expected == actual
    await check(valkey, session, SERVERS[name], "guard", decision)
