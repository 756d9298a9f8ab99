"""The HTTP endpoints under the prefix, as a FastAPI router that stands alone or in another application."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import ValidationError

from agent_sse import requests
from agent_sse.agent_routes import add_agent_routes
from agent_sse.api_errors import to_api_error
from agent_sse.errors import ApiError, ConfigurationError
from agent_sse.responses import failure
from agent_sse.service import Authorize, Service
from agent_sse.settings import Settings, describe
from agent_sse.user_routes import add_user_routes


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
    add_user_routes(router, service)
    add_agent_routes(router, service)
    if router.prefix:  # without one, all of the host's own paths would be behind it
        router.add_api_route(
            "/{rest:path}", _refuse_path(router), methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"],
            include_in_schema=False,
        )  # fmt: skip
    return router


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
