"""Measure what fastrnn costs the process that it is a guest of, and print a Markdown table.

    python bench/guest.py
    python bench/guest.py --threads 4 --rounds 25 --json guest.json

    denormals    time of a call with denormal inputs or states by that of the same call with normal ones
    idle         CPU time of the process in the 300 ms after a call on several threads
    callers      calls a second of eight Python threads on one model by those of two, and their latencies
    interrupt    from SIGINT to KeyboardInterrupt in a call of minutes
    wake         latency of a small call whose team spins or sleeps, and of the same call on one thread

The promises that need no clock are in tests/test_guest.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from compare import plural
from engines import Fastrnn
from host import describe
from timing import interleave
from workloads import random_workload

import fastrnn

Row = tuple[str, dict[str, float]]
"""A case and its figures by name."""

DENORMAL = np.float32(1e-40)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cpus = fastrnn.info()["thread_limits"]["affinity"]
    parser.add_argument("--threads", type=int, default=max(2, cpus), metavar="N", help="of a call")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    options = parser.parse_args(argv)
    host = describe(options.threads)
    print(f"### A good guest, {plural(options.threads, 'thread')}\n")
    print(f"{host['cpu']}, {plural(cpus, 'processor')}; fastrnn on {host['isa']}\n")
    print("| what | case | measured |\n|---|---|---|", flush=True)
    found: dict[str, list[Row]] = {}
    for part in options.only or PARTS:
        found[part] = []
        for case, figures in PARTS[part](options.threads, options.rounds):
            found[part].append((case, figures))
            print(f"| {part} | {case} | {'; '.join(f'{k} {v:.3g}' for k, v in figures.items())} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"host": host, "rounds": options.rounds, "figures": found}, indent=1) + "\n")
    return 0


def denormals(threads: int, rounds: int) -> Iterator[Row]:
    """Inputs of whole sequences, states of single steps: a bias makes the state of the next step a normal one."""
    for cell in ("LSTM", "GRU"):
        for mode, shape in (("seq", (1, 100, 128, 128)), ("seq", (32, 50, 128, 128)), ("step", (1, 1, 128, 128))):
            normal = random_workload(mode, cell, shape)
            tiny = {
                "state": tuple(np.full_like(part, DENORMAL) for part in normal.state),
                "x": normal.x if normal.state else np.full_like(normal.x, DENORMAL),
            }
            works = {"normal": normal, "denormal": dataclasses.replace(normal, **tiny)}
            contenders = {name: Fastrnn(work, 1) for name, work in works.items()}
            times = interleave(contenders, rounds)
            ratios = [a / b for a, b in zip(times["denormal"], times["normal"], strict=True)]
            case = f"{cell}, {'states' if normal.state else 'inputs'}, {shape}"
            yield case, {"denormal / normal": statistics.median(ratios)}


IDLE = """
import sys, time
if sys.argv[1] == "torch":
    import torch
    torch.set_num_threads(2)
    (torch.rand(1000, 1000) @ torch.rand(1000, 1000)).sigmoid_()
import numpy as np
import fastrnn
fastrnn.set_team(sys.argv[2])
fastrnn.set_num_threads(int(sys.argv[3]))
layer = fastrnn.LSTM(np.ones((1024, 32)) / 64, np.ones((1024, 256)) / 64)
x = np.ones((64, 30, 32), np.float32)
for _ in range(int(sys.argv[4])):
    layer(x)
    before = time.process_time()
    time.sleep(0.3)
    print(time.process_time() - before)
"""
"""In a process of its own, because it matters who is imported first."""


def idle(threads: int, rounds: int) -> Iterator[Row]:
    """CPU time after a call."""
    for team in fastrnn.info()["teams"]:
        for first in ("alone", "torch"):
            command = [sys.executable, "-c", IDLE, first, team, str(threads), str(rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                used = [float(line) * 1e3 for line in done.stdout.split()]
                case = f"{team}, {'torch imported first' if first == 'torch' else first}"
                yield case, {"median ms": statistics.median(used), "least ms": min(used)}
            elif "No module named 'torch'" not in done.stderr:
                sys.exit(done.stderr)


def serve(call: Callable[[], object], callers: int, seconds: float) -> tuple[float, list[float]]:
    """Calls a second of all callers together, and the milliseconds of each call."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        while (start := time.perf_counter()) < end:
            call()
            taken.append((time.perf_counter() - start) * 1e3)

    workers = [threading.Thread(target=work) for _ in range(callers)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(taken) / (time.perf_counter() - start), taken


def callers(threads: int, rounds: int) -> Iterator[Row]:
    """Eight Python threads on one model, calls of a few milliseconds."""
    work = random_workload("seq", "LSTM", (8, 50, 256, 256))
    for count in sorted({1, threads}):
        call = Fastrnn(work, count)
        runs: dict[int, list[tuple[float, list[float]]]] = {2: [], 8: []}
        for _ in range(rounds):
            for number, results in runs.items():
                results.append(serve(call, number, 0.3))
        ratios = [eight / two for (two, _), (eight, _) in zip(runs[2], runs[8], strict=True)]
        figures = {"throughput of 8 / of 2": statistics.median(ratios)}
        for number, results in runs.items():
            p50, p99 = np.percentile(np.concatenate([taken for _, taken in results]), [50, 99])
            figures |= {f"p50 of {number}, ms": float(p50), f"p99 of {number}, ms": float(p99)}
        yield f"set_num_threads({count})", figures


def interrupt(threads: int, rounds: int) -> Iterator[Row]:
    """SIGINT from another thread of this process, at another moment of the call each time."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that SIGINT is ignored
    for layers in (1, 2):
        for bidirectional in (False, True):
            net = random_workload("seq", "LSTM", (1, 1, 64, 512), layers, bidirectional)
            x = np.zeros((1, 200_000, 64), np.float32)
            for count in sorted({1, threads}):
                call = functools.partial(Fastrnn(net, count).layer, x, outputs="last")
                waits = [interrupted(call, 0.2 + 0.013 * k) for k in range(rounds)]
                case = f"{plural(layers, 'layer')}, {plural(1 + bidirectional, 'direction')}, set_num_threads({count})"
                yield case, {"median ms": statistics.median(waits), "most ms": max(waits)}


def interrupted(call: Callable[[], object], after: float) -> float:
    """Milliseconds from a signal, sent some seconds after the call has begun, to the exception."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        return (time.perf_counter() - sent[0]) * 1e3
    finally:
        timer.join()
    raise RuntimeError("the call was over before the signal came")


def wake(threads: int, rounds: int) -> Iterator[Row]:
    """Single calls, one right after another or after a rest that lets the team sleep."""
    for shape in ((1, 20, 128, 128), (1, 20, 256, 256), (16, 10, 128, 128)):
        work = random_workload("seq", "LSTM", shape)
        figures, used = {}, 1
        for name, count, rest in (("spins", threads, 0.0), ("sleeps", threads, 0.003), ("one thread", 1, 0.003)):
            call = Fastrnn(work, count)
            used = max(used, call.layer.explain(*shape[:2])["threads"])
            taken = []
            for _ in range(25 * rounds):
                time.sleep(rest)
                start = time.perf_counter()
                call()
                taken.append((time.perf_counter() - start) * 1e6)
            p50, p99 = np.percentile(taken, [50, 99])
            figures |= {f"{name}: p50 us": float(p50), f"{name}: p99 us": float(p99)}
        yield f"{shape}, {plural(used, 'thread')}", figures


PARTS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "denormals": denormals,
    "idle": idle,
    "callers": callers,
    "interrupt": interrupt,
    "wake": wake,
}

if __name__ == "__main__":
    sys.exit(main())
