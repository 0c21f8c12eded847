"""What a batcher counts, in a form that a metrics exporter can read."""

from __future__ import annotations

import math
from dataclasses import dataclass

_A_DOUBLING = 8
_BUCKETS = 40 * _A_DOUBLING  # from a microsecond to days


class Histogram:
    """Counts of durations in buckets that grow by a twelfth, so that a percentile is at most 9 % off."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = int(math.log2(seconds * 1e6) * _A_DOUBLING) if seconds > 1e-6 else 0
        self._counts[min(bucket, _BUCKETS - 1)] += 1

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the durations did not exceed; 0 before the first.

        >>> seconds = Histogram()
        >>> for k in range(1, 101):
        ...     seconds.add(k / 1000)
        >>> 0.050 <= seconds.percentile(50) < 0.055
        True
        """
        counts = self._counts.copy()
        rank, seen = sum(counts) * percent / 100, 0
        for bucket, count in enumerate(counts):
            seen += count
            if count and seen >= rank:
                return float(2 ** ((bucket + 1) / _A_DOUBLING) / 1e6)
        return 0.0


@dataclass(frozen=True)
class BatcherStats:
    """A moment of a batcher: ``submitted == completed + cancelled + expired + failed + queued + active``.

    Attributes
    ----------
    submitted, completed, cancelled, expired, failed : int
        Requests that were taken, and how they ended.
    rejected : int
        Requests that were not taken, because the queue was full.
    queued, active : int
        Requests that wait, and that the next tick advances.
    sessions : int
        Sessions that are open.
    ticks, steps : int
        Calls of the engine, and steps of single rows in them.
    busy : float
        Seconds of all ticks.
    mean_batch : float
        Requests in a tick.
    steps_per_second : float
        ``steps / busy``.
    queue_p50, queue_p99 : float
        Seconds from ``submit`` to the first step.
    latency_p50, latency_p99 : float
        Seconds from ``submit`` to the answer, of completed requests.
    """

    submitted: int
    completed: int
    cancelled: int
    expired: int
    failed: int
    rejected: int
    queued: int
    active: int
    sessions: int
    ticks: int
    steps: int
    busy: float
    mean_batch: float
    steps_per_second: float
    queue_p50: float
    queue_p99: float
    latency_p50: float
    latency_p99: float


class Counters:
    """The running counts of a batcher; whoever writes holds its lock, or is its only writer."""

    def __init__(self) -> None:
        self.submitted = self.rejected = self.ticks = self.steps = self.rows = 0
        self.ended = {"completed": 0, "cancelled": 0, "expired": 0, "failed": 0}
        self.busy = 0.0
        self.queue_time, self.latency = Histogram(), Histogram()

    def stats(self, queued: int, active: int, sessions: int) -> BatcherStats:
        """The counts as they stand."""
        return BatcherStats(
            **self.ended,
            submitted=self.submitted,
            rejected=self.rejected,
            queued=queued,
            active=active,
            sessions=sessions,
            ticks=self.ticks,
            steps=self.steps,
            busy=self.busy,
            mean_batch=self.rows / self.ticks if self.ticks else 0.0,
            steps_per_second=self.steps / self.busy if self.busy else 0.0,
            queue_p50=self.queue_time.percentile(50),
            queue_p99=self.queue_time.percentile(99),
            latency_p50=self.latency.percentile(50),
            latency_p99=self.latency.percentile(99),
        )
