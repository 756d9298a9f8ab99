"""Tabs that say nothing for a while, the leader or others: the rest goes on, and nothing comes twice afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent_sse import SimpleNotifier
from browser.members import EVERYTHING, Count, Member, close, find_leader, joined, load
from browser.tabs import Room
from harness import session_name, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def blocked(member: Member) -> AsyncIterator[None]:
    """The tab's main thread does nothing but wait for the answer to a synchronous request."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    script = "(url) => { const request = new XMLHttpRequest(); request.open('GET', url, false); request.send(); }"
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, asyncio.TaskGroup() as tasks:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        tasks.create_task(member.tab.page.evaluate(script, url))
        await asked.wait()
        try:
            yield
        finally:
            go_on.set()


async def test_tabs_go_on_while_the_leader_is_blocked(room: Room, notifier: SimpleNotifier) -> None:
    """The leader's page hangs: another one leads after a few heartbeats of the service, and the first has every event
    once when it is back."""
    session = session_name()
    count = Count(notifier, session)
    members = await joined(room, session, 3, lastEventId=EVERYTHING)
    await count.publish(20)
    await count.check(members)
    async with blocked(members[0]):
        await count.publish(20)
        await count.check(members[1:])
        leader = await find_leader(members[1:])
    await count.publish(20)
    await count.check(members)
    assert leader is await find_leader(members)
    await until(lambda: room.proxy.streams == 1)


async def test_tabs_a_new_one_does_not_wait_for_a_blocked_leader(room: Room, notifier: SimpleNotifier) -> None:
    """A tab that opens while the leader's page hangs gets its events all the same."""
    session = session_name()
    count = Count(notifier, session)
    (leader, late) = await load(room, 2)
    await (await leader.join(session, lastEventId=EVERYTHING)).opened()
    await count.publish(5)
    await count.check([leader])
    async with blocked(leader):
        await late.join(session, lastEventId=EVERYTHING)
        await count.publish(5)
        await count.check([late])
    await count.publish(5)
    await count.check([leader, late])


async def test_tabs_a_blocked_follower_catches_up(room: Room, notifier: SimpleNotifier) -> None:
    """A follower's page hangs while much is published: it has every event once afterwards, and takes nothing over."""
    session = session_name()
    count = Count(notifier, session)
    leader, follower = await joined(room, session, 2, lastEventId=EVERYTHING)
    beats = "() => seen.filter(({ type }) => type === 'heartbeat').length"
    async with blocked(follower):
        await count.publish(700)
        await count.check([leader])
        await leader.tab.until(f"(fewest) => ({beats})() >= fewest", 5 + await leader.tab.do(f"({beats})()"))
    await count.check([follower])
    await count.publish(10)
    await count.check([leader, follower])
    assert ("stream", "tab") == (await leader.via(), await follower.via())
    assert 1 == len(room.proxy.asked("/events/"))


async def test_tabs_leadership_falls_to_one_that_is_catching_up(room: Room, notifier: SimpleNotifier) -> None:
    """The leader goes while a follower waits for what it missed: the follower leads at once and goes on leading, by one
    stream."""
    session = session_name()
    count = Count(notifier, session)
    leader, follower = await load(room, 2)
    await (await leader.join(session, lastEventId=EVERYTHING)).opened()
    await count.publish(20)
    asked = asyncio.Event()
    await follower.tab.page.route("**/poll/**", lambda _: asked.set())  # and is never answered
    await follower.join(session, lastEventId=EVERYTHING)
    await asked.wait()
    await close(leader)
    await count.publish(20)
    await count.check([follower])
    beats = "(fewest) => seen.filter(({ type }) => type === 'heartbeat').length >= fewest"
    await follower.tab.until(beats, 6)  # longer than it would have waited to ask again
    assert ("stream", 1) == (await follower.via(), len(follower.asked("/events/")))
