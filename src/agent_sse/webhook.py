"""The webhook: tells one fixed URL of permission requests that nobody answers. Sends only, and follows nothing.

Delivered at least once, and once when nothing fails: of all processes one takes a request, until its lease ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version

import httpx

from agent_sse.endpoint import Endpoint, body_of, delivery_id, pause_after, sign
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.registry import Claim, OpenRequest, Unanswered
from agent_sse.store import Store
from agent_sse.terminal import escape

log = logging.getLogger("agent_sse")

CONCURRENCY = 10  # requests to the receiver at a time
POLL_INTERVAL = 1.0  # s
RECHECK_MS = 1000  # until a request is due again whose session could not be read
LEASE_SLACK = 20.0  # s that a delivery may take besides its request: Redis is asked before it and told after it
RESPONSE_BYTES = 16 * 1024  # what is read of a response, so that its connection can be used again
CLOSE_GRACE = 3.0  # s
RETRIED = frozenset({408, 425, 429})  # of the 4xx; another one would be the answer to the next attempt too


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of one attempt. ``status`` is 0 when there was no answer, ``why`` says then what there was."""

    status: int = 0
    retry_after: str | None = None
    why: str = ""

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        return 400 <= self.status < 500 and self.status not in RETRIED

    def __str__(self) -> str:
        return f"HTTP status {self.status}" if self.status else self.why


class Webhook:
    """Sends for the open requests of all sessions, with other processes that do the same. Owned by the service."""

    def __init__(self, store: Store, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._queue = Unanswered(
            store, after_ms=int(endpoint.after * 1000), lease_ms=int((endpoint.timeout + LEASE_SLACK) * 1000)
        )
        self._agent = f"agent-sse/{version('agent-sse')}"
        self._deliveries: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._troubled = False

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run(), name="agent-sse webhook")
        self._task.add_done_callback(_report_death)

    async def aclose(self) -> None:
        """Stop; deliveries under way get a moment to end. One that does not is made again by another process."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_GRACE)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """Whether it runs; readiness fails when it does not."""
        return self._task is not None and not self._task.done()

    # -- what is due ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        with _origin_only(self._endpoint):
            async with self._client() as client:
                try:
                    while not self._closing.is_set():
                        await self._rest(await self._take(client))
                    if self._deliveries:
                        await asyncio.wait(self._deliveries)
                finally:
                    for task in self._deliveries:
                        task.cancel()
                    await asyncio.gather(*self._deliveries, return_exceptions=True)

    async def _take(self, client: httpx.AsyncClient) -> float:
        """Begin what is due, as far as there is room; return the seconds until there may be more."""
        free = CONCURRENCY - len(self._deliveries)
        if not free:
            await asyncio.wait(self._deliveries, return_when=asyncio.FIRST_COMPLETED)
            return 0.0
        try:
            rest, claims = await self._queue.claim(free)
        except (RedisUnavailable, RedisRefused) as error:
            if not self._troubled:
                log.warning("the webhook waits for Redis: %s", error)
            self._troubled = True
            return POLL_INTERVAL
        self._troubled = False
        for claim in claims:
            task = asyncio.create_task(self._deliver(client, claim), name="agent-sse webhook delivery")
            self._deliveries.add(task)
            task.add_done_callback(self._ended)
        return 0.0 if len(claims) == free else min(POLL_INTERVAL, POLL_INTERVAL if rest is None else rest)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._deliveries.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a webhook delivery broke off and will be made again", exc_info=error)

    # -- one delivery ---------------------------------------------------------------------------------------------

    async def _deliver(self, client: httpx.AsyncClient, claim: Claim) -> None:
        try:
            request = await self._queue.read(claim)
        except (RedisUnavailable, RedisRefused) as error:
            log.warning("session %s: request %s: the webhook waits for Redis: %s", *claim.name, error)
            await self._note(claim, lambda: self._queue.postpone(claim, RECHECK_MS, counted=False))
            return
        if request is None:
            log.info("session %s: request %s waits no longer: the webhook is not called", *claim.name)
            await self._note(claim, lambda: self._queue.forget(claim))
        elif claim.attempt > self._endpoint.attempts:
            log.warning("session %s: request %s: the webhook is given up, its last attempt broke off", *claim.name)
            await self._note(claim, lambda: self._queue.finish(claim, request.deadline_ms))
        else:
            await self._conclude(claim, request, await self._send(client, claim, request))

    async def _conclude(self, claim: Claim, request: OpenRequest, result: _Result) -> None:
        if result.delivered:
            log.info("session %s: request %s: the webhook was called", *claim.name)
        elif result.refused or claim.attempt >= self._endpoint.attempts:
            log.warning(
                "session %s: request %s: the webhook is given up after attempt %d: %s",
                *claim.name, claim.attempt, result,
            )  # fmt: skip
        else:
            pause = pause_after(claim.attempt, result.retry_after)
            log.info("session %s: request %s: attempt %d of the webhook: %s", *claim.name, claim.attempt, result)
            await self._note(claim, lambda: self._queue.postpone(claim, int(pause * 1000)))
            return
        await self._note(claim, lambda: self._queue.finish(claim, request.deadline_ms))

    async def _note(self, claim: Claim, write: Callable[[], Awaitable[None]]) -> None:
        """Tell Redis what became of a claim, again and again until its lease ends: then somebody takes it anew."""
        while True:
            try:
                await write()
                return
            except (RedisUnavailable, RedisRefused) as error:
                if time.monotonic() + POLL_INTERVAL >= claim.taken_at + self._endpoint.timeout + LEASE_SLACK:
                    log.warning("session %s: request %s: Redis was not told of the webhook: %s", *claim.name, error)
                    return
            await asyncio.sleep(POLL_INTERVAL)

    async def _send(self, client: httpx.AsyncClient, claim: Claim, request: OpenRequest) -> _Result:
        body, unix, name = body_of(claim, request, self._endpoint.after), int(time.time()), delivery_id(claim)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._agent,
            "webhook-id": name,
            "webhook-timestamp": str(unix),
            "webhook-signature": sign(self._endpoint.secrets, name, unix, body),
        }
        result = _Result(why="no answer in time")
        try:
            async with (
                asyncio.timeout(self._endpoint.timeout),
                client.stream("POST", self._endpoint.url, content=body, headers=headers) as response,
            ):
                result = _Result(response.status_code, response.headers.get("retry-after"))
                await _drain(response)
        except TimeoutError:
            pass
        except httpx.HTTPError as error:
            if not result.status:
                result = _Result(why=escape(f"{type(error).__name__} {error}"[:200]).rstrip())
        return result

    def _client(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            follow_redirects=False,
            timeout=self._endpoint.timeout,
            limits=httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY),
        )
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a receiver's cookies are not kept
        return client


async def _drain(response: httpx.Response) -> None:
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > RESPONSE_BYTES:
            return  # the connection is closed then


@contextlib.contextmanager
def _origin_only(endpoint: Endpoint) -> Iterator[None]:
    """Keep the URL's path and query out of the lines that httpx logs of each request."""

    def shorten(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                endpoint.origin if isinstance(arg, httpx.URL) and arg == endpoint.url else arg for arg in record.args
            )
        return True

    logger = logging.getLogger("httpx")
    logger.addFilter(shorten)
    try:
        yield
    finally:
        logger.removeFilter(shorten)


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s died; this process is not ready any more", task.get_name(), exc_info=task.exception())
