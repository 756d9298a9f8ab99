"""What a watch knows, draws and understands, without a terminal or a Redis: calls, requests, commands, edits."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from agent_sse import merge_patch
from agent_sse.decisions import Answer
from agent_sse.lines import InputLines
from agent_sse.permissions import Permissions
from agent_sse.store import Store
from agent_sse.watch_answers import Watch
from agent_sse.watch_calls import MAX_CALLS, Calls, share_of
from agent_sse.watch_commands import Cancel, Plain, Reply, Wrong, parse
from agent_sse.watch_edit import NotEdited, edit_of, json_text
from agent_sse.watch_session import Asked, Vitals, Watched
from agent_sse.watch_table import TableView
from agent_sse.watch_view import describe


def status(call: str, state: str = "executing", **details: Any) -> dict[str, Any]:
    """A status of a call."""
    return {"tool_call_id": call, "tool_name": call, "status": state, "details": details}


def request(number: int = 1, **more: Any) -> dict[str, Any]:
    """A permission request."""
    data = {"request_id": f"r{number}", "tool_name": "run", "risk_level": "high", "parameters": {"script": "ls"}}
    return {"type": "permission_request", "data": {**data, **more}}


def picture(watched: Watched, width: int = 80, height: int = 24, *, said: str = "") -> list[str]:
    """The lines that are drawn."""
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None, force_terminal=True)
    view = TableView(console, watched)
    if said:
        view.say(said)
    console.print(view.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n").split("\n")


# -- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [10, 24, 50])
def test_watch_never_hides_silently_what_is_to_be_approved(width: int, height: int) -> None:
    """A request that does not fit says how much of it is missing, and the picture is never larger than the terminal."""
    watched = Watched("s1")
    for number in range(100):
        watched.take({"type": "tool_status", "data": status(f"c{number}")}, 0.0)
    watched.take(request(parameters={"script": "\u4e00" * 5000}), 0.0)
    lines = picture(watched, width, height, said="x" * 500)
    assert height >= len(lines)
    assert width >= max(map(len, lines))
    assert 1 == sum("NOT SHOWN: " in line for line in lines)
    assert lines[-2].startswith("y")
    watched.requests.take({"type": "stream_reset", "data": {}}, 0.0)
    watched.take(request(), 0.0)
    assert (height == 10) == any("NOT SHOWN" in line for line in picture(watched, width, height))  # 4 lines, room for 2


def test_watch_pages_through_a_long_request_to_its_last_line() -> None:
    """Enter turns the page; every line is on one of them, and behind the last page comes the first."""
    watched = Watched("s1")
    names = [f"name{number:03}" for number in range(100)]
    watched.take(request(parameters=dict.fromkeys(names, 1)), 0.0)
    first, seen = picture(watched), set[str]()
    asked = watched.requests.current
    assert asked is not None
    for _ in range(20):
        page = "\n".join(picture(watched))
        seen.update(name for name in names if name in page)
        asked.turn_page()
    assert set(names) == seen
    while asked.skip:
        picture(watched)
        asked.turn_page()
        picture(watched)
    assert first == picture(watched)


def test_watch_counts_down_on_the_clock_of_the_service() -> None:
    """The time that is left is that of Redis, also where this machine's clock is an hour wrong."""
    watched = Watched("s1")
    watched.vitals = Vitals(at=0.0, latency_ms=1.0, streams=1, pending=3, ahead=3600.0)
    expires = watched.clock() + 90.4
    watched.take(request(expires_at=datetime.fromtimestamp(expires, UTC).isoformat()), 0.0)
    text = "\n".join(picture(watched))
    assert "1:30 left" in text
    assert "Permission 1 of 3" in text


def test_watch_says_what_of_the_parameters_nobody_sees() -> None:
    """Hidden values are listed by where they are, cut parameters are called so, on a terminal and in a pipe."""
    watched, event = Watched("s1"), request(masked=["/key", "/a/0"], truncated=True, digest="abc", server="git")
    watched.take(event, 0.0)
    for text in ("\n".join(picture(watched)), describe(event) or ""):
        assert all(word in text for word in ("HIDDEN: /key, /a/0", "CUT: THESE ARE NOT ALL", "abc", "git"))


def test_watch_shows_what_runs_rather_than_what_has_ended() -> None:
    """Where there is no room for all, running calls stay, then the last that ended; calls stand below their parents."""
    calls = Calls()
    calls.take_status(status("old"), 0.0)
    for number in range(50):
        calls.take_status(status(f"c{number}", "completed"), 0.0)
    calls.take_status(status("child", parent_tool_call_id="old"), 0.0)
    calls.take_status(status("circle", parent_tool_call_id="circle"), 0.0)
    assert [(0, "old"), (1, "child"), (0, "c49"), (0, "circle")] == [(d, c.key) for d, c in calls.rows(4)]


def test_watch_forgets_the_calls_that_have_ended_first() -> None:
    """It keeps so many calls and no more; one that runs outlives those that have ended, and keeps its number."""
    calls = Calls()
    calls.take_status(status("running"), 0.0)
    for number in range(MAX_CALLS + 100):
        calls.take_status(status(f"c{number}", "completed"), 0.0)
    assert MAX_CALLS == len(calls)
    assert ("running", "running") == tuple(call.key for call in (calls.find("1"), calls.find("running")) if call)
    assert None is calls.find("2")


@pytest.mark.parametrize(
    ("progress", "share"),
    [
        ({"progress": 1, "total": 4}, 0.25), ({"progress": 9, "total": 4}, 1.0), ({"progress": -1, "total": 4}, 0.0),
        ({"progress": 1}, None), ({"progress": 1, "total": 0}, None), ({"progress": True, "total": 4}, None),
        ({"progress": 10**400, "total": 1}, None), ({"progress": "1", "total": 4}, None), ([], None), (None, None),
    ],
)  # fmt: skip
def test_watch_takes_progress_only_where_it_makes_sense(progress: object, share: float | None) -> None:
    """A share of a total is from 0 to 1; anything else is not known."""
    assert share == share_of(progress)


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], {"parameters": 1}, True])
def test_watch_fails_for_no_event(value: object) -> None:
    """Whatever stands in the fields of an event is drawn."""
    watched = Watched("s1")
    fields = ("tool_call_id", "tool_name", "status", "details", "timestamp", "error", "result", "duration_ms", "masked")
    more = ("request_id", "parameters", "expires_at", "risk_level", "message", "scopes", "server", "success")
    for kind in (
        "tool_status",
        "tool_result",
        "permission_request",
        "permission_cleared",
        "stream_reset",
        "error",
        None,
    ):
        for name in (*fields, *more):
            watched.take({"type": kind, "data": {"tool_call_id": "c", "request_id": "r", name: value}}, 0.0)
            picture(watched)
        watched.take({"type": kind, "data": value}, 0.0)
    details = dict.fromkeys(("progress", "server", "parent_tool_call_id", "start_time", "risk_level"), value)
    watched.take({"type": "tool_status", "data": status("c", **details)}, 0.0)
    picture(watched)


# -- what is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("y", Reply(True, None, "")),
        (" YES  the tool is mine ", Reply(True, None, "the tool is mine")),
        ("n-session", Reply(False, "arguments", "")),
        ("y-tool edit", Reply(True, "tool", "edit")),
        ("n session is over", Reply(False, None, "session is over")),
        ("cancel #12 too slow", Cancel("12", "too slow")),
        ("edit", Plain("edit")),
        ("", Plain("more")),
    ],
)
def test_watch_takes_the_first_word_for_the_command(line: str, command: object) -> None:
    """The first word alone says what is done, and for how long; the rest is the reason."""
    assert command == parse(line)


@pytest.mark.parametrize(
    "line", ["ye", "y-", "y-toolx", "y session", "n TOOL", "yy", "quit now", "edit it", "cancel", "y-tool-session", "-"]
)
def test_watch_guesses_nothing(line: str) -> None:
    """What is not exactly a command does nothing; `y session` is not taken for a reason that is that word."""
    assert isinstance(parse(line), Wrong)


class Recording(Permissions):
    """Permissions that only write down what is answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[str | None, bool]] = []

    async def answer(self, session_id: str, **answer: Any) -> Answer:
        self.answers.append((answer["request_id"], answer["approved"]))
        return Answer("resolved", status="approved" if answer["approved"] else "denied")


class Saying:
    """A view that only writes down what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, event: Any) -> None:
        pass

    def say(self, line: str) -> None:
        self.said.append(line)


def watch_of(watched: Watched) -> tuple[Watch, list[str], list[tuple[str | None, bool]]]:
    """A watch, what it says, and what is answered through it."""
    view, permissions = Saying(), Recording()
    return Watch(watched, Store.__new__(Store), permissions, view), view.said, permissions.answers


def arrive(watch: Watch, *events: dict[str, Any]) -> None:
    """Let events come."""
    for event in events:
        watch.sink.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def long_seen(watched: Watched) -> Asked:
    """The current request, as if it had been in sight since the machine was started."""
    asked = watched.requests.current
    assert asked is not None
    asked.since = 0.0
    return asked


CLEARED = {"type": "permission_cleared", "data": {"request_id": "r1"}}


async def test_watch_takes_no_answer_to_what_has_just_appeared() -> None:
    """An answer that was on its way before the request could be read, or was shown, approves nothing."""
    watch, said, answers = watch_of(Watched("s1"))
    arrive(watch, request(1), request(2))
    await watch.command("y", typed=True)
    await watch.command("", typed=True)
    await watch.command("perhaps", typed=True)
    arrive(watch, CLEARED)
    await watch.command("y", typed=True)  # the second has been there all the time, but not on the screen
    assert ["just appeared", "y or n", "just appeared"] == [
        next(word for word in ("just appeared", "y or n") if word in line) for line in said
    ]
    assert [] == answers


async def test_watch_takes_no_answer_to_what_came_behind_the_editor() -> None:
    """A request that became the current one behind the editor is seen when the editor has ended, not before."""
    watched = Watched("s1")
    watch, said, answers = watch_of(watched)

    async def edit(text: str) -> str:
        arrive(watch, CLEARED)
        long_seen(watched)  # the editor stays open for long
        return text

    watch.edit = edit
    arrive(watch, request(1, editable=True), request(2, risk_level="critical"))
    await watch.command("edit", typed=True)
    await watch.command("y", typed=True)
    assert ["too late", "this has just appeared"] == [line.partition(":")[0] for line in said]
    assert [] == answers


async def test_watch_takes_no_answer_while_the_picture_is_covered() -> None:
    """Whatever covered the picture, a request can be answered only when it was drawn again and could be read."""
    watched = Watched("s1")
    watch, said, answers = watch_of(watched)
    view = TableView(Console(width=80, height=24, file=io.StringIO()), watched)
    arrive(watch, request())
    view.render()
    view.appeared()
    long_seen(watched)
    view.covered()
    await watch.command("y", typed=True)
    await watch.command("n", typed=True)
    view.render()
    view.appeared()
    await watch.command("y", typed=True)
    assert (3, []) == (sum("just appeared" in line for line in said), answers)
    asked = long_seen(watched)
    view.render()
    view.appeared()  # the same picture again is nothing new
    assert 0.0 == asked.since
    await watch.command("y", typed=True)
    assert [("r1", True)] == answers


@pytest.mark.parametrize(
    ("width", "height", "tool"), [(80, 9, "run"), (80, 3, "run"), (23, 24, "run"), (10, 1, "run"), (60, 10, "x" * 113)]
)
async def test_watch_takes_no_approval_in_a_terminal_that_is_too_small(width: int, height: int, tool: str) -> None:
    """Where tool, risk and what is missing do not fit, only n is taken; in a larger one it has just appeared."""
    watched = Watched("s1")
    watch, said, answers = watch_of(watched)

    async def edit(text: str) -> str:
        raise AssertionError("nobody saw what this is")

    watch.edit = edit
    arrive(watch, request(tool_name=tool, editable=True, scopes=["once", "session"]))
    lines = picture(watched, width, height)
    assert (height >= len(lines), ">") == (True, lines[-1][:1])
    assert height < 4 or "make the terminal larger to answer" in " ".join(lines)[-60:]
    long_seen(watched)
    for line in ("y", "edit", "n-tool", "y-tool"):
        await watch.command(line, typed=True)
    assert (4, []) == (sum("make the terminal larger to answer" in line for line in said), answers)
    view = TableView(Console(width=120, height=40, file=io.StringIO()), watched)
    view.render()
    view.appeared()
    await watch.command("y", typed=True)
    assert ("just appeared" in said[-1], []) == (True, answers)
    picture(watched, width, height)
    long_seen(watched)
    await watch.command("n", typed=True)
    assert [("r1", False)] == answers


async def test_watch_says_first_how_much_was_not_seen() -> None:
    """y before all pages were shown says how many lines were not; the next y approves them, n is taken at once."""
    watched = Watched("s1")
    watch, said, answers = watch_of(watched)
    arrive(watch, *(request(number, parameters=dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 1)) for number in (1, 2, 3)))
    picture(watched)  # 11 of 29 lines
    long_seen(watched)
    await watch.command("y", typed=True)
    await watch.command("y", typed=True)  # both in one breath are one
    assert ["lines not seen: 18. Enter turns the page, y again approves them unseen"] == said[:1]
    assert ("just appeared" in said[1], []) == (True, answers)
    long_seen(watched)
    await watch.command("y", typed=True)
    for _ in range(3):
        picture(watched)
        await watch.command("", typed=True)
    assert 0 == long_seen(watched).unseen
    await watch.command("y", typed=True)
    picture(watched)
    long_seen(watched)
    await watch.command("n", typed=True)
    assert [("r1", True), ("r2", True), ("r3", False)] == answers


def test_watch_does_not_count_pages_as_seen_that_were_left_out() -> None:
    """Pages turned faster than they were drawn, and lines broken anew in another width, are not seen yet."""
    watched = Watched("s1")
    watched.take(request(parameters=dict.fromkeys(map(str, range(100)), 1)), 0.0)
    asked = watched.requests.current
    assert asked is not None
    picture(watched)
    unseen = asked.unseen
    asked.turn_page()
    asked.turn_page()
    picture(watched)
    assert unseen == asked.unseen
    asked.skip = asked.room
    picture(watched)
    assert unseen - asked.room == asked.unseen
    asked.skip = 0
    picture(watched, 81)
    assert unseen == asked.unseen


def test_watch_takes_keys_for_nothing_but_text() -> None:
    """Arrows and function keys are no letters; Backspace takes one back, Ctrl-U all."""
    lines = InputLines()
    lines.typed = True
    for char in "no\x15y\x1b[A\x1b[15~\x1bOP\x1b[1;5C\x1bx \x00oq\x7fk\r":
        lines._take(char)
    assert ["y ok"] == list(lines._lines)


# -- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, {"b": 3}),
        ({"a": {"b": 1, "c": None}}, {"a": {"c": None, "d": [None]}}, {"a": {"b": None, "d": [None]}}),
        ({"a": 1}, {"a": True}, {"a": True}),
        ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
        ({"a": [1, 2], "n": 2**70}, {"a": [2], "n": 2**70 + 1}, {"a": [2], "n": 2**70 + 1}),
        ({"a": {"b": 1}}, {"a": []}, {"a": []}),
        ({"a": 1}, {}, {"a": None}),
    ],
)
def test_edit_is_the_least_patch(before: Any, after: Any, patch: Any) -> None:
    """What did not change is not in the patch, and the patch makes exactly what the user wrote."""
    edit = edit_of(before, json.dumps(after))
    assert edit is not None
    assert patch == edit.patch
    assert json.dumps(patch) == json.dumps(edit.patch)  # 1, true and 1.0 are different
    assert json.dumps(after, sort_keys=True) == json.dumps(merge_patch.apply(before, edit.patch), sort_keys=True)


@pytest.mark.parametrize("text", ['{"a": 1, "b": null}', '{"b": null, "a": 1}'])
def test_edit_of_nothing_is_none(text: str) -> None:
    """The same object in another order changes nothing."""
    assert None is edit_of({"a": 1, "b": None}, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("", "no JSON"),
        ("[1]", "JSON object"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": null}', "null"),
        ('{"a": {"b": null}}', "null"),
        ("[" * 100_000, "no JSON"),
        ('{"a": "\\ud800"}', "not edited"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "nested"),
    ],
)
def test_edit_refuses_what_cannot_be_sent(text: str, words: str) -> None:
    """What is no parameters, or what a merge patch cannot say, is refused with the cause."""
    with pytest.raises(NotEdited, match=words):
        edit_of({"a": 1}, text)


def test_edit_shows_text_that_a_terminal_can_take() -> None:
    """Controls, bidirectional and invisible characters are JSON escapes in the file, and come back unchanged."""
    value = {"\u202ea\x1b": ["\x9b\u200b\U000e0041", "\u4e2d\u6587 \u00e9", 2**70, "\\u202e"]}
    text = json_text(value)
    assert value == json.loads(text)
    assert {"\n"} == {char for char in text if not char.isprintable()}
    assert "\u4e2d\u6587 \u00e9" in text
