"""What looks like a credential in a text, and where it begins and ends. Pure; which names are secret is masking's.

Texts come from agents and tools, so the pattern is RE2's: its time grows with the text and with nothing else. Each form
decides within a bounded distance or takes all that it has read; else a text could be read again from each of its words.

Who writes a text also chooses what looks like a secret in it, and users approve what they see. So nothing is hidden
that may be a command or a path: a secret ends where a shell's word does, since a quote may open or close there.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import re2

MASK = "••••"
MAX_CANDIDATES = 5_000  # in one text, which is hidden whole when there are more
MOST_KNOWN = 100  # texts that one call's masker knows
PASSES = 4  # over one text, until nothing more is found
MOST_HIDDEN = 4096  # bytes, by one mask
LONGEST_KEY = 16 * 2**10  # bytes, of a private key's block
MAX_MEMORY = 16 * 2**20  # bytes, of the automaton that RE2 builds while it reads

_MASK = MASK.encode()
_LOOK_BACK = 64  # bytes of a name before the part of it that the pattern knows
_SHORT = 64  # what is shown after all is no longer: it is read twice

Span = tuple[int, int]
# A form's judge gets the text, and the spans of the form's groups, and says what is to be hidden. An empty span says
# that nothing is, and where to read on; None, that what the last group took is to be read again. A list has several.
Judge = Callable[[bytes, list[Span]], Span | list[Span] | None]

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
    r"\bwhsec_[A-Za-z0-9+/=]{16,128}",
    r"AIza[\w-]{30,}",  # Google
    r"\bya29\.[\w-]{16,}",
    r"\bGOCSPX-[\w-]{20,}",
    r"\bnpm_[A-Za-z0-9]{30,}",
    r"pypi-AgE[\w-]{20,}",
    r"\bhf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"\bSG\.[\w-]{22}\.[\w-]{43}",  # SendGrid
    r"\bdop_v1_[a-f0-9]{64}",  # DigitalOcean
)

_KEY_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_KEY_HEADER = r"(?:Proc-Type: 4,ENCRYPTED|DEK-Info: [A-Z0-9-]{1,20},[0-9A-F]{1,64}|Version: GnuPG v[0-9.]{1,12})"
_KEY_PART = re.compile(
    rf"(?:\s|\\+[rn])*(?:(?P<end>-{{5,}}END [A-Z0-9 ]{{0,60}}-----)|{_KEY_HEADER}(?=[\s\\])"
    r"|(?P<line>[A-Za-z0-9+/=]+))".encode()
)

# No more than a shell's word, and after a slash only what may be base64. No name with its sign is read twice.
_MORE = r"(?:/[A-Za-z0-9+_-]+)*={0,2}"
_BARE = rf"""[^\s"'`\\&,;(){{}}\[\]<>|=~/][^\s"'`\\&,;(){{}}\[\]<>|/=]*{_MORE}"""
_QUOTED = (
    rf'\\"(?:[^\s"`\\&;<>|/]|\\\\(?:\\")?)*{_MORE}',  # in JSON that is a string of JSON
    rf'"(?:[^\s"`\\&;<>|/]|\\["\\])*{_MORE}',
    rf"\\?'[^\s'`\\&;<>|/]*{_MORE}",
)
_VALUE = "|".join((*_QUOTED, _BARE))
_SCHEMES = "bearer|basic|token|digest|negotiate|apikey|api-key|key|bot|ssws|oauth|dpop|sharedkey|aws4-hmac-sha256"

_BEHIND_SIGN = re.compile(rf"""[^\s"'`\\&,;(){{}}\[\]<>|/]*{_MORE}""".encode())
# With the controls and spaces of Unicode, which end a line or a word in other languages than the shell's.
_END_OF_WORD = re.compile(
    rb"[\x00-\x20\x7f;|&<>`]|\$[({]|(?:\A|/)\.{1,2}/|\xc2[\x80-\xa0]|\xe2\x80[\x80-\x8f\xa8-\xaf]|\xe2\x81[\x9f-\xaf]"
    rb"|\xe3\x80\x80|\xe1\x9a\x80|\xef\xbb\xbf"
)
_WORDS_OF_PATH = re.compile(rb"(?:\A|/)(?:[a-z_-]*|[A-Z][a-z]*|[A-Z_-]+|[0-9]+)(?=/|\Z)")
_BASE64 = re.compile(rb"[\w+/=-]+", re.ASCII)
_RUNS = re.compile(rb"`|\$[({]")
_JSON_TEXT = re.compile(rb'"(?:[^"\\\n]|\\.)*')
_LINE = 40  # characters; a key's lines are longer, but for the last
_KINDS = (re.compile(rb"[a-z]"), re.compile(rb"[A-Z]"), re.compile(rb"[0-9]"))
_PAIR = re.compile(rb"(?:\A|;[ ]?)(?P<name>[\w.%!#-]{1,64})=(?P<value>[^;]*)")
_OF_COOKIE = (b"path", b"domain", b"expires", b"max-age", b"samesite")
_NAME_BEFORE = re.compile(rb"[\w.-]*\Z")
_LINE_BEFORE = re.compile(rb"(?:\A|\n)[ \t\"'-]*\Z")
_QUOTE = re.compile(rb"\\?[\"']")
_SCHEME = re.compile(rf"(?i:{_SCHEMES})[ \t]+(?=\S)".encode())
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
        after = r"""["'\\\]]{0,4}[ \t]{0,3}[:=][ \t]{0,3}["'\\]{0,2}"""
        pair = rf"""[\w.%!#-]{{1,64}}=[^\s"'`\\&,;(){{}}\[\]<>|/$]*{_MORE}"""
        forms: list[tuple[str, int, Judge]] = [
            (f"({'|'.join(_TOKENS)})", 1, _whole),
            (f"((?:{MASK})+)", 1, _behind),
            (r"(\beyJ[\w-]{8,}(?:\.[\w-]+)*)", 1, _jwt),
            (r"""://[^\s/?#:@"'<>\\]{0,64}:([^\s/?#@"'<>\\]{1,128})@""", 1, _url_password),
            (r"(?i:\bbearer)[ \t]{1,4}([\w.~+/=-]{8,})", 1, _bearer),
            (r"(?i:\bbasic)[ \t]{1,4}([A-Za-z0-9+/]{6,}={0,2})", 1, _basic),
            (r"""\s(?:-u|--user)[ \t=]["']?[^\s:"']{1,64}:([^\s"'`;|&<>]+)""", 1, _curl_password),
            (rf"({_KEY_BEGIN})", 1, _key_block),
            (rf"""(?i:authorization){after}((?:(?i:{_SCHEMES})[ \t]{{1,4}})?{_BARE})""", 1, _header),
            (rf"""(?i:cookie){after}({pair}(?:;[ ]?{pair})*)""", 1, _cookies),
            (r"(?i:[?&]sig|signature)=([A-Za-z0-9%+/=_-]{16,})", 1, _signature),
        ]
        if names:
            named = rf"(?i:{names})[0-9]{{0,2}}"
            sign = r"[ \t]{0,3}(?:=>|:=|=|:|：)[ \t]{0,3}"
            forms.append((rf"(--[\w-]{{0,40}}{named})([ \t]{{1,3}})({_VALUE})", 3, self._assigned))
            forms.append((rf"(<[\w:.-]{{0,40}}{named})(>)({_BARE})</", 3, self._assigned))
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
        return _too_many(whole)

    def _hide_once(self, text: str, found: set[str] | None) -> str:
        data, done, at = _bytes(text), 0, 0
        parts: list[bytes] = []
        is_json: bool | None = None
        for _ in range(MAX_CANDIDATES):
            match = self._pattern.search(data, at)
            if match is None:
                return _text(b"".join((*parts, data[done:]))) if parts else text
            is_json = _is_json(text) if is_json is None else is_json
            hidden, at = self._judged(data, match, is_json)
            for start, end in hidden:
                parts += data[done:start], _MASK
                done = end
                if found is not None:
                    found.add(_text(data[start:end]))
        if found is not None:
            found.add(text)
        return _too_many(text)

    def _judged(self, data: bytes, match: Any, is_json: bool) -> tuple[list[Span], int]:
        """Return what is to be hidden, and where to read on."""
        first, behind, judge = next(form for form in self._judges if match.start(form[0]) >= 0)
        spans = [match.span(group) for group in range(first, behind)]
        found = judge(data, spans)
        again = max(spans[-1][0], match.start() + 1)
        if found is None:
            return [], again
        if isinstance(found, list):
            return [span for start, end in found if (span := _harmless(data, start, end))[0] < span[1]], spans[-1][1]
        if found[0] == found[1] or judge is _key_block:
            return ([found] if found[0] < found[1] else []), found[1]
        if data[found[1] - 1 : found[1]] == b"=":  # another name's, had this one been no secret
            more = _BEHIND_SIGN.match(data, found[1], max(found[1], found[0] + MOST_HIDDEN + 1))
            found = found[0], more.end() if more else found[1]
        found = (_json_text(data, found) if is_json else None) or _harmless(data, *found)
        return ([found], found[1]) if found[0] < found[1] else ([], again)

    def _assigned(self, text: bytes, spans: list[Span]) -> Span | None:
        (start, named), (sign, value), (_, end) = spans
        before = _NAME_BEFORE.search(text, max(0, start - _LOOK_BACK), start)
        start = before.start() if before else start
        if text[sign:value].rstrip(b" \t") == b"=" != text[sign:value]:
            return None  # a shell's empty variable, and a command
        name = text[start:named].lstrip(b"<")
        if not self._is_secret(name.decode("utf-8", "replace")):
            return None
        quote = _QUOTE.match(text, value, end)
        found = _worth_hiding(text, quote.end() if quote else value, end)
        if found is None or quote or name.startswith(b"--") or text[sign:value] == b">":
            return found
        if text[start - 1 : start] == b"/" and b"/" in text[value:end]:
            return value, text.index(b"/", value)  # the name is a directory's
        worth = text[value:end]
        if _is_code(text, found) or (_is_variable(worth, name) and self._is_secret(worth.decode())):
            return None
        apart = text[value - 1 : value] in b" \t"
        return None if apart and not _is_line(text, start, sign, found) else found


def harmless(text: str) -> int:
    """Return how many of a secret's first characters may be hidden: those that are no command and no path."""
    data = _bytes(text)
    return 0 if is_placeholder(text) else len(_text(data[: _harmless(data, 0, len(data))[1]]))


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
    """Take the token, but not the scheme's name (RFC 9110, 11.6.2)."""
    start, end = spans[0]
    scheme = _SCHEME.match(text, start, end)
    if scheme is None and (_LETTERS.fullmatch(text, start, min(end, start + _SHORT)) or _CALL.match(text, start, end)):
        return None
    start = scheme.end() if scheme else start
    if end - start < 20 and _LETTERS.fullmatch(text, start, end):
        return None
    return _worth_hiding(text, start, end)


def _cookies(text: bytes, spans: list[Span]) -> list[Span]:
    """Take the pairs' values (RFC 6265, 4), but no attribute's."""
    start, end = spans[0]
    pairs = _PAIR.finditer(text[start:end])
    values = [(start + p.start("value"), start + p.end("value")) for p in pairs if p["name"].lower() not in _OF_COOKIE]
    return [value for value in values if _worth_hiding(text, *value) == value]


def _signature(text: bytes, spans: list[Span]) -> Span | None:
    """Take what makes a URL valid for who has it (AWS SigV4, Azure SAS), but no function's signature."""
    start, end = spans[0]
    if _LETTERS.fullmatch(text, start, min(end, start + _SHORT)):
        return None
    return _worth_hiding(text, start, end)


def _key_block(text: bytes, spans: list[Span]) -> Span:
    """Take the block's lines as long as they are a key's (RFC 7468), since what follows its first line is anything."""
    start, end = spans[0]
    while (part := _KEY_PART.match(text, end, start + LONGEST_KEY)) and _is_of_key(part["line"]):
        end = part.end()
        if part["end"]:
            break
    return start, end


def _is_of_key(line: bytes | None) -> bool:
    """Tell whether a word is base64 of random bytes, and no command's name."""
    if not line:
        return True
    if b"/" in line and len(line) < _LINE and _WORDS_OF_PATH.search(line):
        return False
    return line[-1:] == b"=" or all(kind.search(line) for kind in _KINDS)


def _harmless(text: bytes, start: int, end: int) -> Span:
    """Return how much of a secret is hidden: what can be neither a command nor a path, and only so much."""
    if end - start > MOST_HIDDEN:
        end = start + MOST_HIDDEN
        while text[end] & 0xC0 == 0x80:  # amid a character
            end -= 1
    stop = _END_OF_WORD.search(text[start : end + 1])
    end = min(end, start + stop.start()) if stop else end
    value = text[start:end]
    if b"/" in value and (_WORDS_OF_PATH.search(value) or not _BASE64.fullmatch(value.replace(b"/", b""))):
        value = value[: value.index(b"/")]
    return (start, start + len(value)) if value.strip(b".") else (start, start)


def _json_text(text: bytes, span: Span) -> Span | None:
    """Return the whole text that begins there, in what is JSON as a whole and so can be no command."""
    begin = span[0] - 1
    if text[begin : begin + 1] != b'"' or text[begin - 1 : begin] == b"\\":
        return None
    match = _JSON_TEXT.match(text, begin)
    if match is None or match.end() - begin > MOST_HIDDEN or _RUNS.search(match[0]) or _MASK in match[0]:
        return None
    return span[0], match.end()


def _is_json(text: str) -> bool:
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _too_many(text: str) -> str:
    return f"{MASK} ({len(text)} characters with too many secrets to show any)"


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
