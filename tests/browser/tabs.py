"""Tabs of a real Chromium and the pages they show. What a page complains of, unexpected, is an error of the test."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from agent_sse import PermissionDecision, SimpleNotifier
from browser.proxy import Proxy
from harness import DEADLINE, make_token, until

HERE = Path(__file__).parent
BUILD_SECONDS = 120.0
READING_SECONDS = 1.1
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# What Chromium itself writes when a service goes away, and what the guide's class writes then.
LOST = (r"net::ERR_", r"SSE连接错误")


@asynccontextmanager
async def chromium(path: Path, **options: Any) -> AsyncIterator[Browser]:
    """A Chromium of the caller's own, without a window; ``options`` are more of Playwright's `launch`."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS, **options)
        try:
            yield browser
        finally:
            await browser.close()


def guide_blocks() -> dict[str, str]:
    """The guide's class and its component as they stand in it, by their block's language: ``typescript`` ``tsx``."""
    text = (HERE / "guide" / "guide.zh.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(typescript|tsx)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert {"typescript", "tsx"} == set(blocks), "the guide's blocks of code are not where they were"
    return blocks


def lay_out(folder: Path) -> None:
    """Put the pages' sources into ``folder``: this directory's, and the guide's code with nothing added but imports."""
    shutil.copytree(HERE / "pages", folder, dirs_exist_ok=True)
    blocks = guide_blocks()
    for variant, imported in {"guide": "./SSEClient", "package": "agent-sse"}.items():
        (folder / variant).mkdir(exist_ok=True)
        component = f'import {{ SSEClient }} from "{imported}";\n{blocks["tsx"]}'
        (folder / variant / "MCPToolMonitor.tsx").write_text(component, encoding="utf-8")
    (folder / "guide" / "SSEClient.ts").write_text(f"{blocks['typescript']}\nexport {{ SSEClient }};\n", "utf-8")


class Pages:
    """The tests' pages, each built when it is first asked for. ``folder`` is what the proxy shows below ``/pages/``."""

    def __init__(self, folder: Path) -> None:
        self.sources = folder / "sources"
        self.folder = folder / "built"
        lay_out(self.sources)

    def build(self, name: str) -> str:
        """Build ``pages/<name>.html`` and return its path on the proxy, ``/pages/<name>/<name>.html``."""
        target = self.folder / name
        if not target.exists():
            command = ["node", str(HERE / "bundle.mjs"), str(self.sources), str(target), f"{name}.html"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
            assert done.returncode == 0, f"building {name} failed:\n{done.stdout}{done.stderr}"
        return f"/pages/{name}/{name}.html"


class Tab:
    """A page, and what it said. ``expect`` names the console errors a test provokes, as regular expressions."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.errors: list[str] = []
        self.expected: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("crash", lambda _: self.errors.append("the page crashed"))

    def _on_console(self, message: ConsoleMessage) -> None:
        text = f"{message.type}: {message.text}"
        (self.errors if message.type in ("error", "warning") else self.said).append(text)

    def expect(self, *patterns: str) -> None:
        self.expected += patterns

    def unexpected(self) -> list[str]:
        """The errors and warnings that no test expected."""
        return [text for text in self.errors if not any(re.search(pattern, text) for pattern in self.expected)]

    async def until(self, condition: str, argument: Any = None) -> Any:
        """Wait until the JavaScript function ``condition`` returns something true in the page, and return it."""
        handle = await self.page.wait_for_function(condition, arg=argument, timeout=DEADLINE * 1000, polling=20)
        return await handle.json_value()

    async def connect(self, session: str, token: str) -> None:
        """Make the page's `SSEClient`, record its callbacks (`window.calls`), and connect it."""
        await self.page.evaluate(
            """([session, token]) => {
                window.client = new SSEClient(session, token);
                window.calls = record(window.client);
                window.client.connect();
            }""",
            [session, token],
        )

    async def calls(self, name: str | None = None) -> list[Any]:
        """What the callbacks were called with so far, in order: the values of one, or all as ``[name, value]``."""
        script = "(name) => name === null ? calls : calls.filter((call) => call[0] === name).map((call) => call[1])"
        return list(await self.page.evaluate(script, name))

    async def called(self, name: str, count: int = 1) -> Any:
        """Wait for the ``count``-th call of a callback, and return its value."""
        await self.until("([name, count]) => calls.filter((call) => call[0] === name).length >= count", [name, count])
        return (await self.calls(name))[count - 1]

    async def do(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; a promise is awaited."""
        async with asyncio.timeout(DEADLINE):
            return await self.page.evaluate(expression)


class Agent:
    """An agent that asks for permission. What it still waits for is withdrawn when the test ends."""

    def __init__(self, notifier: SimpleNotifier) -> None:
        self.notifier = notifier
        self._asking: set[asyncio.Task[PermissionDecision]] = set()

    def ask(
        self, session: str, parameters: Any = None, *, tool: str = "file_edit", risk: str = "high", **more: Any
    ) -> asyncio.Task[PermissionDecision]:
        """Begin to ask; ``parameters`` are ``{"file": "example.py"}`` by default. Await it with `decided`."""
        values = {"file": "example.py"} if parameters is None else parameters
        task = asyncio.create_task(self.notifier.request_permission(session, tool, values, risk, **more))
        self._asking.add(task)
        return task

    async def leave(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


async def decided(asking: asyncio.Task[PermissionDecision]) -> PermissionDecision:
    """Wait for the decision, as long as a test waits for anything."""
    async with asyncio.timeout(DEADLINE):
        return await asking


async def read_by_a_person() -> None:
    """Let the time pass in which an answer without an id still counts for the card before: 1 s from its showing."""
    loop = asyncio.get_running_loop()
    shown = loop.time()
    await until(lambda: loop.time() > shown + READING_SECONDS)


class Room:
    """A session seen by a browser: opens tabs on the tests' pages or the service's, in one profile (one context)."""

    def __init__(self, context: BrowserContext, proxy: Proxy, pages: Pages) -> None:
        self.context = context
        self.proxy = proxy
        self.pages = pages
        self.tabs: list[Tab] = []

    async def open(self, name: str, fragment: dict[str, str] | None = None) -> Tab:
        """Open ``pages/<name>.html`` in a new tab; ``fragment`` goes behind the `#`."""
        path = await asyncio.to_thread(self.pages.build, name)
        return await self.visit(path + (f"#{urlencode(fragment)}" if fragment else ""))

    async def visit(self, path: str) -> Tab:
        """Open a path of the origin, or any URL, in a new tab."""
        tab = Tab(await self.context.new_page())
        self.tabs.append(tab)
        await tab.page.goto(self.proxy.url + path if path.startswith("/") else path)
        return tab

    async def client(self, name: str, session: str, token: str | None = None) -> Tab:
        """Open a page with an `SSEClient` and connect it; return when its first stream is open."""
        tab = await self.open(name)
        await tab.connect(session, token or make_token(session))
        await tab.called("onConnectionOpen")
        return tab

    async def monitor(self, name: str, session: str, token: str | None = None) -> Tab:
        """Open a page with a component that shows the session."""
        return await self.open(name, {"session": session, "token": token or make_token(session)})

    def complaints(self) -> list[str]:
        return [text for tab in self.tabs for text in tab.unexpected()]

    async def save(self, folder: Path, name: str) -> None:
        """Write what each tab shows into ``folder``, with what its page said."""
        for number, tab in enumerate(self.tabs):
            if not tab.page.is_closed():
                await tab.page.screenshot(path=folder / f"{name}-{number}.png", full_page=True)
            said = json.dumps([tab.said, tab.errors], ensure_ascii=False, indent=1)
            await asyncio.to_thread((folder / f"{name}-{number}.json").write_text, said)
