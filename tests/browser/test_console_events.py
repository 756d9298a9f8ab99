"""The console's list of events in a real Chromium: the exact JSON, filters, pause, export, and `curl` commands."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from playwright.async_api import expect

from agent_sse import SimpleNotifier
from browser.console import open_console
from browser.tabs import Agent, Room, decided
from harness import DEADLINE, PREFIX, Valkey, make_token, session_name


@pytest.fixture
async def copying(room: Room) -> Room:
    """A room whose pages may read the clipboard."""
    await room.context.grant_permissions(["clipboard-read", "clipboard-write"])
    return room


async def in_shell(command: str, token: str) -> Any:
    """Run a copied command in `sh`, as a user would, and return what the service said."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, env={**os.environ, "TOKEN": token, "no_proxy": "*"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE):
        said, _ = await process.communicate()
    return json.loads(said)


async def some_events(notifier: SimpleNotifier, session: str) -> None:
    """Six events of two tools, and an error."""
    for tool, result in (("read", {"text": "Grüße"}), ("write", 9007199254740993)):
        await notifier.tool_status(session, tool, "executing", tool_call_id=f"{tool}-1", parameters={"file": "a.py"})
        await notifier.tool_status(session, tool, "completed", tool_call_id=f"{tool}-1")
        await notifier.tool_result(session, tool, result, success=tool == "read", tool_call_id=f"{tool}-1")
    await notifier.error(session, "no model", code="model_unavailable")


async def test_console_inspects_the_exact_json(copying: Room, notifier: SimpleNotifier) -> None:
    """The inspector has every digit, and what is invisible by number; the copy is the JSON as it came."""
    session = session_name()
    await notifier.tool_result(session, "read", {"n": 9007199254740993, "x": 0.1, "text": "a\u202eb"})
    console = await open_console(copying, session)
    await console.events.filter(has_text="tool_result").click()
    shown = await console.inspected.inner_text()
    for line in ('      "n": 9007199254740993,', '      "x": 0.1,', '      "text": "a\\u{202e}b"'):
        assert line in shown.splitlines(), line
    raw = await console.copied("Copy JSON")
    assert {"n": 9007199254740993, "x": 0.1, "text": "a\u202eb"} == json.loads(raw)["data"]["result"]
    await console.button("Exact text").click()
    await expect(console.inspected).to_have_text(raw.replace("\u202e", "\\u{202e}"))
    await console.button("Close").click()
    await expect(console.inspected).to_have_count(0)


async def test_console_draws_a_huge_event_in_part(copying: Room, notifier: SimpleNotifier) -> None:
    """Of a very long event the first 100,000 characters are drawn, and it says so; the copy has all of it. The page may
    copy without the clipboard's newer interface, too."""
    session = session_name()
    await notifier.tool_result(session, "read", "x" * 150_000)
    await copying.context.add_init_script(
        "addEventListener('click', () => Object.defineProperty(navigator, 'clipboard', { value: undefined }), true)"
    )
    console = await open_console(copying, session)
    await console.events.first.click()
    await expect(console.page.locator(".inspector")).to_contain_text("more characters are not drawn")
    assert 100_000 == len(await console.inspected.inner_text())
    await console.button("Copy JSON").click()
    await expect(console.page.locator(".notice")).to_have_text("Copied.")
    await expect(console.button("Copy JSON")).to_be_focused()
    reader = await copying.visit("/")
    assert "x" * 150_000 == json.loads(await reader.do("navigator.clipboard.readText()"))["data"]["result"]


async def test_console_begins_with_a_snapshot_where_the_history_is_cut(room: Room, valkey: Valkey) -> None:
    """A session older than its history: the console shows what the service still knows, and no alarm of a gap."""
    session = session_name()
    async with SimpleNotifier.from_url(valkey.url, retention_events=5) as notifier:
        await notifier.tool_status(session, "endless", "executing", tool_call_id="c1")
        for number in range(20):
            await notifier.error(session, f"number {number}")
    console = await open_console(room, session)
    await console.status("c1", "executing")
    await expect(console.events.first).to_contain_text("stream_reset")
    await expect(console.alert).to_be_empty()


async def test_console_filters_by_type_tool_status_and_text(room: Room, notifier: SimpleNotifier) -> None:
    """Each filter shows what it asks for, and all together; the search looks into the JSON, in any case of letters."""
    session = session_name()
    await some_events(notifier, session)
    console = await open_console(room, session)
    await expect(console.count).to_have_text("7")
    for label, value, count in (("Type", "tool_result", 2), ("Tool", "write", 3), ("Status", "failed", 1)):
        await console.choose(label, value)
        await expect(console.count).to_have_text(f"{count} of 7")
        await expect(console.events).to_have_count(count)
        await console.button("Clear filter").click()
    for text, count in (
        ("grüsse", 0),
        ("GRÜSSE", 0),
        ("grüße", 1),
        ("9007199254740993", 1),
        ("MODEL_un", 1),
        ("a.py", 2),
    ):
        await console.search(text)
        await expect(console.count).to_have_text(f"{count} of 7")
    await console.choose("Tool", "write")
    await expect(console.events).to_have_count(1)
    await notifier.tool_status(session, "write", "executing", tool_call_id="write-2", parameters={"file": "a.py"})
    await expect(console.events).to_have_count(2)
    await expect(console.count).to_have_text("2 of 8")


async def test_console_pauses_and_goes_on(room: Room, notifier: SimpleNotifier) -> None:
    """While it is paused the list stays as it is and counts what came; going on shows it. Clear forgets them all."""
    session = session_name()
    await some_events(notifier, session)
    console = await open_console(room, session)
    await expect(console.count).to_have_text("7")
    await console.button("Pause").click()
    await some_events(notifier, session)
    await expect(console.count).to_have_text("7 of 14 · 7 new")
    await expect(console.events).to_have_count(7)
    await console.button("Resume").click()
    await expect(console.count).to_have_text("14")
    await console.button("Clear").click()
    await expect(console.page.get_by_text("No event yet.")).to_be_visible()
    await notifier.error(session, "the next")
    await expect(console.events).to_have_count(1)


@pytest.mark.parametrize("service_settings", [{"AGENT_SSE_HEARTBEAT_INTERVAL": "60"}])  # each draws the list anew
async def test_console_stays_at_the_newest_event(
    room: Room, notifier: SimpleNotifier, service_settings: dict[str, str]
) -> None:
    """The newest event is in sight as others come and when the window's size changes, until the user scrolls away; a
    button leads back to it."""
    session = session_name()
    console = await open_console(room, session)
    for number in range(60):
        await notifier.error(session, f"number {number}")
    newest = console.events.filter(has_text="number 59")
    await expect(newest).to_be_in_viewport(ratio=0.9)
    for width, height in ((1000, 640), (1400, 900), (1000, 620)):
        await console.page.set_viewport_size({"width": width, "height": height})
        await expect(newest).to_be_in_viewport(ratio=0.9)
    await console.page.locator(".events").hover()
    await console.page.mouse.wheel(0, -600)
    await expect(newest).not_to_be_in_viewport()
    await notifier.error(session, "number 60")
    await expect(console.count).to_have_text("61")
    await expect(console.events.filter(has_text="number 60")).not_to_be_in_viewport()
    await console.button("To the newest").click()
    await expect(console.events.filter(has_text="number 60")).to_be_in_viewport(ratio=0.9)
    await expect(console.button("To the newest")).to_have_count(0)


async def test_console_exports_what_is_shown(room: Room, notifier: SimpleNotifier, valkey: Valkey) -> None:
    """The saved file has the shown events, one JSON object a line, each exactly as the service sent it."""
    session = session_name()
    await some_events(notifier, session)
    console = await open_console(room, session)
    await console.choose("Tool", "write")
    await expect(console.count).to_have_text("3 of 7")
    async with console.page.expect_download() as saving:
        await console.button("Export").click()
    download = await saving.value
    lines = (await asyncio.to_thread((await download.path()).read_text, "utf-8")).splitlines()
    kept = [entry for entry in await valkey.entries(session) if '"write"' in json.dumps(entry[1])]
    assert f"{session}.ndjson" == download.suggested_filename
    assert kept == [(line["id"], line["event"]) for line in map(json.loads, lines)]
    assert '"result":9007199254740993' in lines[2].replace(": ", ":")


async def test_console_copies_commands_that_answer(copying: Room, agent: Agent) -> None:
    """The copied commands hold no token, and run in a POSIX shell: they approve and deny this very request."""
    session = session_name()
    token = make_token(session)
    console = await open_console(copying, session)
    for name, approved in (("approve", True), ("deny", False)):
        asking = agent.ask(session)
        await console.request("file_edit").wait_for()
        command = await console.copied(f"Copy curl: {name}, file_edit")
        assert token not in command
        said = await in_shell(command, token)
        assert (True, approved, "file_edit") == (said["success"], said["data"]["approved"], said["data"]["tool_name"])
        assert approved == (await decided(asking)).approved
        await expect(console.request("file_edit")).to_have_count(0)


async def test_console_copies_commands_that_ask(copying: Room, notifier: SimpleNotifier) -> None:
    """The copied commands for health and audit, and to cancel a call whose id is no shell word, do what they say."""
    session = session_name()
    token = make_token(session)
    odd = 'it\'s "$(x)" `y` ü'
    await notifier.tool_status(session, "odd", "executing", tool_call_id=odd)
    console = await open_console(copying, session)
    await console.page.locator(".call-name").click()
    said = await in_shell(await console.copied("Copy as curl: Cancel"), token)
    assert "not_cancellable" == said["error"]["code"]
    for tab in ("Health", "Audit"):
        await console.open_tab(tab)
        said = await in_shell(await console.copied("Copy as curl"), token)
        assert said["success"], said
    await console.open_tab("Events")
    stream = await console.copied("Copy as curl")
    assert f'curl -g -N -H "Authorization: Bearer $TOKEN" {copying.proxy.url}{PREFIX}/events/{session}' == stream
