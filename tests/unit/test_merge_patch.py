"""JSON Merge Patch does what RFC 7396 says, and a patch cannot touch what is hidden without being noticed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_sse import merge_patch
from agent_sse.errors import InvalidEvent
from agent_sse.masking import MASK

NAMES = st.sampled_from(["a", "b", "c", "", "~", "/", "a/b", "~1", "0", "é"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)

# https://www.rfc-editor.org/rfc/rfc7396#appendix-A
APPENDIX_A = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]


def exact(value: object) -> str:
    """What tells 1 from 1.0 and from true, and the order of names."""
    return json.dumps(value)


def difference(old: Any, new: Any) -> Any:
    """The smallest patch from one object to another without nulls."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch = {name: None for name in old if name not in new}
    changed = {name: item for name, item in new.items() if name not in old or exact(old[name]) != exact(item)}
    return patch | {name: difference(old.get(name), item) for name, item in changed.items()}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return value


def pointers(value: Any, at: str = "") -> dict[str, Any]:
    """Every pointer into a value, and what it leads to."""
    found = {at: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        found |= pointers(item, f"{at}/{str(name).replace('~', '~0').replace('/', '~1')}")
    return found


# -- applying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "patch", "result"), APPENDIX_A)
def test_apply_gives_the_results_of_the_rfc(target: str, patch: str, result: str) -> None:
    """All examples of appendix A."""
    assert result.replace(" ", "") == exact(merge_patch.apply(json.loads(target), json.loads(patch))).replace(" ", "")


@given(OBJECTS)
def test_empty_patch_changes_nothing(target: Any) -> None:
    """An empty object leaves everything as it is, nulls and the order of names included."""
    assert exact(target) == exact(merge_patch.apply(target, {}))


@given(VALUES, VALUES)
def test_applying_twice_is_applying_once(target: object, patch: object) -> None:
    """A repeated answer makes no other parameters."""
    once = merge_patch.apply(target, patch)
    assert exact(once) == exact(merge_patch.apply(once, patch))


@given(OBJECTS, OBJECTS)
def test_smallest_patch_leads_to_the_wanted_value(old: Any, new: Any) -> None:
    """What a client computes from two values does what it means, exactly."""
    new = without_nulls(new)
    made = merge_patch.apply(old, difference(old, new))
    assert json.dumps(new, sort_keys=True) == json.dumps(made, sort_keys=True)


@given(VALUES, VALUES)
def test_apply_shares_nothing_with_what_it_was_given(target: Any, patch: Any) -> None:
    """Neither target nor patch is changed, nor can be through the result."""
    before = copy.deepcopy((target, patch))
    made = merge_patch.apply(target, patch)
    for value in list(pointers(made).values()):
        if isinstance(value, dict | list):
            value.clear()
    assert before == (target, patch)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**63), 10**300, 0.1, 1e308, 5e-324, 1.0, -0.0])
def test_numbers_stay_exact(number: object) -> None:
    """Numbers that no browser could hold pass through, from the target and from the patch."""
    text = json.dumps({"a": number, "b": [number]})
    made = merge_patch.apply(json.loads(text), {"c": json.loads(text)})
    assert exact({"a": number, "b": [number], "c": {"a": number, "b": [number]}}) == exact(made)


def test_nulls_in_arrays_are_kept() -> None:
    """An array replaces whole: null removes names of objects, and only of those that are merged."""
    assert {"a": [None, {"b": None}]} == merge_patch.apply({"a": 1}, {"a": [None, {"b": None}]})


@pytest.mark.parametrize("wrap", [lambda value: {"a": value}, lambda value: {"a": [value]}])
def test_deep_nesting_is_refused(wrap: Any) -> None:
    """Nesting without end is a typed error, in the target and in the patch."""
    deep: Any = 1
    for _ in range(5000):
        deep = wrap(deep)
    for target, patch in [({}, deep), (deep, {}), (deep, deep)]:
        with pytest.raises(InvalidEvent, match="nested too deeply"):
            merge_patch.apply(target, patch)


# -- what is hidden ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({"a": 1}, "/a"), ({"a": None}, "/a"), ({"a": {}}, "/a"), ({"a": {"x": 1}}, "/a"),
        ({"a": 1}, "/a/b"), ({"a": None}, "/a/b"), ({"a": []}, "/a/b"), ({"a": ["x"]}, "/a/0"),
        ({"a": {"b": {"c": None}}}, "/a/b"), ({"a": {"b": 1}}, "/a/b/c/d"),
        ({"a": {"x": 1}}, "/a/0"), ({"a": {}}, "/a/0/token"),  # an object in place of an array
        ([], "/a"), (None, "/a"), ("x", "/a"), ({}, ""), ({"a/b": 1}, "/a~1b"), ({"~1": 1}, "/~01"), ({"": 1}, "/"),
    ],
)  # fmt: skip
def test_patch_that_changes_a_hidden_value_is_noticed(patch: object, pointer: str) -> None:
    """At the value, below it, and where what holds it is replaced or removed."""
    assert pointer == merge_patch.touches(patch, [pointer])


@pytest.mark.parametrize(
    ("patch", "pointer"),
    [
        ({}, "/a"), ({"b": 1}, "/a"), ({"a": {"c": 1}}, "/a/b"), ({"a": {}}, "/a/b"), ({"b": [1]}, "/a/0/token"),
        ({"a": {"b": {"d": None}}}, "/a/b/c"), ({"a~1b": 1}, "/a~1b"), ({"a": 1}, "/A"),
    ],
)  # fmt: skip
def test_patch_beside_a_hidden_value_is_free(patch: object, pointer: str) -> None:
    """Other members of the same object may be edited."""
    assert merge_patch.touches(patch, [pointer]) is None


@given(OBJECTS, VALUES)
@example({"a": [{"b": 1}]}, {"a": {"c": 1}})
@example({"a": {"b": 1}}, {"a": {"b": {}}})
def test_what_is_not_touched_does_not_change(target: Any, patch: object) -> None:
    """Whatever a patch does: a value for which nothing is said is still there, the same."""
    made = pointers(merge_patch.apply(target, patch))
    for pointer, value in pointers(target).items():
        if merge_patch.touches(patch, [pointer]) is None:
            assert exact(value) == exact(made[pointer]) or isinstance(value, dict)


@given(OBJECTS, VALUES)
def test_what_is_removed_or_replaced_is_touched(target: Any, patch: object) -> None:
    """No value is lost or changed without being named."""
    made = pointers(merge_patch.apply(target, patch))
    for pointer, value in pointers(target).items():
        if pointer not in made or (not isinstance(value, dict) and exact(value) != exact(made[pointer])):
            assert pointer == merge_patch.touches(patch, [pointer])


def test_first_of_the_pointers_is_named() -> None:
    """The user is told of one, in the order in which they are shown."""
    assert "/b" == merge_patch.touches({"a": 1, "b": 2}, ["/c", "/b", "/a"])
    assert merge_patch.touches({"a": 1}, []) is None


@pytest.mark.parametrize(
    "patch",
    [
        MASK,
        {"a": MASK},
        {"a": [1, {"b": f"x{MASK}y"}]},
        {MASK: 1},
        {"a": {f"{MASK} (2)": None}},
        [[MASK]],
        {"a": MASK * 2},
    ],
)
def test_patch_that_writes_the_mask_is_noticed(patch: object) -> None:
    """Whole or as a part, in a value, an array or a name: it would take the place of the real value."""
    assert merge_patch.contains_mask(patch)


@given(VALUES)
def test_patch_without_the_mask_is_free(patch: object) -> None:
    """Nothing else counts as the mask, a bullet for one."""
    assert not merge_patch.contains_mask([patch, "•••", {"•": "••• •"}])
