"""The settings: their environment names, `.env`, and what is said of a wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent_sse import ConfigurationError, SimpleNotifier
from agent_sse.routes import load_settings
from agent_sse.settings import RedisSettings, Settings, describe

# protocol.md § 1: name, value when nothing is set.
CONTRACT = {
    "REDIS_URL": "", "KEY_PREFIX": "agent_sse", "JWT_SECRET": "", "JWT_ALGORITHM": "HS256", "JWT_PUBLIC_KEY": "",
    "JWT_JWKS_FILE": None, "JWT_AUDIENCE": "", "JWT_ISSUER": "", "JWT_LEEWAY": 30, "HEARTBEAT_INTERVAL": 15,
    "RETENTION_SECONDS": 600, "RETENTION_EVENTS": 1000, "RETENTION_BYTES": 16 * 1024 * 1024,
    "MAX_EVENT_BYTES": 256 * 1024, "MAX_BODY_BYTES": 1024 * 1024, "SESSION_TTL": 24 * 3600,
    "MAX_STREAM_SECONDS": 3600, "SEND_TIMEOUT": 30, "PERMISSION_CONCURRENCY": 1, "CORS_ORIGINS": (),
}  # fmt: skip
PRESENT = {"MAX_STREAMS", "MAX_STREAMS_PER_SESSION", "HOST", "PORT", "URL_PREFIX"}

SAMPLES = {
    "REDIS_URL": ("redis://r:1", "redis://r:1"),
    "KEY_PREFIX": ("other", "other"),
    "STATE_DIR": ("/var/lib/x", Path("/var/lib/x")),
    "RETENTION_SECONDS": ("1.5", 1.5),
    "RETENTION_EVENTS": ("7", 7),
    "JWT_SECRET": ("s" * 40, "s" * 40),
    "JWT_ALGORITHM": ("ES256", "ES256"),
    "JWT_JWKS_FILE": ("/etc/keys.json", Path("/etc/keys.json")),
    "HEARTBEAT_INTERVAL": ("0.5", 0.5),
    "PORT": ("0", 0),
    "URL_PREFIX": ("/api/v1", "/api/v1"),
    "ALLOWED_HOSTS": ("App.example.com, *.example.org,", ("app.example.com", "*.example.org")),
    "CORS_ORIGINS": ("https://a.example, http://localhost:3000/", ("https://a.example", "http://localhost:3000")),
}


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` but the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "value"), list(CONTRACT.items()))
def test_setting_has_the_contracts_default(name: str, value: object) -> None:
    """Every setting of the contract exists with its default."""
    assert value == getattr(Settings(), name.lower())


def test_every_setting_of_the_contract_exists_and_is_described() -> None:
    """No setting of the contract is missing, and each says what it is for."""
    fields = Settings.model_fields
    assert {name.lower() for name in (*CONTRACT, *PRESENT)} <= set(fields)
    assert [] == [name for name, field in fields.items() if not field.description]


@pytest.mark.parametrize(("name", "text", "value"), [(name, *pair) for name, pair in SAMPLES.items()])
def test_setting_is_read_from_the_environment(
    name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AGENT_SSE_<NAME> sets a setting."""
    monkeypatch.setenv(f"AGENT_SSE_{name}", text)
    assert value == getattr(Settings(), name.lower())


def test_setting_is_read_from_a_file_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """`.env` in the working directory counts, unknown lines in it do not matter, the environment overrides it."""
    Path(".env").write_text("AGENT_SSE_PORT=1111\nAGENT_SSE_KEY_PREFIX=filed\nOTHER=x\nAGENT_SSE_UNKNOWN=y\n")
    monkeypatch.setenv("AGENT_SSE_PORT", "2222")
    settings = Settings()
    assert (2222, "filed") == (settings.port, settings.key_prefix)
    assert "filed" == RedisSettings().key_prefix


def test_empty_path_is_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable means unset, not the working directory."""
    monkeypatch.setenv("AGENT_SSE_JWT_JWKS_FILE", "")
    monkeypatch.setenv("AGENT_SSE_STATE_DIR", "")
    assert (None, None) == (Settings().jwt_jwks_file, Settings().state_dir)


WRONG = [
    ("PORT", "eighty"), ("PORT", "65536"), ("PORT", "-1"), ("PORT", ""), ("RETENTION_EVENTS", "0"),
    ("RETENTION_EVENTS", "1.5"), ("RETENTION_SECONDS", "0"), ("RETENTION_SECONDS", "nan"),
    ("RETENTION_SECONDS", "inf"), ("HEARTBEAT_INTERVAL", "-15"), ("MAX_EVENT_BYTES", "256KiB"),
    ("JWT_ALGORITHM", "none"), ("JWT_ALGORITHM", "hs256"), ("JWT_LEEWAY", "-1"), ("JWT_LEEWAY", "601"),
    ("URL_PREFIX", "no-slash"), ("URL_PREFIX", "/trailing/"), ("URL_PREFIX", "/{x}"), ("KEY_PREFIX", "a b"),
    ("KEY_PREFIX", "{a}"), ("KEY_PREFIX", ""), ("KEY_PREFIX", "x" * 65), ("CORS_ORIGINS", "*"),
    ("CORS_ORIGINS", "app.example.com"), ("CORS_ORIGINS", "https://a.example,null"),
    ("CORS_ORIGINS", "https://a.example/app"), ("CORS_ORIGINS", "https://"), ("CORS_ORIGINS", "https://*.example"),
    ("CORS_ORIGINS", "https://a.example https://b.example"), ("CORS_ORIGINS", "https://user@a.example"),
    ("ALLOWED_HOSTS", "https://a.example"), ("ALLOWED_HOSTS", "a.example:8000"), ("ALLOWED_HOSTS", "a.example."),
    ("ALLOWED_HOSTS", "*example.com"), ("ALLOWED_HOSTS", "a.*.example"), ("ALLOWED_HOSTS", "*."),
    ("ALLOWED_HOSTS", "a b"), ("ALLOWED_HOSTS", "user@a.example"), ("ALLOWED_HOSTS", "münchen.example"),
    ("ALLOWED_HOSTS", ".example.com"), ("ALLOWED_HOSTS", "-a.example"), ("ALLOWED_HOSTS", "a.example/x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_setting_is_one_line_that_names_it(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value is one line with the variable's name."""
    monkeypatch.setenv(f"AGENT_SSE_{name}", text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    line = str(caught.value)
    assert line.startswith(f"AGENT_SSE_{name}: ")
    assert "\n" not in line
    assert 1 == line.count("AGENT_SSE_")


def test_wrong_setting_does_not_show_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password pasted into the wrong variable is not repeated, neither in the line nor by pydantic itself."""
    for name in ("PORT", "RETENTION_SECONDS", "JWT_ALGORITHM", "URL_PREFIX", "KEY_PREFIX", "CORS_ORIGINS"):
        monkeypatch.setenv(f"AGENT_SSE_{name}", "hunter2 hunter2")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert 6 == str(caught.value).count("AGENT_SSE_")
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert "hunter2" not in str(raw.value)


def test_wrong_setting_leaves_no_trace_of_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that a user sees has no chained one below it, which could quote the value."""
    monkeypatch.setenv("AGENT_SSE_PORT", "x")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.__suppress_context__


def test_secret_is_not_in_the_settings_text() -> None:
    """Printing the settings, in a log for instance, shows no secret: neither the JWT's nor Redis' password."""
    settings = Settings(jwt_secret="hunter2" * 8, redis_url="redis://:hunter2@localhost")
    assert "hunter2" not in repr(settings) + str(settings)


def test_describe_names_each_wrong_setting_once() -> None:
    """Several wrong settings are told at once, each by its variable."""
    with pytest.raises(ValidationError) as caught:
        Settings(port=-1, host=5, jwt_leeway=10_000)  # type: ignore[arg-type]
    parts = describe(caught.value).split("; ")
    assert ["AGENT_SSE_HOST", "AGENT_SSE_PORT", "AGENT_SSE_JWT_LEEWAY"] == [part.split(":")[0] for part in parts]


@pytest.mark.parametrize(("text", "names"), [("", ()), (" , ", ()), ("*", ("*",)), ("A.b, *.C.d", ("a.b", "*.c.d"))])
def test_allowed_hosts_are_split_and_lowered(text: str, names: tuple[str, ...]) -> None:
    """Names are separated by commas; their case does not matter."""
    assert names == Settings(allowed_hosts=text).allowed_hosts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()), (" ", ()), (",", ()), ("https://a.example", ("https://a.example",)),
        (" https://a.example/ ,, http://b:8080", ("https://a.example", "http://b:8080")),
    ],
)  # fmt: skip
def test_cors_origins_are_split_and_trimmed(text: str, origins: tuple[str, ...]) -> None:
    """Origins are separated by commas; blanks and a trailing slash, which no browser sends, are taken off."""
    assert origins == Settings(cors_origins=text).cors_origins  # type: ignore[arg-type]


def test_settings_cannot_be_changed() -> None:
    """Settings are frozen: nothing changes them behind a running service."""
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_notifier_reads_the_environment_or_its_arguments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_env` reads the service's variables, `from_url` none of them."""
    monkeypatch.setenv("AGENT_SSE_KEY_PREFIX", "from_environment")
    monkeypatch.setenv("AGENT_SSE_REDIS_URL", "redis://environment")
    assert "from_environment" == SimpleNotifier.from_env().settings.key_prefix
    notifier = SimpleNotifier.from_url("redis://argument", retention_events=5)
    assert ("agent_sse", "redis://argument", 5) == (
        notifier.settings.key_prefix, notifier.settings.redis_url, notifier.settings.retention_events,
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"retention_event": 5}, {"retention_events": 0}, {"redis_uri": "x"}])
def test_notifier_refuses_an_unknown_or_wrong_argument(wrong: dict[str, object]) -> None:
    """A misspelt keyword is an error, not a default."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong)).upper()):
        SimpleNotifier.from_url("redis://x", **wrong)


def test_environment_of_the_tests_is_clean() -> None:
    """What these tests assume of the fixture that they rely on."""
    assert [] == [name for name in os.environ if name.startswith("AGENT_SSE_") and name != "AGENT_SSE_TEST_SERVER"]
