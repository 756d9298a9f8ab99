"""What `agent-sse policy check FILE TOOL JSON` prints: the verdict about one call, and why no other rule decided."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from agent_sse.errors import InvalidEvent
from agent_sse.policy import Verdict
from agent_sse.policy_file import load_policy
from agent_sse.terminal import escape

# So that a script can tell them apart: 1 and 2 are failures and wrong input, as of every command.
EXIT_STATUS = {"allow": 0, "ask": 3, "deny": 4}


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Return the JSON object in ``text``. Raises :class:`~agent_sse.errors.InvalidEvent`, which names ``what``."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidEvent(f"{what}: nested too deeply") from None
    except ValueError as error:
        raise InvalidEvent(
            f"""{what}: not JSON ({error}); quote it for the shell, as in '{{"path": "a.txt"}}'"""
        ) from None
    if not isinstance(value, dict):
        raise InvalidEvent(f'{what}: must be a JSON object, such as {{"path": "a.txt"}}, not {type(value).__name__}')
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def explain_check(
    path: str | os.PathLike[str],
    tool: str,
    arguments_json: str,
    *,
    server: str = "",
    annotations: Mapping[str, Any] | None = None,
    trusted: bool = False,
) -> tuple[list[str], int]:
    """Return the lines to print, safe for a terminal, and the exit status: 0 allow, 3 ask, 4 deny.

    ``annotations`` are the tool's, as in ``tools/list``; without them it counts as destructive. ``trusted`` counts the
    server as trusted, whatever the file says. Raises :class:`~agent_sse.errors.ConfigurationError` for a file that
    cannot be used and :class:`~agent_sse.errors.InvalidEvent` for arguments that are no JSON object.
    """
    policy = load_policy(path)
    arguments = parse_object(arguments_json, "the call's arguments")
    verdict = policy.decide(server=server, tool=tool, arguments=arguments, annotations=annotations, trusted=trusted)
    reasons = policy.explain(server=server, tool=tool, arguments=arguments, annotations=annotations, trusted=trusted)
    lines = [*_summary(verdict), *(f"  {line}" for line in reasons)]
    return [escape(line) for line in lines], EXIT_STATUS[verdict.decision]


def _summary(verdict: Verdict) -> list[str]:
    lines = [f"{verdict.decision}, by {verdict.rule}; risk {verdict.risk_level}"]
    if verdict.reason is not None:
        lines.append(f"reason: {verdict.reason}")
    if verdict.timeout is not None:
        lines.append(f"timeout: {verdict.timeout:g} s")
    if verdict.decision == "ask" and not verdict.editable:
        lines.append("the user may not edit the parameters")
    return lines
