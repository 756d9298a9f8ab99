"""The React example: the guide's code in it is the guide's, it builds, and it runs on Vite's own server as it says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from browser.monitor import Monitor
from browser.packing import REPOSITORY, install, pack, run, tool
from browser.tabs import Agent, Room, decided, guide_blocks
from harness import DEADLINE, ServiceProcess, make_token, session_name

EXAMPLE = REPOSITORY / "examples" / "react"
TOOLS = ("vite", "typescript", "react", "react-dom", "@types/react", "@types/react-dom", "@vitejs/plugin-react")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its dependencies: the package from its tarball, the others from the client's own."""
    folder = tmp_path_factory.mktemp("example")
    copy = folder / "react"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (copy / "package.json").write_text(json.dumps({"name": "example", "private": True, "type": "module"}))
    install(copy, pack(folder), *TOOLS)
    return copy


@asynccontextmanager
async def vite(project: Path, service: str) -> AsyncIterator[str]:
    """`npm run dev`, with the service at an address of the test's; yields its own address."""
    process = await asyncio.create_subprocess_exec(
        *tool(project, "vite", "vite.js"), "--host", "127.0.0.1", "--port", "0", cwd=project,
        env={**os.environ, "AGENT_SSE_URL": service, "NO_COLOR": "1"}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            while (found := re.search(rb"(http://127\.0\.0\.1:\d+)/", await process.stdout.readline())) is None:
                assert process.returncode is None
        yield found[1].decode()
    finally:
        process.terminate()
        await process.communicate()


def test_example_has_the_guides_code_with_only_imports_added() -> None:
    """Class and component are the guide's letter by letter; the two components differ in one line, the import."""
    blocks, source = guide_blocks(), EXAMPLE / "src"
    assert blocks["typescript"] + "\nexport { SSEClient };\n" == (source / "guide/SSEClient.ts").read_text("utf-8")
    for folder, module in {"guide": "./SSEClient", "package": "agent-sse"}.items():
        expected = f'import {{ SSEClient }} from "{module}";\n{blocks["tsx"]}'
        assert expected == (source / folder / "MCPToolMonitor.tsx").read_text("utf-8")


def test_example_names_the_versions_that_are_tested() -> None:
    """Its dependencies are those of the client package, in the same versions."""
    own = json.loads((EXAMPLE / "package.json").read_text("utf-8"))
    tested = json.loads((REPOSITORY / "client" / "package.json").read_text("utf-8"))["devDependencies"]
    named = own["dependencies"] | own["devDependencies"]
    assert "file:../../client" == named.pop("agent-sse")
    assert {name: tested[name] for name in named} == named
    assert set(TOOLS) == set(named)


def test_example_builds(project: Path) -> None:
    """`npm run build`: it type-checks, and Vite builds it."""
    run(project, *tool(project, "typescript", "tsc"))
    run(project, *tool(project, "vite", "vite.js"), "build", "--logLevel", "warn")
    assert (project / "dist" / "index.html").exists()


async def test_example_answers_the_agent_in_each_of_its_ways(
    room: Room, service: ServiceProcess, agent: Agent, project: Path
) -> None:
    """On Vite's server, through its proxy, each of the three shows the request, and its answer reaches the agent."""
    session = session_name()
    async with vite(project, service.url) as url:
        tab = await room.visit(f"{url}/#session={session}&token={make_token(session)}")
        await tab.page.get_by_role("button", name="the guide's client").wait_for()
        assert f"{url}/" == tab.page.url  # the token stays in no address
        for way in ("the guide's client", "the package's client", "the package's component"):
            await tab.page.get_by_role("button", name=way).click()
            asking = agent.ask(session, {"file": f"{way}.py"})
            await tab.page.get_by_text(f"{way}.py").first.wait_for()
            if way.endswith("component"):
                await Monitor(tab, session).press("Approve", "file_edit")
            else:
                await tab.page.get_by_role("button", name="同意").click()
            assert (await decided(asking)).approved
        await tab.page.close()  # before its server goes
