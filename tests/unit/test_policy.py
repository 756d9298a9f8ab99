"""A policy's decision about a call: the first rule that matches, and what cannot be judged is never allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, get_args

import jsonpath_rfc9535
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_sse.policy import DEFAULT_POLICY, ArgumentCondition, Decision, Policy, Rule, Verdict, risk_level
from agent_sse.policy_paths import TEXT_LIMIT, VALUE_LIMIT, Path, PathError, Unjudgeable
from agent_sse.policy_patterns import Glob, Names, PatternError, Regex, climbs

READ_ONLY = {"readOnlyHint": True}
HARMLESS = {"destructiveHint": False}
DESTRUCTIVE = {"destructiveHint": True}

NAMES = st.text("ab*_", min_size=1, max_size=4)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab/.", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
ARGUMENTS = st.dictionaries(st.sampled_from("abc"), JSON_VALUES, max_size=3)
PATHS = st.sampled_from(
    ["$", "$.a", "$.a.b", "$.a[0]", "$.a[-1].b", "$.*", "$..*", "$..a", "$.a[*]", "$..[0]", "$['a','b']", "$.a[1:]",
     "$.a[::-1]", "$..*..a", "$.a[?@.b]", "$..[?@ == 'a']", "$.*[?@ > 1 || !@.b]", "$.a[?length(@) > 1]",
     "$[?@.a == $.b]"]
)  # fmt: skip


def when(path: str, *, glob: str | None = None, regex: str | None = None) -> ArgumentCondition:
    return ArgumentCondition(Path(path), Glob((glob,)) if glob is not None else Regex(regex or ""))


def rule(decision: Decision, tool: str | None = None, *conditions: ArgumentCondition, **fields: Any) -> Rule:
    tools = None if tool is None else Names((tool,))
    return Rule(fields.pop("label", decision), decision, tools, arguments=conditions, **fields)


def decide(
    policy: Policy,
    tool: str = "tool",
    arguments: Mapping[str, Any] | None = None,
    annotations: Any = None,
    *,
    server: str = "fs",
    trusted: bool = False,
) -> Verdict:
    return policy.decide(server=server, tool=tool, arguments=arguments, annotations=annotations, trusted=trusted)


def outcome(decision: Decision, condition: ArgumentCondition, arguments: Mapping[str, Any]) -> str:
    """Return what a policy of one rule says, with another default than the rule's decision."""
    other: Decision = "ask" if decision == "allow" else "allow"
    return decide(Policy([rule(decision, "tool", condition)], default=other), arguments=arguments).decision


# -- risk and default -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "trusted", "untrusted"),
    [
        (None, "high", "high"),
        ({}, "high", "high"),
        (READ_ONLY, "low", "medium"),
        (HARMLESS, "medium", "medium"),
        (DESTRUCTIVE, "high", "high"),
        ({"readOnlyHint": True, "destructiveHint": True}, "low", "medium"),
        ({"readOnlyHint": "true"}, "high", "high"),
        ({"readOnlyHint": 1, "destructiveHint": 0}, "high", "high"),
        ({"readOnlyHint": None, "destructiveHint": None}, "high", "high"),
        ({"idempotentHint": True, "openWorldHint": False, "title": "reads only"}, "high", "high"),
        (["readOnlyHint"], "high", "high"),
    ],
)
def test_risk_level_is_lowered_only_by_a_trusted_servers_booleans(
    annotations: Any, trusted: str, untrusted: str
) -> None:
    """Only `true` and `false` count, what is missing means destructive, and low is for trusted servers."""
    assert trusted == risk_level(annotations, trusted=True)
    assert untrusted == risk_level(annotations, trusted=False)


@pytest.mark.parametrize("annotations", [None, {}, HARMLESS, DESTRUCTIVE, READ_ONLY])
def test_default_asks_about_everything_of_an_untrusted_server(annotations: Any) -> None:
    """Without a file, no claim of a server that nobody trusts lets a call through."""
    verdict = decide(DEFAULT_POLICY, annotations=annotations)
    assert ("ask", "default") == (verdict.decision, verdict.rule)


def test_default_allows_what_a_trusted_server_calls_read_only() -> None:
    """Trust by the caller or by the policy lets read-only tools run, and no others."""
    by_policy = Policy(trusted_servers=["fs"])
    assert Verdict("allow", "low", "default") == decide(DEFAULT_POLICY, annotations=READ_ONLY, trusted=True)
    assert Verdict("allow", "low", "default") == decide(by_policy, annotations=READ_ONLY)
    assert Verdict("ask", "medium", "default") == decide(by_policy, annotations=READ_ONLY, server="FS")
    assert Verdict("ask", "medium", "default") == decide(by_policy, annotations=HARMLESS)


@pytest.mark.parametrize("default", get_args(Decision))
def test_default_of_the_policy_replaces_the_one_built_in(default: Decision) -> None:
    """A `default` holds for read-only tools of trusted servers as well."""
    assert default == decide(Policy(default=default), annotations=READ_ONLY, trusted=True).decision


# -- rules ------------------------------------------------------------------------------------------------------------


def test_first_matching_rule_decides_all_of_the_verdict() -> None:
    """Decision, risk, reason, timeout and editing come from one rule: the first that matches."""
    first = rule("ask", "write_*", label="w", set_risk="critical", reason="look", timeout=9.0, editable=False)
    policy = Policy([rule("deny", "read_*"), first, rule("allow", "write_file")])
    assert Verdict("ask", "critical", "w", "look", 9.0, False) == decide(policy, "write_file")
    assert Verdict("deny", "high", "deny") == decide(policy, "read_file")
    assert Verdict("ask", "high", "default") == decide(policy, "other")


@given(
    st.lists(st.tuples(st.sampled_from(get_args(Decision)), NAMES, PATHS, st.sampled_from(["*", "a", "b/**"]))),
    NAMES,
    ARGUMENTS,
    st.sampled_from([None, READ_ONLY, DESTRUCTIVE]),
)
def test_verdict_is_that_of_the_first_rule_which_matches_alone(
    rules: list[tuple[Decision, str, str, str]], tool: str, arguments: dict[str, Any], annotations: Any
) -> None:
    """A policy says what its first matching rule says by itself, and the explanation stops at that rule."""
    built = [rule(d, t, when(p, glob=g), label=f"rule {n}") for n, (d, t, p, g) in enumerate(rules, 1)]
    alone = [decide(Policy([one]), tool, arguments, annotations) for one in built]
    expected = next((verdict for verdict in alone if verdict.rule != "default"), Verdict("ask", "", "default"))
    policy = Policy(built)
    verdict = decide(policy, tool, arguments, annotations)
    lines = policy.explain(server="fs", tool=tool, arguments=arguments, annotations=annotations)
    assert (expected.decision, expected.rule) == (verdict.decision, verdict.rule)
    assert verdict == decide(policy, tool, arguments, annotations)  # the same once names are cached
    assert lines[-1].startswith("no rule" if verdict.rule == "default" else f"{verdict.rule} matches")
    assert all("does not match" in line for line in lines[:-1])


def test_rule_needs_all_of_its_conditions() -> None:
    """Tool, server, risk and every argument condition have to hold together."""
    conditions = (when("$.a", glob="x"), when("$.b", glob="y"))
    whole = Rule("r", "deny", Names(("t*",)), Names(("fs", "git")), frozenset({"high"}), conditions)
    policy = Policy([whole])
    good: dict[str, Any] = {"tool": "tool", "arguments": {"a": "x", "b": "y"}, "annotations": None, "server": "git"}
    assert "deny" == decide(policy, **good).decision
    for change in ({"tool": "x"}, {"server": "web"}, {"annotations": HARMLESS}, {"arguments": {"a": "x", "b": "z"}}):
        assert "default" == decide(policy, **{**good, **change}).rule


def test_rule_compares_the_risk_of_the_annotations() -> None:
    """A `risk` condition sees what the server's account and its trust make of the tool."""
    policy = Policy([Rule("low", "allow", risks=frozenset({"low"})), Rule("high", "deny", risks=frozenset({"high"}))])
    assert "low" == decide(policy, annotations=READ_ONLY, trusted=True).rule
    assert "default" == decide(policy, annotations=READ_ONLY).rule
    assert "high" == decide(policy, annotations=None, trusted=True).rule


# -- annotations raise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule("allow", "delete_*"), "ask"),
        (rule("allow", "*"), "ask"),
        (rule("allow"), "ask"),
        (Rule("s", "allow", servers=Names(("fs",))), "ask"),
        (rule("allow", "delete_file"), "allow"),
        (Rule("l", "allow", Names(("read_*", "delete_file"))), "allow"),
        (Rule("r", "allow", risks=frozenset({"high"})), "allow"),
        (rule("deny", "delete_*"), "deny"),
    ],
)
def test_destructive_tool_is_asked_about_unless_its_name_or_risk_is_spelt_out(one: Rule, expected: str) -> None:
    """What a server itself calls destructive is not allowed by a pattern that happens to match it."""
    verdict = decide(Policy([one]), "delete_file", annotations=DESTRUCTIVE)
    assert expected == verdict.decision
    assert one.label == verdict.rule
    assert (expected == "ask") == (verdict.reason == "the server says that this tool is destructive")


def test_destructive_tool_is_asked_about_where_the_default_allows() -> None:
    """`default = "allow"` names no tool either."""
    assert "ask" == decide(Policy(default="allow"), annotations=DESTRUCTIVE).decision
    assert "allow" == decide(Policy(default="allow"), annotations=None).decision


def test_tool_that_is_named_like_a_wildcard_is_not_spelt_out_by_it() -> None:
    """A server that calls its tool `*` gains nothing from a rule for all tools."""
    assert "ask" == decide(Policy([rule("allow", "*")]), "*", annotations=DESTRUCTIVE).decision


def test_missing_annotation_does_not_raise_what_a_rule_allows() -> None:
    """Only `destructiveHint: true` is a warning; servers without annotations can be allowed by pattern."""
    policy = Policy([rule("allow", "t*")])
    for hints in (None, {}, READ_ONLY, HARMLESS, {"destructiveHint": "true"}):
        assert "allow" == decide(policy, annotations=hints).decision


def test_contradicting_annotations_raise_unless_the_server_is_trusted() -> None:
    """Read-only and destructive at once: MCP lets the first hold, so a trusted server is believed."""
    both = {"readOnlyHint": True, "destructiveHint": True}
    policy = Policy([rule("allow", "t*")])
    assert "ask" == decide(policy, annotations=both).decision
    assert "allow" == decide(policy, annotations=both, trusted=True).decision


# -- arguments: how many have to match --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "allow", "deny"),
    [
        ({"paths": ["/w/a", "/w/b"]}, "allow", "deny"),
        ({"paths": ["/w/a", "/etc/b"]}, "ask", "deny"),
        ({"paths": ["/etc/b"]}, "ask", "allow"),
        ({"paths": []}, "ask", "allow"),
        ({}, "ask", "allow"),
        ({"paths": "/w/a"}, "ask", "allow"),
    ],
)
def test_allow_needs_every_selected_value_and_deny_needs_one(arguments: dict[str, Any], allow: str, deny: str) -> None:
    """In `allow` all selected values match, and there is one; in `deny` and `ask` any is enough."""
    condition = when("$.paths[*]", glob="/w/**")
    assert allow == outcome("allow", condition, arguments)
    assert deny == outcome("deny", condition, arguments)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "null"),
        (3, "3"),
        (1.5, "1.5"),
        ("3", "3"),
        ("é", "é"),
        ({"b": [1, "x"], "a": None}, '{"b":[1,"x"],"a":null}'),
    ],
)
def test_value_is_matched_as_itself_or_as_compact_json(value: Any, text: str) -> None:
    """Strings are taken as they are; everything else is its JSON without blanks, in the order sent."""
    assert [text] == Path("$.a").texts({"a": value})


# -- arguments: what cannot be judged ---------------------------------------------------------------------------------


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$..*", list(range(VALUE_LIMIT + 1))),
        ("$..x", [[[]] * 100] * 101),
        ("$..*..*..*..*..zzz", deep(100)),
        ("$.a[?@.zzz]", [{}] * (VALUE_LIMIT + 1)),
        ("$.a", "x" * (TEXT_LIMIT + 1)),
        ("$.a[*]", ["x" * 600_000] * 2),
        ("$.a", deep(100_000)),
        ("$..*", deep(5_000)),
        ("$.a[?@ == $.a[0]]", [deep(100_000), deep(100_000)]),
        ("$..*", CYCLE),
        ("$.a", CYCLE),
        ("$.a", float("nan")),
        ("$.a", float("inf")),
        ("$.a", {1: 2, (3, 4): 5}),
        ("$.a", "\ud800"),
        ("$.a", 10**5000),
        ("$.a", object()),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("$") else "value",
)
def test_unjudgeable_arguments_are_never_allowed_and_always_caught(path: str, value: Any) -> None:
    """Too many, too large, too deep or no JSON: an `allow` rule does not match, `ask` and `deny` rules do."""
    condition = when(path, regex="(?:never)?")
    other = when(path, glob="never")
    assert "ask" == outcome("allow", condition, {"a": value})
    assert "deny" == outcome("deny", other, {"a": value})
    assert "ask" == outcome("ask", other, {"a": value})


def test_unjudgeable_argument_does_not_make_up_for_another_condition() -> None:
    """A rule for another tool does not match because of what it cannot judge."""
    policy = Policy([rule("deny", "other", when("$.a", glob="x"))])
    assert "default" == decide(policy, arguments={"a": float("nan")}).rule


def test_unjudgeable_argument_is_named_in_the_explanation() -> None:
    """Whoever asks why a harmless call is denied is told that it could not be judged."""
    policy = Policy([rule("allow", None, when("$.a", glob="x")), rule("deny", None, when("$.a", glob="x"))])
    lines = policy.explain(server="", tool="t", arguments={"a": float("nan")}, annotations=None)
    assert ["cannot be judged" in line for line in lines] == [True, True]
    assert lines[1].endswith(": deny")


def test_text_that_would_take_a_pattern_long_cannot_be_judged() -> None:
    """The larger the pattern, the less text it takes: their product is bounded."""
    pattern = Regex("a[ab]{1000}c")
    text = "ab" * (pattern.longest // 2)
    condition = ArgumentCondition(Path("$.*"), pattern)
    assert TEXT_LIMIT > pattern.longest > 100_000
    assert "allow" == outcome("deny", condition, {"a": text})
    assert "deny" == outcome("deny", condition, {"a": text, "b": "ab"})


def test_pattern_that_backtracking_cannot_finish_completes() -> None:
    """RE2's time is linear in the text, whatever the pattern."""
    text = "a" * 100_000 + "b"
    assert not Regex("(a+)+$").covers(text)
    assert not Regex("^(a|a?)+$").finds(text)
    assert not Glob(("a*" * 40 + "c",)).finds(text)
    assert not Names(("*a" * 40 + "c",)).matches(text)


# -- climbing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/w/../etc/passwd", "/w/..", "../w/x", "..", r"C:\w\..\x", "/w/a/%2e%2e/%2E./x", "/w/%2E%2e%2fetc", "/w/.. /x",
     "/w/.../x", "file:..", "/w/x\n/../y", '["/w/..","x"]'],
)  # fmt: skip
def test_allow_rule_never_takes_a_path_that_climbs(path: str) -> None:
    """A `..` segment names what the pattern cannot see, in every spelling that a server may undo."""
    assert climbs(path)
    assert not Glob(("**",)).covers(path)
    assert not Regex(".*").covers(path)
    assert "ask" == outcome("allow", when("$.p", glob="**"), {"p": path})


@pytest.mark.parametrize("path", ["/w/a..b", "/w/..a", "/w/a..", "v1..v2", "/w/.", "...?", "wait... what", "/w/.git"])
def test_dots_that_are_no_segment_do_not_climb(path: str) -> None:
    """File names and ranges with dots in them are as good as others."""
    assert not climbs(path)
    assert Glob(("**",)).covers(path)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/w/../etc/passwd", "/etc//passwd", "//etc/passwd", "/etc/./passwd", "/etc/x/../passwd",
     "/%65tc/passwd", "/etc%2Fpasswd", r"\etc\passwd", "/etc/passwd/"],
)  # fmt: skip
def test_deny_rule_sees_through_other_spellings_of_a_path(path: str) -> None:
    """A glob that looks for a path finds it however it is written."""
    assert Glob(("/etc/*",)).finds(path)
    assert "deny" == outcome("deny", when("$.p", glob="/etc/passwd"), {"p": path})


# -- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("/w/*", ["/w/a", "/w/", "/w/.x"], ["/w/a/b", "/w", "/W/a", r"/w/a\b"]),
        ("/w/**", ["/w/a", "/w/a/b", "/w/", "/w/a\nb"], ["/w", "/wx/a"]),
        ("**/.env", [".env", "a/.env", "/a/b/.env"], ["x.env", "a/.env/b", "a/.envx"]),
        ("src/**/*.py", ["src/a.py", "src/a/b/c.py"], ["src/a.pyc", "xsrc/a.py"]),
        ("a**/b", ["a/b", "ax/y/b"], ["b", "ab"]),
        ("?", ["a", "é", "\n"], ["", "ab", "/"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "x", "-x"]),
        ("[!a]x", ["bx"], ["ax", "/x"]),
        ("[^a]x", ["bx", "^x"], ["ax"]),
        ("[]]", ["]"], ["[", ""]),
        ("[[][*][?][{]", ["[*?{"], ["a*?{"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("a.b+(c)|d$^\\", ["a.b+(c)|d$^\\"], ["axb+(c)|d$^\\", "d"]),
        ("", [""], ["a"]),
    ],
)
def test_glob_for_values_matches_whole_paths(glob: str, matching: list[str], others: list[str]) -> None:
    """`*` and `?` stay in their segment, `**` does not, and everything else is literal."""
    compiled = Glob((glob,))
    assert matching == [text for text in matching if compiled.covers(text)]
    assert [] == [text for text in others if compiled.covers(text)]


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("read_*", ["read_", "read_a/b"], ["Read_a", "xread_a"]),
        ("*", ["", "a/b\nc"], []),
        ("get_?", ["get_a"], ["get_", "get_ab"]),
        ("[!_]*", ["a_", "/"], ["_a"]),
        ("a**b", ["ab", "a/b"], ["a"]),
    ],
)
def test_glob_for_names_knows_no_segments(glob: str, matching: list[str], others: list[str]) -> None:
    """In a name `*` matches everything, slashes too."""
    compiled = Names((glob,))
    assert matching == [text for text in matching if compiled.matches(text)]
    assert [] == [text for text in others if compiled.matches(text)]


def test_name_that_is_no_unicode_text_matches_only_what_matches_all() -> None:
    """A lone surrogate in a name raises nothing, and no pattern claims to know it."""
    assert not Names(("a*",)).matches("a\ud800")
    assert Names(("a*", "**")).matches("a\ud800")


@given(st.text(max_size=20).filter(lambda text: not climbs(text)))
def test_glob_of_literal_classes_matches_exactly_its_text(text: str) -> None:
    """Every character can be written literally, special ones in brackets."""
    glob = "".join(f"[{char}]" if char in "*?[{}" else char for char in text)
    assert Glob((glob,)).covers(text)
    assert not Glob((glob,)).covers(text + "x")
    assert Names((glob or "*",)).matches(text)


@pytest.mark.parametrize(
    "glob", ["[", "a[b", "[]", "[!]", "{a,b}", "}", "[z-a]", "[+-9]", "[ -Z]", "x" * 2001, "\ud800"]
)
def test_glob_that_is_wrong_is_refused(glob: str) -> None:
    """What would match nothing, or more than its author thinks, is an error."""
    with pytest.raises(PatternError):
        Glob((glob,))


@pytest.mark.parametrize("pattern", ["(", "a**", "(?=a)", r"(a)\1", "[b-a]", "x" * 2001, r"\pL{0,900}", "\ud800"])
def test_regex_that_is_wrong_or_too_large_is_refused(pattern: str) -> None:
    """RE2's refusals and the bound on a program's size are errors of the pattern."""
    with pytest.raises(PatternError):
        Regex(pattern)


def test_regex_has_to_match_all_in_allow_and_is_searched_for_elsewhere() -> None:
    """`rm` allowed is not `rm -rf /` allowed, and `rm` denied is `sudo rm` denied."""
    assert "allow" == outcome("allow", when("$.c", regex="ls|rm"), {"c": "rm"})
    assert "ask" == outcome("allow", when("$.c", regex="ls|rm"), {"c": "rm -rf /"})
    assert "deny" == outcome("deny", when("$.c", regex="rm"), {"c": "sudo rm -rf /"})
    assert "allow" == outcome("deny", when("$.c", regex="^rm$"), {"c": "sudo rm"})


def test_regex_looks_past_line_breaks() -> None:
    """A line break hides nothing from `.`, and `$` is the end of the text only."""
    assert Regex("ls.*rm").finds("ls\nrm")
    assert not Regex("^rm").finds("ls\nrm")
    assert not Regex("ls$").finds("ls\n")
    assert not Regex("[a-z]+").covers("ls\nrm")


# -- paths ------------------------------------------------------------------------------------------------------------


@given(PATHS, ARGUMENTS)
def test_path_selects_what_the_library_selects(path: str, arguments: dict[str, Any]) -> None:
    """The bounded evaluation agrees with jsonpath_rfc9535's own."""
    expected = [node.value for node in jsonpath_rfc9535.find(path, arguments)]
    texts = [value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) for value in expected]
    assert sorted(texts) == sorted(Path(path).texts(arguments))


@pytest.mark.parametrize(
    "path",
    ["", "a", "$.", "$.a[", "$.a[?match(@.b, 'x')]", "$.a[?search(@.b, 'x')]", "$.a[?count(@.*) > 1]", "$.a[?@..b]",
     "$.a[?@.*]", "$.a[?@[?@.b]]", "$.a[?!@..b || @.c == 1]", "$.a[?length(@.b) > length($..c)]", "$" + ".a" * 600],
)  # fmt: skip
def test_path_that_is_wrong_or_unbounded_is_refused(path: str) -> None:
    """Neither bad syntax nor a filter whose cost depends on more than one value."""
    with pytest.raises(PathError):
        Path(path)


def test_path_with_a_filter_joins_conditions_on_one_element() -> None:
    """A filter tells apart which element a value belongs to, which two conditions cannot."""
    condition = when("$.edits[?@.mode == 'delete'].path", glob="/etc/**")
    deletes = {"edits": [{"mode": "delete", "path": "/etc/a"}, {"mode": "read", "path": "/w"}]}
    reads = {"edits": [{"mode": "delete", "path": "/w"}, {"mode": "read", "path": "/etc/a"}]}
    assert "deny" == outcome("deny", condition, deletes)
    assert "allow" == outcome("deny", condition, reads)


@given(st.text("$.@[]?*'a1,:-!&|=<>() ", max_size=20))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    """Whatever a path says, nothing but PathError comes out, neither of reading it nor of following it."""
    for candidate in (f"${text}", f"$[?{text}]", f"$..[?@{text}]"):
        with suppress(PathError):
            Path(candidate).texts({"a": [{"a": 1}, "a", None, 1.5], "1": {"a": [True]}})


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    """Whatever a pattern says, nothing but PatternError comes out, neither of reading it nor of matching."""
    kinds: tuple[Callable[[str], Any], ...] = (Regex, lambda glob: Glob((glob,)), lambda glob: Names((glob,)))
    for kind in kinds:
        with suppress(PatternError):
            pattern = kind(text)
            matches = (pattern.matches,) if isinstance(pattern, Names) else (pattern.covers, pattern.finds)
            assert {True, False} >= {match("/a/../b") for match in matches}


def test_path_counts_exactly_up_to_its_limit() -> None:
    """The last value that may be looked at is judged, one more is not."""
    assert VALUE_LIMIT == len(Path("$.a[*]").texts({"a": [0] * (VALUE_LIMIT - 1), "b": 0})) + 1
    with pytest.raises(Unjudgeable, match="10,000"):
        Path("$.a[*]").texts({"a": [0] * VALUE_LIMIT})


def test_decide_takes_any_mapping_and_none() -> None:
    """A call without arguments, or with a read-only view of them, is decided like any other."""
    policy = Policy([rule("deny", None, when("$.a", glob="x"))])
    assert "deny" == decide(policy, arguments=MappingProxyType({"a": "x"})).decision
    assert "ask" == decide(policy, arguments=None).decision


def test_decide_remembers_a_bounded_number_of_names() -> None:
    """Many servers and tools do not grow the cache for ever, and the answers stay the same."""
    policy = Policy([rule("deny", "bad_*")])
    decisions = {decide(policy, f"bad_{number}").decision for number in range(5000)}
    assert {"deny"} == decisions
    assert len(policy._by_name) <= 2048
