"""The C library without Python: compiled with the flags of setup.py, linked with a program of tests/c.

Objects are kept in build/c by the contents of everything that they are made from.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src_c"
PROGRAMS = ROOT / "tests" / "c"
CACHE = ROOT / "build" / "c"


@functools.cache
def setup_value(name: str) -> Any:
    """A constant of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def isa_flags(machine: str = platform.machine()) -> dict[str, list[str]]:
    """The kernels of a machine and their flags."""
    return setup_value("ISA_FLAGS").get(machine, {"generic": []})


@functools.cache
def find(tool: str) -> str:
    """The path of a program; without it the test is skipped."""
    return shutil.which(tool) or pytest.skip(f"{tool} is not installed")


@functools.cache
def _headers(compiler: str) -> bytes:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    headers = sorted([*SOURCES.rglob("*.h"), *PROGRAMS.glob("*.h")])
    return version + b"".join(path.read_bytes() for path in headers)


def compiled(compiler: str, source: Path, *flags: str) -> Path:
    """The object of a source."""
    command = [compiler, *setup_value("CFLAGS"), *flags, "-I", str(SOURCES), "-c", str(source)]
    made_from = repr(command).encode() + _headers(compiler) + source.read_bytes()
    target = CACHE / f"{source.stem}-{hashlib.sha256(made_from).hexdigest()[:16]}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.rename(target)
    return target


def kernel_object(compiler: str, isa: str, *flags: str, machine: str = platform.machine()) -> Path:
    """The object of one table of kernels, not optimised where ``flags`` do not say else."""
    return compiled(compiler, SOURCES / "kernels" / f"kernels_{isa}.c", *isa_flags(machine)[isa], "-O0", *flags)


def program(
    folder: Path,
    compiler: str,
    isas: Container[str],
    *flags: str,
    name: str = "bits",
    machine: str = platform.machine(),
) -> Path:
    """A program of tests/c with the library in it; ``flags`` are for all but the kernels of sets not in ``isas``."""
    link = [flag for flag in flags if flag.startswith(("-f", "-static"))]
    sources = (*sorted(SOURCES.glob("*.c")), PROGRAMS / f"{name}.c")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(compiled, compiler, source, "-O0", *flags) for source in sources]
        for isa in isa_flags(machine):
            jobs.append(pool.submit(kernel_object, compiler, isa, *(flags if isa in isas else ()), machine=machine))
        objects = [str(job.result()) for job in jobs]
    target = folder / name
    subprocess.run([compiler, *link, *objects, "-lm", "-pthread", "-o", str(target)], check=True)
    return target
