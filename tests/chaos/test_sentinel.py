"""Redis Sentinel: its URL, real failovers in the middle of publishing, and sentinels that are silent or refuse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio as redis
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection

from agent_sse import SimpleNotifier
from agent_sse.backend import Backend
from agent_sse.errors import ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.sentinels import SentinelURL, sentinel_pool
from agent_sse.servers import Servers
from agent_sse.state_dir import find_server
from harness import DEADLINE, Follower, Valkey, make_settings, make_token, serve, until

SESSION = "s"
SERVICE = "agents"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Watch(Valkey):
    """A sentinel. It looks and speaks ten times as often as usual, so that a failover takes no 10 s."""

    def __init__(self, folder: Path, primary: int, quorum: int, *lines: str, down_after: int = 500) -> None:
        self.conf = folder / "sentinel.conf"
        folder.mkdir(parents=True)
        text = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {down_after}",
            f"sentinel failover-timeout {SERVICE} 2000",
            *lines,
        ]
        self.conf.write_text("\n".join(text) + "\n")
        super().__init__(folder, port=free_port())

    async def start(self) -> None:
        # The append-only file's options of other servers are none of a sentinel's, so the command line is its own.
        binary = os.environ.get("AGENT_SSE_TEST_SERVER") or str(find_server())
        self.process = await asyncio.create_subprocess_exec(
            binary, str(self.conf), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1",
            "--unixsocket", str(self.socket), "--dir", str(self.folder), "--logfile", str(self.folder / "log"),
        )  # fmt: skip
        async with self.client() as client:
            await until(lambda: answers(client), what="the sentinel")

    async def hurry(self) -> None:
        async with self.client() as client:
            await client.execute_command(
                "SENTINEL", "DEBUG", "INFO-PERIOD", 100, "PUBLISH-PERIOD", 100, "PING-PERIOD", 100, "ASK-PERIOD", 100
            )

    async def state(self) -> dict[str, Any]:
        async with self.client() as client:
            return dict((await client.sentinel_masters())[SERVICE])


async def answers(client: redis.Redis) -> bool:
    try:
        return bool(await client.ping())
    except (redis.ConnectionError, OSError) as error:
        return "Authentication required" in str(error)


class Guarded:
    """A primary, its replica and the sentinels of both."""

    def __init__(self, folder: Path, sentinels: int) -> None:
        self.primary = Valkey(folder / "p", "--repl-diskless-sync-delay", "0", port=free_port())
        self.replica = Valkey(folder / "r", "--repl-diskless-sync-delay", "0", port=free_port())
        quorum = sentinels // 2 + 1
        # The last of three stands for no election: where each votes for itself, they wait and try again, for long.
        down_after = [500, 500, 10_000][:sentinels]
        self.sentinels = [
            Watch(folder / f"s{i}", self.primary.port, quorum, down_after=ms) for i, ms in enumerate(down_after)
        ]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{SERVICE}/0"

    async def start(self) -> None:
        await asyncio.gather(self.primary.start(), self.replica.start())
        async with self.replica.client() as client:
            await client.replicaof("127.0.0.1", str(self.primary.port))

            async def follows() -> bool:
                return bool((await client.info("replication"))["master_link_status"] == "up")

            await until(follows, what="the replica")
        await asyncio.gather(*(one.start() for one in self.sentinels))
        await asyncio.gather(*(one.hurry() for one in self.sentinels))
        for one in self.sentinels:

            async def knows(one: Watch = one) -> bool:
                state = await one.state()
                if (1, len(self.sentinels) - 1) != (state["num-slaves"], state["num-other-sentinels"]):
                    return False
                async with one.client() as client:
                    (replica,) = await client.sentinel_slaves(SERVICE)
                return bool(replica["master-link-status"] == "ok")  # one that may be promoted

            await until(knows, what="the sentinels")

    async def replicated(self) -> None:
        """Wait until the replica has all that was published."""
        async with self.primary.client() as client:
            primary = (await client.info("replication"))["master_repl_offset"]
        async with self.replica.client() as client:

            async def caught_up() -> bool:
                return bool((await client.info("replication"))["slave_repl_offset"] >= primary)

            await until(caught_up, what="replication")

    async def fail_over(self, *how: str) -> None:
        async with self.sentinels[0].client() as client:
            await client.execute_command("SENTINEL", "FAILOVER", SERVICE, *how)

    async def moved(self) -> None:
        """Wait until the sentinels name the replica."""

        async def named() -> bool:
            return bool((await self.sentinels[-1].state())["port"] == self.replica.port)

        await until(named, what="the failover")

    async def stop(self) -> None:
        for one in (*self.sentinels, self.primary, self.replica):
            await one.stop(signal.SIGKILL)


@contextlib.asynccontextmanager
async def guarded(folder: Path, sentinels: int) -> AsyncIterator[Guarded]:
    made = Guarded(folder, sentinels)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def publish(notifier: SimpleNotifier) -> str:
    return await notifier.tool_status(SESSION, "read", "executing")


class Publishing:
    """Publishes without a pause, one event after the other; ``ids`` are those that were acknowledged."""

    def __init__(self, notifier: SimpleNotifier) -> None:
        self.notifier = notifier
        self.ids: list[str] = []
        self._going = True
        self._more = asyncio.Event()

    async def _run(self) -> None:
        while self._going:
            self.ids.append(await publish(self.notifier))
            self._more.set()

    async def more(self, count: int) -> None:
        """Wait until ``count`` more events are acknowledged."""
        wanted = len(self.ids) + count
        async with asyncio.timeout(DEADLINE):
            while len(self.ids) < wanted:
                self._more.clear()
                waiting = asyncio.ensure_future(self._more.wait())
                await asyncio.wait((waiting, self._task), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self._task.done():
                    self._task.result()

    async def end(self) -> None:
        self._going = False
        await self._task

    async def __aenter__(self) -> Publishing:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def watched(url: str) -> AsyncIterator[tuple[SimpleNotifier, Follower]]:
    """A notifier, and a stream of a service, both by the sentinels' URL."""
    async with (
        SimpleNotifier.from_url(url, publish_timeout=20, retention_events=100_000) as notifier,
        serve(make_settings(url, heartbeat_interval=0.2, retention_events=100_000)) as served,
        Follower(lambda: served.events(SESSION, make_token(SESSION))) as follower,
    ):
        yield notifier, follower


async def listeners(server: Valkey) -> int:
    async with server.client() as client:
        return len(await client.pubsub_channels("*:channel"))


# -- failovers --------------------------------------------------------------------------------------------------------


async def test_graceful_failover_loses_and_repeats_nothing(folder: Path) -> None:
    """The roles change in the middle of publishing: every acknowledged event arrives once and in order."""
    async with (
        guarded(folder, 1) as group,
        watched(group.url) as (notifier, follower),
        Publishing(notifier) as publishing,
    ):
        await publishing.more(20)
        try:
            await group.fail_over("COORDINATED")
        except redis.ResponseError:  # Redis, and Valkey before 9: hold the writes back by hand
            async with group.primary.client() as client:
                await client.execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
            await group.replicated()
            await group.fail_over()
        await group.moved()
        before = len(await group.replica.entries(SESSION))
        await publishing.more(20)
        await publishing.end()
        await follower.until_id(publishing.ids[-1])
        assert [] == follower.types("stream_reset")
        assert publishing.ids == follower.ids
        assert before < len(await group.replica.entries(SESSION))  # they are in the new primary
        # Who listens has moved too: the old primary may go away now.
        await until(lambda: moved_listeners(group), what="the subscription at the new primary")
        await group.primary.stop(signal.SIGKILL)
        last = await publish(notifier)
        await follower.until_id(last)
        assert [*publishing.ids, last] == follower.ids
        assert 1 == follower.connects


async def moved_listeners(group: Guarded) -> bool:
    return (0, 1) == (await listeners(group.primary), await listeners(group.replica))


async def test_killed_primary_is_followed_by_the_elected_one(folder: Path) -> None:
    """The primary dies, three sentinels elect the replica: publishing and the stream go on, nothing is missing."""
    async with guarded(folder, 3) as group, watched(group.url) as (notifier, follower):
        async with Publishing(notifier) as publishing:
            await publishing.more(20)
            await publishing.end()
        await group.replicated()
        await group.primary.stop(signal.SIGKILL)
        async with Publishing(notifier) as after:  # waits for the election
            await after.more(20)
            await after.end()
        await follower.until_id(after.ids[-1])
        assert publishing.ids + after.ids == follower.ids
        assert [] == follower.types("stream_reset")


async def test_failover_that_loses_events_resets_the_stream(folder: Path) -> None:
    """The old primary takes events until it is demoted: what is lost with it is told by a reset, the rest is there."""
    async with (
        guarded(folder, 1) as group,
        watched(group.url) as (notifier, follower),
        Publishing(notifier) as publishing,
    ):
        await publishing.more(20)
        await group.fail_over()  # promotes the replica, and demotes the primary only when it has seen that
        await group.moved()
        await follower.until(lambda: follower.types("stream_reset"))
        await publishing.more(20)
        await publishing.end()
        await follower.until_id(publishing.ids[-1])
        stored = {event_id for event_id, _ in await group.replica.entries(SESSION)}
        assert [] != [event_id for event_id in publishing.ids if event_id not in stored]
        resets = [place for place, event in enumerate(follower.events) if event.type == "stream_reset"]
        before = [event.id for event in follower.events[: resets[0]] if event.id is not None]
        after = [event.id for event in follower.events[resets[-1] :] if event.id is not None]
        # The last one may have been executed without an acknowledgement; then it was published again.
        assert publishing.ids[: len(before) - 1] == before[:-1]
        assert publishing.ids[len(publishing.ids) - len(after) :] == after
        assert set() == set(after) - stored


# -- sentinels that do not help ---------------------------------------------------------------------------------------


async def test_silent_sentinel_in_front_keeps_nobody_from_connecting(folder: Path) -> None:
    """The first of three sentinels is stopped: publisher and stream connect by the next one."""
    async with guarded(folder, 3) as group:
        process = group.sentinels[0].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        async with watched(group.url) as (notifier, follower):
            await follower.until_id(await publish(notifier))


async def test_sentinels_password_is_sent_to_sentinels_only(folder: Path) -> None:
    """A sentinel's own password opens it; a wrong one, or none, is a refusal that no retry mends."""
    primary = Valkey(folder / "p", port=free_port())
    sentinel = Watch(folder / "s", primary.port, 1, "requirepass hush&hush")
    try:
        await asyncio.gather(primary.start(), sentinel.start())
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}"
        for query in ("", "?sentinel_password=wrong"):
            backend = Backend(url + query)
            with pytest.raises(RedisRefused) as caught:
                await backend.connect()
            assert "hush" not in str(caught.value)
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
            await backend.aclose()
        backend = Backend(f"{url}?sentinel_password={quote('hush&hush')}")
        await backend.connect()
        assert not backend.clustered
        await backend.aclose()
    finally:
        await sentinel.stop(signal.SIGKILL)
        await primary.stop(signal.SIGKILL)


async def test_unknown_service_is_not_available(folder: Path) -> None:
    """The error says which service is unknown to whom; and what asked the sentinels leaves no connection behind."""
    sentinel = Watch(folder / "s", free_port(), 1)
    await sentinel.start()
    backend = Backend(f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:{free_port()}/other")
    try:
        with pytest.raises(RedisUnavailable, match=rf"'other'.*127\.0\.0\.1:{sentinel.port}: does not know it"):
            await backend.connect()
        await backend.aclose()
        async with sentinel.client() as client:

            async def alone() -> bool:
                return len(await client.client_list()) == 1

            await until(alone, what="the end of the connections to the sentinel")
    finally:
        await backend.aclose()
        await sentinel.stop(signal.SIGKILL)


# -- the URL ----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=12)
NAME = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True)
ADDRESS = st.tuples(NAME | st.just("::1"), st.integers(1, 65535))


@given(st.lists(ADDRESS, min_size=1, max_size=4), st.tuples(TEXT, TEXT, TEXT, TEXT), st.integers(0, 15), st.booleans())
def test_url_says_what_was_put_in(
    addresses: list[tuple[str, int]], texts: tuple[str, str, str, str], db: int, tls: bool
) -> None:
    """Any hosts, names and passwords, escaped as the README says, come back as they were."""
    user, password, service, of_sentinels = texts
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
    account = f"{quote(user, safe='')}:{quote(password, safe='')}"
    url = f"redis{'s' * tls}+sentinel://{account}@{hosts}/{quote(service, safe='')}/{db}"
    parsed = SentinelURL.parse(f"{url}?sentinel_password={quote(of_sentinels, safe='')}")
    assert (addresses, service) == (parsed.addresses, parsed.service)
    encrypted = {"ssl": True} if tls else {}
    assert {"username": user, "password": password, "db": db, **encrypted} == parsed.primary
    assert {"password": of_sentinels, **encrypted} == parsed.sentinel


def test_url_needs_neither_account_nor_port_nor_database() -> None:
    """The shortest URL: the sentinels' port is the usual one."""
    assert SentinelURL([("a", 26379), ("b", 1)], "agents", {}, {}) == SentinelURL.parse("redis+sentinel://a,b:1/agents")


@pytest.mark.parametrize(
    "rest",
    [
        "", "/", "a:1", "a:1/", "/agents", ":1/agents", "a:/agents", "a:0/agents", "a:65536/agents", "a:x/agents",
        "a,/agents", "a:1,,b:2/agents", "a b/agents", "a/agents/x", "a/agents/0/1", "a/agents/-1", "a/agents#x",
        "a/agents?hunter2=1", "a/agents?socket_keepalive=hunter2&db=x", "a/agents?ssl_ca_certs=x", "[::1/agents",
        "::1/agents", "x:hun/ter2@a/agents", "x:hunter2?@a/agents", "x:hunter2#@a/agents",
    ],
)  # fmt: skip
def test_broken_url_is_refused_with_the_right_form(rest: str) -> None:
    """What is missing or wrong is told with an example, and nothing of the password is."""
    account = "" if "@" in rest else "x:hunter2@"
    with pytest.raises(ConfigurationError, match=r"redis\+sentinel://user:password@host:26379") as caught:
        Servers(f"redis+sentinel://{account}{rest}", 5.0)
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("option", ["ssl_nonsense=1", "ssl_cert_reqs=maybe", "ssl_min_version=x"])
def test_broken_option_of_tls_is_refused(option: str) -> None:
    """redis-py's own checks of its options are made before anything connects."""
    with pytest.raises(ConfigurationError, match="option"):
        Servers(f"rediss+sentinel://a/agents?{option}", 5.0)


def test_tls_goes_to_primary_and_sentinels() -> None:
    """With `rediss+sentinel` both kinds of connection are encrypted and check certificates by the same authority."""
    pool = sentinel_pool("REDISS+sentinel://a/agents?ssl_ca_certs=/ca.pem", 5.0, {"protocol": 2})
    primary = pool.make_connection()
    sentinel = pool.sentinel_manager.sentinels[0].connection_pool.make_connection()
    assert isinstance(primary, SentinelManagedSSLConnection)
    assert isinstance(sentinel, SSLConnection)
    assert ("/ca.pem", "/ca.pem") == (primary.ca_certs, sentinel.ca_certs)
