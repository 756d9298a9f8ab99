"""The host over streamable HTTP: one address on this machine, sessions with a handshake, and requests without one.

https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent_sse.errors import AgentSseError
from agent_sse.mcp.gate import Gate
from agent_sse.mcp.guard import asgi, headers, messages
from agent_sse.mcp.guard.asgi import Receive, Refused, Scope, Send
from agent_sse.mcp.guard.messages import BadMessage, Message
from agent_sse.mcp.guard.relay import Relay
from agent_sse.mcp.guard.session import Session, Shared
from agent_sse.mcp.guard.sides import HostSide, ServerSide

PATH = "/mcp"
MAX_SESSIONS = 32  # each has a process of its own
IDLE = 1800.0  # s, until a session that nobody uses is ended
IDLE_SHARED = 300.0  # s; a new one is started when somebody asks
SWEEP = 15.0  # s
HEADER_MISMATCH = -32020

log = logging.getLogger("agent_sse.guard")


class HttpHost:
    """The ASGI application. ``connect`` makes a server for a session; ``port`` is the one it listens on."""

    def __init__(
        self, connect: Callable[[], Awaitable[ServerSide]], gate: Gate, *, port: int, call_timeout: float | None
    ) -> None:
        self._connect = connect
        self._gate = gate
        self._port = port
        self._call_timeout = call_timeout
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._shared: Shared | None = None
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except Refused as refused:
            await asgi.answer(send, refused.status, refused.body, **refused.headers)
        except BadMessage as bad:
            log.warning("refused a message of the host: %s", bad.text)
            await asgi.answer(send, 400, messages.error(bad.id, bad.code, bad.text).raw)
        except ConnectionResetError:
            pass  # nobody is there to be answered

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = asgi.headers_of(scope)
        named = dict(found)
        if not headers.is_local(named.get("host", ""), named.get("origin"), self._port):
            raise Refused(403, "this is for programs on this machine only: check Host and Origin")
        if scope["path"].rstrip("/") != PATH:
            raise Refused(404, f"there is nothing here; the MCP server is at {PATH}")
        modern = headers.VERSION in named and named[headers.VERSION] not in headers.HANDSHAKE_VERSIONS
        if scope["method"] == "POST":
            _check_media(named)
            passed = headers.passed_on(found)
            message = messages.from_host(await asgi.body_of(receive), passed)
            await (self._post_modern if modern else self._post)(message, found, receive, send)
        elif scope["method"] == "GET" and not modern:
            await self._get(self._session(named), named, receive, send)
        elif scope["method"] == "DELETE" and not modern:
            session = self._session(named)
            await self._end(session)
            await asgi.answer(send, 200)
        else:
            raise Refused(405, "this method is not for here", allow="POST" if modern else "GET, POST, DELETE")

    def _session(self, named: dict[str, str]) -> Session:
        session_id = named.get(headers.SESSION_ID)
        if session_id is None:
            raise Refused(400, "Mcp-Session-Id is missing: initialize first")
        session = self._sessions.get(session_id)
        if session is None or session.ended:
            raise Refused(404, "there is no such session, or not any more: initialize again")
        return session

    # -- with a handshake ---------------------------------------------------------------------------------------------

    async def _post(self, message: Message, found: list[tuple[str, str]], receive: Receive, send: Send) -> None:
        named = dict(found)
        if message.method == "initialize" and message.is_request and headers.SESSION_ID not in named:
            session = await self._open()
        else:
            session = self._session(named)
        if not message.is_request:
            await self._relay(session).from_host(message)
            if message.method == messages.CANCELLED:
                await session.cancelled(message)
            await asgi.answer(send, 202)
            return
        exchange = session.enter(message)
        try:
            await self._relay(session).from_host(message)
            answering = exchange.respond(send, modern=False, mcp_session_id=session.id)
            if not await asgi.until_gone(answering, receive) and message.method == messages.CALL:
                self._relay(session).host_left(message.request_id)
        finally:
            session.leave(exchange)
            if session.ended:
                await self._end(session)

    async def _get(self, session: Session, named: dict[str, str], receive: Receive, send: Send) -> None:
        if not _accepts(named, "text/event-stream"):
            raise Refused(406, "Accept has to allow text/event-stream")
        if headers.LAST_EVENT_ID in named:
            raise Refused(405, "streams are not resumed here", allow="POST, DELETE")
        if session.stream is not None:
            raise Refused(409, "this session has a stream already")
        stream = await session.listen()
        try:
            await asgi.until_gone(stream.respond(send, mcp_session_id=session.id), receive)
        finally:
            session.unlisten(stream)

    async def _open(self) -> Session:
        if len(self._sessions) + self._opening >= MAX_SESSIONS:
            raise Refused(503, f"{MAX_SESSIONS} sessions are open; end some of them", messages.INTERNAL_ERROR)
        session = Session()
        self._opening += 1
        try:
            session.serve(await self._make_relay(session))
        finally:
            self._opening -= 1
        self._sessions[session.id] = session
        return session

    async def _end(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        await session.aclose()

    # -- without one --------------------------------------------------------------------------------------------------

    async def _post_modern(self, message: Message, found: list[tuple[str, str]], receive: Receive, send: Send) -> None:
        if message.is_request and (wrong := headers.mismatch(message, found)) is not None:
            error = messages.error(message.id, HEADER_MISMATCH, wrong)
            await asgi.answer(send, asgi.STATUS[HEADER_MISMATCH], error.raw)
            return
        if message.is_response:
            raise Refused(400, "the server asks nothing here, so there is nothing to answer")
        shared = await self._get_shared()
        relay = self._relay(shared)
        if not message.is_request:
            # Anybody could name anybody's request: here one cancels by closing the response.
            if message.method != messages.CANCELLED:
                await relay.from_host(message)
            await asgi.answer(send, 202)
            return
        own, exchange = shared.enter(message)
        try:
            await relay.from_host(own)
            if not await asgi.until_gone(exchange.respond(send, modern=True), receive):
                relay.drop(own.request_id)
        finally:
            shared.leave(own.request_id)
            if message.method == "server/discover" and exchange.failed and not shared.busy:
                await self._end_shared()  # the server knows only the handshake

    async def _get_shared(self) -> Shared:
        async with self._starting:
            if self._shared is not None and self._shared.ended:
                await self._end_shared()
            if self._shared is None:
                shared = Shared()
                shared.serve(await self._make_relay(shared))
                self._shared = shared
            return self._shared

    async def _end_shared(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.aclose()

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _make_relay(self, host: HostSide) -> Relay:
        try:
            server = await self._connect()
        except AgentSseError as error:
            raise Refused(502, str(error), messages.INTERNAL_ERROR) from None
        return Relay(host, server, self._gate, call_timeout=self._call_timeout)

    @staticmethod
    def _relay(serving: Session | Shared) -> Relay:
        if serving.relay is None:
            raise Refused(404, "this session has not begun")
        return serving.relay

    async def sweep(self) -> None:
        """End what has ended or is not used, for ever."""
        while True:
            await asyncio.sleep(SWEEP)
            for session in list(self._sessions.values()):
                if session.ended or session.idle > IDLE:
                    await self._end(session)
            async with self._starting:
                if self._shared is not None and (self._shared.ended or self._shared.idle > IDLE_SHARED):
                    await self._end_shared()

    async def aclose(self) -> None:
        """End all sessions at once."""
        serving: list[Session | Shared] = [*self._sessions.values(), *([self._shared] if self._shared else [])]
        self._sessions.clear()
        self._shared = None
        await asyncio.gather(*(one.aclose() for one in serving))


def _check_media(named: dict[str, str]) -> None:
    if named.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Content-Type has to be application/json")
    if not (_accepts(named, "application/json") and _accepts(named, "text/event-stream")):
        raise Refused(406, "Accept has to allow application/json and text/event-stream")


def _accepts(named: dict[str, str], kind: str) -> bool:
    offered = {part.partition(";")[0].strip().lower() for part in named.get("accept", "").split(",")}
    return bool(offered & {kind, "*/*", kind.partition("/")[0] + "/*"})
