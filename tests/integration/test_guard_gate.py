"""The guard with the real gate on a real Valkey: what the browser sees of a host's calls, and what its answers do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import mcp_parts
from agent_sse import SimpleNotifier
from agent_sse.backend import Backend
from agent_sse.cancels import cancel_call
from agent_sse.store import Store
from harness import Stream, Valkey, bearer, make_settings, make_token, processes_with, serve, session_name, until
from mcp_parts import RawHost, hostile
from permission_time import let_time_pass

POLICY = """
version = 1

[[rules]]
name = "reads"
server = "hostile"
tool = ["tool*", "hang", "crash", "large", "garbage", "progress"]
decision = "allow"

[[rules]]
name = "never"
tool = "forbidden"
decision = "deny"
reason = "not here"
"""


class Room:
    """A session whose agent is a host behind a guard."""

    def __init__(self, valkey: Valkey, host: RawHost, session: str, folder: Path) -> None:
        self.valkey = valkey
        self.host = host
        self.session = session
        self.folder = folder

    async def events(self, kind: str, name: str) -> list[Any]:
        """Return the data of the session's events of one kind about one tool."""
        rows = [event for _, event in await self.valkey.entries(self.session)]
        return [row["data"] for row in rows if row["type"] == kind and row["data"].get("tool_name") == name]

    async def statuses(self, name: str) -> list[str]:
        return [data["status"] for data in await self.events("tool_status", name)]

    async def until_status(self, name: str, status: str) -> None:
        async def reached() -> bool:
            return status in await self.statuses(name)

        await until(reached, what=f"{name} being {status}")

    async def answer(self, approved: bool, **more: Any) -> None:
        """Answer as a browser does."""
        async with serve(make_settings(self.valkey.url)) as served, httpx.AsyncClient(trust_env=False) as http:
            response = await http.post(
                f"{served.api}/permission-response/{self.session}", json={"approved": approved, "reason": "so", **more},
                headers=bearer(make_token(self.session)),
            )  # fmt: skip
            assert 200 == response.status_code, response.text

    async def call(self, request_id: Any, name: str, arguments: Any = None) -> None:
        await self.host.send("tools/call", {"name": name, "arguments": arguments or {}}, id=request_id)

    def ran(self) -> str:
        path = self.folder / "seen"
        return path.read_text() if path.exists() else ""


@asynccontextmanager
async def room_of(valkey: Valkey, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    (folder / "policy.toml").write_text(POLICY)
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    session = session_name()
    command = mcp_parts.guard_command(
        folder / "guard", command=hostile("plain"), redis_url=valkey.url, session=session,
        policy=str(folder / "policy.toml"),
    )  # fmt: skip
    async with SimpleNotifier.from_url(valkey.url) as notifier:
        await notifier.open_session(session, owner="alice")
    async with RawHost(command) as host:
        await host.initialize()
        yield Room(valkey, host, session, folder)


@pytest.fixture
async def room(valkey: Valkey, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    """A session of a guard in front of a server whose tools do as they are named."""
    async with room_of(valkey, folder, monkeypatch) as made:
        yield made


async def test_guard_shows_an_allowed_call_from_its_beginning_to_its_result(room: Room) -> None:
    """The browser sees the call run and its result, under the name of the command's server."""
    await room.call(1, "tool0", {"a": 1})
    await room.host.answer(1)
    await room.until_status("tool0", "completed")
    assert ["pending", "executing", "completed"] == await room.statuses("tool0")
    (result,) = await room.events("tool_result", "tool0")
    assert result["success"]
    assert "ran" in str(result["result"])
    details = (await room.events("tool_status", "tool0"))[0]["details"]
    assert ("hostile", {"a": 1}) == (details["server"], details["parameters"])


async def test_guard_tells_the_model_that_a_policy_denies(room: Room) -> None:
    """The server hears nothing, and the browser sees the call denied."""
    await room.call(1, "forbidden")
    answer = await room.host.answer(1)
    assert answer["result"]["isError"]
    assert "not here" in str(answer)
    assert ["pending", "denied"] == await room.statuses("forbidden")
    assert "forbidden" not in room.ran()


@pytest.mark.parametrize("approved", [True, False])
async def test_guard_runs_what_the_browser_approves_and_nothing_else(room: Room, approved: bool) -> None:
    """A call that no rule allows waits for the answer, which decides."""
    await room.call(1, "delete", {"path": "/"})
    await room.until_status("delete", "waiting_permission")
    assert "delete" not in room.ran()
    await room.answer(approved)
    answer = await room.host.answer(1)
    assert approved is not answer["result"].get("isError", False)
    assert approved is ("delete" in room.ran())
    await room.until_status("delete", "completed" if approved else "denied")


async def test_guard_shows_a_call_that_the_host_took_back(room: Room) -> None:
    """The prompt goes, and the call is cancelled."""
    await room.call(1, "delete")
    await room.until_status("delete", "waiting_permission")
    await room.host.send("notifications/cancelled", {"requestId": 1})
    await room.until_status("delete", "cancelled")
    (cleared,) = await room.events("permission_cleared", "delete")
    assert "cancelled" == cleared["outcome"]
    assert "delete" not in room.ran()


async def test_guard_stops_a_call_that_the_browser_cancels(room: Room) -> None:
    """The server is told to stop, the model who did it."""
    await room.call(1, "hang")
    await room.until_status("hang", "executing")
    await until(lambda: "hang" in room.ran())
    (data, *_) = await room.events("tool_status", "hang")
    backend = Backend(room.valkey.url)
    try:
        store = Store(backend, make_settings(room.valkey.url))
        outcome = await cancel_call(store, room.session, data["tool_call_id"], reason="enough", subject="alice")
    finally:
        await backend.aclose()
    assert "cancelling" == outcome
    answer = await room.host.answer(1)
    assert answer["result"]["isError"]
    assert "enough" in str(answer)
    await until(lambda: "notifications/cancelled" in room.ran())
    await room.until_status("hang", "cancelled")


async def test_guard_shows_that_the_server_crashed(room: Room) -> None:
    """The call has failed for the browser before the guard is gone."""
    await room.call(1, "crash")
    assert 1 == await room.host.end()
    assert ["pending", "executing", "failed"] == await room.statuses("crash")


async def test_guard_shows_a_large_result_as_a_summary_and_gives_it_whole(room: Room) -> None:
    """50 MB go to the host; the event holds what an event may."""
    await room.call(1, "large")
    answer = await room.host.answer(1)
    assert 50_000_000 == len(answer["result"]["content"][0]["text"])
    await room.until_status("large", "completed")
    (result,) = await room.events("tool_result", "large")
    assert len(str(result)) < 256 * 1024


async def test_guard_fails_closed_when_valkey_is_away(room: Room) -> None:
    """A call is answered with a result that says so and does not run, a ping is answered, and later all works again."""
    await room.call(1, "tool0")
    await room.host.answer(1)
    await room.valkey.stop()
    await room.call(2, "tool1")
    await room.host.send("ping", id=3)
    await room.host.answer(3)
    answer = await room.host.answer(2)
    assert answer["result"]["isError"]
    assert "tool1" not in room.ran()
    await room.valkey.start()
    await room.call(4, "tool2")
    assert "isError" not in (await room.host.answer(4))["result"]


async def test_guard_that_is_killed_leaves_no_prompt_and_no_process(room: Room) -> None:
    """SIGKILL while a prompt is open: the server goes, the prompt is withdrawn, and the tool has not run."""
    await room.call(1, "delete")
    (asked,) = await until(lambda: room.events("permission_request", "delete"), what="the prompt")
    room.host.process.kill()
    await room.host.end()
    await until(lambda: not processes_with(str(room.folder / "seen")), what="the server having ended")

    async with room.valkey.client() as client:
        await let_time_pass(client, room.session, 16_000, dead=[asked["request_id"]])  # the guard's lease is 15 s

    async def cleared() -> list[Any]:
        return await room.events("permission_cleared", "delete")

    async with (
        serve(make_settings(room.valkey.url)) as served,
        Stream(served.events(room.session, make_token(room.session))),
    ):
        (data,) = await until(cleared, what="the prompt being withdrawn")
    assert "cancelled" == data["outcome"]
    assert "delete" not in room.ran()


async def test_guard_remembers_an_answer_for_one_program_only(room: Room) -> None:
    """What the user allows one program's tool for the session is asked again for another program of the same name."""
    await room.call(1, "delete")
    (asked,) = await until(lambda: room.events("permission_request", "delete"), what="the prompt")
    await room.answer(True, request_id=asked["request_id"], scope="session", covers="tool")
    await room.host.answer(1)
    await room.call(2, "delete", {"path": "/"})
    assert "isError" not in (await room.host.answer(2))["result"]
    other = mcp_parts.guard_command(
        room.folder / "other", command=[*hostile("plain"), "other"], redis_url=room.valkey.url, session=room.session,
        policy=str(room.folder / "policy.toml"),
    )  # fmt: skip
    async with RawHost(other) as host:
        await host.initialize()
        ran = room.ran().count("delete")
        await host.send("tools/call", {"name": "delete", "arguments": {}}, id=3)

        async def asked_again() -> bool:
            return 2 == len(await room.events("permission_request", "delete"))

        await until(asked_again, what="another prompt")
        first, second = await room.events("permission_request", "delete")
        assert (first["server"], ran) == (second["server"], room.ran().count("delete"))
        await room.answer(False, request_id=second["request_id"])
        assert (await host.answer(3))["result"]["isError"]
    await room.call(4, "delete")
    assert "isError" not in (await room.host.answer(4))["result"]
