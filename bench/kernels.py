"""The kernels alone, from C, beside what one core can do in the same moment.

    python bench/kernels.py                                       the best instruction set of this machine
    python bench/kernels.py avx2 --cells GRU --hidden 256,512 --rows 1,8

One step of a layer is the product with the recurrent matrix and the gates.  The ceiling of a batch is the FMA peak of
the instruction set; that of one row is the rate at which a block as large as its weights can be read.  The library is
compiled from src_c with the flags of setup.py.  Everything takes turns, the best of many rounds counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from c_program import compiler, library, program
from host import cpu_model
from workloads import CELLS

import fastrnn


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if compiler() is None:
        sys.exit("kernels.py: needs a C compiler")
    cases = [(cell, hidden, rows) for cell in options.cells for hidden in options.hidden for rows in options.rows]
    command = [program("kernels", library()), options.isa, *(part for case in cases for part in case)]
    print(f"### Kernels on {options.isa}, {cpu_model()}\n")
    cells = ["cell", "hidden", "rows", "product us", "step us", "rate", "ceiling", "product %", "step %", "gates ns"]
    print(f"| {' | '.join(cells)} |\n|---|{'---:|' * (len(cells) - 1)}", flush=True)
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(table_row(line.split()), flush=True)
    print("\nRate and ceiling: GFLOP/s, in the rows for one row GB/s of weights.  Gates: a unit of a row.")
    return running.returncode


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    isas = fastrnn.info()["isas"]
    parser.add_argument("isa", nargs="?", default=fastrnn.info()["isa"], choices=isas, help="instruction set")
    parser.add_argument("--cells", type=names, default=list(CELLS), metavar="LSTM,GRU,RNN")
    parser.add_argument("--hidden", type=sizes, default=[128, 256, 512, 1024], metavar="H,...")
    parser.add_argument("--rows", type=sizes, default=[1, 2, 3, 4, 6, 8, 16, 32, 128], metavar="B,...")
    return parser.parse_args(argv)


def names(text: str) -> list[str]:
    """The cells of ``--cells``."""
    found = text.upper().split(",")
    if not set(found) <= set(CELLS):
        raise argparse.ArgumentTypeError(f"{text!r}: known are {', '.join(CELLS)}")
    return found


def sizes(text: str) -> list[int]:
    """Positive numbers with commas between them.

    >>> sizes("128,256")
    [128, 256]
    """
    found = [int(size) for size in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: positive sizes")
    return found


def table_row(words: list[str]) -> str:
    cell, hidden, rows = words[:3]
    product, step, ceiling, flops, bytes_ = map(float, words[3:])
    work = bytes_ if rows == "1" else flops
    cells = [f"{product * 1e6:.2f}", f"{step * 1e6:.2f}", f"{work / step / 1e9:.1f}", f"{ceiling / 1e9:.1f}"]
    cells += [f"{100 * work / product / ceiling:.0f}", f"**{100 * work / step / ceiling:.0f}**"]
    cells += [f"{(step - product) * 1e9 / (int(hidden) * int(rows)):.2f}"]
    return f"| {' | '.join([cell, hidden, rows, *cells])} |"


if __name__ == "__main__":
    sys.exit(main())
