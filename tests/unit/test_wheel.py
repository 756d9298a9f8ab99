"""The timer wheel against the simplest thing that could do its work: a list that is looked through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_sse.wheel import Wheel

# Quarters and eighths are exact in binary, so that the model's arithmetic is the wheel's and the edges of slots occur.
STEPS = st.sampled_from([0.125, 0.25, 1.0])
TIMES = st.integers(0, 8 * 40).map(lambda eighths: eighths / 8)
ACTIONS = st.lists(st.tuples(st.booleans(), TIMES), max_size=60)


class Model:
    """Each item with the slot in which it is due."""

    def __init__(self, step: float, now: float) -> None:
        self.step = step
        self.slot = now // step
        self.waiting: list[tuple[float, int]] = []

    def put(self, item: int, at: float) -> None:
        self.waiting.append((max(self.slot + 1, at // self.step), item))

    def take(self, now: float) -> list[int]:
        self.slot = max(self.slot, now // self.step)
        due = sorted((slot, n) for n, (slot, _) in enumerate(self.waiting) if slot <= self.slot)
        items = [self.waiting[n][1] for _, n in due]
        self.waiting = [entry for entry in self.waiting if entry[0] > self.slot]
        return items


@given(step=STEPS, start=TIMES, actions=ACTIONS)
def test_wheel_gives_what_a_list_would(step: float, start: float, actions: list[tuple[bool, float]]) -> None:
    """Whatever is put and taken, also with a clock that stands still or goes back: the same items in the same order."""
    wheel, model = Wheel[int](step, start), Model(step, start)
    for item, (put, time) in enumerate(actions):
        if put:
            wheel.put(item, time)
            model.put(item, time)
        else:
            assert model.take(time) == wheel.take(time)
    assert model.take(1000.0) == wheel.take(1000.0)
    assert [] == wheel.take(2000.0)


@given(step=STEPS, start=st.floats(0, 1e6), waits=st.lists(st.floats(0, 50), max_size=30), stride=st.floats(0.05, 7))
def test_wheel_loses_nothing_and_is_less_than_a_step_early(
    step: float, start: float, waits: list[float], stride: float
) -> None:
    """Each comes once: less than a step before its time at the earliest, at the first look after it at the latest."""
    wheel, due = Wheel[int](step, start), [start + wait for wait in waits]
    for item, at in enumerate(due):
        wheel.put(item, at)
    assert [] == wheel.take(start)
    came: dict[int, float] = {}
    now = start
    while now < start + 60:
        before, now = now, now + stride
        for item in wheel.take(now):
            assert item not in came
            came[item] = now
            # Never in the step in which it was put, so what is due at once comes with the next.
            assert due[item] - step < now
            assert max(due[item], start + step) > before - step
    assert set(range(len(waits))) == set(came)


def test_wheel_brings_what_is_overdue_with_the_next_slot() -> None:
    """An item for a time that has passed is neither lost nor given in the same step: that would be a loop."""
    wheel = Wheel[str](1.0, 10.0)
    wheel.put("late", 3.0)
    wheel.put("now", 10.5)
    assert [] == wheel.take(10.9)
    assert ["late", "now"] == wheel.take(11.0)
    wheel.put("again", 11.0)
    assert [] == wheel.take(11.0)
    assert ["again"] == wheel.take(20.0)
