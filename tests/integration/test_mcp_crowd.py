"""A hundred parallel calls with random answers, edits, cancels and time-outs of several users at once, by seed.

What ran is compared with what was decided: by the marks that the server's tools leave, the audit, the session's Stream,
what the users' requests were answered, and what the hosts were told.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters

from agent_sse import SimpleNotifier
from agent_sse.decisions import sha256
from agent_sse.mcp.client import GuardedClient
from agent_sse.mcp.gate import Gate
from agent_sse.policy_file import load_policy
from harness import (
    DEADLINE,
    Served,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    serve,
    session_name,
    until,
)
from mcp_parts import SERVERS

USERS = ("alice", "bob", "carol")
CALLS = 100
BRIEF = 4  # s; the time that the user has for the tool `brief`
POLICY = f"""
version = 1
default = "ask"

[[rules]]
name = "brief"
tool = "brief"
decision = "ask"
timeout = {BRIEF}

[[rules]]
name = "never"
decision = "deny"
tool = "mark"
arguments = {{ path = "$.text", glob = "forbidden" }}
reason = "not that"
"""
MORE = {"GRANT_ARGUMENTS": 6, "GRANT_TOOL": 3}  # calls after the first hundred, which a remembered answer decides
TERMINAL = {"completed", "failed", "cancelled", "denied"}
# What may become of a call: who does what about it, all of it at the same time.
PLANS: dict[str, tuple[str, tuple[str, ...]]] = {
    "approved": ("mark", ("approve",)),
    "denied": ("mark", ("deny",)),
    "edited": ("mark", ("edit",)),
    "said twice": ("mark", ("approve", "approve", "approve")),
    "disputed": ("mark", ("approve", "deny", "edit")),
    "edited by two": ("mark", ("edit", "edit")),
    "edited into what the policy denies": ("mark", ("forbid",)),
    "edited into what the tool does not take": ("mark", ("spoil", "approve")),
    "cancelled": ("mark", ("cancel",)),
    "cancelled or approved": ("mark", ("cancel", "approve")),
    "taken back": ("mark", ("take back",)),
    "taken back or approved": ("mark", ("take back", "approve")),
    "taken back at once": ("mark", ()),
    "cancelled while it runs": ("linger", ("approve and cancel",)),
    "taken back while it runs": ("linger", ("approve and take back",)),
    "not answered": ("brief", ()),
    "answered at the last moment": ("brief", ("approve late", "deny late")),
}
ANSWERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "approve": (True, {}),
    "deny": (False, {}),
    "forbid": (True, {"parameters_patch": {"text": "forbidden"}}),
    "spoil": (True, {"parameters_patch": {"count": -1}}),
    "approve these arguments": (True, {"scope": "session", "covers": "arguments"}),
    "deny these arguments": (False, {"scope": "session", "covers": "arguments"}),
    "approve this tool": (True, {"scope": "session", "covers": "tool"}),
}
MAY_END_CANCELLED = {name for name in PLANS if name.startswith(("cancelled", "taken back"))}


@dataclass
class Call:
    """One call as it is planned; ``name`` is in its arguments, and those of a group have one name and one plan."""

    name: str
    plan: str
    tool: str
    actions: tuple[str, ...]
    arguments: dict[str, Any]
    task: asyncio.Task[tuple[bool, str]] | None = None


@dataclass
class Reply:
    """What a user's answer was answered."""

    user: str
    body: dict[str, Any]
    status: int
    data: dict[str, Any]


@dataclass
class Room:
    """One session: its agent, its calls, and what its browser has seen."""

    kind: str
    agent: Callable[[str, dict[str, Any]], Coroutine[Any, Any, tuple[bool, str]]]
    session: str
    calls: list[Call] = field(default_factory=list)
    requests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # presented, by the call's name
    expired: bool = False
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    replies: dict[str, list[Reply]] = field(default_factory=dict)  # by request

    async def watch(self, stream: Stream) -> None:
        while True:
            event = await stream.next("permission_request", "permission_cleared")
            data = event.json["data"]
            async with self.news:
                if event.type == "permission_cleared":
                    self.expired = self.expired or data["outcome"] == "expired"
                elif event.id is not None:  # beside a heartbeat it is a repeat
                    self.requests.setdefault(data["parameters"]["more"]["call"], []).append(data)
                self.news.notify_all()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE), self.news:
            await self.news.wait_for(condition)

    def start(self, call: Call) -> None:
        call.task = asyncio.create_task(self.agent(call.tool, copy.deepcopy(call.arguments)))
        self.calls.append(call)

    def is_asked(self, call: Call) -> bool:
        """Whether the users can see it, or never will."""
        assert call.task is not None
        wanted = sum(other.name == call.name for other in self.calls)
        return len(self.requests.get(call.name, ())) >= wanted or call.task.done()


# -- plans ------------------------------------------------------------------------------------------------------------


def make_arguments(chance: random.Random, name: str) -> dict[str, Any]:
    values = [0.1 + 0.2, 1e-7, 2**53 + 1, -0.5, 1.0, True, None, "Grüße 🌍 \u2028", [1, [2, {"a": []}]], {}]
    return {
        "text": f"text {chance.random()}",
        "count": chance.randrange(2**40),
        "more": {"call": name, "value": chance.choice(values), "deep": {"a": 1, "b": [chance.choice(values)]}},
    }


def make_patch(chance: random.Random) -> dict[str, Any]:
    """A merge patch that the tool takes: it changes, removes and adds."""
    patches: list[dict[str, Any]] = [
        {"text": f"edited {chance.random()}"},
        {"count": None},
        {"count": chance.randrange(100), "more": {"deep": None}},
        {"more": {"deep": {"a": None, "c": [1, 2.5, "ü"]}, "value": "edited"}},
    ]
    return chance.choice(patches)


def merged(value: Any, patch: Any) -> Any:
    """JSON Merge Patch as the RFC's pseudocode has it (https://www.rfc-editor.org/rfc/rfc7396#section-2)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for name, item in patch.items():
        if item is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), item)
    return result


def plan(chance: random.Random, count: int, prefix: str) -> list[Call]:
    """Plan calls: each kind about as often, in any order."""
    kinds = [list(PLANS)[number % len(PLANS)] for number in range(count)]
    chance.shuffle(kinds)
    names = (f"{prefix}{number}" for number in range(count))
    return [
        Call(name, kind, *PLANS[kind], make_arguments(chance, name)) for name, kind in zip(names, kinds, strict=True)
    ]


def plan_groups(chance: random.Random, count: int, prefix: str) -> Iterator[Call]:
    """Plan calls with the same arguments: an answer to one of each group holds for all of them."""
    for group in range(count // 4):
        name, word = f"{prefix}{group}", chance.choice(["approve", "deny"])
        arguments = make_arguments(chance, name)
        for member in range(4):
            actions = {0: (f"{word} these arguments",), 1: (chance.choice(["approve", "deny"]),)}.get(member, ())
            yield Call(name, "group", "mark", actions, arguments)


# -- what users do ----------------------------------------------------------------------------------------------------


class Crowd:
    """The users, who act over HTTP, each with a token."""

    def __init__(self, chance: random.Random, served: Served, http: httpx.AsyncClient, marks: Path) -> None:
        self.chance = chance
        self.marks = marks
        self.served = served
        self.http = http

    async def post(self, path: str, user: str, session: str, body: dict[str, Any]) -> httpx.Response:
        token = make_token(session, sub=user)
        return await self.http.post(f"{self.served.api}/{path}/{session}", json=body, headers=bearer(token))

    async def say(self, room: Room, request: dict[str, Any], user: str, approved: bool, **more: Any) -> None:
        body = {"approved": approved, "reason": f"{user} says so", "request_id": request["request_id"], **more}
        reply = await self.post("permission-response", user, room.session, body)
        made = Reply(user, body, reply.status_code, reply.json().get("data") or {})
        room.replies.setdefault(request["request_id"], []).append(made)

    async def cancel(self, room: Room, request: dict[str, Any], user: str, *statuses: int) -> None:
        body = {"tool_call_id": request["tool_call_id"], "reason": f"{user} has had enough"}
        reply = await self.post("cancel", user, room.session, body)
        assert reply.status_code in statuses, reply.text

    def actions(self, room: Room) -> list[Coroutine[Any, Any, None]]:
        """Return what is done about the session's calls, each of it by anybody."""
        made = []
        taken: Counter[str] = Counter()
        for call in room.calls:
            requests = room.requests.get(call.name, [])
            number, taken[call.name] = taken[call.name], taken[call.name] + 1
            if number < len(requests):
                users = self.chance.sample(USERS, len(USERS))
                if call.plan == "said twice":
                    users = users[:1] * len(USERS)
                one_by_one = call.plan == "edited into what the tool does not take"
                acts = [
                    self.act(room, call, requests[number], user, action=action, patch=make_patch(self.chance))
                    for user, action in zip(users, call.actions, strict=False)
                ]
                made += [in_turn(acts)] if one_by_one else acts
        return made

    async def act(
        self, room: Room, call: Call, request: dict[str, Any], user: str, *, action: str, patch: dict[str, Any]
    ) -> None:
        assert call.task is not None
        if action in ANSWERS:
            approved, more = ANSWERS[action]
            await self.say(room, request, user, approved, **more)
        elif action == "edit":
            await self.say(room, request, user, True, parameters_patch=patch)
        elif action == "cancel":
            await self.cancel(room, request, user, 200, 202, 404)  # withdrawn, told to stop, over
        elif action == "take back":
            call.task.cancel()
        elif action.endswith(" late"):
            await room.until(lambda: room.expired)  # so the time of this one is over as well, or nearly
            await self.say(room, request, user, action == "approve late")
        else:
            await self.say(room, request, user, True)
            await until(lambda: call.name in self.marks.read_text(), what="the approved tool running")
            if action == "approve and cancel":
                await self.cancel(room, request, user, 202)
            else:
                call.task.cancel()


async def in_turn(acts: list[Coroutine[Any, Any, None]]) -> None:
    for act in acts:
        await act


# -- agents -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def agents(folder: Path, valkey: Valkey) -> AsyncIterator[list[Room]]:
    """Two agents behind guards, and two with a guarded client, each with a session and a server of its own."""
    (folder / "policy.toml").write_text(POLICY)
    marking = [sys.executable, str(SERVERS / "marking.py"), str(folder / "marks")]
    environment = {
        **os.environ, "AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_PERMISSION_CONCURRENCY": str(CALLS),
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        notifier = await stack.enter_async_context(SimpleNotifier.from_url(valkey.url, permission_concurrency=CALLS))
        rooms = []
        for kind, is_guard in (("MIXED", True), ("MIXED", False), ("GRANT_ARGUMENTS", True), ("GRANT_TOOL", False)):
            session = session_name()
            guard = [sys.executable, "-m", "agent_sse", "guard", "--session", session, "--name", "marking"]
            guard += ["--policy", str(folder / "policy.toml"), "--"]
            command = [*guard, *marking] if is_guard else marking
            server = StdioServerParameters(command=command[0], args=command[1:], env=environment)
            client: Any = await stack.enter_async_context(Client(server, mode="auto" if kind == "MIXED" else "legacy"))
            if not is_guard:
                policy = load_policy(folder / "policy.toml")
                client = GuardedClient(client, Gate(notifier, session, server="marking", policy=policy))
            rooms.append(Room(kind, calling(client), session))
        yield rooms


def calling(client: Any) -> Callable[[str, dict[str, Any]], Coroutine[Any, Any, tuple[bool, str]]]:
    async def call(tool: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        result = await client.call_tool(tool, arguments)
        return not result.is_error, result.content[0].text

    return call


# -- what has to be true at the end -----------------------------------------------------------------------------------


class Books:
    """All accounts of one session, and what they have to agree on."""

    def __init__(
        self, room: Room, audit: list[dict[str, Any]], stream: list[dict[str, Any]], runs: list[dict[str, Any]]
    ) -> None:
        self.room = room
        self.decisions = {entry["tool_call_id"]: entry for entry in audit if entry["kind"] == "decision"}
        assert len(self.decisions) == sum(entry["kind"] == "decision" for entry in audit), "a call was decided twice"
        self.refused = {entry["tool_call_id"] for entry in audit if entry["kind"] == "refusal"}
        self.cancellations = {entry["tool_call_id"]: entry for entry in audit if entry["kind"] == "cancellation"}
        self.statuses: dict[str, list[dict[str, Any]]] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.shown: Counter[str] = Counter()
        self.cleared: Counter[str] = Counter()
        for event in stream:
            data = event["data"]
            if event["type"] == "tool_status":
                self.statuses.setdefault(data["tool_call_id"], []).append(data)
            elif event["type"] == "tool_result":
                self.results.setdefault(data["tool_call_id"], []).append(data)
            elif event["type"] in ("permission_request", "permission_cleared"):
                seen = self.shown if event["type"] == "permission_request" else self.cleared
                seen[data["request_id"]] += 1
        self.runs = runs
        self.plans = {call.name: call for call in room.calls}
        self.seen: Counter[str] = Counter()

    def check(self) -> Counter[str]:
        """Check everything, and return how often what happened; the runs that are accounted for are removed."""
        assert self.shown == self.cleared, "a prompt was shown or cleared twice, or stays"
        assert set(self.shown.values()) <= {1}
        assert self.statuses.keys() == self.results.keys(), "a call has no result, or a result has no call"
        assert len(self.statuses) <= len(self.room.calls)
        for call_id in self.statuses:
            self.check_call(call_id)
        self.check_answers()
        self.check_hosts()
        return self.seen

    def check_call(self, call_id: str) -> None:
        decision, ends = self.decisions.get(call_id), [s["status"] for s in self.statuses[call_id]]
        (end,) = [status for status in ends if status in TERMINAL]
        assert end == ends[-1]
        (result,) = self.results[call_id]
        assert result["success"] is (end == "completed")
        call = self.plans[self.statuses[call_id][0]["details"]["parameters"]["more"]["call"]]
        if decision is None:  # taken back before it could be asked about
            assert ("cancelled", "taken back at once") == (end, call.plan)
            return
        assert (call.arguments, sha256(call.arguments)) == (decision["parameters"], decision["digest"])
        approved = decision["outcome"] == "approved" and call_id not in self.refused
        arguments = decision.get("edited_parameters", decision["parameters"])
        digest = decision.get("edited_digest", decision["digest"])
        if end == "completed":
            assert approved
            text = result["result"]["content"][0]["text"]
            (run,) = [run for run in self.runs if run["run"] == text]
        else:
            assert end == ("denied" if decision["outcome"] == "denied" or call_id in self.refused else "cancelled")
            run = self.run_of(call) if approved else None
            assert not approved or call.plan in MAY_END_CANCELLED
        if run is not None:
            assert (call.tool, digest, digest) == (run["tool"], sha256(run["arguments"]), sha256(arguments))
            self.runs.remove(run)
        self.note(call_id, decision, end)

    def run_of(self, call: Call) -> dict[str, Any] | None:
        """Return the run of a call that was stopped, and so may have run: its result has told nobody."""
        found = [run for run in self.runs if run["arguments"]["more"]["call"] == call.name]
        assert call.tool != "linger" or found
        assert len(found) <= 1
        return found[0] if found else None

    def note(self, call_id: str, decision: dict[str, Any], end: str) -> None:
        self.seen[f"{decision['outcome']} by {decision['by']}"] += 1
        self.seen["edited"] += "edited_digest" in decision and end == "completed"
        self.seen["refused by policy"] += call_id in self.refused
        self.seen["cancelled by a user while it ran"] += (
            end == "cancelled" and decision["outcome"] == "approved" and call_id in self.cancellations
        )

    def check_answers(self) -> None:
        """Exactly one answer won, if any did; everybody else was told the truth."""
        by_request = {entry["request_id"]: entry for entry in self.decisions.values()}
        for request_id, replies in self.room.replies.items():
            decision = by_request[request_id]
            winners = [reply for reply in replies if reply.status == 200 and "already_resolved" not in reply.data]
            assert (1 if decision["by"] == "answer" else 0) == len(winners)
            for winner in winners:
                outcome = "approved" if winner.body["approved"] else "denied"
                assert (winner.user, outcome) == (decision["resolved_by"], decision["outcome"])
                patch = winner.body.get("parameters_patch")
                edited = merged(decision["parameters"], patch) if patch else None
                assert edited == decision.get("edited_parameters") == winner.data.get("edited_parameters")
            for reply in replies:
                self.check_loser(reply, decision)

    def check_loser(self, reply: Reply, decision: dict[str, Any]) -> None:
        if reply.status == 422:
            assert {"count": -1} == reply.body["parameters_patch"]
        elif reply.status == 410:
            assert decision["outcome"] in ("expired", "cancelled")
        else:
            assert reply.status in (200, 409)
            assert decision["outcome"] == reply.data["status"]
            assert reply.status == 409 or reply.body["approved"] is (decision["outcome"] == "approved")

    def check_hosts(self) -> None:
        """A host that still listened was told the result of the very run, or that there was none."""
        texts = Counter(
            result["result"]["content"][0]["text"]
            for results in self.results.values() for result in results if result["success"]
        )  # fmt: skip
        for call in self.room.calls:
            assert call.task is not None
            if not call.task.cancelled():
                ran, text = call.task.result()
                assert ran is (text in texts)


async def audit_of(crowd: Crowd, session: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    after = None
    while True:
        query = {"limit": "1000"} if after is None else {"limit": "1000", "after": after}
        url = f"{crowd.served.api}/audit/{session}"
        reply = await crowd.http.get(url, params=query, headers=bearer(make_token(session)))
        entries += reply.json()["data"]["entries"]
        after = reply.json()["data"]["next"]
        if after is None:
            return entries


async def until_all_told(valkey: Valkey, room: Room) -> list[dict[str, Any]]:
    """Wait until every call that was begun has told its end, and nothing is open; return what the Stream holds."""

    async def told() -> list[dict[str, Any]] | None:
        events = [event for _, event in await valkey.entries(room.session)]
        begun = {event["data"]["tool_call_id"] for event in events if event["type"] == "tool_status"}
        ended = {event["data"]["tool_call_id"] for event in events if event["type"] == "tool_result"}
        key = f"agent_sse:{{{room.session}}}:"
        async with valkey.client() as client:
            left = await client.hlen(key + "calls") + await client.zcard(key + "queue")
        return events if begun == ended and not left else None

    found: list[dict[str, Any]] = await until(told, what="every call having told its end")
    return found


async def check_that_nothing_is_left(crowd: Crowd, valkey: Valkey, room: Room) -> None:
    token = make_token(room.session)
    reply = await crowd.http.get(f"{crowd.served.api}/health/{room.session}", headers=bearer(token))
    health = reply.json()["data"]
    assert ([], 0) == (health["pending_permissions"], health["pending_total"])
    async with valkey.client() as client:
        assert not await client.hget(f"agent_sse:{{{room.session}}}:state", "shown")
    async with Stream(crowd.served.events(room.session, token)) as stream:
        await stream.primed()
    snapshot = [event.json for event in stream.records if event.data is not None and event.type != "heartbeat"]
    assert ["tool_status", "tool_result", "permission_cleared"] == [event["type"] for event in snapshot]
    assert snapshot[0]["data"]["status"] in TERMINAL
    assert "none" == snapshot[2]["data"]["outcome"]


# -- the test ---------------------------------------------------------------------------------------------------------


def plan_all(chance: random.Random, rooms: list[Room]) -> list[list[Call]]:
    first, second, _, _ = rooms
    plans = [
        plan(chance, 34, first.session), plan(chance, 34, second.session),
        list(plan_groups(chance, 16, rooms[2].session)), plan(chance, 16, rooms[3].session),
    ]  # fmt: skip
    granting = chance.choice([call for call in plans[3] if call.plan == "approved"])
    granting.actions = ("approve this tool",)
    assert CALLS == sum(len(calls) for calls in plans)
    return plans


async def run_first(chance: random.Random, crowd: Crowd, rooms: list[Room]) -> None:
    """Start a hundred calls, and let everybody loose on them once they are shown."""
    for room, calls in zip(rooms, plan_all(chance, rooms), strict=True):
        chance.shuffle(calls)
        for call in calls:
            room.start(call)
    await asyncio.sleep(0)  # let them begin
    for room in rooms:
        for call in room.calls:
            if call.plan == "taken back at once":
                assert call.task is not None
                call.task.cancel()
    for room in rooms:
        await room.until(lambda room=room: all(room.is_asked(call) for call in room.calls))  # type: ignore[misc]
    actions = [action for room in rooms for action in crowd.actions(room)]
    chance.shuffle(actions)
    await asyncio.gather(*actions)
    await all_done(rooms)


async def run_more(chance: random.Random, rooms: list[Room]) -> None:
    """Call what a remembered answer covers: nobody is asked."""
    for room in rooms:
        shown = sum(len(requests) for requests in room.requests.values())
        for number in range(MORE.get(room.kind, 0)):
            if room.kind == "GRANT_ARGUMENTS":
                known = chance.choice(room.calls)
                call = Call(known.name, "group", "mark", (), known.arguments)
            else:
                name = f"{room.session}-more{number}"
                call = Call(name, "more", "mark", (), make_arguments(chance, name))
            room.start(call)
        await all_done([room])
        assert shown == sum(len(requests) for requests in room.requests.values())


async def all_done(rooms: list[Room]) -> None:
    tasks = [call.task for room in rooms for call in room.calls if call.task is not None]
    async with asyncio.timeout(DEADLINE):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if not isinstance(outcome, tuple | asyncio.CancelledError):
            raise outcome


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_tool_runs_exactly_as_was_decided(valkey: Valkey, folder: Path, seed: int) -> None:
    """It ran if and only if it was approved, once, with exactly the approved arguments; and nothing is left open."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    async with (
        serve(make_settings(valkey.url, permission_concurrency=CALLS)) as served,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
        agents(folder, valkey) as rooms,
        AsyncExitStack() as stack,
    ):
        crowd = Crowd(chance, served, http, folder / "marks")
        for room in rooms:
            stream = await stack.enter_async_context(Stream(served.events(room.session, make_token(room.session))))
            await stream.primed()
            watching = asyncio.create_task(room.watch(stream))
            stack.push_async_callback(asyncio.gather, watching, return_exceptions=True)
            stack.callback(watching.cancel)
        await run_first(chance, crowd, rooms)
        await run_more(chance, rooms)
        accounts = []
        for room in rooms:
            stream_now = await until_all_told(valkey, room)
            accounts.append((room, await audit_of(crowd, room.session), stream_now))
            await check_that_nothing_is_left(crowd, valkey, room)
    runs = [json.loads(line) for line in (folder / "marks").read_text().splitlines()]
    seen: Counter[str] = Counter()
    for account in accounts:
        seen += Books(*account, runs).check()
    assert [] == runs, "these ran, and no decision says so"
    kinds = {
        "approved by answer", "denied by answer", "expired by expiry", "cancelled by cancel", "cancelled by withdrawal",
        "approved by grant", "edited", "refused by policy", "cancelled by a user while it ran",
    }  # fmt: skip
    assert set() == kinds - set(seen), "the seed does not show all that it should"
