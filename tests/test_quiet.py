"""Quiet after warm-up: a step into arrays of the caller takes no memory, and memory does not grow with time."""

import pytest
from scripts import LAYERS, check, compile_library

MALLOC = """
#include <errno.h>
#include <stddef.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static _Atomic size_t calls, bytes;

size_t malloc_calls(void) { return calls; }
size_t malloc_bytes(void) { return bytes; }

static void count(size_t size) { calls++, bytes += size; }

void *malloc(size_t size) { return count(size), __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return count(n * size), __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return count(size), __libc_realloc(old, size); }
void *memalign(size_t align, size_t size) { return count(size), __libc_memalign(align, size); }
void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }

int posix_memalign(void **out, size_t align, size_t size)
{
    *out = memalign(align, size);
    return *out ? 0 : ENOMEM;
}
"""

COUNTED = (
    LAYERS
    + """
import ctypes, gc

counter = ctypes.CDLL(None)
counter.malloc_calls.restype = counter.malloc_bytes.restype = ctypes.c_size_t

def gru(input_size, hidden_size):
    rng = np.random.default_rng(0)
    return fastrnn.GRU(weights(rng, 3 * hidden_size, input_size), weights(rng, 3 * hidden_size, hidden_size))

def state_of(layer, batch):
    k = 2 if layer.bidirectional else 1
    h = np.zeros((layer.num_layers * k, batch, layer.hidden_size), np.float32)
    return (h, h.copy()) if layer.has_c else h

def reply(layer, batch, seq_len):
    features = layer.hidden_size * (2 if layer.bidirectional else 1)
    return np.zeros((batch, seq_len, features), np.float32), state_of(layer, batch)
"""
)

STEPS = (
    COUNTED
    + """
fastrnn.set_num_threads(2)
cases = {"lstm": (lstm, 1, 1), "gru": (gru, 1, 1), "batch": (lstm, 8, 1), "threads": (lstm, 8, 8)}
make, batch, seq_len = cases[sys.argv[1]]
layer, x = make(32, 64), inputs(batch, seq_len, 32)
state, out = state_of(layer, batch), reply(layer, batch, seq_len)
assert (layer.explain(batch, seq_len)["threads"] == 2) == (sys.argv[1] == "threads")

def steps(n):
    for _ in range(n):
        layer(x, state, out=out)

steps(1000)
gc.collect()
gc.disable()
before = counter.malloc_calls()
steps(10_000)
calls = counter.malloc_calls() - before
np.empty(100_000)
assert counter.malloc_calls() - before > calls, "the counter does not count"
assert calls == 0, f"{calls} calls of malloc in 10,000 steps"
"""
)


@pytest.fixture(scope="module")
def malloc(tmp_path_factory):
    """A library to preload, which counts."""
    return str(compile_library(tmp_path_factory.mktemp("malloc"), MALLOC))


@pytest.mark.parametrize("what", ["lstm", "gru", "batch", "threads"])
def test_a_step_calls_no_malloc(what, malloc):
    check(STEPS, what, LD_PRELOAD=malloc)


LIVE = (
    COUNTED
    + """
layer, x, y = {"lstm": lstm, "gru": gru}[sys.argv[2]](32, 64), inputs(3, 32), np.zeros((3, 64), np.float32)
stream, pool = layer.stream(3), layer.pool(500)
handles = np.array([pool.open() for _ in range(500)])[::-1].copy()
many, out = inputs(300, 32), np.zeros((300, 64), np.float32)

def steps(n):
    for k in range(n):
        if sys.argv[1] == "stream":
            stream.step(x, out=y)
        else:
            pool.step(handles[k % 100 : k % 100 + 300], many, out=out)

steps(300)
gc.collect()
gc.disable()
before = counter.malloc_calls()
steps(3000)
calls = counter.malloc_calls() - before
assert calls == 0, f"{calls} calls of malloc in 3000 steps"
"""
)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("what", ["stream", "pool"])
def test_a_step_of_a_stream_calls_no_malloc(what, kind, malloc):
    check(LIVE, what, kind, LD_PRELOAD=malloc)


TRACED = (
    COUNTED
    + """
import tracemalloc

layer, x = lstm(32, 64), inputs(1, 1, 32)
state, out = state_of(layer, 1), reply(layer, 1, 1)

def steps(n):
    for _ in range(n):
        layer(x, state, out=out)

steps(100)
tracemalloc.start()
steps(1000)
gc.collect()
before, _ = tracemalloc.get_traced_memory()
tracemalloc.reset_peak()
steps(10_000)
after, peak = tracemalloc.get_traced_memory()
assert after - before < 1024, f"{after - before} bytes more after 10,000 steps"
assert peak - before < 16384, f"{peak - before} bytes at once in a step"
"""
)


def test_tracemalloc_sees_nothing_grow(malloc):
    check(TRACED, LD_PRELOAD=malloc)


LONG = (
    COUNTED
    + """
def bytes_of(layer, seq_len, **options):
    '''Taken by a first call of this length, on a thread of its own, whose scratch is empty.'''
    import threading
    x, out, taken = np.zeros((1, seq_len, 16), np.float32), reply(layer, 1, seq_len), []
    out = (out[0][:, -1].copy(), out[1]) if options else out

    def call():
        layer(x[:, :1], **options)
        before = counter.malloc_bytes()
        layer(x, out=out, **options)
        taken.append(counter.malloc_bytes() - before)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return taken[0]

fastrnn.set_num_threads(1)
rng = np.random.default_rng(0)
two = lambda rows, columns: [weights(rng, rows, c) for c in columns]
layers = {
    "one layer": lstm(16, 32),
    "two directions": lstm(16, 32, directions=2),
    "three layers": fastrnn.LSTM(two(128, (16, 32, 32)), two(128, (32, 32, 32))),
}
for name, layer in layers.items():
    for options in ({}, {"outputs": "last"}):
        short, long = bytes_of(layer, 1000, **options), bytes_of(layer, 100_000, **options)
        assert 0 < short and long <= short + 4096, f"{name} {options}: {short} bytes, a hundred times longer {long}"

stack = fastrnn.LSTM(two(128, (16, 16, 64, 64)), two(128, (32, 32, 32, 32)), bidirectional=True)
short, long = bytes_of(stack, 1000), bytes_of(stack, 100_000)
sequences = 2 * 64 * 4 * 99_000
assert long - short <= sequences + 4096, f"{long - short} bytes more for 99,000 steps, two sequences are {sequences}"
"""
)


def test_scratch_does_not_grow_with_time(malloc):
    check(LONG, LD_PRELOAD=malloc)
