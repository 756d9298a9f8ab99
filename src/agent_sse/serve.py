"""The service as a process: what is checked before it starts, uvicorn's settings, the secret of ``--dev``."""

from __future__ import annotations

import copy
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from agent_sse import nofile
from agent_sse.auth import TokenVerifier, encode_token, make_secret
from agent_sse.backend import Backend
from agent_sse.errors import ConfigurationError
from agent_sse.routes import load_settings
from agent_sse.settings import Settings
from agent_sse.state_dir import find_server, state_dir
from agent_sse.terminal import escape

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE = 5  # s; the streams end at once on SIGTERM, so this is for answers that are being written
# s: idle before the kernel asks whether the client is still there, between two questions, and how many go unanswered.
# For connections with nothing on its way, such as a stream with a long heartbeat; a stream that has something to send
# ends by AGENT_SSE_SEND_TIMEOUT.
KEEPALIVE = (60, 15, 4)
# The first is 700 by default: in a storm of 5,000 reconnects the collector took 8 to 10 % of the CPU time, and paused
# for up to 160 ms. So it takes 2.5 to 4 % and pauses for 66 ms at most; larger ones save another percent or two.
GC_THRESHOLDS = (10_000, 10, 10)
DEV_SECRET = "dev-secret"  # noqa: S105 - the file's name
DEV_SESSION = "dev"
DEV_TOKEN_SECONDS = 24 * 3600.0

log = logging.getLogger("agent_sse")


def run(settings: Settings, *, workers: int = 1, access_log: bool = True) -> None:
    """Serve until SIGTERM or SIGINT, then return: a service that was told to stop ends with status 0.

    ``access_log`` writes a line for each request.
    Raises :class:`ConfigurationError` for what can be found out before serving, SystemExit(1) when starting fails.
    """
    check(settings)
    nofile.raise_limit()  # workers inherit it
    # uvicorn raises the signal again once it has ended; with the default handler that would be a death by signal, which
    # Docker and systemd report as a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        "agent_sse.serve:create_app", factory=True, host=settings.host, port=settings.port, workers=workers,
        http="agent_sse.protocol:StreamProtocol", ws="none", lifespan="on", server_header=False,
        timeout_graceful_shutdown=GRACE, log_config=log_config(), access_log=access_log,
    )  # fmt: skip
    if (shortage := nofile.shortage(settings.max_streams)) is not None:
        log.warning(shortage)
    try:
        if workers > 1:
            _run_workers(config)
        else:
            _Server(config).run()
    except KeyboardInterrupt:
        pass  # SIGINT, raised again by uvicorn after a clean end
    except SystemExit as end:
        raise SystemExit(1 if end.code == STARTUP_FAILURE else end.code) from None


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                keep_alive(listener)


def keep_alive(listener: socket.socket) -> None:
    """Let the kernel find clients that vanished without a word; what is accepted inherits it from the listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS has its own name for the first, and all three are asked for where they are known only.
    names = ("TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    for name, value in zip(names, KEEPALIVE, strict=True):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _run_workers(config: uvicorn.Config) -> None:
    listener = config.bind_socket()
    keep_alive(listener)
    listener.listen(config.backlog)  # clients wait for the first worker, instead of being refused
    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise SystemExit(1)


def create_app() -> FastAPI:
    """Return the application, in whichever process uvicorn runs it. A worker ends when its parent is gone."""
    from agent_sse import app

    parent = multiprocessing.parent_process()
    if parent is not None:
        end_after(parent.join)
    made = app.create_app()
    settle_memory()
    return made


def settle_memory() -> None:
    """Have the garbage collector look seldom, and never at what stays.

    It finds next to nothing here: a stream leaves no cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def end_after(wait: Callable[[], object]) -> None:
    """Send this process SIGTERM when ``wait`` returns, which runs in a thread of its own."""

    def follow() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="agent-sse lifeline", daemon=True).start()


def end_of_input() -> None:
    """Wait until nobody can write to standard input any more."""
    while os.read(0, 4096):
        pass


# -- before it starts -------------------------------------------------------------------------------------------------


def check(settings: Settings) -> None:
    """Find what would keep the service from starting. Raises :class:`ConfigurationError`, one line for each cause."""
    logging.disable(logging.WARNING)  # the application says it again, where it belongs
    try:
        TokenVerifier(settings)
    finally:
        logging.disable(logging.NOTSET)
    if settings.redis_url:
        Backend(settings.redis_url)
    else:
        find_server()
        state_dir(settings.state_dir)
    check_address(settings.host, settings.port)


def check_address(host: str, port: int) -> int:
    """Return a port that can be listened on now: ``port``, or a free one for 0. Raises :class:`ConfigurationError`."""
    shown = f"{escape(host)}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"cannot listen on {shown}: {error}; choose another AGENT_SSE_HOST") from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(address)
                listener.listen(1)  # what already listens there may have allowed to bind
                port = port or int(listener.getsockname()[1])
            except OSError as error:
                raise ConfigurationError(
                    f"cannot listen on {shown}: {error.strerror}; choose another --port, or stop what uses this one"
                ) from None
    return port


def log_config() -> dict[str, Any]:
    """Return uvicorn's logging with this package's loggers, and failures to start as one line each."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["agent_sse"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    config["filters"] = {"one_line": {"()": "agent_sse.serve.OneLine"}}
    config["loggers"]["uvicorn.error"]["filters"] = ["one_line"]
    return config


class OneLine(logging.Filter):
    """Shortens the traceback of an error that explains itself to that explanation; drops no record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change ``record`` in place."""
        if isinstance(record.msg, str) and record.msg.startswith("Traceback"):
            name, _, text = record.msg.rstrip().rpartition("\n")[2].partition(": ")
            if name.startswith("agent_sse.errors."):
                record.msg = escape(text)
        return True


# -- for development --------------------------------------------------------------------------------------------------


def dev_secret(settings: Settings, *, make: bool) -> str | None:
    """Return the secret that ``serve --dev`` keeps in its state directory; None when there is none and ``make`` is off.

    Raises :class:`ConfigurationError` when others could have read it.
    """
    directory = state_dir(settings.state_dir)
    path = directory / DEV_SECRET
    try:
        if make and not path.exists():
            _keep(path, make_secret())
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ConfigurationError(
                f"{path} can be read by others: delete it, and start `agent-sse serve --dev` again"
            )
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot use {path}: {error}; delete it, or set AGENT_SSE_JWT_SECRET") from None


def _keep(path: Path, secret: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)  # mode 0600 from the start
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secret)
        os.link(name, path)  # whole or not at all, and the first one stays
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


def prepare_dev(settings: Settings) -> tuple[Settings, list[str]]:
    """Return settings with a secret and a fixed port, put into the environment for the workers, and what to tell."""
    lines = ["DEVELOPMENT MODE: do not let anybody else reach this port, and do not use it in production."]
    if not settings.jwt_secret and settings.jwt_algorithm.startswith("HS"):
        secret = dev_secret(settings, make=True)
        os.environ["AGENT_SSE_JWT_SECRET"] = secret or ""
        lines.append(f"Tokens are signed with a secret made for you, kept in {state_dir(settings.state_dir)}.")
    os.environ["AGENT_SSE_PORT"] = str(check_address(settings.host, settings.port))
    settings = load_settings()
    if settings.jwt_algorithm.startswith("HS"):  # otherwise tokens come from an issuer elsewhere
        token = encode_token(settings, subject="dev", sessions=[DEV_SESSION], ttl_seconds=DEV_TOKEN_SECONDS)
        lines.append(f"Open {page_url(settings, DEV_SESSION, token)}")
    lines.append("Try it: " + EXAMPLE)
    return settings, lines


EXAMPLE = (
    f"agent-sse publish {DEV_SESSION} "
    """'{"type": "tool_status", "data": {"tool_name": "search", "status": "executing"}}'"""
)


def page_url(settings: Settings, session_id: str, token: str) -> str:
    """Return the page's URL; the token is in the fragment, which browsers send to nobody."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.port}/#{urlencode({'session': session_id, 'token': token})}"
