"""C programs of this folder, compiled when they are needed and kept (tests/c_objects.py)."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path.append(str(BENCH.parent / "tests"))
from c_objects import SOURCES, compiled, contents, isa_flags, kept  # noqa: E402


@functools.cache
def compiler() -> str | None:
    """The path of a C compiler, None where there is none."""
    return shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")


def library() -> list[tuple[Path, list[str]]]:
    """The sources of the C library and the flags that each has besides CFLAGS."""
    files: list[tuple[Path, list[str]]] = [(path, ["-fopenmp"]) for path in sorted(SOURCES.glob("*.c"))]
    return files + [(SOURCES / "kernels" / f"kernels_{isa}.c", flags) for isa, flags in isa_flags().items()]


def program(name: str, more: Iterable[tuple[Path, list[str]]] = ()) -> Path:
    """``name``.c of this folder linked with ``more`` sources, with the flags of setup.py."""
    made = compiler()
    if made is None:
        raise FileNotFoundError("a C compiler: install gcc, or name one in CC")
    sources = [(BENCH / f"{name}.c", list[str]()), *more]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: compiled(made, source[0], *source[1]), sources))
    return kept([made, *map(str, objects), "-fopenmp", "-pthread", "-lm"], contents(objects), name)
