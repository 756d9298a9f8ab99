"""How a watched session does, read from Redis in two small calls: its streams, its queue, the clock, the latency."""

from __future__ import annotations

import time

from agent_sse import scripts
from agent_sse.store import Store
from agent_sse.watch_session import Vitals


async def read_vitals(store: Store, session_id: str) -> Vitals:
    """Read them. Raises :class:`RedisUnavailable`, :class:`RedisRefused`."""
    latency = await store.ping()
    before = time.time()
    _, _, streams, _, now_ms, pending, _ = await store.run(scripts.HEALTH, session_id)
    at = time.time()
    counts = (value.split() for value in streams[1::2])
    return Vitals(
        at=at,
        latency_ms=latency,
        streams=sum(int(count) for count, until in counts if int(until) > int(now_ms)),
        pending=int(pending),
        ahead=int(now_ms) / 1000 - (before + at) / 2,
    )
