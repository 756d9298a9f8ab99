"""Globs and regular expressions of a policy, all matched by RE2: in time linear in the text. Pure.

Knows neither rules nor files; what a pattern means for `allow` and for `ask` and `deny` is the one thing decided here.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any, Protocol
from urllib.parse import unquote

import re2

PATTERN_LIMIT = 2000  # characters
PROGRAM_LIMIT = 10_000  # instructions of RE2's program
# Characters × instructions: what a match costs where RE2's automaton does not fit into memory, about a second for this.
WORK_LIMIT = 2**28

_WILD = re.compile(r"[*?\[]")
_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\[([!^]?)(\]?[^\]]*)\]|.", re.DOTALL)


class PatternError(ValueError):
    """A pattern is wrong; the message says where and what to write instead."""


class ValuePattern(Protocol):
    """What an argument's value is held against; ``longest`` is how many characters of values it may take."""

    @property
    def longest(self) -> int:
        """The bound that keeps a match from taking long."""
        ...

    def covers(self, text: str) -> bool:
        """Tell whether ``text`` as a whole is what an `allow` rule may let through."""
        ...

    def finds(self, text: str) -> bool:
        """Tell whether ``text`` is, or holds, what an `ask` or `deny` rule looks for."""
        ...


def _check_text(pattern: str) -> None:
    if len(pattern) > PATTERN_LIMIT:
        raise PatternError(f"must have at most {PATTERN_LIMIT} characters")
    try:
        pattern.encode()
    except UnicodeEncodeError:
        raise PatternError("must not hold a lone surrogate") from None


def _compile(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.dot_nl = True  # otherwise a line break in a value would hide the rest of it from `.*`
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        text = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error.args[0])
        hint = "; RE2 has neither look-around nor backreferences" if "perl operator" in text or "\\" in text else ""
        raise PatternError(f"{pattern!r} is not a regular expression of RE2: {text}{hint}") from None
    if compiled.programsize > PROGRAM_LIMIT:
        raise PatternError("becomes too large when compiled: use smaller counts in {n,m}, and fewer alternatives")
    return compiled


# -- globs ------------------------------------------------------------------------------------------------------------


def _translate(glob: str, *, paths: bool) -> str:
    r"""Return the regular expression of a glob; ``paths`` keeps ``*`` and ``?`` from crossing ``/`` and ``\\``."""
    one, parts = (r"[^/\\]" if paths else "."), []
    for match in _TOKENS.finditer(glob):
        piece, starts_segment = match[0], match.start() == 0 or glob[match.start() - 1] == "/"
        if match[2] is not None:
            parts.append(_translate_class(match[2], negated=bool(match[1]), paths=paths))
        elif piece == "**/" and paths and starts_segment:
            parts.append("(?:.*/)?")  # as in .gitignore: any number of directories, none included
        elif piece.startswith("**"):
            parts.append(f".*{piece[2:]}")
        elif piece == "*":
            parts.append(f"{one}*")
        elif piece == "?":
            parts.append(one)
        elif piece == "[":
            raise PatternError("has a '[' that no ']' closes: write [[] for a literal one")
        elif piece in "{}":
            raise PatternError("has a brace: for alternatives give a list of globs, for a literal one write [{] or [}]")
        else:
            parts.append(re2.escape(piece))
    return "".join(parts)


def _translate_class(body: str, *, negated: bool, paths: bool) -> str:
    if not body:
        raise PatternError("has an empty [], which nothing matches")
    parts, at = [], 0
    while at < len(body):
        low, high = body[at], body[at]
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            high = body[at + 2]
            at += 2
        if low > high:
            raise PatternError(f"has the range {low}-{high}, which is empty: turn it round")
        if paths and low < high and any(low <= separator <= high for separator in "/\\"):
            raise PatternError(f"has the range {low}-{high}, which includes a path separator: split it, as in [A-Za-z]")
        parts.append(re2.escape(low) if low == high else f"{re2.escape(low)}-{re2.escape(high)}")
        at += 1
    separators = r"/\\" if negated and paths else ""
    return f"[{'^' if negated else ''}{''.join(parts)}{separators}]"


def _checked(globs: tuple[str, ...], *, paths: bool) -> Any:
    alternatives = []
    for glob in globs:
        _check_text(glob)
        try:
            alternatives.append(_translate(glob, paths=paths))
        except PatternError as error:
            raise PatternError(f"{glob!r} {error}") from None
    return _compile("|".join(alternatives))


class Names:
    """Globs for names of tools or servers, one of which has to match: ``*``, ``?`` and ``[…]``, case-sensitive.

    Raises :class:`PatternError`.
    """

    __slots__ = ("_compiled", "_exact", "globs")

    def __init__(self, globs: tuple[str, ...]) -> None:
        self.globs = globs
        self._compiled = _checked(globs, paths=False)
        self._exact = frozenset(glob for glob in globs if not _WILD.search(glob))

    def matches(self, name: str) -> bool:
        """Tell whether one of the globs matches the whole name; a name that is no Unicode text matches only ``*``."""
        try:
            return self._compiled.fullmatch(name) is not None
        except UnicodeEncodeError:
            return self.everything

    def spells_out(self, name: str) -> bool:
        """Tell whether the name stands here itself, without a wildcard."""
        return name in self._exact

    @property
    def everything(self) -> bool:
        """Whether every name matches."""
        return any(glob.strip("*") == "" for glob in self.globs)

    def __str__(self) -> str:
        return " or ".join(f'"{glob}"' for glob in self.globs)


class Glob:
    """Globs for values, one of which has to match the whole of it; ``*`` stays in its path segment, ``**`` does not.

    Raises :class:`PatternError`.
    """

    __slots__ = ("_compiled", "globs", "longest")

    def __init__(self, globs: tuple[str, ...]) -> None:
        self.globs = globs
        self._compiled = _checked(globs, paths=True)
        self.longest = WORK_LIMIT // max(self._compiled.programsize, 1)

    def covers(self, text: str) -> bool:
        """Match the text as it is, unless it climbs."""
        return not climbs(text) and self._compiled.fullmatch(text) is not None

    def finds(self, text: str) -> bool:
        """Match the text as it is, or one of the other spellings of its path."""
        if self._compiled.fullmatch(text) is not None:
            return True
        return any(self._compiled.fullmatch(spelling) is not None for spelling in _spellings(text))

    def __str__(self) -> str:
        return "glob " + " or ".join(f'"{glob}"' for glob in self.globs)


class Regex:
    """An RE2 expression for values: an `allow` rule's has to match all of it, another's is searched for.

    Raises :class:`PatternError`. https://github.com/google/re2/wiki/Syntax
    """

    __slots__ = ("_compiled", "longest", "pattern")

    def __init__(self, pattern: str) -> None:
        _check_text(pattern)
        self.pattern = pattern
        self._compiled = _compile(pattern)
        self.longest = WORK_LIMIT // max(self._compiled.programsize, 1)

    def covers(self, text: str) -> bool:
        """Match all of the text, unless it climbs."""
        return not climbs(text) and self._compiled.fullmatch(text) is not None

    def finds(self, text: str) -> bool:
        """Search the text."""
        return self._compiled.search(text) is not None

    def __str__(self) -> str:
        return f'regex "{self.pattern}"'


# -- paths in values --------------------------------------------------------------------------------------------------

# Two dots as a whole segment, percent-encoded too, and with the dots and blanks behind them that Windows ignores.
_EDGE = r"""(?:[/\\:="']|%2f|%5c|%3a)"""
_CLIMBS = _compile(rf"(?i)(?:^|{_EDGE})(?:\.|%2e){{2}}(?:[. ]|%2e|%20)*(?:$|{_EDGE})")
_ODD = re.compile(r"//|(?:^|[/\\])\.|\\|%|/$")


def climbs(text: str) -> bool:
    """Tell whether a ``..`` stands in the text as a path segment: what such a path names, a pattern cannot see."""
    return _CLIMBS.search(text) is not None


def _spellings(text: str) -> set[str]:
    """Return other ways to write the path in the text, if it is one that has any."""
    return {_normal(spelling) for spelling in (text, unquote(text))} if _ODD.search(text) is not None else set()


def _normal(path: str) -> str:
    r"""Return the path with ``/`` for ``\\``, without ``//`` and ``.``, and with its ``..`` taken lexically."""
    normal = posixpath.normpath(path.replace("\\", "/"))
    return f"/{normal.lstrip('/')}" if normal.startswith("//") else normal
