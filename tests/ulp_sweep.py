"""The largest error of each activation over evenly spaced float32 numbers, infinities and NaN among them.

``python tests/ulp_sweep.py STRIDE [NAME ...]`` prints a Markdown table; stride 1 takes all 2^32 numbers and half an
hour for each function.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tolerances import FLUSHED

import fastrnn
from fastrnn import reference
from fastrnn.spec import ACTIVATIONS, ROW_ACTIVATIONS

ELEMENTWISE = [name for name in ACTIVATIONS if name not in ROW_ACTIVATIONS]
CHUNK = 1 << 20


@dataclass
class Worst:
    """The largest errors found so far, and where."""

    ulp: float = 0.0
    ulp_at: float = 0.0
    absolute: float = 0.0
    """Relative to values above 1."""
    absolute_at: float = 0.0

    def add(self, x: np.ndarray, ours: np.ndarray, want: np.ndarray) -> None:
        rounded = want.astype(np.float32)
        finite = np.isfinite(rounded)
        where = f"at {x[np.isnan(ours) != np.isnan(want)][:3]} and {x[np.isinf(ours) != np.isinf(rounded)][:3]}"
        assert np.array_equal(np.isnan(ours), np.isnan(want)), f"NaN and numbers do not agree {where}"
        assert np.array_equal(np.isinf(ours), np.isinf(rounded)), f"infinities do not agree {where}"
        x, ours, want, rounded = x[finite], ours[finite].astype(np.float64), want[finite], rounded[finite]
        error = np.abs(ours - want)
        ulp = np.where(error <= FLUSHED, 0, error / np.spacing(np.abs(rounded)))
        absolute = error / np.maximum(1, np.abs(want))
        if ulp.max(initial=0) > self.ulp:
            self.ulp, self.ulp_at = float(ulp.max()), float(x[ulp.argmax()])
        if absolute.max(initial=0) > self.absolute:
            self.absolute, self.absolute_at = float(absolute.max()), float(x[absolute.argmax()])


def floats(stride: int) -> Iterator[np.ndarray]:
    """Every ``stride``-th float32 by its bits, in chunks."""
    for first in range(0, 1 << 32, CHUNK * stride):
        yield (
            np.arange(first, min(first + CHUNK * stride, 1 << 32), stride, np.int64).astype(np.uint32).view(np.float32)
        )


def measure(name: str, isas: list[str], stride: int) -> dict[str, Worst]:
    """The worst errors of an activation on each instruction set."""
    worst = {isa: Worst() for isa in isas}
    for x in floats(stride):
        with np.errstate(all="ignore"):
            want = reference.activate(name, x.astype(np.float64))
            for isa in isas:
                fastrnn.set_isa(isa)
                worst[isa].add(x, fastrnn.Activation(name)(x), want)
    return worst


if __name__ == "__main__":
    isas = fastrnn.info()["isas"]
    print(
        "| activation | " + " | ".join(f"{isa}: ULP (at) | {isa}: error / max(1, abs(y)) (at)" for isa in isas) + " |"
    )
    print("|---|" + "---|---|" * len(isas))
    for name in sys.argv[2:] or ELEMENTWISE:
        found = measure(name, isas, int(sys.argv[1])).values()
        cells = (f"{w.ulp:.4g} ({w.ulp_at:.6g}) | {w.absolute:.3g} ({w.absolute_at:.6g})" for w in found)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
