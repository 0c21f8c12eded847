"""Random layers, called in random ways: each row of each call has the bits of that row alone.

    python tests/bits_sweep.py --cases 100000 --seed 1
    python tests/bits_sweep.py --seed 1 --case 4711

Alone means: one row, whole, without lengths or mask, on one thread, on the last of the instruction sets that share
their bits.  ``generic``, which rounds differently, is compared with itself; ``backend="blas"`` promises nothing.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from cases import DIRECTIONS, FMA_ISAS, MERGES, Case, assert_bits, flat, misaligned, parts, state_of, strided, take

import fastrnn
from fastrnn.spec import CELL_ACTIVATIONS

WAYS = 5
"""Calls of each layer: what its rows give alone is computed once."""
BAD = (np.nan, np.inf, -np.inf, 3e38)
LAYOUTS = {"contiguous": np.ascontiguousarray, "strided": strided, "misaligned": misaligned}


def random_case(rng: np.random.Generator) -> Case:
    """Any cell with any of its options."""

    def maybe(value: Any, chance: float = 0.25) -> Any:
        return value if rng.random() < chance else None

    def size(largest: int) -> int:
        return int(rng.integers(1, largest + 1 if rng.random() < 0.5 else 1 + largest // 8))

    op = str(rng.choice(["lstm", "gru", "rnn"]))
    bound, any_activation = float(rng.uniform(0.1, 2)), functools.partial(rng.choice, list(CELL_ACTIVATIONS))
    options = {"clip": maybe(bound), "num_layers": int(rng.choice([1, 1, 2, 3])), "batch_first": rng.random() < 0.5}
    proj = op == "lstm" and rng.random() < 0.25
    if op == "lstm":
        options |= {"proj_clip": maybe(bound) if proj else None}
        options |= {"cell_clip": maybe(bound), "coupled_input_forget": maybe(True)}
        options |= {"hidden_activation": maybe(str(any_activation()))}
    if op == "gru":
        options |= {"reset_after": rng.random() < 0.5, "update_gate": maybe("take")}
    if op == "rnn":
        options |= {"activation": maybe(str(any_activation()), 0.5)}
    else:
        options |= {"cell_activation": maybe(str(any_activation()))}
        options |= {"gate_activation": maybe(str(any_activation())) if not options.get("update_gate") else None}
    return Case(
        op,
        input_size=size(200),
        hidden_size=size(200),
        batch=int(rng.integers(1, 9)),
        seq_len=int(rng.integers(0, 31)),
        proj=proj,
        peephole=op == "lstm" and rng.random() < 0.25,
        bias=rng.random() < 0.75,
        state=rng.random() < 0.75,
        direction=str(rng.choice(DIRECTIONS)) if rng.random() < 0.5 else "forward",
        options=tuple((key, value) for key, value in options.items() if value is not None),
        scale=float(10 ** rng.uniform(-1, 0.5)),
        seed=int(rng.integers(1 << 30)),
    )


@dataclass(frozen=True)
class Way:
    """How a layer is called."""

    rows: tuple[int, ...]
    """Of the layer's rows, in any order and any number of times."""
    spoiled: tuple[int, ...]
    """Places in the batch whose input and state are ``bad``."""
    bad: float
    """Also stands in the steps that do not run."""
    steps: str
    """Those that run: "all", by "lengths", as a "list" of sequences, or by "mask"."""
    cuts: tuple[int, ...]
    by: str
    """Who runs them, and for which y: "layer", "cell", "last argument" or "last layer"."""
    out: bool
    layout: str
    isa: str
    threads: int
    team: str


class Network:
    """A random layer, its rows, and what each of them gives alone."""

    def __init__(self, seed: int, number: int):
        rng = np.random.default_rng([seed, number])
        self.case = random_case(rng)
        self.x = self.case.x * np.float32(10.0 ** rng.choice([0, 0, 0, -38, 37]))
        self.isas = FMA_ISAS if FMA_ISAS and rng.random() < 0.9 else ["generic"]
        shape = (self.case.batch, self.case.seq_len)
        by_length = np.arange(shape[1]) < rng.integers(0, shape[1] + 1, shape[0])[:, None]
        self.runs = {"all": np.ones(shape, bool), "lengths": by_length, "list": by_length}
        self.runs["mask"] = rng.random(shape) < rng.random()
        self.time_axis = 1 if self.case.node.attr("batch_first") else 0
        self.layer = functools.cache(self._layer)
        self.alone = functools.cache(self._alone)

    def _layer(self, isa: str, by: str = "layer") -> Any:
        fastrnn.set_isa(isa)
        layer = self.case.cell() if by == "cell" else self.case.layer()
        return layer.last() if by == "last layer" else layer

    def _alone(self, row: int, steps: str) -> list[np.ndarray]:
        """y of the steps that run, and the states, without a batch axis; and the last output."""
        fastrnn.set_num_threads(1)
        x, *state = take(self.case, [row], [self.x, *parts(self.case.initial)])
        x = np.compress(self.runs[steps][row], x, self.time_axis)
        y, *state = flat(self.layer(self.isas[-1])(x, state_of(self.case, state)))
        state = [part.squeeze(1) for part in state]
        finals = state[0][-self.case.directions :]
        if steps == "mask" and not x.size:
            finals = np.zeros_like(finals)  # as in Keras
        last = finals[0] if len(finals) == 1 else MERGES[self.case.node.attr("merge")](*finals)
        return [y.squeeze(1 - self.time_axis), *state, last]

    def way(self, rng: np.random.Generator) -> Way:
        """A random way to call this layer."""
        case, seq_len = self.case, self.case.seq_len
        count = int(rng.integers(1, 41 if rng.random() < 0.5 else 6))
        steps = str(rng.choice(["all", "lengths", "list", "mask"]))
        cuts, by = [], str(rng.choice(["layer", "layer", "last argument", "last layer"]))
        if case.direction == "forward" and steps != "list" and rng.random() < 0.7:
            single = rng.random() < 0.5
            cuts = range(1, seq_len) if single else sorted(rng.integers(0, seq_len + 1, rng.integers(1, 6)).tolist())
            has_cell = case.node.attr("num_layers") == 1 and steps == "all" and seq_len > 0
            by = "cell" if single and has_cell and rng.random() < 0.8 else "layer"
        return Way(
            rows=tuple(rng.integers(0, case.batch, count).tolist()),
            spoiled=tuple(np.flatnonzero(rng.random(count) < rng.choice([0, 0.2, 0.9])).tolist()),
            bad=float(rng.choice(BAD)),
            steps=steps,
            cuts=tuple(cuts),
            by=by,
            out=by != "cell" and rng.random() < 0.5,
            layout=str(rng.choice(list(LAYOUTS))),
            isa=str(rng.choice(self.isas)),
            threads=int(rng.integers(1, 5)),
            team=str(rng.choice(fastrnn.info()["teams"])),
        )

    def call(self, way: Way) -> list[np.ndarray]:
        """y with the batch first, and the states."""
        case, rows, spoiled = self.case, list(way.rows), list(way.spoiled)
        runs = self.runs[way.steps][rows]
        x, *state = take(case, rows, [self.x, *parts(case.initial)])
        x = x if self.time_axis else x.swapaxes(0, 1)
        x[~runs] = way.bad
        x[spoiled] = way.bad
        for part in state:
            part[:, spoiled] = way.bad
        layer, laid_out = self.layer(way.isa, way.by), LAYOUTS[way.layout]
        fastrnn.set_team(way.team)
        fastrnn.set_num_threads(way.threads)
        if way.steps == "list":
            sequences = [row[run] for row, run in zip(x, runs, strict=True)]
            return self._piece(way, layer, sequences, max(map(len, sequences)), [laid_out(part) for part in state], {})
        pieces = []
        for begin, end in pairwise([0, *way.cuts, case.seq_len]):
            options = {"lengths": runs[:, begin:end].sum(1)} if way.steps == "lengths" else {}
            options |= {"mask": runs[:, begin:end]} if way.steps == "mask" else {}
            piece = x[:, begin:end] if self.time_axis else x[:, begin:end].swapaxes(0, 1)
            state = [laid_out(part) for part in state]
            y, *state = self._piece(way, layer, laid_out(piece), end - begin, state, options)
            pieces.append(y)
        return [y if way.by.startswith("last") else np.concatenate(pieces, 1), *state]

    def _piece(self, way: Way, layer: Any, x: Any, seq_len: int, state: list, options: dict) -> list[np.ndarray]:
        """One call of those that make up a way."""
        case, batch = self.case, len(way.rows)
        if way.by == "cell":
            state = parts(layer(x.squeeze(self.time_axis), state_of(case, [part[0] for part in state])))
            return [state[0][:, None], *(part[None] for part in state)]
        if way.by == "last argument":
            options["outputs"] = "last"
        if way.out:
            stack = case.node.attr("num_layers") * case.directions
            sizes = [case.output_size, case.hidden_size][: 2 if case.op == "lstm" else 1]
            given = [np.full((stack, batch, size), 7, np.float32) for size in sizes]
            features = case.output_size * (2 if case.direction == "bidirectional concat" else 1)
            shape = (batch, seq_len) if self.time_axis else (seq_len, batch)
            y = np.full(((batch,) if way.by.startswith("last") else shape) + (features,), 7, np.float32)
            options["out"] = (y, state_of(case, given))
        y, *state = flat(layer(x, state_of(case, state), **options))
        return [y if self.time_axis or y.ndim == 2 else y.swapaxes(0, 1), *state]

    def check(self, way: Way) -> None:
        """Compare a call with its rows alone."""
        y, *state = self.call(way)
        for place, row in enumerate(way.rows):
            if place in way.spoiled:
                continue
            want_y, *want_state, want_last = self.alone(row, way.steps)
            ours = y[place]
            if not way.by.startswith("last"):
                run = self.runs[way.steps][row][: len(ours)]
                assert way.steps == "mask" or not ours[~run].any(), f"place {place}: y beyond the length is not 0"
                ours, want_last = ours[run], want_y
            assert_bits([ours, *(part[:, place] for part in state)], [want_last, *want_state], f"place {place}")


def run(cases: int, seed: int, first: int = 0) -> Counter[str]:
    """Check cases ``first`` to ``first + cases``; returns how many there were of each kind.

    Raises
    ------
    AssertionError
        A row differs from itself alone.
    """
    seen: Counter[str] = Counter()
    network = None
    for case in range(first, first + cases):
        number = case // WAYS
        if network is None or case % WAYS == 0:
            network = Network(seed, number)
        way = network.way(np.random.default_rng([seed, number, 1 + case % WAYS]))
        try:
            with np.errstate(all="ignore"):  # NumPy merges the last outputs
                network.check(way)
        except Exception as error:
            raise AssertionError(f"--seed {seed} --case {case}: {error}; {network.case}, {way}") from error
        split = network.layer(way.isa).explain(len(way.rows), network.case.seq_len)["split"]
        kinds = {"split": split, "steps": way.steps, "by": way.by, "out": way.out, "isa": way.isa, "team": way.team}
        kinds |= {"threads": way.threads, "op": network.case.op, "cuts": min(len(way.cuts), 2)}
        seen.update(f"{name} {kind}" for name, kind in kinds.items())
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description="Call random layers in random ways and compare bits.")
    parser.add_argument("--cases", type=int, default=1000, help="number of calls (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="which random layers (default 0)")
    parser.add_argument("--case", type=int, help="only this one")
    options = parser.parse_args()
    chosen = (options.cases, options.seed) if options.case is None else (1, options.seed, options.case)
    for kind, count in sorted(run(*chosen).items()):
        print(f"{count:8d}  {kind}")


if __name__ == "__main__":
    main()
