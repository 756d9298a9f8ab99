"""Text from events cannot steer a terminal, break a log line or pretend to be something else."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_sse.terminal import escape, summary

UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"}
ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


def categories(text: str) -> set[str]:
    return {unicodedata.category(char) for char in text}


@given(ANY_TEXT)
def test_escape_leaves_no_unsafe_character(text: str) -> None:
    """Whatever goes in, no control, format, surrogate, private, unassigned or separator character comes out."""
    assert set() == categories(escape(text)) & UNSAFE


@given(ANY_TEXT)
def test_escape_is_idempotent(text: str) -> None:
    """What is safe stays as it is, so escaping twice is escaping once."""
    once = escape(text)
    assert once == escape(once)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\u115f\u1160\u3164\uffa0")))
def test_escape_keeps_ordinary_text(text: str) -> None:
    """Letters of every script, digits, punctuation, symbols and spaces are not touched."""
    assert text == escape(text)


@given(ANY_TEXT)
def test_escape_result_can_be_encoded(text: str) -> None:
    """A lone surrogate does not make the terminal's encoder fail."""
    escape(text).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, 中文, é, 🙂", "plain text, 中文, é, 🙂"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\tb\r\nc", r"a\x09b\x0d\x0ac"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u200e\u200f\u061c\u2066\u2069", r"\u200e\u200f\u061c\u2066\u2069"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\ud800", r"\ud800"),
        ("\ue000\U000e0041\U0010ffff", r"\ue000\U000e0041\U0010ffff"),
        ("\u3164\u034f", r"\u3164\u034f"),
        ("[red]markup[/red]", "[red]markup[/red]"),
        ("C:\\x1b", "C:\\x1b"),
    ],
)
def test_escape_writes_known_attacks_as_escapes(text: str, expected: str) -> None:
    """The well-known ways to deceive a reader of a terminal are visible as numbers."""
    assert expected == escape(text)


@given(JSON_VALUES, st.integers(1, 200))
def test_summary_is_one_safe_line_within_the_limit(value: object, limit: int) -> None:
    """A summary never exceeds its limit and holds no unsafe character."""
    line = summary(value, limit)
    assert len(line) <= limit
    assert set() == categories(line) & UNSAFE


def test_summary_shows_small_values_whole() -> None:
    """What fits is complete JSON."""
    value = {"file": "例.py", "lines": [1, 2.5, None, True]}
    assert value == json.loads(summary(value))


def test_summary_marks_what_it_cut() -> None:
    """A cut line has exactly the limit's length and ends with an ellipsis."""
    line = summary({"text": "x" * 500}, 40)
    assert 40 == len(line)
    assert line.endswith("…")


def test_summary_keeps_a_value_of_exactly_the_limit() -> None:
    """Only what is longer than the limit is cut."""
    assert '"abcd"' == summary("abcd", 6)
    assert '"abc…' == summary("abcd", 5)


def test_summary_survives_what_json_cannot_hold() -> None:
    """Odd objects, cycles and deep nesting are named, not raised."""
    cycle: list[object] = []
    cycle.append(cycle)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert '"1+2j"' == summary(1 + 2j).replace("(", "").replace(")", "")
    assert "<list>" == summary(cycle)
    assert "<list>" == summary(deep)
    assert "<dict>" == summary({(1, 2): 3})
