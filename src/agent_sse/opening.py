"""From a request to an open stream: its token, its right, its cursor. For FastAPI's route and for the way around it."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_sse import requests
from agent_sse.api_errors import to_api_error
from agent_sse.auth import EVENTS_READ, Principal, bearer
from agent_sse.errors import ApiError
from agent_sse.keys import SESSION_ID
from agent_sse.responses import EventStream, failure
from agent_sse.service import Service

TICKET = re.compile(r"[A-Za-z0-9_-]{43}")


class Opening:
    """Opens streams of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def prepare(self, request: Request, session_id: str) -> EventStream:
        """Return the response that is the stream.

        Raises ApiError, RedisUnavailable, RedisRefused. Awaits nothing when the token alone lists the session.
        """
        principal = self._verified(request) or await self._take_ticket(requests.query_tokens(request)[0])
        authorizer = self._service.authorizer
        if not authorizer.decide_now(principal, session_id, EVENTS_READ):
            await authorizer.check(principal, session_id, EVENTS_READ)
        cursor, reason = requests.read_cursor(request)
        return EventStream(self._service.hub, principal, session_id, cursor=cursor, reset_reason=reason)

    def _verified(self, request: Request) -> Principal | None:
        """Return the principal of the token in the header or in the URL; None for a ticket there."""
        header, query = request.headers.getlist("authorization"), requests.query_tokens(request)
        if header or not query:
            return self._service.verifier.verify(bearer(header))
        if len(query) > 1:
            return self._service.verifier.verify("")
        return None if TICKET.fullmatch(query[0]) else self._service.verifier.verify(query[0])

    async def _take_ticket(self, ticket: str) -> Principal:
        content = await self._service.store.take_ticket(ticket)
        if content is None:
            raise ApiError(
                401, "ticket_invalid", "the ticket is unknown, used or older than 30 s; POST /ticket gives a new one",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return Principal(
            subject=content["sub"], scopes=frozenset({EVENTS_READ}), sessions=frozenset({content["session"]}),
            expires_at=content["exp"], read_only=True,
        )  # fmt: skip


class StreamsFirst:
    """ASGI middleware that serves the stream's path itself, before FastAPI's routing; everything else passes.

    What FastAPI wraps around a request lives as long as the request, and costs more than all the rest of opening a
    stream. Here the request ends as soon as the stream has its connection. ``prefix`` is the path before the session.
    """

    def __init__(self, app: ASGIApp, *, opening: Opening, prefix: str) -> None:
        self._app = app
        self._opening = opening
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        session_id = self._session(scope)
        if session_id is None:
            await self._app(scope, receive, send)
            return
        try:
            stream = await self._opening.prepare(Request(scope), session_id)
        except Exception as error:  # mapped, or raised again for the application's own handlers
            known = to_api_error(error)
            if known is None:
                raise
            await failure(known)(scope, receive, send)
        else:
            await stream.open(scope, receive, send)

    def _session(self, scope: Scope) -> str | None:
        """Return the session whose stream is asked for; None for any other request, also for what is no session id."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return None
        path, root = scope["path"], scope.get("root_path", "")
        if not path.startswith(self._prefix, len(root)):
            return None
        session_id: str = path[len(root) + len(self._prefix) :]
        return session_id if SESSION_ID.fullmatch(session_id) else None
