"""The endpoints of agents in other languages (protocol.md § 6b): publish, open and close sessions, ask for permission.

Anything but ``"approved": true`` means: do not run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from agent_sse import api_docs, events, requests
from agent_sse.api_errors import error_docs
from agent_sse.auth import EVENTS_PUBLISH
from agent_sse.decisions import SESSION_GONE, PermissionDecision, PermissionRequest
from agent_sse.errors import ApiError, SessionOwned
from agent_sse.incoming import read_event
from agent_sse.once import publish_once
from agent_sse.responses import success
from agent_sse.rights import SessionId, check_right
from agent_sse.service import Service

MAX_WAIT = 60.0  # s

WAIT_QUERY = api_docs.query_docs(
    (
        "wait", "query", {"type": "number", "minimum": 0, "maximum": MAX_WAIT, "default": 0},
        "seconds to wait for the decision; leaving ends the waiting",
    ),
)  # fmt: skip
KEY_HEADER = api_docs.query_docs(
    (
        "Idempotency-Key", "header", {"type": "string", "minLength": 1, "maxLength": requests.KEY_LIMIT},
        "your own name for this event: sent again with it, it is stored once and has the same id",
    ),
)  # fmt: skip
BODY_ERRORS = (400, 401, 403, 408, 413, 422, 503)


def add_agent_routes(router: APIRouter, service: Service) -> None:
    """Add the endpoints of this module."""
    endpoints = _AgentEndpoints(service)
    router.add_api_route(
        "/publish/{session_id}", endpoints.publish, methods=["POST"], summary="Publish an event", status_code=201,
        openapi_extra={"requestBody": api_docs.body_docs(api_docs.EVENT), "parameters": KEY_HEADER},
        responses={201: api_docs.PUBLISHED, **error_docs(*BODY_ERRORS, 409)},
    )  # fmt: skip
    router.add_api_route(
        "/sessions/{session_id}", endpoints.open_session, methods=["PUT"], summary="Open a session",
        openapi_extra={"requestBody": api_docs.body_docs(requests.SessionOpening)},
        responses={200: api_docs.OPENED, **error_docs(*BODY_ERRORS, 409)},
    )  # fmt: skip
    router.add_api_route(
        "/sessions/{session_id}", endpoints.close_session, methods=["DELETE"], summary="Close and erase a session",
        responses={200: api_docs.CLOSED, **error_docs(401, 403, 422, 503)},
    )  # fmt: skip
    _add_asking(router, endpoints)


def _add_asking(router: APIRouter, endpoints: _AgentEndpoints) -> None:
    answers: dict[int | str, dict[str, Any]] = {200: api_docs.DECISION, 202: api_docs.OPEN}
    router.add_api_route(
        "/permission-request/{session_id}", endpoints.ask, methods=["POST"], summary="Ask for permission",
        openapi_extra={"requestBody": api_docs.body_docs(requests.Question), "parameters": WAIT_QUERY},
        responses={**answers, **error_docs(*BODY_ERRORS, 409, 429)},
    )  # fmt: skip
    router.add_api_route(
        "/permission-request/{session_id}/{request_id}", endpoints.ask_again, methods=["GET"],
        summary="Ask for the decision again", openapi_extra={"parameters": WAIT_QUERY},
        responses={**answers, **error_docs(400, 401, 403, 404, 422, 429, 503)},
    )  # fmt: skip
    router.add_api_route(
        "/permission-request/{session_id}/{request_id}", endpoints.withdraw, methods=["DELETE"],
        summary="Withdraw a permission request",
        responses={200: api_docs.WITHDRAWN, **error_docs(401, 403, 404, 409, 422, 503)},
    )  # fmt: skip


class _AgentEndpoints:
    """The endpoints, as methods over one service. Every one reads its token and checks the right first."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def publish(self, request: Request, session_id: SessionId) -> Response:
        """Publish a `tool_status`, `tool_result`, `result_cleared` or `error`; the service alone sends the other types.

        Secrets in it are masked. With an `Idempotency-Key` it can be sent again: it is stored once; with another event
        the key is 409. Needs the scope `events:publish`.
        """
        principal = await check_right(self._service, request, session_id, EVENTS_PUBLISH)
        key = requests.read_idempotency_key(request)
        said = await self._body(request)
        limit = self._service.settings.max_event_bytes
        event = read_event(session_id, said, limit=limit, masker=self._service.masker)
        if key is None:
            event_id = await self._service.publisher.publish(event)
        else:
            store = self._service.store
            event_id = await publish_once(store, event, key=key, subject=principal.subject, said=said)
        return success({"id": event_id}, status=201)

    async def open_session(self, request: Request, session_id: SessionId) -> Response:
        """Register the session's owner, who may use it then; an owner is set once, and setting it again is fine.

        The token must list the session. Needs the scope `events:publish`.
        """
        await check_right(self._service, request, session_id, EVENTS_PUBLISH)
        wanted = requests.check_body(requests.SessionOpening, await self._body(request))
        owner = events.check_name(wanted.owner, "owner")
        if not await self._service.store.open(session_id, owner):
            raise SessionOwned("the session was opened by another owner; take another session id, or close it first")
        return success({"session_id": session_id, "owner": owner}, message="the session is open")

    async def close_session(self, request: Request, session_id: SessionId) -> Response:
        """Erase the session: its events, requests, owner. Streams end; the audit is kept.

        Needs the scope `events:publish`.
        """
        await check_right(self._service, request, session_id, EVENTS_PUBLISH)
        await self._service.store.close(session_id)
        return success({"session_id": session_id}, message="the session is closed")

    async def ask(self, request: Request, session_id: SessionId) -> Response:
        """Ask the user whether a tool may run. Anything but `"approved": true` means: do not run.

        While it is open (202), ask again within `ask_again_within` seconds, or the request is withdrawn; one with an
        `idempotency_key` stays until it expires. Needs the scope `events:publish`.
        """
        await check_right(self._service, request, session_id, EVENTS_PUBLISH)
        seconds = requests.read_seconds(request, "wait", most=MAX_WAIT)
        question = requests.check_body(requests.Question, await self._body(request))
        with self._service.waits.place(session_id):
            asked = await self._service.permissions.create(self._request(session_id, question))
            expires_at = events.timestamp(datetime.fromtimestamp(asked.expires_ms / 1000, UTC))
            return await self._decision(request, session_id, asked.request_id, seconds, expires_at)

    async def ask_again(self, request: Request, session_id: SessionId, request_id: str) -> Response:
        """Return the decision, or 202 while there is none. An approval is handed out once.

        Needs the scope `events:publish`.
        """
        await check_right(self._service, request, session_id, EVENTS_PUBLISH)
        seconds = requests.read_seconds(request, "wait", most=MAX_WAIT)
        with self._service.waits.place(session_id):
            expires_at = await self._expiry(session_id, request_id)
            return await self._decision(request, session_id, request_id, seconds, expires_at)

    async def withdraw(self, request: Request, session_id: SessionId, request_id: str) -> Response:
        """Withdraw a request. One that was answered stays answered (409). Needs the scope `events:publish`."""
        await check_right(self._service, request, session_id, EVENTS_PUBLISH)
        answer = await self._service.permissions.withdraw(session_id, request_id)
        data = {"request_id": answer.request_id, "status": answer.status}
        match answer.code:
            case "resolved":
                return success(data, message="the request is withdrawn")
            case "gone":
                return success({**data, "already_resolved": True}, message=f"the request is {answer.status} already")
            case "unknown":
                raise _unknown()
        raise ApiError(409, "already_resolved", f"the request was {answer.status} already; it stays so", data=data)

    async def _body(self, request: Request) -> Any:
        return await requests.read_json(request, self._service.settings.max_body_bytes)

    def _request(self, session_id: str, question: requests.Question) -> PermissionRequest:
        """Return the request; should its agent be lost while it is open, the servers say what became of the call."""
        call_id = question.tool_name if question.tool_call_id is None else question.tool_call_id
        gone = events.tool_status(
            status="cancelled", tool_name=question.tool_name, tool_call_id=call_id, risk_level=question.risk_level,
            parameters=self._service.masker.mask(question.parameters), start_time=events.timestamp(),
        )  # fmt: skip
        result = events.tool_result(
            tool_name=question.tool_name, tool_call_id=call_id, result=None, success=False,
            error="the agent was lost before the tool could run",
        )  # fmt: skip
        return PermissionRequest(
            session_id=session_id, tool_name=question.tool_name, parameters=question.parameters,
            risk_level=question.risk_level, timeout=question.timeout, tool_call_id=call_id, message=question.message,
            idempotency_key=question.idempotency_key, orphan=(events.head(gone), events.head(result)),
            server=question.server or "", editable=question.editable, schema=question.input_schema,
        )  # fmt: skip

    async def _expiry(self, session_id: str, request_id: str) -> str | None:
        """Return when an open request expires, None for one that is not open."""
        key = self._service.store.keyspace.session(session_id).requests
        payload = await self._service.store.backend.command("HGET", key, f"e:{request_id}")
        return str(json.loads(payload)["data"]["expires_at"]) if payload is not None else None

    async def _decision(
        self, request: Request, session_id: str, request_id: str, seconds: float, expires_at: str | None
    ) -> Response:
        """Wait, and answer with the decision or 202; without ``expires_at`` the request was not open before."""
        permissions = self._service.permissions
        found = await self._service.waits.run(permissions.wait(session_id, request_id, seconds=seconds), _left(request))
        if found is None and seconds > 0:  # what is promised below is a whole lease from now on
            found = await permissions.wait(session_id, request_id, seconds=0)
        if found is not None:
            decision, more = found
            if expires_at is None and decision.resolved_by is None and decision.reason == SESSION_GONE:
                raise _unknown()
            return success(decision_data(decision, more))
        if expires_at is None:
            raise _unknown()
        lease = self._service.settings.permission_lease
        data = {"request_id": request_id, "status": "pending", "expires_at": expires_at, "ask_again_within": lease}
        return success(data, message="the request is still open: ask again", status=202)


def decision_data(decision: PermissionDecision, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decision as agents get it; ``more`` is what else was answered. ``approved`` comes first."""
    said = {
        name: more[name]
        for name in ("grant_id", "parameters_patch", "edited_parameters", "edited_digest")
        if name in more
    }
    return {
        "approved": decision.approved, "request_id": decision.request_id, "outcome": decision.outcome,
        "reason": decision.reason, "resolved_by": decision.resolved_by, **said,
    }  # fmt: skip


def _unknown() -> ApiError:
    return ApiError(404, "unknown_request", "there is no such permission request in this session: ask anew")


async def _left(request: Request) -> None:
    # Servers drop what is sent to a client that has left: only receive() tells.
    while (await request.receive())["type"] != "http.disconnect":
        pass
