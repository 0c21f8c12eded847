"""All of compare.py in one table, each number the median of several runs.

    python bench/summary.py
    python bench/summary.py --modes seq --cells LSTM,GRU --threads 1 --runs 5

A line is a mode, a cell and a number of threads: the smallest ratio best peer / fastrnn of its shapes, their geometric
mean, and that of the shapes of batch 1.  Below stand the shapes whose ratio is below 1.2, with what they reach of the
cores.  Every line is a process of its own, as processors and workers belong to one; a run goes through all lines before
the next begins, so that a bad minute spoils one run of a line, not all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from command import cell_names, heading, line, parser, sizes
from workloads import CELLS, SHAPES

LINES = {"seq": (CELLS, (1, 2)), "step": (CELLS, (1,)), "ragged": (("LSTM", "GRU"), (1, 2))}
"""Cells and numbers of threads of each mode."""

CLOSE = 1.2
"""Shapes with a smaller ratio are listed."""

Line = tuple[str, str, int]  # mode, cell, threads


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    found: dict[Line, list[dict[str, Any]]] = {key: [] for key in lines(options)}
    for run in range(options.runs):
        for key, results in found.items():
            print(f"run {run + 1} of {options.runs}: {name(key)}", file=sys.stderr)
            results.append(compare(key, options))
    print_tables(found)
    if options.json:
        keys = ("mode", "cell", "threads")
        rows = [dict(zip(keys, key, strict=True)) | {"runs": results} for key, results in found.items()]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=3, metavar="N", help="of every line")
    options.add_argument("--rounds", type=int, default=9, metavar="N", help="of a run, as in compare.py")
    options.add_argument("--modes", type=modes, default=list(LINES), metavar=",".join(LINES))
    options.add_argument("--cells", type=cell_names, metavar="LSTM,GRU,RNN", help="instead of those of a mode")
    options.add_argument("--threads", type=sizes, metavar="1,2", help="instead of those of a mode")
    options.add_argument("--isa", help="instruction set of fastrnn")
    options.add_argument("--json", type=Path, metavar="FILE", help="write what compare.py gave for all runs")
    return options.parse_args(argv)


def modes(text: str) -> list[str]:
    """The modes of an option.

    >>> modes("seq,ragged")
    ['seq', 'ragged']
    """
    found = text.split(",")
    if not set(found) <= set(SHAPES):
        raise argparse.ArgumentTypeError(f"{text!r}: known are {', '.join(SHAPES)}")
    return found


def lines(options: argparse.Namespace) -> list[Line]:
    return [
        (mode, cell, threads)
        for mode in options.modes
        for cell in options.cells or LINES[mode][0]
        for threads in options.threads or LINES[mode][1]
    ]


def name(key: Line) -> str:
    mode, cell, threads = key
    return f"{mode} {cell}, {threads} thread{'s' * (threads > 1)}"


def compare(key: Line, options: argparse.Namespace) -> dict[str, Any]:
    """What compare.py measures for a line."""
    mode, cell, threads = key
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "line.json")
        command = [sys.executable, str(Path(__file__).with_name("compare.py")), "--mode", mode, "--cell", cell]
        command += ["--threads", str(threads), "--rounds", str(options.rounds), "--json", str(file)]
        command += ["--isa", options.isa] if options.isa else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}{name(key)}: compare.py ended with {done.returncode}")
        result = json.loads(file.read_text())
    if not all("ratio" in row for row in result["rows"]):
        sys.exit('No other engine is installed (`pip install "fastrnn[bench]"` brings all).')
    return result


def print_tables(found: dict[Line, list[dict[str, Any]]]) -> None:
    host = next(iter(found.values()))[0]["host"]
    print(f"{host['cpu']}; fastrnn on {host['isa']}; " + ", ".join(f"{k} {v}" for k, v in host["versions"].items()))
    words, numbers = ["mode", "cell"], ["threads", "smallest ratio", "at", "geometric mean", "of batch 1"]
    print(f"\n{heading(words, numbers)}")
    for key, results in found.items():
        print(line([*key, *summary([result["rows"] for result in results])]))
    close = [line([*key, *cells]) for key, results in found.items() for cells in below(results)]
    print(f"\n{len(close)} shapes below {CLOSE}" + (":" if close else "."))
    if close:
        print(f"\n{heading(words, ['threads', 'shape', 'ratio', '% of FMA peak', '% of read rate'])}")
        print("\n".join(close))


def summary(runs: list[list[dict[str, Any]]]) -> list[str]:
    """Smallest ratio, its shape, geometric mean, and that of batch 1: the medians of the runs.

    >>> rows = [{"shape": [1, 5, 8, 8], "ratio": 2.0}, {"shape": [4, 5, 8, 8], "ratio": 8.0}]
    >>> summary([rows])
    ['**2.00**', '1,5,8,8', '4.00', '2.00']
    """
    smallest, shape = statistics.median_low(min((row["ratio"], row["shape"]) for row in rows) for rows in runs)
    one_row = [[row for row in rows if row["shape"][0] == 1] for rows in runs]
    means = [statistics.median(map(mean, group)) for group in (runs, one_row) if group[0]]
    return [f"**{smallest:.2f}**", shape_name(shape), *(f"{number:.2f}" for number in means), *[""] * (2 - len(means))]


def mean(rows: list[dict[str, Any]]) -> float:
    return statistics.geometric_mean(row["ratio"] for row in rows)


def shape_name(shape: list[int]) -> str:
    return ",".join(map(str, shape))


def below(results: list[dict[str, Any]]) -> list[list[str]]:
    """Shape, ratio and percents of what is close to the best peer, the medians of the runs."""
    found = []
    for rows in zip(*(result["rows"] for result in results), strict=True):
        ratio = statistics.median(row["ratio"] for row in rows)
        if ratio < CLOSE:
            kinds = ("fma_percent", "read_percent")
            percents = [f"{statistics.median(row[k] for row in rows):.0f}" if k in rows[0] else "" for k in kinds]
            found.append([shape_name(rows[0]["shape"]), f"**{ratio:.2f}**", *percents])
    return found


if __name__ == "__main__":
    sys.exit(main())
