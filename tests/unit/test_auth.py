"""Tokens, keys and rights: every rule of the verifier with real keys, and nothing but 401 for whatever breaks one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import pickle
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jose.backends import HMACKey, RSAKey

from agent_sse import token_cache
from agent_sse.auth import (
    DEFAULT_SCOPE,
    MAX_EXPIRES_AT,
    MAX_TOKEN_CHARS,
    Authorizer,
    Principal,
    TokenVerifier,
    bearer,
    encode_token,
    make_secret,
)
from agent_sse.errors import ApiError, ConfigurationError, InvalidSessionId, RedisUnavailable
from agent_sse.jwt_text import Flaw, decode_part
from agent_sse.settings import Settings

NOW = 1_800_000_000
SECRET = "correct horse battery staple, 32+"
CLAIMS: dict[str, Any] = {"sub": "alice", "exp": NOW + 3600}

RSA_KEY = rsa.generate_private_key(65537, 2048)
RSA_OTHER = rsa.generate_private_key(65537, 2048)
RSA_SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505 - a weak key, to see it refused
EC_KEYS = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
}
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
DIGESTS = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | str | bytes


def pem(key: Any) -> str:
    """Return the public half as PEM."""
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def private_pem(key: Any) -> str:
    """Return the private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def b64(data: bytes) -> str:
    """Encode as canonical base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(algorithm: str, key: PrivateKey, message: bytes) -> bytes:
    """Sign without the library under test."""
    digest = DIGESTS[algorithm[2:]]
    if isinstance(key, str | bytes):
        return hmac.new(key.encode() if isinstance(key, str) else key, message, "sha" + algorithm[2:]).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), digest)
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def token_of(
    payload: dict[str, Any] | bytes | None = None,
    header: dict[str, Any] | bytes | None = None,
    *,
    algorithm: str = "HS256",
    key: PrivateKey = SECRET,
) -> str:
    """Build a signed token from claims or raw bytes."""
    payload = CLAIMS if payload is None else payload
    header = {"alg": algorithm, "typ": "JWT"} if header is None else header
    parts = [b64(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload)]
    message = ".".join(parts)
    return message + "." + b64(sign(algorithm, key, message.encode()))


def settings_of(**changes: Any) -> Settings:
    """Build settings that nothing in the environment changes."""
    base: dict[str, Any] = {
        "jwt_secret": SECRET,
        "jwt_algorithm": "HS256",
        "jwt_public_key": "",
        "jwt_jwks_file": None,
        "jwt_audience": "",
        "jwt_issuer": "",
        "jwt_leeway": 30,
    }
    return Settings(_env_file=None, **{**base, **changes})


def verifier_of(**changes: Any) -> TokenVerifier:
    """Build a verifier whose clock stands at NOW."""
    return TokenVerifier(settings_of(**changes), now=lambda: NOW)


def refusal(verifier: TokenVerifier, token: Any) -> ApiError:
    """Return the error with which the token is refused, checked for what all refusals have in common."""
    with pytest.raises(ApiError) as caught:
        verifier.verify(token)
    error = caught.value
    assert (error.status, error.headers) == (401, {"WWW-Authenticate": "Bearer"})
    assert error.__cause__ is None
    if isinstance(token, str) and len(token) > 20:
        assert token not in error.message
    return error


HS = verifier_of()
STRICT = verifier_of(jwt_audience="api", jwt_issuer="idp")


# --- Principal -------------------------------------------------------------------------------------


def test_principal_read_only_allows_reading_only() -> None:
    """A stream ticket can read, whatever scopes its token had."""
    scopes = frozenset({"events:read", "permissions:respond", "events:publish"})
    full = Principal("a", scopes, None, 1.0)
    ticket = Principal("a", scopes, None, 1.0, read_only=True)
    assert [full.allows(scope) for scope in sorted(scopes)] == [True, True, True]
    assert [ticket.allows(scope) for scope in sorted(scopes)] == [False, True, False]
    assert not full.allows("other")


def test_principal_lists_only_what_the_token_names() -> None:
    """No list and an empty list name no session."""
    assert Principal("a", frozenset(), frozenset({"s1"}), 1.0).lists("s1")
    assert not Principal("a", frozenset(), frozenset({"s1"}), 1.0).lists("s2")
    assert not Principal("a", frozenset(), frozenset(), 1.0).lists("s1")
    assert not Principal("a", frozenset(), None, 1.0).lists("s1")


# --- Configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jwt_secret": ""}, "AGENT_SSE_JWT_SECRET is missing"),
        ({"jwt_secret": "x" * 31}, "too short.*32 bytes"),
        ({"jwt_secret": "é" * 15}, "too short"),
        ({"jwt_secret": "\udcff" * 40}, "UTF-8"),
        ({"jwt_secret": pem(RSA_KEY)}, "not a secret"),
        ({"jwt_secret": "\n" + private_pem(EC_KEYS["ES256"])}, "not a secret"),
        ({"jwt_secret": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ"}, "not a secret"),
        ({"jwt_algorithm": "RS256"}, "set one of"),
        ({"jwt_algorithm": "ES256", "jwt_public_key": "  \n"}, "set one of"),
        ({"jwt_algorithm": "RS256", "jwt_public_key": pem(RSA_KEY), "jwt_jwks_file": "/nowhere"}, "not both"),
        ({"jwt_algorithm": "RS256", "jwt_public_key": "nonsense"}, "PUBLIC_KEY is not a public key"),
        ({"jwt_algorithm": "RS256", "jwt_public_key": pem(EC_KEYS["ES256"])}, "RS256"),
        ({"jwt_algorithm": "ES256", "jwt_public_key": pem(RSA_KEY)}, "ES256"),
        ({"jwt_algorithm": "ES256", "jwt_public_key": pem(EC_KEYS["ES384"])}, "P-256"),
        ({"jwt_algorithm": "ES256", "jwt_public_key": pem(ec.generate_private_key(ec.SECP256K1()))}, "ES256"),
        ({"jwt_algorithm": "ES256", "jwt_public_key": pem(ed25519.Ed25519PrivateKey.generate())}, "ES256"),
        ({"jwt_algorithm": "RS256", "jwt_public_key": private_pem(RSA_KEY)}, "private key"),
        ({"jwt_algorithm": "ES256", "jwt_public_key": private_pem(EC_KEYS["ES256"])}, "private key"),
        ({"jwt_algorithm": "RS256", "jwt_public_key": pem(RSA_SHORT)}, "less than 2048 bits"),
        ({"jwt_algorithm": "RS256", "jwt_jwks_file": "/nowhere/jwks.json"}, "JWKS_FILE .* cannot be read"),
    ],
)
def test_verifier_refuses_unsafe_settings(changes: dict[str, Any], message: str) -> None:
    """A verifier is never built on a key that cannot be trusted, and the error quotes no key."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        verifier_of(**changes)
    assert "BEGIN" not in str(caught.value)


def test_verifier_accepts_a_secret_of_32_bytes_in_fewer_characters() -> None:
    """The length of a secret is counted in bytes of UTF-8."""
    secret = "é" * 16
    assert verifier_of(jwt_secret=secret).verify(token_of(key=secret)).subject == "alice"


def test_verifier_accepts_a_pem_in_one_line() -> None:
    r"""A PEM whose line ends are written as backslash-n, as in many environment files, is read."""
    verifier = verifier_of(jwt_algorithm="RS256", jwt_public_key=pem(RSA_KEY).replace("\n", "\\n"))
    assert verifier.verify(token_of(algorithm="RS256", key=RSA_KEY)).subject == "alice"


@pytest.mark.parametrize(("audience", "expected"), [("", 1), ("api", 0)])
def test_verifier_warns_once_without_audience(audience: str, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    """One warning when tokens made for other services would be accepted, none otherwise."""
    verifier = verifier_of(jwt_audience=audience)
    verifier.verify(token_of({**CLAIMS, "aud": "api"}))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.name, "AUDIENCE" in record.getMessage()) for record in warnings] == [("agent_sse", True)] * expected


# --- Good tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_verify_accepts_each_hs_algorithm(algorithm: str) -> None:
    """A token signed with the secret becomes a principal with the default scopes."""
    principal = verifier_of(jwt_algorithm=algorithm).verify(token_of(algorithm=algorithm))
    assert principal == Principal("alice", frozenset(DEFAULT_SCOPE.split()), None, NOW + 3600.0)
    assert isinstance(principal.expires_at, float)


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"])
def test_verify_accepts_each_public_key_algorithm(algorithm: str) -> None:
    """A token signed with the private key is accepted by its public key, one of another key is not."""
    key = EC_KEYS.get(algorithm, RSA_KEY)
    other = RSA_OTHER if key is RSA_KEY else ec.generate_private_key(key.curve)  # type: ignore[union-attr]
    verifier = verifier_of(jwt_algorithm=algorithm, jwt_public_key=pem(key))
    assert verifier.verify(token_of(algorithm=algorithm, key=key)).subject == "alice"
    assert refusal(verifier, token_of(algorithm=algorithm, key=other)).code == "token_invalid"


def test_verify_reads_every_claim() -> None:
    """Sessions and scopes come from the token; what cannot be a session id grants nothing."""
    claims = {
        **CLAIMS,
        "exp": NOW + 1.5,
        "iat": NOW,
        "nbf": NOW - 1,
        "sessions": ["s1", "s2", "s1", "", "*", "../x", "\ud800"],
        "scope": "events:read  events:publish ",
        "aud": "someone else",
        "extra": {"deep": [1, 2.5, None]},
    }
    assert HS.verify(token_of(claims)) == Principal(
        "alice", frozenset({"events:read", "events:publish"}), frozenset({"s1", "s2"}), NOW + 1.5
    )


def test_verify_empty_lists_grant_nothing() -> None:
    """An empty scope is no scope, not the default one; an empty list of sessions is a list."""
    principal = HS.verify(token_of({**CLAIMS, "scope": "", "sessions": []}))
    assert (principal.scopes, principal.sessions) == (frozenset(), frozenset())


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT"])
def test_verify_accepts_both_types(typ: str) -> None:
    """`typ` is compared without case (RFC 7515 § 4.1.9, RFC 9068 § 2.1)."""
    assert HS.verify(token_of(header={"typ": typ, "alg": "HS256"})).subject == "alice"


def test_verify_accepts_no_type_and_any_kid_with_one_key() -> None:
    """`typ` is optional, and with a single configured key `kid` has nothing to select."""
    assert HS.verify(token_of(header={"alg": "HS256", "kid": "any"})).subject == "alice"


def test_verify_bounds_a_far_expiry() -> None:
    """An expiry beyond the year 9999 is accepted and cut to it, so that timers and dates can bear it."""
    assert HS.verify(token_of({**CLAIMS, "exp": 1e300})).expires_at == MAX_EXPIRES_AT


# --- Bad tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", None])
def test_verify_names_a_missing_token(token: Any) -> None:
    """No token is another code than a bad one."""
    assert refusal(HS, token).code == "token_missing"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b'"HS256"',
        b"{",
        b'{"alg":"HS256"',
        b'{"alg":"HS256","alg":"HS256"}',
        b'\xef\xbb\xbf{"alg":"HS256"}',
        '{"alg":"HS256"}'.encode("utf-16"),
        b'{"alg":"HS256","x":"\xff"}',
        b'{"alg":"HS256","x":NaN}',
        b'{"alg":"HS256","x":1e999}',
        b'{"alg":"HS256","x":' + b"9" * 5000 + b"}",
        b'{"alg":"HS256","x":' + b"[" * 5000,
        {},
        {"typ": "JWT"},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": {"HS256": 1}},
        {"alg": "none"},
        {"alg": "None"},
        {"alg": ""},
        {"alg": "hs256"},
        {"alg": "HS384"},
        {"alg": "RS256"},
        {"alg": "dir"},
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "crit": None},
        {"alg": "HS256", "typ": "JWE"},
        {"alg": "HS256", "typ": None},
        {"alg": "HS256", "typ": 1},
        {"alg": "HS256", "typ": ["JWT"]},
        {"alg": "HS256", "kid": 1},
        {"alg": "HS256", "kid": {}},
    ],
)
def test_verify_refuses_header(header: dict[str, Any] | bytes) -> None:
    """Only the configured algorithm, no extension, no odd JSON, although the signature is right."""
    assert refusal(HS, token_of(header=header)).code == "token_invalid"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b"{",
        b'{"sub":"alice","exp":1800003600} x',
        b'{"sub":"alice","exp":1800003600,"sub":"bob"}',
        b'{"sub":"alice","exp":1800003600,"x":{"a":1,"a":1}}',
        b'{"sub":"alice","exp":NaN}',
        b'{"sub":"alice","exp":Infinity}',
        b'{"sub":"alice","exp":1e999}',
        b'{"sub":"alice","exp":-1e999}',
        b'{"sub":"alice","exp":' + b"9" * 21 + b"}",
        b'{"sub":"alice","exp":' + b"9" * 5000 + b"}",
        b'{"sub":"alice","exp":1800003600,"x":-Infinity}',
        b'{"sub":"alice","exp":1800003600,"x":' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"sub":"alice","exp":1800003600,"x":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}",
        b'{"sub":"ali\xffce","exp":1800003600}',
        b'\xef\xbb\xbf{"sub":"alice","exp":1800003600}',
        '{"sub":"alice","exp":1800003600}'.encode("utf-16"),
    ],
)
def test_verify_refuses_payload(payload: bytes) -> None:
    """What is not one plain JSON object is refused, although the signature is right."""
    assert refusal(HS, token_of(payload)).code == "token_invalid"


MISSING = object()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("sub", value) for value in (MISSING, None, "", 1, True, ["alice"], {}, "x" * 257)],
        *[("sub", value) for value in ("a\nb", "a\x00", "\x7f", "a\x9b", "\u2028", "\u2029", "\ud800", "\udfff")],
        *[("exp", value) for value in (MISSING, None, True, False, "1800003600", [NOW + 1], {})],
        *[("iat", value) for value in (None, True, "now", [], {})],
        *[("nbf", value) for value in (None, False, "now", [], {}, NOW + 31, 1e300)],
        *[("sessions", value) for value in (None, "s1", {"s1": 1}, 1, True, [1], ["s1", None], [["s1"]])],
        ("sessions", ["s"] * 1001),
        *[("scope", value) for value in (None, 1, True, ["events:read"], {})],
    ],
)
def test_verify_refuses_claim(name: str, value: Any) -> None:
    """A claim of the wrong type, length or time makes the token invalid."""
    claims = {**CLAIMS, name: value}
    if value is MISSING:
        del claims[name]
    assert refusal(HS, token_of(claims)).code == "token_invalid"


@pytest.mark.parametrize(
    ("leeway", "offset", "accepted"),
    [
        (0, 1, True),
        (0, 0.5, True),
        (0, 0, False),
        (0, -1, False),
        (30, -29, True),
        (30, -30, False),
        (30, -1e15, False),
    ],
)
def test_verify_expiry_honours_leeway(leeway: float, offset: float, accepted: bool) -> None:
    """A token is good until `exp` plus the leeway, not at that moment; then the code is `token_expired`."""
    verifier = verifier_of(jwt_leeway=leeway)
    token = token_of({**CLAIMS, "exp": NOW + offset})
    if accepted:
        assert verifier.verify(token).expires_at == NOW + offset
    else:
        assert refusal(verifier, token).code == "token_expired"


def test_verify_not_before_honours_leeway() -> None:
    """`nbf` may lie in the future by the leeway."""
    assert HS.verify(token_of({**CLAIMS, "nbf": NOW + 30})).subject == "alice"
    assert refusal(verifier_of(jwt_leeway=0), token_of({**CLAIMS, "nbf": NOW + 1})).code == "token_invalid"


def test_verify_expired_and_forged_is_invalid() -> None:
    """The code never tells anything about claims that nobody signed."""
    token = token_of({**CLAIMS, "exp": NOW - 1000}, key="x" * 32)
    assert refusal(HS, token).code == "token_invalid"


@pytest.mark.parametrize(
    ("audience", "accepted"),
    [
        ("api", True),
        (["other", "api"], True),
        *[(value, False) for value in ("other", ["other"], [], "ap", ["api "], None, 1, {"api": 1}, [["api"]])],
    ],
)
def test_verify_audience_when_configured(audience: Any, accepted: bool) -> None:
    """`aud` must name this service exactly, as a string or in a list."""
    verifier = verifier_of(jwt_audience="api")
    token = token_of({**CLAIMS, "aud": audience})
    if accepted:
        assert verifier.verify(token).subject == "alice"
    else:
        assert refusal(verifier, token).code == "token_invalid"


def test_verify_audience_and_issuer_are_required_when_configured() -> None:
    """A token without the configured claim, or with another issuer, is refused."""
    assert refusal(verifier_of(jwt_audience="api"), token_of()).code == "token_invalid"
    verifier = verifier_of(jwt_issuer="https://idp")
    assert verifier.verify(token_of({**CLAIMS, "iss": "https://idp"})).subject == "alice"
    for issuer in ("https://idp/", ["https://idp"], None, 1):
        assert refusal(verifier, token_of({**CLAIMS, "iss": issuer})).code == "token_invalid"
    assert refusal(verifier, token_of()).code == "token_invalid"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_verify_refuses_algorithm_confusion(algorithm: str) -> None:
    """A token signed by HMAC with the public key's text is not one signed by the private key."""
    public = pem(EC_KEYS.get(algorithm, RSA_KEY))
    verifier = verifier_of(jwt_algorithm=algorithm, jwt_public_key=public)
    for key in (public, public.strip(), public.encode()):
        assert refusal(verifier, token_of(algorithm="HS256", key=key)).code == "token_invalid"
        confused = token_of(header={"alg": algorithm}, algorithm="HS256", key=key)
        assert refusal(verifier, confused).code == "token_invalid"


def test_verify_refuses_unsigned_tokens() -> None:
    """`alg: none` and a cut-off signature are refused, whatever the header says."""
    for algorithm in ("none", "None", "NONE", "HS256"):
        message = b64(json.dumps({"alg": algorithm}).encode()) + "." + b64(json.dumps(CLAIMS).encode())
        for token in (message, message + ".", message + ".AA", message + "." + b64(bytes(32))):
            assert refusal(HS, token).code == "token_invalid"


def test_verify_ignores_keys_that_the_token_brings() -> None:
    """`jwk`, `jku` and `x5c` in a header are not believed."""
    numbers = RSA_OTHER.public_key().public_numbers()
    own = {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}
    verifier = verifier_of(jwt_algorithm="RS256", jwt_public_key=pem(RSA_KEY))
    token = token_of(header={"alg": "RS256", "jwk": own, "jku": "https://x"}, algorithm="RS256", key=RSA_OTHER)
    assert refusal(verifier, token).code == "token_invalid"


def test_verify_refuses_other_spellings_of_a_good_token() -> None:
    """Padding, spare bits, the other base64 alphabet and white space never make a second text of one token."""
    token = token_of()
    header, payload, signature = token.split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = alphabet[alphabet.index(signature[-1]) ^ 1]
    assert base64.urlsafe_b64decode(signature[:-1] + spare + "=") == base64.urlsafe_b64decode(signature + "=")
    spellings = [
        f"{header}.{payload}.{signature[:-1]}{spare}",
        token + "=",
        token + "==",
        f"{header}=.{payload}.{signature}",
        token + "\n",
        " " + token,
        token[:40] + "\n" + token[40:],
        token[:5] + "+" + token[5:],
        token + ".",
        "." + token,
        token + "." + signature,
        token.replace(".", ".."),
        token + "\u00e9",
        token + "\ud800",
        token + "\x00",
        token.replace("A", "\uff21"),
        "Bearer " + token,
    ]
    for spelling in spellings:
        assert refusal(HS, spelling).code == "token_invalid"


def test_verify_caps_the_length_before_parsing() -> None:
    """The longest accepted token is 8 KiB; one character more is refused although it is signed."""
    room = MAX_TOKEN_CHARS - len(token_of({**CLAIMS, "pad": ""}))
    tokens = {
        len(token): token for token in (token_of({**CLAIMS, "pad": "x" * n}) for n in range(room // 4 * 3 - 4, room))
    }
    longest = max(length for length in tokens if length <= MAX_TOKEN_CHARS)
    assert longest >= MAX_TOKEN_CHARS - 1
    assert HS.verify(tokens[longest]).subject == "alice"
    shortest = min(length for length in tokens if length > MAX_TOKEN_CHARS)
    assert "8192" in refusal(HS, tokens[shortest]).message
    assert refusal(HS, "." * 10_000_000).code == "token_invalid"


@pytest.mark.parametrize("raised", [RecursionError, TypeError, OverflowError, UnicodeError, AttributeError, KeyError])
def test_verify_turns_any_exception_into_401(raised: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a parser raises is the token's fault."""

    def explode(*_: object, **__: object) -> None:
        raise raised("secret detail")

    verifier = verifier_of()
    monkeypatch.setattr(json.JSONDecoder, "decode", explode)
    error = refusal(verifier, token_of())
    assert error.code == "token_invalid"
    assert "secret detail" not in error.message


@pytest.mark.parametrize("raised", [MemoryError, KeyboardInterrupt, asyncio.CancelledError])
def test_verify_lets_the_process_own_exceptions_through(
    raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not the token's fault is not turned into 401."""

    def explode(*_: object, **__: object) -> None:
        raise raised

    token, verifier = token_of(), verifier_of()
    monkeypatch.setattr(json.JSONDecoder, "decode", explode)
    with pytest.raises(raised):
        verifier.verify(token)


GOOD = token_of({**CLAIMS, "sessions": ["s1"], "scope": "events:read"})
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(st.text() | st.text("eyJ.-_=AZ09", max_size=80) | st.binary().map(lambda raw: "..".join([b64(raw)] * 2)))
@example("..")
@example("a.b.c")
@example("\ud800.\ud800.\ud800")
def test_verify_random_text_is_401(text: str) -> None:
    """Text that is no token is refused, never with another exception."""
    assert refusal(HS, text).code in ("token_invalid", "token_missing")


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_verify_mutated_token_is_401(data: st.DataObject) -> None:
    """No change to a good token leaves it good: canonical base64url gives every token one spelling."""
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 4)))
    piece = data.draw(st.text("AZaz09-_.=+/ \n\u00e9", max_size=4) | st.text(max_size=2))
    mutated = GOOD[:start] + piece + GOOD[end:]
    if mutated == GOOD:
        assert HS.verify(mutated).subject == "alice"
    else:
        assert refusal(HS, mutated).code == "token_invalid"


@pytest.mark.parametrize(("start", "spare_bits"), [("A", 4), ("AA", 2), ("AAA", 0)])
def test_decode_part_refuses_spare_bits(start: str, spare_bits: int) -> None:
    """The last character counts only with zeros where no byte has bits: one of 4, 16 or 64, as the length leaves."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = ""
    for last in alphabet:
        with contextlib.suppress(Flaw):
            decode_part(start + last)
            accepted += last
    assert alphabet[:: 1 << spare_bits] == accepted


@settings(max_examples=500, deadline=None)
@given(st.text("AZaz09-_QgwEIM", max_size=9) | st.text(max_size=4) | st.binary(max_size=9).map(b64))
def test_decode_part_takes_what_encoding_gives_and_nothing_else(text: str) -> None:
    """Exactly the texts that some bytes are encoded to are decoded, and to those bytes."""
    try:
        decoded = decode_part(text)
    except Flaw:
        canonical = text.isascii() and text != "" and b64(_decoded_leniently(text)) == text
        assert not canonical
    else:
        assert text == b64(decoded)


def _decoded_leniently(text: str) -> bytes:
    """Decode what can be decoded somehow, as the standard library does."""
    try:
        return base64.urlsafe_b64decode(text + "==")
    except ValueError:
        return b""


@settings(max_examples=300, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["alg", "typ", "crit", "kid", "x"]), JSON_VALUES),
    claims=st.dictionaries(
        st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "sessions", "scope", "x"]), JSON_VALUES
    ),
)
def test_verify_signed_nonsense_is_a_principal_or_401(header: dict[str, Any], claims: dict[str, Any]) -> None:
    """Even with a right signature, any header and any claims end in a sound principal or in 401."""
    for verifier in (HS, STRICT):
        for used in (header, {**header, "alg": "HS256"}, {"alg": "HS256"}):
            token = token_of({**CLAIMS, **claims}, used)
            try:
                principal = verifier.verify(token)
            except ApiError as error:
                refused = (error.status, error.code)
            else:
                refused = None
                assert principal.subject.encode()
                assert NOW - 30 < principal.expires_at <= MAX_EXPIRES_AT
            assert refused in (None, (401, "token_invalid"), (401, "token_expired"))


# --- JWK sets --------------------------------------------------------------------------------------


def jwk_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, **members: Any) -> dict[str, Any]:
    """Return the public half as a JWK with more members."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        size = (key.key_size + 7) // 8
        return {"kty": "RSA", "n": b64(numbers.n.to_bytes(size, "big")), "e": "AQAB", **members}
    point = key.public_key().public_numbers()
    size = (key.curve.key_size + 7) // 8
    algorithm = next(name for name, candidate in EC_KEYS.items() if candidate.curve.name == key.curve.name)
    return {
        "kty": "EC",
        "crv": CURVES[algorithm],
        "x": b64(point.x.to_bytes(size, "big")),
        "y": b64(point.y.to_bytes(size, "big")),
        **members,
    }


def key_file(tmp_path: Path, *keys: Any) -> Path:
    """Write a JWK set."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": list(keys)}))
    return path


def with_kid(kid: str | None, key: PrivateKey, algorithm: str = "RS256") -> str:
    """Build a token whose header names a key."""
    return token_of(header={"alg": algorithm} | ({} if kid is None else {"kid": kid}), algorithm=algorithm, key=key)


def test_jwks_selects_by_kid(tmp_path: Path) -> None:
    """With several fitting keys the token must name the one that signed it."""
    path = key_file(tmp_path, jwk_of(RSA_KEY, kid="a"), jwk_of(RSA_OTHER, kid="b"))
    verifier = verifier_of(jwt_algorithm="RS256", jwt_jwks_file=path)
    assert verifier.verify(with_kid("a", RSA_KEY)).subject == "alice"
    assert verifier.verify(with_kid("b", RSA_OTHER)).subject == "alice"
    for token in (with_kid("b", RSA_KEY), with_kid("c", RSA_KEY), with_kid(None, RSA_KEY), with_kid("", RSA_KEY)):
        assert refusal(verifier, token).code == "token_invalid"


@pytest.mark.parametrize(
    ("key_kid", "token_kid", "accepted"),
    [("a", "a", True), ("a", None, True), ("a", "b", False), (None, None, True), (None, "b", True)],
)
def test_jwks_single_key(tmp_path: Path, key_kid: str | None, token_kid: str | None, accepted: bool) -> None:
    """A single fitting key needs no name, but a name that differs from its own is refused."""
    named = {} if key_kid is None else {"kid": key_kid}
    verifier = verifier_of(jwt_algorithm="RS256", jwt_jwks_file=key_file(tmp_path, jwk_of(RSA_KEY, **named)))
    token = with_kid(token_kid, RSA_KEY)
    if accepted:
        assert verifier.verify(token).subject == "alice"
    else:
        assert refusal(verifier, token).code == "token_invalid"


def test_jwks_unnamed_key_among_several_is_never_used(tmp_path: Path) -> None:
    """A token without `kid` does not reach a key without `kid` when there is another one."""
    path = key_file(tmp_path, jwk_of(RSA_KEY), jwk_of(RSA_OTHER, kid="b"))
    verifier = verifier_of(jwt_algorithm="RS256", jwt_jwks_file=path)
    assert refusal(verifier, with_kid(None, RSA_KEY)).code == "token_invalid"
    assert verifier.verify(with_kid("b", RSA_OTHER)).subject == "alice"


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
def test_jwks_elliptic_curves(tmp_path: Path, algorithm: str) -> None:
    """Of a set with every curve and RSA, an ES algorithm uses its own curve only."""
    path = key_file(tmp_path, jwk_of(RSA_KEY, kid="k"), *(jwk_of(key, kid="k") for key in EC_KEYS.values()))
    verifier = verifier_of(jwt_algorithm=algorithm, jwt_jwks_file=path)
    assert verifier.verify(with_kid("k", EC_KEYS[algorithm], algorithm)).subject == "alice"


@pytest.mark.parametrize(
    "members",
    [
        {"alg": "RS512"},
        {"alg": "PS256"},
        {"alg": None},
        {"use": "enc"},
        {"use": 1},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"kid": 1},
        {"kty": "EC"},
        {"kty": "oct", "k": b64(SECRET.encode())},
        {"kty": None},
        {"n": "AQAB"},
        {"n": None},
        {"n": "\u00e9"},
        {"e": []},
    ],
)
def test_jwks_skips_keys_that_do_not_fit(tmp_path: Path, members: dict[str, Any]) -> None:
    """A key for something else, or one that cannot be read, is no key; the others stay usable."""
    unfit = jwk_of(RSA_KEY, **{"kid": "a", **members})
    with pytest.raises(ConfigurationError, match="no key for RS256"):
        verifier_of(jwt_algorithm="RS256", jwt_jwks_file=key_file(tmp_path, unfit))
    path = key_file(tmp_path, unfit, 1, None, [], jwk_of(RSA_OTHER, kid="b"))
    verifier = verifier_of(jwt_algorithm="RS256", jwt_jwks_file=path)
    assert refusal(verifier, with_kid("a", RSA_KEY)).code == "token_invalid"
    assert verifier.verify(with_kid("b", RSA_OTHER)).subject == "alice"


def test_jwks_accepts_keys_that_agree(tmp_path: Path) -> None:
    """`alg`, `use` and `key_ops` may be present when they say the same."""
    fit = jwk_of(RSA_KEY, alg="RS256", use="sig", key_ops=["sign", "verify"], x5t="extra")
    verifier = verifier_of(jwt_algorithm="RS256", jwt_jwks_file=key_file(tmp_path, fit))
    assert verifier.verify(with_kid(None, RSA_KEY)).subject == "alice"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JWK set"),
        (b"\xff", "not a JWK set"),
        (b"[]", "not a JWK set"),
        (b"{}", "no list 'keys'"),
        (b'{"keys": {}}', "no list 'keys'"),
        (b'{"keys": []}', "no key for RS256"),
        (b'{"keys": [], "keys": []}', "twice"),
        (b"[" * 100_000, "not a JWK set"),
        (b" " * (1024 * 1024 + 1), "larger than"),
    ],
)
def test_jwks_refuses_a_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that is no usable JWK set stops the start with a clear message."""
    path = tmp_path / "jwks.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        verifier_of(jwt_algorithm="RS256", jwt_jwks_file=path)


def test_jwks_refuses_one_name_for_two_keys(tmp_path: Path) -> None:
    """A `kid` that names two fitting keys selects none."""
    path = key_file(tmp_path, jwk_of(RSA_KEY, kid="a"), jwk_of(RSA_OTHER, kid="a"))
    with pytest.raises(ConfigurationError, match="several keys"):
        verifier_of(jwt_algorithm="RS256", jwt_jwks_file=path)


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self, time: float = 100.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


def replace(path: Path, content: str, mtime: int) -> None:
    """Replace a file atomically, with a modification time of its own."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    os.utime(fresh, (mtime, mtime))
    fresh.replace(path)


def test_jwks_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """New keys are used within a second, withdrawn ones no more; a broken file leaves the old keys and one warning."""
    clock = Clock()
    path = key_file(tmp_path, jwk_of(RSA_KEY, kid="a"))
    configured = settings_of(jwt_algorithm="RS256", jwt_jwks_file=path, jwt_audience="x")
    verifier = TokenVerifier(configured, now=lambda: NOW, monotonic=clock)
    old, new = (
        token_of({**CLAIMS, "aud": "x"}, {"alg": "RS256", "kid": kid}, algorithm="RS256", key=key)
        for kid, key in (("a", RSA_KEY), ("b", RSA_OTHER))
    )
    assert verifier.verify(old).subject == "alice"

    replace(path, json.dumps({"keys": [jwk_of(RSA_OTHER, kid="b")]}), 1_000)
    clock.time += 0.5
    assert verifier.verify(old).subject == "alice"
    assert refusal(verifier, new).code == "token_invalid"
    clock.time += 0.5
    assert verifier.verify(new).subject == "alice"
    assert refusal(verifier, old).code == "token_invalid"

    replace(path, '{"keys": [', 2_000)
    for _ in range(3):
        clock.time += 1
        assert verifier.verify(new).subject == "alice"
    path.unlink()
    for _ in range(3):
        clock.time += 1
        assert verifier.verify(new).subject == "alice"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [("not a JWK set" in text, "cannot be read" in text) for text in warnings] == [(True, False), (False, True)]

    replace(path, json.dumps({"keys": [jwk_of(RSA_KEY, kid="a")]}), 3_000)
    clock.time += 1
    assert verifier.verify(old).subject == "alice"


# --- Tokens seen before -----------------------------------------------------------------------------


@pytest.fixture
def signature_checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The signatures that were checked, one entry per check."""
    seen: list[bytes] = []
    for kind in (HMACKey, RSAKey):

        def verify(self: Any, message: bytes, signature: bytes, plain: Any = kind.verify) -> bool:
            seen.append(signature)
            return bool(plain(self, message, signature))

        monkeypatch.setattr(kind, "verify", verify)
    return seen


def test_verify_checks_a_signature_once(signature_checks: list[bytes]) -> None:
    """A token that was good before gives the same principal without its signature being checked again."""
    verifier, token = verifier_of(), token_of({**CLAIMS, "sessions": ["s1"]})
    principals = [verifier.verify(text) for text in (token, token, token.encode().decode())]
    assert [principals[0]] * 3 == principals
    assert 1 == len(signature_checks)
    assert "alice" == verifier_of().verify(token).subject
    assert 2 == len(signature_checks)  # another verifier has its own memory


@pytest.mark.parametrize("leeway", [0, 30])
def test_verify_remembered_token_expires_on_time(leeway: float, signature_checks: list[bytes]) -> None:
    """A token seen before is good until `exp` plus the leeway, then refused in the words for one never seen."""
    clock = Clock(NOW)
    verifier = TokenVerifier(settings_of(jwt_leeway=leeway), now=clock)
    token = token_of({**CLAIMS, "exp": NOW + 60})
    for clock.time in (NOW, NOW + 59.5, NOW + 59.5 + leeway):
        assert NOW + 60 == verifier.verify(token).expires_at
    assert 1 == len(signature_checks)
    for clock.time in (NOW + 60 + leeway, NOW + 61 + leeway, NOW + 1e6):
        remembered = refusal(verifier, token)
        unseen = refusal(TokenVerifier(settings_of(jwt_leeway=leeway), now=clock), token)
        assert ("token_expired", unseen.message) == (remembered.code, remembered.message)


def test_verify_remembers_no_refusal() -> None:
    """A token that is refused now is looked at anew the next time: its `nbf` may have come."""
    clock = Clock(NOW)
    verifier = TokenVerifier(settings_of(jwt_leeway=0), now=clock)
    token = token_of({**CLAIMS, "nbf": NOW + 10})
    assert "token_invalid" == refusal(verifier, token).code
    clock.time += 10
    assert "alice" == verifier.verify(token).subject


def test_verify_refuses_a_changed_token_after_the_good_one() -> None:
    """That a token is remembered helps no other token: not one with its signature, nor one with its payload."""
    verifier, good = verifier_of(), token_of()
    header, payload, signature = good.split(".")
    other = token_of({**CLAIMS, "sub": "bob"}).split(".")
    forged = token_of({**CLAIMS, "sub": "bob"}, key="x" * 32).split(".")
    changed = [
        f"{header}.{other[1]}.{signature}",
        f"{header}.{payload}.{other[2]}",
        f"{header}.{payload}.{forged[2]}",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        ".".join(forged),
        good + "A",
        good[:-1],
        " " + good,
        good + "\n",
        good.swapcase(),
        good.replace("J", "\uff2a", 1),
    ]
    for token in changed:
        assert "alice" == verifier.verify(good).subject
        assert "token_invalid" == refusal(verifier, token).code


def test_verify_keeps_no_token() -> None:
    """What is remembered of a token holds neither the token nor a part of it."""
    verifier, token = verifier_of(), token_of({**CLAIMS, "sessions": ["s1"]})
    before = sys.getrefcount(token)
    verifier.verify(token)
    verifier.verify(token)
    assert before == sys.getrefcount(token)
    kept = pickle.dumps(verifier._verified._values)
    assert b"alice" in kept  # the look is at the right place
    assert [] == [part for part in token.split(".") if part.encode() in kept]


def test_verify_flood_of_bad_tokens_pushes_no_good_one_out(
    monkeypatch: pytest.MonkeyPatch, signature_checks: list[bytes]
) -> None:
    """Tokens that are refused take no room, however many they are."""
    monkeypatch.setattr(token_cache, "MAX_CACHED_TOKENS", 4)
    verifier, good = verifier_of(), token_of()
    verifier.verify(good)
    for number in range(100):
        bad = token_of({**CLAIMS, "sub": f"mallory{number}"}, key="x" * 32)
        assert "token_invalid" == refusal(verifier, bad).code
    assert 1 == len(verifier._verified)
    assert 101 == len(signature_checks)
    assert "alice" == verifier.verify(good).subject
    assert 101 == len(signature_checks)


def test_verify_remembers_a_bounded_number(monkeypatch: pytest.MonkeyPatch, signature_checks: list[bytes]) -> None:
    """A good token that was pushed out is as good as before: its signature is checked again."""
    monkeypatch.setattr(token_cache, "MAX_CACHED_TOKENS", 10)
    verifier = verifier_of()
    tokens = [token_of({**CLAIMS, "sub": f"user{number}"}) for number in range(30)]
    for number, token in enumerate(tokens):
        assert f"user{number}" == verifier.verify(token).subject
        assert len(verifier._verified) <= 10
    verifier.verify(tokens[-1])
    assert 30 == len(signature_checks)
    assert "user0" == verifier.verify(tokens[0]).subject
    assert 31 == len(signature_checks)


@pytest.fixture
def rotating(tmp_path: Path) -> tuple[Path, Clock, TokenVerifier]:
    """A JWK set with the keys a and b, the clock that paces the look at it, and a verifier for both."""
    path, clock = key_file(tmp_path, jwk_of(RSA_KEY, kid="a"), jwk_of(RSA_OTHER, kid="b")), Clock()
    configured = settings_of(jwt_algorithm="RS256", jwt_jwks_file=path)
    return path, clock, TokenVerifier(configured, now=lambda: NOW, monotonic=clock)


@pytest.mark.parametrize("left", [{"kid": "b"}, {"kid": "a"}, {}])
def test_withdrawn_key_vouches_for_no_remembered_token(
    left: dict[str, str], rotating: tuple[Path, Clock, TokenVerifier]
) -> None:
    """When a key leaves the file, or another one takes its name, what it signed is refused although it was seen."""
    path, clock, verifier = rotating
    old, new = with_kid("a", RSA_KEY), with_kid("b", RSA_OTHER)
    assert ["alice"] * 4 == [verifier.verify(token).subject for token in (old, new, old, new)]
    replace(path, json.dumps({"keys": [jwk_of(RSA_OTHER, **left)]}), 1_000)
    clock.time += 1
    assert "token_invalid" == refusal(verifier, old).code
    accepted = with_kid(left.get("kid"), RSA_OTHER)
    assert "alice" == verifier.verify(accepted).subject


def test_key_file_is_looked_at_when_every_token_was_seen_before(
    rotating: tuple[Path, Clock, TokenVerifier], signature_checks: list[bytes]
) -> None:
    """Tokens from memory do not put off the look at the file; until it is due they cost no signature check."""
    path, clock, verifier = rotating
    token = with_kid("a", RSA_KEY)
    verifier.verify(token)
    replace(path, json.dumps({"keys": [jwk_of(RSA_OTHER, kid="b")]}), 1_000)
    for _ in range(9):
        clock.time += 0.1
        assert "alice" == verifier.verify(token).subject
    assert 1 == len(signature_checks)
    clock.time += 0.2
    assert "token_invalid" == refusal(verifier, token).code


def test_key_file_that_is_broken_or_unchanged_leaves_what_is_remembered(
    rotating: tuple[Path, Clock, TokenVerifier], signature_checks: list[bytes]
) -> None:
    """As long as the keys stay in use, so does what they vouched for."""
    path, clock, verifier = rotating
    token = with_kid("a", RSA_KEY)
    verifier.verify(token)
    for change in (lambda: None, lambda: replace(path, '{"keys": [', 2_000), path.unlink):
        change()
        clock.time += 1
        assert "alice" == verifier.verify(token).subject
    assert 1 == len(signature_checks)


# --- Making tokens and reading headers -------------------------------------------------------------


def test_encode_token_round_trip() -> None:
    """What the command issues, the service accepts, with audience and issuer as configured."""
    configured = settings_of(jwt_secret=make_secret(), jwt_audience="api", jwt_issuer="dev", jwt_algorithm="HS512")
    token = encode_token(configured, subject="alice", sessions=["s1"], scope="events:publish", ttl_seconds=60)
    principal = TokenVerifier(configured).verify(token)
    assert (principal.subject, principal.scopes, principal.sessions) == (
        "alice",
        frozenset({"events:publish"}),
        frozenset({"s1"}),
    )
    plain = TokenVerifier(configured).verify(encode_token(configured, subject="bob"))
    assert (plain.scopes, plain.sessions) == (frozenset(DEFAULT_SCOPE.split()), None)
    assert 0 < plain.expires_at - principal.expires_at <= 3600


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"jwt_algorithm": "RS256", "jwt_public_key": pem(RSA_KEY)}, {"subject": "a"}, "your own issuer"),
        ({"jwt_secret": ""}, {"subject": "a"}, "missing"),
        ({}, {"subject": ""}, "sub"),
        ({}, {"subject": "a\nb"}, "control"),
        ({}, {"subject": "a", "ttl_seconds": 0}, "positive"),
        ({}, {"subject": "a", "ttl_seconds": -1.0}, "positive"),
        ({}, {"subject": "a", "ttl_seconds": float("nan")}, "positive"),
        ({}, {"subject": "a", "ttl_seconds": float("inf")}, "positive"),
        ({}, {"subject": "a", "sessions": ["s"] * 1001}, "refused"),
        ({}, {"subject": "a", "sessions": ["x" * 128] * 100}, "refused"),
    ],
)
def test_encode_token_refuses(changes: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    """No token is issued that the service would not accept."""
    with pytest.raises(ConfigurationError, match=message):
        encode_token(settings_of(**changes), **arguments)


def test_encode_token_checks_session_ids() -> None:
    """A mistyped session id is an error here, not a 403 later."""
    with pytest.raises(InvalidSessionId):
        encode_token(settings_of(), subject="a", sessions=["not a session"])


def test_make_secret_is_long_and_fresh() -> None:
    """Two secrets differ, and each is long enough for every HS algorithm."""
    first, second = make_secret(), make_secret()
    assert first != second
    assert re.fullmatch(r"[A-Za-z0-9_-]{64}", first)


@pytest.mark.parametrize(
    "value", ["Bearer abc.d-e.f_g", "bearer abc.d-e.f_g", "BEARER   abc.d-e.f_g ", " Bearer abc.d-e.f_g\t"]
)
def test_bearer_returns_the_token(value: str) -> None:
    """The scheme is compared without case, white space around is not part of the token."""
    assert bearer([value]) == "abc.d-e.f_g"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([], "token_missing"),
        (["Bearer"], "token_missing"),
        (["Bearer  "], "token_missing"),
        (["Bearer a", "Bearer a"], "token_invalid"),
        (["Bearer a", ""], "token_invalid"),
        ([""], "token_invalid"),
        (["abc.def.ghi"], "token_invalid"),
        (["Basic YTpi"], "token_invalid"),
        (["Bearerabc"], "token_invalid"),
        (["Bearer a b"], "token_invalid"),
        (["Bearer a\tb"], "token_invalid"),
        (["Bearer a\u2003b"], "token_invalid"),
        (["Bearer\ta"], "token_invalid"),
    ],
)
def test_bearer_refuses(values: list[str], code: str) -> None:
    """No header and no token are `token_missing`, anything else is `token_invalid`."""
    with pytest.raises(ApiError) as caught:
        bearer(values)
    error = caught.value
    assert (error.status, error.code, error.headers) == (401, code, {"WWW-Authenticate": "Bearer"})


# --- Rights ----------------------------------------------------------------------------------------


class Owners:
    """The owners that `open_session` registered; counts how often it is asked."""

    def __init__(self, owner: str | None = None, error: Exception | None = None) -> None:
        self.owner, self.error, self.asked = owner, error, 0

    async def __call__(self, session_id: str) -> str | None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.owner


ALICE = Principal("alice", frozenset({"events:read"}), None, 1.0)
ALICE_S1 = Principal("alice", frozenset({"events:read"}), frozenset({"s1"}), 1.0)
MALLORY_S1 = Principal("mallory", frozenset({"events:read"}), frozenset({"s2"}), 1.0)


def outcome(authorizer: Authorizer, principal: Principal, scope: str = "events:read") -> str:
    """Return "allowed" or the code of the refusal."""
    try:
        asyncio.run(authorizer.check(principal, "s1", scope))
    except ApiError as error:
        return error.code if error.status == 403 else f"{error.status} {error.code}"
    return "allowed"


@pytest.mark.parametrize(
    ("principal", "owner", "expected", "asked"),
    [
        (ALICE_S1, None, "allowed", 0),
        (ALICE, "alice", "allowed", 1),
        (ALICE, "bob", "session_forbidden", 1),
        (ALICE, None, "session_forbidden", 1),
        (MALLORY_S1, "alice", "session_forbidden", 1),
        (MALLORY_S1, "mallory", "allowed", 1),
    ],
)
def test_check_by_token_then_owner(principal: Principal, owner: str | None, expected: str, asked: int) -> None:
    """The token's list decides without Redis; the owner is asked for only when it must be."""
    owners = Owners(owner)
    assert (outcome(Authorizer(owners), principal), owners.asked) == (expected, asked)


def test_check_names_the_missing_scope_first() -> None:
    """A missing scope is named and asks nobody about the session."""
    owners = Owners("alice")
    with pytest.raises(ApiError, match="events:publish") as caught:
        asyncio.run(Authorizer(owners, lambda *_: True).check(ALICE_S1, "s1", "events:publish"))
    assert (caught.value.status, caught.value.code, owners.asked) == (403, "scope_missing", 0)


def test_check_does_not_tell_foreign_from_unknown() -> None:
    """A session of another and one that does not exist are refused with the same words."""
    bodies = []
    for owner in ("bob", None):
        with pytest.raises(ApiError) as caught:
            asyncio.run(Authorizer(Owners(owner)).check(ALICE, "s1", "events:read"))
        bodies.append((caught.value.status, caught.value.code, caught.value.message, caught.value.data))
    assert bodies[0] == bodies[1]


TICKET_S1 = Principal("alice", frozenset({"events:read"}), frozenset({"s1"}), 1.0, read_only=True)
TICKET_S2 = Principal("alice", frozenset({"events:read"}), frozenset({"s2"}), 1.0, read_only=True)


@pytest.mark.parametrize(
    ("principal", "authorize", "expected"),
    [
        (ALICE_S1, None, True),
        (TICKET_S1, None, True),
        (ALICE, None, None),
        (MALLORY_S1, None, None),
        (ALICE_S1, lambda *_: True, None),
        (ALICE_S1, lambda *_: False, None),
        (TICKET_S1, lambda *_: None, None),
    ],
)
def test_decide_now_says_only_what_the_token_alone_decides(
    principal: Principal, authorize: Any, expected: bool | None
) -> None:
    """True for a session that the token lists; None, and nobody asked, where Redis or the application has a say."""
    asked: list[object] = []

    def noted(*arguments: Any) -> Any:
        asked.append(arguments)
        return authorize(*arguments)

    owners = Owners("alice")
    authorizer = Authorizer(owners, None if authorize is None else noted)
    assert expected is authorizer.decide_now(principal, "s1", "events:read")
    assert (0, []) == (owners.asked, asked)


@pytest.mark.parametrize("authorize", [None, lambda *_: True])
@pytest.mark.parametrize(
    ("principal", "scope", "code"),
    [
        (ALICE_S1, "events:publish", "scope_missing"),
        (ALICE, "permissions:respond", "scope_missing"),
        (TICKET_S1, "permissions:respond", "scope_missing"),
        (TICKET_S2, "events:publish", "scope_missing"),
        (TICKET_S2, "events:read", "session_forbidden"),
    ],
)
def test_decide_now_refuses_as_check_does(authorize: Any, principal: Principal, scope: str, code: str) -> None:
    """What nobody could allow is refused at once, with the error of `check`: a missing scope, another's ticket."""
    owners = Owners("alice")
    authorizer = Authorizer(owners, authorize)
    with pytest.raises(ApiError) as now:
        authorizer.decide_now(principal, "s1", scope)
    with pytest.raises(ApiError) as later:
        asyncio.run(authorizer.check(principal, "s1", scope))
    assert (403, code, 0) == (now.value.status, now.value.code, owners.asked)
    assert (later.value.status, later.value.code, later.value.message) == (403, code, now.value.message)


def raising(*_: object) -> bool:
    """Stand for an application's callable with a bug."""
    raise LookupError("bug")


async def raising_later(*_: object) -> bool:
    """Stand for an asynchronous one with a bug."""
    raise LookupError("bug")


def soon(value: Any) -> Callable[[Principal, str], Awaitable[Any]]:
    """Make an asynchronous callable that answers ``value``."""

    async def answer(principal: Principal, session_id: str) -> Any:
        return value

    return answer


@pytest.mark.parametrize(
    ("authorize", "principal", "owner", "expected"),
    [
        (lambda *_: True, MALLORY_S1, "alice", "allowed"),
        (soon(True), MALLORY_S1, None, "allowed"),
        (lambda *_: False, ALICE_S1, "alice", "session_forbidden"),
        (soon(False), ALICE, "alice", "session_forbidden"),
        (lambda *_: None, ALICE_S1, None, "allowed"),
        (soon(None), ALICE, "alice", "allowed"),
        (soon(None), ALICE, "bob", "session_forbidden"),
        (lambda *_: 1, ALICE_S1, "alice", "session_forbidden"),
        (soon("yes"), ALICE_S1, "alice", "session_forbidden"),
        (raising, ALICE_S1, "alice", "session_forbidden"),
        (raising_later, ALICE, "alice", "session_forbidden"),
    ],
)
def test_check_asks_the_application_first(
    authorize: Any, principal: Principal, owner: str | None, expected: str
) -> None:
    """True allows and False refuses whatever token and owner say, None leaves it to them, a fault refuses."""
    assert outcome(Authorizer(Owners(owner), authorize), principal) == expected


def test_check_logs_a_fault_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    """A callable that raises is in the log, with the session's id."""
    outcome(Authorizer(Owners(), raising), ALICE)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.exc_info is not None) == ("agent_sse", "ERROR", True)
    assert "s1" in record.getMessage()


def test_check_passes_redis_trouble_and_cancelling_on() -> None:
    """When only Redis knows, its absence is not a 403; cancelling is not swallowed."""
    with pytest.raises(RedisUnavailable):
        outcome(Authorizer(Owners(error=RedisUnavailable("away"))), ALICE)
    assert outcome(Authorizer(Owners(error=RedisUnavailable("away"))), ALICE_S1) == "allowed"

    async def cancelled(principal: Principal, session_id: str) -> bool:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        outcome(Authorizer(Owners(), cancelled), ALICE)


def test_verify_leaves_no_token_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Refused or not, nothing of a token is logged, at any level."""
    caplog.set_level(logging.DEBUG)
    token = token_of()
    HS.verify(token)
    refusal(HS, token + "x")
    refusal(HS, token.encode())
    fragments = [token[start : start + 16] for start in range(0, len(token) - 16, 8)]
    assert [fragment for fragment in fragments if fragment in caplog.text] == []
    assert hashlib.sha256(token.encode()).hexdigest() not in caplog.text
