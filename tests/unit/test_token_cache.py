"""What is remembered of verified tokens: bounded in number and in size, and never a wrong value."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_sse import token_cache
from agent_sse.token_cache import TokenCache, digest_of


def test_cache_key_is_the_whole_digest() -> None:
    """Two tokens share an entry only if they share all 256 bits of SHA-256."""
    assert hashlib.sha256(b"a.b.c").digest() == digest_of("a.b.c")


def test_cache_takes_twenty_thousand_tokens_and_forgets_the_oldest() -> None:
    """A full house of usual tokens stays, however often all of them come by in turn; one more pushes one out."""
    cache: TokenCache[int] = TokenCache()
    digests = [number.to_bytes(32, "big") for number in range(20_000)]
    for number, digest in enumerate(digests):
        cache.put(digest, number, 600)
    for _ in range(2):
        assert list(range(20_000)) == [cache.get(digest) for digest in digests]
    cache.put(b"one more", -1, 600)
    assert (None, 1, -1, 20_000) == (cache.get(digests[0]), cache.get(digests[1]), cache.get(b"one more"), len(cache))


def test_cache_is_bounded_in_characters() -> None:
    """Of the longest tokens there is room for 16 MiB of text."""
    cache: TokenCache[int] = TokenCache()
    for number in range(3000):
        cache.put(number.to_bytes(32, "big"), number, 8192)
    assert 2048 == len(cache)
    assert [None, 952, 2999] == [cache.get(number.to_bytes(32, "big")) for number in (951, 952, 2999)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400)), max_size=60))
def test_cache_forgets_the_least_recently_used(steps: list[tuple[int, int]]) -> None:
    """For any sequence of uses the cache holds what a list in the order of use, cut to both bounds, holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "MAX_CACHED_TOKENS", 5)
        patch.setattr(token_cache, "MAX_CACHED_CHARS", 1000)
        cache: TokenCache[str] = TokenCache()
        model: list[tuple[str, int]] = []
        for number, chars in steps:
            name = str(number)
            known = next((entry for entry in model if entry[0] == name), None)
            assert (None if known is None else name) == cache.get(digest_of(name))
            if known is None:
                cache.put(digest_of(name), name, chars)
                model.append((name, chars))
                while len(model) > 5 or sum(length for _, length in model) > 1000:
                    model.pop(0)
            else:
                model.remove(known)
                model.append(known)
            assert len(model) == len(cache)
