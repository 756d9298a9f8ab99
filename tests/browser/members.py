"""Tabs that share a session, and what is counted in it. No test lives here, and nothing of how tabs share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from playwright.async_api import Error as PlaywrightError

from agent_sse import SimpleNotifier
from browser.tabs import Room, Tab
from harness import DEADLINE, make_token, until

CRASHED = "the page crashed"
EVERYTHING = "0-0"  # the cursor before the first event


class Member:
    """A tab with the page `tabs`. ``requests`` are those that it made itself, as ``"GET http://…"``."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        self.requests: list[str] = []
        tab.page.on("request", lambda request: self.requests.append(f"{request.method} {request.url}"))

    def asked(self, part: str) -> list[str]:
        """The tab's requests so far that contain ``part``."""
        return [request for request in self.requests if part in request]

    async def join(self, session: str, token: str | None = None, **options: Any) -> Member:
        """Connect; ``options`` are the client's."""
        values = [session, make_token(session) if token is None else token, options]
        await self.tab.page.evaluate("([session, token, options]) => join(session, token, options)", values)
        return self

    async def opened(self) -> Member:
        """Wait until it is connected, by whichever way."""
        await self.tab.until("() => client.state.phase === 'open'")
        return self

    async def via(self) -> Any:
        """How events come: to a leader by `stream` or `poll`, to a follower by `tab`."""
        return await self.tab.do("client.state.via")

    async def numbers(self) -> list[int]:
        """What was counted, as it came."""
        return list(await self.tab.do("numbers()"))

    async def seen(self, *types: str) -> list[dict[str, Any]]:
        """The events of these types so far; all but heartbeats when none is named."""
        events: list[dict[str, Any]] = await self.tab.do("seen.map(({ id, type, data }) => ({ id, type, data }))")
        return [event for event in events if event["type"] in types or (not types and event["type"] != "heartbeat")]

    async def saw(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for an event of this type with these fields, and return its data."""
        found = await self.tab.until(
            """([kind, fields]) => seen.find(({ type, data }) =>
                type === kind && Object.entries(fields).every(([name, value]) => data[name] === value))""",
            [kind, fields],
        )
        return dict(found["data"])

    async def end(self) -> Any:
        """Wait for the client's end, and return its error's code and status."""
        return await self.tab.until("() => ends.at(-1)")

    async def connections(self) -> int:
        """The session's open streams, as the service counts them."""
        return int((await self.tab.do("client.checkHealth()"))["data"]["connections"])


async def load(room: Room, count: int) -> list[Member]:
    """Open tabs that have not joined anything yet."""
    return [Member(await room.open("tabs")) for _ in range(count)]


async def joined(room: Room, session: str, count: int, **options: Any) -> list[Member]:
    """Open tabs of ``session``, each connected before the next joins; the first one leads."""
    members = [await (await member.join(session, **options)).opened() for member in await load(room, count)]
    assert ["stream", *["tab"] * (count - 1)] == [await member.via() for member in members]
    return members


async def find_leader(members: list[Member]) -> Member:
    """Wait until exactly one of the tabs holds the connection, and return it."""

    async def leading() -> list[Member]:
        found = [member for member in members if await member.via() == "stream"]
        return found if len(found) == 1 else []

    return (await until(leading, what="one tab that leads"))[0]  # type: ignore[no-any-return]  # what `leading` gave


class Count:
    """Numbers published in a session, from 0 on; ``ids`` are their events' ids."""

    def __init__(self, notifier: SimpleNotifier, session: str) -> None:
        self.notifier = notifier
        self.session = session
        self.ids: list[str] = []

    async def publish(self, count: int, after: Callable[[int], Awaitable[None] | None] = lambda _: None) -> None:
        """Publish the next ``count`` numbers, and call ``after`` with each."""
        for _ in range(count):
            number = len(self.ids)
            self.ids.append(await self.notifier.tool_result(self.session, "count", number))
            waiting = after(number)
            if waiting is not None:
                await waiting

    async def check(self, members: Iterable[Member], first: int = 0) -> None:
        """Each tab has all numbers from ``first`` on, each once and in order."""
        for member in members:
            await member.tab.until("(number) => numbers().includes(number)", len(self.ids) - 1)
            assert list(range(first, len(self.ids))) == await member.numbers()


async def close(member: Member) -> None:
    """Close the tab."""
    await member.tab.page.close()


async def crash(member: Member) -> None:
    """Kill the tab's renderer."""
    member.tab.expect(CRASHED)
    page = member.tab.page
    async with asyncio.timeout(DEADLINE), page.expect_event("crash"):
        try:
            await page.goto("chrome://crash")
        except PlaywrightError:
            return
