"""The guard is not to be noticed: the official client hears the same with it and without it, over every transport."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import mcp_types as types
import pytest
from mcp import Client

import mcp_parts
from harness import until
from mcp_parts import Heard, Wire, client_of, outcome, plain

# The SDK says of half of what the handshake's generation can do that the next one cannot.
pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("echo", {"message": 'Grüße 🌍 \u2028 " \\ \u0000'}),
    ("echo", {}),
    ("echo", {"message": "x" * 300_000}),
    ("get-annotated-message", {"messageType": "error", "includeImage": True}),
    ("get-resource-links", {"count": 3}),
    ("get-resource-reference", {"resourceType": "Text", "resourceId": 3}),
    ("get-structured-content", {"location": "New York"}),
    ("get-structured-content", {"location": "nowhere"}),
    ("get-sum", {"a": 1, "b": 2.5}),
    ("get-sum", {"a": "one"}),
    ("get-tiny-image", {}),
    ("gzip-file-as-resource", {"name": "a.gz", "data": "data:text/plain,hello", "outputType": "resource"}),
    ("trigger-sampling-request", {"prompt": "say", "maxTokens": 5}),
    ("trigger-elicitation-request", {}),
    ("trigger-url-elicitation", {"url": "https://example.com/", "elicitationId": "e1"}),
    ("trigger-url-elicitation", {"url": "https://example.com/", "errorPath": True}),
    ("no-such-tool", {"a": 1}),
]


async def tour(client: Client, heard: Heard) -> dict[str, Any]:
    """Use everything that the reference server offers, and return what it said."""
    seen: dict[str, Any] = {
        "server": plain(client.server_info), "version": client.protocol_version,
        "capabilities": plain(client.server_capabilities), "instructions": client.instructions,
    }  # fmt: skip
    await until(lambda: "roots" in heard.asked, what="the server asking for roots")
    await until(lambda: any("Roots updated" in str(log) for log in heard.logs), what="the log of it")
    seen["tools"] = await outcome(client.list_tools())
    for name, arguments in CALLS:
        seen[f"{name} {json.dumps(arguments)[:60]}"] = await outcome(client.call_tool(name, arguments))
    environment = json.loads(plain(await client.call_tool("get-env", {}))["content"][0]["text"])
    seen["secrets"] = [name for name in environment if name.startswith("AGENT_SSE_")]
    seen["roots"] = await outcome(client.call_tool("get-roots-list", {}))
    await progress_and_cancel(client, seen)
    await resources_and_prompts(client, heard, seen)
    seen["asked"] = heard.asked
    seen["changed"] = sorted(set(heard.notifications))
    return seen


async def progress_and_cancel(client: Client, seen: dict[str, Any]) -> None:
    steps: list[Any] = []

    async def progress(*at: Any) -> None:
        steps.append(at)

    operation = {"duration": 0.1, "steps": 2}
    seen["long"] = await outcome(
        client.call_tool("trigger-long-running-operation", operation, progress_callback=progress)
    )
    await until(lambda: len(steps) == 2, what="progress")
    seen["steps"] = steps
    begun = anyio.Event()

    async def begin(*_: Any) -> None:
        begun.set()

    async with anyio.create_task_group() as group:

        async def run() -> None:
            operation = {"duration": 5, "steps": 500}
            await client.call_tool("trigger-long-running-operation", operation, progress_callback=begin)

        group.start_soon(run)
        await begun.wait()
        group.cancel_scope.cancel()
    seen["ping"] = await outcome(client.send_ping())


async def resources_and_prompts(client: Client, heard: Heard, seen: dict[str, Any]) -> None:
    seen["resources"] = await outcome(client.list_resources())
    seen["templates"] = await outcome(client.list_resource_templates())
    uris = [row["uri"] for row in seen["resources"]["resources"][:2]]
    for uri in [*uris, "demo://resource/dynamic/text/7", "demo://resource/dynamic/blob/7", "demo://none"]:
        seen[uri] = await outcome(client.read_resource(uri))
    seen["level"] = await outcome(client.set_logging_level("debug"))
    uri = "demo://resource/dynamic/text/1"
    seen["subscribe"] = await outcome(client.subscribe_resource(uri))
    seen["updates"] = (await outcome(client.call_tool("toggle-subscriber-updates", {})))["content"][0]["text"][:40]
    await until(lambda: "notifications/resources/updated" in heard.notifications, what="an update")
    seen["no updates"] = (await outcome(client.call_tool("toggle-subscriber-updates", {})))["content"][0]["text"][:40]
    seen["unsubscribe"] = await outcome(client.unsubscribe_resource(uri))
    logs = len(heard.logs)
    seen["logging"] = (await outcome(client.call_tool("toggle-simulated-logging", {})))["content"][0]["text"][:40]
    await until(lambda: len(heard.logs) > logs, what="a log")
    seen["prompts"] = await outcome(client.list_prompts())
    seen["simple"] = await outcome(client.get_prompt("simple-prompt"))
    seen["args"] = await outcome(client.get_prompt("args-prompt", {"city": "Bern", "state": "BE"}))
    seen["wrong"] = await outcome(client.get_prompt("args-prompt", {}))
    seen["resource"] = await outcome(client.get_prompt("resource-prompt", {"resourceType": "Text", "resourceId": "2"}))
    for reference, argument, context in (
        (types.PromptReference(type="ref/prompt", name="completable-prompt"), ("department", "S"), None),
        (types.PromptReference(type="ref/prompt", name="completable-prompt"), ("name", "D"), {"department": "Sales"}),
        (types.ResourceTemplateReference(type="ref/resource", uri="demo://resource/dynamic/text/{resourceId}"),
         ("resourceId", "4"), None),
    ):  # fmt: skip
        name, value = argument
        completing = client.complete(reference, {"name": name, "value": value}, context)
        seen[f"complete {name}"] = await outcome(completing)
    unknown = types.Request[dict[str, Any], str](method="vendor/unknown", params={"x": {"y": [1, None]}})
    seen["unknown"] = await outcome(client.session.send_request(unknown, types.EmptyResult))
    await client.send_roots_list_changed()
    asked = heard.asked.count("roots")
    await until(lambda: heard.asked.count("roots") >= max(asked, 2), what="roots being asked for again")


@asynccontextmanager
async def reference(wire: Wire) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """Yield a transport to the reference server, and the options of a guard in front of one like it."""
    if wire == "stdio":
        command = mcp_parts.everything("stdio")
        yield mcp_parts.direct(command), {"command": command}
    else:
        async with mcp_parts.url_of(lambda _: mcp_parts.everything("http")) as url:
            yield mcp_parts.streamable_http_client(url, max_sse_event_size=None), {"url": url}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("server", ["stdio", "http"])
@pytest.mark.parametrize("host", ["stdio", "http"])
async def test_guard_gives_the_reference_servers_answers(
    folder: Path, host: Wire, server: Wire, mode: Literal["legacy", "auto"]
) -> None:
    """All that the reference server does comes out of a guard field by field as it comes out of the server."""
    async with reference(server) as (transport, options):
        heard = Heard()
        async with client_of(transport, heard, mode) as client:
            expected = await tour(client, heard)
        heard = Heard()
        async with mcp_parts.guarded(folder, host, **options) as guard, client_of(guard, heard, mode) as client:
            actual = await tour(client, heard)
    for step, value in expected.items():
        assert value == actual[step], step
    happened = [row for row in mcp_parts.journal(folder) if row[0] == "trigger-long-running-operation"]
    assert ["trigger-long-running-operation", "cancelled", ""] in happened
    assert [] == expected["secrets"]
