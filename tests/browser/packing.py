"""The client package as npm would publish it, installed into projects of the tests. Nothing is fetched from a registry:
tools and React are the client's own, and the repository's tree is not written to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CLIENT = REPOSITORY / "client"
MODULES = CLIENT / "node_modules"
SECONDS = 180.0
SOURCES = (
    "package.json", "tsconfig.json", "tsconfig.build.json", "vite.config.ts", "README.md", "LICENSE", "src",
)  # fmt: skip


def run(folder: Path, *command: str) -> str:
    """Run a command in ``folder`` and return its output; fail with it."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def pack(folder: Path) -> Path:
    """Build the package in a copy below ``folder``, and return its tarball."""
    copy = folder / "client"
    copy.mkdir()
    for name in SOURCES:
        source = CLIENT / name
        if source.is_dir():
            shutil.copytree(source, copy / name)
        elif source.exists():
            shutil.copy(source, copy / name)
    (copy / "node_modules").symlink_to(MODULES)
    run(copy, "npm", "run", "--silent", "build")
    run(copy, "npm", "pack", "--silent", "--pack-destination", str(folder))
    (tarball,) = folder.glob("*.tgz")
    return tarball


def install(project: Path, tarball: Path, *tools: str) -> None:
    """Install the tarball into ``project``, and link ``tools`` of the client beside it, such as ``@types/react``."""
    run(
        project, "npm", "install", "--offline", "--no-audit", "--no-fund", "--no-package-lock", "--legacy-peer-deps",
        f"--cache={project / '.npm'}", str(tarball),
    )  # fmt: skip
    for tool in tools:
        target = project / "node_modules" / tool
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(MODULES / tool)


def tool(project: Path, package: str, name: str) -> list[str]:
    """The command of a tool that :func:`install` linked."""
    return ["node", os.fspath(project / "node_modules" / package / "bin" / name)]
