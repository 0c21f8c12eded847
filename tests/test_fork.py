"""A guest that forks: children compute as their parents do, whatever the threads were at when the process split."""

import pytest
from scripts import LAYERS, check, compile_library

import fastrnn

TEAMS = fastrnn.info()["teams"]
SPLITS = ("batch", "directions", "hidden")

CASES = (
    LAYERS
    + """
import signal

cases = {
    "batch": (lstm(32, 64), inputs(16, 30, 32)),
    "directions": (lstm(32, 64, directions=2), inputs(1, 30, 32)),
    "hidden": (lstm(32, 256), inputs(1, 30, 32)),
}

def two_threads(split):
    layer, x = cases[split]
    plan = layer.explain(x.shape[0], x.shape[1])
    assert (plan["split"], plan["threads"]) == (split, 2), plan
    return bits(layer(x))

def in_child(body):
    '''Run body in a child, which has a second; whether it ended well.'''
    child = os.fork()
    if child == 0:
        signal.alarm(1)
        try:
            os._exit(0 if body() else 1)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

fastrnn.set_num_threads(2)
"""
)

FORK = (
    """
import sys
if sys.argv[2] == "torch":
    import torch
"""
    + CASES
    + """
fastrnn.set_team(sys.argv[1])
for split in cases:
    expected = two_threads(split)
    same = lambda: two_threads(split) == expected
    for _ in range(3):
        assert in_child(same) == 0, f"child, {split}"
        assert two_threads(split) == expected, f"parent after a fork, {split}"
    assert in_child(lambda: same() and in_child(same) == 0 and same()) == 0, f"grandchild, {split}"
"""
)


@pytest.mark.parametrize("first", ["alone", "torch"])
@pytest.mark.parametrize("team", TEAMS)
def test_a_child_runs_on_two_threads(team, first):
    if first == "torch":
        pytest.importorskip("torch")
    check(FORK, team, first)


THREADS_IN_CHILD = (
    CASES
    + """
import threading

fastrnn.set_team(sys.argv[1])
two_threads("batch")

def a_third_thread_appears():
    seen = threading.Event()

    def watch():
        while threads() < 3:  # the main thread and this one
            pass
        seen.set()

    threading.Thread(target=watch, daemon=True).start()
    while not seen.is_set():
        two_threads("batch")
    return True

assert in_child(a_third_thread_appears) == 0
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_a_child_has_threads_of_its_own(team):
    check(THREADS_IN_CHILD, team)


FORK_DURING_CALL = (
    CASES
    + """
import threading

fastrnn.set_team(sys.argv[1])
expected = {split: two_threads(split) for split in cases}
stop, wrong = threading.Event(), []

def keep_calling():
    layer, x = cases["hidden"]
    while not stop.is_set():
        if bits(layer(x)) != expected["hidden"]:
            wrong.append("a call of the parent")

caller = threading.Thread(target=keep_calling)
caller.start()
try:
    for k in range(20):
        time.sleep(0.002 * (k % 5))
        for split in cases:
            assert in_child(lambda: two_threads(split) == expected[split]) == 0, (k, split)
finally:
    stop.set()
    caller.join()
assert not wrong
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_fork_while_another_thread_is_in_a_call(team):
    check(FORK_DURING_CALL, team)


REGION = """
int region(void)
{
    int n = 0;
#pragma omp parallel num_threads(2) reduction(+ : n)
    n += 1;
    return n;
}
"""

FOREIGN_POOL = (
    CASES
    + """
import ctypes

ctypes.CDLL(sys.argv[1]).region()  # someone else's OpenMP threads, of the same runtime, before our first call
def child():
    fastrnn.set_team("openmp")
    return len(two_threads("batch")) > 0
assert in_child(child) == 0
"""
)


@pytest.mark.skipif("openmp" not in TEAMS, reason="this build has no OpenMP")
def test_a_child_of_a_process_whose_openmp_threads_were_another_library_s(tmp_path):
    check(FOREIGN_POOL, compile_library(tmp_path, REGION, "-fopenmp"))


MULTIPROCESSING = (
    LAYERS
    + """
import multiprocessing

def call(model, x, team):
    fastrnn.set_team(team)
    fastrnn.set_num_threads(2)
    return bits(model(x))

if __name__ == "__main__":
    method, team = sys.argv[1:]
    fastrnn.set_team(team)
    fastrnn.set_num_threads(2)
    model, x = lstm(32, 64), inputs(16, 30, 32)
    expected = bits(model(x))
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.starmap_async(call, [(model, x, team)] * 4).get(60)
    assert results == [expected] * 4
"""
)


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, team, tmp_path):
    """Workers get the model by pickle; they must be able to import the script, so it is a file."""
    script = tmp_path / "workers.py"
    script.write_text(MULTIPROCESSING)
    check(script, method, team)


def test_import_and_small_calls_start_no_thread():
    check(
        """
import os
def threads():
    return len(os.listdir("/proc/self/task"))
import numpy as np
before = threads()
import fastrnn
assert threads() == before, "import fastrnn"
layer = fastrnn.GRU(np.ones((48, 8)), np.ones((48, 16)))
layer(np.zeros((1, 5, 8)))
assert layer.explain(1, 5)["split"] == "none"
assert threads() == before, "a small call"
"""
    )
