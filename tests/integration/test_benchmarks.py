"""The benchmarks run, and lose nothing: tiny sizes, every workload, no times."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import processes_with

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("agent-sse", "agent-sse-asgi", "sse-starlette")
FLOORS = {"fanout": ("floor",), "sessions": ("floor", "floor-redis")}  # they only send
FIGURES = {
    "fanout": {"cpu_us", "redis_cpu_us", "p50_ms", "p99_ms", "events", "lost", "doubled"},
    "sessions": {"cpu_us", "net_us", "intake_us", "redis_cpu_us", "p50_ms", "p99_ms", "events", "lost", "doubled"},
    "idle": {"kib", "cpu_percent", "redis_cpu_percent", "heartbeats_per_s", "streams", "ended"},
    "storm": {
        f"{crowd}_{life}_{figure}"
        for crowd in ("distinct", "one")
        for life in ("cold", "warm")
        for figure in ("per_s", "per_core", "redis_us", "surplus", "broken")
    },
}
OURS = {
    "crowd": {"kib", "streams", "ended"},
    "publish": {
        f"{loop}{figure}"
        for loop in ("", "asyncio_")
        for figure in ("per_s", "cpu_us", "lone_us", "evalsha_us", "lone_ratio")
    },
    "receive": {f"{way}_{pace}_us" for way in ("bare", "ours", "over_bare", "pubsub") for pace in ("single", "burst")},
    "guard": {"stdio_added_ms", "http_added_ms", "calls"}
    | {f"{way}_{name}" for way in ("direct", "stdio", "http") for name in ("p50_ms", "p95_ms", "cpu_us", "lost")},
    "growth": {
        f"{figure}_{size}"
        for figure in ("cpu_us", "redis_cpu_us", "p50_ms", "p99_ms", "kib", "lost")
        for size in (5, 20)
    },
}
WORD = f"bench-{os.getpid()}-"
WRONG = ("lost", "doubled", "broken", "surplus", "ended")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the whole benchmark with tiny sizes; what it wrote."""
    folder = tmp_path_factory.mktemp(WORD)
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--smoke",
        "--rounds",
        "1",
        "--peers",
        ",".join((*PEERS, *FLOORS["sessions"])),
    ]
    command += ["--json", str(folder / "results.json"), "--plot", str(folder / "plot.png")]
    environment = {**os.environ, "TMPDIR": str(folder)}  # which every process of the run inherits
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return {**content, "printed": done.stdout, "plot": (folder / "plot.png").read_bytes()}


def test_benchmarks_measure_every_figure_of_every_peer(smoke: dict[str, Any]) -> None:
    """Every workload gives every number, for both sinks, for the peer, and for the floor where it takes part."""
    medians = smoke["medians"]
    for workload, figures in FIGURES.items():
        for peer in (*PEERS, *FLOORS.get(workload, ())):
            assert set() == figures - medians[workload][peer].keys(), (workload, peer)
    for workload, figures in OURS.items():
        assert set() == figures - medians[workload]["agent-sse"].keys(), workload
    values = [value for peers in medians.values() for found in peers.values() for value in found.values()]
    assert [] == [value for value in values if not math.isfinite(value)]


def test_benchmarks_lose_and_double_nothing(smoke: dict[str, Any]) -> None:
    """Every event reached every stream once and in order, under every workload."""
    assert [] == [
        (workload, peer, name, value)
        for one in smoke["rounds"]
        for workload, peers in one.items()
        for peer, found in peers.items()
        for name, value in found.items()
        if value != 0 and any(part in WRONG for part in name.split("_"))
    ]


def test_benchmarks_print_machine_table_and_goals_and_draw(smoke: dict[str, Any]) -> None:
    """What was measured on, the one table, the goals, and the picture are there."""
    printed = smoke["printed"]
    for text in (
        "machine   ",
        "versions  ",
        "agent-sse",
        "lost, doubled or",
        "reached",
        "this ÷ C, from Redis",
        "this was a smoke run",
    ):
        assert text in printed
    assert smoke["goals"]
    assert {"cpu", "kernel", "memory"} <= smoke["machine"].keys()
    assert b"\x89PNG\r\n" == smoke["plot"][:6]


@pytest.mark.usefixtures("smoke")
def test_benchmarks_leave_nothing_behind() -> None:
    """Every process that a run starts has ended when it has."""
    assert processes_with("pytest")  # so that finding nothing means something
    assert {} == processes_with(WORD)
