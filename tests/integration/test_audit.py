"""The audit: an entry for every way in which something is decided, readable in pages, and kept when all else goes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_sse import merge_patch, user_routes
from harness import Valkey, make_token, session_name, until
from room import PUBLISH, Room, make_room, refused

PARAMETERS = {"file": "a.py", "password": "hunter2"}
SHOWN = {"file": "a.py", "password": "••••"}


@pytest.fixture
async def room(valkey: Valkey) -> AsyncIterator[Room]:
    async with make_room(valkey) as made:
        yield made


def digest(value: Any) -> str:
    canonical = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


async def one_entry(room: Room, kind: str = "decision") -> dict[str, Any]:
    (entry,) = [entry for entry in await room.audit() if entry["kind"] == kind]
    return entry


# -- every decision has its entry -------------------------------------------------------------------------------------


async def test_answer_is_audited_with_all_that_was_decided(room: Room) -> None:
    """An entry says who decided what on which parameters, when; the digest is of the real ones, which are masked."""
    waiting = room.ask(parameters=PARAMETERS, server="files", tool_call_id="c1", risk_level="medium")
    shown = await room.presented()
    await room.answer(shown["request_id"], reason="ok \u2028 \U0001f600")
    await waiting
    entry = await one_entry(room)
    assert {
        "id": entry["id"], "at": entry["at"], "kind": "decision", "request_id": shown["request_id"],
        "tool_call_id": "c1", "tool_name": "file_edit", "server": "files", "risk_level": "medium",
        "digest": digest(PARAMETERS), "parameters": SHOWN, "outcome": "approved", "by": "answer",
        "resolved_by": "alice", "reason": "ok \u2028 \U0001f600",
    } == entry  # fmt: skip
    assert entry["at"].endswith("Z")


async def test_every_end_of_a_request_is_audited(room: Room) -> None:
    """Answer, grant, expiry, withdrawal, a lost agent and a cancelled call: each leaves one entry that says which."""
    expected = []

    async def asked(**options: Any) -> tuple[asyncio.Task[Any], str]:
        waiting = room.ask(**options)
        return waiting, (await room.presented())["request_id"]

    async def cleared(request_id: str) -> None:
        while (await room.next("permission_cleared")).json["data"]["request_id"] != request_id:
            pass

    waiting, request_id = await asked(parameters={"n": 1})
    await room.answer(request_id, False)
    await waiting
    expected.append(("answer", "denied", "alice"))

    waiting, request_id = await asked(parameters={"n": 2})
    _, body = await room.answer(request_id, scope="session")
    await waiting
    expected.append(("answer", "approved", "alice"))
    assert await room.ask(parameters={"n": 2})
    expected.append(("grant", "approved", f"grant:{body['data']['grant_id']}"))

    waiting, _ = await asked(parameters={"n": 3}, timeout=100.0)
    await room.pass_time(100_000)
    await waiting
    expected.append(("expiry", "expired", "timeout"))

    waiting, request_id = await asked(parameters={"n": 4})
    waiting.cancel()
    await cleared(request_id)
    expected.append(("withdrawal", "cancelled", "agent"))

    await room.pass_time(1000)  # nobody waits who would present it after the gap
    status, body = await room.call(
        "POST", "permission-request/{}", {"tool_name": "t", "parameters": {}, "risk_level": "low", "timeout": 300},
        token=room.publisher,
    )  # fmt: skip
    assert 202 == status
    await room.pass_time(15_000, dead=[body["data"]["request_id"]])
    await cleared(body["data"]["request_id"])
    expected.append(("lease", "cancelled", "lease"))

    waiting, _ = await asked(parameters={"n": 5}, tool_call_id="c5")
    await room.call("POST", "cancel/{}", {"tool_call_id": "c5"})
    assert not await waiting
    expected.append(("cancel", "cancelled", "alice"))

    found = [entry for entry in await room.audit() if entry["kind"] == "decision"]
    assert expected == [(entry["by"], entry["outcome"], entry["resolved_by"]) for entry in found]
    assert sorted(entry["id"] for entry in found) == [entry["id"] for entry in found]


async def test_never_presented_request_is_audited(room: Room) -> None:
    """Also what nobody ever saw has its entry, with the reason."""
    room.ask("first")
    await room.presented()
    waiting = room.ask("second", timeout=100.0)
    await room.is_queued("second")
    await room.pass_time(100_000)
    assert not await waiting
    (entry,) = [entry for entry in await room.audit() if entry["tool_name"] == "second"]
    assert ("expired", "never_presented") == (entry["outcome"], entry["reason"])


async def test_agents_own_decision_is_appended(room: Room) -> None:
    """What an agent's policy decides stands in the same audit, in the order of the decisions."""
    entry = {"kind": "decision", "tool_name": "t", "outcome": "denied", "by": "policy", "rule": "no-rm"}
    entry_id = await room.agent.audit(room.session, entry)
    assert {"id": entry_id, **entry}.items() <= (await one_entry(room)).items()


async def test_cancellation_and_revocation_are_audited(room: Room) -> None:
    """Who cancelled a running call, and who took back a remembered answer, is there too."""
    async with room.agent.tool_call(room.session, "t", tool_call_id="c1") as call:
        waiting = room.ask()
        _, body = await room.answer((await room.presented())["request_id"], scope="session")
        await waiting
        await room.call("DELETE", f"grants/{{}}/{body['data']['grant_id']}")
        call.result = 1
    await room.agent.tool_status(room.session, "t", "executing", tool_call_id="c2", details={"cancellable": True})
    await room.call("POST", "cancel/{}", {"tool_call_id": "c2", "reason": "stop"})
    revoked, cancelled = await one_entry(room, "revocation"), await one_entry(room, "cancellation")
    assert (body["data"]["grant_id"], "alice", "file_edit") == (
        revoked["grant_id"],
        revoked["resolved_by"],
        revoked["grant"]["tool_name"],
    )
    assert ("c2", "alice", "stop") == (cancelled["tool_call_id"], cancelled["resolved_by"], cancelled["reason"])


async def test_answer_that_loses_leaves_no_entry(room: Room) -> None:
    """Exactly one entry for one request, however many answer it."""
    waiting = room.ask()
    shown = await room.presented()
    await asyncio.gather(*(room.answer(shown["request_id"], n % 2 == 0) for n in range(10)))
    await waiting
    assert 1 == len(await room.audit())


# -- reading ----------------------------------------------------------------------------------------------------------


async def fill(room: Room, count: int, size: int = 0) -> list[str]:
    return [await room.agent.audit(room.session, {"kind": "note", "n": n, "text": "x" * size}) for n in range(count)]


async def pages(room: Room, limit: int) -> list[list[str]]:
    found, after = [], ""
    while True:
        _, body = await room.call("GET", f"audit/{{}}?limit={limit}{after}")
        found.append([entry["id"] for entry in body["data"]["entries"]])
        if body["data"]["next"] is None:
            return found
        assert body["data"]["next"] == found[-1][-1]
        after = f"&after={body['data']['next']}"


@pytest.mark.parametrize("limit", [1, 3, 7, 50, 51, 1000])
async def test_pages_have_every_entry_once(room: Room, limit: int) -> None:
    """Whatever the limit, following `next` gives each entry once, in order, and ends."""
    ids = await fill(room, 50)
    found = await pages(room, limit)
    assert ids == [entry_id for page in found for entry_id in page]
    assert [limit] * (50 // limit) + [50 % limit] * (50 % limit > 0) == [len(page) for page in found]


async def test_reading_goes_on_where_it_ended(room: Room) -> None:
    """After the last entry there is nothing, and later what came since: a program can follow the audit."""
    assert {"entries": [], "next": None} == (await room.call("GET", "audit/{}"))[1]["data"]
    (first,) = await fill(room, 1)
    path = f"audit/{{}}?after={first}"
    assert [] == (await room.call("GET", path))[1]["data"]["entries"]
    (second,) = await fill(room, 1)
    assert [second] == [entry["id"] for entry in (await room.call("GET", path))[1]["data"]["entries"]]


async def test_response_is_bounded_in_bytes(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response ends before it grows too large, with at least one entry, and says that there is more."""
    monkeypatch.setattr(user_routes, "AUDIT_BYTES", 2500)
    ids = await fill(room, 6, size=1000)
    assert [ids[:2], ids[2:4], ids[4:]] == await pages(room, 1000)
    monkeypatch.setattr(user_routes, "AUDIT_BYTES", 10)
    assert [[entry_id] for entry_id in ids] == await pages(room, 1000)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=1.5", "limit=1e2", "limit=1&limit=1",
        "limit=%31%00", "limit=" + "9" * 900, "limit=१",
        "after=x", "after=", "after=0", "after=-", "after=(1-1", "after=1-1&after=1-1", "after=01-1", "after=1-1%0a",
        "after=99999999999999999999-0", "after=%ff",
    ],
)  # fmt: skip
async def test_wrong_query_is_refused(room: Room, query: str) -> None:
    """A limit or position that is none is 422 and named."""
    message = refused("invalid_field", 422, await room.call("GET", f"audit/{{}}?{query}"))
    assert message.startswith(query.partition("=")[0] + ":")


async def test_reading_needs_the_right_to_read(room: Room) -> None:
    """Only who may read the session's events may read its audit."""
    refused("scope_missing", 403, await room.call("GET", "audit/{}", token=room.publisher))
    refused("session_forbidden", 403, await room.call("GET", "audit/{}", token=make_token(session_name())))
    reply = await room.http.get(f"{room.served.api}/audit/{room.session}?token={room.token}")
    refused("token_in_url", 401, (reply.status_code, reply.json()))
    token = make_token(room.session, scope=f"events:read {PUBLISH}")
    assert 200 == (await room.call("GET", "audit/{}", token=token))[0]


# -- keeping ----------------------------------------------------------------------------------------------------------


async def test_audit_outlives_its_session(room: Room) -> None:
    """Closing a session erases all of it but the audit, which has a lifetime of its own."""
    waiting = room.ask()
    await room.answer((await room.presented())["request_id"])
    await waiting
    before = await room.audit()
    await room.agent.close_session(room.session)
    assert before == await room.audit()
    async with room.valkey.client() as client:

        async def left() -> bool:
            keys = [key.decode() async for key in client.scan_iter(f"*{room.session}*")]
            return [f"agent_sse:{{{room.session}}}:audit"] == [key for key in keys if not key.endswith(":closed")]

        await until(left, what="only the audit is left")
        month = 30 * 24 * 3600 * 1000
        assert month - 600_000 < await client.pttl(f"agent_sse:{{{room.session}}}:audit") <= month


async def test_audit_is_bounded(valkey: Valkey) -> None:
    """A session keeps about as many entries as the setting says; the oldest go."""
    async with make_room(valkey, audit_entries=200) as room:
        await room.served.app.state.agent_sse.audit.append(room.session, {"kind": "note"})
        service = room.served.app.state.agent_sse
        for n in range(600):
            last = await service.audit.append(room.session, {"kind": "note", "n": n})
        found = await pages(room, 1000)
        assert last == found[-1][-1]
        assert 200 <= sum(map(len, found)) <= 300


async def test_edit_that_comes_out_otherwise_does_not_run_and_is_audited(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the agent's edit of the real parameters is not what was approved, nothing runs, and the audit says so."""
    waiting = room.ask(parameters=PARAMETERS, editable=True, tool_call_id="c1")
    shown = await room.presented()
    apply = merge_patch.apply

    def wrong(target: Any, patch: Any) -> Any:  # for the agent, who alone has the real password
        return {**apply(target, patch), **({"force": True} if target.get("password") == "hunter2" else {})}

    monkeypatch.setattr("agent_sse.merge_patch.apply", wrong)
    assert 200 == (await room.answer(shown["request_id"], parameters_patch={"file": "b.py"}))[0]
    decision = await waiting
    assert (False, "cancelled", "agent") == (decision.approved, decision.outcome, decision.resolved_by)
    assert decision.parameters is None
    entry = await one_entry(room, "refusal")
    assert ("c1", "file_edit", "agent") == (entry["tool_call_id"], entry["tool_name"], entry["by"])


async def test_foreign_entry_hides_no_other(room: Room) -> None:
    """What somebody else wrote into the audit is shown as text, and what stands around it as ever."""
    await room.agent.audit(room.session, {"kind": "decision", "tool_call_id": "c1"})
    async with room.valkey.client() as client:
        for text in (b"no json", b"[1]", b'{"a": NaN}', b"\xff"):
            await client.xadd(f"agent_sse:{{{room.session}}}:audit", {"d": text})
    await room.agent.audit(room.session, {"kind": "decision", "tool_call_id": "c2"})
    assert ["decision", *["unreadable"] * 4, "decision"] == [entry["kind"] for entry in await room.audit()]
