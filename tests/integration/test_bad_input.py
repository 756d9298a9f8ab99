"""Whatever a client sends gets a 4xx in JSON that says what to do: no 500, no traceback, no hang, nothing stored."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent_sse import SimpleNotifier, requests
from agent_sse.hub import Hub
from agent_sse.keys import SESSION_ID
from agent_sse.protocol import StreamProtocol
from harness import DEADLINE, PREFIX, Served, Stream, Valkey, bearer, make_settings, make_token, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSION = "s1"
BODY_LIMIT = 10_000
ANSWER = f"{PREFIX}/permission-response/{SESSION}"
ENDPOINTS = [
    ("GET", "events"), ("POST", "permission-response"), ("GET", "health"), ("POST", "ticket"), ("POST", "cancel"),
    ("GET", "audit"), ("POST", "publish"), ("POST", "permission-request"),
]  # fmt: skip


class Place(NamedTuple):
    """A running service, its Valkey, and a client that keeps its connections."""

    served: Served
    valkey: Valkey
    http: httpx.AsyncClient


@asynccontextmanager
async def running(*, direct: bool) -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="as") as folder:
        valkey = Valkey(Path(folder) / "v")
        await valkey.start()
        made = make_settings(valkey.url, max_body_bytes=BODY_LIMIT, heartbeat_interval=0.5)
        async with (
            serve(made, direct=direct) as served,
            httpx.AsyncClient(timeout=DEADLINE, base_url=served.url) as http,
        ):
            yield Place(served, valkey, http)
        await valkey.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    """For what opens no stream: only the protocol of `agent-sse serve` refuses in JSON what is no HTTP."""
    async with running(direct=True) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def either(sink: str) -> AsyncIterator[Place]:
    """For what opens streams: once with each way to write them."""
    async with running(direct=sink == "direct") as made:
        yield made


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test here leaves an error or a traceback in the log."""
    caplog.set_level(logging.INFO)
    yield
    loud = [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info or "Traceback" in r.getMessage()]
    assert [] == [record.getMessage() for record in loud]


async def stored(valkey: Valkey) -> dict[bytes, bytes]:
    """Everything in Redis, by key."""
    async with valkey.client() as client:
        return {key: await client.dump(key) async for key in client.scan_iter(count=1000)}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def exchange(served: Served, data: bytes) -> Reply:
    """Send bytes on a connection of their own and read one whole response; the connection is open until then."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(DEADLINE):
            writer.write(data)
            head = b"HTTP/1.1 100"
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").rstrip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = 0 if data.startswith(b"HEAD ") else int(headers["content-length"])
            return Reply(int(first.split()[1]), headers, await reader.readexactly(size))
    finally:
        writer.transport.abort()


def head(method: str, target: str, *lines: str | bytes, token: bool = True) -> bytes:
    """A request's head, as bytes that no HTTP library would write."""
    rows: list[str | bytes] = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    if token:
        rows.append(f"Authorization: Bearer {make_token(SESSION)}")
    rows += lines
    return b"\r\n".join(row.encode() if isinstance(row, str) else row for row in rows) + b"\r\n\r\n"


def escaped(value: bytes) -> str:
    """Percent-encode every byte, so that no client tidies dots away."""
    return "".join(f"%{code:02x}" for code in value)


def assert_refused(reply: Reply | httpx.Response, *statuses: int, code: str | None = None) -> dict[str, Any]:
    """The reply is an error of protocol.md § 3."""
    status, body = (reply.status, reply.body) if isinstance(reply, Reply) else (reply.status_code, reply.content)
    assert 400 <= status < 500, (status, body)
    assert not statuses or status in statuses, (status, body)
    assert "application/json" == reply.headers["content-type"]
    value = json.loads(body.decode("utf-8"))
    assert value["success"] is False
    assert re.fullmatch(r"[a-z][a-z_]*", value["error"]["code"])
    assert code in (None, value["error"]["code"]), value
    assert isinstance(value["message"], str)
    assert len(value["message"]) > 5
    assert set(value) <= {"success", "message", "error", "data"}
    return dict(value)


# -- bodies -----------------------------------------------------------------------------------------------------------

OK = b'{"approved": true, "reason": "x"}'

BODIES: list[tuple[str, bytes, int]] = [
    ("empty", b"", 400),
    ("white space", b" \r\n\t", 400),
    ("text", b"approve", 400),
    ("cut off", b'{"approved": tr', 400),
    ("two documents", OK + OK, 400),
    ("single quotes", b"{'approved': true}", 400),
    ("trailing comma", b'{"approved": true,}', 400),
    ("comment", b'{"approved": true /* yes */}', 400),
    ("form", b"approved=true&reason=x", 400),
    ("null", b"null", 400),
    ("boolean", b"true", 400),
    ("number", b"1", 400),
    ("string", b'"approved"', 400),
    ("list", b"[true]", 400),
    ("NaN", b'{"approved": NaN}', 400),
    ("Infinity", b'{"approved": true, "reason": Infinity}', 400),
    ("-Infinity", b"-Infinity", 400),
    ("name twice", b'{"approved": false, "approved": true}', 400),
    ("name twice, escaped", b'{"approved": false, "\\u0061pproved": true}', 400),
    ("name twice, below", b'{"approved": true, "reason": {"a": 1, "a": 2}}', 400),
    ("number of 9,000 digits", b'{"approved": ' + b"9" * 9000 + b"}", 400),
    ("UTF-16", OK.decode().encode("utf-16"), 400),
    ("UTF-16 without a mark", OK.decode().encode("utf-16-le"), 400),
    ("UTF-32", OK.decode().encode("utf-32"), 400),
    ("byte order mark", b"\xef\xbb\xbf" + OK, 400),
    ("latin-1", '{"approved": true, "reason": "é"}'.encode("latin-1"), 400),
    ("overlong UTF-8", b'{"approved": true, "reason": "\xc0\xaf"}', 400),
    ("surrogate in UTF-8", b'{"approved": true, "reason": "\xed\xa0\x80"}', 400),
    ("NUL", b'{"approved": true, "reason": "\x00"}', 400),
    ("gzip", b"\x1f\x8b\x08\x00\x00", 400),
    ("lists, 4,000 deep", b"[" * 4000 + b"]" * 4000, 400),
    ("objects, 1,500 deep", b'{"a":' * 1500 + b"1" + b"}" * 1500, 400),
    ("value 900 deep", b'{"approved": ' + b"[" * 900 + b"]" * 900 + b"}", 422),
    ("extra 900 deep", b'{"approved": true, "x": ' + b"[" * 900 + b"]" * 900 + b"}", 422),
    ("no field", b"{}", 422),
    ("no approved", b'{"reason": "x"}', 422),
    ("approved 1", b'{"approved": 1}', 422),
    ("approved 'true'", b'{"approved": "true"}', 422),
    ("approved null", b'{"approved": null}', 422),
    ("approved list", b'{"approved": [true]}', 422),
    ("approved 1e999", b'{"approved": 1e999}', 422),
    ("reason null", b'{"approved": true, "reason": null}', 422),
    ("reason number", b'{"approved": true, "reason": 5}', 422),
    ("reason of 2,001", b'{"approved": true, "reason": "' + b"x" * 2001 + b'"}', 422),
    ("reason with a lone surrogate", b'{"approved": true, "reason": "\\ud800"}', 422),
    ("request_id number", b'{"approved": true, "request_id": 5}', 422),
    ("request_id of 129", b'{"approved": true, "request_id": "' + b"x" * 129 + b'"}', 422),
    ("request_id with a lone surrogate", b'{"approved": true, "request_id": "\\udfff"}', 422),
    ("another field", b'{"approved": true, "remember": true}', 422),
    ("scope null", b'{"approved": true, "scope": null}', 422),
    ("scope unknown", b'{"approved": true, "scope": "forever"}', 422),
    ("covers without scope", b'{"approved": true, "covers": "tool"}', 422),
    ("covers unknown", b'{"approved": true, "scope": "session", "covers": "all"}', 422),
    ("patch list", b'{"approved": true, "request_id": "x", "parameters_patch": []}', 422),
    ("patch without id", b'{"approved": true, "parameters_patch": {}}', 422),
    ("patch of a denial", b'{"approved": false, "request_id": "x", "parameters_patch": {}}', 422),
    (
        "patch for the session",
        b'{"approved": true, "request_id": "x", "scope": "session", "parameters_patch": {}}',
        422,
    ),
    ("patch 900 deep", b'{"approved": true, "parameters_patch": ' + b"[" * 900 + b"]" * 900 + b"}", 422),
    ("patch with a lone surrogate", b'{"approved": true, "parameters_patch": {"\\ud800": 1}}', 422),
    ("field with a lone surrogate", b'{"approved": true, "\\ud800": 1}', 422),
    ("field with a line break", b'{"approved": true, "a\\r\\nSet-Cookie: b": 1}', 422),
    ("field of 5,000", b'{"approved": true, "' + b"x" * 5000 + b'": 1}', 422),
    ("empty field", b'{"approved": true, "": 1}', 422),
    ("case", b'{"Approved": true}', 422),
    ("too large", b'{"approved": true, "reason": "' + b"x" * BODY_LIMIT + b'"}', 413),
    ("too large white space", b" " * (BODY_LIMIT + 1), 413),
    ("100,000 lists", b"[" * 100_000, 413),
]


@pytest.mark.parametrize(("body", "status"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_bad_body_is_refused(place: Place, body: bytes, status: int) -> None:
    """A body that is no answer is refused with the fitting status, and stores nothing."""
    before = await stored(place.valkey)
    reply = await place.http.post(ANSWER, content=body, headers=bearer(make_token(SESSION)))
    value = assert_refused(reply, status)
    assert len(value["message"]) < 300
    assert before == await stored(place.valkey)


@pytest.mark.parametrize(
    "field", ["approved", "reason", "request_id", "remember", "scope", "covers", "parameters_patch"]
)
async def test_wrong_field_is_named(place: Place, field: str) -> None:
    """A 422 says which field is wrong."""
    body = {"approved": True, field: ["wrong"]}
    reply = await place.http.post(ANSWER, json=body, headers=bearer(make_token(SESSION)))
    assert field in assert_refused(reply, 422, code="invalid_field")["message"]


async def test_field_without_a_printable_name_is_still_told(place: Place) -> None:
    """A field whose name cannot be written back gets a message that reads as a sentence."""
    for body in (b'{"approved": true, "\\ud800": 1}', b'{"approved": true, "": 1}'):
        reply = await place.http.post(ANSWER, content=body, headers=bearer(make_token(SESSION)))
        assert not assert_refused(reply, 422)["message"].startswith(":")


async def test_body_nested_100_000_deep_is_refused_where_it_fits(place: Place) -> None:
    """Depth alone is refused too, in a service that allows the size."""
    async with serve(make_settings(place.valkey.url)) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        for body in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000):
            reply = await http.post(served.url + ANSWER, content=body, headers=bearer(make_token(SESSION)))
            assert_refused(reply, 400, code="invalid_json")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)
NEARLY = st.fixed_dictionaries(
    {"approved": st.booleans() | JSON_VALUES},
    optional={
        "reason": st.text() | JSON_VALUES,
        "request_id": st.text() | JSON_VALUES,
        "x": JSON_VALUES,
        "scope": st.sampled_from(["once", "session"]) | JSON_VALUES,
        "covers": JSON_VALUES,
        "parameters_patch": st.dictionaries(st.text(), JSON_VALUES) | JSON_VALUES,
    },
)


@given(st.binary(max_size=200) | (JSON_VALUES | NEARLY).map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass")))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(b'{"approved": true, "request_id": ""}')
async def test_any_body_is_refused_while_nothing_is_asked(place: Place, body: bytes) -> None:
    """No body at all makes anything but a 4xx where no request is open."""
    reply = await place.http.post(ANSWER, content=body, headers=bearer(make_token(SESSION)))
    assert_refused(reply, 400, 404, 413, 422)


async def test_bad_bodies_leave_the_service_well(either: Place) -> None:
    """After all of that an answer still works, once, and the agent gets it."""
    async with SimpleNotifier.from_url(either.valkey.url) as notifier:
        async with Stream(either.served.events("well", make_token("well"))) as stream:
            asking = asyncio.create_task(notifier.request_permission("well", "t"))
            await stream.next("permission_request")
            for _, body, _ in BODIES:
                reply = await either.http.post(
                    f"{PREFIX}/permission-response/well", content=body, headers=bearer(make_token("well"))
                )
                assert_refused(reply, 400, 413, 422)
            assert not asking.done()
            reply = await either.http.post(
                f"{PREFIX}/permission-response/well", content=OK, headers=bearer(make_token("well"))
            )
            assert 200 == reply.status_code
            assert await asking
        await notifier.close_session("well")


# -- what the headers say of a body -----------------------------------------------------------------------------------


async def test_body_longer_than_declared_is_refused(place: Place) -> None:
    """Only the declared length belongs to the request; what comes after it is no HTTP."""
    assert_refused(await exchange(place.served, head("POST", ANSWER, "Content-Length: 10") + OK), 400)


@pytest.mark.parametrize("sent", [b"", OK[:10]], ids=["nothing", "half"])
@pytest.mark.parametrize("framing", ["Content-Length: 33", "Transfer-Encoding: chunked"])
async def test_body_that_does_not_arrive_is_answered_in_time(
    place: Place, monkeypatch: pytest.MonkeyPatch, sent: bytes, framing: str
) -> None:
    """A client that stops in the middle of its body gets a 408, and its connection is closed behind it."""
    monkeypatch.setattr(requests, "BODY_TIMEOUT", 0.1)
    if "chunked" in framing and sent:
        sent = b"%x\r\n%s\r\n" % (len(sent), sent)
    reply = await exchange(place.served, head("POST", ANSWER, framing) + sent)
    assert_refused(reply, 408, code="body_timeout")
    assert "close" == reply.headers["connection"]


async def test_body_whose_client_leaves_is_forgotten(place: Place) -> None:
    """A connection that is cut in mid-body leaves nothing behind, not even a log line of an error."""
    before = await stored(place.valkey)
    host, port = place.served.url.removeprefix("http://").split(":")
    for _ in range(20):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head("POST", ANSWER, "Content-Length: 33") + OK[:10])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    server = place.served.server
    assert server is not None
    await until(lambda: not server.server_state.tasks, what="the end of all requests")
    assert before == await stored(place.valkey)


@pytest.mark.parametrize("size", [BODY_LIMIT + 1, 10**9, 10**18])
async def test_declared_length_over_the_limit_is_refused_at_once(place: Place, size: int) -> None:
    """A body declared too large is refused before a byte of it is read."""
    assert_refused(await exchange(place.served, head("POST", ANSWER, f"Content-Length: {size}")), 413)


async def test_chunked_body_over_the_limit_is_refused(place: Place) -> None:
    """A chunked body is bounded while it comes in, though it never says its length nor ends."""
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    assert_refused(await exchange(place.served, head("POST", ANSWER, "Transfer-Encoding: chunked") + chunk * 4), 413)


async def test_content_type_and_length_do_not_matter_where_no_body_is_read(place: Place) -> None:
    """Other endpoints ignore a body, whatever it says of itself."""
    reply = await exchange(
        place.served,
        head("GET", f"{PREFIX}/health/{SESSION}", "Content-Type: a/b", "Content-Length: 3") + b"\xff\xff\xff",
    )
    assert 200 == reply.status


# -- not HTTP ---------------------------------------------------------------------------------------------------------

MALFORMED = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40,
    "text": b"hello\r\n\r\n",
    "unknown method": head("BREW", ANSWER),
    "method in small letters": head("get", ANSWER),
    "negative length": head("POST", ANSWER, "Content-Length: -1"),
    "length of letters": head("POST", ANSWER, "Content-Length: abc"),
    "length of 30 digits": head("POST", ANSWER, "Content-Length: " + "9" * 30),
    "two lengths": head("POST", ANSWER, "Content-Length: 1", "Content-Length: 2") + b"{}",
    "length and chunked": head("POST", ANSWER, "Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "bad chunk size": head("POST", ANSWER, "Transfer-Encoding: chunked") + b"zz\r\n",
    "raw bytes in the path": b"GET " + PREFIX.encode() + b"/health/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in a header's name": head("GET", ANSWER, "Bad Name: x"),
    "NUL in a header": head("GET", ANSWER, b"X-A: a\x00b"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_not_http_is_refused_in_json(place: Place, data: bytes) -> None:
    """What the HTTP parser refuses gets the same kind of body, and the connection is closed."""
    reply = await exchange(place.served, data)
    assert_refused(reply, 400, code="malformed_request")
    assert "close" == reply.headers["connection"]


HEADS = {
    "URL": head("GET", f"{PREFIX}/health/{'a' * 35_000}"),
    "one header": head("GET", f"{PREFIX}/health/{SESSION}", f"X-A: {'a' * 35_000}"),
    "many headers": head("GET", f"{PREFIX}/health/{SESSION}", *(f"X-{i}: a" for i in range(10_000))),
    "headers without an end": head("GET", f"{PREFIX}/health/{SESSION}", *(f"X-{i}: a" for i in range(10_000)))[:-2],
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
async def test_large_head_is_refused_before_it_is_kept(place: Place, data: bytes) -> None:
    """Request line and headers are bounded while they come in: 431, or 400 from the parser's own bounds."""
    # In pieces, as a network would: what comes in one piece is parsed before anybody can count it.
    host, port = place.served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), 4096):
                writer.write(data[start : start + 4096])
                await writer.drain()
        with contextlib.suppress(ConnectionError):  # the rest of the flood may reset it before the answer is read
            first = await reader.readline()
            assert first.startswith(b"HTTP/1.1 4") or first == b""
    writer.transport.abort()


async def test_trailers_are_bounded(place: Place) -> None:
    """What comes behind a chunked body is not kept: the connection is closed."""
    start = head("POST", ANSWER, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n"
    host, port = place.served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionError):
            writer.write(start)
            for i in range(100_000):
                writer.write(b"X-%d: %s\r\n" % (i, b"a" * 100))
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
    writer.transport.abort()


async def test_answer_with_garbage_behind_it_gets_its_own_reply(place: Place) -> None:
    """A refusal of what follows is not taken for the reply to a good request before it."""
    body = b'{"approved": true, "request_id": "pr_none"}'
    good = head("POST", ANSWER, f"Content-Length: {len(body)}") + body
    assert_refused(await exchange(place.served, good + b"\x00GARBAGE\r\n\r\n"), 404, code="unknown_request")


async def test_upgrade_with_a_body_is_refused(place: Place) -> None:
    """The parser would take the body for another protocol's; without a body the request is served as it is."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    body = b'{"approved": true}'
    reply = await exchange(place.served, head("POST", ANSWER, *upgrade, f"Content-Length: {len(body)}") + body)
    assert_refused(reply, 400, code="upgrade_refused")
    assert 200 == (await exchange(place.served, head("GET", f"{PREFIX}/health/{SESSION}", *upgrade))).status


async def test_garbage_behind_a_stream_that_is_http_ends_it_without_a_word(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no HTTP do not put a second response into a stream that has not taken its connection over."""
    monkeypatch.setattr(StreamProtocol, "take_over", lambda *_: False)
    stream = await Stream(place.served.events(SESSION, make_token(SESSION))).open()
    await stream.primed()
    assert stream._writer is not None
    stream._writer.write(b"\x00garbage\r\n\r\n")
    await stream.end()
    assert not any("HTTP/1.1" in (event.data or "") for event in stream.records)
    assert b"HTTP/1.1" not in stream.buffer
    await stream.close()


# -- session ids ------------------------------------------------------------------------------------------------------

WRONG_IDS = [
    *(bytes([code]) + b"a" for code in range(256)),
    *(b"a" + bytes([code]) for code in range(256)),
    *(b"a" + bytes([code]) + b"b" for code in range(256)),
    b"x" * 129, b"x" * 5000,
    b".", b"..", b"...", b"../..", b"..%2f", b":", b"-", b"-a", b".a", b":a", b"a b", b"a\r\nb",
    "é".encode(), "汉字".encode(), "😀".encode(), "ａ".encode(), "١".encode(), "a\u202eb".encode(), b"\xc0\xaf",
    b"\xed\xa0\x80", b"%00", b"%2e%2e", b"a?b", b"a#b", b"a/b", b"/", b"//", b"{session_id}", b"*", b"$", b"a*",
]  # fmt: skip


@pytest.mark.parametrize(("method", "name"), ENDPOINTS)
async def test_bad_session_id_is_refused(place: Place, method: str, name: str) -> None:
    """Whatever is no session id, percent-encoded as it has to be, is 422; with a slash it is another path."""
    before = await stored(place.valkey)
    headers = bearer(make_token(SESSION))
    wrong = [value for value in WRONG_IDS if SESSION_ID.fullmatch(value.decode("latin-1")) is None]
    for value in wrong:
        reply = await place.http.request(method, f"{PREFIX}/{name}/{escaped(value)}", headers=headers)
        refused = assert_refused(reply, *((404, 405) if b"/" in value else (422,)))
        assert b"/" in value or refused["error"]["code"] == "invalid_session_id", value
    assert before == await stored(place.valkey)


@given(value=st.text(min_size=1, max_size=200) | st.binary(min_size=1, max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_session_id_is_refused(place: Place, value: str | bytes) -> None:
    """No text is another session: a foreign one is 403, an impossible one 422 or 404."""
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    for method, name in ENDPOINTS:
        if raw.decode("latin-1") != SESSION:
            reply = await place.http.request(
                method, f"{PREFIX}/{name}/{escaped(raw)}", headers=bearer(make_token(SESSION))
            )
            assert_refused(reply, 403, 404, 422, *([405] if b"/" in raw else []))


# -- cursors ----------------------------------------------------------------------------------------------------------

WRONG_CURSORS = [
    "x", "0", "-", "1-", "-1", "1-1-1", "01-1", "+1-1", "$", "*", "1-1 x", "1e3-0", "0x1-1", "null", "undefined", "NaN",
    "9" * 5000, "18446744073709551616-0", "é", "\xff", "1-1;drop", "%00", "../..", "1\u00b2-0",
]  # fmt: skip


async def assert_reset_then_live(place: Place, stream: Stream, notifier: SimpleNotifier) -> None:
    first = await stream.next()
    assert ("stream_reset", "invalid_cursor") == (first.type, first.json["data"]["reason"])
    await stream.primed()
    published = await notifier.tool_status(SESSION, "t", "executing")
    assert published == (await stream.next()).id
    assert 1 == [event.type for event in stream.records if event.data].count("stream_reset")


@pytest.mark.parametrize("cursor", WRONG_CURSORS)
async def test_bad_cursor_is_one_reset_and_a_living_stream(either: Place, cursor: str) -> None:
    """A cursor that cannot be one, in the header or in the query: one stream_reset, a snapshot, then live."""
    async with SimpleNotifier.from_url(either.valkey.url) as notifier:
        url = either.served.events(SESSION, make_token(SESSION))
        async with Stream(url, {"Last-Event-ID": cursor}) as stream:
            await assert_reset_then_live(either, stream, notifier)
        async with Stream(f"{url}&last_event_id={quote(cursor, encoding='latin-1')}") as stream:
            await assert_reset_then_live(either, stream, notifier)
        # The header wins, also when it is the wrong one.
        async with Stream(f"{url}&last_event_id=0-0", {"Last-Event-ID": cursor}) as stream:
            await assert_reset_then_live(either, stream, notifier)


@pytest.mark.parametrize(
    "query", ["last_event_id=0-0&last_event_id=0-0", "last_event_id=%ff", "last_event_id=%00", "last_event_id=0-0%0a"]
)
async def test_odd_cursor_in_the_query_is_a_reset(either: Place, query: str) -> None:
    """A repeated cursor, or one with bytes that are no text, is a malformed one."""
    async with (
        SimpleNotifier.from_url(either.valkey.url) as notifier,
        Stream(f"{either.served.events(SESSION, make_token(SESSION))}&{query}") as stream,
    ):
        await assert_reset_then_live(either, stream, notifier)


async def test_repeated_cursor_header_is_a_reset(either: Place) -> None:
    """Two Last-Event-ID headers are no cursor."""
    async with SimpleNotifier.from_url(either.valkey.url) as notifier:
        url = either.served.events(SESSION, make_token(SESSION))
        async with Stream(url, {"Last-Event-ID": "0-0", "last-event-id": "0-0"}) as stream:
            await assert_reset_then_live(either, stream, notifier)


@pytest.mark.parametrize("query", ["last_event_id=", "last_event_id", ""])
async def test_empty_cursor_is_none(either: Place, query: str) -> None:
    """An empty cursor is what a browser sends before its first id: a snapshot without a reset."""
    url = f"{either.served.events(SESSION, make_token(SESSION))}&{query}"
    async with Stream(url, {"Last-Event-ID": ""} if not query else {}) as stream:
        await stream.primed()
        assert "stream_reset" not in {event.type for event in stream.records if event.data}


# -- headers, methods, paths ------------------------------------------------------------------------------------------

WRONG_HEADERS: dict[str, list[str | bytes]] = {
    "bytes": [b"Authorization: Bearer \xff\xfe\xc3\xa9"],
    "long": ["Authorization: Bearer " + "a" * 30_000],
    "empty": ["Authorization:"],
    "no token": ["Authorization: Bearer"],
    "another scheme": ["Authorization: Basic YWxpY2U6cHc="],
    "two tokens": ["Authorization: Bearer a.b.c d.e.f"],
    "tab": ["Authorization: Bearer\ta.b.c"],
    "twice": ["Authorization: Bearer a.b.c", "Authorization: Bearer a.b.c"],
    "1,000 of them": ["Authorization: x"] * 1000,
    "only a cookie": ["Cookie: token=a.b.c"],
    "nothing": [],
}


@pytest.mark.parametrize("lines", WRONG_HEADERS.values(), ids=WRONG_HEADERS.keys())
async def test_bad_authorization_is_401_everywhere(place: Place, lines: list[str | bytes]) -> None:
    """Whatever stands in Authorization but one good token is 401 with a challenge, on every endpoint."""
    before = await stored(place.valkey)
    for method, name in [*ENDPOINTS, ("GET", "sessions")]:
        target = f"{PREFIX}/{name}" + ("" if name == "sessions" else f"/{SESSION}")
        reply = await exchange(place.served, head(method, target, *lines, "Content-Length: 0", token=False))
        assert_refused(reply, 401)
        assert "Bearer" == reply.headers["www-authenticate"]
    assert before == await stored(place.valkey)


async def test_good_token_twice_is_401(place: Place) -> None:
    """Two Authorization headers are refused even when both are good: proxies differ in which they look at."""
    again = f"Authorization: Bearer {make_token(SESSION)}"
    reply = await exchange(place.served, head("GET", f"{PREFIX}/health/{SESSION}", again))
    assert_refused(reply, 401, code="token_invalid")


@pytest.mark.parametrize(
    "lines",
    [
        ["Origin: \xff://"], ["Accept: \xff"], ["Accept: application/x-nothing"], ["Cookie: " + "a" * 30_000],
        ["X-A: b"] * 1000, ["Content-Type: text/event-stream; charset=\xff"], ["Host: evil", "Host: other"],
        ["Range: bytes=0-1"], ["If-None-Match: *"], ["X-Forwarded-For: " + "1," * 5000], ["Accept-Encoding: gzip, br"],
    ],
)  # fmt: skip
async def test_odd_headers_do_no_harm(place: Place, lines: list[str]) -> None:
    """Headers that do not concern the service change nothing."""
    rows = [line.encode("latin-1") for line in lines]
    assert 200 == (await exchange(place.served, head("GET", f"{PREFIX}/health/{SESSION}", *rows))).status


@pytest.mark.parametrize("target", [*(f"{name}/{SESSION}" for _, name in ENDPOINTS), "sessions"])
async def test_wrong_method_is_405_in_json(place: Place, target: str) -> None:
    """Another method is 405 with the right one in Allow; a HEAD is answered without a body."""
    allowed = {f"{name}/{SESSION}": method for method, name in ENDPOINTS}.get(target, "GET")
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - {allowed}:
        reply = await exchange(place.served, head(method, f"{PREFIX}/{target}", "Content-Length: 0"))
        assert_refused(reply, 405, code="method_not_allowed")
        assert allowed == reply.headers["allow"]
    reply = await exchange(place.served, head("HEAD", f"{PREFIX}/{target}"))
    assert (405, b"") == (reply.status, reply.body)


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", PREFIX, PREFIX + "/", f"{PREFIX}/events", f"{PREFIX}/events/", f"{PREFIX}/events/{SESSION}/",
        f"{PREFIX}/events/{SESSION}/x", f"/{PREFIX}/events/{SESSION}", f"{PREFIX}//events/{SESSION}",
        "/agent_backend/api",
        f"{PREFIX}/Events/{SESSION}", f"{PREFIX.upper()}/events/{SESSION}", "/console/", "/console/app.py",
        "/console/..%2f..%2fapp.py", "/console/%2e%2e/app.py", "/console/%00", "/%ff", "/favicon.ico", "/.env", "*",
        "http://elsewhere/x",
    ],
)  # fmt: skip
async def test_unknown_path_is_404_in_json(place: Place, path: str) -> None:
    """A path that nothing serves is 404 in JSON, and is not redirected."""
    assert_refused(await exchange(place.served, head("GET", path)), 404, code="not_found")


@pytest.mark.parametrize(
    "query", ["token=", "token=a&token=b", "token=%00", "token=%ff", "token=" + "a" * 30_000, "token", "&&;=&token=%"]
)
async def test_bad_token_in_the_query_is_401(place: Place, query: str) -> None:
    """A query token that is none is 401 on the stream, and on every other endpoint even beside a good header."""
    for method, name in ENDPOINTS:
        line = head(method, f"{PREFIX}/{name}/{SESSION}?{query}", "Content-Length: 0", token=False)
        assert_refused(await exchange(place.served, line), 401)


async def test_nothing_hangs_and_nothing_is_left_over(place: Place, either: Place) -> None:
    """After everything above no stream is open, and no request is still being worked on."""
    for served in (place.served, either.served):
        hub, server = served.app.state.agent_sse.hub, served.server
        assert server is not None

        def idle(hub: Hub = hub, server: uvicorn.Server = server) -> bool:
            return hub.open_streams == 0 and not server.server_state.tasks

        await until(idle, what="an idle service")


async def test_the_tables_are_what_they_say() -> None:
    """The table's bodies differ, so that no case is lost by a repetition."""
    digests = [hashlib.sha256(body).digest() for _, body, _ in BODIES]
    assert len(BODIES) == len(set(digests)) == len({name for name, _, _ in BODIES})
    assert all(len(list(group)) == 1 for _, group in itertools.groupby(sorted(MALFORMED)))
