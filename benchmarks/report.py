"""What a run prints and writes: medians over the rounds, one table, the goals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.peers import PEERS
from benchmarks.workloads import Figures, Sizes

# workload → peer → figure → median
Medians = Mapping[str, Mapping[str, Mapping[str, float]]]
Rounds = Sequence[Mapping[str, Mapping[str, Figures]]]  # of each round: workload → peer → figures
WRONG = frozenset({"lost", "doubled", "broken", "surplus", "ended"})  # words of the names of what must be 0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure of a workload."""

    workload: str
    figure: str
    label: str
    decimals: int = 1


@dataclass(frozen=True, slots=True)
class Goal:
    """What was to be reached, and what the medians of this run say. ``value`` is None when it was not measured.

    Without a ``bound`` it is no goal, but says what one of those above it is worth.
    """

    text: str
    bound: float | None
    at_most: bool
    value: float | None

    @property
    def held(self) -> bool | None:
        """Whether it holds; None when it was not measured, or is no goal."""
        if self.value is None or self.bound is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def medians(rounds: Rounds) -> dict[str, dict[str, dict[str, float]]]:
    """Return each figure's median over the rounds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for one in rounds:
        for workload, peers in one.items():
            for peer, figures in peers.items():
                for name, value in figures.items():
                    found.setdefault(workload, {}).setdefault(peer, {}).setdefault(name, []).append(value)
    return {
        workload: {
            peer: {name: statistics.median(values) for name, values in figures.items()}
            for peer, figures in peers.items()
        }
        for workload, peers in found.items()
    }


def sections(sizes: Sizes) -> dict[str, tuple[str, list[Row]]]:
    """Return the table's parts: a heading for each workload, and its lines."""
    grown = [f"{streams:,}" for streams in sizes.growth]

    def growing(figure: str, label: str, decimals: int = 1) -> list[Row]:
        pairs = zip(sizes.growth, grown, strict=True)
        return [Row("growth", f"{figure}_{size}", f"{label:18}{shown:>7} streams", decimals) for size, shown in pairs]

    return {
        "fanout": (
            f"1 session × {sizes.fanout_clients} clients, {sizes.fanout_rate:g} events/s",
            [
                Row("fanout", "cpu_us", "CPU per event delivered, µs"),
                Row("fanout", "p50_ms", "latency p50, ms"),
                Row("fanout", "p99_ms", "latency p99, ms"),
            ],
        ),
        "sessions": (
            f"{sizes.sessions:,} sessions × 1 client, {sizes.sessions_rate:,.0f} events/s",
            [
                Row("sessions", "cpu_us", "CPU per event delivered, µs"),
                Row("sessions", "intake_us", "  of it: taking the publish by HTTP"),
                Row("sessions", "net_us", "  the rest: delivering it"),
                Row("sessions", "redis_cpu_us", "CPU of Redis per event, µs"),
                Row("sessions", "p50_ms", "latency p50, ms", 2),
                Row("sessions", "p99_ms", "latency p99, ms", 2),
            ],
        ),
        "idle": (
            f"{sizes.idle_streams:,} idle streams, a heartbeat every {sizes.idle_heartbeat:g} s",
            [
                Row("idle", "kib", "memory per stream, KiB"),
                Row("crowd", "kib", "  all on one session, KiB"),
                Row("idle", "cpu_percent", "CPU, % of a core"),
                Row("idle", "streams", "streams", 0),
            ],
        ),
        "storm": (
            "reconnect storm: resumes with a cursor 50 events back, per second and core",
            [
                Row("storm", "distinct_cold_per_core", "each its own session, tokens new", 0),
                Row("storm", "distinct_warm_per_core", "  the same clients again", 0),
                Row("storm", "one_cold_per_core", "all on one session, tokens new", 0),
                Row("storm", "one_warm_per_core", "  the same clients again", 0),
                Row("storm", "distinct_cold_per_s", "each its own session, per second by the clock", 0),
                Row("storm", "distinct_cold_redis_us", "  CPU of Redis per resume, µs", 0),
                Row("storm", "clients", "clients", 0),
            ],
        ),
        "publish": (
            f"publishing from one process, {sizes.publish_tasks} tasks, and alone (uvloop)",
            [
                Row("publish", "per_s", "acknowledged events per second", 0),
                Row("publish", "cpu_us", "the agent's CPU per event, µs"),
                Row("publish", "lone_us", "one `await publish`, µs", 0),
                Row("publish", "evalsha_us", "redis-py's bare `evalsha`, µs", 0),
                Row("publish", "asyncio_per_s", "on asyncio's own loop: events per second", 0),
                Row("publish", "asyncio_cpu_us", "  the agent's CPU per event, µs"),
                Row("publish", "asyncio_lone_us", "  one `await publish`, µs", 0),
                Row("publish", "asyncio_evalsha_us", "  redis-py's bare `evalsha`, µs", 0),
            ],
        ),
        "receive": (
            "receiving from Redis, CPU per message in µs, one at a time",
            [
                Row("receive", "bare_single_us", "bare hiredis parse"),
                Row("receive", "ours_single_us", "this project's subscriber"),
                Row("receive", "ours_burst_us", "  in bursts of 50"),
                Row("receive", "pubsub_single_us", "redis-py's PubSub"),
                Row("receive", "pubsub_burst_us", "  in bursts of 50"),
            ],
        ),
        "guard": (
            "an MCP tool call that is allowed, through `agent-sse guard`, one at a time",
            [
                Row("guard", "direct_p50_ms", "without it, p50, ms", 2),
                Row("guard", "stdio_p50_ms", "host on standard input and output, p50, ms", 2),
                Row("guard", "stdio_p95_ms", "  p95, ms", 2),
                Row("guard", "stdio_added_ms", "  added to the median, ms", 2),
                Row("guard", "stdio_cpu_us", "  the guard's CPU per call, µs", 0),
                Row("guard", "http_p50_ms", "host over HTTP, p50, ms", 2),
                Row("guard", "http_p95_ms", "  p95, ms", 2),
                Row("guard", "http_added_ms", "  added to the median, HTTP included, ms", 2),
            ],
        ),
        "growth": (
            f"growth at {sizes.growth_rate:,.0f} events/s",
            [
                *growing("cpu_us", "CPU per event, µs"),
                *growing("redis_cpu_us", "Redis' CPU, µs"),
                *growing("p50_ms", "p50, ms", 2),
                *growing("p99_ms", "p99, ms", 2),
                *growing("kib", "KiB per stream"),
            ],
        ),
    }


def table(found: Medians, sizes: Sizes, rounds: Rounds) -> list[str]:
    """Return the lines of the table: one column for each peer that was measured."""
    peers = [peer for peer in PEERS if any(peer.name in one for one in found.values())]
    width = 14
    lines = [" " * 48 + "".join(f"{name:>{width}}" for name in _heads([peer.label for peer in peers], 0))]
    lines.append(" " * 48 + "".join(f"{name:>{width}}" for name in _heads([peer.label for peer in peers], 1)))
    for workload, (heading, rows) in sections(sizes).items():
        if workload not in found:
            continue
        lines += ["", heading]
        for row in rows:
            values = [found.get(row.workload, {}).get(peer.name, {}).get(row.figure) for peer in peers]
            if any(value is not None for value in values):
                cells = ["–" if value is None else f"{value:,.{row.decimals}f}" for value in values]
                lines.append(f"  {row.label:46}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines += [
        "",
        f"  {'lost, doubled or out of order':46}" + "".join(f"{wrong(rounds, p.name):>{width}}" for p in peers),
    ]
    return lines


def _heads(labels: Sequence[str], part: int) -> list[str]:
    return [[*label.split(", "), ""][part] for label in labels]


def wrong(rounds: Rounds, peer: str) -> int:
    """Return how many events a peer lost, doubled or put out of order, over all rounds: medians hide that."""
    return round(
        sum(
            abs(value)
            for one in rounds
            for peers in one.values()
            for name, value in peers.get(peer, {}).items()
            if not WRONG.isdisjoint(name.split("_"))
        )
    )


def our_losses(rounds: Rounds) -> list[str]:
    """Return what this project's own columns lost, doubled or put out of order, as failures of the run."""
    counts = {peer.label: wrong(rounds, peer.name) for peer in PEERS if peer.ours}
    return [f"{label}: {count:,} lost, doubled or out of order" for label, count in counts.items() if count]


def goals(found: Medians, sizes: Sizes) -> list[Goal]:
    """Return what this project wants to reach, as ratios in this run."""

    def get(workload: str, peer: str, figure: str) -> float | None:
        return found.get(workload, {}).get(peer, {}).get(figure)

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None or below <= 0 else above / below

    def ours(workload: str, figure: str) -> float | None:
        return get(workload, "agent-sse", figure)

    def versus(workload: str, figure: str, peer: str, other: str = "") -> float | None:
        return ratio(ours(workload, figure), get(workload, peer, other or figure))

    def at_best(workload: str, figure: str, floor: str, peer: str, other: str = "") -> list[Goal]:
        label = next(known.label for known in PEERS if known.name == floor)
        best = ratio(get(workload, floor, figure), get(workload, peer, other or figure))
        return [
            Goal(f"  at best: {label} ÷ the same", None, True, best),
            Goal(f"  this ÷ {label}", None, True, versus(workload, figure, floor)),
        ]

    def starlette(workload: str) -> float | None:
        return ratio(get(workload, "sse-starlette", "cpu_us"), ours(workload, "cpu_us"))

    def spread(peer: str, figure: str = "cpu_us") -> float | None:
        grown = [get("growth", peer, f"{figure}_{streams}") for streams in sizes.growth]
        known = [value for value in grown if value is not None]
        return ratio(max(known), min(known)) if len(known) == len(grown) else None

    between = f"{min(sizes.growth):,} to {max(sizes.growth):,} streams"
    net = versus("sessions", "cpu_us", "nchan-redis", "net_us")
    stormed = versus("storm", "distinct_cold_per_core", "sse-starlette")
    return [
        Goal("CPU per event, 1 session × 500 ÷ nchan", 0.65, True, versus("fanout", "cpu_us", "nchan")),
        *at_best("fanout", "cpu_us", "floor", "nchan"),
        Goal("CPU per event, 1,000 sessions ÷ nchan with Redis, publish taken off", 1.0, True, net),
        Goal("  the same, nothing taken off (no goal)", None, True, versus("sessions", "cpu_us", "nchan-redis")),
        *at_best("sessions", "cpu_us", "floor-redis", "nchan-redis", "net_us"),
        Goal("latency p50 ÷ nchan with Redis", 0.2, True, versus("sessions", "p50_ms", "nchan-redis")),
        *at_best("sessions", "p50_ms", "floor-redis", "nchan-redis"),
        Goal("latency p99 ÷ nchan with Redis", 0.2, True, versus("sessions", "p99_ms", "nchan-redis")),
        *at_best("sessions", "p99_ms", "floor-redis", "nchan-redis"),
        Goal("memory per idle stream, KiB", 16.0, True, ours("idle", "kib")),
        Goal("  stretch: ÷ nchan", 1.15, True, versus("idle", "kib", "nchan")),
        Goal("storm, own sessions: resumes/s and core", 2500.0, False, ours("storm", "distinct_cold_per_core")),
        Goal("storm, one session: resumes/s and core", 5000.0, False, ours("storm", "one_cold_per_core")),
        Goal("storm, own sessions, once warm (no goal)", None, False, ours("storm", "distinct_warm_per_core")),
        Goal("storm, one session, once warm (no goal)", None, False, ours("storm", "one_warm_per_core")),
        Goal("storm, own sessions ÷ sse-starlette", 5.0, False, stormed),
        Goal(f"CPU per event from {between}: most ÷ least", 1.2, True, spread("agent-sse")),
        Goal("  the same of Redis itself, for the same events", None, True, spread("agent-sse", "redis_cpu_us")),
        Goal("  the same of C, from Redis", None, True, spread("floor-redis")),
        Goal("  the same of nchan, Redis", None, True, spread("nchan-redis")),
        Goal("sse-starlette ÷ this, CPU per event, 1 session × 500", 6.0, False, starlette("fanout")),
        Goal("sse-starlette ÷ this, CPU per event, 1,000 sessions", 6.0, False, starlette("sessions")),
        Goal("receiving a message, µs over the bare parse", 6.0, True, ours("receive", "over_bare_single_us")),
        Goal("acknowledged events per second, 64 tasks", 15_000.0, False, ours("publish", "per_s")),
        Goal("a lone publish ÷ bare evalsha", 1.3, True, ours("publish", "lone_ratio")),
        Goal("guard: added to an allowed call's median, ms", 3.0, True, ours("guard", "stdio_added_ms")),
        Goal("  host over HTTP, HTTP included (no goal)", None, True, ours("guard", "http_added_ms")),
    ]  # fmt: skip


def goal_lines(found: Sequence[Goal]) -> list[str]:
    """Return the goals as a second, small table."""
    lines = [f"{'goal':70}{'':>12}{'reached':>12}"]
    for goal in found:
        if goal.value is None and goal.bound is None:
            continue
        bound = "" if goal.bound is None else f"{'≤' if goal.at_most else '≥'} {goal.bound:,g}"
        value = "–" if goal.value is None else f"{goal.value:,.2f}"
        verdict = {None: "", True: "  held", False: "  NOT held"}[goal.held]
        lines.append(f"{goal.text:70}{bound:>12}{value:>12}{'  not measured' if goal.value is None else verdict}")
    return lines


def goals_as_json(found: Sequence[Goal]) -> list[dict[str, object]]:
    """Return the goals for the JSON file."""
    return [{**asdict(goal), "held": goal.held} for goal in found]
