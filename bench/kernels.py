"""The kernels alone, from C, beside what one core can do in the same moment.

    python bench/kernels.py                                       the best instruction set of this machine
    python bench/kernels.py avx2 --cells GRU --hidden 256,512 --rows 1,8

One step of a layer is the product with the recurrent matrix and the gates.  The ceiling of a batch is the FMA peak of
the instruction set; that of one row is the rate at which a block as large as its weights can be read.  The library is
compiled from src_c with the flags of setup.py.  Everything takes turns, the best of many rounds counts.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from c_program import compiler, library, program
from command import cell_names, heading, line, parser, sizes
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
    numbers = ["hidden", "rows", "product us", "step us", "rate", "ceiling", "product %", "step %", "gates ns"]
    print(heading(["cell"], numbers), flush=True)
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(table_row(line.split()), flush=True)
    print("\nRate and ceiling: GFLOP/s, in the rows for one row GB/s of weights.  Gates: a unit of a row.")
    return running.returncode


def parse(argv: list[str] | None) -> Any:
    options, info = parser(__doc__), fastrnn.info()
    options.add_argument("isa", nargs="?", default=info["isa"], choices=info["isas"], help="instruction set")
    options.add_argument("--cells", type=cell_names, default=list(CELLS), metavar="LSTM,GRU,RNN")
    options.add_argument("--hidden", type=sizes, default=[128, 256, 512, 1024], metavar="H,...")
    options.add_argument("--rows", type=sizes, default=[1, 2, 3, 4, 6, 8, 16, 32, 128], metavar="B,...")
    return options.parse_args(argv)


def table_row(words: list[str]) -> str:
    cell, hidden, rows = words[:3]
    product, step, ceiling, flops, bytes_ = map(float, words[3:])
    work = bytes_ if rows == "1" else flops
    cells = [f"{product * 1e6:.2f}", f"{step * 1e6:.2f}", f"{work / step / 1e9:.1f}", f"{ceiling / 1e9:.1f}"]
    cells += [f"{100 * work / product / ceiling:.0f}", f"**{100 * work / step / ceiling:.0f}**"]
    cells += [f"{(step - product) * 1e9 / (int(hidden) * int(rows)):.2f}"]
    return line([cell, hidden, rows, *cells])


if __name__ == "__main__":
    sys.exit(main())
