"""The progress of one call, fit for a stream: never backwards, at most one event per 100 ms, the last one always."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agent_sse.errors import AgentSseError

log = logging.getLogger("agent_sse")

INTERVAL = 0.1  # s between two progress events of a call

Publish = Callable[[Mapping[str, Any]], Awaitable[str]]


class Progress:
    """Takes steps as they come and publishes the latest; ``close`` publishes what is held back and ends it."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._last: Mapping[str, Any] | None = None
        self._held: Mapping[str, Any] | None = None
        self._sent: Mapping[str, Any] | None = None
        self._next = 0.0  # when the next event may go out, on the loop's clock
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def offer(self, step: Mapping[str, Any]) -> bool:
        """Hold a step for publishing. False when it goes backwards or says nothing new, and is dropped."""
        before = self._last
        if before is not None and (step == before or step["progress"] < before["progress"]):
            return False
        self._last = step
        self._held = None if step == self._sent else step  # it takes back what was held in between
        return self._held is not None

    async def publish_due(self) -> str | None:
        """Publish the held step now if it may go out, and return the event's id; else later, and return None."""
        if self._held is None:
            return None
        loop = asyncio.get_running_loop()
        if self._task is None and loop.time() >= self._next:
            return await self._publish(self._take())
        self.start()
        return None

    def start(self) -> None:
        """Let a task publish what is held: now if it may go out, whatever comes before the task runs, or else later."""
        if self._task is None and self._held is not None:
            due = asyncio.get_running_loop().time() >= self._next
            self._task = asyncio.create_task(self._flush(self._take() if due else None), name="agent-sse progress")

    async def close(self) -> None:
        """Publish what is held back, and wait until it is. What cannot be is logged: the call's end is said next."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait({self._task})  # cancelling who waits does not cancel the task
        if self._held is not None:
            await self._publish_quietly(self._take())

    async def _flush(self, first: Mapping[str, Any] | None) -> None:
        if first is not None:
            await self._publish_quietly(first)
        while self._held is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._next):
                    await self._closing.wait()
            if self._closing.is_set():
                break
            if self._held is not None:  # it may have been taken back
                await self._publish_quietly(self._take())
        self._task = None

    async def _publish_quietly(self, step: Mapping[str, Any]) -> None:
        try:
            await self._publish(step)
        except AgentSseError as error:
            log.warning("a step of a call's progress is not published: %s", error)

    def _take(self) -> Mapping[str, Any]:
        step, self._held = self._held, None
        assert step is not None  # noqa: S101 - for mypy: who calls has looked
        self._sent = step
        self._next = asyncio.get_running_loop().time() + INTERVAL
        return step
