"""The run as a picture for the README: six small charts on a light ground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.report import Medians
from benchmarks.workloads import Sizes

COLOURS = {
    "agent-sse": "#1f6feb", "agent-sse-asgi": "#79b0f5", "nchan": "#2f7d4f", "nchan-redis": "#7dbb93",
    "sse-starlette": "#c9772b", "fastapi": "#e3b27f", "floor": "#8c959f", "floor-redis": "#c4cad0",
}  # fmt: skip
INK, FAINT = "#24292f", "#8c959f"
LABELS = {peer.name: peer.label for peer in PEERS}


def draw(found: Medians, sizes: Sizes, path: Path, caption: str) -> None:
    """Write the PNG. Raises ImportError without matplotlib (the extra `bench`)."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    )
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), dpi=130, facecolor="white")
    fan, sessions, latency, storm, memory, growth = axes.flat
    _bars(fan, found.get("fanout", {}), "cpu_us", f"CPU per event, 1 session × {sizes.fanout_clients} clients (µs)")
    _bars(
        sessions,
        found.get("sessions", {}),
        "cpu_us",
        f"CPU per event, {sizes.sessions:,} sessions × 1\n(µs; light: publish not counted)",
        inner="net_us",
    )
    _bars(
        latency,
        found.get("sessions", {}),
        "p99_ms",
        "publish to client, p99 (ms, light: p50)",
        inner="p50_ms",
        log=True,
    )
    _bars(storm, found.get("storm", {}), "distinct_cold_per_core", "resumes with replay per second and core", more=True)
    _bars(memory, found.get("idle", {}), "kib", "memory per idle stream (KiB)")
    _growth(growth, found.get("growth", {}), sizes)
    figure.text(0.01, 0.008, caption, fontsize=7.5, color=FAINT)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, facecolor="white")
    plt.close(figure)


def _bars(
    axes: Any, peers: Any, name: str, title: str, *, inner: str = "", log: bool = False, more: bool = False
) -> None:
    """Draw one bar for each peer; ``inner`` is a second figure within it, drawn light."""
    shown = [peer.name for peer in PEERS if name in peers.get(peer.name, {})]
    values = [peers[peer][name] for peer in shown]
    places = range(len(shown))
    axes.barh(places, values, color=[COLOURS[peer] for peer in shown], height=0.68)
    if inner:
        parts = [peers[peer].get(inner, 0) if peers[peer].get(inner, 0) < peers[peer][name] else 0 for peer in shown]
        axes.barh(places, parts, color="white", alpha=0.55, height=0.68)
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {value:,.0f}" if value >= 100 else f" {value:.3g}", va="center", fontsize=8)
    axes.set_yticks(places, [LABELS[peer] for peer in shown])
    axes.invert_yaxis()
    if log and values:  # an empty axis has no logarithm
        axes.set_xscale("log")
    axes.margins(x=0.18)
    axes.set_title(f"{title}\n{'more' if more else 'less'} is better", fontsize=9, loc="left")
    _plain(axes)


def _growth(axes: Any, peers: Any, sizes: Sizes) -> None:
    for peer, figures in peers.items():
        values = [figures.get(f"cpu_us_{streams}") for streams in sizes.growth]
        axes.plot(sizes.growth, values, marker="o", color=COLOURS[peer], label=LABELS[peer])
    if peers:
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xticks(sizes.growth, [f"{streams:,}" for streams in sizes.growth])
        axes.minorticks_off()
    axes.set_title("CPU per event over open streams (µs)\nflat is better", fontsize=9, loc="left")
    if peers:
        axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.set_facecolor("white")
