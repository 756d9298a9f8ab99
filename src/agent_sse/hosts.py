"""Which ``Host`` a request may name: the guard against DNS rebinding. Pure.

A page of an attacker's can point its own name at this machine and then read what is served here as its own origin; but
its requests still say that name. https://www.rfc-editor.org/rfc/rfc9110#section-7.2
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*", re.DOTALL)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
ANY = "*"


def check_pattern(text: str) -> str:
    """Return a name, ``*.name`` or ``*`` in lower case. Raises ValueError for anything else."""
    pattern = text.lower()
    if pattern != ANY and _NAME.fullmatch(pattern.removeprefix("*.")) is None:
        raise ValueError("list names such as app.example.com or *.example.com, without scheme, port or path; * is any")
    return pattern


class AllowedHosts:
    """Names by which pages may be asked for. ``localhost``, what ends in ``.localhost`` and IP addresses always are.

    An address cannot be rebound: only a name can come to mean another machine. ``patterns`` as :func:`check_pattern`
    returns them; ``*.example.com`` means the names below example.com, not itself.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        all_patterns = {"localhost", "*.localhost", *patterns}
        self._any = ANY in all_patterns
        self._names = {pattern for pattern in all_patterns if not pattern.startswith("*")}
        self._suffixes = tuple(pattern[1:] for pattern in all_patterns if pattern.startswith("*."))

    def allow(self, values: Sequence[bytes]) -> bool:
        """Whether a request's ``Host`` headers are one, well formed, and of a name that is allowed; on any port."""
        if len(values) != 1:
            return False
        found = _HOST.fullmatch(values[0].decode("latin-1"))
        if found is None or int(found["port"] or 0) > 65535:
            return False
        if found["v6"] is not None:
            return _is_address(found["v6"], ipaddress.IPv6Address)
        name = found["name"].lower()
        return _is_address(name, ipaddress.IPv4Address) or self._has(name)

    def _has(self, name: str) -> bool:
        if _NAME.fullmatch(name) is None:
            return False
        return self._any or name in self._names or name.endswith(self._suffixes)


def _is_address(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
