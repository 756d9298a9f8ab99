"""Tabs that cannot or will not follow any longer: their listeners leave, their tokens and requests are refused."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import pytest
from playwright.async_api import Route

from agent_sse import SimpleNotifier
from browser.members import EVERYTHING, Count, Member, joined, load
from browser.tabs import LOST, Room
from harness import ServiceProcess, make_token, session_name, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def phases(member: Member) -> list[Any]:
    """The phases of a tab so far, each once until the next."""
    return [phase for phase, _ in groupby(await member.tab.do("phases"))]


async def test_tabs_a_follower_does_not_ask_again_and_again_for_what_nobody_has(
    room: Room, notifier: SimpleNotifier
) -> None:
    """A leader that knows of more than the service, as after a loss of history, makes no follower ask without end."""
    session = session_name()
    count = Count(notifier, session)
    leader, follower = await joined(room, session, 2, lastEventId=EVERYTHING)
    before = len(follower.asked("/poll/"))
    await leader.tab.do(f"""(() => {{
        const base = new URL("/agent_backend/api/sse", location.href);
        const channel = new BroadcastChannel(`agent-sse/1 ${{base}} {session} alice`);
        channel.postMessage({{ state: client.state, beat: 60000, tip: "99999999999999-0" }});
        channel.close();
    }})()""")
    await until(lambda: len(follower.asked("/poll/")) > before, what="the follower's poll")
    for _ in range(30):
        assert (await follower.tab.do("client.checkHealth()"))["success"] is True
    assert len(follower.asked("/poll/")) - before < 30  # without a pause there are several in the time of one other
    await count.publish(3)
    await count.check([leader, follower])


async def test_tabs_a_followers_listener_disconnects(room: Room, notifier: SimpleNotifier) -> None:
    """A follower that disconnects in a listener hears nothing more, and stays idle."""
    session = session_name()
    count = Count(notifier, session)
    leader, follower = await joined(room, session, 2, lastEventId=EVERYTHING)
    await follower.tab.do("void client.on('tool_result', () => client.disconnect())")
    await count.publish(5)
    await count.check([leader])
    await follower.tab.until("() => ends.length")
    assert [0] == await follower.numbers()
    assert ["idle", 1] == await follower.tab.do("[phases.at(-1), ends.length]")


async def test_tabs_a_listener_disconnects_while_its_tab_catches_up(room: Room, notifier: SimpleNotifier) -> None:
    """So does one that disconnects by an event that came while its tab was asking for what it missed."""
    session = session_name()
    count = Count(notifier, session)
    (leader,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    (follower,) = await load(room, 1)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        answer = await route.fetch()  # of before the events
        asked.set()
        await go_on.wait()
        await route.fulfill(response=answer)

    await follower.tab.page.route("**/poll/**", hold)
    await follower.join(session)
    await follower.tab.do("void client.on('tool_result', () => client.disconnect())")
    await asked.wait()
    await count.publish(5)
    await count.check([leader])
    go_on.set()
    await follower.tab.until("() => ends.length")
    assert [0] == await follower.numbers()
    assert ["idle", "idle"] == await follower.tab.do("[phases.at(-1), client.state.phase]")


async def test_tabs_a_leaders_listener_disconnects_while_it_waits(room: Room, service: ServiceProcess) -> None:
    """A leader that disconnects when it is told of the wait gives its lock back at once."""
    (member,) = await joined(room, session_name(), 1, reconnectDelay=10_000_000, maxReconnectDelay=10_000_000)
    member.tab.expect(*LOST)
    await member.tab.do("void client.on('state', ({ phase }) => { if (phase === 'waiting') client.disconnect(); })")
    await service.stop()
    await member.tab.until("() => ends.length")
    await member.tab.until("async () => (await navigator.locks.query()).held.length === 0")


async def test_tabs_a_follower_whose_provider_refuses_ends(room: Room, notifier: SimpleNotifier) -> None:
    """A follower whose token expired and whose `tokenProvider` fails from then on does not say `open` with what it
    cannot see, and ends when it failed too often; the leader goes on."""
    session = session_name()
    count = Count(notifier, session)
    (leader,) = await joined(room, session, 1, lastEventId=EVERYTHING)
    (follower,) = await load(room, 1)
    follower.tab.expect("status of 401")
    await follower.tab.page.evaluate(
        """([session, tokens]) => {
            const tokenProvider = async () => {
                if (!tokens.length) throw new Error("logged out");
                return tokens.shift();
            };
            join(session, "", { lastEventId: "0-0", tokenProvider, maxReconnectAttempts: 2 });
        }""",
        [session, [make_token(session, ttl=2.0)]],
    )
    await follower.opened()
    assert "max_attempts" == (await follower.end())["code"]
    assert ["connecting", "open", "connecting", "ended"] == await phases(follower)
    await count.publish(5)
    await count.check([leader])
    assert [] == await follower.numbers()


@pytest.mark.parametrize("status", [429, 503])
async def test_tabs_a_follower_that_is_always_refused_ends(room: Room, status: int) -> None:
    """A follower whose every request gets 429 or 503 is never `open`, and ends when it failed too often."""
    session = session_name()
    await joined(room, session, 1)
    (follower,) = await load(room, 1)
    follower.tab.expect(f"status of {status}")
    await follower.tab.page.route("**/poll/**", lambda route: route.fulfill(status=status, body="{}"))
    await follower.join(session, maxReconnectAttempts=2)
    assert "max_attempts" == (await follower.end())["code"]
    assert 3 == len(follower.asked("/poll/"))
    assert ["connecting", "ended"] == await phases(follower)


async def test_tabs_ignore_what_is_none_of_their_messages(room: Room, notifier: SimpleNotifier) -> None:
    """What else is said on their channel disturbs neither leader nor follower."""
    session = session_name()
    count = Count(notifier, session)
    members = await joined(room, session, 2, lastEventId=EVERYTHING)
    await members[0].tab.do(
        """(async () => {
            const { name } = (await navigator.locks.query()).held[0];
            const channel = new BroadcastChannel(name);
            for (const odd of [null, undefined, 0, "hello", [], {}, { hello: true }, { hello: false }, { state: {} }]) {
                channel.postMessage(odd);
            }
            window.locked = name;
        })()"""
    )
    await count.publish(5)
    await count.check(members)
    assert ["open", "open"] == [await member.tab.do("client.state.phase") for member in members]
    assert (await members[0].tab.do("locked")).startswith("agent-sse/1 ")
