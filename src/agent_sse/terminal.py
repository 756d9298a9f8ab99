"""Text that came in an event, made safe for a terminal or a log line. Pure; nothing here writes.

This is about characters only. Markup is a different matter: whoever prints with rich builds `rich.text.Text` objects
from what these functions return, never a markup string, so that ``[red]`` in an event stays five characters of text.
"""

from __future__ import annotations

import json
import re
import unicodedata

# Controls, format characters (bidirectional controls, zero-width characters, tags), lone surrogates, private use, what
# this Python's Unicode does not know, line and paragraph separators. https://www.unicode.org/reports/tr44/#General_Category_Values
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

# Letters and marks that draw nothing, and so would hide in a name: Hangul, Khmer and Mongolian fillers, and the joiner.
# Variation selectors but the emoji's, and the braille pattern without a dot.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0e\uffa0\U000e0100-\U000e01ef]"
)


def escape(text: str) -> str:
    r"""Return ``text`` with everything that could steer a terminal or deceive a reader written as an escape.

    ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN`` stand for control characters (tabs and line breaks too), bidirectional
    controls, zero-width and other invisible characters, lone surrogates, private and unassigned code points.
    Backslashes are left as they are, so escaping twice changes nothing; the way back is not meant to be possible.
    """
    if text.isprintable() and _BLANK.search(text) is None:
        return text
    return "".join(map(_escape_character, text))


def _escape_character(char: str) -> str:
    if unicodedata.category(char) not in _UNSAFE and _BLANK.match(char) is None:
        return char
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def summary(value: object, limit: int = 120) -> str:
    """Return ``value`` as one escaped line of JSON of at most ``limit`` (≥ 1) characters, cut with ``…``.

    What JSON cannot hold is shown by its ``str()``, or by its type where it is nested too deeply or holds itself.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, separators=(", ", ": "))
    except (TypeError, ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    # Escaping never shortens: what is past the limit before it is past the limit after it.
    line = escape(text[: limit + 1])
    return line if len(line) <= limit else line[: max(limit, 1) - 1] + "…"
