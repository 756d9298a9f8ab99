"""Where the webhook goes and what it says: URL, secrets, signature, body, and the pause after a failure. Sends nothing.

As in https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from agent_sse.errors import ConfigurationError
from agent_sse.events import timestamp
from agent_sse.keys import digest
from agent_sse.registry import Claim, OpenRequest
from agent_sse.settings import Settings

log = logging.getLogger("agent_sse")

EVENT_TYPE = "permission_request.unanswered"
SECRET_PREFIX = "whsec_"  # noqa: S105 - it marks secrets, it is none
SECRET_BYTES = 32
BACKOFF = 2.0  # s; doubles with each attempt, and of that a random part is waited
BACKOFF_MAX = 300.0  # s
RETRY_AFTER_MAX = 600.0  # s; what a receiver may ask for


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send, how to sign, how long to wait: ``after`` and ``timeout`` in seconds."""

    url: httpx.URL = field(repr=False)
    secrets: Sequence[bytes] = field(repr=False)
    after: float
    timeout: float
    attempts: int

    @classmethod
    def of(cls, settings: Settings) -> Endpoint | None:
        """Return what the settings say, None without a URL. Raises :class:`ConfigurationError`."""
        if not settings.webhook_url:
            return None
        return cls(
            read_url(settings.webhook_url), read_secrets(settings.webhook_secret),
            settings.webhook_after, settings.webhook_timeout, settings.webhook_attempts,
        )  # fmt: skip

    @property
    def origin(self) -> str:
        """The URL as it may be logged: path and query often are what gives access."""
        return f"{self.url.scheme}://{self.url.netloc.decode('ascii')}"


def read_url(text: str) -> httpx.URL:
    """Return the URL to send to: https, or http. Raises :class:`ConfigurationError`, which does not tell it."""
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        raise ConfigurationError("AGENT_SSE_WEBHOOK_URL is not a URL: write https://host/path") from None
    # httpx would escape a space, also in a host, and takes any number for a port.
    if url.scheme not in ("https", "http") or not url.host or len(text.split()) > 1 or not 0 < (url.port or 1) < 65536:
        raise ConfigurationError("AGENT_SSE_WEBHOOK_URL must be https://host/path, without spaces")
    if url.userinfo or url.fragment:
        raise ConfigurationError(
            "AGENT_SSE_WEBHOOK_URL must hold no user, password or fragment: the signature tells the receiver who sends"
        )
    if url.scheme == "http" and not _is_loopback(url.host):
        log.warning("AGENT_SSE_WEBHOOK_URL is http: whoever is on the way to %s can read the requests", url.host)
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def read_secrets(text: str) -> list[bytes]:
    """Return the keys in ``text``: plain text, or ``whsec_`` and base64, also several with spaces between.

    Raises :class:`ConfigurationError` for one of less than 32 bytes.
    """
    words = text.split()
    if not words or not all(word.startswith(SECRET_PREFIX) for word in words):
        keys = [text.encode()]
    else:
        try:
            keys = [_decode(word.removeprefix(SECRET_PREFIX)) for word in words]
        except binascii.Error:
            raise ConfigurationError(f"AGENT_SSE_WEBHOOK_SECRET: what follows {SECRET_PREFIX} is not base64") from None
    if any(len(key) < SECRET_BYTES for key in keys):
        raise ConfigurationError(
            f"AGENT_SSE_WEBHOOK_SECRET must be at least {SECRET_BYTES} bytes; "
            f'make one: echo "{SECRET_PREFIX}$(openssl rand -base64 {SECRET_BYTES})"'
        )
    return keys


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def sign(secrets: Sequence[bytes], delivery_id: str, unix: int, body: bytes) -> str:
    """Return the ``webhook-signature`` header: one signature per key, so that receivers can change theirs in peace."""
    signed = f"{delivery_id}.{unix}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode("ascii") for key in secrets
    )


def delivery_id(claim: Claim) -> str:
    """Return the id of what is told of a request: the same at every attempt and from every process."""
    return "msg_" + digest(f"{EVENT_TYPE} {claim.member}")[:32]


def body_of(claim: Claim, request: OpenRequest, after: float) -> bytes:
    """Return the JSON that is sent: the request's own data, and since when it waits."""
    now = datetime.fromtimestamp(claim.now_ms() / 1000, UTC)
    asked = _moment(request.data.get("timestamp")) or now
    overdue = datetime.fromtimestamp(asked.timestamp() + after, UTC)
    added = {
        "session_id": claim.session_id,
        "presented": request.presented,
        "unanswered_seconds": round(max(0.0, (now - asked).total_seconds()), 3),
    }
    message = {
        "type": EVENT_TYPE,
        "id": delivery_id(claim),
        "timestamp": timestamp(overdue),
        "created": timestamp(asked),
        "data": {**request.data, **added},
    }
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment is not None and moment.tzinfo is not None else None


def pause_after(attempt: int, retry_after: str | None) -> float:
    """Return the seconds until the next attempt: a random part of what doubles, and no less than the receiver wants.

    ``attempt`` counts from 1. https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    """
    pause = random.uniform(0, min(BACKOFF_MAX, BACKOFF * 2 ** min(attempt - 1, 20)))
    return max(pause, min(_seconds(retry_after), RETRY_AFTER_MAX))


def _seconds(retry_after: str | None) -> float:
    if retry_after is None:
        return 0.0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        return 0.0
