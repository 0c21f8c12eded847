"""Shapes and variants beside the plain ones: where is fastrnn slower than the work explains?

    python bench/shapes.py
    python bench/shapes.py --cells LSTM --batches 1 --only layers

Each row is timed in turns with plain layers, which have I = H, one direction, one layer and standard activations, at
the same batch and steps.  What they explain:

  size          the time between the next smaller and the next larger plain H (multiples of 64; 16 and 32 below),
                by FLOPs; beyond the ends continued
  input         the line through the plain layer of the same H and one with I = 2 H, or half of a large I, by FLOPs
  other         the time of the plain layer of the same H, by FLOPs; for one step at least the time in which a core
                can read all the weights (ceilings.py)

FLOPs are those of all matrix products, with H rounded up to 8, and of real steps only.  The cliff is the time by what
is explained, the median of the rounds; above 1.3 it is marked.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from c_program import compiler
from ceilings import measure as measure_core
from command import cell_names, heading, line, parser, prepare, sizes
from host import cpu_model
from timing import interleave
from workloads import CELLS, ragged_lengths

import fastrnn
from fastrnn.spec import GATES

CLIFF = 1.3
PLAIN = [16, 32, *range(64, 4096, 64)]
WORK = 2e8
"""FLOPs of a call, about: large layers get fewer steps."""


@dataclass(frozen=True)
class Case:
    """A layer and how it is called."""

    name: str
    hidden: int
    input: int = 0  # 0: as hidden
    cells: tuple[str, ...] = CELLS
    layers: int = 1
    directions: int = 1
    projection: int = 0
    peephole: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    step: bool = False
    ragged: bool = False

    @property
    def input_size(self) -> int:
        return self.input or self.hidden

    @property
    def output_size(self) -> int:
        return self.projection or self.hidden

    def flops(self, cell: str) -> int:
        """Of the products of one step of one row."""
        hidden = -(-self.hidden // 8) * 8
        gates, output = len(GATES[cell.lower()]), self.projection or hidden
        total = 0
        for layer in range(self.layers):
            columns = (self.directions * output if layer else self.input or hidden) + output
            total += 2 * self.directions * (gates * hidden * columns + self.projection * hidden)
        return total


SIZES = [Case("size", hidden) for hidden in (8, 20, 24, 100, 128, 200, 512, 650, 896, 1024, 1500)]
LSTM, GRU, RNN = (("LSTM",), ("GRU",), ("RNN",))
VARIANTS = [
    Case("input", 128, 1),
    Case("input", 512, 8),
    Case("input", 64, 1024),
    Case("input", 128, 4096),
    Case("bidirectional", 128, directions=2),
    Case("bidirectional", 512, directions=2),
    Case("2 layers", 128, layers=2),
    Case("3 layers", 256, layers=3),
    Case("4 layers", 128, layers=4),
    Case("2 layers, bidirectional", 128, layers=2, directions=2),
    Case("2 layers, one step", 128, layers=2, step=True),
    Case("3 layers, one step", 256, layers=3, step=True),
    Case("3 layers, one step", 960, layers=3, step=True),
    Case("projection", 512, cells=LSTM, projection=128),
    Case("projection", 1024, cells=LSTM, projection=256),
    Case("peephole", 128, cells=LSTM, peephole=True),
    Case("coupled gates", 128, cells=LSTM, options={"coupled_input_forget": True}),
    Case("hard_sigmoid", 128, cells=("LSTM", "GRU"), options={"gate_activation": ("hard_sigmoid", 1 / 6, 0.5)}),
    Case("reset before", 128, cells=GRU, options={"reset_after": False}),
    Case("reset before", 512, cells=GRU, options={"reset_after": False}),
    Case("relu", 128, cells=RNN, options={"activation": "relu"}),
    Case("relu", 512, cells=RNN, options={"activation": "relu"}),
    Case("clip", 128, options={"clip": 3.0}),
    Case("time first", 128, options={"batch_first": False}),
    Case("ragged", 128, ragged=True),
]


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    prepare(options.threads, options.isa)
    fastrnn.set_num_threads(options.threads)
    print(f"### Shapes, {cpu_model()}, fastrnn on {fastrnn.info()['isa']}, threads: {options.threads}\n")
    print(heading(["", "cell"], ["batch", "steps", "input", "hidden", "us", "explained us", "cliff"]), flush=True)
    cliffs = []
    for case in (case for case in (*SIZES, *VARIANTS) if options.only in case.name):
        for cell in (cell for cell in case.cells if cell in options.cells):
            for batch in options.batches:
                steps = steps_of(case, cell, batch)
                us, explained, cliff = measure(case, cell, batch, steps, options.rounds)
                marked = f"**{cliff:.2f}**" if cliff > CLIFF else f"{cliff:.2f}"
                shape = (batch, steps, case.input_size, case.hidden)
                print(line([case.name, cell, *shape, f"{us:.1f}", f"{explained:.1f}", marked]), flush=True)
                cliffs.append(cliff)
    print(f"\n{sum(cliff > CLIFF for cliff in cliffs)} of {len(cliffs)} above {CLIFF}.")
    return 0


def parse(argv: list[str] | None) -> Any:
    options = parser(__doc__)
    options.add_argument("--cells", type=cell_names, default=list(CELLS), metavar="LSTM,GRU,RNN")
    options.add_argument("--batches", type=sizes, default=[1, 8, 64], metavar="B,...")
    options.add_argument("--only", default="", metavar="TEXT", help="rows with this in their name")
    options.add_argument("--threads", type=int, default=1, metavar="N")
    options.add_argument("--isa")
    options.add_argument("--rounds", type=int, default=7, metavar="N")
    return options.parse_args(argv)


def steps_of(case: Case, cell: str, batch: int) -> int:
    return 1 if case.step else max(4, min(100, int(WORK / (batch * case.flops(cell)))))


def neighbours(hidden: int) -> tuple[int, int]:
    """The plain sizes around a size, without itself; the two smallest for one below them.

    >>> neighbours(100), neighbours(128), neighbours(8)
    ((64, 128), (64, 192), (16, 32))
    """
    smaller = [size for size in PLAIN if size < hidden] or PLAIN[:1]
    return smaller[-1], next(size for size in PLAIN if size > max(hidden, smaller[-1]))


def measure(case: Case, cell: str, batch: int, steps: int, rounds: int) -> tuple[float, float, float]:
    """Microseconds, explained microseconds, and their ratio."""
    around = plain_cases(case)
    times = interleave({each: call(each, cell, batch, steps) for each in (case, *around)}, rounds)
    work = float(case.flops(cell))
    if case.ragged:
        work *= ragged_lengths(batch, steps).sum() / (batch * steps)
    plain_work = [plain.flops(cell) for plain in around]
    reading = seconds_to_read(case, cell) if case.step else 0.0
    explained = [max(explain(work, plain_work, plain), reading) for _, *plain in zip(*times.values(), strict=True)]
    cliff = statistics.median(mine / other for mine, other in zip(times[case], explained, strict=True))
    return statistics.median(times[case]) * 1e6, statistics.median(explained) * 1e6, cliff


def plain_cases(case: Case) -> list[Case]:
    """One or two plain layers that explain a case."""
    if case.name == "size":
        return [Case("plain", size) for size in neighbours(case.hidden)]
    if case.name == "input":
        return [Case("plain", case.hidden), Case("plain", case.hidden, max(2 * case.hidden, case.input_size // 2))]
    return [Case("plain", case.hidden, step=case.step)]


def seconds_to_read(case: Case, cell: str) -> float:
    """The time in which one core can read all weights of a layer; 0 where there is no compiler to find out."""
    if compiler() is None:
        return 0.0
    size = build(case, cell).nbytes
    _, (rate,) = measure_core([size])
    return size / rate / 1e9


def explain(work: float, plain_work: list[int], times: list[float]) -> float:
    """The time of so much work on the line through the plain shapes; through one and the origin.

    A line through noise may fall below zero: never less than half of what the work alone explains.

    >>> explain(3.0, [2, 4], [10.0, 30.0]), explain(3.0, [2], [10.0])
    (20.0, 15.0)
    """
    proportional = times[0] * work / plain_work[0]
    if len(times) == 1:
        return proportional
    line = times[0] + (times[1] - times[0]) * (work - plain_work[0]) / (plain_work[1] - plain_work[0])
    return max(line, proportional / 2)


def call(case: Case, cell: str, batch: int, steps: int) -> Callable[[], object]:
    layer, rng = build(case, cell), np.random.default_rng(0)
    x = rng.standard_normal((batch, steps, case.input_size), np.float32)
    if not layer.batch_first:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    if case.ragged:
        lengths = ragged_lengths(batch, steps)
        return lambda: layer(x, lengths=lengths)
    if case.step:
        _, state = layer(x)
        return lambda: layer(x, state)
    return lambda: layer(x)


@functools.lru_cache(maxsize=4)  # the batches of a case follow each other
def build(case: Case, cell: str) -> Any:
    rng = np.random.default_rng(0)
    rows, output = len(GATES[cell.lower()]) * case.hidden, case.output_size
    bound = case.hidden**-0.5

    def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
        """One for each direction of each layer; layers beyond the first take the last shape."""
        each = [shapes[min(layer, len(shapes) - 1)] for layer in range(case.layers) for _ in range(case.directions)]
        return [rng.uniform(-bound, bound, shape).astype(np.float32) for shape in each]

    weights = {
        "weight_ih": arrays((rows, case.input_size), (rows, case.directions * output)),
        "weight_hh": arrays((rows, output)),
        "bias_ih": arrays((rows,)),
        "bias_hh": arrays((rows,)),
    }
    if case.projection:
        weights["weight_hr"] = arrays((output, case.hidden))
    if case.peephole:
        weights["peephole"] = arrays((3 * case.hidden,))
    return getattr(fastrnn, cell)(**weights, bidirectional=case.directions == 2, **case.options)


if __name__ == "__main__":
    sys.exit(main())
