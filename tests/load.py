"""A batcher under random requests, some of them cancelled, expired or broken; what came back is checked and counted."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastrnn


class BrokenInputError(Exception):
    """What the engine raises for a poisoned row."""


POISON = np.float32(1e30)
"""First element of a sequence that breaks its call."""


def layer(size: int = 8, seed: int = 0) -> fastrnn.LSTM:
    """A small network."""
    rng = np.random.default_rng(seed)
    return fastrnn.LSTM(*(rng.uniform(-0.4, 0.4, (4 * size, size)) for _ in range(2)))


class FragileStore:
    """A store whose calls with a poisoned row fail, after half of their rows have moved."""

    def __init__(self, store: Any):
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def grown(self, capacity: int) -> FragileStore:
        return FragileStore(self._store.grown(capacity))

    def advance(self, rows: Any, x: Any, y: Any, begins: Any, steps: Any) -> None:
        if any(len(a) and a[0, 0] == POISON for a in x):
            half = len(rows) // 2
            self._store.advance(rows[:half], x[:half], y[:half], begins[:half], steps[:half])
            raise BrokenInputError
        self._store.advance(rows, x, y, begins, steps)


def break_on_poison(batcher: fastrnn.Batcher) -> None:
    """Give a batcher a fragile store."""
    batcher._scheduler.store = FragileStore(batcher._scheduler.store)


@dataclass
class Load:
    """``requests`` sequences from several threads, each checked against the same one run alone."""

    batcher: fastrnn.Batcher
    network: fastrnn.LSTM
    seed: int = 0
    threads: int = 3
    outstanding: int = 400
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        lengths = [0, 1, 1, 2, 3, *rng.integers(1, 40, 90), *rng.integers(40, 300, 5)]
        self.x = [rng.standard_normal((n, self.network.input_size), np.float32) for n in lengths]
        self.y = [self.network(x)[0] for x in self.x]
        self.poisoned = self.x[20].copy()
        self.poisoned[0, 0] = POISON
        self._lock = threading.Lock()

    def run(self, requests: int) -> None:
        """Send them all, and wait for the answers."""
        shares = [requests // self.threads + (k < requests % self.threads) for k in range(self.threads)]
        senders = [threading.Thread(target=self._send, args=(k, share)) for k, share in enumerate(shares)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()

    def _send(self, number: int, requests: int) -> None:
        rng = random.Random(1000 * self.seed + number)
        room = threading.Semaphore(self.outstanding)
        cancelled: list[Future[Any]] = []
        for k in range(requests):
            room.acquire()
            choice = rng.randrange(len(self.x))
            fate = rng.random()
            poisoned = fate < 0.002
            options: dict[str, Any] = {"priority": rng.randrange(3)}
            if fate > 0.9:
                options["deadline"] = rng.choice([0, 1e-4, 1e-3])
            if rng.random() < 0.05:
                options["final_state"] = True
            x = self.poisoned if poisoned else self.x[choice]
            future = self._submit(x, options)
            future.add_done_callback(self._checker(choice, poisoned, options))
            future.add_done_callback(lambda _: room.release())
            if 0.8 < fate < 0.85:
                future.cancel()
            elif fate > 0.75 and rng.random() < 0.5:
                cancelled.append(future)
            if cancelled and k % 7 == 0:
                cancelled.pop(rng.randrange(len(cancelled))).cancel()
        for _ in range(self.outstanding):
            room.acquire()

    def _submit(self, x: np.ndarray, options: dict[str, Any]) -> Future[Any]:
        while True:
            try:
                return self.batcher.submit(x, **options)
            except fastrnn.QueueFullError:
                time.sleep(0.001)

    def _checker(self, choice: int, poisoned: bool, options: dict[str, Any]) -> Any:
        def check(future: Future[Any]) -> None:
            outcome, problem = "completed", ""
            try:
                y = future.result()
            except CancelledError:
                outcome = "cancelled"
            except fastrnn.DeadlineError:
                outcome = "expired"
                problem = "" if "deadline" in options else "expired without a deadline"
            except BrokenInputError:
                outcome = "failed"
                problem = "" if poisoned else "failed for another's fault"
            else:
                y = y[0] if "final_state" in options else y
                if poisoned or y.tobytes() != self.y[choice].tobytes():
                    problem = f"wrong answer for {len(self.x[choice])} steps"
            with self._lock:
                self.outcomes[outcome] += 1
                if problem:
                    self.problems.append(problem)

        return check

    def check(self, requests: int) -> None:
        """Every request has had one answer, the right one, and the batcher has counted it so."""
        assert self.problems == [], Counter(self.problems)
        assert sum(self.outcomes.values()) == requests
        stats = self.batcher.stats()
        assert stats.submitted == requests
        assert {name: getattr(stats, name) for name in ("completed", "cancelled", "expired", "failed")} == {
            name: self.outcomes[name] for name in ("completed", "cancelled", "expired", "failed")
        }
        assert (stats.queued, stats.active) == (0, 0)
