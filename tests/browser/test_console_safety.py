"""The console in a real Chromium, attacked: tokens in addresses, other origins, rebound names, markup in events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Request, async_playwright, expect

from agent_sse import SimpleNotifier
from browser.console import WATCH_POLICY, Console, open_console, publish_raw
from browser.tabs import FLAGS, Agent, Room, decided
from harness import PREFIX, ServiceProcess, make_token, session_name

FAR_IN_TIME = "2026-01-01T00:00:00Z"
MARKUP = "<img src=x onerror=hacked=1><script>hacked=1</script><b>\"'`${hacked=1}</b><style>*{}</style>"
UNSEEN = "\u202e\u2066\u200b\u200f\x1b[31m\x00\u0085\ufeff"
EVIL = f"x{MARKUP}{UNSEEN}javascript:hacked=1"
MADE = "img, iframe, object, embed, svg, style, b, a, body script, form[action]"  # elements that the console never has
# Texts and attributes that still have a control or bidirectional character, but for ids and values nobody sees.
HIDDEN_TEXTS = r"""() => {
    const unseen = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/;
    const seen = ({ name }) => !name.startsWith('data-') && name !== 'value';
    const textsOf = (node) => node.attributes
        ? [...node.attributes].filter(seen).map(({ name, value }) => `${node.localName} ${name}: ${value}`)
        : [`${node.parentNode.className}: ${node.data}`];
    const found = [document.title];
    const nodes = document.createTreeWalker(document, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
    for (let node = nodes.nextNode(); node; node = nodes.nextNode()) found.push(...textsOf(node));
    return found.filter((text) => unseen.test(text));
}"""


@pytest.fixture
async def asked(room: Room) -> list[Request]:
    """Whatever the browser asked for."""
    requests: list[Request] = []
    room.context.on("request", lambda request: requests.append(request))  # noqa: PLW0108 - it cannot be a built-in
    await room.context.add_init_script(WATCH_POLICY)
    return requests


async def use(console: Console, agent: Agent, session: str) -> None:
    """Go through the console: answer a request, look at an event and at every tab."""
    agent.ask(session)
    await console.press("Approve", "file_edit")
    await console.outcomes.get_by_text("approved").wait_for()
    await console.events.first.click()
    await console.inspected.wait_for()
    for tab in ("Health", "Audit", "Events"):
        await console.open_tab(tab)


async def test_console_keeps_the_token_out_of_every_address(room: Room, agent: Agent, asked: list[Request]) -> None:
    """The token goes from the fragment into this tab's memory: no address, no history entry, no referrer, no request's
    URL and no lasting storage has it, and all that is asked for is asked of the service."""
    session = session_name()
    token = make_token(session)
    console = await open_console(room, session, token)
    await use(console, agent, session)
    assert f"{room.proxy.url}/#session={session}" == console.page.url
    devtools = await room.context.new_cdp_session(console.page)
    entries = (await devtools.send("Page.getNavigationHistory"))["entries"]
    assert [console.page.url] == [entry["url"] for entry in entries if token in entry["url"] or "#" in entry["url"]]
    assert "" == await console.tab.do("document.referrer + document.cookie + Object.keys(localStorage)")
    assert {"token": token, "session": session} == await console.kept()
    assert [] == [one.url for one in asked if token in one.url or token in one.headers.get("referer", "")]
    assert [] == [one.url for one in asked if not one.url.startswith((room.proxy.url, "data:,"))]
    assert [] == await console.violations()
    sent = [dict(await one.all_headers()).get("authorization") for one in asked if PREFIX in one.url]
    assert {f"Bearer {token}"} == set(sent)


async def test_console_takes_another_token_from_the_fragment(room: Room, agent: Agent, asked: list[Request]) -> None:
    """A link that is opened in the console's own tab, with another token and session, is followed as at first. Of what
    the one before saw nothing stays, though an event was open to be read, and what a button had said."""
    former = session_name()
    console = await open_console(room, former)
    agent.ask(former, {"file": "alice's secret"})
    await console.request("file_edit").wait_for()
    await console.button("Copy curl: approve, file_edit").click()
    await expect(console.page.locator(".notice")).not_to_be_empty()
    await console.events.first.click()
    await expect(console.inspected).to_be_visible()
    session = session_name()
    token = make_token(session, sub="bob")
    await console.page.goto(f"{room.proxy.url}/#session={session}&token={token}")
    await expect(console.page.locator(".session-name")).to_have_text(session)
    await console.phase("open")
    await expect(console.inspected).to_have_count(0)
    await expect(console.page).to_have_title(f"{session} · agent-sse console")
    assert {"token": token, "session": session} == await console.kept()
    await expect(console.page.locator(".notice")).to_be_empty()
    page = await console.page.content()
    assert [] == [text for text in ("alice", "file_edit", former) if text in page]
    devtools = await room.context.new_cdp_session(console.page)
    entries = (await devtools.send("Page.getNavigationHistory"))["entries"]
    assert [] == [entry["url"] for entry in entries if "token" in entry["url"]]
    assert [] == [one.url for one in asked if token in one.url]


async def test_console_shows_another_subject_nothing_of_the_one_before(
    room: Room, notifier: SimpleNotifier, agent: Agent
) -> None:
    """The same session with a token that may not see it: health, decisions and requests of the one who may are
    gone at once."""
    session = session_name()
    await notifier.open_session(session, owner="alice")
    console = await open_console(room, session)
    console.tab.expect("403")
    asking = agent.ask(session)
    await console.press("Deny", "file_edit")
    await decided(asking)
    agent.ask(session)
    await console.request("file_edit").wait_for()
    await (await console.open_tab("Health")).locator(".facts").wait_for()
    await console.page.goto(f"{room.proxy.url}/#session={session}&token={make_token('other', sub='mallory')}")
    await console.phase("ended")
    page = await console.page.content()
    assert [] == [text for text in ("alice", "file_edit", "facts") if text in page]
    await expect(console.page).to_have_title(f"{session} · agent-sse console")


async def test_console_survives_a_reload_without_a_token_in_the_address(room: Room) -> None:
    """A reload goes on with what the tab keeps; another tab with the same address has to sign in."""
    session = session_name()
    console = await open_console(room, session)
    await console.page.reload()
    await console.phase("open")
    other = Console(await room.visit(f"/#session={session}"))
    await expect(other.page.locator("#session")).to_have_value(session)
    await expect(other.page.locator("#token")).to_have_value("")


async def test_console_works_where_nothing_may_be_kept(room: Room) -> None:
    """In a browser that forbids the page to keep anything the console works, until it is reloaded."""
    await room.context.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    console = await open_console(room, session_name())
    await console.page.locator(".controls select").select_option("dark")
    await console.page.locator("body[data-theme=dark]").wait_for()
    await console.page.reload()
    await console.page.locator("#token").wait_for()


async def test_console_takes_no_token_from_the_query(room: Room, asked: list[Request]) -> None:
    """A token in the query is not used: the page says so, asks for one, takes it out of the address, and sends the API
    nothing."""
    session = session_name()
    console = Console(await room.visit(f"/?token={make_token(session)}&session={session}"))
    await expect(console.page.locator(".signin [role=alert]")).to_contain_text("is not read")
    assert [] == [one.url for one in asked if PREFIX in one.url]
    assert ({}, f"{room.proxy.url}/") == (await console.kept(), console.page.url)


async def test_console_shows_a_refusal_for_a_session_that_is_not_its_own(room: Room, asked: list[Request]) -> None:
    """Neither a foreign session nor one whose name is an attack is followed: what the service says is shown as text."""
    own = session_name()
    for session in (session_name(), f"x/../../{own}?", EVIL):
        console = await open_console(room, session, make_token(own), wait=False)
        console.tab.expect("40[34]", "422")
        await console.phase("ended")
        await expect(console.alert).to_contain_text("Failed: ")
        assert [] == await console.tab.do(f"({HIDDEN_TEXTS})()")
        await expect(console.page.locator(MADE)).to_have_count(0)
    assert [] == [one.url for one in asked if one.url.partition("?")[0].endswith(f"/{own}")]


async def test_console_policy_refuses_what_it_forbids(room: Room, asked: list[Request]) -> None:
    """The policy is in force: inline scripts, markup from strings and other origins are refused, so that the other
    tests' finding no refusal says something."""
    console = await open_console(room, session_name())
    console.tab.expect(
        "Content Security Policy", "Refused to", "requires 'Trusted", "This document requires", "violates"
    )
    await console.tab.do("""(() => {
        const script = document.createElement('script');
        script.append('hacked = 1');
        try { document.body.append(script); } catch { }
        try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); } catch { }
        fetch('http://127.0.0.2:9/').catch(() => { });
    })()""")
    await expect(console.page.locator("b")).to_have_count(0)
    refused = {text.split(":")[0] for text in await console.violations()}
    assert {"require-trusted-types-for", "connect-src"} <= refused
    assert "undefined" == await console.tab.do("typeof hacked")


async def test_console_is_not_shown_under_a_rebound_name(service: ServiceProcess, chromium_binary: Path) -> None:
    """Under a name that an attacker points at this machine there is no page and no script, and the API has nothing for
    who has no token."""
    port = service.url.rpartition(":")[2]
    evil = f"http://evil.example:{port}"
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_binary, args=[*FLAGS, rules])
        page = await browser.new_page()
        for path in ("/", "/console/console.js", "/docs"):
            reply = await page.goto(evil + path)
            assert reply is not None
            assert (421, "host_not_allowed") == (reply.status, (await reply.json())["error"]["code"]), path
        statuses = await page.evaluate(
            "(paths) => Promise.all(paths.map(async (path) => (await fetch(path)).status))",
            [f"{PREFIX}/sessions", f"{PREFIX}/events/s1", f"{PREFIX}/health/s1", f"{PREFIX}/poll/s1"],
        )
        assert [401] * 4 == statuses
        own = await page.goto(f"{service.url}/")
        assert own is not None
        assert 200 == own.status
        await browser.close()


def evil_events(request_id: str) -> list[dict[str, Any]]:
    """An event of each type, and of an unknown one, with the attack in every field that is a text and in every key."""
    tree = {EVIL: [EVIL, {EVIL: EVIL}], "__proto__": {"hacked": EVIL}, "toString": EVIL, "then": EVIL}
    about = {"tool_name": EVIL, "tool_call_id": EVIL, "server": EVIL, "timestamp": EVIL, "request_id": EVIL}
    who = {"reason": EVIL, "resolved_by": EVIL, "outcome": EVIL, "scope": EVIL, "covers": EVIL}
    progress = {"progress": 1, "total": 3, "message": EVIL}
    details = {
        "parameters": tree, "original_parameters": tree, "risk_level": EVIL, "start_time": FAR_IN_TIME,
        "progress": progress, "parent_tool_call_id": EVIL, "server": EVIL, "cancellable": True,
    }  # fmt: skip
    asking = {
        **about, "request_id": request_id, "parameters": tree, "risk_level": EVIL, "message": EVIL, "editable": True,
        "status": EVIL, "scopes": ["once", "session", EVIL], "masked": [EVIL], "truncated": True, "digest": EVIL,
        "expires_at": EVIL,
    }  # fmt: skip
    bodies: dict[str, dict[str, Any]] = {
        "tool_status": {**about, "status": "executing", "details": details},
        "permission_response_result": {**about, **who, "success": True, "approved": True},
        "permission_cleared": {**about, **who},
        "tool_result": {**about, "result": tree, "success": False, "error": EVIL, "duration_ms": EVIL},
        "result_cleared": {"tool_call_id": EVIL, "timestamp": EVIL},
        EVIL: {**about, **tree},
    }
    typed = [{"type": name, "data": data} for name, data in bodies.items()]
    return [
        {"type": "error", "message": EVIL, "code": EVIL}, *typed,
        {"type": "tool_status", "data": {**about, "status": EVIL, "details": {**details, "progress": {EVIL: EVIL}}}},
        *({"type": name, "data": EVIL} for name in bodies), {"type": EVIL, "data": None}, {"type": "tool_status"},
        {"type": "permission_request", "data": EVIL}, {"type": "permission_request", "data": asking},
    ]  # fmt: skip


async def test_console_shows_markup_as_text_in_every_field(
    room: Room, notifier: SimpleNotifier, asked: list[Request]
) -> None:
    """Markup, terminal sequences and bidirectional characters in every field of every type of event, known or not: no
    element is made, nothing runs, nothing is asked for, and what is invisible is shown by number."""
    session = session_name()
    events = evil_events("pr_evil")
    for event in events:
        await publish_raw(notifier, session, event)
    await notifier.tool_status(session, "read", "executing", tool_call_id="plain")
    console = await open_console(room, session)
    await expect(console.count).to_have_text(str(len(events) + 1))
    for name in await console.page.locator(".call-name").all():
        await name.click()
    await console.request_of("pr_evil").wait_for()
    for number in range(len(events)):
        await console.events.nth(number).click()
        await console.inspected.wait_for()
        assert [] == await console.tab.do(f"({HIDDEN_TEXTS})()"), events[number]
    shown = await console.page.locator("body").inner_text()
    for part in ("<script>hacked=1</script>", "\\u{202e}", "\\u{1b}[31m", "\\u{0}"):
        assert part in shown, part
    made = console.page.locator(
        "img, iframe, object, embed, svg, style, b, a[href], body script, #console form[action]"
    )
    await expect(made).to_have_count(0)
    assert "undefined undefined" == await console.tab.do("`${typeof hacked} ${typeof {}.hacked}`")
    assert [] == await console.violations()
    assert [] == [one.url for one in asked if not one.url.startswith((room.proxy.url, "data:,"))]
