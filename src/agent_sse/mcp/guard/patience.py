"""How long a server may be silent. Knows neither calls nor messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Patience:
    """A time-out of ``seconds``, None for ever, whose clock starts anew with every sign of life."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.was_heard = False
        self._limit: asyncio.Timeout | None = None

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """Bound the block. Raises TimeoutError after so many seconds without a sign of life."""
        try:
            async with asyncio.timeout(self.seconds) as self._limit:
                yield
        finally:
            self._limit = None

    def heard(self) -> None:
        """Note a sign of life."""
        self.was_heard = True
        if self._limit is not None and self.seconds is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def __str__(self) -> str:
        return f"within {self.seconds:g} s" + (" of its last sign of life" if self.was_heard else "")
