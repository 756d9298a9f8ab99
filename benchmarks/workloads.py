"""The workloads. Each is run for one peer at a time and returns its figures by name; sizes are all in `Sizes`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import Peer
from benchmarks.stage import Stage, delivery

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: clients, sessions, events a second, seconds; ``light`` is for peers that fall behind."""

    fanout_clients: int = 500
    fanout_rate: float = 40.0
    fanout_seconds: float = 5.0
    light_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Lab:
    """Where measurements happen: the compiled load, a directory, the sizes."""

    load: Path
    folder: Path
    sizes: Sizes


def fanout(lab: Lab, peer: Peer) -> Figures:
    """One session, many clients: what one delivery costs when the event is the same for all."""
    sizes = lab.sizes
    clients = sizes.fanout_clients
    seconds = sizes.light_seconds if peer.light else sizes.fanout_seconds
    with Stage(lab.load, lab.folder, peer) as stage:
        load = stage.load([peer.request("b0", subject=f"u{i}") for i in range(clients)])
        load.open()
        count = max(1, round(sizes.fanout_rate * seconds))
        return delivery(stage, load, ["b0"], rate=sizes.fanout_rate, count=count, copies=clients)


WORKLOADS: dict[str, Callable[[Lab, Peer], Figures]] = {"fanout": fanout}
