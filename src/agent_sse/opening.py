"""From a request to an open stream: its token, its right, its cursor. For FastAPI's route and for the way past it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_sse import requests
from agent_sse.api_errors import INTERNAL, to_api_error
from agent_sse.auth import EVENTS_READ, Principal, bearer
from agent_sse.errors import ApiError
from agent_sse.keys import SESSION_ID
from agent_sse.responses import EventStream, failure
from agent_sse.service import Service

log = logging.getLogger("agent_sse")

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


class StreamPath:
    """The stream's path as an ASGI application of its own, for requests that :meth:`matches`.

    ``prefix`` is the path before the session id; ``wrap`` puts middleware around it.
    """

    def __init__(self, opening: Opening, prefix: str, *, wrap: Callable[[ASGIApp], ASGIApp] | None = None) -> None:
        self._opening = opening
        self._prefix = prefix
        self._app: ASGIApp = self._open if wrap is None else wrap(self._open)

    def matches(self, scope: Scope) -> bool:
        """Whether a request is for a stream; not if what it names is no session id."""
        return scope["method"] == "GET" and SESSION_ID.fullmatch(self._session(scope)) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that matches."""
        await self._app(scope, receive, send)

    def _session(self, scope: Scope) -> str:
        path, root = scope["path"], len(scope.get("root_path", ""))
        return path[root + len(self._prefix) :] if path.startswith(self._prefix, root) else ""

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            stream = await self._opening.prepare(Request(scope), self._session(scope))
        except Exception as error:
            known = to_api_error(error)
            if known is None:
                # What nobody foresaw is logged with its traceback; the client learns nothing of it.
                log.exception("a stream could not be opened")
            await failure(known or INTERNAL)(scope, receive, send)
        else:
            await stream.open(scope, receive, send)
