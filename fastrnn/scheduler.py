"""The thread of a batcher: at every tick requests join, all that run advance together, and those at their end leave.

Only this thread touches the store, the queue and the running requests.  Others hand over through two deques, and take
the lock for no longer than that; nothing that users wrote is called under it, nor in this thread: callbacks have one of
their own (:mod:`fastrnn.batcher_answers`).  An error of the engine ends the requests that it concerns.  Should the
thread itself fail, all that wait get a ``ClosedError``, and so does what is submitted later.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue

import numpy as np

from .batcher_answers import Callbacks
from .batcher_queue import Request, RequestHeap, Running, SessionState
from .batcher_stats import BatcherStats, Counters
from .errors import ClosedError, DeadlineError, PoolFullError, QueueFullError
from .streams import Store, check_shared

TURN = 32
"""Steps that a request may run before it has to let in others that wait."""

LEAST = 2
"""Steps of a tick at least, where the batcher may take so many: a single one costs up to twice as much a step."""

DROPPED = "the batcher was closed before the request was answered"

_LIVE: weakref.WeakSet[Scheduler] = weakref.WeakSet()


class Scheduler:
    """What stands behind a ``Batcher``; it ends when the batcher is closed or no longer used."""

    def __init__(
        self,
        make_store: Callable[[int], Store],
        max_batch: int,
        max_queue: int,
        max_sessions: int,
        tick: float,
        max_steps: int,
    ):
        self._make_store, self._max_batch = make_store, max_batch
        self._room, self._max_sessions = max_batch + max_queue, max_sessions
        self._tick, self._max_steps = tick, max_steps
        self.closed = self._forked = False
        self._failure: BaseException | None = None
        self.store = make_store(max_batch)
        check_shared(self.store)
        self._begin()
        _LIVE.add(self)

    def _begin(self) -> None:
        """All that a forked child has anew but the store, which it makes when it starts its thread."""
        self.lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._inbox: deque[Request] = deque()
        self._notices: deque[Request | SessionState] = deque()
        self._open: set[Request] = set()
        self._ended: deque[tuple[Request, str, BaseException | None]] = deque()
        self.counters = Counters()
        self.sessions = 0
        self._home = object()
        self._thread: threading.Thread | None = None
        self.callbacks = Callbacks(lambda: self._thread)
        self._sleeping = self._stop = self._drop = False
        self._queue, self._deadlines = RequestHeap(), RequestHeap()
        self._running, self._apart = Running(self._max_batch), deque[Request]()
        self._free: list[int] = []
        self._step_time = self._tick  # seconds a step of a row takes: at first so long that ticks are short

    # ---- what other threads call ----

    def submit(self, request: Request) -> None:
        """Take a request, or say why not."""
        session = request.session
        with self.lock:
            self._check(session)
            # The next chunk of a session is always taken: its state waits for it.
            if len(self._open) >= self._room and (session is None or session.outstanding):
                self.counters.rejected += 1
                raise QueueFullError(
                    f"{self._room} requests run or wait already (max_batch + max_queue); send it again later,"
                    " or make the batcher with a larger max_queue="
                )
            if self._thread is None:
                self._start()
            self._open.add(request)
            if session is not None:
                session.outstanding += 1
            try:
                self.counters.submitted += 1
                self._inbox.append(request)
            except BaseException:  # Ctrl-C
                self._open.discard(request)
                if session is not None:
                    session.outstanding -= 1
                raise
        self._rouse()

    def _start(self) -> None:
        if self._forked:
            self.store, self._forked = self._make_store(self._max_batch), False
        self._free = list(range(self.store.capacity))[::-1]
        self._thread = threading.Thread(target=self._run, name="fastrnn-batcher", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def _check(self, session: SessionState | None) -> None:
        if session is not None and session.home is not self._home:
            raise ClosedError("the session was opened before this process was forked; open() begins a new one")
        if session is not None and session.lost is not None:
            raise _lost(session.lost)
        if session is not None and session.closed:
            raise ClosedError("the session is closed; open() begins a new one")
        if self.closed:
            raise self._closed_error("the batcher is closed; make a new one")

    def _closed_error(self, text: str) -> ClosedError:
        """One for each request, as whoever raises it adds to it."""
        if self._failure is None:
            return ClosedError(text)
        error = ClosedError(f"the batcher's thread has failed ({type(self._failure).__name__}); make a new batcher")
        error.__cause__ = self._failure
        return error

    def open(self, start: dict[str, np.ndarray] | None = None) -> SessionState:
        """Begin a session, in a state as the store reads it."""
        with self.lock:
            self._check(None)
            if self.sessions >= self._max_sessions:
                raise PoolFullError(
                    f"all {self._max_sessions} sessions of the batcher are open; close some,"
                    " or make it with a larger max_sessions="
                )
            self.sessions += 1
            return SessionState(self._home, start)

    def close_session(self, session: SessionState) -> None:
        """End a session after the chunks that it has."""
        with self.lock:
            if session.closed or session.home is not self._home:
                return
            session.closed = True
            self.sessions -= 1
        self.notice(session)

    def notice(self, what: Request | SessionState) -> None:
        """Say that a request was cancelled, or a session closed."""
        with self.lock:
            self._notices.append(what)
        self._rouse()

    def _rouse(self) -> None:
        if self._sleeping:  # only the thread itself says that it no longer does: who is interrupted here loses nothing
            self._wake.put(None)

    def stats(self) -> BatcherStats:
        """The counts at this moment."""
        with self.lock:
            active = min(len(self._running) + len(self._apart), len(self._open))
            return self.counters.stats(len(self._open) - active, active, self.sessions)

    def retire(self) -> None:
        """End when all is answered; called while garbage is collected, so it waits for nothing."""
        self.closed = self._stop = True
        self._wake.put(None)

    def close(self, drain: bool, timeout: float | None) -> None:
        """Take no more, answer what there is or drop it, and end the thread."""
        with self.lock:
            self.closed, thread = True, self._thread
        self._stop = True
        self._wake.put(None)
        if thread is None or thread is threading.current_thread():  # a destructor may run in any thread
            return
        if drain:
            thread.join(timeout)
        if thread.is_alive():
            self._drop = True
            self._wake.put(None)
            thread.join()

    def forked(self) -> None:
        """A child has no thread, and nobody who would answer what its parent was asked."""
        left = {*self._open, *(request for request, *_ in self._ended)}
        self._begin()
        self._forked = True
        for request in left:
            Future.__init__(request.future)  # its lock may have been held by a thread that is not here
            request.ended = True
            request.answer(ClosedError("the process was forked after the request was sent; its parent has the answer"))

    # ---- the thread ----

    def _run(self) -> None:
        me, failure = threading.current_thread(), None
        try:
            while self._thread is me and self._turn():  # another one: its start was interrupted, and made again
                pass
        except BaseException as error:
            failure = error
            raise
        finally:
            if self._thread is me:
                self._finish(failure)

    def _turn(self) -> bool:
        """A tick, or a sleep until there is something to do; False when there will be nothing any more."""
        self._take_over()
        if self._drop:
            self._drop_all()
        if self._running or self._queue or self._apart:
            self._let_in()
            self._advance()
            return True
        with self.lock:  # who hands over now is seen here, or sees that there is somebody to wake
            if self._inbox or self._notices:
                return True
            if self._stop or self._thread is not threading.current_thread():
                return False
            self._sleeping = True
        self._wake.get()
        self._sleeping = False
        while not self._wake.empty():
            self._wake.get()
        return True

    def _finish(self, failure: BaseException | None) -> None:
        """No request stays without an answer, however the thread ends."""
        with self.lock:
            self._failure, self.closed = failure, True
        while self._ended:
            request, _, error = self._ended.popleft()
            request.answer(error)
        while self._open:
            request = self._open.pop()
            if not request.ended and request.claim():
                request.ended = True
                self.counters.ended["failed"] += 1
                request.answer(self._closed_error(DROPPED))
        self.callbacks.end()

    def _take_over(self) -> None:
        """What was handed over since the last tick, and what must not run any more."""
        while self._inbox:
            request = self._inbox.popleft()
            if request.ended:
                continue
            if request.expires is not None:
                self._deadlines.push(request.expires, request)
            session = request.session
            if session is not None and session.lost is not None:
                self._end(request, _lost(session.lost))
                continue
            if session is not None and session.current is not None:
                session.waiting.append(request)
                continue
            if session is not None:
                session.current = request
            self._queue.push(request.waits_since(request.submitted), request)
        while self._notices:
            what = self._notices.popleft()
            if isinstance(what, Request):
                self._end(what, CancelledError())
            else:
                self._free_row_of(what)
        now = time.monotonic()
        while (first := self._deadlines.first()) is not None and first[0] <= now:
            request = self._deadlines.pop()
            if request.slot is not None:
                self._running.leave(request)
            self._end(
                request, DeadlineError(f"the deadline passed after {request.done_steps} of {request.steps} steps")
            )
        self._answer()

    def _drop_all(self) -> None:
        with self.lock:
            left = list(self._open)
        for request in left:
            self._end(request, self._closed_error(DROPPED))
        self._answer()

    # ---- joining ----

    def _let_in(self) -> None:
        """Fill the batch from the queue; where it is full, those that had their turn change places with others."""
        running, queue = self._running, self._queue
        if not queue:
            return
        now = time.monotonic()
        entered: list[Request] = []
        if len(running) == self._max_batch:
            for request in running.had_their_turn():
                first, key = queue.first(), request.waits_since(now)
                if first is not None and first[0] <= key:
                    running.leave(request)
                    entered.append(queue.pop())
                    queue.push(key, request)
        while len(running) + len(entered) < self._max_batch and queue.first() is not None:
            entered.append(queue.pop())
        self._give_rows(entered, now)
        for request in entered:
            if not request.ended:
                running.join(request, TURN)

    def _give_rows(self, entered: list[Request], now: float) -> None:
        new = [request for request in entered if request.row is None]
        try:
            self._begin_rows(new)
        except BaseException:
            for request in new:
                try:
                    self._begin_rows([request])
                except BaseException as error:
                    self._end(request, error)
        for request in new:
            if request.row is not None:
                self.counters.queue_time.add(now - request.submitted)

    def _begin_rows(self, requests: list[Request]) -> None:
        """Rows in the states that requests begin with; after an error none has got one."""
        kept = [request for request in requests if request.session is not None and request.session.row is not None]
        fresh = [request for request in requests if request.session is None or request.session.row is None]
        rows, states = list[int](), dict[str, np.ndarray]()
        try:
            for _ in fresh:
                rows.append(self._new_row())
            if fresh:
                self.store.clear(np.array(rows))
            for request, row in zip(fresh, rows):
                if request.session is not None and request.session.start is not None:
                    self.store.write(np.array([row]), request.session.start)
            if kept:
                states = self.store.read(np.array([request.session.row for request in kept if request.session]))
        except BaseException:
            self._free += rows
            raise
        for request, row in zip(fresh, rows):
            request.row = row
            if request.session is not None:
                request.session.row, request.saved = row, request.session.start
        for k, request in enumerate(kept):
            assert request.session is not None
            request.row, request.saved = request.session.row, {name: a[k : k + 1] for name, a in states.items()}

    def _new_row(self) -> int:
        if not self._free:
            capacity = self.store.capacity
            self.store = self.store.grown(2 * capacity)
            self._free = list(range(capacity, 2 * capacity))[::-1]
        return self._free.pop()

    def _restart(self, request: Request) -> None:
        """The state that a request began with."""
        row = np.array([request.row])
        if request.saved is None:
            self.store.clear(row)
        else:
            self.store.write(row, request.saved)
        request.done_steps = 0

    # ---- running ----

    def _advance(self) -> None:
        running = self._running
        most = min(self._max_steps, max(LEAST, int(self._tick / (self._step_time * max(1, len(running))))))
        if running:
            try:
                rows, x, y, begins, steps = running.call(most)
                self._call(rows, x, y, begins, steps)
            except BaseException as error:
                self._part(error)
            else:
                for request in running.advanced(steps, most):
                    self._complete(request)
        self._advance_apart(most)
        self._answer()

    def _call(self, rows: np.ndarray, x: list[object], y: list[object], begins: np.ndarray, steps: np.ndarray) -> None:
        began = time.perf_counter()
        self.store.advance(rows, x, y, begins, steps)
        took, count = time.perf_counter() - began, int(steps.sum())
        self.counters.ticks += 1
        self.counters.rows += len(steps)
        self.counters.steps += count
        self.counters.busy += took
        if count:
            # The fastest of late: a call that had to wait for the GIL says nothing about steps.
            self._step_time = min(took / count, 1.05 * self._step_time)

    def _part(self, error: BaseException) -> None:
        """One of many has failed: all begin again, each alone, and those that are at fault fail."""
        together = list(self._running.requests)
        if len(together) == 1:
            self._end(together[0], error)
            return
        for request in together:
            self._running.leave(request)
            try:
                self._restart(request)
            except BaseException as lost:
                self._end(request, lost)
            else:
                self._apart.append(request)

    def _advance_apart(self, most: int) -> None:
        """One of those that run alone, so that the others hardly notice."""
        while self._apart and self._apart[0].ended:
            self._apart.popleft()
        if not self._apart:
            return
        request = self._apart.popleft()
        steps = min(most, request.steps - request.done_steps)
        try:
            self._call(
                np.array([request.row]),
                [request.x],
                [request.y],
                np.array([request.done_steps]),
                np.array([steps]),
            )
        except BaseException as error:
            self._end(request, error)
            return
        request.done_steps += steps
        if request.done_steps == request.steps:
            self._complete(request)
        else:
            self._apart.append(request)

    # ---- leaving ----

    def _complete(self, request: Request) -> None:
        try:
            if request.final_state:
                request.y = request.y, self.store.shown(self.store.read(np.array([request.row])))
        except BaseException as error:
            self._end(request, error)
        else:
            self._end(request)

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        """A request leaves: complete where it is at its end, else cancelled or with an error."""
        if request.ended:
            return
        if request.slot is not None:
            self._running.leave(request)
        outcome = "completed"
        if not request.claim():
            outcome = "cancelled"
        elif error is not None:
            outcome = "expired" if isinstance(error, DeadlineError) else "failed"
        request.ended = True
        self._ended.append((request, outcome, error))
        session = request.session
        if session is None:
            if request.row is not None:
                self._free.append(request.row)
        elif session.current is request:
            self._end_chunk(session, request, outcome != "completed")
        if outcome == "completed":
            self.counters.latency.add(time.monotonic() - request.submitted)

    def _end_chunk(self, session: SessionState, request: Request, undo: bool) -> None:
        """The session goes on with its next chunk; with ``undo`` as if this one had never been sent."""
        if undo and request.row is not None:
            try:
                self._restart(request)
            except BaseException as error:
                session.lost = error
        session.current = None
        while session.waiting and session.current is None:
            following = session.waiting.popleft()
            if following.ended:
                continue
            if session.lost is None:
                session.current = following
                self._queue.push(following.waits_since(following.submitted), following)
            else:
                self._end(following, _lost(session.lost))

    def _answer(self) -> None:
        """Tell whoever asked, with nothing locked."""
        if not self._ended:
            return
        with self.lock:
            for request, outcome, _ in self._ended:
                self._open.discard(request)
                self.counters.ended[outcome] += 1
                if request.session is not None:
                    request.session.outstanding -= 1
                    if request.session.closed:
                        self._free_row_of(request.session)
        while self._ended:
            request, _, error = self._ended[0]
            request.answer(error)
            self._ended.popleft()

    def _free_row_of(self, session: SessionState) -> None:
        """Of a closed session; its last chunk does it if there are any."""
        if session.row is not None and not session.outstanding:
            self._free.append(session.row)
            session.row = None


def _lost(cause: BaseException) -> ClosedError:
    error = ClosedError("the state of the session was lost with an earlier chunk; open() begins a new one")
    error.__cause__ = cause
    return error


def _end_all() -> None:
    for scheduler in list(_LIVE):
        with suppress(Exception):  # of one; the others end all the same
            scheduler.close(drain=False, timeout=None)


def _forked() -> None:
    for scheduler in list(_LIVE):
        scheduler.forked()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
