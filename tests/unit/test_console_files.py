"""The console page's files: no event's text becomes markup, and nothing is there that the page's policy forbids.

Its sources are in client/console and client/src; that the files are what these build is checked beside them.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

CONSOLE = files("agent_sse") / "console"
HTML = (CONSOLE / "index.html").read_text("utf-8")
SCRIPT = (CONSOLE / "console.js").read_text("utf-8")
STYLE = (CONSOLE / "console.css").read_text("utf-8")
CLIENT = Path(__file__).parents[2] / "client"
SOURCES = sorted(path for folder in ("console", "src") for path in (CLIENT / folder).rglob("*.ts*"))

# Where text could become markup, code or style, or a token could outlive its tab: nowhere in the script.
SINKS = [
    r"outerHTML",
    r"insertAdjacentHTML",
    r"document\.write",
    r"\beval\s*\(",
    r"\bFunction\s*\(",
    r"\bimport\s*\((?!\"\./[a-z-]+\.js\"\))",  # a module of ours is named in the source: no text chooses it
    r"set(Timeout|Interval)\s*\(\s*[\"'`]",
    r"createContextualFragment",
    r"DOMParser",
    r"setHTML",
    r"srcdoc",
    r"cssText",
    r"localStorage",
    r"indexedDB",
    r"document\.cookie",
    r"serviceWorker",
    r"sourceMappingURL",
    r"node_modules",
]
# React has these itself, for properties that no source of ours sets.
OUR_SINKS = [
    *SINKS[:-2],
    r"innerHTML",
    r"dangerouslySetInnerHTML",
    r"javascript:",
    r"setAttribute",
    r"\bstyle\.",
    r"<style\b",
    r"<script\b",
    r"<iframe\b",
    r"<img\b",
    r"\bhref=",
    r"\bsrc=",
]


class Page(HTMLParser):
    """Collects the tags and their attributes, and the text inside script and style elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.inline += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(attribute)) is not None]


PAGE = Page(HTML)


def test_package_has_the_page_and_its_two_files_only() -> None:
    """One page, one script, one style sheet: nothing else is built into the package."""
    assert ["console.css", "console.js", "index.html"] == sorted(file.name for file in CONSOLE.iterdir())


@pytest.mark.parametrize("sink", SINKS)
def test_script_has_no_dangerous_sink(sink: str) -> None:
    """The script cannot make markup, code or style of a string, nor keep a token for longer than the tab."""
    assert None is re.search(sink, SCRIPT)


@pytest.mark.parametrize("sink", OUR_SINKS)
def test_sources_have_no_dangerous_sink(sink: str) -> None:
    """What events carry goes to React as text: no source sets markup, a script, a style text or an address."""
    assert [] == [path.name for path in SOURCES if re.search(sink, path.read_text("utf-8"))]


def test_script_makes_markup_nowhere_but_in_react() -> None:
    """`innerHTML` is set by React alone: for `<script>` elements, and for a property that the sources never use."""
    assert {"<script><\\/script>", "n"} == set(re.findall(r"\.innerHTML=[`\"']?([^`\"')};]+)", SCRIPT))


def test_script_names_no_host_but_in_names_and_messages() -> None:
    """The addresses in the script are XML namespaces and the one in React's error messages: nothing is loaded."""
    hosts = {re.sub(r"^https?://([^/]*).*", r"\1", url) for url in re.findall(r"https?://[^\s`\"'\\]+", SCRIPT)}
    assert {"www.w3.org", "react.dev"} == hosts


def test_script_keeps_the_notices_of_what_it_contains() -> None:
    """The licences of the packages in the script stand before it."""
    notices = SCRIPT[: SCRIPT.index("*/")]
    assert SCRIPT.startswith("/*!")
    for package in ("react", "react-dom", "scheduler", "@tanstack/react-virtual", "@tanstack/virtual-core"):
        assert re.search(rf"^(.*, )?{re.escape(package)}(,|$)", notices, re.MULTILINE), package
    assert 2 == notices.count("Permission is hereby granted, free of charge")


def test_page_has_no_inline_code_or_style() -> None:
    """The page works under a policy without inline script and style."""
    attributes = {name for _, attrs in PAGE.tags for name in attrs}
    assert "" == PAGE.inline.strip()
    assert set() == {name for name in attributes if name.startswith("on") or name == "style"}


def test_page_loads_only_its_own_files() -> None:
    """Nothing comes from another host: every reference is one of the two files beside the page, or empty data."""
    assert {"console/console.css", "console/console.js", "data:,"} == {*PAGE.values("src"), *PAGE.values("href")}
    assert None is re.search(r"url\(|@import", STYLE)


def test_page_has_the_prefix_where_the_server_replaces_it() -> None:
    """The server can put another prefix into the page by replacing exactly one attribute, which the script reads."""
    assert 1 == HTML.count('<meta name="agent-sse-prefix" content="/agent_backend/api/sse">')
    assert 1 == SCRIPT.count('meta[name="agent-sse-prefix"]')


def test_page_names_its_language() -> None:
    """Screen readers learn the language; the script changes it with the page's."""
    assert ["en"] == PAGE.values("lang")
    assert "documentElement.lang" in SCRIPT
