"""`tool_call()`: the events of every way through a call, on a real Valkey. protocol.md §§ 5, 6 and 8."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sse import (
    EventTooLarge,
    InvalidEvent,
    PermissionDecision,
    PermissionDenied,
    PublishTimeout,
    RedisUnavailable,
    SessionOwned,
    SimpleNotifier,
    ToolCall,
    TooManyRequestsPending,
)
from agent_sse.backend import Backend
from agent_sse.permissions import Permissions
from agent_sse.store import Store
from harness import Valkey, make_settings, until

S = "s1"


@pytest.fixture
async def user(valkey: Valkey) -> AsyncIterator[User]:
    """Who answers, from another process as it were."""
    backend = Backend(valkey.url)
    yield User(valkey, Permissions(Store(backend, make_settings(valkey.url))))
    await backend.aclose()


class User:
    def __init__(self, valkey: Valkey, permissions: Permissions) -> None:
        self.valkey = valkey
        self.permissions = permissions

    async def sees(self, count: int = 1) -> dict[str, Any]:
        """Wait until so many requests have been presented; return the last one's data."""

        async def presented() -> list[dict[str, Any]]:
            shown = [e["data"] for _, e in await self.valkey.entries(S) if e["type"] == "permission_request"]
            return shown if len(shown) >= count else []

        return dict((await until(presented, what="presentation"))[-1])

    async def answers(self, approved: bool, reason: str = "", *, count: int = 1) -> None:
        request = await self.sees(count)
        answer = await self.permissions.answer(
            S, approved=approved, reason=reason, request_id=request["request_id"], subject="alice"
        )
        assert "resolved" == answer.code


class Record:
    """What a session's Stream says of its calls."""

    def __init__(self, entries: list[tuple[str, Any]]) -> None:
        self.events = [event for _, event in entries]
        self.words = [self._word(event) for event in self.events]

    @staticmethod
    def _word(event: dict[str, Any]) -> str:
        data = event["data"]
        if event["type"] == "tool_status":
            return str(data["status"])
        if event["type"] == "tool_result":
            return f"result {'ok' if data['success'] else 'failed'}"
        if event["type"] == "permission_cleared":
            return f"cleared {data['outcome']}"
        return str(event["type"]).removeprefix("permission_")

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == kind]

    def check(self, call: ToolCall, *words: str) -> None:
        """The events are these, all of one call, whose fields do not change."""
        assert list(words) == self.words
        ids = {data["tool_call_id"] for event in self.events if "tool_call_id" in (data := event["data"])}
        assert {call.tool_call_id} == ids
        assert 1 == len({data["details"]["start_time"] for data in self.all("tool_status")})
        assert 1 == len({json.dumps(data["details"]["parameters"]) for data in self.all("tool_status")})
        for data in self.all("tool_result"):
            assert isinstance(data["duration_ms"], int)
            assert data["duration_ms"] >= 0


async def record(valkey: Valkey) -> Record:
    return Record(await valkey.entries(S))


# -- without a permission ---------------------------------------------------------------------------------------


async def test_call_succeeds(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """pending, executing, progress as a repeated executing, completed, and the result that the body set."""
    async with notifier.tool_call(S, "grep", {"q": 1}, risk_level="medium") as call:
        await call.progress(1)
        await call.progress(2, total=3, message="reading")
        call.result = {"matches": 5}
    found = await record(valkey)
    found.check(call, "pending", "executing", "executing", "executing", "completed", "result ok")
    steps = [data["details"].get("progress") for data in found.all("tool_status")]
    assert [None, None, {"progress": 1}, {"progress": 2, "total": 3, "message": "reading"}, None] == steps
    (result,) = found.all("tool_result")
    assert ("grep", {"matches": 5}) == (result["tool_name"], result["result"])
    assert "error" not in result
    for data in found.all("tool_status"):
        assert ({"q": 1}, "medium") == (data["details"]["parameters"], data["details"]["risk_level"])
    assert call.decision is None


async def test_call_fails(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An exception in the body is published with its text and goes on its way unchanged."""
    call = notifier.tool_call(S, "grep")
    call.result = "half"
    with pytest.raises(ZeroDivisionError, match="by nothing"):
        async with call:
            raise ZeroDivisionError("by nothing")
    found = await record(valkey)
    found.check(call, "pending", "executing", "failed", "result failed")
    assert (None, "by nothing") == tuple(found.all("tool_result")[0][name] for name in ("result", "error"))


@pytest.mark.parametrize(
    ("text", "shown"), [("", "ValueError"), ("x" * 5000, "x" * 2000), ("file \udcff", "file ?"), ("a\nb", "a\nb")]
)
async def test_call_fails_with_a_text_that_is_hard_to_show(
    valkey: Valkey, notifier: SimpleNotifier, text: str, shown: str
) -> None:
    """Without a text the type's name; a long one is cut; what UTF-8 cannot carry (a file name) is replaced."""
    with pytest.raises(ValueError, match=r"^$" if not text else r".") as caught:
        async with notifier.tool_call(S, "grep") as call:
            raise ValueError(text)
    assert text == str(caught.value)
    found = await record(valkey)
    found.check(call, "pending", "executing", "failed", "result failed")
    assert shown == found.all("tool_result")[0]["error"]


async def test_call_is_cancelled(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """A cancelled task says so, and stays cancelled."""
    inside = asyncio.Event()
    calls = []

    async def agent() -> None:
        async with notifier.tool_call(S, "grep") as call:
            calls.append(call)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(agent())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (await record(valkey)).check(calls[0], "pending", "executing", "cancelled", "result failed")


async def test_call_with_a_timeout_around_it(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """`asyncio.timeout` around a call works as ever: the call is cancelled, the caller gets TimeoutError."""

    async def body(limit: asyncio.Timeout) -> None:
        limit.reschedule(0)
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, notifier.tool_call(S, "grep") as call:
            await body(limit)
    (await record(valkey)).check(call, "pending", "executing", "cancelled", "result failed")


@pytest.mark.parametrize("result", [{1, 2}, float("nan"), "\ud800", {1: 2}, b"x"], ids=repr)
async def test_call_whose_result_is_no_json(valkey: Valkey, notifier: SimpleNotifier, result: object) -> None:
    """The tool ran: its card is closed with a word on why there is nothing to see, then the error is raised."""
    with pytest.raises(InvalidEvent):
        async with notifier.tool_call(S, "grep") as call:
            call.result = result
    found = await record(valkey)
    found.check(call, "pending", "executing", "completed", "result ok")
    (shown,) = found.all("tool_result")
    assert shown["result"] is None
    assert "cannot be shown" in shown["error"]


async def test_call_whose_result_is_too_large(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The same for a result over MAX_EVENT_BYTES; the error names size and limit, to the agent and to the user."""
    with pytest.raises(EventTooLarge) as caught:
        async with notifier.tool_call(S, "grep") as call:
            call.result = "x" * 300_000
    assert caught.value.size > 300_000
    found = await record(valkey)
    found.check(call, "pending", "executing", "completed", "result ok")
    assert "262144" in found.all("tool_result")[0]["error"]


async def test_call_with_parameters_that_cannot_be_sent(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The body does not run, and there is no card."""
    for parameters in ({"x": object()}, {"x": "x" * 300_000}):
        with pytest.raises(InvalidEvent):
            async with notifier.tool_call(S, "grep", parameters):
                pytest.fail("the body must not run")
    for wrong in ({"risk_level": "huge"}, {"tool_call_id": "a\n"}, {"parent_tool_call_id": 5}):
        arguments: dict[str, Any] = wrong
        with pytest.raises(InvalidEvent):
            async with notifier.tool_call(S, "grep", **arguments):
                pytest.fail("the body must not run")
    for timeout in (None, "5", float("nan"), True):
        wrong_timeout: Any = timeout
        with pytest.raises(InvalidEvent):
            notifier.tool_call(S, "grep", timeout=wrong_timeout)
    assert [] == await valkey.entries(S)


async def test_progress_is_refused_outside_the_block_and_when_it_is_no_number(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """Progress of a call that has not begun, or has ended, would open its card again."""
    call = notifier.tool_call(S, "grep")
    with pytest.raises(InvalidEvent, match="inside"):
        await call.progress(1)
    async with call:
        for wrong in (None, "1", True, float("nan"), float("inf")):
            bad: Any = wrong
            with pytest.raises(InvalidEvent):
                await call.progress(bad)
            if wrong is not None:
                with pytest.raises(InvalidEvent):
                    await call.progress(1, total=bad)
        for message in (5, "x" * 2001):
            bad_message: Any = message
            with pytest.raises(InvalidEvent):
                await call.progress(1, message=bad_message)
    with pytest.raises(InvalidEvent, match="inside"):
        await call.progress(2)
    (await record(valkey)).check(call, "pending", "executing", "completed", "result ok")


async def test_nested_calls_name_their_parent(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Each call has an id of its own; the inner ones carry the outer one's in every status."""
    async with notifier.tool_call(S, "plan") as outer:

        async def inner(name: str) -> str:
            async with notifier.tool_call(S, name, parent_tool_call_id=outer.tool_call_id) as call:
                await call.progress(1)
            return call.tool_call_id

        inner_ids = await asyncio.gather(inner("a"), inner("b"), inner("a"))
    found = await record(valkey)
    assert 4 == len({outer.tool_call_id, *inner_ids})
    for data in found.all("tool_status"):
        parent = data["details"].get("parent_tool_call_id")
        assert (None if data["tool_call_id"] == outer.tool_call_id else outer.tool_call_id) == parent
    assert ["plan", "plan"] == [found.events[i]["data"]["tool_name"] for i in (-2, -1)]


async def test_call_takes_an_id_from_outside(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """An agent framework's own call id is used as it is."""
    async with notifier.tool_call(S, "grep", tool_call_id="toolu_1") as call:
        pass
    assert "toolu_1" == call.tool_call_id
    (await record(valkey)).check(call, "pending", "executing", "completed", "result ok")


async def test_call_object_can_be_entered_once(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Terminal states are final: a second round with the same id is refused, before anything is published."""
    async with notifier.tool_call(S, "grep") as call:
        pass
    with pytest.raises(InvalidEvent, match="once"):
        async with call:
            pytest.fail("the body must not run")
    (await record(valkey)).check(call, "pending", "executing", "completed", "result ok")


# -- with a permission ------------------------------------------------------------------------------------------


async def test_call_is_approved(valkey: Valkey, notifier: SimpleNotifier, user: User) -> None:
    """waiting_permission, the request, its answer, and only then executing; the decision is on the call."""
    answering = asyncio.create_task(user.answers(True, "go on"))
    async with notifier.tool_call(
        S, "rm", {"f": 1}, risk_level="critical", require_permission=True, message="?"
    ) as call:
        call.result = "gone"
    await answering
    found = await record(valkey)
    found.check(
        call, "pending", "waiting_permission", "request", "response_result", "cleared approved", "executing",
        "completed", "result ok",
    )  # fmt: skip
    (request,) = found.all("permission_request")
    assert ({"f": 1}, "critical", "?") == (request["parameters"], request["risk_level"], request["message"])
    assert call.decision is not None
    assert (True, "go on", "approved", "alice", request["request_id"]) == (
        call.decision.approved, call.decision.reason, call.decision.outcome, call.decision.resolved_by,
        call.decision.request_id,
    )  # fmt: skip


async def test_call_is_denied(valkey: Valkey, notifier: SimpleNotifier, user: User) -> None:
    """The body does not run; the card gets denied and a failed result; the error carries the decision."""
    answering = asyncio.create_task(user.answers(False, "not this file"))
    with pytest.raises(PermissionDenied, match="not this file") as caught:
        async with notifier.tool_call(S, "rm", require_permission=True):
            pytest.fail("the body must not run")
    await answering
    found = await record(valkey)
    call_id = found.all("tool_status")[0]["tool_call_id"]
    assert [
        "pending", "waiting_permission", "request", "response_result", "cleared denied", "denied", "result failed",
    ] == found.words  # fmt: skip
    (result,) = found.all("tool_result")
    assert (call_id, None, "permission denied: not this file") == (
        result["tool_call_id"], result["result"], result["error"]
    )  # fmt: skip
    decision = caught.value.decision
    assert ("denied", "not this file", "alice") == (decision.outcome, decision.reason, decision.resolved_by)
    assert not decision


async def test_call_expires(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Nobody answers: the request expires, the call is cancelled, the body does not run."""
    call = notifier.tool_call(S, "rm", require_permission=True, timeout=1)
    with pytest.raises(PermissionDenied) as caught:
        async with call:
            pytest.fail("the body must not run")
    assert ("expired", "timeout") == (caught.value.decision.outcome, caught.value.decision.resolved_by)
    assert caught.value.decision is call.decision
    (await record(valkey)).check(
        call, "pending", "waiting_permission", "request", "cleared expired", "cancelled", "result failed"
    )


async def test_call_is_cancelled_while_it_waits(valkey: Valkey, notifier: SimpleNotifier, user: User) -> None:
    """Cancelling withdraws the request, closes the card, and stays a cancellation."""
    call = notifier.tool_call(S, "rm", require_permission=True)

    async def agent() -> None:
        async with call:
            pytest.fail("the body must not run")

    task = asyncio.create_task(agent())
    await user.sees()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (await record(valkey)).check(
        call, "pending", "waiting_permission", "request", "cleared cancelled", "cancelled", "result failed"
    )


async def test_call_of_a_closed_session_does_not_run(valkey: Valkey, notifier: SimpleNotifier, user: User) -> None:
    """`close_session` while a call waits: it is cancelled, whatever is answered."""
    call = notifier.tool_call(S, "rm", require_permission=True)

    async def agent() -> None:
        async with call:
            pytest.fail("the body must not run")

    task = asyncio.create_task(agent())
    await user.sees()
    await notifier.close_session(S)
    with pytest.raises(PermissionDenied) as caught:
        await task
    assert "cancelled" == caught.value.decision.outcome


async def test_call_that_asks_for_too_much_closes_its_card(valkey: Valkey, user: User) -> None:
    """A request that cannot be made (here: too many are open) never runs the tool and leaves no card open."""
    async with SimpleNotifier.from_url(valkey.url, max_pending_permissions=1) as narrow:
        first = asyncio.create_task(narrow.request_permission(S, "other", {}))
        await user.sees()
        call = narrow.tool_call(S, "rm", require_permission=True)
        with pytest.raises(TooManyRequestsPending):
            async with call:
                pytest.fail("the body must not run")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    mine = [e for _, e in await valkey.entries(S) if e["data"].get("tool_call_id") == call.tool_call_id]
    assert ["pending", "cancelled", "result failed"] == Record(list(enumerate(mine))).words  # type: ignore[arg-type]


async def test_calls_of_one_session_are_asked_for_one_at_a_time(
    valkey: Valkey, notifier: SimpleNotifier, user: User
) -> None:
    """Two risky calls at once: the second is presented when the first is answered; each gets its own answer."""
    ran = []

    async def agent(name: str) -> PermissionDecision | None:
        async with notifier.tool_call(S, name, require_permission=True) as call:
            ran.append(name)
        return call.decision

    tasks = [asyncio.create_task(agent(name)) for name in ("first", "second")]
    await user.answers(True)
    await user.answers(False, count=2)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert ["first"] == ran
    assert isinstance(results[0], PermissionDecision)
    assert isinstance(results[1], PermissionDenied)
    requests = [data["tool_name"] for data in (await record(valkey)).all("permission_request")]
    assert ["first", "second"] == requests


# -- without Redis ----------------------------------------------------------------------------------------------


async def test_redis_lost_in_the_body(valkey: Valkey) -> None:
    """The body runs to its end; leaving the block says that the end could not be published."""
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=1) as notifier:
        call = notifier.tool_call(S, "grep")
        with pytest.raises(PublishTimeout):
            async with call:
                call.result = await valkey.stop()
        await valkey.start()
    assert ["pending", "executing"] == (await record(valkey)).words


async def test_redis_lost_in_a_body_that_fails(valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """The tool's own error is what the agent gets; that its end is not published is logged, with ids only."""
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=1) as notifier:

        async def body() -> None:
            await valkey.stop()
            raise ZeroDivisionError("secret text")

        call = notifier.tool_call(S, "grep", {"secret": "payload"})
        with pytest.raises(ZeroDivisionError):
            async with call:
                await body()
        await valkey.start()
    (line,) = [r.getMessage() for r in caplog.records if "not published" in r.getMessage()]
    assert call.tool_call_id in line
    assert "secret" not in line


async def test_redis_back_in_time_goes_unnoticed(valkey: Valkey) -> None:
    """A restart in the body costs nothing: the end is published when Redis is back."""
    patient = SimpleNotifier.from_url(valkey.url, publish_timeout=25)
    async with patient as notifier, notifier.tool_call(S, "grep") as call:
        await valkey.restart()
        call.result = 1
    (await record(valkey)).check(call, "pending", "executing", "completed", "result ok")


async def test_redis_lost_before_a_call_never_runs_it(folder: Any) -> None:
    """Fail closed: what cannot be announced or asked is not run."""
    async with SimpleNotifier.from_url(f"unix://{folder}/none", publish_timeout=0.2) as notifier:
        for risky in (False, True):
            with pytest.raises(RedisUnavailable):
                async with notifier.tool_call(S, "rm", require_permission=risky):
                    pytest.fail("the body must not run")


async def test_redis_lost_while_waiting_never_runs_the_call(valkey: Valkey, user: User) -> None:
    """A Redis that goes for good while a permission is waited for: no approval, the body does not run."""
    async with SimpleNotifier.from_url(valkey.url, publish_timeout=1) as notifier:

        async def agent() -> None:
            async with notifier.tool_call(S, "rm", require_permission=True, timeout=0.7):
                pytest.fail("the body must not run")

        task = asyncio.create_task(agent())
        await user.sees()
        await valkey.stop()
        with pytest.raises((PermissionDenied, RedisUnavailable)):
            await task


async def test_a_session_that_is_owned_does_not_stop_its_agent(notifier: SimpleNotifier) -> None:
    """An owner is who may listen and answer; calls are published with and without one."""
    await notifier.open_session(S, owner="alice")
    with pytest.raises(SessionOwned):
        await notifier.open_session(S, owner="bob")
    async with notifier.tool_call(S, "grep"):
        pass
