"""One connection for all tabs of a session and subject, in a real Chromium against the real service.

Whatever happens to the tab that holds the connection, each tab gets each event once and in order.
"""

from __future__ import annotations

import asyncio

import pytest

from agent_sse import SimpleNotifier
from browser.members import EVERYTHING, Count, close, crash, find_leader, joined, load
from browser.tabs import LOST, Agent, Room
from harness import ServiceProcess, Valkey, make_token, session_name, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# --- one connection, whoever holds it ---------------------------------------------------------------------------------


async def test_tabs_seven_share_one_connection(room: Room, notifier: SimpleNotifier) -> None:
    """Seven tabs, one more than HTTP/1.1 lets connect, come while 300 events are published: each has all of them, by
    one stream."""
    session = session_name()
    count = Count(notifier, session)
    members = await load(room, 7)
    async with asyncio.TaskGroup() as joining:

        def join_now_and_then(number: int) -> None:
            if number % 43 == 0:
                joining.create_task(members[number // 43].join(session, lastEventId=EVERYTHING))

        await count.publish(300, join_now_and_then)
    await count.check(members)
    leader = await find_leader(members)
    assert (1, 1, 1) == (room.proxy.streams, len(room.proxy.asked("/events/")), len(leader.asked("/events/")))

    async def one() -> bool:
        return await members[6].connections() == 1

    await until(one, what="one connection")


async def test_tabs_the_next_leads_when_the_leader_goes(room: Room, notifier: SimpleNotifier) -> None:
    """The leader is closed, or its renderer killed, in the middle of what is published, until one tab is left: nothing
    is lost and nothing comes twice."""
    session = session_name()
    count = Count(notifier, session)
    members = await joined(room, session, 7, lastEventId=EVERYTHING)
    for leave in (close, crash) * 3:
        leader = await find_leader(members)
        members.remove(leader)
        await count.publish(20)
        leaving = asyncio.create_task(leave(leader))
        await count.publish(20)
        await leaving
        await count.publish(1)
        await count.check(members)
    assert ["stream"] == [await member.via() for member in members]
    await until(lambda: room.proxy.streams == 1)


async def test_tabs_a_late_one_has_the_snapshot_then_everything(
    room: Room, notifier: SimpleNotifier, agent: Agent
) -> None:
    """A tab that comes late sees the running call, the last result and the open card, then every later event."""
    session = session_name()
    count = Count(notifier, session)
    (first,) = await joined(room, session, 1)
    await notifier.tool_status(session, "search", "executing", tool_call_id="c1")
    asking = agent.ask(session)
    request = await first.saw("permission_request")
    (late,) = await load(room, 1)
    async with asyncio.TaskGroup() as joining:

        def join_halfway(number: int) -> None:
            if number == 50:
                joining.create_task(late.join(session))

        await count.publish(100, join_halfway)
    await late.opened()
    await count.publish(100)
    snapshot = [event for event in await late.seen() if event["id"] is None]
    results = [event["data"]["result"] for event in snapshot if event["type"] == "tool_result"]
    assert 1 == len(results)
    await count.check([late], first=results[0] + 1)
    await count.check([first])
    assert ["c1"] == [event["data"]["tool_call_id"] for event in snapshot if event["type"] == "tool_status"]
    assert [request] == [event["data"] for event in await late.seen("permission_request")]
    assert await late.tab.do("client.approvePermission(false)") is True
    assert not await asking


async def test_tabs_a_late_one_goes_on_after_its_cursor(room: Room, notifier: SimpleNotifier) -> None:
    """A follower with `lastEventId` gets what is after it, more than one page of it too, and no snapshot."""
    session = session_name()
    count = Count(notifier, session)
    (first,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    await count.publish(700)
    (late,) = await load(room, 1)
    await late.join(session, lastEventId=count.ids[9])
    await count.check([late], first=10)
    await count.publish(10)
    await count.check([late], first=10)
    await count.check([first])
    assert [] == [event for event in await late.seen() if event["id"] is None]
    assert [] == late.asked("/events/")


async def test_tabs_a_follower_is_open_once_it_has_its_snapshot(room: Room, valkey: Valkey) -> None:
    """A follower's state is `open` with its snapshot; it needs no event or heartbeat to say so."""
    quiet = {"AGENT_SSE_REDIS_URL": valkey.url, "AGENT_SSE_HEARTBEAT_INTERVAL": "600"}
    async with ServiceProcess(quiet) as service:
        room.proxy.upstream = lambda: service.url
        _, follower = await joined(room, session_name(), 2)
        assert "none" == (await follower.saw("permission_cleared"))["outcome"]
        await room.context.close()


# --- the service and the tabs' pages come and go ----------------------------------------------------------------------


async def test_tabs_reconnect_by_one_after_a_restart(
    room: Room, service: ServiceProcess, notifier: SimpleNotifier
) -> None:
    """The service restarts under three tabs: only the leader asks for the stream again, and all have everything."""
    session = session_name()
    count = Count(notifier, session)
    patient = {"reconnectDelay": 50, "maxReconnectDelay": 500, "maxReconnectAttempts": 1000}
    members = await joined(room, session, 3, lastEventId=EVERYTHING, **patient)
    for member in members:
        member.tab.expect(*LOST, r"status of 50")
    await count.publish(10)
    await count.check(members)
    await service.stop()
    await members[2].tab.until("() => client.state.phase === 'waiting'")
    await count.publish(10)
    await service.start()
    await count.publish(10)
    await count.check(members)
    assert members[0] is await find_leader(members)
    assert [[], []] == [member.asked("/events/") for member in members[1:]]
    await until(lambda: room.proxy.streams == 1)


async def test_tabs_a_visible_follower_hurries_the_leader(room: Room, service: ServiceProcess) -> None:
    """A user who comes to a follower does not wait for the end of the leader's long wait."""
    members = await joined(room, session_name(), 2, reconnectDelay=10_000_000, maxReconnectDelay=10_000_000)
    for member in members:
        member.tab.expect(*LOST)
    await service.stop()
    await members[1].tab.until("() => client.state.phase === 'waiting'")
    await service.start()
    await members[1].tab.do("dispatchEvent(new Event('visibilitychange'))")
    await members[1].opened()


@pytest.mark.parametrize("place", [0, 1])
async def test_tabs_disconnect_and_connect_again(room: Room, notifier: SimpleNotifier, place: int) -> None:
    """The leader, or a follower, disconnects and connects again, and has what came meanwhile. So do the others."""
    session = session_name()
    count = Count(notifier, session)
    members = await joined(room, session, 3, lastEventId=EVERYTHING)
    await count.publish(10)
    await count.check(members)
    await members[place].tab.do("client.disconnect()")
    others = [member for member in members if member is not members[place]]
    await count.publish(10)
    await count.check(others)
    assert 10 == len(await members[place].numbers())
    await members[place].tab.do("client.connect()")
    await count.publish(10)
    await count.check(members)
    assert await find_leader(members) in others
    await until(lambda: room.proxy.streams == 1)


async def test_tabs_two_clients_in_one_page_share(room: Room, notifier: SimpleNotifier) -> None:
    """Two clients of one page are as two tabs: one stream, and both have everything."""
    session = session_name()
    count = Count(notifier, session)
    (member,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    await member.tab.page.evaluate(
        """([session, token]) => {
            window.other = new SSEClient(session, token, { lastEventId: "0-0" });
            window.heard = [];
            other.on("tool_result", ({ result }) => heard.push(result));
            other.connect();
        }""",
        [session, make_token(session)],
    )
    await count.publish(20)
    await count.check([member])
    await member.tab.until("() => heard.includes(19)")
    assert list(range(20)) == await member.tab.do("heard")
    await member.tab.do("client.disconnect()")
    await count.publish(20)
    await member.tab.until("() => heard.includes(39)")
    assert (list(range(40)), 20) == (await member.tab.do("heard"), len(await member.numbers()))
    assert 2 == len(room.proxy.asked("/events/"))


async def test_tabs_a_follower_without_a_token_disturbs_nobody(room: Room, notifier: SimpleNotifier) -> None:
    """A follower whose `tokenProvider` fails disturbs nobody, and nothing in its page is left unhandled; with a token
    it goes on."""
    session = session_name()
    count = Count(notifier, session)
    (leader,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    (follower,) = await load(room, 1)
    follower.tab.expect("status of 401")
    forged = make_token(session)[:-8] + "AAAAAAAA"
    await follower.tab.page.evaluate(
        """([session, tokens]) => {
            window.asked = 0;
            window.tokens = tokens;
            const tokenProvider = async () => {
                asked++;
                if (!tokens.length) throw new Error("no token for you");
                return tokens.shift();
            };
            join(session, "", { lastEventId: "0-0", tokenProvider });
        }""",
        [session, [forged]],
    )
    await follower.tab.until("() => asked >= 4")
    await count.publish(10)
    await count.check([leader])
    assert [] == await follower.numbers()
    await follower.tab.do(f"tokens.push('{make_token(session)}')")
    await count.check([leader, follower])


async def test_tabs_one_whose_first_token_fails_connects_all_the_same(room: Room, notifier: SimpleNotifier) -> None:
    """A `tokenProvider` that fails at first, as it does without a network, delays a tab and does not end it."""
    session = session_name()
    count = Count(notifier, session)
    (member,) = await load(room, 1)
    await member.tab.page.evaluate(
        """([session, token]) => {
            window.asked = 0;
            const tokenProvider = async () => {
                if (++asked <= 2) throw new Error("no network");
                return token;
            };
            join(session, "", { lastEventId: "0-0", reconnectDelay: 50, tokenProvider });
        }""",
        [session, make_token(session)],
    )
    await count.publish(10)
    await count.check([member])
    assert 3 == await member.tab.do("asked")
