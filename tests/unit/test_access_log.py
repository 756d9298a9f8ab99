"""No token in a log line and one line for each record, by hand-made records and by a real uvicorn."""

from __future__ import annotations

import logging
import logging.config
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import LOGGING_CONFIG
from uvicorn.logging import AccessFormatter

from agent_sse import access_log
from agent_sse.access_log import LOGGERS, BlankTokens, install, redact_query

SECRET = "S3cr3t-Va1ue_x"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


def record_of(msg: object, *args: Any, name: str = "any", exc_info: Any = None) -> logging.LogRecord:
    """Build a record as a logging call does."""
    return logging.LogRecord(name, logging.INFO, __file__, 1, msg, args, exc_info)


def line_of(record: logging.LogRecord) -> str:
    """Return what is written for the record behind the filter."""
    assert BlankTokens().filter(record) is True
    return logging.Formatter("%(message)s").format(record)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        (f"token={SECRET}", "token=***"),
        (f"ticket={SECRET}", "ticket=***"),
        (f"a=1&token={SECRET}&b=2", "a=1&token=***&b=2"),
        (f"token={SECRET}&token={SECRET}&ticket={SECRET}", "token=***&token=***&ticket=***"),
        (f"%74oken={SECRET}", "%74oken=***"),
        (f"%54%4F%4b%45%6E={SECRET}", "%54%4F%4b%45%6E=***"),
        (f"TOKEN={SECRET}&TiCkEt={SECRET}", "TOKEN=***&TiCkEt=***"),
        (f"token%3D{SECRET}", "token%3D***"),
        (f"a=1;token={SECRET};{SECRET}", "a=1;token=***"),
        (f"token={SECRET}={SECRET}#{SECRET} {SECRET}", "token=***"),
        (f'token="{SECRET}"', "token=***"),
        (f"next=%2Fevents%3Ftoken%3D{SECRET}&b=2", "next=%2Fevents%3Ftoken%3D***&b=2"),
        (f"token=&x={JWT}", "token=***&x=***"),
        (
            "mytoken=1&token_type=2&tokens=3&a.token=4&my-ticket=5",
            "mytoken=1&token_type=2&tokens=3&a.token=4&my-ticket=5",
        ),
        ("token&ticket", "token&ticket"),
        ("last_event_id=1-0&q=%20a+b", "last_event_id=1-0&q=%20a+b"),
    ],
)
def test_redact_query_blanks_values(query: str, expected: str) -> None:
    """The values of both parameters go, however the name is written; the rest stays as it is, in str and bytes."""
    assert redact_query(query) == expected
    assert redact_query(query.encode()) == expected.encode()


def test_redact_query_takes_any_bytes() -> None:
    """A query that is no UTF-8 is no problem."""
    assert redact_query(b"a=\xff&token=\xfe\x00\xff&b=\n") == b"a=\xff&token=***&b=\n"


def spelled(character: str) -> st.SearchStrategy[str]:
    """Spell a character in all the ways that mean it in a query."""
    codes = [character.lower(), character.upper()]
    return st.sampled_from([*codes, *[f"%{ord(code):02x}" for code in codes], *[f"%{ord(code):02X}" for code in codes]])


NAMES = st.sampled_from(["token", "ticket"]).flatmap(lambda name: st.tuples(*map(spelled, name)).map("".join))
OTHERS = st.text("abcxyz019.%&;=+-_/?", max_size=12)


@given(OTHERS, NAMES, OTHERS)
def test_redact_query_leaves_nothing_that_a_server_would_take(before: str, name: str, after: str) -> None:
    """Whatever surrounds it, no parameter that a server parses as token or ticket keeps its value."""
    redacted = redact_query(f"{before}&{name}={SECRET}&{after}")
    values = [value for key, value in parse_qsl(redacted) if key.lower() in ("token", "ticket")]
    assert SECRET not in redacted
    assert set(values) <= {"***"}
    assert values != []


def test_filter_keeps_the_arguments_of_uvicorns_access_log() -> None:
    """uvicorn's formatter needs five arguments: they stay five, the path without the token."""
    record = record_of(
        '%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", f"/e/s1?token={SECRET}&a=1", "1.1", 200, name="uvicorn.access"
    )
    assert BlankTokens().filter(record) is True
    assert record.args == ("127.0.0.1:1", "GET", "/e/s1?token=***&a=1", "1.1", 200)
    formatted = AccessFormatter('%(client_addr)s - "%(request_line)s" %(status_code)s', use_colors=False).format(record)
    assert formatted == '127.0.0.1:1 - "GET /e/s1?token=***&a=1 HTTP/1.1" 200 OK'


def test_filter_blanks_a_path_with_an_encoded_question_mark() -> None:
    """A client that encodes its URL once too often does not reveal its token."""
    path = "/e/" + quote(f"s1?token={SECRET}")
    record = record_of('%s - "%s %s HTTP/%s" %d', "c", "GET", path, "1.1", 404, name="uvicorn.access")
    assert SECRET not in line_of(record)


class Atoms(dict[str, Any]):
    """What gunicorn and hypercorn pass: a mapping with an answer for everything."""

    def __missing__(self, key: str) -> str:
        return "-"


@pytest.mark.parametrize(
    ("msg", "args", "expected"),
    [
        (f"GET http://h/e?token={SECRET} failed", (), "GET http://h/e?token=*** failed"),
        ("GET %s failed", (f"http://h/e?a=1&ticket={SECRET}",), "GET http://h/e?a=1&ticket=*** failed"),
        ("GET http://h/e?token=%s failed", (SECRET,), "GET http://h/e?token=*** failed"),
        ("GET %s", (ValueError(f"/e?token={SECRET}"),), "GET /e?token=***"),
        (
            "scope=%s",
            ({"query_string": f"token={SECRET}".encode(), "b": 1},),
            "scope={'query_string': b'token=*** 'b': 1}",
        ),
        ("%(r)s %(h)s", (Atoms(r=f"GET /e?token={SECRET} HTTP/1.1"),), "GET /e?token=*** HTTP/1.1 -"),
        ("%(q)s", (Atoms(q=f"token={SECRET}&a=1"),), "token=***&a=1"),
        (f"bearer {JWT}, later", (), "bearer ***, later"),
        (f"%d %s ?token={SECRET}", ("x",), "%d %s ?token=*** (its arguments do not fit)"),
        (f"token={SECRET} %d", ("x",), "token=*** %d (its arguments do not fit)"),
        ("a\r\nINFO: forged", (), "a\\x0d\\x0aINFO: forged"),
        ("a %s", ("\x1b[31mred\x00\x7f\x9b\u2028\u202e\ud800",), "a \\x1b[31mred\\x00\\x7f\\x9b\\u2028\\u202e\\ud800"),
        (f"?token={SECRET}\ntoken={SECRET}\x0b{SECRET[:1]}", (), "?token=***\\x0atoken=***\\x0bS"),
        ("Exception in ASGI application\n", (), "Exception in ASGI application"),
        ("ordinary: é 你好 100% = \t", (), "ordinary: é 你好 100% = \\x09"),
        (ValueError("/e?token=abc"), (), "/e?token=***"),
    ],
)
def test_filter_cleans_any_record(msg: object, args: tuple[Any, ...], expected: str) -> None:
    """Message, arguments of any type and mappings are cleaned, and the line stays one line."""
    assert line_of(record_of(msg, *args)) == expected


def test_filter_leaves_a_clean_record_alone() -> None:
    """Template and arguments of an ordinary record are kept for structured formatters."""
    record = record_of("Started server process [%d]", 42)
    BlankTokens().filter(record)
    assert (record.msg, record.args) == ("Started server process [%d]", (42,))


def test_filter_is_idempotent() -> None:
    """Two filters on a record's way do what one does."""
    record = record_of("a\n2 GET %s", f"/e?token={SECRET}")
    assert line_of(record) == line_of(record) == "a\\x0a2 GET /e?token=***"


def test_filter_blanks_a_traceback() -> None:
    """An exception's text is cleaned too, and a traceback keeps its lines."""
    try:
        raise ValueError(f"bad URL /e?token={SECRET}")
    except ValueError:
        record = record_of("Exception in ASGI application\n", exc_info=sys.exc_info())
    lines = line_of(record).splitlines()
    assert (lines[0], lines[1]) == ("Exception in ASGI application", "Traceback (most recent call last):")
    assert lines[-1] == "ValueError: bad URL /e?token=***"


@given(st.text(), st.lists(st.text() | st.integers() | st.none() | st.binary(), max_size=6))
def test_filter_never_raises_and_makes_one_line(msg: str, args: list[Any]) -> None:
    """Whatever is logged becomes one encodable line."""
    for name in ("uvicorn.access", "other"):
        line = line_of(record_of(msg, *args, name=name)) if name == "other" else ""
        assert BlankTokens().filter(record_of(msg, *args, name=name)) is True
        assert line.splitlines() in ([], [line])
        assert line.encode().decode() == line


@pytest.fixture
def bare_loggers() -> Iterator[None]:
    """Give the servers' loggers their filters, handlers and levels back after the test."""
    loggers = [logging.getLogger(name) for name in (*LOGGERS, "uvicorn")]
    before = [(item.filters[:], item.handlers[:], item.level, item.propagate) for item in loggers]
    for item in loggers:
        item.filters = []
    yield
    for item, (filters, handlers, level, propagate) in zip(loggers, before, strict=True):
        item.filters, item.handlers, item.propagate = filters, handlers, propagate
        item.setLevel(level)


@pytest.mark.usefixtures("bare_loggers")
def test_install_is_idempotent_and_survives_uvicorns_configuration() -> None:
    """One filter on each logger, however often it is installed and although uvicorn configures logging afterwards."""
    install()
    logging.config.dictConfig(LOGGING_CONFIG)
    install()
    counts = {name: [type(item) for item in logging.getLogger(name).filters] for name in LOGGERS}
    assert counts == {name: [BlankTokens] for name in LOGGERS}


APP = """
from agent_sse.access_log import install

def create():
    install()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        if scope["path"] == "/boom":
            raise RuntimeError("cannot serve ?" + scope["query_string"].decode("latin-1"))
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    return app
"""


def ask(port: int, target: bytes) -> bytes:
    """Send one request and return the whole answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("level", ["info", "trace"])
def test_plain_uvicorn_logs_no_token(tmp_path: Path, http: str, level: str) -> None:
    """Under plain `uvicorn`, which configures logging itself, no request leaves its token, and each leaves one line."""
    (tmp_path / "blank_app.py").write_text(APP)
    environment = {**os.environ, "PYTHONPATH": str(Path(access_log.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    command = f"uvicorn --factory blank_app:create --host 127.0.0.1 --port 0 --lifespan off --http {http}"
    server = subprocess.Popen(
        [sys.executable, "-m", *command.split(), "--log-level", level, "--app-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    started = []
    try:
        port = None
        while port is None:
            line = server.stdout.readline()
            assert line != "", "".join(started)
            started.append(line)
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", line)
            port = int(found[1]) if found else None
        targets = [
            f"/e/s1?token={SECRET}&n=0",
            f"/e/s1?a=1&%74OKEN={SECRET}&ticket={SECRET}&n=1",
            f"/e/s1%3Ftoken={SECRET}%0aINFO:%20forged&n=2",
            f"/e/{JWT}?n=3",
            f"/e/%0d%0aINFO:%20forged%1b%e2%80%a8?token={SECRET}&n=4",
        ]
        for target in targets:
            assert ask(port, target.encode()).split(b" ", 2)[1] == b"401"
        ask(port, f"/boom?token={SECRET}".encode())
    finally:
        server.terminate()
        output = "".join(started) + server.communicate(timeout=30)[0]
    assert SECRET not in output
    assert "eyJ" not in output
    access = [line for line in output.splitlines() if '" 401' in line]
    assert [len(re.findall(rf"n={number}\b", "\n".join(access))) for number in (0, 1, 3, 4)] == [1, 1, 1, 1]
    assert len(access) == len(targets)
    assert [line for line in output.splitlines() if line.startswith("INFO: forged")] == []
    assert "token=***" in output
    assert "RuntimeError: cannot serve ?token=***" in output


def test_blanking_takes_one_pass_over_a_hostile_query() -> None:
    """What only looks like the beginning of tokens, over and over, is neither searched again and again nor kept."""
    hostile = "x=" + "eyJ" * 2_000_000  # a quadratic search would not end within the suite's life
    assert len(redact_query(hostile)) < 100
