"""What the webhook says and to whom: URLs and secrets that are refused, the signature, the body, the pauses."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from agent_sse import ConfigurationError
from agent_sse.endpoint import (
    BACKOFF,
    BACKOFF_MAX,
    RETRY_AFTER_MAX,
    Endpoint,
    body_of,
    delivery_id,
    pause_after,
    read_secrets,
    read_url,
    sign,
)
from agent_sse.registry import Claim, OpenRequest
from harness import make_settings

KEY = bytes(range(32))
WHSEC = "whsec_" + base64.b64encode(KEY).decode()


def claim(session_id: str = "s1", request_id: str = "pr_1", *, redis_ms: int = 0, attempt: int = 1) -> Claim:
    return Claim(session_id, request_id, attempt, redis_ms, time.monotonic())


# -- settings ------------------------------------------------------------------------------------------------------


def test_endpoint_without_a_url_is_none() -> None:
    """No URL, no webhook, whatever the secret."""
    assert Endpoint.of(make_settings("", webhook_url="", webhook_secret="")) is None


def test_endpoint_of_settings_holds_what_they_say() -> None:
    """URL, key, times and attempts come from the settings, and neither URL nor key is shown by `repr`."""
    settings = make_settings(
        "", webhook_url="https://example.com/hook?key=k1", webhook_secret=WHSEC, webhook_after=5, webhook_timeout=2,
        webhook_attempts=3,
    )  # fmt: skip
    endpoint = Endpoint.of(settings)
    assert endpoint is not None
    assert ("https://example.com/hook?key=k1", [KEY]) == (str(endpoint.url), endpoint.secrets)
    assert (5, 2, 3) == (endpoint.after, endpoint.timeout, endpoint.attempts)
    assert "https://example.com" == endpoint.origin
    assert "hook" not in repr(endpoint)
    assert "x01" not in repr(endpoint)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "file:///etc/passwd", "gopher://example.com", "example.com/hook", "//example.com/hook",
        "https://", "https:///hook", "https://alice:secret1@example.com/", "https://alice@example.com/",
        "https://example.com/#secret1", "https://exa mple.com/", "https://example.com/\r\nHost: other",
        "https://example.com:99999/", "javascript:alert(1)", "unix:///run/x.sock",
    ],
)  # fmt: skip
def test_url_that_is_no_fixed_place_on_the_web_is_refused(url: str) -> None:
    """Other schemes, no host, users, passwords, fragments and garbage are refused, by a message without them."""
    with pytest.raises(ConfigurationError, match="AGENT_SSE_WEBHOOK_URL") as refused:
        read_url(url)
    assert "secret1" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/hook", "http://[::1]/", "http://localhost/hook", "https://example.com/?key=secret1"]
)
def test_url_that_nobody_can_listen_to_is_taken_quietly(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """HTTPS anywhere, and HTTP on this machine, say nothing."""
    assert url == str(read_url(url))
    assert [] == caplog.records


@pytest.mark.parametrize("host", ["10.0.0.7", "example.com", "192.168.1.5"])
def test_url_over_plain_http_warns(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """HTTP to elsewhere is taken with a warning that names the host, not the path or query."""
    read_url(f"http://{host}/secret1?key=secret1")
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    assert host in record.getMessage()
    assert "secret1" not in record.getMessage()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("x" * 32, [b"x" * 32]),
        ("ü" * 16, ["ü".encode() * 16]),
        ("a passphrase that has spaces in it, and is long", [b"a passphrase that has spaces in it, and is long"]),
        (WHSEC, [KEY]),
        (WHSEC.rstrip("="), [KEY]),
        (f"{WHSEC} whsec_{base64.b64encode(b'y' * 40).decode()}", [KEY, b"y" * 40]),
    ],
)
def test_secret_of_32_bytes_is_taken(text: str, keys: list[bytes]) -> None:
    """Plain text is the key itself, `whsec_` marks base64, and several of these make several keys."""
    assert keys == read_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "x" * 31, "ü" * 15, "whsec_", "whsec_" + base64.b64encode(b"secret1" * 4).decode(),
        f"{WHSEC} whsec_{base64.b64encode(b'secret1').decode()}", "whsec_" + "secret1!" * 10, WHSEC[:-4] + "-_" + "==",
    ],
)  # fmt: skip
def test_secret_that_is_short_or_garbled_is_refused(text: str) -> None:
    """Less than 32 bytes, decoded ones, and what is no base64 are refused, by a message that does not tell them."""
    with pytest.raises(ConfigurationError, match="AGENT_SSE_WEBHOOK_SECRET") as refused:
        read_secrets(text)
    assert "secret1" not in str(refused.value)


# -- signature -----------------------------------------------------------------------------------------------------


def test_signature_is_that_of_the_specifications_example() -> None:
    """The example that the libraries of Standard Webhooks test with."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" == signature


def test_signature_of_two_keys_holds_both() -> None:
    """While a secret is being changed, each receiver finds one that is right, separated by a space."""
    first, second = sign([KEY, b"y" * 32], "msg_1", 5, b"{}").split(" ")
    for key, signature in ((KEY, first), (b"y" * 32, second)):
        expected = base64.b64encode(hmac.new(key, b"msg_1.5.{}", hashlib.sha256).digest()).decode()
        assert f"v1,{expected}" == signature


def test_delivery_id_is_stable_and_has_no_full_stop() -> None:
    """A request has one id at each attempt, each request has its own, and no dot in one confuses what is signed."""
    ids = [delivery_id(it) for it in (claim(), claim(attempt=5), claim("s.2"), claim("s1", "pr_2"))]
    assert (ids[0], 3) == (ids[1], len(set(ids)))
    assert not any("." in name for name in ids)


# -- body ----------------------------------------------------------------------------------------------------------

DATA: dict[str, Any] = {
    "tool_name": "编辑", "parameters": {"password": "••••", "n": 1}, "request_id": "pr_1",
    "timestamp": "2026-01-02T03:04:05.000Z", "status": "pending",
}  # fmt: skip
ASKED_MS = int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp() * 1000)


def test_body_is_the_requests_data_and_how_long_it_waits() -> None:
    """Type, id, both times, and the event's data with session, presentation and seconds."""
    body = json.loads(body_of(claim(redis_ms=ASKED_MS + 45_500), OpenRequest(DATA, True, 0), 30.0))
    seconds = body["data"].pop("unanswered_seconds")
    assert 45.5 <= seconds < 45.5 + 30
    assert {
        "type": "permission_request.unanswered", "id": delivery_id(claim()), "timestamp": "2026-01-02T03:04:35.000Z",
        "created": "2026-01-02T03:04:05.000Z", "data": {**DATA, "session_id": "s1", "presented": True},
    } == body  # fmt: skip


@pytest.mark.parametrize("odd", [None, 5, "", "yesterday", "2026-01-02", "2026-01-02T03:04:05"])
def test_body_of_a_request_without_a_time_has_one(odd: object) -> None:
    """A time that is none counts as now, on Redis' clock."""
    body = json.loads(body_of(claim(redis_ms=ASKED_MS), OpenRequest({**DATA, "timestamp": odd}, False, 0), 1.0))
    assert body["created"].startswith("2026-01-02T03:04:")
    assert 0 == body["data"]["unanswered_seconds"]


def test_body_that_utf8_cannot_carry_is_sent_escaped() -> None:
    """A lone surrogate that JSON can spell does not stop the delivery."""
    body = body_of(claim(), OpenRequest({"tool_name": "\ud800"}, False, 0), 1.0)
    assert b"\\ud800" in body


# -- pauses --------------------------------------------------------------------------------------------------------


def test_pause_doubles_up_to_a_bound_and_is_random() -> None:
    """Each pause is a random part of what doubles; all of them together never exceed the bound."""
    for attempt in (*range(1, 12), 100, 10**6):
        most = min(BACKOFF_MAX, BACKOFF * 2 ** min(attempt - 1, 20))
        pauses = [pause_after(attempt, None) for _ in range(50)]
        assert all(0 <= pause <= most for pause in pauses)
        assert len(set(pauses)) > 1


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("120", 120), ("0", 0), ("999999999999999999999", RETRY_AFTER_MAX), ("-5", 0), ("1e9", 0), ("soon", 0), ("", 0),
        ("٣٠", 0), ("Fri, 32 Jan 2026 00:00:00 GMT", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", RETRY_AFTER_MAX),
    ],
)  # fmt: skip
def test_pause_is_at_least_what_the_receiver_wants(text: str, least: float) -> None:
    """`Retry-After` counts up to ten minutes, in seconds or as a date; what is neither counts for nothing."""
    pause = pause_after(1, text)
    assert least <= pause <= max(least, BACKOFF)


def test_pause_until_a_date_is_the_rest_until_then() -> None:
    """A date of RFC 9110 is waited for."""
    text = format_datetime(datetime.fromtimestamp(time.time() + 300, UTC), usegmt=True)
    assert 200 < pause_after(1, text) <= 300
