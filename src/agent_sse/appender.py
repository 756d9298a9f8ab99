"""A file that is only appended to, by one process at a time, whole lines or nothing. Knows not what the lines say."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path

_FILE_ID = re.compile(rb"[0-9a-f]{32}")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class Appender:
    """The file, and the lock beside it (``<name>.lock``) that one process has. Every method may block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file_id = ""  # known with the lock
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock: int | None = None
        self._file: int | None = None
        self._torn = False  # the last byte may not end a line

    def check(self) -> None:
        """Raise OSError unless both can be written."""
        os.close(_open(self._lock_path, _FLAGS))
        os.close(_open(self.path, _FLAGS | os.O_APPEND))

    def acquire(self) -> bool:
        """Take the lock, False while another process has it. It is released by :meth:`close`, or with this process."""
        if self._lock is not None:
            return True
        lock = _open(self._lock_path, _FLAGS)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(lock, self._lock_path):  # somebody has removed it meanwhile: a lock that nobody sees
                os.close(lock)
                return False
            found = os.pread(lock, 64, 0)
            if _FILE_ID.fullmatch(found) is None:
                found = secrets.token_hex(16).encode()
                os.ftruncate(lock, 0)
                os.pwrite(lock, found, 0)
                os.fsync(lock)
        except BlockingIOError:
            os.close(lock)
            return False
        except OSError:
            os.close(lock)
            raise
        self._lock, self.file_id = lock, found.decode()
        return True

    def append(self, lines: bytes) -> None:
        """Append whole lines and wait until the disk has them; when that fails, none of them is there."""
        file = self._current()
        size = os.fstat(file).st_size
        if self._torn and size and os.pread(file, 1, size - 1) != b"\n":
            lines = b"\n" + lines
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError:
            self._torn = True
            with contextlib.suppress(OSError):  # a file for appending only stays torn, the next line begins anew
                if os.fstat(file).st_size > size:  # else it was truncated by who rotates it
                    os.ftruncate(file, size)
            raise
        self._torn = False

    def close(self) -> None:
        """Close the file and let another process have it."""
        for file in (self._file, self._lock):
            if file is not None:
                os.close(file)
        self._file = self._lock = None

    def _current(self) -> int:
        """Return the open file; a new one when the old one was moved away or removed."""
        if self._file is not None and not _is_at(self._file, self.path):
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._file, self._torn = _open(self.path, _FLAGS | os.O_APPEND), True
        return self._file


def _open(path: Path, flags: int) -> int:
    file = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is not a regular file")
    return file


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
