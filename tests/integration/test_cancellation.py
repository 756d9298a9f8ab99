"""Cancelling what talks to Redis ends it, whenever the cancellation comes."""

from __future__ import annotations

import asyncio

from agent_sse.backend import Backend
from agent_sse.store import Store
from harness import Valkey, make_settings


async def test_cancelled_command_ends_its_task(valkey: Valkey) -> None:
    """No cancellation is swallowed, at whichever step of a command it comes: a task that goes on is never over."""
    backend = Backend(valkey.url)
    store = Store(backend, make_settings(valkey.url))
    await store.ping()

    async def commands() -> None:
        while True:
            await store.ping()
            await store.snapshot("s1")

    try:
        for steps in range(200):
            task = asyncio.create_task(commands())
            for _ in range(steps % 25):
                await asyncio.sleep(0)
            task.cancel()
            _, going_on = await asyncio.wait({task}, timeout=2)
            assert set() == going_on, f"cancelled after {steps % 25} steps of the loop, and goes on"
            assert task.cancelled()
    finally:
        await backend.aclose()
