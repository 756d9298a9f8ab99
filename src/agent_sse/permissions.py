"""Permission requests: ask, wait, answer, withdraw. The rules are protocol.md § 6; what decides them are the scripts.

Fail closed: whatever goes wrong here ends as a decision that is not an approval, or as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent_sse import events, scripts
from agent_sse.errors import IdempotencyConflict, InvalidEvent, RedisRefused, RedisUnavailable, TooManyRequestsPending
from agent_sse.keys import digest
from agent_sse.pubsub import Subscriber
from agent_sse.scripts import Script
from agent_sse.store import Store

log = logging.getLogger("agent_sse")

Outcome = Literal["approved", "denied", "expired", "cancelled"]

REREAD_INTERVAL = 3.0  # s; a lost wake-up costs this much, never a hang
WITHDRAW_TIMEOUT = 2.0  # s; how long a cancelled task may still talk to Redis
SESSION_GONE = "the session was closed, or its state was lost"  # a reason
MAX_TIMEOUT = 7 * 24 * 3600.0  # s
TIMES = 100  # bytes; what the script adds to a request event: timestamp and expires_at


@dataclass(frozen=True, slots=True)
class PermissionDecision:
    """How a permission request ended. Truthy only when it was approved.

    ``outcome`` is ``approved``, ``denied``, ``expired`` or ``cancelled``; ``resolved_by`` the subject who answered,
    or ``timeout``, ``lease`` (the agent was lost), ``agent`` (it withdrew).
    """

    approved: bool
    reason: str | None
    outcome: Outcome
    resolved_by: str | None
    request_id: str

    def __bool__(self) -> bool:
        return self.approved


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an answer. ``code`` is as in decide.lua; the rest is the decision that stands, if there is one."""

    code: str
    request_id: str | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    status: str | None = None
    reason: str | None = None
    resolved_by: str | None = None


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """What is asked. ``timeout`` in seconds; ``orphan``: the event heads for a lost agent's call (`events.head`)."""

    session_id: str
    tool_name: str
    parameters: object
    risk_level: str
    timeout: float
    tool_call_id: str
    message: str | None = None
    idempotency_key: str | None = None
    orphan: tuple[bytes, bytes] | None = None


class Permissions:
    """Asks and answers on one :class:`Store`. ``aclose`` ends the reader that waiting needs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._settings = store.settings
        self._subscriber: Subscriber | None = None
        self._waiters: dict[bytes, dict[str, _Waiter]] = {}

    async def aclose(self) -> None:
        """Stop listening. Requests that are still waited for lapse with their lease."""
        if self._subscriber is not None:
            await self._subscriber.aclose()

    async def answer(
        self, session_id: str, *, approved: bool, reason: str, request_id: str | None, subject: str
    ) -> Answer:
        """Answer a request, or without an id the presented one; exactly one answer wins."""
        reply = await self._run(
            scripts.DECIDE, session_id, "answer", request_id or "", "1" if approved else "0",
            events.encode(reason), events.encode(subject),
        )  # fmt: skip
        return _answer(reply)

    async def withdraw(self, session_id: str, request_id: str, reason: str = "withdrawn") -> Answer:
        """Withdraw a request; one that was settled meanwhile stays as it is."""
        reply = await self._run(
            scripts.DECIDE, session_id, "withdraw", request_id, "0", events.encode(reason), b'"agent"'
        )
        return _answer(reply)

    async def ask(self, request: PermissionRequest) -> PermissionDecision:
        """Ask and wait for the decision; cancelling the task withdraws the request.

        Raises :class:`InvalidEvent`, :class:`IdempotencyConflict`, :class:`TooManyRequestsPending`, and
        :class:`RedisUnavailable` when the question could not be asked.
        """
        arguments = self._arguments(request)
        request_id = arguments[0]
        waiter = _Waiter(secrets.token_urlsafe(9))
        channel = self._store.keyspace.session(request.session_id).wake.encode()
        self._listen(channel, waiter)
        try:
            request_id = await self._create(request, arguments)
            waiter.request_id = request_id
            return await self._wait(request, request_id, waiter)
        except (asyncio.CancelledError, RedisUnavailable, RedisRefused):
            await self._withdraw_quietly(request.session_id, request_id)
            raise
        finally:
            self._unlisten(channel, waiter)

    def _arguments(self, request: PermissionRequest) -> list[Any]:
        if not 0 < request.timeout <= MAX_TIMEOUT:
            raise InvalidEvent(f"timeout must be more than 0 and at most {MAX_TIMEOUT:g} seconds")
        request_id = "pr_" + secrets.token_urlsafe(15)
        data = {
            "tool_name": events.check_name(request.tool_name, "tool_name"),
            "parameters": request.parameters,
            "risk_level": events.check_risk(request.risk_level),
            "status": "pending",
            "request_id": request_id,
            "tool_call_id": events.check_name(request.tool_call_id, "tool_call_id"),
        }
        if request.message is not None:
            data["message"] = events.check_message(request.message, "message")
        head = events.head({"type": "permission_request", "data": data})
        limit = self._settings.max_event_bytes
        events.bounded(head + b" " * TIMES, limit)
        for part in request.orphan or ():
            events.bounded(part + b" " * TIMES, limit)
        frozen = events.canonical([request.tool_name, request.parameters])
        key = request.idempotency_key
        if key is not None:
            events.check_name(key, "idempotency_key")
        return [
            request_id, events.encode(request.tool_name), events.encode(request.tool_call_id), request.tool_call_id,
            int(request.timeout * 1000) or 1, int(self._settings.permission_lease * 1000),
            digest(key) if key is not None else "", hashlib.sha256(frozen).hexdigest(), head,
            b"\n".join(request.orphan) if request.orphan else b"", self._settings.max_pending_permissions,
        ]  # fmt: skip

    async def _run(self, script: Script, session_id: str, *args: Any) -> Any:
        await self._store.backend.connect()
        return await self._store.backend.run(self._store.call(script, session_id, *args))

    async def _create(self, request: PermissionRequest, arguments: Sequence[Any]) -> str:
        loop = asyncio.get_running_loop()
        until, failures = loop.time() + self._settings.publish_timeout, 0
        reply: Any = None
        while True:
            try:
                # The request id makes a second try harmless: the script knows it.
                reply = await self._run(scripts.REQUEST, request.session_id, *arguments)
                break
            except RedisUnavailable:
                failures += 1
                delay = random.uniform(0, min(1.0, 0.05 * 2**failures))
                if loop.time() + delay >= until:
                    raise
                await asyncio.sleep(delay)
        if reply[0] == b"conflict":
            raise IdempotencyConflict(
                "the idempotency key was used for another tool or other parameters; take a new one"
            )
        if reply[0] == b"full":
            raise TooManyRequestsPending(
                f"{reply[1]} permission requests are open (AGENT_SSE_MAX_PENDING_PERMISSIONS); let some be answered"
            )
        return str(reply[1].decode())

    async def _wait(self, request: PermissionRequest, request_id: str, waiter: _Waiter) -> PermissionDecision:
        loop = asyncio.get_running_loop()
        lease = self._settings.permission_lease
        interval = min(REREAD_INTERVAL, lease / 3)
        # Redis' clock decides; this one only bounds how long a silent Redis is waited for.
        deadline = loop.time() + request.timeout
        until, failures = deadline + self._settings.publish_timeout, 0
        while True:
            waiter.woken.clear()
            try:
                reply = await self._run(
                    scripts.WAIT, request.session_id, request_id, waiter.name, int(lease * 1000),
                    self._settings.permission_concurrency,
                )  # fmt: skip
            except RedisUnavailable:
                failures += 1
                if loop.time() >= until:
                    return PermissionDecision(False, "redis_unavailable", "expired", None, request_id)
                await asyncio.sleep(random.uniform(0, min(1.0, 0.05 * 2 ** min(failures, 10))))
                continue
            failures = 0
            decision = _decision(reply, request_id)
            if decision is not None:
                return decision
            waiter.shown = reply[2] == b"1"
            pause = interval if reply[1] < 0 else min(interval, reply[1] / 1000)
            left = deadline - loop.time()
            if left > 0:  # nobody announces the deadline when no server has this session's stream
                pause = min(pause, left + 0.01)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await waiter.woken.wait()

    async def _withdraw_quietly(self, session_id: str, request_id: str) -> None:
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT):
                await self.withdraw(session_id, request_id)
        except (RedisUnavailable, RedisRefused, TimeoutError) as error:
            log.warning("session %s: request %s not withdrawn, its lease will lapse: %s", session_id, request_id, error)

    def _listen(self, channel: bytes, waiter: _Waiter) -> None:
        if self._subscriber is None:
            self._subscriber = Subscriber(
                self._store.backend, on_message=self._on_wake, on_subscribed=self._on_subscribed
            )
            self._subscriber.start()
        self._waiters.setdefault(channel, {})[waiter.name] = waiter
        self._subscriber.add(channel)

    def _unlisten(self, channel: bytes, waiter: _Waiter) -> None:
        waiters = self._waiters[channel]
        del waiters[waiter.name]
        if not waiters and self._subscriber is not None:
            del self._waiters[channel]
            self._subscriber.remove(channel)

    def _on_wake(self, channel: bytes, data: bytes) -> None:
        for waiter in self._waiters.get(channel, {}).values():
            # Its own request was settled, or one was, so that it may be the next to be presented.
            if not waiter.shown or data == b"closed" or data == waiter.request_id.encode():
                waiter.woken.set()

    def _on_subscribed(self, channel: bytes) -> None:
        for waiter in self._waiters.get(channel, {}).values():
            waiter.woken.set()  # what was said before has no message


class _Waiter:
    __slots__ = ("name", "request_id", "shown", "woken")

    def __init__(self, name: str) -> None:
        self.name = name
        self.request_id = ""
        self.shown = False
        self.woken = asyncio.Event()


def _answer(reply: Sequence[bytes]) -> Answer:
    try:
        code, *rest = (part.decode() for part in reply)
        if not rest:
            return Answer(code)
        request_id, tool, call, status, reason, by = rest
        return Answer(code, request_id, json.loads(tool), json.loads(call), status, json.loads(reason), json.loads(by))
    except ValueError as error:
        raise RedisRefused(f"Redis holds a permission request that this package did not write: {error}") from None


def _decision(reply: Sequence[Any], request_id: str) -> PermissionDecision | None:
    """Return the decision in wait.lua's reply, None while it is pending."""
    if reply[0] == b"pending":
        return None
    if reply[0] == b"taken":
        return PermissionDecision(False, "the approval was handed to another waiter", "cancelled", None, request_id)
    if reply[0] == b"unknown":
        return PermissionDecision(False, SESSION_GONE, "cancelled", None, request_id)
    answer = _answer([b"settled", *reply[1:]])
    outcome: Any = answer.status
    return PermissionDecision(outcome == "approved", answer.reason, outcome, answer.resolved_by, request_id)
