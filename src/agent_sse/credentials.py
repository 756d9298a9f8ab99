"""What looks like a credential in a text, and where it begins and ends. Pure; which names are secret is masking's.

Texts come from agents and tools, so the pattern is RE2's: its time grows with the text and with nothing else. Each form
decides within a bounded distance or takes all that it has read; else a text could be read again from each of its words.

Who writes a text also chooses what looks like a secret in it, and users approve what they see. So nothing is hidden
that may be a command or a path: a secret ends where a shell's word does, since a quote may open or close there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import re2

from agent_sse.credential_forms import (
    BARE,
    BEHIND_SIGN,
    KEY_BEGIN,
    LOOK_BACK,
    MASK,
    MASK_BYTES,
    MAX_CANDIDATES,
    MAX_MEMORY,
    MORE,
    MOST_HIDDEN,
    MOST_KNOWN,
    NAME_BEFORE,
    PASSES,
    QUOTE,
    SCHEMES,
    TOKENS,
    VALUE,
    Judge,
    Span,
    as_bytes,
    as_text,
    basic,
    bearer,
    cookies,
    curl_password,
    harmless_span,
    header_value,
    is_code,
    is_json_text,
    is_line,
    is_variable,
    json_text,
    json_web_token,
    key_block,
    mask_itself,
    signature,
    url_password,
    whole_token,
    worth_hiding,
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
        pair = rf"""[\w.%!#-]{{1,64}}=[^\s"'`\\&,;(){{}}\[\]<>|/$]*{MORE}"""
        forms: list[tuple[str, int, Judge]] = [
            (f"({'|'.join(TOKENS)})", 1, whole_token),
            (f"((?:{MASK})+)", 1, mask_itself),
            (r"(\beyJ[\w-]{8,}(?:\.[\w-]+)*)", 1, json_web_token),
            (r"""://[^\s/?#:@"'<>\\]{0,64}:([^\s/?#@"'<>\\]{1,128})@""", 1, url_password),
            (r"(?i:\bbearer)[ \t]{1,4}([\w.~+/=-]{8,})", 1, bearer),
            (r"(?i:\bbasic)[ \t]{1,4}([A-Za-z0-9+/]{6,}={0,2})", 1, basic),
            (r"""\s(?:-u|--user)[ \t=]["']?[^\s:"']{1,64}:([^\s"'`;|&<>]+)""", 1, curl_password),
            (rf"({KEY_BEGIN})", 1, key_block),
            (rf"""(?i:authorization){after}((?:(?i:{SCHEMES})[ \t]{{1,4}})?{BARE})""", 1, header_value),
            (rf"""(?i:cookie){after}({pair}(?:;[ ]?{pair})*)""", 1, cookies),
            (r"(?i:[?&]sig|signature)=([A-Za-z0-9%+/=_-]{16,})", 1, signature),
        ]
        if names:
            named = rf"(?i:{names})[0-9]{{0,2}}"
            sign = r"[ \t]{0,3}(?:=>|:=|=|:|：)[ \t]{0,3}"
            forms.append((rf"(--[\w-]{{0,40}}{named})([ \t]{{1,3}})({VALUE})", 3, self._assigned))
            forms.append((rf"(<[\w:.-]{{0,40}}{named})(>)({BARE})</", 3, self._assigned))
            forms.append((rf"""({named})["'\\\]]{{0,4}}({sign})({VALUE})""", 3, self._assigned))
        return forms

    def occur(self, text: str) -> bool:
        """Tell whether :meth:`hide` might find something; False is certain. Costs about a nanosecond a character."""
        return self._pattern.search(as_bytes(text)) is not None

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
        data, done, at = as_bytes(text), 0, 0
        parts: list[bytes] = []
        is_json: bool | None = None
        for _ in range(MAX_CANDIDATES):
            match = self._pattern.search(data, at)
            if match is None:
                return as_text(b"".join((*parts, data[done:]))) if parts else text
            is_json = is_json_text(text) if is_json is None else is_json
            hidden, at = self._judged(data, match, is_json)
            for start, end in hidden:
                parts += data[done:start], MASK_BYTES
                done = end
                if found is not None:
                    found.add(as_text(data[start:end]))
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
            return [span for start, end in found if (span := harmless_span(data, start, end))[0] < span[1]], spans[-1][
                1
            ]
        if found[0] == found[1] or judge is key_block:
            return ([found] if found[0] < found[1] else []), found[1]
        if data[found[1] - 1 : found[1]] == b"=":  # another name's, had this one been no secret
            more = BEHIND_SIGN.match(data, found[1], max(found[1], found[0] + MOST_HIDDEN + 1))
            found = found[0], more.end() if more else found[1]
        found = (json_text(data, found) if is_json else None) or harmless_span(data, *found)
        return ([found], found[1]) if found[0] < found[1] else ([], again)

    def _assigned(self, text: bytes, spans: list[Span]) -> Span | None:
        (start, named), (sign, value), (_, end) = spans
        before = NAME_BEFORE.search(text, max(0, start - LOOK_BACK), start)
        start = before.start() if before else start
        if text[sign:value].rstrip(b" \t") == b"=" != text[sign:value]:
            return None  # a shell's empty variable, and a command
        name = text[start:named].lstrip(b"<")
        if not self._is_secret(name.decode("utf-8", "replace")):
            return None
        quote = QUOTE.match(text, value, end)
        found = worth_hiding(text, quote.end() if quote else value, end)
        if found is None or quote or name.startswith(b"--") or text[sign:value] == b">":
            return found
        if text[start - 1 : start] == b"/" and b"/" in text[value:end]:
            return value, text.index(b"/", value)  # the name is a directory's
        worth = text[value:end]
        if is_code(text, found) or (is_variable(worth, name) and self._is_secret(worth.decode())):
            return None
        apart = text[value - 1 : value] in b" \t"
        return None if apart and not is_line(text, start, sign, found) else found


def harmless(text: str) -> int:
    """Return how many of a secret's first characters may be hidden: those that are no command and no path."""
    data = as_bytes(text)
    return 0 if is_placeholder(text) else len(as_text(data[: harmless_span(data, 0, len(data))[1]]))


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
    data = as_bytes(text)
    found = worth_hiding(data, 0, len(data))
    return found is None or found[0] == found[1]


def _too_many(text: str) -> str:
    return f"{MASK} ({len(text)} characters with too many secrets to show any)"
