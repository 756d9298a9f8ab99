"""`agent-sse watch` as its users run it: a real process on a real Valkey, with pipes and on a pseudo-terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shlex
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from agent_sse.decisions import PermissionDecision
from agent_sse.errors import ToolCallCancelled
from harness import DEADLINE, Valkey, processes_with, until

FOREIGN = ("AGENT_SSE_", "COLUMNS", "LINES", "NO_COLOR", "VISUAL", "EDITOR")
HOSTILE = "rm\x1b[2J\u202e[bold red]x[/]\u2028\nid"


def environment_of(**settings: str) -> dict[str, str]:
    """The environment of a command: this process's, without its settings, and with those given."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**mine, **{f"AGENT_SSE_{name.upper()}": value for name, value in settings.items()}}


class Watcher:
    """`agent-sse watch` with pipes, or on a pseudo-terminal."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int | None) -> None:
        self.process = process
        self.output = ""
        self._terminal = terminal
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read()) if terminal is None else None
        if terminal is not None:
            asyncio.get_running_loop().add_reader(terminal, self._read_terminal)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(4096):
            self._take(data)

    def _read_terminal(self) -> None:
        assert self._terminal is not None
        try:
            self._take(os.read(self._terminal, 65536))
        except OSError:  # the other end was closed
            asyncio.get_running_loop().remove_reader(self._terminal)

    def _take(self, data: bytes) -> None:
        self.output += data.decode(errors="replace")
        self._changed.set()

    async def see(self, *words: str) -> None:
        """Wait until all words were in the output."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not all(word in self.output for word in words):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"{words} did not appear in:\n{self.output[-5000:]}")

    @property
    def screen(self) -> str:
        """The last picture that came, without colours; it may not have come whole."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.output.rpartition("\x1b[H")[2])

    async def show(self, *words: str) -> None:
        """Wait until all words are on the screen at once."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not all(word in self.screen for word in words):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"{words} are not on the screen:\n{self.screen}")

    def resize(self, columns: int, lines: int) -> None:
        assert self._terminal is not None
        termios.tcsetwinsize(self._terminal, (lines, columns))

    def modes(self) -> list[Any]:
        assert self._terminal is not None
        return termios.tcgetattr(self._terminal)[:4]

    async def answer(self, line: str, done: Callable[[], Any]) -> None:
        """Answer until it is done: again whenever the request has only just appeared."""
        typed = len(self.output)

        def answered() -> Any:
            return done() or "just appeared" in self.output[typed:]

        while not done():
            typed = len(self.output)
            self.type(line + "\n")
            await until(answered, what=f"{line!r} taken")

    def type(self, text: str) -> None:
        if self._terminal is not None:
            os.write(self._terminal, text.encode())
        else:
            assert self.process.stdin is not None
            self.process.stdin.write(text.encode())

    async def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return await self.end()

    async def end(self) -> int:
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
            if self._task is not None:
                await self._task
        return status


CONTROLLED = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "agent_sse", "watch", sys.argv[1]])
"""  # as a shell starts it: Ctrl-C and new sizes come as signals


@asynccontextmanager
async def watching(
    session: str, *, terminal: tuple[int, int] | None = None, environment: Mapping[str, str] | None = None,
    **settings: str,
) -> AsyncIterator[Watcher]:  # fmt: skip
    """Run `agent-sse watch`, on a terminal of so many columns and lines or with pipes."""
    master, slave = pty.openpty() if terminal is not None else (None, None)
    pipe = asyncio.subprocess.PIPE if slave is None else slave
    if master is not None and terminal is not None:
        termios.tcsetwinsize(master, terminal[::-1])
    start = ("-m", "agent_sse", "watch") if slave is None else ("-c", CONTROLLED)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *start, session, cwd="/", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT,
        env={**environment_of(**settings), "TERM": "xterm-256color", **(environment or {})},
    )  # fmt: skip
    if slave is not None:
        os.close(slave)
    watcher = Watcher(process, master)
    try:
        yield watcher
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if master is not None:
            asyncio.get_running_loop().remove_reader(master)
            os.close(master)


# -- watch ------------------------------------------------------------------------------------------------------------


async def test_watch_prints_events_escaped_and_answers_from_standard_input(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """Through pipes: a line per event, hostile text in escapes, each line of input answers one request in turn."""
    async with watching("s1", redis_url=valkey.url) as watcher:
        await watcher.see("permission_cleared")  # the snapshot's last event
        await notifier.tool_status("s1", "search", "executing", parameters={"q": HOSTILE}, risk_level="medium")
        await notifier.error("s1", HOSTILE)
        watcher.type("y\n")  # waits for the next request
        yes = await notifier.request_permission("s1", "write", {"text": HOSTILE}, timeout=DEADLINE)
        watcher.type("n not today\n")
        no = await notifier.request_permission("s1", "write", {"text": "b"}, timeout=DEADLINE)
        await watcher.see("denied: write")
        assert 0 == await watcher.stop()
    assert (True, "approved", "") == (yes.approved, yes.outcome, yes.reason)
    assert (False, "denied", "not today") == (no.approved, no.outcome, no.reason)
    assert yes.resolved_by is not None
    assert yes.resolved_by.startswith("terminal:")
    assert {"\n"} == {char for char in watcher.output if not char.isprintable()}
    assert "tool_status search executing medium" in watcher.output
    assert r"rm\x1b[2J\u202e[bold red]x[/]\u2028\x0aid" in watcher.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_watch_shows_the_whole_request_in_a_pipe(valkey: Valkey, notifier: SimpleNotifier, number: int) -> None:
    """Nothing of what is to be approved is cut off, however long it is; and a signal ends the watch with status 0."""
    async with watching("s1", redis_url=valkey.url) as watcher:
        asking = asyncio.create_task(notifier.request_permission("s1", "run", {"script": "x" * 20_000 + "END"}))
        await watcher.see("x" * 20_000 + "END")
        assert 0 == await watcher.stop(number)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_watch_loses_nothing_when_redis_restarts(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Events from before, during and after a restart are all shown, once."""
    async with watching("s1", redis_url=valkey.url) as watcher:
        await watcher.see("permission_cleared")
        await notifier.error("s1", "number-1.")
        await watcher.see("number-1.")
        await valkey.restart()  # in order: a killed one may not have written what it acknowledged last
        for number in range(2, 5):
            await notifier.error("s1", f"number-{number}.")
        await watcher.see("number-4.")
        assert 0 == await watcher.stop()
    assert [1, 2, 3, 4] == [int(number) for number in re.findall(r"number-(\d)\.", watcher.output)]


async def test_watch_ends_when_the_session_is_closed(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """It says so, and its status is 0."""
    await notifier.open_session("s1", owner="alice")
    async with watching("s1", redis_url=valkey.url) as watcher:
        await watcher.see("permission_cleared")
        await notifier.close_session("s1")
        await watcher.see("session_closed")
        assert 0 == await watcher.end()


async def test_watch_ends_quietly_when_nobody_reads_it(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """`agent-sse watch s1 | head -1` is no error."""
    ours, theirs = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agent_sse", "watch", "s1", env=environment_of(redis_url=valkey.url), cwd="/",
        stdin=asyncio.subprocess.DEVNULL, stdout=theirs, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb")
    )
    try:
        async with asyncio.timeout(DEADLINE):
            assert b"result_cleared" in await reader.readline()
            pipe.close()

            async def more() -> None:
                while True:
                    await notifier.error("s1", "one more")

            talking = asyncio.create_task(more())
            _, errors = await process.communicate()
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
        assert (0, b"") == (process.returncode, errors)
    finally:
        pipe.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


# -- on a terminal ----------------------------------------------------------------------------------------------------

SIZE = (120, 40)


async def test_watch_on_a_terminal_shows_a_table_and_answers(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """On a terminal: calls with status and progress, the request with its parameters; y and Enter approves."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:
        await watcher.show("live", "0 of 0 calls running")
        modes = watcher.modes()
        await notifier.tool_status(
            "s1", "search", "executing", parameters={"q": HOSTILE}, details={"progress": {"progress": 1, "total": 3}}
        )
        await watcher.show("search", "executing", "1/3", r"rm\u001b[2J\u202e[bold red]x[/]", "1 of 1 call running")
        asking = asyncio.create_task(notifier.request_permission("s1", "write", {"file": HOSTILE}, "critical"))
        await watcher.show("Permission 1 of 1", "critical", '"file": "rm', " left", "approves")
        await watcher.answer("q\x7f\x1b[Ay", asking.done)
        decision = await asking
        await watcher.show("approved: write")
        assert 0 == await watcher.stop()
        await until(lambda: "approved: write" in watcher.output.rpartition("\x1b[?1049l")[2], what="the last picture")
        assert modes[3] != watcher.modes()[3]  # lines and their echo are back
    assert (True, "") == (decision.approved, decision.reason)
    assert watcher.output.count("\x1b[?1049h") == watcher.output.count("\x1b[?1049l") == 1  # the screen is given back


async def test_watch_draws_progress_and_tells_durations(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A bar grows with the progress, one without a total wanders, and what has ended says how long it took, and how."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:
        step: dict[str, Any] = {"progress": 9, "total": 12, "message": "reading"}
        await notifier.tool_status("s1", "copy", "executing", tool_call_id="c", details={"progress": step})
        await notifier.tool_status("s1", "wait", "executing", tool_call_id="w", details={"parent_tool_call_id": "c"})
        await watcher.show("9/12 reading", "└ wait")
        rows = {name: next(line for line in watcher.screen.split("\n") if name in line) for name in ("copy", "wait")}
        assert 9 == rows["copy"].partition("╺")[0].count("━")
        assert (4, 8) == (rows["wait"].count("━"), rows["wait"].count("─"))
        await notifier.tool_status("s1", "copy", "completed", tool_call_id="c")
        await notifier.tool_result("s1", "copy", {"files": 12}, success=True, tool_call_id="c", duration_ms=75_300)
        await notifier.tool_status("s1", "wait", "failed", tool_call_id="w")
        await notifier.tool_result(
            "s1", "wait", None, success=False, tool_call_id="w", duration_ms=4200, error="it broke"
        )
        await watcher.show("1:15", '{"files": 12}', "4.2 s", "it broke", "0 of 2 calls running")
        assert "━" not in watcher.screen


async def test_watch_remembers_answers_for_the_session(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """y-session is for the same parameters, n-tool for the whole tool; what is critical takes neither."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:

        def ask(tool: str, number: int, risk: str = "high") -> asyncio.Task[PermissionDecision]:
            return asyncio.create_task(notifier.request_permission("s1", tool, {"n": number}, risk))

        first = ask("write", 1)
        await watcher.show("write", "y-session")
        await watcher.answer("y-session it is mine", first.done)
        assert "grant:" in str((await ask("write", 1)).resolved_by)
        second = ask("write", 2)
        await watcher.show('"n": 2')
        await watcher.answer("N-Tool", second.done)
        third = await ask("write", 3)
        assert (False, "denied") == (third.approved, third.outcome)
        critical = ask("erase", 1, "critical")
        await watcher.show("erase", "Permission 1 of 1")
        assert "y-session" not in watcher.screen
        await watcher.answer("y-tool", lambda: "this is asked each time" in watcher.screen)
        assert not critical.done()
        await watcher.answer("n not that", critical.done)
    assert (True, "it is mine") == ((await first).approved, (await first).reason)
    assert (False, "not that") == ((await critical).approved, (await critical).reason)


EDITOR = """
import json, os, signal, sys
path, notes, change = sys.argv[3], sys.argv[1], json.loads(sys.argv[2])
mode = [oct(os.stat(name).st_mode & 0o777) for name in (path, os.path.dirname(path))]
with open(path) as file:
    text = file.read()
with open(path, "w") as file:
    json.dump({**json.loads(text), **change}, file)
with open(notes, "w") as file:
    json.dump({"mode": mode, "text": text, "path": path}, file)
"""


def exists(*parts: str) -> bool:
    return Path(*parts).exists()


def editor_in(folder: Path, change: dict[str, Any]) -> dict[str, str]:
    """An environment whose editor changes the parameters so, and writes down what it saw in `notes`."""
    (folder / "editor.py").write_text(EDITOR)
    words = (sys.executable, str(folder / "editor.py"), str(folder / "notes"), json.dumps(change))
    return {"EDITOR": shlex.join(words)}


async def test_watch_approves_edited_parameters(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> None:
    """edit opens a private file in the editor and shows the difference; y runs the tool with it; no file is left."""
    environment = editor_in(folder, {"file": "b.py"})
    asked = {"file": "a.py", "text": "x\u202e\x1b[2J", "n": 2**60 + 1, "nothing": None}
    async with watching("s1", terminal=SIZE, environment=environment, redis_url=valkey.url) as watcher:
        asking = asyncio.create_task(notifier.request_permission("s1", "write", asked, "high", editable=True))
        await watcher.show("Permission 1 of 1", "edit")
        watcher.type("edit\n")
        await watcher.show("edited by you", '-  "file": "a.py"', '+  "file": "b.py"', f"{2**60 + 1}")
        await watcher.answer("y better so", asking.done)
        decision = await asking
    assert (True, True, "better so") == (decision.approved, decision.edited, decision.reason)
    assert {**asked, "file": "b.py"} == decision.parameters
    seen = json.loads((folder / "notes").read_text())
    assert ["0o600", "0o700"] == seen["mode"]
    assert asked == json.loads(seen["text"])
    assert {"\n"} == {char for char in seen["text"] if not char.isprintable()}
    assert not exists(*Path(seen["path"]).parts[:-1])


async def test_watch_shows_why_an_edit_is_refused(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> None:
    """What the service refuses leaves the request open, and says why; a dropped edit is not sent."""
    environment = editor_in(folder, {"count": "many"})
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}}
    async with watching("s1", terminal=SIZE, environment=environment, redis_url=valkey.url) as watcher:
        asking = asyncio.create_task(
            notifier.request_permission("s1", "write", {"count": 1}, "high", editable=True, schema=schema)
        )
        await watcher.show("Permission 1 of 1")
        watcher.type("edit\n")
        await watcher.show("edited by you")
        await watcher.answer("y", lambda: "not approved: parameters_patch" in watcher.screen)
        assert not asking.done()
        watcher.type("drop\n")
        await until(lambda: "edited by you" not in watcher.screen and '"count": 1' in watcher.screen)
        await watcher.answer("y", asking.done)
    assert ({"count": 1}, False) == ((await asking).parameters, (await asking).edited)


async def test_watch_leaves_interrupts_to_the_editor(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> None:
    """Ctrl-C in the editor ends the editor; the watch goes on, with its screen, and nothing is edited."""
    (folder / "editor.py").write_text("print('EDITING', flush=True)\nimport time\ntime.sleep(600)")
    environment = {"EDITOR": shlex.join([sys.executable, str(folder / "editor.py")])}
    async with watching("s1", terminal=SIZE, environment=environment, redis_url=valkey.url) as watcher:
        asking = asyncio.create_task(notifier.request_permission("s1", "write", {"a": 1}, editable=True))
        await watcher.show("Permission 1 of 1")
        watcher.type("edit\n")
        await watcher.see("EDITING")
        watcher.type("\x03")
        await watcher.show("not edited: the editor ended with status", "Permission 1 of 1")
        await watcher.answer("n", asking.done)
    assert not (await asking).approved


async def test_watch_cancels_a_call(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """cancel with a call's number stops the call, and tells its agent the reason."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:

        async def work() -> None:
            async with notifier.tool_call("s1", "crawl", {}) as call:
                await call.progress(1)
                await asyncio.get_running_loop().create_future()

        working = asyncio.create_task(work())
        await watcher.show("crawl", "executing")
        watcher.type("cancel 7\n")
        await watcher.show("there is no call 7")
        watcher.type("cancel 1 enough of it\n")
        with pytest.raises(ToolCallCancelled) as cancelled:
            await working
        await watcher.show("cancelled", "its agent is told to stop it")
    assert "enough of it" == cancelled.value.reason


async def test_watch_follows_the_size_of_its_terminal(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A picture fits its terminal when that becomes narrow, without colours too."""
    async with watching("s1", terminal=SIZE, environment={"NO_COLOR": "1"}, redis_url=valkey.url) as watcher:
        await notifier.tool_status("s1", "search", "waiting_permission", parameters={"q": "x" * 300})
        asking = asyncio.create_task(notifier.request_permission("s1", "write", {"file": "a" * 90 + "END"}, "high"))
        await watcher.show("Permission 1 of 1", "waiting_permission")
        watcher.resize(60, 20)
        await watcher.show("waiting ", "END", "y/n [reason] · y-session · y-tool · cancel N · quit")
        lines = [line.rstrip("\r") for line in watcher.screen.split("\n")]
        assert (20, 60) == (len(lines), max(map(len, lines)))
        assert not re.search(r"\x1b\[[0-9;]*(3|4|9)[0-7](;|m)", watcher.output)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_watch_takes_no_approval_where_it_does_not_fit(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """In a terminal that is too small y and edit are not taken, whatever is typed meanwhile; in a larger one y is."""
    lying = {"COLUMNS": "100", "LINES": "50"}  # as a shell may export them: the size that another terminal had
    async with watching("s1", terminal=(60, 9), environment=lying, redis_url=valkey.url) as watcher:
        asking = asyncio.create_task(notifier.request_permission("s1", "write", {"n": 1}, "high", editable=True))
        await watcher.show("make the terminal larger to answer", ">")
        await watcher.answer("y", lambda: "n alone denies" in watcher.screen)
        watcher.resize(10, 3)
        await watcher.show("make the t", ">")
        watcher.type("y\ny\nedit\n")
        watcher.resize(60, 10)
        await watcher.show("Permission 1 of 1", "risk high", "write", "NOT SHOWN: ", "> ")
        assert not asking.done()
        await watcher.answer("y", lambda: "lines not seen: " in watcher.screen)
        await watcher.answer("y", asking.done)
    assert (await asking).approved


@pytest.mark.parametrize("ending", ["\x03", "quit\n"])
async def test_watch_gives_the_terminal_back(valkey: Valkey, ending: str) -> None:
    """Ctrl-C and quit end it with status 0; modes, screen and cursor are as they were."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:
        before = watcher.modes()
        await watcher.show("live")
        during = watcher.modes()
        watcher.type(ending)
        assert 0 == await watcher.end()
        assert (True, before) == (before != during, watcher.modes())
        await watcher.see("\x1b[?1049l", "\x1b[?25h")


async def test_watch_gives_the_terminal_back_while_it_is_suspended(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Ctrl-Z leaves the terminal as it was found; when it goes on, the watch has it again, with what came meanwhile."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:
        before = watcher.modes()
        await watcher.show("live")
        watcher.type("\x1a")
        stat = Path(f"/proc/{watcher.process.pid}/stat")
        await until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", what="stop")
        assert before == watcher.modes()
        await watcher.see("\x1b[?1049l", "\x1b[?25h")
        await notifier.tool_status("s1", "meanwhile", "executing")
        watcher.process.send_signal(signal.SIGCONT)
        await watcher.show("meanwhile")
        assert before != watcher.modes()
        assert 0 == await watcher.stop()
        assert before == watcher.modes()


async def test_watch_ends_with_its_editor(valkey: Valkey, notifier: SimpleNotifier, folder: Path) -> None:
    """A session that is closed while the user edits ends the editor, and leaves neither file nor a changed terminal."""
    (folder / "editor.py").write_text(
        "import os, sys, time\nprint('EDITING:' + sys.argv[1], flush=True)\ntime.sleep(600)"
    )
    environment = {"EDITOR": shlex.join([sys.executable, str(folder / "editor.py")])}
    await notifier.open_session("s1", owner="alice")
    async with watching("s1", terminal=SIZE, environment=environment, redis_url=valkey.url) as watcher:
        before = watcher.modes()
        asking = asyncio.create_task(notifier.request_permission("s1", "write", {"a": 1}, editable=True))
        await watcher.show("Permission 1 of 1")
        watcher.type("edit\n")
        await watcher.see("EDITING:", "parameters.json")
        edited = re.findall(r"EDITING:(\S+)", watcher.output)[0]
        assert exists(edited)
        await notifier.close_session("s1")
        assert 0 == await watcher.end()
        assert before == watcher.modes()
    assert not exists(*Path(edited).parts[:-1])
    assert {} == processes_with(str(folder / "editor.py"))
    assert not (await asking).approved


async def test_watch_writes_nothing_to_the_terminal_that_an_event_says(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """In no field do controls, bidirectional characters or markup reach the terminal as such."""
    evil = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e\u2066\u200b[bold red]x[/]\r\n"
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:
        details = {
            "progress": {"progress": 1, "total": 2, "message": evil},
            "server": evil,
            "parent_tool_call_id": evil,
        }
        await notifier.tool_status("s1", "a[red]b", "executing", parameters={evil: evil}, details=details)
        await notifier.tool_status("s1", "c", "completed", tool_call_id="c")
        await notifier.tool_result("s1", "c", {evil: evil}, success=True, tool_call_id="c")
        await notifier.tool_status("s1", "d", "failed", tool_call_id="d")
        await notifier.tool_result("s1", "d", None, success=False, error=evil, tool_call_id="d")
        asking = asyncio.create_task(
            notifier.request_permission("s1", "w[red]", {evil: [evil]}, message=evil, server="s[red]", timeout=DEADLINE)
        )
        await watcher.show("w[red]", "says: ", "server s[red]")
        await notifier.error("s1", evil)
        await watcher.show("[bold red]x[/]", "a[red]b")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert 0 == await watcher.stop()
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", watcher.output)  # what rich writes: colours, cursor, screen
    assert {"\r", "\n"} == {char for char in written if not char.isprintable()}
    assert "owned" in written
    assert "\x1b[2J" not in watcher.output


async def test_watch_says_that_redis_is_away(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The head says when Redis is away, and when it is back; what happened goes on."""
    async with watching("s1", terminal=SIZE, redis_url=valkey.url) as watcher:
        await notifier.tool_status("s1", "search", "executing")
        await watcher.show("● live", "search", "1 stream", "Redis ")
        await valkey.stop()
        await watcher.show("Redis is away")
        await valkey.start()
        await notifier.tool_status("s1", "search", "completed")
        await watcher.show("● live", "completed")
