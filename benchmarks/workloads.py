"""The workloads. Each is run for one peer at a time and returns its figures by name; what they are is in report.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.guard import added_by_guard
from benchmarks.history import History
from benchmarks.load import Load
from benchmarks.peers import PEERS, Peer
from benchmarks.receive import compare
from benchmarks.redis_server import RedisServer
from benchmarks.stage import Stage, command, delivery, publisher_process, wait_for_publisher

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: clients, sessions, events a second, seconds; ``light`` is for peers that fall behind."""

    fanout_clients: int = 500
    fanout_rate: float = 40.0
    fanout_seconds: float = 4.0
    sessions: int = 1000
    sessions_rate: float = 4000.0
    sessions_seconds: float = 4.0
    light_seconds: float = 1.0
    idle_streams: int = 10_000
    idle_light: int = 500
    idle_heartbeat: float = 3.0
    storm_clients: int = 5000
    storm_others: int = 2000
    storm_light: int = 1000
    storm_width: int = 1000
    publish_tasks: int = 64
    publish_seconds: float = 3.0
    publish_lone: int = 2000
    receive_messages: int = 10_000
    guard_calls: int = 1000
    growth: tuple[int, ...] = (100, 1000, 10_000)
    growth_rate: float = 4000.0
    growth_seconds: float = 12.0  # a tick's least interval: what is left out of a stream's share of them is little
    rest: float = 2.5  # s; this project writes a session's count of streams up to 2 s after they have come


SMOKE = Sizes(
    fanout_clients=10, fanout_rate=100.0, fanout_seconds=0.2, sessions=20, sessions_rate=400.0, sessions_seconds=0.2,
    light_seconds=0.2, idle_streams=20, idle_light=20, idle_heartbeat=0.3, storm_clients=20, storm_others=20,
    storm_light=20, storm_width=10, publish_tasks=4, publish_seconds=0.2, publish_lone=50, receive_messages=500,
    growth=(5, 20), growth_rate=400.0, growth_seconds=0.1, guard_calls=20, rest=0.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lab:
    """Where measurements happen: the compiled load, a directory, the sizes, and what lasts for the whole run."""

    load: Path
    folder: Path
    sizes: Sizes
    stack: ExitStack
    histories: dict[str, History]

    def history(self, peer: Peer) -> History:
        """Return the events that a storm replays, written once for all peers that read the same."""
        kind = peer.history
        if kind not in self.histories:
            self.histories[kind] = self.stack.enter_context(
                History(self.load, self.folder, peer, clients_of(self, peer))
            )
        return self.histories[kind]


def clients_of(lab: Lab, peer: Peer) -> int:
    """Return how many clients storm a peer."""
    sizes = lab.sizes
    return sizes.storm_clients if peer.ours else sizes.storm_light if peer.light else sizes.storm_others


def names(count: int) -> list[str]:
    """Return session ids."""
    return [f"b{index}" for index in range(count)]


def fanout(lab: Lab, peer: Peer) -> Figures:
    """One session, many clients: what one delivery costs when the event is the same for all."""
    sizes = lab.sizes
    clients = sizes.fanout_clients
    seconds = sizes.light_seconds if peer.light else sizes.fanout_seconds
    with Stage(lab.load, lab.folder, peer) as stage:
        load = stage.load([peer.request("b0", subject=f"u{i}") for i in range(clients)])
        load.open()
        stage.settle()
        count = max(1, round(sizes.fanout_rate * seconds))
        return delivery(stage, load, ["b0"], rate=sizes.fanout_rate, count=count, copies=clients)


def sessions(lab: Lab, peer: Peer) -> Figures:
    """Many sessions, one client each: what one event costs from its publisher to its one client."""
    sizes = lab.sizes
    ids = names(sizes.sessions)
    count = round(sizes.sessions_rate * (sizes.light_seconds if peer.light else sizes.sessions_seconds))
    with Stage(lab.load, lab.folder, peer) as stage:
        # nchan takes the publishes itself, by HTTP; the others' come through Redis. What that costs with nobody
        # listening is told apart, and taken off for the comparison: measured before and after.
        intake = _intake(stage, ids, sizes.sessions_rate, count // 2)
        load = stage.load([peer.request(session) for session in ids])
        load.open()
        stage.settle()
        time.sleep(sizes.rest)
        figures = delivery(stage, load, ids, rate=sizes.sessions_rate, count=count, copies=1)
        load.close()
        stage.settle()
        figures["intake_us"] = (intake + _intake(stage, ids, sizes.sessions_rate, count // 2)) / 2
        figures["net_us"] = figures["cpu_us"] - figures["intake_us"]
        return figures


def _intake(stage: Stage, ids: list[str], rate: float, count: int) -> float:
    """Return the CPU µs that taking a publish costs when nobody listens; 0 where it is not the service's work."""
    if not stage.peer.publishes_to_itself:
        return 0.0
    stage.publish(ids, rate, min(count, len(ids)))  # the channels are made
    before = stage.cpu
    stage.publish(ids, rate, count)
    return (stage.cpu - before) / count * 1e6


def idle(lab: Lab, peer: Peer) -> Figures:
    """Streams on which nothing happens but heartbeats: their memory, and what the heartbeats cost."""
    return _idle(lab, peer, shared=False)


def crowd(lab: Lab, peer: Peer) -> Figures:
    """The same with all of them on one session."""
    return _idle(lab, peer, shared=True)


def _idle(lab: Lab, peer: Peer, *, shared: bool) -> Figures:
    sizes = lab.sizes
    count = sizes.idle_light if peer.light else sizes.idle_streams
    with Stage(lab.load, lab.folder, peer, heartbeat=sizes.idle_heartbeat) as stage:
        rss, load = open_streams(stage, peer, ["b0"] * count if shared else names(count))
        time.sleep(sizes.idle_heartbeat)  # the first heartbeats find their pace
        figures = {"streams": float(count), "kib": (stage.rss - rss) / count}
        load.reset()
        before, redis_before, begin = stage.cpu, stage.redis_cpu, time.monotonic()
        time.sleep(2 * sizes.idle_heartbeat)
        elapsed = time.monotonic() - begin
        report = load.report()
        figures["cpu_percent"] = (stage.cpu - before) / elapsed * 100
        figures["redis_cpu_percent"] = (stage.redis_cpu - redis_before) / elapsed * 100
        figures["heartbeats_per_s"] = report["heartbeats"] / elapsed
        figures["ended"] = float(report["ended"])
        return figures


def open_streams(stage: Stage, peer: Peer, ids: list[str]) -> tuple[int, Load]:
    """Open a stream per session id; return the service's memory before (KiB) and the load."""
    # What a first stream brings in (code paths, pools, caches' frames) is no cost per stream.
    stage.load([peer.request(f"first{index}") for index in range(min(50, len(ids)))]).open()
    stage.settle()
    rss = stage.rss
    load = stage.load([peer.request(session, subject=f"u{index}") for index, session in enumerate(ids)])
    load.open(timeout=120)
    stage.settle()
    return rss, load


def storm(lab: Lab, peer: Peer) -> Figures:
    """Everybody comes back at once with a cursor 50 events back: each client has its own token, each gets its 50."""
    history = lab.history(peer)
    clients = clients_of(lab, peer)
    figures: Figures = {"clients": float(clients)}
    crowds = {
        "distinct": [peer.request(s, cursor=c) for s, c in zip(history.sessions, history.cursors, strict=True)],
        "one": [peer.request(history.sessions[0], subject=f"u{i}", cursor=history.cursors[0]) for i in range(clients)],
    }
    for name, requests in crowds.items():
        with history.stage(peer) as stage:
            load = stage.load(requests[:clients])
            for life in ("cold", "warm"):
                load.reset()
                before, redis_before = stage.cpu, stage.redis_cpu
                answer = load.open(width=lab.sizes.storm_width, each=history.replayed, timeout=120)
                cpu = stage.cpu - before
                figures[f"{name}_{life}_per_s"] = clients / answer["seconds"]
                figures[f"{name}_{life}_per_core"] = clients / cpu
                figures[f"{name}_{life}_redis_us"] = (stage.redis_cpu - redis_before) / clients * 1e6
                figures[f"{name}_{life}_surplus"] = float(answer["events"] - clients * history.replayed)
                figures[f"{name}_{life}_broken"] = float(answer["lost"] + answer["doubled"])
                load.close()
                stage.settle()
    return figures


def publish(lab: Lab, peer: Peer) -> Figures:
    """What an agent's process can publish: many tasks at once, and one event at a time beside redis-py's bare call."""
    plain = {f"asyncio_{name}": value for name, value in _publish(lab, "asyncio").items()}
    return {**_publish(lab, "uvloop"), **plain}


def _publish(lab: Lab, loop: str) -> Figures:
    sizes = lab.sizes
    with RedisServer(lab.folder) as redis, publisher_process(lab.folder, "notifier", redis.url, loop) as publisher:
        wait_for_publisher(publisher)
        before = redis.cpu
        many = command(publisher, "throughput", 60, tasks=sizes.publish_tasks, seconds=sizes.publish_seconds)
        redis_share = (redis.cpu - before) / (sizes.publish_seconds * 1.2)
        lone = command(publisher, "lone", 60, count=sizes.publish_lone)
    return {
        "per_s": many["per_second"], "cpu_us": many["cpu_us"], "redis_cpu_percent": redis_share * 100,
        "lone_us": lone["publish_us"], "evalsha_us": lone["evalsha_us"],
        "lone_ratio": lone["publish_us"] / lone["evalsha_us"],
    }  # fmt: skip


def receive(lab: Lab, peer: Peer) -> Figures:
    """What a message from Redis costs this process to receive: bare parse, this project's way, redis-py's PubSub."""
    path = lab.folder / "receive.sock"
    figures: Figures = {}
    with (
        RedisServer(lab.folder, "--unixsocket", str(path)),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        for name, burst in (("single", 1), ("burst", 50)):
            bare, ours, _, pubsub = runner.run(compare(f"unix://{path}", lab.sizes.receive_messages, burst, 1)).values()
            figures |= {f"bare_{name}_us": bare, f"ours_{name}_us": ours, f"pubsub_{name}_us": pubsub}
            figures[f"over_bare_{name}_us"] = ours - bare
    return figures


def guard(lab: Lab, peer: Peer) -> Figures:
    """What the guard adds to a tool call that its policy allows."""
    return added_by_guard(lab.folder, lab.sizes.guard_calls)


def growth(lab: Lab, peer: Peer) -> Figures:
    """The same rate of events over more and more sessions with one stream each."""
    sizes = lab.sizes
    figures: Figures = {}
    for streams in sizes.growth:
        ids = names(streams)
        with Stage(lab.load, lab.folder, peer) as stage:
            rss, load = open_streams(stage, peer, ids)
            figures[f"kib_{streams}"] = (stage.rss - rss) / streams
            time.sleep(sizes.rest)
            count = round(sizes.growth_rate * sizes.growth_seconds)
            found = delivery(stage, load, ids, rate=sizes.growth_rate, count=count, copies=1)
            for key in ("cpu_us", "redis_cpu_us", "p50_ms", "p99_ms", "lost", "doubled"):
                figures[f"{key}_{streams}"] = found[key]
    return figures


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload and who takes part: the names of the peers, None for all.

    Figures that are steady and take long need not be taken in every round: ``rounds`` says in how many (None: in all),
    and the peers of ``few`` are measured in the first ``few_rounds`` only.
    """

    run: Callable[[Lab, Peer], Figures]
    peers: frozenset[str] | None = None
    rounds: int | None = None
    few: frozenset[str] = frozenset()
    few_rounds: int = 1

    def takes(self, peer: Peer, number: int) -> bool:
        """Tell whether a peer is measured in round ``number``, from 1."""
        if self.peers is not None and peer.name not in self.peers:
            return False
        if peer.name in self.few and number > self.few_rounds:
            return False
        return self.rounds is None or number <= self.rounds


SERVICES = frozenset(peer.name for peer in PEERS if not peer.bare)
OTHERS = frozenset(peer.name for peer in PEERS if not peer.ours)
LIGHT = frozenset(peer.name for peer in PEERS if peer.light)
OURS = frozenset({"agent-sse"})
# A whole run has to end within 15 minutes: fewer rounds are where figures are steady or far from a goal.
WORKLOADS = {
    # From Redis there is one message for 500 clients: that floor is the other one.
    "fanout": Workload(fanout, SERVICES | {"floor"}, few=LIGHT, few_rounds=2),
    "sessions": Workload(sessions, few=LIGHT, few_rounds=2),
    "idle": Workload(idle, SERVICES, rounds=2, few=LIGHT),
    "crowd": Workload(crowd, OURS, rounds=1),
    "storm": Workload(storm, SERVICES, few=OTHERS),
    "publish": Workload(publish, OURS),
    "receive": Workload(receive, OURS),
    "guard": Workload(guard, OURS),
    "growth": Workload(growth, OURS | {"nchan-redis", "floor-redis"}, few=OTHERS),
}
