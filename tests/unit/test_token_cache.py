"""What is remembered of verified tokens: bounded in number and in size, and never a wrong value."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_sse import token_cache
from agent_sse.token_cache import TokenCache, digest_of


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> TokenCache[str]:
    """A cache for ten tokens, or a thousand characters."""
    monkeypatch.setattr(token_cache, "MAX_CACHED_TOKENS", 10)
    monkeypatch.setattr(token_cache, "MAX_CACHED_CHARS", 1000)
    return TokenCache()


def put(cache: TokenCache[str], name: str, chars: int = 1) -> None:
    cache.put(digest_of(name), name, chars)


def get(cache: TokenCache[str], name: str, chars: int = 1) -> str | None:
    return cache.get(digest_of(name), chars)


def test_cache_key_is_the_whole_digest() -> None:
    """Two tokens share an entry only if they share all 256 bits of SHA-256."""
    assert hashlib.sha256(b"a.b.c").digest() == digest_of("a.b.c")


def test_cache_is_bounded_in_number(cache: TokenCache[str]) -> None:
    """Of any number of tokens at most the bound is kept, the last half of it for certain."""
    for number in range(100):
        put(cache, str(number))
        assert len(cache) <= 10
    assert ["95", "96", "97", "98", "99"] == [get(cache, str(number)) for number in range(95, 100)]
    assert get(cache, "89") is None


def test_cache_is_bounded_in_characters(cache: TokenCache[str]) -> None:
    """Long tokens leave room for fewer."""
    for number in range(100):
        put(cache, str(number), chars=300)
        assert len(cache) <= 2
    assert "99" == get(cache, "99", chars=300)


def test_cache_keeps_what_is_used(cache: TokenCache[str]) -> None:
    """A token that is used now and then stays, however many others come by."""
    put(cache, "kept")
    for number in range(100):
        put(cache, str(number))
        if number % 4 == 0:
            assert "kept" == get(cache, "kept")
        assert len(cache) <= 10


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 400)), max_size=80))
def test_cache_returns_what_was_put_or_nothing(steps: list[tuple[bool, int, int]]) -> None:
    """After any puts and gets a value belongs to its token, the last used one is there, and the bounds hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "MAX_CACHED_TOKENS", 6)
        patch.setattr(token_cache, "MAX_CACHED_CHARS", 1000)
        cache: TokenCache[str] = TokenCache()
        known: set[str] = set()
        for is_put, number, chars in steps:
            name = str(number)
            if is_put:
                put(cache, name, chars)
                known.add(name)
            found = get(cache, name, chars)
            assert found in ({name} if is_put else {name, None})
            assert found is None or name in known
            assert len(cache) <= 6
