"""What a token's header and claims must be, one by one. Knows no key, no clock and no settings.

https://www.rfc-editor.org/rfc/rfc7519#section-4 · https://www.rfc-editor.org/rfc/rfc9068#section-2
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from agent_sse.jwt_text import Flaw
from agent_sse.keys import SESSION_ID

MAX_SUBJECT_CHARS = 256
MAX_SESSIONS = 1000

_CONTROL_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def kid_of(header: dict[str, Any], algorithm: str) -> str | None:
    """Return ``kid``; :class:`Flaw` unless the header is one of a token for ``algorithm``.

    Nothing vouches for a header yet: it can be refused here, never choose how to verify.
    """
    if header.get("alg") != algorithm:
        raise Flaw(f"the token's algorithm is not {algorithm}")
    if "crit" in header:
        raise Flaw("the token demands an extension ('crit') that is not supported")
    if "typ" in header:
        kind = header["typ"]
        if not isinstance(kind, str) or kind.lower() not in ("jwt", "at+jwt"):
            raise Flaw("the token's 'typ' is not JWT")
    kid = header.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise Flaw("the token's 'kid' is not a string")
    return kid


def numeric_date(claims: dict[str, Any], name: str) -> float:
    """Return a time in Unix seconds; :class:`Flaw` for what is not a number."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Flaw(f"the token's '{name}' is not a number")
    return float(value)


def subject_of(value: object) -> str:
    """Return ``sub``; :class:`Flaw` unless it is 1 to ``MAX_SUBJECT_CHARS`` characters, none of them for control."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SUBJECT_CHARS:
        raise Flaw(f"the subject ('sub') is not a string of 1 to {MAX_SUBJECT_CHARS} characters")
    # What is printable has none of them, and nearly every subject is: the slow look is for the few others.
    if not value.isprintable() and any(unicodedata.category(character) in _CONTROL_CATEGORIES for character in value):
        raise Flaw("the subject ('sub') has control characters")
    return value


def scopes_of(claims: dict[str, Any], default: str) -> frozenset[str]:
    """Return the scopes in ``scope``, those of ``default`` when there is none; :class:`Flaw` if it is no string."""
    scope = claims.get("scope", default)
    if not isinstance(scope, str):
        raise Flaw("the token's 'scope' is not a string")
    return _scopes(scope)


# Tokens by the thousand have the same few scopes: one set serves all of them.
@lru_cache(maxsize=64)
def _scopes(scope: str) -> frozenset[str]:
    return frozenset(scope.split(" ")) - {""}


def sessions_of(claims: dict[str, Any]) -> frozenset[str] | None:
    """Return the session ids in ``sessions``, None without the claim; :class:`Flaw` unless it is a list of strings."""
    if "sessions" not in claims:
        return None
    value = claims["sessions"]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Flaw("the token's 'sessions' is not a list of strings")
    if len(value) > MAX_SESSIONS:
        raise Flaw(f"the token lists more than {MAX_SESSIONS} sessions")
    # What cannot be a session id gives no right to any session, and need not be shown to anybody.
    return frozenset(item for item in value if SESSION_ID.fullmatch(item))
