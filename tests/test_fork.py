"""A guest that forks: children compute as their parents do, whatever the threads were at when the process split."""

import http.client
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scripts import LAYERS, TORCH, check, compile_library, environment

import fastrnn

TEAMS = fastrnn.info()["teams"]


def save_lstm(path):
    """A file with a layer whose calls are worth two threads."""
    rng = np.random.default_rng(0)
    fastrnn.save(fastrnn.LSTM(*(rng.uniform(-0.2, 0.2, (256, columns)) for columns in (32, 64))), path)


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
    '''Run body in a child, which has ten seconds; whether it ended well.'''
    child = os.fork()
    if child == 0:
        signal.alarm(10)
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
    TORCH
    + CASES
    + """
fastrnn.set_team(sys.argv[2])
for split in cases:
    expected = two_threads(split)
    same = lambda: two_threads(split) == expected
    for _ in range(3):
        assert in_child(same) == 0, f"child, {split}"
        assert two_threads(split) == expected, f"parent after a fork, {split}"
    assert in_child(lambda: same() and in_child(same) == 0 and same()) == 0, f"grandchild, {split}"
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_a_child_runs_on_two_threads(team, first):
    check(FORK, first, team)


MODEL = (
    CASES
    + """
import threading
from fastrnn.spec import ModelSpec, Node, Tensor

rng = np.random.default_rng(0)
nodes = [
    Node("lstm", "lstm", ("x",), ("hidden", "h_n"), {}, {
        "weight_ih_l0": weights(rng, 256, 32), "weight_hh_l0": weights(rng, 256, 64)}),
    Node("transpose", "turn", ("hidden",), ("turned",), {"perm": (1, 0, 2)}),
    Node("dense", "dense", ("turned",), ("wide",), {}, {"weight": weights(rng, 200, 64)}),
    Node("cumsum", "cumsum", ("wide",), ("sums",), {"axis": 0}),
    Node("binary", "both", ("sums", "wide"), ("y",), {"function": "mul"}),
]
model = fastrnn.Model(ModelSpec(nodes, [Tensor("x", None)], [Tensor("y", None), Tensor("h_n", None)]))
x = inputs(16, 30, 32)

def run(seq_len=30):
    return b"".join(array.tobytes() for array in model.run({"x": x[:, :seq_len]}).values())

fastrnn.set_team(sys.argv[1])
expected, short = run(), run(7)
stop, wrong = threading.Event(), []

def keep_running():
    while not stop.is_set():
        if run() != expected:
            wrong.append("a run of the parent")

other = threading.Thread(target=keep_running)
other.start()
try:
    for k in range(20):
        time.sleep(0.002 * (k % 5))
        assert in_child(lambda: run() == expected and run(7) == short and len(run(k + 8)) > 0) == 0, k
finally:
    stop.set()
    other.join()
assert not wrong and run() == expected
"""
)


@pytest.mark.parametrize("team", TEAMS)
def test_a_model_runs_in_a_child(team):
    """Forked while another thread runs it, and with plans that only the child makes."""
    check(MODEL, team)


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
    TORCH
    + LAYERS
    + """
import multiprocessing

X = inputs(16, 30, 32)

def two_threads(team, model, path=None):
    fastrnn.set_team(team)
    fastrnn.set_num_threads(2)
    model = model or fastrnn.load(path)
    plan = model.layers["lstm"].explain(16, 30)
    assert (plan["split"], plan["threads"]) == ("batch", 2), plan
    before = threads()
    result = bits(model(X))
    assert team != "posix" or threads() > before or multiprocessing.parent_process() is None, "on one thread"
    return result

def in_child(*args):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return pool.apply_async(two_threads, (team, *args)).get(60)

if __name__ == "__main__":
    first, method, team, path = sys.argv[1:]
    results = {"only imported": in_child(None, path)}
    model = fastrnn.load(path)
    results["loaded"] = in_child(model)
    expected = two_threads(team, model)
    results["run on two threads"] = in_child(model)
    assert two_threads(team, model) == expected
    wrong = [stage for stage, result in results.items() if result != expected]
    assert not wrong, f"other bits in a child of a process where the model was: {wrong}"
"""
)


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, team, first, tmp_path):
    """Workers are made when the parent has only imported fastrnn, has loaded a model, and has run it."""
    model, script = tmp_path / "model.frnn", tmp_path / "workers.py"  # workers import the script, so it is a file
    save_lstm(model)
    script.write_text(MULTIPROCESSING)
    check(script, first, method, team, model)


APPLICATION = (
    LAYERS
    + """
fastrnn.set_num_threads(2)
model, x = fastrnn.load(os.environ["MODEL"]), inputs(16, 30, 32)
preloaded_by = os.getpid()
model(x)

def application(environ, start_response):
    time.sleep(0.02)  # so that the other worker takes the next request
    result = bits(model(x))
    start_response("200 OK", [("X-Worker", f"{os.getpid()} {preloaded_by} {threads()}")])
    return [result]
"""
)


def test_gunicorn_preload(tmp_path):
    """Two workers answer from a model that their parent has loaded and run on two threads."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    save_lstm(tmp_path / "model.frnn")
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "gunicorn.conf.py").write_text("control_socket_disable = True\n")  # else one in the user's home
    expected = check(APPLICATION + "sys.stdout.write(bits(model(x)).hex())", MODEL=str(tmp_path / "model.frnn"))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # requests wait in its queue until the workers are there
        options = "--preload", "--workers=2", f"--bind=fd://{listener.fileno()}"
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "application"],
            cwd=tmp_path,
            env=environment(MODEL=str(tmp_path / "model.frnn")),
            pass_fds=[listener.fileno()],
        )

        def ask(_):
            connection = http.client.HTTPConnection(*listener.getsockname(), timeout=60)
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert answer.read().hex() == expected
            connection.close()
            return tuple(map(int, answer.headers["X-Worker"].split()))

        workers, end = set(), time.monotonic() + 60
        try:
            with ThreadPoolExecutor(4) as pool:
                while len({pid for pid, *_ in workers}) < 2 and time.monotonic() < end:
                    workers.update(pool.map(ask, range(8)))
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
            server.wait()
    pids, preloaded_by, threads = map(set, zip(*workers, strict=True))
    assert len(pids) == 2
    assert preloaded_by == {server.pid}
    assert min(threads) > 1
