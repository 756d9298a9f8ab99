"""Events as JSON: the fields of protocol.md § 5, and the refusal of what cannot be one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_sse import events
from agent_sse.errors import EventTooLarge, InvalidEvent

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
TIME = "2024-01-15T10:30:00.000Z"


@given(VALUES)
def test_encode_is_one_line_of_utf8_that_reads_back(value: object) -> None:
    """JSON values survive, and neither CR nor LF is in the bytes."""
    encoded = events.encode(value)
    assert value == json.loads(encoded.decode("utf-8"))
    assert not {b"\n", b"\r"} & {encoded[i : i + 1] for i in range(len(encoded))}


def _cycle() -> list[Any]:
    inner: list[Any] = []
    inner.append([inner])
    return inner


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "JSON"), (math.inf, "JSON"), ([{"a": -math.inf}], "JSON"), ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"), ({1: "a"}, "keys are strings"), ({"a": [{None: 1}]}, "keys are strings"),
        ({True: 1}, "keys are strings"), (object(), "JSON"), ({1, 2}, "JSON"), (b"bytes", "JSON"), (1j, "JSON"),
        (datetime(2024, 1, 1, tzinfo=UTC), "JSON"), (_cycle(), "nested too deeply"),
        (_deep(100_000), "nested too deeply"),
    ],
)  # fmt: skip
def test_encode_refuses_what_json_cannot_hold(value: object, said: str) -> None:
    """What JSON has no word for is a typed error that says why; nothing is converted in silence."""
    with pytest.raises(InvalidEvent, match=said):
        events.encode(value)
    with pytest.raises(InvalidEvent, match=said):
        events.canonical(value)


@given(VALUES)
def test_canonical_is_equal_for_reordered_objects(value: object) -> None:
    """The order of an object's names makes no difference to its canonical form."""

    def reversed_names(item: Any) -> Any:
        if isinstance(item, dict):
            return {name: reversed_names(item[name]) for name in reversed(item)}
        return [reversed_names(part) for part in item] if isinstance(item, list) else item

    assert events.canonical(value) == events.canonical(reversed_names(value))


@pytest.mark.parametrize("pair", [(1, "1"), (1, True), ([1], [1, 1]), ({"a": 1}, {"a": 2}), ({}, []), (None, "")])
def test_canonical_tells_different_values_apart(pair: tuple[object, object]) -> None:
    """Different parameters never share a canonical form, or an approval would cover another call."""
    assert events.canonical(pair[0]) != events.canonical(pair[1])


def test_bounded_names_size_and_limit() -> None:
    """An event over the limit is refused with both numbers; one of exactly the limit passes."""
    assert b"x" * 10 == events.bounded(b"x" * 10, 10)
    with pytest.raises(EventTooLarge, match=r"11 bytes .* limit is 10") as caught:
        events.bounded(b"x" * 11, 10)
    assert (11, 10) == (caught.value.size, caught.value.limit)


def test_timestamp_is_utc_with_z() -> None:
    """Times are ISO 8601 with milliseconds and Z."""
    assert "2024-01-15T10:30:00.123Z" == events.timestamp(datetime(2024, 1, 15, 10, 30, 0, 123456, tzinfo=UTC))
    assert events.timestamp().endswith("Z")


def test_tool_status_has_the_guides_fields() -> None:
    """A tool_status has the guide's fields, the call's id, and further details beside the guide's three."""
    event = events.tool_status(
        status="executing", tool_name="file_search", tool_call_id="c1", parameters={"query": "example"},
        risk_level="medium", start_time=TIME, details={"progress": {"progress": 1}}, at=TIME,
    )  # fmt: skip
    assert event == {
        "type": "tool_status",
        "data": {
            "status": "executing",
            "tool_name": "file_search",
            "tool_call_id": "c1",
            "timestamp": TIME,
            "details": {
                "parameters": {"query": "example"},
                "risk_level": "medium",
                "start_time": TIME,
                "progress": {"progress": 1},
            },
        },
    }


def test_tool_status_details_cannot_replace_the_guides_fields() -> None:
    """What a caller adds to details never hides parameters, risk or start time."""
    event = events.tool_status(
        status="executing", tool_name="t", tool_call_id="c", parameters={"rm": "-rf"}, risk_level="critical",
        start_time=TIME, details={"parameters": {}, "risk_level": "low", "start_time": ""},
    )  # fmt: skip
    assert {"parameters": {"rm": "-rf"}, "risk_level": "critical", "start_time": TIME} == event["data"]["details"]


def test_tool_result_leaves_out_what_is_not_known() -> None:
    """`error` and `duration_ms` are there only when given."""
    plain = events.tool_result(tool_name="t", tool_call_id="c", result=None, success=True)
    assert {"tool_name", "tool_call_id", "result", "success", "timestamp"} == set(plain["data"])
    full = events.tool_result(tool_name="t", tool_call_id="c", result=1, success=False, error="no", duration_ms=5)
    assert ("no", 5, False) == tuple(full["data"][name] for name in ("error", "duration_ms", "success"))


def test_permission_none_has_every_field_as_null() -> None:
    """A snapshot's permission_cleared names no request: ids null, outcome none."""
    data = events.permission_none(TIME)["data"]
    assert ("none", TIME) == (data.pop("outcome"), data.pop("timestamp"))
    assert dict.fromkeys(("request_id", "tool_call_id", "tool_name", "reason", "resolved_by")) == data


def test_error_has_its_fields_at_the_top() -> None:
    """`error` carries message and code at the top, as in the guide."""
    assert {"type": "error", "message": "away", "code": "x"} == events.error("away", "x")


STATUS: dict[str, Any] = {
    "status": "pending", "tool_name": "t", "tool_call_id": "c", "parameters": {}, "risk_level": "low",
    "start_time": TIME,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "done"), ("status", "EXECUTING"), ("status", None), ("status", 1), ("status", []),
        ("risk_level", ""), ("risk_level", "extreme"), ("risk_level", None), ("risk_level", ["low"]),
        ("tool_name", ""), ("tool_name", None),
        ("tool_name", "a\nb"), ("tool_name", "x" * 257), ("tool_name", "\u202e"), ("tool_name", 5),
        ("tool_call_id", "\x00"), ("tool_call_id", ""), ("tool_call_id", "\ud800"),
    ],
)  # fmt: skip
def test_tool_status_refuses_a_wrong_field_by_name(field: str, value: object) -> None:
    """A wrong field is a typed error that names it."""
    with pytest.raises(InvalidEvent, match=field):
        events.tool_status(**{**STATUS, field: value})


@pytest.mark.parametrize(
    "make",
    [
        lambda: events.tool_result(tool_name="t", tool_call_id="c", result=1, success=1),  # type: ignore[arg-type]
        lambda: events.tool_result(tool_name="t", tool_call_id="c", result=1, success="true"),  # type: ignore[arg-type]
        lambda: events.error("x" * 2001, "code"),
        lambda: events.error(5, "code"),  # type: ignore[arg-type]
        lambda: events.error("x", "two\nlines"),
    ],
)
def test_event_refuses_wrong_types(make: Callable[[], object]) -> None:
    """Truthy is not true, and messages and codes are short strings."""
    with pytest.raises(InvalidEvent):
        make()


@given(VALUES)
def test_head_and_a_timestamp_make_the_event(value: object) -> None:
    """A script that appends only the time to a head gets the whole event."""
    event = events.tool_result(tool_name="t", tool_call_id="c", result=value, success=True)
    finished = events.head(event) + b'"timestamp":"' + event["data"]["timestamp"].encode() + b'"}}'
    assert event == json.loads(finished)
    assert "timestamp" == list(json.loads(finished)["data"])[-1]
