"""Tool calls that run as tasks (2025-11-25): they go on after their answer, until somebody hears how they ended.

https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/tasks
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from agent_sse.errors import AgentSseError
from agent_sse.mcp.guard.messages import Message, as_object
from agent_sse.mcp.guard.sides import ServerGone

RESULT = "tasks/result"
STATUS = "notifications/tasks/status"
_TELLS_STATUS = frozenset({"tasks/get", "tasks/cancel"})
ENDED = frozenset({"completed", "failed", "cancelled"})
GRACE = 2.0  # s, for the host to fetch the result; then the guard asks for it
MIN_POLL, MAX_POLL = 2.0, 60.0  # s, without news until the guard asks
MAX_SECONDS = 24 * 3600.0  # of a task that names no time to live

Ask = Callable[[str, Mapping[str, Any], Mapping[str, str]], Awaitable[Message]]


class TaskFailed(AgentSseError):
    """A task ended without a result; the message says how."""


def of(request: Message, answer: Message) -> Mapping[str, Any] | None:
    """Return the task that a call has become, None when it has become none."""
    if not isinstance(request.params.get("task"), dict):
        return None
    task = as_object((answer.result or {}).get("task"))
    return task if isinstance(task.get("taskId"), str) else None


class Followed:
    """A task whose end is awaited."""

    def __init__(self, task: Mapping[str, Any], alive: Callable[[], None]) -> None:
        self._alive = alive
        self.id: str = task["taskId"]
        ttl = _number(task.get("ttl"))
        self._seconds = MAX_SECONDS if ttl is None else min(ttl / 1000 + GRACE, MAX_SECONDS)
        interval = _number(task.get("pollInterval")) or 0.0
        self._poll_every = min(max(2 * interval / 1000, MIN_POLL), MAX_POLL)  # the host comes first
        self._task = task
        self._news = asyncio.Event()
        self._answer: Message | None = None
        self.lost: str | None = None

    def heard(self, task: Mapping[str, Any]) -> None:
        """Take note of its status."""
        self._task = task
        self._alive()
        self._news.set()

    def answered(self, response: Message) -> None:
        """Take the response to the host's `tasks/result`."""
        self._answer = response
        self._news.set()

    def lose(self, reason: str) -> None:
        """Note that the server has gone."""
        self.lost = reason
        self._news.set()

    @property
    def status(self) -> object:
        """The status that was last heard of."""
        return self._task.get("status")

    async def end(self, ask: Ask, headers: Mapping[str, str]) -> Message:
        """Wait for its end and return the response to `tasks/result`. Raises :class:`TaskFailed`, ServerGone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while self._answer is None and self.lost is None and self.status not in ENDED:
                    if not await self._told_within(self._poll_every):
                        await self._ask_status(ask, headers)
        if self.status == "completed" and self._answer is None and self.lost is None:
            await self._fetch(ask, headers)
        if self._answer is not None:
            return self._answer
        if self.lost is not None:
            raise ServerGone(self.lost)
        raise TaskFailed(f"the task {_said(self.status)}: {_said(self._task.get('statusMessage'))}")

    async def _told_within(self, seconds: float) -> bool:
        self._news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _ask_status(self, ask: Ask, headers: Mapping[str, str]) -> None:
        response = await ask("tasks/get", {"taskId": self.id}, headers)
        if response.result is None:
            raise TaskFailed("the MCP server does not know its own task any more")
        self._task = response.result
        self._alive()

    async def _fetch(self, ask: Ask, headers: Mapping[str, str]) -> None:
        while self._answer is None and self.lost is None and await self._told_within(GRACE):
            pass
        if self._answer is None and self.lost is None:
            self._answer = await ask(RESULT, {"taskId": self.id}, headers)


class Tasks:
    """The tasks that are followed, by id."""

    def __init__(self) -> None:
        self._followed: dict[str, Followed] = {}

    def follow(self, task: Mapping[str, Any], alive: Callable[[], None]) -> Followed:
        """Begin to follow a task; do so before the host is told of it. ``alive`` is called at all news of it."""
        followed = self._followed[task["taskId"]] = Followed(task, alive)
        return followed

    def leave(self, followed: Followed) -> None:
        """Follow it no more."""
        if self._followed.get(followed.id) is followed:
            del self._followed[followed.id]

    def notified(self, notification: Message) -> None:
        """Take a `notifications/tasks/status`."""
        self._heard(notification.params)

    def answered(self, request: Message, response: Message) -> None:
        """Take what the server answered to a host's request about a task."""
        followed = self._followed.get(str(request.params.get("taskId")))
        if followed is None:
            return
        if request.method == RESULT:
            followed.answered(response)
        elif request.method in _TELLS_STATUS and response.result is not None:
            self._heard(response.result)

    def _heard(self, task: Mapping[str, Any]) -> None:
        followed = self._followed.get(str(task.get("taskId")))
        if followed is not None:
            followed.heard(task)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _said(value: object) -> str:
    return value[:500] if isinstance(value, str) else "says nothing more"
