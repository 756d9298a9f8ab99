"""Permission requests: ask, wait, answer, withdraw. The rules are protocol.md § 6; what decides them are the scripts.

Fail closed: whatever goes wrong here ends as a decision that is not an approval, or as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from agent_sse import audit, edits, events, scripts
from agent_sse.decisions import (
    SESSION_GONE,
    Answer,
    Asked,
    PermissionDecision,
    PermissionRequest,
    read_answer,
    read_wait,
    sha256,
)
from agent_sse.errors import IdempotencyConflict, InvalidEvent, RedisRefused, RedisUnavailable, TooManyRequestsPending
from agent_sse.json_schema import SCHEMA_LIMIT
from agent_sse.keys import digest
from agent_sse.masking import Masker
from agent_sse.registry import Registry
from agent_sse.shorten import shorten
from agent_sse.store import Store
from agent_sse.wakes import Wakes

__all__ = ["SESSION_GONE", "Answer", "PermissionDecision", "PermissionRequest", "Permissions"]

log = logging.getLogger("agent_sse")

REREAD_INTERVAL = 3.0  # s; a lost wake-up costs this much, never a hang
WITHDRAW_TIMEOUT = 2.0  # s; how long a cancelled task may still talk to Redis
MAX_TIMEOUT = 7 * 24 * 3600.0  # s
TIMES = 100  # bytes; what the script adds to a request event: timestamp and expires_at

Covers = Literal["arguments", "tool"]
OnPending = Callable[[], Awaitable[None]]


class Permissions:
    """Asks and answers on one :class:`Store`. ``aclose`` ends the reader that waiting needs."""

    def __init__(self, store: Store, wakes: Wakes | None = None, registry: Registry | None = None) -> None:
        self._store = store
        self._settings = store.settings
        self._masker = Masker(store.settings.mask_keys)
        self._wakes = wakes or Wakes(store.backend)
        self._registry = registry or Registry(store)
        self._notes: set[asyncio.Task[object]] = set()  # on their way to the registry

    async def aclose(self) -> None:
        """Stop listening. Requests that are still waited for lapse with their lease."""
        await asyncio.gather(*self._notes)
        await self._wakes.aclose()

    # -- the user's side ----------------------------------------------------------------------------------------

    async def answer(
        self,
        session_id: str,
        *,
        approved: bool,
        reason: str,
        request_id: str | None,
        subject: str,
        remember: Covers | None = None,
        patch: object = None,
    ) -> Answer:
        """Answer a request, or without an id the presented one; exactly one answer wins.

        ``remember`` makes it hold for the session; ``patch`` edits the parameters (JSON Merge Patch), of the request
        that ``request_id`` names. Raises ApiError for an edit that cannot be.
        """
        more: dict[str, Any] = {}
        if remember is not None:
            more = {"scope": "session", "covers": remember, "grant_id": "g_" + secrets.token_urlsafe(12)}
        edit = None
        if patch is not None and request_id is not None:
            edit = await edits.prepare_edit(self._store, session_id, request_id, patch, self._masker)
        fragments = [events.encode(more)[1:-1]] if more else []
        fragments += [edit.fragments] if edit is not None else []
        said = b",".join(fragments)
        # A yes to something else, or for longer, is another answer.
        plain = remember is None and patch is None
        reply = await self._store.run(
            scripts.DECIDE, session_id, "answer", request_id or "", "1" if approved else "0",
            events.encode(reason), events.encode(subject), "" if plain else sha256([remember, patch]),
            said, {"arguments": "a", "tool": "t"}[remember] if remember else "", more.get("grant_id", ""),
            audit.kept(said),
        )  # fmt: skip
        return read_answer(reply)

    # -- the agent's side ---------------------------------------------------------------------------------------

    async def withdraw(self, session_id: str, request_id: str, reason: str = "withdrawn") -> Answer:
        """Withdraw a request; one that was settled meanwhile stays as it is."""
        reply = await self._store.run(
            scripts.DECIDE, session_id, "withdraw", request_id, "0", events.encode(reason), b'"agent"', *[""] * 5
        )
        return read_answer(reply)

    async def ask(self, request: PermissionRequest, *, on_pending: OnPending | None = None) -> PermissionDecision:
        """Ask and wait for the decision; cancelling the task withdraws the request.

        ``on_pending`` is awaited before the user can see the request, and not at all when a remembered answer decides.
        Raises :class:`InvalidEvent`, :class:`IdempotencyConflict`, :class:`TooManyRequestsPending`, and
        :class:`RedisUnavailable` when the question could not be asked.
        """
        frozen = events.encode(request.parameters)
        arguments = self._arguments(request)
        request_id = arguments[0]
        waiter, asked = self._waiter(request.session_id), None
        try:
            asked = await self._create(request, arguments)
            request_id = waiter.request_id = asked.request_id
            if on_pending is not None and asked.pending:
                await on_pending()
            seconds = request.timeout + self._settings.publish_timeout
            found = await self._wait(waiter, seconds)
        except BaseException as error:
            # Asked, or perhaps asked: nobody waits for it any more.
            if asked is not None or isinstance(error, asyncio.CancelledError | RedisUnavailable | RedisRefused):
                await self._withdraw_quietly(request.session_id, request_id)
            raise
        finally:
            waiter.close()
        if found is None:
            return PermissionDecision(False, "redis_unavailable", "expired", None, request_id)
        decision = edits.approved_parameters(*found, request, frozen, self._masker)
        if found[0].approved and not decision.approved:
            await self._record_refusal(request, decision)
        return decision

    async def _record_refusal(self, request: PermissionRequest, decision: PermissionDecision) -> None:
        """Say in the audit that what was approved does not run after all."""
        entry = {
            "kind": "refusal", "request_id": decision.request_id, "tool_call_id": request.tool_call_id,
            "tool_name": request.tool_name, "by": "agent", "resolved_by": "agent", "reason": decision.reason,
        }  # fmt: skip
        await audit.Audit(self._store, self._registry).append(request.session_id, entry)

    async def create(self, request: PermissionRequest) -> Asked:
        """Create a request without waiting; it is presented and kept alive while somebody waits for it."""
        return await self._create(request, self._arguments(request))

    async def wait(
        self, session_id: str, request_id: str, *, seconds: float
    ) -> tuple[PermissionDecision, Mapping[str, Any]] | None:
        """Wait for a decision, and return it with what else was answered; None when ``seconds`` are over.

        An approval is handed to the first who gets it here, and to nobody else.
        """
        waiter = self._waiter(session_id)
        waiter.request_id = request_id
        try:
            return await self._wait(waiter, seconds)
        finally:
            waiter.close()

    def _arguments(self, request: PermissionRequest) -> list[Any]:
        if not 0 < request.timeout <= MAX_TIMEOUT:
            raise InvalidEvent(f"timeout must be more than 0 and at most {MAX_TIMEOUT:g} seconds")
        request_id = "pr_" + secrets.token_urlsafe(15)
        server, tool, parameters = request.server, request.tool_name, request.parameters
        if server:
            events.check_name(server, "server")
        whose: object = [server, request.server_identity] if request.server_identity else server
        # What nobody has seen whole no remembered answer is about: neither one that there is, nor one to this request.
        about: object = request_id if request.truncated else whose
        shown, hidden = self._masker.masked(parameters)
        if request.shown is not None:
            shown = request.shown
        message = request.message
        if isinstance(message, str):
            message = self._masker.mask_text(message)
        schema = _schema(request)
        if schema is None:
            request = replace(request, editable=False)
        head = events.head(_event(request, request_id, shown, hidden, message))
        limit = self._settings.max_event_bytes
        events.bounded(head + b" " * TIMES, limit)
        for part in request.orphan or ():
            events.bounded(part + b" " * TIMES, limit)
        asked = sha256([whose, tool, parameters] if whose else [tool, parameters])
        key = request.idempotency_key
        if key is not None:
            events.check_name(key, "idempotency_key")
        told = audit.about(
            server=server, risk_level=events.check_risk(request.risk_level), digest=sha256(parameters),
            parameters=shown, rule=request.rule,
        )  # fmt: skip
        return [
            request_id, events.encode(tool), events.encode(request.tool_call_id), request.tool_call_id,
            int(request.timeout * 1000) or 1, int(self._settings.permission_lease * 1000),
            digest(key) if key is not None else "", asked, head,
            b"\n".join(request.orphan) if request.orphan else b"", self._settings.max_pending_permissions,
            request.risk_level, sha256([about, tool]), sha256([about, tool, parameters]), told,
            schema or b"",
        ]  # fmt: skip

    async def _create(self, request: PermissionRequest, arguments: Sequence[Any]) -> Asked:
        loop = asyncio.get_running_loop()
        until, failures = loop.time() + self._settings.publish_timeout, 0
        end = int((time.time() + request.timeout + self._settings.permission_lease) * 1000)
        self._note(self._registry.note_audit(request.session_id, end))
        reply: Any = None
        while True:
            try:
                # The request id makes a second try harmless: the script knows it.
                reply = await self._store.run(scripts.REQUEST, request.session_id, *arguments)
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
        asked = Asked(reply[1].decode(), int(reply[2]), int(reply[4]), reply[3] == b"pending")
        if asked.pending:
            self._note(self._registry.note_request(request.session_id, asked.request_id, asked.now_ms))
        return asked

    async def _wait(self, waiter: _Waiter, seconds: float) -> tuple[PermissionDecision, Mapping[str, Any]] | None:
        loop = asyncio.get_running_loop()
        lease = self._settings.permission_lease
        # Redis' clock decides; this one only bounds how long a silent Redis is waited for.
        until, failures, asked = loop.time() + seconds, 0, False
        while not asked or loop.time() < until:
            waiter.woken.clear()
            try:
                reply = await self._store.run(
                    scripts.WAIT, waiter.session_id, waiter.request_id, waiter.name, int(lease * 1000),
                    self._settings.permission_concurrency,
                )  # fmt: skip
            except RedisUnavailable:
                failures += 1
                if loop.time() >= until:
                    break
                await asyncio.sleep(random.uniform(0, min(1.0, 0.05 * 2 ** min(failures, 10))))
                continue
            failures, asked = 0, True
            found = read_wait(reply, waiter.request_id)
            if found is not None:
                self._note(self._registry.settled(waiter.session_id, waiter.request_id))
                return found
            _, again, shown, rest = reply
            waiter.shown = shown == b"1"
            # Nobody announces the deadline when no server has this session's stream.
            pauses = [REREAD_INTERVAL, lease / 3, rest / 1000 + 0.01, max(0.0, until - loop.time())]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pauses if again < 0 else [*pauses, again / 1000])):
                    await waiter.woken.wait()
        return None

    async def _withdraw_quietly(self, session_id: str, request_id: str) -> None:
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT):
                await self.withdraw(session_id, request_id)
                await self._registry.settled(session_id, request_id)
        except (RedisUnavailable, RedisRefused, TimeoutError) as error:
            log.warning("session %s: request %s not withdrawn, its lease will lapse: %s", session_id, request_id, error)

    def _note(self, note: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(note, name="agent-sse registry")
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    def _waiter(self, session_id: str) -> _Waiter:
        return _Waiter(session_id, self._store.keyspace.session(session_id).wake.encode(), self._wakes)


def _schema(request: PermissionRequest) -> bytes | None:
    """Return the schema that edits have to fit, empty when there is none; None for one that is too large to be used."""
    schema = request.schema
    if not request.editable or schema is None:
        return b""
    # No more of it is looked at than could fit: a server may send a schema of any size with each of its tools.
    if shorten(schema, lambda part: len(events.encode(part)), SCHEMA_LIMIT, lambda part: part) is not schema:
        return None
    return events.encode(schema)


def _event(
    request: PermissionRequest, request_id: str, shown: object, hidden: Sequence[str], message: str | None
) -> dict[str, Any]:
    """Return the ``permission_request`` of protocol.md § 5, and what an answer may say (docs/permissions.md)."""
    data: dict[str, Any] = {
        "tool_name": events.check_name(request.tool_name, "tool_name"),
        "parameters": shown,
        "risk_level": events.check_risk(request.risk_level),
        "status": "pending",
        "request_id": request_id,
        "tool_call_id": events.check_name(request.tool_call_id, "tool_call_id"),
        "editable": request.editable,
        "scopes": ["once"] if request.truncated or request.risk_level == "critical" else ["once", "session"],
    }
    if request.truncated:
        data |= {"truncated": True, "digest": sha256(request.parameters)}
    if hidden:
        data["masked"] = list(hidden)
    if request.server:
        data["server"] = request.server
    if message is not None:
        data["message"] = events.check_message(message, "message")
    return {"type": "permission_request", "data": data}


class _Waiter:
    """One who waits for a request, as a listener on its session's `wake` channel."""

    def __init__(self, session_id: str, channel: bytes, wakes: Wakes) -> None:
        self.name = secrets.token_urlsafe(9)
        self.session_id = session_id
        self.request_id = ""
        self.shown = False
        self.woken = asyncio.Event()
        self._channel = channel
        self._wakes = wakes
        wakes.add(channel, self)

    def close(self) -> None:
        self._wakes.remove(self._channel, self)

    def on_wake(self, data: bytes) -> None:
        # Its own request was settled, or one was, so that it may be the next to be presented.
        if data == b"closed" or data == self.request_id.encode() or not (self.shown or data.startswith(b"c:")):
            self.woken.set()

    def on_subscribed(self) -> None:
        self.woken.set()
