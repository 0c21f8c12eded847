"""Tiny networks as in audio: one sample a step, one row, thousands of steps; and one step from Python.

    python bench/tiny.py
    python bench/tiny.py --cells GRU --hidden 16 --samples 48000 --no-peers

ns a step: of one call with all samples, and of calls with blocks of 64, the state given by the caller.  The last
column is one call of one step with `out=`, in us, the median of many, the clock included.  PyTorch and ONNX Runtime
stand beside, if they are installed; all engines run on one thread and take turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
from command import cell_names, heading, line, parser, prepare, sizes
from engines import Engine, Fastrnn, OnnxRuntime, Torch
from host import describe
from timing import interleave, medians
from workloads import CELLS, TOLERANCE, random_workload

import fastrnn

PEERS: list[type[Engine]] = [Torch, OnnxRuntime]
CALLS = 20_000
"""Single steps that are timed, each by itself."""


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    prepare(1, options.isa)
    host = describe(1)
    engines: list[type[Engine]] = [Fastrnn, *(peer for peer in PEERS if options.peers and peer.installed())]
    calls = [("seq", options.samples), ("step", options.block)]
    print(f"### One row, one input: ns a step\n\n{host['cpu']}; fastrnn on {host['isa']}\n")
    numbers = [f"{engine.name}, {count:,}" for _, count in calls for engine in engines]
    print(heading(["cell"], ["hidden", *numbers, "a step with out=, us"]), flush=True)
    for cell in options.cells:
        for hidden in options.hidden:
            ns = [each for mode, count in calls for each in measure(engines, mode, cell, count, hidden, options.rounds)]
            print(line([cell, hidden, *(f"{each:.0f}" for each in ns), f"{step_us(cell, hidden):.2f}"]), flush=True)
    return 0


def parse(argv: list[str] | None) -> Any:
    options = parser(__doc__)
    options.add_argument("--cells", type=cell_names, default=list(CELLS), metavar="LSTM,GRU,RNN")
    options.add_argument("--hidden", type=sizes, default=[8, 16, 24, 32], metavar="H,...")
    options.add_argument("--samples", type=int, default=48_000, metavar="T", help="of the one call")
    options.add_argument("--block", type=int, default=64, metavar="T", help="of the short calls")
    options.add_argument("--no-peers", dest="peers", action="store_false", help="fastrnn alone")
    options.add_argument("--isa")
    options.add_argument("--rounds", type=int, default=5, metavar="N")
    return options.parse_args(argv)


def measure(engines: list[type[Engine]], mode: str, cell: str, count: int, hidden: int, rounds: int) -> list[float]:
    """ns a step of each engine, in calls of ``count`` steps."""
    work = random_workload(mode, cell, (1, count, 1, hidden))
    built = {engine.name: engine(work, 1) for engine in engines}
    ours = built[Fastrnn.name].result()
    for name, engine in built.items():
        error = float(np.abs(engine.result() - ours).max())
        if not error < TOLERANCE:
            sys.exit(f"tiny.py: {name} differs by {error:.1e}, so its time would be that of another network")
    return [seconds * 1e9 / count for seconds in medians(interleave(built, rounds)).values()]


def step_us(cell: str, hidden: int) -> float:
    """One call of one step that writes into given arrays; the two states change places."""
    work = random_workload("step", cell, (1, 1, 1, hidden))
    layer = fastrnn.from_torch(work.rnn.weights)
    state, y = work.state if len(work.state) == 2 else work.state[0], np.empty((1, 1, hidden), np.float32)
    other = tuple(map(np.empty_like, state)) if isinstance(state, tuple) else np.empty_like(state)
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        layer(work.x, state, out=(y, other))
        taken.append(time.perf_counter_ns() - start)
        state, other = other, state
    return statistics.median(taken) / 1e3


if __name__ == "__main__":
    sys.exit(main())
