"""What the guard adds to a tool call that its policy allows: the same calls to the same server with and without it.

One call at a time, in turns over all ways, so that a slow moment of the machine meets all of them.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.programs import Failure, Process, cpu_seconds, environment, free_port
from benchmarks.redis_server import RedisServer

ECHO = [sys.executable, "-m", "benchmarks.apps.echo"]
POLICY = 'version = 1\ndefault = "allow"\n'
TURN = 50  # calls
ARGUMENTS = {"path": "src/example.py", "content": "x" * 200}
VERSION = "2025-11-25"

Exchange = Callable[[dict[str, Any]], dict[str, Any]]  # a request to its answer; {} for a notification


class StdioServer(Process):
    """A server, or a guard in front of it, on its standard input and output."""

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, and return the answer to a request."""
        stdin, stdout = self.popen.stdin, self.popen.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            os.write(stdin.fileno(), json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise Failure(f"it has ended:\n{self.last_words()}") from None
        if "id" not in message:
            return {}
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(stdout.fileno(), 1 << 20)
            if not part:
                raise Failure(f"it has ended:\n{self.last_words()}")
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer


class HttpServer:
    """A guard over streamable HTTP, on one connection that stays."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, and return the answer to a request."""
        self._connection.request("POST", "/mcp", json.dumps(message).encode(), self._headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status not in (200, 202):
            raise Failure(f"HTTP {response.status}: {body[:200]!r}")
        if session := response.getheader("Mcp-Session-Id"):
            self._headers |= {"Mcp-Session-Id": session, "MCP-Protocol-Version": VERSION}
        answer: dict[str, Any] = json.loads(body) if body else {}
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Way:
    """One way to the server: how long its calls took, and how many did not return what they should."""

    def __init__(self, exchange: Exchange, pid: int) -> None:
        self.seconds: list[float] = []
        self.lost = 0
        self.cpu = 0.0
        self._exchange = exchange
        self._pid = pid
        self._count = 0
        client = {"name": "bench", "version": "1"}
        params = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": client}
        self._exchange({"jsonrpc": "2.0", "id": "init", "method": "initialize", "params": params})
        self._exchange({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def call(self, count: int) -> None:
        """Call the tool so often, one call after the other."""
        before = cpu_seconds([self._pid])
        for _ in range(count):
            self._count += 1
            params = {"name": "echo", "arguments": {**ARGUMENTS, "number": self._count}}
            begun = time.perf_counter()
            answer = self._exchange({"jsonrpc": "2.0", "id": self._count, "method": "tools/call", "params": params})
            self.seconds.append(time.perf_counter() - begun)
            told = [json.dumps(params["arguments"])]
            self.lost += told != [part["text"] for part in answer.get("result", {}).get("content", ())]
        self.cpu += cpu_seconds([self._pid]) - before

    def forget(self) -> None:
        """Measure from here on."""
        self.seconds, self.cpu = [], 0.0

    def figures(self, name: str) -> dict[str, float]:
        """Return what was measured. Times in ms, CPU of the process at this end of the way in µs per call."""
        cuts = statistics.quantiles(self.seconds, n=20)
        return {
            f"{name}_p50_ms": statistics.median(self.seconds) * 1e3, f"{name}_p95_ms": cuts[-1] * 1e3,
            f"{name}_cpu_us": self.cpu / len(self.seconds) * 1e6, f"{name}_lost": float(self.lost),
        }  # fmt: skip


def added_by_guard(folder: Path, calls: int) -> dict[str, float]:
    """Return the latencies of ``calls`` tool calls to the server itself, and through a guard from each kind of host."""
    policy = folder / "allow.toml"
    policy.write_text(POLICY, "utf-8")
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder))
        guard = [sys.executable, "-m", "agent_sse", "guard", "--session", "bench", "--policy", str(policy)]
        env = environment(AGENT_SSE_REDIS_URL=redis.url)

        def run(name: str, command: list[str], *, talk: bool) -> StdioServer:
            return stack.enter_context(StdioServer(command, folder / f"{name}.log", env=env, talk=talk))

        port = free_port()
        over_http = run("http", [*guard, "--http", str(port), "--", *ECHO], talk=False)
        direct, over_stdio = run("direct", ECHO, talk=True), run("stdio", [*guard, "--", *ECHO], talk=True)
        over_http.wait_for_port(port)
        client = HttpServer(port)
        stack.callback(client.close)
        ways = {
            "direct": Way(direct.exchange, direct.pid), "stdio": Way(over_stdio.exchange, over_stdio.pid),
            "http": Way(client.exchange, over_http.pid),
        }  # fmt: skip
        _in_turns(ways, TURN)
        for way in ways.values():
            way.forget()
        _in_turns(ways, calls)
    found = {name: value for way_name, way in ways.items() for name, value in way.figures(way_name).items()}
    for name in ("stdio", "http"):
        found[f"{name}_added_ms"] = found[f"{name}_p50_ms"] - found["direct_p50_ms"]
    return {**found, "calls": float(calls)}


def _in_turns(ways: dict[str, Way], calls: int) -> None:
    for begun in range(0, calls, TURN):
        for way in ways.values():
            way.call(min(TURN, calls - begun))
