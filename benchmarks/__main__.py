"""`python -m benchmarks`: run, print, write. See README.md for what is measured and what is not fair."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.load import compile_load
from benchmarks.peers import PEERS
from benchmarks.programs import Failure
from benchmarks.workloads import SMOKE, WORKLOADS, Lab, Sizes


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, comma-separated")
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), help="peers, comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: whether it works, not how fast")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers = [peer for peer in PEERS if peer.name in arguments.peers.split(",")]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-sse-bench")))
        folder.chmod(0o755)
        lab = Lab(compile_load(folder), folder, SMOKE if arguments.smoke else Sizes(), stack, {})
        for number in range(arguments.rounds):
            for name in arguments.only.split(","):
                workload = WORKLOADS[name]
                for peer in peers:
                    if workload.peers is not None and peer.name not in workload.peers:
                        continue
                    figures = workload.run(lab, peer)
                    shown = "  ".join(f"{key}={value:.4g}" for key, value in figures.items())
                    print(f"{number + 1} {name:9} {peer.name:15} {shown}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"benchmarks: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
