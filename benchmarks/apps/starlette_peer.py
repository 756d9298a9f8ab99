"""sse-starlette's `EventSourceResponse`, with a redis-py pub/sub per connection. An application for uvicorn."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from sse_starlette.sse import EventSourceResponse

from benchmarks.apps.common import HEARTBEAT, check_token, lifespan, messages

app = FastAPI(lifespan=lifespan)


@app.get("/events/{session}")
async def stream(request: Request, session: str) -> EventSourceResponse:
    check_token(request, session)
    cursor = request.headers.get("last-event-id")

    async def frames() -> AsyncIterator[dict[str, str]]:
        async for event_id, data in messages(session, cursor):
            if data is None:
                yield {"comment": "subscribed"}
            elif event_id is None:
                yield {"data": data}
            else:
                yield {"id": event_id, "data": data}

    return EventSourceResponse(frames(), ping=max(1, round(HEARTBEAT)))
