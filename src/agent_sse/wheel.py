"""A timer wheel: many things that are due at some time, for the price of one timer. Pure; the clock is its caller's."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Wheel(Generic[T]):
    """Holds each item in the slot in which it is due. ``step``, the width of a slot, and all times are in seconds.

    Nothing is ever taken out early: who no longer wants an item passes over it when it comes.
    """

    def __init__(self, step: float, now: float) -> None:
        self._step = step
        self._slot = int(now / step)
        self._slots: dict[int, list[T]] = {}

    def put(self, item: T, at: float) -> None:
        """Let ``item`` come at ``at``, or less than a step before; in the next slot at the earliest."""
        self._slots.setdefault(max(self._slot + 1, int(at / self._step)), []).append(item)

    def take(self, now: float) -> list[T]:
        """Return what is due by ``now`` and was not returned before."""
        due: list[T] = []
        last = int(now / self._step)
        while self._slot < last:
            self._slot += 1
            due += self._slots.pop(self._slot, ())
        return due
