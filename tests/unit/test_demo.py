"""The demo's agent against the real git and the real mcp-server-git; only the notifier is a fake that records calls.

The agent runs in a child process, as in the demo: importing `mcp` would patch uvicorn in the test process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent_sse import demo
from agent_sse.errors import ConfigurationError, PermissionDenied

RESULT_LINE = "RESULT "
DEADLINE = 60.0


class FakeCall:
    """What ``tool_call`` yields."""

    def __init__(self) -> None:
        self.result: Any = None
        self.steps: list[float] = []

    async def progress(self, progress: float, *, total: float | None = None, message: str | None = None) -> None:
        self.steps.append(progress)


class FakeNotifier:
    """Records every call and answers permission requests as told: approve, deny, wait (for ever), or empty.

    ``empty`` approves, but unstages the change first, so that the server refuses to commit.
    """

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def tool_call(
        self,
        session_id: str,
        tool_name: str,
        parameters: Mapping[str, Any],
        *,
        risk_level: str = "low",
        require_permission: bool = False,
        timeout: float = 300.0,
    ) -> AsyncIterator[FakeCall]:
        record: dict[str, Any] = {"tool": tool_name, "risk": risk_level, "permission": require_permission}
        self.calls.append(record)
        if require_permission:
            await self._decide(parameters)
        call = FakeCall()
        try:
            yield call
        except Exception as error:
            record["error"] = type(error).__name__
            raise
        record |= {"text": call.result["text"], "steps": call.steps}

    async def _decide(self, parameters: Mapping[str, Any]) -> None:
        if self.answer == "deny":
            decision = SimpleNamespace(outcome="denied", reason="not \x1b[31mtoday", resolved_by="alice")
            raise PermissionDenied(cast("Any", decision))
        if self.answer == "wait":
            print("WAITING", flush=True)
            await asyncio.Event().wait()
        if self.answer == "empty":
            subprocess.run(["git", "reset", "--quiet"], cwd=parameters["repo_path"], check=True)  # noqa: ASYNC221


async def child(answer: str, rounds: int) -> None:
    """Run the agent and print, as JSON, what it did and which server processes it has left behind."""
    import anyio

    servers: list[Any] = []
    open_process = anyio.open_process

    async def recording(*args: Any, **kwargs: Any) -> Any:
        servers.append(await open_process(*args, **kwargs))
        return servers[-1]

    anyio.open_process = recording
    notifier = FakeNotifier(answer)
    lines: list[str] = []
    failure = ""
    task = asyncio.ensure_future(demo.run_agent(cast("Any", notifier), "s1", say=lines.append, rounds=rounds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except (asyncio.CancelledError, Exception) as error:
        failure = f"{type(error).__name__}: {error}"
    report = {"calls": notifier.calls, "lines": lines, "failure": failure, "exits": [s.returncode for s in servers]}
    print(RESULT_LINE + json.dumps(report), flush=True)


@contextlib.contextmanager
def started(answer: str, tmp_path: Path, rounds: int = 1) -> Any:
    """Start the child with its temporary directory in ``tmp_path``; kill it if the test leaves it running."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, __file__, answer, str(rounds)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=DEADLINE)
    line = next(line for line in output.splitlines() if line.startswith(RESULT_LINE))
    return cast("dict[str, Any]", json.loads(line.removeprefix(RESULT_LINE)))


def assert_clean(report: dict[str, Any], tmp_path: Path) -> None:
    """The server has ended, and nothing is left in the temporary directory."""
    assert 1 == len(report["exits"])
    assert None is not report["exits"][0]
    assert [] == list(tmp_path.iterdir())


def test_agent_commits_when_approved(tmp_path: Path) -> None:
    """Reads run at once with low risk; the commit asks, runs when approved, and is then in the log."""
    with started("approve", tmp_path) as process:
        report = report_of(process)
    assert "" == report["failure"]
    assert [
        ("git_status", "low", False),
        ("git_diff_staged", "low", False),
        ("git_commit", "high", True),
        ("git_log", "low", False),
    ] == [(call["tool"], call["risk"], call["permission"]) for call in report["calls"]]
    assert all(call["steps"] == [0, 1] for call in report["calls"])
    assert "Changes committed successfully" in report["calls"][2]["text"]
    assert "Message: Add note 1" in report["calls"][3]["text"]
    assert report["lines"][-1].startswith("the commit was made, HEAD is now ")
    assert report["lines"][-1].endswith("(Add note 1)")
    assert_clean(report, tmp_path)


def test_agent_does_not_commit_when_denied(tmp_path: Path) -> None:
    """A denial is shown with its reason, escaped, and the log proves that nothing was committed."""
    with started("deny", tmp_path) as process:
        report = report_of(process)
    assert "" == report["failure"]
    assert "text" not in report["calls"][2]
    assert "Message: Start the repository" in report["calls"][3]["text"]
    assert report["lines"][-1].startswith("no commit was made, HEAD is still ")
    assert r'git_commit did not run: denied, "not \u001b[31mtoday"' in report["lines"]
    assert all(line.isprintable() for line in report["lines"])
    assert_clean(report, tmp_path)


def test_agent_proposes_one_commit_per_round(tmp_path: Path) -> None:
    """Each round stages a change of its own, so there is always something to commit."""
    with started("approve", tmp_path, rounds=2) as process:
        report = report_of(process)
    assert "" == report["failure"]
    commits = [call["text"] for call in report["calls"] if call["tool"] == "git_commit"]
    assert 2 == len(set(commits))


def test_agent_lets_a_failed_tool_fail_its_call(tmp_path: Path) -> None:
    """An answer with ``is_error`` raises inside the block, so the call is published as failed."""
    with started("empty", tmp_path) as process:
        report = report_of(process)
    assert "ToolFailed" == report["calls"][2]["error"]
    assert report["failure"].startswith("ToolFailed: ")
    assert "No changes staged" in report["failure"]
    assert_clean(report, tmp_path)


def test_agent_cleans_up_when_cancelled(tmp_path: Path) -> None:
    """SIGTERM while it waits for an answer: the server ends and the directory goes."""
    with started("wait", tmp_path) as process:
        assert "WAITING\n" == process.stdout.readline()
        assert [] != list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        report = report_of(process)
    assert report["failure"].startswith("CancelledError")
    assert_clean(report, tmp_path)


async def test_agent_says_when_git_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without git on PATH there is one clear line."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="git: install it"):
        await demo.run_agent(cast("Any", FakeNotifier("approve")), "s1", say=print)


async def test_agent_says_when_the_mcp_client_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `mcp` the message says what to install."""
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'agent-sse\[demo\]'"):
        await demo.run_agent(cast("Any", FakeNotifier("approve")), "s1", say=print)


async def test_agent_says_when_the_server_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mcp-server-git, too."""
    monkeypatch.setitem(sys.modules, "mcp", SimpleNamespace(Client=object))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'agent-sse\[demo\]'"):
        await demo.run_agent(cast("Any", FakeNotifier("approve")), "s1", say=print)


async def test_agent_refuses_a_directory_with_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The demo never commits in a repository that was there before."""
    monkeypatch.setattr(demo, "_check_packages", lambda: None)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="not empty"):
        await demo.run_agent(cast("Any", FakeNotifier("approve")), "s1", say=print, repository=tmp_path)


@pytest.mark.parametrize(("error", "status"), [(ConfigurationError("bad\x1b"), 2), (demo.ToolFailed("bad\x1b"), 1)])
def test_main_reports_an_error_in_one_line(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An expected failure is one escaped line and an exit status, never a traceback."""

    async def fail(options: object) -> None:
        raise error

    monkeypatch.setattr(demo, "_run", fail)
    assert status == demo.main(["--session", "s1"])
    assert "agent-sse demo: bad\\x1b\n" == capsys.readouterr().err


if __name__ == "__main__":
    asyncio.run(child(sys.argv[1], int(sys.argv[2])))
