"""Times of calls that take turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

BLOCK = 0.02
"""Seconds that a call is repeated for in each round, so that a clock tick and a timer interrupt do not count."""

SETTLE = 0.1
"""Seconds of rest before each block where engines have workers: some spin for that long after a call and would take
the processors from the next engine."""


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int = 9, block: float = BLOCK, settle: float = 0.0
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one number a round.

    In every round each contender runs for a block of time, one after the other, so that a machine that slows down
    or has noisy neighbours treats all of them alike: compare numbers of the same round.
    """
    repeats = {name: _repeats(call, block) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if settle:
                time.sleep(settle)
            call()  # its weights come back into the cache
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def _repeats(call: Callable[[], object], block: float) -> int:
    """How often a warm call fits into the block."""
    call()
    call()
    start = time.perf_counter()
    call()
    return max(1, int(block / max(time.perf_counter() - start, 1e-7)))


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each contender's rounds."""
    return {name: statistics.median(rounds) for name, rounds in times.items()}


def ratio(times: Mapping[str, list[float]], ours: str) -> float:
    """Best peer / ours: the median over the rounds of the fastest other contender's time by ours of that round."""
    others = [rounds for name, rounds in times.items() if name != ours]
    return statistics.median(min(peer) / mine for mine, *peer in zip(times[ours], *others, strict=True))
