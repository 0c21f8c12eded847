"""The largest error of each activation over float32 numbers, infinities and NaN among them, on every instruction set.

    python tests/ulp_sweep.py 127                   all activations, every 127th number
    python tests/ulp_sweep.py 1 sigmoid tanh exp    all 2^32 numbers, two minutes for each function on two cores

prints a Markdown table; the work is done by tests/c/ulp.c.  ``--begin`` and ``--count`` choose a range of bit patterns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import c_objects
import clibrary
from tolerances import ABSOLUTE, FLUSHED, ULP

from fastrnn import _core
from fastrnn.spec import ACTIVATIONS, ROW_ACTIVATIONS, activation

ELEMENTWISE = [name for name in ACTIVATIONS if name not in ROW_ACTIVATIONS]
PIECES, PIECE = 16, 200_000
"""At most so many processes share a range, as many at a time as there are cores; each gets at least so many numbers."""


@dataclass
class Worst:
    """The largest errors found so far, where, and a checksum of all results."""

    ulp: float = 0.0
    ulp_at: float = 0.0
    absolute: float = 0.0
    """Relative to values above 1."""
    absolute_at: float = 0.0
    checksum: int = 0

    def add(self, other: Worst) -> None:
        if other.ulp > self.ulp:
            self.ulp, self.ulp_at = other.ulp, other.ulp_at
        if other.absolute > self.absolute:
            self.absolute, self.absolute_at = other.absolute, other.absolute_at
        self.checksum = (self.checksum + other.checksum) % (1 << 64)

    def assert_within_bounds(self, name: str, isa: str) -> None:
        if name in ABSOLUTE:
            assert self.absolute <= ABSOLUTE[name], f"{name} on {isa}: {self}"
        else:
            assert self.ulp <= ULP[name], f"{name} on {isa}: {self}"


def native(folder: Path) -> list[Path]:
    """The command that runs ulp.c on this machine; built in a folder."""
    return [clibrary.program(folder, clibrary.find("gcc"), c_objects.isa_flags(), "-O2", name="ulp")]


def measure(
    command: Sequence[str | Path], name: str, stride: int, begin: int = 0, end: int = 1 << 32
) -> dict[str, Worst]:
    """The worst errors of an activation on each instruction set of the program that ``command`` runs."""
    kind, *numbers = activation(name)
    fixed = [*map(str, command), str(_core.ACTIVATION_KINDS[kind]), *map(repr, numbers), repr(FLUSHED)]

    def piece(ends: tuple[int, int]) -> str:
        done = subprocess.run([*fixed, *map(str, ends), str(stride)], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return done.stdout

    pieces = min(PIECES, 1 + (end - begin) // (stride * PIECE))
    edges = [begin + (end - begin) * k // pieces for k in range(pieces + 1)]
    found: dict[str, Worst] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for lines in pool.map(piece, pairwise(edges)):
            for isa, *errors, checksum in map(str.split, lines.splitlines()):
                found.setdefault(isa, Worst()).add(Worst(*map(float, errors), int(checksum)))
    return found


def floats(stride: int) -> np.ndarray:
    """Every ``stride``-th float32 by its bits."""
    return np.arange(0, 1 << 32, stride, np.int64).astype(np.uint32).view(np.float32)


def checksum(x: np.ndarray, y: np.ndarray) -> int:
    """That of ulp.c, of results from elsewhere."""
    bits = np.where(np.abs(y) <= np.finfo(np.float32).tiny, y.view(np.uint32) & 0x80000000, y.view(np.uint32))
    bits = np.where(np.isnan(y), 0x7FC00000, bits)
    z = x.view(np.uint32).astype(np.uint64) << 32 | bits.astype(np.uint64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9
    z = (z ^ z >> 27) * 0x94D049BB133111EB
    return int(np.sum(z ^ z >> 31, dtype=np.uint64))


def main() -> None:
    parser = argparse.ArgumentParser(description="Largest errors of activations.")
    parser.add_argument("stride", type=int, help="1: every float32 number")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(ELEMENTWISE)} (default all)")
    parser.add_argument("--begin", type=int, default=0, help="first bit pattern (default 0)")
    parser.add_argument("--count", type=int, default=1 << 32, help="how many bit patterns (default 2^32)")
    options = parser.parse_args()
    c_objects.CACHE.mkdir(parents=True, exist_ok=True)
    command = native(c_objects.CACHE)
    print("| activation | instruction set | ULP (at) | error / max(1, abs(y)) (at) | checksum |")
    print("|---|---|---|---|---|")
    for name in options.names or ELEMENTWISE:
        end = min(options.begin + options.count, 1 << 32)
        for isa, w in measure(command, name, options.stride, options.begin, end).items():
            errors = f"{w.ulp:.4g} ({w.ulp_at:.6g}) | {w.absolute:.3g} ({w.absolute_at:.6g})"
            print(f"| {name} | {isa} | {errors} | {w.checksum:016x} |", flush=True)


if __name__ == "__main__":
    main()
