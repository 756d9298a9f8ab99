"""The machine and the versions that a run's figures belong to. No names, no paths."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from agent_sse.state_dir import find_server
from benchmarks import nchan

PACKAGES = ("agent-sse", "uvicorn", "uvloop", "httptools", "fastapi", "starlette", "sse-starlette", "redis", "hiredis")
WATCHED = (":/src", ":/benchmarks", ":(top,exclude)benchmarks/results.json")  # the record is no part of what it records


def describe() -> dict[str, str]:
    """Return what the table is headed with, each as one short text."""
    return {
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load_before": f"{os.getloadavg()[0]:.2f}",
        "commit": tree(),
    }


def tree() -> str:
    """Return the last commit of what is measured and what measures, and whether these differ from it."""
    commit = _first(["git", "log", "-1", "--format=%h", "--", *WATCHED], r"[0-9a-f]+")
    changed = _first(["git", "status", "--porcelain", "--", *WATCHED], r"\S")
    return commit if changed == "–" else f"{commit} with changes"


def versions() -> dict[str, str]:
    """Return the versions of everything that is measured or measures."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "–"
    found["valkey"] = _first([str(find_server()), "--version"], r"v=([0-9.]+)")
    found["nginx"] = _first([nchan.find_nginx() or "nginx", "-v"], r"nginx/([0-9.]+)")
    found["nchan"] = _first(["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"], r"(?:\d+:)?([0-9.]+)")
    found["cc"] = _first([shutil.which("cc") or "cc", "-dumpfullversion"], r"[0-9.]+")
    return found


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first(command: Sequence[str], pattern: str) -> str:
    """Return what the pattern (its group, if it has one) finds in a command's output, a dash where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "–"
    found = re.search(pattern, done.stdout + done.stderr)
    return found[found.re.groups] if found and done.returncode == 0 else "–"
