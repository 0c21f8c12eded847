"""Random Keras 3 models, alive and as files, computed by fastrnn and by Keras itself.

    python tests/compare_keras.py --count 2000 --seed 0
    python tests/compare_keras.py --recorded FILE

Each model of ``keras_random.py`` runs in Keras, and in fastrnn as ``from_keras`` takes it and as ``.keras`` and .h5
files; or those of a file that ``record_keras2.py`` wrote are run.  A line for each that differs or cannot be loaded,
and then the exit code is 1.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from keras_random import random_model

import fastrnn

ATOL = 2e-5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recorded")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    wrong = count = 0
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(options.seed, options.seed + options.count)
        found = (problems(seed, Path(folder)) for seed in seeds)
        for lines in recorded_problems(options.recorded, Path(folder)) if options.recorded else found:
            count, wrong = count + 1, wrong + bool(lines)
            print("".join(f"{line}\n" for line in lines), end="", flush=True)
    print(f"{count} models, {wrong} of them wrong")
    return int(bool(wrong))


def problems(seed: int, folder: Path, kinds: Sequence[str] = ("live", "m.keras", "m.h5")) -> list[str]:
    """What is wrong with one model of Keras 3."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    keras.backend.clear_session(free_memory=False)
    model, inputs = random_model(keras, seed)
    expected = [np.asarray(keras.ops.convert_to_numpy(y)) for y in model(inputs, training=False)]
    named = dict(zip((x.name for x in model.inputs), inputs, strict=True))
    found = []
    for kind in kinds:
        if kind != "live":
            model.save(folder / kind)
        found += compare(
            f"seed {seed}, {kind}",
            lambda kind=kind: fastrnn.from_keras(model) if kind == "live" else fastrnn.load(folder / kind),
            named,
            expected,
        )
    return found


def recorded_problems(path: str | os.PathLike[str], folder: Path) -> Iterator[list[str]]:
    """What is wrong with each model of an archive that ``record_keras2.py`` wrote."""
    with tarfile.open(path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    for name in members:
        if not name.endswith(".npz"):
            (folder / name).write_bytes(members[name])
            arrays = dict(np.load(io.BytesIO(members[f"{Path(name).stem}.npz"])))
            expected = [arrays.pop(f"output_{k}") for k in range(sum(key.startswith("output_") for key in arrays))]
            yield compare(name, lambda name=name: fastrnn.load(folder / name), arrays, expected)


def compare(
    name: str, load: Callable[[], fastrnn.Model], inputs: dict[str, np.ndarray], expected: list[np.ndarray]
) -> list[str]:
    try:
        ours = load()
        result = ours.run({tensor.name: inputs[tensor.name] for tensor in ours.inputs})
    except fastrnn.FastrnnError as problem:
        return [f"{name}: {problem}"]
    error = difference(list(result.values()), expected)
    return [f"{name}: differs by {error:.3g}"] if error > ATOL else []


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference, relative to what is larger than 1; NaN where only one of two elements is."""
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            return np.inf
        largest = max(largest, np.nanmax(np.abs(a - b) / np.maximum(1, np.abs(b)), initial=0))
    return largest


if __name__ == "__main__":
    sys.exit(main())
