"""From a JSON Web Token to a :class:`Principal`, and from a principal to yes or no. Takes strings, no web framework.

python-jose only builds the keys and checks signatures here: by itself it ignores ``kid``, accepts non-canonical base64
and repeated JSON names, lets ``exp`` be missing, and raises far more than ``JOSEError`` for hostile input.
A token never reaches a log line or an error message.
https://www.rfc-editor.org/rfc/rfc7519 · https://www.rfc-editor.org/rfc/rfc8725
"""

from __future__ import annotations

import base64
import inspect
import json
import logging
import math
import re
import secrets
import time
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jose import jwk, jwt
from jose.backends.base import Key
from jose.exceptions import JOSEError

from agent_sse.errors import ApiError, ConfigurationError
from agent_sse.keys import SESSION_ID, check_session_id
from agent_sse.settings import Settings

EVENTS_READ = "events:read"
EVENTS_PUBLISH = "events:publish"
PERMISSIONS_RESPOND = "permissions:respond"
DEFAULT_SCOPE = f"{EVENTS_READ} {PERMISSIONS_RESPOND}"

MAX_TOKEN_CHARS = 8192
MAX_SUBJECT_CHARS = 256
MAX_SESSIONS = 1000
MIN_SECRET_BYTES = 32
# RFC 7518 § 3.3.
MIN_RSA_BITS = 2048
MAX_JWKS_BYTES = 1024 * 1024
JWKS_CHECK_SECONDS = 1.0
# The end of year 9999: a token may claim any later time, timers and dates need not bear it.
MAX_EXPIRES_AT = 253_402_300_799.0

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")
_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})

logger = logging.getLogger("agent_sse")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what the token allows.

    ``sessions`` are the session ids that the token lists, None when it lists none at all; ``expires_at`` is in Unix
    seconds, without leeway; ``read_only`` is set for a stream ticket, which can only read.
    """

    subject: str
    scopes: frozenset[str]
    sessions: frozenset[str] | None
    expires_at: float
    read_only: bool = False

    def allows(self, scope: str) -> bool:
        """Tell whether the principal has ``scope``."""
        return scope in self.scopes and (scope == EVENTS_READ or not self.read_only)

    def lists(self, session_id: str) -> bool:
        """Tell whether the token itself names ``session_id``."""
        return self.sessions is not None and session_id in self.sessions


class TokenVerifier:
    """Checks tokens against the one configured algorithm and key.

    ``now`` gives Unix seconds, ``monotonic`` paces the look at the JWKS file; tests replace them.
    Raises :class:`ConfigurationError` when the settings do not make a safe verifier.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._algorithm: str = settings.jwt_algorithm
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._leeway = settings.jwt_leeway
        self._now = now
        self._select = _key_source(settings, monotonic)
        if not self._audience:
            logger.warning(
                "AGENT_SSE_JWT_AUDIENCE is not set: a token that your issuer made for another service is accepted here"
            )

    def verify(self, token: str) -> Principal:
        """Return the token's principal.

        Raises :class:`ApiError` 401 with the code ``token_missing``, ``token_expired`` or ``token_invalid``, whatever
        is wrong with the token.
        """
        if not token:
            raise _unauthorized("token_missing", "a token is needed: send 'Authorization: Bearer <token>'")
        try:
            return self._principal(self._claims(token))
        except (ApiError, MemoryError):
            raise
        except _Flaw as flaw:
            raise _unauthorized("token_invalid", f"{flaw}: send a token exactly as its issuer made it") from None
        except Exception as error:
            # The parsers below this line raise RecursionError, TypeError, OverflowError and more for hostile input.
            # Whatever it is, the token is not valid; the cause is dropped because it may quote the token.
            logger.debug("a token was refused because of %s", type(error).__name__)
            raise _unauthorized("token_invalid", "the token is malformed: send it exactly as issued") from None

    def _claims(self, token: str) -> dict[str, Any]:
        """Return the claims once the signature is known to be good; nothing in them is believed before."""
        if len(token) > MAX_TOKEN_CHARS:
            raise _Flaw(f"the token is longer than {MAX_TOKEN_CHARS} characters")
        parts = token.split(".")
        if len(parts) != 3:
            raise _Flaw("the token is not three parts with dots between")
        header_bytes, payload, signature = (_decode_part(part) for part in parts)
        kid = self._check_header(_parse_object(header_bytes))
        key = self._select(kid)
        if key is None:
            raise _Flaw("no key of this service fits the token's 'kid'")
        if not key.verify(token.rpartition(".")[0].encode("ascii"), signature):
            raise _Flaw("the token's signature is wrong")
        return _parse_object(payload)

    def _check_header(self, header: dict[str, Any]) -> str | None:
        """Return ``kid``. Nothing vouches for a header yet: it can be refused here, never choose how to verify."""
        if header.get("alg") != self._algorithm:
            raise _Flaw(f"the token's algorithm is not {self._algorithm}")
        if "crit" in header:
            raise _Flaw("the token demands an extension ('crit') that is not supported")
        if "typ" in header:
            kind = header["typ"]
            if not isinstance(kind, str) or kind.lower() not in ("jwt", "at+jwt"):
                raise _Flaw("the token's 'typ' is not JWT")
        kid = header.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise _Flaw("the token's 'kid' is not a string")
        return kid

    def _principal(self, claims: dict[str, Any]) -> Principal:
        subject = _subject(claims.get("sub"))
        expires_at = self._check_times(claims)
        if self._audience:
            audience = claims.get("aud")
            if self._audience not in (audience if isinstance(audience, list) else [audience]):
                raise _Flaw("the token's audience ('aud') is not this service")
        if self._issuer and claims.get("iss") != self._issuer:
            raise _Flaw("the token's issuer ('iss') is not the one this service trusts")
        scope = claims.get("scope", DEFAULT_SCOPE)
        if not isinstance(scope, str):
            raise _Flaw("the token's 'scope' is not a string")
        return Principal(subject, frozenset(scope.split(" ")) - {""}, _sessions(claims), expires_at)

    def _check_times(self, claims: dict[str, Any]) -> float:
        """Return ``exp`` (https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4)."""
        now = self._now()
        if "exp" not in claims:
            raise _Flaw("the token has no expiry ('exp')")
        expires_at = _numeric_date(claims, "exp")
        if "iat" in claims:
            _numeric_date(claims, "iat")
        if "nbf" in claims and _numeric_date(claims, "nbf") > now + self._leeway:
            raise _Flaw("the token is not valid yet ('nbf')")
        if expires_at + self._leeway <= now:
            raise _unauthorized("token_expired", "the token has expired: get a new one from its issuer")
        return min(expires_at, MAX_EXPIRES_AT)


class Authorizer:
    """Decides whether a principal may use a session.

    ``owner_of`` returns the owner that ``open_session`` registered, or None. ``authorize`` is the embedding
    application's own opinion: True allows, False refuses, None leaves it to the token and the owner.
    """

    def __init__(
        self,
        owner_of: Callable[[str], Awaitable[str | None]],
        authorize: Callable[[Principal, str], bool | Awaitable[bool | None] | None] | None = None,
    ) -> None:
        self._owner_of = owner_of
        self._authorize = authorize

    async def check(self, principal: Principal, session_id: str, scope: str) -> None:
        """Return if ``principal`` may use ``session_id`` with ``scope``.

        Raises :class:`ApiError` 403 ``scope_missing`` or ``session_forbidden``, and :class:`RedisUnavailable` when only
        Redis knows the answer and cannot be asked.
        """
        if not principal.allows(scope):
            raise ApiError(403, "scope_missing", f"this needs the scope '{scope}': use a token that carries it")
        opinion = await self._opinion(principal, session_id)
        allowed = opinion if opinion is not None else principal.lists(session_id)
        if not allowed and opinion is None:
            allowed = await self._owner_of(session_id) == principal.subject
        if not allowed:
            # One message for foreign and for unknown sessions: it must not tell which sessions exist.
            raise ApiError(
                403, "session_forbidden", "this token gives no right to this session: it must list it or be its owner's"
            )

    async def _opinion(self, principal: Principal, session_id: str) -> bool | None:
        if self._authorize is None:
            return None
        try:
            answer = self._authorize(principal, session_id)
            # An object: what the application really returns need not be what its types say.
            opinion: object = await answer if inspect.isawaitable(answer) else answer
        except Exception:
            # The application's code may raise anything; a check that failed has not allowed it.
            logger.exception("authorize() raised for session %s: access refused", session_id)
            return False
        if opinion is None or isinstance(opinion, bool):
            return opinion
        # A truthy object (a forgotten call, a response) is no decision.
        logger.error("authorize() returned %s instead of True, False or None: access refused", type(opinion).__name__)
        return False


def bearer(header_values: list[str]) -> str:
    """Return the token of the ``Authorization`` headers, given as the list of their values.

    Raises :class:`ApiError` 401: ``token_missing`` without a token, ``token_invalid`` for several headers, another
    scheme, or white space inside. https://www.rfc-editor.org/rfc/rfc6750#section-2.1
    """
    if not header_values:
        raise _unauthorized("token_missing", "a token is needed: send 'Authorization: Bearer <token>'")
    if len(header_values) > 1:
        raise _unauthorized("token_invalid", "there are several Authorization headers: send one")
    scheme, _, token = header_values[0].strip(" \t").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorized("token_invalid", "the Authorization header must be 'Bearer <token>'")
    token = token.strip(" \t")
    if not token:
        raise _unauthorized("token_missing", "the Authorization header has no token after 'Bearer'")
    if any(character.isspace() for character in token):
        raise _unauthorized("token_invalid", "the Authorization header must be 'Bearer <token>', no space in the token")
    return token


def encode_token(
    settings: Settings,
    *,
    subject: str,
    sessions: list[str] | None = None,
    scope: str | None = None,
    ttl_seconds: float = 3600.0,
) -> str:
    """Return a token signed with the service's own secret, for development and for small set-ups.

    Raises :class:`ConfigurationError` unless the algorithm is of the HS family and the token would be accepted, and
    :class:`~agent_sse.errors.InvalidSessionId` for what cannot be a session id.
    """
    if not settings.jwt_algorithm.startswith("HS"):
        raise ConfigurationError(
            f"tokens for {settings.jwt_algorithm} are signed with a private key that this service does not have: "
            "get one from your own issuer"
        )
    key = _secret_key(settings)
    if not (math.isfinite(ttl_seconds) and 0 < ttl_seconds <= MAX_EXPIRES_AT):
        raise ConfigurationError("the token's lifetime must be a positive number of seconds")
    now = int(time.time())
    try:
        claims: dict[str, Any] = {"sub": _subject(subject), "iat": now, "exp": now + math.ceil(ttl_seconds)}
    except _Flaw as flaw:
        raise ConfigurationError(str(flaw)) from None
    optional = {
        "aud": settings.jwt_audience or None,
        "iss": settings.jwt_issuer or None,
        "sessions": None if sessions is None else [check_session_id(session) for session in sessions],
        "scope": scope,
    }
    claims.update({name: value for name, value in optional.items() if value is not None})
    token = jwt.encode(claims, key, algorithm=settings.jwt_algorithm)
    if len(token) > MAX_TOKEN_CHARS or len(sessions or ()) > MAX_SESSIONS:
        raise ConfigurationError(
            f"the token would be refused: it may have {MAX_TOKEN_CHARS} characters and list {MAX_SESSIONS} sessions"
        )
    return token


def make_secret() -> str:
    """Return a fresh random secret (384 bits) for a service that runs for one developer."""
    return secrets.token_urlsafe(48)


class _Flaw(Exception):
    """What is wrong with a token or a key, in words that quote nothing of it."""


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers={"WWW-Authenticate": "Bearer"})


def _decode_part(part: str) -> bytes:
    """Decode canonical base64url: one text per value, so no changed token stays the same token (RFC 7515 § 2)."""
    if _BASE64URL.fullmatch(part) is None or len(part) % 4 == 1:
        raise _Flaw("the token is not base64url")
    decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part.encode("ascii"):
        raise _Flaw("the token is not canonical base64url")
    return decoded


def _parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object in which every name occurs once and every number is finite and at most 20 digits long."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_names,
            parse_constant=_refuse_number,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
    except (ValueError, RecursionError):
        raise _Flaw("the JSON in it is malformed") from None
    if not isinstance(value, dict):
        raise _Flaw("the JSON in it is not an object")
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Flaw("a name occurs twice in the JSON in it")
    return value


def _refuse_number(_: str) -> NoReturn:
    raise _Flaw("the JSON in it has a number that is not finite or is too long")


def _parse_int(text: str) -> int:
    return int(text) if len(text) <= 20 else _refuse_number(text)


def _parse_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _numeric_date(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Flaw(f"the token's '{name}' is not a number")
    return float(value)


def _subject(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SUBJECT_CHARS:
        raise _Flaw(f"the subject ('sub') is not a string of 1 to {MAX_SUBJECT_CHARS} characters")
    if any(unicodedata.category(character) in _CONTROL_CATEGORIES for character in value):
        raise _Flaw("the subject ('sub') has control characters")
    return value


def _sessions(claims: dict[str, Any]) -> frozenset[str] | None:
    if "sessions" not in claims:
        return None
    value = claims["sessions"]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Flaw("the token's 'sessions' is not a list of strings")
    if len(value) > MAX_SESSIONS:
        raise _Flaw(f"the token lists more than {MAX_SESSIONS} sessions")
    # What cannot be a session id gives no right to any session, and need not be shown to anybody.
    return frozenset(item for item in value if SESSION_ID.fullmatch(item))


def _key_source(settings: Settings, monotonic: Callable[[], float]) -> Callable[[str | None], Key | None]:
    """Return the function from a token's ``kid`` to the key that verifies it."""
    algorithm = settings.jwt_algorithm
    if algorithm.startswith("HS"):
        key = _secret_key(settings)
    elif bool(settings.jwt_public_key.strip()) == (settings.jwt_jwks_file is not None):
        raise ConfigurationError(
            f"AGENT_SSE_JWT_ALGORITHM={algorithm} needs a key to verify with: "
            "set one of AGENT_SSE_JWT_PUBLIC_KEY (PEM) and AGENT_SSE_JWT_JWKS_FILE, not both"
        )
    elif settings.jwt_jwks_file is not None:
        return _KeyFile(settings.jwt_jwks_file, algorithm, monotonic).select
    else:
        # An environment variable often carries a PEM in one line; a backslash occurs in no PEM.
        pem = settings.jwt_public_key.strip().replace("\\n", "\n")
        try:
            key = _public_key(pem, algorithm)
        except _Flaw as flaw:
            raise ConfigurationError(f"AGENT_SSE_JWT_PUBLIC_KEY {flaw}") from None
    return lambda kid: key


def _secret_key(settings: Settings) -> Key:
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
            raise _Flaw
        return jwk.construct(settings.jwt_secret, settings.jwt_algorithm)
    except (JOSEError, _Flaw):
        raise ConfigurationError(
            "AGENT_SSE_JWT_SECRET is a PEM or SSH key or a certificate, not a secret: "
            "for a public key set AGENT_SSE_JWT_PUBLIC_KEY and an RS or ES algorithm"
        ) from None


def _public_key(data: str | dict[str, Any], algorithm: str) -> Key:
    """Build a key that verifies ``algorithm`` and nothing weaker; :class:`_Flaw` otherwise."""
    try:
        key = jwk.construct(data, algorithm)
        members = key.to_dict()
    except Exception:
        # For a key of another kind jose raises KeyError, AttributeError, ValueError and others; its messages quote it.
        raise _Flaw(f"is not a public key that can be read as one for {algorithm}") from None
    if "d" in members:
        raise _Flaw("is a private key: give this service the public one")
    if members.get("crv") != _CURVES.get(algorithm):
        raise _Flaw(f"is not on the curve {_CURVES.get(algorithm)} that {algorithm} uses")
    if "n" in members and _bits(members["n"]) < MIN_RSA_BITS:
        raise _Flaw(f"is an RSA key of less than {MIN_RSA_BITS} bits")
    return key


def _bits(number: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(number + "=="), "big").bit_length()


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

    def select(self, kid: str | None) -> Key | None:
        """Return the key that ``kid`` names, or the only one when neither the token nor the key has a name."""
        if self._monotonic() >= self._next_look:
            self._next_look = self._monotonic() + JWKS_CHECK_SECONDS
            self._reload()
        if len(self._keys) == 1 and (kid is None or None in self._keys):
            return next(iter(self._keys.values()))
        return None if kid is None else self._keys.get(kid)

    def _reload(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._keys = _read_key_set(self._path, self._algorithm)
        except ConfigurationError as error:
            # The stamp stays old, so that a half-written file is read again; the warning comes once per change.
            if stamp != self._warned:
                logger.warning("%s; the keys read before stay in use", error)
                self._warned = stamp
            return
        self._stamp = self._warned = stamp
        logger.info("AGENT_SSE_JWT_JWKS_FILE was read again: %d keys for %s", len(self._keys), self._algorithm)


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
            raise _Flaw(f"it is larger than {MAX_JWKS_BYTES} bytes")
        candidates = _parse_object(data).get("keys")
        if not isinstance(candidates, list):
            raise _Flaw("it has no list 'keys'")
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror or type(error).__name__}") from None
    except _Flaw as flaw:
        raise ConfigurationError(f"{name} is not a JWK set: {flaw}") from None
    keys: dict[str | None, Key] = {}
    for candidate in candidates:
        if not _fits(candidate, algorithm):
            continue
        kid = candidate.get("kid")
        try:
            key = _public_key({name: candidate[name] for name in _PUBLIC_MEMBERS if name in candidate}, algorithm)
        except _Flaw as flaw:
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
