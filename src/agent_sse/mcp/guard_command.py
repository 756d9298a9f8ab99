"""`agent-sse guard`: the command's words made into a guard with its notifier, policy and log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agent_sse.errors import ConfigurationError, RedisRefused, RedisUnavailable
from agent_sse.keys import check_session_id
from agent_sse.mcp.gate import Gate
from agent_sse.mcp.guard.headers import configured
from agent_sse.mcp.guard.run import GuardOptions, run_guard
from agent_sse.notifier import SimpleNotifier
from agent_sse.policy_file import PolicyFile
from agent_sse.settings import RedisSettings
from agent_sse.state_dir import socket_path, state_dir
from agent_sse.terminal import escape

log = logging.getLogger("agent_sse.guard")

OPENING_SECONDS = 2.0
RETRY_SECONDS = 2.0

_PLAIN = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Options:
    """What was typed; see `agent-sse guard --help`. Times in seconds, ``call_timeout`` 0 for ever."""

    session: str
    owner: str | None
    policy: Path | None
    name: str | None
    trust: bool
    url: str | None
    headers: Sequence[str]
    env_file: Path | None
    http_port: int | None
    timeout: float
    call_timeout: float
    command: Sequence[str]


async def run(options: Options) -> int:
    """Guard until the host leaves; return the exit status of :func:`run_guard`.

    Raises :class:`ConfigurationError` for what cannot work, a broken policy file among it.
    """
    _log_to_stderr()
    check_session_id(options.session)
    policy = PolicyFile(options.policy) if options.policy is not None else None
    guarded, notifier = _guarded(options), _notifier(options.env_file)
    log.info("guarding %s in session %s", escape(guarded.name), options.session)
    log.info("events and questions go to %s", _told(notifier.settings, options.env_file))
    opening = asyncio.create_task(_open(notifier, options))
    try:
        # A short while, so that a wrong owner ends the guard before the host relies on it.
        await asyncio.wait({opening}, timeout=OPENING_SECONDS)
        if opening.done():
            opening.result()

        def make_gate(server: str, identity: str) -> Gate:
            return Gate(
                notifier, options.session, server=server, server_identity=identity, policy=policy,
                trusted=options.trust, timeout=options.timeout,
            )  # fmt: skip

        return await _while_ours(opening, asyncio.create_task(run_guard(guarded, make_gate)))
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await notifier.aclose()


async def _while_ours(opening: asyncio.Task[None], guarding: asyncio.Task[int]) -> int:
    """Guard until that ends, or until it turns out that the session is another owner's."""
    try:
        await asyncio.wait({opening, guarding}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        return await guarding
    finally:
        guarding.cancel()
        await asyncio.gather(guarding, return_exceptions=True)


def _guarded(options: Options) -> GuardOptions:
    headers = dict(configured(line, os.environ) for line in options.headers)
    guarded = GuardOptions(
        command=tuple(options.command), url=options.url, headers=headers,
        http_port=options.http_port, server_name=options.name, call_timeout=options.call_timeout or None,
    )  # fmt: skip
    guarded.check()
    return guarded


def _notifier(env_file: Path | None) -> SimpleNotifier:
    if env_file is not None and not env_file.is_file():
        raise ConfigurationError(f"there is no file {escape(str(env_file))}; check --env-file")
    # Hosts start servers in a project's folder: a `.env` there is the project's, and must not say who is asked.
    return SimpleNotifier.from_env(env_file=env_file)


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


def _told(settings: RedisSettings, env_file: Path | None) -> str:
    """Say which Redis is used, without what may be secret in its URL, and who said so."""
    if settings.redis_url:
        return f"{_shown(settings.redis_url)} ({_said_by('AGENT_SSE_REDIS_URL', env_file)})"
    try:
        socket = socket_path(state_dir(settings.state_dir))
    except ConfigurationError as error:
        return f"nobody: {error}"
    named = settings.state_dir is not None
    by = _said_by("AGENT_SSE_STATE_DIR", env_file) if named else "no AGENT_SSE_REDIS_URL"
    return f"the embedded Valkey at {escape(str(socket))} ({by})"


def _said_by(name: str, env_file: Path | None) -> str:
    in_environment = any(known.upper() == name for known in os.environ)
    return f"{name} of {'the environment' if in_environment else escape(str(env_file))}"


def _shown(url: str) -> str:
    """Return a Redis URL without its user, password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return escape(f"unix://{parts.path}")
    hosts = parts.netloc.rpartition("@")[2]
    if not all(_PLAIN.fullmatch(host) for host in hosts.split(",")):
        return f"{escape(parts.scheme)}://…"
    return escape(f"{parts.scheme}://{hosts}")


def _log_to_stderr() -> None:
    """Send the log to standard error: standard output belongs to the protocol."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("agent-sse guard: %(message)s"))
    root = logging.getLogger("agent_sse")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
