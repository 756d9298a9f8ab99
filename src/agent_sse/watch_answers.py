"""A watched session from the user's side: what is typed becomes answers, edits and cancellations.

Never answers what is not shown, nor what could not be read yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import time
from collections.abc import Awaitable, Callable

from agent_sse import cancels, merge_patch
from agent_sse.decisions import Answer
from agent_sse.errors import ApiError, RedisRefused, RedisUnavailable
from agent_sse.lines import REASON_LIMIT
from agent_sse.permissions import Permissions
from agent_sse.store import Store
from agent_sse.terminal import escape
from agent_sse.watch_commands import UNKNOWN, Cancel, Plain, Reply, Wrong, parse
from agent_sse.watch_edit import NotEdited, edit_of, json_text
from agent_sse.watch_session import Asked, Edit, Watched
from agent_sse.watch_sink import WatchSink
from agent_sse.watch_view import TOO_SMALL, Event, View
from agent_sse.watch_vitals import read_vitals

UNREAD = 0.7  # s; an answer that comes this soon after a request appeared was typed for what was there before
LOOK_AGAIN = (1.0, 5.0)  # s; how soon after a look at the session the next one is, when requests changed and when not
CANCELLED = {
    "withdrawn": "its request is withdrawn, it does not run",
    "cancelling": "its agent is told to stop it",
    "not_cancellable": "its agent does not listen for cancellations",
    "unknown": "it is over already",
}


class Watch:
    """A followed session: what is open to be answered, and the way to answer it. Made by :func:`following`.

    ``quit`` and ``edit`` are what these words do, None where they mean nothing; ``edit`` takes a text and returns it
    as the user wants it, or raises :class:`NotEdited`.
    """

    def __init__(self, watched: Watched, store: Store, permissions: Permissions, view: View) -> None:
        self.asked = asyncio.Event()  # set while a request is open that was not answered here
        self.sink = WatchSink(self._take)
        self.online: Callable[[], bool] = lambda: True
        self.quit: Callable[[], None] | None = None
        self.edit: Callable[[str], Awaitable[str]] | None = None
        self.editing = False
        self._watched = watched
        self._store = store
        self._permissions = permissions
        self._view = view
        self._changed = asyncio.Event()  # what is open is not what it was at the last look
        self._subject = f"terminal:{_user()}"

    def _take(self, event: Event) -> None:
        if self._watched.take(event, _now()):
            self._note()
            self._view.show(event)

    def _note(self) -> None:
        if self._watched.requests.current is not None:
            self.asked.set()
        else:
            self.asked.clear()
        self._changed.set()

    async def command(self, line: str, *, typed: bool) -> None:
        """Do what a line says (see `watch_commands`).

        ``typed``: a person wrote the line; then an answer that comes before the request could be read is not taken.
        """
        match parse(line):
            case Reply() as reply:
                await self._reply(reply, typed=typed)
            case Cancel(name, reason):
                await self._cancel(name, reason)
            case Wrong(why):
                self._view.say(why)
            case Plain("edit"):
                await self._edit()
            case Plain("quit"):
                self._view.say(UNKNOWN) if self.quit is None else self.quit()
            case Plain("drop"):
                self._set_edit(None)
            case Plain("more"):
                if self._watched.requests.current is not None:
                    self._watched.requests.current.turn_page()
                    self._watched.requests.current.appear(_now())

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _reply(self, reply: Reply, *, typed: bool) -> None:
        asked = self._watched.requests.current
        why = self._refusal(asked, reply, typed=typed)
        if asked is None or why is not None:
            self._view.say(why or "")
            return
        patch = asked.edit.patch if asked.edit is not None and reply.approved else None
        self._set_answered(asked, True)
        try:
            answer = await self._permissions.answer(
                self._watched.session_id, approved=reply.approved, reason=reply.reason[:REASON_LIMIT],
                request_id=asked.request_id, subject=self._subject, remember=reply.covers, patch=patch,
            )  # fmt: skip
        except (RedisUnavailable, RedisRefused) as error:
            self._set_answered(asked, False)
            self._view.say(f"the answer is not recorded, give it again: {error}")
        except ApiError as error:
            self._set_answered(asked, False)
            self._view.say(f"not approved: {error.message}")
        else:
            if answer.code == "critical":
                self._set_answered(asked, False)
            self._view.say(_became(answer, asked.tool))

    def _refusal(self, asked: Asked | None, reply: Reply, *, typed: bool) -> str | None:
        """Return why a reply is not sent."""
        if asked is None:
            return "nothing is asked now"
        if typed and _now() - asked.since < UNREAD:
            return "this has just appeared: read it, and answer again"
        if not asked.fits and (reply.approved or reply.covers is not None):
            return f"{TOO_SMALL}; n alone denies"
        if reply.covers is not None and "session" not in asked.scopes:
            return "this is asked each time: y or n alone"
        if reply.covers is not None and reply.approved and asked.edit is not None:
            return "an edit is for this once: y alone, or drop the edit"
        if reply.approved and asked.unseen and not asked.warned:
            asked.appear(_now())
            asked.warned = True
            return f"lines not seen: {asked.unseen}. Enter turns the page, y again approves them unseen"
        return None

    def _set_answered(self, asked: Asked, answered: bool) -> None:
        self._watched.requests.note(asked, answered=answered, now=_now())
        self._note()

    async def _edit(self) -> None:
        asked = self._watched.requests.current
        if asked is None or not asked.editable or self.edit is None:
            why = "nothing is asked now" if asked is None else "edit needs a terminal"
            self._view.say("this request takes yes or no" if asked is not None and not asked.editable else why)
            return
        if not asked.fits:
            self._view.say(TOO_SMALL)
            return
        shown = asked.data["parameters"]
        begin = shown if asked.edit is None else merge_patch.apply(shown, asked.edit.patch)
        self.editing = True
        try:
            edit = edit_of(shown, await self.edit(json_text(begin)))
        except NotEdited as error:
            self._view.say(str(error))
            return
        finally:
            self.editing = False
            if self._watched.requests.current is not None:  # another one, perhaps, which came behind the editor
                self._watched.requests.current.appear(_now())
        current = self._watched.requests.current
        if current is None or (current.request_id, current.data) != (asked.request_id, asked.data):
            self._view.say(f"too late: the request for {asked.tool} is gone, the edit too")
            return
        self._set_edit(edit)
        self._view.say("nothing is changed" if edit is None else "read what is changed: y approves it")

    def _set_edit(self, edit: Edit | None) -> None:
        asked = self._watched.requests.current
        if asked is not None:
            asked.edit, asked.skip = edit, 0
            asked.appear(_now())

    async def _cancel(self, name: str, reason: str) -> None:
        call = self._watched.calls.find(name)
        if call is None:
            self._view.say(f"there is no call {name}: cancel takes a number of the table")
            return
        try:
            outcome = await cancels.cancel_call(
                self._store, self._watched.session_id, call.key, reason=reason[:REASON_LIMIT], subject=self._subject
            )
        except (RedisUnavailable, RedisRefused) as error:
            self._view.say(f"not cancelled, try again: {error}")
            return
        self._view.say(f"{call.tool}: {CANCELLED[outcome]}")

    # -- the session ---------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read how the session does, for ever: soon after requests changed, else every few seconds."""
        soon, later = LOOK_AGAIN
        while True:
            self._changed.clear()
            # One that fails is seen by the last one's age.
            with contextlib.suppress(RedisUnavailable, RedisRefused):
                self._watched.vitals = await read_vitals(self._store, self._watched.session_id)
            await asyncio.sleep(soon)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(later - soon):
                    await self._changed.wait()


def _became(answer: Answer, tool: str) -> str:
    if answer.code == "resolved":
        return f"{answer.status}: {tool}"
    if answer.code == "critical":
        return "what is critical is asked each time: y or n alone"
    if answer.status is not None:
        return f"too late: {tool} was {answer.status} by {answer.resolved_by}"
    return f"too late: the request for {tool} is gone"


def _now() -> float:
    return time.monotonic()


def _user() -> str:
    try:
        return escape(getpass.getuser())
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())
