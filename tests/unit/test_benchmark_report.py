"""The benchmarks' arithmetic, with made-up figures: medians, what was lost, and which goals hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the benchmarks are in the repository, not in the package

from benchmarks import __main__ as run
from benchmarks import report
from benchmarks.peers import PEERS
from benchmarks.workloads import Sizes

SIZES = Sizes(growth=(100, 1000, 10_000))
# Of each pair that a goal compares, both are told apart: a ratio the wrong way round gives another number.
FOUND = {
    "fanout": {
        "agent-sse": {"cpu_us": 6.0}, "nchan": {"cpu_us": 10.0}, "sse-starlette": {"cpu_us": 42.0},
        "floor": {"cpu_us": 5.0},
    },
    "sessions": {
        "agent-sse": {"cpu_us": 20.0, "p50_ms": 1.0, "p99_ms": 3.0},
        "nchan-redis": {"cpu_us": 50.0, "net_us": 25.0, "p50_ms": 10.0, "p99_ms": 12.0},
        "sse-starlette": {"cpu_us": 100.0},
        "floor-redis": {"cpu_us": 15.0, "p50_ms": 0.5, "p99_ms": 1.5},
    },
    "idle": {"agent-sse": {"kib": 15.0}, "nchan": {"kib": 12.0}},
    "storm": {
        "agent-sse": {
            "distinct_cold_per_core": 3000.0, "one_cold_per_core": 4000.0, "distinct_warm_per_core": 3500.0,
            "one_warm_per_core": 4500.0,
        },
        "sse-starlette": {"distinct_cold_per_core": 250.0},
    },
    "publish": {"agent-sse": {"per_s": 16_000.0, "lone_ratio": 1.4}},
    "receive": {"agent-sse": {"over_bare_single_us": 5.0}},
    "guard": {"agent-sse": {"stdio_added_ms": 3.5, "http_added_ms": 4.5}},
    "growth": {
        "agent-sse": {
            "cpu_us_100": 20.0, "cpu_us_1000": 30.0, "cpu_us_10000": 21.0,
            "redis_cpu_us_100": 50.0, "redis_cpu_us_1000": 60.0, "redis_cpu_us_10000": 70.0,
        },
        "floor-redis": {"cpu_us_100": 8.0, "cpu_us_1000": 9.0, "cpu_us_10000": 10.0},
        "nchan-redis": {"cpu_us_100": 50.0, "cpu_us_1000": 55.0, "cpu_us_10000": 60.0},
    },
}  # fmt: skip
REACHED = [
    ("CPU per event, 1 session × 500 ÷ nchan", 0.6, True),
    ("  at best: C, sends only ÷ the same", 0.5, None),
    ("  this ÷ C, sends only", 1.2, None),
    ("CPU per event, 1,000 sessions ÷ nchan with Redis, publish taken off", 0.8, True),
    ("  the same, nothing taken off (no goal)", 0.4, None),
    ("  at best: C, from Redis ÷ the same", 0.6, None),
    ("  this ÷ C, from Redis", 4 / 3, None),
    ("latency p50 ÷ nchan with Redis", 0.1, True),
    ("  at best: C, from Redis ÷ the same", 0.05, None),
    ("  this ÷ C, from Redis", 2.0, None),
    ("latency p99 ÷ nchan with Redis", 0.25, False),
    ("  at best: C, from Redis ÷ the same", 0.125, None),
    ("  this ÷ C, from Redis", 2.0, None),
    ("memory per idle stream, KiB", 15.0, True),
    ("  stretch: ÷ nchan", 1.25, False),
    ("storm, own sessions: resumes/s and core", 3000.0, True),
    ("storm, one session: resumes/s and core", 4000.0, False),
    ("storm, own sessions, once warm (no goal)", 3500.0, None),
    ("storm, one session, once warm (no goal)", 4500.0, None),
    ("storm, own sessions ÷ sse-starlette", 12.0, True),
    ("CPU per event from 100 to 10,000 streams: most ÷ least", 1.5, False),
    ("  the same of Redis itself, for the same events", 1.4, None),
    ("  the same of C, from Redis", 1.25, None),
    ("  the same of nchan, Redis", 1.2, None),
    ("sse-starlette ÷ this, CPU per event, 1 session × 500", 7.0, True),
    ("sse-starlette ÷ this, CPU per event, 1,000 sessions", 5.0, False),
    ("receiving a message, µs over the bare parse", 5.0, True),
    ("acknowledged events per second, 64 tasks", 16_000.0, True),
    ("a lone publish ÷ bare evalsha", 1.4, False),
    ("guard: added to an allowed call's median, ms", 3.5, False),
    ("  host over HTTP, HTTP included (no goal)", 4.5, None),
]


def test_goals_are_the_right_ratios_and_verdicts() -> None:
    """Each goal sets its own two figures in the right order, and is held on the right side of its bound."""
    goals = report.goals(FOUND, SIZES)
    assert REACHED == [(goal.text, pytest.approx(goal.value), goal.held) for goal in goals]
    assert {False} == {"held" in line for line in report.goal_lines(goals) if "(no goal)" in line}


def test_goals_that_were_not_measured_are_said_to_be_so() -> None:
    """A missing figure, one of three sizes too, makes neither a verdict nor a silence."""
    goals = report.goals({"growth": {"agent-sse": {"cpu_us_100": 20.0, "cpu_us_10000": 21.0}}}, SIZES)
    assert {None} == {goal.value for goal in goals} == {goal.held for goal in goals}
    bounded = [goal.text for goal in goals if goal.bound is not None]
    lines = report.goal_lines(goals)[1:]
    assert len(bounded) == len(lines)
    assert all(line.endswith("not measured") for line in lines)


def test_medians_are_taken_figure_by_figure_over_the_rounds_that_have_it() -> None:
    """A figure measured in the first round only stands; of three the middle one does."""
    rounds = [
        {"idle": {"nchan": {"kib": 9.0}}, "crowd": {"agent-sse": {"kib": 7.0}}},
        {"idle": {"nchan": {"kib": 1.0}}},
        {"idle": {"nchan": {"kib": 2.0}}},
    ]
    assert {"idle": {"nchan": {"kib": 2.0}}, "crowd": {"agent-sse": {"kib": 7.0}}} == report.medians(rounds)


def test_a_loss_in_one_round_of_three_is_counted_and_fails_the_run() -> None:
    """What was lost, doubled, surplus, broken or ended is summed over rounds and workloads, whatever its sign."""
    good = {"fanout": {"agent-sse": {"cpu_us": 6.0, "lost": 0.0}, "nchan": {"lost": 0.0}}}
    bad = {
        "fanout": {"agent-sse": {"cpu_us": 6.0, "lost": 2.0}, "nchan": {"doubled": 1.0}},
        "storm": {"agent-sse": {"one_cold_surplus": -3.0, "distinct_warm_broken": 4.0}},
        "growth": {"agent-sse": {"lost_100": 5.0}},
        "idle": {"agent-sse": {"ended": 6.0}},
    }
    rounds = [good, bad, good]
    assert (20, 1, 0) == tuple(report.wrong(rounds, peer) for peer in ("agent-sse", "nchan", "fastapi"))
    assert ["agent-sse, direct: 20 lost, doubled or out of order"] == report.our_losses(rounds)
    assert [] == report.our_losses([good, good])
    last = report.table(report.medians(rounds), SIZES, rounds)[-1]
    assert ["20", "1"] == last.split()[-2:]


def test_only_whole_runs_of_three_rounds_without_failure_are_published() -> None:
    """Every reason not to write the published files is said; a machine without nchan is none."""
    assert [] == run.unpublished(run.arguments([]), [])
    assert ["fewer than 3 rounds"] == run.unpublished(run.arguments(["--rounds", "1"]), [])
    assert ["something failed, see below"] == run.unpublished(run.arguments([]), ["lost"])
    few = ",".join(peer.name for peer in PEERS[1:])
    options = run.arguments(["--smoke", "--only", "fanout", "--peers", few])
    assert 3 == len(run.unpublished(options, []))
