"""The package as npm would publish it: what is in its tarball, and that it builds and type-checks where it is new."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from browser.packing import CLIENT, MODULES, install, pack, run, tool

STRICT = {
    "target": "ES2022", "module": "ESNext", "moduleResolution": "bundler", "lib": ["ES2023", "DOM", "DOM.Iterable"],
    "jsx": "react-jsx", "strict": True, "noUncheckedIndexedAccess": True, "exactOptionalPropertyTypes": True,
    "verbatimModuleSyntax": True, "noUnusedLocals": True, "noEmit": True, "types": [],
}  # fmt: skip
PAGE = '<!doctype html><div id="root"></div><script type="module" src="/src/{name}"></script>'
CORE = """
import { AgentSSEError, type ReceivedEvent, SSEClient, type ToolStatus } from "agent-sse";

const client = new SSEClient("s1", "token", { tokenProvider: async () => "another" });
client.onToolStatusChange = (status) => console.log(status.tool_name);
client.onPermissionRequest = async () => console.log(await client.approvePermission(true, "yes"));
client.on("tool_status", (status: ToolStatus, event) => console.log(status.details, event.id));
client.on("state", (state) => console.log(state.phase));
export async function follow(): Promise<void> {
  try {
    for await (const event of client) show(event);
  } catch (error) {
    if (error instanceof AgentSSEError) console.log(error.code, error.status);
  }
}
function show(event: ReceivedEvent): void {
  console.log(event.type, event.raw);
}
client.connect();
"""
REACT = """
import { MCPToolMonitor, usePermissionRequests, useToolEvents } from "agent-sse/react";
import "agent-sse/react/styles.css";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

function Own() {
  useToolEvents("s1", "token");
  usePermissionRequests("s1", "token");
  return null;
}
createRoot(document.getElementById("root")!).render(
  <StrictMode><MCPToolMonitor sessionId="s1" token="token" /><Own /></StrictMode>,
);
"""

# What the README's code takes as given.
GIVEN = {
    "ts": "declare const token: string;\n",
    "tsx": """declare const sessionId: string, token: string;
declare const options: Parameters<typeof import("agent-sse/react").useAgentSession>[2];
""",
}
REACT_TOOLS = ("react", "react-dom", "@types/react", "@types/react-dom", "@vitejs/plugin-react")


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's tarball."""
    return pack(tmp_path_factory.mktemp("pack"))


def make_project(folder: Path, tarball: Path, name: str, code: str, *tools: str) -> Path:
    """An empty project with one source file, strict, and the package installed into it."""
    (folder / "src").mkdir()
    (folder / "package.json").write_text(json.dumps({"name": "empty", "private": True, "type": "module"}))
    (folder / "index.html").write_text(PAGE.format(name=name))
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": STRICT, "include": ["src"]}))
    (folder / "src" / name).write_text(code)
    install(folder, tarball, "vite", "typescript", *tools)
    return folder


def build(project: Path) -> str:
    """Type-check and build; return the program."""
    run(project, *tool(project, "typescript", "tsc"), "--project", ".")
    run(project, *tool(project, "vite", "vite.js"), "build", "--logLevel", "warn")
    return "".join(path.read_text("utf-8") for path in (project / "dist" / "assets").glob("*.js"))


def test_package_tarball_holds_what_is_built_and_nothing_else(tarball: Path) -> None:
    """The two entries with their types and maps, the styles, licence and manifest; nothing names where it was built."""
    with tarfile.open(tarball) as archive:
        names = {member.name.removeprefix("package/") for member in archive if member.isfile()}
        texts = {name: archive.extractfile(f"package/{name}").read() for name in names}  # type: ignore[union-attr]
    assert {"package.json", "LICENSE", "dist/index.js", "dist/index.d.ts", "dist/react.js", "dist/react.css"} <= names
    stray = {name for name in names if not name.startswith("dist/")} - {"package.json", "LICENSE", "README.md"}
    assert set() == stray
    homes = (str(MODULES.parent).encode(), str(tarball.parent).encode())
    assert [] == [name for name, text in texts.items() if any(home in text for home in homes)]
    # A declaration that names a style sheet does not type-check where nothing declares style sheets.
    assert [] == [name for name, text in texts.items() if name.endswith(".d.ts") and b".css" in text]
    assert "dependencies" not in json.loads(texts["package.json"])


def test_package_core_builds_where_no_react_is(tarball: Path, tmp_path: Path) -> None:
    """The core alone type-checks and builds in an empty Vite project without React, and drags none of it in."""
    project = make_project(tmp_path, tarball, "main.ts", CORE)
    assert not (project / "node_modules" / "react").exists()
    program = build(project)
    assert "Last-Event-ID" in program
    assert "agent-sse-" not in program  # the classes of the components


def test_package_core_can_be_imported_by_node(tarball: Path, tmp_path: Path) -> None:
    """Node, without a page, imports the core: it touches nothing of a browser before `connect`."""
    project = make_project(tmp_path, tarball, "main.ts", CORE)
    code = "import { SSEClient } from 'agent-sse'; console.log(new SSEClient('s1', 't').state.phase)"
    assert "idle" == run(project, "node", "--input-type=module", "--eval", code).strip()


def test_package_component_builds_with_its_types_and_styles(tarball: Path, tmp_path: Path) -> None:
    """Component, hooks and styles type-check and build in an empty Vite project with React."""
    project = make_project(tmp_path, tarball, "main.tsx", REACT, *REACT_TOOLS)
    assert "agent-sse" in build(project)
    styles = "".join(path.read_text("utf-8") for path in (project / "dist" / "assets").glob("*.css"))
    assert "--agent-sse-" in styles


def test_package_readme_type_checks(tarball: Path, tmp_path: Path) -> None:
    """The README's code, as it stands there, is right: each language's blocks together, strict."""
    project = make_project(tmp_path, tarball, "given.d.ts", "", *REACT_TOOLS)
    blocks = re.findall(r"^```(tsx?)\n(.*?)^```$", (CLIENT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    for language, given in GIVEN.items():
        code = [text for name, text in blocks if name == language]
        assert 2 == len(code)
        (project / "src" / f"readme.{language}").write_text(given + "\n".join(code))
    run(project, *tool(project, "typescript", "tsc"), "--project", ".", "--noUnusedLocals", "false")
