"""A batcher under load for long: every answer is checked, none may be lost or come twice, and memory stays flat.

    python tests/soak_batcher.py --requests 1000000
    python tests/soak_batcher.py --minutes 10

Requests of random lengths and priorities come from three threads; some are cancelled at random moments, some expire,
some break the call that they are in.  The exit code is 1 where an answer is wrong or memory grows by a tenth.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from load import Load, break_on_poison, layer

import fastrnn

ROUND = 50_000


def resident() -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=1_000_000)
    options.add_argument("--minutes", type=float, help="go on for so long instead")
    args = options.parse_args(argv)
    network = layer()
    began = time.monotonic()
    done, memory = 0, list[float]()
    with fastrnn.Batcher(network, max_batch=64) as batcher:
        break_on_poison(batcher)
        load = Load(batcher, network)
        while (time.monotonic() - began < 60 * args.minutes) if args.minutes else (done < args.requests):
            share = ROUND if args.minutes else min(ROUND, args.requests - done)
            load.run(share)
            done += share
            memory.append(resident())
            print(f"{done:>10,} requests  {time.monotonic() - began:6.0f} s  {memory[-1]:.1f} MiB", flush=True)
    load.check(done)
    print(", ".join(f"{count:,} {outcome}" for outcome, count in sorted(load.outcomes.items())), "- 0 lost, 0 twice")
    print(batcher.stats())
    if memory[-1] > 1.1 * memory[0]:
        print(f"memory has grown from {memory[0]:.1f} to {memory[-1]:.1f} MiB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
