"""What the commands share: their options, the processors that they run on, and the rows of a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from workloads import CELLS

import fastrnn


def parser(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def prepare(threads: int, isa: str | None) -> None:
    """Keep to as many processors as threads, before anything starts workers, which inherit it; choose the ISA."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if isa:
        try:
            fastrnn.set_isa(isa)
        except fastrnn.UnsupportedError as error:
            sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def cell_names(text: str) -> list[str]:
    """The cells of an option.

    >>> cell_names("lstm,GRU")
    ['LSTM', 'GRU']
    """
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
        raise argparse.ArgumentTypeError(f"{text!r}: positive sizes, such as 128,256")
    return found


def heading(words: Iterable[str], numbers: Iterable[str]) -> str:
    """The first two lines of a Markdown table: columns of words, then columns of numbers."""
    words, numbers = list(words), list(numbers)
    return f"{line([*words, *numbers])}\n|{'---|' * len(words)}{'---:|' * len(numbers)}"


def line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
