"""The stand-alone application: `uvicorn --factory agent_sse.app:create_app`, or `agent-sse serve`."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

import agent_sse
from agent_sse import requests
from agent_sse.api_errors import INTERNAL, error_docs, to_api_error
from agent_sse.errors import ApiError
from agent_sse.opening import Opening, StreamPath
from agent_sse.pages import PageGuard, add_pages
from agent_sse.responses import failure, success
from agent_sse.routes import load_settings, router_of
from agent_sse.service import Authorize, Service
from agent_sse.settings import Settings


class _App(FastAPI):
    """FastAPI, with three things before it: tokens leave the URL, ``guard`` keeps pages, ``streams`` serves streams.

    The first, because FastAPI's own tracing would record them. The second, because FastAPI itself serves the API's
    description. The third, because what FastAPI wraps around a request lives as long as the request, and costs more
    than the rest of opening a stream; a middleware that was added to this application sees every request
    nevertheless, streams too.
    """

    guard: PageGuard | None = None
    streams: StreamPath | None = None
    own_middleware = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            requests.hide_token(scope)
            own = len(self.user_middleware) == self.own_middleware
            if own and self.streams is not None and self.streams.matches(scope):
                await self.streams(scope, receive, send)
                return
            refusal = self.guard.refusal(scope) if self.guard is not None else None
            if refusal is not None:
                await failure(refusal)(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _Cors(CORSMiddleware):
    """Starlette's middleware, with a JSON body for preflights as for everything else."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight request."""
        plain = super().preflight_response(request_headers)
        headers = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}
        response = success()
        if plain.status_code != 200:
            response = failure(
                ApiError(
                    plain.status_code,
                    "cors_refused",
                    "this origin, method or header is not allowed (AGENT_SSE_CORS_ORIGINS)",
                )
            )
        response.headers.update(headers)
        return response


def create_app(settings: Settings | None = None, *, authorize: Authorize | None = None) -> FastAPI:
    """Return the application with all endpoints, ``/healthz``, ``/readyz`` and the page at ``/``.

    Raises :class:`~agent_sse.errors.ConfigurationError` when a setting is wrong.
    """
    settings = settings or load_settings()
    service = Service(settings, authorize)
    app = _App(
        title="agent-sse", version=agent_sse.__version__, redirect_slashes=False,
        description="Live tool events over Server-Sent Events, and the user's permission back.",
    )  # fmt: skip
    cors: dict[str, Any] = {
        "allow_origins": list(settings.cors_origins), "allow_methods": ["GET", "POST", "PUT", "DELETE"],
        "allow_headers": ["Authorization", "Content-Type", "Last-Event-ID", "Idempotency-Key"],
        "expose_headers": ["Retry-After", "Heartbeat-Interval"], "allow_credentials": False,
    }  # fmt: skip
    if settings.cors_origins:
        app.add_middleware(_Cors, **cors)
    app.streams = StreamPath(
        Opening(service),
        f"{settings.url_prefix}/events/",
        wrap=partial(_Cors, **cors) if settings.cors_origins else None,
    )
    app.own_middleware = len(app.user_middleware)
    app.state.agent_sse = service
    app.include_router(router_of(service))
    for kind in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _handle)
    _add_process_routes(app, service)
    add_pages(app, settings)
    app.guard = PageGuard(app, settings)
    return app


async def _handle(_: Request, error: Exception) -> Response:
    # What nobody foresaw is logged with its traceback by the server; the client learns nothing of it.
    return failure(to_api_error(error) or INTERNAL)


def _add_process_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["process"], summary="Is the process alive?")
    async def healthz() -> Response:
        return success({"status": "ok", "version": agent_sse.__version__})

    @app.get("/readyz", tags=["process"], summary="Does a message through Redis come back?", responses=error_docs(503))
    async def readyz() -> Response:
        if await service.ready():
            return success({"status": "ready", "streams": service.hub.open_streams})
        raise ApiError(
            503, "not_ready", "Redis does not answer, messages do not come back, or a part of the service has ended",
            retry_after=1,
        )  # fmt: skip
