"""Kill the agent, the guard, the service, Valkey, each while a prompt is open, or between answer and run.

The tool never runs unless it was approved, never twice, no prompt stays for ever, and what is started again works.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness import (
    DEADLINE,
    Follower,
    ServiceProcess,
    Valkey,
    bearer,
    make_token,
    processes_with,
    session_name,
    until,
)
from mcp_parts import SERVERS, RawHost

LEASE = 2.5  # s; an agent renews every third of it, so one that is well is not taken for dead on a busy machine
AGENTS = ["client", "guard"]  # whose death is the death of who asked


class Agent(RawHost):
    """An agent: `agent.py`, or a guard whose host is this test. ``kind`` is what stands between it and the tool."""

    def __init__(self, kind: str, command: list[str]) -> None:
        super().__init__(command)
        self.kind = kind

    async def ready(self) -> Agent:
        if self.kind == "guard":
            await self.initialize()
        return self

    async def call(self, call_id: str, text: str, **more: Any) -> None:
        if self.kind == "guard":
            await self.send("tools/call", {"name": "mark", "arguments": {"text": text}}, id=call_id)
        else:
            line = {"id": call_id, "tool": "mark", "arguments": {"text": text}, **more}
            await self.write(json.dumps(line).encode())

    async def outcome(self, call_id: str) -> bool:
        """Wait until the model is told, and return whether the tool ran."""
        answer = await self.answer(call_id)
        return not answer["result"].get("isError", False) if self.kind == "guard" else bool(answer["ran"])

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.end()


class Place:
    """A session, its user, and a browser that comes back by itself."""

    def __init__(self, valkey: Valkey, folder: Path, http: httpx.AsyncClient) -> None:
        self.valkey = valkey
        self.http = http
        self.session = session_name()
        self.marks_file = folder / "marks"
        self.service = ServiceProcess(
            {"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_HEARTBEAT_INTERVAL": "1", "AGENT_SSE_JWT_AUDIENCE": ""}
        )
        self.token = make_token(self.session)
        self.browser = Follower(lambda: self.service.served.events(self.session, self.token), self.service.listening)
        self.seen: set[str] = set()

    def command(self, kind: str, timeout: float) -> list[str]:
        marking = [sys.executable, str(SERVERS / "marking.py"), str(self.marks_file)]
        guard = [
            sys.executable, "-m", "agent_sse", "guard", "--session", self.session, "--name", "marking",
            "--timeout", str(timeout), "--", *marking,
        ]  # fmt: skip
        if kind == "guard":
            return guard
        options: dict[str, Any] = {"session": self.session, "timeout": timeout, "marks": str(self.marks_file)}
        if kind == "client":
            options["command"] = marking
        elif kind == "host":
            options |= {"command": guard, "plain": True}
        return [sys.executable, str(SERVERS / "agent.py"), json.dumps(options)]

    @asynccontextmanager
    async def agent(self, kind: str, *, timeout: float = 300.0) -> AsyncIterator[Agent]:
        async with Agent(kind, self.command(kind, timeout)) as agent:
            try:
                yield await agent.ready()
            finally:
                if agent.process.returncode is None:
                    agent.signal(signal.SIGCONT)  # or it would never end

    async def prompt(self) -> str:
        """Wait for a prompt that was not there yet, and return its request id."""

        def found() -> str | None:
            ids = [event.json["data"]["request_id"] for event in self.browser.types("permission_request")]
            return next((request_id for request_id in ids if request_id not in self.seen), None)

        await self.browser.until(found)
        request_id = found()
        assert request_id is not None
        self.seen.add(request_id)
        return request_id

    async def cleared(self, request_id: str) -> tuple[str, str]:
        """Wait until the browser's prompt goes, and return how and why."""

        def found() -> Any:
            rows = [event.json["data"] for event in self.browser.types("permission_cleared")]
            return next((row for row in rows if row["request_id"] == request_id), None)

        await self.browser.until(found)
        return found()["outcome"], found()["reason"]

    async def answer(self, request_id: str, *, approved: bool = True) -> int:
        """Answer as a user does who tries again while the service cannot; return the status."""
        body = {"approved": approved, "reason": "", "request_id": request_id}

        async def answered() -> int | None:
            url = f"{self.service.served.api}/permission-response/{self.session}"
            reply = await self.http.post(url, json=body, headers=bearer(self.token))
            return None if reply.status_code in (429, 503) else reply.status_code

        return int(await until(answered, what="an answer being taken"))

    async def health(self) -> dict[str, Any]:
        url = f"{self.service.served.api}/health/{self.session}"
        return dict((await self.http.get(url, headers=bearer(self.token))).json()["data"])

    async def settled(self) -> None:
        """Wait until nothing is asked any more, and no call's card is open."""

        async def is_settled() -> bool:
            health = await self.health()
            async with self.valkey.client() as client:
                open_calls = await client.hlen(f"agent_sse:{{{self.session}}}:calls")
            return health["status"] == "ok" and health["pending_total"] == 0 and open_calls == 0

        await until(is_settled, what="everything being settled")

    async def decisions(self) -> dict[str, str]:
        """Return what the audit says of each request."""
        async with self.valkey.client() as client:
            rows = await client.xrange(f"agent_sse:{{{self.session}}}:audit")
        entries = [json.loads(fields[b"d"]) for _, fields in rows]
        decisions = [entry for entry in entries if entry["kind"] == "decision"]
        found = {entry["request_id"]: entry["outcome"] for entry in decisions}
        assert len(found) == len(decisions), "a request was decided twice"
        return found

    async def kill_valkey(self, history: str = "kept") -> None:
        """Kill it when its file has everything, or whatever it has; or lose the file."""
        if history == "kept":
            async with self.valkey.client() as client:
                await client.config_set("appendfsync", "always")  # then what is acknowledged is written, all before too
                await client.set("agent_sse:kept", "1")
        await self.valkey.stop(signal.SIGKILL)
        if history == "lost":
            shutil.rmtree(self.valkey.folder / "appendonlydir")

    def marks(self) -> list[str]:
        """Return with what the tool ran, each time that it did."""
        text = self.marks_file.read_text() if self.marks_file.exists() else ""
        return [json.loads(line)["arguments"]["text"] for line in text.splitlines()]

    async def works(self, kind: str) -> None:
        """See that a new agent's call asks, and runs when it is approved."""
        before = self.marks()
        async with self.agent(kind) as agent:
            await agent.call("again", "again", key="again")
            request_id = await self.prompt()
            assert before == self.marks()
            assert 200 == await self.answer(request_id)
            assert await agent.outcome("again")
        assert [*before, "again"] == self.marks()
        await self.settled()


@pytest.fixture
async def place(valkey: Valkey, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """A session with a running service and an open browser; agents come in the test."""
    monkeypatch.setenv("AGENT_SSE_REDIS_URL", valkey.url)
    monkeypatch.setenv("AGENT_SSE_PERMISSION_LEASE", str(LEASE))
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
        made = Place(valkey, folder, http)
        async with made.service, made.browser:
            yield made


async def no_process_with(path: Path) -> None:
    await until(lambda: not processes_with(str(path)), what="every process having ended")


# -- the agent, the guard ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*AGENTS, "host"])
async def test_killed_agents_prompt_goes_and_its_tool_never_runs(place: Place, kind: str) -> None:
    """SIGKILL for whoever asked, or for the host before a guard: the prompt and all processes go, late answers too."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "killed")
        request_id = await place.prompt()
        assert processes_with(str(place.marks_file))
        await agent.kill()
        # A guard sees the end of its host and withdraws; of what dies itself the lease lapses.
        withdrawn = "withdrawn" if kind == "host" else "agent_lost"
        assert ("cancelled", withdrawn) == await place.cleared(request_id)
    assert 410 == await place.answer(request_id)
    await no_process_with(place.marks_file)
    await place.settled()
    assert [] == place.marks()
    await place.works(kind)


@pytest.mark.parametrize("kind", AGENTS)
async def test_approval_that_a_killed_agent_never_took_runs_nothing(place: Place, kind: str) -> None:
    """Killed between the answer and the run: the card closes, and the next agent has to ask for itself."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "killed")
        request_id = await place.prompt()
        agent.signal(signal.SIGSTOP)
        assert 200 == await place.answer(request_id)
        await agent.kill()
    assert "approved" == (await place.cleared(request_id))[0]
    await place.settled()
    (result,) = place.browser.types("tool_result")
    assert not result.json["data"]["success"]
    assert [] == place.marks()
    await place.works(kind)


@pytest.mark.parametrize("kind", AGENTS)
async def test_agent_that_slept_past_its_lease_is_told_that_nobody_approved(place: Place, kind: str) -> None:
    """A stopped process counts as dead; when it goes on, its call was not approved, whatever the user says then."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "slept")
        request_id = await place.prompt()
        agent.signal(signal.SIGSTOP)
        assert ("cancelled", "agent_lost") == await place.cleared(request_id)
        assert 410 == await place.answer(request_id)
        agent.signal(signal.SIGCONT)
        assert not await agent.outcome("c1")
    assert [] == place.marks()


@pytest.mark.parametrize("kind", AGENTS)
async def test_agent_that_wakes_after_its_card_was_closed_does_not_run(place: Place, kind: str) -> None:
    """Once the browser was told that an approved call's agent is lost, the call does not run behind its back."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "slept")
        request_id = await place.prompt()
        agent.signal(signal.SIGSTOP)
        assert 200 == await place.answer(request_id)
        await place.browser.until(lambda: place.browser.types("tool_result"))
        agent.signal(signal.SIGCONT)
        assert not await agent.outcome("c1")
    assert [] == place.marks()
    await place.settled()


# -- the service ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS)
async def test_killed_service_changes_nothing_of_a_prompt(place: Place, kind: str) -> None:
    """The call waits on; once the service is back, so is the prompt, and its answer counts once."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "approved")
        request_id = await place.prompt()
        await place.service.stop(signal.SIGKILL)
        assert [] == place.marks()
        connects = place.browser.connects
        await place.service.start()
        await place.browser.until(lambda: place.browser.connects > connects)
        assert [request_id] == [row["request_id"] for row in (await place.health())["pending_permissions"]]
        assert 200 == await place.answer(request_id)
        assert await agent.outcome("c1")
        assert 200 == await place.answer(request_id)  # a repeat
    assert ["approved"] == place.marks()
    await place.settled()


@pytest.mark.parametrize("kind", AGENTS)
async def test_prompt_expires_while_no_service_is_there(place: Place, kind: str) -> None:
    """Nobody can answer a killed service's prompt: it expires, and a browser that comes back later sees it gone."""
    async with place.agent(kind, timeout=3) as agent:
        await agent.call("c1", "expired")
        request_id = await place.prompt()
        await place.service.stop(signal.SIGKILL)
        assert not await agent.outcome("c1")
        await place.service.start()
        assert "expired" == (await place.cleared(request_id))[0]
        assert 410 == await place.answer(request_id)
    assert [] == place.marks()
    await place.settled()
    await place.works(kind)


# -- Valkey -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("history", ["kept", "as it is", "lost"])
async def test_killed_valkey_runs_exactly_what_it_says_was_approved(place: Place, kind: str, history: str) -> None:
    """A prompt that its file has can be answered, unless its lease is over; one that it has not is gone."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "approved")
        request_id = await place.prompt()
        await place.kill_valkey(history)
        await place.valkey.start()
        status = await place.answer(request_id)
        assert status in {"kept": {200, 410}, "as it is": {200, 410, 404}, "lost": {404}}[history]
        assert (status == 200) is await agent.outcome("c1")
        assert (["approved"] if status == 200 else []) == place.marks()
        if status == 404:  # a snapshot says that no card is open
            await place.browser.until(lambda: place.browser.types("stream_reset"))
            await place.browser.until(lambda: place.browser.events[-1].type == "permission_cleared")
        else:
            assert (status == 200) is ("approved" == (await place.decisions())[request_id])
            await place.cleared(request_id)
    await place.settled()
    await place.works(kind)


@pytest.mark.parametrize("kind", AGENTS)
async def test_valkey_killed_behind_an_approval_runs_it_once_or_never(place: Place, kind: str) -> None:
    """The answer was acknowledged before Valkey died and the agent could take it: what the audit has of it counts."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "approved")
        request_id = await place.prompt()
        agent.signal(signal.SIGSTOP)
        assert 200 == await place.answer(request_id)
        await place.kill_valkey()
        await place.valkey.start()
        agent.signal(signal.SIGCONT)
        ran = await agent.outcome("c1")
        assert "approved" == (await place.decisions())[request_id]
        assert (["approved"] if ran else []) == place.marks()
    await place.settled()
    await place.works(kind)


@pytest.mark.parametrize("kind", AGENTS)
async def test_prompt_goes_when_everything_was_killed_at_once(place: Place, kind: str) -> None:
    """Agent, service and Valkey die together: what comes up again has no prompt of the agent that does not."""
    async with place.agent(kind) as agent:
        await agent.call("c1", "killed")
        request_id = await place.prompt()
        await place.kill_valkey()
        await asyncio.gather(place.service.stop(signal.SIGKILL), agent.kill())
        await place.valkey.start()
        await place.service.start()
        assert ("cancelled", "agent_lost") == await place.cleared(request_id)
    assert 410 == await place.answer(request_id)
    await no_process_with(place.marks_file)
    assert [] == place.marks()
    await place.settled()
    await place.works(kind)


# -- requests that outlive their agent --------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", ["before it is back", "when it is back"])
@pytest.mark.parametrize("valkey_dies", [False, True])
async def test_keyed_prompt_waits_for_its_agent_and_runs_once(place: Place, answered: str, valkey_dies: bool) -> None:
    """The killed agent's prompt stays; the one that asks again with its key gets the answer, a third one nothing."""
    async with place.agent("keyed") as agent:
        await agent.call("c1", "keyed", key="k")
        request_id = await place.prompt()
        await agent.kill()
    if valkey_dies:
        await place.kill_valkey()
        await place.valkey.start()
    if answered == "before it is back":
        assert 200 == await place.answer(request_id)
    async with place.agent("keyed") as agent:
        await agent.call("c1", "keyed", key="k")
        if answered == "when it is back":
            await place.browser.until(lambda: 2 == len(statuses(place, "waiting_permission")))
            assert 200 == await place.answer(request_id)
        assert await agent.outcome("c1")
    assert ["keyed"] == place.marks()
    async with place.agent("keyed") as third:
        await third.call("c1", "keyed", key="k")
        assert not await third.outcome("c1")
    assert ["keyed"] == place.marks()
    assert {request_id: "approved"} == await place.decisions()
    await place.settled()
    await place.works("keyed")


async def test_keyed_approval_that_was_never_taken_waits_for_the_next_agent(place: Place) -> None:
    """Killed between the answer and the run: the agent that asks again runs it, once."""
    async with place.agent("keyed") as agent:
        await agent.call("c1", "keyed", key="k")
        request_id = await place.prompt()
        agent.signal(signal.SIGSTOP)
        assert 200 == await place.answer(request_id)
        await agent.kill()
    assert [] == place.marks()
    async with place.agent("keyed") as agent:
        await agent.call("c1", "keyed", key="k")
        assert await agent.outcome("c1")
    assert ["keyed"] == place.marks()
    await place.settled()


@pytest.mark.parametrize("approved", [True, False])
async def test_keyed_prompt_of_an_agent_that_never_comes_back_goes_at_its_deadline(
    place: Place, approved: bool
) -> None:
    """Answered or not: after the timeout the prompt is gone and the call's card is closed."""
    async with place.agent("keyed", timeout=4) as agent:
        await agent.call("c1", "keyed", key="k")
        request_id = await place.prompt()
        agent.signal(signal.SIGSTOP)
        if approved:
            assert 200 == await place.answer(request_id)
        await agent.kill()
    assert ("approved" if approved else "expired") == (await place.cleared(request_id))[0]
    await place.settled()
    assert ["cancelled"] == [status for status in statuses(place) if status in ("cancelled", "completed")]
    assert [] == place.marks()


def statuses(place: Place, status: str | None = None) -> list[str]:
    found = [event.json["data"]["status"] for event in place.browser.types("tool_status")]
    return [one for one in found if status in (None, one)]
