"""`SimpleNotifier` on a real Valkey: protocol.md § 8, line by line."""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_sse import (
    AgentSseError,
    ConfigurationError,
    EventTooLarge,
    InvalidEvent,
    InvalidSessionId,
    PublishTimeout,
    QueueFull,
    RedisUnavailable,
    SessionOwned,
    SimpleNotifier,
)
from agent_sse import publisher as publisher_module
from agent_sse.backend import Backend
from agent_sse.permissions import Permissions
from agent_sse.settings import RedisSettings
from agent_sse.store import Store
from harness import Stream, Valkey, make_settings, make_token, serve, until


async def answer_next(valkey: Valkey, session: str, *, approved: bool, after: int = 0) -> str:
    """Answer the request presented as number ``after`` in the session's Stream; return its id."""

    async def presented() -> str | None:
        shown = [e["data"]["request_id"] for _, e in await valkey.entries(session) if e["type"] == "permission_request"]
        return shown[after] if len(shown) > after else None

    request_id: str = await until(presented, what="presentation")
    backend = Backend(valkey.url)
    try:
        permissions = Permissions(Store(backend, make_settings(valkey.url)))
        await permissions.answer(session, approved=approved, reason="", request_id=request_id, subject="alice")
    finally:
        await backend.aclose()
    return request_id


# -- publishing -------------------------------------------------------------------------------------------------


async def test_sample_of_the_protocol_runs_as_it_stands(valkey: Valkey) -> None:
    """The sample of § 8, with another URL: every event of it is in the Stream, in order, under the id returned."""
    ran = []

    def edit() -> str:
        ran.append("edit")
        return "edited"

    async def user() -> None:
        await answer_next(valkey, "s1", approved=True)
        await answer_next(valkey, "s1", approved=True, after=1)

    answers = asyncio.create_task(user())
    before_close: list[tuple[str, Any]] = []
    async with SimpleNotifier.from_url(valkey.url) as notifier:
        await notifier.open_session("s1", owner="alice")
        await notifier.tool_status("s1", "file_search", "executing", tool_call_id="c1", parameters={"query": "example"}, risk_level="medium")  # fmt: skip  # noqa: E501
        decision = await notifier.request_permission("s1", "file_edit", {"file": "example.py"}, "high", timeout=300)
        assert decision
        assert (True, "approved", "alice") == (decision.approved, decision.outcome, decision.resolved_by)
        await notifier.tool_result("s1", "file_search", {"matches": 5}, success=True, tool_call_id="c1")
        await notifier.clear_result("s1")
        await notifier.error("s1", "the model is unavailable", code="model_unavailable")

        async with notifier.tool_call("s1", "file_edit", {"file": "a.py"}, risk_level="high", require_permission=True) as call:  # fmt: skip  # noqa: E501
            await call.progress(1, total=3, message="reading")
            call.result = edit()
        before_close = await valkey.entries("s1")
        await notifier.close_session("s1")
    await answers
    assert ["edit"] == ran
    assert [] == await valkey.entries("s1")
    assert [
        "tool_status", "permission_request", "permission_response_result", "permission_cleared", "tool_result",
        "result_cleared", "error", "tool_status", "tool_status", "permission_request", "permission_response_result",
        "permission_cleared", "tool_status", "tool_status", "tool_status", "tool_result",
    ] == [event["type"] for _, event in before_close]  # fmt: skip


async def test_publishing_returns_the_id_as_stored(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Each method returns the id of the entry that holds its event."""
    returned = [
        await notifier.tool_status("s", "t", "pending"),
        await notifier.tool_result("s", "t", None, success=False, error="why", duration_ms=3),
        await notifier.clear_result("s", "t"),
        await notifier.error("s", "m"),
    ]
    entries = await valkey.entries("s")
    assert returned == [event_id for event_id, _ in entries]
    assert ["tool_status", "tool_result", "result_cleared", "error"] == [event["type"] for _, event in entries]
    assert ("why", 3, None) == tuple(entries[1][1]["data"][name] for name in ("error", "duration_ms", "result"))
    assert {"type": "error", "message": "m", "code": "error"} == entries[3][1]


async def test_publishing_keeps_the_order_of_the_calls_of_many_tasks(valkey: Valkey) -> None:
    """64 tasks in one session: stored in the order in which they called, many to a write."""
    numbers = itertools.count()
    returned: dict[str, str] = {}

    async with SimpleNotifier.from_url(valkey.url) as notifier, valkey.client() as client:

        async def task() -> None:
            for _ in range(12):
                number = str(next(numbers))
                returned[number] = await notifier.error("s", number)

        before = (await client.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(task() for _ in range(64)))
        reads = (await client.info("stats"))["total_reads_processed"] - before
    entries = await valkey.entries("s")
    assert [str(number) for number in range(64 * 12)] == [event["message"] for _, event in entries]
    assert {event["message"]: event_id for event_id, event in entries} == returned
    assert reads <= 64 * 12 / 4


async def test_two_notifiers_in_one_session_interleave(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Each one's events are in its own order, all are there, and each id is its own event's."""
    async with SimpleNotifier.from_url(valkey.url) as other:
        names = [(f"{who}{i:03}", who) for i in range(150) for who in "ab"]
        publishers = {"a": notifier, "b": other}
        ids = await asyncio.gather(*(publishers[who].error("s", name) for name, who in names))
    entries = await valkey.entries("s")
    assert dict(zip((name for name, _ in names), ids, strict=True)) == {e["message"]: i for i, e in entries}
    for who in "ab":
        mine = [event["message"] for _, event in entries if event["message"].startswith(who)]
        assert sorted(mine) == mine


# -- what cannot be an event ------------------------------------------------------------------------------------

CYCLE: list[Any] = []
CYCLE.append(CYCLE)
DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]
BAD_VALUES: list[Any] = [
    math.nan, math.inf, -math.inf, {"a": [math.nan]}, "\ud800", {"\ud800": 1}, {1: 2}, {None: 1}, {True: 1}, {1, 2},
    b"bytes", object(), CYCLE, DEEP, 10**5000, {"a": {("b",): 1}},
]  # fmt: skip
BAD_NAMES: list[Any] = ["", 5, [], {}, b"t", True, "x" * 10_000, "a\x00b", "a\nb", "a\x1b[31m", "\u202eb", "\ud800"]


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda value: type(value).__name__)
async def test_what_json_cannot_hold_is_refused(valkey: Valkey, notifier: SimpleNotifier, value: Any) -> None:
    """A typed error from every method that takes a value, and nothing is stored."""
    with pytest.raises(InvalidEvent):
        await notifier.tool_result("s", "t", value)
    with pytest.raises(InvalidEvent):
        await notifier.tool_status("s", "t", "pending", parameters=value)
    with pytest.raises(InvalidEvent):
        await notifier.tool_status("s", "t", "pending", details={"more": value})
    with pytest.raises(InvalidEvent):
        await notifier.request_permission("s", "t", value, timeout=1)
    with pytest.raises(InvalidEvent):
        async with notifier.tool_call("s", "t", value):
            pytest.fail("the body must not run")
    assert [] == await valkey.entries("s")


async def test_wrong_arguments_are_refused(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Whatever is passed where a name, a status, a risk, a text belongs: a typed error, and nothing is stored."""
    calls: list[Any] = []
    for bad in [*BAD_NAMES, None]:
        calls.append(lambda bad=bad: notifier.tool_status("s", bad, "pending"))
        calls.append(lambda bad=bad: notifier.tool_status("s", "t", bad))
        calls.append(lambda bad=bad: notifier.tool_status("s", "t", "pending", risk_level=bad))
        calls.append(lambda bad=bad: notifier.tool_result("s", bad, 1))
        calls.append(lambda bad=bad: notifier.error("s", "m", code=bad))
        calls.append(lambda bad=bad: notifier.open_session("s", owner=bad))
        calls.append(lambda bad=bad: notifier.request_permission("s", bad, {}, timeout=1))
        calls.append(lambda bad=bad: notifier.request_permission("s", "t", {}, bad, timeout=1))
    for bad in BAD_NAMES:
        calls.append(lambda bad=bad: notifier.tool_status("s", "t", "pending", tool_call_id=bad))
        calls.append(lambda bad=bad: notifier.tool_status("s", "t", "completed", tool_call_id=bad))
        calls.append(lambda bad=bad: notifier.tool_status("s", "t", "pending", start_time=bad))
        calls.append(lambda bad=bad: notifier.tool_result("s", "t", 1, tool_call_id=bad))
        calls.append(lambda bad=bad: notifier.clear_result("s", bad))
        calls.append(lambda bad=bad: notifier.request_permission("s", "t", {}, tool_call_id=bad, timeout=1))
    for bad in (None, 5, b"m", ["m"], "x" * 2001, "\ud800"):
        calls.append(lambda bad=bad: notifier.error("s", bad))
    for bad in (5, b"e", ["e"], "\ud800"):
        calls.append(lambda bad=bad: notifier.tool_result("s", "t", 1, error=bad))
    for bad in (None, 1, "yes", []):
        calls.append(lambda bad=bad: notifier.tool_result("s", "t", 1, success=bad))
    for bad in ("3", True, math.nan, []):
        calls.append(lambda bad=bad: notifier.tool_result("s", "t", 1, duration_ms=bad))
    for bad in (5, "details", [1], {1: 2}):
        calls.append(lambda bad=bad: notifier.tool_status("s", "t", "pending", details=bad))
    for bad in (None, "5", math.nan, math.inf, 0, -1, True, 10**9):
        calls.append(lambda bad=bad: notifier.request_permission("s", "t", {}, timeout=bad))
    for call in calls:
        with pytest.raises(InvalidEvent):
            await call()
    assert [] == await valkey.entries("s")


async def test_wrong_session_ids_are_refused(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A session id that breaks the rule of § 4 reaches no key."""
    for bad in ("", "-a", ".a", ":a", "a b", "a/b", "a{b}", "ä", "a\n", "x" * 129, None, 5, [], b"s", "*"):
        session: Any = bad
        for call in (
            lambda s=session: notifier.error(s, "m"), lambda s=session: notifier.tool_status(s, "t", "pending"),
            lambda s=session: notifier.open_session(s, "alice"), lambda s=session: notifier.close_session(s),
            lambda s=session: notifier.request_permission(s, "t", {}, timeout=1),
        ):  # fmt: skip
            with pytest.raises(InvalidSessionId):
                await call()
        with pytest.raises(InvalidSessionId):
            notifier.tool_call(session, "t")
    await notifier.error("x" * 128, "m")
    async with valkey.client() as client:
        assert all(b"x" * 128 in name for name in await client.keys("*"))


async def test_members_of_enumerations_are_taken_for_their_strings(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An agent's own `class Status(str, Enum)` is published as the word it stands for."""

    class Word(str, enum.Enum):  # noqa: UP042 - the older form, whose str() is "Word.RUNNING"
        RUNNING = "executing"
        HIGH = "high"

    await notifier.tool_status("s", "t", Word.RUNNING, risk_level=Word.HIGH)
    ((_, event),) = await valkey.entries("s")
    assert ("executing", "high") == (event["data"]["status"], event["data"]["details"]["risk_level"])


async def test_too_large_event_names_size_and_limit(valkey: Valkey) -> None:
    """The limit itself passes; one byte more is refused, with both numbers, and nothing of it is stored."""
    async with SimpleNotifier.from_url(valkey.url, max_event_bytes=1000) as notifier:
        await notifier.tool_result("s", "t", "")
        ((_, empty),) = await valkey.entries("s")
        room = 1000 - len(json.dumps(empty, separators=(",", ":")))
        await notifier.tool_result("s", "t", "x" * room)
        with pytest.raises(EventTooLarge, match=r"1001 bytes.*1000.*MAX_EVENT_BYTES") as caught:
            await notifier.tool_result("s", "t", "x" * (room + 1))
        assert (1001, 1000) == (caught.value.size, caught.value.limit)
        with pytest.raises(EventTooLarge):
            await notifier.tool_result("s", "t", "é" * (room // 2 + 1))
        with pytest.raises(EventTooLarge):
            await notifier.request_permission("s", "t", {"x": "x" * 1000}, timeout=1)
    assert 2 == len(await valkey.entries("s"))


async def test_queue_is_bounded(valkey: Valkey, notifier: SimpleNotifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """More publishes than may wait: the surplus is refused at once and not stored."""
    monkeypatch.setattr(publisher_module, "MAX_WAITING", 10)
    results = await asyncio.gather(*(notifier.error("s", str(i)) for i in range(25)), return_exceptions=True)
    assert 15 == sum(isinstance(result, QueueFull) for result in results)
    assert [result for result in results if isinstance(result, str)] == [i for i, _ in await valkey.entries("s")]


# -- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"retention_secnds": 5}, "RETENTION_SECNDS"), ({"key_prefix": "a b"}, "KEY_PREFIX"),
        ({"publish_timeout": 0}, "PUBLISH_TIMEOUT"), ({"publish_timeout": math.inf}, "PUBLISH_TIMEOUT"),
        ({"retention_events": "many"}, "RETENTION_EVENTS"), ({"max_event_bytes": -1}, "MAX_EVENT_BYTES"),
        ({"port": 99_999}, "PORT"), ({"keyprefix": "a"}, "KEYPREFIX"),
    ],
)  # fmt: skip
def test_from_url_names_a_wrong_setting(settings: dict[str, Any], named: str) -> None:
    """An unknown, misspelt or impossible setting is an error at once, in one line that names it."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        SimpleNotifier.from_url("redis://localhost", **settings)
    assert "\n" not in str(caught.value)


def test_from_url_reads_no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what is passed counts; the service's own settings may be among it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("AGENT_SSE_RETENTION_EVENTS=7\n", encoding="utf-8")
    monkeypatch.setenv("AGENT_SSE_KEY_PREFIX", "elsewhere")
    monkeypatch.setenv("AGENT_SSE_PUBLISH_TIMEOUT", "nonsense")
    notifier = SimpleNotifier.from_url("redis://localhost", retention_bytes=9, heartbeat_interval=3)
    found = notifier.settings
    assert ("redis://localhost", "agent_sse", 1000, 9, 5) == (
        found.redis_url, found.key_prefix, found.retention_events, found.retention_bytes, found.publish_timeout
    )  # fmt: skip


async def test_from_env_reads_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, valkey: Valkey) -> None:
    """`AGENT_SSE_*` and `.env` are read, arguments win, others in `.env` are not our affair, wrong ones are named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("AGENT_SSE_RETENTION_EVENTS=7\nOTHER=1\nAGENT_SSE_PORT=1\n", encoding="utf-8")
    monkeypatch.setenv("AGENT_SSE_KEY_PREFIX", "elsewhere")
    monkeypatch.setenv("AGENT_SSE_REDIS_URL", valkey.url)
    async with SimpleNotifier.from_env(retention_bytes=9) as notifier:
        found = notifier.settings
        assert ("elsewhere", 7, 9) == (found.key_prefix, found.retention_events, found.retention_bytes)
        await notifier.error("s", "m")
    async with valkey.client() as client:
        assert 1 == await client.xlen("elsewhere:{s}:events")
    with pytest.raises(ConfigurationError, match="retention_secnds"):
        SimpleNotifier.from_env(retention_secnds=5)
    monkeypatch.setenv("AGENT_SSE_PUBLISH_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="AGENT_SSE_PUBLISH_TIMEOUT") as caught:
        SimpleNotifier.from_env()
    assert "soon" not in str(caught.value)


async def test_without_a_redis_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No URL and no service of this user: one line that names both ways out."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"AGENT_SSE_REDIS_URL.*agent-sse serve") as caught:
        async with SimpleNotifier.from_env(state_dir=tmp_path / "state"):
            pytest.fail("there is nothing to publish to")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis//x", "redis://localhost:port/0"])
async def test_url_that_is_none_is_refused(url: str) -> None:
    """Another scheme, or none: an error that shows the ones there are."""
    with pytest.raises(ConfigurationError, match="redis://host:6379/0"):
        async with SimpleNotifier.from_url(url):
            pytest.fail("there is nothing to publish to")


# -- sessions ---------------------------------------------------------------------------------------------------


async def test_open_session_sets_the_owner_once(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The same owner may open again, from any notifier; another one may not."""
    await notifier.open_session("s", owner="alice")
    await notifier.open_session("s", owner="alice")
    async with SimpleNotifier.from_url(valkey.url) as other:
        await other.open_session("s", owner="alice")
        with pytest.raises(SessionOwned, match="s belongs to another owner"):
            await other.open_session("s", owner="bob")
    results = await asyncio.gather(
        *(notifier.open_session("t", owner=f"owner{i}") for i in range(20)), return_exceptions=True
    )
    assert 19 == sum(isinstance(result, SessionOwned) for result in results)


@pytest.mark.usefixtures("sink")
async def test_close_session_erases_it(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Nothing of the session is left but a tombstone of a minute; waiters are told; the name can be used again."""
    await notifier.open_session("s", owner="alice")
    await notifier.tool_status("s", "t", "executing", tool_call_id="c")
    last = await notifier.tool_result("s", "t", {"secret": "of s"}, tool_call_id="c")
    asking = asyncio.create_task(notifier.request_permission("s", "t", {"secret": "of s"}, timeout=100))
    async with valkey.client() as client:
        await until(lambda: _count(valkey, "s", 3), what="presentation")
        await notifier.close_session("s")
        decision = await asking
        assert (False, "cancelled") == (decision.approved, decision.outcome)
        assert [b"agent_sse:{s}:closed"] == [key async for key in client.scan_iter("*{s}*")]
        assert 0 < await client.pttl("agent_sse:{s}:closed") <= 60_000

        await notifier.close_session("s")
        again = await notifier.error("s", "a new one")
        assert [(again, "a new one")] == [(i, e["message"]) for i, e in await valkey.entries("s")]
        assert tuple(map(int, last.split("-"))) < tuple(map(int, again.split("-")))
        await notifier.open_session("s", owner="bob")
    async with serve(make_settings(valkey.url)) as served, Stream(served.events("s", make_token("s"))) as stream:
        assert "result_cleared" == (await stream.next()).type


async def _count(valkey: Valkey, session: str, least: int) -> bool:
    return len(await valkey.entries(session)) >= least


async def test_calls_without_an_id_count_as_one_call_of_the_tool(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The id is the tool's name; start_time holds from the first status to the end; then the call starts anew."""
    for status in ("pending", "executing", "completed", "executing", "failed"):
        await notifier.tool_status("s", "search", status)
    await notifier.tool_result("s", "search", 1)
    events = [event["data"] for _, event in await valkey.entries("s")]
    assert {"search"} == {data["tool_call_id"] for data in events}
    starts = [data["details"]["start_time"] for data in events[:5]]
    assert starts[0] == starts[1] == starts[2] == events[0]["timestamp"]
    assert starts[3] == starts[4] == events[3]["timestamp"]


# -- life and death ---------------------------------------------------------------------------------------------


def test_notifier_needs_no_web_layer(tmp_path: Path) -> None:
    """Importing the package and making a notifier loads neither FastAPI nor Starlette nor uvicorn."""
    code = (
        "import sys; from agent_sse import SimpleNotifier; SimpleNotifier.from_url('redis://localhost');"
        "print([m for m in ('fastapi', 'starlette', 'uvicorn', 'jose', 'typer', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


async def test_notifiers_of_two_event_loops_one_after_another(valkey: Valkey) -> None:
    """Each loop has its notifier; nothing of a loop that is gone is in the way of the next."""

    def in_a_loop_of_its_own(message: str) -> str:
        async def main() -> str:
            async with SimpleNotifier.from_url(valkey.url) as notifier:
                return await notifier.error("s", message)

        return asyncio.run(main())

    ids = [await asyncio.to_thread(in_a_loop_of_its_own, str(number)) for number in range(3)]
    assert list(zip(ids, "012", strict=True)) == [(i, e["message"]) for i, e in await valkey.entries("s")]


async def test_aclose_waits_for_what_is_in_flight(valkey: Valkey) -> None:
    """Publishes that were called before are stored and return; later use is an error; closing twice does nothing."""
    notifier = SimpleNotifier.from_url(valkey.url)
    tasks = [asyncio.create_task(notifier.error("s", str(number))) for number in range(300)]
    await asyncio.sleep(0)
    await notifier.aclose()
    assert all(task.done() for task in tasks)
    assert [task.result() for task in tasks] == [event_id for event_id, _ in await valkey.entries("s")]
    await notifier.aclose()
    for use in (
        lambda: notifier.error("s", "late"), lambda: notifier.open_session("s", "alice"),
        lambda: notifier.request_permission("s", "t", {}, timeout=1), notifier.__aenter__,
    ):  # fmt: skip
        with pytest.raises(AgentSseError, match="closed"):
            await use()
    async with valkey.client() as client:
        await until(lambda: _alone(client), what="closing the connections")


async def _alone(client: Any) -> bool:
    return len(await client.client_list()) == 1


async def test_aclose_without_redis_ends(folder: Path) -> None:
    """What cannot be sent fails with its time-out, and then it closes."""
    notifier = SimpleNotifier.from_url(f"unix://{folder}/none", publish_timeout=0.2)
    tasks = [asyncio.create_task(notifier.error("s", str(number))) for number in range(3)]
    await asyncio.sleep(0)
    await notifier.aclose()
    assert all(isinstance(task.exception(), PublishTimeout) for task in tasks)
    with pytest.raises(RedisUnavailable):
        async with SimpleNotifier.from_url(f"unix://{folder}/none", publish_timeout=0.2) as other:
            await other.open_session("s", "alice")


def test_notifier_has_the_settings_of_a_service_too() -> None:
    """A service's own settings object serves a notifier in the same process."""
    assert isinstance(SimpleNotifier(make_settings("redis://localhost")).settings, RedisSettings)
