"""Mutates valid model files of every registered format, loads them, and runs the models that come out.

    python tests/fuzz_loaders.py --count 200000 --seed 1

A mutant must load or raise a ``FastrnnError``, within 2 seconds, with memory bounded by its size (that of Python and
NumPy by ``tracemalloc``, that of C by a limit on the process), and without any other file being opened but external
data beside it.  A small model that loads is built and run once, which must end in the same ways.  A failure leaves the
file in the current folder; a crash, or a call that does not come back, leaves the folder of it, ``fuzz_*``.
"""

import argparse
import contextlib
import faulthandler
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_corpus import Seed, corpus
from fuzz_mutations import STRUCTURED, mutate

import fastrnn
from fastrnn.errors import FastrnnError
from fastrnn.inspect import input_sizes
from fastrnn.loaders import FORMATS, load_spec, load_tensors
from fastrnn.spec import ModelSpec
from fastrnn.verify import random_inputs

SECONDS = 2.0
BYTES = 100  # of memory for each byte of the file, and
BYTES_MORE = 16 << 20
PIECE = 4000  # mutants that a process checks
PROCESS_MORE = 1 << 30  # of address space, for what libraries in C take
RUN_WEIGHTS = 1 << 20  # elements of a model that is run, and of its inputs

CODE = (".py", ".pyc", ".so")


class Opened:
    """The files that Python opens while it is watched; a hook of the interpreter, which can never be removed."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.paths is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
            path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode(errors="replace")
            if not path.endswith(CODE):
                self.paths.append(path)

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[str]]:
        self.paths = paths = []
        try:
            yield paths
        finally:
            self.paths = None


OPENED = Opened()


@contextlib.contextmanager
def traced_memory() -> Iterator[None]:
    """Once for all mutants; what is traced leaves some kilobytes behind each time, hence the processes of ``main``."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let the process take a little more address space than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")
    if pages.exists():
        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + PROCESS_MORE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutant(seeds: list[Seed], number: int) -> Seed:
    """The mutant of one number."""
    rng = random.Random(number)
    seed = rng.choice(seeds)
    if seed.beside and rng.random() < 0.2:
        return replace(seed, beside={name: mutate(data, rng) for name, data in seed.beside.items()})
    structured = STRUCTURED.get(Path(seed.name).suffix)
    if structured is not None and rng.random() < 0.7:
        return replace(seed, data=structured(seed.data, rng))
    return replace(seed, data=mutate(seed.data, rng))


def load(path: Path, seed: Seed) -> tuple[str, ModelSpec | None]:
    """Load a file in both ways; returns what came of it, and the model."""
    outcomes, spec = [], None
    for loader, options in ((load_tensors, {}), (load_spec, seed.options)):
        try:
            spec = loader(path, **options)
            outcomes.append("loaded")
        except FastrnnError as error:
            outcomes.append(type(error).__name__)
    return "/".join(outcomes), spec if isinstance(spec, ModelSpec) else None


def run_once(spec: ModelSpec) -> str:
    """Build a small model and run it; one that loops as often as its file says, or that runs elsewhere, is not run."""
    nodes = list(spec.all_nodes())
    size = sum(array.size for node in nodes for array in node.weights.values())
    size += sum(prod(shape or ()) for shape in input_sizes(spec, 1, 3).values())
    if size > RUN_WEIGHTS or any(node.op in ("loop", "operator") for node in nodes):
        return "not run"
    try:
        model = fastrnn.Model(spec)
        feeds = random_inputs(spec, batch=1, seq_len=3)
        with np.errstate(all="ignore"):
            model.run(feeds)
    except MemoryError:
        return "too large"  # a shape that the file asks for
    except FastrnnError as error:
        return type(error).__name__
    return "ran"


def is_beside(name: str) -> bool:
    """Whether it is a name without a path: external data are opened relative to the folder of the model."""
    return Path(name).name == name


def check(folder: Path, seed: Seed) -> tuple[str, str]:
    """Load a file and run its model; returns what came of it, and what was wrong with that, or ""."""
    path = folder / f"fuzzed{''.join(Path(seed.name).suffixes)}"
    path.write_bytes(seed.data)
    for name, data in seed.beside.items():
        (folder / name).write_bytes(data)
    tracemalloc.clear_traces()
    start = time.process_time()
    try:
        with OPENED.watched() as opened:
            outcome, spec = load(path, seed)
    except Exception as error:
        return f"{type(error).__name__}: {error}", "an error that is not fastrnn's"
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    others = {name for name in opened if name not in (str(path), str(folder)) and not (seed.beside and is_beside(name))}
    if others:
        return outcome, f"opened {sorted(others)}"
    size = len(seed.data) + sum(map(len, seed.beside.values()))
    if seconds > SECONDS or peak > BYTES * size + BYTES_MORE:
        return outcome, f"{seconds:.2f} s, {peak} bytes to load"
    if spec is None:
        return outcome, ""
    start = time.process_time()
    try:
        ran = run_once(spec)
    except Exception as error:
        return f"{outcome}/{type(error).__name__}: {error}", "an error of the model that is not fastrnn's"
    seconds = time.process_time() - start
    return f"{outcome}/{ran}", f"{seconds:.2f} s to run" if seconds > SECONDS else ""


def run(count: int, seed: int = 0, only: str = "", first: int = 0) -> dict[str, int]:
    """Check ``count`` mutants from ``first`` on, ``only`` of seeds whose names contain that; returns how many had each
    outcome.

    Raises
    ------
    AssertionError
        A mutant raised another error, took too long or too much memory, or had another file opened.
    """
    seeds = corpus()
    outcomes: dict[str, int] = {}
    missing = [row.name for row in FORMATS if not any(seed.name.endswith(row.suffixes) for seed in seeds)]
    assert not set(missing) - {"keras", "onnx"}, f"no valid file of the formats {missing} to start from"
    seeds = [seed for seed in seeds if only in seed.name]
    with tempfile.TemporaryDirectory(dir=".", prefix="fuzz_") as name, traced_memory():
        folder = Path(name).resolve()
        for good in seeds:  # which also imports the modules
            outcome, problem = check(folder, good)
            outcome, problem = check(folder, good) if problem else (outcome, problem)
            if not {"loaded", "UnsupportedError"} & set(outcome.split("/")):
                problem = "a valid file"
            assert not problem, f"{good.name}: {outcome}: {problem}"
        with limited_memory():
            for k in range(first, first + count):
                made = mutant(seeds, seed * 1_000_003 + k)
                faulthandler.dump_traceback_later(60, exit=True)
                outcome, problem = check(folder, made)
                faulthandler.cancel_dump_traceback_later()
                if problem:
                    kept = Path(f"failed_{seed}_{k}_{made.name}").resolve()
                    kept.write_bytes(made.data)
                    raise AssertionError(f"--seed {seed}, mutant {k}: {outcome}: {problem}; see {kept}")
                key = f"{made.name} {outcome}"
                outcomes[key] = outcomes.get(key, 0) + 1
    return outcomes


def run_apart(piece: tuple[int, int, str, int]) -> dict[str, int]:
    """The same in a process of its own; one that crashes is an error here."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(run, *piece).result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Load mutated model files of every format.")
    parser.add_argument("--count", type=int, default=1000, help="number of mutants (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--only", default="", help="part of the names of the files to mutate, as .pt (default all)")
    options = parser.parse_args()
    pieces = [
        (min(PIECE, options.count - first), options.seed, options.only, first)
        for first in range(0, options.count, PIECE)
    ]
    total: dict[str, int] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for outcomes in pool.map(run_apart, pieces):
            for outcome, count in outcomes.items():
                total[outcome] = total.get(outcome, 0) + count
    for outcome, count in sorted(total.items()):
        print(f"{count:8d}  {outcome}")


if __name__ == "__main__":
    main()
