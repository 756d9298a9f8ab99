"""What one process needs to serve streams and answers, wired up. Built by `app` and `routes`, used by `routes`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from agent_sse import access_log
from agent_sse.auth import Authorizer, Principal, TokenVerifier
from agent_sse.backend import Backend
from agent_sse.embedded import EmbeddedValkey
from agent_sse.hub import Hub
from agent_sse.permissions import Permissions
from agent_sse.settings import Settings
from agent_sse.shutdown import on_shutdown
from agent_sse.state_dir import state_dir
from agent_sse.store import Store

log = logging.getLogger("agent_sse")

Authorize = Callable[[Principal, str], bool | Awaitable[bool | None] | None]


class Service:
    """The parts of a running service. Settings are checked here; connections are made by :meth:`running`.

    Raises :class:`~agent_sse.errors.ConfigurationError` when a setting is wrong.
    """

    def __init__(self, settings: Settings, authorize: Authorize | None = None) -> None:
        self.settings = settings
        self.verifier = TokenVerifier(settings)
        self._authorize = authorize
        self._parts: tuple[Store, Hub, Permissions, Authorizer] | None = None
        access_log.install()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the hub, and the embedded Valkey unless a Redis URL is set; end the streams on SIGTERM and SIGINT."""
        embedded = None if self.settings.redis_url else EmbeddedValkey(state_dir(self.settings.state_dir))
        url = await embedded.start() if embedded is not None else self.settings.redis_url
        try:
            backend = Backend(url)
            store = Store(backend, self.settings)
            hub = Hub(store, self.settings)
            permissions = Permissions(store)
            hub.run()
            self._parts = (store, hub, permissions, Authorizer(store.owner_of, self._authorize))
            try:
                with on_shutdown(hub.shutdown):
                    yield
            finally:
                await hub.aclose()
                await permissions.aclose()
                await backend.aclose()
        finally:
            self._parts = None
            if embedded is not None:
                await embedded.aclose()

    def _running(self) -> tuple[Store, Hub, Permissions, Authorizer]:
        if self._parts is None:
            raise RuntimeError(
                "agent-sse is not started: its router's lifespan did not run; mount it with app.include_router, "
                "or enter `router.lifespan_context` in your own lifespan"
            )
        return self._parts

    @property
    def store(self) -> Store:
        """The sessions in Redis."""
        return self._running()[0]

    @property
    def hub(self) -> Hub:
        """The open streams."""
        return self._running()[1]

    @property
    def permissions(self) -> Permissions:
        """The permission requests."""
        return self._running()[2]

    @property
    def authorizer(self) -> Authorizer:
        """Who may use which session."""
        return self._running()[3]
