"""The page with the package's client, which writes down what it gets: opened, waited for and read by a test."""

from __future__ import annotations

import json
from typing import Any

from agent_sse import SimpleNotifier
from browser.tabs import Room, Tab
from harness import make_token

REFUSED = r"status of 4\d\d"  # what Chromium itself writes of such an answer


async def start(room: Room, session: str, token: str | None = None, **options: Any) -> Tab:
    """Open a page with a client, and connect it. ``tokens`` beside the client's options are its provider's."""
    tab = await room.open("client")
    arguments = json.dumps([session, make_token(session) if token is None else token, options])
    await tab.do(f"start(...{arguments})")
    return tab


async def opened(tab: Tab, via: str = "stream") -> Tab:
    """Wait until the client is connected, and how, and has its cursor."""
    await tab.until("(via) => client.state.phase === 'open' && client.state.via === via && client.lastEventId", via)
    return tab


async def has_results(tab: Tab, count: int) -> list[Any]:
    """Wait for that many results, and return all that came."""
    await tab.until("(count) => results(events).length >= count", count)
    return list(await tab.do("results(events)"))


async def publish(notifier: SimpleNotifier, session: str, numbers: range) -> None:
    """Publish results that are numbers, each once its predecessor is in the Stream."""
    for number in numbers:
        await notifier.tool_result(session, "count", number)
