"""Who waits in this process for a session's agents to be woken: one pub/sub reader for all of them.

Nothing here promises delivery: whoever listens also reads again by himself.
"""

from __future__ import annotations

from typing import Protocol

from agent_sse.backend import Backend
from agent_sse.pubsub import Subscriber


class Listener(Protocol):
    """What is called in the event loop; it must not block and must not raise."""

    def on_wake(self, data: bytes) -> None:
        """Take a message: a request id, ``closed``, or ``c:<tool call id>`` for a cancelled call."""

    def on_subscribed(self) -> None:
        """Look now: what was said before has no message."""


class Wakes:
    """The `wake` channels that are listened to. ``aclose`` ends the reader."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._subscriber: Subscriber | None = None
        self._listeners: dict[bytes, dict[Listener, None]] = {}

    async def aclose(self) -> None:
        """Stop listening."""
        if self._subscriber is not None:
            await self._subscriber.aclose()

    def add(self, channel: bytes, listener: Listener) -> None:
        """Call ``listener`` for what comes on the channel, until :meth:`remove`."""
        if self._subscriber is None:
            self._subscriber = Subscriber(self._backend, on_message=self._on_wake, on_subscribed=self._on_subscribed)
            self._subscriber.start()
        self._listeners.setdefault(channel, {})[listener] = None
        self._subscriber.add(channel)

    def remove(self, channel: bytes, listener: Listener) -> None:
        """Stop calling ``listener``; the last one of a channel ends its subscription."""
        listeners = self._listeners[channel]
        del listeners[listener]
        if not listeners and self._subscriber is not None:
            del self._listeners[channel]
            self._subscriber.remove(channel)

    def _on_wake(self, channel: bytes, data: bytes) -> None:
        for listener in list(self._listeners.get(channel, ())):
            listener.on_wake(data)

    def _on_subscribed(self, channel: bytes) -> None:
        for listener in list(self._listeners.get(channel, ())):
            listener.on_subscribed()
