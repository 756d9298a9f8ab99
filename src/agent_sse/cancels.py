"""Cancelling a tool call from the browser: the user's side records it, the call's agent takes it and stops.

The record waits in Redis, so a lost message costs seconds; one that no agent takes closes the call's card. Looking for
it says that the agent lives: the cards of calls for which nobody looks any more are closed too (see cancelled.lua).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agent_sse import events, scripts
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.store import Store
from agent_sse.wakes import Wakes

log = logging.getLogger("agent_sse")

REREAD_INTERVAL = 2.0  # s; a lost wake-up costs this much
FIRST_INTERVAL = 0.2  # s; what runs longer gets its lease before twice that; shorter calls cost no look
ENDED_MOST = 1000  # calls of a session whose leases are still to be given back; the others lapse
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
        self._first = math.inf  # when calls that have no lease yet get one, by the loop's clock
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
        session.begin(tool_call_id, on_cancel)
        if self._first == math.inf:
            self._first = asyncio.get_running_loop().time() + FIRST_INTERVAL
            self._work.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="agent-sse cancellations")

        def end() -> None:
            if session.calls.get(tool_call_id) is on_cancel:
                session.end(tool_call_id)

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
                async with asyncio.timeout_at(min(again, self._first) if self._sessions else None):
                    await self._work.wait()
            self._work.clear()
            if loop.time() >= self._first:
                is_one_young = any(session.young for session in self._sessions.values())
                self._first = loop.time() + FIRST_INTERVAL if is_one_young else math.inf
                self._due.update([name for name, session in self._sessions.items() if session.let_age()])
            if loop.time() >= again:
                again = loop.time() + REREAD_INTERVAL
                self._leave_idle()
                self._due.update(self._sessions)
            due, self._due = self._due, set()
            await asyncio.gather(*(self._take(session_id) for session_id in due))

    def _leave_idle(self) -> None:
        """Listen no more to sessions without a call; at once would be a subscription for each of an agent's calls."""
        for session_id, session in list(self._sessions.items()):
            if not session.calls and not session.ended:
                del self._sessions[session_id]
                self._wakes.remove(session.channel, session)

    async def _take(self, session_id: str) -> None:
        session = self._sessions.get(session_id)
        if session is None or not (session.calls or session.ended):
            return
        names, ended = list(session.calls), list(session.ended)
        lease = int(self._store.settings.permission_lease * 1000)
        try:
            replies = await self._store.run(scripts.CANCELLED, session_id, lease, len(names), *names, *ended)
        except (RedisUnavailable, RedisRefused) as error:
            log.debug("session %s: cancellations could not be read: %s", session_id, error)
            return
        session.ended.difference_update(ended)
        for name, reply in zip(names, replies, strict=True):
            if reply is not None:
                session.note_lease(name)
            on_cancel = session.calls.get(name)
            if reply and on_cancel is not None:
                said = json.loads(reply)
                on_cancel(Cancellation(said["by"], said["reason"]))


class _Session:
    """One session's running calls, as a listener on its `wake` channel."""

    def __init__(self, channel: str, owner: Cancels, session_id: str) -> None:
        self.channel = channel.encode()
        self.calls: dict[str, OnCancel] = {}
        self.young: set[str] = set()  # of the calls, those that began since the last look for such
        self.leased: set[str] = set()  # of the calls
        self.ended: set[str] = set()  # calls whose leases are to be given back
        self._owner = owner
        self._session_id = session_id

    def begin(self, tool_call_id: str, on_cancel: OnCancel) -> None:
        self.calls[tool_call_id] = on_cancel
        self.young.add(tool_call_id)
        self.ended.discard(tool_call_id)

    def let_age(self) -> bool:
        """Return whether calls need a first lease; those that have just begun do the next time."""
        needed = any(name not in self.leased and name not in self.young for name in self.calls)
        self.young.clear()
        return needed

    def note_lease(self, tool_call_id: str) -> None:
        if tool_call_id in self.calls:
            self.leased.add(tool_call_id)
        elif len(self.ended) < ENDED_MOST:
            self.ended.add(tool_call_id)

    def end(self, tool_call_id: str) -> None:
        """Forget a call, and remember its lease, if it has one, as to be given back."""
        del self.calls[tool_call_id]
        self.young.discard(tool_call_id)
        if tool_call_id in self.leased:
            self.leased.discard(tool_call_id)
            self.note_lease(tool_call_id)

    def on_wake(self, data: bytes) -> None:
        if data.startswith(b"c:") and data[2:].decode() in self.calls:
            self._owner.look(self._session_id)

    def on_subscribed(self) -> None:
        self._owner.look(self._session_id)
