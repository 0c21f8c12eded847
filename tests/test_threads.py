"""Threads: those that call a model, those of the team, and what a call leaves behind in the caller's."""

import ctypes
import ctypes.util
import platform
import signal
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from scripts import LAYERS, check, environment

import fastrnn

TEAMS = fastrnn.info()["teams"]

SAME_BITS = (
    LAYERS
    + """
fastrnn.set_team(sys.argv[1])
rng = np.random.default_rng(0)
H = 256

def layer(cell, directions):
    gates = {"lstm": 4, "lstm projection": 4, "gru": 3, "gru reset before": 3, "rnn": 1}[cell]
    output = 96 if cell == "lstm projection" else H
    arrays = [[weights(rng, gates * H, columns) for _ in range(directions)] for columns in (64, output)]
    options = {"bidirectional": directions == 2}
    if cell == "lstm projection":
        options["weight_hr"] = [weights(rng, output, H) for _ in range(directions)]
    if cell == "gru reset before":
        options["reset_after"] = False
    return {"l": fastrnn.LSTM, "g": fastrnn.GRU, "r": fastrnn.RNN}[cell[0]](*arrays, **options)

splits = ("batch", 1, 16), ("directions", 2, 1), ("directions", 2, 3), ("hidden", 1, 1), ("hidden", 1, 3)
for cell in ("lstm", "lstm projection", "gru", "gru reset before", "rnn"):
    for split, directions, batch in splits:
        net, x, lengths = layer(cell, directions), inputs(batch, 24, 64), np.arange(batch) * 5 % 24 + 1
        results = {}
        for count in (1, 2, 3, 4):
            fastrnn.set_num_threads(count)
            plan = net.explain(batch, 24)
            if count in (2, 4):
                assert (plan["split"], plan["threads"]) == (split, count), (cell, plan)
            results[count] = bits(net(x)), bits(net(x, lengths=lengths))
        wrong = [count for count in results if results[count] != results[1]]
        assert not wrong, f"{cell}, {split} split: other bits on {wrong} threads than on one"
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_the_number_of_threads_changes_no_bit(team):
    check(SAME_BITS, team)


CALLERS = (
    LAYERS
    + """
import threading

fastrnn.set_team(sys.argv[1])
fastrnn.set_num_threads(1)
nets = {"batch": lstm(32, 64), "directions": lstm(32, 96, directions=2), "hidden": lstm(32, 256)}
shapes = {"batch": (8, 30, 32), "directions": (1, 30, 32), "hidden": (1, 30, 32)}
feeds = {split: [inputs(*shape, seed=k) for k in range(8)] for split, shape in shapes.items()}
expected = {split: [bits(nets[split](x)) for x in feeds[split]] for split in nets}
fastrnn.set_num_threads(2)
for split, shape in shapes.items():
    assert nets[split].explain(*shape[:2])["split"] == split
wrong, start = [], threading.Barrier(8)

def call(k):
    start.wait()
    for turn in range(10):
        results = {split: bits(net(feeds[split][k])) for split, net in nets.items()}
        wrong.extend((split, k, turn) for split in nets if results[split] != expected[split][k])

before = threads()
callers = [threading.Thread(target=call, args=(k,)) for k in range(8)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert not wrong, wrong
end = time.monotonic() + 10
while threads() > before + 1 and time.monotonic() < end:  # a thread that was joined may still be leaving
    time.sleep(0.01)
assert threads() <= before + 1, "more than one team of two"
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_eight_callers_share_a_model_and_one_team(team):
    check(CALLERS, team)


TEAM_IS_TAKEN = (
    LAYERS
    + """
import threading

fastrnn.set_team(sys.argv[1])
fastrnn.set_num_threads(2)
net, x, long_x = lstm(32, 256), inputs(1, 30, 32), inputs(1, 4000, 32)
assert net.explain(1, 30)["split"] == "hidden"
expected, long_expected, long_results = bits(net(x)), bits(net(long_x)), []
holder = threading.Thread(target=lambda: long_results.append(bits(net(long_x))))
holder.start()
calls = 0
while holder.is_alive():
    assert bits(net(x)) == expected
    calls += 1
holder.join()
assert long_results == [long_expected]
assert calls > 1
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_who_finds_the_team_taken_runs_alone(team):
    check(TEAM_IS_TAKEN, team)


MANY = (
    LAYERS
    + """
fastrnn.set_team(sys.argv[1])
cases = {"batch": (lstm(32, 64), inputs(600, 4, 32)), "hidden": (lstm(32, 256), inputs(1, 12, 32))}
for split, (net, x) in cases.items():
    fastrnn.set_num_threads(1)
    expected = bits(net(x))
    for count in (5, 16, 150):
        fastrnn.set_num_threads(count)
        assert bits(net(x)) == expected, (split, count)
    assert threads() > 8, split
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_more_threads_than_cores(team):
    """An explicit number is honoured; beyond the largest team it is cut down."""
    check(MANY, team)


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_MAX_ACTIVE_LEVELS", "0"), ("OMP_THREAD_LIMIT", "1"), ("OMP_DYNAMIC", "true")]
)
@pytest.mark.skipif("openmp" not in TEAMS, reason="this build has no OpenMP")
def test_an_environment_that_forbids_openmp_its_threads(name, value):
    check(SAME_BITS, "openmp", **{name: value})


# ---- The caller's floating-point mode ----

libm = ctypes.CDLL(ctypes.util.find_library("m"))
MXCSR_AT = 28  # in x86-64's fenv_t
CONTROL = 0xFFC0  # MXCSR without the exception flags
FLUSH, DENORMALS_ARE_ZERO, UPWARD = 0x8000, 0x0040, 0x4000


def mode() -> int:
    state = (ctypes.c_char * 64)()
    libm.fegetenv(state)
    return struct.unpack_from("I", state, MXCSR_AT)[0] & CONTROL


def set_mode(control: int) -> None:
    state = (ctypes.c_char * 64)()
    libm.fegetenv(state)
    struct.pack_into("I", state, MXCSR_AT, control)
    libm.fesetenv(state)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads MXCSR, a register of x86-64")
@pytest.mark.parametrize("bits", [0, FLUSH | DENORMALS_ARE_ZERO, UPWARD], ids=["default", "flushing", "upward"])
def test_the_floating_point_mode_is_put_back_and_changes_nothing(bits):
    rng = np.random.default_rng(0)
    recurrent = fastrnn.LSTM(rng.standard_normal((64, 8)), rng.standard_normal((64, 16)))
    dense = fastrnn.Dense(rng.standard_normal((5, 16)), activation="softmax")
    layer_norm = fastrnn.LayerNorm(np.ones(5), np.zeros(5))
    x = rng.standard_normal((3, 7, 8)).astype(np.float32)
    before = mode()
    results = []
    for control in (before, before | bits):
        set_mode(control)
        try:
            y, _ = recurrent(x)
            results.append(layer_norm(dense(y)))
            after = mode()
        finally:
            set_mode(before)
        assert after == control
    assert np.array_equal(*results)


@pytest.mark.parametrize("kind", ["recurrent", "dense", "activation"])
def test_denormals_live_on_in_the_caller(kind):
    layer = {
        "recurrent": fastrnn.GRU(np.ones((24, 4)), np.ones((24, 8))),
        "dense": fastrnn.Dense(np.ones((2, 4))),
        "activation": fastrnn.Activation("sigmoid"),
    }[kind]
    tiny = np.full((2, 3, 4), 1e-40, np.float32)
    result = layer(tiny)
    assert np.all(np.isfinite(result[0]))
    assert tiny[0, 0, 0] * np.float32(0.5) > 0
    assert np.all(tiny == np.float32(1e-40))


# ---- Guests that leave ----

IDLE = (
    LAYERS
    + """
fastrnn.set_num_threads(2)
net, x = lstm(32, 256), inputs(1, 30, 32)
assert net.explain(1, 30)["split"] == "hidden"
for _ in range(5):
    net(x)
before = time.process_time()
time.sleep(0.2)
used = time.process_time() - before
assert threads() > 1
assert used < 0.02, f"{used * 1e3:.1f} ms of CPU time while idle"
"""
)


def test_idle_threads_sleep():
    check(IDLE, FASTRNN_TEAM="posix")


INTERRUPTED = (
    LAYERS
    + """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that SIGINT is ignored
count, hidden, directions = map(int, sys.argv[1:])
fastrnn.set_num_threads(count)
net, x, short = lstm(1, hidden, directions), np.zeros((1, 5_000_000, 1), np.float32), inputs(1, 40, 1)
expected = bits(net(short))
print("calling", flush=True)
try:
    net(x, outputs="last")
except KeyboardInterrupt:
    assert bits(net(short)) == expected
    print("interrupted", flush=True)
"""
)


@pytest.mark.parametrize(("threads", "hidden", "directions"), [(1, 512, 1), (2, 512, 1), (2, 512, 2)])
def test_control_c_ends_a_long_call(threads, hidden, directions):
    """Five million steps take minutes."""
    command = [sys.executable, "-c", INTERRUPTED, str(threads), str(hidden), str(directions)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as process:
        guard = threading.Timer(30, process.kill)
        guard.start()
        try:
            assert process.stdout.readline() == "calling\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == "interrupted\n"
            assert process.wait() == 0
        finally:
            process.kill()
            guard.cancel()


HANDLER = (
    LAYERS
    + """
import signal

net, x, short = lstm(8, 64), inputs(4, 300_000, 8), inputs(4, 200, 8, seed=2)
expected, short_expected = bits(net(x, outputs="last")), bits(net(short))
inside, calls, flushed = False, [], []

def handler(*_):
    if inside:
        flushed.append(np.float32(1e-40) * np.float32(0.5) == 0)
        calls.append(bits(net(short)) == short_expected)
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # not before: it would come into the handler

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02)
inside = True
result = net(x, outputs="last")
signal.signal(signal.SIGALRM, signal.SIG_IGN)
assert len(calls) > 1, "no signal came during the call"
assert all(calls), "a call made by a signal handler went wrong"
assert bits(result) == expected, "the call that the signal came into went wrong"
assert not any(flushed), "the handler ran in the floating-point mode of the call"
"""
)


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_signal_handler_may_call_the_model(count):
    """Python runs handlers between two chunks of a call, on the thread that makes the call."""
    check(HANDLER, FASTRNN_NUM_THREADS=count)
