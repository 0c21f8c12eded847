"""fastrnn and its peers on the digits, with the engines and the clock of the benchmark suite.

They live in ``bench/``, which is a folder of scripts and no package: one line puts it on the path.  So both measure
alike, and nothing that only serves comparisons is installed with fastrnn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from engines import Fastrnn, peers
from timing import SETTLE, interleave, medians
from workloads import Workload

ROUNDS = 9


def race(model: Any, x: np.ndarray, threads: int, with_peers: bool) -> dict[str, tuple[float, float]]:
    """Seconds a sequence and the largest difference from float64, for fastrnn and each installed peer.

    Every engine gets the same weights, input and number of threads; they take turns, and the median round counts.
    """
    work = Workload(model.spec, x)
    calls: dict[str, Callable[[], Any]] = {Fastrnn.name: lambda: model(x)}
    results = {Fastrnn.name: model(x)}
    for engine in peers(work, threads) if with_peers else []:
        calls[engine.name], results[engine.name] = engine, engine.result()
    exact = work.exact()
    times = medians(interleave(calls, ROUNDS, settle=SETTLE if threads > 1 and with_peers else 0.0))
    return {name: (times[name] / len(x), float(np.abs(results[name] - exact).max())) for name in calls}
