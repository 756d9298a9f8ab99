"""Many deadlines of one length, with one timer for all of them: a reconnect storm shall not pay for timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

GRAIN = 1 / 20  # of the length: the timer does not fire more often, however many are due one after the other


class Deadlines(Generic[T]):
    """Calls ``expired`` for each item that was added ``seconds`` ago and not discarded; up to 1/20 of it late.

    All have the same time, so the order of adding is the order of ends: a dictionary is the whole queue. There is no
    timer while it is empty. ``expired`` may add and discard, and must not raise.
    """

    def __init__(self, seconds: float, expired: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._expired = expired
        self._since: dict[T, float] = {}  # in the loop's time
        self._ticking = False
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._since)

    def add(self, item: T) -> None:
        """Start an item's time; one that is running goes on."""
        if item not in self._since:
            self._since[item] = self._loop.time()
            if not self._ticking:
                self._ticking = True
                self._loop.call_later(self._seconds, self._sweep)

    def discard(self, item: T) -> None:
        """Stop an item's time, if it is running."""
        self._since.pop(item, None)

    def _sweep(self) -> None:
        # A turn of its own length behind what was just added in `expired`: the walk comes to an end.
        now = self._loop.time()
        while self._since:
            item, since = next(iter(self._since.items()))
            left = since + self._seconds - now
            if left > 0:
                self._loop.call_later(max(left, self._seconds * GRAIN), self._sweep)
                return
            del self._since[item]
            self._expired(item)
        self._ticking = False
