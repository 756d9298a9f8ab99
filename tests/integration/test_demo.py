"""`agent-sse demo` end to end: its own service, the real mcp-server-git, and the commands that it prints, as pasted."""

from __future__ import annotations

import asyncio
import contextlib
import getopt
import os
import pty
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from harness import DEADLINE, Valkey, processes_with, until


def pasted(client: httpx.AsyncClient, line: str) -> httpx.Request:
    """Return the request that a printed curl line makes, read as a shell and curl read it."""
    command, *words = shlex.split(line)
    assert "curl" == command
    options, (url,) = getopt.getopt(words, "NH:d:")
    headers = [tuple(value.split(": ", 1)) for option, value in options if option == "-H"]
    bodies = [value for option, value in options if option == "-d"]
    return client.build_request("POST" if bodies else "GET", url, headers=headers, content="&".join(bodies) or None)


class Demo:
    """A running demo and what it has printed. ``temporary`` holds all its files."""

    def __init__(self, process: asyncio.subprocess.Process, temporary: Path, environment: dict[str, str]) -> None:
        self.process = process
        self.temporary = temporary
        self.environment = environment
        self.output = ""
        self.terminal: int | None = None
        self._changed = asyncio.Event()

    def take(self, data: bytes) -> None:
        self.output += data.decode(errors="replace")
        self._changed.set()

    async def read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(4096):
            self.take(data)

    async def see(self, pattern: str) -> re.Match[str]:
        """Wait for a pattern in the output."""
        async with asyncio.timeout(2 * DEADLINE):
            while not (found := re.search(pattern, self.output, re.MULTILINE)):
                assert self.process.returncode is None, f"the demo has ended:\n{self.output}"
                self._changed.clear()
                await self._changed.wait()
        return found

    @asynccontextmanager
    async def paste(self, line: str) -> AsyncIterator[None]:
        """Paste a line into another terminal's shell, and close that terminal at the end with what runs in it."""
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", line, env=self.environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            async with asyncio.timeout(DEADLINE):
                await process.communicate()

    async def end(self, number: int | None = None) -> int:
        """Wait for its end, after a signal if one is given; nothing may be left then. Return the exit status."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(2 * DEADLINE):
            status = await self.process.wait()
        assert [] == list(self.temporary.iterdir())
        assert {} == self.left()
        return status

    def left(self) -> dict[int, str]:
        """The processes that have this demo's temporary directory in their environment or command, by their ids."""
        return processes_with(str(self.temporary))


@asynccontextmanager
async def demo(folder: Path, *arguments: str, terminal: bool = False, **settings: str) -> AsyncIterator[Demo]:
    """Run the demo, with pipes or on a pseudo-terminal."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_SSE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**mine, "PATH": path, **settings}
    temporary = folder / "t"
    temporary.mkdir()
    master, slave = pty.openpty() if terminal else (None, None)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_sse", "demo", "--port", "0", *arguments, cwd="/",
        env={**environment, "TMPDIR": str(temporary)}, stdin=asyncio.subprocess.DEVNULL if slave is None else slave,
        stdout=asyncio.subprocess.PIPE if slave is None else slave, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    running = Demo(process, temporary, environment)
    running.terminal = master
    reader = None
    if master is None or slave is None:
        reader = asyncio.create_task(running.read())
    else:
        os.close(slave)
        asyncio.get_running_loop().add_reader(master, lambda: _take_from(master, running))
    try:
        await running.see("^Open the page:")
        assert 2 <= len(running.left()), "the demo and its service, so that what is left later would be seen"
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(DEADLINE):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if reader is not None:
            await reader
        if master is not None:
            asyncio.get_running_loop().remove_reader(master)
            os.close(master)


def _take_from(terminal: int, running: Demo) -> None:
    try:
        running.take(os.read(terminal, 65536))
    except OSError:
        asyncio.get_running_loop().remove_reader(terminal)


async def test_demo_commits_nothing_when_denied(folder: Path) -> None:
    """Without a terminal it runs one round and ends; after a no, git itself says that nothing was committed."""
    async with demo(folder, "--answer", "n") as running:
        await running.see(r"git_commit did not run: denied")
        await running.see(r"no commit was made, HEAD is still \w+ \(Start the repository\)")
        assert 0 == await running.end()
    assert "Traceback" not in running.output


async def test_demo_ends_when_nobody_answers(folder: Path) -> None:
    """Without a terminal and without an answer the request expires, nothing is committed, and the run ends."""
    async with demo(folder, "--timeout", "1") as running:
        await running.see("git_commit did not run: expired")
        assert 0 == await running.end()
    assert "no commit was made" in running.output


async def test_demo_prints_lines_that_work_when_pasted(folder: Path) -> None:
    """The curl lines follow the stream and approve, the watch denies; no token stands in a query."""
    async with httpx.AsyncClient(timeout=2 * DEADLINE) as client, demo(folder, "--rounds", "2") as running:
        follow = pasted(client, (await running.see(r"^ +(curl -N .*/events/demo)$"))[1])
        async with contextlib.aclosing(await client.send(follow, stream=True)) as stream:
            assert 200 == stream.status_code
            async for line in stream.aiter_lines():
                if '"type":"permission_request"' in line:
                    break
            else:
                raise AssertionError("the stream ended before it asked")
            approve = pasted(client, (await running.see(r"^ +(curl -H .*/permission-response/demo)$"))[1])
            answer = await client.send(approve)
            assert (200, True) == (answer.status_code, answer.json()["success"]), answer.text
            await running.see(r"the commit was made")
            watch = (await running.see(r"^ +(AGENT_SSE_.* watch demo)$"))[1]
            async with running.paste(f"echo n no more | {watch}"):
                await running.see("git_commit did not run: denied, .no more")
            assert 0 == await running.end()
    assert "?token=" not in running.output
    assert re.search(r"^ +http://127\.0\.0\.1:\d+/#session=demo&token=\S+$", running.output, re.MULTILINE)


async def test_demo_leaves_nothing_behind_when_stopped(folder: Path) -> None:
    """Stopped while it waits for an answer: service, Valkey, agent, MCP server and files are gone, status 0."""
    async with demo(folder) as running:
        await running.see("PERMISSION +git_commit")
        assert 0 == await running.end(signal.SIGTERM)
    assert "Traceback" not in running.output


async def test_demo_service_ends_with_a_killed_demo(folder: Path) -> None:
    """A demo that is killed leaves no service and no Valkey running."""
    async with demo(folder) as running:
        await running.see("PERMISSION +git_commit")
        running.process.kill()
        await until(
            lambda: not any("agent_sse serve" in line or "--unixsocket" in line for line in running.left().values()),
            what="their end",
        )
        # The agent gives up when it has not reached Redis for long enough: that is not waited for here.
        for pid in running.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        await until(lambda: not running.left(), what="the agent's end")


async def test_demo_in_a_terminal_asks_and_goes_on(folder: Path) -> None:
    """On a terminal y and Enter approves; then it keeps serving, Enter runs the agent again, Ctrl-C ends it."""
    async with demo(folder, terminal=True) as running:
        assert running.terminal is not None
        terminal = running.terminal
        await running.see("y \\+ Enter approves")

        def answered() -> bool:
            os.write(terminal, b"y\n")
            return "approved by terminal:" in running.output

        await until(answered, what="the answer")
        await running.see("the commit was made")
        await running.see("Enter: the agent works again")
        before = running.output.count("PERMISSION")

        def asked_again() -> bool:
            os.write(terminal, b"\n")
            return running.output.count("PERMISSION") > before

        await until(asked_again, what="another round")
        assert 0 == await running.end(signal.SIGINT)
        await until(lambda: "The demo has ended" in running.output, what="its last words")


async def test_demo_uses_a_redis_that_is_set_and_leaves_it_clean(folder: Path, valkey: Valkey) -> None:
    """With AGENT_SSE_REDIS_URL the demo runs there, under a prefix of its own, and the user's keys stay as they are."""
    async with valkey.client() as client:
        await client.set("agent_sse:mine", "1")
        async with demo(folder, "--answer", "y", AGENT_SSE_REDIS_URL=valkey.url) as running:
            await running.see(r"the commit was made, HEAD is now \w+ \(Add note 1\)")
            assert 0 == await running.end()
        keys = {key.decode() for key in await client.keys()}
        assert valkey.url not in running.output
    assert "agent_sse:mine" in keys
    assert set() == {key for key in keys if not key.startswith(("agent_sse:mine", "agent_sse_demo_"))}


async def test_demo_says_what_is_missing(folder: Path) -> None:
    """Without git, or without the packages of the extra, there is one line and status 2."""
    hidden = folder / "hidden"
    hidden.mkdir()
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *rest: None if name.startswith('mcp') else find(name, *rest); "
        "from agent_sse.cli import main; sys.argv = ['agent-sse', 'demo']; main()"
    )
    for arguments, path, words in (
        (("-c", code), os.environ["PATH"], r"agent-sse\[demo\]"),
        (("-m", "agent_sse", "demo"), str(hidden), "git"),
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env={**os.environ, "PATH": path}, cwd="/", stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        assert (2, b"") == (process.returncode, output)
        assert re.fullmatch(rf"agent-sse: [^\n]*{words}[^\n]*\n", errors.decode()), errors
