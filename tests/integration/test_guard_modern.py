"""The protocol without a handshake (2026-07-28) through the guard: the same answers, and one question a call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client

import mcp_parts
from harness import until
from mcp_parts import Heard, Wire, client_of, outcome, plain

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

every_way = pytest.mark.parametrize(
    ("host", "server"), [("stdio", "stdio"), ("stdio", "http"), ("http", "stdio"), ("http", "http")]
)


@asynccontextmanager
async def server_of(wire: Wire) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """Yield a transport to the SDK's server, and the options of a guard in front of one like it."""
    if wire == "stdio":
        yield mcp_parts.direct(mcp_parts.modern("stdio")), {"command": mcp_parts.modern("stdio")}
    else:
        async with mcp_parts.url_of(lambda port: mcp_parts.modern("http", port)) as url:
            yield mcp_parts.streamable_http_client(url, max_sse_event_size=None), {"url": url}


async def tour(client: Client, heard: Heard) -> dict[str, Any]:
    """Use everything that the server offers, and return what it said."""
    seen: dict[str, Any] = {
        "version": client.protocol_version, "server": plain(client.server_info),
        "capabilities": plain(client.server_capabilities), "instructions": client.instructions,
    }  # fmt: skip
    seen["tools"] = await outcome(client.list_tools())
    for name, arguments in (
        ("add", {"a": 1, "b": 2}), ("add", {"a": "x"}), ("careful", {"city": "Zürich"}), ("fail", {}), ("none", {}),
        ("talk", {}),
    ):  # fmt: skip
        seen[f"{name} {json.dumps(arguments)}"] = await outcome(client.call_tool(name, arguments))
    seen["asked"] = heard.asked
    steps: list[Any] = []

    async def progress(*at: Any) -> None:
        steps.append(at)

    seen["slow"] = await outcome(client.call_tool("slow", {"steps": 3}, progress_callback=progress))
    await until(lambda: len(steps) == 3, what="progress")
    seen["steps"] = steps
    seen["resources"] = await outcome(client.list_resources())
    seen["templates"] = await outcome(client.list_resource_templates())
    for uri in ("data://one", "data://x/text", "data://nothing/here"):
        seen[uri] = await outcome(client.read_resource(uri))
    seen["prompts"] = await outcome(client.list_prompts())
    seen["prompt"] = await outcome(client.get_prompt("greet", {"name": "Ada"}))
    unknown = types.Request[dict[str, Any], str](method="vendor/unknown", params={"x": 1})
    seen["unknown"] = await outcome(client.session.send_request(unknown, types.EmptyResult))
    async with client.listen(tools_list_changed=True, resource_subscriptions=["data://one"]) as subscription:
        seen["change"] = await outcome(client.call_tool("change", {}))
        events = []
        async for event in subscription:
            events.append(repr(event))
            if len(events) == 2:
                break
        seen["events"] = sorted(events)
    seen["after"] = await outcome(client.list_tools())
    seen["fresh"] = await outcome(client.call_tool("fresh", {}))
    return seen


@every_way
async def test_guard_gives_the_answers_of_a_server_without_a_handshake(folder: Path, host: Wire, server: Wire) -> None:
    """Discovery, rounds of input, progress, logs, subscriptions and errors are the same with the guard and without."""
    async with server_of(server) as (transport, options):
        heard = Heard()
        async with client_of(transport, heard, "auto", log_level="debug") as client:
            expected = await tour(client, heard)
            expected["logs"] = heard.logs
    async with server_of(server) as (_, options):
        heard = Heard()
        async with (
            mcp_parts.guarded(folder, host, **options) as guard,
            client_of(guard, heard, "auto", log_level="debug") as client,
        ):
            actual = await tour(client, heard)
            actual["logs"] = heard.logs
    assert expected["version"] == "2026-07-28"
    for step, value in expected.items():
        assert value == actual[step], step


@every_way
async def test_guard_asks_once_for_a_call_of_several_rounds(
    folder: Path, host: Wire, server: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that asks the host for input in between passes the gate once, and has one end."""
    monkeypatch.setenv("RUNS", str(folder / "runs"))
    async with (
        server_of(server) as (_, options),
        mcp_parts.guarded(folder, host, **options) as guard,
        client_of(guard, Heard(), "auto") as client,
    ):
        first = await outcome(client.call_tool("careful", {"city": "Bern"}))
        second = await outcome(client.call_tool("careful", {"city": "Bern"}))
    assert first == second
    assert "Bern: True" in str(first)
    assert ["Bern", "Bern"] == (folder / "runs").read_text().split()
    happened = [row[1] for row in mcp_parts.journal(folder)]
    assert ["tool", "pending", "executing", "finished"] * 2 == happened


@every_way
async def test_guard_takes_no_other_call_for_the_next_round(folder: Path, host: Wire, server: Wire) -> None:
    """With other arguments or another state what looks like the next round is a new call, which is asked about."""
    async with (
        server_of(server) as (_, options),
        mcp_parts.guarded(folder, host, **options) as guard,
        client_of(guard, Heard(), "auto") as client,
    ):
        first = await client.session.call_tool("careful", {"city": "Bern"}, allow_input_required=True)
        assert isinstance(first, types.InputRequiredResult)
        (question,) = first.input_requests or {}
        given = {question: types.ElicitResult(action="accept", content={"sure": True})}
        for city, state in (("Rome", first.request_state), ("Bern", "forged")):
            await outcome(
                client.session.call_tool(
                    "careful", {"city": city}, input_responses=given, request_state=state,
                    allow_input_required=True,
                )
            )  # fmt: skip
        for _ in range(2):  # the second time it is used up
            await outcome(
                client.session.call_tool(
                    "careful", {"city": "Bern"}, input_responses=given, request_state=first.request_state,
                    allow_input_required=True,
                )
            )  # fmt: skip
    pending = [row for row in mcp_parts.journal(folder) if row[1] == "pending"]
    assert 4 == len(pending)


@every_way
async def test_guard_cancels_a_call_without_a_handshake(
    folder: Path, host: Wire, server: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cancels a running call, by a notification or by hanging up, cancels it in the server too."""
    monkeypatch.setenv("RUNS", str(folder / "runs"))
    async with (
        server_of(server) as (_, options),
        mcp_parts.guarded(folder, host, **options) as guard,
        client_of(guard, Heard(), "auto") as client,
    ):
        begun = anyio.Event()

        async def begin(*_: Any) -> None:
            begun.set()

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.call_tool("endless", {}, progress_callback=begin))
            await begun.wait()
            group.cancel_scope.cancel()
        await until((folder / "runs").exists, what="the server hearing of it")
        await mcp_parts.until_journal(folder, "endless", "cancelled")
        assert "3" in str(await outcome(client.call_tool("add", {"a": 1, "b": 2})))


async def test_guard_keeps_hosts_apart_that_share_a_server(folder: Path) -> None:
    """Two hosts over HTTP with the same ids and progress tokens at the same time hear each its own."""
    options = {"command": mcp_parts.modern("stdio"), "http_port": 0}
    ready = r"(http://[0-9.]+:\d+/mcp)"
    async with mcp_parts.process(mcp_parts.guard_command(folder, **options), ready=ready) as (_, at):
        steps: dict[int, list[Any]] = {3: [], 5: []}

        async def one(number: int) -> None:
            async def progress(*at: Any) -> None:
                steps[number].append(at[:2])

            async with client_of(mcp_parts.streamable_http_client(at[1]), Heard(), "auto") as client:
                await client.call_tool("slow", {"steps": number}, progress_callback=progress)
                await until(lambda: len(steps[number]) == number, what="progress")

        async with anyio.create_task_group() as group:
            for number in steps:
                group.start_soon(one, number)
    assert {n: [(float(k + 1), float(n)) for k in range(n)] for n in steps} == steps
