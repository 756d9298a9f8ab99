"""The command `agent-sse guard`: whose Redis it believes, what it says at its start, and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import Valkey, session_name
from mcp_parts import RawHost, hostile

# Without the SDK, which is an extra: the guard is not to need it.
WITHOUT_SDK = "import sys; sys.modules['mcp'] = sys.modules['mcp_types'] = None; from agent_sse.cli import main; main()"


def command(session: str, *options: str) -> list[str]:
    server = hostile("plain")
    return [sys.executable, "-c", WITHOUT_SDK, "guard", "--session", session, *options, "--", *server]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment in which no Redis is named and no service runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_SSE_")}
    return {**kept, "AGENT_SSE_STATE_DIR": str(folder / "state"), "SEEN": str(folder / "seen"), **more}


def project(folder: Path, valkey: Valkey) -> Path:
    """Return a cloned repository that names a Redis, and a policy that allows all."""
    (folder / "project").mkdir()
    (folder / "project" / ".env").write_text(f"AGENT_SSE_REDIS_URL={valkey.url}\n")
    (folder / "policy.toml").write_text('version = 1\n[[rules]]\nname = "all"\ndecision = "allow"\n')
    return folder / "project"


async def call(host: RawHost) -> dict[str, Any]:
    await host.initialize()
    await host.send("tools/call", {"name": "tool0", "arguments": {}}, id=1)
    answer: dict[str, Any] = await host.answer(1)
    return answer["result"]  # type: ignore[no-any-return]


async def test_guard_believes_no_env_file_where_it_is_started(folder: Path, valkey: Valkey) -> None:
    """The `.env` of the folder that a host starts it in neither gets its events nor decides about its calls."""
    session = session_name()
    where, made = project(folder, valkey), command(session, "--policy", str(folder / "policy.toml"))
    async with RawHost(made, environment=environment(folder), directory=where) as host:
        result = await call(host)
    assert result["isError"]
    assert "cannot be reached" in str(result)
    assert [] == await valkey.entries(session)
    assert f"the embedded Valkey at {(folder / 'state').resolve()}/valkey.sock" in host.errors
    assert "AGENT_SSE_STATE_DIR of the environment" in host.errors


async def test_guard_takes_the_env_file_that_it_is_given(folder: Path, valkey: Valkey) -> None:
    """With `--env-file` that file counts, and the log says so, with the server's name and the session."""
    session, where = session_name(), project(folder, valkey)
    made = command(session, "--policy", str(folder / "policy.toml"), "--env-file", ".env")
    async with RawHost(made, environment=environment(folder), directory=where) as host:
        result = await call(host)
    assert "isError" not in result
    assert [] != await valkey.entries(session)
    assert f"guarding hostile in session {session}" in host.errors
    assert f"{valkey.url} (AGENT_SSE_REDIS_URL of .env)" in host.errors


async def test_guard_says_where_redis_is_without_its_password(folder: Path) -> None:
    """The log of the start holds the host and who named it, and nothing that may be secret."""
    named = environment(folder, AGENT_SSE_REDIS_URL="redis://me:hunter2hunter2@127.0.0.1:1/0?password=hunter2hunter2")
    async with RawHost(command("s", "--name", "mine"), environment=named, directory=folder) as host:
        await host.initialize()
    assert "redis://127.0.0.1:1 (AGENT_SSE_REDIS_URL of the environment)" in host.errors
    assert "guarding mine in session s" in host.errors
    assert "hunter2" not in host.errors


async def test_guard_says_that_there_is_no_such_env_file(folder: Path) -> None:
    """A file that is not there is one clear line and status 2, not a guard that asks elsewhere."""
    made = command("s", "--env-file", "none.env")
    async with RawHost(made, environment=environment(folder), directory=folder) as host:
        assert 2 == await host.end()
    assert "there is no file none.env" in host.errors


@pytest.mark.parametrize("word", ["host and path", "http://127.0.0.1:PORT/mcp", "--env-file", "600"])
def test_guard_help_tells_its_defaults(word: str) -> None:
    """The default name, the address over HTTP, and how long a tool may be silent stand in the help."""
    made = [sys.executable, "-m", "agent_sse", "guard", "--help"]
    done = subprocess.run(
        made, capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "COLUMNS": "400"}
    )
    assert word in " ".join(done.stdout.split())
