"""C sources compiled with the flags of setup.py, for the tests and the benchmarks.

What is made is kept in build/c by the contents of everything that it is made from.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src_c"
CACHE = ROOT / "build" / "c"


@functools.cache
def setup_value(name: str) -> Any:
    """A constant of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py has no {name}")


def isa_flags(machine: str = platform.machine()) -> dict[str, list[str]]:
    """The kernels of a machine and their flags."""
    return setup_value("ISA_FLAGS").get(machine, {"generic": []})


def compiled(compiler: str, source: Path, *flags: str) -> Path:
    """The object of a source."""
    command = [compiler, *setup_value("CFLAGS"), *flags, "-I", str(SOURCES), "-c", str(source)]
    return kept(command, _headers(source.parent) + source.read_bytes(), f"{source.stem}.o")


def kept(command: list[str], made_from: bytes, name: str) -> Path:
    """What the command makes, unless it was made from the same before."""
    contents = repr(command).encode() + _version(command[0]) + made_from
    stem, dot, suffix = name.partition(".")
    target = CACHE / f"{stem}-{hashlib.sha256(contents).hexdigest()[:16]}{dot}{suffix}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.rename(target)
    return target


def contents(paths: Iterable[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in paths)


@functools.cache
def _headers(folder: Path) -> bytes:
    """Of the library, and those beside a source."""
    return contents(sorted({*SOURCES.rglob("*.h"), *folder.glob("*.h")}))


@functools.cache
def _version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
