"""How time and memory grow: with threads, steps, rows and padding.

    python bench/scaling.py
    python bench/scaling.py --only threads --cells LSTM

threads   a call on 2 threads against 1, the smallest first; above 1 the threads gain
steps     one row, 64 units, 100 to 100,000 steps: ns a step
rows      20 steps, 64 units, 1 to 4,096 rows: ns a step of a row
ragged    32 rows of 200 steps, 128 units, ever fewer of them real: ns a real step
memory    KiB that a call of 1,000 and of 100,000 steps takes beyond its input and output, in a process of its own

Calls of a line take turns, the median of the rounds counts.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from command import cell_names, heading, line, parser, prepare
from host import cpu_model
from timing import interleave, medians, ratio
from workloads import CELLS, random_workload

import fastrnn
from fastrnn.spec import GATES

BATCHES = (1, 4, 32)
SHAPES = [(10, 32), (100, 32), (4, 64), (20, 64), (100, 64), (10, 128), (100, 128), (20, 256), (100, 256), (100, 512)]
"""Steps and units of the calls on several threads: on one thread from a few us to 100 ms."""

STEPS = (100, 1_000, 10_000, 100_000)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
MEMORY_STEPS = (1_000, 100_000)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    prepare(options.threads, options.isa)
    print(f"{cpu_model()}, fastrnn on {fastrnn.info()['isa']}")
    for name in options.only or SECTIONS:
        SECTIONS[name](options)
    return 0


def parse(argv: list[str] | None) -> Any:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    options.add_argument("--cells", type=cell_names, default=list(CELLS), metavar="LSTM,GRU,RNN")
    options.add_argument("--threads", type=int, default=2, metavar="N", help="of the section threads")
    options.add_argument("--isa")
    options.add_argument("--rounds", type=int, default=7, metavar="N")
    return options.parse_args(argv)


def layer(cell: str, hidden: int, threads: int = 1) -> Any:
    weights = random_workload("seq", cell, (1, 1, hidden, hidden)).rnn.weights
    return fastrnn.from_torch(weights, threads=threads)


def call(net: Any, batch: int, seq_len: int, lengths: np.ndarray | None = None) -> Callable[[], object]:
    x = np.random.default_rng(0).standard_normal((batch, seq_len, net.input_size), np.float32)
    return lambda: net(x, lengths=lengths)


# ---- Sections ----


def threads(options: Any) -> None:
    def work(case: tuple[str, int, int, int]) -> int:
        cell, batch, seq_len, hidden = case
        return len(GATES[cell.lower()]) * batch * seq_len * hidden**2

    many = options.threads
    print(f"\n### {many} threads against 1\n")
    print(heading(["cell", "split"], ["batch", "steps", "hidden", "1 thread us", f"{many} threads us", "gain"]))
    smallest = float("inf")
    for case in sorted(((c, b, *s) for c in options.cells for b in BATCHES for s in SHAPES), key=work):
        cell, batch, seq_len, hidden = case
        nets = {count: layer(cell, hidden, count) for count in (1, many)}
        split = nets[many].explain(batch, seq_len)["split"]
        times = interleave({str(count): call(net, batch, seq_len) for count, net in nets.items()}, options.rounds)
        gain = ratio(times, str(many))
        smallest = min(smallest, gain if split != "none" else smallest)
        us = [f"{seconds * 1e6:.1f}" for seconds in medians(times).values()]
        print(line([cell, split, batch, seq_len, hidden, *us, f"**{gain:.2f}**"]), flush=True)
    print(f"\nSmallest gain of a call that is split: {smallest:.2f}.")


def steps(options: Any) -> None:
    def calls(cell: str) -> dict[str, tuple[Callable[[], object], int]]:
        net = layer(cell, 64)
        return {f"{count:,}": (call(net, 1, count), count) for count in STEPS}

    flat("ns a step, by steps (batch 1, 64 units)", calls, options)


def rows(options: Any) -> None:
    def calls(cell: str) -> dict[str, tuple[Callable[[], object], int]]:
        net = layer(cell, 64)
        return {f"{batch:,}": (call(net, batch, 20), 20 * batch) for batch in ROWS}

    flat("ns a step of a row, by rows (20 steps, 64 units)", calls, options)


def ragged(options: Any) -> None:
    def calls(cell: str) -> dict[str, tuple[Callable[[], object], int]]:
        net, found = layer(cell, 128), {}
        for share in SHARES:
            lengths = spread(32, 200, share)
            found[f"{lengths.mean() / 200:.0%}"] = (call(net, 32, 200, lengths), int(lengths.sum()))
        return found

    flat("ns a real step, by the share of real steps (32 rows of 200, 128 units)", calls, options)


def spread(batch: int, seq_len: int, share: float) -> np.ndarray:
    """Lengths from seq_len down to 1, their mean about ``share`` of seq_len.

    >>> spread(5, 100, 1.0), spread(5, 100, 0.5)
    (array([100, 100, 100, 100, 100]), array([100,  75,  50,  25,   1]))
    """
    return (seq_len * np.linspace(1, 0, batch) ** (1 / share - 1)).astype(np.int64).clip(1)


def flat(title: str, calls: Callable[[str], Mapping[str, tuple[Callable[[], object], int]]], options: Any) -> None:
    """A table of what should be the same in a line: ns by the number that belongs to each call."""
    print(f"\n### {title}\n")
    for first, cell in enumerate(options.cells):
        found = calls(cell)
        if not first:
            print(heading(["cell"], found))
        times = medians(interleave({name: run for name, (run, _) in found.items()}, options.rounds))
        print(line([cell, *(f"{times[name] * 1e9 / count:.1f}" for name, (_, count) in found.items())]), flush=True)


def memory(options: Any) -> None:
    print("\n### KiB beyond input and output, by steps (64 units)\n")
    print(heading(["cell"], ["batch", *(f"{count:,}" for count in MEMORY_STEPS)]))
    for cell in options.cells:
        for batch in (1, 8):
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                found = pool.starmap(kib_of_call, [(cell, batch, count) for count in MEMORY_STEPS], chunksize=1)
            print(line([cell, batch, *found]), flush=True)


def kib_of_call(cell: str, batch: int, seq_len: int) -> int:
    """How far a first call raises the peak of this process; everything that it is given is there before."""
    net, x = layer(cell, 64), np.ones((batch, seq_len, 64), np.float32)
    state = np.ones((1, batch, 64), np.float32)
    out = (np.ones_like(x), (state, state.copy()) if cell == "LSTM" else state)
    before = peak_kib()
    net(x, out=out)
    return peak_kib() - before


def peak_kib() -> int:
    """Of this process; getrusage would also count the process that started it."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


SECTIONS = {"threads": threads, "steps": steps, "rows": rows, "ragged": ragged, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())
