"""The event of every workload: a `tool_status` of about 200 bytes, with a mark that the load generator reads."""

from __future__ import annotations

import time

from agent_sse import events

TOOL = "file_search"
CALL = "c1"
START = "2026-01-01T00:00:00.000Z"


def mark(number: int) -> dict[str, str]:
    """Return the event's parameters: its number in the session, and CLOCK_REALTIME in nanoseconds."""
    return {"mark": f"{number}:{time.time_ns()}"}


def payload(number: int) -> bytes:
    """Return the event as one line of JSON, as `SimpleNotifier` makes it."""
    return events.encode(
        events.tool_status(
            status="executing", tool_name=TOOL, tool_call_id=CALL, parameters=mark(number), risk_level="low",
            start_time=START, at=events.timestamp(),
        )
    )  # fmt: skip
