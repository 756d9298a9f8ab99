"""The router inside somebody else's application: prefix, dependencies, errors, lifespan, middleware, tracing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from opentelemetry import trace
from starlette.middleware.gzip import GZipMiddleware

from agent_sse import SimpleNotifier, create_router
from agent_sse.app import create_app
from agent_sse.auth import Principal
from agent_sse.routes import router_of
from agent_sse.service import Authorize, Service
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
    serve,
    until,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
ENDPOINTS = [
    ("GET", "/events/s1"), ("POST", "/permission-response/s1"), ("GET", "/health/s1"), ("POST", "/ticket/s1"),
    ("GET", "/sessions"),
]  # fmt: skip
KEY = {"X-Key": "k"}


def need_key(x_key: Annotated[str, Header()] = "") -> None:
    if x_key != "k":
        raise HTTPException(403, "the host wants its key", headers={"X-Host": "said so"})


@asynccontextmanager
async def hosted(
    valkey: Valkey, host: FastAPI, *, authorize: Authorize | None = None, **include: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Served, Service]]:
    """Serve ``host`` with a router in it; the client's base is the router's prefix."""
    service = Service(make_settings(valkey.url), authorize)
    host.include_router(router_of(service), **include)
    async with serve(app=host) as served:
        base = served.url + str(include.get("prefix", "")) + PREFIX
        async with httpx.AsyncClient(base_url=base, timeout=DEADLINE) as http:
            yield http, served, service


def stream_url(http: httpx.AsyncClient, session: str, token: str | None = None) -> str:
    return str(http.base_url).rstrip("/") + f"/events/{session}" + (f"?token={token}" if token else "")


async def round_trip(
    http: httpx.AsyncClient, valkey: Valkey, headers: dict[str, str] | None = None, session: str = "s1"
) -> None:
    """A stream gets a request, a POST answers it, the agent hears the answer."""
    token = make_token(session)
    async with (
        SimpleNotifier.from_url(valkey.url) as notifier,
        Stream(stream_url(http, session, token), headers) as stream,
    ):
        assert 200 == stream.status
        await stream.primed()
        asking = asyncio.create_task(notifier.request_permission(session, "t", {"a": 1}))
        assert {"a": 1} == (await stream.next("permission_request")).json["data"]["parameters"]
        body = {"approved": True, "reason": "ok"}
        reply = await http.post(
            f"/permission-response/{session}", json=body, headers={**bearer(token), **(headers or {})}
        )
        assert (200, True) == (reply.status_code, reply.json()["success"])
        assert await asking
        assert "approved" == (await stream.next("permission_cleared")).json["data"]["outcome"]


# -- the example ------------------------------------------------------------------------------------------------------


def test_example_is_short() -> None:
    """The whole of mounting fits on a page."""
    assert len((EXAMPLES / "mounted.py").read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.parametrize("approved", [True, False])
async def test_example_runs_and_asks(valkey: Valkey, sink: str, approved: bool) -> None:
    """As a process of its own, the example opens its stream behind its check, asks, and heeds the answer."""
    process = ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url})
    process.command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "mounted:app", "--port", "0"]
    if sink == "direct":
        process.command += ["--http", "agent_sse.protocol:StreamProtocol"]
    token = make_token(sub="alice")
    headers = {**bearer(token), "X-Gateway": "internal"}
    async with process, httpx.AsyncClient(base_url=f"{process.url}/internal{PREFIX}", timeout=DEADLINE) as http:
        assert 403 == (await http.get("/health/build-1", headers=bearer(token))).status_code
        stranger = {**bearer(make_token(sub="eve")), "X-Gateway": "internal"}
        assert 403 == (await http.get("/health/build-1", headers=stranger)).status_code
        async with Stream(stream_url(http, "build-1"), headers) as stream:
            await stream.primed()
            assert 202 == (await http.post(f"{process.url}/deploy/v2")).status_code
            request = (await stream.next("permission_request")).json["data"]
            assert ("deploy", {"version": "v2"}) == (request["tool_name"], request["parameters"])
            reply = await http.post("/permission-response/build-1", json={"approved": approved}, headers=headers)
            assert reply.json()["success"] is True
            result = (await stream.next("tool_result")).json["data"]
            assert approved == result["success"]
            assert not approved or result["result"] == "v2 is live"
        await process.stop()
    assert "Traceback" not in process.output


# -- prefix and dependencies ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sink")
async def test_hosts_dependencies_guard_every_route(valkey: Valkey) -> None:
    """Without the host's key every endpoint is the host's 403, in this project's shape; with it all works."""
    async with hosted(valkey, FastAPI(), prefix="/internal", dependencies=[Depends(need_key)]) as (http, _, _):
        token = make_token("s1")
        for method, path in ENDPOINTS:
            reply = await http.request(method, path, headers=bearer(token))
            expected = {"success": False, "message": "the host wants its key", "error": {"code": "forbidden"}}
            assert (403, expected) == (reply.status_code, reply.json())
            assert "said so" == reply.headers["x-host"]
        assert 403 == (await http.get(f"/events/s1?token={token}")).status_code
        await round_trip(http, valkey, KEY)


@pytest.mark.usefixtures("sink")
async def test_application_wide_dependencies_guard_every_route(valkey: Valkey) -> None:
    """`FastAPI(dependencies=…)` applies as well."""
    async with hosted(valkey, FastAPI(dependencies=[Depends(need_key)])) as (http, _, _):
        for method, path in ENDPOINTS:
            assert 403 == (await http.request(method, path, headers=bearer(make_token("s1")))).status_code
        await round_trip(http, valkey, KEY)


async def test_hosts_validation_error_has_the_same_shape(valkey: Valkey) -> None:
    """A parameter that the host's dependency demands is 422 and named, on our routes."""

    def tenant(tenant: Annotated[int, Query()]) -> int:
        return tenant

    async with hosted(valkey, FastAPI(), dependencies=[Depends(tenant)]) as (http, _, _):
        for query in ("", "?tenant=x"):
            reply = await http.get(f"/health/s1{query}", headers=bearer(make_token("s1")))
            assert (422, "invalid_field") == (reply.status_code, reply.json()["error"]["code"])
            assert "tenant" in reply.json()["message"]
        assert 200 == (await http.get("/health/s1?tenant=5", headers=bearer(make_token("s1")))).status_code


async def test_prefixes_add_up_and_can_be_replaced(valkey: Valkey) -> None:
    """The host's prefix comes before the setting's; `create_router(prefix=…)` replaces the latter."""
    host = FastAPI()
    settings = make_settings(valkey.url)
    host.include_router(create_router(settings), prefix="/a/b")
    host.include_router(create_router(settings, prefix="/short"))
    host.include_router(create_router(settings, prefix=""), prefix="/only")
    async with serve(app=host) as served, httpx.AsyncClient(base_url=served.url, timeout=DEADLINE) as http:
        for base in (f"/a/b{PREFIX}", "/short", "/only"):
            reply = await http.get(f"{base}/health/s1", headers=bearer(make_token("s1")))
            assert (200, "ok") == (reply.status_code, reply.json()["data"]["status"]), base
        assert 404 == (await http.get(f"{PREFIX}/health/s1")).status_code


# -- errors -----------------------------------------------------------------------------------------------------------


async def test_errors_are_the_same_as_standing_alone(valkey: Valkey) -> None:
    """Every refusal of our routes has status, code and message as in the stand-alone application."""
    token = bearer(make_token("s1"))
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/events/s1", {}),
        ("GET", "/events/-", {"headers": token}),
        ("GET", "/health/other", {"headers": token}),
        ("GET", "/health/s1?token=x", {"headers": token}),
        ("POST", "/permission-response/s1", {"headers": token, "content": b"{"}),
        ("POST", "/permission-response/s1", {"headers": token, "json": {"approved": 1}}),
        ("POST", "/permission-response/s1", {"headers": token, "json": {"approved": True}}),
        ("POST", "/permission-response/s1", {"headers": token, "content": b"x" * 2_000_000}),
    ]
    async with (
        serve(make_settings(valkey.url)) as alone,
        httpx.AsyncClient(base_url=alone.api, timeout=DEADLINE) as direct,
        hosted(valkey, FastAPI()) as (http, _, _),
    ):
        for method, path, request in cases:
            expected = await direct.request(method, path, **request)
            actual = await http.request(method, path, **request)
            assert 400 <= expected.status_code < 500
            assert (expected.status_code, expected.json()) == (actual.status_code, actual.json()), path


async def test_hosts_own_errors_stay_the_hosts(valkey: Valkey) -> None:
    """Outside of our routes the host's error bodies are as they were."""
    host = FastAPI()

    @host.get("/own/{number}")
    async def own(number: int) -> int:
        return number

    async with hosted(valkey, host, prefix="/x") as (_, served, _), httpx.AsyncClient(base_url=served.url) as http:
        assert {"detail": "Not Found"} == (await http.get("/nowhere")).json()
        assert "detail" in (await http.get("/own/a")).json()
        assert 5 == (await http.get("/own/5")).json()


class QuotaExceeded(Exception):
    """An error that only the host knows."""


async def test_unknown_errors_reach_the_hosts_handlers(valkey: Valkey) -> None:
    """What the router cannot explain it leaves to the host's exception handlers."""
    host = FastAPI()

    @host.exception_handler(QuotaExceeded)
    async def told(_: Request, error: QuotaExceeded) -> Response:
        return JSONResponse({"quota": str(error)}, 418)

    def check() -> None:
        raise QuotaExceeded("none left")

    async with hosted(valkey, host, dependencies=[Depends(check)]) as (http, _, _):
        for method, path in ENDPOINTS:
            reply = await http.request(method, path, headers=bearer(make_token("s1")))
            assert (418, {"quota": "none left"}) == (reply.status_code, reply.json())


async def test_hosts_body_limit_has_the_same_shape(valkey: Valkey) -> None:
    """A body that turns out larger than the host allows, while our route reads it, is 413 in this project's shape.

    One that says so in its Content-Length never reaches the route: the host's own middleware answers.
    """
    async with hosted(valkey, FastAPI(max_body_size=100)) as (http, _, _):
        reply = await http.post("/permission-response/s1", headers=bearer(make_token("s1")), content=_chunks())
        assert (413, False, "body_too_large") == (
            reply.status_code, reply.json()["success"], reply.json()["error"]["code"],
        )  # fmt: skip


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(10):
        yield b"x" * 100


# -- lifespan ---------------------------------------------------------------------------------------------------------


async def test_hosts_lifespan_runs_too_and_around_ours(valkey: Valkey) -> None:
    """Both lifespans run: the host's starts first and ends last, and its state is there."""
    told: list[str] = []
    service = Service(make_settings(valkey.url))

    def running() -> bool:
        try:
            return bool(service.hub)
        except RuntimeError:
            return False

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        told.append(f"start, ours runs: {running()}")
        yield {"host": "state"}
        told.append(f"end, ours runs: {running()}")

    host = FastAPI(lifespan=lifespan)

    @host.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.host)

    host.include_router(router_of(service))
    async with serve(app=host) as served, httpx.AsyncClient(base_url=served.url, timeout=DEADLINE) as http:
        assert "state" == (await http.get("/state")).json()
        assert 200 == (await http.get(f"{PREFIX}/health/s1", headers=bearer(make_token("s1")))).status_code
    assert ["start, ours runs: False", "end, ours runs: False"] == told


async def test_without_its_lifespan_the_router_says_so(valkey: Valkey) -> None:
    """A mounted sub-application's lifespan does not run: the error names the cause and the way out."""
    inner = FastAPI()
    inner.include_router(create_router(make_settings(valkey.url)))
    host = FastAPI()
    host.mount("/sub", inner)
    transport = httpx.ASGITransport(app=host)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        with pytest.raises(RuntimeError, match=r"lifespan did not run.*include_router"):
            await http.get(f"/sub{PREFIX}/health/s1", headers=bearer(make_token("s1")))


@pytest.mark.usefixtures("sink")
async def test_mounted_application_works_when_its_lifespan_is_entered(valkey: Valkey) -> None:
    """With `router.lifespan_context` in the host's own lifespan a sub-application works, streams included."""
    router = create_router(make_settings(valkey.url))
    inner = FastAPI()
    inner.include_router(router)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with router.lifespan_context(app):
            yield

    host = FastAPI(lifespan=lifespan)
    host.mount("/sub", inner)
    async with serve(app=host) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        http.base_url = f"{served.url}/sub{PREFIX}"  # type: ignore[assignment]  # it takes a string
        await round_trip(http, valkey)


@pytest.mark.usefixtures("sink")
async def test_stand_alone_application_can_be_mounted_too(valkey: Valkey) -> None:
    """`create_app()` below another application's path, its lifespan entered by the host."""
    inner = create_app(make_settings(valkey.url))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    host = FastAPI(lifespan=lifespan)
    host.mount("/sub", inner)
    async with serve(app=host) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        http.base_url = f"{served.url}/sub{PREFIX}"  # type: ignore[assignment]  # it takes a string
        await round_trip(http, valkey)
        reply = await http.get("/nowhere")
        assert (404, "not_found") == (reply.status_code, reply.json()["error"]["code"])


# -- authorize --------------------------------------------------------------------------------------------------------


def _raise(*_: object) -> bool:
    raise LookupError("the host's database is away")


async def _later(answer: bool | None) -> bool | None:
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    return answer


@pytest.mark.usefixtures("sink")
@pytest.mark.parametrize(
    ("authorize", "listed", "stranger"),
    [
        (lambda p, s: True, 200, 200), (lambda p, s: False, 403, 403), (lambda p, s: None, 200, 403),
        (lambda p, s: _later(True), 200, 200), (lambda p, s: _later(False), 403, 403),
        (lambda p, s: _later(None), 200, 403), (_raise, 403, 403), (lambda p, s: 1, 403, 403),
        (lambda p, s: "yes", 403, 403), (lambda p, s: p.subject == "eve", 403, 200),
    ],
    ids=["True", "False", "None", "async True", "async False", "async None", "raises", "1", "text", "by subject"],
)  # fmt: skip
async def test_authorize_decides(
    valkey: Valkey, authorize: Callable[[Principal, str], Any], listed: int, stranger: int
) -> None:
    """True allows, False refuses, None leaves it to the token and the owner; anything else, or an error, refuses."""
    async with hosted(valkey, FastAPI(), authorize=authorize) as (http, _, _):
        for token, expected in ((make_token("s1"), listed), (make_token(sub="eve"), stranger)):
            assert expected == (await http.get("/health/s1", headers=bearer(token))).status_code
            assert expected == (await http.post("/ticket/s1", headers=bearer(token))).status_code
            reply = await http.post("/permission-response/s1", json={"approved": True}, headers=bearer(token))
            assert (404 if expected == 200 else 403) == reply.status_code
            async with Stream(stream_url(http, "s1", token)) as stream:
                assert expected == stream.status


async def test_what_is_below_the_prefix_and_none_of_ours_is_refused_in_json(valkey: Valkey) -> None:
    """Wrong methods, unknown paths and a slash too many are ours to refuse in the host too, and redirect no token."""
    async with hosted(valkey, FastAPI()) as (http, served, _):
        reply = await http.post("/events/s1")
        assert (405, "GET", "method_not_allowed") == (
            reply.status_code, reply.headers["allow"], reply.json()["error"]["code"],
        )  # fmt: skip
        for path in ("/nope", f"/events/s1/?token={make_token('s1')}", "/events/"):
            reply = await http.get(path)
            assert (404, False) == (reply.status_code, reply.json()["success"])
        assert {"detail": "Not Found"} == (await http.get(served.url + "/elsewhere")).json()  # the host's own affair


async def test_sessions_that_authorize_refuses_are_not_listed(valkey: Valkey) -> None:
    """`GET /sessions` lists what the token may use, and the application's no is a no."""

    def authorize(_: Principal, session_id: str) -> bool | None:
        return False if session_id == "s1" else None

    async with hosted(valkey, FastAPI(), authorize=authorize) as (http, _, _):
        reply = await http.get("/sessions", headers=bearer(make_token("s1", "s2")))
        assert ["s2"] == [row["session_id"] for row in reply.json()["data"]["sessions"]]


async def test_authorize_is_told_who_and_what(valkey: Valkey) -> None:
    """It gets the verified principal and the session, and is not asked about a wrong token or an impossible id."""
    asked: list[tuple[str, str, frozenset[str] | None]] = []

    def authorize(principal: Principal, session_id: str) -> bool | None:
        asked.append((principal.subject, session_id, principal.sessions))
        return None

    async with hosted(valkey, FastAPI(), authorize=authorize) as (http, _, _):
        await http.get("/health/s1", headers=bearer("wrong"))
        await http.get("/health/-", headers=bearer(make_token("s1")))
        assert [] == asked
        await http.get("/health/s2", headers=bearer(make_token("s1")))
        assert [("alice", "s2", frozenset({"s1"}))] == asked


# -- middleware -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sink")
async def test_hosts_middleware_does_not_break_streams(valkey: Valkey) -> None:
    """Behind BaseHTTPMiddleware and compression a stream is live, resumes, and its place is given back."""
    host = FastAPI()
    host.add_middleware(GZipMiddleware, minimum_size=1)

    @host.middleware("http")
    async def stamp(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Stamp"] = "host"
        return response

    async with hosted(valkey, host) as (http, _, service), SimpleNotifier.from_url(valkey.url) as notifier:
        url = stream_url(http, "s1", make_token("s1"))
        async with Stream(url, {"Accept-Encoding": "gzip"}) as stream:
            assert ("host", None) == (
                stream.response_headers.get("x-stamp"), stream.response_headers.get("content-encoding"),
            )  # fmt: skip
            await stream.primed()
            first = await notifier.tool_status("s1", "t", "executing")
            assert first == (await stream.next()).id
        await until(lambda: service.hub.open_streams == 0, what="the stream's place to be free")
        second = await notifier.tool_status("s1", "t", "completed")
        async with Stream(url, {"Last-Event-ID": first}) as stream:
            assert second == (await stream.next()).id
        await round_trip(http, valkey)
        await until(lambda: service.hub.open_streams == 0, what="the streams' places to be free")


@pytest.mark.usefixtures("sink")
async def test_hosts_dependency_with_yield_is_left(valkey: Valkey) -> None:
    """A dependency that holds something releases it once the stream has ended."""
    held: list[str] = []

    async def hold() -> AsyncIterator[None]:
        held.append("in")
        yield
        held.append("out")

    async with hosted(valkey, FastAPI(), dependencies=[Depends(hold)]) as (http, _, _):
        async with Stream(stream_url(http, "s1", make_token("s1"))) as stream:
            await stream.primed()
        await until(lambda: held == ["in", "out"], what="the dependency's end")


# -- tracing ----------------------------------------------------------------------------------------------------------


class RecordingSpan(trace.NonRecordingSpan):
    """A span that keeps what it is told, as an exporter would see it at its end."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        super().__init__(trace.SpanContext(trace_id=1, span_id=1, is_remote=False))
        self.name = name
        self.attributes = attributes
        self.others: list[Any] = []

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)

    def update_name(self, name: str) -> None:
        self.name = name

    def add_event(self, *values: Any, **more: Any) -> None:
        self.others += [values, more]

    def record_exception(self, *values: Any, **more: Any) -> None:
        self.others += [values, more]

    def __repr__(self) -> str:
        return f"{self.name} {self.attributes} {self.others}"


class Recorder(trace.TracerProvider, trace.Tracer):
    """OpenTelemetry's API with spans that are kept; its SDK is not needed for that."""

    def __init__(self) -> None:
        self.spans: list[RecordingSpan] = []

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(self, name: str, *_: Any, attributes: Any = None, **__: Any) -> trace.Span:
        self.spans.append(RecordingSpan(name, dict(attributes or {})))
        return self.spans[-1]

    def start_as_current_span(self, name: str, *_: Any, attributes: Any = None, **__: Any) -> Any:
        return trace.use_span(self.start_span(name, attributes=attributes))


@pytest.mark.usefixtures("sink")
@pytest.mark.parametrize("operation_spans", [True, False])
async def test_hosts_trace_does_not_have_the_token(valkey: Valkey, operation_spans: bool) -> None:
    """FastAPI's own spans of the host show the route, and `***` in the place of the token."""
    recorder = Recorder()
    host = FastAPI(telemetry={"tracer_provider": recorder, "operation_spans": operation_spans})
    async with hosted(valkey, host, prefix="/internal", dependencies=[Depends(need_key)]) as (http, _, _):
        token = make_token("s1")
        async with Stream(f"{stream_url(http, 's1', token)}&last_event_id=0-0", KEY) as stream:
            await stream.primed()
        await http.get(f"/health/s1?token={token}", headers=KEY)  # 401
        await http.get(f"/events/s1?token={token}")  # the host's 403
        await http.get(f"/events/-?%74oken={token}", headers=KEY)  # 422
        queries = [span.attributes["url.query"] for span in recorder.spans if "url.query" in span.attributes]
        assert len(queries) >= 4
        assert [] == [span for span in recorder.spans if token in repr(span) or token.split(".")[1] in repr(span)]
        assert any("last_event_id=0-0" in query for query in queries)
