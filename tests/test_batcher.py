"""The batcher: bits under random schedules, every error, every way to leave, and no answer lost or given twice."""

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load import POISON, BrokenInputError, FragileStore, Load, break_on_poison, layer
from scripts import LAYERS, check

import fastrnn
from fastrnn import scheduler
from fastrnn.batcher_stats import Histogram
from fastrnn.errors import ClosedError, DeadlineError, PoolFullError, QueueFullError, ShapeError
from fastrnn.spec import ModelSpec, Node, Tensor

NET = layer()


def sequence(steps, seed=0):
    return np.random.default_rng((seed, steps)).standard_normal((steps, NET.input_size), np.float32)


def alone(x):
    return NET(x)[0]


def same(future_or_y, x):
    y = future_or_y if isinstance(future_or_y, np.ndarray) else future_or_y.result(30)
    return y.shape == (len(x), NET.output_size) and y.tobytes() == alone(x).tobytes()


class Gate:
    """A store that notes its calls, as the length of x and the first step of each row, and waits before each."""

    def __init__(self, batcher):
        self._store, self.calls, self._opened = batcher._scheduler.store, [], False
        self._may, self._came = threading.Semaphore(0), threading.Semaphore(0)
        batcher._scheduler.store = self

    def __getattr__(self, name):
        return getattr(self._store, name)

    def advance(self, rows, x, y, begins, steps):
        self.calls.append([(len(a), int(b)) for a, b in zip(x, begins)])
        self._came.release()
        assert self._opened or self._may.acquire(timeout=30)
        self._store.advance(rows, x, y, begins, steps)

    def grown(self, capacity):
        self._store = self._store.grown(capacity)
        return self

    def reached(self):
        """Wait for the next call, which stays at the gate."""
        assert self._came.acquire(timeout=30)

    def let(self, calls=1):
        self._may.release(calls)

    def open(self):
        self._opened = True
        self._may.release()

    def open_when_dropped(self, scheduler_):
        """Open when ``close`` has given up waiting and wakes the thread for that."""
        wake, put = scheduler_._wake, scheduler_._wake.put

        class Wake:
            empty, get = wake.empty, wake.get

            @staticmethod
            def put(item):
                if scheduler_._drop:
                    self.open()
                put(item)

        scheduler_._wake = Wake


@pytest.fixture
def gated():
    """A function that makes a batcher of single steps and its gate."""
    made = []

    def make(**options):
        batcher = fastrnn.Batcher(NET, max_steps_per_tick=1, **options)
        made.append((batcher, Gate(batcher)))
        return made[-1]

    yield make
    for batcher, gate in made:
        gate.open()
        batcher.close(drain=False)


class Clock:
    """The time that deadlines look at: it stands still until it is told to go on."""

    def __init__(self):
        self.now = time.monotonic()

    def monotonic(self):
        return self.now

    perf_counter = staticmethod(time.perf_counter)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    for module in ("scheduler", "batcher_queue"):
        monkeypatch.setattr(f"fastrnn.{module}.time", made)
    return made


# ---- Bits ----


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    max_batch=st.integers(1, 9),
    most=st.sampled_from([1, 2, 5, 64]),
    pauses=st.randoms(use_true_random=False),
)
def test_whole_sequences_under_random_schedules(lengths, max_batch, most, pauses):
    with fastrnn.Batcher(NET, max_batch=max_batch, max_steps_per_tick=most) as batcher:
        futures = []
        for k, steps in enumerate(lengths):
            x = sequence(steps, k)
            futures.append((batcher.submit(x, priority=pauses.randrange(3), final_state=k % 2 == 0), x))
            if pauses.random() < 0.2:
                time.sleep(0.0005)
        for k, (future, x) in enumerate(futures):
            result = future.result(30)
            if k % 2 == 0:
                result, state = result
                assert [part.tobytes() for part in state] == [part.tobytes() for part in NET(x)[1]]
            assert same(result, x)


@given(
    cuts=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=12),
    max_batch=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_sessions_in_random_chunks(cuts, max_batch, order):
    with fastrnn.Batcher(NET, max_batch=max_batch, max_steps_per_tick=3, max_sessions=len(cuts)) as batcher:
        sessions = [batcher.open() for _ in cuts]
        whole = [sequence(sum(chunks), k) for k, chunks in enumerate(cuts)]
        parts = [list(np.split(x, np.cumsum(chunks)[:-1])) for x, chunks in zip(whole, cuts)]
        futures = [[] for _ in cuts]
        while any(parts):
            k = order.choice([k for k, left in enumerate(parts) if left])
            futures[k].append(sessions[k].submit(parts[k].pop(0)))
        for session in sessions:
            session.close()
        for x, answers in zip(whole, futures):
            assert same(np.concatenate([future.result(30) for future in answers]), x)
        assert batcher.stats().sessions == 0
        x = sequence(7)
        assert same(batcher.open().submit(x), x), "a row that was used begins anew"


def test_nan_stays_in_its_row():
    x, spoiled = sequence(30), np.full((20, NET.input_size), np.nan, np.float32)
    with fastrnn.Batcher(NET) as batcher:
        futures = [batcher.submit(a) for a in (spoiled, x, spoiled, x)]
        assert same(futures[1], x)
        assert same(futures[3], x)
        assert np.isnan(futures[0].result()).all()
        assert all(same(batcher.submit(x), x) for _ in range(4))


def test_20000_requests_from_three_threads():
    """Cancelled, expired and broken ones among them: none lost, none answered twice, no bit wrong."""
    with fastrnn.Batcher(NET, max_batch=64) as batcher:
        break_on_poison(batcher)
        load = Load(batcher, NET)
        load.run(20_000)
    load.check(20_000)
    assert min(load.outcomes[name] for name in ("completed", "cancelled", "expired", "failed")) > 0


# ---- Joining and leaving ----


def test_requests_join_and_leave_at_every_step(gated):
    batcher, gate = gated()
    long = batcher.submit(sequence(5))
    gate.reached()
    short = batcher.submit(sequence(2))
    gate.let(3)
    assert same(short, sequence(2))
    assert not long.done()
    gate.open()
    assert same(long, sequence(5))
    assert gate.calls == [[(5, 0)], [(5, 1), (2, 0)], [(5, 2), (2, 1)], [(5, 3)], [(5, 4)]]


def test_a_tick_takes_more_steps_when_it_may():
    x = sequence(64)
    with fastrnn.Batcher(NET, tick=10.0, max_steps_per_tick=16) as batcher:
        assert same(batcher.submit(x), x)
        assert 4 <= batcher.stats().ticks <= 6


def test_a_full_batch_lets_others_in(gated):
    """A short request passes a long one that has had its turn, and the long one goes on from where it was."""
    batcher, gate = gated(max_batch=1)
    long = batcher.submit(sequence(3 * scheduler.TURN))
    gate.reached()
    short = batcher.submit(sequence(2))
    gate.open()
    assert same(long, sequence(3 * scheduler.TURN))
    assert same(short, sequence(2))
    order = [row for call in gate.calls for row in call]
    assert order.index((2, 0)) == scheduler.TURN
    assert order[scheduler.TURN + 2] == (3 * scheduler.TURN, scheduler.TURN)


def test_requests_of_one_priority_take_turns(gated):
    batcher, gate = gated(max_batch=2)
    lengths = [4 * scheduler.TURN + k for k in range(5)]
    futures = [batcher.submit(sequence(steps)) for steps in lengths]
    gate.open()
    assert all(same(future, sequence(steps)) for future, steps in zip(futures, lengths))
    seen = [
        max((begin for call in gate.calls[:k] for n, begin in call if n == 128), default=0) for k in range(0, 320, 64)
    ]
    assert seen == sorted(seen)
    for steps in lengths:
        starts = [k for k, call in enumerate(gate.calls) if any(n == steps for n, _ in call)]
        assert max(np.diff(starts)) <= 2 * scheduler.TURN + 1, "none waits longer than the others' turns"


def test_priorities_come_first(gated):
    batcher, gate = gated(max_batch=1)
    futures = [batcher.submit(sequence(1))]
    gate.reached()
    futures += [batcher.submit(sequence(2 + k), priority=k % 3) for k in range(6)]
    gate.open()
    wait(futures, 30)
    assert [call[0][0] for call in gate.calls if call[0][1] == 0] == [1, 4, 7, 3, 6, 2, 5]


def test_waiting_outweighs_priority(gated, monkeypatch):
    monkeypatch.setattr("fastrnn.batcher_queue.PRIORITY", 1e-9)
    batcher, gate = gated(max_batch=1)
    futures = [batcher.submit(sequence(1))]
    gate.reached()
    futures += [batcher.submit(sequence(2 + k), priority=k) for k in range(4)]
    gate.open()
    wait(futures, 30)
    assert [call[0][0] for call in gate.calls if call[0][1] == 0] == [1, 2, 3, 4, 5]


# ---- What ends a request ----


def test_cancelled_before_it_runs(gated):
    batcher, gate = gated(max_batch=1)
    first = batcher.submit(sequence(1))
    gate.reached()
    second = batcher.submit(sequence(2))
    assert second.cancel()
    assert second.cancel()
    gate.open()
    assert same(first, sequence(1))
    assert wait([second], 30).done == {second}
    batcher.close()
    assert [call[0][0] for call in gate.calls] == [1]
    assert batcher.stats().cancelled == 1


def test_cancelled_while_it_runs(gated):
    batcher, gate = gated()
    long, other = batcher.submit(sequence(50)), batcher.submit(sequence(4))
    gate.reached()
    assert not long.running()
    assert long.cancel()
    gate.open()
    assert same(other, sequence(4))
    with pytest.raises(CancelledError):
        long.result()
    batcher.close()
    assert len(gate.calls) <= 5


def test_cancel_after_the_answer_does_nothing():
    with fastrnn.Batcher(NET) as batcher:
        future = batcher.submit(sequence(3))
        assert same(future, sequence(3))
        assert not future.cancel()
        assert same(future, sequence(3))


def test_deadlines_in_the_queue_and_while_running(gated, clock):
    batcher, gate = gated(max_batch=1)
    running = batcher.submit(sequence(50), deadline=0.05)
    gate.reached()
    queued = batcher.submit(sequence(3), deadline=0.01)
    late = batcher.submit(sequence(2), deadline=1000)
    clock.now += 1
    gate.open()
    with pytest.raises(DeadlineError, match="after 1 of 50 steps"):
        running.result(30)
    with pytest.raises(TimeoutError, match="after 0 of 3 steps"):
        queued.result(30)
    assert same(late, sequence(2))
    assert batcher.stats().expired == 2


def test_a_full_queue_refuses_at_once(gated):
    batcher, gate = gated(max_batch=1, max_queue=2)
    futures = [batcher.submit(sequence(1)) for _ in range(3)]
    with pytest.raises(QueueFullError, match=r"3 requests run or wait.*max_queue"):
        batcher.submit(sequence(1))
    session = batcher.open()
    futures.append(session.submit(sequence(1)))
    with pytest.raises(QueueFullError):
        session.submit(sequence(1))
    gate.open()
    assert all(same(future, sequence(1)) for future in futures)
    assert same(batcher.submit(sequence(1)), sequence(1))
    assert batcher.stats().rejected == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.submit(np.ones((3, 5))), ShapeError, r"x must be \(seq_len, 8\), got shape \(3, 5\)"),
        (lambda b: b.submit(np.ones(8)), ShapeError, "got shape"),
        (lambda b: b.submit("text"), ShapeError, "real numbers"),
        (lambda b: b.open().submit(np.ones((3, 5))), ShapeError, "seq_len"),
        (lambda b: b.submit(np.ones((3, 8)), deadline="soon"), ValueError, "deadline must be a number, got 'soon'"),
        (lambda b: b.submit(np.ones((3, 8)), priority=np.nan), ValueError, "priority must be a number"),
        (lambda b: [b.open() for _ in range(3)], PoolFullError, "all 2 sessions"),
    ],
)
def test_wrong_requests_are_refused_by_the_call(call, error, message):
    with fastrnn.Batcher(NET, max_sessions=2) as batcher:
        with pytest.raises(error, match=message):
            call(batcher)
        assert batcher.stats().submitted == 0


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"max_queue": -1}, {"max_sessions": 1.5}, {"max_steps_per_tick": 0}, {"tick": 0}]
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fastrnn.Batcher(NET, **options)


def test_networks_that_read_from_the_end_are_refused():
    weight = np.zeros((2, 4, 1)), np.zeros((2, 4, 1))
    with pytest.raises(fastrnn.UnsupportedError, match="bidirectional"):
        fastrnn.Batcher(fastrnn.LSTM(*map(list, weight), bidirectional=True))


# ---- Errors of the engine ----


def poisoned(steps):
    x = sequence(steps)
    x[0, 0] = POISON
    return x


def test_an_error_reaches_only_its_request(gated):
    batcher, gate = gated()
    gate._store = FragileStore(gate._store)
    futures = [batcher.submit(sequence(9, 0))]
    gate.reached()
    session = batcher.open()
    futures += [batcher.submit(poisoned(4)), session.submit(sequence(6, 1)), batcher.submit(sequence(7, 2))]
    later = session.submit(sequence(5, 3))
    gate.open()
    with pytest.raises(BrokenInputError):
        futures[1].result(30)
    assert same(futures[0], sequence(9, 0))
    assert same(futures[3], sequence(7, 2))
    both = np.concatenate([futures[2].result(30), later.result(30)])
    assert same(both, np.concatenate([sequence(6, 1), sequence(5, 3)]))
    with pytest.raises(BrokenInputError):
        batcher.submit(poisoned(1)).result(30)
    assert same(batcher.submit(sequence(3)), sequence(3))
    assert batcher.stats().failed == 2


@pytest.mark.parametrize("how", ["cancel", "deadline", "error"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_lost_chunk_leaves_the_session_as_it_was(gated, clock, how, begun):
    batcher, gate = gated()
    gate._store = FragileStore(gate._store)
    session = batcher.open()
    before = session.submit(sequence(2 if begun else 0))
    gate.reached()
    gate.let(3 if begun else 1)
    before.result(30)
    lost = session.submit(poisoned(8) if how == "error" else sequence(8), deadline=0.05 if how == "deadline" else None)
    after = session.submit(sequence(4))
    gate.reached()
    if how == "cancel":
        lost.cancel()
    clock.now += 1
    gate.open()
    with pytest.raises((CancelledError, DeadlineError, BrokenInputError)):
        lost.result(30)
    whole = np.concatenate([sequence(2 if begun else 0), sequence(4)])
    assert same(np.concatenate([before.result(), after.result(30)]), whole)


def test_no_memory_for_a_row_fails_that_request(gated):
    batcher, gate = gated(max_batch=1)

    def grown(capacity):
        raise MemoryError

    gate.grown = grown
    first = batcher.open()
    gate.open()
    y = first.submit(sequence(1)).result(30)
    with pytest.raises(MemoryError):
        batcher.submit(sequence(2)).result(30)
    assert same(np.concatenate([y, first.submit(sequence(3)).result(30)]), np.concatenate([sequence(1), sequence(3)]))


@pytest.mark.parametrize("method", ["clear", "results", "read", "write"])
@pytest.mark.parametrize("error", [MemoryError, SystemExit])
def test_an_error_of_the_store_fails_its_request(gated, method, error):
    """Wherever it comes from, and of whatever kind; the batcher goes on."""
    batcher, gate = gated()
    first, state = batcher.open(), NET(sequence(5))[1]
    session = batcher.open(state)
    gate.open()
    first.submit(sequence(2)).result(30)

    def broken(*args):
        raise error

    setattr(gate, method, broken)
    for send in (batcher.submit, first.submit, session.submit):
        with suppress(error):
            send(sequence(3), final_state=True).result(30)
    delattr(gate, method)
    assert same(batcher.submit(sequence(4)), sequence(4))
    assert first.submit(sequence(3)).result(30).shape == (3, NET.output_size)
    want = NET(sequence(3), state)[0]
    assert batcher.open(state).submit(sequence(3)).result(30).tobytes() == want.tobytes()


def test_a_state_that_cannot_be_put_back_ends_its_session_alone(gated):
    batcher, gate = gated()
    gate._store = FragileStore(gate._store)
    session = batcher.open()
    before = session.submit(sequence(2))
    gate.reached()
    chunks = [session.submit(poisoned(4)), session.submit(sequence(1)), session.submit(sequence(2))]

    def write(rows, states):
        raise MemoryError

    gate.write = write
    gate.open()
    assert same(before, sequence(2))
    for chunk, error in zip(chunks, (BrokenInputError, ClosedError, ClosedError)):
        with pytest.raises(error):
            chunk.result(30)
    with pytest.raises(ClosedError, match="state of the session was lost"):
        session.submit(sequence(1))
    session.close()
    del gate.write
    assert same(batcher.submit(sequence(3)), sequence(3))
    assert batcher.stats().failed == 3


@pytest.mark.parametrize("step", ["_take_over", "_let_in", "_advance", "_complete", "_end", "_answer"])
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_thread_that_fails_answers_everybody(gated, monkeypatch, step, error):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    batcher, gate = gated(max_batch=2)
    session = batcher.open()
    futures = [batcher.submit(sequence(4)) for _ in range(4)] + [session.submit(sequence(3)) for _ in range(3)]
    cancelled = batcher.submit(sequence(5))
    called = []
    futures[0].add_done_callback(called.append)
    gate.reached()
    cancelled.cancel()

    def broken(*args):
        raise error

    monkeypatch.setattr(batcher._scheduler, step, broken)
    gate.open()
    assert wait([*futures, cancelled], 30).not_done == set()
    assert any(isinstance(future.exception(0), ClosedError) for future in futures)
    for call in (batcher.submit, session.submit):
        with pytest.raises(ClosedError, match=f"thread has failed \\({error.__name__}\\); make a new batcher"):
            call(sequence(1))
    batcher.close()
    assert called == futures[:1]


# ---- What clients do ----


def raises(error):
    def callback(future):
        raise error

    return callback


def test_callbacks_that_raise(gated, caplog):
    batcher, gate = gated(max_batch=2)
    futures, called = [batcher.submit(sequence(3)) for _ in range(8)], []
    for future, error in zip(
        futures, (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException(), ValueError())
    ):
        future.add_done_callback(raises(error))
        future.add_done_callback(called.append)
    gate.open()
    assert all(same(future, sequence(3)) for future in futures)
    batcher.close()
    assert called == sorted(called, key=futures.index)
    assert len(called) == 5
    assert caplog.text.count("exception calling callback") == 5


def test_callbacks_of_what_is_cancelled_belong_to_who_cancels(gated):
    batcher, gate = gated()
    future, late = batcher.submit(sequence(3)), batcher.submit(sequence(2))
    future.add_done_callback(raises(SystemExit(3)))
    with pytest.raises(SystemExit):
        future.cancel()
    gate.open()
    assert same(late, sequence(2))
    with pytest.raises(SystemExit):
        late.add_done_callback(raises(SystemExit(3)))
    assert same(batcher.submit(sequence(1)), sequence(1))


def test_callbacks_may_wait_submit_and_close(gated):
    """A callback that waits, for an answer or for ever, holds up no request."""
    batcher, gate = gated(max_batch=2)
    futures, more, go = [batcher.submit(sequence(2 + k)) for k in range(4)], [], threading.Event()

    def callback(future):
        more.append(futures[3].result(30))
        more.append(batcher.submit(sequence(9)).result(30))
        assert go.wait(30)
        batcher.close()
        more.append("closed")

    futures[0].add_done_callback(callback)
    gate.open()
    assert all(same(future, sequence(2 + k)) for k, future in enumerate(futures))
    assert same(batcher.submit(sequence(7)), sequence(7))
    go.set()
    batcher._scheduler.callbacks.join(30)
    assert same(more[0], sequence(5))
    assert same(more[1], sequence(9))
    assert more[2:] == ["closed"]
    with pytest.raises(ClosedError):
        batcher.submit(sequence(1))


@pytest.mark.parametrize(
    "meddle",
    [
        lambda future: future.set_result("mine"),
        lambda future: future.set_exception(ZeroDivisionError()),
        lambda future: future.set_running_or_notify_cancel(),
        lambda future: (future.cancel(), future.set_running_or_notify_cancel()),
        lambda future: (future.set_running_or_notify_cancel(), future.set_result("mine")),
        lambda future: future.__dict__.clear(),
    ],
)
@pytest.mark.parametrize("when", ["queued", "running", "answered"])
def test_clients_that_set_their_own_future(gated, meddle, when):
    batcher, gate = gated(max_batch=2)
    futures = [batcher.submit(sequence(3)) for _ in range(5)]
    gate.reached()
    mine = futures[-1 if when == "queued" else 0]
    if when == "answered":
        gate.open()
        futures[0].result(30)
        with suppress(Exception):
            meddle(mine)
    else:
        meddle(mine)
        gate.open()
    assert all(same(future, sequence(3)) for future in futures if future is not mine)
    assert same(batcher.submit(sequence(6)), sequence(6))
    batcher.close()
    stats = batcher.stats()
    assert (stats.queued, stats.active) == (0, 0)
    assert stats.submitted == stats.completed + stats.cancelled == 6


class Odd(float):
    """A number that fails when it is compared, computed with, hashed or asked for its truth."""

    def _fail(self, *args):
        raise SystemExit

    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __hash__ = __bool__ = __add__ = __radd__ = _fail
    __mul__ = __rmul__ = __sub__ = __rsub__ = __neg__ = _fail


class Arrayless:
    def __array__(self, dtype=None, copy=None):
        raise KeyboardInterrupt


def test_objects_of_clients_stay_in_their_threads(gated):
    batcher, gate = gated(max_batch=1, tick=Odd(0.001))
    good = [batcher.submit(sequence(3), priority=Odd(k), deadline=Odd(1000)) for k in range(4)]
    for x, options, error in (
        (Arrayless(), {}, KeyboardInterrupt),
        (({} for _ in range(3)), {}, ShapeError),
        (sequence(3), {"final_state": Odd(1)}, SystemExit),
        (sequence(3), {"priority": np.inf}, ValueError),
        (sequence(3), {"priority": 10**400}, ValueError),
        (sequence(3), {"deadline": "1"}, ValueError),
        (sequence(3), {"deadline": np.ones(2)}, ValueError),
    ):
        with pytest.raises(error):
            batcher.submit(x, **options)
    gate.open()
    assert all(same(future, sequence(3)) for future in good)
    assert batcher.stats().submitted == 4
    for options in ({"timeout": "1"}, {"timeout": np.nan}, {"drain": np.ones(2)}):
        with pytest.raises(ValueError, match=r"timeout must be a number|truth value"):
            batcher.close(**options)
    assert same(batcher.submit(sequence(3), priority=np.float32(2)), sequence(3))


def test_what_is_submitted_is_copied(gated):
    batcher, gate = gated(max_batch=1)
    kept = [sequence(9, k) for k in range(3)]
    given = [x.copy() for x in kept]
    futures = [batcher.submit(x) for x in given]
    gate.reached()
    for x in given:
        x[...] = np.nan
        x.shape = (1, x.size)
    gate.open()
    assert all(same(future, x) for future, x in zip(futures, kept))


def test_a_close_that_comes_between_two_looks_loses_nothing(gated, monkeypatch):
    """The thread finds nothing to do; then a request comes, then ``close``: the request is answered."""
    batcher, gate = gated()
    gate.open()
    batcher.submit(sequence(1)).result(30)
    scheduler_, late = batcher._scheduler, []
    looked, take_over = threading.Event(), scheduler_._take_over

    def slow():
        take_over()
        if not late:
            late.append(batcher.submit(sequence(2)))
            scheduler_.retire()
            looked.set()

    monkeypatch.setattr(scheduler_, "_take_over", slow)
    scheduler_._wake.put(None)
    assert looked.wait(30)
    assert same(late[0], sequence(2))


INTERRUPTED = (
    LAYERS
    + """
import linecache
net = lstm(8, 8)
x = inputs(3, 8)
want = net(x)[0].tobytes()
inside = [0]
def countdown(frame, event, arg):
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    inside[0] -= not line.strip().startswith(("with ", "try:"))  # where no signal is looked for
    if inside[0] == 0:
        raise KeyboardInterrupt
    return countdown

batcher = fastrnn.Batcher(net, max_batch=2, max_queue=3)
session = batcher.open()
for place in range(1, 2000):
    inside[0] = place
    sys.settrace(countdown)
    try:
        batcher.submit(x)
        session.submit(x)
    except (KeyboardInterrupt, fastrnn.QueueFullError):
        pass
    finally:
        sys.settrace(None)
    if inside[0] > 0:
        break  # there are no more lines
    while True:
        try:
            assert batcher.submit(x).result(20).tobytes() == want, place
            break
        except fastrnn.QueueFullError:
            time.sleep(0)
else:
    raise AssertionError("more lines than were tried")
batcher.close()
stats = batcher.stats()
assert (stats.queued, stats.active) == (0, 0), stats
"""
)


def test_an_interrupted_submit_stops_nothing():
    """A KeyboardInterrupt at each line that ``submit`` runs."""
    check(INTERRUPTED, timeout=300)


# ---- Shutdown ----


def batcher_threads():
    return [thread for thread in threading.enumerate() if thread.name == "fastrnn-batcher"]


def test_threads_come_with_the_first_request_and_go_with_close():
    batcher = fastrnn.Batcher(NET)
    assert batcher_threads() == []
    batcher.submit(sequence(1)).result(30)
    assert len(batcher_threads()) == 1
    batcher.close()
    batcher.close()
    assert batcher_threads() == []
    fastrnn.Batcher(NET).close()


def test_close_answers_what_was_sent(gated):
    batcher, gate = gated(max_batch=2)
    session = batcher.open()
    futures = [batcher.submit(sequence(4)) for _ in range(5)] + [session.submit(sequence(4))]
    gate.open()
    batcher.close()
    assert all(future.done() and same(future, sequence(4)) for future in futures[:5])
    for call in (lambda: batcher.submit(sequence(1)), lambda: session.submit(sequence(1)), batcher.open):
        with pytest.raises(ClosedError, match="batcher is closed"):
            call()


@pytest.mark.parametrize("options", [{"drain": False}, {"timeout": 0.02}])
def test_close_drops_what_it_may_not_wait_for(gated, options):
    batcher, gate = gated(max_batch=2)
    session = batcher.open()
    futures = [batcher.submit(sequence(40)) for _ in range(5)]
    futures += [session.submit(sequence(40)), session.submit(sequence(40))]
    gate.reached()
    gate.open_when_dropped(batcher._scheduler)
    batcher.close(**options)
    for future in futures:
        with pytest.raises(ClosedError, match="before the request was answered"):
            future.result(0)
    stats = batcher.stats()
    assert (stats.failed, stats.queued, stats.active) == (7, 0, 0)


def test_an_error_in_the_with_block_drops_requests(gated):
    batcher, gate = gated()
    future = batcher.submit(sequence(1000))
    gate.reached()
    gate.open_when_dropped(batcher._scheduler)
    with pytest.raises(ZeroDivisionError), batcher:
        raise ZeroDivisionError
    with pytest.raises(ClosedError):
        future.result(0)


def test_closed_sessions_take_no_chunks_but_answer_them():
    with fastrnn.Batcher(NET) as batcher:
        with batcher.open() as session:
            future = session.submit(sequence(9))
        assert same(future, sequence(9))
        with pytest.raises(ClosedError, match="session is closed"):
            session.submit(sequence(1))


def test_a_dropped_batcher_answers_and_ends():
    future = fastrnn.Batcher(NET).submit(sequence(20))
    gc.collect()
    assert same(future, sequence(20))
    for thread in batcher_threads():
        thread.join(30)
    assert batcher_threads() == []


def test_answered_futures_hold_nothing():
    with fastrnn.Batcher(NET) as batcher:
        x = sequence(3)
        watched, future = weakref.ref(x), batcher.submit(x)
        del x
        future.result(30)
        batcher.submit(sequence(1)).result(30)
        assert watched() is None


EXIT = (
    """
import atexit
def after():
    deadline = time.monotonic() + 10
    while threads() > before and time.monotonic() < deadline:  # the system may take a moment
        time.sleep(0.001)
    print(threads() - before, type(future.exception(0)).__name__)
atexit.register(after)  # before the batcher's own, so that it runs after it
"""
    + LAYERS
    + """
before = threads()
batcher = fastrnn.Batcher(lstm(8, 64), max_steps_per_tick=1)
assert threads() == before
batcher.submit(inputs(1, 8)).result()
assert threads() == before + 1
future = batcher.submit(inputs(1_000_000, 8))
"""
)


def test_no_thread_is_left_at_exit():
    assert check(EXIT).split() == ["0", "ClosedError"]


FORK = (
    LAYERS
    + """
import signal, traceback
net = lstm(8, 64)
batcher = fastrnn.Batcher(net, max_steps_per_tick=1)
session = batcher.open()
session.submit(inputs(1, 8)).result()
long = [batcher.submit(inputs(60_000, 8)) for _ in range(3)]
x = inputs(50, 8)
expected = net(x)[0].tobytes()

def child(depth):
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    signal.alarm(20)
    try:
        assert batcher.stats().submitted == 0
        for future in long:
            assert isinstance(future.exception(0), fastrnn.ClosedError), future.exception(0)
            assert not future.cancel()
        try:
            session.submit(x)
        except fastrnn.ClosedError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError("the session has no state here")
        session.close()
        before = threads()
        assert all(batcher.submit(x).result(10).tobytes() == expected for _ in range(3))
        assert threads() == before + 1
        with batcher.open() as own:
            assert own.submit(x).result(10).tobytes() == expected
        assert batcher.stats().sessions == 0
        if depth:
            child(depth - 1)
        batcher.close()
        while threads() > before:  # the system may take a moment; the alarm ends it
            time.sleep(0.001)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

for _ in range(3):
    child(1)
    assert batcher.submit(x).result(10).tobytes() == expected
want = net(inputs(60_000, 8))[0].tobytes()
assert all(future.result(60).tobytes() == want for future in long)
"""
)


def test_a_child_starts_anew():
    check(FORK)


# ---- asyncio ----


def test_infer_and_its_cancellation(gated):
    batcher, gate = gated()

    async def main():
        first = asyncio.create_task(batcher.infer(sequence(3)))
        second = asyncio.create_task(batcher.infer(sequence(1000), deadline=1000, priority=1))
        await asyncio.to_thread(gate.reached)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()  # the batcher has been told: it was at its first step, and takes no other one for this
        with pytest.raises(ShapeError):
            await batcher.infer(np.ones((2, 3)))
        with pytest.raises(DeadlineError):
            await batcher.infer(sequence(3), deadline=0)
        y, state = await batcher.infer(sequence(3), final_state=True)
        return await first, y, state

    first, y, state = asyncio.run(main())
    assert same(first, sequence(3))
    assert same(y, sequence(3))
    assert state[0].tobytes() == y[-1].tobytes()
    batcher.close()
    assert batcher.stats().cancelled == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_many_streams_in_order(is_async):
    rng = np.random.default_rng(0)
    whole = [sequence(int(steps), k) for k, steps in enumerate(rng.integers(1, 60, 40))]

    async def later(parts):
        for part in parts:
            await asyncio.sleep(0)
            yield part

    async def one(batcher, x):
        parts = np.array_split(x, 7)
        y = [y async for y in batcher.stream(later(parts) if is_async else parts)]
        assert [len(a) for a in y] == [len(part) for part in parts]
        assert same(np.concatenate(y), x)

    async def main(batcher):
        await asyncio.gather(*(one(batcher, x) for x in whole))
        assert batcher.stats().sessions == 0

    with fastrnn.Batcher(NET, max_batch=8, max_queue=0) as batcher:
        asyncio.run(main(batcher))
        assert batcher.stats().completed == 7 * len(whole)


def test_a_stream_that_is_left_closes_its_session():
    async def main(batcher):
        stream = batcher.stream([sequence(2)] * 5)
        async for _ in stream:
            break
        await stream.aclose()

    with fastrnn.Batcher(NET) as batcher:
        asyncio.run(main(batcher))
        assert batcher.stats().sessions == 0
        session = batcher.open()
        del session
        gc.collect()
        assert batcher.stats().sessions == 0


# ---- Statistics ----


def test_counts(gated):
    batcher, gate = gated(max_batch=2)
    futures = [batcher.submit(sequence(3)) for _ in range(4)]
    gate.reached()
    stats = batcher.stats()
    assert (stats.submitted, stats.active, stats.queued) == (4, stats.active, 4 - stats.active)
    gate.open()
    wait(futures, 30)
    stats = batcher.stats()
    assert (stats.completed, stats.steps, stats.active, stats.queued) == (4, 12, 0, 0)
    assert stats.mean_batch == stats.steps / stats.ticks
    assert 0 < stats.queue_p50 <= stats.queue_p99 <= stats.latency_p99
    assert stats.steps_per_second == stats.steps / stats.busy


def test_percentiles_are_close():
    seconds = np.random.default_rng(0).lognormal(-6, 2, 5000)
    histogram = Histogram()
    assert histogram.percentile(99) == 0
    for value in (*seconds, 0.0, 1e12):
        histogram.add(value)
    for percent in (10, 50, 90, 99):
        exact = np.percentile(seconds, percent, method="higher")
        assert exact * 0.99 < histogram.percentile(percent) < exact * 1.1


# ---- Whole models ----


def words() -> fastrnn.Model:
    """Ids to features, a recurrent layer and a head; an id from 10 on is an error."""
    rng = np.random.default_rng(0)
    gru = {"weight_ih_l0": rng.standard_normal((9, 4)), "weight_hh_l0": rng.standard_normal((9, 3))}
    nodes = [
        Node("embedding", "embedding", ("ids",), ("x",), {}, {"weight": rng.standard_normal((10, 4), np.float32)}),
        Node("gru", "gru", ("x",), ("h",), {}, {name: weight.astype(np.float32) for name, weight in gru.items()}),
        Node("dense", "head", ("h",), ("y",), {}, {"weight": rng.standard_normal((2, 3), np.float32)}),
    ]
    return fastrnn.Model(ModelSpec(nodes, [Tensor("ids", (None, None), "int64")], [Tensor("y", None)]))


def test_whole_models_and_an_error_of_one_request():
    model, rng = words(), np.random.default_rng(1)
    ids = [rng.integers(0, 10, int(steps)) for steps in rng.integers(1, 40, 30)]
    with fastrnn.Batcher(model, max_batch=8) as batcher:
        with batcher.open() as session:
            chunks = [session.submit(part) for part in np.array_split(ids[0], 3)]
        futures = [batcher.submit(one) for one in ids]
        wrong = [batcher.submit(np.array([1, 2, 99])) for _ in range(3)]
        futures += [batcher.submit(one) for one in ids]
        for future, one in zip(futures, ids + ids):
            assert future.result(30).tobytes() == model(one[None])[0].tobytes()
        assert np.concatenate([chunk.result(30) for chunk in chunks]).tobytes() == model(ids[0][None])[0].tobytes()
        for future in wrong:
            assert "99" in str(future.exception(30))
