"""The console and the API's description answer to allowed names only: a rebound name reads nothing of them."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest

from agent_sse.hosts import AllowedHosts
from harness import DEADLINE, PREFIX, Served, Valkey, bearer, make_settings, make_token, serve

pytestmark = pytest.mark.usefixtures("sink")

PAGES = ["/", "/console/console.js", "/console/console.css", "/console/x", "/docs", "/redoc", "/openapi.json",
         "/docs/oauth2-redirect"]  # fmt: skip
LISTED = ("app.example.com", "*.example.org")


async def ask(served: Served, path: str, *hosts: bytes) -> tuple[int, str]:
    """Return status and body of a GET with exactly these Host headers."""
    address = re.fullmatch(r"http://(.*):(\d+)", served.url)
    assert address
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(address[1], int(address[2]))
        rows = [b"GET %b HTTP/1.1" % path.encode(), *(b"Host: " + host for host in hosts), b"Connection: close"]
        writer.write(b"\r\n".join(rows) + b"\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    return int(head.split()[1]), body.decode()


# -- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LOCALHOST:1", "app.localhost", "a.b.localhost:65535", "127.0.0.1",
        "127.0.0.1:8000", "192.0.2.7:1", "[::1]", "[::1]:8000", "[2001:DB8::1]", "[::ffff:127.0.0.1]:5",
        "app.example.com", "App.Example.COM:8443", "a.example.org", "a.b.example.org:1",
    ],
)  # fmt: skip
def test_host_of_this_machine_or_of_the_list_is_allowed(host: str) -> None:
    """localhost, what is below it, addresses and listed names, in any case and on any port."""
    assert AllowedHosts(LISTED).allow([host.encode()])


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "evil.example", "example.org", "example.com", "x.app.example.com", "evilexample.org",
        "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", "localhost.", "app.example.com.",
        ".localhost", "a..localhost", "user@localhost", "localhost@evil.example", "user:x@localhost", "localhost:",
        "localhost:x", "localhost:-1", "localhost:65536", "localhost:999999", "localhost:80:80", "localhost :80",
        " localhost", "localhost\t", "localhost\n", "localhost,evil.example", "localhost/", "localhost#", "localhost?x",
        "http://localhost", "[::1", "::1", "[::1]x", "[::1%25eth0]", "[fe80::1%1]", "[]", "[127.0.0.1]", "[::g]",
        "[localhost]", "127.1", "2130706433", "0x7f000001", "127.0.0.01", "127.0.0.1.", "1.2.3.4.5", "256.1.1.1",
        "localh\u00f6st", "\u212aocalhost", "*.example.org", "*", "%6cocalhost", "localhost\0", "-a.example.org",
        "a" * 64 + ".example.org", ".".join(["a" * 60] * 5) + ".example.org",
    ],
)  # fmt: skip
def test_host_that_is_foreign_or_malformed_is_refused(host: str) -> None:
    """No other name, however much it looks like an allowed one, and nothing that is not exactly a host and a port."""
    assert not AllowedHosts(LISTED).allow([host.encode("utf-8")])


def test_host_is_named_exactly_once() -> None:
    """Without a Host, or with two, nobody knows which one is meant."""
    hosts = AllowedHosts(LISTED)
    assert [False, False, False] == [hosts.allow(v) for v in ([], [b"localhost"] * 2, [b"localhost", b"evil.example"])]


def test_any_host_still_has_to_be_one() -> None:
    """`*` allows every name, and no malformed one."""
    hosts = AllowedHosts(["*"])
    asked = [b"evil.example:80", b"[::1]", b"user@x", b"evil.example.", b""]
    assert [True, True, False, False, False] == [hosts.allow([host]) for host in asked]
    assert not hosts.allow([])


# -- the service ------------------------------------------------------------------------------------------------------


async def test_pages_answer_to_allowed_hosts_only(valkey: Valkey) -> None:
    """Each page is 421 under a foreign name, with the setting in the message, and served under an allowed one."""
    async with serve(make_settings(valkey.url, allowed_hosts="app.example.com")) as served:
        for path in PAGES:
            for hosts in ((b"evil.example",), (b"evil.example:8000",), (b"localhost", b"evil.example"), (b"",)):
                status, body = await ask(served, path, *hosts)
                if status == 400:
                    continue  # the server itself refuses such a request
                assert (421, "host_not_allowed") == (status, json.loads(body)["error"]["code"]), (path, hosts)
                assert "AGENT_SSE_ALLOWED_HOSTS" in json.loads(body)["message"]
            missing = 404 if path == "/console/x" else 200
            for host in (b"app.example.com", b"localhost:8000", b"127.0.0.1", b"[::1]:1"):
                assert missing == (await ask(served, path, host))[0], (path, host)


@pytest.mark.parametrize("path", ["/?x=1", "/docs?x", "/%64ocs", "/console%2fconsole.js", "/console/%63onsole.js"])
async def test_page_by_another_spelling_answers_to_allowed_hosts_only(valkey: Valkey, path: str) -> None:
    """No spelling of a page's path gets past the guard."""
    async with serve(make_settings(valkey.url)) as served:
        assert 421 == (await ask(served, path, b"evil.example"))[0]


async def test_pages_answer_to_head_as_to_get(valkey: Valkey) -> None:
    """HEAD has GET's status and headers and no body, for the page, its files and what is none."""
    async with serve(make_settings(valkey.url)) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        for path in ("/", "/console/console.js", "/console/console.css", "/console/x"):
            head, got = await http.head(served.url + path), await http.get(served.url + path)
            assert (b"", got.status_code) == (head.content, head.status_code), path
            varying = {"date", "x-request-id"}
            assert {name: value for name, value in got.headers.items() if name not in varying} == {
                name: value for name, value in head.headers.items() if name not in varying
            }, path


async def test_api_and_probes_answer_to_any_host(valkey: Valkey) -> None:
    """What a token guards, and what says only that the process lives, works behind any proxy's name."""
    async with serve(make_settings(valkey.url)) as served, httpx.AsyncClient(timeout=DEADLINE) as http:
        host = {"Host": "evil.example"}
        for path in ("/healthz", "/readyz"):
            reply = await http.get(served.url + path, headers=host)
            assert 200 == reply.status_code
            assert {"status", "version", "streams"} >= set(reply.json()["data"])
        for path in ("health/s1", "sessions", "poll/s1?wait=0"):
            url = f"{served.url}{PREFIX}/{path}"
            assert 401 == (await http.get(url, headers=host)).status_code
            assert 200 == (await http.get(url, headers={**host, **bearer(make_token("s1"))})).status_code


async def test_api_below_a_pages_name_answers_to_any_host(valkey: Valkey) -> None:
    """A prefix that looks like a page's path is the API's all the same."""
    async with serve(make_settings(valkey.url, url_prefix="/console")) as served:
        assert 401 == (await ask(served, "/console/health/s1", b"evil.example"))[0]


async def test_name_to_listen_on_is_allowed(valkey: Valkey) -> None:
    """Who binds the service to a name opens its console by that name."""
    async with serve(make_settings(valkey.url, host="agents.lan")) as served:
        assert [200, 421] == [(await ask(served, "/", host))[0] for host in (b"agents.lan:8000", b"other.lan")]
