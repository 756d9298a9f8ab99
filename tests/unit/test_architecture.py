"""The rooms of the house: who may import whom and what, and what every Lua script has to say about itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agent_sse

SOURCE = Path(agent_sse.__file__).parent
SCRIPTS = sorted((SOURCE / "scripts").glob("*.lua"))
assert SCRIPTS, "the scripts are not where this looks for them"
ROOT = "agent_sse"

# From the cellar to the roof: a module imports only from rooms below its own, so there are no cycles and no way up.
ROOMS: tuple[frozenset[str], ...] = tuple(
    frozenset(room.split())
    for room in (
        "errors frames terminal access_log scripts shutdown jwt_text token_cache wheel deadlines nofile lines "
        "held_head policy_patterns policy_paths policy_lines appender shorten credential_forms api_docs hosts "
        "watch_commands",
        "credentials policy schema_keywords waits",
        "masking keys events sinks event_sink limits state_dir watch_view wire sentinels policy_form",
        "merge_patch settings json_schema policy_file event_models watch_calls watch_sink",
        "servers policy_check watch_session watch_screen",
        "backend embedded protocol jwt_claims jwt_keys requests watch_edit watch_panel",
        "auth pubsub store redis_url decisions watch_table",
        "wakes registry edits watch_vitals",
        "audit cancels grants progress once",
        "channel stream permissions audit_lines publisher readiness incoming",
        "ticks endpoint audit_file watch_answers",
        "hub tool_calls webhook",
        "notifier service responses watch api_errors",
        "mcp",
        "opening rights",
        "polling",
        "user_routes agent_routes pages",
        f"{ROOT} routes demo",
        "app",
        "serve",
        "demo_run",
        "cli",
        "__main__",
    )
)

# Modules that could be lifted into another project as they are: nothing of the package but what stands here.
PURE = {
    "access_log": frozenset[str](),
    "deadlines": frozenset[str](),
    "errors": frozenset[str](),
    "events": frozenset({"errors"}),
    "frames": frozenset[str](),
    "keys": frozenset({"errors"}),
    "nofile": frozenset[str](),
    "hosts": frozenset[str](),
    "settings": frozenset({"masking", "hosts"}),
    "masking": frozenset({"errors", "credential_forms", "credentials"}),
    "credentials": frozenset({"credential_forms"}),
    "credential_forms": frozenset[str](),
    "merge_patch": frozenset({"errors", "masking"}),
    "policy": frozenset({"policy_paths", "policy_patterns", "terminal"}),
    "policy_patterns": frozenset[str](),
    "policy_paths": frozenset[str](),
    "policy_lines": frozenset[str](),
    "appender": frozenset[str](),
    "sinks": frozenset({"frames"}),
    "event_sink": frozenset({"frames"}),
    "wheel": frozenset[str](),
    "terminal": frozenset[str](),
}

# Who may use which third-party package. What is not named here is used nowhere.
THIRD_PARTY = {
    "fastapi": {"agent_routes", "api_errors", "app", "pages", "rights", "routes", "user_routes"},
    "starlette": {"api_errors", "app", "mcp", "opening", "pages", "polling", "requests", "responses", "routes"},
    "uvicorn": {"held_head", "protocol", "serve", "mcp"},
    "redis": {"sentinels", "servers", "wire"},
    "hiredis": {"wire"},
    "jose": {"auth", "jwt_keys"},
    "pydantic": {
        "api_docs",
        "event_models",
        "incoming",
        "mcp",
        "notifier",
        "policy_form",
        "requests",
        "routes",
        "settings",
    },
    "pydantic_settings": {"settings"},
    "opentelemetry": {"requests"},
    "mcp": {"demo", "mcp"},
    "mcp_types": {"mcp"},
    "re2": {"policy_patterns", "credentials", "schema_keywords"},
    "jsonpath_rfc9535": {"policy_paths"},
    "jsonschema": {"json_schema", "schema_keywords"},
    "referencing": {"json_schema", "schema_keywords"},
    "httpx": {"endpoint", "mcp", "webhook"},
    "anyio": {"mcp"},
    "typer": {"cli"},
    "rich": {"watch", "watch_panel", "watch_screen", "watch_table"},
}

WEB = ("fastapi", "starlette", "uvicorn", "jose")


def _module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ROOT if parts == ("__init__",) else parts[0]


MODULES = {path: _module_of(path) for path in sorted(SOURCE.rglob("*.py"))}


def _imported(tree: ast.Module) -> set[str]:
    """Dotted names that a module imports when it runs: not those for type checkers, nor PEP 562's lazy ones."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            module = node.module or ""
            # `from agent_sse import events` imports a module, `from agent_sse.events import X` a name in one.
            found.update(f"{module}.{alias.name}" if module == ROOT else module for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def _inside(names: set[str]) -> set[str]:
    """The modules of this package among dotted names; the package itself is there when a name of it is imported."""
    known = set(MODULES.values())
    modules = set()
    for name in names:
        head, _, rest = name.partition(".")
        if head == ROOT:
            first = rest.partition(".")[0]
            modules.add(first if first in known else ROOT)
    return modules


def _outside(names: set[str]) -> set[str]:
    heads = {name.partition(".")[0] for name in names}
    return {head for head in heads if head not in sys.stdlib_module_names and head != ROOT}


def _rank(module: str) -> int:
    for rank, room in enumerate(ROOMS):
        if module in room:
            return rank
    raise AssertionError(f"{module} has no room: give it one in ROOMS, as low as it can live")


IMPORTS = {path: _imported(ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES}
by_module = pytest.mark.parametrize("path", list(MODULES), ids=lambda path: str(path.relative_to(SOURCE)))


@by_module
def test_module_imports_only_from_rooms_below(path: Path) -> None:
    """No module imports one of its own room or of a room above."""
    module = MODULES[path]
    upward = {other for other in _inside(IMPORTS[path]) if other != module and _rank(other) >= _rank(module)}
    assert set() == upward


@by_module
def test_module_uses_only_the_packages_that_it_may(path: Path) -> None:
    """A third-party package is imported only where the table allows it."""
    module = MODULES[path]
    forbidden = {package for package in _outside(IMPORTS[path]) if module not in THIRD_PARTY.get(package, set())}
    assert set() == forbidden


@pytest.mark.parametrize("module", list(PURE))
def test_pure_module_imports_nothing_else(module: str) -> None:
    """A pure module knows none of the package but what the table says, and neither Redis nor the web."""
    names = IMPORTS[SOURCE / f"{module}.py"]
    assert PURE[module] >= _inside(names)
    assert set() == _outside(names) & {"redis", *WEB}


def test_settings_are_built_only_by_entry_points() -> None:
    """`Settings()` reads the environment, so only the notifier's constructors and `load_settings` call it."""
    builders = {"Settings", "RedisSettings", "_Explicit"}
    callers = set()
    for path, module in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in builders:
                callers.add(module)
    assert {"notifier", "routes", "cli"} >= callers


@pytest.mark.parametrize("module", ["agent_sse", "agent_sse.notifier"])
def test_an_agents_import_loads_no_web_framework(module: str) -> None:
    """An agent's process that imports the notifier loads neither the web layer nor the token library."""
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "redis" in loaded  # the check looks at the right interpreter
    assert set() == loaded & set(WEB)


# -- Lua --------------------------------------------------------------------------------------------------------------

by_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)


def _header(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:end])


def _code(path: Path) -> str:
    """The script without its comments."""
    return re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))


def _heard_of(path: Path, word: str) -> set[int]:
    """The numbers of KEYS or ARGV that the script's header lists, those of the headers it refers to included."""
    header = _header(path)
    headers = [header, *(_header(SOURCE / "scripts" / name) for name in re.findall(r"\b\w+\.lua", header))]
    headers += [_header(SOURCE / "scripts" / "_session.lua"), _header(SOURCE / "scripts" / "_permissions.lua")]
    if "tick.lua" in header:
        headers.append(_header(SOURCE / "scripts" / "tick.lua"))
    return {int(number) for text in headers for number in re.findall(rf"{word}\[(\d+)\]", text)}


@by_script
def test_script_header_lists_keys_arguments_and_reply(path: Path) -> None:
    """The comment at a script's top names every key and argument that it uses, and what it returns."""
    header, code = _header(path), _code(path)
    assert "KEYS" in header
    if not path.name.startswith("_"):
        assert re.search(r"^-- Returns ", header, re.MULTILINE)
    for word in ("KEYS", "ARGV"):
        used = {int(number) for number in re.findall(rf"{word}\[(\d+)\]", code)}
        assert set() == used - _heard_of(path, word), word


@by_script
def test_script_arguments_stand_in_its_own_header(path: Path) -> None:
    """What is peculiar to a script (ARGV[6] and up) is explained in that very file."""
    used = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", _code(path)) if int(number) > 5}
    listed = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", _header(path))}
    assert set() == used - listed


def _key_names(code: str) -> set[str]:
    """Names that are nothing but a key: ``local a, b = KEYS[1], KEYS[2]``."""
    names: set[str] = set()
    for left, right in re.findall(r"^\s*local ([\w, ]+?) = ([^\n]*)$", code, re.MULTILINE):
        targets, values = [t.strip() for t in left.split(",")], [v.strip() for v in right.split(",")]
        names.update(t for t, v in zip(targets, values, strict=False) if re.fullmatch(r"KEYS\[\d+\]", v))
    return names


def _key_expressions(code: str) -> list[str]:
    """What stands in the key position of every ``redis.call(<command>, <key>, …)``."""
    found = []
    for match in re.finditer(r"redis\.p?call\(", code):
        depth, parts, start = 1, [], match.end()
        for at in range(match.end(), len(code)):
            character = code[at]
            depth += (character in "([{") - (character in ")]}")
            if depth == 0 or (depth == 1 and character == ","):
                parts.append(code[start:at].strip())
                start = at + 1
                if depth == 0:
                    break
        if len(parts) > 1:
            found.append(parts[1])
    return found


@by_script
def test_script_builds_no_key(path: Path) -> None:
    """A key position holds KEYS[n] or a name for one, so that a cluster can route the script."""
    common = [path.with_name("_session.lua"), path.with_name("_permissions.lua")]
    names = set().union(*(_key_names(_code(part)) for part in (*common, path)))
    assert {"events", "state", "requests"} <= names
    wrong = [
        key for key in _key_expressions(_code(path)) if key not in names and not re.fullmatch(r"KEYS\[(\d+|i)\]", key)
    ]
    assert [] == wrong


def test_scripts_key_check_sees_a_built_key() -> None:
    """The check above does find a key that is put together."""
    code = "local a, b = KEYS[1], tostring(KEYS[2])\nredis.call('GET', a) redis.call('SET', 'x:' .. f(a, 1), 1)"
    assert {"a"} == _key_names(code)
    assert ["a", "'x:' .. f(a, 1)"] == _key_expressions(code)
