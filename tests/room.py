"""A session with an agent, a running service, a user and an open stream: for the tests of the HTTP side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from agent_sse import SimpleNotifier
from agent_sse.permissions import PermissionDecision
from harness import (
    DEADLINE,
    Event,
    Served,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    serve,
    session_name,
    until,
)
from permission_time import let_time_pass

PUBLISH = "events:publish"
SHARED = ("permission_concurrency", "max_pending_permissions", "mask_keys", "permission_lease")


class Room:
    """``token`` is the user's, ``publisher`` the token of an agent in another language; ``agent`` needs none."""

    def __init__(self, valkey: Valkey, served: Served, agent: SimpleNotifier, http: httpx.AsyncClient) -> None:
        self.valkey = valkey
        self.served = served
        self.agent = agent
        self.http = http
        self.session = session_name()
        self.token = make_token(self.session)
        self.publisher = make_token(self.session, sub="bot", scope=PUBLISH)
        self.stream = Stream(served.events(self.session, self.token))
        self.asked: list[asyncio.Task[PermissionDecision]] = []

    async def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Call an endpoint of this session; ``{}`` in the path stands for its id. Returns status and JSON."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(token or self.token)
        url = f"{self.served.api}/{path.replace('{}', self.session)}"
        reply = await self.http.request(method, url, json=body, headers=sent)
        return reply.status_code, reply.json()

    def ask(self, tool: str = "file_edit", parameters: Any = None, **options: Any) -> asyncio.Task[PermissionDecision]:
        parameters = {"file": "a.py"} if parameters is None else parameters
        task = asyncio.create_task(self.agent.request_permission(self.session, tool, parameters, **options))
        self.asked.append(task)
        return task

    async def presented(self) -> dict[str, Any]:
        """The data of the next presentation; repeats beside a heartbeat have no id."""
        while (event := await self.stream.next("permission_request")).id is None:
            pass
        return dict(event.json["data"])

    async def answer(self, request_id: str, approved: bool = True, **more: Any) -> tuple[int, Any]:
        body = {"approved": approved, "request_id": request_id, **more}
        return await self.call("POST", "permission-response/{}", body)

    async def next(self, kind: str) -> Event:
        return await self.stream.next(kind)

    async def health(self) -> dict[str, Any]:
        return dict((await self.call("GET", "health/{}"))[1]["data"])

    async def audit(self) -> list[dict[str, Any]]:
        return list((await self.call("GET", "audit/{}"))[1]["data"]["entries"])

    async def is_queued(self, tool: str) -> None:
        async def found() -> bool:
            return tool in [row["tool_name"] for row in (await self.health())["pending_permissions"]]

        await until(found, what=f"{tool} is queued")

    async def pass_time(self, ms: int, **options: Any) -> None:
        async with self.valkey.client() as client:
            await let_time_pass(client, self.session, ms, **options)

    async def events(self) -> list[Any]:
        """All events that the session's Stream holds."""
        return [event for _, event in await self.valkey.entries(self.session)]


@asynccontextmanager
async def make_room(valkey: Valkey, **settings: Any) -> AsyncIterator[Room]:
    shared = {name: settings[name] for name in SHARED if name in settings}
    async with (
        SimpleNotifier.from_url(valkey.url, **shared) as agent,
        serve(make_settings(valkey.url, **settings)) as served,
        httpx.AsyncClient(timeout=DEADLINE) as http,
    ):
        room = Room(valkey, served, agent, http)
        async with room.stream:
            await room.stream.primed()
            yield room
            for task in room.asked:
                task.cancel()
            await asyncio.gather(*room.asked, return_exceptions=True)


def refused(code: str, status: int, reply: tuple[int, Any]) -> str:
    """Check that a reply is an error of protocol.md § 3, and return its message."""
    found, body = reply
    assert (status, False, code) == (found, body["success"], body["error"]["code"]), body
    assert len(body["message"]) > 10
    return str(body["message"])
