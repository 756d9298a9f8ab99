"""`agent-sse watch`: follows one session straight from Redis in a terminal, and answers what is asked there.

Hub and connection are those of the service, so nothing is lost, also when Redis restarts; only the sink differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console
from rich.live import Live

from agent_sse.backend import Backend
from agent_sse.errors import RedisRefused, RedisUnavailable
from agent_sse.frames import unchunked
from agent_sse.hub import Hub
from agent_sse.keys import check_session_id
from agent_sse.lines import REASON_LIMIT, InputLines, Lines, single_keys
from agent_sse.permissions import Permissions
from agent_sse.redis_url import find_redis
from agent_sse.settings import Settings
from agent_sse.store import Store
from agent_sse.stream import Connection
from agent_sse.terminal import escape
from agent_sse.watch_view import Event, LineView, LogToView, TableView, View, data_of

REFRESH = 0.5  # s; times go on while nothing happens
UNREAD = 0.7  # s; an answer that comes this soon after a request appeared was typed for what was there before


class EventSink:
    """Takes a stream's bytes apart into events again, each of which goes to ``take``; a sink as in `sinks`.

    ``take`` shows an event before it returns, so nothing waits here and there is no bound to heed.
    """

    idle = True

    def __init__(self, take: Callable[[Event], None]) -> None:
        self.ended = asyncio.Event()
        self._take = take

    def write(self, data: bytes) -> bool:
        """Take whole frames."""
        try:
            for line in data.split(b"\n"):
                if line.startswith(b"data: ") and not self.ended.is_set():
                    event = json.loads(line[6:])
                    self._take(event if isinstance(event, dict) else {"type": event})
        except OSError:
            self.ended.set()  # nobody reads the output any more (`watch s1 | head`)
        return True

    def send(self, chunked: bytes) -> bool:
        """Take what is in a chunk: whole frames."""
        return self.write(unchunked(chunked))

    def gather(self) -> None:
        """Do nothing: it writes nowhere."""

    def end_if_stalled(self, now: float) -> bool:
        """Return False: it takes everything."""
        return False

    async def drained(self) -> None:
        """Return at once."""

    def finish(self) -> None:
        """Note the end."""
        self.ended.set()


class Watch:
    """A followed session: what is open to be answered, and the way to answer it. Made by :func:`following`."""

    def __init__(self, session_id: str, permissions: Permissions, view: View) -> None:
        self.asked = asyncio.Event()  # set while a request is open that was not answered here
        self.sink = EventSink(self._take)
        self.online: Callable[[], bool] = lambda: True
        self._session = session_id
        self._permissions = permissions
        self._view = view
        self._requests: dict[str, tuple[float, str]] = {}  # request id → when it appeared here, its tool
        self._answered: set[str] = set()
        self._subject = f"terminal:{_user()}"

    def _take(self, event: Event) -> None:
        kind, request_id = event.get("type"), data_of(event).get("request_id")
        if kind == "permission_request":
            if str(request_id) in self._requests:
                return  # a heartbeat repeats it
            tool = escape(str(data_of(event).get("tool_name")))
            self._requests[str(request_id)] = (asyncio.get_running_loop().time(), tool)
        elif kind == "stream_reset" or (kind == "permission_cleared" and request_id is None):
            self._requests.clear()
        elif kind == "permission_cleared":
            self._requests.pop(str(request_id), None)
        self._note()
        self._view.show(event)

    def _note(self) -> None:
        self._answered.intersection_update(self._requests)
        if self._requests.keys() - self._answered:
            self.asked.set()
        else:
            self.asked.clear()

    async def answer(self, line: str, *, typed: bool) -> None:
        """Answer the request that is shown with ``y`` or ``n``, a reason behind it if wanted.

        ``typed``: a person wrote the line; then one that comes before the request could be read is not taken.
        """
        word, _, reason = line.strip().partition(" ")
        if word.lower() not in ("y", "yes", "n", "no"):
            if word:
                self._view.say("type y or n, and a reason if you like")
            return
        request_id = next((key for key in self._requests if key not in self._answered), None)
        if request_id is None:
            self._view.say("nothing is asked now")
            return
        since, tool = self._requests[request_id]
        if typed and asyncio.get_running_loop().time() - since < UNREAD:
            self._view.say("this request has just appeared: read it, and answer again")
            return
        self._answered.add(request_id)
        self._note()
        try:
            answer = await self._permissions.answer(
                self._session, approved=word[0] in "yY", reason=reason.strip()[:REASON_LIMIT], request_id=request_id,
                subject=self._subject,
            )  # fmt: skip
        except (RedisUnavailable, RedisRefused) as error:
            self._answered.discard(request_id)
            self._note()
            self._view.say(f"the answer is not recorded, give it again: {error}")
            return
        if answer.code == "resolved":
            self._view.say(f"{answer.status}: {tool}")
        elif answer.status is not None:
            self._view.say(f"too late: {tool} was {answer.status} by {answer.resolved_by}")
        else:
            self._view.say(f"too late: the request for {tool} is gone")


def _user() -> str:
    try:
        return escape(getpass.getuser())
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


@asynccontextmanager
async def following(settings: Settings, url: str, session_id: str, view: View) -> AsyncIterator[Watch]:
    """Follow a session into ``view``. Raises :class:`RedisUnavailable` when Redis does not answer at first."""
    backend = Backend(url)
    try:
        store = Store(backend, settings)
        await store.ping()
        hub, permissions = Hub(store, settings), Permissions(store)
        watch = Watch(check_session_id(session_id), permissions, view)
        connection = Connection(session_id, cursor=None)
        hub.run()
        try:
            hub.join(connection)
            hub.start(connection, watch.sink)
            watch.online = lambda: connection.channel is None or connection.channel.subscribed
            yield watch
        finally:
            hub.leave(connection)
            await hub.aclose()
            await permissions.aclose()
    finally:
        await backend.aclose()


async def answering(watch: Watch, lines: Lines) -> None:
    """Give each line to the watch. Lines that nobody types wait until something is asked, one for each request."""
    while True:
        if not lines.typed:
            await watch.asked.wait()
        line = await lines.next()
        if line is None:
            return
        await watch.answer(line, typed=lines.typed)


# -- the command ------------------------------------------------------------------------------------------------------


async def run(settings: Settings, session_id: str) -> None:
    """Watch until the session is closed, the output's reader leaves, or SIGINT or SIGTERM."""
    check_session_id(session_id)
    url = await find_redis(settings)
    console = Console()
    on_screen = console.is_terminal and not console.is_dumb_terminal and os.isatty(0)
    if on_screen:
        await _run_on_screen(settings, url, session_id, console)
        return
    view = LineView(print_line)
    lines = InputLines()
    async with following(settings, url, session_id, view) as watch:
        with contextlib.closing(lines):
            await _until_end(watch, answering(watch, lines))


async def _run_on_screen(settings: Settings, url: str, session_id: str, console: Console) -> None:
    view = TableView(session_id, console)
    dirty = asyncio.Event()
    view.changed = dirty.set

    def typed(text: str) -> None:
        view.typed = text
        dirty.set()

    async def draw(live: Live) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH):
                    await dirty.wait()
            dirty.clear()
            live.update(view.render(), refresh=True)

    log, handler = logging.getLogger("agent_sse"), LogToView(view)
    log.addHandler(handler)
    try:
        async with following(settings, url, session_id, view) as watch:
            view.online = watch.online
            with (
                single_keys(),
                contextlib.closing(InputLines(typed)) as lines,
                Live(view.render(), console=console, screen=True, auto_refresh=False) as live,
            ):
                await _until_end(watch, answering(watch, lines), draw(live))
    finally:
        log.removeHandler(handler)
    console.print(view.render())


async def _until_end(watch: Watch, *work: Any) -> None:
    """Run the work beside the watch until its stream ends or a signal comes. An error in the work is raised."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not removed again: Ctrl-C while the watch is ending already is no failure either.
        loop.add_signal_handler(number, watch.sink.ended.set)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in work]
            await watch.sink.ended.wait()
            for task in tasks:
                task.cancel()
    except* BrokenPipeError:
        pass  # nobody reads the output any more


def print_line(line: str) -> None:
    """Print a line at once, for whatever locale."""
    # What a locale cannot write is escaped, and an event is seen when it happens, not when a buffer is full.
    encoding = sys.stdout.encoding or "ascii"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains at exit about what it cannot flush
        raise
