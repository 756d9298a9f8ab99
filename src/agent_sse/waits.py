"""The agents whose HTTP requests wait here for something: so many at most, and none once they or the process leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from agent_sse.errors import ApiError

T = TypeVar("T")

RETRY_AFTER = 5  # s


class Waits:
    """Who waits in this process: ``most`` in all, ``most_per_session`` for one session."""

    def __init__(self, *, most: int, most_per_session: int) -> None:
        self._most = most
        self._most_per_session = most_per_session
        self._count = 0
        self._counts = Counter[str]()
        self._closing = asyncio.Event()

    @property
    def count(self) -> int:
        """How many wait now."""
        return self._count

    def close(self) -> None:
        """Let everybody go at once, and nobody wait any more: the process is about to end."""
        self._closing.set()

    @contextmanager
    def place(self, session_id: str) -> Iterator[None]:
        """Give a request its place. Raises ApiError 429 when there is none."""
        if self._count >= self._most:
            raise ApiError(
                429, "too_many_waits", "too many requests wait on this server; try again later", retry_after=RETRY_AFTER
            )
        if self._counts[session_id] >= self._most_per_session:
            raise ApiError(
                429, "too_many_waits_of_session", "too many requests of this session wait; let some of them end",
                retry_after=RETRY_AFTER,
            )  # fmt: skip
        self._count += 1
        self._counts[session_id] += 1
        try:
            yield
        finally:
            self._count -= 1
            self._counts[session_id] -= 1
            if not self._counts[session_id]:
                del self._counts[session_id]

    async def run(self, work: Coroutine[Any, Any, T], left: Coroutine[Any, Any, None]) -> T | None:
        """Return what ``work`` returns, or None when the process is about to end.

        ``left`` returns when the client has left. Raises ApiError then, and what ``work`` raises.
        """
        working, leaving = asyncio.create_task(work), asyncio.create_task(left)
        tasks: list[asyncio.Task[Any]] = [working, leaving, asyncio.create_task(self._closing.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not working.cancelled():
            return working.result()
        if not leaving.cancelled():
            raise ApiError(400, "client_left", "the client left while it waited")
        return None
