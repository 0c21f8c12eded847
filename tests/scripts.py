"""Python in a process of its own, for tests of what a process sees: threads, forks, signals, the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ("FASTRNN_ISA", "FASTRNN_NUM_THREADS", "FASTRNN_TEAM", "OMP_NUM_THREADS")

TORCH = """
import sys
if __name__ == "__main__" and sys.argv[1] == "torch":
    import torch
    torch.set_num_threads(2)
    (torch.rand(1000, 1000) @ torch.rand(1000, 1000)).sigmoid_()
"""
"""The beginning of a script whose first argument is the fixture ``first``: PyTorch's threads at work before ours."""

LAYERS = """
import os, sys, time
import numpy as np
import fastrnn

def weights(rng, *shape):
    return rng.uniform(-0.2, 0.2, shape).astype(np.float32)

def lstm(input_size, hidden_size, directions=1, seed=0, proj_size=0):
    rng = np.random.default_rng(seed)
    ih = [weights(rng, 4 * hidden_size, input_size) for _ in range(directions)]
    hh = [weights(rng, 4 * hidden_size, proj_size or hidden_size) for _ in range(directions)]
    hr = [weights(rng, proj_size, hidden_size) for _ in range(directions)] if proj_size else None
    return fastrnn.LSTM(ih, hh, weight_hr=hr, bidirectional=directions == 2)

def inputs(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)

def threads():
    return len(os.listdir("/proc/self/task"))

def bits(result):
    y, state = result
    return b"".join(part.tobytes() for part in (y, *(state if isinstance(state, tuple) else (state,))))
"""
"""Layers and inputs for scripts; ``threads`` counts those of the process."""


def environment(**changes: str | None) -> dict[str, str]:
    """The environment without settings of fastrnn and OpenMP, and with ``changes``."""
    env = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    path = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"PYTHONPATH": os.pathsep.join(path)} | {k: v for k, v in changes.items() if v is not None}


def run(
    code: str | Path, *args: Any, timeout: float = 120, cwd: Path | None = None, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """Run Python code, or a file of it; ``changes`` are environment variables."""
    command = [sys.executable, *([str(code)] if isinstance(code, Path) else ["-c", code]), *map(str, args)]
    settings: dict[str, Any] = {"timeout": timeout, "cwd": cwd, "env": environment(**changes)}
    return subprocess.run(command, capture_output=True, text=True, **settings)


def check(code: str | Path, *args: Any, timeout: float = 120, **changes: str | None) -> str:
    """Run Python code that must end well; what it printed."""
    done = run(code, *args, timeout=timeout, **changes)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def compile_library(folder: Path, code: str, *flags: str) -> Path:
    """A shared library made from C code."""
    compiler = shutil.which("gcc") or pytest.skip("needs gcc")
    (folder / "library.c").write_text(code)
    library = folder / "library.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", *flags, str(folder / "library.c"), "-o", str(library)], check=True
    )
    return library
