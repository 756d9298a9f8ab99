"""Long polling: the stream's cursor, order and no-loss rules, one answer at a time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

from agent_sse import SimpleNotifier
from agent_sse.auth import PERMISSIONS_RESPOND
from agent_sse.errors import RedisRefused
from agent_sse.frames import parse_id
from agent_sse.hub import Hub
from agent_sse.polling import PAGE_EVENTS
from agent_sse.routes import router_of
from agent_sse.service import Service
from harness import (
    DEADLINE,
    PREFIX,
    Served,
    ServiceProcess,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    publish_unheard,
    serve,
    until,
)

pytestmark = pytest.mark.usefixtures("sink")

PATIENCE = httpx.Timeout(DEADLINE + 60)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        yield client


def hub_of(served: Served) -> Hub:
    hub: Hub = served.app.state.agent_sse.hub
    return hub


async def ask(
    http: httpx.AsyncClient, api: str, session: str = "s1", *, token: str | None = None, **query: Any
) -> httpx.Response:
    """Poll once, whatever the answer; ``last_event_id=None`` sends none."""
    params = {name: value for name, value in query.items() if value is not None}
    return await http.get(f"{api}/poll/{session}", params=params, headers=bearer(token or make_token(session)))


async def poll(http: httpx.AsyncClient, served: Served, session: str = "s1", **query: Any) -> dict[str, Any]:
    """Return the ``data`` of one poll that succeeds."""
    reply = await ask(http, served.api, session, **query)
    assert (200, "no-store", True) == (reply.status_code, reply.headers["cache-control"], reply.json()["success"])
    data: dict[str, Any] = reply.json()["data"]
    assert {"events", "last_event_id", "reset"} == set(data)
    return data


@asynccontextmanager
async def waiting(http: httpx.AsyncClient, served: Served, **query: Any) -> AsyncIterator[asyncio.Task[dict[str, Any]]]:
    """A poll that is up to date and waits."""
    cursor = (await poll(http, served))["last_event_id"]
    await until(lambda: not hub_of(served).open_streams, what="the first poll's end")
    task = asyncio.create_task(poll(http, served, last_event_id=cursor, **{"wait": 50, **query}))
    await until(lambda: is_live(hub_of(served)), what="a poll that waits")
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def is_live(hub: Hub) -> bool:
    return any(connection.live for channel in hub._channels.values() for connection in channel.connections)


@asynccontextmanager
async def asked(notifier: SimpleNotifier, served: Served, session: str = "s1") -> AsyncIterator[None]:
    """An open permission request that is shown."""
    asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {"file": "a.py"}, "high"))
    async with Stream(served.events(session, make_token(session))) as stream:
        await stream.next("permission_request")
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def publish(notifier: SimpleNotifier, start: int, count: int) -> list[str]:
    """Publish events together; the ids are in the order of the calls."""
    return await asyncio.gather(
        *(
            notifier.tool_status("s1", "count", "executing", tool_call_id="c", parameters={"n": start + i})
            for i in range(count)
        )
    )


# -- what a poll says -------------------------------------------------------------------------------------------------


async def test_poll_without_a_cursor_is_the_streams_snapshot(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """The first poll answers at once with what a new stream shows, and with the cursor that primes it."""
    await notifier.tool_status("s1", "search", "executing", tool_call_id="c1", parameters={"n": 2**70, "x": 0.1})
    await notifier.tool_result("s1", "search", {"text": '</script>\u202e"\\'}, success=True, tool_call_id="c0")
    async with (
        serve(make_settings(valkey.url)) as served,
        asked(notifier, served),  # what is not there has the time of the reading
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        tip = await stream.primed()
        shown = [event.json for event in stream.records if event.data is not None and event.type != "heartbeat"]
        data = await poll(http, served)
    assert (tip, None) == (data["last_event_id"], data["reset"])
    assert [{"id": None, **event} for event in shown] == data["events"]


async def test_poll_with_a_cursor_is_the_streams_replay(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """What is after the cursor comes as on the stream, byte for byte; an error's fields are in `data`."""
    await notifier.tool_status("s1", "search", "executing", tool_call_id="c1", parameters={"n": 2**70, "x": 1e22})
    await notifier.error("s1", "the model is \u202e away", code="model_unavailable")
    await notifier.clear_result("s1")
    async with serve(make_settings(valkey.url)) as served:
        reply = await ask(http, served.api, last_event_id="0-0")
        async with Stream(served.events("s1", make_token("s1"), cursor="0-0")) as stream:
            tip = await stream.primed()
            streamed = [event for event in stream.records if event.data is not None and event.type != "heartbeat"]
    first, error, last = reply.json()["data"]["events"]
    assert [(event.id, event.type) for event in streamed] == [(e["id"], e["type"]) for e in (first, error, last)]
    assert (tip, last["id"]) == (last["id"], reply.json()["data"]["last_event_id"])
    assert {"message": "the model is \u202e away", "code": "model_unavailable"} == error["data"]
    assert streamed[0].data is not None
    assert streamed[0].data.partition('"data":')[2][:-1] in reply.text


async def test_poll_waits_for_the_next_event(valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient) -> None:
    """A poll that is up to date is answered by the next event, with its id as the cursor to go on from."""
    async with serve(make_settings(valkey.url)) as served:
        async with waiting(http, served) as task:
            event_id = await notifier.tool_status("s1", "search", "executing", tool_call_id="c1")
            data = await task
        assert ([event_id], event_id) == ([event["id"] for event in data["events"]], data["last_event_id"])
        nothing = {"events": [], "last_event_id": event_id, "reset": None}
        assert nothing == await poll(http, served, last_event_id=event_id, wait=0)
        assert nothing == await poll(http, served, last_event_id=event_id, wait=0.1)


async def test_poll_finds_an_event_whose_message_was_lost(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """An event that pub/sub did not carry reaches a poll that waits, by the comparison with the Stream."""
    async with serve(make_settings(valkey.url)) as served, waiting(http, served) as task:
        event = {"type": "tool_status", "data": {"tool_name": "t"}}
        event_id = await publish_unheard(served.app.state.agent_sse.store, "s1", event)
        assert [{"id": event_id, **event}] == (await task)["events"]


async def test_poll_repeats_an_open_request(valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient) -> None:
    """A request that stays open is shown again after a heartbeat's interval, as on the stream."""
    async with serve(make_settings(valkey.url)) as served, asked(notifier, served), waiting(http, served) as task:
        (event,) = (await task)["events"]
        assert (None, "permission_request", "file_edit") == (event["id"], event["type"], event["data"]["tool_name"])


@pytest.mark.parametrize("cursor", ["x", "1", "1-2-3", "01-1", "-", "99999999999999999999-0"])
async def test_poll_with_a_malformed_cursor_is_reset(valkey: Valkey, http: httpx.AsyncClient, cursor: str) -> None:
    """A cursor that is none: `stream_reset` first, then the snapshot, and a cursor that works."""
    async with serve(make_settings(valkey.url)) as served:
        data = await poll(http, served, last_event_id=cursor)
        assert ("invalid_cursor", "stream_reset") == (data["reset"], data["events"][0]["type"])
        assert [None] * 3 == [event["id"] for event in data["events"]]
        assert ["result_cleared", "permission_cleared"] == [event["type"] for event in data["events"][1:]]
        assert data["last_event_id"] == data["events"][0]["data"]["last_event_id"]
        again = await poll(http, served, last_event_id=data["last_event_id"], wait=0)
        assert ([], None) == (again["events"], again["reset"])


async def test_poll_with_a_cursor_of_trimmed_history_is_reset(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """A cursor from which events are missing gets no silent gap, but the reason and the present state."""
    async with SimpleNotifier.from_url(valkey.url, retention_events=5) as short:
        published = await publish(short, 0, 20)
        async with serve(make_settings(valkey.url, retention_events=5)) as served:
            data = await poll(http, served, last_event_id=published[0])
            assert ("history_expired", "stream_reset") == (data["reset"], data["events"][0]["type"])
            assert published[-1] == data["last_event_id"]
            kept = await poll(http, served, last_event_id=published[-3])
            assert published[-2:] == [event["id"] for event in kept["events"]]


async def test_header_wins_over_query(valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient) -> None:
    """Last-Event-ID is the cursor when both are there; two of a kind are none."""
    first, second = await publish(notifier, 0, 2)
    async with serve(make_settings(valkey.url)) as served:
        url = f"{served.api}/poll/s1?last_event_id=0-0"
        reply = await http.get(url, headers={**bearer(make_token("s1")), "Last-Event-ID": first})
        assert [second] == [event["id"] for event in reply.json()["data"]["events"]]
        reply = await http.get(f"{url}&last_event_id={first}", headers=bearer(make_token("s1")))
        assert "invalid_cursor" == reply.json()["data"]["reset"]


async def test_poll_is_bounded_and_the_next_goes_on(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """A long history comes in pages; each says where the next begins, and none is missing or doubled."""
    published = await publish(notifier, 0, 900)
    got: list[str] = []
    cursor = "0-0"
    async with serve(make_settings(valkey.url)) as served:
        while events := (data := await poll(http, served, last_event_id=cursor, wait=0))["events"]:
            assert len(events) <= PAGE_EVENTS
            got += [event["id"] for event in events]
            cursor = data["last_event_id"]
    assert published == got


# -- who may, and what is wrong ---------------------------------------------------------------------------------------


async def test_poll_refuses_what_is_wrong(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """Each wrong request has its status, its code, and a message that names the field."""
    async with serve(make_settings(valkey.url)) as served:
        token = make_token("s1")
        url = f"{served.api}/poll/s1"
        for wait in ("-1", "55.1", "56", "x", "", "1e1", "nan", "inf", " 1"):
            reply = await ask(http, served.api, wait=wait)
            assert (422, "invalid_field") == (reply.status_code, reply.json()["error"]["code"]), wait
            assert reply.json()["message"].startswith("wait: a number of seconds from 0 to 55")
        cases: list[tuple[str, dict[str, str], int, str]] = [
            (f"{url}?wait=1&wait=2", bearer(token), 422, "invalid_field"),
            (f"{served.api}/poll/-", bearer(token), 422, "invalid_session_id"),
            (url, {}, 401, "token_missing"), (f"{url}?token={token}", {}, 401, "token_in_url"),
            (f"{url}?token={token}", bearer(token), 401, "token_in_url"),
            (url, bearer("x.y.z"), 401, "token_invalid"),
            (url, bearer(make_token("s2")), 403, "session_forbidden"),
            (url, bearer(make_token("s1", scope=PERMISSIONS_RESPOND)), 403, "scope_missing"),
        ]  # fmt: skip
        for target, headers, status, code in cases:
            reply = await http.get(target, headers=headers)
            assert (status, code) == (reply.status_code, reply.json()["error"]["code"]), target
        for method in ("POST", "PUT", "DELETE"):
            assert 405 == (await http.request(method, url, headers=bearer(token))).status_code
        assert 0 == hub_of(served).open_streams


async def test_poll_takes_no_ticket(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """A ticket is for the stream: in a poll's header it is no token, in its URL nothing is."""
    async with serve(make_settings(valkey.url)) as served:
        reply = await http.post(f"{served.api}/ticket/s1", headers=bearer(make_token("s1")))
        ticket = reply.json()["data"]["token"]
        assert 401 == (await ask(http, served.api, token=ticket)).status_code
        assert 401 == (await http.get(f"{served.api}/poll/s1", params={"token": ticket})).status_code


# -- places and ends --------------------------------------------------------------------------------------------------


async def test_poll_takes_a_streams_place(valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient) -> None:
    """A waiting poll counts among the session's streams: no more than the limit, and none when it is answered."""
    async with serve(make_settings(valkey.url, max_streams_per_session=1)) as served:
        async with waiting(http, served) as task:
            refused = await ask(http, served.api, wait=0)
            assert (429, "too_many_streams_of_session") == (refused.status_code, refused.json()["error"]["code"])
            assert int(refused.headers["retry-after"]) >= 5
            await notifier.clear_result("s1")
            await task
        assert [] != (await poll(http, served, wait=0))["events"]
        await until(lambda: not hub_of(served).open_streams, what="no place that is taken")


async def test_client_that_leaves_gives_its_place_back(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """The place of a poll whose client is gone is free at once, not at the end of its wait."""
    async with serve(make_settings(valkey.url, max_streams=1)) as served, waiting(http, served) as task:
        task.cancel()
        await until(lambda: not hub_of(served).open_streams, what="the place's return")
        assert [] != (await poll(http, served, wait=0))["events"]


async def test_session_that_is_closed_ends_its_polls(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """A poll that waits hears at once that its session is closed."""
    await notifier.open_session("s1", owner="alice")
    async with serve(make_settings(valkey.url)) as served, waiting(http, served) as task:
        await notifier.close_session("s1")
        (event,) = (await task)["events"]
        assert (None, "error", "session_closed") == (event["id"], event["type"], event["data"]["code"])


async def test_poll_ends_with_its_token(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """A poll waits no longer than its token is good; the next one with it is 401."""
    async with serve(make_settings(valkey.url, jwt_leeway=0)) as served:
        cursor = (await poll(http, served))["last_event_id"]
        token = make_token("s1", ttl=2)
        reply = await ask(http, served.api, token=token, last_event_id=cursor, wait=50)
        assert {"events": [], "last_event_id": cursor, "reset": None} == reply.json()["data"]
        await until(lambda: _is_over(http, served, token), what="a token that has expired")


async def _is_over(http: httpx.AsyncClient, served: Served, token: str) -> bool:
    reply = await ask(http, served.api, token=token, wait=0)
    return reply.status_code == 401 and reply.json()["error"]["code"] == "token_expired"


async def test_service_that_stops_answers_its_polls(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """SIGTERM ends a poll that waits at once, with an empty answer and the cursor to go on from elsewhere."""
    async with ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}) as process:
        cursor = (await poll(http, process.served))["last_event_id"]
        task = asyncio.create_task(poll(http, process.served, last_event_id=cursor, wait=50))
        await until(lambda: _streams(http, process.url), what="a poll that waits")
        assert await process.stop() in (0, -signal.SIGTERM)  # the second is plain uvicorn's
        assert {"events": [], "last_event_id": cursor, "reset": None} == await task


async def _streams(http: httpx.AsyncClient, url: str) -> int:
    return int((await http.get(f"{url}/readyz")).json()["data"]["streams"])


async def test_service_that_is_about_to_end_takes_no_polls(valkey: Valkey, http: httpx.AsyncClient) -> None:
    """A poll that comes then is told to come again, elsewhere or later."""
    async with serve(make_settings(valkey.url)) as served:
        hub_of(served).shutdown()
        reply = await ask(http, served.api)
        assert (503, "shutting_down") == (reply.status_code, reply.json()["error"]["code"])
        assert "retry-after" in reply.headers


# -- Redis that is away -----------------------------------------------------------------------------------------------


async def test_poll_without_redis_is_503(
    valkey: Valkey, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Redis does not answer in time, a poll says so: an empty answer would say that nothing happened."""
    monkeypatch.setattr("agent_sse.polling.READ_SECONDS", 0.2)
    async with serve(make_settings(valkey.url)) as served:
        await valkey.stop()
        for cursor in (None, "0-0", "x"):
            reply = await ask(http, served.api, last_event_id=cursor, wait=0)
            assert (503, "redis_unavailable") == (reply.status_code, reply.json()["error"]["code"])
            assert int(reply.headers["retry-after"]) >= 2
        unlisted = await ask(http, served.api, token=make_token(), wait=0)
        assert (503, "redis_unavailable") == (unlisted.status_code, unlisted.json()["error"]["code"])
        assert 0 == hub_of(served).open_streams


async def test_poll_waits_for_redis_to_come_back(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """A poll that comes while Redis is away is answered once it is back, from its own cursor."""
    first, second = await publish(notifier, 0, 2)
    async with serve(make_settings(valkey.url)) as served:
        await valkey.stop()
        task = asyncio.create_task(poll(http, served, last_event_id=first, wait=50))
        await until(lambda: hub_of(served).open_streams, what="a poll that waits")
        await valkey.start()
        assert [second] == [event["id"] for event in (await task)["events"]]


async def test_poll_over_a_restart_of_redis_hears_the_next_event(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """A poll that waits through a restart of Redis misses nothing of what comes after it."""
    async with serve(make_settings(valkey.url)) as served, waiting(http, served) as task:
        await valkey.restart()
        event_id = await notifier.clear_result("s1")
        assert [event_id] == [event["id"] for event in (await task)["events"]]


@pytest.mark.parametrize("error", [RedisRefused("no"), ZeroDivisionError("a defect")])
async def test_poll_that_cannot_be_served_is_no_empty_answer(
    valkey: Valkey, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What ends a stream for good is a 503 with a pause here: a client would ask again at once."""

    async def fail(*_: object, **__: object) -> None:
        raise error

    async with serve(make_settings(valkey.url)) as served:
        monkeypatch.setattr(served.app.state.agent_sse.store, "replay", fail)
        reply = await ask(http, served.api, last_event_id="0-0")
        assert (503, "unavailable") == (reply.status_code, reply.json()["error"]["code"])
        assert int(reply.headers["retry-after"]) >= 10


# -- no loss ----------------------------------------------------------------------------------------------------------


class Poller:
    """A client that polls for ever, with the cursor that it was given, and keeps the events that have an id.

    ``listening`` is set while the service is there. Every ``stream_every``-th turn is a stream instead, left after its
    first event.
    """

    def __init__(
        self, http: httpx.AsyncClient, api: Callable[[], str], listening: asyncio.Event, *, stream_every: int = 0
    ) -> None:
        self.ids: list[str] = []
        self.resets: list[str] = []
        self.turns = 0
        self.cursor: str | None = None
        self._http, self._api, self._listening = http, api, listening
        self._stream_every = stream_every
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        while True:
            await self._listening.wait()
            self.turns += 1
            try:
                if self._stream_every and self.turns % self._stream_every == 0:
                    await self._stream()
                else:
                    await self._poll()
            except (httpx.TransportError, OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.02)  # nobody is there, or somebody who is leaving

    async def _poll(self) -> None:
        reply = await ask(self._http, self._api(), last_event_id=self.cursor, wait=5)
        if reply.status_code == 503:
            await asyncio.sleep(0.05)
            return
        data = reply.json()["data"]
        self.cursor = data["last_event_id"]
        self.ids += [event["id"] for event in data["events"] if event["id"] is not None]
        if data["reset"] is not None:
            self.resets.append(data["reset"])

    async def _stream(self) -> None:
        headers = {**bearer(make_token("s1")), **({"Last-Event-ID": self.cursor} if self.cursor else {})}
        async with Stream(f"{self._api()}/events/s1", headers) as stream:
            with contextlib.suppress(AssertionError):  # it ended before
                await stream.next("tool_status")
        # Whatever came before it was left counts: what a browser has shown is not shown again.
        self.ids += [event.id for event in stream.records if event.id is not None and event.data is not None]
        self.cursor = stream.last_id or self.cursor

    async def until_id(self, event_id: str) -> None:
        await until(lambda: event_id in self.ids or self._ended(), deadline=60, what=f"event {event_id}")

    def _ended(self) -> bool:
        assert self._task is not None
        if self._task.done():
            self._task.result()
        return False

    async def __aenter__(self) -> Poller:
        self._task = asyncio.create_task(self._run())
        await until(lambda: self.cursor is not None or self._ended(), what="the first answer")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.mark.parametrize("stream_every", [0, 2])
async def test_polls_have_every_event_once_whatever_restarts(
    valkey: Valkey, http: httpx.AsyncClient, stream_every: int
) -> None:
    """Polls, alone or in turn with streams on one cursor, over restarts of Valkey and of the service while events are
    published: each event once and in order, without a reset."""
    async with (
        SimpleNotifier.from_url(valkey.url, publish_timeout=20) as notifier,
        ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}) as process,
        Poller(http, lambda: process.served.api, process.listening, stream_every=stream_every) as poller,
    ):
        published = await publish(notifier, 0, 100)
        for turn in range(4):
            burst = asyncio.create_task(publish(notifier, len(published), 100))
            if turn % 2:
                await process.stop(signal.SIGTERM)
                published += await burst
                await process.start()
            else:
                await valkey.restart()
                published += await burst
        await poller.until_id(published[-1])
    assert published == poller.ids
    assert [] == poller.resets
    assert published == sorted(published, key=lambda text: parse_id(text.encode()) or (0, 0))


async def test_polls_of_a_crowd_have_every_event_once(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """Many polling clients of one session share its readings, and each has everything in order."""
    listening = asyncio.Event()
    listening.set()
    async with serve(make_settings(valkey.url)) as served, contextlib.AsyncExitStack() as stack:
        pollers = [await stack.enter_async_context(Poller(http, lambda: served.api, listening)) for _ in range(20)]
        published: list[str] = []
        for _ in range(10):
            published += await publish(notifier, len(published), 20)
        for poller in pollers:
            await poller.until_id(published[-1])
            assert (published, []) == (poller.ids, poller.resets)


# -- elsewhere --------------------------------------------------------------------------------------------------------


async def test_poll_works_in_a_host_application(
    valkey: Valkey, notifier: SimpleNotifier, http: httpx.AsyncClient
) -> None:
    """Behind a host's prefix, dependencies and middleware a poll waits, is answered, and gives its place back."""

    def need_key(x_key: str = Header("")) -> None:
        if x_key != "k":
            raise HTTPException(403, "the host wants its key")

    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    service = Service(make_settings(valkey.url))
    host = FastAPI(dependencies=[Depends(need_key)])
    host.add_middleware(GZipMiddleware)
    host.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    host.include_router(router_of(service), prefix="/host")
    async with serve(app=host) as served:
        url = f"{served.url}/host{PREFIX}/poll/s1"
        assert 403 == (await http.get(url, headers=bearer(make_token("s1")))).status_code
        headers = {**bearer(make_token("s1")), "X-Key": "k"}
        cursor = (await http.get(url, headers=headers)).json()["data"]["last_event_id"]
        params: dict[str, Any] = {"last_event_id": cursor, "wait": 50}
        task = asyncio.create_task(http.get(url, headers=headers, params=params))
        await until(lambda: is_live(service.hub), what="a poll that waits")
        event_id = await notifier.clear_result("s1")
        assert [event_id] == [event["id"] for event in (await task).json()["data"]["events"]]
        gone = asyncio.create_task(http.get(url, headers=headers, params={**params, "last_event_id": event_id}))
        await until(lambda: is_live(service.hub), what="a poll that waits")
        gone.cancel()
        await until(lambda: not service.hub.open_streams, what="the place's return")
