"""`python -m benchmarks`: run, print, write. See README.md for what is measured and what is not fair."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, nchan, report
from benchmarks.compiler import compiled
from benchmarks.peers import PEERS, Peer
from benchmarks.programs import ROOT, Failure
from benchmarks.workloads import SMOKE, WORKLOADS, Figures, Lab, Sizes

JSON = ROOT / "benchmarks" / "results.json"
PLOT = ROOT / "docs" / "benchmarks.png"
Round = dict[str, dict[str, Figures]]  # workload → peer → figures
PUBLISHED_ROUNDS = 3  # a median of fewer is none
QUIET_LOAD = 0.5  # of the machine before a run; with more, others' work is in the latencies


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Measure this project beside its peers.",
        epilog=f"A whole run of {PUBLISHED_ROUNDS} rounds or more writes {JSON.relative_to(ROOT)} and "
        f"{PLOT.relative_to(ROOT)}, others what is asked for.",
    )  # fmt: skip
    parser.add_argument(
        "--only", type=_names(WORKLOADS), default=list(WORKLOADS), help="workloads: " + ",".join(WORKLOADS)
    )
    known = [peer.name for peer in PEERS]
    parser.add_argument("--peers", type=_names(known), default=known, help="peers: " + ",".join(known))
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are taken (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: whether everything works, not how fast")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--plot", type=Path, help="where the picture goes")
    return parser.parse_args(argv)


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return names

    return parse


def present(names: Sequence[str]) -> list[Peer]:
    """Return the peers that can run here; say which cannot, and why."""
    peers = [peer for peer in PEERS if peer.name in names]
    if any(peer.start is nchan.start for peer in peers) and nchan.find_module() is None:
        print(f"nchan is left out: it cannot be installed here (Debian, Ubuntu: {' '.join(nchan.PACKAGES)})")
        peers = [peer for peer in peers if peer.start is not nchan.start]
    return peers


def run(lab: Lab, names: Sequence[str], peers: Sequence[Peer], rounds: int) -> tuple[list[Round], list[str]]:
    """Run every workload for every peer, all in each round; return each round's figures, and what failed."""
    found: list[Round] = []
    failures: list[str] = []
    for number in range(1, rounds + 1):
        one: Round = {}
        found.append(one)
        for name in names:
            workload = WORKLOADS[name]
            for peer in peers:
                if not workload.takes(peer, number):
                    continue
                what = f"round {number} of {rounds}: {name}, {peer.label}"
                begin = time.monotonic()
                try:
                    one.setdefault(name, {})[peer.name] = workload.run(lab, peer)
                except Failure as failure:  # the others' figures are still worth having
                    print(f"{what}: {failure}", file=sys.stderr, flush=True)
                    failures.append(f"{what}: {str(failure).partition(chr(10))[0]}")
                    continue
                except KeyboardInterrupt:  # what there is by now is shown
                    return found, [*failures, f"{what}: interrupted"]
                print(f"{what}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return found, failures


def main(argv: Sequence[str]) -> int:
    """Run as the command line says; return the exit status."""
    options = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended in order
    sizes = SMOKE if options.smoke else Sizes()
    peers = present(options.peers)
    begin = time.monotonic()
    hardware = machine.describe()
    print("machine   " + "; ".join(f"{name} {value}" for name, value in hardware.items()))
    versions = machine.versions()
    print("versions  " + ", ".join(f"{name} {value}" for name, value in versions.items()), flush=True)
    if float(hardware["load_before"]) > QUIET_LOAD:
        print("This machine is busy: the latencies are not this run's alone.", flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-sse-bench")))
        folder.chmod(0o755)
        lab = Lab(compiled("load", folder), folder, sizes, stack, {})
        rounds, failures = run(lab, options.only, peers, options.rounds)
    if not options.smoke and machine.tree() != hardware["commit"]:
        failures.append("src or benchmarks was changed during the run: these figures belong to no one commit")
    failures += report.our_losses(rounds)
    found = report.medians(rounds)
    if not found:
        print(*failures, sep="\n")
        return 1
    reached = report.goals(found, sizes)
    print("", *report.table(found, sizes, rounds), "", *report.goal_lines(reached), sep="\n")
    minutes = (time.monotonic() - begin) / 60
    print(f"\nmedians of at most {len(rounds)} rounds (README.md: where of fewer), {minutes:.1f} minutes")
    content = {
        "machine": hardware, "versions": versions, "sizes": asdict(sizes), "medians": found,
        "goals": report.goals_as_json(reached), "failures": failures, "rounds": rounds,
    }  # fmt: skip
    if reasons := unpublished(options, failures):
        print(f"{JSON.relative_to(ROOT)} and {PLOT.relative_to(ROOT)} are left as they are: {', '.join(reasons)}")
    else:
        options.json, options.plot = options.json or JSON, options.plot or PLOT
    write(options, content, sizes)
    print(*failures, sep="\n")
    return 1 if failures else 0


def unpublished(options: argparse.Namespace, failures: Sequence[str]) -> list[str]:
    """Return why a run's figures are not the published ones; nothing when they are, even where nchan is missing."""
    reasons = {
        "this was a smoke run": options.smoke,
        "not all workloads were asked for": set(options.only) != set(WORKLOADS),
        "not all peers were asked for": set(options.peers) != {peer.name for peer in PEERS},
        f"fewer than {PUBLISHED_ROUNDS} rounds": options.rounds < PUBLISHED_ROUNDS,
        "something failed, see below": bool(failures),
    }
    return [reason for reason, holds in reasons.items() if holds]


def write(options: argparse.Namespace, content: dict[str, Any], sizes: Sizes) -> None:
    """Write the JSON and the picture, where they are wanted."""
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {options.json.name}")
    if options.plot is not None:
        from benchmarks.plot import draw

        versions = content["versions"]
        names = ("agent-sse", "nchan", "sse-starlette", "fastapi", "python")
        caption = ", ".join(f"{name} {versions[name]}" for name in names if versions[name] != "–")
        caption += f"; {content['machine']['cpu']}; medians of at most {options.rounds} rounds in one run"
        try:
            draw(content["medians"], sizes, options.plot, caption)
            print(f"wrote {options.plot.name}")
        except ImportError:
            print("no picture: that needs matplotlib (the extra `bench`)")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        sys.exit(f"benchmarks: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
