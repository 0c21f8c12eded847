"""Mutates valid model files of every registered format, loads them, and does with the models all that a user may do.

    python tests/fuzz_loaders.py --count 200000 --seed 1

A mutant must load or raise a ``FastrnnError``, with memory bounded by its size (that of Python and NumPy by
``tracemalloc``, that of C by a limit on the process), and without any other file being opened but external data beside
it.  What loads is inspected, built, run, explained, streamed alone and in a pool, saved, loaded again and verified
(:mod:`fuzz_phases`); each of that ends well or in a ``FastrnnError`` too.  All of it together takes at most 2 seconds
of CPU time.  What fails is counted, grouped by error and place, and printed at the end, with the wall time; some files
of each group are left in the current folder.
"""

import argparse
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import fuzz_phases
from fuzz_corpus import Seed, corpus
from fuzz_mutations import STRUCTURED, mutate

import fastrnn
from fastrnn import run_limits
from fastrnn.errors import FastrnnError
from fastrnn.loaders import FORMATS, load_spec, load_tensors
from fastrnn.spec import ModelSpec

SECONDS = 2.0  # of CPU time, for all that is done with a mutant
WAITING = 120  # of wall time, after which a call that does not come back ends the process
BYTES = 100  # of memory for each byte of the file, and
BYTES_MORE = 16 << 20
PIECE = 2000  # mutants that a process checks
PROCESS_MORE = 1 << 30  # of address space, for what libraries in C take
TURNS = 1000  # of a loop: what a file may ask for by the limit as it is takes its time, and rightly
KEPT = 3  # files of a group of failures
SHARES = {".frnn": 4, ".onnx": 4, ".keras": 2, ".h5": 1, ".pt": 2, ".jit": 1, ".safetensors": 1}
"""How often mutants are made of files with these suffixes."""

CODE = (".py", ".pyc", ".so")
INSTALLED = (sys.prefix, sys.base_prefix)  # packages that are imported look up versions there


class Opened:
    """The files that Python opens while it is watched; a hook of the interpreter, which can never be removed."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.paths is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
            path = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode(errors="replace")
            if not path.endswith(CODE) and not path.startswith(INSTALLED):
                self.paths.append(path)

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[str]]:
        self.paths = paths = []
        try:
            yield paths
        finally:
            self.paths = None


OPENED = Opened()


@dataclass(frozen=True)
class Failure:
    """What went wrong: in which phase, which error, and the place in the package that it came from."""

    phase: str
    error: str
    place: str
    text: str = field(compare=False)


@dataclass
class Outcomes:
    """How many mutants had each outcome, and which failed."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    failures: Counter[Failure] = field(default_factory=Counter)
    files: dict[Failure, list[str]] = field(default_factory=dict)

    def add(self, other: "Outcomes") -> None:
        self.counts += other.counts
        self.seconds += other.seconds
        self.failures += other.failures
        for failure, files in other.files.items():
            self.files.setdefault(failure, []).extend(files)
            for name in self.files[failure][KEPT:]:
                Path(name).unlink(missing_ok=True)
            del self.files[failure][KEPT:]

    def fail(self, failure: Failure, made: Seed, name: str) -> None:
        self.failures[failure] += 1
        files = self.files.setdefault(failure, [])
        if len(files) < KEPT:
            path = Path(f"failed_{name}_{made.name}").resolve()
            path.write_bytes(made.data)
            files.append(str(path))

    def report(self) -> str:
        lines = [f"{count:8d}  {outcome}" for outcome, count in sorted(self.counts.items())]
        lines += ["CPU seconds: " + ", ".join(f"{name} {s:.0f}" for name, s in self.seconds.most_common())]
        lines += [f"{sum(self.failures.values())} failures of {len(self.failures)} kinds"]
        for failure, count in self.failures.most_common():
            lines += [f"{count:8d}  {failure.phase}: {failure.error} at {failure.place}: {failure.text:.200}"]
            lines += [f"          {name}" for name in self.files.get(failure, ())]
        return "\n".join(lines)


class OutOfTimeError(BaseException):
    """A mutant has had its CPU time; no ``except Exception`` takes this for an error of the model."""


def out_of_time(number: int, frame: Any) -> None:
    raise OutOfTimeError


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """At most ``SECONDS`` of CPU time; ``WAITING`` of wall time, after which the process ends."""
    before = signal.signal(signal.SIGPROF, out_of_time)
    faulthandler.dump_traceback_later(WAITING, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """Let the process take a little more address space than it has; a sanitizer's own has no such bound."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = Path("/proc/self/statm")
    if pages.exists() and "asan" not in os.environ.get("LD_PRELOAD", ""):
        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + PROCESS_MORE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutant(seeds: dict[str, list[Seed]], number: int) -> Seed:
    """The mutant of one number; ``seeds`` by suffix."""
    rng = random.Random(number)
    suffix = rng.choices(list(seeds), [SHARES.get(suffix, 1) for suffix in seeds])[0]
    seed = rng.choice(seeds[suffix])
    if seed.beside and rng.random() < 0.2:
        return replace(seed, beside={name: mutate(data, rng) for name, data in seed.beside.items()})
    structured = STRUCTURED.get(Path(seed.name).suffix)
    if structured is not None and rng.random() < 0.85:
        with contextlib.suppress(Exception):  # a change that the format has no way to write down
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


def is_beside(name: str) -> bool:
    """Whether it is a name without a path: external data are opened relative to the folder of the model."""
    return Path(name).name == name


def load_watched(path: Path, seed: Seed) -> tuple[str, ModelSpec | None, Failure | None]:
    """Load a file, and see what that opens and takes."""
    tracemalloc.start()
    try:
        with OPENED.watched() as opened:
            outcome, spec = load(path, seed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    folder = str(path.parent)
    others = {name for name in opened if name not in (str(path), folder) and not (seed.beside and is_beside(name))}
    if others:
        return outcome, None, Failure("load", "another file", "", f"opened {sorted(others)}")
    size = len(seed.data) + sum(map(len, seed.beside.values()))
    if peak > BYTES * size + BYTES_MORE:
        return outcome, None, Failure("load", "memory", seed.name, f"{peak} bytes to load {size}")
    return outcome, spec, None


def failure_of(phase: str, error: BaseException) -> Failure:
    """An error by the place in the package that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}fastrnn{os.sep}" in f.filename]
    at = frames[-1] if frames else None
    place = "" if at is None else f"{Path(at.filename).name}:{at.lineno} {at.name}"
    return Failure(phase, type(error).__name__, place, str(error)[:300])


def check(folder: Path, seed: Seed, seconds: Counter[str]) -> tuple[str, Failure | None]:
    """Load a file and do everything with its model; returns what came of it, and the failure."""
    path = folder / f"fuzzed{''.join(Path(seed.name).suffixes)}"
    path.write_bytes(seed.data)
    for name, data in seed.beside.items():
        (folder / name).write_bytes(data)
    phase, outcome = "load", ""
    start = time.process_time()
    try:
        with limited_time(), np.errstate(all="ignore"):
            outcome, spec, failure = load_watched(path, seed)
            if failure is not None or spec is None:
                return outcome, failure
            seconds[phase] += time.process_time() - start
            start, phase = time.process_time(), "size"
            if not fuzz_phases.is_small(spec):
                return f"{outcome}, large", None
            subject = fuzz_phases.Subject(spec, folder)
            refused = []
            for function in fuzz_phases.PHASES:
                seconds[phase] += time.process_time() - start
                start, phase = time.process_time(), function.__name__
                try:
                    function(subject)
                except FastrnnError:
                    refused.append(phase)
                    if function in fuzz_phases.NEEDED:
                        break
            return f"{outcome}, refused by {' '.join(refused) or 'nothing'}", None
    except (Exception, OutOfTimeError) as error:
        return f"{outcome} {type(error).__name__}", failure_of(phase, error)
    finally:
        seconds[phase] += time.process_time() - start


def by_suffix(seeds: list[Seed], only: str) -> dict[str, list[Seed]]:
    found: dict[str, list[Seed]] = {}
    for seed in seeds:
        if only in seed.name:
            found.setdefault(Path(seed.name).suffix, []).append(seed)
    return found


def run(seeds: list[Seed], count: int, seed: int = 0, only: str = "", first: int = 0, at: str = "") -> Outcomes:
    """Check ``count`` mutants from ``first`` on, ``only`` of seeds whose names contain that.

    The number of the mutant in progress is written to the file ``at``, for whoever wants to know after a crash.
    """
    outcomes = Outcomes()
    fastrnn.set_num_threads(1)
    before, run_limits.MAX_TURNS = run_limits.MAX_TURNS, TURNS
    chosen = by_suffix(seeds, only)
    with tempfile.TemporaryDirectory(dir=".", prefix="fuzz_") as name:
        folder = Path(name).resolve()
        for members in chosen.values():
            for good in members[:3]:  # which imports the modules
                check(folder, good, Counter())
        with limited_memory():
            for k in range(first, first + count):
                if at:
                    Path(at).write_text(str(k))
                made = mutant(chosen, seed * 1_000_003 + k)
                outcome, failure = check(folder, made, outcomes.seconds)
                outcomes.counts[f"{Path(made.name).suffix} {outcome}"] += 1
                if failure is not None:
                    outcomes.fail(failure, made, f"{seed}_{k}")
    run_limits.MAX_TURNS = before
    return outcomes


def check_seeds(seeds: list[Seed]) -> None:
    """The files that mutants are made of are valid, and of every format."""
    missing = [row.name for row in FORMATS if not any(seed.name.endswith(row.suffixes) for seed in seeds)]
    assert not set(missing) - {"keras", "onnx"}, f"no valid file of the formats {missing} to start from"
    with tempfile.TemporaryDirectory(dir=".", prefix="fuzz_") as name:
        for good in seeds:
            outcome, failure = check(Path(name).resolve(), good, Counter())
            assert failure is None, f"{good.name}: {outcome}: {failure}"
            assert {"loaded", "UnsupportedError"} & set(outcome.partition(",")[0].split("/")), (good.name, outcome)


def run_apart(path: str, count: int, seed: int, only: str, first: int) -> Outcomes:
    """The same in a process of its own.  One that crashes is a failure, and others go on behind it."""
    at = f"{path}_{first}"
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            return process.submit(run_stored, path, count, seed, only, first, at).result()
    except BrokenProcessPool:
        k = int(Path(at).read_text())
        outcomes = Outcomes()
        made = mutant(by_suffix(stored(path), only), seed * 1_000_003 + k)
        outcomes.counts[f"{Path(made.name).suffix} crash"] += 1
        outcomes.fail(Failure("process", "crash", "", "its output is above"), made, f"{seed}_{k}")
        for start, end in ((first, k), (k + 1, first + count)):
            if start < end:
                outcomes.add(run_apart(path, end - start, seed, only, start))
        return outcomes


def stored(path: str) -> list[Seed]:
    return pickle.loads(Path(path).read_bytes())


def run_stored(path: str, *arguments: Any) -> Outcomes:
    return run(stored(path), *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description="Load mutated model files of every format, and use the models.")
    parser.add_argument("--count", type=int, default=1000, help="number of mutants (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--only", default="", help="part of the names of the files to mutate, as .pt (default all)")
    options = parser.parse_args()
    begun = time.monotonic()
    seeds = corpus(every_operator=True)
    total = Outcomes()
    processes = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="fuzz_seeds_") as folder, ThreadPoolExecutor(processes) as pool:
        path = Path(folder) / "seeds"
        path.write_bytes(pickle.dumps(seeds))
        pieces = range(0, options.count, PIECE)
        made = pool.map(
            lambda k: run_apart(str(path), min(PIECE, options.count - k), options.seed, options.only, k), pieces
        )
        for outcomes in made:
            total.add(outcomes)
    print(total.report())
    print(f"{options.count} mutants of {len(seeds)} files: {time.monotonic() - begun:.0f} s of wall time")
    sys.exit(1 if total.failures else 0)


if __name__ == "__main__":
    main()
