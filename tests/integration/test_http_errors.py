"""protocol.md § 3 over HTTP: the shape of each status, Retry-After, a Redis that is away, CORS, the API description."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from agent_sse import SimpleNotifier
from agent_sse.app import create_app
from agent_sse.auth import EVENTS_PUBLISH as PUBLISH
from agent_sse.auth import EVENTS_READ as READ
from agent_sse.auth import PERMISSIONS_RESPOND as RESPOND
from harness import (
    DEADLINE,
    PREFIX,
    Served,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    serve,
    session_name,
    until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("sink")]

ALLOWED, OTHER = "https://app.example.com", "https://evil.example.com"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Valkey]:
    """One Valkey for the module, where no test takes it away."""
    with tempfile.TemporaryDirectory(prefix="as") as folder:
        valkey = Valkey(Path(folder) / "v")
        await valkey.start()
        yield valkey
        await valkey.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(server: Valkey, sink: str) -> AsyncIterator[Served]:
    settings = make_settings(
        server.url, cors_origins=f"{ALLOWED},http://localhost:3000", max_streams_per_session=2, max_body_bytes=1000
    )
    async with serve(settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=DEADLINE) as client:
        yield client


def assert_error(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (status, "application/json") == (reply.status_code, reply.headers["content-type"])
    body = reply.json()
    assert (False, {"code": code}) == (body["success"], body["error"])
    assert body["message"].strip()
    assert "no-store" == reply.headers["cache-control"]
    return dict(body)


async def answer(http: httpx.AsyncClient, session: str, body: Any, **headers: str) -> httpx.Response:
    return await http.post(
        f"{PREFIX}/permission-response/{session}", json=body, headers={**bearer(make_token(session)), **headers}
    )


# -- shapes -----------------------------------------------------------------------------------------------------------


async def test_success_has_success_true(http: httpx.AsyncClient) -> None:
    """Every answer that is no stream and no error is JSON with `success: true` and `data`."""
    token = make_token("s1")
    for method, path in (
        ("GET", f"{PREFIX}/health/s1"), ("POST", f"{PREFIX}/ticket/s1"), ("GET", f"{PREFIX}/sessions"),
        ("GET", "/healthz"), ("GET", "/readyz"),
    ):  # fmt: skip
        reply = await http.request(method, path, headers=bearer(token))
        assert (200, "application/json") == (reply.status_code, reply.headers["content-type"]), path
        assert reply.json()["success"] is True
        assert isinstance(reply.json()["data"], dict)
        assert "no-store" == reply.headers["cache-control"]


async def test_every_status_has_the_same_shape(http: httpx.AsyncClient, server: Valkey) -> None:
    """400, 401, 403, 404, 405, 409, 410, 413 and 422 differ in status and code, not in shape."""
    session = session_name()
    assert_error(await answer(http, session, [1]), 400, "invalid_json")
    assert_error(await http.get(f"{PREFIX}/health/{session}"), 401, "token_missing")
    assert_error(
        await http.get(f"{PREFIX}/health/{session}", headers=bearer(make_token("other"))), 403, "session_forbidden"
    )
    assert_error(await http.get("/nowhere"), 404, "not_found")
    assert_error(await answer(http, session, {"approved": True}), 404, "nothing_pending")
    assert_error(await answer(http, session, {"approved": True, "request_id": "pr_x"}), 404, "unknown_request")
    assert_error(await http.get(f"{PREFIX}/ticket/{session}"), 405, "method_not_allowed")
    assert_error(await answer(http, session, {"approved": True, "reason": "x" * 1000}), 413, "body_too_large")
    assert_error(await answer(http, session, {"approved": 1}), 422, "invalid_field")
    assert_error(await http.get(f"{PREFIX}/health/-"), 422, "invalid_session_id")

    url = f"{str(http.base_url).rstrip('/')}{PREFIX}/events/{session}"
    async with SimpleNotifier.from_url(server.url) as notifier, Stream(url, bearer(make_token(session))) as stream:
        asking = asyncio.create_task(notifier.request_permission(session, "t", {}))
        request = (await stream.next("permission_request")).json["data"]
        decided = await answer(http, session, {"approved": True, "request_id": request["request_id"]})
        assert decided.json()["success"] is True
        assert await asking
        late = await answer(http, session, {"approved": False, "request_id": request["request_id"]})
        body = assert_error(late, 409, "already_resolved")
        assert (True, "alice", "approved") == tuple(body["data"][k] for k in ("approved", "resolved_by", "status"))

        asking = asyncio.create_task(notifier.request_permission(session, "t", {}))
        first = request["request_id"]
        while request["request_id"] == first:  # a heartbeat may have repeated it
            request = (await stream.next("permission_request")).json["data"]
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        gone = await answer(http, session, {"approved": True, "request_id": request["request_id"]})
        assert_error(gone, 410, "cancelled")


async def test_messages_say_more_than_the_status(http: httpx.AsyncClient) -> None:
    """Unknown paths and wrong methods say what to do, not only the phrase of their status."""
    for reply in (await http.get("/nowhere"), await http.put(f"{PREFIX}/health/s1")):
        assert reply.json()["message"] not in {"Not Found", "Method Not Allowed"}
        assert len(reply.json()["message"].split()) > 4


async def test_401_has_a_challenge(http: httpx.AsyncClient) -> None:
    """Every 401 says `WWW-Authenticate: Bearer` (RFC 9110 § 15.5.2)."""
    for headers in ({}, bearer("x"), {"Authorization": "Basic x"}):
        assert "Bearer" == (await http.get(f"{PREFIX}/health/s1", headers=headers)).headers["www-authenticate"]


async def test_too_many_streams_is_429_with_a_jittered_retry_after(served: Served, http: httpx.AsyncClient) -> None:
    """Over a limit: 429, and a Retry-After that differs, so that clients do not come back all at once."""
    session = session_name()
    token = make_token(session)
    async with Stream(served.events(session, token)) as one, Stream(served.events(session, token)) as two:
        await one.primed()
        await two.primed()
        seen = set()
        for _ in range(60):
            reply = await http.get(f"{PREFIX}/events/{session}", params={"token": token})
            assert_error(reply, 429, "too_many_streams_of_session")
            seen.add(int(reply.headers["retry-after"]))
        assert len(seen) > 1
        assert min(seen) >= 1
        assert max(seen) <= 60
        await one.close()
        hub = served.app.state.agent_sse.hub
        await until(lambda: hub.streams_of(session) == 1, what="the place to be free")
        async with Stream(served.events(session, token)) as again:
            assert 200 == again.status


async def test_too_many_streams_in_all_is_429(server: Valkey) -> None:
    """The process' own limit is told apart from the session's."""
    async with (
        serve(make_settings(server.url, max_streams=1)) as served,
        httpx.AsyncClient(timeout=DEADLINE) as http,
        Stream(served.events("s1", make_token("s1"))) as stream,
    ):
        await stream.primed()
        assert_error(await http.get(served.events("s2", make_token("s2"))), 429, "too_many_streams")


# -- Redis away -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def without_redis(folder: Path) -> AsyncIterator[tuple[Served, httpx.AsyncClient, Valkey]]:
    """A service whose Valkey has gone."""
    valkey = Valkey(folder / "v")
    await valkey.start()
    try:
        settings = make_settings(valkey.url, heartbeat_interval=0.3, cors_origins=ALLOWED)
        async with serve(settings) as served, httpx.AsyncClient(base_url=served.url, timeout=DEADLINE) as http:
            async with SimpleNotifier.from_url(valkey.url) as notifier:
                await notifier.open_session("owned", owner="alice")
            await valkey.stop()
            yield served, http, valkey
    finally:
        await valkey.stop()


async def test_unreachable_redis_is_503_where_it_is_needed(folder: Path) -> None:
    """Answers, tickets, lists, and rights that only Redis knows: 503 with a jittered Retry-After, in CORS too."""
    async with without_redis(folder) as (_, http, _):
        listed, owner = bearer(make_token("s1")), bearer(make_token(sub="alice"))
        cases = [
            ("POST", "/permission-response/s1", listed), ("POST", "/ticket/s1", listed), ("GET", "/sessions", owner),
            ("GET", "/health/owned", owner), ("GET", "/events/owned", owner),
            ("POST", "/permission-response/owned", owner), ("POST", "/ticket/owned", owner),
        ]  # fmt: skip
        seen = set()
        for method, path, headers in cases * 6:
            reply = await http.request(
                method, PREFIX + path, headers={**headers, "Origin": ALLOWED}, content=b'{"approved": true}'
            )
            assert_error(reply, 503, "redis_unavailable")
            assert ALLOWED == reply.headers["access-control-allow-origin"]
            seen.add(int(reply.headers["retry-after"]))
        assert len(seen) > 1
        assert min(seen) >= 1
        assert_error(await http.get("/readyz"), 503, "not_ready")
        assert 200 == (await http.get("/healthz")).status_code


async def test_unreachable_redis_does_not_change_what_is_wrong_with_a_request(folder: Path) -> None:
    """A bad token, id, scope or method is told as ever: it needs no Redis."""
    async with without_redis(folder) as (_, http, _):
        assert_error(await http.get(f"{PREFIX}/events/s1"), 401, "token_missing")
        assert_error(await http.get(f"{PREFIX}/health/-", headers=bearer(make_token("s1"))), 422, "invalid_session_id")
        token = make_token("s1", scope="events:read")
        body = {"approved": True}
        reply = await http.post(f"{PREFIX}/permission-response/s1", json=body, headers=bearer(token))
        assert_error(reply, 403, "scope_missing")
        reply = await http.post(
            f"{PREFIX}/permission-response/s1", json={"approved": 1}, headers=bearer(make_token("s1"))
        )
        assert_error(reply, 422, "invalid_field")
        assert 401 == (await http.get(f"{PREFIX}/events/s1?token={'A' * 42}")).status_code


async def test_health_is_degraded_while_redis_is_away(folder: Path) -> None:
    """Health for a listed session is 200 with every field, status degraded, and the streams that this process knows."""
    async with without_redis(folder) as (served, http, _), Stream(served.events("s1", make_token("s1"))) as stream:
        await stream.next("heartbeat")
        reply = await http.get(f"{PREFIX}/health/s1", headers=bearer(make_token("s1")))
        data = reply.json()["data"]
        assert (200, "degraded", 1) == (reply.status_code, data["status"], data["connections"])
        assert {"ok": False, "latency_ms": None} == data["redis"]
        fields = {"session_id", "status", "connections", "pending_permissions", "pending_total", "grants",
                  "last_event_id", "redis", "retained_events", "timestamp"}  # fmt: skip
        assert fields == set(data)


async def test_listed_sessions_stream_opens_without_redis_and_catches_up(folder: Path) -> None:
    """A token that lists the session opens a stream without Redis: heartbeats now, the events once it is back."""
    async with without_redis(folder) as (served, _, valkey), Stream(served.events("s1", make_token("s1"))) as stream:
        assert 200 == stream.status
        for _ in range(3):
            await stream.next("heartbeat")
        assert stream.last_id is None
        await valkey.start()
        await stream.primed()
        async with SimpleNotifier.from_url(valkey.url) as notifier:
            published = await notifier.tool_status("s1", "t", "executing")
        assert published == (await stream.next("tool_status")).id


# -- CORS -------------------------------------------------------------------------------------------------------------

CORS_PATHS = [
    f"{PREFIX}/health/s1",
    f"{PREFIX}/poll/-",
    f"{PREFIX}/events/-",
    f"{PREFIX}/sessions",
    "/nowhere",
    "/readyz",
    "/healthz",
]


@pytest.mark.parametrize("origin", [ALLOWED, "http://localhost:3000"])
async def test_allowed_origin_may_read_every_answer(http: httpx.AsyncClient, origin: str) -> None:
    """Successes and errors alike carry the origin, expose what clients need to know, and allow no credentials."""
    for path in CORS_PATHS:
        for headers in ({}, bearer(make_token("s1"))):
            reply = await http.get(path, headers={"Origin": origin, **headers})
            assert origin == reply.headers["access-control-allow-origin"], path
            exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
            assert ["retry-after", "heartbeat-interval"] == exposed
            assert "origin" in reply.headers["vary"].lower()
            assert "access-control-allow-credentials" not in reply.headers


async def test_allowed_origin_may_read_a_stream(served: Served) -> None:
    """EventSource from an allowed origin gets its header, and only for that origin."""
    for origin, expected in ((ALLOWED, ALLOWED), (OTHER, None)):
        async with Stream(served.events("cors", make_token("cors")), {"Origin": origin}) as stream:
            await stream.primed()
            assert expected == stream.response_headers.get("access-control-allow-origin")
            assert "Heartbeat-Interval" in stream.response_headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in stream.response_headers


@pytest.mark.parametrize(
    "origin",
    [OTHER, "null", "*", "", "https://app.example.com.evil.org", "http://app.example.com", f"{ALLOWED}:444",
     f"{ALLOWED}/", "https://APP.example.com", f"{ALLOWED}, {OTHER}"],
)  # fmt: skip
async def test_other_origin_gets_nothing(http: httpx.AsyncClient, origin: str) -> None:
    """No header lets another origin read anything, not even one that resembles an allowed one."""
    for path in CORS_PATHS:
        reply = await http.get(path, headers={"Origin": origin, **bearer(make_token("s1"))})
        assert "access-control-allow-origin" not in reply.headers


async def test_preflight_is_json_and_names_what_is_allowed(http: httpx.AsyncClient) -> None:
    """A preflight for what the guide's client sends is allowed; its body is JSON like every other."""
    for path, method, wanted in (
        (f"{PREFIX}/permission-response/s1", "POST", "authorization, content-type"),
        (f"{PREFIX}/events/s1", "GET", "authorization, last-event-id"),
        (f"{PREFIX}/publish/s1", "POST", "authorization, content-type, idempotency-key"),
        (f"{PREFIX}/sessions/s1", "PUT", "authorization"),
        (f"{PREFIX}/sessions/s1", "DELETE", "authorization"),
    ):
        asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted}
        reply = await http.options(path, headers={"Origin": ALLOWED, **asked})
        assert (200, {"success": True}) == (reply.status_code, reply.json())
        assert ALLOWED == reply.headers["access-control-allow-origin"]
        assert method in reply.headers["access-control-allow-methods"]
        granted = {name.strip() for name in reply.headers["access-control-allow-headers"].lower().split(",")}
        assert {"authorization", "content-type", "last-event-id", "idempotency-key"} <= granted
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    ("origin", "method", "wanted"),
    [(OTHER, "GET", "authorization"), (ALLOWED, "PATCH", "authorization"), (ALLOWED, "GET", "x-custom")],
)
async def test_preflight_for_what_is_not_allowed_is_400(
    http: httpx.AsyncClient, origin: str, method: str, wanted: str
) -> None:
    """Another origin, method or header is refused in JSON."""
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": wanted}
    reply = await http.options(f"{PREFIX}/health/s1", headers={"Origin": origin, **asked})
    assert_error(reply, 400, "cors_refused")
    assert (origin == ALLOWED) == ("access-control-allow-origin" in reply.headers)


async def test_without_origins_there_is_no_cors(server: Valkey) -> None:
    """Nothing listed: no CORS header at all."""
    async with serve(make_settings(server.url)) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        reply = await http.get(f"{served.api}/health/s1", headers={"Origin": ALLOWED, **bearer(make_token("s1"))})
        assert 200 == reply.status_code
        assert [] == [name for name in reply.headers if name.startswith("access-control")]


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_unforeseen_error_is_500_in_json_without_its_text(
    server: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect is 500 in the same shape; its text is in the log, not in the answer."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    async with serve(make_settings(server.url)) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        monkeypatch.setattr(served.app.state.agent_sse.store, "keep_ticket", broken)
        reply = await http.post(f"{served.api}/ticket/s1", headers=bearer(make_token("s1")))
        assert_error(reply, 500, "internal_error")
        assert "secret detail" not in reply.text
        assert "secret detail" in caplog.text


async def test_connections_have_no_nagle_delay(served: Served, sink: str) -> None:
    """TCP_NODELAY is on for accepted connections, also of a listening socket that was handed over ready-made.

    Under plain uvicorn that is not ours to set.
    """
    assert served.server is not None
    async with Stream(served.events("nagle", make_token("nagle"))) as stream:
        await stream.primed()
        sockets = [c.transport.get_extra_info("socket") for c in served.server.server_state.connections]
        assert sockets
        assert sink == "asgi" or all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets)


async def test_api_description_lists_every_endpoint(http: httpx.AsyncClient) -> None:
    """`/openapi.json` has each endpoint with its statuses, their bodies, the bearer scheme and the scope it needs."""
    described = (await http.get("/openapi.json")).json()
    found = {
        (path.removeprefix(PREFIX), method): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    body = {400, 401, 403, 408, 413, 422, 503}
    expected = {
        ("/events/{session_id}", "get"): (READ, {200, 401, 403, 422, 429, 503}),
        ("/poll/{session_id}", "get"): (READ, {200, 401, 403, 422, 429, 503}),
        ("/permission-response/{session_id}", "post"): (RESPOND, {200, 404, 409, 410} | body),
        ("/cancel/{session_id}", "post"): (RESPOND, {200, 202, 404, 409} | body),
        ("/grants/{session_id}/{grant_id}", "delete"): (RESPOND, {200, 401, 403, 404, 422, 503}),
        ("/audit/{session_id}", "get"): (READ, {200, 401, 403, 422, 503}),
        ("/health/{session_id}", "get"): (READ, {200, 401, 403, 422, 503}),
        ("/ticket/{session_id}", "post"): (READ, {200, 401, 403, 422, 503}),
        ("/sessions", "get"): (READ, {200, 401, 403, 503}),
        ("/publish/{session_id}", "post"): (PUBLISH, {201, 409} | body),
        ("/sessions/{session_id}", "put"): (PUBLISH, {200, 409} | body),
        ("/sessions/{session_id}", "delete"): (PUBLISH, {200, 401, 403, 422, 503}),
        ("/permission-request/{session_id}", "post"): (PUBLISH, {200, 202, 409, 429} | body),
        ("/permission-request/{session_id}/{request_id}", "get"): (
            PUBLISH, {200, 202, 400, 401, 403, 404, 422, 429, 503},
        ),
        ("/permission-request/{session_id}/{request_id}", "delete"): (PUBLISH, {200, 401, 403, 404, 409, 422, 503}),
        ("/healthz", "get"): ("", {200}),
        ("/readyz", "get"): ("", {200, 503}),
    }  # fmt: skip
    assert set(expected) == set(found)
    for key, (scope, statuses) in expected.items():
        assert statuses == {int(status) for status in found[key]["responses"]}, key
        assert found[key]["summary"], key
        if scope:
            assert [{"HTTPBearer": []}] == found[key]["security"], key
            assert f"`{scope}`" in found[key]["description"], key
        for status, response in found[key]["responses"].items():
            if key == ("/events/{session_id}", "get") and status == "200":
                continue
            if scope or int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                told = {"success", "message", "error" if int(status) >= 400 else "data"}
                assert told == set(schema["properties"]), key


async def test_api_description_has_every_body_and_parameter(http: httpx.AsyncClient) -> None:
    """What the endpoints read, in bodies, queries and headers, is described with its fields."""
    described = (await http.get("/openapi.json")).json()["paths"]
    found = {path.removeprefix(PREFIX): methods for path, methods in described.items()}
    bodies = {
        ("/permission-response/{session_id}", "post"): (
            {"approved"}, {"reason", "request_id", "scope", "covers", "parameters_patch"},
        ),
        ("/cancel/{session_id}", "post"): ({"tool_call_id"}, {"reason"}),
        ("/publish/{session_id}", "post"): ({"type"}, set()),
        ("/sessions/{session_id}", "put"): ({"owner"}, set()),
        ("/permission-request/{session_id}", "post"): (
            {"tool_name", "parameters", "risk_level", "timeout"},
            {"tool_call_id", "idempotency_key", "message", "server", "editable", "schema"},
        ),
    }  # fmt: skip
    for (path, method), (required, optional) in bodies.items():
        body = found[path][method]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert (True, required) == (body["required"], set(schema["required"])), path
        assert required | optional == set(schema["properties"]), path
    reading = {("after", "query"), ("limit", "query")}
    polling = {("last_event_id", "query"), ("Last-Event-ID", "header"), ("wait", "query")}
    for path, method, expected in (
        ("/poll/{session_id}", "get", polling),
        ("/audit/{session_id}", "get", reading),
        ("/publish/{session_id}", "post", {("Idempotency-Key", "header")}),
        ("/permission-request/{session_id}", "post", {("wait", "query")}),
        ("/permission-request/{session_id}/{request_id}", "get", {("wait", "query"), ("request_id", "path")}),
        ("/events/{session_id}", "get", {("token", "query"), ("last_event_id", "query"), ("Last-Event-ID", "header")}),
    ):
        parameters = {(parameter["name"], parameter["in"]) for parameter in found[path][method]["parameters"]}
        assert {("session_id", "path"), *expected} == parameters, path
    assert ["text/event-stream"] == list(found["/events/{session_id}"]["get"]["responses"]["200"]["content"])


async def test_api_page_is_served(http: httpx.AsyncClient) -> None:
    """The description for people is there too."""
    assert "text/html" in (await http.get("/docs")).headers["content-type"]


async def test_stream_headers_are_the_contracts(served: Served) -> None:
    """A stream's headers keep proxies from buffering, caches from keeping, and the token out of Referer."""
    async with Stream(served.events("head", make_token("head"))) as stream:
        await stream.primed()
        found = stream.response_headers
    assert {
        "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache, no-store, no-transform",
        "x-accel-buffering": "no", "referrer-policy": "no-referrer", "heartbeat-interval": "1",
    }.items() <= found.items()  # fmt: skip
    assert "content-length" not in found


@pytest.mark.parametrize(("seconds", "text"), [(15, "15"), (0.25, "0.25"), (86400, "86400")])
async def test_stream_says_how_often_a_heartbeat_comes(server: Valkey, seconds: float, text: str) -> None:
    """A client can tell a silent stream from a dead one without knowing the service's settings."""
    async with (
        serve(make_settings(server.url, heartbeat_interval=seconds)) as served,
        Stream(served.events("beat", make_token("beat"))) as stream,
    ):
        assert text == stream.response_headers["heartbeat-interval"]


async def test_page_has_an_etag_and_is_not_sent_again(http: httpx.AsyncClient) -> None:
    """Page and files are looked at anew each time, and sent only when they have changed."""
    for path in ("/", "/console/console.js", "/console/console.css"):
        first = await http.get(path)
        assert (200, "no-cache") == (first.status_code, first.headers["cache-control"])
        tag = first.headers["etag"]
        assert f'"{hashlib.sha256(first.content).hexdigest()}"' == tag
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = await http.get(path, headers={"If-None-Match": known})
            assert (304, b"", tag) == (again.status_code, again.content, again.headers["etag"])
            assert "content-length" not in again.headers
        for unknown in ('"other"', tag.strip('"'), ""):
            assert first.content == (await http.get(path, headers={"If-None-Match": unknown})).content
    assert 404 == (await http.get("/console/index.html")).status_code


async def test_page_is_served_under_its_policy(http: httpx.AsyncClient) -> None:
    """The page at `/` comes with a policy that allows no inline script, and with its files."""
    reply = await http.get("/")
    policy = reply.headers["content-security-policy"]
    assert ("unsafe-inline" in policy, "default-src 'none'" in policy) == (False, True)
    for name, kind in (("console.js", "text/javascript"), ("console.css", "text/css")):
        file = await http.get(f"/console/{name}")
        assert (200, True) == (file.status_code, file.headers["content-type"].startswith(kind))
        assert "nosniff" == file.headers["x-content-type-options"]


async def test_two_applications_in_one_process_do_not_share_state(server: Valkey) -> None:
    """Applications made twice are apart: another secret, another prefix."""
    settings = make_settings(server.url, jwt_secret="another-secret-of-at-least-32-bytes!", url_prefix="/other")
    async with (
        serve(make_settings(server.url)),
        serve(app=create_app(settings)) as second,
        httpx.AsyncClient(base_url=second.url, timeout=DEADLINE) as http,
    ):
        assert_error(await http.get("/other/health/s1", headers=bearer(make_token("s1"))), 401, "token_invalid")
        assert 404 == (await http.get(f"{PREFIX}/health/s1", headers=bearer(make_token("s1")))).status_code
        assert 'content="/other"' in (await http.get("/")).text
