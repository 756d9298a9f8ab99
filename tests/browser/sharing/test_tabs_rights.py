"""What tabs of one profile share, and what not: nothing beyond a session and a subject, and nothing a token forbids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_sse import SimpleNotifier
from browser.members import EVERYTHING, Count, Member, find_leader, joined, load
from browser.tabs import Agent, Room, decided
from harness import make_token, session_name

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTHING_HIDDEN = ""
NO_LOCKS = "delete Navigator.prototype.locks"
NO_CHANNEL = "delete globalThis.BroadcastChannel"

# --- who shares -------------------------------------------------------------------------------------------------------


async def test_tabs_of_other_subjects_and_sessions_share_nothing(room: Room, notifier: SimpleNotifier) -> None:
    """Two users of one session, and one user of two sessions: a stream each, and no event of one session in the
    other's tab."""
    shared, other = session_name(), session_name()
    counts = [Count(notifier, shared), Count(notifier, other)]
    alice, bob, elsewhere = members = await load(room, 3)
    await alice.join(shared, lastEventId=EVERYTHING)
    await bob.join(shared, make_token(shared, sub="bob"), lastEventId=EVERYTHING)
    await elsewhere.join(other, lastEventId=EVERYTHING)
    for member in members:
        await member.opened()
    await asyncio.gather(counts[0].publish(30), counts[1].publish(20))
    await counts[0].check([alice, bob])
    await counts[1].check([elsewhere])
    assert ["stream"] * 3 == [await member.via() for member in members]
    assert 3 == room.proxy.streams
    await alice.tab.page.close()
    await counts[0].publish(10)
    await counts[0].check([bob])
    assert 20 == len(await elsewhere.numbers())
    assert 3 == len(room.proxy.asked("/events/"))


@pytest.mark.parametrize("first", [True, False], ids=["leads", "follows"])
async def test_tabs_a_token_without_the_session_sees_nothing(room: Room, notifier: SimpleNotifier, first: bool) -> None:
    """The same subject's token that does not list the session ends as `forbidden` with not one event, whether or not
    another tab streams the session."""
    session = session_name()
    count = Count(notifier, session)
    good, bad = await load(room, 2)
    bad.tab.expect("status of 403")
    if not first:
        await (await good.join(session, lastEventId=EVERYTHING)).opened()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(count.publish(50))
        await bad.join(session, make_token(session_name()), lastEventId=EVERYTHING)
        assert {"code": "forbidden", "status": 403} == await bad.end()
    if first:
        await good.join(session, lastEventId=EVERYTHING)
    await count.publish(10)
    await count.check([good])
    assert [] == await bad.tab.do("seen")
    assert ("stream", "ended") == (await good.via(), await bad.tab.do("client.state.phase"))


async def test_tabs_a_forged_token_sees_nothing(room: Room, notifier: SimpleNotifier) -> None:
    """A token that only claims the subject, and no service signed, gets no event from the tab that streams."""
    session = session_name()
    count = Count(notifier, session)
    (good,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    (bad,) = await load(room, 1)
    bad.tab.expect("status of 401")
    head, claims, signature = make_token(session).split(".")
    await bad.join(session, f"{head}.{claims}.{signature[::-1]}", lastEventId=EVERYTHING)
    await count.publish(20)
    assert {"code": "unauthorized", "status": 401} == await bad.end()
    await count.check([good])
    assert [] == await bad.tab.do("seen")


async def test_tabs_of_a_closed_session_all_end(room: Room, notifier: SimpleNotifier) -> None:
    """`close_session` ends each tab with `session_closed`, and none asks again."""
    session = session_name()
    members = await joined(room, session, 3)
    await notifier.close_session(session)
    assert ["session_closed"] * 3 == [(await member.end())["code"] for member in members]
    assert 1 == len(room.proxy.asked("/events/"))


# --- tabs alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "options"),
    [(NOTHING_HIDDEN, {"shareTabs": False}), (NO_LOCKS, {}), (NO_CHANNEL, {}), (f"{NO_LOCKS}; {NO_CHANNEL}", {})],
    ids=["not wanted", "no locks", "no channel", "neither"],
)
async def test_tabs_alone_have_a_stream_each(
    room: Room, notifier: SimpleNotifier, missing: str, options: dict[str, Any]
) -> None:
    """Where tabs must not share, or cannot for want of Web Locks or BroadcastChannel, each has its own stream."""
    await room.context.add_init_script(missing)
    session = session_name()
    count = Count(notifier, session)
    members = await load(room, 3)
    for member in members:
        await (await member.join(session, lastEventId=EVERYTHING, **options)).opened()
    await count.publish(20)
    await count.check(members)
    assert ["stream"] * 3 == [await member.via() for member in members]
    assert 3 == room.proxy.streams
    await members[0].tab.page.close()
    await count.publish(20)
    await count.check(members[1:])
    assert 3 == len(room.proxy.asked("/events/"))


# --- tokens that expire -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [0, 1], ids=["leader", "follower"])
async def test_tabs_an_expired_token_ends_its_own_tab_only(room: Room, notifier: SimpleNotifier, short: int) -> None:
    """A token expires, the leader's or a follower's: that tab ends as `unauthorized`, the others lose nothing."""
    session = session_name()
    count = Count(notifier, session)
    members = await load(room, 3)
    for number, member in enumerate(members):
        token = make_token(session, ttl=5.0 if number == short else 3600.0)
        await (await member.join(session, token, lastEventId=EVERYTHING)).opened()
    ended, others = members[short], [member for number, member in enumerate(members) if number != short]
    ended.tab.expect("status of 401")
    await count.publish(20)
    await count.check(members)
    async with asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(ended.end())
        while not ending.done():
            await count.publish(1)
            await others[0].tab.until("(number) => numbers().includes(number)", len(count.ids) - 1)
    assert "unauthorized" == ending.result()["code"]
    await count.publish(20)
    await count.check(others)
    assert await find_leader(others) is others[0]
    numbers = await ended.numbers()
    assert list(range(len(numbers))) == numbers
    assert not {19, len(count.ids) - 1} <= set(numbers)


async def test_tabs_a_follower_renews_its_token(room: Room, notifier: SimpleNotifier) -> None:
    """A follower whose token expires asks its `tokenProvider`, and goes on as a follower."""
    session = session_name()
    count = Count(notifier, session)
    (leader,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    (follower,) = await load(room, 1)
    follower.tab.expect("status of 401")
    tokens = [make_token(session, ttl=2.0), make_token(session)]
    await follower.tab.page.evaluate(
        """([session, tokens]) => {
            window.given = 0;
            join(session, "", { lastEventId: "0-0", tokenProvider: async () => tokens[window.given++] });
        }""",
        [session, tokens],
    )
    await follower.opened()
    await follower.tab.until("() => given === 2")
    await count.publish(20)
    await count.check([leader, follower])
    assert "tab" == await follower.via()


# --- answers of two tabs ----------------------------------------------------------------------------------------------


async def race(members: list[Member], answers: list[str]) -> list[Any]:
    """Evaluate an answer in each tab at the same time."""
    return await asyncio.gather(*(m.tab.do(answer) for m, answer in zip(members, answers, strict=True)))


async def assert_cleared(members: list[Member], request: str, outcome: str) -> None:
    """Each tab sees the card go, once, with this outcome; the heartbeat that follows has not said it again."""
    for member in members:
        await member.saw("permission_cleared", request_id=request)
        beats = len(await member.seen("heartbeat"))
        await member.tab.until("(n) => seen.filter(({ type }) => type === 'heartbeat').length > n", beats)
        cleared = [event["data"] for event in await member.seen("permission_cleared")]
        assert [outcome] == [data["outcome"] for data in cleared if data["request_id"] == request]


async def test_tabs_answer_at_once_and_one_wins(room: Room, agent: Agent) -> None:
    """Two tabs say yes and no to one request at the same time: the agent gets what won, `approvePermission` is true in
    that tab and false in the other, and both see the card go once."""
    session = session_name()
    members = await joined(room, session, 2)
    for member in members:
        member.tab.expect("status of 409")
    asking = agent.ask(session)
    requests = [await member.saw("permission_request") for member in members]
    assert requests[0] == requests[1]
    won = await race(members, ["client.approvePermission(true, 'yes')", "client.approvePermission(false, 'no')"])
    decision = await decided(asking)
    expected = ([True, False], "yes") if decision else ([False, True], "no")
    assert expected == (won, decision.reason)
    await assert_cleared(members, requests[0]["request_id"], "approved" if decision else "denied")


async def test_tabs_answer_at_once_and_the_other_hears_what_won(room: Room, agent: Agent) -> None:
    """Two tabs `answer` at the same time: one has the decision, the other's error is a 409 with the decision that
    won."""
    session = session_name()
    members = await joined(room, session, 2)
    for member in members:
        member.tab.expect("status of 409")
    asking = agent.ask(session)
    requests = [(await member.saw("permission_request"))["request_id"] for member in members]
    request = requests[0]
    said = await race(members, [f"answer('{request}', true, 'yes')", f"answer('{request}', false, 'no')"])
    decision = await decided(asking)
    winner, loser = said if decision else said[::-1]
    assert (409, "already_resolved") == (loser["status"], loser["code"])
    expected = (request, decision.approved, decision.reason)
    assert expected == (winner["request_id"], winner["approved"], winner["reason"])
    assert expected == (loser["data"]["request_id"], loser["data"]["approved"], loser["data"]["reason"])
    await assert_cleared(members, request, "approved" if decision else "denied")


async def test_tabs_a_double_click_in_a_follower_sends_once(room: Room, agent: Agent) -> None:
    """Two clicks in a follower are one POST with the id of the card shown; the leader sends nothing."""
    session = session_name()
    leader, follower = await joined(room, session, 2)
    asking = agent.ask(session)
    request = await follower.saw("permission_request")
    clicks = "Promise.all([client.approvePermission(true, 'yes'), client.approvePermission(true, 'yes')])"
    async with follower.tab.page.expect_request(lambda sent: sent.method == "POST") as sending:
        assert [True, True] == await follower.tab.do(clicks)
    body = (await sending.value).post_data_json
    assert {"approved": True, "reason": "yes", "request_id": request["request_id"]} == body
    assert (await decided(asking)).approved
    await assert_cleared([leader, follower], request["request_id"], "approved")
    assert (0, 1) == (len(leader.asked("POST ")), len(follower.asked("POST ")))
