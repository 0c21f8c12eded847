"""Live streams: a step of one, and a tick of thousands, beside ONNX Runtime and PyTorch.

    python bench/pools.py
    python bench/pools.py --streams 4096 --ready 256 --cells LSTM --hidden 128

A step is one call from Python with the state of the call before, batch 1.  A tick advances a random part of the streams
of a pool by one step: beside it stand one call of the layer on a batch of as many rows, states given; ONNX Runtime
called once with states that NumPy gathers and scatters; and ONNX Runtime called for one ready stream after another.
All write to arrays that are there where they can.  Results are compared before anything is timed; all take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from command import cell_names, heading, line, parser, prepare, sizes
from engines import OnnxRuntime, Torch
from host import describe
from timing import SETTLE, interleave, medians, ratio
from workloads import CELLS, TOLERANCE, Workload, random_workload

import fastrnn

TICKS = 64
"""Different choices of ready streams, in turn."""


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    prepare(options.threads, options.isa)
    fastrnn.set_num_threads(options.threads)
    host = describe(options.threads)
    print(f"{host['cpu']}; fastrnn on {host['isa']}, threads: {options.threads}\n")
    steps(options)
    ticks(options)
    return 0


def settle_for(options: Any) -> float:
    """Workers of some engines spin after a call, and would take the processors of the next one."""
    return SETTLE if options.threads > 1 else 0.0


def steps(options: Any) -> None:
    peers = [engine.name for engine in (OnnxRuntime, Torch) if engine.installed()]
    print("### A step of one stream, from Python: us\n")
    print(heading(["cell"], ["hidden", "fastrnn", *peers, *(f"{name} / fastrnn" for name in peers)]))
    for cell, hidden in zip(options.cells, options.hidden):
        times = interleave(steppers(cell, hidden, options.threads), options.rounds, settle=settle_for(options))
        us = [f"{1e6 * seconds:.2f}" for seconds in medians(times).values()]
        print(line([cell, hidden, *us, *(against(times, name, "fastrnn") for name in peers)]), flush=True)


def ticks(options: Any) -> None:
    peers = ["gathered", "one by one"] if OnnxRuntime.installed() else []
    names = [f"ONNX Runtime, {name}" for name in peers]
    print(f"\n### A tick, {options.ready:,} of {options.streams:,} streams: us\n")
    ratios = ["pool / plain batch", *(f"{name} / pool" for name in names)]
    print(heading(["cell"], ["hidden", "pool", "plain batch", *names, *ratios, "bytes a stream", "of its state"]))
    for cell, hidden in zip(options.cells, options.hidden):
        work = Ticks(cell, hidden, options.streams, options.ready, options.threads)
        calls = {"pool": work.in_pool, "batch": work.in_batch, "gathered": work.gathered, "one by one": work.one_by_one}
        calls = {name: calls[name] for name in ("pool", "batch", *peers)}
        work.check(calls)
        times = interleave(calls, options.rounds, settle=settle_for(options))
        us = [f"{1e6 * seconds:,.0f}" for seconds in medians(times).values()]
        ratios = [against(times, "pool", "batch"), *(against(times, name, "pool") for name in peers)]
        state = work.pool.state(work.handles[0])
        sizes = work.pool.nbytes // options.streams, sum(part.nbytes for part in state_parts(state))
        print(line([cell, hidden, *us, *ratios, *sizes]), flush=True)


def against(times: dict[str, list[float]], one: str, other: str) -> str:
    """Time of one / time of the other, in the rounds that they shared."""
    return f"{ratio({name: times[name] for name in (one, other)}, other):.2f}"


def state_parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def parse(argv: list[str] | None) -> Any:
    options = parser(__doc__)
    options.add_argument("--cells", type=cell_names, default=["LSTM", "GRU"], metavar=",".join(CELLS))
    options.add_argument("--hidden", type=sizes, default=[128, 256], metavar="H,...", help="a size for each cell")
    options.add_argument("--streams", type=int, default=4096, metavar="N")
    options.add_argument("--ready", type=int, default=256, metavar="N", help="streams that a tick advances")
    options.add_argument("--threads", type=int, default=1, metavar="N")
    options.add_argument("--isa")
    options.add_argument("--rounds", type=int, default=15, metavar="N")
    return options.parse_args(argv)


# ---- One stream ----


def steppers(cell: str, hidden: int, threads: int) -> dict[str, Callable[[], Any]]:
    """A step of each engine, on the state that its last step left."""
    work = random_workload("step", cell, (1, 1, hidden, hidden))
    calls: dict[str, Callable[[], Any]] = {"fastrnn": stream_step(work)}
    if OnnxRuntime.installed():
        calls[OnnxRuntime.name] = CarriedOnnx(OnnxRuntime(work, threads))
    if Torch.installed():
        calls[Torch.name] = carried_torch(Torch(work, threads))
    first, *others = [np.ravel(call()) for call in calls.values()]
    check(others, first)
    return calls


def stream_step(work: Workload) -> Callable[[], Any]:
    stream = fastrnn.from_torch(work.rnn.weights).stream()
    stream.state = work.state if len(work.state) == 2 else work.state[0]
    x, y = work.x[0, 0], np.empty(work.hidden_size, np.float32)
    return lambda: stream.step(x, out=y)


class CarriedOnnx:
    """A session whose final states go into its next run."""

    def __init__(self, engine: OnnxRuntime):
        self.run, self.feeds = engine.session.run, engine.feeds
        self.names = [name for name in self.feeds if name != "x"]

    def __call__(self) -> np.ndarray:
        y, *states = self.run(None, self.feeds)
        self.feeds.update(zip(self.names, states))
        return y


def carried_torch(engine: Torch) -> Callable[[], Any]:
    def step() -> np.ndarray:
        y, engine.state = engine()
        return y.numpy()

    return step


# ---- Many streams ----


class Ticks:
    """The same ticks in four ways; each keeps all states by itself."""

    def __init__(self, cell: str, hidden: int, streams: int, ready: int, threads: int):
        rng = np.random.default_rng(0)
        self.ready = [rng.permutation(streams)[:ready] for _ in range(TICKS)]
        self.x = rng.standard_normal((TICKS, ready, hidden), np.float32)
        self.at: dict[str, int] = {}
        work = random_workload("step", cell, (ready, 1, hidden, hidden))
        self.layer = fastrnn.from_torch(work.rnn.weights)
        self.pool = self.layer.pool(streams)
        self.handles = np.array([self.pool.open() for _ in range(streams)])
        self.y = np.empty((ready, hidden), np.float32)
        state = tuple(np.zeros((1, ready, hidden), np.float32) for _ in work.state)
        self.states = [state if len(state) == 2 else state[0] for state in (state, tuple(map(np.copy, state)))]
        if OnnxRuntime.installed():
            self.session = OnnxRuntime(work, threads).session
            one = random_workload("step", cell, (1, 1, hidden, hidden))
            one.spec.nodes[0].weights.update(work.rnn.weights)
            self.single = OnnxRuntime(one, threads).session
            self.names = [f"{name}_l0" for name in work.rnn.inputs[1:]]
            self.slabs = [np.zeros((streams, hidden), np.float32) for _ in self.names]
            self.rows = [[np.zeros((1, 1, hidden), np.float32)] * len(self.names) for _ in range(streams)]

    def next(self, who: str) -> int:
        self.at[who] = (self.at.get(who, -1) + 1) % TICKS
        return self.at[who]

    def in_pool(self) -> np.ndarray:
        k = self.next("pool")
        return self.pool.step(self.handles[self.ready[k]], self.x[k], out=self.y)

    def in_batch(self) -> np.ndarray:
        """Not the same function, as its rows are always the same streams: what a pool is measured by."""
        k = self.next("batch")
        before, after = self.states
        self.layer(self.x[k][:, None], before, out=(self.y[:, None], after))
        self.states = [after, before]
        return self.y

    def gathered(self) -> np.ndarray:
        k = self.next("gathered")
        rows = self.ready[k]
        states = {name: slab[rows][None] for name, slab in zip(self.names, self.slabs)}
        y, *finals = self.session.run(None, {"x": self.x[k][None], **states})
        for slab, final in zip(self.slabs, finals):
            slab[rows] = final[0]
        return y[0, 0]

    def one_by_one(self) -> np.ndarray:
        k = self.next("one by one")
        y = np.empty_like(self.y)
        for n, row in enumerate(self.ready[k].tolist()):
            states = dict(zip(self.names, self.rows[row]))
            made, *self.rows[row] = self.single.run(None, {"x": self.x[k][None, n : n + 1], **states})
            y[n] = made.ravel()
        return y

    def check(self, calls: dict[str, Callable[[], np.ndarray]]) -> None:
        for turn in range(TICKS // 4):
            ours = calls["pool"]().copy()
            check([call() for name, call in calls.items() if name != "pool" and (turn == 0 or name != "batch")], ours)


def check(theirs: list[np.ndarray], ours: np.ndarray) -> None:
    for result in theirs:
        if not np.abs(result - ours).max() <= TOLERANCE:
            sys.exit(f"pools.py: a result differs by {np.abs(result - ours).max():.1e}; times would mean nothing")


if __name__ == "__main__":
    sys.exit(main())
