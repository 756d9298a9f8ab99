"""Progress under a flood, on a clock that only moves when nothing else can happen."""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_sse.errors import RedisUnavailable
from agent_sse.progress import INTERVAL, Progress


class _Selector(selectors.DefaultSelector):
    """Lets the clock jump to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Published:
    """Takes what is published, with the loop's time; ``fail`` is raised instead for some."""

    def __init__(self, fail: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.at: list[float] = []
        self.steps: list[Mapping[str, Any]] = []
        self._fail = fail

    async def __call__(self, step: Mapping[str, Any]) -> str:
        self.at.append(asyncio.get_running_loop().time())
        self.steps.append(step)
        error = self._fail(len(self.steps))
        if error is not None:
            raise error
        return f"{len(self.steps)}-0"

    @property
    def values(self) -> list[float]:
        return [step["progress"] for step in self.steps]

    def check_pace(self) -> None:
        """No two events but the last and the one before it are closer than the interval."""
        gaps = [after - before for before, after in zip(self.at[:-2], self.at[1:-1], strict=True)]
        assert [] == [gap for gap in gaps if gap < INTERVAL - 1e-9]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


def step(value: float, **more: Any) -> dict[str, Any]:
    return {"progress": value, **more}


def test_progress_of_a_burst_is_the_first_at_once_and_the_last() -> None:
    """Of a thousand steps at one time the first goes out at once, and the last before the call's end."""
    published = Published()

    async def main() -> None:
        progress = Progress(published)
        for value in range(1000):
            if progress.offer(step(value)):
                await progress.publish_due()
        assert [0] == published.values
        await progress.close()

    run(main)
    assert [0, 999] == published.values


def test_progress_that_is_only_reported_needs_nobody_to_wait() -> None:
    """`start` publishes without a caller that awaits it: the first step at once, and later the newest one."""
    published = Published()

    async def main() -> None:
        progress = Progress(published)
        for value in range(1000):
            if progress.offer(step(value)):
                progress.start()
        await asyncio.sleep(0)
        assert [0] == published.values
        await asyncio.sleep(2 * INTERVAL)
        assert [0, 999] == published.values
        await progress.close()

    run(main)
    assert [0, 999] == published.values


def test_progress_that_is_taken_back_while_it_is_held_is_not_published() -> None:
    """A step that is back at the one that was published before the held one went out says nothing new."""
    published = Published()

    async def main() -> None:
        progress = Progress(published)
        for message in ("a", "b", "a"):
            if progress.offer(step(1, message=message)):
                progress.start()
        await asyncio.sleep(2 * INTERVAL)
        for message in ("b", "a"):
            if progress.offer(step(1, message=message)):
                progress.start()
        await asyncio.sleep(0)
        assert ["a", "b"] == [published.steps[0]["message"], published.steps[-1]["message"]]
        await progress.close()

    run(main)
    assert ["a", "b", "a"] == [one["message"] for one in published.steps]


def test_progress_over_a_long_time_keeps_its_pace() -> None:
    """Ten seconds with a step each millisecond are a hundred events, in order, each step the newest of its time."""
    published = Published()

    async def main() -> None:
        progress = Progress(published)
        for value in range(10_000):
            if progress.offer(step(value)):
                progress.start()
            await asyncio.sleep(0.001)
        await progress.close()

    run(main)
    published.check_pace()
    assert sorted(published.values) == published.values
    assert 9_999 == published.values[-1]
    assert 95 <= len(published.values) <= 102


def test_progress_alone_is_not_held_back() -> None:
    """Steps that are farther apart than the interval all go out, none of them late."""
    published = Published()

    async def main() -> None:
        progress = Progress(published)
        for value in range(5):
            progress.offer(step(value))
            assert f"{value + 1}-0" == await progress.publish_due()
            await asyncio.sleep(INTERVAL)
        await progress.close()

    run(main)
    assert [0, 1, 2, 3, 4] == published.values


def test_progress_held_back_goes_out_when_it_may_without_another_step() -> None:
    """A step that came too early is not kept until the call's end."""
    published = Published()

    async def main() -> None:
        progress = Progress(published)
        for value in (1, 2):
            progress.offer(step(value))
            await progress.publish_due()
        await asyncio.sleep(2 * INTERVAL)
        assert [1, 2] == published.values
        await progress.close()

    run(main)
    published.check_pace()


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(["", "a", "b"]), st.sampled_from([0.0, 0.01, 0.1, 0.25])),
        max_size=40,
    ),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_progress_never_goes_back_or_repeats_itself(steps: list[tuple[int, str, float]], waiting: bool) -> None:
    """Whatever is reported and when: what goes out is monotonic, at its pace, has no repetitions, and ends with the
    last step that did not go back."""
    published = Published()
    taken: list[dict[str, Any]] = []

    async def main() -> None:
        progress = Progress(published)
        for value, message, pause in steps:
            made = step(value, message=message)
            if not taken or value >= taken[-1]["progress"]:
                taken.append(made)
            if progress.offer(made):
                if waiting:
                    await progress.publish_due()
                else:
                    progress.start()
            await asyncio.sleep(pause)
        await progress.close()

    run(main)
    published.check_pace()
    assert sorted(published.values) == published.values
    assert all(before != after for before, after in zip(published.steps, published.steps[1:], strict=False))
    assert taken[-1:] == published.steps[-1:]


@pytest.mark.parametrize("failing", [1, 2])
def test_progress_that_cannot_be_published_is_logged(failing: int, caplog: pytest.LogCaptureFixture) -> None:
    """An error behind a step that nobody waits for is logged, and neither stops later steps nor the call's end."""
    published = Published(lambda count: RedisUnavailable("Redis is away") if count == failing else None)

    async def main() -> None:
        progress = Progress(published)
        progress.offer(step(1))
        progress.start()
        await asyncio.sleep(INTERVAL)
        progress.offer(step(2))
        await progress.close()

    with caplog.at_level(logging.WARNING, "agent_sse"):
        run(main)
    assert [1, 2] == published.values
    assert ["a step of a call's progress is not published: Redis is away"] == [r.getMessage() for r in caplog.records]


def test_progress_that_is_waited_for_raises() -> None:
    """Who awaits the event of a step learns that it was not published."""
    published = Published(lambda _: RedisUnavailable("Redis is away"))

    async def main() -> None:
        progress = Progress(published)
        progress.offer(step(1))
        with pytest.raises(RedisUnavailable):
            await progress.publish_due()
        await progress.close()

    run(main)


def test_progress_closing_that_is_cancelled_can_be_closed_again() -> None:
    """A call that is cancelled while it says its last step still says it, once."""
    release: list[asyncio.Event] = []

    async def slow(_: Mapping[str, Any]) -> str:
        release.append(asyncio.Event())
        await release[-1].wait()
        return "1-0"

    async def main() -> None:
        progress = Progress(slow)
        progress.offer(step(1))
        progress.start()
        await asyncio.sleep(0.01)
        closing: Awaitable[None] = progress.close()
        task = asyncio.ensure_future(closing)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release[0].set()
        await progress.close()
        assert 1 == len(release)

    run(main)
