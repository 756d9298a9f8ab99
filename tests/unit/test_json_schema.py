"""Parameters are checked against schemas from anybody: rightly, in bounded work, and without a word about secrets."""

from __future__ import annotations

import copy
import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent_sse import json_schema
from agent_sse.errors import SchemaUnusable
from agent_sse.json_schema import LINE, SCHEMA_LIMIT, violation
from agent_sse.masking import MASK

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 1},
        "mode": {"enum": ["w", "a"]},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 1}, "uniqueItems": True},
        "password": {"type": "string", "minLength": 8},
        "note": {"anyOf": [{"type": "string", "minLength": 3}, {"type": "null"}]},
    },
    "required": ["path"],
    "additionalProperties": False,
}
NAMES = st.sampled_from(["a", "b", "x1", "x2"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, 1.0, 1.5])
    | st.sampled_from(["", "a", "xx"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
_TYPES = st.sampled_from(["string", "integer", "number", "object", "array", "null", "boolean"])
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {},
        optional={
            "type": _TYPES | st.lists(_TYPES, min_size=1, max_size=2, unique=True),
            "enum": st.lists(VALUES, min_size=1, max_size=3), "const": VALUES, "minimum": st.integers(-1, 1),
            "minLength": st.integers(0, 2), "maxItems": st.integers(0, 2), "uniqueItems": st.booleans(),
            "pattern": st.sampled_from(["^a", "x+$", ""]), "required": st.lists(NAMES, max_size=2, unique=True),
            "$ref": st.just("#/$defs/d"), "multipleOf": st.sampled_from([0.5, 2]),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(NAMES, inner, max_size=2), "items": inner,
            "patternProperties": st.dictionaries(st.sampled_from(["^x", "1$"]), inner, max_size=2),
            "additionalProperties": inner, "unevaluatedProperties": inner, "unevaluatedItems": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2), "contains": inner, "propertyNames": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2), "allOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2), "not": inner, "if": inner, "then": inner, "else": inner,
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
        },
    ),
    max_leaves=6,
)  # fmt: skip


def unusable(schema: Any, value: object = None) -> str:
    with pytest.raises(SchemaUnusable) as caught:
        violation(schema, value)
    return str(caught.value)


# -- what fits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, None),
        ({"note": None, "lines": [1, 2], "mode": "a", "password": "long enough"}, None),
        ({"path": 5}, "/path: 5 is not of type 'string'"),
        ({"path": ""}, "/path: this text should be non-empty"),
        ({"mode": "private"}, '/mode: this text is not one of: "w", "a"'),
        ({"lines": [1, 0]}, "/lines/1: 0 is less than the minimum of 1"),
        ({"lines": [1, 1.0]}, "/lines: this array has two equal items"),
        ({"colour": 1}, '"colour": no such name is allowed'),
        ({"note": "ab"}, "/note: this text is too short"),
        ({"path": {"a": "private"}}, "/path: this object is not of type 'string'"),
    ],
)
@pytest.mark.parametrize("dialect", [None, DRAFT_7, DRAFT_2019])
def test_violation_is_one_line_with_pointer_and_reason(
    dialect: str | None, change: dict[str, Any], line: str | None
) -> None:
    """The line says where and what, and quotes no text of the value; None says that all is well."""
    schema = SCHEMA if dialect is None else {"$schema": dialect, **SCHEMA}
    assert line == violation(schema, {"path": "private.txt", **change})


def test_missing_parameter_is_named() -> None:
    """Where nothing is, the object that lacks it is pointed to: here the whole."""
    assert "'path' is a required property" == violation(SCHEMA, {})


def test_pointer_is_escaped() -> None:
    """Names with slashes and tildes are written as RFC 6901 says."""
    assert "/a~1b/x~0y: nothing is allowed here" == violation(
        {"properties": {"a/b": {"properties": {"x~y": False}}}}, {"a/b": {"x~y": 1}}
    )


def test_dialect_is_honoured() -> None:
    """`$schema` says what keywords mean; without one, it is 2020-12."""
    tuple_form = {"items": [{"type": "string"}], "additionalItems": False}
    assert violation({"$schema": DRAFT_7, **tuple_form}, ["a"]) is None
    assert violation({"$schema": DRAFT_7, **tuple_form}, ["a", 1]) is not None
    assert "no JSON Schema" in unusable(tuple_form)
    assert violation({"$schema": DRAFT_4, "minimum": 1, "exclusiveMinimum": True}, 1) is not None
    assert violation({"prefixItems": [{"type": "string"}], "items": False}, ["a", 1]) is not None


@given(SCHEMAS, VALUES)
def test_verdict_is_that_of_jsonschema(schema: Any, value: object) -> None:
    """Bounded or not, with RE2 or `re`: what fits is what fits by the library of reference."""
    whole = {"$defs": {"d": {"type": ["object", "string"], "properties": {"a": True}}}, "allOf": [schema]}
    expected = Draft202012Validator(whole).is_valid(value)
    assert expected == (violation(whole, value) is None)


@given(SCHEMAS, VALUES)
def test_nothing_is_changed(schema: Any, value: object) -> None:
    """Schema and value are only read, a masked place included."""
    whole = {"$defs": {"d": True}, "allOf": [schema]}
    before = copy.deepcopy((whole, value))
    violation(whole, value, ["/a", "/0", "/b/x1"])
    assert before == (whole, value)


def test_format_is_not_checked() -> None:
    """A format is a hint; what does not look like one is for the tool to refuse."""
    assert violation({"format": "email"}, "nobody") is None


def test_numbers_are_exact() -> None:
    """Integers beyond 2^53 are not rounded."""
    assert violation({"maximum": 2**53}, 2**53) is None
    assert violation({"maximum": 2**53}, 2**53 + 1) is not None
    assert violation({"enum": [2**64]}, 2**64 + 1) is not None
    assert violation({"const": 1}, 1.0) is None
    assert violation({"const": 1}, True) is not None


@pytest.mark.parametrize("text", ["x" * 10_000, "\x1b[2J\r\n", "'\"", "\u202e"])
def test_line_is_short_and_harmless(text: str) -> None:
    """Long names and control characters from a server or a value do not get into it as they are."""
    for schema, value in [
        ({"required": [text]}, {}), ({"enum": [text]}, 1), ({"const": [text]}, 1), ({"const": text}, 1),
        ({"additionalProperties": False}, {text: 1}), ({"properties": {text: False}}, {text: 1}),
        ({"type": "integer"}, text), ({"not": {"const": text}}, text), ({"propertyNames": {"maxLength": 0}}, {text: 1}),
    ]:  # fmt: skip
        line = violation(schema, value)
        assert line is not None
        assert len(line) <= LINE
        assert line.isprintable()


# -- what is masked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keyword",
    [
        {"type": "integer"}, {"minLength": 50}, {"maxLength": 1}, {"pattern": "^[0-9]+$"}, {"enum": ["a"]},
        {"const": 1}, {"type": "object", "required": ["a"]}, {"anyOf": [{"type": "null"}]}, {"oneOf": [{}, {}]},
        {"not": {}}, {"$ref": "#/$defs/n"}, {"allOf": [{"type": "array"}]}, {"if": {}, "then": {"type": "null"}},
    ],
)  # fmt: skip
def test_masked_value_fits_every_keyword(keyword: dict[str, Any]) -> None:
    """Only the agent knows it, and checks it there; what is beside it is checked."""
    schema = {"$defs": {"n": {"type": "null"}}, "properties": {"p/w": {"items": keyword}, "n": {"type": "integer"}}}
    value = {"p/w": [MASK], "n": 1}
    assert violation(schema, value) is not None
    assert violation(schema, value, ["/p~1w/0"]) is None
    assert "/n: this text is not of type 'integer'" == violation(schema, {**value, "n": "x"}, ["/p~1w/0"])


def test_masked_root_fits() -> None:
    """When all is hidden, nothing is left to check."""
    assert violation({"type": "integer"}, MASK, [""]) is None


def test_masked_items_are_not_equal() -> None:
    """Two hidden values are not the same because both are hidden."""
    assert violation({"uniqueItems": True}, [MASK, MASK, 1], ["/0", "/1"]) is None
    assert violation({"uniqueItems": True}, [MASK, 1, 1], ["/0"]) is not None


def test_masked_value_is_not_said() -> None:
    """Not even where the object that holds it is wrong, and the real value is given."""
    line = violation({"type": "array", "const": 1}, {"password": "hunter2"}, ["/password"])
    assert line is not None
    assert "hunter2" not in line


@pytest.mark.parametrize("pointer", ["/x", "/a/5", "/a/-1", "/a/01x", "/b/c", "/a/" + "9" * 5000, "/a/²"])
def test_pointer_to_nothing_hides_nothing(pointer: str) -> None:
    """A pointer that leads nowhere is no reason to let something pass."""
    assert violation({"properties": {"a": {"items": {"type": "string"}}}}, {"a": [1], "b": 2}, [pointer]) is not None


# -- what cannot be used ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nope"}, "no JSON Schema: /type"),
        ({"properties": []}, "no JSON Schema"),
        ([], "no JSON Schema"),
        (5, "cannot be evaluated"),
        ({"default": float("nan")}, "no JSON"),
        ({"description": "x" * SCHEMA_LIMIT}, "larger than"),
        ({"$ref": "#/$defs/none"}, "refers to what it does not contain"),
        ({"$ref": "other.json"}, "refers to what it does not contain"),
        ({"$ref": "http://[::1"}, "refers to what it does not contain"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, "refers to itself without end"),
        ({"$dynamicRef": "#none"}, "refers to what it does not contain"),
        ({"$ref": "#/x", "x": {"minimum": "a"}}, "cannot be evaluated"),
        ({"$ref": "#/x", "x": {"type": "foo"}}, "cannot be evaluated"),
        ({"$ref": "#/x", "x": {"allOf": 1}}, "cannot be evaluated"),
        ({"multipleOf": 0.1}, "cannot be evaluated"),
    ],
)  # fmt: skip
def test_schema_that_cannot_be_used_is_refused(schema: Any, reason: str) -> None:
    """Whatever is wrong with it is one typed error, the first time and the second."""
    assert reason in unusable(schema, 10**400)
    assert reason in unusable(schema, 10**400)


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(?<!x)y", "(", "a{2000}", "*"])
@pytest.mark.parametrize(
    "keyword",
    [
        lambda p: {"pattern": p},
        lambda p: {"properties": {"a": {"pattern": p}}},
        lambda p: {"patternProperties": {p: {}}},
        lambda p: {"additionalProperties": False, "patternProperties": {p: {}}},
        lambda p: {"allOf": [{"patternProperties": {p: {}}}], "unevaluatedProperties": False},
        lambda p: {"properties": {"a": {"$schema": DRAFT_7, "pattern": p}}},
    ],
)
def test_pattern_that_re2_does_not_know_is_refused(pattern: str, keyword: Any) -> None:
    """Look-around and backreferences cannot be matched in linear time, wherever a pattern stands."""
    schema = keyword(pattern)
    assert "RE2" in unusable(schema, "a" if "pattern" in schema else {"a": "a"})


def test_patterns_are_those_of_ecma_262() -> None:
    """Code points as JSON Schema's patterns write them, and Unicode classes, are known."""
    assert violation({"pattern": r"^[\u4e00-\u9fa5\u{1F600}]+$"}, "中文😀") is None
    assert violation({"pattern": r"^\\u4e00$"}, r"\u4e00") is None
    assert violation({"pattern": r"^\p{L}+$"}, "né") is None
    assert violation({"pattern": r"^a\/b$"}, "a/b") is None


def test_unused_pattern_is_no_reason_to_refuse() -> None:
    """A pattern for a parameter that is not there decides nothing."""
    assert violation({"properties": {"a": {"pattern": "(?=x)"}}}, {"b": 1}) is None


def test_no_schema_reaches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference elsewhere is never followed."""
    tried: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: tried.append(address))
    for url in ["http://127.0.0.1:9/x", "https://example.com/s.json#/a", "file:///etc/passwd", "//h/x"]:
        assert "refers to" in unusable({"$ref": url})
        assert "refers to" in unusable({"$schema": DRAFT_7, "$ref": url})
        assert "refers to" in unusable({"$id": url.partition("#")[0] + "/y", "$ref": "x"})
    assert violation({"$schema": "http://127.0.0.1:9/dialect"}, 1) is None
    assert [] == tried


def test_meta_schemas_may_be_referred_to() -> None:
    """A parameter that is a schema itself is checked without a network: jsonschema carries those."""
    for url in (DRAFT_7, "https://json-schema.org/draft/2020-12/schema"):
        schema = {"properties": {"s": {"$ref": url}}}
        assert violation(schema, {"s": {"type": "string"}}) is None
        assert violation(schema, {"s": {"minLength": -1}}) is not None


def _doubling(last: Any) -> dict[str, Any]:
    defs: dict[str, Any] = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    return {"$defs": {**defs, "a40": last}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (_doubling({"type": "null"}), 5),
        ({**_doubling(False), "unevaluatedProperties": False}, {"a": 1}),
        ({"items": {"enum": [f"v{i}" for i in range(4000)]}}, ["v3999"] * 2000),
        ({"allOf": [{"uniqueItems": True}] * 2000}, [[i] for i in range(5000)]),
        ({"pattern": "(.{1,100}){1,9}$"}, "a" * 50_000 + "\n"),
        ({"patternProperties": {f".{{990}}{i}": {} for i in range(2500)}}, {"a" * 100: 1}),
        (
            {"$defs": {f"p{i}": {"$dynamicAnchor": f"a{i}"} for i in range(900)}, "items": {"$dynamicRef": "#a7"}},
            [1] * 5000,
        ),
        ({"items": {"items": {}}}, [[0] * 100] * 1000),
        ({"$schema": DRAFT_7, "items": {"$ref": "#"}}, [[[[0] * 20] * 20] * 20] * 20),
    ],
)
def test_endless_work_is_refused(schema: Any, value: object) -> None:
    """What would take exponential, quadratic or just very long work ends with a typed error."""
    assert "too long" in unusable(schema, value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 50_000 + "b"),  # would take forever with `re`
        ({"patternProperties": {"^(a+)+$": False}}, {"a" * 50: 1}),
        ({"uniqueItems": True}, [{"a": i} for i in range(5000)] + [{"a": 7.0}]),
        ({"uniqueItems": True}, [i * (2**61 - 1) for i in range(20_000)] + [0]),  # integers of one hash
        ({"anyOf": [{"type": "string"}] * 2000}, {str(i): "x" * 20 for i in range(10_000)}),
        ({"anyOf": [False] * 2000}, {str(i): "x" * 20 for i in range(10_000)}),
        ({"prefixItems": [{}], "unevaluatedItems": False}, list(range(10_000))),
        ({"anyOf": [{"items": {"required": ["x" * 50_000]}}]}, [{}] * 5000),
    ],
)
def test_large_values_are_checked(schema: Any, value: object) -> None:
    """What would be slow only if done badly is done."""
    assert violation(schema, value) is not None


def test_schema_with_quadratic_check_of_itself_is_refused() -> None:
    """The meta-schemas' own keywords have their bounds, too."""
    for schema in ({"type": [{}] * 20_000}, {"enum": [{"a": [i % 2]} for i in range(5000)]}, {"allOf": [{}] * 20_000}):
        unusable({"$schema": DRAFT_4, **schema})


def test_deep_nesting_is_refused() -> None:
    """Of a schema it is an error, of a value a violation; neither ends the process."""
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    assert "nested" in unusable({"const": deep})
    assert violation({"items": True}, deep) is None
    for _ in range(50_000):
        deep = [deep]
    assert "the value is nested too deeply" == violation({}, deep)
    assert "no JSON" in unusable({"const": deep})
    assert "nested" in unusable(json.loads('{"not":' * 300 + "true" + "}" * 300))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4)
    | st.sampled_from(["#", "#/a", "#/$defs/a", "a", "string", "object", "^a", "(?=x)", "http://h/a", DRAFT_4]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["a", *Draft202012Validator.VALIDATORS, "$id", "$schema", "$defs", "$anchor", "$dynamicAnchor", "then",
             "else", "dependencies", "id", "extends", "disallow", "divisibleBy", "$recursiveRef", "$recursiveAnchor"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=15,
)  # fmt: skip


@given(JUNK, st.sampled_from([None, DRAFT_4, DRAFT_7, DRAFT_2019, "http://json-schema.org/draft-03/schema#"]), VALUES)
def test_no_schema_raises_anything_else(schema: Any, dialect: str | None, value: object) -> None:
    """Whatever a server sends as a schema: an answer, or the one typed error."""
    whole = {"$schema": dialect, **schema} if dialect and isinstance(schema, dict) else schema
    try:
        line = violation(whole, value, ["/a", "/0/b"])
    except SchemaUnusable as error:
        line = str(error)
    assert line is None or line.isprintable()


def test_compiled_schemas_are_kept() -> None:
    """A schema is read once, whatever object it comes in, and no more of them are kept than 256."""
    json_schema._compiled.cache_clear()
    for _ in range(3):
        violation(copy.deepcopy(SCHEMA), {"path": "x"})
        unusable({"type": "nope"})
    info = json_schema._compiled.cache_info()
    assert (4, 2, 256) == (info.hits, info.misses, info.maxsize)


def test_callers_schema_may_change_afterwards() -> None:
    """What is kept does not change with the caller's object."""
    schema: dict[str, Any] = {"type": "string"}
    assert violation(schema, "x") is None
    schema["type"] = "integer"
    assert violation(schema, "x") is not None
    assert violation({"type": "string"}, "x") is None
