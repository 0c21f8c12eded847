"""The C library without Python, linked with a program of tests/c."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from c_objects import ROOT, SOURCES, compiled, isa_flags

PROGRAMS = ROOT / "tests" / "c"


@functools.cache
def find(tool: str) -> str:
    """The path of a program; without it the test is skipped."""
    return shutil.which(tool) or pytest.skip(f"{tool} is not installed")


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
