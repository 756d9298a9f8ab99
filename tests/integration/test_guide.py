"""The integration guide: its samples field by field, and its client's way through a session, in Python."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from agent_sse import SimpleNotifier
from harness import DEADLINE, Served, Stream, Valkey, make_settings, make_token, serve, session_name, until

pytestmark = pytest.mark.usefixtures("sink")

# The guide's four samples and its request body, letter by letter.
TOOL_STATUS = """
{
    "type": "tool_status",
    "data": {
        "status": "executing",
        "tool_name": "file_search",
        "timestamp": "2024-01-15T10:30:00Z",
        "details": {
            "parameters": {"query": "example"},
            "risk_level": "medium",
            "start_time": "2024-01-15T10:30:00Z"
        }
    }
}
"""
PERMISSION_REQUEST = """
{
    "type": "permission_request",
    "data": {
        "tool_name": "file_edit",
        "parameters": {"file": "example.py"},
        "risk_level": "high",
        "timestamp": "2024-01-15T10:30:00Z",
        "status": "pending"
    }
}
"""
TOOL_RESULT = """
{
    "type": "tool_result",
    "data": {
        "tool_name": "file_search",
        "result": {"matches": 5},
        "success": true,
        "timestamp": "2024-01-15T10:30:15Z"
    }
}
"""
HEARTBEAT = """
{
    "type": "heartbeat",
    "timestamp": 1642234200.123
}
"""
ANSWER = """
{
    "approved": true,
    "reason": "用户同意执行此工具"
}
"""
TIMES = {"timestamp", "start_time"}


def assert_like(sample: Any, real: Any, name: str = "") -> None:
    """Every field of ``sample`` is in ``real``, with the same type and, but for times, the same value."""
    assert type(sample) is type(real), name
    if isinstance(sample, dict):
        assert set(sample) <= set(real), f"{name}: {set(sample) - set(real)} is missing"
        for key, value in sample.items():
            assert_like(value, real[key], key)
    elif name not in TIMES:
        assert sample == real, name
    elif isinstance(real, str):
        assert real.endswith("Z"), name
        assert datetime.fromisoformat(real).tzinfo == UTC, name


class GuideClient:
    """The guide's SSEClient: `?token=` through encodeURIComponent, one `onmessage`, answers without a request id.

    Like a browser's EventSource when its page opens it anew, it knows no cursor.
    """

    def __init__(self, served: Served, session: str, token: str) -> None:
        self.served = served
        self.session = session
        self.token = token
        self.stream: Stream | None = None
        self._http = httpx.AsyncClient(timeout=DEADLINE)

    async def connect(self) -> None:
        if self.stream is not None:
            await self.stream.close()
        token = quote(self.token, safe="-_.!~*'()")
        self.stream = await Stream(f"{self.served.api}/events/{self.session}?token={token}").open()
        assert 200 == self.stream.status
        assert "text/event-stream; charset=utf-8" == self.stream.response_headers["content-type"]
        # Not primed(), which would take the snapshot's events from the queue.
        await until(lambda: self.stream is not None and self.stream.last_id is not None, what="the priming id")

    async def on(self, kind: str) -> Any:
        """Return what the guide's handler of ``kind`` is called with, at the next event of that type."""
        assert self.stream is not None
        body = (await self.stream.next(kind)).json
        match kind:
            case "heartbeat":
                return body["timestamp"]
            case "error":
                return body["message"]
        return body["data"]

    async def approve_permission(self, approved: bool, reason: str = "") -> Any:
        response = await self._http.post(
            f"{self.served.api}/permission-response/{self.session}",
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
            content=json.dumps({"approved": approved, "reason": reason}, ensure_ascii=False).encode(),
        )
        return response.json()

    async def check_health(self) -> Any:
        response = await self._http.get(
            f"{self.served.api}/health/{self.session}", headers={"Authorization": f"Bearer {self.token}"}
        )
        return response.json()

    async def disconnect(self) -> None:
        await self._http.aclose()
        if self.stream is not None:
            await self.stream.close()


@asynccontextmanager
async def guide_client(valkey: Valkey, session: str, **settings: Any) -> AsyncIterator[GuideClient]:
    async with serve(make_settings(valkey.url, **settings)) as served:
        client = GuideClient(served, session, make_token(session))
        await client.connect()
        try:
            yield client
        finally:
            await client.disconnect()


async def test_guide_samples_arrive_with_every_field(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """What the notifier publishes with a sample's values has every field of the sample, of the same type and value."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        stream = client.stream
        assert stream is not None
        assert_like(json.loads(HEARTBEAT), (await stream.next("heartbeat")).json)
        await stream.primed()

        sample = json.loads(TOOL_STATUS)["data"]
        await notifier.tool_status(
            session, sample["tool_name"], sample["status"], parameters=sample["details"]["parameters"],
            risk_level=sample["details"]["risk_level"],
        )  # fmt: skip
        assert_like(json.loads(TOOL_STATUS), (await stream.next()).json)

        sample = json.loads(PERMISSION_REQUEST)["data"]
        asking = asyncio.create_task(
            notifier.request_permission(session, sample["tool_name"], sample["parameters"], sample["risk_level"])
        )
        assert_like(json.loads(PERMISSION_REQUEST), (await stream.next()).json)
        answer = json.loads(ANSWER)
        assert (await client.approve_permission(answer["approved"], answer["reason"]))["success"] is True
        decision = await asking
        assert (True, answer["reason"]) == (decision.approved, decision.reason)

        sample = json.loads(TOOL_RESULT)["data"]
        await notifier.tool_result(session, sample["tool_name"], sample["result"], success=sample["success"])
        assert_like(json.loads(TOOL_RESULT), (await stream.next("tool_result")).json)


async def test_guide_event_is_json_on_one_data_line_without_an_event_name(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """`onmessage` sees everything: no `event:` line, one `data:` line of JSON per event."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        url = f"{client.served.api}/events/{session}?token={client.token}"
        stream, seen = Stream(url), b""
        feed = stream._feed

        def keep(data: bytes) -> None:
            nonlocal seen
            seen += data
            feed(data)

        stream._feed = keep  # type: ignore[method-assign]
        async with stream:
            await stream.primed()
            value = {"line": "a\r\nb\n\nc\u2028d", "汉": "字😀"}
            await notifier.tool_result(session, "t", value)
            assert value == (await stream.next("tool_result")).json["data"]["result"]
        blocks = [block.split("\n") for block in seen.decode().split("\n\n")]
        names = [sorted(line.partition(":")[0] for line in block if line) for block in blocks]
        assert {("retry",), ("data",), ("id",), ("data", "id"), ()} == {tuple(block) for block in names}


@pytest.mark.parametrize(
    ("approved", "reason", "outcome"), [(True, "用户同意", "approved"), (False, "用户拒绝", "denied")]
)
async def test_guide_user_answers_and_every_card_is_told(
    valkey: Valkey, notifier: SimpleNotifier, approved: bool, reason: str, outcome: str
) -> None:
    """The guide's answer, without a request id, reaches the agent; the stream gets response_result and cleared."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {"file": "a.py"}, "high"))
        request = await client.on("permission_request")
        result = await client.approve_permission(approved, reason)
        assert result["success"] is True
        expected = {
            "request_id": request["request_id"], "tool_call_id": request["tool_call_id"], "tool_name": "file_edit",
            "approved": approved, "reason": reason, "status": outcome,
        }  # fmt: skip
        assert_like(expected, result["data"])
        assert isinstance(result["message"], str)
        decision = await asking
        assert (approved, approved, reason, outcome, "alice", request["request_id"]) == (
            bool(decision), decision.approved, decision.reason, decision.outcome, decision.resolved_by,
            decision.request_id,
        )  # fmt: skip
        told = await client.on("permission_response_result")
        expected = {"success": True, "request_id": request["request_id"], "approved": approved, "reason": reason}
        assert_like({**expected, "timestamp": "2024-01-15T10:30:00Z"}, told)
        cleared = await client.on("permission_cleared")
        expected = {
            "request_id": request["request_id"], "tool_call_id": request["tool_call_id"], "tool_name": "file_edit",
            "outcome": outcome, "reason": reason, "resolved_by": "alice",
        }  # fmt: skip
        assert_like(expected, cleared)


async def test_guide_answer_to_nothing_is_success_false(valkey: Valkey) -> None:
    """With nothing asked, the guide's client gets `success: false` and a message instead of an exception."""
    async with guide_client(valkey, session_name()) as client:
        result = await client.approve_permission(True)
        assert (False, "nothing_pending") == (result["success"], result["error"]["code"])


async def test_guide_health_shows_the_session(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """Health has every field of the contract and counts this client and its open request."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        await client.on("heartbeat")
        published = await notifier.tool_status(session, "t", "executing")
        asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {"file": "a.py"}, "high"))
        request = await client.on("permission_request")
        health = await client.check_health()
        assert health["success"] is True
        data = health["data"]
        assert (session, "ok", 1, 2) == (
            data["session_id"], data["status"], data["connections"], data["retained_events"],
        )  # fmt: skip
        assert published < data["last_event_id"]
        assert [request["request_id"]] == [pending["request_id"] for pending in data["pending_permissions"]]
        assert (True, float) == (data["redis"]["ok"], type(data["redis"]["latency_ms"]))
        assert data["timestamp"].endswith("Z")
        await client.approve_permission(False)
        assert not await asking


async def test_guide_reconnect_without_a_cursor_gets_a_snapshot(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """The guide's client reconnects without a cursor: it gets the present state, each event without an id."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        await client.on("heartbeat")
        await notifier.tool_status(session, "done", "executing", tool_call_id="c0")
        await notifier.tool_status(session, "done", "completed", tool_call_id="c0")
        await notifier.tool_result(session, "done", {"old": True}, tool_call_id="c0")
        await notifier.tool_status(session, "file_search", "pending", tool_call_id="c1")
        await notifier.tool_status(session, "file_search", "executing", tool_call_id="c1")
        asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {"file": "a.py"}, "high"))
        request = await client.on("permission_request")

        await client.connect()
        stream = client.stream
        assert stream is not None
        tip = await stream.primed()
        shown = [event for event in stream.records if event.data is not None and event.type != "heartbeat"]
        assert ["tool_status", "tool_result", "permission_request"] == [event.type for event in shown]
        assert {None} == {event.id for event in shown}
        status, result, again = (event.json["data"] for event in shown)
        assert ("executing", "c1") == (status["status"], status["tool_call_id"])
        assert {"old": True} == result["result"]
        assert request == again
        assert tip == (await client.check_health())["data"]["last_event_id"]

        await client.approve_permission(True, "用户同意")
        assert await asking
        assert "approved" == (await client.on("permission_cleared"))["outcome"]


async def test_guide_reconnect_clears_cards_that_were_settled_meanwhile(
    valkey: Valkey, notifier: SimpleNotifier
) -> None:
    """A card that was answered and a result that was cleared while the client was away go at its next connect."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {"file": "a.py"}, "high"))
        await client.on("permission_request")
        await notifier.tool_result(session, "t", 1)
        assert client.stream is not None
        await client.stream.close()
        await client.approve_permission(False, "用户拒绝")
        assert not await asking
        await notifier.clear_result(session)

        await client.connect()
        cleared = await client.on("permission_cleared")
        assert ("none", None, None) == (cleared["outcome"], cleared["request_id"], cleared["tool_call_id"])
        kinds = [event.type for event in client.stream.records if event.data is not None]
        assert "result_cleared" in kinds
        assert not {"tool_result", "permission_request"} & set(kinds)


async def test_guide_heartbeats_repeat_the_open_request(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """With a heartbeat an open card is sent again, without an id and with the same request_id."""
    session = session_name()
    async with guide_client(valkey, session, heartbeat_interval=0.2) as client:
        asking = asyncio.create_task(notifier.request_permission(session, "file_edit", {}, "high"))
        stream = client.stream
        assert stream is not None
        first = await stream.next("permission_request")
        again = await stream.next("permission_request")
        assert first.id is not None
        assert (None, first.json) == (again.id, again.json)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_guide_error_event_has_its_message_at_the_top(valkey: Valkey, notifier: SimpleNotifier) -> None:
    """`onError` gets `data.message` from the top of the event."""
    session = session_name()
    async with guide_client(valkey, session) as client:
        await client.on("heartbeat")
        await notifier.error(session, "the model is unavailable", code="model_unavailable")
        assert "the model is unavailable" == await client.on("error")
