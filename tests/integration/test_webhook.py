"""The webhook against real receivers and a real Valkey: who is told of what, how often, and what never leaves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from agent_sse import RedisUnavailable, SimpleNotifier
from agent_sse.backend import Backend
from agent_sse.endpoint import EVENT_TYPE, Endpoint
from agent_sse.registry import Registry, Unanswered
from agent_sse.store import Store
from agent_sse.webhook import CONCURRENCY, Webhook
from harness import DEADLINE, Valkey, make_settings, until

KEY = b"a-webhook-secret-of-32-bytes-or-more"
MASKED = {"file": "a.py", "password": "••••"}
INDEX = "agent_sse:unanswered"
AFTER = 0.05  # s
HOUR = 3_600_000  # ms


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses so short that a test need not wait for them."""
    monkeypatch.setattr("agent_sse.webhook.POLL_INTERVAL", 0.02)
    monkeypatch.setattr("agent_sse.endpoint.BACKOFF", 0.02)


# -- a receiver -----------------------------------------------------------------------------------------------------


class Got:
    """A request as it came in."""

    def __init__(self, target: str, headers: dict[str, str], body: bytes) -> None:
        self.target, self.headers, self.body = target, headers, body

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        return str(self.json["data"]["request_id"])

    @property
    def genuine(self) -> bool:
        """Whether it is signed as the specification says, by its words alone."""
        signed = b".".join([self.id.encode(), self.headers["webhook-timestamp"].encode(), self.body])
        expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        fresh = abs(time.time() - int(self.headers["webhook-timestamp"])) < 300
        return fresh and f"v1,{expected}" in self.headers["webhook-signature"].split(" ")


Answer = Callable[[Got], Awaitable[bytes]]


def status(number: int, *headers: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {number} Said", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Receiver:
    """An HTTP server that keeps what it gets and answers as it is told; an empty answer closes the connection."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: list[bytes | Answer] = []  # for the next requests; then it is 204
        self.busy = self.most = 0
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
                body = await reader.readexactly(int(headers["content-length"]))
                method, target, _ = first.split(" ")
                assert "POST" == method
                got = Got(target, headers, body)
                self.got.append(got)
                answer = self.answers.pop(0) if self.answers else status(204)
                self.busy += 1
                self.most = max(self.most, self.busy)
                try:
                    reply = answer if isinstance(answer, bytes) else await answer(got)
                finally:
                    self.busy -= 1
                if not reply:
                    return
                writer.write(reply)
                await writer.drain()

    async def __aenter__(self) -> Receiver:
        self._tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

        self._server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook?key=in-the-query"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def until(self, count: int) -> None:
        await until(lambda: len(self.got) >= count, what=f"request {count}")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


# -- what is told of ------------------------------------------------------------------------------------------------


class Desk:
    """One process's store and index; makes requests in Redis as the scripts leave them, without an agent that waits."""

    def __init__(self, url: str) -> None:
        self.settings = make_settings(url)
        self.backend = Backend(url)
        self.store = Store(self.backend, self.settings)
        self.registry = Registry(self.store)

    async def make(self, session: str, request: str, **record: Any) -> None:
        """Put a request into a session and into the index."""
        now = int(time.time() * 1000)
        r = {
            "n": 1, "st": "pending", "tool": '"file_edit"', "call": '"c1"', "cid": "c1", "reason": "null", "by": "null",
            "key": "", "digest": "", "to": "", "deadline": now + HOUR, "lease": now + HOUR, "shown": 0, **record,
        }  # fmt: skip
        data = {
            "tool_name": "file_edit", "parameters": MASKED, "risk_level": "high", "status": "pending",
            "request_id": request, "tool_call_id": "c1", "timestamp": "2026-01-02T03:04:05.000Z",
        }  # fmt: skip
        event = json.dumps({"type": "permission_request", "data": data})
        key = self.store.keyspace.session(session).requests
        await self.backend.command("HSET", key, request, json.dumps(r), f"e:{request}", event)
        await self.registry.note_request(session, request, now - HOUR)

    async def settle(self, session: str, request: str) -> None:
        """Let a request be answered, with nobody there to tell the index."""
        key = self.store.keyspace.session(session).requests
        record = json.loads(await self.backend.command("HGET", key, request))
        await self.backend.command("HSET", key, request, json.dumps({**record, "st": "approved"}))
        await self.backend.command("HDEL", key, f"e:{request}")

    async def index(self) -> dict[str, float]:
        flat = await self.backend.command("ZRANGE", INDEX, 0, -1, "WITHSCORES")
        return {member.decode(): float(score) for member, score in zip(flat[::2], flat[1::2], strict=True)}

    async def at_rest(self) -> None:
        """Wait until nothing is due before the requests' deadlines: no attempt can follow."""

        async def resting() -> bool:
            later = time.time() * 1000 + HOUR / 2
            return all(score > later for score in (await self.index()).values())

        await until(resting, what="rest")

    def webhook(self, url: str, **settings: Any) -> Webhook:
        made = make_settings(
            self.settings.redis_url,
            **{"webhook_url": url, "webhook_secret": KEY.decode(), "webhook_after": AFTER, **settings},
        )
        endpoint = Endpoint.of(made)
        assert endpoint is not None
        return Webhook(self.store, endpoint)

    @asynccontextmanager
    async def telling(self, url: str, **settings: Any) -> AsyncIterator[Webhook]:
        webhook = self.webhook(url, **settings)
        webhook.start()
        try:
            yield webhook
            assert webhook.alive
        finally:
            await webhook.aclose()

    async def __aenter__(self) -> Desk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.aclose()


@pytest.fixture
async def desk(valkey: Valkey) -> AsyncIterator[Desk]:
    async with Desk(valkey.url) as made:
        yield made


async def pending_id(client: redis.Redis, session: str) -> str:
    """Wait for a session's request, and return its id."""

    async def found() -> str | None:
        names = [name.decode() for name in await client.hkeys(f"agent_sse:{{{session}}}:requests")]
        return next((name for name in names if name.startswith("pr_")), None)

    return str(await until(found, what="the request"))


# -- once, and rightly ----------------------------------------------------------------------------------------------


async def test_webhook_tells_of_a_request_that_nobody_answers(
    desk: Desk, valkey: Valkey, receiver: Receiver, notifier: SimpleNotifier
) -> None:
    """An agent asks, nobody looks: one signed POST with the event's data, and none more when it is answered."""
    asking = asyncio.create_task(notifier.request_permission("s1", "file_edit", MASKED, "high", timeout=7200))
    async with valkey.client() as client:
        request = await pending_id(client, "s1")
        await until(lambda: client.xlen("agent_sse:{s1}:events"), what="the presentation")
        await desk.registry.note_request("s1", request, int(time.time() * 1000))
        async with desk.telling(receiver.url):
            await receiver.until(1)
            (got,) = receiver.got
            assert got.genuine
            assert ("/hook?key=in-the-query", "application/json") == (got.target, got.headers["content-type"])
            assert got.headers["user-agent"].startswith("agent-sse/")
            ((_, event),) = [row for row in await valkey.entries("s1") if row[1]["type"] == "permission_request"]
            body = got.json
            assert (EVENT_TYPE, got.id) == (body["type"], body["id"])
            assert body["data"].pop("unanswered_seconds") >= 0
            assert {**event["data"], "session_id": "s1", "presented": True} == body["data"]
            assert event["data"]["timestamp"] == body["created"]
            await desk.at_rest()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await desk.registry.settled("s1", request)
        assert {} == await desk.index()
    assert 1 == len(receiver.got)


async def test_webhook_leaves_a_young_request_alone(desk: Desk, receiver: Receiver) -> None:
    """What is not due is not taken, and how long it is until then is known."""
    queue = Unanswered(desk.store, after_ms=2 * HOUR, lease_ms=1000)
    assert (None, []) == await queue.claim(5)
    await desk.make("s1", "pr_1")  # asked an hour ago
    rest, claims = await queue.claim(5)
    assert [] == claims
    assert rest is not None
    assert 3000 < rest <= 3600


@pytest.mark.parametrize(
    "record",
    [
        {"st": "approved"}, {"st": "expired"}, {"deadline": 1000}, {"lease": 1000}, {"st": "cancelled", "key": "k"},
        {"deadline": 1000, "key": "k"}, {"deadline": "soon"}, {"key": None, "lease": None}, {"st": 5},
    ],
)  # fmt: skip
async def test_webhook_drops_what_waits_no_longer(desk: Desk, receiver: Receiver, record: dict[str, Any]) -> None:
    """Answered, expired, an agent that is gone, a record that is none: nobody is told, and the index forgets it."""
    await desk.make("s1", "pr_1", **record)
    async with desk.telling(receiver.url):
        await until(lambda: _empty(desk), what="the index")
    assert [] == receiver.got


async def _empty(desk: Desk) -> bool:
    return not await desk.index() and not await desk.backend.command("EXISTS", desk.store.keyspace.webhook_attempts())


@pytest.mark.parametrize("member", ["s1 pr_unknown", "gone pr_1", "no-request", "s1 a b", "../x pr_1", "\x1b[31m x"])
async def test_webhook_drops_what_is_unknown(desk: Desk, receiver: Receiver, member: str) -> None:
    """A session or request that is not there, and a member that is none: dropped, the next one is told."""
    await desk.backend.command("ZADD", INDEX, 5, member)
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await receiver.until(1)
        await desk.at_rest()
        assert ["s1 pr_1"] == list(await desk.index())
    assert ["pr_1"] == [got.request_id for got in receiver.got]


async def test_webhook_tells_of_a_keyed_request_whose_agent_is_gone(desk: Desk, receiver: Receiver) -> None:
    """With an idempotency key an agent comes back for its answer: so it is worth asking for."""
    await desk.make("s1", "pr_1", key="k", lease=1000)
    async with desk.telling(receiver.url):
        await receiver.until(1)
    assert "pr_1" == receiver.got[0].request_id


async def test_webhook_is_not_called_again_for_a_request_that_is_noted_again(desk: Desk, receiver: Receiver) -> None:
    """A restarted agent asks with the same key, so its request is noted once more: nobody is told twice."""
    await desk.make("s1", "pr_1", key="k")
    async with desk.telling(receiver.url):
        await receiver.until(1)
        await desk.at_rest()
        before = await desk.index()
        await desk.registry.note_request("s1", "pr_1", 1000)
        assert before == await desk.index()


# -- failures -------------------------------------------------------------------------------------------------------


async def _silence(got: Got) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    "answer",
    [
        status(500), status(503, "Retry-After: 0"), status(429), status(408), status(425), status(304),
        status(301, "Location: /other"), status(307, "Location: /other"), b"", b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, _silence,
    ],
)  # fmt: skip
async def test_webhook_tries_again_with_the_same_id(desk: Desk, receiver: Receiver, answer: bytes | Answer) -> None:
    """Errors, redirections (which are not followed), silence, garbage: the same id again, signed anew, to the URL."""
    receiver.answers = [answer, answer]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url, webhook_timeout=0.3):
        await receiver.until(3)
        await desk.at_rest()
    assert 3 == len(receiver.got)
    assert [True] * 3 == [got.genuine for got in receiver.got]
    assert {"/hook?key=in-the-query"} == {got.target for got in receiver.got}
    assert 1 == len({got.id for got in receiver.got})


@pytest.mark.parametrize("number", [400, 401, 404, 410, 413, 422, 499])
async def test_webhook_gives_up_when_the_receiver_refuses(
    desk: Desk, receiver: Receiver, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is final: one attempt, a warning with the ids, and no more for this request."""
    receiver.answers = [status(number)]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await receiver.until(1)
        await desk.at_rest()
    assert 1 == len(receiver.got)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "session s1: request pr_1: the webhook is given up after attempt 1: HTTP status" in warning


async def test_webhook_gives_up_after_its_attempts(
    desk: Desk, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """As many attempts as the settings say; then a warning, and the request's answer is not waited for any more."""
    receiver.answers = [status(500)] * 10
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url, webhook_attempts=4):
        await receiver.until(4)
        await desk.at_rest()
    assert 4 == len(receiver.got)
    assert any("given up after attempt 4" in record.getMessage() for record in caplog.records)


async def test_webhook_with_nobody_there_is_called_when_there_is(desk: Desk, receiver: Receiver) -> None:
    """Refused connections count as attempts like any other."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    await desk.make("s1", "pr_1")
    attempts = desk.store.keyspace.webhook_attempts()

    async def tried() -> bool:
        return int(await desk.backend.command("HGET", attempts, "s1 pr_1") or 0) >= 3

    async with desk.telling(dead, webhook_attempts=1000):
        await until(tried, what="three attempts")
    async with desk.telling(receiver.url, webhook_attempts=1000):
        await receiver.until(1)
        await desk.at_rest()
    assert 1 == len(receiver.got)


async def test_webhook_asks_before_each_attempt_whether_it_is_needed(desk: Desk, receiver: Receiver) -> None:
    """The request is answered while an attempt fails: there is no other one."""

    async def answered_meanwhile(got: Got) -> bytes:
        await desk.settle("s1", "pr_1")
        return status(503)

    receiver.answers = [answered_meanwhile]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await until(lambda: _empty(desk), what="the index")
    assert 1 == len(receiver.got)


async def test_webhook_that_fails_does_not_bring_back_a_settled_request(desk: Desk, receiver: Receiver) -> None:
    """The agent says `settled` while an attempt fails: the failure does not put the request into the index again."""

    async def settled_meanwhile(got: Got) -> bytes:
        await desk.registry.settled("s1", "pr_1")
        return status(503)

    receiver.answers = [settled_meanwhile]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await receiver.until(1)
        await until(lambda: not receiver.busy, what="the answer")
    assert {} == await desk.index()


async def test_webhook_reads_little_of_an_endless_answer(desk: Desk, receiver: Receiver) -> None:
    """The status is what counts: a receiver that never stops answering keeps nothing busy and fills no memory."""

    async def endless(got: Got) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1_000_000

    receiver.answers = [endless]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url, webhook_timeout=600):
        await receiver.until(1)
        await desk.at_rest()
    assert 1 == len(receiver.got)


async def test_webhook_keeps_no_cookies(desk: Desk, receiver: Receiver) -> None:
    """What a receiver sets is not sent back to it."""
    receiver.answers = [status(500, "Set-Cookie: a=b")]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await receiver.until(2)
        await desk.at_rest()
    assert "cookie" not in receiver.got[1].headers


async def test_webhook_logs_no_payload_secret_or_url(
    desk: Desk, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """At every level of every logger: ids and statuses, but nothing of the parameters, the secret, path or query."""
    caplog.set_level(logging.DEBUG)
    receiver.answers = [status(500), b"garbage\r\n\r\n", status(400)]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await receiver.until(3)
        await desk.at_rest()
    text = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records)
    for word in ("in-the-query", "/hook", KEY.decode(), "a.py", "file_edit", "v1,"):
        assert word not in text
    assert "pr_1" in text
    assert "HTTP Request: POST http://127.0.0.1:" in text  # httpx does log, and that was looked at


# -- several processes ----------------------------------------------------------------------------------------------


async def test_webhook_of_two_processes_is_called_once_for_each_request(
    desk: Desk, valkey: Valkey, receiver: Receiver
) -> None:
    """Two workers, 100 requests in 10 sessions, no failure: 100 calls."""
    async with Desk(valkey.url) as other, desk.telling(receiver.url), other.telling(receiver.url):
        names = [f"pr_{n}" for n in range(100)]
        await asyncio.gather(*(desk.make(f"s{n % 10}", name) for n, name in enumerate(names)))
        await receiver.until(100)
        await desk.at_rest()
    assert sorted(names) == sorted(got.request_id for got in receiver.got)


async def test_webhook_takes_a_flood_ten_at_a_time(desk: Desk, receiver: Receiver) -> None:
    """1,000 due requests: each told once, and never more than ten under way."""
    names = [f"pr_{n}" for n in range(1000)]
    for start in range(0, 1000, 100):
        await asyncio.gather(*(desk.make(f"s{n}", names[n]) for n in range(start, start + 100)))
    seen, crowded = [], asyncio.Event()
    async with desk.telling(receiver.url) as webhook:

        async def slow(got: Got) -> bytes:
            seen.append(len(webhook._deliveries))
            if receiver.busy == CONCURRENCY:
                crowded.set()
            await crowded.wait()
            return status(204)

        receiver.answers = [slow for _ in range(CONCURRENCY)]
        await receiver.until(1000)
        await desk.at_rest()
    assert sorted(names) == sorted(got.request_id for got in receiver.got)
    assert (CONCURRENCY, CONCURRENCY) == (receiver.most, max(seen))


WORKER = """
import asyncio, sys
from agent_sse import webhook
from agent_sse.backend import Backend
from agent_sse.endpoint import Endpoint
from agent_sse.settings import Settings
from agent_sse.store import Store

webhook.LEASE_SLACK, webhook.POLL_INTERVAL = 0.5, 0.02

async def main():
    settings = Settings(_env_file=None)
    endpoint = Endpoint.of(settings)
    telling = webhook.Webhook(Store(Backend(settings.redis_url), settings), endpoint)
    telling.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def worker(desk: Desk, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        **os.environ, "AGENT_SSE_REDIS_URL": desk.settings.redis_url, "AGENT_SSE_WEBHOOK_URL": url,
        "AGENT_SSE_WEBHOOK_SECRET": KEY.decode(), "AGENT_SSE_WEBHOOK_AFTER": str(AFTER),
        "AGENT_SSE_WEBHOOK_TIMEOUT": "0.5",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            assert b"ready\n" == await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_webhook_of_a_killed_process_is_called_by_another(desk: Desk, receiver: Receiver) -> None:
    """A worker is killed in the middle of a delivery: when its lease is over another one delivers, with the same id."""
    await desk.make("s1", "pr_1")
    async with worker(desk, receiver.url) as first:

        async def killed(got: Got) -> bytes:
            first.send_signal(signal.SIGKILL)
            await first.wait()
            return b""

        receiver.answers = [killed]
        await receiver.until(1)
        await first.wait()
    async with worker(desk, receiver.url):
        await receiver.until(2)
        await desk.at_rest()
    assert ["pr_1"] * 2 == [got.request_id for got in receiver.got]
    assert receiver.got[0].id == receiver.got[1].id


async def test_webhook_over_which_processes_die_is_given_up(desk: Desk, receiver: Receiver) -> None:
    """The attempts are counted before they are made: one that kills its process does not kill for ever."""
    await desk.make("s1", "pr_1")
    queue = Unanswered(desk.store, after_ms=1, lease_ms=1)

    async def taken(attempt: int) -> bool:
        _, claims = await queue.claim(1)
        return [attempt] == [claim.attempt for claim in claims]

    for attempt in (1, 2, 3):
        await until(lambda attempt=attempt: taken(attempt), what="the end of the lease")
    async with desk.telling(receiver.url, webhook_attempts=3):
        await desk.at_rest()
    assert [] == receiver.got


async def test_webhook_that_is_closed_ends_what_is_under_way(desk: Desk, receiver: Receiver) -> None:
    """Closing waits for the answer of a delivery and says in Redis that it was made."""
    await desk.make("s1", "pr_1")
    webhook = desk.webhook(receiver.url)
    closing: list[asyncio.Task[None]] = []

    async def close(got: Got) -> bytes:
        closing.append(asyncio.create_task(webhook.aclose()))
        await until(webhook._closing.is_set)
        return status(204)

    receiver.answers = [close]
    webhook.start()
    await receiver.until(1)
    await until(lambda: closing, what="the closing")
    await closing[0]
    assert not webhook.alive
    await desk.at_rest()
    assert 1 == len(receiver.got)


async def test_webhook_that_is_closed_with_a_silent_receiver_lets_go(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing does not wait for ever; the request is due again when the lease ends."""
    monkeypatch.setattr("agent_sse.webhook.CLOSE_GRACE", 0.01)
    receiver.answers = [_silence]
    await desk.make("s1", "pr_1")
    webhook = desk.webhook(receiver.url, webhook_timeout=600)
    webhook.start()
    await receiver.until(1)
    await webhook.aclose()
    assert not webhook._deliveries
    assert ["s1 pr_1"] == list(await desk.index())


# -- Redis ----------------------------------------------------------------------------------------------------------


async def test_webhook_goes_on_when_redis_restarts(desk: Desk, valkey: Valkey, receiver: Receiver) -> None:
    """Redis goes and comes back between requests: those before and after it are told, each once."""
    async with desk.telling(receiver.url):
        await desk.make("s1", "pr_1")
        await receiver.until(1)
        await desk.at_rest()
        await valkey.restart()
        await until(lambda: _reached(desk), what="Redis")
        await desk.make("s1", "pr_2")
        await receiver.until(2)
        await desk.at_rest()
    assert ["pr_1", "pr_2"] == [got.request_id for got in receiver.got]


async def _reached(desk: Desk) -> bool:
    with contextlib.suppress(RedisUnavailable):
        await desk.store.ping()
        return True
    return False


async def test_webhook_that_was_called_while_redis_restarted_is_not_called_again(
    desk: Desk, valkey: Valkey, receiver: Receiver
) -> None:
    """Redis is away when the receiver answers: what was delivered is noted when it is back, before the lease ends."""

    async def restarted_meanwhile(got: Got) -> bytes:
        await valkey.stop()
        return status(204)

    receiver.answers = [restarted_meanwhile]
    await desk.make("s1", "pr_1")
    async with desk.telling(receiver.url):
        await receiver.until(1)
        await until(lambda: not receiver.busy, what="the answer")
        await valkey.start()
        await until(lambda: _reached(desk), what="Redis")
        await desk.at_rest()
    assert 1 == len(receiver.got)


async def test_webhook_whose_session_cannot_be_read_is_called_later(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session's server is away (here: a key of another type): no attempt is spent on that, and then it is told."""
    monkeypatch.setattr("agent_sse.webhook.RECHECK_MS", 10)
    await desk.make("s1", "pr_1")
    key, aside = desk.store.keyspace.session("s1").requests, "agent_sse:{s1}:aside"
    await desk.backend.command("RENAME", key, aside)
    await desk.backend.command("SET", key, "x")
    reads = []
    read = Unanswered.read

    async def counted(queue: Unanswered, claim: Any) -> Any:
        reads.append(claim.attempt)
        return await read(queue, claim)

    monkeypatch.setattr(Unanswered, "read", counted)
    async with desk.telling(receiver.url, webhook_attempts=1):
        await until(lambda: len(reads) >= 3, what="three looks")
        await desk.backend.command("RENAME", aside, key)
        await receiver.until(1)
        await desk.at_rest()
    assert {1} == set(reads)
    assert 1 == len(receiver.got)


async def test_webhook_on_a_cluster_finds_sessions_of_every_slot(folder: Path, receiver: Receiver) -> None:
    """The index and its counts share a slot, and sessions have others: nothing crosses them."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] % 20_000 + 10_000
    server = Valkey(folder / "c", "--cluster-enabled", "yes", port=port)
    await server.start()
    try:
        async with server.client() as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def whole() -> bool:
                return b"cluster_state:ok" in await client.execute_command("CLUSTER", "INFO")

            await until(whole, what="the cluster")
        async with Desk(f"redis://127.0.0.1:{port}") as desk:
            now = int(time.time() * 1000)
            for n in range(20):
                await desk.make(f"s{n}", f"pr_{n}")
                await desk.registry.note_audit(f"s{n}", now + n)
            receiver.answers = [status(500)]
            async with desk.telling(receiver.url):
                await receiver.until(21)
                await desk.at_rest()
            assert desk.backend.clustered
            await desk.registry.settled("s3", "pr_3")
            assert 19 == len(await desk.index())
            assert {f"s{n}" for n in range(7, 20)} == set((await desk.registry.audited(now + 7))[1])
        assert {f"pr_{n}" for n in range(20)} == {got.request_id for got in receiver.got}
    finally:
        await server.stop()


# -- the example ----------------------------------------------------------------------------------------------------


async def test_example_receiver_prints_what_is_genuine(desk: Desk) -> None:
    """`examples/webhook_receiver.py` takes the signed request, and refuses one that is signed with another secret."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    example = Path(__file__).parents[2] / "examples" / "webhook_receiver.py"
    environment = {
        **os.environ, "WEBHOOK_SECRET": "whsec_" + base64.b64encode(KEY).decode(), "PORT": str(port),
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(example), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        url = f"http://127.0.0.1:{port}/"
        await desk.make("s1", "pr_1")
        async with desk.telling(url, webhook_attempts=10_000), asyncio.timeout(DEADLINE):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("somebody is needed: ")
        data = json.loads(line.partition(": ")[2])
        assert ("s1", "pr_1", MASKED) == (data["session_id"], data["request_id"], data["parameters"])
        await desk.make("s1", "pr_2")
        async with desk.telling(url, webhook_secret="x" * 32):
            await desk.at_rest()
        process.terminate()
        rest, log = await process.communicate()
        assert (b"", True) == (rest, b'" 401 ' in log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# -- the index ------------------------------------------------------------------------------------------------------


async def test_registry_without_redis_warns_and_goes_on(
    desk: Desk, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent's question does not fail because an index was not written."""
    await valkey.stop()
    await desk.registry.note_request("s1", "pr_1", 5)
    await desk.registry.settled("s1", "pr_1")
    await desk.registry.note_audit("s1", 5)
    assert 3 == len([record for record in caplog.records if "session s1: the index" in record.getMessage()])


async def test_registry_bounds_its_indexes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Past the limit the newest requests and the oldest audits are left out, the first with a warning; all expire."""
    monkeypatch.setattr("agent_sse.registry.UNANSWERED_LIMIT", 3)
    monkeypatch.setattr("agent_sse.registry.AUDITED_LIMIT", 3)
    for n in range(5):
        await desk.registry.note_request("s1", f"pr_{n}", n)
        await desk.registry.note_audit(f"s{n}", n)
    assert ["s1 pr_0", "s1 pr_1", "s1 pr_2"] == list(await desk.index())
    assert 2 == len([record for record in caplog.records if "will not tell of 1" in record.getMessage()])
    names = await desk.backend.command("ZRANGE", desk.store.keyspace.audited(), 0, -1)
    assert [b"s2", b"s3", b"s4"] == names
    for key in (INDEX, desk.store.keyspace.audited()):
        assert 0 < await desk.backend.command("TTL", key)


async def test_registry_keeps_the_latest_time_of_an_audit(desk: Desk) -> None:
    """A shorter expectation does not take back a longer one; what has expired is let go."""
    now = int(time.time() * 1000)
    await desk.registry.note_audit("s1", now + HOUR)
    await desk.registry.note_audit("s1", now)
    await desk.registry.note_audit("old", now - 31 * 24 * HOUR)
    heard, sessions = await desk.registry.audited(now + 1)
    assert ["s1"] == sessions
    assert abs(heard - now) < 60_000
    assert 1 == await desk.backend.command("ZCARD", desk.store.keyspace.audited())
