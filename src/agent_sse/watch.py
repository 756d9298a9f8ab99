"""`agent-sse watch`: follows one session straight from Redis in a terminal, and answers what is asked there.

Hub and connection are those of the service, so nothing is lost, also when Redis restarts; only the sink differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console

from agent_sse.backend import Backend
from agent_sse.hub import Hub
from agent_sse.keys import check_session_id
from agent_sse.lines import InputLines, Lines
from agent_sse.permissions import Permissions
from agent_sse.redis_url import find_redis
from agent_sse.settings import Settings
from agent_sse.store import Store
from agent_sse.stream import Connection
from agent_sse.watch_answers import Watch
from agent_sse.watch_edit import edited_text
from agent_sse.watch_screen import Screen
from agent_sse.watch_session import Watched
from agent_sse.watch_table import TableView
from agent_sse.watch_view import LineView, LogToView, View

__all__ = ["Watch", "answering", "following", "print_line", "run"]


@asynccontextmanager
async def following(
    settings: Settings, url: str, session_id: str, view: View, watched: Watched | None = None
) -> AsyncIterator[Watch]:
    """Follow a session into ``view``, and into ``watched`` before.

    Raises :class:`RedisUnavailable` when Redis does not answer at first.
    """
    backend = Backend(url)
    try:
        store = Store(backend, settings)
        await store.ping()
        hub, permissions = Hub(store, settings), Permissions(store)
        watch = Watch(watched or Watched(check_session_id(session_id)), store, permissions, view)
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
        await watch.command(line, typed=lines.typed)


# -- the command ------------------------------------------------------------------------------------------------------


async def run(settings: Settings, session_id: str) -> None:
    """Watch until the session is closed, the output's reader leaves, or SIGINT or SIGTERM."""
    check_session_id(session_id)
    url = await find_redis(settings)
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)  # rich would believe them, and draw what a smaller terminal does not show
    console = Console()
    # In another encoding escapes would make lines longer than they were measured, and push others out of sight.
    can_draw = not console.is_dumb_terminal and console.encoding.startswith("utf")
    if console.is_terminal and os.isatty(0) and can_draw:
        await _run_on_screen(settings, url, session_id, console)
        return
    view = LineView(print_line)
    lines = InputLines()
    async with following(settings, url, session_id, view) as watch:
        watch.quit = watch.sink.ended.set
        with contextlib.closing(lines):
            await _until_end(watch, answering(watch, lines))


async def _run_on_screen(settings: Settings, url: str, session_id: str, console: Console) -> None:
    watched = Watched(session_id)
    view = TableView(console, watched)
    screen = Screen(console, view)
    view.changed = screen.dirty.set

    def typed(text: str) -> None:
        view.typed = text
        screen.dirty.set()

    log, handler = logging.getLogger("agent_sse"), LogToView(view)
    log.addHandler(handler)
    try:
        async with following(settings, url, session_id, view, watched) as watch:
            view.online = watch.online
            watch.quit = watch.sink.ended.set
            with screen.taken(), contextlib.closing(InputLines(typed)) as lines:

                async def edit(text: str) -> str:
                    lines.close()
                    with screen.lent():
                        return await edited_text(text)

                watch.edit = edit
                await _until_end(watch, answering(watch, lines), screen.draw(), watch.look())
    finally:
        log.removeHandler(handler)
    console.print(view.render(last=True))


async def _until_end(watch: Watch, *work: Coroutine[Any, Any, None]) -> None:
    """Run the work beside the watch until its stream ends or a signal comes. An error in the work is raised."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if not watch.editing:  # Ctrl-C is the editor's then
            watch.sink.ended.set()

    # Not removed again: Ctrl-C while the watch is ending already is no failure either.
    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, watch.sink.ended.set)
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
