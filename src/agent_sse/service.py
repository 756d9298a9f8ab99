"""What one process needs to serve streams, answers and agents, wired up. Built by `app` and `routes`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_sse import access_log
from agent_sse.audit import Audit
from agent_sse.auth import Authorizer, Principal, TokenVerifier
from agent_sse.backend import Backend
from agent_sse.embedded import EmbeddedValkey
from agent_sse.hub import Hub
from agent_sse.masking import Masker
from agent_sse.permissions import Permissions
from agent_sse.publisher import Publisher
from agent_sse.registry import Registry
from agent_sse.settings import Settings
from agent_sse.shutdown import on_shutdown
from agent_sse.state_dir import state_dir
from agent_sse.store import Store
from agent_sse.waits import Waits
from agent_sse.wakes import Wakes

if TYPE_CHECKING:
    from agent_sse.audit_file import AuditFile
    from agent_sse.endpoint import Endpoint
    from agent_sse.webhook import Webhook

log = logging.getLogger("agent_sse")

Authorize = Callable[[Principal, str], bool | Awaitable[bool | None] | None]


@dataclass(frozen=True, slots=True)
class _Parts:
    store: Store
    hub: Hub
    permissions: Permissions
    audit: Audit
    publisher: Publisher
    waits: Waits
    authorizer: Authorizer
    followers: tuple[Webhook | AuditFile, ...]


class Service:
    """The parts of a running service. Settings are checked here; connections are made by :meth:`running`.

    Raises :class:`~agent_sse.errors.ConfigurationError` when a setting is wrong.
    """

    def __init__(self, settings: Settings, authorize: Authorize | None = None) -> None:
        self.settings = settings
        self.verifier = TokenVerifier(settings)
        self.masker = Masker(settings.mask_keys)
        self._endpoint = _endpoint(settings)
        self._authorize = authorize
        self._parts: _Parts | None = None
        access_log.install()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all parts, and the embedded Valkey unless a Redis URL is set; on SIGTERM and SIGINT end what is open.

        Raises :class:`~agent_sse.errors.ConfigurationError` when the audit file cannot be written.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self._forget)
            url = self.settings.redis_url
            if not url:
                embedded = EmbeddedValkey(state_dir(self.settings.state_dir))
                url = await embedded.start()
                stack.push_async_callback(embedded.aclose)
            parts = self._parts = await self._start(url, stack)
            with on_shutdown(lambda: _end(parts)):
                yield

    async def _start(self, url: str, stack: AsyncExitStack) -> _Parts:
        """Start the parts; ``stack`` ends them, the last one first."""
        settings = self.settings
        backend = Backend(url)
        stack.push_async_callback(backend.aclose)
        store, wakes = Store(backend, settings), Wakes(backend)
        registry = Registry(store)
        permissions = Permissions(store, wakes, registry)
        stack.push_async_callback(permissions.aclose)
        publisher = Publisher(store, timeout=settings.publish_timeout)
        stack.push_async_callback(publisher.aclose)
        hub = Hub(store, settings)
        hub.run()
        stack.push_async_callback(hub.aclose)
        followers = await self._follow(store, registry, stack)
        waits = Waits(most=settings.max_streams, most_per_session=settings.max_streams_per_session)
        stack.callback(waits.close)
        return _Parts(
            store, hub, permissions, Audit(store, registry), publisher, waits,
            Authorizer(store.owner_of, self._authorize), followers,
        )  # fmt: skip

    async def _follow(self, store: Store, registry: Registry, stack: AsyncExitStack) -> tuple[Webhook | AuditFile, ...]:
        followers: list[Webhook | AuditFile] = []
        if self._endpoint is not None:
            from agent_sse.webhook import Webhook

            webhook = Webhook(store, self._endpoint)
            webhook.start()
            stack.push_async_callback(webhook.aclose)
            followers.append(webhook)
        if self.settings.audit_file is not None:
            from agent_sse.audit_file import AuditFile

            file = AuditFile(store, registry, self.settings.audit_file)
            await file.start()
            stack.push_async_callback(file.aclose)
            followers.append(file)
        return tuple(followers)

    def _forget(self) -> None:
        self._parts = None

    def _running(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError(
                "agent-sse is not started: its router's lifespan did not run; mount it with app.include_router, "
                "or enter `router.lifespan_context` in your own lifespan"
            )
        return self._parts

    async def ready(self) -> bool:
        """Whether all parts run, and a message that this process publishes comes back to it."""
        parts = self._running()
        return all(follower.alive for follower in parts.followers) and await parts.hub.probe()

    @property
    def store(self) -> Store:
        """The sessions in Redis."""
        return self._running().store

    @property
    def hub(self) -> Hub:
        """The open streams."""
        return self._running().hub

    @property
    def permissions(self) -> Permissions:
        """The permission requests."""
        return self._running().permissions

    @property
    def audit(self) -> Audit:
        """Who decided what."""
        return self._running().audit

    @property
    def publisher(self) -> Publisher:
        """The way of events that come over HTTP."""
        return self._running().publisher

    @property
    def waits(self) -> Waits:
        """The agents that wait over HTTP."""
        return self._running().waits

    @property
    def authorizer(self) -> Authorizer:
        """Who may use which session."""
        return self._running().authorizer


def _end(parts: _Parts) -> None:
    parts.hub.shutdown()
    parts.waits.close()


def _endpoint(settings: Settings) -> Endpoint | None:
    """Return where the webhook goes; who has none needs no HTTP client. Raises :class:`ConfigurationError`."""
    if not settings.webhook_url:
        return None
    from agent_sse.endpoint import Endpoint

    return Endpoint.of(settings)
