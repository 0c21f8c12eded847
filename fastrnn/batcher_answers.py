"""What clients of a batcher have in hand, and the thread in which their callbacks run.

All that clients wrote and could be called later is called here, and nothing that it does reaches the scheduler.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any


class Answer(Future[Any]):
    """What a client has of a request.  It stays pending until it is answered, so it can be cancelled all the time.

    A client may also set its result, as that of any future: then this is the answer, and nobody else notices.
    """

    def __init__(self, call: Callable[[Callable[[Any], object], Any], None] | None):
        super().__init__()
        self.cancelled_by_client: Callable[[], None] | None = None
        self._call = call  # runs callbacks; None: they run in the thread that answers

    def cancel(self) -> bool:
        """Cancel at any time before the answer; a request that runs leaves before the next tick."""
        cancelled, tell = super().cancel(), self.cancelled_by_client
        if cancelled and tell is not None:
            tell()
        return cancelled

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(future)`` when it is answered, in a thread of the batcher for callbacks; at once if it is."""
        super().add_done_callback(fn if self._call is None else partial(self._call, fn))


class Callbacks:
    """The thread in which callbacks of clients run: whatever they do, requests go on.  It starts with the first."""

    def __init__(self, answering: Callable[[], threading.Thread | None]):
        self._answering = answering
        self._queue: SimpleQueue[tuple[Callable[[Any], object], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, fn: Callable[[Any], object], future: Any) -> None:
        """Run a callback: in this thread if it is a client's own, which has cancelled or come late."""
        if threading.current_thread() is not self._answering():
            fn(future)
            return
        self._queue.put((fn, future))
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="fastrnn-callbacks", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread to be had, as at the end of the interpreter
                self._run_one(*self._queue.get())  # type: ignore[misc]
            else:
                self._thread = thread

    def end(self) -> None:
        """No more will come."""
        self._queue.put(None)

    def join(self, timeout: float | None) -> None:
        """Wait until all have run, unless one of them asks for it."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._run_one(*entry)
            del entry

    def _run_one(self, fn: Callable[[Any], object], future: Any) -> None:
        try:
            fn(future)
        except BaseException:
            with suppress(BaseException):
                logging.getLogger("concurrent.futures").exception("exception calling callback for %r", future)
