"""The table: every call to five real servers has its events, and the result that it has without agent-sse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client, MCPError

import mcp_servers
from agent_sse import SimpleNotifier
from agent_sse.mcp import guard_client
from harness import Valkey, session_name, until
from mcp_parts import Heard, Wire, client_of, plain
from mcp_servers import SERVERS, Row

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
# How a question is asked does not depend on the line: each server has the two that differ most.
ASKING_LINES = [[line for line in LINES if line[0] == name][at] for name in SERVERS for at in (0, -1)]


async def said(client: Client, row: Row, places: dict[str, str]) -> Any:
    """Call a tool and return all that came back: every field of the result, or the error."""
    try:
        result = await client.call_tool(row.tool, mcp_servers.filled(row.arguments, places), **row.more)
    except MCPError as error:
        return {"error": plain({"code": error.error.code, "message": error.error.message, "data": error.error.data})}
    return plain(result.model_dump(mode="json"))


class Table:
    """The servers on a directory and a web site whose names are the same for all, since results hold them."""

    def __init__(self, home: Path, site: str) -> None:
        self.home = home
        self.places = {"home": str(home), "site": site}
        self._unwrapped: dict[Line, list[Any]] = {}

    async def unwrapped(self, line: Line) -> list[Any]:
        """Return what a server says to a client that nothing stands before; each is asked once."""
        name, wire, mode, version = line
        if line not in self._unwrapped:
            mcp_servers.prepare(self.home)
            async with (
                mcp_servers.transport_to(SERVERS[name], wire, self.home) as transport,
                client_of(transport, Heard(), mode) as client,
            ):
                assert version == client.protocol_version
                self._unwrapped[line] = await self.tour(client, name)
        return self._unwrapped[line]

    async def through_client(self, valkey: Valkey, session: str, line: Line, decision: Decision) -> list[Any]:
        """Return what a GuardedClient returns."""
        name, wire, mode, _ = line
        policy = self._policy(decision)
        async with (
            SimpleNotifier.from_url(valkey.url) as notifier,
            mcp_servers.transport_to(SERVERS[name], wire, self.home) as transport,
            client_of(transport, Heard(), mode) as client,
        ):
            guarded = guard_client(client, notifier, session_id=session, server=name, policy=policy)
            return await self.tour(guarded, name, lambda: mcp_servers.no_gap(valkey, session))

    async def through_guard(self, valkey: Valkey, session: str, line: Line, decision: Decision) -> list[Any]:
        """Return what comes through `agent-sse guard`."""
        name, wire, mode, version = line
        options = ["--session", session, "--policy", str(self._policy(decision))]
        more = {"AGENT_SSE_REDIS_URL": valkey.url}
        async with (
            mcp_servers.transport_through_guard(SERVERS[name], wire, self.home, options, more) as transport,
            client_of(transport, Heard(), mode) as client,
        ):
            assert version == client.protocol_version
            return await self.tour(client, name, lambda: mcp_servers.no_gap(valkey, session))

    async def tour(self, client: Client, name: str, after: Callable[[], Awaitable[None]] | None = None) -> list[Any]:
        results = []
        for row in SERVERS[name].rows:
            results.append(await said(client, row, self.places))
            if after is not None:
                await after()
        return results

    def _policy(self, decision: Decision) -> Path:
        mcp_servers.prepare(self.home)
        policy = self.home / "policy.toml"
        # The risks are spelt out, so that destructive tools are allowed too.
        policy.write_text(
            f'version = 1\n[[rules]]\ntool = "*"\nrisk = ["low", "medium", "high"]\ndecision = "{decision}"\n'
        )
        return policy


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """The table of calls."""
    with mcp_servers.web_site() as site:
        yield Table(tmp_path_factory.mktemp("servers") / "home", site)


async def check(valkey: Valkey, session: str, rows: Sequence[Row], way: Way, decision: Decision) -> None:
    """The session's Stream holds for each row of the table the events that stand there, and nothing else."""
    expected = []
    for row in rows:
        words = row.guarded if way == "guard" and row.guarded else row.events
        expected.append((row.tool, words if decision == "allow" else mcp_servers.asked(words)))

    async def ended() -> dict[str, list[str]] | None:
        calls = mcp_servers.words_of([event for _, event in await valkey.entries(session)])
        return calls if all(words[-1].startswith("result") for words in calls.values()) else None

    # A client that gives a call up does not wait for the guard to say so.
    calls = await until(ended, what="the calls having ended")
    actual = [(row.tool, tuple(words)) for row, words in zip(rows, calls.values(), strict=True)]
    assert expected == actual


@pytest.mark.parametrize(
    ("decision", "line"),
    [*(("allow", line) for line in LINES), *(("ask", line) for line in ASKING_LINES)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_guarded_client_has_the_tables_events_and_the_clients_results(
    valkey: Valkey, table: Table, decision: Decision, line: Line
) -> None:
    """Every call through a GuardedClient gives what the client gives, and is shown from its beginning to its end."""
    session = session_name()
    expected = await table.unwrapped(line)
    async with mcp_servers.approving(valkey, session):
        actual = await table.through_client(valkey, session, line, decision)
    assert expected == actual
    await check(valkey, session, SERVERS[line[0]].rows, "client", decision)


@pytest.mark.parametrize(
    ("decision", "line"),
    [*(("allow", line) for line in GUARD_LINES), *(("ask", line) for line in ASKING_LINES[::2])],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_guard_has_the_tables_events_and_the_servers_results(
    valkey: Valkey, table: Table, decision: Decision, line: Line
) -> None:
    """The same calls through `agent-sse guard` as a process have the same results and the same events."""
    session, (name, wire, *rest) = session_name(), line
    direct = line if wire == "stdio" or SERVERS[name].serve is not None else (name, "stdio", *rest)
    expected = await table.unwrapped(direct)
    async with mcp_servers.approving(valkey, session):
        actual = await table.through_guard(valkey, session, line, decision)
    assert expected == actual
    await check(valkey, session, SERVERS[name].rows, "guard", decision)
