"""The forms that credentials have in a text, and how much of what looks like one may be hidden. Pure.

A judge is asked about each find: it says what is to be hidden, and nothing that may be a command or a path.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable

MASK = "••••"
MAX_CANDIDATES = 5_000  # in one text, which is hidden whole when there are more
MOST_KNOWN = 100  # texts that one call's masker knows
PASSES = 4  # over one text, until nothing more is found
MOST_HIDDEN = 4096  # bytes, by one mask
LONGEST_KEY = 16 * 2**10  # bytes, of a private key's block
MAX_MEMORY = 16 * 2**20  # bytes, of the automaton that RE2 builds while it reads

MASK_BYTES = MASK.encode()
LOOK_BACK = 64  # bytes of a name before the part of it that the pattern knows
_SHORT = 64  # what is shown after all is no longer: it is read twice

Span = tuple[int, int]
# A form's judge gets the text, and the spans of the form's groups, and says what is to be hidden. An empty span says
# that nothing is, and where to read on; None, that what the last group took is to be read again. A list has several.
Judge = Callable[[bytes, list[Span]], Span | list[Span] | None]

# What its maker gave a form of its own.
TOKENS = (
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

KEY_BEGIN = r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_KEY_HEADER = r"(?:Proc-Type: 4,ENCRYPTED|DEK-Info: [A-Z0-9-]{1,20},[0-9A-F]{1,64}|Version: GnuPG v[0-9.]{1,12})"
_KEY_PART = re.compile(
    rf"(?:\s|\\+[rn])*(?:(?P<end>-{{5,}}END [A-Z0-9 ]{{0,60}}-----)|{_KEY_HEADER}(?=[\s\\])"
    r"|(?P<line>[A-Za-z0-9+/=]+))".encode()
)

# No more than a shell's word, and after a slash only what may be base64. No name with its sign is read twice.
MORE = r"(?:/[A-Za-z0-9+_-]+)*={0,2}"
BARE = rf"""[^\s"'`\\&,;(){{}}\[\]<>|=~/][^\s"'`\\&,;(){{}}\[\]<>|/=]*{MORE}"""
_QUOTED = (
    rf'\\"(?:[^\s"`\\&;<>|/]|\\\\(?:\\")?)*{MORE}',  # in JSON that is a string of JSON
    rf'"(?:[^\s"`\\&;<>|/]|\\["\\])*{MORE}',
    rf"\\?'[^\s'`\\&;<>|/]*{MORE}",
)
VALUE = "|".join((*_QUOTED, BARE))
SCHEMES = "bearer|basic|token|digest|negotiate|apikey|api-key|key|bot|ssws|oauth|dpop|sharedkey|aws4-hmac-sha256"

BEHIND_SIGN = re.compile(rf"""[^\s"'`\\&,;(){{}}\[\]<>|/]*{MORE}""".encode())
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
NAME_BEFORE = re.compile(rb"[\w.-]*\Z")
_LINE_BEFORE = re.compile(rb"(?:\A|\n)[ \t\"'-]*\Z")
QUOTE = re.compile(rb"\\?[\"']")
_SCHEME = re.compile(rf"(?i:{SCHEMES})[ \t]+(?=\S)".encode())
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


def as_bytes(text: str) -> bytes:
    """Return a text in UTF-8, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


def as_text(data: bytes) -> str:
    """Return what :func:`as_bytes` was given."""
    return data.decode("utf-8", "surrogatepass")


def whole_token(_: bytes, spans: list[Span]) -> Span:
    """Hide a token whose maker gave it a form of its own."""
    return spans[0]


def mask_itself(_: bytes, spans: list[Span]) -> Span:
    """Hide nothing of a mask, and read on behind it."""
    return spans[0][1], spans[0][1]


def json_web_token(text: bytes, spans: list[Span]) -> Span:
    """Take three parts (RFC 7519), or a cut one's two; other base64 of JSON is, for one, a page's cursor."""
    start, end = spans[0]
    token = text[start:end]
    return (start, end) if token.count(b".") > 1 or b".eyJ" in token else (end, end)


def url_password(text: bytes, spans: list[Span]) -> Span | None:
    """Take the password of a URL's userinfo (RFC 3986, 3.2.1)."""
    return worth_hiding(text, *spans[0])


def bearer(text: bytes, spans: list[Span]) -> Span | None:
    """Take RFC 6750's token; but "bearer authentication" is prose."""
    start, end = spans[0]
    return None if end - start < 20 and _LETTERS.fullmatch(text, start, end) else worth_hiding(text, start, end)


def basic(text: bytes, spans: list[Span]) -> Span | None:
    """Take RFC 7617's base64 of a name, a colon and a password; but "basic knowledge" is prose."""
    start, end = spans[0]
    try:
        # Whole groups of four: what was cut, or has lost its padding, is a credential all the same.
        decoded = base64.b64decode(text[start : start + (end - start) // 4 * 4], validate=True)
    except binascii.Error:
        return None
    return (start, end) if b":" in decoded else None


def curl_password(text: bytes, spans: list[Span]) -> Span | None:
    """Take that of ``curl -u name:password``; after other commands such a pair is a user and a group."""
    start, end = spans[0]
    return (start, end) if text.rfind(b"curl", max(0, start - 500), start) >= 0 else None


def header_value(text: bytes, spans: list[Span]) -> Span | None:
    """Take the token, but not the scheme's name (RFC 9110, 11.6.2)."""
    start, end = spans[0]
    scheme = _SCHEME.match(text, start, end)
    if scheme is None and (_LETTERS.fullmatch(text, start, min(end, start + _SHORT)) or _CALL.match(text, start, end)):
        return None
    start = scheme.end() if scheme else start
    if end - start < 20 and _LETTERS.fullmatch(text, start, end):
        return None
    return worth_hiding(text, start, end)


def cookies(text: bytes, spans: list[Span]) -> list[Span]:
    """Take the pairs' values (RFC 6265, 4), but no attribute's."""
    start, end = spans[0]
    pairs = _PAIR.finditer(text[start:end])
    values = [(start + p.start("value"), start + p.end("value")) for p in pairs if p["name"].lower() not in _OF_COOKIE]
    return [value for value in values if worth_hiding(text, *value) == value]


def signature(text: bytes, spans: list[Span]) -> Span | None:
    """Take what makes a URL valid for who has it (AWS SigV4, Azure SAS), but no function's signature."""
    start, end = spans[0]
    if _LETTERS.fullmatch(text, start, min(end, start + _SHORT)):
        return None
    return worth_hiding(text, start, end)


def key_block(text: bytes, spans: list[Span]) -> Span:
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


def harmless_span(text: bytes, start: int, end: int) -> Span:
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


def json_text(text: bytes, span: Span) -> Span | None:
    """Return the whole text that begins there, in what is JSON as a whole and so can be no command."""
    begin = span[0] - 1
    if text[begin : begin + 1] != b'"' or text[begin - 1 : begin] == b"\\":
        return None
    match = _JSON_TEXT.match(text, begin)
    if match is None or match.end() - begin > MOST_HIDDEN or _RUNS.search(match[0]) or MASK_BYTES in match[0]:
        return None
    return span[0], match.end()


def is_json_text(text: str) -> bool:
    """Tell whether a text is one JSON object or array."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def worth_hiding(text: bytes, start: int, end: int) -> Span | None:
    """Return the value's span; None when it is a variable, a word of code, or another place to fill in."""
    value = text[start:end]
    if MASK_BYTES in value:
        return end, end
    if len(value) <= _SHORT and (not value or value.lower() in _NO_SECRETS or _REFERENCE.fullmatch(value)):
        return None
    return start, end


def is_code(text: bytes, span: Span) -> bool:
    """Tell whether a value without quotes is an expression, as in ``token=get()`` and ``token=self.token``."""
    value = text[slice(*span)]
    if len(value) > _SHORT or not _NAME.fullmatch(value):
        return False
    return text[span[1] : span[1] + 1] in (b"(", b"[") or value.startswith(_OF_CODE)


def is_variable(value: bytes, name: bytes) -> bool:
    """Tell whether a value may be a variable, if it has a secret's name: ``token=access_token``, ``token=token``."""
    if len(value) > _SHORT or not _NAME.fullmatch(value):
        return False
    return b"_" in value or b"." in value or name.lower().endswith(value.lower())


def is_line(text: bytes, start: int, sign: int, span: Span) -> bool:
    """Tell whether the value after ``: `` or `` = `` is more than prose, a comment or a variable of a program.

    It is when it has a digit or a special character, or is what a line of YAML says.
    """
    if text.startswith(b"#", span[0]):
        return False
    if span[1] - span[0] > _SHORT or not _LETTERS.fullmatch(text[slice(*span)].rstrip(b".:!?")):
        return True
    line = text[max(0, start - LOOK_BACK) : start]
    begins = len(line) == start or b"\n" in line
    is_last = text[span[1] : span[1] + 1] in (b"", b"\n", b"\r")
    return begins and is_last and text[sign : span[0]].lstrip()[:1] == b":" and bool(_LINE_BEFORE.search(line))
