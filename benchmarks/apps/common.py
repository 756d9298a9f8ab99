"""What both Python peers do, as their users write it: check the token, subscribe, replay after the cursor, listen."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as redis
from fastapi import FastAPI, HTTPException, Request
from jose import JWTError, jwt

SECRET = os.environ["BENCH_SECRET"]
HEARTBEAT = float(os.environ["BENCH_HEARTBEAT"])
# redis-py 8 gives up at 100 connections; here every stream needs one.
client = redis.Redis.from_url(os.environ["BENCH_REDIS"], max_connections=100_000)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    await client.aclose()


def check_token(request: Request, session: str) -> None:
    """Refuse a request whose bearer token does not list the session."""
    try:
        claims = jwt.decode(request.headers.get("authorization", "").removeprefix("Bearer "), SECRET, ["HS256"])
    except JWTError:
        raise HTTPException(401) from None
    if session not in claims.get("sessions", []):
        raise HTTPException(403)


async def messages(session: str, cursor: str | None) -> AsyncIterator[tuple[str | None, str | None]]:
    """Yield ``(id, data)``: first ``(None, None)`` once subscribed, then what is after the cursor, then what comes."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(session)
        async for message in pubsub.listen():
            if message["type"] == "message":
                yield None, message["data"].decode()
                continue
            yield None, None
            if cursor:
                for event_id, fields in await client.xrange(f"history:{session}", min=f"({cursor}"):
                    yield event_id.decode(), fields[b"d"].decode()
