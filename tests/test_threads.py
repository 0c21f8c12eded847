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
    arrays = [[weights(rng, gates * H, 64) for _ in range(directions)], [weights(rng, gates * H, output) for _ in range(directions)]]
    options = {"bidirectional": directions == 2}
    if cell == "lstm projection":
        options["weight_hr"] = [weights(rng, output, H) for _ in range(directions)]
    if cell == "gru reset before":
        options["reset_after"] = False
    return {"l": fastrnn.LSTM, "g": fastrnn.GRU, "r": fastrnn.RNN}[cell[0]](*arrays, **options)

for cell in ("lstm", "lstm projection", "gru", "gru reset before", "rnn"):
    for split, directions, batch in (("batch", 1, 16), ("directions", 2, 1), ("directions", 2, 3), ("hidden", 1, 1), ("hidden", 1, 3)):
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
wrong, start, go_on = [], threading.Barrier(8), threading.Event()

def call(k):
    start.wait()
    for turn in range(10):
        for split, net in nets.items():
            if bits(net(feeds[split][k])) != expected[split][k]:
                wrong.append((split, k, turn))
    start.wait()
    go_on.wait()

before = threads()
callers = [threading.Thread(target=call, args=(k,)) for k in range(7)]
for caller in callers:
    caller.start()
waiting = threading.Timer(0, lambda: None)
main = threading.Thread(target=call, args=(7,))
main.start()
while start.n_waiting or not all(t.is_alive() for t in callers):
    time.sleep(0.01)
"""
)
