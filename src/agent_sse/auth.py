"""From a JSON Web Token to a :class:`Principal`, and from a principal to yes or no. Takes strings, no web framework.

python-jose only builds the keys and checks signatures here: by itself it ignores ``kid``, accepts non-canonical base64
and repeated JSON names, lets ``exp`` be missing, and raises far more than ``JOSEError`` for hostile input.
A token never reaches a log line or an error message.
https://www.rfc-editor.org/rfc/rfc7519 · https://www.rfc-editor.org/rfc/rfc8725
"""

from __future__ import annotations

import inspect
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from jose import jwt

from agent_sse.errors import ApiError, ConfigurationError
from agent_sse.jwt_claims import MAX_SESSIONS, kid_of, numeric_date, scopes_of, sessions_of, subject_of
from agent_sse.jwt_keys import key_source, secret_key
from agent_sse.jwt_text import Flaw, decode_part, parse_object
from agent_sse.keys import check_session_id
from agent_sse.settings import Settings
from agent_sse.token_cache import TokenCache, digest_of

EVENTS_READ = "events:read"
EVENTS_PUBLISH = "events:publish"
PERMISSIONS_RESPOND = "permissions:respond"
DEFAULT_SCOPE = f"{EVENTS_READ} {PERMISSIONS_RESPOND}"

MAX_TOKEN_CHARS = 8192
# The end of year 9999: a token may claim any later time, timers and dates need not bear it.
MAX_EXPIRES_AT = 253_402_300_799.0

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
        self._keys = key_source(settings, monotonic)
        self._verified: TokenCache[Principal] = TokenCache()
        if not self._audience:
            logger.warning(
                "AGENT_SSE_JWT_AUDIENCE is not set: a token that your issuer made for another service is accepted here"
            )

    def verify(self, token: str) -> Principal:
        """Return the token's principal, from memory if this very token was good before and has not expired.

        Raises :class:`ApiError` 401 with the code ``token_missing``, ``token_expired`` or ``token_invalid``, whatever
        is wrong with the token.
        """
        if not token:
            raise _unauthorized("token_missing", "a token is needed: send 'Authorization: Bearer <token>'")
        try:
            return self._remembered(token)
        except (ApiError, MemoryError):
            raise
        except Flaw as flaw:
            raise _unauthorized("token_invalid", f"{flaw}: send a token exactly as its issuer made it") from None
        except Exception as error:
            # The parsers below this line raise RecursionError, TypeError, OverflowError and more for hostile input.
            # Whatever it is, the token is not valid; the cause is dropped because it may quote the token.
            logger.debug("a token was refused because of %s", type(error).__name__)
            raise _unauthorized("token_invalid", "the token is malformed: send it exactly as issued") from None

    def _remembered(self, token: str) -> Principal:
        """Return the principal of a token that was verified before, or verify it and remember it if it is good.

        Of all that makes a token good only two things change with time: the key, and whether it has expired.
        """
        if len(token) > MAX_TOKEN_CHARS:
            raise Flaw(f"the token is longer than {MAX_TOKEN_CHARS} characters")
        if not token.isascii():
            raise Flaw("the token is not base64url")
        if self._keys.refresh():
            self._verified = TokenCache()
        # Held by a name, so that what a withdrawn key vouched for never gets into the cache that comes after it.
        verified, digest = self._verified, digest_of(token)
        principal = verified.get(digest)
        if principal is None:
            principal = self._principal(self._claims(token))
            verified.put(digest, principal, len(token))
        else:
            self._check_expiry(principal.expires_at, self._now())
        return principal

    def _claims(self, token: str) -> dict[str, Any]:
        """Return the claims once the signature is known to be good; nothing in them is believed before."""
        parts = token.split(".")
        if len(parts) != 3:
            raise Flaw("the token is not three parts with dots between")
        header, payload, signature = map(decode_part, parts)
        key = self._keys.select(kid_of(parse_object(header), self._algorithm))
        if key is None:
            raise Flaw("no key of this service fits the token's 'kid'")
        if not key.verify(token.rpartition(".")[0].encode("ascii"), signature):
            raise Flaw("the token's signature is wrong")
        return parse_object(payload)

    def _principal(self, claims: dict[str, Any]) -> Principal:
        subject = subject_of(claims.get("sub"))
        expires_at = self._check_times(claims)
        if self._audience:
            audience = claims.get("aud")
            if self._audience not in (audience if isinstance(audience, list) else [audience]):
                raise Flaw("the token's audience ('aud') is not this service")
        if self._issuer and claims.get("iss") != self._issuer:
            raise Flaw("the token's issuer ('iss') is not the one this service trusts")
        return Principal(subject, scopes_of(claims, DEFAULT_SCOPE), sessions_of(claims), expires_at)

    def _check_times(self, claims: dict[str, Any]) -> float:
        """Return ``exp`` (https://www.rfc-editor.org/rfc/rfc7519#section-4.1.4)."""
        now = self._now()
        if "exp" not in claims:
            raise Flaw("the token has no expiry ('exp')")
        expires_at = numeric_date(claims, "exp")
        if "iat" in claims:
            numeric_date(claims, "iat")
        if "nbf" in claims and numeric_date(claims, "nbf") > now + self._leeway:
            raise Flaw("the token is not valid yet ('nbf')")
        self._check_expiry(expires_at, now)
        return min(expires_at, MAX_EXPIRES_AT)

    def _check_expiry(self, expires_at: float, now: float) -> None:
        if expires_at + self._leeway <= now:
            raise _unauthorized("token_expired", "the token has expired: get a new one from its issuer")


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

    def decide_now(self, principal: Principal, session_id: str, scope: str) -> Literal[True] | None:
        """Return True if ``principal`` may use ``session_id`` with ``scope``, None if only :meth:`check` can tell.

        Awaits nothing: the token alone allows it where it lists the session and no ``authorize`` was given. Raises the
        :class:`ApiError` of :meth:`check` where nothing that Redis or ``authorize`` could say would help.
        """
        if not principal.allows(scope):
            raise ApiError(403, "scope_missing", f"this needs the scope '{scope}': use a token that carries it")
        listed = principal.lists(session_id)
        # A ticket was made for one session; whose else its subject is does not matter.
        if principal.read_only and not listed:
            raise _forbidden()
        return True if listed and self._authorize is None else None

    async def check(self, principal: Principal, session_id: str, scope: str) -> None:
        """Return if ``principal`` may use ``session_id`` with ``scope``.

        Raises :class:`ApiError` 403 ``scope_missing`` or ``session_forbidden``, and :class:`RedisUnavailable` when only
        Redis knows the answer and cannot be asked.
        """
        if self.decide_now(principal, session_id, scope):
            return
        allowed = await self._opinion(principal, session_id)
        if allowed is None:
            allowed = principal.lists(session_id) or await self._owner_of(session_id) == principal.subject
        if not allowed:
            raise _forbidden()

    async def refuses(self, principal: Principal, session_id: str) -> bool:
        """Whether the embedding application refuses the session, whatever token and owner say."""
        return await self._opinion(principal, session_id) is False

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
    if token.split() != [token]:
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
    key = secret_key(settings)
    if not (math.isfinite(ttl_seconds) and 0 < ttl_seconds <= MAX_EXPIRES_AT):
        raise ConfigurationError("the token's lifetime must be a positive number of seconds")
    now = int(time.time())
    try:
        claims: dict[str, Any] = {"sub": subject_of(subject), "iat": now, "exp": now + math.ceil(ttl_seconds)}
    except Flaw as flaw:
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


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers={"WWW-Authenticate": "Bearer"})


def _forbidden() -> ApiError:
    # One message for foreign and for unknown sessions: it must not tell which sessions exist.
    return ApiError(
        403, "session_forbidden", "this token gives no right to this session: it must list it or be its owner's"
    )
