"""`agent-sse guard`: the command's words made into a guard with its notifier, policy and log."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_sse.errors import ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.keys import check_session_id
from agent_sse.mcp.gate import Gate
from agent_sse.mcp.guard.headers import configured
from agent_sse.mcp.guard.run import GuardOptions, run_guard
from agent_sse.notifier import SimpleNotifier
from agent_sse.policy_file import PolicyFile

log = logging.getLogger("agent_sse.guard")

OPENING_SECONDS = 2.0
RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What was typed; see `agent-sse guard --help`. Times in seconds."""

    session: str
    owner: str | None
    policy: Path | None
    name: str | None
    trust: bool
    url: str | None
    headers: Sequence[str]
    http_port: int | None
    timeout: float
    call_timeout: float | None
    command: Sequence[str]


async def run(options: Options) -> int:
    """Guard until the host leaves; return the exit status of :func:`run_guard`.

    Raises :class:`ConfigurationError` for what cannot work, a broken policy file among it.
    """
    _log_to_stderr()
    check_session_id(options.session)
    policy = PolicyFile(options.policy) if options.policy is not None else None
    headers = dict(configured(line, os.environ) for line in options.headers)
    guarded = GuardOptions(
        command=tuple(options.command), url=options.url, headers=headers,
        http_port=options.http_port, server_name=options.name, call_timeout=options.call_timeout,
    )  # fmt: skip
    notifier = SimpleNotifier.from_env()
    opening = asyncio.create_task(_open(notifier, options))
    try:
        # A short while, so that a wrong owner ends the guard before the host relies on it.
        await asyncio.wait({opening}, timeout=OPENING_SECONDS)
        if opening.done():
            opening.result()

        def make_gate(server: str) -> Gate:
            return Gate(
                notifier, options.session, server=server, policy=policy, trusted=options.trust, timeout=options.timeout
            )

        return await run_guard(guarded, make_gate)
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await notifier.aclose()


async def _open(notifier: SimpleNotifier, options: Options) -> None:
    """Reach Redis and open the session, however long it takes: what is no tool call is served without.

    Raises :class:`SessionOwned`.
    """
    told = False
    while True:
        try:
            if options.owner is not None:
                await notifier.open_session(options.session, options.owner)
            else:
                await notifier.connect()
            return
        except (ConfigurationError, RedisUnavailable, RedisRefused) as error:
            if not told:
                log.error("tool calls are refused until it is there: %s", error)
            told = True
            await asyncio.sleep(RETRY_SECONDS)


def _log_to_stderr() -> None:
    """Send the log to standard error: standard output belongs to the protocol."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("agent-sse guard: %(message)s"))
    root = logging.getLogger("agent_sse")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
