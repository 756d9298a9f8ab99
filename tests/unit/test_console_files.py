"""The console page's files: no event's text becomes markup, and nothing is there that the page's policy forbids."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

CONSOLE = files("agent_sse") / "console"
HTML = (CONSOLE / "index.html").read_text("utf-8")
SCRIPT = (CONSOLE / "console.js").read_text("utf-8")
STYLE = (CONSOLE / "console.css").read_text("utf-8")

EVENT_TYPES = [
    "tool_status",
    "permission_request",
    "permission_response_result",
    "permission_cleared",
    "tool_result",
    "result_cleared",
    "stream_reset",
    "heartbeat",
    "error",
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


@pytest.mark.parametrize(
    "sink",
    [
        r"innerHTML",
        r"outerHTML",
        r"insertAdjacentHTML",
        r"document\.write",
        r"\beval\s*\(",
        r"\bFunction\s*\(",
        r"set(Timeout|Interval)\s*\(\s*[\"'`]",
        r"createContextualFragment",
        r"DOMParser",
        r"setHTML",
        r"srcdoc",
        r"javascript:",
        r"\.style\b",
        r"cssText",
        r"setAttribute\(\s*[\"'`](on|style|href|src)",
        r"\.(href|src)\s*=",
        r"localStorage",
        r"document\.cookie",
        r"https?://",
    ],
)
def test_script_has_no_dangerous_sink(sink: str) -> None:
    """The script cannot make markup, code or style of a string, nor keep a token for longer than the tab."""
    assert None is re.search(sink, SCRIPT)


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
    """The server can put another prefix into the page by replacing exactly one attribute."""
    assert 1 == HTML.count('<meta name="agent-sse-prefix" content="/agent_backend/api/sse">')
    assert "/agent_backend" not in SCRIPT


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_script_handles_every_event_type(event_type: str) -> None:
    """Each type of the protocol has its handler."""
    assert re.search(rf"^  {event_type}\(", SCRIPT, re.MULTILINE)


def test_ids_of_script_and_page_agree() -> None:
    """The script asks only for elements that the page has, and no id occurs twice."""
    ids = PAGE.values("id")
    assert sorted(set(ids)) == sorted(ids)
    assert set() == set(re.findall(r'\$\("([^"]+)"\)', SCRIPT)) - set(ids)


def test_every_input_has_a_label() -> None:
    """Nobody has to guess what a field is for."""
    inputs = {attrs.get("id") for tag, attrs in PAGE.tags if tag == "input"}
    assert {"session", "token"} == inputs
    assert inputs <= set(PAGE.values("for"))


def test_page_names_its_language_and_live_regions() -> None:
    """Screen readers learn the language, and hear of requests, outcomes and the connection."""
    assert ["en"] == PAGE.values("lang")
    assert {"assertive", "polite"} == set(PAGE.values("aria-live"))
    assert {"status", "alert"} <= set(PAGE.values("role"))
