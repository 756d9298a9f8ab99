"""Where the keys of a policy's TOML text stand, for error messages; tomllib does not say. Pure.

A guess by the layout that people write: a key it does not find is reported at its table, or without a line.
"""

from __future__ import annotations

import re

Location = tuple[str | int, ...]

_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?\s*(?:#.*)?")
_PART = re.compile(r'"([^"]*)"|\'([^\']*)\'|([^.\s"\']+)')
_KEY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*[=.]""")


class Lines:
    """The line of each table and key, by location as pydantic writes it: ``("rules", 2, "tool")``."""

    def __init__(self, text: str) -> None:
        self._found: dict[Location, int] = {}
        self._last: dict[Location, int] = {}  # the index of the latest element of each array of tables
        table: Location = ()
        closing = ""
        for number, line in enumerate(text.splitlines(), 1):
            if closing:
                closing = "" if closing in line else closing
                continue
            if header := _TABLE.fullmatch(line):
                table = self._table(header[2], is_element=header[1] == "[[")
                self._found.setdefault(table, number)
            elif key := _KEY.match(line):
                self._found.setdefault((*table, key[1] or key[2] or key[3]), number)
            closing = next((quotes for quotes in ('"""', "'''") if line.count(quotes) % 2), "")

    def _table(self, dotted: str, *, is_element: bool) -> Location:
        """Return the location of a header; arrays of tables on its way stand for their latest element."""
        names = [match[1] or match[2] or match[3] for match in _PART.finditer(dotted)]
        location: Location = ()
        for depth, name in enumerate(names, 1):
            location = (*location, name)
            if is_element and depth == len(names):
                self._last[location] = self._last.get(location, -1) + 1
            if location in self._last:
                location = (*location, self._last[location])
        return location

    def find(self, location: Location) -> int | None:
        """Return the line of the location, or of the nearest table around it; None when neither is known."""
        while location:
            if location in self._found:
                return self._found[location]
            location = location[:-1]
        return None
