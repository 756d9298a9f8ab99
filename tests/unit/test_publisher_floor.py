"""The publisher against a Redis made of randomness: never doubled, never lost once acknowledged, never out of order.

`Model` is publish.lua's rule for counters and floors; time is virtual, so hours of time-outs take milliseconds.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_sse import PublishTimeout, QueueFull, RedisRefused, RedisUnavailable
from agent_sse import publisher as publisher_module
from agent_sse.backend import Done
from agent_sse.keys import Keyspace
from agent_sse.publisher import Publisher
from agent_sse.store import Publish

TIMEOUT = 5.0
T = TypeVar("T")


class _Instant(selectors.SelectSelector):
    """Never waits: moves the loop's clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "the test waits for something that nothing will bring about"
        self.now += max(timeout, 0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.instant = _Instant()
        super().__init__(self.instant)

    def time(self) -> float:
        return self.instant.now


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main())


@dataclass(frozen=True)
class Sent:
    """One publish_call, as publish.lua gets it."""

    event: Publish
    publisher: str
    count: int
    floor: int


@dataclass
class Model:
    """publish.lua's rule: each publisher's last counter, and the Stream with its tags."""

    stream: list[tuple[str, bytes, str]] = field(default_factory=list)
    publishers: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    ids: int = 0

    def publish(self, sent: Sent) -> list[bytes]:
        key = (sent.event.session_id, sent.publisher)
        tag = f"{sent.event.session_id}:{sent.publisher}:{sent.count}"
        if key in self.publishers:
            last, last_id = self.publishers[key]
            if sent.count == last:
                return [last_id.encode(), b"1"]
            if sent.count < last:
                return [next((i for i, _, t in reversed(self.stream) if t == tag), last_id).encode(), b"1"]
            if last < sent.floor:
                return [b"GAP"]
        elif sent.floor > 0:
            return [b"GAP"]
        self.ids += 1  # never given twice, whatever is forgotten
        event_id = f"{self.ids}-0"
        self.stream.append((event_id, sent.event.payload, tag))
        self.publishers[key] = (sent.count, event_id)
        return [event_id.encode(), b"0"]

    def forget(self, keep: int) -> None:
        """Go back to the history's first ``keep`` events, as a restore or a lagging replica does; 0 is FLUSHALL."""
        del self.stream[keep:]
        self.publishers = {}
        for event_id, _, tag in self.stream:
            session, publisher, count = tag.split(":")
            self.publishers[session, publisher] = (int(count), event_id)


@dataclass(frozen=True)
class Outcome:
    """What becomes of one write, or of one attempt to connect. ``at`` are the places in it that ``kind`` is about."""

    kind: str
    at: frozenset[int] = frozenset()
    upto: int = 0
    wait: float = 0.0


class FakeStore:
    """A `Store` and its `Backend` in one, with one connection. Its writes meet the outcomes in turn, then succeed."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        self.backend = self
        self.keyspace = Keyspace("fake")
        self.model = Model()
        self.writes: list[int] = []
        self.lost: set[str] = set()  # ids that a restore took away
        self.outcomes = list(outcomes)
        self._late: list[Sent] = []  # in the network still
        self._connected = False
        self._step: list[tuple[Sent, Done]] = []  # posted in this step of the loop
        self._flying: deque[list[tuple[Sent, Done]]] = deque()  # written and not answered
        self._server: asyncio.Task[None] | None = None

    def server_of(self, key: str) -> str:
        return ""

    def publish_call(self, event: Publish, publisher: str, count: int, floor: int) -> Sent:
        return Sent(event, publisher, count, floor)

    async def reach(self, key: str) -> None:
        while self.outcomes and self.outcomes[0].kind in ("absent", "slow"):
            outcome = self.outcomes.pop(0)
            await asyncio.sleep(outcome.wait)
            if outcome.kind == "absent":
                raise RedisUnavailable("connection refused")
        self._connected = True

    def post(self, call: Sent, done: Done) -> bool:
        if not self._connected or (self.outcomes and self.outcomes[0].kind in ("absent", "slow")):
            return False
        if not self._step:
            asyncio.get_running_loop().call_soon(self._write)
        self._step.append((call, done))
        return True

    def _write(self) -> None:
        if not self._step:  # the connection was lost in this step
            return
        self.writes.append(len(self._step))
        self._flying.append(self._step)
        self._step = []
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while self._flying:
            known = self.outcomes and self.outcomes[0].kind not in ("absent", "slow")
            outcome = self.outcomes.pop(0) if known else Outcome("ok")
            await asyncio.sleep(outcome.wait)
            if outcome.kind in ("cut", "late"):
                self._lose(outcome)
                return
            for call in self._late:
                self.model.publish(call)
            self._late = []
            if outcome.kind == "forget":
                before = {event_id for event_id, _, _ in self.model.stream}
                self.model.forget(min(outcome.upto, len(self.model.stream)))
                self.lost |= before - {event_id for event_id, _, _ in self.model.stream}
            again = [
                (call, done)
                for place, (call, done) in enumerate(self._flying.popleft())
                if not self._answer(outcome, place, call, done)
            ]
            if again:  # as `Backend.post`: what the server did not know goes out once more, behind all the rest
                self._flying.append([(call, done) for call, done in again[: outcome.upto]])
                for _, done in again[outcome.upto :]:  # flushed a second time in the middle
                    done(RedisUnavailable("NOSCRIPT"))

    def _lose(self, outcome: Outcome) -> None:
        """Lose the connection, when the first calls on it were executed (cut) or are going to be, some day (late)."""
        flying = [item for write in (*self._flying, self._step) for item in write]
        self._connected = False
        self._flying.clear()
        self._step = []
        executed = [call for call, _ in flying[: outcome.upto]]
        if outcome.kind == "late":
            self._late += executed
        else:
            for call in executed:
                self.model.publish(call)
        for _, done in flying:
            done(RedisUnavailable("connection lost"))

    def _answer(self, outcome: Outcome, place: int, call: Sent, done: Done) -> bool:
        if place in outcome.at and outcome.kind == "noscript":
            return False
        if place in outcome.at and outcome.kind == "refused":
            done(RedisRefused("OOM"))
        elif place in outcome.at and outcome.kind == "unavailable":
            done(RedisUnavailable("CLUSTERDOWN"))
        elif outcome.kind == "defect":
            done(ZeroDivisionError("a defect"))
        else:
            done(self.model.publish(call))
        return True


places = st.frozensets(st.integers(0, 6), max_size=4)
outcomes = st.lists(
    st.builds(
        Outcome,
        kind=st.sampled_from(
            ["ok", "cut", "late", "noscript", "refused", "unavailable", "forget", "defect", "absent", "slow"]
        ),
        at=places,
        upto=st.integers(0, 7),
        wait=st.sampled_from([0.0, 0.001, 0.5, 4.9, 5.1]),
    ),
    max_size=12,
)
plans = st.lists(
    st.tuples(
        st.sampled_from(["s1", "s1", "s2"]),
        st.sampled_from([0.0, 0.0, 0.0, 0.01, 1.0, 6.0]),  # s; the pause before the call
        st.sampled_from([None, None, None, 0.0, 0.3]),  # s; when the caller gives up
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(outcomes=outcomes, plan=plans)
def test_publisher_holds_whatever_becomes_of_what_it_writes(
    outcomes: list[Outcome], plan: list[tuple[str, float, float | None]]
) -> None:
    """Acknowledged: stored once, under its id. Anything: stored at most once, in the order of the calls."""
    store = FakeStore(outcomes)

    async def scenario() -> None:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        acknowledged: dict[bytes, str] = {}
        unsent: set[bytes] = set()

        async def one(session: str, payload: bytes, patience: float | None) -> None:
            try:
                async with asyncio.timeout(patience):
                    acknowledged[payload] = await publisher.publish(Publish(session, payload, "other"))
            except PublishTimeout as error:
                if not error.sent:
                    unsent.add(payload)
            except (TimeoutError, RedisRefused, ZeroDivisionError):
                pass

        tasks = []
        for number, (session, pause, patience) in enumerate(plan):
            if pause:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(one(session, b"%s %03d" % (session.encode(), number), patience)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(10)  # what was under way for callers that left comes to its end
        store.outcomes.clear()
        for session in ("s1", "s2"):  # and it always goes on
            payload = session.encode() + b" 999"
            acknowledged[payload] = await publisher.publish(Publish(session, payload, "other"))
        await publisher.aclose()

        stored = [(payload, event_id) for event_id, payload, _ in store.model.stream]
        payloads = [payload for payload, _ in stored]
        assert len(payloads) == len(set(payloads)), "something is stored twice"
        assert not unsent & set(payloads), "something was stored that is said not to have been sent"
        found = dict(stored)
        for payload, event_id in acknowledged.items():
            if event_id in store.lost:
                continue
            assert event_id == found.get(payload), f"{payload!r} was acknowledged as {event_id}"
        for session in (b"s1", b"s2"):
            mine = [payload for payload in payloads if payload.startswith(session)]
            assert sorted(mine) == mine

    run(scenario)


def test_publisher_gathers_concurrent_publishes_into_one_write() -> None:
    """What is published in one step goes in one write, of one session up to its window; then as answers come."""
    store = FakeStore()

    async def scenario() -> None:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        await asyncio.gather(*(publisher.publish(Publish("s", b"%d" % i, "other")) for i in range(300)))
        await publisher.aclose()

    run(scenario)
    assert [128, 128, 44] == store.writes


def test_publisher_window_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one session no more bytes are on their way than its window, but for the one event that exceeds it."""
    monkeypatch.setattr(publisher_module, "WINDOW_BYTES", 1000)
    store = FakeStore()

    async def scenario() -> None:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        await asyncio.gather(
            *(publisher.publish(Publish(session, b"x" * 400, "other")) for _ in range(6) for session in "ab")
        )
        await publisher.aclose()

    run(scenario)
    assert [6, 6] == store.writes


def test_publisher_says_whether_an_event_has_left() -> None:
    """One that was sent and got no answer may be stored; one that found no connection was never sent."""
    store = FakeStore([Outcome("late", upto=1, wait=1), Outcome("slow", wait=60)])

    async def scenario() -> list[bool]:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        first = asyncio.create_task(publisher.publish(Publish("s", b"1", "other")))
        await asyncio.sleep(2)
        second = asyncio.create_task(publisher.publish(Publish("s", b"2", "other")))
        errors = await asyncio.gather(first, second, return_exceptions=True)
        assert all(isinstance(error, PublishTimeout) for error in errors)
        await publisher.aclose()
        return [error.sent for error in errors if isinstance(error, PublishTimeout)]

    assert [True, False] == run(scenario)


def published(store: FakeStore, *rounds: list[Publish]) -> list[type[object]]:
    """Publish what is in a round at once, round by round; return the types of the results or errors."""

    async def scenario() -> list[object]:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        results: list[object] = []
        for events in rounds:
            results += await asyncio.gather(*map(publisher.publish, events), return_exceptions=True)
        await publisher.aclose()
        return results

    return [type(result) for result in run(scenario)]


def test_publisher_refuses_more_bytes_than_it_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound in bytes holds for what waits and what is on its way; what is answered makes room again."""
    monkeypatch.setattr(publisher_module, "MAX_WAITING_BYTES", 1000)
    store = FakeStore([Outcome("absent", wait=1)])
    many = [Publish(f"s{i}", b"x" * 400, "other") for i in range(4)]
    assert [str, str, QueueFull, QueueFull, str] == published(store, many, [Publish("s", b"x" * 2000, "other")])


def test_publisher_refuses_more_than_it_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is an error at once, and nothing of the refused event is kept."""
    monkeypatch.setattr(publisher_module, "MAX_WAITING", 3)
    store = FakeStore([Outcome("cut", wait=1)])
    many = [Publish("s", b"%d" % i, "other") for i in range(5)]
    assert [str, str, str, QueueFull, QueueFull] == published(store, many)
    assert [b"0", b"1", b"2"] == [payload for _, payload, _ in store.model.stream]


def test_publisher_forgets_what_nobody_waits_for() -> None:
    """Events that timed out, or whose callers left, while Redis was away make room for others."""
    store = FakeStore([Outcome("slow", wait=60)])

    async def scenario() -> int:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        tasks = [asyncio.create_task(publisher.publish(Publish("s", b"%d" % i, "other"))) for i in range(10)]
        await asyncio.sleep(1)
        for task in tasks[2:8]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        held = publisher._held
        await publisher.aclose()
        return held

    assert 0 == run(scenario)


def test_publisher_outlives_a_defect() -> None:
    """An error that nobody foresaw reaches who published; it does not stop the publisher for the rest."""
    store = FakeStore([Outcome("defect")])

    async def scenario() -> str:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            await publisher.publish(Publish("s", b"1", "other"))
        event_id = await publisher.publish(Publish("s", b"2", "other"))
        await publisher.aclose()
        return event_id

    assert "1-0" == run(scenario)
