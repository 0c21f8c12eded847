"""Live sequences: a :class:`Stream` keeps the state of one or of a batch, a :class:`Pool` those of thousands.

Results have the same bits as those of whole sequences, whatever they are cut into and whoever shares a call.
"""

from __future__ import annotations

import math
import operator
import secrets
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from . import _core
from .arguments import advice, checked, described
from .arrays import INT64, as_array, c_array, refuse_packed
from .errors import ArgumentError, PoolFullError, ShapeError, UnknownStreamError, UnsupportedError
from .fingerprint import Fingerprint
from .loaders.state_bytes import state_from_bytes, state_to_bytes

MAX_CAPACITY = (1 << 31) - 1
MAX_GENERATION = (1 << 31) - 1

Rows = np.ndarray | None


class Store(Protocol):
    """States of many streams, a row each, and how a call advances some of them; ``network.store(capacity)`` makes one.

    ``rows`` of a call are places of its streams, int64, all different; None: all, in order.
    """

    capacity: int
    bytes_a_row: int
    alone: str
    """Why streams cannot share the store, "" where they can."""

    def is_sequence(self, x: Any) -> bool:
        """Whether this is a sequence of one stream, rather than a step of it or sequences of several."""

    def step(self, rows: Rows, x: Any, out: Any = None) -> Any:
        """One step of each row; x has the batch axis first."""

    def chunk(self, rows: Rows, x: Any, out: Any = None) -> Any:
        """The same number of steps of each row; x has the batch axis first, then time, and so has y, unless the network
        gives the last step alone."""

    def check_sequence(self, x: Any, name: str) -> Any:
        """A sequence of one stream as the store takes it, (seq_len, input_size) floats; ShapeError where it is none."""

    def results(self, x: Any) -> Any:
        """Arrays for the results of such a sequence."""

    def advance(
        self, rows: np.ndarray, x: list[Any], y: list[Any], begins: np.ndarray | None, steps: np.ndarray
    ) -> None:
        """``steps`` of each row, int64: of checked sequences x from ``begins`` on (None: 0), into these steps of y."""

    def read(self, rows: Rows) -> dict[str, np.ndarray]:
        """Copies of the states by name, rows first."""

    def write(self, rows: Rows, states: Mapping[str, np.ndarray]) -> None:
        """Set states; names and shapes have been checked."""

    def shown(self, states: dict[str, np.ndarray]) -> Any:
        """What :meth:`read` gave, in the form in which a call of the layer or model takes states."""

    def taken(self, shown: Any, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inverse, checked against what :meth:`read` gives now."""

    def fingerprint(self) -> Fingerprint:
        """Of the network, and of what else says what its states mean."""

    def clear(self, rows: Rows) -> None:
        """Back to the beginning."""

    def grown(self, capacity: int) -> Store:
        """A larger store with the same rows."""


def store_of(network: Any, capacity: int, constants: Any = None, states: Any = None) -> Store:
    """The store of a network that has one."""
    make = getattr(network, "store", None)
    if make is None:
        raise UnsupportedError(
            f"a stream, a pool and a batcher take a recurrent layer or a model, got {type(network).__name__};"
            f" Sequential(...) makes a model of layers{advice(network)}"
        )
    store: Store = make(capacity, constants, states)
    return store


def _count(value: Any, name: str, most: int = MAX_CAPACITY) -> int:
    """A number of rows."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count <= most:
        raise ShapeError(f"{name} must be a whole number from 1 to {most}, got {described(value)}")
    return count


def check_shared(store: Store) -> None:
    """Refuse a store of which only one stream can be."""
    if store.alone:
        raise UnsupportedError(store.alone)


# ---- One ----


class Stream:
    """A live sequence, or ``batch`` of them that advance together: the state stays inside.

    Made by ``layer.stream(batch)`` and ``model.stream(batch)``.  A stream has one owner: a second thread that uses it
    at the same time gets a :class:`~fastrnn.errors.ConcurrentUseError`.

    Examples
    --------
    >>> import fastrnn
    >>> layer = fastrnn.RNN(np.eye(2), np.zeros((2, 2)))
    >>> stream = layer.stream()
    >>> y = stream.step(np.zeros(2))
    >>> stream(np.ones((3, 2))).shape
    (3, 2)
    """

    def __init__(self, network: Any, batch: int = 1, *, constants: Mapping[str, Any] | None = None, states: Any = None):
        self.network, self.batch = network, _count(batch, "batch")
        self._options = {"constants": constants, "states": states}
        self._store = store_of(network, self.batch, constants, states)
        self._owner = _core.Owner("stream")
        self._initial: dict[str, np.ndarray] | None = None  # None: what the network begins with
        self._begun = False

    def step(self, x: Any, out: Any = None) -> Any:
        """One step: x (input_size,) or (batch, input_size); y has the same rank, new or ``out``.

        Of a model with several inputs x is a dict; of one with several outputs y is a tuple.
        """
        with self._owner:
            self._begun = True
            return self._store.step(None, x, out)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """A chunk of any length: x (seq_len, input_size) or (batch, seq_len, input_size); y has the same rank."""
        with self._owner:
            self._begun = True
            if self.batch > 1 or not self._store.is_sequence(x):
                return self._store.chunk(None, x, out)
            one = {name: as_array(a)[None] for name, a in x.items()} if isinstance(x, Mapping) else as_array(x)[None]
            y = self._store.chunk(None, one, out[None] if isinstance(out, np.ndarray) else out)
            return tuple(part[0] for part in y) if isinstance(y, tuple) else y[0]

    @property
    def state(self) -> Any:
        """A copy of the state, which can be set again.  One that is set before the first step is what the stream begins
        with, also after :meth:`reset`.

        Of a layer h or (h, c), (num_layers, batch, size) each, as the layer takes it, and as a pool, a batcher and
        other streams do.  Of a model a dict by the names of its states; those that are its inputs as it takes them.
        """
        with self._owner:
            return self._store.shown(self._store.read(None))

    @state.setter
    def state(self, state: Any) -> None:
        with self._owner:
            taken = self._store.taken(state, self._store.read(None))
            self._store.write(None, taken)
            if not self._begun:
                self._initial = taken

    def reset(self) -> None:
        """Back to the beginning of a sequence: to the state that was set before the first step, or else to that which
        the model declares, or else to zeros."""
        with self._owner:
            if self._initial is None:
                self._store.clear(None)
            else:
                self._store.write(None, self._initial)
            self._begun = False

    def copy(self) -> Stream:
        """Another stream in the same state."""
        other = Stream(self.network, self.batch, **self._options)
        with self._owner:
            other._store.write(None, self._store.read(None))
            other._initial, other._begun = self._initial, self._begun
        return other

    def save(self) -> bytes:
        """The state as bytes, versioned and with a checksum."""
        with self._owner:
            return state_to_bytes(self._store.read(None), self._store.fingerprint())

    @checked()
    def restore(self, data: bytes, any_weights: bool = False) -> None:
        """Set the state from the bytes of :meth:`save`, or with a batch of 1 from those of :meth:`Pool.export`.

        Parameters
        ----------
        any_weights : bool
            Take the state of a network of the same graph with other weights, as one that was trained further has, and
            bytes of fastrnn 0.1.0, which do not say of which network they are.

        Raises
        ------
        FormatError
            They are damaged, or of another network or batch; the state stays as it was.  A network is its graph, its
            weights, and ``constants=`` and ``states=`` of the stream; how it was loaded does not matter.
        """
        with self._owner:
            states = state_from_bytes(data, self._store.read(None), self._store.fingerprint(), any_weights)
            self._store.write(None, states)
            self._begun = True


# ---- Many ----


class Pool:
    """States of up to ``capacity`` live sequences in one slab; any of them advance together in one call.

    Made by ``layer.pool(capacity)`` and ``model.pool(capacity)``.  Handles are integers.  A stream takes its state and
    32 bytes.  A pool has one owner at a time, as a stream does.

    Parameters
    ----------
    idle_limit : float, optional
        Seconds.  A full pool closes streams that no call has named for so long, rather than refuse a new one.

    Examples
    --------
    >>> import fastrnn
    >>> pool = fastrnn.RNN(np.eye(2), np.zeros((2, 2))).pool(capacity=100)
    >>> a, b = pool.open(), pool.open()
    >>> pool.step([b, a], np.ones((2, 2))).shape
    (2, 2)
    >>> [y.shape for y in pool.step([a, b], [np.ones((3, 2)), np.ones((1, 2))])]
    [(3, 2), (1, 2)]
    """

    def __init__(
        self,
        network: Any,
        capacity: int,
        *,
        idle_limit: float | None = None,
        constants: Mapping[str, Any] | None = None,
        states: Any = None,
    ):
        capacity = _count(capacity, "capacity")
        if not isinstance(idle_limit, (int, float, type(None))) or isinstance(idle_limit, bool):
            raise ArgumentError(f"idle_limit is {described(idle_limit)}, expected seconds")
        self.network, self.idle_limit = network, idle_limit
        self._store = store_of(network, capacity, constants, states)
        check_shared(self._store)
        self._owner = _core.Owner("pool")
        self._first = 1 + secrets.randbelow(MAX_GENERATION // 2)  # so that handles of another pool are none of this one
        self._generations = np.full(capacity, -self._first)  # below 0: closed, and the next one's
        # Of the last call: when it was, different for each; odd before the first step of a stream.
        self._stamps = np.zeros(capacity, np.int64)
        self._initial: dict[int, dict[str, np.ndarray]] = {}  # by row, where it is not what the network begins with
        self._found = np.empty(capacity, np.int64)
        self._free = array("q", range(capacity - 1, -1, -1))
        self._stamp = 0

    # ---- streams ----

    @property
    def capacity(self) -> int:
        return self._store.capacity

    def __len__(self) -> int:
        """Streams that are open."""
        return self.capacity - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, open or not."""
        return self.capacity * (self._store.bytes_a_row + 4 * 8)

    def open(self) -> int:
        """Begin a stream and return its handle.

        Raises
        ------
        PoolFullError
            All rows are open, and none is idle; close some, or :meth:`grow`.
        """
        with self._owner:
            return self._open()

    def _open(self) -> int:
        if not self._free and self.idle_limit is not None:
            self._close_idle()
        if not self._free:
            raise PoolFullError(
                f"all {self.capacity} streams of the pool are open; close some, grow(), or set idle_limit="
            )
        row = self._free.pop()
        self._store.clear(np.array([row]))
        self._generations[row] *= -1
        self._stamps[row] = self._next_stamp() - 1
        return int(self._generations[row]) << 32 | row

    def close(self, handle: int) -> None:
        """End a stream; its handle is of no use any more."""
        with self._owner:
            self._close(self._rows([handle]))

    def _close(self, rows: np.ndarray) -> None:
        for row in self._initial.keys() & set(rows.tolist()) if self._initial else ():
            del self._initial[row]
        self._generations[rows] = -1 - self._generations[rows] % MAX_GENERATION
        self._free.extend(rows.tolist())

    @checked()
    def close_idle(self, seconds: float | None = None) -> int:
        """Close streams that no call has named for ``seconds`` (default: ``idle_limit``); returns how many."""
        with self._owner:
            return self._close_idle(seconds)

    def _close_idle(self, seconds: float | None = None) -> int:
        limit = self.idle_limit if seconds is None else seconds
        if limit is None:
            raise ShapeError("close_idle() needs seconds, as the pool has no idle_limit")
        if not 0 <= limit < math.inf:
            raise ArgumentError(f"idle streams are closed after seconds from 0, got {described(limit)}")
        last = time.monotonic_ns() - int(limit * 1e9)
        rows = np.flatnonzero((self._generations > 0) & (self._stamps <= last))
        self._close(rows)
        return len(rows)

    def reset(self, handle: int) -> None:
        """Back to the beginning of a sequence, as ``Stream.reset``."""
        with self._owner:
            rows = self._rows([handle])
            initial = self._initial.get(int(rows[0]))
            if initial is None:
                self._store.clear(rows)
            else:
                self._store.write(rows, initial)
            self._stamps[rows] -= 1

    def grow(self, capacity: int) -> None:
        """Make room for more streams; handles stay valid.  For a moment both slabs are in memory."""
        with self._owner:
            old, capacity = self.capacity, _count(capacity, "capacity")
            if capacity < old:
                raise ShapeError(f"a pool of {old} cannot shrink to {capacity}")
            store, found = self._store.grown(capacity), np.empty(capacity, np.int64)
            generations = np.append(self._generations, np.full(capacity - old, -self._first))
            stamps = np.append(self._stamps, np.zeros(capacity - old, np.int64))
            free = array("q", range(capacity - 1, old - 1, -1)) + self._free
            self._store, self._found, self._generations, self._stamps, self._free = (
                store, found, generations, stamps, free,
            )  # fmt: skip

    # ---- running ----

    def step(self, handles: Sequence[int] | np.ndarray, x: Any, out: Any = None) -> Any:
        """Advance some streams, in this order.

        Parameters
        ----------
        handles : list or int64 array of n different handles
        x : (n, input_size) array, or list of n arrays (t_i, input_size)
            One step of each, or chunks of any lengths.  Of a model with several inputs: a dict.
        out : (n, features) array, optional
            Where to write; for single steps.

        Returns
        -------
        (n, features) array, or a list of arrays (t_i, features)

        Raises
        ------
        UnknownStreamError
            A handle is not open.
        ShapeError
            A handle is given twice, or x does not fit.  No stream has moved.
        """
        with self._owner:
            rows = self._rows(handles)
            refuse_packed(x)
            if isinstance(x, (list, tuple)) and (not x or any(self._store.is_sequence(chunk) for chunk in x)):
                if len(x) != len(rows):
                    raise ShapeError(f"{len(rows)} handles and {len(x)} chunks; give one chunk for each")
                if out is not None:
                    raise ShapeError("out= is for single steps; chunks of any lengths come as new arrays")
                chunks = [self._store.check_sequence(chunk, f"x[{k}]") for k, chunk in enumerate(x)]
                y = [self._store.results(chunk) for chunk in chunks]
                self._store.advance(rows, chunks, y, None, np.array([length_of(chunk) for chunk in chunks], np.int64))
                return y
            return self._store.step(rows, x, out)

    def _next_stamp(self) -> int:
        """An even number above all before it."""
        self._stamp = max(self._stamp + 2, time.monotonic_ns() & ~1)
        return self._stamp

    def _rows(self, handles: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows of the handles, until the next call; they take the stamp of this one."""
        try:
            if not isinstance(handles, np.ndarray):
                handles = list(handles)
            elif handles.ndim == 1 and handles.dtype.kind in "iu":
                handles = c_array(handles, INT64)
            else:
                raise TypeError
            rows = self._found[: len(handles)] if len(handles) <= self.capacity else np.empty(len(handles), np.int64)
            wrong = _core.find_rows(handles, self._generations, self._stamps, self._next_stamp(), rows)
        except (TypeError, OverflowError):
            raise UnknownStreamError("handles are the integers that open() returns") from None
        if wrong < 0:
            return rows
        if wrong < len(rows):
            raise UnknownStreamError(
                f"handle {handles[wrong]} is of no open stream of this pool; open() gives new ones"
            )
        raise ShapeError(f"handle {handles[wrong - len(rows)]} is given twice; a stream advances once in a call")

    # ---- states ----

    def _resting(self, handle: int) -> np.ndarray:
        """The row of a stream that takes no step in this call."""
        row = handle & 0xFFFFFFFF if isinstance(handle, (int, np.integer)) else 0
        unmoved = self._stamps[row] & 1 if row < self.capacity else 0
        rows = self._rows([handle])
        self._stamps[rows] -= unmoved
        return rows

    def state(self, handle: int) -> Any:
        """A copy of the state of a stream, as ``Stream.state`` with a batch of 1."""
        with self._owner:
            return self._store.shown(self._store.read(self._resting(handle)))

    def set_state(self, handle: int, state: Any) -> None:
        """Set what :meth:`state` returned, or the like; before the first step it is what the stream begins with, as
        that of a ``Stream``."""
        with self._owner:
            rows = self._resting(handle)
            taken = self._store.taken(state, self._store.read(rows))
            self._store.write(rows, taken)
            if self._stamps[rows[0]] & 1:
                self._initial[int(rows[0])] = taken

    def export(self, handle: int) -> bytes:
        """The state of a stream as bytes, for :meth:`restore` in any process, or ``Stream.restore``."""
        with self._owner:
            return state_to_bytes(self._store.read(self._resting(handle)), self._store.fingerprint())

    @checked()
    def restore(self, data: bytes, any_weights: bool = False) -> int:
        """Open a stream in the state of :meth:`export`; returns its handle.  ``any_weights`` as in ``Stream.restore``.

        Raises
        ------
        FormatError
            The bytes are damaged or of another network; no stream was opened.
        PoolFullError
            There is no room.
        """
        with self._owner:
            like = self._store.read(np.array([0]))
            states = state_from_bytes(data, like, self._store.fingerprint(), any_weights)
            handle = self._open()
            self._store.write(self._rows([handle]), states)  # and it has begun
            return handle

    def handles(self) -> Iterable[int]:
        """Handles of the open streams."""
        rows = np.flatnonzero(self._generations > 0)
        return (self._generations[rows] << 32 | rows).tolist()


def length_of(sequence: Any) -> int:
    """Steps of a sequence, or of each input of a model."""
    return len(next(iter(sequence.values())) if isinstance(sequence, Mapping) else sequence)
