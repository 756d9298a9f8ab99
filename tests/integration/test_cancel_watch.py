"""The agent's side of cancelling: one subscription for a session's calls, and a busy agent looks at all of them."""

from __future__ import annotations

import asyncio

import pytest

from agent_sse import SimpleNotifier
from agent_sse.errors import ToolCallCancelled
from harness import DEADLINE, Valkey, session_name, until


async def test_lost_message_is_found_while_other_sessions_calls_come_and_go(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """A cancellation that nobody was told of is read again in time, however often there is other work."""
    quiet, busy = session_name(), session_name()

    async def come_and_go() -> None:
        while True:
            async with notifier.tool_call(busy, "read"):
                pass

    async def wait_for_cancellation() -> None:
        async with notifier.tool_call(quiet, "edit", tool_call_id="c1"):
            async with valkey.client() as client:
                key = f"agent_sse:{{{quiet}}}:requests"
                await client.hset(key, "c:c1", '{"reason":"x","by":"alice"}')
            await asyncio.Event().wait()

    working = asyncio.create_task(come_and_go())
    try:
        with pytest.raises(ToolCallCancelled):
            await asyncio.wait_for(wait_for_cancellation(), DEADLINE)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_calls_one_after_the_other_share_a_subscription_that_ends_behind_them(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """Subscribing is no cost of each call, and a session without calls is not listened to for long."""
    session = session_name()
    for _ in range(5):
        async with notifier.tool_call(session, "read"):
            pass
    async with valkey.client() as client:
        stats = await client.info("commandstats")
        assert 1 == stats["cmdstat_subscribe"]["calls"]

        async def is_left() -> bool:
            return not await client.pubsub_channels(f"agent_sse:{{{session}}}:*")

        await until(is_left, what="the session not being listened to")
    async with notifier.tool_call(session, "read"):
        pass
