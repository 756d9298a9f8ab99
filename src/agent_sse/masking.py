"""Secrets in what is shown: values under certain names, and texts that look like credentials, become ``••••``. Pure.

What a tool gets is never touched: values are copied where something is hidden, and returned as they are elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import re2

from agent_sse.errors import InvalidEvent

MASK = "••••"
DEFAULT_KEYS = (
    "password", "passwd", "pwd", "passphrase", "passcode", "secret", "token", "api_key", "apikey", "access_key",
    "secret_key", "private_key", "client_secret", "signing_key", "encryption_key", "authorization", "auth", "cookie",
    "credential", "credentials", "session_key", "session_id", "otp", "pin", "cvv", "connection_string", "dsn",
)  # fmt: skip
_SCHEMES = "bearer|basic|token|digest|negotiate"
DEEPEST = 200  # levels; JSON that is nested deeper is refused before anybody would read it

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_TOKENS = (
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS access key ids
    r"\bgh[opsur]_[A-Za-z0-9]{20,}",
    r"\bgithub_pat_\w{20,}",
    r"\bglpat-[\w-]{16,}",  # GitLab
    r"\bxox[abeoprs]-[\w-]{10,}",  # Slack
    r"\bsk-[\w-]{16,}",  # OpenAI, Anthropic
    r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{10,}",  # Stripe
    r"\bAIza[\w-]{30,}",  # Google
    r"\bya29\.[\w-]{16,}",
    r"\bnpm_[A-Za-z0-9]{30,}",
    r"\bpypi-AgE[\w-]{20,}",
    r"\bhf_[A-Za-z0-9]{20,}",  # Hugging Face
    r"\bSG\.[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    r"\bwhsec_[A-Za-z0-9+/=]{16,}",
    r"\beyJ[\w-]{6,}\.eyJ[\w-]{6,}\.[\w-]*",  # JWT (RFC 7519)
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z0-9 ]{0,40}-----|\z)",
)


class Masker:
    """Hides what is under ``keys`` and what looks like a credential.

    A key matches a name when the name's words are its last words: ``api_key`` matches ``x-api-key`` and
    ``githubApiKey``, and ``token`` matches ``accessToken`` but neither ``max_tokens`` nor ``token_count``.
    """

    def __init__(self, keys: Sequence[str] = DEFAULT_KEYS) -> None:
        self._names = frozenset(words for words in map(_words, keys) if words)
        self._longest = max(map(len, self._names), default=0)
        self._known: dict[str, bool] = {}
        names = "|".join(sorted({"[_-]?".join(words) for words in self._names}, key=len, reverse=True))
        forms = [
            f"({'|'.join(_TOKENS)})",
            r"""://[^\s/?#:@"'<>]*:([^\s/?#@"'<>]+)@""",  # a URL's password (RFC 3986, userinfo)
            rf"(?i:\b(?:{_SCHEMES}))[ \t]+([\w.~+/=-]{{6,}})",  # RFC 6750, RFC 7617
        ]
        if names:
            value = rf"""["']?(?:(?i:{_SCHEMES})[ \t]+)?([^\s"'&;,{{}}\[\]()<>]+)"""
            forms.append(rf"--[\w-]*(?i:{names})[ \t=]+{value}")
            forms.append(rf"""\b[\w-]*(?i:{names})["']?[ \t]*[=:][ \t]*{value}""")
        options = re2.Options()
        options.log_errors, options.max_mem = False, 64 * 2**20
        self._pattern = re2.compile("|".join(forms), options=options)

    def masked(self, value: object) -> tuple[Any, tuple[str, ...]]:
        """Return the value as it may be shown, and the JSON pointers (RFC 6901) of what is hidden, in order.

        Returns the very value when nothing is. Raises :class:`InvalidEvent` for one that is nested too deeply.
        """
        hidden: list[str] = []
        return self._walk(value, "", hidden, 0), tuple(hidden)

    def mask(self, value: object) -> Any:
        """Return the value as it may be shown; see :meth:`masked`."""
        return self._walk(value, "", [], 0)

    def paths(self, value: object) -> list[str]:
        """Return the JSON pointers (RFC 6901) of what is hidden."""
        return list(self.masked(value)[1])

    def mask_text(self, text: str) -> str:
        """Return a text without what looks like a credential in it."""
        return self._pattern.sub(_hide, text) if len(text) > 7 else text

    def is_secret(self, key: str) -> bool:
        """Tell whether what is under this key is hidden."""
        known = self._known.get(key)
        if known is None:
            words = _words(key)
            known = any(words[-n:] in self._names for n in range(1, min(self._longest, len(words)) + 1))
            if len(self._known) < 10_000:
                self._known[key] = known
        return known

    def _walk(self, value: Any, at: str, hidden: list[str], depth: int) -> Any:
        if depth > DEEPEST:
            raise InvalidEvent(f"the value is nested more than {DEEPEST} levels deep, or contains itself")
        if isinstance(value, str):
            shown = self.mask_text(value)
            if shown is not value and shown != value:
                hidden.append(at)
                return shown
            return value
        if isinstance(value, dict):
            return self._object(value, at, hidden, depth)
        if isinstance(value, list | tuple):
            items = [self._walk(item, f"{at}/{i}", hidden, depth + 1) for i, item in enumerate(value)]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        return value

    def _object(self, value: dict[Any, Any], at: str, hidden: list[str], depth: int) -> Any:
        changed = False
        shown: dict[Any, Any] = {}
        for key, item in value.items():
            is_text = isinstance(key, str)
            path = f"{at}/{key.replace('~', '~0').replace('/', '~1')}" if is_text else at
            if is_text and self.is_secret(key) and _is_worth_hiding(item):
                if item != MASK:
                    changed = True
                hidden.append(path)
                shown[key] = MASK
            else:
                shown[key] = self._walk(item, path, hidden, depth + 1)
                changed = changed or shown[key] is not item
        return shown if changed else value


def _is_worth_hiding(value: object) -> bool:
    return not (value is None or isinstance(value, bool) or value in ("", [], {}, ()))


def _hide(match: Any) -> str:
    text: str = match.group(0)
    for number, secret in enumerate(match.groups(), 1):
        if secret is not None:
            start, end = match.span(number)
            return text[: start - match.start()] + MASK + text[end - match.start() :]
    return text


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORDS.findall(name))


Mask = Callable[[object], object]
