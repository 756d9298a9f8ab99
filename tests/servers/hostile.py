"""A server on standard input and output that misbehaves: `python hostile.py KIND`.

It reads lines as Python's SDK does, with universal newlines, and writes what it takes for a message to the file SEEN.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOL = {"inputSchema": {"type": "object"}}


def say(body: Any) -> None:
    say_raw(json.dumps({"jsonrpc": "2.0", **body}))


def say_raw(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def note(message: Any) -> None:
    with Path(os.environ["SEEN"]).open("a") as seen:
        params = message.get("params") or {}
        name = params.get("name") or params.get("cursor") or params.get("requestId")
        seen.write(json.dumps([message.get("method"), name, params.get("arguments")]) + "\n")


def tools(cursor: Any) -> dict[str, Any]:
    """Three pages; the annotations stand on the last."""
    page = int(cursor or 0)
    listed = [{"name": f"tool{page}", **TOOL}]
    if page == 2:
        return {"tools": [*listed, {"name": "late", "annotations": {"readOnlyHint": True}, **TOOL}]}
    return {"tools": listed, "nextCursor": str(page + 1)}


def die(text: str, status: int) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(status)


def content(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


def crash(request: Any) -> None:
    die("out of \x1b[31mmemory", 4)


def kill_itself(request: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def close_output(request: Any) -> None:
    os.close(1)
    time.sleep(600)


def garbage(request: Any) -> None:
    for line in ("Server 1.0 \x1b[2J ready", "{", "[1, 2]", '"text"', "", "null", '{"jsonrpc": "2.0"', "\ud800"):
        sys.stdout.buffer.write(line.encode(errors="surrogatepass") + b"\n")
    sys.stdout.buffer.write(b"\xff\xfe\x00\n" * 100)
    say({"id": request["id"], "result": content("after all")})


def unreadable(request: Any) -> None:
    sys.stdout.buffer.write(b'{"jsonrpc": "2.0", "id": %d, "result": {"content": "\xff"}}\n' % request["id"])
    sys.stdout.buffer.flush()


def confess(request: Any) -> None:
    sys.stdout.write("using API_KEY=sk-proj-abcdefghijklmnopqrstuvwxyz0123456789\n")
    sys.stdout.flush()
    die("cannot log in with password=hunter2hunter2 at postgres://me:hunter2hunter2@db/x", 4)


def large(size: int) -> Callable[[Any], None]:
    return lambda request: say({"id": request["id"], "result": content("x" * size)})


def never(request: Any) -> None:
    pass


def by_name(request: Any) -> None:
    """Do as the tool's name says; every kind of server does so."""
    name = request["params"]["name"]
    if name.startswith("progress-"):
        token = request["params"]["_meta"]["progressToken"]
        say({"method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
    acts = {"crash": crash, "kill": kill_itself, "mute": close_output, "garbage": garbage, "large": large(50_000_000),
            "toolarge": large(70_000_000), "hang": never, "unreadable": unreadable, "confess": confess}  # fmt: skip
    for part, act in acts.items():
        if part in name.split("-"):
            act(request)
            return
    if "error" in name:
        say({"id": request["id"], "error": {"code": -32000, "message": "as asked", "data": {"x": 1}}, "extra": 1})
    elif "progress" in name:
        token = request["params"]["_meta"]["progressToken"]
        params = {"progressToken": token, "progress": 1, "total": 2, "message": "half", "extra": True}
        say({"method": "notifications/progress", "params": params})
        say({"id": request["id"], "result": content("told")})
    else:
        say({"id": request["id"], "result": {**content("ran"), "extra": {"a": None}}, "beside": [1]})


def answer(kind: str, request: Any) -> None:
    method, params = request.get("method"), request.get("params") or {}
    if method == "initialize":
        version = "1999-01-01" if kind == "version" else params["protocolVersion"]
        info = {"name": kind, "version": "1"}
        say({"id": request["id"], "result": {"protocolVersion": version, "capabilities": {}, "serverInfo": info}})
        if kind == "early":  # answers what nobody has asked it
            say({"id": 1, "result": content("early")})
            say({"id": "1", "result": content("early")})
    elif method == "tools/list":
        say({"id": request["id"], "result": tools(params.get("cursor"))})
    elif method == "tools/call":
        by_name(request)
    elif method == "vendor/die":
        die("asked to", 5)
    elif method == "vendor/changed":
        say({"method": "notifications/tools/list_changed"})
        say({"id": request["id"], "result": {}})
    elif "id" in request and method != "vendor/hang":
        say({"id": request["id"], "result": {}})


def main(kind: str) -> None:
    if kind == "crash-at-once":
        die("no configuration", 3)
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import signal, time\nsignal.signal(15, 1)\ntime.sleep(600)"])
    if kind == "loud":
        sys.stderr.write("noise\n" * 20_000)
    for line in sys.stdin:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        for one in message if isinstance(message, list) else [message]:
            note(one)
            answer(kind, one)
    if kind == "deaf":
        time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
