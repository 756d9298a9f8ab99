"""What hostile agents put into events is text in the component, in every field: no markup, no script, no disguise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agent_sse import SimpleNotifier
from agent_sse.store import Publish
from browser.monitor import Monitor, show
from browser.tabs import Room
from harness import session_name

HOSTILE = [
    "<img src=x onerror=\"window.ran='img'\">",
    "</pre></details><script>window.ran='script'</script>",
    "\"'><svg onload=\"window.ran='svg'\">",
    "javascript:window.ran='url'",
    "a\u202etxt.exe\u2066\u200b\x1b[31m\x00\u2028b",
    "__proto__",
    "{{constructor.constructor('window.ran=1')()}}",
]
ODD = [{HOSTILE[0]: HOSTILE[1]}, [HOSTILE[2]], None, True, -1, "", {}, [], 1e300]  # where a text belongs, and elsewhere
TIME = "2026-01-15T10:30:00.000Z"
CALL = {"tool_name": "tool", "tool_call_id": "call", "timestamp": TIME}
PROGRESS = {"progress": 1, "total": 3, "message": "m"}
REQUEST = {
    **CALL, "request_id": "pr_1", "parameters": {"key": "value"}, "risk_level": "high", "status": "pending",
    "expires_at": "2099-01-15T10:30:00Z", "editable": True, "scopes": ["once", "session"], "server": "srv",
    "masked": ["/key"], "truncated": True, "digest": "d", "message": "m",
}  # fmt: skip
SETTLED = {
    "request_id": "pr_0", "reason": "r", "scope": "session", "covers": "tool", "grant_id": "g",
    "parameters_patch": {"key": "v"}, "edited_parameters": {"key": "v"}, "edited_digest": "d", "timestamp": TIME,
}  # fmt: skip
DETAILS = {
    "parameters": {"key": ["value"]}, "risk_level": "low", "start_time": TIME, "progress": PROGRESS, "server": "srv",
    "parent_tool_call_id": "parent", "cancellable": True, "original_parameters": {"key": 1}, "more": "m",
}  # fmt: skip
# Each type of event with every field it can have, and the texts beside which the field's own is shown.
EVENTS: dict[str, dict[str, Any]] = {
    "tool_status": {"data": {**CALL, "status": "executing", "details": DETAILS}},
    "permission_request": {"data": REQUEST},
    "permission_response_result": {"data": {**SETTLED, "success": True, "approved": True}},
    "permission_cleared": {
        "data": {**SETTLED, "tool_call_id": "call", "tool_name": "tool", "outcome": "denied", "resolved_by": "bob"}
    },
    "tool_result": {"data": {**CALL, "result": {"key": "value"}, "success": False, "error": "e", "duration_ms": 5}},
    "result_cleared": {"data": {"tool_call_id": "other", "timestamp": TIME}},
    "error": {"message": "m", "code": "c"},
}
# Fields whose text is shown as it is, and those that are shown as JSON. The others are ids, times and words of which
# only their meaning is shown.
PLAIN = {
    "tool_status": ["tool_name", "status", "details/risk_level", "details/server", "details/parent_tool_call_id",
                    "details/progress/message", "details/parameters"],
    "permission_request": ["tool_name", "risk_level", "server", "message", "masked/0", "digest"],
    "permission_cleared": ["tool_name", "outcome", "reason", "resolved_by"],
    "tool_result": ["tool_name", "error", "result"],
    "error": ["message", "code"],
}  # fmt: skip
QUOTED = {
    "tool_status": ["details/parameters/key/0"],
    "permission_request": ["parameters/key", "parameters"],
    "tool_result": ["result/key"],
}


def seen(text: str) -> str:
    """The text as it is to be seen: each character that is not printable by its number."""
    return "".join(char if char.isprintable() else f"\\u{{{ord(char):x}}}" for char in text)


def expected(kind: str, path: tuple[Any, ...], text: str) -> str | None:
    """What has to be seen of ``text`` in a field; None where nothing has."""
    name = "/".join(str(part) for part in path if part != "data")
    if name in PLAIN.get(kind, ()):
        return seen(text)
    return seen(json.dumps(text, ensure_ascii=False)) if name in QUOTED.get(kind, ()) else None


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each text, number and truth value, and of each object and list, in a value; keys included."""
    if path:
        yield path
    for name in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from fields(value[name], (*path, name))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


class Wire:
    """Puts any event into a session's stream, past what checks the agents' own calls."""

    def __init__(self, notifier: SimpleNotifier, session: str) -> None:
        self.notifier = notifier
        self.session = session

    async def send(self, kind: str, event: dict[str, Any]) -> None:
        store = (await self.notifier._ready()).store
        payload = json.dumps({"type": kind, **event}).encode()
        call = store.publish_call(Publish(self.session, payload, "other"), session_name(), 1, 0)
        await store.backend.run(call)

    async def forget(self) -> None:
        """Make the component forget all it has."""
        reset = {"reason": "history_lost", "last_event_id": "0-0", "timestamp": TIME}
        await self.send("stream_reset", {"data": reset})

    async def shown(self, monitor: Monitor, mark: str) -> None:
        """Wait until the component has shown what was sent before."""
        await self.send("tool_status", {"data": {**CALL, "tool_call_id": mark, "status": "pending", "details": {}}})
        await monitor.call(mark).wait_for(state="attached")


CHECK = """() => {
    const foreign = 'script, img, svg, iframe, object, embed, a, form, link, meta, style';
    const odd = [...document.querySelectorAll('.agent-sse-monitor *')].filter((node) => node.matches(foreign)
        || [...node.attributes].some(({ name }) => name.startsWith('on') || ['href', 'src', 'style'].includes(name)));
    const words = document.querySelector('.agent-sse-monitor').innerText;
    const labels = [...document.querySelectorAll('[aria-label]')].map((node) => node.ariaLabel).join(' ');
    const unseen = (words + labels).match(/[\\u202e\\u2066\\u200b\\x1b\\x00\\u2028]/);
    return { ran: window.ran ?? null, odd: odd.map((node) => node.outerHTML), unseen: unseen?.[0] ?? null, words };
}"""
CLEAN = {"ran": None, "odd": [], "unseen": None}


def told_apart(event: dict[str, Any], path: tuple[Any, ...], number: int) -> dict[str, Any]:
    """The event with ids of its own, but in the field at ``path``."""
    data = event.get("data")
    if not isinstance(data, dict):
        return event
    ids = {"tool_call_id": f"call{number}", "request_id": f"pr_{number}"}
    return {**event, "data": {**data, **{key: ids[key] for key in ids if key in data and path != ("data", key)}}}


async def test_component_shows_hostile_fields_as_text(room: Room, notifier: SimpleNotifier) -> None:
    """Each hostile text in each field of each event: nothing runs, nothing becomes an element, and where the field is
    shown it is the text itself, with what is invisible by its number. A value of the wrong kind breaks nothing."""
    monitor = await show(room, session_name())
    wire = Wire(notifier, monitor.session)
    for kind, event in EVENTS.items():
        for path in fields(event):
            await hostile_field(monitor, wire, kind, path)


async def hostile_field(monitor: Monitor, wire: Wire, kind: str, path: tuple[Any, ...]) -> None:
    name = "/".join(str(part) for part in (kind, *path))
    step = {"error": 1, "permission_cleared": 5}.get(kind, len(HOSTILE))  # how many of them are shown at a time
    for first in range(0, len(HOSTILE), step):
        texts = HOSTILE[first : first + step]
        await wire.forget()
        for number, text in enumerate(texts):
            await wire.send(kind, told_apart(replaced(EVENTS[kind], path, text), path, number))
        await wire.shown(monitor, f"{name} {first}")
        found = await monitor.tab.do(f"({CHECK})()")
        words = found.pop("words")
        assert CLEAN == found, name
        assert [] == [text for text in texts if (expected(kind, path, text) or "") not in words], (name, words)
    for number, value in enumerate(ODD):
        await wire.send(kind, told_apart(replaced(EVENTS[kind], path, value), path, 100 + number))
    await wire.shown(monitor, name)
    found = await monitor.tab.do(f"({CHECK})()")
    assert CLEAN == {key: found[key] for key in CLEAN}, name
