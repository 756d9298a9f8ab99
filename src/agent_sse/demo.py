"""The agent of `agent-sse demo`: a real MCP server's tools, run on a throw-away git repository through the notifier.

Runs in a process of its own (``python -m agent_sse.demo``): `import mcp` pulls in sse-starlette, which patches
uvicorn's signal handling at import. So the service never runs this, and `mcp` is imported only inside functions.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agent_sse.errors import AgentSseError, ConfigurationError, PermissionDenied
from agent_sse.terminal import escape, summary

if TYPE_CHECKING:
    from mcp import Client

    from agent_sse.notifier import SimpleNotifier

Say = Callable[[str], None]

MISSING_PACKAGES = "the demo's agent needs an MCP client and mcp-server-git: pip install 'agent-sse[demo]'"
MISSING_GIT = "the demo's agent needs git: install it, or put it on PATH"
TOOLS = frozenset({"git_status", "git_diff_staged", "git_log", "git_commit"})
CALL_TIMEOUT = 60.0  # seconds; a tool call that takes longer is a server that hangs
MAX_RESULT = 20_000  # characters of a tool's answer that are published

# The user's own git configuration (hooks, signing, templates) has no part in the demo, nor has the repository of a git
# hook that this may run under.
_GIT_ENVIRONMENT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


class ToolFailed(AgentSseError):
    """The MCP server answered a call with ``is_error``; the message is the server's, escaped."""


async def run_agent(
    notifier: SimpleNotifier,
    session_id: str,
    *,
    say: Say,
    repository: Path | None = None,
    rounds: int = 1,
    permission_timeout: float = 300.0,
) -> None:
    """Run git tools of mcp-server-git: reads at once, a commit only when it is approved.

    ``say`` gets the progress, line by line, escaped. ``repository`` is a directory to make the repository in, which
    must be empty or missing and is kept; by default it is a temporary one, removed at the end. ``rounds`` is the number
    of commits proposed, ``permission_timeout`` how long each waits for an answer, in seconds.

    Raises :class:`ConfigurationError` when git or a package is missing, :class:`ToolFailed` when a tool fails, and what
    the notifier raises. Server process and temporary directory are gone when it returns, raises or is cancelled.
    """
    git = shutil.which("git")
    if git is None:
        raise ConfigurationError(MISSING_GIT)
    _check_packages()
    with _directory(repository) as directory:
        repo = await _make_repository(git, directory)
        say(f"made a git repository in {escape(str(directory))}")
        async with _mcp_server(directory) as client:
            agent = _Agent(client, notifier, session_id, repo, say, permission_timeout)
            await agent.check_tools()
            for number in range(1, rounds + 1):
                await agent.propose_commit(number)


@dataclass(frozen=True, slots=True)
class _Repository:
    """The throw-away repository, as git itself sees it: the demo's proof of what the tools did."""

    git: str
    directory: Path

    async def run(self, *arguments: str) -> str:
        """Run git in the repository and return what it prints. Raises :class:`ConfigurationError` when it fails."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        process = await asyncio.create_subprocess_exec(
            self.git,
            *arguments,
            cwd=self.directory,
            env=environment | _GIT_ENVIRONMENT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode("utf-8", "replace").strip()
        if process.returncode != 0:
            raise ConfigurationError(f"git {arguments[0]} failed: {summary(text, 300)}")
        return text

    async def head(self) -> str:
        """Return the commit that HEAD points to, as a full hash."""
        return await self.run("rev-parse", "HEAD")

    async def stage(self, number: int) -> None:
        """Change a file and stage the change."""
        with (self.directory / "notes.md").open("a", encoding="utf-8") as notes:
            notes.write(f"- note {number}, written by the agent\n")
        await self.run("add", "notes.md")


@dataclass(frozen=True, slots=True)
class _Agent:
    """Calls the server's tools, each inside ``notifier.tool_call``."""

    client: Client
    notifier: SimpleNotifier
    session_id: str
    repository: _Repository
    say: Say
    permission_timeout: float

    async def check_tools(self) -> None:
        """List the server's tools. Raises :class:`ConfigurationError` when one that is needed is missing."""
        names = {tool.name for tool in (await self.client.list_tools()).tools}
        self.say(f"mcp-server-git offers {len(names)} tools: {escape(', '.join(sorted(names)))}")
        if missing := TOOLS - names:
            raise ConfigurationError(f"this mcp-server-git has no {', '.join(sorted(missing))}: {MISSING_PACKAGES}")

    async def propose_commit(self, number: int) -> None:
        """Stage a change, look at it with two reads, and ask to commit it; then show whether the commit exists."""
        await self.repository.stage(number)
        await self.call("git_status", {})
        await self.call("git_diff_staged", {})
        before = await self.repository.head()
        self.say("git_commit needs permission: approve or deny it now")
        try:
            await self.call("git_commit", {"message": f"Add note {number}"}, risk_level="high", require_permission=True)
        except PermissionDenied as denied:
            reason = summary(denied.decision.reason or "no reason given")
            self.say(f"git_commit did not run: {escape(denied.decision.outcome)}, {reason}")
        history = await self.call("git_log", {"max_count": 1})
        after = await self.repository.head()
        subject = next((line for line in history.splitlines() if line.startswith("Message:")), "Message: ?")
        verdict = "no commit was made, HEAD is still" if after == before else "the commit was made, HEAD is now"
        self.say(f"{verdict} {after[:10]} ({escape(subject.removeprefix('Message: '))})")

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        *,
        risk_level: Literal["low", "high"] = "low",
        require_permission: bool = False,
    ) -> str:
        """Call one tool of the server and return its text. Raises :class:`ToolFailed`, :class:`PermissionDenied`."""
        parameters = {"repo_path": str(self.repository.directory), **arguments}
        async with self.notifier.tool_call(
            self.session_id,
            tool,
            parameters,
            risk_level=risk_level,
            require_permission=require_permission,
            timeout=self.permission_timeout,
        ) as call:
            await call.progress(0, total=1, message="asking mcp-server-git")
            answer = await self.client.call_tool(tool, parameters, read_timeout_seconds=CALL_TIMEOUT)
            text = "\n".join(part.text for part in answer.content if part.type == "text")
            if answer.is_error:
                raise ToolFailed(escape(text[:MAX_RESULT]) or "the tool failed without a message")
            await call.progress(1, total=1, message="answered")
            call.result = {"text": text[:MAX_RESULT]}
        self.say(f"{escape(tool)}: {summary(text)}")
        return text


def _check_packages() -> None:
    """Raise :class:`ConfigurationError` unless an `mcp` with the client of version 2 and the server are installed."""
    try:
        from mcp import Client  # noqa: F401  (only whether it is there)

        server = importlib.util.find_spec("mcp_server_git")
    except (ImportError, ValueError) as error:
        raise ConfigurationError(MISSING_PACKAGES) from error
    if server is None:
        raise ConfigurationError(MISSING_PACKAGES)


@contextmanager
def _directory(wanted: Path | None) -> Iterator[Path]:
    """Yield the directory for the repository: a temporary one, or the wanted one if nothing is in it."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="agent-sse-demo-", ignore_cleanup_errors=True) as name:
            yield Path(name).resolve()
        return
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        empty = next(wanted.iterdir(), None) is None
    except OSError as error:
        raise ConfigurationError(f"cannot use {escape(str(wanted))}: {error.strerror}") from error
    if not empty:
        # The demo commits: it must never do so in somebody's real repository.
        raise ConfigurationError(
            f"{escape(str(wanted))} is not empty: name a directory that is empty or does not exist"
        )
    yield wanted.resolve()


async def _make_repository(git: str, directory: Path) -> _Repository:
    """Make a repository with one commit and an author of its own."""
    repository = _Repository(git, directory)
    await repository.run("-c", "init.defaultBranch=main", "init", "--quiet", "--template=")
    await repository.run("config", "user.name", "Demo Agent")
    await repository.run("config", "user.email", "agent@example.invalid")
    (directory / "README.md").write_text("# A throw-away repository\n", encoding="utf-8")
    await repository.run("add", "README.md")
    await repository.run("commit", "--quiet", "--message", "Start the repository")
    return repository


@asynccontextmanager
async def _mcp_server(directory: Path) -> AsyncIterator[Client]:
    """Start mcp-server-git for ``directory`` and yield the connected client; the server is gone on leaving."""
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    server = StdioServerParameters(
        command=sys.executable,
        # -P: a file named like a module in the working directory must not be imported in its place.
        args=["-P", "-m", "mcp_server_git", "--repository", str(directory)],
        env=_GIT_ENVIRONMENT,
        cwd=directory,
    )
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        failure: Exception | None = None
        started = False
        try:
            async with Client(stdio_client(server, errlog=log), read_timeout_seconds=CALL_TIMEOUT) as client:
                started = True
                try:
                    yield client
                except Exception as error:
                    failure = error  # the client's task group would wrap it in an ExceptionGroup: carry it past that
        except Exception as error:
            if started:
                raise
            log.seek(0)
            reason = (log.read().strip().splitlines() or [str(error)])[-1]
            raise ConfigurationError(f"mcp-server-git did not start: {summary(reason, 300)}") from error
    if failure is not None:
        raise failure


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent_sse.demo", description="Run the demo's agent.")
    parser.add_argument("--session", required=True, help="session to publish to")
    parser.add_argument("--redis-url", default="", help="default: AGENT_SSE_REDIS_URL, which no process list shows")
    parser.add_argument("--prefix-key", default="", help="prefix of every Redis key; default: AGENT_SSE_KEY_PREFIX")
    parser.add_argument("--rounds", type=int, default=1, help="how many commits to propose (default: 1)")
    parser.add_argument("--permission-timeout", type=float, default=300.0, help="seconds to wait for an answer")
    parser.add_argument("--repository", type=Path, help="empty directory for the repository; default: a temporary one")
    return parser.parse_args(argv)


def _cancel_once(task: asyncio.Task[None]) -> None:
    """Cancel the task unless that was done before: a second cancellation would interrupt the clean-up."""
    if not task.cancelling():
        task.cancel()


async def _run(options: argparse.Namespace) -> None:
    """Run the agent; SIGTERM cancels it once, so that it withdraws its request and cleans up."""
    from agent_sse.notifier import SimpleNotifier

    task = asyncio.current_task()
    if task is not None and sys.platform != "win32":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel_once, task)
    prefix = {"key_prefix": options.prefix_key} if options.prefix_key else {}
    notifier = (
        SimpleNotifier.from_url(options.redis_url, **prefix) if options.redis_url else SimpleNotifier.from_env(**prefix)
    )
    async with notifier:
        await run_agent(
            notifier,
            options.session,
            say=lambda line: print(line, flush=True),
            repository=options.repository,
            rounds=options.rounds,
            permission_timeout=options.permission_timeout,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it is done; return the exit status: 0, 1 for a failure, 2 for a setting, 143 for SIGTERM."""
    options = _arguments(argv)
    try:
        asyncio.run(_run(options))
    except AgentSseError as error:
        print(f"agent-sse demo: {escape(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
