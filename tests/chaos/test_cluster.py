"""Redis Cluster: three real nodes, sharded pub/sub, slots that move and nodes that restart."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis.asyncio as redis
from redis.crc import key_slot

from agent_sse import SimpleNotifier
from agent_sse.backend import Backend
from agent_sse.frames import format_id
from agent_sse.store import Publish, Store
from harness import (
    Follower,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    publish_unheard,
    serve,
    services_of,
    until,
)

NEWS = {"type": "error", "message": "x", "code": "x"}
SLOTS = 16384
NODES = 3


def free_ports() -> list[int]:
    """Ports whose cluster bus ports (10,000 above) are free too."""
    found: list[int] = []
    while len(found) < NODES:
        port = random.randint(11_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as client, socket.socket() as bus:
            client.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            found.append(port)
    return found


class Cluster:
    """Three primaries, each with a third of the slots."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [
            Valkey(
                folder / f"n{i}", "--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
                "--cluster-require-full-coverage", "no", port=port,
            )
            for i, port in enumerate(free_ports())
        ]  # fmt: skip

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.nodes[0].port}"

    async def start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes))
        for i, node in enumerate(self.nodes):
            async with node.client() as client:
                await client.execute_command(
                    "CLUSTER", "ADDSLOTSRANGE", SLOTS * i // NODES, SLOTS * (i + 1) // NODES - 1
                )
                await client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        await self.whole()

    async def whole(self) -> None:
        """Wait until every node knows of every other and of all slots."""
        for node in self.nodes:
            async with node.client() as client:

                async def ok(client: redis.Redis = client) -> bool:
                    info = (await client.execute_command("CLUSTER", "INFO")).decode()
                    fields = dict(line.split(":", 1) for line in info.split())
                    return (fields["cluster_state"], fields["cluster_slots_ok"], fields["cluster_known_nodes"]) == (
                        "ok", str(SLOTS), str(NODES),
                    )  # fmt: skip

                await until(ok, what="the cluster")

    def node_of(self, session: str) -> int:
        """Which node had the session's slot at the start."""
        slot = key_slot(session.encode())
        return next(i for i in range(NODES) if slot < SLOTS * (i + 1) // NODES)

    async def migrate(self, session: str, source: int, target: int) -> None:
        """Move the session's slot with its keys, one by one, to another node, as `redis-cli --cluster reshard` does."""
        slot = key_slot(session.encode())
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(node.client()) for node in self.nodes]
            names = [(await client.execute_command("CLUSTER", "MYID")).decode() for client in clients]
            await clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
            await clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
            while keys := await clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
                await clients[source].execute_command(
                    "MIGRATE", "127.0.0.1", self.nodes[target].port, "", 0, 5000, "KEYS", *keys
                )
            for i in (target, source, *(n for n in range(NODES) if n not in (target, source))):
                await clients[i].execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[target])

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))


@pytest.fixture
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    made = Cluster(folder)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def session_on(cluster: Cluster, node: int) -> str:
    return next(name for name in (f"s{n}" for n in range(1000)) if cluster.node_of(name) == node)


@pytest.mark.usefixtures("sink")
async def test_cluster_carries_events_and_answers_of_20_sessions(cluster: Cluster) -> None:
    """Publishing, streams, permissions and health work over sessions on all nodes, with sharded pub/sub."""
    sessions = [f"s{n}" for n in range(20)]
    assert {0, 1, 2} == {cluster.node_of(session) for session in sessions}
    token = make_token(*sessions)
    async with (
        SimpleNotifier.from_url(cluster.url) as notifier,
        serve(make_settings(cluster.url)) as served,
        httpx.AsyncClient(headers=bearer(token)) as client,
    ):
        (service,) = services_of(served.app)
        streams = [Stream(served.events(session, token)) for session in sessions]
        try:
            for stream in streams:
                await stream.open()
            await asyncio.gather(*(stream.primed() for stream in streams))
            assert "SPUBLISH" == service.store.backend.publish_command
            assert service.store.backend.clustered
            await asyncio.gather(*(notifier.open_session(session, "alice") for session in sessions))
            ids = await asyncio.gather(
                *(notifier.error(session, f"{session} {n}") for n in range(10) for session in sessions)
            )
            for i, (session, stream) in enumerate(zip(sessions, streams, strict=True)):
                got = [await stream.next() for _ in range(10)]
                assert [f"{session} {n}" for n in range(10)] == [event.json["message"] for event in got]
                assert ids[i::20] == [event.id for event in got]
            asking = [
                asyncio.create_task(notifier.request_permission(session, "edit", {"of": session}))
                for session in sessions
            ]
            for i, (session, stream) in enumerate(zip(sessions, streams, strict=True)):
                request = await stream.next("permission_request")
                assert {"of": session} == request.json["data"]["parameters"]
                response = await client.post(
                    f"{served.api}/permission-response/{session}", json={"approved": i % 2 == 0}
                )
                assert 200 == response.status_code, response.text
            assert [i % 2 == 0 for i in range(20)] == [bool(decision) for decision in await asyncio.gather(*asking)]
            health = (await client.get(f"{served.api}/health/s3")).json()["data"]
            assert ("ok", 1) == (health["status"], health["connections"])
            listed = (await client.get(f"{served.api}/sessions")).json()["data"]["sessions"]
            assert set(sessions) == {row["session_id"] for row in listed if row["owned"]}
            assert 200 == (await client.get(f"{served.url}/readyz")).status_code
        finally:
            await asyncio.gather(*(stream.close() for stream in streams))


@pytest.mark.usefixtures("sink", "no_ticks")
async def test_cluster_loses_nothing_while_a_slot_moves(cluster: Cluster) -> None:
    """A session's slot moves from node to node in the middle of publishing: all ids once, in order, on one stream."""
    session = session_on(cluster, 0)
    async with (
        SimpleNotifier.from_url(cluster.url, publish_timeout=20) as notifier,
        serve(make_settings(cluster.url, heartbeat_interval=60)) as served,  # no tick helps
        Follower(lambda: served.events(session, make_token(session))) as follower,
    ):
        published = [await notifier.error(session, "before") for _ in range(20)]
        for source, target in ((0, 1), (1, 2), (2, 0), (0, 2)):
            moving = asyncio.create_task(cluster.migrate(session, source, target))
            while not moving.done():
                published.append(await notifier.error(session, "meanwhile"))
            await moving
            published += await asyncio.gather(*(notifier.error(session, "after") for _ in range(100)))
            await follower.until_id(published[-1])
        assert (published, 1) == (follower.ids, follower.connects)
        assert [] == follower.types("stream_reset")


@pytest.mark.usefixtures("sink")
async def test_cluster_shard_that_is_silent_delays_only_its_own(cluster: Cluster) -> None:
    """A frozen node: what goes to the others, in the same notifier and service, goes on; its own comes later, whole."""
    hit, spared = session_on(cluster, 1), session_on(cluster, 2)
    frozen = cluster.nodes[1].process
    assert frozen is not None
    async with (
        SimpleNotifier.from_url(cluster.url, publish_timeout=25) as notifier,
        serve(make_settings(cluster.url)) as served,
        Follower(lambda: served.events(hit, make_token(hit))) as slow,
        Follower(lambda: served.events(spared, make_token(spared))) as quick,
    ):
        published = [await notifier.error(hit, "before") for _ in range(5)]
        (service,) = services_of(served.app)
        frozen.send_signal(signal.SIGSTOP)
        try:
            waiting = asyncio.gather(*(notifier.error(hit, f"{n:03}") for n in range(50)))
            tick = asyncio.create_task(service.store.tips_of([hit]))
            others = await asyncio.gather(*(notifier.error(spared, f"{n:03}") for n in range(50)))
            assert [others[-1].encode()] == [format_id(tip) for tip in await service.store.tips_of([spared])]
            await quick.until_id(others[-1])
            assert not waiting.done()
            assert not tick.done()
        finally:
            frozen.send_signal(signal.SIGCONT)
        published += await waiting
        await asyncio.gather(tick, return_exceptions=True)
        await slow.until_id(published[-1])
        assert (published, others) == (slow.ids, quick.ids)
        assert [f"{n:03}" for n in range(50)] == [event.json["message"] for event in slow.events if event.id][5:]


async def test_cluster_shard_that_is_silent_keeps_no_other_sessions_tick_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a frozen node owes the answers to its sessions' ticks, another node's lost last message is found by one."""
    monkeypatch.setattr("agent_sse.service.Backend", partial(Backend, timeout=120.0))  # ticks wait, they do not fail
    hit, spared = session_on(cluster, 1), session_on(cluster, 2)
    frozen = cluster.nodes[1].process
    assert frozen is not None
    backend = Backend(cluster.url)
    async with (
        serve(make_settings(cluster.url, heartbeat_interval=0.3)) as served,
        Follower(lambda: served.events(hit, make_token(hit))) as slow,
        Follower(lambda: served.events(spared, make_token(spared))) as quick,
    ):
        try:
            await backend.connect()
            ids = [await publish_unheard(Store(backend, make_settings(cluster.url)), spared, NEWS) for _ in range(2)]
            await quick.until_id(ids[-1])
            frozen.send_signal(signal.SIGSTOP)
            (service,) = services_of(served.app)
            waiting = service.hub._ticks._queues
            await until(lambda: service.store.server_of(hit) in waiting and not any(waiting.values()), what="its tick")
            ids.append(await publish_unheard(Store(backend, make_settings(cluster.url)), spared, NEWS))
            await quick.until_id(ids[-1])
            assert service.store.server_of(hit) in waiting
        finally:
            frozen.send_signal(signal.SIGCONT)
            await backend.aclose()
        assert (ids, []) == (quick.ids, slow.ids)


async def test_cluster_call_on_a_slot_that_moved_finds_it(cluster: Cluster) -> None:
    """Commands and scripts whose slot moved since the topology was read run on its new node, each once."""
    session = session_on(cluster, 0)
    backend = Backend(cluster.url)
    try:
        store = Store(backend, make_settings(cluster.url))
        assert await store.open(session, "alice")
        before = await backend.node_of(f"{{{session}}}")
        await cluster.migrate(session, 0, 1)
        assert ["alice"] * 20 == await asyncio.gather(*(store.owner_of(session) for _ in range(20)))
        replies = await backend.run_many(
            [store.publish_call(Publish(session, b'"x"', "other"), f"p{n}", 1, 0) for n in range(5)]
        )
        assert [b"0"] * 5 == [reply[1] for reply in replies]
        assert 5 == (await store.health(session)).retained_events
        await backend.refresh()
        assert before != await backend.node_of(f"{{{session}}}")
    finally:
        await backend.aclose()


@pytest.mark.usefixtures("sink")
async def test_cluster_loses_nothing_while_a_node_restarts(cluster: Cluster) -> None:
    """A node restarts: its sessions wait and lose nothing, those of the others go on."""
    first, second = session_on(cluster, 1), session_on(cluster, 2)
    async with (
        SimpleNotifier.from_url(cluster.url, publish_timeout=25) as notifier,
        SimpleNotifier.from_url(cluster.url, publish_timeout=25) as another,
        serve(make_settings(cluster.url)) as served,
        Follower(lambda: served.events(first, make_token(first))) as hit,
        Follower(lambda: served.events(second, make_token(second))) as spared,
    ):
        published = [await notifier.error(first, "before") for _ in range(20)]
        await cluster.nodes[1].stop()
        waiting = asyncio.gather(*(notifier.error(first, "meanwhile") for _ in range(50)))
        others = [await another.error(second, "meanwhile") for _ in range(20)]
        await spared.until_id(others[-1])
        await cluster.nodes[1].start()
        published += await waiting
        published += [await notifier.error(first, "after") for _ in range(20)]
        await hit.until_id(published[-1])
        assert (published, 1) == (hit.ids, hit.connects)
        assert (others, 1) == (spared.ids, spared.connects)
        assert [] == hit.types("stream_reset") + spared.types("stream_reset")
