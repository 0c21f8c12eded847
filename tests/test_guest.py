"""A good guest: what importing and calling fastrnn leaves behind in the process, its threads and its processors."""

import platform
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from scripts import LAYERS, TORCH, check, compile_library, environment, run

import fastrnn

TEAMS = fastrnn.info()["teams"]
FLT_MIN = np.finfo(np.float32).tiny

# ---- Import ----

QUIET = """
import os, sys, time
import ctypes, ctypes.util, signal
import numpy as np

libm = ctypes.CDLL(ctypes.util.find_library("m"))

def blas_threads():
    '''Of every OpenBLAS in the process.'''
    with open("/proc/self/maps") as maps:
        libraries = sorted({line.split()[-1] for line in maps if "openblas" in line})
    names = [f"{prefix}openblas_get_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_")]
    found = [(ctypes.CDLL(library), name) for library in libraries for name in names]
    return [getattr(library, name)() for library, name in found if hasattr(library, name)]

def look():
    '''What a guest leaves alone.'''
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    float_mode = (ctypes.c_char * 64)()
    libm.fegetenv(float_mode)
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "handlers": [lines[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
        "handlers of Python": [signal.getsignal(number) for number in signal.valid_signals()],
        "float mode": bytes(float_mode),
        "environment": dict(os.environ),
        "affinity": os.sched_getaffinity(0),
        "BLAS": blas_threads(),
        "directory": os.getcwd(),
        "umask": os.umask(0o22),
    }

def changes(before, names=None):
    after = look()
    return {name: (before[name], after[name]) for name in names or before if before[name] != after[name]}

os.umask(0o22)
before = look()
import fastrnn
assert not changes(before), f"import: {changes(before)}"
"""

QUIET_CALLS = (
    QUIET
    + LAYERS
    + """
layer = fastrnn.GRU(np.ones((48, 8)), np.ones((48, 16)))
before = look()
layer(np.zeros((1, 5, 8)))
assert layer.explain(1, 5)["split"] == "none"
assert not changes(before), f"a small call: {changes(before)}"

fastrnn.set_team(sys.argv[1])
fastrnn.set_num_threads(2)
net, x = lstm(32, 64), inputs(16, 30, 32)
assert net.explain(16, 30)["threads"] == 2
before = look()
net(x)
unchanged = before.keys() - {"threads"}
assert not changes(before, unchanged), f"a call on two threads: {changes(before, unchanged)}"
assert threads() == before["threads"] + 1
"""
)


def test_import_changes_nothing_and_says_nothing():
    done = run(QUIET)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("team", TEAMS)
def test_calls_change_nothing_but_the_number_of_threads(team):
    check(QUIET_CALLS, team)


BLAS = (
    QUIET
    + """
import scipy.linalg.cython_blas  # SciPy's OpenBLAS takes its threads when it is loaded

rng = np.random.default_rng(0)
before = look()
if not before["BLAS"]:
    print("no OpenBLAS")
fastrnn.set_num_threads(2)
layer = fastrnn.LSTM(rng.standard_normal((256, 32)), rng.standard_normal((256, 64)), backend="blas")
layer(np.zeros((16, 30, 32), np.float32))
assert not changes(before), changes(before)
"""
)


@pytest.mark.parametrize("count", ["1", "3"])
def test_the_threads_of_blas_stay_as_they_are(count):
    pytest.importorskip("scipy")
    if "no OpenBLAS" in check(BLAS, OPENBLAS_NUM_THREADS=count):
        pytest.skip("NumPy and SciPy bring no OpenBLAS here")


# ---- Floating-point mode ----

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads MXCSR, a register of x86-64")

MODES = (
    LAYERS
    + """
import ctypes, ctypes.util, itertools, struct

libm = ctypes.CDLL(ctypes.util.find_library("m"))
MXCSR_AT = 28  # in x86-64's fenv_t
state = (ctypes.c_char * 64)()

def mxcsr():
    libm.fegetenv(state)
    return struct.unpack_from("I", state, MXCSR_AT)[0]

def set_mxcsr(value):
    libm.fegetenv(state)
    struct.pack_into("I", state, MXCSR_AT, value)
    libm.fesetenv(state)

flushes = (0, 0x8000, 0x0040, 0x8040)  # FTZ, DAZ
roundings = (0, 0x2000, 0x4000, 0x6000)
masks = (0x1f80, 0, *(0x1f80 & ~(0x80 << k) for k in range(6)))  # all exceptions masked, none, all but one
flags = (0, 0x3f)

fastrnn.set_team(sys.argv[1])
fastrnn.set_num_threads(2)
net, x, short = lstm(32, 64), inputs(16, 30, 32), inputs(1, 2, 32)
x[0, 0] = 1e-40, *31 * [1e30]  # denormal, and sums that overflow
assert net.explain(16, 30)["threads"] == 2 and net.explain(1, 2)["threads"] == 1
outs = [net(a) for a in (x, short)]
expected = [bits(out) for out in outs]
normal = mxcsr()
for value in map(sum, itertools.product(flushes, roundings, masks, flags)):
    for a, out, want in zip((x, short), outs, expected):
        set_mxcsr(value)
        net(a, out=out)
        after = mxcsr()
        set_mxcsr(normal)
        assert after == value, f"MXCSR was {value:#x}, is {after:#x}"
        assert bits(out) == want, f"other bits where MXCSR is {value:#x}"
"""
)


@X86
@pytest.mark.parametrize("team", TEAMS)
def test_a_call_leaves_mxcsr_as_it_was_and_does_not_depend_on_it(team):
    """All rounding modes, exceptions that would kill the process, and the flags of past ones."""
    check(MODES, team)


OTHERS = """
#include <immintrin.h>
#include <omp.h>

/* MXCSR of the two threads of a region. */
void modes(unsigned *found)
{
#pragma omp parallel num_threads(2)
    found[omp_get_thread_num()] = _mm_getcsr();
}
"""

OPENMP_MODES = (
    LAYERS
    + """
import ctypes

modes, found = ctypes.CDLL(sys.argv[1]).modes, (ctypes.c_uint * 2)()
fastrnn.set_team("openmp")
fastrnn.set_num_threads(2)
net, x = lstm(32, 64), inputs(16, 30, 32)
assert net.explain(16, 30)["threads"] == 2
net(x)
modes(found)
assert [mode & 0xffc0 for mode in found] == [0x1f80, 0x1f80], [hex(mode) for mode in found]
"""
)


@X86
@pytest.mark.skipif("openmp" not in TEAMS, reason="this build has no OpenMP")
def test_openmp_s_threads_go_back_in_their_own_mode(tmp_path):
    """libgomp lends them to other libraries too."""
    check(OPENMP_MODES, compile_library(tmp_path, OTHERS, "-fopenmp"))


@pytest.mark.parametrize("kind", ["layer norm", "dense", "softmax"])
@X86
def test_layers_without_time_leave_the_mode_too(kind):
    check(
        MODES.partition("fastrnn.set_team")[0]
        + """
layer = {
    "layer norm": fastrnn.LayerNorm(np.ones(32), np.zeros(32)),
    "dense": fastrnn.Dense(np.ones((8, 32))),
    "softmax": fastrnn.Activation("softmax"),
}[sys.argv[1]]
x, normal = inputs(16, 30, 32), mxcsr()
expected = layer(x)
for control in map(sum, itertools.product(flushes, roundings)):
    set_mxcsr(0x1f80 | control)
    y = layer(x)
    after = mxcsr()
    set_mxcsr(normal)
    assert after & 0xffc0 == 0x1f80 | control
    assert np.array_equal(y, expected)
""",
        kind,
    )


def recurrent(cell, scale, directions=1, hidden_size=64, **options):
    rng = np.random.default_rng(0)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell] * hidden_size
    weights = [
        [rng.uniform(-scale, scale, (rows, columns)).astype(np.float32) for _ in range(directions)]
        for columns in (32, hidden_size)
    ]
    return getattr(fastrnn, cell)(*weights, bidirectional=directions == 2, **options)


def flat(result):
    y, state = result
    return np.concatenate([part.ravel() for part in (y, *(state if isinstance(state, tuple) else (state,)))])


# Rows, directions and hidden units for one thread and for each way to share the work of two.
SPLITS = {"none": (3, 1, 64), "batch": (16, 1, 64), "directions": (1, 2, 128), "hidden": (1, 1, 256)}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_denormal_inputs_and_states_count_as_zero(isa, backend, cell, split):
    """They cost what zeros cost because they are zeros, on every thread of the call.

    Where weights are large, products are normal numbers again if only results are flushed.  The threads of a BLAS
    do not flush at all; the gates made of its products do.
    """
    batch, directions, hidden_size = SPLITS[split]
    layer = recurrent(cell, 0.1 if backend == "blas" else 30, directions, hidden_size, backend=backend)
    fastrnn.set_num_threads(1 if split == "none" else 2)
    assert layer.explain(batch, 50)["split"] == ("none" if backend == "blas" else split)

    def call(x, state):
        h = np.full((directions, batch, hidden_size), state, np.float32)
        return flat(layer(np.full((batch, 50, 32), x, np.float32), (h, h) if cell == "LSTM" else h))

    assert not call(0, 0).any(), "without biases zeros give zeros"
    for tiny in (1e-40, -1e-45, FLT_MIN / 2):
        assert not call(tiny, 0).any(), f"inputs of {tiny}"
        assert not call(0, tiny).any(), f"states of {tiny}"


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_state_that_decays_becomes_zero_and_never_denormal(isa, backend, cell):
    layer = recurrent(cell, 0.1, backend=backend)
    h = np.full((1, 3, 64), 1e-30, np.float32)
    y = flat(layer(np.zeros((3, 400, 32), np.float32), (h, h) if cell == "LSTM" else h))
    assert y.any()
    assert not np.any((y != 0) & (np.abs(y) < FLT_MIN))
    assert not y[-3 * 64 :].any(), "the state at the end"


STATELESS = {
    "dense": fastrnn.Dense(np.full((8, 32), 30)),
    "batch norm": fastrnn.BatchNorm(np.zeros(32), np.ones(32), np.full(32, 30)),
    "activation": fastrnn.Activation("tanh"),
}


@pytest.mark.parametrize("kind", STATELESS)
def test_denormal_inputs_of_layers_without_time_count_as_zero(kind):
    zeros, tiny = (np.full((3, 32), value, np.float32) for value in (0, 1e-40))
    assert np.array_equal(STATELESS[kind](tiny), STATELESS[kind](zeros))


@pytest.mark.parametrize("kind", ["recurrent", *STATELESS])
def test_denormals_live_on_in_the_caller(kind):
    tiny = np.full((2, 3, 32), 1e-40, np.float32)
    (recurrent("GRU", 0.1) if kind == "recurrent" else STATELESS[kind])(tiny)
    assert tiny[0, 0, 0] * np.float32(0.5) > 0
    assert np.all(tiny == np.float32(1e-40))


# ---- Processors ----

IDLE = (
    TORCH
    + LAYERS
    + """
fastrnn.set_num_threads(2)
cases = {"batch": (lstm(32, 64), inputs(16, 30, 32)), "hidden": (lstm(32, 256), inputs(1, 30, 32))}


def cpu_time_asleep():
    before = time.process_time()
    time.sleep(0.3)
    return time.process_time() - before


for split, (net, x) in cases.items():
    assert net.explain(*x.shape[:2])["split"] == split
    idle, used = [], []
    for _ in range(5):
        idle.append(cpu_time_asleep())  # some machines charge a sleeping process
        net(x)
        used.append(cpu_time_asleep())
    after, without = min(used) * 1e3, min(idle) * 1e3
    assert after < without + 2, f"{split}: {after:.1f} ms of CPU time after a call, {without:.1f} without"
assert threads() > 1
"""
)


def test_threads_sleep_soon_after_a_call(first):
    """They spin for 50 microseconds; what PyTorch's threads do after its calls is over by then."""
    check(IDLE, first, FASTRNN_TEAM="posix")


# ---- Ctrl-C and other signals ----

INTERRUPTED = (
    LAYERS
    + """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that SIGINT is ignored
count, kind, path = int(sys.argv[1]), *sys.argv[2:]
fastrnn.set_num_threads(count)
rng = np.random.default_rng(0)

def stack(H):  # two layers of two directions
    return fastrnn.LSTM(*([weights(rng, 4 * H, n) for n in columns] for columns in ((1, 1, 2 * H, 2 * H), 4 * (H,))),
                        bidirectional=True)

STEPS, options = 5_000_000, {"outputs": "last"}
if kind == "layer":
    net = lstm(1, 512)
elif kind == "lengths":
    net, options = lstm(1, 512), {"outputs": "last", "lengths": [STEPS]}
elif kind == "two directions":
    net = lstm(1, 512, 2)
elif kind == "stack":
    net, STEPS = stack(1024), 100_000  # what lies between the layers is as long as the sequence
elif kind == "sequential":
    net, options = fastrnn.Sequential(fastrnn.Dense(np.ones((1, 1))), lstm(1, 512).last()), {}
else:
    fastrnn.save(fastrnn.Sequential(lstm(1, 512).last()), path)
    net, options = fastrnn.load(path), {}

long, short = np.zeros((1, STEPS, 1), np.float32), inputs(1, 40, 1)
expected = bits(net(short))
print("calling", flush=True)
try:
    net(long, **options)
except KeyboardInterrupt:
    assert bits(net(short)) == expected
    print("interrupted", flush=True)
"""
)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["layer", "lengths", "two directions", "stack", "sequential", "loaded"])
def test_control_c_ends_a_long_call(count, kind, tmp_path):
    """The calls take minutes; a tenth of a second is what to expect (bench/guest.py), and half a minute the bound."""
    command = [sys.executable, "-c", INTERRUPTED, str(count), kind, str(tmp_path / "model.frnn")]
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
