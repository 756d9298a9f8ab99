"""The models of the stream's events: what they refuse, and that schema and TypeScript say what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from agent_sse import event_models, events, incoming

CLIENT = Path(__file__).parents[2] / "client"
SCHEMA = CLIENT / "schema" / "events.schema.json"
EVENT: TypeAdapter[Any] = TypeAdapter(event_models.Event)
STATUS = {
    "type": "tool_status",
    "data": {
        "status": "executing", "tool_name": "file_search", "tool_call_id": "c1", "timestamp": "2024-01-15T10:30:00Z",
        "details": {
            "parameters": {"query": "example"}, "risk_level": "medium", "start_time": "2024-01-15T10:30:00Z",
        },
    },
}  # fmt: skip


def with_details(**more: Any) -> str:
    data = {**STATUS["data"], "details": {**STATUS["data"]["details"], **more}}  # type: ignore[index, dict-item]
    return json.dumps({**STATUS, "data": data})


def refusals(text: str) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        EVENT.validate_json(text)
    return {error["msg"] for error in caught.value.errors()}


def test_schema_file_is_what_the_models_say() -> None:
    """Who changes a model writes the schema anew."""
    assert event_models.text() == SCHEMA.read_text("utf-8"), (
        "client/schema/events.schema.json is stale: python -m agent_sse.event_models > client/schema/events.schema.json"
        " && npm run types --prefix client"
    )


def check_types(folder: Path) -> subprocess.CompletedProcess[str]:
    node = shutil.which("node")
    assert node, "this test needs Node.js >= 20 (https://nodejs.org)"
    assert (CLIENT / "node_modules" / "json-schema-to-typescript").is_dir(), (
        "this test needs the client's packages: npm ci --prefix client"
    )
    return subprocess.run(
        [node, str(folder / "scripts" / "types.mjs"), "--check"], capture_output=True, text=True, check=False
    )


def test_client_types_are_what_the_schema_says() -> None:
    """The client's TypeScript is generated, and never behind."""
    done = check_types(CLIENT)
    assert (0, "") == (done.returncode, done.stderr)


def test_client_types_that_are_stale_are_found(tmp_path: Path) -> None:
    """A schema with one more field than the TypeScript fails the check, which says what to run."""
    (tmp_path / "node_modules").symlink_to(CLIENT / "node_modules")
    for name in ("scripts", "src"):
        (tmp_path / name).mkdir()
    shutil.copy(CLIENT / "scripts" / "types.mjs", tmp_path / "scripts")
    shutil.copy(CLIENT / "src" / "events.ts", tmp_path / "src")
    schema = json.loads(SCHEMA.read_text("utf-8"))
    schema["$defs"]["ToolResult"]["properties"]["colour"] = {"type": "string"}
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / SCHEMA.name).write_text(json.dumps(schema), "utf-8")
    done = check_types(tmp_path)
    assert 1 == done.returncode
    assert "npm run types" in done.stderr


def test_models_know_every_type_that_can_be_published() -> None:
    """What an agent may publish is described, with the protocol's nine types in all."""
    union, _ = get_args(event_models.Event)
    types = {get_args(model.model_fields["type"].annotation)[0] for model in get_args(union)}
    assert set(incoming.TYPES) <= types
    assert {
        "tool_status", "permission_request", "permission_response_result", "permission_cleared", "tool_result",
        "result_cleared", "stream_reset", "heartbeat", "error",
    } == types  # fmt: skip


def test_models_take_what_the_guide_shows() -> None:
    """The sample of a heartbeat has its field at the top, that of a status its open details."""
    assert EVENT.validate_json('{"type": "heartbeat", "timestamp": 1642234200.123}').timestamp == 1642234200.123
    taken = EVENT.validate_json(with_details(colour="red"))
    assert ("executing", "medium") == (taken.data.status.root, taken.data.details.risk_level.root)
    assert {"colour": "red"} == taken.data.details.model_extra


@pytest.mark.parametrize("name", ["progress", "parent_tool_call_id", "server", "cancellable"])
def test_field_that_may_be_missing_is_never_null(name: str) -> None:
    """Clients may tell by a field's presence; so its type has no null."""
    assert "a field without a value is left out, never null" in str(refusals(with_details(**{name: None})))
    described = event_models.schema()["$defs"]["ToolStatusDetails"]
    assert name not in described["required"]
    assert "null" not in json.dumps(described["properties"][name])


def test_models_refuse_other_types_than_those_on_the_wire() -> None:
    """A number for a text, or a text for a number, is not what the stream sends."""
    assert {"Input should be a valid string"} == refusals('{"type": "error", "message": 5, "code": "x"}')
    assert {"Input should be a valid number"} == refusals('{"type": "heartbeat", "timestamp": "1"}')


def test_models_describe_what_the_builders_make() -> None:
    """Events built in the process, with nothing but what they must have, fit with extra fields forbidden."""
    at = events.timestamp()
    for event in (
        STATUS,
        events.tool_status(
            status="pending", tool_name="a", tool_call_id="a", parameters=None, risk_level="low", start_time=at
        ),
        events.tool_result(tool_name="a", tool_call_id="a", result=None, success=True),
        events.result_cleared(),
        events.permission_none(at),
        events.stream_reset("history_lost", "0-0", at),
        events.error("the model is unavailable", "model_unavailable"),
    ):
        assert EVENT.validate_json(events.encode(event), extra="forbid").type == event["type"]


def test_schema_without_references_says_the_same() -> None:
    """What stands inside an OpenAPI document points to nothing, and takes and refuses what the schema does."""
    inlined = event_models.inlined()
    assert "$ref" not in json.dumps(inlined)
    assert "#/" not in json.dumps(inlined)
    samples = [STATUS, {"type": "heartbeat", "timestamp": 1.5}, {"type": "heartbeat"}, {"type": "other", "data": {}}]
    for described in (inlined, event_models.schema()):
        validator = Draft202012Validator(described)
        assert [True, True, False, False] == [validator.is_valid(sample) for sample in samples]
