"""Compare fastrnn with the other engines that are installed, shape by shape, and print a Markdown table.

    python bench/compare.py                                        whole sequences, LSTM, one thread
    python bench/compare.py --mode step --cell GRU                 one time step a call, state carried by the caller
    python bench/compare.py --mode ragged --threads 2 --shapes "32,200,128,128;8,400,64,128"

All engines get the same weights, input and number of threads, run in one process on as many processors, and take
turns in every round.  A time is the median of the rounds.  The ratio is the best peer's time by fastrnn's, above 1
where fastrnn is faster: the median of the ratios of the single rounds.  Errors are the largest difference from the
float64 reference; where one is too large to be rounding the exit code is 1.

Beside each row stands what fastrnn reaches of what the cores can do, measured after it (ceilings.py): the share of the
FMA peak, and for batch 1, where weights are read anew at every step, the share of the rate at which a block as large
as they are can be read.  With N threads the ceiling is N times that of one core, each with an Nth of the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from c_program import compiler
from ceilings import NO_COMPILER, ceilings
from ceilings import measure as measure_core
from command import heading, line, parser, prepare
from engines import PEERS, Engine, Fastrnn, peers
from host import describe
from timing import SETTLE, interleave, medians, ratio
from workloads import CELLS, SHAPES, TOLERANCE, Workload, random_workload

import fastrnn


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    prepare(options.threads, options.isa)
    installed = [peer for peer in PEERS if peer.installed()]
    host = describe(options.threads)
    print_heading(options, host, installed)
    rows = []
    for shape in options.shapes or SHAPES[options.mode]:
        work = random_workload(options.mode, options.cell, shape, options.layers, options.bidirectional)
        row = {"shape": shape, **measure(work, options.threads, options.rounds)}
        row |= reached(work, row["us"][Fastrnn.name], options.threads) if compiler() else {}
        rows.append(row)
        print(table_row(row, columns(options.mode, installed)), flush=True)
    wrong = print_summary(rows)
    if options.json:
        settings = {key: getattr(options, key) for key in ("mode", "cell", "layers", "bidirectional", "rounds")}
        options.json.write_text(json.dumps({"host": host, **settings, "rows": rows}, indent=1) + "\n")
    return 1 if wrong else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = parser(__doc__)
    modes = "seq: whole sequences; step: one time step a call, with a state; ragged: different lengths in one batch"
    options.add_argument("--mode", choices=SHAPES, default="seq", help=modes)
    options.add_argument("--cell", choices=CELLS, default="LSTM")
    options.add_argument("--layers", type=int, default=1, metavar="N")
    options.add_argument("--bidirectional", action="store_true")
    options.add_argument("--threads", type=int, default=1, metavar="N", help="of every engine, and processors used")
    options.add_argument("--isa", help="instruction set of fastrnn, such as avx2; the peers choose their own")
    options.add_argument("--shapes", type=shapes, metavar="B,T,I,H;...", help="batch, steps, input size, hidden size")
    options.add_argument("--rounds", type=int, default=9, metavar="N")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    return options.parse_args(argv)


def shapes(text: str) -> list[tuple[int, ...]]:
    """The shapes of ``--shapes``.

    >>> shapes("1,100,128,128;32,50,256,256")
    [(1, 100, 128, 128), (32, 50, 256, 256)]
    """
    found = [tuple(int(size) for size in shape.split(",")) for shape in text.split(";") if shape.strip()]
    if not found or any(len(shape) != 4 or min(shape) < 1 for shape in found):
        raise argparse.ArgumentTypeError(f"{text!r}: four positive sizes each, such as 1,100,128,128;32,50,256,256")
    return found


def measure(work: Workload, threads: int, rounds: int) -> dict[str, Any]:
    """Times in microseconds, errors and ratio of all engines at one workload."""
    contenders: list[Engine] = [Fastrnn(work, threads), *peers(work, threads)]
    exact = work.exact()
    errors = {engine.name: float(np.abs(engine.result() - exact).max(initial=0)) for engine in contenders}
    times = interleave({engine.name: engine for engine in contenders}, rounds, settle=SETTLE if threads > 1 else 0.0)
    row: dict[str, Any] = {
        "us": {name: seconds * 1e6 for name, seconds in medians(times).items()},
        "errors": errors,
        "flops": work.flops,
        "weight_bytes": work.weight_bytes,
    }
    if len(contenders) > 1:
        row["ratio"] = ratio(times, Fastrnn.name)
    return row


def reached(work: Workload, us: float, threads: int) -> dict[str, float]:
    """Percent of the FMA peak, and for batch 1 of the rate at which the weights can be read."""
    if threads > 1:
        time.sleep(SETTLE)
    fma, (read,) = measure_core([max(work.bytes_a_step // threads, 1)])
    percent = {"fma_percent": work.flops / us / 1e1 / (threads * fma[fastrnn.info()["isa"]])}
    if work.x.shape[0] == 1:
        percent["read_percent"] = work.bytes_a_step * work.steps / us / 1e1 / (threads * read)
    return percent


def columns(mode: str, installed: list[type[Engine]]) -> list[str]:
    """Names of the engines that can occur in a mode."""
    return [Fastrnn.name, *(peer.name for peer in installed if mode == "ragged" or not peer.ragged_only)]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def print_heading(options: argparse.Namespace, host: dict[str, Any], installed: list[type[Engine]]) -> None:
    kind = options.cell + ", bidirectional" * options.bidirectional
    print(f"### {kind}, {plural(options.layers, 'layer')}, {options.mode}, {plural(options.threads, 'thread')}\n")
    print(f"{host['cpu']}; fastrnn on {host['isa']}; " + ", ".join(f"{k} {v}" for k, v in host["versions"].items()))
    print(f"\n{one_core(host['isa'])}")
    missing = [peer.name for peer in PEERS if peer not in installed and not peer.ragged_only]
    if missing:
        print(f'\nNot installed, left out: {", ".join(missing)} (`pip install "fastrnn[bench]"` brings all).')
    engines = columns(options.mode, installed)
    cells = ["batch", "steps", "input", "hidden", *(f"{name} us" for name in engines), "best peer / fastrnn", "GFLOP/s",
             "% of FMA peak", "% of read rate", "error", "best peer's error"]  # fmt: skip
    print(f"\n{heading([], cells)}", flush=True)


def one_core(isa: str) -> str:
    """The ceilings in one line."""
    found = ceilings(("L2", "L3"))
    if not found:
        return NO_COMPILER
    reads = ", ".join(
        f"{found['bytes'][level] >> 10} KiB from {level} at {gb:.0f} GB/s" for level, gb in found["read"].items()
    )
    return f"One core, now: FMA {found['fma'][isa]:.0f} GFLOP/s; reads {reads}."


def table_row(row: dict[str, Any], engines: list[str]) -> str:
    us, errors = row["us"], row["errors"]
    cells = [str(size) for size in row["shape"]]
    cells += [f"{us[name]:.1f}" if name in us else "" for name in engines]
    cells += [f"**{row['ratio']:.2f}**" if "ratio" in row else "", f"{row['flops'] / us[Fastrnn.name] / 1e3:.1f}"]
    cells += [f"{row[key]:.0f}" if key in row else "" for key in ("fma_percent", "read_percent")]
    cells += [f"{errors[Fastrnn.name]:.1e}"]
    cells += [f"{min(others):.1e}" if (others := [e for name, e in errors.items() if name != Fastrnn.name]) else ""]
    return line(cells)


def print_summary(rows: list[dict[str, Any]]) -> list[str]:
    """Print the smallest ratio and the mean; returns the engines that were wrong somewhere, after naming them."""
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if ratios:
        print(f"\nSmallest ratio {min(ratios):.2f}, geometric mean {statistics.geometric_mean(ratios):.2f}.")
    wrong = [
        f"{name} at {row['shape']}: {error:.1e}"
        for row in rows
        for name, error in row["errors"].items()
        if not error < TOLERANCE
    ]
    if wrong:
        print(f"\nWrong results, so these times mean nothing: {'; '.join(wrong)}.")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
