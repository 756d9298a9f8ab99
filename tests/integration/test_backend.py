"""The way to Redis where a server refuses: how often it is connected to anew, and that who waits hears of it."""

from __future__ import annotations

import pytest
import redis.asyncio as redis

from agent_sse import RedisUnavailable, servers
from agent_sse.backend import Backend
from harness import Valkey, until

NEVER = 600.0  # s


async def connections_of(client: redis.Redis) -> int:
    return int((await client.info("stats"))["total_connections_received"])


async def refused(backend: Backend) -> None:
    with pytest.raises(RedisUnavailable, match="READONLY"):
        await backend.command("SET", "key", "value")


async def test_server_that_stays_a_replica_gets_one_new_connection(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls a replica refuses within a pause, one new connection is made, and it carries the rest."""
    monkeypatch.setattr(servers, "REPLACEMENT_PAUSE", NEVER)
    backend = Backend(valkey.url)
    async with valkey.client() as client:
        await backend.command("SET", "key", "value")
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        before = await connections_of(client)
        for _ in range(20):
            await refused(backend)
        assert before + 1 == await connections_of(client)
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await backend.command("SET", "key", "value")
        assert before + 1 == await connections_of(client)
    await backend.aclose()


async def test_server_that_stays_a_replica_is_connected_to_again(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each pause the next refusal makes a new connection: by then it may lead to the new primary."""
    monkeypatch.setattr(servers, "REPLACEMENT_PAUSE", 0.05)
    backend = Backend(valkey.url)
    async with valkey.client() as client:
        await backend.command("SET", "key", "value")
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")
        before = await connections_of(client)

        async def replaced() -> bool:
            await refused(backend)
            return await connections_of(client) >= before + 3

        await until(replaced, what="a third connection")
    await backend.aclose()
