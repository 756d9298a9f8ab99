"""What looks like a credential in a text, and where it begins and ends. Pure; which names are secret is masking's.

Texts come from agents and tools, so the pattern is RE2's: its time grows with the text and with nothing else. Each form
decides within a bounded distance or takes all that it has read; else a text could be read again from each of its words.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any

import re2

MASK = "••••"
MAX_CANDIDATES = 5_000  # in one text, which is hidden whole when there are more
MOST_KNOWN = 100  # texts that one call's masker knows
PASSES = 4  # over one text, until nothing more is found
MAX_MEMORY = 16 * 2**20  # bytes, of the automaton that RE2 builds while it reads

_MASK = MASK.encode()
_LOOK_BACK = 64  # bytes of a name before the part of it that the pattern knows
_SHORT = 64  # what is shown after all is no longer: it is read twice

Span = tuple[int, int]
# A form's judge gets the text, and the spans of the form's groups, and says what is to be hidden. An empty span says
# that nothing is, and where to read on; None, that what the last group took is to be read again.
Judge = Callable[[bytes, list[Span]], Span | None]

# What its maker gave a form of its own.
_TOKENS = (
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS access key ids
    r"gh[opsur]_[A-Za-z0-9]{30,}",
    r"github_pat_\w{22,}",
    r"gl(?:pat|ptt|dt|rt|ft|cbt|oas|soat)-[\w-]{20,}",  # GitLab
    r"xox[abceoprs]-[\w-]{10,}",  # Slack
    r"xapp-[0-9]-[\w-]{10,}",
    r"\bsk-(?:ant|proj|svcacct|admin|or)-[\w-]{16,}",  # Anthropic, OpenAI, OpenRouter
    r"\bsk-[A-Za-z0-9]{20,}",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{10,}",  # Stripe
    r"\bwhsec_[A-Za-z0-9+/=]{16,}",
    r"AIza[\w-]{30,}",  # Google
    r"\bya29\.[\w-]{16,}",
    r"\bGOCSPX-[\w-]{20,}",
    r"\bnpm_[A-Za-z0-9]{30,}",
    r"pypi-AgE[\w-]{20,}",
    r"\bhf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"\bSG\.[\w-]{22}\.[\w-]{43}",  # SendGrid
    r"\bdop_v1_[a-f0-9]{64}",  # DigitalOcean
    # A block without its end was cut: hidden as far as it may be one.
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:[\w+/=\s\\:,]|-\w)*(?:-{5,}END [A-Z0-9 ]{0,60}-----)?",
)

_QUOTED = (
    r'\\"(?:[^"\\\n]|\\\\(?:\\")?|\\[^"\\])*',  # in JSON that is a string of JSON
    r'"(?:[^"\\\n]|\\.)*',
    r"\\?'(?:[^'\\\n]|\\.)*",
)
_VALUE = "|".join((*_QUOTED, r"""[^\s"'\\&,;(){}\[\]<>|=~][^\s"'\\&,;(){}\[\]<>|]*"""))

_NAME_BEFORE = re.compile(rb"[\w.-]*\Z")
_LINE_BEFORE = re.compile(rb"(?:\A|\n)[ \t\"'-]*\Z")
_QUOTE = re.compile(rb"\\?[\"']")
_SCHEME = re.compile(rb"(?i:bearer|basic|token|digest|negotiate|apikey|bot|aws4-hmac-sha256)[ \t]+(?=\S)")
# A variable, or a place to fill in: it says which secret is meant, and not what it is.
_REFERENCE = re.compile(
    rb"\$\{?[A-Z_][A-Z0-9_]*\}?|\$[({].*|\$\$?|\$?\{\{?.*\}|<.*>|\[.*\]|%\w+%|\*+|[.xX-]{3,}|(?:\xe2\x80\xa2|\xe2\x80\xa6)+",
    re.DOTALL,
)
_CALL = re.compile(rb"[A-Za-z_][\w.]{0,60}\(")
_LETTERS = re.compile(rb"[A-Za-z_]+(?:[.-][A-Za-z_]+)*")
_NAME = re.compile(rb"[A-Za-z_]\w*(?:\.\w+)*")
_OF_CODE = (b"self.", b"this.", b"os.", b"process.", b"settings.", b"config.", b"env.", b"args.", b"request.")
_NO_SECRETS = frozenset(
    b"none null nil true false undefined void any unknown object str string text bytes int integer number float bool "
    b"boolean optional required secretstr yes no".split()
)


class Credentials:
    """Finds credentials by their form, and by the name before them.

    ``names`` are a secret name's words each (``("api", "key")``); ``is_secret`` tells of a whole name as it stands in
    a text (``"GITHUB_API_KEY"``) whether it is one.
    """

    def __init__(self, names: Iterable[tuple[str, ...]], is_secret: Callable[[str], bool]) -> None:
        self._is_secret = is_secret
        self._judges: list[tuple[int, int, Judge]] = []
        patterns, group = [], 1
        for pattern, groups, judge in self._forms("|".join("[-_. ]?".join(map(re2.escape, words)) for words in names)):
            patterns.append(pattern)
            self._judges.append((group, group + groups, judge))
            group += groups
        options = re2.Options()
        options.log_errors, options.max_mem = False, MAX_MEMORY
        self._pattern = re2.compile("|".join(patterns), options)

    def _forms(self, names: str) -> list[tuple[str, int, Judge]]:
        forms: list[tuple[str, int, Judge]] = [
            (f"({'|'.join(_TOKENS)})", 1, _whole),
            (f"((?:{MASK})+)", 1, _behind),
            (r"(\beyJ[\w-]{8,}(?:\.[\w-]+)*)", 1, _jwt),
            (r"""://[^\s/?#:@"'<>\\]{0,64}:([^\s/?#@"'<>\\]{1,128})@""", 1, _url_password),
            (r"(?i:\bbearer)[ \t]{1,4}([\w.~+/=-]{8,})", 1, _bearer),
            (r"(?i:\bbasic)[ \t]{1,4}([A-Za-z0-9+/]{6,}={0,2})", 1, _basic),
            (r"""\s(?:-u|--user)[ \t=]["']?[^\s:"']{1,64}:([^\s"']+)""", 1, _curl_password),
            (
                r"""(?i:authorization|cookie)["'\\\]]{0,4}[ \t]{0,3}[:=][ \t]{0,3}["'\\]{0,2}([^\s"'\\][^\r\n"'\\]*)""",
                1,
                _header,
            ),
        ]
        if names:
            named = rf"(?i:{names})[0-9]{{0,2}}"
            sign = r"[ \t]{0,3}(?:=>|:=|=|:|：)[ \t]{0,3}"
            forms.append((rf"(--[\w-]{{0,40}}{named})([ \t]{{1,3}})({_VALUE})", 3, self._assigned))
            forms.append((rf"""({named})["'\\\]]{{0,4}}({sign})({_VALUE})""", 3, self._assigned))
        return forms

    def occur(self, text: str) -> bool:
        """Tell whether :meth:`hide` might find something; False is certain. Costs about a nanosecond a character."""
        return self._pattern.search(_bytes(text)) is not None

    def hide(self, text: str, found: set[str] | None = None) -> str:
        """Return the text with :data:`MASK` in place of each credential; the very text when there is none.

        Hiding what it returns changes nothing. What is hidden is added to ``found``.
        """
        whole = text
        for _ in range(PASSES):
            hidden = self._hide_once(text, found)
            if hidden == text:
                return text
            text = hidden  # what a credential stood beside may be one by itself
        if found is not None:
            found.add(whole)
        return MASK

    def _hide_once(self, text: str, found: set[str] | None) -> str:
        data, done, at = _bytes(text), 0, 0
        parts: list[bytes] = []
        for _ in range(MAX_CANDIDATES):
            match = self._pattern.search(data, at)
            if match is None:
                return _text(b"".join((*parts, data[done:]))) if parts else text
            (start, end), at = self._judged(data, match)
            if start < end:
                parts += data[done:start], _MASK
                done = end
                if found is not None:
                    found.add(_text(data[start:end]))
        if found is not None:
            found.add(text)
        return MASK

    def _judged(self, data: bytes, match: Any) -> tuple[Span, int]:
        """Return what is to be hidden, and where to read on."""
        first, behind, judge = next(form for form in self._judges if match.start(form[0]) >= 0)
        spans = [match.span(group) for group in range(first, behind)]
        hidden = judge(data, spans)
        return ((0, 0), max(spans[-1][0], match.start() + 1)) if hidden is None else (hidden, hidden[1])

    def _assigned(self, text: bytes, spans: list[Span]) -> Span | None:
        (start, named), (sign, value), (_, end) = spans
        before = _NAME_BEFORE.search(text, max(0, start - _LOOK_BACK), start)
        start = before.start() if before else start
        name = text[start:named]
        if not self._is_secret(name.decode("utf-8", "replace")):
            return None
        quote = _QUOTE.match(text, value, end)
        found = _worth_hiding(text, quote.end() if quote else value, end)
        if found is None or quote or name.startswith(b"--"):
            return found
        worth = text[value:end]
        if _is_code(text, found) or (_is_variable(worth, name) and self._is_secret(worth.decode())):
            return None
        apart = text[value - 1 : value] in b" \t"
        return None if apart and not _is_line(text, start, sign, found) else found


class KnownTexts:
    """Finds what another finds, and these exact texts (at most :data:`MOST_KNOWN`, the longest) wherever they stand."""

    def __init__(self, inner: Credentials | KnownTexts, texts: Iterable[str]) -> None:
        self._inner = inner
        self._texts = sorted(texts, key=lambda text: (-len(text), text))[:MOST_KNOWN]

    def occur(self, text: str) -> bool:
        """Tell whether :meth:`hide` might find something; False is certain."""
        return any(known in text for known in self._texts) or self._inner.occur(text)

    def hide(self, text: str, found: set[str] | None = None) -> str:
        """Return the text with :data:`MASK` in place of each credential and each known text."""
        text = hidden = self._inner.hide(text, found)  # first, since a known text may be a part of a credential
        for known in self._texts:
            if known in hidden:
                hidden = hidden.replace(known, MASK)
                if found is not None:
                    found.add(known)
        return text if hidden == text else self._inner.hide(hidden, found)


def is_placeholder(text: str) -> bool:
    """Tell whether a text in a secret's place is none: ``none``, ``$TOKEN``, ``<your key>``, or hidden already."""
    data = _bytes(text)
    found = _worth_hiding(data, 0, len(data))
    return found is None or found[0] == found[1]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _whole(_: bytes, spans: list[Span]) -> Span:
    return spans[0]


def _behind(_: bytes, spans: list[Span]) -> Span:
    return spans[0][1], spans[0][1]


def _jwt(text: bytes, spans: list[Span]) -> Span:
    """Take three parts (RFC 7519), or a cut one's two; other base64 of JSON is, for one, a page's cursor."""
    start, end = spans[0]
    token = text[start:end]
    return (start, end) if token.count(b".") > 1 or b".eyJ" in token else (end, end)


def _url_password(text: bytes, spans: list[Span]) -> Span | None:
    """Take the password of a URL's userinfo (RFC 3986, 3.2.1)."""
    return _worth_hiding(text, *spans[0])


def _bearer(text: bytes, spans: list[Span]) -> Span | None:
    """Take RFC 6750's token; but "bearer authentication" is prose."""
    start, end = spans[0]
    return None if end - start < 20 and _LETTERS.fullmatch(text, start, end) else _worth_hiding(text, start, end)


def _basic(text: bytes, spans: list[Span]) -> Span | None:
    """Take RFC 7617's base64 of a name, a colon and a password; but "basic knowledge" is prose."""
    start, end = spans[0]
    try:
        # Whole groups of four: what was cut, or has lost its padding, is a credential all the same.
        decoded = base64.b64decode(text[start : start + (end - start) // 4 * 4], validate=True)
    except binascii.Error:
        return None
    return (start, end) if b":" in decoded else None


def _curl_password(text: bytes, spans: list[Span]) -> Span | None:
    """Take that of ``curl -u name:password``; after other commands such a pair is a user and a group."""
    start, end = spans[0]
    return (start, end) if text.rfind(b"curl", max(0, start - 500), start) >= 0 else None


def _header(text: bytes, spans: list[Span]) -> Span | None:
    """Take the rest of the line but for the scheme's name (RFC 9110, 11.6.2)."""
    start, end = spans[0]
    scheme = _SCHEME.match(text, start, end)
    if scheme is None and (_LETTERS.fullmatch(text, start, min(end, start + _SHORT)) or _CALL.match(text, start, end)):
        return None
    start = scheme.end() if scheme else start
    if end - start < 20 and _LETTERS.fullmatch(text, start, end):
        return None
    return _worth_hiding(text, start, end)


def _worth_hiding(text: bytes, start: int, end: int) -> Span | None:
    value = text[start:end]
    if _MASK in value:
        return end, end
    if len(value) <= _SHORT and (not value or value.lower() in _NO_SECRETS or _REFERENCE.fullmatch(value)):
        return None
    return start, end


def _is_code(text: bytes, span: Span) -> bool:
    """Tell whether a value without quotes is an expression, as in ``token=get()`` and ``token=self.token``."""
    value = text[slice(*span)]
    if len(value) > _SHORT or not _NAME.fullmatch(value):
        return False
    return text[span[1] : span[1] + 1] in (b"(", b"[") or value.startswith(_OF_CODE)


def _is_variable(value: bytes, name: bytes) -> bool:
    """Tell whether a value may be a variable, if it has a secret's name: ``token=access_token``, ``token=token``."""
    if len(value) > _SHORT or not _NAME.fullmatch(value):
        return False
    return b"_" in value or b"." in value or name.lower().endswith(value.lower())


def _is_line(text: bytes, start: int, sign: int, span: Span) -> bool:
    """Tell whether the value after ``: `` or `` = `` is more than prose, a comment or a variable of a program.

    It is when it has a digit or a special character, or is what a line of YAML says.
    """
    if text.startswith(b"#", span[0]):
        return False
    if span[1] - span[0] > _SHORT or not _LETTERS.fullmatch(text[slice(*span)].rstrip(b".:!?")):
        return True
    line = text[max(0, start - _LOOK_BACK) : start]
    begins = len(line) == start or b"\n" in line
    is_last = text[span[1] : span[1] + 1] in (b"", b"\n", b"\r")
    return begins and is_last and text[sign : span[0]].lstrip()[:1] == b":" and bool(_LINE_BEFORE.search(line))
