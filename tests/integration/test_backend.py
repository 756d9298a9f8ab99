"""The way to Redis where a server refuses: how often it is connected to anew, and that who waits hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest
import redis.asyncio as redis

from agent_sse import RedisUnavailable, servers
from agent_sse.backend import Backend
from harness import DEADLINE, Valkey, until

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


# -- redirections -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster_that_says(refusal: str) -> AsyncIterator[str]:
    """Serve as a cluster of one node that has all slots and refuses every command on a key; yield its URL."""
    port, talks = 0, set[asyncio.Task[None]]()

    def answer(command: list[bytes]) -> bytes:
        match command[0]:
            case b"INFO":
                text = b"redis_version:7.2.0\r\ncluster_enabled:1\r\n"
                return b"$%d\r\n%s\r\n" % (len(text), text)
            case b"CLUSTER":
                return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n" % port
            case b"COMMAND":
                return b"*0\r\n"
        return b"-%s\r\n" % refusal.encode()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        with contextlib.closing(writer):
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    writer.write(answer(command))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


@pytest.mark.parametrize(
    "refusal", ["MOVED 1 127.0.0.1:0", "ASK 1 127.0.0.1:0", "MOVED 1 ?:0", "MOVED 1 nowhere", "MOVED", "ASK 1"]
)
async def test_redirection_to_nowhere_is_told_to_who_waits(refusal: str) -> None:
    """An address that cannot be one, such as the port 0 of a node that speaks only TLS, leaves nobody waiting."""
    async with cluster_that_says(refusal) as url:
        backend = Backend(url)
        async with asyncio.timeout(DEADLINE):
            found = await asyncio.gather(*(backend.command("GET", key) for key in "abc"), return_exceptions=True)
        assert [RedisUnavailable] * 3 == [type(error) for error in found]
        assert all(refusal in str(error) for error in found)
        await backend.aclose()
