"""The console's files over HTTP, read once, each with its ETag; and which paths answer to allowed hosts only.

Nothing here takes a token: what a session holds is behind the API.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from agent_sse.errors import ApiError
from agent_sse.hosts import AllowedHosts
from agent_sse.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff",
    "cache-control": "no-cache", "cross-origin-opener-policy": "same-origin",
}  # fmt: skip
METHODS = ["GET", "HEAD"]  # to HEAD the server sends no body: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.2
PAGE = "index.html"
KINDS = {PAGE: "text/html", "console.js": "text/javascript", "console.css": "text/css"}
PREFIX_PLACE = 'content="{}"'  # in the page's <meta name="agent-sse-prefix">


class _File:
    """A file's content with what HTTP says of it."""

    def __init__(self, content: bytes, kind: str) -> None:
        self._content = content
        self._kind = kind
        self._etag = f'"{hashlib.sha256(content).hexdigest()}"'

    def response(self, request: Request) -> Response:
        """Return the file, or 304 when the client has it.

        https://www.rfc-editor.org/rfc/rfc9110#section-13.1.2
        """
        headers = {**HEADERS, "etag": self._etag}
        tags = ",".join(request.headers.getlist("if-none-match")).split(",")
        known = {tag.strip().removeprefix("W/") for tag in tags}
        if known & {self._etag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(self._content, media_type=self._kind, headers=headers)


def _read(prefix: str) -> Mapping[str, _File]:
    folder = files("agent_sse") / "console"
    found = {name: (folder / name).read_text(encoding="utf-8") for name in KINDS}
    default = Settings.model_fields["url_prefix"].default
    found[PAGE] = found[PAGE].replace(PREFIX_PLACE.format(default), PREFIX_PLACE.format(prefix))
    return {name: _File(text.encode(), KINDS[name]) for name, text in found.items()}


def add_pages(app: FastAPI, settings: Settings) -> None:
    """Serve the console at ``/`` and its files below ``/console/``."""
    known = _read(settings.url_prefix)

    @app.api_route("/", methods=METHODS, include_in_schema=False)
    async def page(request: Request) -> Response:
        return known[PAGE].response(request)

    @app.api_route("/console/{name}", methods=METHODS, include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        if name == PAGE or name not in known:
            raise HTTPException(404, "there is no such file")
        return known[name].response(request)


class PageGuard:
    """Keeps the console and the API's description from requests that name another host."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        described = (app.docs_url, app.redoc_url, app.openapi_url, app.swagger_ui_oauth2_redirect_url)
        self._paths = {"/", "", *(path for path in described if path)}
        self._api = f"{settings.url_prefix}/"
        own = settings.host.lower()  # the address to listen on may be a name, which the operator chose
        self._hosts = AllowedHosts((*settings.allowed_hosts, *([] if own.startswith("*") else [own])))

    def refusal(self, scope: Scope) -> ApiError | None:
        """Return what to answer to a request for a page that must not have it, else None."""
        path: str = scope["path"]
        inside = path.removeprefix(scope.get("root_path", ""))
        if not (self._is_page(path) or self._is_page(inside)):
            return None
        if self._hosts.allow([value for name, value in scope["headers"] if name == b"host"]):
            return None
        return ApiError(
            421, "host_not_allowed",
            "the Host header is none of the names that these pages are served under: "
            "the operator lists them in AGENT_SSE_ALLOWED_HOSTS",
        )  # fmt: skip

    def _is_page(self, path: str) -> bool:
        if len(self._api) > 1 and path.startswith(self._api):
            return False  # whatever the prefix is: a token guards what is below it
        return path in self._paths or path.startswith("/console/")
