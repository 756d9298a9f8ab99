"""A policy's file: every problem is named with its place, a change takes effect, and a broken one never does."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_sse.errors import ConfigurationError, InvalidEvent
from agent_sse.policy import Policy, Verdict
from agent_sse.policy_check import explain_check, parse_object
from agent_sse.policy_file import SIZE_LIMIT, PolicyFile, load_policy
from agent_sse.policy_form import InvalidPolicy, parse_policy

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "policy.toml"

ASK = "version = 1\n"
DENY = 'version = 1\ndefault = "deny"\n'
ALLOW = 'version = 1\ndefault = "allow"\n'
BROKEN = 'version = 1\ndefault = "dney"\n'


def decision(policy: Policy) -> str:
    return policy.decide(server="s", tool="t", arguments={}, annotations=None).decision


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(text, "p.toml")
    assert isinstance(caught.value, ConfigurationError)
    assert "; ".join(caught.value.problems) == str(caught.value)
    return list(caught.value.problems)


def of_rule(lines: str) -> list[str]:
    """Return the problems of a file whose only rule has these lines, from line 3 on."""
    return problems(f"version = 1\n[[rules]]\n{lines}\n")


# -- form -------------------------------------------------------------------------------------------------------------


def test_file_gives_every_key_its_meaning() -> None:
    """What stands in the file is what the policy does."""
    policy = parse_policy(
        """
version = 1
default = "deny"
[servers.fs]
trusted = true
[servers."no body"]
trusted = false

[[rules]]
name = "first"
tool = ["write_*", "edit"]
server = "f?"
risk = ["medium", "high"]
decision = "ask"
set_risk = "critical"
reason = "look twice"
timeout = 60
editable = false
[[rules.arguments]]
path = "$.path"
glob = ["/a/*", "/b/*"]
[[rules.arguments]]
path = "$.mode"
regex = "w|a"

[[rules]]
risk = "low"
decision = "allow"

[[rules]]
tool = "edit"
decision = "ask"
timeout = 0.5
"""
    )
    arguments = {"path": "/b/x", "mode": "w"}

    def decide(tool: str, server: str = "fs", annotations: Any = None, **changes: Any) -> Verdict:
        return policy.decide(server=server, tool=tool, arguments={**arguments, **changes}, annotations=annotations)

    assert Verdict("ask", "critical", "first", "look twice", 60.0, False) == decide("write_file")
    assert Verdict("ask", "high", "rule 3", None, 0.5, True) == decide("edit", mode="r")
    assert Verdict("allow", "low", "rule 2") == decide("edit", annotations={"readOnlyHint": True})
    assert Verdict("deny", "medium", "default") == decide("other", "no body", {"readOnlyHint": True})
    assert "default" == decide("write_file", "xfs").rule


def test_smallest_file_is_the_built_in_default() -> None:
    """A version alone is a policy: the default one."""
    assert Verdict("ask", "high", "default") == parse_policy(ASK).decide(
        server="s", tool="t", arguments=None, annotations=None
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["p.toml: version: is missing: write version = 1"]),
        ("version = 2", ["p.toml:1: version: must be 1, the only one that this release reads, not 2"]),
        ("version = true", ["p.toml:1: version: must be 1, the only one that this release reads, not true"]),
        ("version = 1\ndefualt = 'ask'", ["p.toml:2: defualt: unknown key; did you mean default?"]),
        ("version = 1\nx = 1", ["p.toml:2: x: unknown key; the keys are version, default, servers, rules"]),
        ("version = 1\nrules = 3", ["p.toml:2: rules: must be a list, not 3"]),
        ("version = 1\nrules = [3]", ["p.toml:2: rule 1: must be a table, not 3"]),
        ("version = 1\n[servers]\nfs = 3", ["p.toml:3: servers, fs: must be a table, not 3"]),
        ("version = 1\n[servers.fs]", ["p.toml:2: servers, fs, trusted: is missing: write trusted = true"]),
        ("version = 1\n[servers.fs]\ntrusted = 1", ["p.toml:3: servers, fs, trusted: must be a boolean, not 1"]),
        (
            "version = 1\n[servers.'f*']\ntrusted = true",
            ["p.toml:2: servers, f*: must be a server's exact name, since trust is not given by pattern"],
        ),
        ("version = 1\n\nx = = 1\n", ["p.toml:3: is not TOML: Invalid value"]),
        ("version = " + "[" * 50_000, ["p.toml: is nested too deeply"]),
    ],
)
def test_file_problem_says_where_and_what_to_write(text: str, expected: list[str]) -> None:
    """A problem names file, line and key, and what would be right."""
    assert expected == problems(text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("tool = 'x'", "p.toml:2: rule 1, decision: is missing: write decision ="),
        ("decision = 'alow'", "p.toml:3: rule 1, decision: must be 'allow', 'ask' or 'deny', not \"alow\""),
        ("decision = 'ask'\ntimout = 3", "p.toml:4: rule 1, timout: unknown key; did you mean timeout?"),
        ("decision = 'ask'\ntool = 3", "p.toml:4: rule 1, tool: must be a glob in quotes or a list of them, not 3"),
        ("decision = 'ask'\ntool = []", "p.toml:4: rule 1, tool: must not be empty"),
        ("decision = 'ask'\nserver = ''", 'p.toml:4: rule 1, server: must not be ""'),
        ("decision = 'ask'\ntool = ['a', 'b{c,d}']", "p.toml:4: rule 1, tool: 'b{c,d}' has a brace"),
        ("decision = 'ask'\ntool = '[a'", "p.toml:4: rule 1, tool: '[a' has a '[' that no ']' closes"),
        ("decision = 'ask'\nrisk = 'huge'", 'p.toml:4: rule 1, risk: must be low, medium or high, not "huge"'),
        ("decision = 'ask'\nrisk = ['critical']", 'p.toml:4: rule 1, risk: cannot be "critical"'),
        ("decision = 'ask'\nset_risk = 'x'", "p.toml:4: rule 1, set_risk: must be 'low', 'medium', 'high' or"),
        ("decision = 'ask'\nname = ''", "p.toml:4: rule 1, name: "),
        ("decision = 'ask'\nname = 'default'", "p.toml:2: rule 1: cannot have this name"),
        ("decision = 'ask'\nname = 'rule 7'", "p.toml:2: rule 1: cannot have this name"),
        ("decision = 'ask'\nname = \"a\\u0007\"", "p.toml:2: rule 1: cannot have this name"),
        ("decision = 'ask'\nreason = 3", "p.toml:4: rule 1, reason: must be a string, not 3"),
        ("decision = 'ask'\ntimeout = 0", "p.toml:4: rule 1, timeout: must be greater than 0, not 0"),
        ("decision = 'ask'\ntimeout = 604801", "p.toml:4: rule 1, timeout: must be less than or equal to 604800"),
        ("decision = 'ask'\ntimeout = nan", "p.toml:4: rule 1, timeout: "),
        ("decision = 'ask'\ntimeout = inf", "p.toml:4: rule 1, timeout: "),
        ("decision = 'ask'\ntimeout = '60'", "p.toml:4: rule 1, timeout: must be a number"),
        ("decision = 'ask'\neditable = 'no'", "p.toml:4: rule 1, editable: must be a boolean"),
        ("decision = 'deny'\ntimeout = 3", "p.toml:2: rule 1: cannot have timeout or editable"),
        ("decision = 'allow'\neditable = false", "p.toml:2: rule 1: cannot have timeout or editable"),
        ("decision = 'ask'\narguments = []", "p.toml:4: rule 1, arguments: must not be empty"),
        ("decision = 'ask'\narguments = 3", "p.toml:4: rule 1, arguments: must be a list"),
        ("decision = 'ask'\narguments = {path = '$.a'}", "p.toml:4: rule 1, arguments 1: needs exactly one of glob"),
        (
            "decision = 'ask'\narguments = [{path = '$', glob = 'a', regex = 'a'}]",
            "p.toml:4: rule 1, arguments 1: needs exactly one of glob and regex",
        ),
        ("decision = 'ask'\n[rules.arguments]\nglob = 'a'", "p.toml:4: rule 1, arguments 1, path: is missing"),
        ("decision = 'ask'\n[[rules.arguments]]\npath = '$.'\nglob = 'a'", "p.toml:5: rule 1, arguments 1, path: '$.'"),
        ("decision = 'ask'\n[[rules.arguments]]\npath = 3\nglob = 'a'", "p.toml:5: rule 1, arguments 1, path: must be"),
        ("decision = 'ask'\n[[rules.arguments]]\npath = '$'\nglob = 3", "p.toml:6: rule 1, arguments 1, glob: must be"),
        (
            "decision = 'ask'\n[[rules.arguments]]\npath = '$'\nregex = '(?=a)'",
            "p.toml:6: rule 1, arguments 1, regex: '(?=a)' is not a regular expression of RE2",
        ),
        (
            "decision = 'ask'\n[[rules.arguments]]\npath = '$'\nregex = ['a']",
            "p.toml:6: rule 1, arguments 1, regex: must be one regular expression",
        ),
        (
            "decision = 'ask'\n[[rules.arguments]]\npath = '$'\nrgex = 'a'",
            "p.toml:6: rule 1, arguments 1, rgex: unknown key; did you mean regex?",
        ),
    ],
)
def test_rule_problem_says_where_and_what_to_write(lines: str, expected: str) -> None:
    """A rule's problem names file, line, rule and key, and there is one message for one mistake."""
    found = of_rule(lines)
    assert [expected] == [problem[: len(expected)] for problem in found]


def test_all_problems_are_named_in_their_order() -> None:
    """One run over the file tells everything that has to be mended."""
    text = """version = 2
[servers.fs]
trusted = "yes"
[[rules]]
name = "x"
tool = "["
decision = "no"
[[rules]]
name = "y"
decision = "deny"
[[rules]]
name = "y"
decision = "ask"
[[rules.arguments]]
path = "$.a"
glob = "a"
[[rules.arguments]]
path = "$["
glob = "a"
"""
    assert [1, 3, 6, 7, 18] == [int(problem.split(":")[1]) for problem in problems(text)]


def test_rules_that_are_wrong_together_are_named() -> None:
    """Two rules of one name, and a rule behind one that matches every call."""
    text = """version = 1
[[rules]]
name = "x"
tool = "a"
decision = "ask"
[[rules]]
name = "x"
tool = ["b", "*"]
decision = "ask"
[[rules]]
decision = "deny"
"""
    assert [
        'p.toml:7: rule 2, name: "x" is already the name of rule 1',
        "p.toml:10: rule 3: can never decide, since rule 2 matches every call: swap them",
    ] == problems(text)


def test_lines_are_found_past_what_looks_like_tables() -> None:
    """Multi-line strings and comments do not mislead the line numbers."""
    text = """version = 1
[[rules]]  # first
decision = "deny"
tool = "a"
reason = '''
[[rules]]
decision = 3
'''
# [[rules]]
[[ rules ]]
"decision" = "deny"
arguments = { path = "$.", glob = "a" }
"""
    assert ["p.toml:12: rule 2, arguments 1, path: '$.'"] == [problem[:42] for problem in problems(text)]


def test_file_may_not_hold_more_rules_than_the_limit() -> None:
    """The number of rules is bounded, and the message does not repeat them all."""
    text = "version = 1\n" + '[[rules]]\ntool = "a"\ndecision = "ask"\n' * 1001
    (problem,) = problems(text)
    assert "1000 items" in problem
    assert len(problem) < 300


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_its_problems(text: str) -> None:
    """Whatever stands in the file, nothing but InvalidPolicy comes out."""
    for candidate in (text, f"version = 1\n{text}", f"version = 1\n[[rules]]\ndecision = 'ask'\ntool = {text}"):
        with suppress(InvalidPolicy):
            parse_policy(candidate)


TOML_VALUES = st.recursive(
    st.sampled_from(["1", "0.5", "true", "'a'", "'$.a'", "'*'", "'ask'", "'['", "nan", "1979-05-27", "''"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["path", "glob", "regex", "x"]), inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=6,
)
KEYS = ["name", "tool", "server", "risk", "arguments", "decision", "set_risk", "reason", "timeout", "editable", "x"]


@given(st.dictionaries(st.sampled_from(KEYS), TOML_VALUES), st.dictionaries(st.sampled_from(KEYS), TOML_VALUES))
def test_any_values_are_a_policy_or_their_problems(first: dict[str, str], second: dict[str, str]) -> None:
    """Whatever is written for a key, the answer is a policy that decides, or a list of problems."""
    rules = "".join("[[rules]]\n" + "".join(f"{k} = {v}\n" for k, v in rule.items()) for rule in (first, second))
    with suppress(InvalidPolicy):
        assert decision(parse_policy(f"version = 1\n{rules}")) in ("allow", "ask", "deny")


# -- loading and reloading --------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def write(path: Path, text: str, *, age: float = 3600) -> None:
    """Write in place, as if some time ago: so that the file's time does not hide a change, nor helps to see one."""
    path.write_text(text, encoding="utf-8")
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - age))


def replace(path: Path, text: str) -> None:
    """Write as careful editors do: a new file, moved over the old one."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"version = 1\n\xff", "policy.toml:2: is not UTF-8"),
        (b"#" * (SIZE_LIMIT + 1), "is larger than 1,048,576 bytes"),
        (BROKEN.encode(), "policy.toml:2: default: must be"),
    ],
)
def test_load_refuses_what_it_cannot_use(path: Path, content: bytes | None, message: str) -> None:
    """A missing, unreadable or wrong file is an error at the start, with the file's name in it."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"policy\.toml") as caught:
        load_policy(path)
    assert message in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"policy\.toml"):
        PolicyFile(path)


def test_load_refuses_what_is_no_file(path: Path) -> None:
    """A directory or a pipe is refused at once; nobody waits for the other end."""
    path.mkdir()
    with pytest.raises(InvalidPolicy):
        load_policy(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(InvalidPolicy, match="not a regular file"):
        load_policy(path)


def test_load_accepts_a_byte_order_mark_and_windows_line_ends(path: Path) -> None:
    """What Windows' editors add does no harm."""
    path.write_bytes(b"\xef\xbb\xbf" + DENY.replace("\n", "\r\n").encode())
    assert "deny" == decision(load_policy(path))


@pytest.mark.parametrize("change", [write, replace])
def test_file_takes_effect_when_it_changes(path: Path, change: Any) -> None:
    """Both ways of saving show with the next call, and an unchanged file is the same policy."""
    write(path, DENY)
    file = PolicyFile(path)
    first = file.current()
    assert "deny" == decision(first)
    assert first is file.current()
    change(path, ALLOW)
    assert "allow" == decision(file.current())
    assert file.error is None


def test_file_changed_within_a_tick_is_seen(path: Path) -> None:
    """Two versions of one size and one time are told apart while the file is young."""
    write(path, 'version = 1\ndefault = "deny" \n', age=0)
    file = PolicyFile(path)
    status = path.stat()
    assert "deny" == decision(file.current())
    path.write_text('version = 1\ndefault = "allow"\n', encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "allow" == decision(file.current())


def test_file_with_a_kept_time_is_seen(path: Path) -> None:
    """A version that was given the old one's size and time is noticed by the time of the change itself."""
    write(path, 'version = 1\ndefault = "deny" \n')
    file = PolicyFile(path)
    before = path.stat()
    replace(path, 'version = 1\ndefault = "allow"\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "allow" == decision(file.current())


@pytest.mark.parametrize("broken", [BROKEN, "", "version = ", None])
def test_broken_version_leaves_the_last_good_one_in_force(
    path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is wrong, half written or gone changes nothing, is logged once, and can be mended."""
    write(path, DENY)
    file = PolicyFile(path)
    with caplog.at_level(logging.INFO, "agent_sse.policy_file"):
        path.unlink() if broken is None else write(path, broken)
        assert ["deny"] * 3 == [decision(file.current()) for _ in range(3)]
        (record,) = caplog.records
        assert ("ERROR", True) == (record.levelname, "stays in force" in record.getMessage())
        assert str(path) in str(file.error)
        write(path, ALLOW)
        assert "allow" == decision(file.current())
        assert file.error is None
    assert ["ERROR", "INFO"] == [record.levelname for record in caplog.records]


def test_each_broken_version_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another mistake is another line, and so is the same one made again."""
    write(path, DENY)
    file = PolicyFile(path)
    for text in (BROKEN, "version = 2\n", BROKEN, None, BROKEN):
        path.unlink() if text is None else write(path, text)
        for _ in range(2):
            assert "deny" == decision(file.current())
    assert 5 == len([record for record in caplog.records if record.levelname == "ERROR"])


def test_mended_file_of_the_old_content_clears_the_error(path: Path) -> None:
    """Undoing the mistake is enough, although the text is one that was read before."""
    write(path, DENY)
    file = PolicyFile(path)
    for broken in (BROKEN, None):
        path.unlink() if broken is None else write(path, broken)
        file.current()
        assert file.error is not None
        write(path, DENY)
        assert "deny" == decision(file.current())
        assert file.error is None


# -- check ------------------------------------------------------------------------------------------------------------


def test_example_is_what_its_comments_say() -> None:
    """The example is a valid policy, and decides as its readers are told."""
    policy = load_policy(EXAMPLE)

    def decide(server: str, tool: str, annotations: Any = None, **arguments: Any) -> tuple[str, str]:
        verdict = policy.decide(server=server, tool=tool, arguments=arguments, annotations=annotations)
        return verdict.decision, verdict.rule

    reads = {"readOnlyHint": True}
    assert ("allow", "read-project") == decide("filesystem", "read_text_file", path="/project/a.txt")
    assert ("ask", "default") == decide("filesystem", "read_text_file", reads, path="/etc/passwd")
    assert ("ask", "default") == decide("filesystem", "read_text_file", reads, path="/project/../etc/passwd")
    assert ("deny", "no-secrets") == decide("filesystem", "read_text_file", path="/project/.env")
    assert ("deny", "no-secrets") == decide("git", "git_show", reads, files=["a", "keys/id_rsa"])
    assert ("allow", "default") == decide("git", "git_status", reads, repo_path="/project")
    assert ("allow", "known-commands") == decide("shell", "run_command", command="git diff")
    assert ("ask", "commands") == decide("shell", "run_command", command="git diff; rm -rf /")
    assert ("deny", "no-wildcards") == decide("filesystem", "delete_file", path="/project/*.txt")
    assert ("ask", "default") == decide("filesystem", "delete_file", path="/project/a.txt")


def test_document_shows_what_check_prints(path: Path) -> None:
    """The policy in the documentation is valid, and the output below it is what comes out."""
    document = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    (console,) = re.findall(r"```console\n(.*?)```", document, re.DOTALL)
    command, *shown = console.splitlines()
    *_, tool, arguments, option, server = shlex.split(command)
    write(path, toml)
    lines, status = explain_check(path, tool, arguments, server=server)
    assert ("--server", 3) == (option, status)
    assert shown == lines


def test_check_explains_which_rule_decides() -> None:
    """The lines give the verdict and, rule by rule, why the earlier ones did not match."""
    lines, status = explain_check(EXAMPLE, "run_command", '{"command": "rm -rf /"}', server="shell")
    assert [
        "ask, by commands; risk critical",
        "timeout: 60 s",
        "the user may not edit the parameters",
        '  rule 1 (no-secrets) does not match: $..* selects nothing that matches (glob "**/.env" or "**/.ssh/**" or '
        '"**/*.pem" or "**/id_rsa"): "rm -rf /"',
        '  rule 2 (read-project) does not match: the tool "run_command" is not "read_text_file" or "list_directory"; '
        'the server "shell" is not "filesystem"; $.path selects nothing (glob "/project" or "/project/**")',
        "  rule 3 (known-commands) does not match: $.command selects a value that does not match "
        '(regex "git (status|diff|log)|make test|ls"): "rm -rf /"',
        "  rule 4 (commands) matches: ask",
    ] == lines
    assert 3 == status


@pytest.mark.parametrize(
    ("tool", "arguments", "decided", "status"),
    [
        ("run_command", {"command": "ls"}, "allow, by known-commands; risk high", 0),
        ("x", {}, "ask, by default; risk high", 3),
        ("x", {"file": "/a/id_rsa"}, "deny, by no-secrets; risk high", 4),
    ],
)
def test_check_status_tells_the_decision(tool: str, arguments: dict[str, Any], decided: str, status: int) -> None:
    """A script can tell allow, ask and deny apart, and none of them from a failure."""
    lines, code = explain_check(EXAMPLE, tool, json.dumps(arguments))
    assert (decided, status) == (lines[0], code)


def test_check_uses_trust_and_annotations(path: Path) -> None:
    """What the server says of the tool, and who trusts it, can be given."""
    write(path, 'version = 1\n[[rules]]\nname = "all"\ntool = "t*"\ndecision = "allow"\n')
    lines, status = explain_check(path, "tool", "{}", annotations={"destructiveHint": True})
    assert (["ask, by all; risk high", "reason: the server says that this tool is destructive"], 3) == (
        lines[:2],
        status,
    )
    assert "allow, raised to ask" in lines[2]
    lines, status = explain_check(path, "x", "{}", annotations={"readOnlyHint": True}, trusted=True)
    assert ("  no rule matches, the default decides: allow", 0) == (lines[-1], status)


def test_check_lines_are_safe_for_a_terminal(path: Path) -> None:
    """Neither the call nor the policy can steer the terminal."""
    write(path, 'version = 1\n[[rules]]\ntool = "a\\u001b]0;"\nreason = "\\u202e"\ndecision = "deny"\n')
    for tool in ("x\x1b[2J\n", "a\x1b]0;"):
        lines, _ = explain_check(path, tool, json.dumps({"a\x1b": "\x1b"}), server="\u202e")
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{path: 1}", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_check_refuses_arguments_that_are_no_object(text: str, message: str) -> None:
    """What a tool could never be called with is an error that says so."""
    with pytest.raises(InvalidEvent, match=message):
        explain_check(EXAMPLE, "x", text)
    with pytest.raises(InvalidEvent, match=r"^the annotations: "):
        parse_object(text, "the annotations")
