"""What verified tokens stood for, so that the same token need not be verified again. Holds digests, never a token."""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

MAX_CACHED_TOKENS = 20_000
# What a token stands for grows with its length (its list of sessions), so the lengths are bounded together, too.
MAX_CACHED_CHARS = 8 * 1024 * 1024

T = TypeVar("T")


class TokenCache(Generic[T]):
    """Values by the SHA-256 of their token; bounded, what was not used lately goes first.

    Two generations instead of one ordered list: a use moves a value into the young one, and when that is half of a
    bound, it becomes the old one and the old one is dropped. So a hit in the young one changes nothing, and there is no
    bookkeeping per value.
    """

    __slots__ = ("_chars", "_old", "_young")

    def __init__(self) -> None:
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}
        self._chars = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, digest: bytes, chars: int) -> T | None:
        """Return what was put for the token with this ``digest`` and a length of ``chars``, or None."""
        value = self._young.get(digest)
        if value is None:
            value = self._old.pop(digest, None)
            if value is not None:
                self.put(digest, value, chars)
        return value

    def put(self, digest: bytes, value: T, chars: int) -> None:
        """Keep ``value`` for the verified token with this ``digest`` and a length of ``chars``."""
        if len(self._young) >= MAX_CACHED_TOKENS // 2 or self._chars + chars > MAX_CACHED_CHARS // 2:
            self._young, self._old, self._chars = {}, self._young, 0
        self._young[digest] = value
        self._chars += chars


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of an ASCII ``token``, all of its 32 bytes.

    A shorter digest, or Python's own hash, could be made to collide; blake2b is no faster here (0.8 against 0.7 µs).
    """
    return hashlib.sha256(token.encode("ascii")).digest()
