"""Threads: those that call a model, and those of the team."""

import pytest
from scripts import LAYERS, check

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
wrong, seen, start = [], [], threading.Barrier(8)

def call(k):
    start.wait()
    for turn in range(10):
        results = {split: bits(net(feeds[split][k])) for split, net in nets.items()}
        wrong.extend((split, k, turn) for split in nets if results[split] != expected[split][k])
        seen.append(threads())

before = threads()
callers = [threading.Thread(target=call, args=(k,)) for k in range(8)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert not wrong, wrong
workers = 1 if sys.argv[1] == "posix" else 8  # libgomp keeps a sleeping one for each thread that was a caller
assert max(seen) <= before + 8 + workers, f"{max(seen) - before} threads for eight callers and a team of two"
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
enough = threading.Event()

def hold():
    while not enough.is_set():
        long_results.append(bits(net(long_x)))

holder = threading.Thread(target=hold)
holder.start()
results = [bits(net(x)) for _ in range(50)]
enough.set()
holder.join()
assert set(results) == {expected}
assert set(long_results) == {long_expected}
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
