"""Pools: whatever happens to the other streams, each gives the bits of its whole sequence run alone."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
import soak_streams
from cases import FORWARD, Case, Late, assert_bits, misaligned, normal, parts, read_only, strided
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from scripts import LAYERS, check

import fastrnn
from fastrnn.errors import PoolFullError, UnknownStreamError

KINDS = {
    "lstm": {},
    "lstm projection": {},
    "lstm everything": {"hidden_size": 17},
    "gru": {"num_layers": 2},
    "gru reset before": {"hidden_size": 16},
    "rnn": {"num_layers": 3},
}


def layer_of(kind: str, **changes):
    return Case.of(kind, **FORWARD | KINDS.get(kind, {}) | changes).layer()


# Any schedule


@dataclass
class History:
    """What a stream has read, and when a call named it."""

    x: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.float32))
    used: float = 0.0

    def read(self, layer, x: np.ndarray) -> np.ndarray:
        """What the whole sequence gives for its last steps."""
        self.x = np.concatenate([self.x, x])
        return layer(self.x)[0][len(self.x) - len(x) :]


class Schedule(RuleBasedStateMachine):
    """Two pools of one layer and streams beside them, against the layer on whole sequences."""

    exports = Bundle("exports")

    @initialize(kind=st.sampled_from(list(KINDS)), capacities=st.tuples(st.integers(1, 4), st.integers(1, 9)))
    def begin(self, kind, capacities):
        self.layer, self.now, self.random = layer_of(kind), 1000.0, np.random.default_rng(0)
        self.clock = mock.patch("fastrnn.streams.time")
        self.clock.start().monotonic_ns.side_effect = lambda: int(self.now * 1e9)
        self.pools = [self.layer.pool(capacity) for capacity in capacities]
        self.histories: list[dict[int, History]] = [{}, {}]
        self.closed: list[set[int]] = [set(), set()]

    def teardown(self):
        if hasattr(self, "clock"):
            self.clock.stop()

    def pick(self, data, which: int) -> list[int]:
        """Some open streams in some order."""
        known = sorted(self.histories[which])
        return data.draw(st.lists(st.sampled_from(known), unique=True)) if known else []

    def inputs(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal((*shape, 3)).astype(np.float32)

    def touch(self, which: int, handles: list[int]) -> None:
        for handle in handles:
            self.histories[which][handle].used = self.now

    @rule(which=st.integers(0, 1))
    def open(self, which):
        pool, known = self.pools[which], self.histories[which]
        if len(known) == pool.capacity:
            with pytest.raises(PoolFullError):
                pool.open()
        else:
            handle = pool.open()
            assert handle not in known
            assert handle not in self.closed[which]
            known[handle] = History(used=self.now)

    @rule(which=st.integers(0, 1), data=st.data(), as_array=st.booleans())
    def step(self, which, data, as_array):
        handles = self.pick(data, which)
        x = self.inputs(len(handles))
        y = self.pools[which].step(np.array(handles, np.int64) if as_array else handles, x)
        self.touch(which, handles)
        for k, handle in enumerate(handles):
            want = self.histories[which][handle].read(self.layer, x[k : k + 1])
            assert_bits([y[k : k + 1]], [want], f"stream {k} of {len(handles)}")

    @rule(which=st.integers(0, 1), data=st.data())
    def chunks(self, which, data):
        handles = self.pick(data, which)
        x = [self.inputs(data.draw(st.integers(0, 5))) for _ in handles]
        ys = self.pools[which].step(handles, x)
        self.touch(which, handles)
        for handle, chunk, y in zip(handles, x, ys, strict=True):
            want = self.histories[which][handle].read(self.layer, chunk)
            assert_bits([y], [want], f"{len(chunk)} steps of one of {[len(chunk) for chunk in x]}")

    @rule(which=st.integers(0, 1), data=st.data())
    def close(self, which, data):
        for handle in self.pick(data, which):
            self.pools[which].close(handle)
            self.forget(which, handle)

    def forget(self, which: int, handle: int) -> None:
        del self.histories[which][handle]
        self.closed[which].add(handle)

    @rule(which=st.integers(0, 1), data=st.data())
    def reset(self, which, data):
        for handle in self.pick(data, which):
            self.pools[which].reset(handle)
            self.histories[which][handle] = History(used=self.now)

    @rule(which=st.integers(0, 1), data=st.data(), target=exports)
    def export(self, which, data):
        handles = self.pick(data, which)
        self.touch(which, handles)
        return multiple(*((self.pools[which].export(h), self.histories[which][h].x) for h in handles))

    @rule(which=st.integers(0, 1), exported=exports)
    def restore(self, which, exported):
        data, x = exported
        if len(self.histories[which]) == self.pools[which].capacity:
            with pytest.raises(PoolFullError):
                self.pools[which].restore(data)
        else:
            self.histories[which][self.pools[which].restore(data)] = History(x, self.now)

    @rule(exported=exports, steps=st.integers(0, 3))
    def restore_into_a_stream(self, exported, steps):
        stream, history = self.layer.stream(), History(exported[1])
        stream.restore(exported[0])
        x = self.inputs(steps)
        assert_bits([stream(x)], [history.read(self.layer, x)], "a stream that a pool exported")

    @rule(which=st.integers(0, 1), data=st.data())
    def state_of_one_into_another(self, which, data):
        handles = self.pick(data, which)[:2]
        if len(handles) == 2:
            self.touch(which, handles)
            self.pools[which].set_state(handles[1], self.pools[which].state(handles[0]))
            self.histories[which][handles[1]].x = self.histories[which][handles[0]].x

    @rule(which=st.integers(0, 1), more=st.integers(0, 5))
    def grow(self, which, more):
        if self.pools[which].capacity < 40:
            self.pools[which].grow(self.pools[which].capacity + more)

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds):
        self.now += seconds

    @rule(which=st.integers(0, 1), seconds=st.integers(1, 10))
    def close_idle(self, which, seconds):
        idle = [handle for handle, known in self.histories[which].items() if known.used <= self.now - seconds]
        assert self.pools[which].close_idle(seconds - 0.5) == len(idle)  # stamps differ by more than the clock
        for handle in idle:
            self.forget(which, handle)

    @precondition(lambda self: self.closed[0])
    @rule(data=st.data())
    def use_after_close(self, data):
        known = sorted(self.histories[0])
        handles = data.draw(st.permutations([*known[:3], data.draw(st.sampled_from(sorted(self.closed[0])))]))
        for x in (self.inputs(len(handles)), [self.inputs(2)] * len(handles)):
            with pytest.raises(UnknownStreamError):
                self.pools[0].step(handles, x)
            for handle in handles:
                if handle in self.closed[0]:
                    break
                self.touch(0, [handle])

    @invariant()
    def streams_are_those_that_are_open(self):
        for pool, known in zip(getattr(self, "pools", ()), getattr(self, "histories", ()), strict=True):
            assert len(pool) == len(known)
            assert sorted(pool.handles()) == sorted(known)


Schedule.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestSchedule = Schedule.TestCase


@pytest.mark.parametrize(("make", "gates"), [(fastrnn.LSTM, 4), (fastrnn.GRU, 3)])
def test_a_short_soak(make, gates):
    world = soak_streams.World(make, gates, np.random.default_rng(1))
    for _ in range(60):
        world.tick()
    world.check_all()
    assert world.checked > 200


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_streams(kind, threads, isa):
    """Enough of them for two threads to share a call."""
    fastrnn.set_num_threads(threads)
    layer, rng = layer_of(kind, input_size=20, hidden_size=48), np.random.default_rng(0)
    assert layer.explain(150, 1)["threads"] == threads, "else the test does not test it"
    pool, x = layer.pool(300), normal(300, 12, 20)
    handles = np.array([pool.open() for _ in range(300)])
    y, done = np.empty_like(layer(x)[0]), np.zeros(300, np.int64)
    while done.min() < 12:
        ready = rng.permutation(np.flatnonzero(done < 12))[:150]
        if rng.random() < 0.5:
            y[ready, done[ready]] = pool.step(handles[ready], x[ready, done[ready]])
            done[ready] += 1
        else:
            ends = np.minimum(12, done[ready] + rng.integers(0, 5, len(ready)))
            chunks = [x[row, done[row] : end] for row, end in zip(ready, ends, strict=True)]
            for row, end, part in zip(ready, ends, pool.step(handles[ready].tolist(), chunks), strict=True):
                y[row, done[row] : end] = part
            done[ready] = ends
    whole, final = layer(x)
    assert_bits([y], [whole], kind)
    for row in (0, 7, 299):
        assert_bits(parts(pool.state(handles[row])), [part[:, row : row + 1] for part in parts(final)], f"row {row}")


def test_out():
    layer = layer_of("gru")
    pool, x, out = layer.pool(4), normal(3, 3), np.full((3, 5), 7, np.float32)
    handles = [pool.open() for _ in range(3)]
    assert pool.step(handles, x, out=out) is out
    assert_bits([out], [layer(x[:, None])[0][:, 0]], "out")
    state, x = [pool.state(h) for h in handles], np.ascontiguousarray(np.tile(x, (1, 2)))[:, :3]
    for text, wrong in {
        "float32 of shape": out[:2],
        "C-contiguous": strided(out),
        "aligned": misaligned(out),
        "writable": read_only(out),
        "NumPy array": out.tolist(),
    }.items():
        with pytest.raises(fastrnn.ShapeError, match=text):
            pool.step(handles, x, out=wrong)
    with pytest.raises(fastrnn.ShapeError, match="out= is for single steps"):
        pool.step(handles, [x, x, x], out=out)
    assert_bits([pool.state(h) for h in handles], state, "a refused call moves nothing")


# What is refused


@pytest.fixture
def three():
    """A pool of three streams that have begun, and a fourth that is closed."""
    pool = layer_of("lstm").pool(4)
    handles = [pool.open() for _ in range(4)]
    pool.step(handles, normal(4, 3))
    pool.close(handles[1])
    return pool, [handles[0], *handles[2:]], handles[1]


def moved(pool, handles, before) -> bool:
    return any(not np.array_equal(pool.state(handle), old) for handle, old in zip(handles, before, strict=True))


@pytest.mark.parametrize("form", ["step", "array", "chunks"])
def test_handles_that_are_refused(three, form):
    pool, open_, closed = three
    other = layer_of("lstm").pool(4)
    foreign = [other.open() for _ in range(4)]
    before = [pool.state(h) for h in open_]
    unknown = (closed, *foreign, 0, 1, 3, 4, -1, open_[0] + 1, open_[0] + (1 << 32), closed + (1 << 32), 2**62)

    def call(handles):
        x = normal(len(handles), 3)
        if form == "chunks":
            return pool.step(handles, [x] * len(handles))
        return pool.step(np.array(handles) if form == "array" else handles, x)

    for wrong in unknown:
        for at in range(4):
            with pytest.raises(UnknownStreamError, match=f"handle {wrong} is of no open stream"):
                call([*open_[:at], wrong, *open_[at:]])
    for at in range(4):
        twice = [*open_[:at], open_[1], *open_[at:]]
        with pytest.raises(fastrnn.ShapeError, match=f"handle {open_[1]} is given twice"):
            call(twice)
    for use in (pool.close, pool.reset, pool.state, pool.export, lambda h: pool.set_state(h, before[0])):
        for wrong in unknown:
            with pytest.raises(UnknownStreamError):
                use(wrong)
    with pytest.raises(fastrnn.ShapeError, match="twice"):
        call(open_ * 3)
    assert not moved(pool, open_, before)
    assert len(pool) == 3


def test_handles_that_are_no_integers(three):
    pool, open_, _ = three
    before = [pool.state(h) for h in open_]
    x = normal(3, 3)
    floats, texts = [float(h) for h in open_], [str(h) for h in open_]
    for wrong in (floats, texts, [None] * 3, [2**80] * 3, open_[0], None, [open_] * 3):
        with pytest.raises(UnknownStreamError, match="integers that open"):
            pool.step(wrong, x)
    for wrong in (np.array(open_, float), np.array([open_]), np.array([True] * 3), np.array(open_[0])):
        with pytest.raises(UnknownStreamError, match="integers that open"):
            pool.step(wrong, x)
    assert not moved(pool, open_, before)
    good = tuple(open_), np.array(open_, np.uint64), np.repeat(open_, 2)[::2]
    y = [pool.step(handles, x) for handles in good]
    assert [part.shape for part in y] == [(3, 5)] * 3
    assert pool.step([], np.empty((0, 3), np.float32)).shape == (0, 5)
    assert pool.step([], []) == []


def test_inputs_that_are_refused(three):
    pool, open_, _ = three
    before = [pool.state(h) for h in open_]
    good = np.zeros((2, 3))
    wrong = {
        r"\(rows, input_size\) = \(3, 3\), got shape \(3, 2\)": np.zeros((3, 2)),
        r"\(3, 3\), got shape \(2, 3\)": np.zeros((2, 3)),
        r"\(3, 3\), got shape \(3, 1, 3\)": np.zeros((3, 1, 3)),
        r"\(3, 3\), got shape \(3,\)": np.zeros(3),
        "3 handles and 2 chunks": [good, good],
        r"x\[2\] must be \(seq_len, 3\), got shape \(2, 4\)": [good, good, np.zeros((2, 4))],
        r"x\[0\] must be \(seq_len, 3\), got shape \(3,\)": [np.zeros(3), good, good],
        r"x\[1\] must hold real numbers": [good, good * 1j, good],
        "x is not an array": [[1.0, 2.0, 3.0], [1.0], [2.0]],
    }
    for text, x in wrong.items():
        with pytest.raises(fastrnn.ShapeError, match=text):
            pool.step(open_, x)
    for state in (before[0][0], (before[0][0], before[0][1][:, :, :4])):
        with pytest.raises(fastrnn.ShapeError):
            pool.set_state(open_[1], state)
    assert not moved(pool, open_, before)


def test_a_full_pool():
    pool = layer_of("gru").pool(2)
    first, data = pool.open(), layer_of("gru").stream().save()
    second = pool.restore(data)
    for call in (pool.open, lambda: pool.restore(data)):
        with pytest.raises(PoolFullError, match=r"all 2 streams of the pool are open; close some, grow\(\), or"):
            call()
    pool.close(first)
    third = pool.open()
    assert third not in (first, second)
    assert sorted(pool.handles()) == sorted([second, third])
    with pytest.raises(UnknownStreamError):
        pool.close(first)


def test_bytes_that_are_refused(three):
    pool, open_, _ = three
    data = pool.export(open_[0])
    for wrong in (data[:-1], data[:-1] + b"x", layer_of("gru").stream().save(), pool.network.stream(2).save(), b""):
        with pytest.raises(fastrnn.FormatError):
            pool.restore(wrong)
    assert len(pool) == 3, "no stream was opened"


def test_sizes_that_are_refused():
    layer = layer_of("rnn")
    for capacity in (0, -1, 1.5, "2", None, 2**31):
        with pytest.raises(fastrnn.ShapeError, match="capacity must be a whole number from 1 to"):
            layer.pool(capacity)
    pool = layer.pool(5)
    with pytest.raises(fastrnn.ShapeError, match="a pool of 5 cannot shrink to 4"):
        pool.grow(4)
    with pytest.raises(fastrnn.ShapeError, match="capacity must be a whole number"):
        pool.grow(5.5)
    with pytest.raises(fastrnn.ShapeError, match="needs seconds"):
        pool.close_idle()


# Growing, closing, counting


def test_growth_that_fails_changes_nothing(three, monkeypatch):
    pool, open_, _ = three
    before = [pool.state(h) for h in open_]

    def no_memory(capacity):
        raise MemoryError

    monkeypatch.setattr(pool._store, "grown", no_memory)
    with pytest.raises(MemoryError):
        pool.grow(100)
    assert pool.capacity == 4
    assert not moved(pool, open_, before)
    pool.open()
    with pytest.raises(PoolFullError):
        pool.open()


def test_a_full_pool_closes_idle_streams(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fastrnn.streams.time", mock.Mock(monotonic_ns=lambda: int(now[0] * 1e9)))
    pool = layer_of("gru").pool(2, idle_limit=10)
    first, second = pool.open(), pool.open()
    now[0] += 9
    pool.step([second], normal(1, 3))
    with pytest.raises(PoolFullError):
        pool.open()
    now[0] += 1
    third = pool.open()
    assert sorted(pool.handles()) == sorted([second, third])
    with pytest.raises(UnknownStreamError):
        pool.step([first], normal(1, 3))
    now[0] += 9
    assert pool.close_idle() == 1
    assert pool.handles() == [third]


def test_handles_never_run_out(monkeypatch):
    """A row that was opened as often as a handle can count begins anew."""
    monkeypatch.setattr("fastrnn.streams.MAX_GENERATION", 4)
    pool, seen = layer_of("gru").pool(1), []
    for _ in range(9):
        seen.append(pool.open())
        pool.step(seen[-1:], normal(1, 3))
        pool.close(seen[-1])
    assert len(set(seen)) == 4
    assert seen[:5] == seen[4:]


def test_one_stream_s_nan_reaches_no_other():
    for kind in KINDS:
        layer = layer_of(kind)
        pool = layer.pool(20)
        handles = [pool.open() for _ in range(20)]
        x = normal(20, 6, 3)
        bad = x.copy()
        bad[3, 0], bad[4, 2], bad[17, 1] = np.nan, np.inf, -np.inf
        first, rest = pool.step(handles, bad[:, 0]), pool.step(handles, list(bad[:, 1:]))
        want, good = layer(x)[0], [k for k in range(20) if k not in (3, 4, 17)]
        assert_bits([first[good], np.stack(rest)[good]], [want[good, :1][:, 0], want[good, 1:]], kind)
        if kind != "lstm everything":  # whose clips take NaN away
            assert np.isnan(rest[3]).all()
        pool.reset(handles[3])
        pool.close(handles[4])
        again = pool.open()
        y = pool.step([handles[3], again], x[:2, 0].copy())
        assert_bits([y], [layer(x[:2, :1])[0][:, 0]], f"{kind}: nothing stays in a row")


def test_memory_of_a_stream():
    """Its state and at most 64 bytes, whether its row was used or not; and nothing for calls."""
    layer = layer_of("lstm", hidden_size=8)
    state = 2 * 8 * 4
    gc.collect()
    tracemalloc.start()
    try:
        pool = layer.pool(10_000)
        empty, _ = tracemalloc.get_traced_memory()
        for _ in range(2):
            handles = np.array([pool.open() for _ in range(10_000)])
            pool.step(handles, np.zeros((10_000, 3), np.float32))
            assert pool.close_idle(0) == 10_000
        del handles
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert empty <= 10_000 * (state + 64)
    assert used <= 10_000 * (state + 64)
    assert abs(pool.nbytes - used) < 10_000 * 8, "nbytes says what it is"


# Threads and processes


def test_a_pool_has_one_owner(three):
    pool, open_, _ = three
    x, done, data = normal(3, 3), [], pool.export(open_[0])
    state = tuple(np.concatenate(part, axis=1) for part in zip(*map(pool.state, open_), strict=True))
    want, _ = layer_of("lstm")(x[:, None], state)
    late = Late(x)
    owner = threading.Thread(target=lambda: done.append(pool.step(open_, late)))
    owner.start()
    assert late.asked.wait(60)
    calls = (
        pool.open,
        lambda: pool.step(open_, x),
        lambda: pool.step(open_, [x, x, x]),
        lambda: pool.close(open_[0]),
        lambda: pool.reset(open_[0]),
        lambda: pool.state(open_[0]),
        lambda: pool.set_state(open_[0], None),
        lambda: pool.export(open_[0]),
        lambda: pool.restore(data),
        lambda: pool.grow(9),
        lambda: pool.close_idle(0),
    )
    for call in calls:
        with pytest.raises(fastrnn.ConcurrentUseError, match="pool is in use by another thread"):
            call()
    late.go.set()
    owner.join()
    assert_bits(done, [want[:, 0]], "the owner's call is as if alone")
    assert len(pool) == 3


FORK = (
    LAYERS
    + """
import signal

fastrnn.set_num_threads(2)
layer = lstm(32, 64)
pool, x = layer.pool(40), inputs(40, 30, 32)
handles = [pool.open() for _ in range(40)]
y = layer(x)[0]
assert layer.explain(40, 10)["threads"] == 2

def run(begin, end):
    return np.array_equal(np.stack(pool.step(handles, list(x[:, begin:end]))), y[:, begin:end])

assert run(0, 10)
for attempt in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        new = None
        if run(10, 20) and run(20, 30):
            pool.close(handles[0])
            new = pool.open()
        os._exit(0 if new not in (None, *handles) and len(pool) == 40 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, attempt
assert run(10, 30), "a child moved the streams of its parent"
"""
)


def test_a_pool_in_a_child():
    check(FORK)
