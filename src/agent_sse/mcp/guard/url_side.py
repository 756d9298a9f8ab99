"""The MCP server behind a URL (streamable HTTP): each request is a POST, whose response brings the answer.

https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#streamable-http
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from weakref import WeakSet

import httpx

from agent_sse.mcp.guard import headers, messages
from agent_sse.mcp.guard.events import EventParser, EventTooLong
from agent_sse.mcp.guard.messages import Id, Message, key
from agent_sse.mcp.guard.responses import Failed, body_of, messages_of, redirected, shown, told
from agent_sse.mcp.guard.sides import ServerGone

TIMEOUT = 30.0  # s, to connect, to send, and for what has no answer; how long an answer takes is not for this side
RESUME_DELAY = 1.0  # s, unless the server names another one
MAX_DELAY = 60.0  # s
MAX_RESUMES = 5  # in a row without a word
MAX_REDIRECTS = 3
CLOSE_TIMEOUT = 2.0  # s

Received = Callable[[Message, Id | None], Awaitable[None]]

log = logging.getLogger("agent_sse.guard")


@dataclass(slots=True)
class _Post:
    task: asyncio.Task[None]
    modern: bool


class UrlServer:
    """A connection to ``url``; ``fixed`` headers go with every request and win over the host's."""

    def __init__(self, url: str, fixed: Mapping[str, str]) -> None:
        self._url = url
        self._fixed = {name.lower(): value for name, value in fixed.items()}
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(TIMEOUT, read=None, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=8),
            headers={"accept-encoding": "identity"},
        )  # fmt: skip
        self._session: str | None = None
        self._version: str | None = None
        self._host: Mapping[str, str] = {}
        self._posts: dict[Id, _Post] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: WeakSet[asyncio.Task[None]] = WeakSet()
        self._listening: asyncio.Task[None] | None = None
        self._receive: Received | None = None
        self._running = asyncio.Event()
        self._closed = asyncio.Event()

    # -- the server's side of a relay ---------------------------------------------------------------------------------

    async def run(self, receive: Received) -> None:
        """Hand on what the server says, until this is closed."""
        self._receive = receive
        self._running.set()
        await self._closed.wait()

    def ending(self) -> str:
        """Say how the server ended, in a sentence for the host."""
        return "the connection to the MCP server is closed"

    async def send(self, message: Message) -> None:
        """Post a message; the answer to a request comes later. Raises :class:`ServerGone`."""
        await self._running.wait()
        if self._closed.is_set():
            raise ServerGone(self.ending())
        if message.headers:
            self._host = message.headers
        if message.is_request:
            task = self._spawn(self._ask(message))
            self._posts[key(message.request_id)] = _Post(task, message.is_modern)
        else:
            await self._tell(message)

    def cancel(self, request_id: Id, notification: Message) -> None:
        """Tell the server that a request is not wanted: by a notification, or without a handshake by hanging up."""
        post = self._posts.get(key(request_id))
        if post is not None and post.modern:
            post.task.cancel()
        elif not self._closed.is_set() and (post is not None or self._session is not None):
            self._telling.add(self._spawn(self._tell(notification)))

    async def aclose(self) -> None:
        """End the session and the connections."""
        if self._closed.is_set():
            return
        self._closed.set()
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*self._telling, return_exceptions=True)
                if self._session is not None:
                    await self._client.delete(self._url, headers=self._headers(None))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- requests -----------------------------------------------------------------------------------------------------

    def _headers(self, message: Message | None) -> dict[str, str]:
        made = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        made.update(self._host if message is None or not message.headers else message.headers)
        made.update(self._fixed)
        if message is not None and message.is_modern and message.is_request:
            return {**made, **headers.of(message)}
        if self._session is not None:
            made[headers.SESSION_ID] = self._session
        if self._version is not None and (message is None or message.method != "initialize"):
            made[headers.VERSION] = self._version
        return made

    async def _tell(self, message: Message) -> None:
        try:
            async with asyncio.timeout(TIMEOUT), self._request("POST", message) as response:
                if response.status_code >= 400:
                    log.warning("the MCP server answered %s with HTTP %d", message.method, response.status_code)
        except (httpx.HTTPError, TimeoutError, ValueError, Failed) as error:
            log.warning("the MCP server did not take %s: %s", message.method or "an answer", told(error))
        if message.method == "notifications/initialized" and self._listening is None:
            self._listening = self._spawn(self._listen())

    async def _ask(self, message: Message) -> None:
        request_id = message.request_id
        try:
            async with self._request("POST", message) as response:
                await self._take(response, message)
        except Failed as error:
            await self._fail(request_id, str(error))
        except (httpx.HTTPError, EventTooLong, ValueError) as error:
            await self._fail(request_id, f"the MCP server at {shown(self._url)} failed: {told(error)}")
        finally:
            post = self._posts.get(key(request_id))
            if post is not None and post.task is asyncio.current_task():
                del self._posts[key(request_id)]

    @asynccontextmanager
    async def _request(self, method: str, message: Message | None, **more: str) -> AsyncIterator[httpx.Response]:
        """Send a request, after redirects that stay where they are; any other would lead past the configuration."""
        url = httpx.URL(self._url)
        for _ in range(MAX_REDIRECTS + 1):
            content = None if message is None else message.raw
            request = self._client.build_request(
                method, url, content=content, headers={**self._headers(message), **more}
            )
            response = await self._client.send(request, stream=True)
            try:
                if not response.has_redirect_location:
                    yield response
                    return
                url = redirected(url, response)
            finally:
                await response.aclose()
        raise Failed("the MCP server redirects for ever")

    async def _fail(self, request_id: Id, text: str, code: int = messages.CONNECTION_CLOSED) -> None:
        await self._hand_on(messages.error(request_id, code, text), request_id)

    async def _hand_on(self, message: Message, related: Id | None) -> None:
        if self._receive is not None:
            await self._receive(message, related)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _take(self, response: httpx.Response, message: Message) -> None:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code >= 400:
            await self._take_refusal(response, message, kind)
            return
        if message.method == "initialize":
            self._session = response.headers.get(headers.SESSION_ID)
        if kind == "text/event-stream":
            await self._take_stream(response, message)
        elif kind == "application/json":
            for part in messages.from_server(await body_of(response)):
                if await self._take_part(part, message):
                    return
            raise Failed("the MCP server's response holds no answer")
        else:
            what = f"HTTP {response.status_code}, {kind or 'nothing'}"
            raise Failed(f"the MCP server answered with {what} instead of a message")

    async def _take_part(self, part: Message, message: Message) -> bool:
        """Hand a message on that came with a response. Return whether it is the answer."""
        is_answer = part.is_response and part.id is not None and key(part.id) == key(message.request_id)
        if is_answer and message.method == "initialize" and part.result is not None:
            version = part.result.get("protocolVersion")
            self._version = version if isinstance(version, str) and version.isascii() else None
        await self._hand_on(part, message.request_id)
        return is_answer

    async def _take_refusal(self, response: httpx.Response, message: Message, kind: str) -> None:
        status = response.status_code
        if kind == "application/json":
            with suppress(ValueError):
                for part in messages.from_server(await body_of(response)):
                    if "error" in part.body:
                        await self._hand_on(part.replaced(id=message.request_id), message.request_id)
                        return
        if status == 404 and self._session is None:
            await self._fail(message.request_id, "Not Found", messages.METHOD_NOT_FOUND)
        elif status == 404:
            await self._fail(message.request_id, "the MCP server has ended the session", messages.INVALID_REQUEST)
        else:
            hint = ": give the guard what it wants with --header" if status in {401, 403} else ""
            raise Failed(f"the MCP server at {shown(self._url)} answered with HTTP {status}{hint}")

    async def _take_stream(self, response: httpx.Response, message: Message) -> None:
        """Hand on the messages of a stream up to the answer; one that breaks off is resumed where it can be."""
        parser = EventParser()
        silent = 0
        while True:
            heard = False
            with suppress(httpx.TransportError):
                async for part in messages_of(response, parser):
                    heard = True
                    if await self._take_part(part, message):
                        return
            silent = 0 if heard else silent + 1
            if parser.last_id is None or silent > MAX_RESUMES:
                raise Failed("the MCP server's response broke off before the answer")
            await asyncio.sleep(min(RESUME_DELAY if parser.retry is None else parser.retry, MAX_DELAY))
            async with self._request("GET", None, **{headers.LAST_EVENT_ID: parser.last_id}) as resumed:
                if resumed.status_code >= 400:
                    raise Failed(f"the MCP server's response broke off, and it resumes none: {resumed.status_code}")
                parser = EventParser(last_id=parser.last_id, retry=parser.retry)
                async for part in messages_of(resumed, parser):
                    silent = 0
                    if await self._take_part(part, message):
                        return

    async def _listen(self) -> None:
        """Hand on what belongs to no request, for as long as the server offers that."""
        last_id: str | None = None
        delay = RESUME_DELAY
        while not self._closed.is_set():
            more = {} if last_id is None else {headers.LAST_EVENT_ID: last_id}
            try:
                async with self._request("GET", None, **more) as response:
                    if response.status_code >= 400:
                        return
                    parser = EventParser(last_id=last_id)
                    async for message in messages_of(response, parser):
                        await self._hand_on(message, None)
                        delay = RESUME_DELAY
                    last_id, delay = parser.last_id, delay if parser.retry is None else parser.retry
            except (httpx.HTTPError, EventTooLong, ValueError, Failed) as error:
                log.info("the stream from the MCP server broke off: %s", told(error))
            await asyncio.sleep(delay)
            delay = min(2 * delay + 0.1, MAX_DELAY)
