"""Requests of many threads and tasks, advanced together: a :class:`Batcher` joins and parts them between time steps."""

from __future__ import annotations

import math
import operator
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from .arguments import MOST, described
from .batcher_answers import Answer
from .batcher_queue import Request, SessionState
from .batcher_stats import BatcherStats
from .errors import ArgumentError
from .scheduler import Scheduler
from .streams import length_of, store_of


class Batcher:
    """Answers sequences from any number of threads and asyncio tasks, with the bits of each one run alone.

    A thread, started by the first request, advances all requests together in one call: a tick.  A request joins at the
    next tick and leaves when its own steps are done, so a short one does not wait for a long one.  A tick takes as many
    steps as fit into ``tick`` seconds, at least two; when nothing else runs, a request runs at once.  Where more than
    ``max_batch`` are there, they take turns of some steps, in the order of priority and then of waiting.

    Parameters
    ----------
    network : layer or Model
        As for a stream: it must not read a sequence from its end.
    max_batch : int
        Requests that a tick advances at most.  More than some dozens make a step of a small network no cheaper.
    max_queue : int
        Requests that may wait besides; one more is refused at once with a ``QueueFullError``.
    max_sessions : int
        Sessions that may be open at once.
    tick : float
        Seconds that a newcomer waits for those that run, about; shorter ones cost throughput.
    max_steps_per_tick : int
        Steps of a tick at most; with 1 requests join and leave at every step.
    constants, states
        As for ``model.stream``.

    Notes
    -----
    **Errors** reach the request that they concern.  A wrong shape is raised by ``submit``.  Where a call of many fails,
    its requests begin again, each alone, and only those fail that fail alone.

    **Shutdown.**  ``close()``, or leaving a ``with`` block, ends the thread after the last answer; so does dropping
    the batcher.  What is not answered when the interpreter exits gets a ``ClosedError``.

    **Fork.**  A child starts a thread of its own with its first request.  Requests of the parent are answered there;
    the child's copies of their futures have a ``ClosedError``.  Its counts begin at 0.

    **Callbacks** of futures run one after the other in a thread of their own: one that blocks or raises holds up other
    callbacks, and no request.  Python code that keeps the GIL holds up the ticks, for 5 ms at a time unless
    ``sys.setswitchinterval`` is set lower.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.RNN(np.eye(2), np.zeros((2, 2)))
    >>> with Batcher(layer) as batcher:
    ...     futures = [batcher.submit(np.ones((steps, 2))) for steps in (3, 1)]
    ...     [future.result().shape for future in futures]
    [(3, 2), (1, 2)]
    """

    def __init__(
        self,
        network: Any,
        *,
        max_batch: int = 64,
        max_queue: int = 1024,
        max_sessions: int = 4096,
        tick: float = 0.0005,
        max_steps_per_tick: int = 64,
        constants: Mapping[str, Any] | None = None,
        states: Any = None,
    ):
        seconds = _number(tick, "tick")
        if not 0 < seconds < math.inf:
            raise ArgumentError(f"tick must be seconds above 0, got {described(tick)}")
        self._scheduler = Scheduler(
            lambda capacity: store_of(network, capacity, constants, states),
            _whole(max_batch, "max_batch", 1),
            _whole(max_queue, "max_queue", 0),
            _whole(max_sessions, "max_sessions", 0),
            seconds,
            _whole(max_steps_per_tick, "max_steps_per_tick", 1),
        )
        weakref.finalize(self, self._scheduler.retire).atexit = False

    # ---- whole sequences ----

    def submit(
        self, x: Any, *, deadline: float | None = None, priority: float = 0, final_state: bool = False
    ) -> Future[Any]:
        """Send a sequence.

        Parameters
        ----------
        x : (seq_len, input_size) array, or a dict of arrays for a model with several inputs
            It is copied.
        deadline : float, optional
            Seconds from now.  It is looked at between ticks, whether the request waits or runs.
        priority : float
            Who waits first: a level counts as one second of waiting more, so none waits for ever.
        final_state : bool
            Answer with ``(y, state)``; the state as ``Stream.state`` and ``Pool.state`` have it, and as a call of the
            layer, ``Pool.set_state`` and :meth:`open` take it.

        Returns
        -------
        Future of y, (seq_len, features), or (features,) of a layer that gives the last step alone: what a call of the
        network gives for this sequence.  ``cancel()`` works until the answer is there.

        Raises
        ------
        ShapeError
            x is no sequence of this network.
        QueueFullError, ClosedError
            The batcher takes no more for now, or for ever.

        The future fails with a ``DeadlineError``, a ``ClosedError``, or whatever the network raised.
        """
        return self._submit(x, None, deadline, priority, final_state, False)

    async def infer(
        self, x: Any, *, deadline: float | None = None, priority: float = 0, final_state: bool = False
    ) -> Any:
        """The same for asyncio; a task that is cancelled cancels its request."""
        import asyncio

        return await asyncio.wrap_future(self._submit(x, None, deadline, priority, final_state, True))

    def _submit(
        self,
        x: Any,
        session: SessionState | None,
        deadline: float | None,
        priority: float,
        final_state: bool,
        at_once: bool,
    ) -> Answer:
        """All that a client gives is looked at here, in its own thread.  ``at_once``: the future has a callback that
        may run in the scheduler's thread."""
        store, scheduler = self._scheduler.store, self._scheduler
        x = store.check_sequence(x, "x")
        x = {name: np.array(a) for name, a in x.items()} if isinstance(x, Mapping) else np.array(x)
        level = _number(priority, "priority")
        if math.isinf(level):
            raise ArgumentError(f"priority must be finite, got {described(priority)}")
        future = Answer(None if at_once else scheduler.callbacks.call)
        request = Request(
            future,
            x,
            store.results(x),
            length_of(x),
            session=session,
            deadline=None if deadline is None else _number(deadline, "deadline"),
            priority=level,
            final_state=bool(final_state),
        )
        future.cancelled_by_client = partial(scheduler.notice, request)
        scheduler.submit(request)
        return future

    # ---- sequences in chunks ----

    def open(self, state: Any = None) -> Session:
        """Begin a sequence that comes in chunks, from the beginning or from a state: one that a call of the layer gave
        for one sequence, ``Stream.state``, ``Pool.state`` or a ``final_state``."""
        return Session(self, state)

    async def stream(self, source: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
        """Chunks of a sequence as they come, from an iterator or an asynchronous one: y of each, in order."""
        with self.open() as session:
            if isinstance(source, AsyncIterable):
                async for chunk in source:
                    yield await session.infer(chunk)
            else:
                for chunk in source:
                    yield await session.infer(chunk)

    # ---- all ----

    def stats(self) -> BatcherStats:
        """Counts and times since the batcher was made."""
        return self._scheduler.stats()

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and end the thread, after the callbacks of those that it has answered.

        Parameters
        ----------
        drain : bool
            Answer first what was sent; else it gets a ``ClosedError``.
        timeout : float, optional
            Seconds to wait at most; what is left then gets a ``ClosedError``, and callbacks are not waited for.
        """
        drain, limit = bool(drain), None if timeout is None else max(0.0, _number(timeout, "timeout"))
        limit = None if limit == math.inf else limit
        began = time.monotonic()
        self._scheduler.close(drain, limit)
        self._scheduler.callbacks.join(None if limit is None else max(0.0, began + limit - time.monotonic()))

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(drain=error[0] is None)


class Session:
    """A sequence in chunks, made by ``Batcher.open``; the state stays with the batcher.

    Chunks run one after the other in the order of ``submit``.  One that is cancelled, expires or fails leaves the state
    as it was before it.  The next chunk of a session that waits for no answer is taken even where the queue is full.
    """

    def __init__(self, batcher: Batcher, state: Any = None):
        store = batcher._scheduler.store
        like = store.read(np.array([0]))
        start = None if state is None else {name: np.array(a) for name, a in store.taken(state, like).items()}
        self._batcher = batcher
        self._state = batcher._scheduler.open(start)

    def submit(
        self, x: Any, *, deadline: float | None = None, priority: float = 0, final_state: bool = False
    ) -> Future[Any]:
        """Send the next chunk; as ``Batcher.submit``."""
        return self._batcher._submit(x, self._state, deadline, priority, final_state, False)

    async def infer(
        self, x: Any, *, deadline: float | None = None, priority: float = 0, final_state: bool = False
    ) -> Any:
        """Send the next chunk; as ``Batcher.infer``."""
        import asyncio

        future = self._batcher._submit(x, self._state, deadline, priority, final_state, True)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the sequence; chunks that were sent are answered."""
        self._batcher._scheduler.close_session(self._state)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            self.close()


def _number(value: Any, name: str) -> float:
    """A float of NumPy or Python's own, without what a subclass may do when it is compared."""
    if not isinstance(value, Real):
        raise ArgumentError(f"{name} must be a number, got {described(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.nan
    if math.isnan(number):
        raise ArgumentError(f"{name} must be a number, got {described(value)}")
    return number


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = int(operator.index(value))
    except TypeError:
        number = least - 1
    if not least <= number <= MOST:
        raise ArgumentError(f"{name} must be a whole number from {least}, got {described(value)}")
    return number
