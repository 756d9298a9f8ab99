"""The rules of protocol.md § 6 as invariants, whatever agents, users, time and restarts do, on a real Valkey.

`Book` is the model: what the rules make of what happened, on Redis' clock. Agents wait with the real notifier, answers
go through a real server, and time passes by moving what Redis' clock is compared with.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_sse import SimpleNotifier, scripts
from agent_sse.backend import Call
from agent_sse.errors import IdempotencyConflict, RedisUnavailable
from agent_sse.keys import Keyspace
from agent_sse.permissions import PermissionDecision
from harness import DEADLINE, Valkey, bearer, make_settings, make_token, serve, session_name, until
from permission_time import let_time_pass

GAP = 1000  # ms
RETENTION = 600_000  # ms; the setting's default
LONGEST = 300  # s; the longest time-out that is asked with

DUMP = """
local clock = redis.call('TIME')
return {
  clock[1] * 1000 + math.floor(clock[2] / 1000), redis.call('HGETALL', KEYS[1]), redis.call('ZRANGE', KEYS[2], 0, -1),
  redis.call('XRANGE', KEYS[3], '(' .. ARGV[1], '+')
}
"""


@dataclass
class Entry:
    """A request as the rules have it; times in ms of Redis' clock."""

    id: str
    n: int
    key: str | None
    question: tuple[str, int]
    deadline: int
    lease: float  # infinite while somebody waits
    status: str = "pending"
    shown: int | None = None
    at: int | None = None  # when it was settled

    @property
    def due(self) -> float:
        return self.deadline if self.key is not None else min(self.deadline, self.lease)

    @property
    def erased(self) -> float:
        if self.at is None:
            return float("inf")
        return RETENTION + (self.at if self.key is None else max(self.at, self.deadline))


@dataclass
class Book:
    """All requests of a session, and when the last presented one was settled."""

    entries: dict[str, Entry] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    cleared: int = 0
    prior: str | None = None

    def at(self, now: int) -> Book:
        """What the book says at ``now``, if nothing happens until then."""
        book = deepcopy(self)
        for entry in [entry for entry in book.entries.values() if entry.erased <= now]:
            del book.entries[entry.id]
        for entry in sorted(book.pending, key=lambda entry: (entry.due, entry.id)):
            if entry.due <= now:
                book.settle(entry, "expired" if entry.deadline <= now else "cancelled", now)
        return book

    @property
    def pending(self) -> list[Entry]:
        return sorted((e for e in self.entries.values() if e.status == "pending"), key=lambda entry: entry.n)

    @property
    def presented(self) -> list[Entry]:
        return [entry for entry in self.pending if entry.shown is not None]

    def settle(self, entry: Entry, status: str, now: int) -> None:
        entry.status, entry.at = status, now
        if entry.shown is not None:
            self.cleared, self.prior = now, entry.id

    def shift(self, ms: int, dead: set[str]) -> None:
        self.cleared -= ms
        for entry in self.entries.values():
            entry.deadline -= ms
            entry.lease -= ms if entry.id in dead else 0
            entry.shown = None if entry.shown is None else entry.shown - ms
            entry.at = None if entry.at is None else entry.at - ms

    def expect_answer(self, now: int, request_id: str | None, approved: bool) -> tuple[int, str, str | None]:
        """Return the status, the code and the request of the response to an answer at ``now``."""
        book = self.at(now)
        if request_id is not None:
            entry = book.entries.get(request_id)
            return book.verdict(entry, approved, "already_resolved") if entry else (404, "unknown_request", None)
        presented = book.presented
        if len(presented) > 1:
            return 409, "ambiguous", None
        prior = book.entries.get(book.prior or "")
        if prior is not None and prior.at is not None:
            replaced = now - book.cleared < GAP
            for entry in presented:
                assert entry.shown is not None
                replaced |= now - entry.shown < GAP
            if replaced or (not presented and book.pending):
                return book.verdict(prior, approved, "just_replaced")
        return book.verdict(presented[0], approved, "") if presented else (404, "nothing_pending", None)

    @staticmethod
    def verdict(entry: Entry, approved: bool, late: str) -> tuple[int, str, str | None]:
        if entry.status == "pending":
            return 200, "resolved", entry.id
        if entry.status in ("expired", "cancelled"):
            return 410, entry.status, entry.id
        equal = entry.status == ("approved" if approved else "denied")
        return (200, "repeated", entry.id) if equal else (409, late, entry.id)

    def expect_ask(self, now: int, key: str | None, question: tuple[str, int]) -> str | None:
        """Return the id that asking gets, "" for a new one, None for a conflict."""
        book = self.at(now)
        entry = book.entries.get(book.keys.get(key or "", ""))
        if entry is None:
            return ""
        if entry.question != question:
            return None
        return "" if entry.status in ("expired", "cancelled") else entry.id


class Agent:
    """An agent's process: its notifier, and who waits in it. ``dead`` cuts it off from Redis, whatever it is at."""

    def __init__(self, url: str, concurrency: int) -> None:
        self.notifier = SimpleNotifier.from_url(url, permission_concurrency=concurrency)
        self.dead = False
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.waiting: dict[asyncio.Task[PermissionDecision], str] = {}

    async def start(self) -> Agent:
        backend = (await self.notifier._ready()).backend
        run = backend.run

        async def cut_off(call: Call) -> Any:
            if not self.dead:
                reply = await run(call)
                if call.script is scripts.REQUEST:
                    self.replies.put_nowait(reply)
                if not self.dead:
                    return reply
            raise RedisUnavailable("this process is dead")

        backend.run = cut_off  # type: ignore[method-assign]
        return self

    async def kill(self) -> None:
        self.dead = True
        for task in self.waiting:
            task.cancel()
        await asyncio.gather(*self.waiting, return_exceptions=True)
        await self.notifier.aclose()


class World:
    """One Valkey and one server for all examples."""

    def __init__(self, folder: Path) -> None:
        self.valkey = Valkey(folder / "v")
        self.stack = AsyncExitStack()

    async def start(self) -> None:
        await self.valkey.start()
        self.stack.push_async_callback(self.valkey.stop)
        self.redis = await self.stack.enter_async_context(self.valkey.client())
        self.served = await self.stack.enter_async_context(serve(make_settings(self.valkey.url)))
        self.http = await self.stack.enter_async_context(httpx.AsyncClient(timeout=DEADLINE))


class PermissionMachine(RuleBasedStateMachine):
    """Any order of asking, answering, withdrawing, dying, waiting and restarting keeps the rules."""

    def __init__(self, runner: asyncio.Runner, world: World) -> None:
        super().__init__()
        self.runner = runner
        self.world = world

    @initialize(concurrency=st.sampled_from([1, 1, 2]), restarts=st.sampled_from([0, 0, 0, 1]))
    def begin(self, concurrency: int, restarts: int) -> None:
        self.concurrency = concurrency
        self.restarts = restarts
        self.session = session_name()
        self.headers = [bearer(make_token(self.session, sub=name)) for name in ("alice", "bob")]
        self.keys = Keyspace("agent_sse").session(self.session)
        self.book = Book()
        self.asked = 0
        self.cursor = "0-0"
        self.records: dict[str, Any] = {}
        self.results: dict[str, bool] = {}  # what permission_response_result said
        self.clears: dict[str, str] = {}  # what permission_cleared said
        self.answered: dict[str, tuple[bool, str, str]] = {}  # the winner: approved, reason, who
        self.handed: set[str] = set()  # approvals that some waiter has got
        self.withdrawn: set[str] = set()
        self.agents = [self.runner.run(self.new_agent())]

    async def new_agent(self) -> Agent:
        return await Agent(self.world.valkey.url, self.concurrency).start()

    # -- what may happen --------------------------------------------------------------------------------------------

    @rule(
        who=st.integers(0, 1), key=st.sampled_from([None, None, None, "k1", "k2"]), tool=st.sampled_from("aaab"),
        parameters=st.sampled_from([0, 0, 0, 1]), timeout=st.sampled_from([5, 60, LONGEST]),
    )  # fmt: skip
    def ask(self, who: int, key: str | None, tool: str, parameters: int, timeout: int) -> None:
        self.runner.run(self._ask(who, key, (tool, parameters), timeout))

    async def _ask(self, who: int, key: str | None, question: tuple[str, int], timeout: int) -> None:
        agent = self.agents[who % len(self.agents)]
        before = await self.now()
        task = asyncio.create_task(
            agent.notifier.request_permission(
                self.session, question[0], {"n": question[1]}, timeout=timeout, idempotency_key=key
            )
        )
        reply = await asyncio.wait_for(agent.replies.get(), DEADLINE)
        after = await self.now()
        expected = {self.book.expect_ask(now, key, question) for now in (before, after)}
        if reply[0] == b"conflict":
            assert None in expected
            await asyncio.wait([task])
            assert isinstance(task.exception(), IdempotencyConflict)
            return
        request_id, deadline = reply[1].decode(), int(reply[2])
        if request_id in self.book.entries:
            assert request_id in expected
        else:
            assert "" in expected
            assert before + timeout * 1000 <= deadline <= after + timeout * 1000
            self.asked += 1
            entry = Entry(request_id, self.asked, key, question, deadline, float("inf"))
            self.book.entries[request_id] = entry
            if key is not None:
                self.book.keys[key] = request_id
        agent.waiting[task] = request_id

    @precondition(lambda self: self.asked)
    @rule(which=st.integers(-1, 9), approved=st.booleans(), who=st.integers(0, 1))
    def answer_by_id(self, which: int, approved: bool, who: int) -> None:
        ids = [*self.book.entries] if which >= 0 else []
        self.runner.run(self._answer(ids[which % len(ids)] if ids else "pr_unknown", approved, who))

    @precondition(lambda self: self.asked)
    @rule(approved=st.booleans(), who=st.integers(0, 1))
    def click(self, approved: bool, who: int) -> None:
        self.runner.run(self._answer(None, approved, who))

    @precondition(lambda self: self.book.pending)
    @rule(approved=st.booleans(), who=st.integers(0, 1), again=st.booleans())
    def read_and_click(self, approved: bool, who: int, again: bool) -> None:
        """What a user does: wait for the card, read it, click; some click twice."""
        self.runner.run(self._read_and_click(approved, who, again))

    async def _read_and_click(self, approved: bool, who: int, again: bool) -> None:
        await self._pass_time(1100)
        await self._check()
        await self._pass_time(1100)
        await self._answer(None, approved, who)
        if again:
            await self._answer(None, approved, who)

    async def _answer(self, request_id: str | None, approved: bool, who: int) -> None:
        before, now = deepcopy(self.book), await self.now()
        body = {"approved": approved, "reason": f"as {who} wants"}
        if request_id is not None:
            body["request_id"] = request_id
        url = f"{self.world.served.api}/permission-response/{self.session}"
        reply = await self.world.http.post(url, json=body, headers=self.headers[who])
        later = await self.now()
        data = reply.json().get("data", {})
        if reply.status_code == 200:
            code = "repeated" if data.get("already_resolved") else "resolved"
        else:
            code = reply.json()["error"]["code"]
        found = (reply.status_code, code, data.get("request_id"))
        if code == "resolved":
            self.answered[found[2]] = (approved, body["reason"], ("alice", "bob")[who])  # type: ignore[assignment]
        await self.observe()
        # Waiters go on meanwhile: what they presented may have been there when the answer came.
        meanwhile = deepcopy(before)
        for entry in meanwhile.entries.values():
            entry.shown = self.book.entries[entry.id].shown
        expected = {book.expect_answer(t, request_id, approved) for book in (before, meanwhile) for t in (now, later)}
        assert found in expected, (found, expected)
        winner = self.answered.get(found[2] or "")
        if winner is not None:
            assert (*winner, found[2]) == (data["approved"], data["reason"], data["resolved_by"], data["request_id"])

    @precondition(lambda self: self.waited_for())
    @rule(which=st.integers(0, 9))
    def withdraw(self, which: int) -> None:
        waiting = [(agent, task) for agent in self.agents for task in agent.waiting if not task.done()]
        self.runner.run(self._withdraw(*waiting[which % len(waiting)]))

    async def _withdraw(self, agent: Agent, task: asyncio.Task[PermissionDecision]) -> None:
        self.withdrawn.add(agent.waiting[task])
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
        assert task.done()
        if task.cancelled():
            del agent.waiting[task]

    @precondition(lambda self: self.asked)
    @rule(ms=st.sampled_from([300, 1100, 1100, 1100, 4000, 11_000, 16_000, 70_000, 700_000]))
    def pass_time(self, ms: int) -> None:
        self.runner.run(self._pass_time(ms))

    async def _pass_time(self, ms: int) -> None:
        await self.observe()
        dead = {entry.id for entry in self.book.entries.values() if entry.id not in self.waited_for()}
        tip = await let_time_pass(self.world.redis, self.session, ms, dead=dead)
        self.book.shift(ms, dead)
        await self.observe(shifted=(tip, ms))

    @precondition(lambda self: self.waited_for())
    @rule(who=st.integers(0, 1), absent=st.sampled_from([0, 16_000]))
    def kill_agent(self, who: int, absent: int) -> None:
        self.runner.run(self._kill(self.agents.pop(who % len(self.agents))))
        self.runner.run(self._pass_time(absent))

    @rule(key=st.sampled_from(["k1", "k2"]), absent=st.sampled_from([0, 4000, 16_000]), click=st.booleans())
    def restart_agent(self, key: str, absent: int, click: bool) -> None:
        """An agent asks with a key, is killed, stays away, comes back and asks again; the user may have answered."""
        self.runner.run(self._restart_agent(key, absent, click))

    async def _restart_agent(self, key: str, absent: int, click: bool) -> None:
        await self._ask(0, key, ("a", 0), LONGEST)
        await self._check()
        await self._kill(self.agents.pop(0))
        await self._pass_time(absent)
        await self._check()
        if click:
            await self._answer(None, True, 0)
            await self._check()
        await self._ask(0, key, ("a", 0), LONGEST)

    async def _kill(self, agent: Agent) -> None:
        await agent.kill()
        self.agents.append(await self.new_agent())

    @precondition(lambda self: len(self.agents) < 2)
    @rule()
    def start_agent(self) -> None:
        self.agents.append(self.runner.run(self.new_agent()))

    @precondition(lambda self: self.restarts > 0)
    @rule()
    def restart_redis(self) -> None:
        self.restarts -= 1
        self.runner.run(self._restart())

    async def _restart(self) -> None:
        await self.world.valkey.restart()

        async def served() -> bool:
            return bool((await self.health())["redis"]["ok"])

        await until(served)

    # -- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def rules_hold(self) -> None:
        self.runner.run(self._check())

    async def _check(self) -> None:
        before = await self.now()
        listed = await self.health()  # settles what is overdue
        now = await self.observe()
        self.compare_states(before, now)
        pending = [self.book.entries[row["request_id"]] for row in listed["pending_permissions"]]
        assert pending == sorted(pending, key=lambda entry: entry.n)
        for entry, row in zip(pending, listed["pending_permissions"], strict=True):
            assert not row["presented"] or entry.shown is not None
        await self.hand_out()
        await self.nobody_starves()

    async def now(self) -> int:
        seconds, micros = await self.world.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def health(self) -> Any:
        reply = await self.world.http.get(f"{self.world.served.api}/health/{self.session}", headers=self.headers[0])
        assert 200 == reply.status_code
        return reply.json()["data"]

    def waited_for(self) -> set[str]:
        return {request_id for agent in self.agents for task, request_id in agent.waiting.items() if not task.done()}

    async def observe(self, shifted: tuple[str, int] | None = None) -> int:
        """Read Redis at one moment, follow the events, check that nothing settled changed. Returns Redis' time."""
        now, flat, queue, rows = await self.world.redis.eval(
            DUMP, 3, self.keys.requests, self.keys.queue, self.keys.events, self.cursor
        )
        old, self.records = self.records, {
            name.decode(): json.loads(value) for name, value in zip(flat[::2], flat[1::2], strict=True)
            if b":" not in name
        }  # fmt: skip
        for row_id, fields in rows:
            self.cursor = row_id.decode()
            stamp = int(self.cursor.split("-")[0])
            if shifted is not None and _pair(self.cursor) <= _pair(shifted[0]):
                stamp -= shifted[1]
            self.follow(json.loads(fields[1]), stamp)
        for request_id, record in self.records.items():
            was, entry = old.get(request_id), self.book.entries.get(request_id)
            if was is not None and was["st"] != "pending":
                for name in ("st", "reason", "by", "tool", "call", "key", "digest", "n"):
                    assert was[name] == record[name], "a settled request changed"
                assert was["to"] in ("", record["to"]), "an approval was handed over twice"
            if entry is not None and request_id not in self.waited_for():
                entry.lease = record["lease"]
            elif entry is not None:
                entry.lease = float("inf")
        assert {name.decode() for name in queue} == {i for i, r in self.records.items() if r["st"] == "pending"}
        return int(now)

    def follow(self, event: Any, stamp: int) -> None:
        data = event["data"]
        entry = self.book.entries.get(data["request_id"])
        assert entry is not None
        match event["type"]:
            case "permission_request":
                self.may_present(entry, stamp)
                entry.shown = stamp
            case "permission_response_result":
                assert entry.id not in self.results, "a second result"
                self.results[entry.id] = data["approved"]
                assert self.answered[entry.id][:2] == (data["approved"], data["reason"])
                assert stamp < entry.deadline, "answered after the deadline"
                if entry.shown is None:
                    self.book.settle(entry, "approved" if data["approved"] else "denied", stamp)
            case "permission_cleared":
                assert entry.id not in self.clears, "a second clear"
                assert entry.shown is not None, "a clear of what was never presented"
                self.clears[entry.id] = data["outcome"]
                self.book.settle(entry, data["outcome"], stamp)
            case other:
                raise AssertionError(other)

    def may_present(self, entry: Entry, stamp: int) -> None:
        assert entry.status == "pending"
        assert entry.shown is None, "presented twice"
        assert stamp < entry.deadline, "presented after its deadline"
        assert len(self.book.presented) < self.concurrency, "too many presented"
        assert stamp >= self.book.cleared + GAP, "presented within a second after a clear"
        for other in self.book.pending:
            ahead = other.n < entry.n and other.shown is None and other.id not in self.withdrawn
            if ahead and self.records[other.id]["st"] == "pending":
                assert not stamp < min(other.deadline, other.lease), "not first come, first served"

    def compare_states(self, before: int, now: int) -> None:
        """Settled is exactly what had to be, in the way that the rules say."""
        for entry in list(self.book.entries.values()):
            record = self.records.get(entry.id)
            if record is None:
                assert entry.erased <= now, "a request vanished"
                del self.book.entries[entry.id]
                continue
            assert before < entry.erased, "a request stays for ever"
            assert (record["shown"] or None) == entry.shown
            if record["st"] == "pending":
                assert "pending" == entry.status
                assert before < entry.due, "an overdue request is still open"
                assert entry.id not in self.withdrawn
            else:
                by_time = "expired" if record["at"] >= entry.deadline else "cancelled"
                if entry.id in self.answered:
                    expected = "approved" if self.answered[entry.id][0] else "denied"
                    assert self.results[entry.id] is self.answered[entry.id][0]
                elif entry.id in self.withdrawn and record["by"] == '"agent"':
                    expected = "cancelled"
                else:
                    expected = by_time
                    assert record["at"] >= min(entry.deadline, record["lease"] if entry.key is None else entry.deadline)
                assert expected == record["st"]
                assert (self.clears.get(entry.id) or expected) == expected
                assert (entry.id in self.clears) is (entry.shown is not None)
                if expected == "expired":
                    assert ('"timeout"' if entry.shown else '"never_presented"') == record["reason"]
                if entry.status == "pending":
                    self.book.settle(entry, expected, record["at"])
                assert expected == entry.status

    async def hand_out(self) -> None:
        """Who waited for what is settled now gets the decision; an approval goes to one waiter."""
        for agent in self.agents:
            for task, request_id in list(agent.waiting.items()):
                record = self.records.get(request_id)
                if not task.done() and record is not None and record["st"] == "pending":
                    continue
                decision = await asyncio.wait_for(task, DEADLINE)
                del agent.waiting[task]
                assert request_id == decision.request_id
                assert decision.approved is (decision.outcome == "approved") is bool(decision)
                status = record["st"] if record is not None else "cancelled"
                if not decision and status == "approved":
                    assert "cancelled" == decision.outcome
                else:
                    assert status == decision.outcome
                if decision:
                    approved, reason, who = self.answered[request_id]
                    assert approved
                    assert (reason, who) == (decision.reason, decision.resolved_by)
                    assert request_id not in self.handed, "one approval, two waiters"
                    self.handed.add(request_id)

    async def nobody_starves(self) -> None:
        """When there is room and the second is over, the first that somebody waits for is presented."""

        async def nobody_waits() -> bool:
            now = await self.observe()
            book, alive = self.book.at(now), self.waited_for()
            if len(book.presented) >= self.concurrency or now - book.cleared <= GAP:
                return True
            queued = [entry for entry in book.pending if entry.shown is None]
            first = next((entry for entry in queued if entry.lease > now), None)
            return first is None or first.id not in alive

        await until(nobody_waits, what="the next request is presented")

    def teardown(self) -> None:
        if hasattr(self, "agents"):
            self.runner.run(self._end())

    async def _end(self) -> None:
        for agent in self.agents:
            await agent.kill()
        self.agents = []
        await self._pass_time(LONGEST * 1000)
        await self._check()
        assert [] == self.book.pending, "a request stays open for ever"
        assert {i for i, winner in self.answered.items()} == set(self.results)


def _pair(event_id: str) -> tuple[int, int]:
    ms, _, seq = event_id.partition("-")
    return int(ms), int(seq)


def test_permission_rules_hold_in_any_order(folder: Path) -> None:
    """Every rule of § 6 holds after every step of any run of agents, users, deaths, time and restarts."""
    world = World(folder)
    with asyncio.Runner() as runner:
        try:
            runner.run(world.start())
            run_state_machine_as_test(
                lambda: PermissionMachine(runner, world),
                settings=settings(
                    max_examples=80, stateful_step_count=30, deadline=None, derandomize=False, print_blob=True,
                    database=None, suppress_health_check=list(HealthCheck),
                ),
            )  # fmt: skip
        finally:
            runner.run(world.stack.aclose())
