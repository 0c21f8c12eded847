"""C programs of this folder, compiled when they are needed and kept in build/bench by the contents of their sources."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
LIBRARY = ROOT / "src_c"
CACHE = ROOT / "build" / "bench"


@functools.cache
def setup_value(name: str) -> Any:
    """A constant of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py has no {name}")


@functools.cache
def compiler() -> str | None:
    """The path of a C compiler, None where there is none."""
    return shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")


def library() -> list[tuple[Path, list[str]]]:
    """The sources of the C library and the flags that each has besides CFLAGS."""
    kernels = setup_value("ISA_FLAGS").get(platform.machine(), {"generic": []})
    files: list[tuple[Path, list[str]]] = [(path, ["-fopenmp"]) for path in sorted(LIBRARY.glob("*.c"))]
    return files + [(LIBRARY / "kernels" / f"kernels_{isa}.c", flags) for isa, flags in kernels.items()]


def program(name: str, more: Iterable[tuple[Path, list[str]]] = ()) -> Path:
    """``name``.c of this folder linked with ``more`` sources, with the flags of setup.py."""
    made = compiler()
    if made is None:
        raise FileNotFoundError("a C compiler: install gcc, or name one in CC")
    sources = [(BENCH / f"{name}.c", list[str]()), *more]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compiled(made, *source), sources))
    return _kept([made, *map(str, objects), "-fopenmp", "-pthread", "-lm"], objects, name, "")


def _compiled(made: str, source: Path, flags: list[str]) -> Path:
    headers = [*LIBRARY.rglob("*.h"), *BENCH.glob("*.h")]
    command = [made, *setup_value("CFLAGS"), *flags, "-I", str(LIBRARY), "-c", str(source)]
    return _kept(command, [source, *sorted(headers)], source.stem, ".o")


def _kept(command: list[str], made_from: Iterable[Path], stem: str, suffix: str) -> Path:
    """What the command makes, unless it was made from the same before."""
    contents = repr(command).encode() + _version(command[0]) + b"".join(path.read_bytes() for path in made_from)
    target = CACHE / f"{stem}-{hashlib.sha256(contents).hexdigest()[:16]}{suffix}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(unfinished)], check=True)
        unfinished.rename(target)
    return target


@functools.cache
def _version(made: str) -> bytes:
    return subprocess.run([made, "--version"], capture_output=True, check=True).stdout
