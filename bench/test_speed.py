"""The benchmark suite: every mode, cell, shape and installed engine as a benchmark of its own.

    pytest bench --benchmark-only
    FASTRNN_NUM_THREADS=2 FASTRNN_ISA=avx2 pytest bench --benchmark-only -k "step and GRU"

The engines of one shape follow each other and form a group.  compare.py lets them take turns, which is the fairer
comparison on a machine that others use too; this suite keeps records and compares runs with each other.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
from engines import PEERS, Engine, Fastrnn
from host import describe
from workloads import CELLS, SHAPES, TOLERANCE, Workload, random_workload

pytest.importorskip("pytest_benchmark")

THREADS = int(os.environ.get("FASTRNN_NUM_THREADS", "1"))


def label(shape: tuple[int, int, int, int]) -> str:
    return "-".join(f"{name}{size}" for name, size in zip("BTIH", shape, strict=True))


CASES = [
    pytest.param(mode, cell, shape, engine, id=f"{mode}-{cell}-{label(shape)}-{engine.name}")
    for mode, shapes in SHAPES.items()
    for cell in CELLS
    for shape in shapes
    for engine in (Fastrnn, *PEERS)
    if engine.installed() and (mode == "ragged" or not engine.ragged_only)
]


@functools.lru_cache(maxsize=1)  # the engines of one shape follow each other
def problem(mode: str, cell: str, shape: tuple[int, int, int, int]) -> tuple[Workload, np.ndarray]:
    """A workload and its exact result."""
    work = random_workload(mode, cell, shape)
    return work, work.exact()


@pytest.mark.benchmark(min_rounds=5, max_time=0.3, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize(("mode", "cell", "shape", "engine"), CASES)
def test_layer(benchmark, mode: str, cell: str, shape: tuple[int, int, int, int], engine: type[Engine]) -> None:
    work, exact = problem(mode, cell, shape)
    run = engine(work, THREADS)
    error = float(np.abs(run.result() - exact).max())
    assert error < TOLERANCE, f"{engine.name} is off by {error:.1e}: the time would be that of another network"

    benchmark.group = f"{mode} {cell} {label(shape)}"
    benchmark.extra_info.update(
        describe(THREADS), engine=engine.name, flops=work.flops, weight_bytes=work.weight_bytes, error=error
    )
    benchmark(run)
