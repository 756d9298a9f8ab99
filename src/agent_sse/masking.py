"""Secrets in what is shown: values under certain names, and texts that look like credentials, become ``••••``. Pure.

What a tool gets is never touched: values are copied where something is hidden, and returned as they are elsewhere.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import quote

from agent_sse import credential_forms, credentials
from agent_sse.credentials import Credentials, KnownTexts
from agent_sse.errors import InvalidEvent

MASK = credential_forms.MASK
# Left out, since they name other things more often: `pin` (of a board), `session_id`, `pass` (of tests) by itself,
# `key`, `dsn` (whose password is found by its form).
DEFAULT_KEYS = (
    "password", "passwords", "passwd", "pwd", "passphrase", "passcode", "pgpassword", "sshpass", "db_pass",
    "database_pass", "mysql_pass", "postgres_pass", "pg_pass", "redis_pass", "smtp_pass", "mail_pass", "email_pass",
    "ftp_pass", "ssh_pass", "user_pass", "admin_pass", "root_pass", "login_pass", "auth_pass", "secret", "secrets",
    "token", "access_token", "auth_token", "refresh_token", "bearer", "jwt", "api_key", "api_keys", "access_key",
    "secret_key", "private_key", "client_secret", "signing_key", "encryption_key", "master_key", "account_key",
    "session_key", "authorization", "auth", "cookie", "cookies", "credential", "credentials", "otp", "cvv", "cvc",
    "connection_string", "密码", "口令", "令牌", "密钥",
)  # fmt: skip
DEEPEST = 200  # levels; JSON that is nested deeper is refused before anybody would read it
KNOWN_KEYS = 10_000  # whose kind is remembered
SHORTEST_KNOWN = 6  # characters; shorter texts stand in other words too

_LONG = 8  # letters
_TAIL = 128  # characters of a key that are looked at
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")
_NAMES_OF_PAIRS = ("name", "key", "header")  # beside "value"
_FLAGS_OF_CURL = ("-u", "--user")
_PLAIN, _SECRET, _CREDENTIAL = 0, 1, 2  # kinds of keys; a key may be both of the latter


@dataclass(slots=True)
class _Hidden:
    pointers: list[str] = field(default_factory=list)
    texts: set[str] | None = None  # collected only for who asks

    def add(self, pointer: str, *values: object) -> None:
        """Note one pointer once, though both its key and its value may be hidden, and the texts in the values."""
        if self.pointers[-1:] != [pointer]:
            self.pointers.append(pointer)
        if self.texts is not None:
            self.texts.update(*map(_texts, values))


class Masker:
    """Hides what is under ``keys`` and what looks like a credential.

    A key is split into words at capitals, digits and whatever is no letter. It is secret when a name, read without
    its separators, is its last words: ``api_key`` covers ``x-api-key``, ``githubApiKey`` and ``APIKEY``, ``token``
    covers ``accessToken`` and ``token2``, but neither ``max_tokens`` nor ``token_count``. A name of eight letters or
    more, and one in another script, covers what ends with it as well: ``password`` covers ``dbpassword``.

    Hidden is all that is under such a key, an object as a whole, but for null, booleans, and what is empty. A key
    that looks like a credential is hidden itself.

    Where a name and its value are neighbours, as in ``["--password", "x"]`` and ``{"name": "X-Api-Key", "value": ""}``,
    the value is hidden as in a text: only what cannot be a command or a path, since the name may be chosen for it.
    """

    def __init__(self, keys: Sequence[str] = DEFAULT_KEYS) -> None:
        names = dict.fromkeys(words for words in map(_words, keys) if words)
        self._names = frozenset("".join(words) for words in names)
        self._endings = tuple(name for name in self._names if len(name) >= _LONG or not name.isascii())
        self._longest = max(map(len, self._names), default=0)
        self._credentials: Credentials | KnownTexts = Credentials(names, self.is_secret)
        self._known: dict[str, int] = {}

    def masked(self, value: object) -> tuple[Any, tuple[str, ...]]:
        """Return the value as it may be shown, and the JSON pointers (RFC 6901) of what is hidden, in order.

        Pointers name what is shown, so they hold no secret. What holds ``••••`` already counts as hidden. Returns the
        very value when nothing is hidden. Raises :class:`InvalidEvent` for a value nested deeper than 200 levels.
        """
        if not self._may_hide(value):
            return value, ()
        hidden = _Hidden()
        return self._show(value, "", hidden), tuple(hidden.pointers)

    def mask(self, value: object) -> Any:
        """Return the value as it may be shown; see :meth:`masked`."""
        return self.masked(value)[0]

    def paths(self, value: object) -> list[str]:
        """Return the JSON pointers (RFC 6901) of what is hidden."""
        return list(self.masked(value)[1])

    def mask_text(self, text: str) -> str:
        """Return a text without what looks like a credential in it, the very text when nothing does."""
        return self._credentials.hide(text)

    def hidden_texts(self, value: object) -> frozenset[str]:
        """Return the real texts that :meth:`mask` hides in this value, whole or as a part, of six characters or more.

        Left out is what is no secret by itself, as ``$TOKEN``.
        """
        hidden = _Hidden(texts=set())
        self._show(value, "", hidden)
        texts = hidden.texts or ()
        return frozenset(text for text in texts if len(text) >= SHORTEST_KNOWN and not credentials.is_placeholder(text))

    def knowing(self, value: object) -> Masker:
        """Return a masker that hides, wherever it stands, what this one hides in ``value`` as well.

        So a call's results and errors tell no secret of its parameters: as it is, in JSON, or in a URL. It is the very
        masker when nothing is hidden. Never show with it what is to be approved: who wrote the parameters chose what
        it hides.
        """
        texts = self.hidden_texts(value) if self._may_hide(value) else frozenset()
        if not texts:
            return self
        knowing = copy.copy(self)
        knowing._credentials = KnownTexts(self._credentials, {form for text in texts for form in _forms(text)})
        knowing._known = {}
        return knowing

    def is_secret(self, key: str) -> bool:
        """Tell whether what is under this key is hidden."""
        words = _words(key)
        return self._ends_in_name(words) or (bool(words) and words[-1].isdecimal() and self._ends_in_name(words[:-1]))

    def _ends_in_name(self, words: tuple[str, ...]) -> bool:
        end = ""
        for word in reversed(words):
            end = word + end
            if end in self._names:
                return True
            if len(end) > self._longest:
                break
        return end.endswith(self._endings)

    def _kind(self, key: object) -> int:
        if not isinstance(key, str):
            return _PLAIN  # no JSON; who encodes it says so
        known = self._known.get(key)
        if known is not None:
            return known
        kind = (_SECRET if self.is_secret(key) else 0) | (_CREDENTIAL if self._credentials.occur(key) else 0)
        if len(self._known) < KNOWN_KEYS and len(key) <= _TAIL:
            self._known[key] = kind
        return kind

    def _may_hide(self, value: object) -> bool:
        """Tell, at the price of one look at all texts together, whether :meth:`_show` has anything to do."""
        texts: list[str] = []
        known = self._known
        stack: list[tuple[Any, int]] = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            if isinstance(item, dict):
                if "value" in item and self._names_a_secret(item):
                    return True
                for key in item:
                    kind = known.get(key)
                    if kind or (kind is None and self._kind(key)):
                        return True
                item = item.values()
            elif isinstance(item, str):
                item = (item,)
            elif not isinstance(item, list | tuple):
                continue
            if depth > DEEPEST:
                raise _too_deep()
            for inner in item:
                if isinstance(inner, str):
                    if inner[:1] == "-" and (inner in _FLAGS_OF_CURL or self._kind(inner) & _SECRET):
                        return True  # perhaps
                    texts.append(inner)
                elif isinstance(inner, dict | list | tuple):
                    stack.append((inner, depth + 1))
        return bool(texts) and self._credentials.occur(texts[0] if len(texts) == 1 else "\n".join(texts))

    def _show(self, value: Any, at: str, hidden: _Hidden, depth: int = 0) -> Any:
        if isinstance(value, str):
            shown = self._credentials.hide(value, hidden.texts)
            if MASK in shown:
                hidden.add(at)
            return shown if shown != value else value
        if depth > DEEPEST and isinstance(value, dict | list | tuple):
            raise _too_deep()
        if isinstance(value, dict):
            return self._show_object(value, at, hidden, depth)
        if isinstance(value, list | tuple):
            items = self._show_items(value, at, hidden, depth)
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        return value

    def _show_items(self, value: Sequence[Any], at: str, hidden: _Hidden, depth: int) -> list[Any]:
        items: list[Any] = []
        before: Any = None
        for_curl = False
        for i, item in enumerate(value):
            begin = 0 if isinstance(before, str) and self._is_flag(before) else -1
            if for_curl and before in _FLAGS_OF_CURL and isinstance(item, str):
                begin = item.find(":") + 1 or -1
            if begin >= 0 and isinstance(item, str) and item[:1] != "-":
                items.append(self._show_neighbour(item, begin, f"{at}/{i}", hidden))
            else:
                items.append(self._show(item, f"{at}/{i}", hidden, depth + 1))
            for_curl = for_curl or (isinstance(item, str) and item.rpartition("/")[2] == "curl")
            before = item
        return items

    def _is_flag(self, text: str) -> bool:
        """Whether a secret's value comes next; not where one was hidden in the text itself (``-token=••••``)."""
        return text[:1] == "-" and MASK not in text and bool(self._kind(text) & _SECRET)

    def _show_neighbour(self, text: str, begin: int, at: str, hidden: _Hidden) -> Any:
        """Show a secret's text, whose name is another value: hidden is, from ``begin`` on, what is harmless to hide."""
        end = begin + credentials.harmless(text[begin:])
        if begin == end:
            return self._show(text, at, hidden)
        hidden.add(at, text[begin:end])
        return self._show(f"{text[:begin]}{MASK}{text[end:]}", at, hidden)

    def _names_a_secret(self, value: dict[Any, Any]) -> bool:
        for key in _NAMES_OF_PAIRS:
            name = value.get(key)
            if isinstance(name, str) and self._kind(name) & _SECRET:
                return True
        return False

    def _show_object(self, value: dict[Any, Any], at: str, hidden: _Hidden, depth: int) -> Any:
        shown: dict[Any, Any] = {}
        changed, numbers = False, count(2)
        is_pair = "value" in value and self._names_a_secret(value)
        for key, item in value.items():
            kind = self._kind(key)
            name = self._covered(key, (value, shown), numbers) if kind & _CREDENTIAL else key
            path = f"{at}/{name.replace('~', '~0').replace('/', '~1')}" if isinstance(name, str) else at
            if kind & _CREDENTIAL and MASK in name:
                hidden.add(path)
                self._credentials.hide(key, hidden.texts)
            if (kind == _SECRET or (kind & _CREDENTIAL and self.is_secret(name))) and _is_worth_hiding(item):
                shown[name] = item if item == MASK else MASK
                hidden.add(path, item)
            elif is_pair and key == "value" and isinstance(item, str):
                shown[name] = self._show_neighbour(item, 0, path, hidden)
            else:
                shown[name] = self._show(item, path, hidden, depth + 1)
            changed = changed or name != key or shown[name] is not item
        return shown if changed else value

    def _covered(self, key: str, taken: tuple[dict[Any, Any], ...], numbers: Iterator[int]) -> str:
        """Return a key without its credential; with a number when it would be the same as another one then."""
        name = covered = self._credentials.hide(key)
        while name != key and any(name in names for names in taken):
            name = f"{covered} ({next(numbers)})"
        return name


def _is_worth_hiding(value: object) -> bool:
    if isinstance(value, str | dict | list | tuple):
        return bool(value)
    return value is not None and not isinstance(value, bool)


def _texts(value: object, depth: int = 0) -> Iterator[str]:
    """Yield the texts in what is hidden whole, and numbers as they stand in a text."""
    if depth > DEEPEST:
        raise _too_deep()
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def _forms(text: str) -> Iterator[str]:
    yield text
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]
    yield quote(text, safe="", errors="replace")


def _too_deep() -> InvalidEvent:
    return InvalidEvent(f"the value is nested too deeply (more than {DEEPEST} levels), or contains itself")


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORDS.findall(name[-_TAIL:]))
