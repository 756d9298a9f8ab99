"""A policy's file: read, and read again when it has changed; a version that cannot be used never takes effect.

What stands in the file is `policy_form`'s matter, what it means `policy`'s.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from pathlib import Path

from agent_sse.policy import Policy
from agent_sse.policy_form import InvalidPolicy, parse_policy
from agent_sse.terminal import escape

_log = logging.getLogger(__name__)

SIZE_LIMIT = 1024 * 1024  # bytes

# A file changed twice within a tick of the file system's clock can look unchanged: one this young is read again.
_SETTLED_NS = 100_000_000

_Signature = tuple[int, int, int, int, int]


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Return the policy in a TOML file. Raises :class:`~agent_sse.errors.ConfigurationError` with all its problems."""
    return _parse(_read(Path(path))[0], Path(path))


def _signature(status: os.stat_result) -> _Signature:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the file's bytes and its state before they were read, so that a change meanwhile shows afterwards."""
    try:
        # Opening a FIFO would otherwise wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidPolicy([f"{path}: is not a regular file"])
            content = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise InvalidPolicy([f"{path}: cannot be read: {error.strerror or error}"]) from None
    if len(content) > SIZE_LIMIT:
        raise InvalidPolicy([f"{path}: is larger than {SIZE_LIMIT:,} bytes"])
    return content, status


def _parse(content: bytes, path: Path) -> Policy:
    try:
        text = content.decode("utf-8-sig")  # some editors begin with a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidPolicy([f"{path}:{line}: is not UTF-8"]) from None
    return parse_policy(text, str(path))


class PolicyFile:
    """A policy file that may change while it is in use. Raises :class:`InvalidPolicy` when it is unusable at first.

    Later on, while the file is missing or wrong, the last good policy stays in force; each such version is logged
    once as an error, and :attr:`error` says what is wrong.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.error: InvalidPolicy | None = None
        self._judged: bytes | None  # what `error`, or its absence, is about; None for a file that cannot be read
        self._judged, status = _read(self.path)
        self._policy = _parse(self._judged, self.path)
        self._remember(status)

    def current(self) -> Policy:
        """Return the policy in force. Costs one ``stat`` while nothing changes, so call it for every tool call."""
        try:
            seen = _signature(self.path.stat())
        except OSError:
            seen = None
        if seen is None or seen != self._seen or not self._settled:
            self._reload()
        return self._policy

    def _remember(self, status: os.stat_result | None) -> None:
        self._seen = None if status is None else _signature(status)
        self._settled = status is not None and abs(time.time_ns() - status.st_mtime_ns) > _SETTLED_NS

    def _reload(self) -> None:
        try:
            content, status = _read(self.path)
        except InvalidPolicy as error:
            self._remember(None)
            self._refuse(None, error)
            return
        self._remember(status)
        if content == self._judged:
            return
        try:
            self._policy = _parse(content, self.path)
        except InvalidPolicy as error:
            self._refuse(content, error)
            return
        self._judged, self.error = content, None
        _log.info("policy %s read again: %d rules are in force", self.path, len(self._policy.rules))

    def _refuse(self, content: bytes | None, error: InvalidPolicy) -> None:
        if self.error is None or content != self._judged or str(error) != str(self.error):
            _log.error("policy not taken over, the one before stays in force: %s", escape(str(error)))
        self._judged, self.error = content, error
