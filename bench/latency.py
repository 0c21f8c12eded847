"""Latency of whole sequences under an open load: fastrnn.Batcher beside a batcher that runs request by request.

    python bench/latency.py
    python bench/latency.py --cell GRU --hidden 256 --sigma 1

Lengths are lognormal, arrivals Poisson, at a share (``--load``) of the capacity of the batcher of requests: what it
answers in a second from a full queue, with its best batch.  It is the usual dynamic batcher: it collects requests until
a window is over or the batch is full, runs them padded in one call of the same engine (``lengths=``, so padding is not
computed), and answers all of them.  Windows and batches are tried under the load, and the one with the best 99th
percentile is compared.  The engine has one thread, the sender another.  Latencies count from the moment a request was
due.  In every round the capacity is measured anew and the contenders take turns.  Percentiles are over the requests of
all rounds, and "better by" is the ratio of the two numbers above it; below stand the smallest and the largest ratio of
a single round, which say how far a number can be trusted.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from command import cell_names, heading, line, parser, prepare
from host import cpu_model

import fastrnn

WINDOWS = (0.0, 0.001)
BATCHES = (8, 16, 32)
TRIES = 3
"""Short loads for each window and batch."""
SEQUENCES = 2000
"""That many are made; requests draw from them."""
LONGEST = 2000


class RequestBatcher:
    """Whole requests in one call: the window begins with the first of a batch."""

    def __init__(self, network: Any, window: float, max_batch: int):
        self._window, self._max_batch = window, max_batch
        self._network = network
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, x: np.ndarray) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        self._queue.put((future, x))
        return future

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = self._collect(first)
            lengths = np.array([len(x) for _, x in batch])
            padded = np.empty((len(batch), lengths.max(), self._network.input_size), np.float32)
            for row, (_, x) in zip(padded, batch):
                row[: len(x)] = x
            answers, _ = self._network(padded, lengths=lengths)
            for (future, x), y in zip(batch, answers):
                future.set_result(y[: len(x)])

    def _collect(self, first: Any) -> list[Any]:
        batch, end = [first], time.perf_counter() + self._window
        while len(batch) < self._max_batch:
            left = end - time.perf_counter()
            try:
                item = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                break
            if item is None:
                self._queue.put(None)
                break
            batch.append(item)
        return batch

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()


def capacity(network: Any, sequences: Sequence[np.ndarray]) -> float:
    """Requests a second from a full queue, with the best batch."""
    rates = []
    for batch in BATCHES:
        batcher = RequestBatcher(network, 0.0, batch)
        start = time.perf_counter()
        futures = [batcher.submit(x) for x in sequences]
        for future in reversed(futures):  # the last comes last: to be woken by each would cost time
            future.result()
        rates.append(len(sequences) / (time.perf_counter() - start))
        batcher.close()
    return max(rates)


def latencies(batcher: Any, requests: Sequence[np.ndarray], gaps: np.ndarray) -> tuple[np.ndarray, float]:
    """Seconds from when each was due to its answer, and answers a second."""
    due = time.perf_counter() + 0.01 + np.cumsum(gaps)
    answered, futures = np.zeros(len(requests)), []

    def note(k: int) -> Callable[[Future[Any]], None]:
        def callback(_: Future[Any]) -> None:
            answered[k] = time.perf_counter()

        return callback

    for k, (x, moment) in enumerate(zip(requests, due.tolist())):
        if (left := moment - time.perf_counter()) > 0:
            time.sleep(left)
        future = batcher.submit(x)
        future.add_done_callback(note(k))
        futures.append(future)
    for future in futures:
        future.result()
    while not answered.all():
        time.sleep(0.001)
    return answered - due, len(requests) / (answered.max() - due[0])


def measured(
    make: Callable[[], Any], sequences: Sequence[np.ndarray], rate: float, seconds: float, seed: int
) -> tuple[np.ndarray, float]:
    """Latencies in seconds, and requests answered a second."""
    rng, count = np.random.default_rng(seed), int(rate * seconds)
    requests = [sequences[k] for k in rng.integers(0, len(sequences), count)]
    batcher = make()
    try:
        return latencies(batcher, requests, rng.exponential(1 / rate, count))
    finally:
        batcher.close()


def figures(rounds: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Median and 99th percentile of the latencies of some rounds, in ms, and requests answered a second."""
    found = np.concatenate([seconds for seconds, _ in rounds])
    return np.array([*np.percentile(found, (50, 99)) * 1e3, statistics.mean(rate for _, rate in rounds)])


def better(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """By how much each of ``figures`` is better: above 1, ours."""
    return np.array([theirs[0] / ours[0], theirs[1] / ours[1], ours[2] / theirs[2]])


def compare(network: Any, sequences: list[np.ndarray], args: Any) -> None:
    """Print the rows of one distribution of lengths."""

    def whole(window: float, batch: int) -> Callable[[], RequestBatcher]:
        return lambda: RequestBatcher(network, window, batch)

    def rate() -> float:  # anew for each round: a busy machine changes
        return args.load * capacity(network, sequences)

    tried: dict[tuple[float, int], list[float]] = {(window, batch): [] for window in WINDOWS for batch in BATCHES}
    for seed in range(TRIES):
        sent = rate()
        for choice, p99 in tried.items():
            p99.append(figures([measured(whole(*choice), sequences, sent, args.seconds / 3, seed)])[1])
    window, batch = min(tried, key=lambda choice: statistics.median(tried[choice]))
    theirs, ours = [], []
    for seed in range(TRIES, TRIES + args.rounds):
        sent = rate()
        theirs.append(measured(whole(window, batch), sequences, sent, args.seconds, seed))
        ours.append(measured(lambda: fastrnn.Batcher(network, max_queue=1 << 20), sequences, sent, args.seconds, seed))
    all_theirs, all_ours = figures(theirs), figures(ours)
    single = np.array([better(figures([a]), figures([b])) for a, b in zip(theirs, ours)])
    for name, (p50, p99, answered) in (
        (f"requests: {window * 1e3:g} ms, {batch}", all_theirs),
        ("fastrnn.Batcher", all_ours),
    ):
        print(line([name, f"{p50:.2f}", f"{p99:.2f}", f"{answered:.0f}"]))
    print(line(["better by", *(f"{ratio:.2f}" for ratio in better(all_theirs, all_ours))]))
    print(line(["in a round", *(f"{low:.2f} to {high:.2f}" for low, high in zip(single.min(0), single.max(0)))]))
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--cell", type=lambda text: cell_names(text)[0], default="LSTM")
    options.add_argument("--hidden", type=int, default=128, help="units, and features of the input")
    options.add_argument("--mean", type=float, default=75, help="steps of a sequence")
    options.add_argument("--sigma", type=float, nargs="+", default=[1.0, 1.5], help="of the logarithm of the lengths")
    options.add_argument("--load", type=float, default=0.7, help="share of the other batcher's capacity")
    options.add_argument("--seconds", type=float, default=2.0, help="of load, for each contender and round")
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args(argv)
    prepare(2, None)
    fastrnn.set_num_threads(1)
    rng = np.random.default_rng(0)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[args.cell]
    weights = (rng.uniform(-0.08, 0.08, (gates * args.hidden, args.hidden)) for _ in range(2))
    network = getattr(fastrnn, args.cell)(*weights)
    print(f"### {cpu_model()}: {args.cell} {args.hidden}, {args.mean:g} steps on average")
    for sigma in args.sigma:
        lengths = rng.lognormal(np.log(args.mean) - sigma**2 / 2, sigma, SEQUENCES).astype(int).clip(1, LONGEST)
        print(
            f"\nsigma {sigma:g}: half of the sequences have at most {np.median(lengths):.0f} steps, 1 % more than "
            f"{np.percentile(lengths, 99):.0f}\n"
        )
        print(heading(["batcher"], ["p50 ms", "p99 ms", "answered/s"]))
        compare(network, [rng.standard_normal((n, args.hidden), np.float32) for n in lengths], args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
