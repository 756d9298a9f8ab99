"""No call reaches a server past the gate, however a host writes it down."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import mcp_parts
from agent_sse.mcp.guard import messages
from harness import processes_with, until
from mcp_parts import RawHost, hostile, journal, until_journal

CALL = '"method":"tools/call","params":{"name":"denied","arguments":{"a":1}}'
HIDDEN = '{"jsonrpc":"2.0","id":9,' + CALL + "}"
ALLOWED = HIDDEN.replace("denied", "tool0")


@pytest.fixture
async def host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RawHost]:
    """A host of a guard whose gate denies the tool `denied`, in front of a server that reads as Python's SDK does."""
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    async with RawHost(mcp_parts.guard_command(folder, command=hostile("plain"))) as made:
        await made.initialize()
        yield made


def seen(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


async def flush(host: RawHost) -> None:
    """Wait until the server has read everything that was sent before."""
    await host.send("ping", id="flush")
    await host.answer("flush")


ATTEMPTS = {
    "plain": HIDDEN,
    "escaped slash": HIDDEN.replace("tools/call", "tools\\/call"),
    "escaped letters": HIDDEN.replace("tools/call", "\\u0074ools\\u002fcall"),
    "escaped key": HIDDEN.replace('"method"', '"m\\u0065thod"'),
    "no version": HIDDEN.replace('"jsonrpc":"2.0",', ""),
    "white space": HIDDEN.replace(":", " :\t ").replace(",", " , "),
    "a carriage return in front": "\r" + HIDDEN,
    "batch": f"[{HIDDEN}]",
    "batch behind a ping": '[{"jsonrpc":"2.0","id":8,"method":"ping"},' + HIDDEN + "]",
    "nested batch": f"[[{HIDDEN}]]",
    "method twice, the last counts": '{"jsonrpc":"2.0","id":9,"method":"ping",' + CALL + "}",
    "method twice, the first counts": '{"jsonrpc":"2.0","id":9,' + CALL + ',"method":"ping"}',
    "name twice, the last counts": HIDDEN.replace('"name":', '"name":"tool0","name":'),
    "name twice, the first counts": HIDDEN.replace('"denied"', '"denied","name":"tool0"'),
    "params twice": HIDDEN[:-1] + ',"params":{"name":"tool0"}}',
    "a key twice by an escape": '{"id":9,"method":"ping",' + CALL.replace("method", "\\u006dethod") + "}",
    "a notification": "{" + CALL + "}",
    "id null": HIDDEN.replace('"id":9', '"id":null'),
    "id true": HIDDEN.replace('"id":9', '"id":true'),
    "id a fraction": HIDDEN.replace('"id":9', '"id":9.5'),
    "id an object": HIDDEN.replace('"id":9', '"id":{"a":1}'),
    "a response as well": HIDDEN[:-1] + ',"result":{}}',
    "an error as well": HIDDEN[:-1] + ',"error":{"code":1,"message":"x"}}',
    "between carriage returns": '{"jsonrpc":"2.0","method":"vendor/x","params":{"a":\r' + HIDDEN + "\r}}",
    "between carriage returns, in a response": '{"jsonrpc":"2.0","id":1,"result":{"a":\r' + HIDDEN + "\r}}",
    "behind a line end in a string": '{"jsonrpc":"2.0","method":"vendor/x","params":{"a":"\n' + HIDDEN,
    "behind a line separator": '{"jsonrpc":"2.0","method":"vendor/x","params":{"a":"\u2028' + HIDDEN,
    "behind a form feed": '{"jsonrpc":"2.0","method":"ping"}\f' + HIDDEN,
    "behind another message": '{"jsonrpc":"2.0","method":"vendor/x"}' + HIDDEN,
    "a byte order mark": "\ufeff" + HIDDEN,
    "NaN": HIDDEN.replace('"a":1', '"a":NaN'),
    "infinity": HIDDEN.replace('"a":1', '"a":-Infinity'),
    "too large a number": HIDDEN.replace('"a":1', '"a":1e999'),
    "too many digits": HIDDEN.replace('"a":1', '"a":' + "9" * 5000),
    "half a surrogate pair": HIDDEN.replace('"a":1', '"a":"\\ud800"'),
    "half a surrogate pair as the name": HIDDEN.replace("denied", "denied\\udfff"),
    "too deep": HIDDEN.replace('"a":1', '"a":' + "[" * 100_000 + "]" * 100_000),
    "arguments a list": HIDDEN.replace('{"a":1}', '["a"]'),
    "name a list": HIDDEN.replace('"denied"', '["denied"]'),
    "a NUL in the middle": HIDDEN.replace(",", ",\0"),
}  # fmt: skip

# Two messages in one to a server whose JSON reader does not look at the case of names.
CASES = {
    "a method in capitals": HIDDEN.replace('"method"', '"METHOD"'),
    "a method in capitals beside another": '{"id":9,"method":"ping",' + CALL.replace("method", "Method") + "}",
    "a method in capitals before another": '{"id":9,' + CALL.replace("method", "Method") + ',"method":"ping"}',
    "a method in capitals, escaped": '{"id":9,"method":"ping",' + CALL.replace("method", "\\u004dethod") + "}",
    "a method in capitals in a response": HIDDEN.replace('"method"', '"Method"')[:-1] + ',"result":{}}',
    "other parameters in capitals": ALLOWED[:-1] + ',"Params":{"name":"denied"}}',
    "parameters with a long s": ALLOWED[:-1] + ',"param\u017f":{"name":"denied"}}',
    "an id in capitals": ALLOWED[:-1] + ',"ID":"denied"}',
    "a name in capitals": HIDDEN.replace('"name":"denied"', '"name":"tool0","Name":"denied"'),
    "a name in capitals only": HIDDEN.replace('"name"', '"NAME"'),
    "arguments in capitals": ALLOWED[:-2] + ',"Arguments":{"a":"denied"}}}',
    "arguments in capitals only": ALLOWED.replace('"arguments":{"a":1}', '"ARGUMENTS":{"a":"denied"}'),
    "an argument in capitals": ALLOWED.replace('"a":1', '"a":1,"A":"denied"'),
    "an argument with a Kelvin sign": ALLOWED.replace('"a":1', '"k":1,"\u212a":"denied"'),
    "an argument in capitals, deep": ALLOWED.replace('"a":1', '"a":[[{"b":{"Xy":1,"xY":"denied"}}]]'),
    "a task in capitals": ALLOWED[:-2] + ',"Task":{"ttl":"denied"}}}',
}
ATTEMPTS |= CASES


def attempts() -> Iterator[tuple[str, bytes]]:
    """Return every attempt, each with an id of its own."""
    for number, (name, text) in enumerate(ATTEMPTS.items(), 100):
        yield name, text.replace('"id":9', f'"id":{number}').encode()


def calls(folder: Path) -> list[Any]:
    """Return the calls that reached the server and must not have."""
    return [row for row in seen(folder) if row[0] == "tools/call" and "denied" in str(row)]


async def test_guard_lets_no_denied_call_reach_the_server(host: RawHost, folder: Path) -> None:
    """The server, which reads with universal newlines, never sees a call of the tool that is denied."""
    for name, line in attempts():
        await host.write(line)
        await host.send("ping", id=name)
        await host.answer(name)
        assert [] == calls(folder), name
    assert 10 < [row[1] for row in journal(folder)].count("denied")  # many of them are calls like any other


async def test_guard_and_server_read_doubled_keys_alike(host: RawHost, folder: Path) -> None:
    """Where a key stands twice the server sees only the value that the gate has seen."""
    await host.write(HIDDEN.replace('"denied"', '"denied","name":"tool0"').encode())
    await host.answer(9)
    assert ["tools/call", "tool0", {"a": 1}] in seen(folder)
    assert ["tool0", "executing", {"a": 1}] in journal(folder)


@pytest.mark.parametrize("name", list(CASES))
def test_guard_refuses_names_that_differ_in_their_case_only(name: str) -> None:
    """What a reader without regard to case would read in another way is no message."""
    with pytest.raises(messages.BadMessage, match="case only"):
        messages.from_host(CASES[name].encode())


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ('{"id":9,"method":"ping","Method":"tools/call"}', -32600, '"Method"'),
        ('{"id":9,"Method":"tools/call"}', -32600, '"Method"'),
        (HIDDEN.replace('"name"', '"name":"tool0","Name"'), -32600, '"Name"'),
        (HIDDEN.replace('"a":1', '"path":1,"Path":2'), -32602, '"path" and "Path"'),
    ],
)
async def test_guard_says_which_name_it_does_not_pass(host: RawHost, line: str, code: int, what: str) -> None:
    """The host is told which name is written in a way that servers read differently."""
    await host.write(line.encode())
    error = (await host.answer(9))["error"]
    assert code == error["code"]
    assert what in error["message"]


async def test_guard_passes_names_that_only_look_alike_elsewhere(host: RawHost, folder: Path) -> None:
    """Capitals in names of one's own are nobody's business, and the same name in two objects is two names."""
    arguments = {"Method": "x", "NAME": {"path": 1}, "list": [{"Path": 1}, {"path": 2}], "straße": 1}
    await host.send("tools/call", {"name": "tool0", "arguments": arguments, "Other": 1}, id=9)
    await host.answer(9)
    assert ["tools/call", "tool0", arguments] in seen(folder)


async def test_guard_refuses_invalid_utf8(host: RawHost, folder: Path) -> None:
    """Bytes that are no UTF-8 are refused with the id of the request."""
    await host.write(HIDDEN.encode().replace(b"denied", b"denied\xff"))
    assert -32700 == (await host.answer(9))["error"]["code"]
    assert "denied" not in str(seen(folder))


async def test_guard_refuses_batches_with_a_clear_error(host: RawHost) -> None:
    """The host is told what to do."""
    await host.write(b"[]")
    error = await host.until(lambda: next((m for m in host.received if m and m.get("error")), None))
    assert error["id"] is None
    assert "batches" in error["error"]["message"]


@pytest.mark.parametrize("tail", [False, True])
async def test_guard_refuses_too_long_a_message_with_its_id(host: RawHost, folder: Path, tail: bool) -> None:
    """A message over the limit is refused, wherever its id stands, and the next one is read."""
    padding = "x" * (65 * 1024 * 1024)
    if tail:
        line = '{"method":"tools/call","params":{"name":"tool0","arguments":{"id":3,"p":"' + padding + '"}},"id":9}'
    else:
        line = '{"id":9,"method":"tools/call","params":{"id":3,"name":"tool0","arguments":{"p":"' + padding + '"}}}'
    await host.write(line.encode())
    assert "too long" in (await host.answer(9))["error"]["message"]
    await flush(host)
    assert "tools/call" not in [row[0] for row in seen(folder)]


@pytest.mark.parametrize("second", [7, "7"])
async def test_guard_refuses_an_id_that_is_in_use(host: RawHost, folder: Path, second: Any) -> None:
    """An answer to one request can never be taken for the answer to a call with the same id."""
    await host.send("vendor/hang", id=7)
    await host.send("tools/call", {"name": "tool0"}, id=second)
    await host.until(lambda: next((m for m in host.received if m and "on its way" in str(m.get("error"))), None))
    await flush(host)
    assert "tools/call" not in [row[0] for row in seen(folder)]


async def test_guard_takes_a_hosts_request_for_its_own_ids_as_any_other(host: RawHost, folder: Path) -> None:
    """An id or token like the guard's own gives no way past the gate or into its bookkeeping."""
    await host.send("tools/call", {"name": "denied", "_meta": {"progressToken": "agent-sse-1"}}, id="agent-sse-1")
    assert (await host.answer("agent-sse-1"))["result"]["isError"]
    assert "denied" not in str(seen(folder))


async def test_guard_gates_a_call_as_a_task(host: RawHost, folder: Path) -> None:
    """A call that asks to be run as a task is a call."""
    await host.send("tools/call", {"name": "denied", "task": {"ttl": 60000}}, id=9)
    assert "by policy" in (await host.answer(9))["error"]["message"]
    assert "denied" not in str(seen(folder))


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ('{"jsonrpc":"2.0","id":4,"method":"x","params":{', "}}", 4),
        ('{"id":"a b","result":{"id":1', "}}", "a b"),
        ('{"method":"x","params":{"id":4', '"}}', None),
        ('{"method":"x","params":{"id":4', '"},"jsonrpc":"2.0","id":-5 }\n', -5),
        ('{"method":"x","params":{"a":"', '"id":5}}', None),
        ('[{"id":4,"method":"x"', "}]", None),
        ('{"id":4.5,"method"', "}", None),
        ('{"id":null,"method"', "}", None),
        ('{"id":"' + "x" * 300 + '","method"', "}", None),
    ],
)
def test_guard_finds_the_id_of_what_it_cannot_read(head: str, tail: str, expected: Any) -> None:
    """Only an id that is certainly the message's own: an error must not end another request."""
    assert expected == messages.find_id(head.encode(), tail.encode())


# -- over HTTP --------------------------------------------------------------------------------------------------------

HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
}  # fmt: skip


@pytest.fixture
async def http(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client of such a guard over HTTP."""
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    command = mcp_parts.guard_command(folder, command=hostile("plain"), http_port=0)
    async with (
        mcp_parts.process(command, ready=r"(http://[0-9.]+:\d+)/mcp") as (_, at),
        httpx.AsyncClient(base_url=at[1], headers=HEADERS, timeout=30, trust_env=False) as client,
    ):
        yield client


async def shake_hands(http: httpx.AsyncClient) -> dict[str, str]:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    response = await http.post("/mcp", json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
    session = {"mcp-session-id": response.headers["mcp-session-id"]}
    await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
    return session


async def test_guard_lets_no_denied_call_through_over_http(http: httpx.AsyncClient, folder: Path) -> None:
    """What does not pass on standard input does not pass in a request's body either."""
    session = await shake_hands(http)
    for name, body in attempts():
        await http.post("/mcp", content=body, headers=session)
        await http.post("/mcp", json={"jsonrpc": "2.0", "id": name, "method": "ping"}, headers=session)
        assert [] == calls(folder), name
    assert 10 < [row[1] for row in journal(folder)].count("denied")


STRANGERS: list[tuple[dict[str, str], int]] = [
    ({"host": "evil.example"}, 403),
    ({"host": "evil.example:{port}"}, 403),
    ({"host": "127.0.0.1:1"}, 403),
    ({"host": "127.0.0.1:nonsense"}, 403),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://localhost.evil.example"}, 403),
    ({"content-type": "text/plain"}, 415),
    ({"accept": "application/json"}, 406),
    ({"mcp-session-id": "guessed"}, 404),
    ({}, 400),
    ({"origin": "http://localhost:1234", "host": "localhost:{port}"}, 400),
]


async def test_guard_refuses_who_is_not_of_this_machine_or_has_no_session(
    http: httpx.AsyncClient, folder: Path
) -> None:
    """A page elsewhere, a rebound name, a form and an unknown session get an error, and start no server."""
    for headers, status in STRANGERS:
        sent = {name: value.replace("{port}", str(http.base_url.port)) for name, value in headers.items()}
        response = await http.post("/mcp", content=HIDDEN, headers=sent)
        assert status == response.status_code, headers
        assert "error" in response.json(), headers
    assert not (folder / "seen").exists()


async def test_guard_refuses_headers_that_say_something_else(http: httpx.AsyncClient, folder: Path) -> None:
    """Whoever routes by headers cannot be shown another call than the gate sees."""
    body = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "denied", "_meta": ENVELOPE}}
    for headers in (
        {"mcp-method": "tools/list"},
        {"mcp-method": "tools/call", "mcp-name": "tool0"},
        {"mcp-method": "tools/call"},
        {"mcp-method": "tools/call", "mcp-name": "=?base64?dG9vbDA=?="},
        {},
    ):
        response = await http.post("/mcp", json=body, headers={"mcp-protocol-version": "2026-07-28", **headers})
        assert (400, -32020) == (response.status_code, response.json()["error"]["code"]), headers
    assert [] == journal(folder)


async def test_guard_withdraws_the_question_when_a_host_over_http_has_gone(
    http: httpx.AsyncClient, folder: Path
) -> None:
    """A prompt does not stay when the connection on which its answer would go is closed."""
    session = await shake_hands(http)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "asked"}})
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/mcp", content=body, headers=session, timeout=httpx.Timeout(30, read=1))
    await until_journal(folder, "asked", "withdrawn")
    assert "asked" not in str(seen(folder))


async def test_guard_ends_a_sessions_server_with_the_session(http: httpx.AsyncClient, folder: Path) -> None:
    """DELETE ends the process, and the id is unknown from then on."""
    session = await shake_hands(http)
    other = await shake_hands(http)
    word = " ".join(hostile("plain"))
    running = [line for line in processes_with(str(folder / "seen")).values() if line.strip() == word]
    assert 2 == len(running)
    assert 200 == (await http.delete("/mcp", headers=session)).status_code
    running = [line for line in processes_with(str(folder / "seen")).values() if line.strip() == word]
    assert 1 == len(running)
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert 404 == (await http.post("/mcp", json=ping, headers=session)).status_code
    assert {} == (await http.post("/mcp", json=ping, headers=other)).json()["result"]


async def test_guard_tells_a_host_over_http_that_the_server_crashed(http: httpx.AsyncClient, folder: Path) -> None:
    """The request gets an error, the session ends, and the next one has a server of its own."""
    session = await shake_hands(http)
    response = await http.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "crash"}}, headers=session
    )
    assert "ended with status 4" in response.json()["error"]["message"]
    await until_journal(folder, "crash", "failed")
    ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
    assert 404 == (await http.post("/mcp", json=ping, headers=session)).status_code
    assert await shake_hands(http)


async def test_guard_over_http_ends_on_a_signal_and_withdraws_the_question(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM: no prompt stays, no process either, and the status is 0."""
    monkeypatch.setenv("SEEN", str(folder / "seen"))
    command = mcp_parts.guard_command(folder, command=hostile("deaf"), http_port=0)
    async with (
        mcp_parts.process(command, ready=r"(http://[0-9.]+:\d+)/mcp") as (guard, at),
        httpx.AsyncClient(base_url=at[1], headers=HEADERS, timeout=30, trust_env=False) as http,
    ):
        session = await shake_hands(http)
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "asked"}}
        asking = asyncio.create_task(http.post("/mcp", json=body, headers=session))
        await until_journal(folder, "asked", "waiting")
        guard.send_signal(signal.SIGTERM)
        assert 0 == await guard.wait()
        await asyncio.gather(asking, return_exceptions=True)
    await until_journal(folder, "asked", "withdrawn")
    await until(lambda: not processes_with(str(folder)), what="all processes having ended")


async def test_guard_says_that_its_port_is_in_use(folder: Path) -> None:
    """One clear line and status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with RawHost(mcp_parts.guard_command(folder, command=hostile("plain"), http_port=port)) as host:
            assert 2 == await host.end()
    assert f"cannot listen on 127.0.0.1:{port}" in host.errors
