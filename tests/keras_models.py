"""What the tests of the Keras loader share: random weights, and models against their specs from every container."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastrnn
from fastrnn import reference
from fastrnn.loaders.keras import from_object, load_spec

ATOL = 1e-5  # Keras computes in float32, the reference in float64


def randomize(model) -> None:
    """Fill all weights, biases too, which Keras starts at 0 (a variance must be positive)."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.dtype.startswith("float"):
            value = rng.uniform(-0.8, 0.8, variable.shape)
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compare(spec, expected, *inputs: np.ndarray) -> None:
    """The reference and the engine on a spec give what Keras gave, in the shapes that the spec declares."""
    feeds = dict(zip((tensor.name for tensor in spec.inputs), inputs, strict=True))
    assert len(spec.outputs) == len(expected)
    _close(spec, reference.run(spec, feeds), expected)
    _close(spec, fastrnn.Model(spec).run(feeds), expected)


def _close(spec, result, expected) -> None:
    for tensor, theirs in zip(spec.outputs, expected, strict=True):
        ours = result[tensor.name]
        assert ours.shape == theirs.shape, tensor.name
        assert len(tensor.shape) == theirs.ndim, tensor.name
        assert all(n in (None, m) for n, m in zip(tensor.shape, theirs.shape, strict=True)), tensor
        error = np.abs(ours.astype(np.float64) - theirs) / np.maximum(1, np.abs(theirs))
        assert error.max(initial=0) <= ATOL, f"{tensor.name}: {error.max()}"


def check(model, *inputs: np.ndarray, folder: Path | None = None):
    """Random weights; the live model, and its files where a folder is given, must compute what Keras does."""
    randomize(model)
    expected = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
    expected = [np.asarray(y.detach()) for y in (expected if isinstance(expected, (list, tuple)) else [expected])]
    spec = from_object(model)
    compare(spec, expected, *inputs)
    if folder:
        for name in ("m.keras", "m.h5"):
            model.save(folder / name)
            compare(load_spec(folder / name), expected, *inputs)
        model.save_weights(folder / "m.weights.h5")
        compare(load_spec(folder / "m.weights.h5", config=folder / "m.h5"), expected, *inputs)
    return spec
