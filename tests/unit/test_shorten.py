"""Large values made small: whatever they are they fit, say that they were cut, and show no secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_sse.events import encode
from agent_sse.masking import MASK, Masker
from agent_sse.shorten import DEEPEST, LEVELS, OVERLAP, shorten

MASKER = Masker()


def size(value: object) -> int:
    return len(encode(value))


def shown(value: object, limit: int = 80_000) -> Any:
    return shorten(value, size, limit, MASKER.mask)


def test_value_that_fits_is_shown_as_it_is() -> None:
    """Nothing is copied or changed."""
    value = {"a": [1, {"b": None}], "c": "text"}
    assert value is shown(value)


def test_value_that_fits_is_masked() -> None:
    """What is shown whole has its secrets hidden."""
    assert {"password": MASK, "user": "alice"} == shown({"password": "hunter2", "user": "alice"})


def test_text_that_is_too_long_says_how_long_it_was() -> None:
    """A long text begins as it did, and tells its length."""
    longest = LEVELS[0][0]
    assert {"text": "x" * longest + "… (1000000 characters)"} == shown({"text": "x" * 1_000_000})


def test_lists_and_objects_that_are_too_long_say_how_long_they_were() -> None:
    """Their first items stand, and behind them their number."""
    most = LEVELS[0][1]
    assert [*range(most), "… (100000 items)"] == shown(list(range(100_000)))
    cut = shown({f"k{n}": n for n in range(100_000)})
    assert "100000 entries" == cut.pop("…")
    assert {f"k{n}": n for n in range(most)} == cut


def test_wide_values_are_cut_further_until_they_fit() -> None:
    """A hundred lists of a hundred long texts do not fit at the first level."""
    value = [[["x" * 5000] * 100] * 100] * 100
    cut = shown(value)
    assert size(cut) <= 80_000
    assert "… (100 items)" == cut[-1]


def test_what_fits_at_no_level_is_a_note() -> None:
    """Keys are not cut, so some objects fit in no way."""
    assert "… (too large to be shown)" == shown({"k" * 100_000: 1})


def test_deep_values_end_in_dots() -> None:
    """A large value shows so many levels."""
    value: Any = "x" * 200_000
    for _ in range(DEEPEST + 5):
        value = [value]
    cut = shown(value)
    for _ in range(DEEPEST):
        (cut,) = cut
    assert "…" == cut


@pytest.mark.parametrize("level", range(len(LEVELS)))
@pytest.mark.parametrize("before", [-40, -20, -1, 0, 1])
def test_secret_at_a_cut_is_not_shown_in_half(level: int, before: int) -> None:
    """A credential that crosses the place where a text is cut is hidden, its first half too."""
    secret = "ghp_" + "a1B2" * 9
    at = LEVELS[level][0] + before
    texts = ["y " * 100_000] * (3 if level else 0)
    value = [" " * at + secret + " " + "z " * 200_000, *texts]
    limit = {0: 80_000, 1: 2000, 2: 600, 3: 200}[level]
    cut = json.dumps(shown(value, limit))
    assert "a1B2a1B2" not in cut
    assert len(secret) < OVERLAP


utf8 = st.characters(codec="utf-8")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(utf8, max_size=300),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(utf8, max_size=20), inner, max_size=30),
    max_leaves=60,
)


@given(json_values, st.integers(100, 5000))
@settings(deadline=None)
def test_whatever_is_shown_fits(value: Any, limit: int) -> None:
    """The result is within the limit, and the value itself, masked, when that is."""
    cut = shown(value, limit)
    assert size(cut) <= limit
    masked = MASKER.mask(value)
    if size(masked) <= limit:
        assert masked == cut
