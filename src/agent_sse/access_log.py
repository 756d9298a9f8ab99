"""Keep tokens out of the servers' logs, and every record on its own line. Logs nothing, knows no web framework."""

from __future__ import annotations

import logging
import re
from typing import AnyStr

SECRET_PARAMETERS = ("token", "ticket")
LOGGERS = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi", "hypercorn.access", "gunicorn.access")
BLANK = "***"


def _either(character: str) -> str:
    """Return a pattern for a character as it is and percent-encoded (``%74``), for any case of it."""
    codes = sorted({ord(character.lower()), ord(character.upper())})
    return "(?:" + "|".join([re.escape(character), *(f"%{code:02x}" for code in codes)]) + ")"


_NAMES = "|".join("".join(map(_either, name)) for name in SECRET_PARAMETERS)
# A name begins where no longer name ends, or after something percent-encoded: %3Ftoken=, a URL inside a parameter.
_PARAMETER = rf"((?:(?<![\w.~-])|(?<=%[0-9a-f]{{2}}))(?:{_NAMES}){_either('=')})"
_IN_QUERY = re.compile(_PARAMETER + r"[^&]*", re.ASCII | re.IGNORECASE)
# In prose a URL ends at white space. A quote or a comma does not end it: it could stand before the token.
_IN_TEXT = re.compile(_PARAMETER + r"[^&\s]*", re.ASCII | re.IGNORECASE)
# A JSON Web Token anywhere, a path or an exception's text for instance: '{"' is "eyJ" in base64.
# Possessive, and with every part but the first left out if need be: one pass, whatever a client sends.
_BARE_TOKEN = re.compile(r"eyJ[\w-]++(?:\.[\w-]++(?:\.[\w-]*+)?)?", re.ASCII)

# Control characters, line and paragraph separators, what changes the direction of text, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def redact_query(query: AnyStr) -> AnyStr:
    """Return a query string (without ``?``) with the values of ``token`` and ``ticket`` replaced by ``***``."""
    if isinstance(query, bytes):
        return _redact(query.decode("latin-1"), _IN_QUERY).encode("latin-1")
    return _redact(query, _IN_QUERY)


class BlankTokens(logging.Filter):
    """Blanks tokens in a record and escapes its control characters; drops no record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change ``record`` in place. It never raises: a logging call must not break a request."""
        if record.exc_info and not record.exc_text:
            # Formatters print this text instead of making their own; a traceback keeps its lines.
            record.exc_text = _redact(logging.Formatter().formatException(record.exc_info), _IN_TEXT)
        args = record.args
        if record.name == "uvicorn.access" and isinstance(args, tuple) and len(args) == 5:
            # client, method, path with query, HTTP version, status: uvicorn's formatter needs the five of them.
            record.args = tuple(_line(arg, _IN_QUERY) if isinstance(arg, str) else arg for arg in args)
            return True
        try:
            text = record.getMessage()
        except Exception:
            # Arguments that do not fit would be printed by logging's own error report, tokens included.
            record.msg, record.args = _line(str(record.msg), _IN_TEXT) + " (its arguments do not fit)", ()
            return True
        line = _line(text, _IN_TEXT)
        if line != text:
            # Only now: an unchanged record keeps its template and arguments for structured formatters.
            record.msg, record.args = line, ()
        return True


def install() -> None:
    """Put the filter on the access and error loggers of uvicorn, hypercorn and gunicorn, once.

    Filters stay on a logger when a server configures logging afterwards.
    """
    for name in LOGGERS:
        target = logging.getLogger(name)
        if not any(isinstance(existing, BlankTokens) for existing in target.filters):
            target.addFilter(BlankTokens())


def _redact(text: str, parameter: re.Pattern[str]) -> str:
    # Two substring tests spare most lines the patterns; %3D is an encoded '='.
    if "=" in text or "%3" in text:
        text = parameter.sub(rf"\1{BLANK}", text)
    return _BARE_TOKEN.sub(BLANK, text) if "eyJ" in text else text


def _line(text: str, parameter: re.Pattern[str]) -> str:
    return _UNPRINTABLE.sub(_escape, _redact(text, parameter).rstrip("\r\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
