"""Chromium for the browser tests: one that is here already, else one that is installed now. No test runs in this file.

``python tests/browser/chromium.py`` prints its path, and installs it first where none is found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "AGENT_SSE_TEST_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
APT = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
INSTALL_SECONDS = 900.0
PLAYWRIGHT_PATH = (
    "from playwright.sync_api import sync_playwright\nwith sync_playwright() as p: print(p.chromium.executable_path)"
)


class NoChromium(Exception):
    """There is no Chromium, and none could be installed; the message says what to do."""


def find() -> Path | None:
    """Return the Chromium that is here, or None.

    Raises :class:`NoChromium` when the variable names one that does not run.
    """
    if named := os.environ.get(VARIABLE):
        if not runs(named):
            raise NoChromium(f"{VARIABLE} is {named!r}, which does not run: name a Chromium or Chrome, or unset it")
        return Path(named)
    # Ubuntu's `chromium-browser` may be a stub that only says "install the snap", so what is there has to run.
    return next((Path(path) for path in _candidates() if runs(path)), None)


def _candidates() -> Iterator[str]:
    yield from (path for name in NAMES if (path := shutil.which(name)) is not None)
    yield from (path for path in MAC_APPS if Path(path).exists())
    done = subprocess.run([sys.executable, "-c", PLAYWRIGHT_PATH], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        yield done.stdout.strip()


def runs(path: str) -> bool:
    """Whether the program at ``path`` says its version."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> Path:
    """Install Chromium: Debian's package where root can, else Playwright's own. Its output goes to standard error.

    Raises :class:`NoChromium`.
    """
    if shutil.which("apt-get") and os.geteuid() == 0:
        for command in ([*APT, "update"], [*APT, "install", "-y", "--no-install-recommends", "chromium"]):
            _run(command, DEBIAN_FRONTEND="noninteractive")
        if found := find():
            return found
    _run([sys.executable, "-m", "playwright", "install", "chromium"])
    if found := find():
        return found
    raise NoChromium(
        "the browser tests need Chromium, and it could not be installed (see above). Install it "
        "(Debian, Ubuntu: apt install chromium), or run `python -m playwright install --with-deps chromium`, "
        f"or name one: {VARIABLE}=/path/to/chromium"
    )


def _run(command: list[str], **environment: str) -> None:
    print(f"installing Chromium for the browser tests: {' '.join(command)}", file=sys.stderr)
    try:
        subprocess.run(
            command, env={**os.environ, **environment}, stdout=sys.stderr, timeout=INSTALL_SECONDS, check=False
        )  # what counts is whether Chromium runs afterwards
    except (OSError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)


def main() -> int:
    """Print the path, or what to do."""
    try:
        print(find() or install())
    except NoChromium as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
