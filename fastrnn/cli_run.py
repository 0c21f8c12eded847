"""``fastrnn run``: arrays from files through a model into files, in chunks of rows."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .array_files import SUFFIXES, read, write
from .errors import FormatError, ShapeError
from .file_writer import check_target, write_file
from .inspect import batch_axes, input_shape, optional_inputs
from .loaders import find_format
from .model import Model, load
from .spec import ModelSpec, Tensor

Arrays = dict[str, np.ndarray]


def run(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Do what the command line asks; returns shapes of the outputs by name, files written and seconds of running."""
    target = Path(args.output)
    wanted = None if "outputs" in find_format(args.file).options else options.pop("outputs", None)
    model = load(args.file, threads=args.threads, **options)
    names = _wanted(model, wanted)
    files = _output_files(target, names, is_folder=args.output.endswith("/"))
    existing = [str(path) for path in files if path.exists()]
    if existing and not args.force:
        raise FileExistsError(f"there already: {', '.join(existing)}")
    for path in files:
        check_target(path)  # before the work, not after it

    lengths = None if args.lengths is None else _read_lengths(args.lengths)
    own = {} if lengths is None or "lengths" not in (t.name for t in model.inputs) else {"lengths": lengths}
    feeds, added = _with_batch(model.spec, _read_inputs(args.inputs, model.spec, own))
    started = time.perf_counter()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for chunk, chunk_lengths in _chunks(model, feeds, lengths, args.batch_size):
        results = model.run(chunk, lengths=chunk_lengths)
        for name in names:
            parts[name].append(results[name])
    outputs = {name: _joined(model.spec, name, arrays, added) for name, arrays in parts.items()}
    seconds = time.perf_counter() - started

    if files == [target] and target.suffix == ".npz":
        write_file(target, lambda file: np.savez(file, **outputs))  # type: ignore[arg-type]
    else:
        for path, name in zip(files, names, strict=True):
            write(path, outputs[name])
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    return {"outputs": shapes, "files": [str(path) for path in files], "seconds": seconds}


def _wanted(model: Model, given: list[str] | None) -> list[str]:
    """The outputs to write: all of the model, or the given ones where the format does not choose while loading."""
    names = [tensor.name for tensor in model.outputs]
    if unknown := sorted(set(given or ()) - set(names)):
        raise ShapeError(f"--outputs names {unknown}; the model has {names}")
    return given or names


def _output_files(target: Path, names: list[str], is_folder: bool) -> list[Path]:
    """The files that will hold the outputs; makes the folder where one is asked for."""
    if is_folder or target.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return [target / f"{_file_name(name)}.npy" for name in names]
    if target.suffix not in SUFFIXES:
        raise FormatError(f"--output {target}: expected a name that ends in {', '.join(SUFFIXES)}, or a directory")
    if len(names) > 1 and target.suffix != ".npz":
        raise ShapeError(
            f"{target} holds one array, there are {len(names)} outputs ({', '.join(names)}); "
            "choose one with --outputs, or write .npz or to a directory"
        )
    return [target]


def _file_name(tensor: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in tensor)


def _read_inputs(given: Sequence[str], spec: ModelSpec, known: Arrays) -> Arrays:
    """The arrays that a run needs, by input name; some are ``known``."""
    feeds, names = known | read_arrays(given, spec), [tensor.name for tensor in spec.inputs]
    unknown, missing = set(feeds) - set(names), set(names) - set(feeds) - optional_inputs(spec)
    if unknown or missing:
        raise ShapeError(f"inputs {sorted(feeds)} were given, the model takes {names}; give each as --input NAME=PATH")
    return feeds


def read_arrays(given: Sequence[str], spec: ModelSpec) -> Arrays:
    """Arrays by input name, from ``NAME=PATH`` or, for the first input that has none yet, ``PATH``."""
    names = [tensor.name for tensor in spec.inputs]
    feeds: Arrays = {}
    for text in given:
        name, _, path = text.partition("=") if text.partition("=")[0] in names else ("", "", text)
        if "=" in path and not name and not Path(path).exists():
            raise ShapeError(
                f"--input {text}: the model has no input {text.partition('=')[0]!r}, it takes {names}; give each as"
                " --input NAME=PATH"
            )
        content = read(Path(path))
        free = next((n for n in names if n not in feeds), names[0])
        if isinstance(content, np.ndarray):
            feeds[name or free] = content
        elif name or (len(content) == 1 and not set(content) & set(names)):
            if name not in content and len(content) != 1:
                raise ShapeError(f"{path} holds {sorted(content)}, none is {name!r}; name an array after the input")
            feeds[name or free] = content.get(name, next(iter(content.values())))
        else:
            feeds |= content
    return feeds


def _read_lengths(text: str) -> np.ndarray:
    path = Path(text)
    content = read(path) if path.suffix in SUFFIXES else np.array(text.split(","))
    try:
        numbers = np.ravel(content).astype(np.float64)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if not (numbers == np.floor(numbers)).all():
        raise ShapeError(f"--lengths {text}: expected whole numbers, as 5,3,8 or in a .npy or .csv file")
    return numbers.astype(np.int64)


def _with_batch(spec: ModelSpec, feeds: Arrays) -> tuple[Arrays, bool]:
    """Give a batch axis to single sequences (a .csv file is one), and say whether one was added."""
    ready, added, axes = {}, False, batch_axes(spec)
    for tensor in spec.inputs:
        if tensor.name not in feeds:
            continue
        array, shape = feeds[tensor.name], input_shape(spec, tensor)
        if np.issubdtype(np.dtype(tensor.dtype), np.integer):
            array = _as_ids(tensor, array)
        if shape is not None and array.ndim == len(shape) - 1:
            array = np.expand_dims(array, axes.get(tensor.name, 0))
            added = True
        ready[tensor.name] = array
    return ready, added


def _as_ids(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """Whole numbers as integers; a column of a .csv file as one sequence."""
    if array.dtype.kind in "iu":
        return array
    ids = array.astype(np.int64)
    if not np.array_equal(ids, array):
        raise ShapeError(f"input {tensor.name!r} takes whole numbers ({tensor.dtype}), the array holds others")
    return ids[:, 0] if ids.ndim == 2 and ids.shape[1] == 1 else ids


def _chunks(
    model: Model, feeds: Arrays, lengths: np.ndarray | None, size: int
) -> Iterator[tuple[Arrays, np.ndarray | None]]:
    """Cut the rows of all inputs, and their lengths, into chunks; inputs without rows go with each."""
    axes = _row_axes(model.spec, feeds)
    rows = {feeds[name].shape[axis] for name, axis in axes.items()}
    total = max(rows, default=1)
    if lengths is not None and rows != {len(lengths)}:
        raise ShapeError(f"--lengths has {len(lengths)} numbers, the inputs have {total} rows")

    def part(start: int, stop: int) -> tuple[Arrays, np.ndarray | None]:
        cut = {name: np.take(feeds[name], range(start, stop), axis) for name, axis in axes.items()}
        return feeds | cut, None if lengths is None else lengths[start:stop]

    if len(rows) != 1 or (size < total and not _rows_are_apart(model, part(0, 1), part(0, size))):
        yield feeds, lengths
        return
    with _progress(total) as report:
        for start in range(0, max(total, 1), size):
            stop = min(start + size, total)
            yield part(start, stop)
            report(stop)


def _row_axes(spec: ModelSpec, feeds: Arrays) -> dict[str, int]:
    """The axis of the rows in each input that has one: where recurrent layers tell it, or else the first, if free."""
    known, axes = batch_axes(spec), {}
    for tensor in spec.inputs:
        axis, shape = known.get(tensor.name, 0), input_shape(spec, tensor)
        free = shape is None or (axis < len(shape) and shape[axis] is None)
        if free and tensor.name in feeds and feeds[tensor.name].ndim > axis:
            axes[tensor.name] = axis
    return axes


def _rows_are_apart(model: Model, one: tuple[Arrays, Any], some: tuple[Arrays, Any]) -> bool:
    """Whether a row alone gives what it gives first of some: a model may sum over rows, or have outputs without any."""
    axes = batch_axes(model.spec)
    alone, among = (model.run(feeds, lengths=lengths) for feeds, lengths in (one, some))
    for name, array in among.items():
        axis = axes.get(name, 0)
        if array.ndim <= axis:
            return False
        first = np.take(array, range(1), axis)
        if first.shape != alone[name].shape or not np.allclose(first, alone[name], 1e-3, 1e-5, equal_nan=True):
            return False
    return True


def _joined(spec: ModelSpec, name: str, arrays: list[np.ndarray], added: bool) -> np.ndarray:
    """The chunks of an output as one array, without the batch axis where it was added."""
    axis = batch_axes(spec).get(name, 0)
    joined = np.concatenate(arrays, axis) if len(arrays) > 1 else arrays[0]
    return joined.squeeze(axis) if added and joined.ndim > axis and joined.shape[axis] == 1 else joined


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Count rows on the terminal's standard error, once the work has taken a second."""
    started, shown = time.perf_counter(), False

    def report(done: int) -> None:
        nonlocal shown
        passed = time.perf_counter() - started
        if sys.stderr.isatty() and done and (shown or passed > 1):
            shown = True
            left = passed * (total - done) / done
            print(f"\r{done}/{total} rows, {passed:.0f} s, {left:.0f} s left ", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if shown:
            print(file=sys.stderr)
