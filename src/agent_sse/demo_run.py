"""`agent-sse demo`: a service of its own, the demo's agent beside it, and how to follow and answer it.

The service and the agent are processes: the agent's `mcp` would patch uvicorn, and both must end in the right order.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent_sse.auth import encode_token, make_secret
from agent_sse.demo import MISSING_GIT, MISSING_PACKAGES
from agent_sse.errors import AgentSseError, ConfigurationError
from agent_sse.lines import FixedLines, InputLines, Lines
from agent_sse.notifier import SimpleNotifier
from agent_sse.routes import load_settings
from agent_sse.serve import check_address, page_url
from agent_sse.settings import Settings
from agent_sse.state_dir import socket_path, socket_url
from agent_sse.terminal import escape
from agent_sse.watch import Watch, answering, following, print_line
from agent_sse.watch_view import HINT, Event, data_of, text_of

SESSION = "demo"
OWNER = "demo"
PORT = 8000
TOKEN_SECONDS = 24 * 3600.0
START_SECONDS = 60.0
STOP_SECONDS = 15.0
ANSWER_SECONDS = 300.0
UNATTENDED_SECONDS = 60.0  # without a terminal nobody may be there to answer, and the run should still end
LISTENING = "Uvicorn running on "


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. ``answer`` is given to every request, ``timeout`` in seconds is for each."""

    port: int | None = None
    rounds: int = 1
    timeout: float | None = None
    once: bool = False
    answer: str | None = None


async def run(options: Options) -> int:
    """Run the demo until its agent is done, or until SIGINT, SIGTERM or SIGHUP; return the exit status.

    Raises :class:`ConfigurationError` when something is missing. Every process and file is gone when it returns.
    """
    _check_packages()
    attended = os.isatty(0) and options.answer is None
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if task is not None:
            loop.add_signal_handler(number, _cancel_once, task)
    lines: Lines = FixedLines(options.answer) if options.answer else InputLines()
    try:
        with _directory() as directory:
            settings = _settings(directory, options.port)
            async with _service(settings, directory):
                return await _Demo(settings, directory, options, lines, attended).run()
    except asyncio.CancelledError:
        print_line("\nThe demo has ended.")
        return 0  # Ctrl-C is the way to end it


def _cancel_once(task: asyncio.Task[int]) -> None:
    if not task.cancelling():  # a second Ctrl-C must not interrupt the clean-up
        task.cancel()


def _check_packages() -> None:
    # Found, not imported: the agent does that, and says what is wrong with them.
    if any(importlib.util.find_spec(name) is None for name in ("mcp", "mcp_server_git")):
        raise ConfigurationError(MISSING_PACKAGES)
    if shutil.which("git") is None:
        raise ConfigurationError(MISSING_GIT)


@contextmanager
def _directory() -> Iterator[Path]:
    """Yield a private directory for the state of this run; it is removed with what the embedded Valkey adds to it."""
    with tempfile.TemporaryDirectory(prefix="agent-sse-", ignore_cleanup_errors=True) as name:
        directory = Path(name).resolve()
        try:
            yield directory
        finally:
            outside = socket_path(directory).parent  # below /tmp, when the temporary directory's path is long
            if outside != directory:
                shutil.rmtree(outside, ignore_errors=True)


def _settings(directory: Path, port: int | None) -> Settings:
    """Return the settings of this run: of the user's, only where Redis is."""
    url = load_settings().redis_url
    if port is None:
        try:
            port = check_address("127.0.0.1", PORT)
        except ConfigurationError:
            port = 0
    port = check_address("127.0.0.1", port)
    prefix = f"agent_sse_demo_{directory.name.removeprefix('agent-sse-')}" if url else "agent_sse"
    plain = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    own = {
        "redis_url": url, "key_prefix": prefix, "state_dir": directory, "host": "127.0.0.1", "port": port,
        "jwt_secret": make_secret(), "jwt_audience": "agent-sse-demo", "heartbeat_interval": 5.0,
    }  # fmt: skip
    return load_settings(**{**plain, **own})


def _environment(settings: Settings) -> dict[str, str]:
    """Return a child's environment. Secrets travel in it, not in arguments, which every user can list."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_SSE_")}
    names = ("redis_url", "key_prefix", "state_dir", "jwt_secret", "jwt_audience", "heartbeat_interval")
    given = {f"AGENT_SSE_{name.upper()}": str(getattr(settings, name)) for name in names}
    return {**mine, **given, "PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def _child(
    *arguments: str, environment: Mapping[str, str], directory: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``python -P -m …``; leaving ends it. Its input is a pipe, whose end tells it that this process has gone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", *arguments, env=environment, cwd=directory, limit=2**20,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for this process, which ends the others in their order
    )  # fmt: skip
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def _service(settings: Settings, directory: Path) -> AsyncIterator[None]:
    """Run `agent-sse serve`; what it runs beside is cancelled when it ends by itself."""
    address = ("--host", settings.host, "--port", str(settings.port))
    async with _child(
        "agent_sse", "serve", *address, "--end-with-input", environment=_environment(settings), directory=directory
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        last: deque[str] = deque(maxlen=20)
        async with asyncio.timeout(START_SECONDS):
            while LISTENING not in (line := (await process.stdout.readline()).decode("utf-8", "replace")):
                if not line:
                    raise AgentSseError(f"the service did not start: {' / '.join(last) or 'it said nothing'}")
                last.append(line.strip().removeprefix("agent-sse: "))
        user = asyncio.current_task()
        watching = asyncio.create_task(_follow(process.stdout, last))
        ending = False
        watching.add_done_callback(lambda _: None if ending or user is None else user.cancel())
        try:
            yield
        except asyncio.CancelledError:
            if watching.done() and user is not None:
                user.uncancel()
                watching.result()  # raises why the service ended
            raise
        finally:
            ending = True
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _follow(output: asyncio.StreamReader, last: deque[str]) -> None:
    while line := await output.readline():
        last.append(line.decode("utf-8", "replace").strip())
    raise AgentSseError(f"the service has ended: {' / '.join(list(last)[-3:])}")


class _Demo:
    """One run with a service that listens."""

    def __init__(self, settings: Settings, directory: Path, options: Options, lines: Lines, attended: bool) -> None:
        self._settings = settings
        self._directory = directory
        self._options = options
        self._lines = lines
        self._attended = attended
        self._url = settings.redis_url or socket_url(directory)
        self._idle = asyncio.Event()  # set while no agent runs

    async def run(self) -> int:
        async with SimpleNotifier.from_url(self._url, key_prefix=self._settings.key_prefix) as notifier:
            await notifier.open_session(SESSION, OWNER)
            for line in self._introduction():
                print_line(line)
            try:
                async with following(self._settings, self._url, SESSION, self) as watch:
                    return await self._rounds(watch)
            finally:
                if self._settings.redis_url:
                    await notifier.close_session(SESSION)  # nothing of the demo stays in the user's Redis

    async def _rounds(self, watch: Watch) -> int:
        while True:
            answers = asyncio.create_task(answering(watch, self._lines))
            try:
                status = await self._run_agent()
            finally:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
            if status != 0 or self._options.once or not self._attended:
                return status
            print_line("\nThe service is still there. Enter: the agent works again · Ctrl-C: the end")
            if await self._lines.next() is None:
                await asyncio.get_running_loop().create_future()

    async def _run_agent(self) -> int:
        timeout = self._options.timeout or (ANSWER_SECONDS if self._attended else UNATTENDED_SECONDS)
        rounds = str(self._options.rounds)
        arguments = ("--session", SESSION, "--rounds", rounds, "--permission-timeout", str(timeout))
        environment = {**_environment(self._settings), "AGENT_SSE_REDIS_URL": self._url}
        async with _child(
            "agent_sse.demo", *arguments, environment=environment, directory=self._directory
        ) as process:  # fmt: skip
            assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
            while line := await process.stdout.readline():
                print_line("  " + escape(line.decode("utf-8", "replace").rstrip("\n")))
            return 1 if await process.wait() else 0

    # What the watch shows: only what is asked, and how it ended. The agent tells the rest.

    def show(self, event: Event) -> None:
        data = data_of(event)
        if event.get("type") == "permission_request":
            print_line(f"\n  PERMISSION  {text_of(data.get('tool_name'))}  risk {text_of(data.get('risk_level'))}")
            print_line(f"  {text_of(data.get('parameters'))}")
            if self._attended:
                print_line(f"  {HINT} (or answer by page, curl or watch)")
        elif event.get("type") == "permission_cleared" and data.get("request_id") is not None:
            print_line(f"  {text_of(data.get('outcome'))} by {text_of(data.get('resolved_by'))}\n")

    def say(self, line: str) -> None:
        print_line(f"  {escape(line)}")

    def _introduction(self) -> list[str]:
        settings = self._settings
        token = encode_token(settings, subject=OWNER, sessions=[SESSION], ttl_seconds=TOKEN_SECONDS)
        api = f"http://{settings.host}:{settings.port}{settings.url_prefix}"
        header = f"-H 'Authorization: Bearer {token}'"
        place = {"AGENT_SSE_STATE_DIR": str(settings.state_dir)}
        if settings.redis_url:
            place = {"AGENT_SSE_KEY_PREFIX": settings.key_prefix}
        environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in place.items())
        return [
            "An agent is about to run a real MCP server's git tools on a throw-away repository.",
            "It reads as it likes; to commit, it needs your permission.",
            "",
            "Open the page:",
            f"  {page_url(settings, SESSION, token)}",
            "Or follow the stream in another terminal:",
            f"  curl -N {header} {api}/events/{SESSION}",
            "and approve (or deny, with false):",
            f'  curl {header} -H \'Content-Type: application/json\' -d \'{{"approved": true, "reason": ""}}\' '
            f"{api}/permission-response/{SESSION}",
            "Or do both with:",
            f"  {environment} {_command()} watch {SESSION}",
            "",
        ]


def _command() -> str:
    """Return the `agent-sse` command as another terminal finds it."""
    script = Path(sys.executable).parent / "agent-sse"
    found = shutil.which("agent-sse")
    if found is not None and (not script.exists() or Path(found).resolve() == script.resolve()):
        return "agent-sse"
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m agent_sse"
