"""The benchmarks' C programs, compiled when a run first needs them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks import debian
from benchmarks.programs import Failure


def compiled(name: str, folder: Path) -> Path:
    """Return the program ``name`` in ``folder``, compiled there if need be. Raises :class:`Failure` when that fails."""
    binary = folder / name
    if binary.exists():
        return binary
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        debian.install("gcc", "libc6-dev")
        compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Failure("the benchmarks need a C compiler: install gcc (Debian, Ubuntu: apt-get install gcc libc6-dev)")
    source = Path(__file__).with_name(f"{name}.c")
    command = [compiler, "-O2", "-o", str(binary), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(
            f"{source.name} does not compile (it needs Linux' epoll and a C library's headers):\n{done.stderr}"
        )
    return binary
