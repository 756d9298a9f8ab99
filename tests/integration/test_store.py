"""The scripts on a real Valkey: what is kept of a session, for how long, and what is not."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis

from agent_sse import RedisRefused, SimpleNotifier
from agent_sse.backend import Backend
from agent_sse.frames import format_id, parse_id
from agent_sse.permissions import PermissionRequest, Permissions
from agent_sse.settings import Settings
from agent_sse.store import Publish, Snapshot, Store
from harness import Valkey, make_settings, until

S = "s1"


def key(name: str, session: str = S) -> str:
    return f"agent_sse:{{{session}}}:{name}"


@pytest.fixture
async def client(valkey: Valkey) -> AsyncIterator[redis.Redis]:
    async with valkey.client() as made:
        yield made


class Direct:
    """A store, and a publisher that counts as it is told."""

    def __init__(self, settings: Settings) -> None:
        self.backend = Backend(settings.redis_url)
        self.store = Store(self.backend, settings)
        self.count = 0

    async def publish(self, *events: Publish) -> list[str]:
        await self.backend.connect()
        calls = []
        for event in events:
            self.count += 1
            calls.append(self.store.publish_call(event, "p", self.count, self.count - 1))
        replies = await self.backend.run_many(calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [reply[0].decode() for reply in replies]

    async def statuses(self) -> list[Any]:
        return [json.loads(payload) for payload in (await self.store.snapshot(S)).statuses]

    async def __aenter__(self) -> Direct:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.aclose()


def direct(valkey: Valkey, **settings: Any) -> Direct:
    return Direct(make_settings(valkey.url, **settings))


def other(payload: bytes) -> Publish:
    return Publish(S, payload, "other")


def status(call: str, word: str = "executing", *, size: int = 0, terminal: bool = False) -> Publish:
    payload = json.dumps({"call": call, "status": word, "pad": "x" * size}).encode()
    return Publish(S, payload, "status", call, terminal)


def result(call: str) -> Publish:
    return Publish(S, json.dumps({"result": call}).encode(), "result", call)


def cleared(call: str) -> Publish:
    return Publish(S, b'{"cleared":1}', "cleared", call)


# -- what is retained -------------------------------------------------------------------------------------------


async def test_retention_keeps_exactly_the_last_events(valkey: Valkey, client: redis.Redis) -> None:
    """After any number of events the last RETENTION_EVENTS are there, no more and no fewer."""
    async with direct(valkey, retention_events=10) as session:
        ids: list[str] = []
        for step in (1, 8, 1, 1, 3, 30, 100):
            ids += await session.publish(*(other(b'"%d"' % i) for i in range(step)))
            assert ids[-10:] == [event_id for event_id, _ in await valkey.entries(S)]


async def test_retention_keeps_as_many_bytes_as_allowed(valkey: Valkey, client: redis.Redis) -> None:
    """The newest events whose payloads fit into RETENTION_BYTES stay, not one more goes; the count of bytes is true."""
    source = random.Random(7)
    async with direct(valkey, retention_bytes=5000) as session:
        sizes: list[int] = []
        for _ in range(200):
            sizes.append(source.choice([10, 50, 300, 1500, 6000]))
            await session.publish(other(b'"' + b"x" * (sizes[-1] - 2) + b'"'))
            kept, total = 1, sizes[-1]
            while kept < len(sizes) and total + sizes[-kept - 1] <= 5000:
                kept, total = kept + 1, total + sizes[-kept - 1]
            assert (kept, total) == (await client.xlen(key("events")), int(await client.hget(key("state"), "bytes")))


async def test_retention_ends_by_time_and_the_tip_stays(valkey: Valkey, client: redis.Redis) -> None:
    """Old events go when newer ones come, and the Stream goes when none come; the next event still names the last."""
    async with direct(valkey, retention_seconds=0.2) as session:
        (first,) = await session.publish(other(b'"1"'))
        await until(lambda: client.eval("local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 - 1001 - ARGV[1]"
                                        " > 0", 0, first.split("-")[0]), what="a second later")  # fmt: skip
        (second,) = await session.publish(other(b'"2"'))
        assert [second] == [event_id for event_id, _ in await valkey.entries(S)]
        await until(lambda: _gone(client, key("events")), what="the Stream's expiry")
        assert second.encode() == await client.hget(key("state"), "tip")
        assert second.encode() == format_id((await session.store.replay(S, (0, 0), events=9, size=9999)).tip)
        (third,) = await session.publish(other(b'"3"'))
        ((_, fields),) = await client.xrange(key("events"))
        assert second.encode() == fields[b"p"]
        page = await session.store.replay(S, parse_id(second.encode()) or (0, 0), events=9, size=9999)
        assert ("ok", [third.encode()]) == (page.status, page.ids)


async def _gone(client: redis.Redis, name: str) -> bool:
    return not await client.exists(name)


async def test_replay_pages_are_bounded_and_without_a_gap(valkey: Valkey) -> None:
    """Pages of any bound, one after the other, give every event once; an unknown cursor gives none and says why."""
    async with direct(valkey) as session:
        ids = await session.publish(*(other(b'"%s"' % (b"x" * (i * 37 % 500))) for i in range(100)))
        for events, size in ((1, 10**6), (7, 10**6), (1000, 1), (1000, 700), (1000, 10**6)):
            cursor, seen = (0, 0), []
            while (page := await session.store.replay(S, cursor, events=events, size=size)).ids:
                assert page.status == "ok"
                assert len(page.ids) <= events
                assert len(page.ids) == 1 or sum(map(len, page.payloads)) <= size
                seen += [event_id.decode() for event_id in page.ids]
                cursor = page.last
            assert ids == seen
        ms, seq = parse_id(ids[50].encode()) or (0, 0)
        assert "lost" == (await session.store.replay(S, (ms + 10_000, seq), events=5, size=999)).status
        assert "expired" == (await session.store.replay(S, (5, 5), events=5, size=999)).status


# -- ids --------------------------------------------------------------------------------------------------------


async def test_ids_grow_when_the_clock_goes_back(valkey: Valkey, client: redis.Redis) -> None:
    """With a tip from the future (the clock was set back) the next ids follow it."""
    async with direct(valkey) as session:
        await session.publish(other(b'"1"'))
        ahead = int((await client.time())[0]) * 1000 + 3_600_000
        await client.hset(key("state"), "tip", f"{ahead}-7")
        assert [f"{ahead}-8", f"{ahead}-9"] == await session.publish(other(b'"2"'), other(b'"3"'))


async def test_ids_grow_when_the_state_was_evicted(valkey: Valkey, client: redis.Redis) -> None:
    """Without its state hash a session goes on after its Stream's last entry."""
    async with direct(valkey) as session:
        (first,) = await session.publish(other(b'"1"'))
        await client.delete(key("state"))
        (second,) = await session.publish(other(b'"2"'))
        assert (parse_id(first.encode()) or (0, 0)) < (parse_id(second.encode()) or (0, 0))
        assert first.encode() == (await client.xrange(key("events")))[1][1][b"p"]


async def test_ids_of_a_reopened_session_are_later_than_those_of_the_closed_one(
    valkey: Valkey, client: redis.Redis
) -> None:
    """A session that begins within the millisecond of its end, or before it, shares no id with what was erased."""
    async with direct(valkey) as session:
        ahead = int((await client.time())[0]) * 1000 + 3_600_000
        await client.set(key("closed"), f"{ahead}-7")
        (first,) = await session.publish(other(b'"1"'))
        assert (ahead, 7) < (parse_id(first.encode()) or (0, 0))
        assert b"0-0" == (await client.xrange(key("events")))[0][1][b"p"]


# -- the snapshot -----------------------------------------------------------------------------------------------


async def test_snapshot_has_the_latest_status_of_each_unfinished_call(valkey: Valkey) -> None:
    """Running calls in the order of their latest events; finished ones not; when none runs, the last that finished."""
    async with direct(valkey) as session:

        async def expect(*calls: str) -> None:
            assert list(calls) == [f"{s['call']} {s['status']}" for s in await session.statuses()]

        await expect()
        await session.publish(status("a", "pending"), status("b", "pending"), status("a"))
        await expect("b pending", "a executing")
        await session.publish(status("b", "completed", terminal=True))
        await expect("a executing")
        await session.publish(status("a", "failed", terminal=True))
        await expect("a failed")
        await session.publish(status("never-seen", "denied", terminal=True))
        await expect("never-seen denied")
        await session.publish(status("a", "pending"))
        await expect("a pending")


async def test_snapshot_shows_the_uncleared_result(valkey: Valkey) -> None:
    """A clear takes away the result of its call, or any without a call id, and no other call's."""
    async with direct(valkey) as session:

        async def shown() -> str | None:
            snapshot: Snapshot = await session.store.snapshot(S)
            return None if snapshot.result is None else json.loads(snapshot.result)["result"]

        assert await shown() is None
        await session.publish(result("a"), result("b"))
        assert await shown() == "b"
        await session.publish(cleared("a"))
        assert await shown() == "b"
        await session.publish(cleared("b"))
        assert await shown() is None
        await session.publish(result("a"), cleared(""))
        assert await shown() is None


async def test_snapshot_of_calls_that_never_end_is_bounded(valkey: Valkey, client: redis.Redis) -> None:
    """10,000 unfinished calls leave at most 256, the newest among them; large ones at most RETENTION_BYTES."""
    async with direct(valkey, retention_bytes=100_000) as session:
        for block in range(100):
            await session.publish(*(status(f"c{block * 100 + i:05}") for i in range(100)))
            assert await client.hlen(key("calls")) <= 256
        calls = [s["call"] for s in await session.statuses()]
        assert len(calls) >= 128
        assert [f"c{i:05}" for i in range(10_000 - len(calls), 10_000)] == calls

        for i in range(100):
            await session.publish(status(f"big{i}", size=9000), status("mine", size=100))
            held = await client.hgetall(key("calls"))
            assert sum(map(len, held.values())) <= 100_000
            assert sum(map(len, held.values())) == int(await client.hget(key("state"), "calls_bytes"))
        assert "mine" == (await session.statuses())[-1]["call"]
        for call in [s["call"] for s in await session.statuses()]:
            await session.publish(status(call, "completed", terminal=True))
        assert b"0" == await client.hget(key("state"), "calls_bytes")


# -- publishers -------------------------------------------------------------------------------------------------


async def test_publishers_that_are_gone_do_not_pile_up(valkey: Valkey, client: redis.Redis) -> None:
    """Thousands of short-lived publishers of one session leave a bounded number of counters, the newest ones."""
    async with direct(valkey) as session:
        await session.backend.connect()
        for block in range(40):
            names = [f"p{block * 100 + i}" for i in range(100)]
            replies = await session.backend.run_many(
                [session.store.publish_call(other(b'"x"'), name, 1, 0) for name in names]
            )
            again = await session.backend.run_many(
                [session.store.publish_call(other(b'"x"'), name, 1, 0) for name in names]
            )
            assert [[reply[0], b"1"] for reply in replies] == again  # a retry that comes soon is still known
            assert await client.hlen(key("publishers")) <= 1024


async def test_publishers_counters_live_as_long_as_the_session(valkey: Valkey, client: redis.Redis) -> None:
    """300 notifiers that publish once each leave one event each, and no key without an expiry."""
    for number in range(300):
        async with SimpleNotifier.from_url(valkey.url) as notifier:
            await notifier.error(S, str(number))
    assert [str(number) for number in range(300)] == [event["message"] for _, event in await valkey.entries(S)]
    assert await client.hlen(key("publishers")) <= 1024
    for name in await client.keys("*"):
        assert 0 < await client.pttl(name) <= 24 * 3600 * 1000


# -- owners and lifetimes ---------------------------------------------------------------------------------------


async def test_owner_lives_the_session_ttl_and_publishing_renews_it(valkey: Valkey, client: redis.Redis) -> None:
    """SESSION_TTL runs from the last use: opening and publishing renew it for every key but the Stream."""
    async with direct(valkey, session_ttl=1000, retention_seconds=60) as session:
        assert await session.store.open(S, "alice")
        assert 999_000 < await client.pttl(key("state")) <= 1_000_000
        await session.publish(status("a"), result("a"))
        for name in ("state", "calls", "publishers"):
            await client.pexpire(key(name), 5000)
        await client.hset(key("state"), "touched", 1)  # the last renewal is long ago
        await session.publish(other(b'"1"'))
        for name in ("state", "calls", "publishers"):
            assert 999_000 < await client.pttl(key(name)) <= 1_000_000
        assert 60_000 < await client.pttl(key("events")) <= 61_000
        await client.pexpire(key("state"), 5000)
        assert await session.store.open(S, "alice")
        assert 999_000 < await client.pttl(key("state")) <= 1_000_000
        assert not await session.store.open(S, "bob")
        assert "alice" == await session.store.owner_of(S)


async def test_owner_is_renewed_by_an_open_stream(valkey: Valkey, client: redis.Redis) -> None:
    """A server's tick for a session with open streams renews what the session is made of, all but the Stream."""
    async with direct(valkey, session_ttl=1000, retention_seconds=60) as session:
        assert await session.store.open(S, "alice")
        await session.publish(other(b'"1"'))
        for name in ("state", "publishers"):
            await client.pexpire(key(name), 5000)
        await session.store.tick_many([(S, "process", 1)])
        for name in ("state", "publishers"):
            assert 999_000 < await client.pttl(key(name)) <= 1_000_000
        assert 0 < await client.pttl(key("streams")) <= 45_000


async def test_owners_index_outlives_a_session_that_is_only_published_to(valkey: Valkey, client: redis.Redis) -> None:
    """Publishing and streams keep a session alive but cannot reach its owner's list: that lives on by itself."""
    async with direct(valkey, session_ttl=10, retention_seconds=5) as session:
        assert await session.store.open(S, "alice")
        (index,) = [name async for name in client.scan_iter("agent_sse:owner:*")]
        await client.expire(index, 100)
        assert [S] == await session.store.sessions_of("alice")
        assert await client.ttl(index) > 86_400


async def test_health_lists_every_open_request(valkey: Valkey) -> None:
    """More than a hundred open requests are all there, up to the bytes that a session may keep; the total is true."""
    async with direct(valkey) as session, direct(valkey, retention_bytes=2_000) as small:
        permissions = Permissions(session.store)
        asking = [
            asyncio.create_task(permissions.ask(PermissionRequest(S, "t", {"n": i}, "low", 60, "c")))
            for i in range(120)
        ]

        async def open_requests() -> bool:
            return (await session.store.health(S)).pending_total == 120

        await until(open_requests)
        assert 120 == len((await session.store.health(S)).pending)
        cut = await small.store.health(S)
        assert (120, True) == (cut.pending_total, 0 < len(cut.pending) < 12)
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await permissions.aclose()


async def test_opening_again_never_shortens_a_session(valkey: Valkey, client: redis.Redis) -> None:
    """A session lives at least to its latest deadline, even when that is after SESSION_TTL."""
    async with direct(valkey, session_ttl=100, retention_seconds=60) as session:
        assert await session.store.open(S, "alice")
        await client.hset(key("state"), "deadline", int((await client.time())[0]) * 1000 + 1_000_000)
        await session.publish(other(b'"1"'))
        assert await client.pttl(key("state")) > 1_000_000
        assert await session.store.open(S, "alice")
        assert await client.pttl(key("state")) > 1_000_000


async def test_session_of_a_newer_release_is_refused_not_damaged(valkey: Valkey, client: redis.Redis) -> None:
    """A layout that this release does not know is an error that says so, and nothing is written."""
    async with direct(valkey) as session:
        await session.publish(other(b'"1"'))
        await client.hset(key("state"), "layout", 2)
        before = await client.dump(key("state")), await client.dump(key("events"))
        with pytest.raises(RedisRefused, match="newer agent-sse"):
            await session.publish(other(b'"2"'))
        assert before == (await client.dump(key("state")), await client.dump(key("events")))
