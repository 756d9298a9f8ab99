"""Whether what this process publishes comes back to it through Redis: the one check that covers the whole way."""

from __future__ import annotations

import asyncio
import secrets

from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.store import Store

TIMEOUT = 2.0  # s
CACHE = 1.0  # s


class Probe:
    """Sends a token over a channel of this process's own.

    ``heard`` is to be called with what arrives there, ``set_subscribed`` with whether anything can.
    """

    def __init__(self, store: Store, process_id: str) -> None:
        self._store = store
        self.channel = store.keyspace.probe(process_id)
        self._expected: dict[bytes, asyncio.Event] = {}
        self._subscribed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._last: tuple[float, bool] = (-CACHE, False)

    def heard(self, data: bytes) -> None:
        """Take a message from the channel."""
        event = self._expected.get(data)
        if event is not None:
            event.set()

    def set_subscribed(self, subscribed: bool) -> None:
        """Note that Redis has confirmed the subscription to the channel, or that it may be gone."""
        if subscribed:
            self._subscribed.set()
        else:
            self._subscribed.clear()

    async def ask(self) -> bool:
        """Return whether a token came back in time; the answer is kept for a second."""
        async with self._lock:
            loop = asyncio.get_running_loop()
            if loop.time() - self._last[0] >= CACHE:
                self._last = (loop.time(), await self._send())
            return self._last[1]

    async def _send(self) -> bool:
        token = secrets.token_hex(8)
        event = self._expected[token.encode()] = asyncio.Event()
        try:
            async with asyncio.timeout(TIMEOUT):
                # A token that is published sooner reaches nobody: a process that has just started would wait it out.
                await self._subscribed.wait()
                await self._store.probe(self.channel, token)
                await event.wait()
        except (TimeoutError, RedisUnavailable, RedisRefused):
            return False
        finally:
            del self._expected[token.encode()]
        return True
