"""Cancelling a tool call from the browser: the user's side records it, the call's agent takes it and stops.

The record waits in Redis, so a lost message costs seconds; one that no agent takes closes the call's card.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent_sse import events, scripts
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.store import Store
from agent_sse.wakes import Wakes

log = logging.getLogger("agent_sse")

REREAD_INTERVAL = 2.0  # s; a lost wake-up costs this much
GRACE = 5.0  # s; an agent that has not taken a cancellation by then is gone

CancelOutcome = Literal["withdrawn", "cancelling", "not_cancellable", "unknown"]


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Who cancelled a call, and why."""

    by: str
    reason: str


OnCancel = Callable[[Cancellation], None]


async def cancel_call(store: Store, session_id: str, tool_call_id: str, *, reason: str, subject: str) -> CancelOutcome:
    """Cancel a call for a user: withdraw what it asks, or tell its agent to stop it. See cancel.lua."""
    reply = await store.run(
        scripts.CANCEL, session_id, tool_call_id, events.encode(reason), events.encode(subject), int(GRACE * 1000)
    )
    outcome: CancelOutcome = reply.decode()
    return outcome


class Cancels:
    """The running calls of this process that can be cancelled. ``aclose`` ends what watches for them."""

    def __init__(self, store: Store, wakes: Wakes) -> None:
        self._store = store
        self._wakes = wakes
        self._sessions: dict[str, _Session] = {}
        self._due: set[str] = set()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def watch(self, session_id: str, tool_call_id: str, on_cancel: OnCancel) -> Callable[[], None]:
        """Call ``on_cancel``, once, when a user cancels the call. Returns what ends the watching."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session(
                self._store.keyspace.session(session_id).wake, self, session_id
            )
            self._wakes.add(session.channel, session)
            self._work.set()  # from now on there is something to read again
        # Nobody can cancel the call yet: users hear of it later. So there is nothing to look for at once.
        session.calls[tool_call_id] = on_cancel
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="agent-sse cancellations")

        def end() -> None:
            if session.calls.get(tool_call_id) is on_cancel:
                del session.calls[tool_call_id]

        return end

    def look(self, session_id: str) -> None:
        """Read soon whether calls of the session were cancelled."""
        self._due.add(session_id)
        self._work.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        again = loop.time()  # by the clock: other work must not put it off
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(again if self._sessions else None):
                    await self._work.wait()
            self._work.clear()
            if loop.time() >= again:
                again = loop.time() + REREAD_INTERVAL
                self._leave_idle()
                self._due.update(self._sessions)
            due, self._due = self._due, set()
            await asyncio.gather(*(self._take(session_id) for session_id in due))

    def _leave_idle(self) -> None:
        """Listen no more to sessions without a call; at once would be a subscription for each of an agent's calls."""
        for session_id, session in list(self._sessions.items()):
            if not session.calls:
                del self._sessions[session_id]
                self._wakes.remove(session.channel, session)

    async def _take(self, session_id: str) -> None:
        session = self._sessions.get(session_id)
        if session is None or not session.calls:
            return
        names = list(session.calls)
        try:
            replies = await self._store.run(scripts.CANCELLED, session_id, *names)
        except (RedisUnavailable, RedisRefused) as error:
            log.debug("session %s: cancellations could not be read: %s", session_id, error)
            return
        for name, reply in zip(names, replies, strict=True):
            on_cancel = session.calls.get(name)
            if reply and on_cancel is not None:
                said = json.loads(reply)
                on_cancel(Cancellation(said["by"], said["reason"]))


class _Session:
    """One session's running calls, as a listener on its `wake` channel."""

    def __init__(self, channel: str, owner: Cancels, session_id: str) -> None:
        self.channel = channel.encode()
        self.calls: dict[str, OnCancel] = {}
        self._owner = owner
        self._session_id = session_id

    def on_wake(self, data: bytes) -> None:
        if data.startswith(b"c:") and data[2:].decode() in self.calls:
            self._owner.look(self._session_id)

    def on_subscribed(self) -> None:
        self._owner.look(self._session_id)
