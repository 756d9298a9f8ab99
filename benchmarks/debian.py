"""Debian's packages that a run needs, installed where that is possible: as root, with apt-get."""

from __future__ import annotations

import os
import shutil
import subprocess

from benchmarks.programs import environment

TIMEOUT = 180  # s


def install(*packages: str) -> bool:
    """Install packages, and tell whether that worked; False at once where this user or this system cannot."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    print(f"installing {' '.join(packages)} …", flush=True)
    env = environment(DEBIAN_FRONTEND="noninteractive")
    worked = False
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
        try:
            done = subprocess.run(["apt-get", *command], env=env, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            return False
        worked = done.returncode == 0
    return worked
