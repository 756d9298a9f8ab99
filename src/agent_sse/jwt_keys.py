"""The keys that verify tokens: a shared secret, a PEM, or a JWK set in a file that may change while the service runs.

A key or a token is never quoted in a message.
https://www.rfc-editor.org/rfc/rfc7517 · https://www.rfc-editor.org/rfc/rfc7518
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from jose import jwk
from jose.backends.base import Key
from jose.exceptions import JOSEError

from agent_sse.errors import ConfigurationError
from agent_sse.jwt_text import Flaw, parse_object
from agent_sse.settings import Settings

MIN_SECRET_BYTES = 32
# RFC 7518 § 3.3.
MIN_RSA_BITS = 2048
MAX_JWKS_BYTES = 1024 * 1024
JWKS_CHECK_SECONDS = 1.0

_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")

logger = logging.getLogger("agent_sse")


class KeySource(Protocol):
    """Where the keys come from that verify tokens."""

    def refresh(self) -> bool:
        """Look at the keys again if it is time, and tell whether they are others than before.

        Cheap enough for every request. What an earlier key vouched for must be forgotten when this returns True.
        """

    def select(self, kid: str | None) -> Key | None:
        """Return the key that ``kid`` names, or None."""


def key_source(settings: Settings, monotonic: Callable[[], float]) -> KeySource:
    """Return the source of the keys that the settings name.

    ``monotonic`` paces the look at the JWKS file. Raises :class:`ConfigurationError` when there is no safe key.
    """
    algorithm = settings.jwt_algorithm
    if algorithm.startswith("HS"):
        key = secret_key(settings)
    elif bool(settings.jwt_public_key.strip()) == (settings.jwt_jwks_file is not None):
        raise ConfigurationError(
            f"AGENT_SSE_JWT_ALGORITHM={algorithm} needs a key to verify with: "
            "set one of AGENT_SSE_JWT_PUBLIC_KEY (PEM) and AGENT_SSE_JWT_JWKS_FILE, not both"
        )
    elif settings.jwt_jwks_file is not None:
        return _KeyFile(settings.jwt_jwks_file, algorithm, monotonic)
    else:
        # An environment variable often carries a PEM in one line; a backslash occurs in no PEM.
        pem = settings.jwt_public_key.strip().replace("\\n", "\n")
        try:
            key = _public_key(pem, algorithm)
        except Flaw as flaw:
            raise ConfigurationError(f"AGENT_SSE_JWT_PUBLIC_KEY {flaw}") from None
    return _OneKey(key)


def secret_key(settings: Settings) -> Key:
    """Return the HS family's key. Raises :class:`ConfigurationError` for a missing, short or mistaken secret."""
    try:
        size = len(settings.jwt_secret.encode("utf-8"))
    except UnicodeEncodeError:
        raise ConfigurationError("AGENT_SSE_JWT_SECRET is not valid UTF-8") from None
    if size < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"AGENT_SSE_JWT_SECRET {'is too short' if size else 'is missing'}: {settings.jwt_algorithm} needs at least "
            f'{MIN_SECRET_BYTES} bytes; make one with: python -c "import secrets; print(secrets.token_urlsafe(48))"'
        )
    try:
        if settings.jwt_secret.lstrip().startswith("-----BEGIN"):
            raise Flaw
        return jwk.construct(settings.jwt_secret, settings.jwt_algorithm)
    except (JOSEError, Flaw):
        raise ConfigurationError(
            "AGENT_SSE_JWT_SECRET is a PEM or SSH key or a certificate, not a secret: "
            "for a public key set AGENT_SSE_JWT_PUBLIC_KEY and an RS or ES algorithm"
        ) from None


def _public_key(data: str | dict[str, Any], algorithm: str) -> Key:
    """Build a key that verifies ``algorithm`` and nothing weaker; :class:`Flaw` otherwise."""
    try:
        key = jwk.construct(data, algorithm)
        members = key.to_dict()
    except Exception:
        # For a key of another kind jose raises KeyError, AttributeError, ValueError and others; its messages quote it.
        raise Flaw(f"is not a public key that can be read as one for {algorithm}") from None
    if "d" in members:
        raise Flaw("is a private key: give this service the public one")
    if members.get("crv") != _CURVES.get(algorithm):
        raise Flaw(f"is not on the curve {_CURVES.get(algorithm)} that {algorithm} uses")
    if "n" in members and _bits(members["n"]) < MIN_RSA_BITS:
        raise Flaw(f"is an RSA key of less than {MIN_RSA_BITS} bits")
    return key


def _bits(number: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(number + "=="), "big").bit_length()


class _OneKey:
    """The one key of a service; a token's ``kid`` has nothing to select."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def refresh(self) -> bool:
        return False

    def select(self, kid: str | None) -> Key:
        return self._key


class _KeyFile:
    """A JWK Set (https://www.rfc-editor.org/rfc/rfc7517#section-5) in a file that may change while the service runs."""

    def __init__(self, path: Path, algorithm: str, monotonic: Callable[[], float]) -> None:
        self._path = path
        self._algorithm = algorithm
        self._monotonic = monotonic
        # Taken before the file is read: a change during the read is seen at the next look.
        self._stamp = self._warned = _stamp(path)
        self._keys = _read_key_set(path, algorithm)
        self._next_look = monotonic() + JWKS_CHECK_SECONDS

    def refresh(self) -> bool:
        """Look at the file at most once in ``JWKS_CHECK_SECONDS``, and tell whether it was read again."""
        now = self._monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + JWKS_CHECK_SECONDS
        return self._reload()

    def select(self, kid: str | None) -> Key | None:
        """Return the key that ``kid`` names, or the only one when neither the token nor the key has a name."""
        if len(self._keys) == 1 and (kid is None or None in self._keys):
            return next(iter(self._keys.values()))
        return None if kid is None else self._keys.get(kid)

    def _reload(self) -> bool:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        try:
            self._keys = _read_key_set(self._path, self._algorithm)
        except ConfigurationError as error:
            # The stamp stays old, so that a half-written file is read again; the warning comes once per change.
            if stamp != self._warned:
                logger.warning("%s; the keys read before stay in use", error)
                self._warned = stamp
            return False
        self._stamp = self._warned = stamp
        logger.info("AGENT_SSE_JWT_JWKS_FILE was read again: %d keys for %s", len(self._keys), self._algorithm)
        return True


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file does; None when there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read_key_set(path: Path, algorithm: str) -> dict[str | None, Key]:
    """Return the keys of the file that may verify ``algorithm``, by ``kid``."""
    name = f"AGENT_SSE_JWT_JWKS_FILE ({path})"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JWKS_BYTES + 1)
        if len(data) > MAX_JWKS_BYTES:
            raise Flaw(f"it is larger than {MAX_JWKS_BYTES} bytes")
        candidates = parse_object(data).get("keys")
        if not isinstance(candidates, list):
            raise Flaw("it has no list 'keys'")
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror or type(error).__name__}") from None
    except Flaw as flaw:
        raise ConfigurationError(f"{name} is not a JWK set: {flaw}") from None
    keys: dict[str | None, Key] = {}
    for candidate in candidates:
        if not _fits(candidate, algorithm):
            continue
        kid = candidate.get("kid")
        try:
            key = _public_key({name: candidate[name] for name in _PUBLIC_MEMBERS if name in candidate}, algorithm)
        except Flaw as flaw:
            # RFC 7517 § 5: a key that is not understood is ignored, the others stay usable.
            logger.warning("%s: the key with kid %r %s; ignored", name, kid, flaw)
            continue
        if kid in keys:
            raise ConfigurationError(f"{name}: several keys for {algorithm} have the kid {kid!r}: each needs its own")
        keys[kid] = key
    if not keys:
        raise ConfigurationError(f"{name} has no key for {algorithm}")
    return keys


def _fits(candidate: object, algorithm: str) -> bool:
    """Tell whether a JWK is of the algorithm's kind and says nothing against being used to verify it."""
    if not isinstance(candidate, dict) or candidate.get("kty") != ("RSA" if algorithm.startswith("RS") else "EC"):
        return False
    operations = candidate.get("key_ops", ["verify"])
    return (
        candidate.get("alg", algorithm) == algorithm
        and candidate.get("use", "sig") == "sig"
        and candidate.get("crv") == _CURVES.get(algorithm)
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(candidate.get("kid"), str | None)
    )
