"""Going away from a page and back by the browser's back/forward cache: no event is lost, and none comes twice."""

from __future__ import annotations

import pytest

from agent_sse import SimpleNotifier
from browser.members import EVERYTHING, Count, find_leader, joined
from browser.tabs import Room
from harness import session_name, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("place", [0, 1], ids=["leader", "follower"])
async def test_tabs_come_back_from_the_cache(room: Room, notifier: SimpleNotifier, place: int) -> None:
    """A tab goes away and back, twice: the cache takes it, for it holds nothing while away; it follows then, and has
    every event once. The other tab notices nothing."""
    session = session_name()
    count = Count(notifier, session)
    members = await joined(room, session, 2, lastEventId=EVERYTHING)
    gone, other = members[place], members[1 - place]
    await gone.tab.do("window.shown = []; addEventListener('pageshow', (event) => shown.push(event.persisted))")
    for times in (1, 2):
        await count.publish(20)
        await count.check(members)
        await gone.tab.page.goto("data:text/html,elsewhere")
        await count.publish(20)
        await count.check([other])
        assert other is await find_leader([other])
        await gone.tab.do("() => { setTimeout(() => history.back()); }")
        await gone.tab.page.wait_for_url(lambda url: url.startswith("http"), wait_until="commit")
        await gone.tab.until("(times) => window.shown?.length === times", times)
        await count.publish(20)
        await count.check(members)
        assert [True] * times == await gone.tab.do("shown")
        assert ("stream", "tab") == (await other.via(), await gone.via())
        await until(lambda: room.proxy.streams == 1)
