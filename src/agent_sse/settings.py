"""The settings of service and notifier: variables ``AGENT_SSE_*``, also from ``.env``. Only entry points build them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from agent_sse.hosts import check_pattern
from agent_sse.masking import DEFAULT_KEYS

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

# As browsers send it: no path, no credentials. https://www.rfc-editor.org/rfc/rfc6454#section-6.2
_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[^\s/?#@*:\[\]]+)(:[0-9]{1,5})?")

JwtAlgorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]


class RedisSettings(BaseSettings):
    """What an agent's process and the service share: where Redis is, and how much of a session is kept.

    Durations are in seconds, sizes in bytes.
    """

    model_config = SettingsConfigDict(
        env_prefix="AGENT_SSE_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    redis_url: str = Field("", repr=False, description="Redis or Valkey URL; empty = the embedded Valkey")
    key_prefix: str = Field("agent_sse", pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="Prefix of every Redis key")
    state_dir: Path | None = Field(None, description="Where the embedded Valkey keeps its data; empty = per user")
    retention_seconds: Seconds = Field(600, description="How long an event can be replayed")
    retention_events: Count = Field(1000, description="How many events of a session can be replayed")
    retention_bytes: Count = Field(16 * 1024 * 1024, description="How many bytes of events a session keeps")
    max_event_bytes: Count = Field(256 * 1024, description="Largest event, as JSON")
    session_ttl: Seconds = Field(24 * 3600, ge=5, description="How long owner, state and grants outlive the last use")
    publish_timeout: Seconds = Field(5, description="How long a publish may take before it raises PublishTimeout")
    permission_concurrency: Count = Field(1, description="How many permission requests are shown at a time")
    max_pending_permissions: Count = Field(1000, description="Open permission requests per session")
    permission_lease: Seconds = Field(15, description="A waiter that does not renew within this time counts as dead")
    mask_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        DEFAULT_KEYS,
        description="Names whose values are shown as ••••, comma-separated; +name adds to the default list",
    )
    audit_retention: Seconds = Field(30 * 24 * 3600, description="How long an entry of the audit is kept")
    audit_entries: Count = Field(10_000, description="How many audit entries of a session are kept")

    @field_validator("mask_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if not value.strip():
            return DEFAULT_KEYS
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        added = tuple(name.removeprefix("+") for name in names if name.startswith("+"))
        return (*DEFAULT_KEYS, *added) if len(added) == len(names) else names


class Settings(RedisSettings):
    """Everything the service reads. See the README's table for the meaning of each."""

    url_prefix: str = Field("/agent_backend/api/sse", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="URL prefix")
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 = any free one")

    jwt_secret: str = Field("", repr=False, description="Secret of the HS algorithms, at least 32 bytes")
    jwt_algorithm: JwtAlgorithm = Field("HS256", description="The one algorithm that tokens may use")
    jwt_public_key: str = Field("", description="PEM public key for the RS and ES algorithms")
    jwt_jwks_file: Path | None = Field(None, description="JWK set for the RS and ES algorithms, selected by kid")
    jwt_audience: str = Field("", description="Required `aud` of a token; empty = not checked, with a warning")
    jwt_issuer: str = Field("", description="Required `iss` of a token; empty = not checked")
    jwt_leeway: float = Field(30, ge=0, le=600, description="Allowed clock difference for `exp` and `nbf`")

    heartbeat_interval: Seconds = Field(15, description="A heartbeat is sent when nothing else was for this long")
    send_timeout: Seconds = Field(30, description="A client that takes no byte for this long is disconnected")
    max_stream_seconds: Seconds = Field(3600, description="A stream is ended after this time ± 20 %; clients resume")
    max_streams: Count = Field(20_000, description="Open streams per process")
    max_streams_per_session: Count = Field(1000, description="Open streams per session and process")
    stream_buffer_bytes: Count = Field(256 * 1024, description="Bytes queued for one client before it has to catch up")
    max_body_bytes: Count = Field(1024 * 1024, description="Largest request body")
    webhook_url: str = Field(
        "", repr=False, description="Where unanswered permission requests are posted; empty = nowhere"
    )
    webhook_secret: str = Field("", repr=False, description="Secret of the webhook's signature, at least 32 bytes")
    webhook_after: Seconds = Field(
        30, description="How long a request waits for an answer before the webhook is called"
    )
    webhook_timeout: Seconds = Field(10, description="How long the webhook's receiver may take to answer")
    webhook_attempts: Count = Field(8, description="How often a delivery is tried")
    audit_file: Path | None = Field(None, description="JSON-lines file to which the audit of all sessions is appended")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), description="Allowed origins, comma-separated")

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names in Host that may have the console and the API's description, comma-separated; * = any"
    )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(name) for name in value)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(origin.strip().rstrip("/") for origin in value.split(",") if origin.strip())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _refuse_wildcard(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if _ORIGIN.fullmatch(origin) is None:
                raise ValueError("list exact origins such as https://app.example.com; a wildcard is not accepted")
        return value

    @field_validator("jwt_jwks_file", "state_dir", "audit_file", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class ExplicitSettings(Settings):
    """The settings from keyword arguments only; a misspelt one is an error."""

    model_config = SettingsConfigDict(extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take nothing from the environment."""
        return (init_settings,)


def describe(error: ValidationError) -> str:
    """Return one line per wrong setting, by its environment variable, without the values (one may be a secret)."""
    return "; ".join(
        f"AGENT_SSE_{'.'.join(str(part) for part in item['loc']).upper()}: {item['msg']}" for item in error.errors()
    )
