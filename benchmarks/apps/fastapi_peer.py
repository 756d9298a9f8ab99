"""FastAPI's own `EventSourceResponse`, with a redis-py pub/sub per connection. An application for uvicorn."""

from __future__ import annotations

from collections.abc import AsyncIterable

from fastapi import FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from benchmarks.apps.common import check_token, lifespan, messages

app = FastAPI(lifespan=lifespan)


@app.get("/events/{session}", response_class=EventSourceResponse)
async def stream(request: Request, session: str) -> AsyncIterable[ServerSentEvent]:
    check_token(request, session)
    async for event_id, data in messages(session, request.headers.get("last-event-id")):
        if data is None:
            yield ServerSentEvent(comment="subscribed")
        else:
            yield ServerSentEvent(id=event_id, raw_data=data)
