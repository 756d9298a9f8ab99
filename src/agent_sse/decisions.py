"""What a permission request asks and how it ended, as values, and how the scripts' replies are read. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent_sse import events
from agent_sse.errors import RedisRefused

Outcome = Literal["approved", "denied", "expired", "cancelled"]

SESSION_GONE = "the session was closed, or its state was lost"  # a reason


@dataclass(frozen=True, slots=True)
class PermissionDecision:
    """How a permission request ended. Truthy only when it was approved.

    ``outcome`` is ``approved``, ``denied``, ``expired`` or ``cancelled``; ``resolved_by`` the subject who answered,
    or ``timeout``, ``lease`` (the agent was lost), ``agent`` (it withdrew), ``grant:<id>`` (a remembered answer).
    ``parameters`` are those that were approved: run the tool with them and nothing else; None when it was not.
    ``edited`` says that the user changed them.
    """

    approved: bool
    reason: str | None
    outcome: Outcome
    resolved_by: str | None
    request_id: str
    parameters: Any = field(default=None, compare=False, repr=False)  # may hold secrets
    edited: bool = field(default=False, compare=False)

    def __bool__(self) -> bool:
        return self.approved


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """What is asked. ``timeout`` in seconds; ``orphan``: the event heads for a lost agent's call (`events.head`).

    ``server`` is the MCP server whose tool it is; a remembered answer holds for the tools of one server, and with a
    ``server_identity`` only for that one of all servers of its name. With ``editable`` the answer may change the
    parameters, as far as they fit ``schema`` (JSON Schema; None = any). ``shown``: the parameters as users see them,
    None = with their secrets masked; ``truncated``: they are cut, so that no answer to them can hold for another call.
    ``rule``: the policy's that asks.
    """

    session_id: str
    tool_name: str
    parameters: object
    risk_level: str
    timeout: float
    tool_call_id: str
    message: str | None = None
    idempotency_key: str | None = None
    orphan: tuple[bytes, bytes] | None = None
    server: str = ""
    server_identity: str = ""
    editable: bool = False
    schema: Mapping[str, Any] | None = None
    shown: object = None
    truncated: bool = False
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as Redis has it. Times in Unix milliseconds on Redis' clock; not ``pending``: a grant settled it."""

    request_id: str
    expires_ms: int
    now_ms: int
    pending: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an answer. ``code`` is as in decide.lua; the rest is the decision that stands, if there is one.

    ``more`` is what the answer said beyond yes or no: ``scope``, ``covers``, ``grant_id``, ``parameters_patch``,
    ``edited_parameters``, ``edited_digest``.
    """

    code: str
    request_id: str | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    status: str | None = None
    reason: str | None = None
    resolved_by: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def sha256(value: object) -> str:
    """Return the SHA-256 over the value's canonical JSON, in hexadecimal. Raises :class:`InvalidEvent`."""
    return hashlib.sha256(events.canonical(value)).hexdigest()


def read_answer(reply: Sequence[bytes]) -> Answer:
    """Return what a script's verdict says. Raises :class:`RedisRefused` for one that no script of ours makes."""
    try:
        code, *rest = (part.decode() for part in reply)
        if not rest:
            return Answer(code)
        request_id, tool, call, status, reason, by, more = rest
        return Answer(
            code, request_id, json.loads(tool), json.loads(call), status, json.loads(reason), json.loads(by),
            json.loads(more) if more else {},
        )  # fmt: skip
    except ValueError as error:
        raise RedisRefused(f"Redis holds a permission request that this package did not write: {error}") from None


def read_wait(reply: Sequence[Any], request_id: str) -> tuple[PermissionDecision, Mapping[str, Any]] | None:
    """Return the decision in wait.lua's reply and what else was answered; None while it is pending."""
    if reply[0] == b"pending":
        return None
    if reply[0] == b"taken":
        taken = "the approval was handed to another waiter"
        return PermissionDecision(False, taken, "cancelled", None, request_id), {}
    if reply[0] == b"lost":
        late = "the approval was not taken in time, and its call was closed"
        return PermissionDecision(False, late, "cancelled", "lease", request_id), {}
    if reply[0] == b"unknown":
        return PermissionDecision(False, SESSION_GONE, "cancelled", None, request_id), {}
    answer = read_answer([b"settled", *reply[1:]])
    outcome: Any = answer.status
    made = PermissionDecision(outcome == "approved", answer.reason, outcome, answer.resolved_by, request_id)
    return made, answer.more
