"""Who may do what over HTTP: tokens, scopes, owners, tickets; and that no token reaches a log or a trace."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import string
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwt

from agent_sse import SessionOwned, SimpleNotifier
from agent_sse.auth import encode_token
from harness import (
    DEADLINE,
    PREFIX,
    SECRET,
    Served,
    ServiceProcess,
    Stream,
    Valkey,
    bearer,
    make_settings,
    make_token,
    serve,
    until,
)

ACCESS_LINE = re.compile(r'INFO: +127\.0\.0\.1:\d+ - "(GET|POST) /\S* HTTP/1\.1" (\d{3}) .*\n')


@pytest.fixture
async def served(valkey: Valkey) -> AsyncIterator[Served]:
    async with serve(make_settings(valkey.url, jwt_leeway=0)) as running:
        yield running


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.api, timeout=DEADLINE) as client:
        yield client


def code_of(reply: httpx.Response) -> tuple[int, str]:
    body = reply.json()
    assert body["success"] is False
    return reply.status_code, body["error"]["code"]


async def open_status(url: str, headers: dict[str, str] | None = None) -> tuple[int, str | None]:
    """The status of a stream's response, and the error's code if it is one."""
    async with Stream(url, headers) as stream:
        if stream.status == 200:
            await stream.primed()
            return 200, None
        await stream.end()
        return stream.status, json.loads(stream.buffer)["error"]["code"]


# -- 5,000 tokens -----------------------------------------------------------------------------------------------------


def _b64(value: object) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def wrong_tokens(count: int, seed: int = 20240115) -> list[str]:
    """Tokens that are all wrong: good ones with a change, good ones of others, and noise. Always the same ones."""
    rng = random.Random(seed)
    good = make_token("s1", scope="events:read permissions:respond events:publish")
    header, payload, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    alphabet = string.ascii_letters + string.digits + "-_"

    def changed() -> str:
        at = rng.randrange(len(good))
        return good[:at] + rng.choice(alphabet.replace(good[at], "")) + good[at + 1 :]

    def other_key() -> str:
        settings = make_settings("", jwt_secret="".join(rng.choices(alphabet, k=48)))
        return encode_token(settings, subject="alice", sessions=["s1"])

    def other_header() -> str:
        values = ["none", "None", "HS384", "RS256", "ES256", "", None, 5, ["HS256"], {"HS256": 1}]
        extra = rng.choice([{}, {"kid": "../../dev/null"}, {"jku": "http://x"}, {"crit": ["exp"]}, {"typ": "JWE"}])
        return f"{_b64({'alg': rng.choice(values), **extra})}.{payload}.{rng.choice([signature, ''])}"

    def other_claims() -> str:
        extra: dict[str, Any] = rng.choice(
            [{"sub": "bob"}, {"exp": 1}, {"exp": "x"}, {"sessions": "s1"}, {"sub": None}, {"scope": 1}, {"nbf": 10**12}]
        )
        return f"{header}.{_b64({**claims, **extra})}.{signature}"

    def noise() -> str:
        return "".join(rng.choices(alphabet + ".", k=rng.randrange(1, 400)))

    def three_parts() -> str:
        return ".".join(_b64(rng.randbytes(rng.randrange(1, 100))) for _ in range(3))

    def text() -> str:
        return "".join(
            chr(rng.choice([rng.randrange(33, 127), rng.randrange(161, 256)])) for _ in range(rng.randrange(1, 99))
        )

    def cut() -> str:
        return good[: rng.randrange(1, len(good))]

    def padded() -> str:
        return good + rng.choice(["=", "==", ".", ".x", "A", "%00", "\u00e9", '"', ";", ","])

    def swapped() -> str:
        parts = rng.sample([header, payload, signature], 3)
        return ".".join(parts) if parts != [header, payload, signature] else ".".join(reversed(parts))

    def deep() -> str:
        return f"{_b64(b'[' * rng.randrange(1, 5000))}.{payload}.{signature}"

    makers = [changed, changed, changed, other_key, other_header, other_claims, noise, three_parts, text, cut, padded,
              swapped, deep]  # fmt: skip
    return [makers[i % len(makers)]() for i in range(count)]


async def _statuses(served: Served, tokens: list[str], offset: int) -> Counter[int]:
    """Send tokens over one kept connection, by header and by query in turn, and count the statuses."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    found: Counter[int] = Counter()
    for i, token in enumerate(tokens):
        if (i + offset) % 2:
            line, extra = f"GET {PREFIX}/events/s1?token={quote(token, safe='')}", ""
        else:
            line, extra = f"POST {PREFIX}/permission-response/s1", f"Authorization: Bearer {token}\r\n"
        writer.write(f"{line} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: 0\r\n\r\n".encode("latin-1"))
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        body = json.loads(await reader.readexactly(int(length[1])))
        assert body["success"] is False
        assert token not in body["message"] or len(token) < 12
        found[int(head.split()[1])] += 1
    writer.close()
    await writer.wait_closed()
    return found


async def test_5000_wrong_tokens_are_401_and_one_line_each(valkey: Valkey) -> None:
    """Every random or changed token is 401; the log of plain uvicorn has one access line for each, and no token."""
    tokens = wrong_tokens(5000)
    async with ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}, plain=True) as process:
        before = len(process.lines)
        async with asyncio.timeout(4 * DEADLINE):
            counts = await asyncio.gather(*(_statuses(process.served, tokens[i::8], i) for i in range(8)))
        assert Counter({401: 5000}) == sum(counts, Counter())
        await until(lambda: len(process.lines) >= before + 5000, what="an access line for each")
        lines = process.lines[before:]
        assert 5000 == len(lines)
        assert [] == [line for line in lines if (m := ACCESS_LINE.fullmatch(line)) is None or m[2] != "401"]
        log = unquote("".join(lines))
        assert [] == [token for token in tokens if len(token) >= 12 and token in log]
        async with valkey.client() as client:
            assert 0 == await client.dbsize()
        assert (200, None) == await open_status(process.served.events("s1", make_token("s1")))


# -- where a token may be ---------------------------------------------------------------------------------------------


async def test_token_in_the_url_is_401_but_on_the_stream(http: httpx.AsyncClient) -> None:
    """`?token=` elsewhere is 401, with a good token in it and even with a good header beside it."""
    token = make_token("s1")
    for method, path in (
        ("POST", "/permission-response/s1"), ("GET", "/health/s1"), ("POST", "/ticket/s1"), ("GET", "/sessions"),
    ):  # fmt: skip
        assert (401, "token_in_url") == code_of(await http.request(method, path, params={"token": token}))
        both = await http.request(method, path, params={"token": token}, headers=bearer(token))
        assert (401, "token_in_url") == code_of(both)
        assert token not in both.text
        assert (401, "token_missing") == code_of(await http.request(method, path))


@pytest.mark.usefixtures("sink")
async def test_stream_takes_the_token_from_header_or_query(served: Served) -> None:
    """Either way opens the stream; with both the header counts, so that a wrong one is not papered over."""
    good, wrong = make_token("s1"), make_token("s1") + "x"
    assert (200, None) == await open_status(served.events("s1"), bearer(good))
    assert (200, None) == await open_status(served.events("s1", good))
    assert (200, None) == await open_status(served.events("s1", wrong), bearer(good))
    assert (401, "token_invalid") == await open_status(served.events("s1", good), bearer(wrong))
    assert (401, "token_missing") == await open_status(served.events("s1"))
    assert 401 == (await open_status(served.events("s1", f"{good}&token={good}")))[0]


@pytest.mark.usefixtures("sink")
async def test_stream_takes_a_token_whose_name_is_percent_encoded(served: Served) -> None:
    """`%74oken=` is the same parameter for the reader as for the one who blanks it."""
    assert (200, None) == await open_status(f"{served.events('s1')}?%74oken={make_token('s1')}")


# -- sessions, owners, scopes -----------------------------------------------------------------------------------------

READ, RESPOND, PUBLISH = "events:read", "permissions:respond", "events:publish"


SCOPES = [
    (None, True, True), (READ, True, False), (RESPOND, False, True), (PUBLISH, False, False),
    (f"{READ} {RESPOND}", True, True), ("", False, False), ("events:read2 EVENTS:READ", False, False),
    (f"{READ},{RESPOND}", False, False), ("*", False, False),
]  # fmt: skip


@pytest.mark.usefixtures("sink")
async def test_scope_decides_what_a_token_can_do(http: httpx.AsyncClient, served: Served) -> None:
    """Without a scope a token reads and responds; with one it does exactly what the scope names."""
    missing = (403, "scope_missing")
    for scope, reads, responds in SCOPES:
        token = make_token("s1", scope=scope)
        assert ((200, None) if reads else missing) == await open_status(served.events("s1", token)), scope
        for method, path in (("GET", "/health/s1"), ("GET", "/sessions"), ("POST", "/ticket/s1")):
            reply = await http.request(method, path, headers=bearer(token))
            assert reads == (reply.status_code == 200), scope
            assert reads or missing == code_of(reply), scope
        reply = await http.post("/permission-response/s1", headers=bearer(token), json={"approved": True})
        assert ((404, "nothing_pending") if responds else missing) == code_of(reply), scope


async def test_foreign_and_unknown_sessions_look_the_same(http: httpx.AsyncClient, notifier: SimpleNotifier) -> None:
    """A session that is somebody else's and one that does not exist get the same bytes: 403."""
    await notifier.open_session("bobs", owner="bob")
    for method, name in (("GET", "events"), ("GET", "health"), ("POST", "ticket"), ("POST", "permission-response")):
        foreign, unknown = [
            await http.request(method, f"/{name}/{session}", headers=bearer(make_token("s1")))
            for session in ("bobs", "nobodys")
        ]
        assert (403, "session_forbidden") == code_of(foreign)
        assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)


@pytest.mark.usefixtures("sink")
async def test_owner_may_use_the_session_and_is_set_once(
    http: httpx.AsyncClient, served: Served, notifier: SimpleNotifier
) -> None:
    """The registered owner's token needs no list of sessions; another owner is refused until the session is closed."""
    await notifier.open_session("mine", owner="alice")
    await notifier.open_session("mine", owner="alice")
    with pytest.raises(SessionOwned):
        await notifier.open_session("mine", owner="bob")
    alice, bob = make_token(sub="alice"), make_token(sub="bob")
    assert (200, None) == await open_status(served.events("mine", alice))
    assert (403, "session_forbidden") == await open_status(served.events("mine", bob))
    assert (403, "session_forbidden") == await open_status(served.events("mine", make_token(sub="Alice")))
    assert (404, "nothing_pending") == code_of(
        await http.post("/permission-response/mine", headers=bearer(alice), json={"approved": True})
    )
    await notifier.close_session("mine")
    assert (403, "session_forbidden") == await open_status(served.events("mine", alice))
    await notifier.open_session("mine", owner="bob")
    assert (200, None) == await open_status(served.events("mine", bob))


async def test_sessions_lists_owned_and_listed_ones_only(http: httpx.AsyncClient, notifier: SimpleNotifier) -> None:
    """`GET /sessions` has what the token names and what its subject opened, with their last events."""
    await notifier.open_session("mine", owner="alice")
    await notifier.open_session("bobs", owner="bob")
    last = await notifier.tool_status("mine", "t", "executing")
    reply = await http.get("/sessions", headers=bearer(make_token("s1", sub="alice")))
    rows = {row["session_id"]: row for row in reply.json()["data"]["sessions"]}
    assert {"mine", "s1"} == set(rows)
    assert (True, last) == (rows["mine"]["owned"], rows["mine"]["last_event_id"])
    assert (False, None) == (rows["s1"]["owned"], rows["s1"]["last_event_id"])


@pytest.mark.usefixtures("sink")
async def test_stream_ends_when_its_token_expires(served: Served) -> None:
    """In mid-stream an expired token is one error event with the code token_expired, and the end."""
    async with Stream(served.events("s1", make_token("s1", ttl=1))) as stream:
        event = await stream.next("error")
        assert ("token_expired", True) == (event.json["code"], bool(event.json["message"]))
        await stream.end()
        assert stream.complete


@pytest.mark.usefixtures("sink")
async def test_token_that_was_used_before_expires_too(http: httpx.AsyncClient, served: Served) -> None:
    """A token that opened streams and got answers is 401 once it has expired, and a changed one is 401 all along."""
    token = make_token("s1", ttl=1)
    changed = token[:-2] + ("BA" if token[-2:] == "AA" else "AA")
    async with Stream(served.events("s1", token)) as stream:
        for _ in range(3):
            assert 200 == (await http.get("/health/s1", headers=bearer(token))).status_code
            assert (401, "token_invalid") == code_of(await http.get("/health/s1", headers=bearer(changed)))
        assert "token_expired" == (await stream.next("error")).json["code"]
        await stream.end()
    assert (401, "token_expired") == code_of(await http.get("/health/s1", headers=bearer(token)))
    assert (401, "token_expired") == await open_status(served.events("s1", token))


async def test_token_of_a_withdrawn_key_is_401(valkey: Valkey, tmp_path: Path) -> None:
    """A service that runs forgets what a key vouched for when the key leaves the JWK set, and takes the new one."""
    keys = {kid: rsa.generate_private_key(65537, 2048) for kid in ("a", "b")}
    tokens = {
        kid: jwt.encode(
            {"sub": "alice", "exp": 4102444800, "sessions": ["s1"]},
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
            algorithm="RS256",
            headers={"kid": kid},
        )
        for kid, key in keys.items()
    }

    def write(kid: str) -> None:
        numbers = keys[kid].public_key().public_numbers()
        key = {"kty": "RSA", "kid": kid, "e": "AQAB", "n": _b64(numbers.n.to_bytes(256, "big"))}
        (tmp_path / "new.json").write_text(json.dumps({"keys": [key]}))
        (tmp_path / "new.json").replace(tmp_path / "jwks.json")

    write("a")
    settings = make_settings(valkey.url, jwt_algorithm="RS256", jwt_jwks_file=tmp_path / "jwks.json")
    async with serve(settings) as served, httpx.AsyncClient(base_url=served.api, timeout=DEADLINE) as http:

        async def status(kid: str) -> int:
            return (await http.get("/health/s1", headers=bearer(tokens[kid]))).status_code

        async def withdrawn() -> bool:
            return await status("a") == 401

        assert [200, 200, 401] == [await status("a"), await status("a"), await status("b")]
        write("b")
        await until(withdrawn, what="the token's end with its key")
        assert [200, 200, 401] == [await status("b"), await status("b"), await status("a")]


# -- tickets ----------------------------------------------------------------------------------------------------------


async def get_ticket(http: httpx.AsyncClient, token: str, session: str = "s1") -> str:
    reply = await http.post(f"/ticket/{session}", headers=bearer(token))
    assert 200 == reply.status_code
    body = reply.json()
    assert (True, {"token", "expires_in"}, 30) == (body["success"], set(body["data"]), body["data"]["expires_in"])
    return str(body["data"]["token"])


@pytest.mark.usefixtures("sink")
async def test_ticket_opens_one_stream(http: httpx.AsyncClient, served: Served) -> None:
    """A ticket opens a stream once."""
    ticket = await get_ticket(http, make_token("s1"))
    assert (200, None) == await open_status(served.events("s1", ticket))
    assert (401, "ticket_invalid") == await open_status(served.events("s1", ticket))


@pytest.mark.usefixtures("sink")
async def test_ticket_used_by_many_at_once_opens_one_stream(http: httpx.AsyncClient, served: Served) -> None:
    """Of twenty clients that come with the same ticket at the same time one gets the stream."""
    ticket = await get_ticket(http, make_token("s1"))
    results = await asyncio.gather(*(open_status(served.events("s1", ticket)) for _ in range(20)))
    assert Counter({(200, None): 1, (401, "ticket_invalid"): 19}) == Counter(results)


async def test_tickets_are_opaque_and_differ(http: httpx.AsyncClient) -> None:
    """A ticket is 256 random bits and says nothing of the token."""
    tickets = {await get_ticket(http, make_token("s1")) for _ in range(10)}
    assert 10 == len(tickets)
    assert {32} == {len(base64.urlsafe_b64decode(ticket + "=")) for ticket in tickets}


async def test_ticket_is_kept_hashed_and_for_30_seconds(
    http: httpx.AsyncClient, served: Served, valkey: Valkey
) -> None:
    """Redis knows a ticket's digest only, and forgets it; a forgotten ticket is 401."""
    ticket = await get_ticket(http, make_token("s1"))
    async with valkey.client() as client:
        (key,) = [key async for key in client.scan_iter("*ticket*")]
        assert ticket.encode() not in key + (await client.get(key))
        assert 25_000 < await client.pttl(key) <= 30_000
        await client.pexpire(key, 1)
        await until(lambda: _gone(client, key), what="the ticket's end")
    assert (401, "ticket_invalid") == await open_status(served.events("s1", ticket))


async def _gone(client: Any, key: bytes) -> bool:
    return not await client.exists(key)


async def test_ticket_is_for_its_session_only(http: httpx.AsyncClient, served: Served) -> None:
    """A ticket of one session opens no other, not even one that its token lists too."""
    ticket = await get_ticket(http, make_token("s1", "s2"), "s1")
    assert (403, "session_forbidden") == await open_status(served.events("s2", ticket))


@pytest.mark.usefixtures("sink")
async def test_ticket_is_not_a_token(http: httpx.AsyncClient, served: Served) -> None:
    """In a header a ticket is 401, wherever it is sent, and is not used up; it answers no request."""
    ticket = await get_ticket(http, make_token("s1"))
    assert (401, "token_invalid") == await open_status(served.events("s1"), bearer(ticket))
    for method, path in (("POST", "/permission-response/s1"), ("GET", "/health/s1"), ("POST", "/ticket/s1")):
        assert (401, "token_invalid") == code_of(await http.request(method, path, headers=bearer(ticket)))
        assert (401, "token_in_url") == code_of(await http.request(method, path, params={"token": ticket}))
    assert (200, None) == await open_status(served.events("s1", ticket))


async def test_ticket_needs_the_right_that_the_stream_needs(http: httpx.AsyncClient) -> None:
    """Who may not open the stream gets no ticket for it."""
    for token, code in ((make_token("s1", scope=RESPOND), "scope_missing"), (make_token("s2"), "session_forbidden")):
        assert (403, code) == code_of(await http.post("/ticket/s1", headers=bearer(token)))


@pytest.mark.usefixtures("sink")
async def test_tickets_stream_ends_with_the_original_token(http: httpx.AsyncClient, served: Served) -> None:
    """A ticket does not prolong the token that it was got with."""
    ticket = await get_ticket(http, make_token("s1", ttl=2))
    async with Stream(served.events("s1", ticket)) as stream:
        assert "token_expired" == (await stream.next("error")).json["code"]
        await stream.end()


async def test_made_up_ticket_is_401(served: Served) -> None:
    """What looks like a ticket and is none is 401."""
    for ticket in ("A" * 43, "A" * 42, "A" * 44, "_" * 43, "A" * 42 + "=", "é" * 43):
        assert 401 == (await open_status(served.events("s1", quote(ticket))))[0], ticket


# -- logs and traces --------------------------------------------------------------------------------------------------


async def _use_every_way(process: ServiceProcess) -> list[str]:
    """Use a token in every place that a server could log, and return what must not be found."""
    served, token = process.served, make_token("s1")
    async with httpx.AsyncClient(base_url=served.api, timeout=DEADLINE) as http:
        ticket = await get_ticket(http, token)
        for url in (served.events("s1", token), served.events("s1", ticket), f"{served.events('s1')}?%54oken={token}"):
            await open_status(url)
        await open_status(f"{served.events('s1')}?x=1&token={token}&last_event_id=0-0")
        for path in (f"/health/s1?token={token}", f"/nothing?token={token}", f"/health/{token}", "/health/s1"):
            await http.get(path, headers=bearer(token))
        await http.post(f"/ticket/s1?a=b&token={token}")
        await http.options(f"/events/s1?token={token}")
    host, port = served.url.removeprefix("http://").split(":")
    upgrade = (
        f"GET {PREFIX}/events/s1?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    malformed = f"GET {PREFIX}/events/s1?token={token} HTTP/1.1\r\nBad Header: {token}\r\n\r\n"
    for request in (upgrade, malformed):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request.encode())
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"\r\n")
        writer.transport.abort()
    return [token, ticket, token.split(".")[1], token.split(".")[2], SECRET]


@pytest.mark.parametrize(
    ("plain", "arguments"),
    [(False, ()), (True, ()), (True, ("--log-level", "trace"))],
    ids=["agent-sse serve", "uvicorn", "uvicorn, log level trace"],
)
async def test_no_token_in_the_log(valkey: Valkey, plain: bool, arguments: tuple[str, ...]) -> None:
    """The whole output of the service has the requests, and not one token, ticket or secret."""
    process = ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}, plain=plain, arguments=arguments)
    async with process:
        secrets = await _use_every_way(process)
        await process.stop()
    assert "token=***" in process.output
    assert re.search(r"/events/s1\S* HTTP/1\.1\S* 200", process.output)
    assert [] == [secret for secret in secrets if secret in unquote(process.output)]
    assert "Traceback" not in process.output


async def test_ticket_opens_no_other_session_of_its_owner(
    http: httpx.AsyncClient, served: Served, notifier: SimpleNotifier
) -> None:
    """A ticket belongs to the session that it was made for, also when its subject owns others."""
    for name in ("mine1", "mine2"):
        await notifier.open_session(name, owner="alice")
    reply = await http.post("/ticket/mine1", headers=bearer(make_token(sub="alice")))
    ticket = reply.json()["data"]["token"]
    async with Stream(served.events("mine2", ticket)) as stream:
        assert 403 == stream.status
