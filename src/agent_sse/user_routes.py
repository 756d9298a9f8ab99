"""The endpoints of people and their pages: stream, answers, cancelling, remembered answers, audit, health, tickets."""

from __future__ import annotations

import json
import secrets
from typing import Any

from fastapi import APIRouter, Request, Response

from agent_sse import api_docs, cancels, event_models, events, grants, requests
from agent_sse.api_errors import error_docs
from agent_sse.audit import AuditEntry
from agent_sse.auth import EVENTS_READ, PERMISSIONS_RESPOND
from agent_sse.decisions import Answer
from agent_sse.errors import ApiError, RedisRefused, RedisUnavailable
from agent_sse.frames import ZERO, EventId, format_id, parse_id
from agent_sse.opening import Opening
from agent_sse.polling import DEFAULT_WAIT, MAX_WAIT, Polling
from agent_sse.responses import success
from agent_sse.rights import SessionId, check_right, principal_of
from agent_sse.service import Service
from agent_sse.store import TICKET_SECONDS

AUDIT_DEFAULT, AUDIT_MOST = 100, 1000  # entries
AUDIT_BYTES = 4 * 1024 * 1024  # of one response; at least one entry is in it
AUDIT_PAGE = 20  # entries read at a time: one may be larger than an event

# What an answer says beyond yes or no, as clients see it.
SAID = ("scope", "covers", "grant_id", "parameters_patch", "edited_parameters", "edited_digest")

# Read by hand, because a wrong one is no 422: a token that is not there is 401, a bad cursor a stream_reset.
STREAM_QUERY = api_docs.query_docs(
    ("token", "query", api_docs.TEXT, "the JWT or a ticket, for browsers' EventSource, which cannot set headers"),
    ("Last-Event-ID", "header", api_docs.TEXT, "resume after this event id; 0-0 asks for everything"),
    ("last_event_id", "query", api_docs.TEXT, "the same as Last-Event-ID, which wins"),
)
POLL_QUERY = [
    *STREAM_QUERY[1:],
    *api_docs.query_docs(
        (
            "wait", "query", {"type": "number", "minimum": 0, "maximum": MAX_WAIT, "default": DEFAULT_WAIT},
            "seconds to wait for the next event, when there is none yet",
        ),
    ),
]  # fmt: skip
AUDIT_QUERY = api_docs.query_docs(
    ("after", "query", api_docs.TEXT, "the id of the entry after which to begin"),
    (
        "limit", "query", {"type": "integer", "minimum": 1, "maximum": AUDIT_MOST, "default": AUDIT_DEFAULT},
        "entries at most; there may be fewer in one response though there are more",
    ),
)  # fmt: skip


def add_user_routes(router: APIRouter, service: Service) -> None:
    """Add the endpoints of this module."""
    endpoints = _UserEndpoints(service)
    _add_answering(router, endpoints)
    _add_looking(router, endpoints)


def _add_answering(router: APIRouter, endpoints: _UserEndpoints) -> None:
    router.add_api_route(
        "/permission-response/{session_id}", endpoints.respond, methods=["POST"], summary="Answer a permission request",
        openapi_extra={"requestBody": api_docs.body_docs(requests.PermissionAnswer)},
        responses={200: api_docs.ANSWERED, **error_docs(400, 401, 403, 404, 408, 409, 410, 413, 422, 503)},
    )  # fmt: skip
    router.add_api_route(
        "/cancel/{session_id}", endpoints.cancel, methods=["POST"], summary="Cancel a tool call",
        openapi_extra={"requestBody": api_docs.body_docs(requests.CallCancellation)},
        responses={
            200: api_docs.answer_docs(api_docs.CANCELLED, "it waited for permission, which is withdrawn"),
            202: api_docs.answer_docs(api_docs.CANCELLED, "its agent is told to stop it"),
            **error_docs(400, 401, 403, 404, 408, 409, 413, 422, 503),
        },
    )  # fmt: skip
    router.add_api_route(
        "/grants/{session_id}/{grant_id}", endpoints.revoke, methods=["DELETE"], summary="Forget a remembered answer",
        responses={200: api_docs.REVOKED, **error_docs(401, 403, 404, 422, 503)},
    )  # fmt: skip


def _add_looking(router: APIRouter, endpoints: _UserEndpoints) -> None:
    router.add_api_route(
        "/events/{session_id}", endpoints.events, methods=["GET"], summary="Open the event stream",
        responses={
            200: {
                "description": "the stream: the `data` of each event is one line of this JSON",
                "content": {"text/event-stream": {"schema": event_models.inlined()}},
            },
            **error_docs(401, 403, 422, 429, 503),
        },
        response_class=Response, openapi_extra={"parameters": STREAM_QUERY},
    )  # fmt: skip
    router.add_api_route(
        "/poll/{session_id}", endpoints.poll, methods=["GET"], summary="Poll for events, where no stream comes through",
        openapi_extra={"parameters": POLL_QUERY},
        responses={200: api_docs.POLLED, **error_docs(401, 403, 422, 429, 503)},
    )  # fmt: skip
    router.add_api_route(
        "/audit/{session_id}", endpoints.audit, methods=["GET"], summary="Read who decided what",
        openapi_extra={"parameters": AUDIT_QUERY}, responses={200: api_docs.AUDIT, **error_docs(401, 403, 422, 503)},
    )  # fmt: skip
    router.add_api_route(
        "/health/{session_id}", endpoints.health, methods=["GET"], summary="Look at a session",
        responses={200: api_docs.HEALTH, **error_docs(401, 403, 422, 503)},
    )  # fmt: skip
    router.add_api_route(
        "/ticket/{session_id}", endpoints.ticket, methods=["POST"],
        summary="Get a single-use ticket for the stream's URL",
        responses={200: api_docs.TICKET, **error_docs(401, 403, 422, 503)},
    )  # fmt: skip
    router.add_api_route(
        "/sessions", endpoints.sessions, methods=["GET"], summary="List the sessions that the token may use",
        responses={200: api_docs.SESSIONS, **error_docs(401, 403, 503)},
    )  # fmt: skip


class _UserEndpoints:
    """The endpoints, as methods over one service. Every one reads its token and checks the right first."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._opening = Opening(service)
        self._polling = Polling(service)

    async def events(self, request: Request, session_id: SessionId) -> Response:
        """Stream the session's events (protocol: Server-Sent Events). The token comes in the header or as `?token=`.

        Resume with the `Last-Event-ID` header or `?last_event_id=`. Needs the scope `events:read`.
        """
        return await self._opening.prepare(request, session_id)

    async def poll(self, request: Request, session_id: SessionId) -> Response:
        """Return the events after the cursor at once, or wait for the next; without a cursor the session's snapshot.

        Send `last_event_id` of the answer with the next poll: cursor, order and completeness are the stream's. The
        token comes in the header only. Needs the scope `events:read`.
        """
        return await self._polling.answer(request, session_id)

    async def respond(self, request: Request, session_id: SessionId) -> Response:
        """Approve or deny; with scope `session` for every time, with `parameters_patch` with other parameters.

        Exactly one answer wins; the same one repeated is fine, another one gets 409. Needs the scope
        `permissions:respond`.
        """
        principal = await check_right(self._service, request, session_id, PERMISSIONS_RESPOND)
        answer = requests.check_answer(await requests.read_json(request, self._service.settings.max_body_bytes))
        remember = (answer.covers or "arguments") if answer.scope == "session" else None
        outcome = await self._service.permissions.answer(
            session_id, approved=answer.approved, reason=answer.reason, request_id=answer.request_id,
            subject=principal.subject, remember=remember, patch=answer.parameters_patch,
        )  # fmt: skip
        return _answer_response(outcome)

    async def cancel(self, request: Request, session_id: SessionId) -> Response:
        """Cancel a tool call: what waits for permission is withdrawn (200), what runs is told to stop (202).

        The end of the call comes over the stream. Needs the scope `permissions:respond`.
        """
        principal = await check_right(self._service, request, session_id, PERMISSIONS_RESPOND)
        value = await requests.read_json(request, self._service.settings.max_body_bytes)
        wanted = requests.check_body(requests.CallCancellation, value)
        outcome = await cancels.cancel_call(
            self._service.store, session_id, wanted.tool_call_id, reason=wanted.reason, subject=principal.subject
        )
        data = {"tool_call_id": wanted.tool_call_id, "status": outcome}
        match outcome:
            case "withdrawn":
                return success(data, message="the call waited for permission; its request is withdrawn")
            case "cancelling":
                return success(data, message="the call's agent is told to stop it; the stream says its end", status=202)
            case "not_cancellable":
                raise ApiError(409, "not_cancellable", "the agent of this call does not listen for cancellations")
        raise ApiError(404, "unknown_call", "there is no such tool call in this session, or it is over")

    async def revoke(self, request: Request, session_id: SessionId, grant_id: str) -> Response:
        """Forget a remembered answer: from now on is asked again. What it has decided stays decided.

        Health lists them. Needs the scope `permissions:respond`.
        """
        principal = await check_right(self._service, request, session_id, PERMISSIONS_RESPOND)
        grant = await grants.revoke(self._service.store, session_id, grant_id, subject=principal.subject)
        if grant is None:
            raise ApiError(
                404, "unknown_grant", "there is no such remembered answer in this session; health lists them"
            )
        return success(grant, message="the answer is not remembered any more")

    async def audit(self, request: Request, session_id: SessionId) -> Response:
        """Show who decided what, when, on which parameters; it outlives the session. Needs the scope `events:read`."""
        await check_right(self._service, request, session_id, EVENTS_READ)
        after = requests.read_position(request, "after")
        limit = requests.read_count(request, "limit", default=AUDIT_DEFAULT, most=AUDIT_MOST)
        entries, following = await self._read_audit(session_id, after, limit)
        return success({"entries": [entry.as_json() for entry in entries], "next": following})

    async def _read_audit(
        self, session_id: str, after: EventId | None, limit: int
    ) -> tuple[list[AuditEntry], str | None]:
        """Return entries, and the id of the last one if there are more than fit."""
        entries: list[AuditEntry] = []
        size = 0
        while True:
            wanted = min(AUDIT_PAGE, limit + 1 - len(entries))  # one more tells whether there is more
            page = await self._service.audit.read(session_id, after=after, count=wanted)
            for entry in page:
                size += len(events.encode(entry.data))
                if entries and (len(entries) == limit or size > AUDIT_BYTES):
                    return entries, entries[-1].entry_id
                entries.append(entry)
            if len(page) < wanted:
                return entries, None
            after = parse_id(page[-1].entry_id.encode())

    async def health(self, request: Request, session_id: SessionId) -> Response:
        """Show the session's streams, open permission requests, remembered answers and last event, and how Redis does.

        Needs the scope `events:read`.
        """
        await check_right(self._service, request, session_id, EVENTS_READ)
        hub, store = self._service.hub, self._service.store
        streams = {hub.process_id: hub.streams_of(session_id)}
        data: dict[str, Any] = {
            "session_id": session_id, "status": "degraded", "connections": streams[hub.process_id],
            "pending_permissions": [], "pending_total": 0, "grants": [], "last_event_id": None,
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
        data["grants"] = grants.listed(found.grants)
        data["last_event_id"] = _shown_id(found.tip)
        data["redis"] = {"ok": True, "latency_ms": round(latency, 3)}
        data["retained_events"] = found.retained_events
        data["status"] = "ok" if hub.alive else "degraded"
        return success(data)

    async def ticket(self, request: Request, session_id: SessionId) -> Response:
        """Exchange the bearer token for a ticket: opaque, read-only, for one stream of this session, within 30 s.

        Needs the scope `events:read`.
        """
        principal = await check_right(self._service, request, session_id, EVENTS_READ)
        ticket = secrets.token_urlsafe(32)
        await self._service.store.keep_ticket(
            ticket, {"sub": principal.subject, "session": session_id, "exp": principal.expires_at}
        )
        return success({"token": ticket, "expires_in": TICKET_SECONDS})

    async def sessions(self, request: Request) -> Response:
        """List the sessions that the token names, or that its subject opened. Needs the scope `events:read`."""
        principal = principal_of(self._service, request)
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


def _shown_id(tip: EventId) -> str | None:
    return format_id(tip).decode() if tip > ZERO else None


def _answer_response(answer: Answer) -> Response:
    data: dict[str, Any] = {
        "request_id": answer.request_id, "tool_call_id": answer.tool_call_id, "tool_name": answer.tool_name,
        "approved": answer.status == "approved", "reason": answer.reason, "status": answer.status,
        "resolved_by": answer.resolved_by, **{name: answer.more[name] for name in SAID if name in answer.more},
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
        case "critical":
            raise ApiError(
                422, "critical_each_time", 'scope: what is critical is asked each time; answer it with "scope": "once"'
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
