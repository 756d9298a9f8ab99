"""From a request to a principal with a right: the token in the header, its scope, the session. Not for the stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request

from agent_sse import requests
from agent_sse.auth import Principal, bearer
from agent_sse.errors import ApiError
from agent_sse.keys import SESSION_ID, SESSION_ID_RULE
from agent_sse.service import Service

SessionId = Annotated[str, Path(description=SESSION_ID_RULE, pattern=f"^{SESSION_ID.pattern}$")]


def principal_of(service: Service, request: Request) -> Principal:
    """Return whose token is in the header. Raises ApiError 401, also for a token in the URL."""
    if requests.query_tokens(request):
        raise ApiError(
            401, "token_in_url", "only the stream takes ?token=; send 'Authorization: Bearer <token>' here",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return service.verifier.verify(bearer(request.headers.getlist("authorization")))


async def check_right(service: Service, request: Request, session_id: str, scope: str) -> Principal:
    """Return the principal if he may use the session with ``scope``.

    Raises ApiError 401, 403, and RedisUnavailable when only Redis knows.
    """
    principal = principal_of(service, request)
    await service.authorizer.check(principal, session_id, scope)
    return principal
