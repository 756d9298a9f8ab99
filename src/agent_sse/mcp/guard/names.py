"""What a guarded server is called and told from others by: only by how it is started, never by what it says of itself.

Rules and trust go by the name, remembered answers by the identity. Starts and asks nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import SplitResult, urlsplit

from agent_sse.decisions import sha256
from agent_sse.events import NAME_LIMIT

# Options of launchers whose value names the package that is run: `npx --package=x y`, `uvx --from x y`.
_NPM_PACKAGE = frozenset({"-p", "--package"})
_PYTHON_PACKAGE = frozenset({"--from", "--spec"})
_PACKAGE = {
    **dict.fromkeys(("npx", "bunx", "pnpx", "npm", "pnpm", "yarn"), _NPM_PACKAGE),
    **dict.fromkeys(("uvx", "uv", "pipx"), _PYTHON_PACKAGE),
}
# Options whose value is the next word, so that it is not taken for what is run.
_NODE = frozenset({"-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions"})
_NPM = frozenset({"-c", "--call", "-w", "--workspace", "--prefix", "--registry", "--filter", "-C", "--dir"})
_UV = frozenset(
    {
        "-p", "--python", "--with", "--with-editable", "--with-requirements", "--directory", "--project", "--env-file",
        "--index", "--index-url", "-i", "--default-index", "--extra-index-url", "--find-links", "-f", "--extra",
        "--group", "--package", "--config-file", "--cache-dir", "--refresh-package", "--pip-args",
    }
)  # fmt: skip
_DOCKER = frozenset(
    {
        "-v", "--volume", "-e", "--env", "--env-file", "--name", "--network", "--net", "-p", "--publish", "--mount",
        "-w", "--workdir", "-u", "--user", "--entrypoint", "-l", "--label", "-h", "--hostname", "-m", "--memory",
        "--cpus", "--platform", "--pull", "--add-host", "--dns", "--device", "--tmpfs", "--cap-add", "--cap-drop",
        "--security-opt", "--shm-size", "--ulimit", "--gpus", "--restart", "--runtime", "--expose", "--ip", "--ipc",
        "--pid", "--cidfile", "--volumes-from", "--group-add", "--userns", "--log-driver", "--log-opt", "--init-path",
        "--context", "-H", "--host", "--config", "--network-alias", "-a", "--attach", "--stop-signal", "--secret",
    }
)  # fmt: skip
_VALUED = {
    **dict.fromkeys(("npx", "bunx", "pnpx", "npm", "pnpm", "yarn"), _NPM),
    **dict.fromkeys(("uvx", "uv", "pipx"), _UV),
    **dict.fromkeys(("docker", "podman"), _DOCKER),
    "node": _NODE,
    "bun": _NODE,
    "deno": frozenset({"-c", "--config", "--import-map", "--lock", "--cert", "-L", "--log-level"}),
    "python": frozenset({"-W", "-X"}),
    "env": frozenset({"-u", "--unset", "-C", "--chdir"}),
}
_CONTAINERS = frozenset({"docker", "podman"})
_VERBS = frozenset({"run", "dlx", "exec", "x", "tool", "start", "container"})
_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")

# Names that say nothing of what a file or folder is for.
_SCRIPTS = frozenset({".py", ".js", ".mjs", ".cjs", ".ts", ".mts"})
_ENTRIES = frozenset({"index", "main", "server", "cli", "app", "__main__", "dist", "build", "src", "lib", "out", "bin"})
_PORTS = {"http": 80, "https": 443}


def default_name(command: Sequence[str]) -> str:
    """Return a name for a server after its command: ``npx -y @scope/server-git DIR`` is ``@scope/server-git``."""
    words = list(command) or ["server"]
    packaged = False
    while (launcher := _launcher(words[0])) is not None:
        package, rest = _launched(launcher, words[1:])
        if package is not None:
            return _package_name(package)
        if not rest:
            break
        if launcher in _CONTAINERS:
            return _image_name(rest[0])
        words, packaged = rest, launcher in _PACKAGE
    return _package_name(words[0]) if packaged and not _is_path(words[0]) else _program_name(words[0])


def url_name(url: str) -> str:
    """Return a name for the server at a URL: ``https://example.com/mcp?key=1`` is ``example.com/mcp``."""
    parts = urlsplit(url)
    return (_host_of(parts) + parts.path.rstrip("/"))[:NAME_LIMIT] or "server"


def identity_of(command: Sequence[str], url: str | None) -> str:
    """Return what tells this server from another one of the same name, as a SHA-256.

    That is the URL; for a command its words, and the folder in which it is started: ``./server`` and what `npx` finds
    are different programs in different folders.
    """
    return sha256(["url", url] if url is not None else ["command", os.fsencode(Path.cwd()).hex(), *_hexed(command)])


def _hexed(command: Sequence[str]) -> list[str]:
    return [os.fsencode(word).hex() for word in command]  # bytes: a word need not be UTF-8


def _host_of(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in {None, _PORTS.get(parts.scheme)} else f"{host}:{parts.port}"


def _launcher(word: str) -> str | None:
    """Return which launcher a command's first word is, None when it is the program itself."""
    name = PurePath(word).name
    name = "python" if _PYTHON.fullmatch(name) else name
    return name if name in _VALUED else None


def _launched(launcher: str, rest: list[str]) -> tuple[str | None, list[str]]:
    """Return the package that an option names, else None, and the words from what is run on."""
    valued, naming = _VALUED[launcher], _PACKAGE.get(launcher, frozenset())
    while rest:
        option, equals, value = rest[0].partition("=")
        if option in naming:
            found = value if equals else "".join(rest[1:2])
            return (found or None), rest[2:]
        if rest[0] == "-m" and launcher in {"python", "uv"}:
            return "".join(rest[1:2]) or None, rest[2:]
        if option.startswith("-") and option != "-":
            rest = rest[2:] if option in valued and not equals else rest[1:]
        elif _ASSIGNMENT.match(rest[0]) if launcher == "env" else rest[0] in _VERBS:
            rest = rest[1:]
        else:
            break
    return None, rest


def _is_path(word: str) -> bool:
    return word.startswith((".", "/", "~")) or PurePath(word).suffix in _SCRIPTS


def _program_name(word: str) -> str:
    path = PurePath(word)
    if path.suffix in _SCRIPTS:
        path = path.with_suffix("")
        while path.name in _ENTRIES and path.parent.name:  # …/server-git/dist/index.js
            path = path.parent
        name = f"{path.parent.name}/{path.name}" if path.parent.name.startswith("@") else path.name
        return name[:NAME_LIMIT] or "server"
    return _package_name(path.name)


def _package_name(spec: str) -> str:
    """Return a package's name with its scope; a version (`package@1.2`, `package[extra]==1.2`) is no part of it."""
    if "://" in spec:
        parts = urlsplit(spec)
        return (_host_of(parts) + parts.path.split("@", 1)[0].rstrip("/"))[:NAME_LIMIT] or "server"
    scope = "@" if spec.startswith("@") else ""
    name = re.split(r"[@\[<>=~!;\s]", spec.removeprefix("@"), maxsplit=1)[0]
    return (scope + name if name else spec)[:NAME_LIMIT] or "server"


def _image_name(image: str) -> str:
    """Return a container image's name with its registry; tag and digest are no part of it."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return (folder + slash + last.partition(":")[0])[:NAME_LIMIT] or "server"
