"""Long polling: one request's worth of a session's stream, as JSON, for clients behind a proxy that holds streams back.

Each poll is a stream of the hub's that ends at the first thing it has to say, so cursor, order and no-loss rules are
the stream's own. Nothing here reads Redis by itself.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from agent_sse import requests
from agent_sse.auth import EVENTS_READ, Principal
from agent_sse.errors import ApiError
from agent_sse.event_sink import EventSink
from agent_sse.frames import format_id
from agent_sse.responses import JSON_HEADERS
from agent_sse.rights import check_right
from agent_sse.service import Service
from agent_sse.stream import Connection

DEFAULT_WAIT, MAX_WAIT = 25.0, 55.0  # s; below the minute after which many proxies give up
READ_SECONDS = 5.0  # s for Redis to say what is there, also for a poll that does not wait
PAGE_EVENTS, PAGE_BYTES = 500, 1024 * 1024  # with an id, of one answer; at least one event is in it

_HEARTBEAT = b'{"type":"heartbeat"'
_RESET = b'{"type":"stream_reset"'
_ERROR = b'{"type":"error"'
_UNAVAILABLE = b'"code":"unavailable"}'  # the last word of a stream that Redis refused
_TYPE = re.compile(rb'\{\s*"type"\s*:\s*("[a-z_]+")\s*,\s*(?P<data>"data"\s*:\s*)?')
_REASON = re.compile(rb'"reason":("[a-z_]+")')


class Page(EventSink):
    """Gathers what one poll answers with. ``last`` is the cursor to go on from, as ``b"<ms>-<seq>"``.

    ``read`` is set once Redis has said what there is, ``ready`` once there is something to answer with; the stream's
    end sets both. What comes after `ready` in the same step of the loop is taken too, within the page's bounds.
    """

    def __init__(self, cursor: bytes | None) -> None:
        super().__init__(self._gather)
        self.last = cursor
        self.read = asyncio.Event()
        self.ready = asyncio.Event()
        self.known = False  # whether Redis has said what there is; without that, an empty answer would be a guess
        self.ended = False
        self._events: list[tuple[bytes | None, bytes]] = []
        self._reset: bytes = b"null"
        self._numbered = 0  # events with an id
        self._size = 0
        self._full = False

    @property
    def empty(self) -> bool:
        """Whether there is no event to answer with."""
        return not self._events

    def finish(self) -> None:
        """Note the end of the stream."""
        self.ended = True
        self.read.set()
        self.ready.set()

    def body(self) -> bytes:
        """Return the response's body. Payloads stay as they are: no number or text changes on its way."""
        events = b",".join(_event(event_id, payload) for event_id, payload in self._events)
        return b'{"success":true,"data":{"events":[%b],"last_event_id":%b,"reset":%b}}' % (
            events,
            _quoted(self.last),
            self._reset,
        )

    def _gather(self, event_id: bytes | None, payload: bytes | None) -> None:
        if self._full:
            return
        if payload is None:
            self._take_cursor(event_id)
        elif event_id is not None:
            self._take_event(event_id, payload)
        else:
            self._take_state(payload)

    def _take_cursor(self, event_id: bytes | None) -> None:
        self.last = event_id
        self.known = True
        self.read.set()
        if self._events:
            self.ready.set()

    def _take_event(self, event_id: bytes, payload: bytes) -> None:
        self._size += len(payload)
        if self._numbered and (self._numbered == PAGE_EVENTS or self._size > PAGE_BYTES):
            self._full = True  # the rest is for the next poll: `last` stays before it
            return
        self._numbered += 1
        self._events.append((event_id, payload))
        self._take_cursor(event_id)

    def _take_state(self, payload: bytes) -> None:
        """Take what has no id: a part of a snapshot, which a cursor ends; a repeated request; a stream's last word."""
        if payload.startswith(_HEARTBEAT) or payload.endswith(_UNAVAILABLE):
            return  # an answer is a sign of life itself, and a status says better that there is none
        if payload.startswith(_RESET):
            if self._events:
                self._full = True  # a reset comes first in an answer: the next poll gets it
                return
            found = _REASON.search(payload)
            self._reset = found[1] if found is not None else b"null"
        self._events.append((None, payload))
        # After the reading nothing but a repeated request comes so, unless there is a reset: no cursor will follow it.
        if payload.startswith(_ERROR) or (self.known and self._reset == b"null"):
            self.known = True
            self.ready.set()


def _event(event_id: bytes | None, payload: bytes) -> bytes:
    """Return ``{"id", "type", "data"}``; what an ``error`` has at the payload's top is in `data` here."""
    found = _TYPE.match(payload)
    if found is None:  # none of ours
        return b'{"id":%b,"type":null,"data":%b}' % (_quoted(event_id), payload)
    data = payload[found.end() : -1] if found["data"] is not None else b"{" + payload[found.end() :]
    return b'{"id":%b,"type":%b,"data":%b}' % (_quoted(event_id), found[1], data)


def _quoted(event_id: bytes | None) -> bytes:
    return b'"%b"' % event_id if event_id is not None else b"null"


class Polling:
    """Answers the polls of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, request: Request, session_id: str) -> Response:
        """Return what is after the request's cursor, or what comes within its ``wait``; without a cursor a snapshot.

        Raises ApiError 401, 403, 422, 429, 503, RedisUnavailable, RedisRefused.
        """
        service = self._service
        principal = await check_right(service, request, session_id, EVENTS_READ)
        wait = requests.read_seconds(request, "wait", most=MAX_WAIT, default=DEFAULT_WAIT)
        if service.hub.closing:
            raise _ending()
        cursor, reason = requests.read_cursor(request)
        page = Page(format_id(cursor) if cursor is not None else None)
        connection = Connection(session_id, cursor=cursor, reset_reason=reason)
        service.hub.join(connection)
        try:
            service.hub.start(connection, page)
            gathering = _gather(page, wait, self._left(principal))
            await service.waits.run(gathering, requests.until_left(request.receive))
        finally:
            service.hub.leave(connection)
        self._check(page)
        return Response(page.body(), media_type="application/json", headers=JSON_HEADERS)

    def _left(self, principal: Principal) -> float:
        """Return for how many seconds the token is good still."""
        left = principal.expires_at - time.time()
        return left if left > 0 else left + self._service.settings.jwt_leeway

    def _check(self, page: Page) -> None:
        """Raise ApiError 503 when an empty answer would say of a session what nobody knows."""
        if self._service.hub.closing:
            if page.last is None:
                raise _ending()
            return  # the client goes on elsewhere from the cursor that it has
        if page.known and not (page.ended and page.empty):
            return
        if page.ended:
            raise ApiError(503, "unavailable", "the event store refused to serve; poll again later", retry_after=10)
        raise ApiError(
            503, "redis_unavailable", "the event store cannot be reached; poll again with the same cursor",
            retry_after=2,
        )  # fmt: skip


async def _gather(page: Page, wait: float, left: float) -> None:
    """Wait until the page has something to say, ``wait`` seconds at most, and ``left`` in any case."""
    start = asyncio.get_running_loop().time()
    with suppress(TimeoutError):
        async with asyncio.timeout_at(start + min(max(wait, READ_SECONDS), left)):
            await page.read.wait()
        async with asyncio.timeout_at(start + min(wait, left)):
            await page.ready.wait()


def _ending() -> ApiError:
    return ApiError(503, "shutting_down", "this process is about to end; poll again", retry_after=1)
