"""Requests of a batcher, the order in which they wait, and the rows that run."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

from .batcher_answers import Answer

PRIORITY = 1.0
"""Seconds of waiting that one level of priority stands for, so that no request waits for ever."""

_NEVER = np.iinfo(np.int64).max
_numbers = itertools.count()


class Request:
    """A sequence, or a chunk of one, and how far it is."""

    def __init__(
        self,
        future: Answer,
        x: Any,
        y: Any,
        steps: int,
        *,
        session: SessionState | None = None,
        deadline: float | None = None,
        priority: float = 0,
        final_state: bool = False,
    ):
        self.future, self.x, self.y, self.steps = future, x, y, steps
        self.session, self.final_state = session, final_state
        self.number, self.priority = next(_numbers), priority
        self.submitted = time.monotonic()
        self.expires = None if deadline is None else self.submitted + deadline
        self.row: int | None = None  # of the store, from the first step to the last
        self.saved: dict[str, np.ndarray] | None = None  # the state that it began with; None: at the beginning
        self.slot: int | None = None  # among those that run
        self.done_steps = 0
        self.ended = False

    def claim(self) -> bool:
        """Whether the client still waits for an answer; it cannot cancel any more then."""
        future = self.future
        try:
            if future.running() or (future.done() and not future.cancelled()):
                return future.running()  # the client has called what is for us
            return future.set_running_or_notify_cancel()
        except Exception:  # or calls it just now
            return False

    def answer(self, error: BaseException | None = None) -> None:
        """Give the client y or an error, and let go of all that an answered future has no use for."""
        future, y = self.future, self.y
        future.cancelled_by_client = None
        self.x = self.y = self.session = self.saved = None
        with suppress(BaseException):  # the client may have set the future, or taken it to pieces
            if error is None:
                future.set_result(y)
            else:
                future.set_exception(error)

    def waits_since(self, since: float) -> float:
        """Its place in the queue, where the smallest comes first."""
        return since - self.priority * PRIORITY


class SessionState:
    """A sequence that comes in chunks, as the scheduler sees it."""

    def __init__(self, home: object, start: dict[str, np.ndarray] | None):
        self.home = home  # of the process that opened it
        self.start = start  # the state that it begins with; None: at the beginning
        self.row: int | None = None
        self.current: Request | None = None
        self.waiting: deque[Request] = deque()
        self.outstanding = 0  # chunks without an answer
        self.closed = False
        self.lost: BaseException | None = None  # why its state is not known any more


class RequestHeap:
    """Requests by a key, the smallest first.  Those that have ended leave when they are met, or make too many."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Request]] = []
        self._limit = 64

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, key: float, request: Request) -> None:
        """Add a request; of equal keys the one that was made first comes first."""
        if len(self._entries) >= self._limit:
            self._entries = [entry for entry in self._entries if not entry[2].ended]
            heapq.heapify(self._entries)
            self._limit = 2 * len(self._entries) + 64
        heapq.heappush(self._entries, (key, request.number, request))

    def first(self) -> tuple[float, Request] | None:
        """The smallest key and its request, which stays."""
        while self._entries and self._entries[0][2].ended:
            heapq.heappop(self._entries)
        return (self._entries[0][0], self._entries[0][2]) if self._entries else None

    def pop(self) -> Request:
        """Take what ``first`` has found."""
        return heapq.heappop(self._entries)[2]


class Running:
    """The requests of a tick, side by side as a store takes them; who joins or leaves does not move the others."""

    def __init__(self, capacity: int):
        self.requests: list[Request] = []
        self.x: list[Any] = []
        self.y: list[Any] = []
        self._rows, self._begins, self._left, self._turns = (np.zeros(capacity, np.int64) for _ in range(4))
        self._soonest = 0  # steps after which one may be at its end

    def __len__(self) -> int:
        return len(self.requests)

    def join(self, request: Request, turn: int) -> None:
        """Let a request run; it may be asked to wait again after ``turn`` steps."""
        assert request.row is not None
        k = request.slot = len(self.requests)
        self.requests.append(request)
        self.x.append(request.x)
        self.y.append(request.y)
        left = request.steps - request.done_steps
        self._rows[k], self._begins[k], self._left[k], self._turns[k] = request.row, request.done_steps, left, turn
        self._soonest = min(self._soonest, left) if k else left

    def leave(self, request: Request) -> None:
        """Take a request out; the last one gets its place."""
        k = request.slot
        assert k is not None
        request.done_steps, request.slot = int(self._begins[k]), None
        last, x, y = self.requests.pop(), self.x.pop(), self.y.pop()
        end = len(self.requests)
        if k != end:
            last.slot, self.requests[k], self.x[k], self.y[k] = k, last, x, y
            for array in (self._rows, self._begins, self._left, self._turns):
                array[k] = array[end]

    def call(self, steps: int) -> tuple[np.ndarray, list[Any], list[Any], np.ndarray, np.ndarray]:
        """The arguments of ``Store.advance`` for so many steps of each, fewer of those that end before."""
        n = len(self.requests)
        return self._rows[:n], self.x, self.y, self._begins[:n], np.minimum(self._left[:n], steps)

    def advanced(self, steps: np.ndarray, most: int) -> list[Request]:
        """Count the steps of a call; those that are at their end, which have not left."""
        n = len(steps)
        self._begins[:n] += steps
        self._left[:n] -= steps
        self._turns[:n] -= most
        self._soonest -= most
        if self._soonest > 0:
            return []
        left = self._left[:n]
        ended = [self.requests[k] for k in np.flatnonzero(left == 0)]
        self._soonest = int(left.min(where=left > 0, initial=_NEVER))
        return ended

    def had_their_turn(self) -> list[Request]:
        """Those that have run long enough to let others in."""
        return [self.requests[k] for k in np.flatnonzero(self._turns[: len(self.requests)] <= 0)]
