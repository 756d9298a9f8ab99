"""The HTTP endpoints under the prefix, as a FastAPI router that stands alone or in another application."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from agent_sse import events, requests
from agent_sse.api_errors import error_docs, to_api_error
from agent_sse.auth import EVENTS_READ, PERMISSIONS_RESPOND, Principal, bearer
from agent_sse.errors import ApiError, ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.frames import ZERO, EventId, format_id
from agent_sse.keys import SESSION_ID, SESSION_ID_RULE
from agent_sse.opening import Opening
from agent_sse.permissions import Answer
from agent_sse.responses import failure, success
from agent_sse.service import Authorize, Service
from agent_sse.settings import Settings, describe
from agent_sse.store import TICKET_SECONDS

SessionId = Annotated[str, Path(description=SESSION_ID_RULE, pattern=f"^{SESSION_ID.pattern}$")]
ANSWER_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": requests.PermissionAnswer.model_json_schema()}},
    }
}

# Read by hand, because a wrong one is no 422: a token that is not there is 401, a bad cursor a stream_reset.
STREAM_SCHEMA = {
    "parameters": [
        {"name": name, "in": place, "schema": {"type": "string"}, "description": description}
        for name, place, description in (
            ("token", "query", "the JWT or a ticket, for browsers' EventSource, which cannot set headers"),
            ("Last-Event-ID", "header", "resume after this event id; 0-0 asks for everything"),
            ("last_event_id", "query", "the same as Last-Event-ID, which wins"),
        )
    ]
}


class ApiRoute(APIRoute):
    """A route whose every error is JSON with ``success``, also under another application and its dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler, dependencies included."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            requests.hide_token(request.scope)
            try:
                return await handler(request)
            except Exception as error:  # mapped, or raised again for the application's own handlers
                known = to_api_error(error)
                if known is None:
                    raise
                return failure(known)

        return handle


def create_router(
    settings: Settings | None = None, *, authorize: Authorize | None = None, prefix: str | None = None
) -> APIRouter:
    """Return the router with all endpoints; ``app.include_router(router)`` also runs its lifespan.

    ``settings`` default to the ``AGENT_SSE_*`` environment. ``authorize(principal, session_id)`` may allow (True),
    refuse (False) or leave it to the token and the session's owner (None). ``prefix`` overrides the setting's. Raises
    :class:`ConfigurationError`.
    """
    if settings is None:
        settings = load_settings()
    return router_of(Service(settings, authorize), prefix=prefix)


def load_settings(**overrides: Any) -> Settings:
    """Build the settings from the environment. Raises :class:`ConfigurationError` that names what is wrong."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(describe(error)) from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f".env cannot be read: {error}; write it in UTF-8") from None


def router_of(service: Service, *, prefix: str | None = None) -> APIRouter:
    """Return the router of a service."""

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with service.running():
            yield

    router = APIRouter(
        prefix=service.settings.url_prefix if prefix is None else prefix,
        route_class=ApiRoute,
        lifespan=lifespan,
        tags=["agent-sse"],
        dependencies=[Security(HTTPBearer(auto_error=False, description="JWT"))],
    )
    endpoints = _Endpoints(service)
    _add_stream_routes(router, endpoints)
    _add_session_routes(router, endpoints)
    if router.prefix:  # without one, all of the host's own paths would be behind it
        router.add_api_route(
            "/{rest:path}", _refuse_path(router), methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"],
            include_in_schema=False,
        )  # fmt: skip
    return router


def _add_stream_routes(router: APIRouter, endpoints: _Endpoints) -> None:
    limits = error_docs(401, 403, 422, 429, 503)
    router.add_api_route(
        "/events/{session_id}", endpoints.events, methods=["GET"], summary="Open the event stream",
        responses={200: {"description": "the stream", "content": {"text/event-stream": {}}}, **limits},
        response_class=Response, openapi_extra=STREAM_SCHEMA,
    )  # fmt: skip
    router.add_api_route(
        "/permission-response/{session_id}", endpoints.respond, methods=["POST"], openapi_extra=ANSWER_SCHEMA,
        summary="Answer a permission request", responses=error_docs(400, 401, 403, 404, 408, 409, 410, 413, 422, 503),
    )  # fmt: skip


def _add_session_routes(router: APIRouter, endpoints: _Endpoints) -> None:
    router.add_api_route(
        "/health/{session_id}", endpoints.health, methods=["GET"], summary="Look at a session",
        responses=error_docs(401, 403, 422, 503),
    )  # fmt: skip
    router.add_api_route(
        "/ticket/{session_id}", endpoints.ticket, methods=["POST"],
        summary="Get a single-use ticket for the stream's URL", responses=error_docs(401, 403, 422, 503),
    )  # fmt: skip
    router.add_api_route(
        "/sessions", endpoints.sessions, methods=["GET"], summary="List the sessions that the token may use",
        responses=error_docs(401, 403, 503),
    )  # fmt: skip


def _refuse_path(router: APIRouter) -> Callable[[Request, str], Coroutine[Any, Any, Response]]:
    """Return the endpoint for what is below the prefix and is none of ours: also there an error is JSON."""
    ours = [
        (route.methods, re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path.removeprefix(router.prefix + "/"))))
        for route in router.routes
        if isinstance(route, APIRoute)
    ]

    async def refuse(request: Request, rest: str) -> Response:
        allowed = sorted({method for methods, path in ours if path.fullmatch(rest) for method in methods or ()})
        if allowed:
            names = ", ".join(allowed)
            raise ApiError(
                405, "method_not_allowed", f"this path takes {names}, not {request.method}", headers={"Allow": names}
            )
        raise ApiError(404, "not_found", "there is no such path; the service's /docs lists what there is")

    return refuse


class _Endpoints:
    """The endpoints, as methods over one service. Every one reads its token and checks the right first."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._opening = Opening(service)

    async def events(self, request: Request, session_id: SessionId) -> Response:
        """Stream the session's events (protocol: Server-Sent Events). The token comes in the header or as `?token=`.

        Resume with the `Last-Event-ID` header or `?last_event_id=`.
        """
        return await self._opening.prepare(request, session_id)

    async def respond(self, request: Request, session_id: SessionId) -> Response:
        """Approve or deny. Exactly one answer wins; the same one repeated is fine, another one gets 409."""
        principal = self._principal(request)
        await self._service.authorizer.check(principal, session_id, PERMISSIONS_RESPOND)
        body = await requests.read_body(request, self._service.settings.max_body_bytes)
        answer = requests.check_answer(requests.parse_json(body))
        outcome = await self._service.permissions.answer(
            session_id, approved=answer.approved, reason=answer.reason, request_id=answer.request_id,
            subject=principal.subject,
        )  # fmt: skip
        return _answer_response(outcome)

    async def health(self, request: Request, session_id: SessionId) -> Response:
        """Show the session's streams, open permission requests and last event, and how Redis does."""
        principal = self._principal(request)
        await self._service.authorizer.check(principal, session_id, EVENTS_READ)
        hub, store = self._service.hub, self._service.store
        streams = {hub.process_id: hub.streams_of(session_id)}
        data: dict[str, Any] = {
            "session_id": session_id, "status": "degraded", "connections": streams[hub.process_id],
            "pending_permissions": [], "pending_total": 0, "last_event_id": None,
            "redis": {"ok": False, "latency_ms": None}, "retained_events": 0, "timestamp": events.timestamp(),
        }  # fmt: skip
        try:
            latency = await store.ping()
            found = await store.health(session_id)
        except (RedisUnavailable, RedisRefused):
            return success(data)
        # This process knows its own streams better than Redis, which is told once a second.
        data["connections"] = sum({**found.streams, **streams}.values())
        data["pending_permissions"] = [
            {**json.loads(payload)["data"], "presented": presented} for presented, payload in found.pending
        ]
        data["pending_total"] = found.pending_total
        data["last_event_id"] = _shown_id(found.tip)
        data["redis"] = {"ok": True, "latency_ms": round(latency, 3)}
        data["retained_events"] = found.retained_events
        data["status"] = "ok" if hub.alive else "degraded"
        return success(data)

    async def ticket(self, request: Request, session_id: SessionId) -> Response:
        """Exchange the bearer token for a ticket: opaque, read-only, for one stream of this session, within 30 s."""
        principal = self._principal(request)
        await self._service.authorizer.check(principal, session_id, EVENTS_READ)
        ticket = secrets.token_urlsafe(32)
        await self._service.store.keep_ticket(
            ticket, {"sub": principal.subject, "session": session_id, "exp": principal.expires_at}
        )
        return success({"token": ticket, "expires_in": TICKET_SECONDS})

    async def sessions(self, request: Request) -> Response:
        """List the sessions that the token names, or that its subject opened."""
        principal = self._principal(request)
        if not principal.allows(EVENTS_READ):
            raise ApiError(403, "scope_missing", f"this needs the scope '{EVENTS_READ}': use a token that carries it")
        store = self._service.store
        owned = await store.sessions_of(principal.subject)
        known = dict.fromkeys([*owned, *sorted(principal.sessions or ())])
        names = [name for name in known if not await self._service.authorizer.refuses(principal, name)]
        tips = await store.tips_of(names)
        rows = [
            {"session_id": name, "owned": name in owned, "last_event_id": _shown_id(tip)}
            for name, tip in zip(names, tips, strict=True)
        ]
        return success({"sessions": rows})

    def _principal(self, request: Request) -> Principal:
        if requests.query_tokens(request):
            raise ApiError(
                401, "token_in_url", "only the stream takes ?token=; send 'Authorization: Bearer <token>' here",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return self._service.verifier.verify(bearer(request.headers.getlist("authorization")))


def _shown_id(tip: EventId) -> str | None:
    return format_id(tip).decode() if tip > ZERO else None


def _answer_response(answer: Answer) -> Response:
    data: dict[str, Any] = {
        "request_id": answer.request_id, "tool_call_id": answer.tool_call_id, "tool_name": answer.tool_name,
        "approved": answer.status == "approved", "reason": answer.reason, "status": answer.status,
        "resolved_by": answer.resolved_by,
    }  # fmt: skip
    settled = f"the request was {answer.status} by {answer.resolved_by}"
    match answer.code:
        case "resolved":
            return success(data, message=f"the request is {answer.status}")
        case "repeated":
            return success({**data, "already_resolved": True}, message=f"{settled} already")
        case "conflict":
            raise ApiError(409, "already_resolved", f"{settled} before this answer came; it stays so", data=data)
        case "just_replaced":
            raise ApiError(
                409,
                "just_replaced",
                f"{settled}, and without a request_id this counts as an answer to it: until another request has been "
                "shown for a second, send the request_id of the one you mean",
                data=data,
            )
        case "ambiguous":
            raise ApiError(409, "ambiguous", "several requests are presented; send the request_id of the one you mean")
        case "gone":
            raise ApiError(410, str(answer.status), f"the request is {answer.status} and takes no answer", data=data)
        case "nothing":
            raise ApiError(404, "nothing_pending", "no permission request is presented in this session")
    raise ApiError(
        404, "unknown_request", "there is no such permission request in this session; health lists the open ones"
    )
