"""Makes docs/page.png: the console while an agent works through a small task. No test runs in this file.

``python tests/browser/console_pictures.py [FILE]`` needs Chromium; it starts a Valkey and the service by itself.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does: the tests' own modules

from playwright.async_api import Page, expect

from agent_sse import SimpleNotifier
from browser import chromium as chromium_path
from browser.tabs import chromium
from harness import ServiceProcess, Valkey, make_token

TARGET = Path(__file__).parents[2] / "docs" / "page.png"
SESSION = "fix-issue-142"
OTHERS = ("nightly-report", "refactor-auth", "triage-inbox")
SIZE = (1440, 900)  # CSS pixels, and those of the picture
PATCH = {
    "path": "src/billing/invoice.py",
    "old": "return sum(i.price for i in items)",
    "new": "return sum(i.price * i.quantity for i in items)",
}


async def answer(page: Page, tool: str, name: str) -> None:
    """Answer a request by a button of its card, as a user would."""
    await page.locator(f'[aria-label="Permission request: {tool}"][data-steady=true]').wait_for()
    await page.get_by_role("button", name=f"{name} {tool}", exact=True).click()


async def work(notifier: SimpleNotifier, stack: AsyncExitStack) -> None:
    """What the agent has done, and what it is at: two calls still run when this returns."""
    async with notifier.tool_call(SESSION, "search_code", {"query": "def total", "path": "src"}, server="repo") as call:
        for files in (40, 80, 120):
            await call.progress(files, total=120, message="files")
            await asyncio.sleep(0.3)
        call.result = {"matches": [{"file": "src/billing/invoice.py", "line": 41}]}
    async with notifier.tool_call(SESSION, "read_file", {"path": "src/billing/invoice.py"}, server="repo") as call:
        await asyncio.sleep(0.2)
        call.result = {"lines": 128}
    with suppress(TimeoutError):
        url = {"url": "https://wiki.example.com/rounding"}
        async with notifier.tool_call(SESSION, "fetch_url", url, risk_level="medium", server="web"):
            await asyncio.sleep(0.8)
            raise TimeoutError("wiki.example.com did not answer in time")
    tests = notifier.tool_call(
        SESSION, "run_tests", {"path": "tests/billing"}, risk_level="medium", require_permission=True, server="shell"
    )
    await stack.enter_async_context(tests)
    for done, module in ((6, "test_invoice.py"), (18, "test_discount.py"), (31, "test_taxes.py")):
        await tests.progress(done, total=48, message=module)
        await asyncio.sleep(0.4)
    await stack.enter_async_context(notifier.tool_call(SESSION, "index_docs", {"path": "docs"}, server="repo"))


async def edit(notifier: SimpleNotifier) -> None:
    """Ask to edit a file; nobody answers."""
    message = "The total ignored the quantities."
    async with notifier.tool_call(
        SESSION, "edit_file", PATCH, risk_level="high", require_permission=True, message=message, editable=True,
        server="repo", timeout=240.0,
    ):  # fmt: skip
        raise AssertionError("nobody has approved it")


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def take(page: Page, target: Path) -> None:
    """Write what the window shows."""
    await page.screenshot(path=target)


async def shoot(folder: Path, target: Path) -> None:
    """Play the session and write the picture."""
    binary = chromium_path.find()
    assert binary is not None, "no Chromium: python tests/browser/chromium.py installs it"
    valkey = Valkey(folder / "v")
    async with AsyncExitStack() as stack:
        await valkey.start()
        stack.push_async_callback(valkey.stop)
        notifier = await stack.enter_async_context(SimpleNotifier.from_url(valkey.url))
        service = await stack.enter_async_context(ServiceProcess({"AGENT_SSE_REDIS_URL": valkey.url}))
        for name in (*OTHERS, SESSION):
            await notifier.open_session(name, owner="alice")
            await notifier.tool_status(name, "plan", "completed", tool_call_id="plan", parameters={"steps": 4})
        browser = await stack.enter_async_context(chromium(binary))
        page = await browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, locale="en-GB", timezone_id="UTC")
        await page.goto(f"{service.url}/#session={SESSION}&token={make_token(SESSION, *OTHERS)}")
        await page.locator(".connection [data-phase=open]").wait_for()
        approving = asyncio.create_task(answer(page, "run_tests", "Approve"))
        await work(notifier, stack)
        await approving
        asking = asyncio.create_task(edit(notifier))
        stack.push_async_callback(ended, asking)
        await page.locator("[data-steady=true]").wait_for()
        await expect(page.locator(".call")).to_have_count(7)
        await page.locator('.event[data-type="permission_request"]').last.click()
        await page.evaluate("document.activeElement.blur()")
        await page.wait_for_timeout(2500)  # bars get their length
        await take(page, target)


def main() -> None:
    """Write the picture to the file named, docs/page.png by default."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    with tempfile.TemporaryDirectory(prefix="as") as folder:
        asyncio.run(shoot(Path(folder), target))
    print(target)


if __name__ == "__main__":
    main()
