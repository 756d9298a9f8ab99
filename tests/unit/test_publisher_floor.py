"""The publisher against a Redis made of randomness: never doubled, never lost once acknowledged, never out of order.

`Model` is publish.lua's rule for counters and floors; time is virtual, so hours of time-outs take milliseconds.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_sse import PublishTimeout, QueueFull, RedisRefused, RedisUnavailable
from agent_sse import publisher as publisher_module
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
    """What becomes of one pipeline. ``at`` are the places in it that ``kind`` is about."""

    kind: str
    at: frozenset[int] = frozenset()
    upto: int = 0
    wait: float = 0.0


class FakeStore:
    """A `Store` and its `Backend` in one, whose pipelines meet the outcomes in turn and afterwards always succeed."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        self.backend = self
        self.model = Model()
        self.batches: list[int] = []
        self.lost: set[str] = set()  # ids that a restore took away
        self._outcomes = list(outcomes)
        self._late: list[Sent] = []  # in the network still

    async def connect(self) -> None:
        if self._outcomes and self._outcomes[0].kind == "absent":
            await asyncio.sleep(self._outcomes.pop(0).wait)
            raise RedisUnavailable("connection refused")
        if self._outcomes and self._outcomes[0].kind == "slow":
            await asyncio.sleep(self._outcomes.pop(0).wait)

    def publish_call(self, event: Publish, publisher: str, count: int, floor: int) -> Sent:
        return Sent(event, publisher, count, floor)

    async def run_many(self, calls: Sequence[Sent]) -> list[Any]:
        self.batches.append(len(calls))
        outcome = self._outcomes.pop(0) if self._outcomes else Outcome("ok")
        await asyncio.sleep(outcome.wait)
        if outcome.kind != "late":
            late, self._late = self._late, []
            for call in late:
                self.model.publish(call)
        match outcome.kind:
            case "cut":  # the first ones were executed, no reply came back
                for call in calls[: outcome.upto]:
                    self.model.publish(call)
                raise RedisUnavailable("connection lost")
            case "late":  # nobody waits any more when they are executed
                self._late += calls[: outcome.upto]
                raise RedisUnavailable("no answer")
            case "defect":
                raise ZeroDivisionError("a defect")
            case "forget":
                before = {event_id for event_id, _, _ in self.model.stream}
                self.model.forget(min(outcome.upto, len(self.model.stream)))
                self.lost |= before - {event_id for event_id, _, _ in self.model.stream}
        return (
            [self._reply(outcome, place, call) for place, call in enumerate(calls)]
            if (outcome.kind != "noscript")
            else self._flushed(outcome, calls)
        )

    def _reply(self, outcome: Outcome, place: int, call: Sent) -> Any:
        if place in outcome.at and outcome.kind == "refused":
            return RedisRefused("OOM")
        if place in outcome.at and outcome.kind == "unavailable":
            return RedisUnavailable("CLUSTERDOWN")
        return self.model.publish(call)

    def _flushed(self, outcome: Outcome, calls: Sequence[Sent]) -> list[Any]:
        # As `Backend.run_many`: those that the server did not know run again, after those that it did.
        replies = [None if place in outcome.at else self.model.publish(call) for place, call in enumerate(calls)]
        again = [place for place in range(len(calls)) if place in outcome.at]
        for rank, place in enumerate(again):
            known = rank < outcome.upto  # flushed a second time in the middle
            replies[place] = self.model.publish(calls[place]) if known else RedisUnavailable("NOSCRIPT")  # type: ignore[call-overload]
        return replies


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
def test_publisher_holds_whatever_becomes_of_its_pipelines(
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
        while store._outcomes:
            store._outcomes.pop()
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


def test_publisher_gathers_concurrent_publishes_into_one_pipeline() -> None:
    """What is published while a pipeline is on its way goes with the next one, all of it up to its bound."""
    store = FakeStore()

    async def scenario() -> None:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        await asyncio.gather(*(publisher.publish(Publish("s", b"%d" % i, "other")) for i in range(300)))
        await publisher.aclose()

    run(scenario)
    assert [128, 128, 44] == store.batches


def test_publisher_says_whether_an_event_has_left() -> None:
    """One whose pipeline got no answer may be stored; one that waited behind it was never sent."""
    store = FakeStore([Outcome("late", upto=1, wait=60)])

    async def scenario() -> list[bool]:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        first = asyncio.create_task(publisher.publish(Publish("s", b"1", "other")))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(publisher.publish(Publish("s", b"2", "other")))
        errors = await asyncio.gather(first, second, return_exceptions=True)
        assert all(isinstance(error, PublishTimeout) for error in errors)
        await publisher.aclose()
        return [error.sent for error in errors if isinstance(error, PublishTimeout)]

    assert [True, False] == run(scenario)


def test_publisher_refuses_more_than_it_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is an error at once, and nothing of the refused event is kept."""
    monkeypatch.setattr(publisher_module, "MAX_WAITING", 3)
    store = FakeStore([Outcome("late", wait=1)])

    async def scenario() -> list[object]:
        publisher = Publisher(store, timeout=TIMEOUT)  # type: ignore[arg-type]
        results = await asyncio.gather(
            *(publisher.publish(Publish("s", b"%d" % i, "other")) for i in range(5)), return_exceptions=True
        )
        await publisher.aclose()
        return results

    results = run(scenario)
    assert [False, False, False, True, True] == [isinstance(result, QueueFull) for result in results]
    assert [b"0", b"1", b"2"] == [payload for _, payload, _ in store.model.stream]


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
