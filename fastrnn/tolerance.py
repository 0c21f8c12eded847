"""What rounding alone may cost: the tensors of a graph in float64, and how far float32 may be from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from . import reference
from .float_mode import in_default_mode
from .spec import ModelSpec, Node

Arrays = dict[str, np.ndarray]

ROUNDING = 2e-7
"""The smallest tolerance, relative to the largest value of a tensor (or to 1): about 3.4 roundings to float32.

This is the floor of the project's promise; below it, error says more about the last digit than about the layer."""

PEERS = 3
PEER_FACTOR = 12.0
"""How many times the error of the same equations in plain float32 NumPy may be, the largest of PEERS runs.

That error is what this layer, these weights and these inputs cost anyone who computes in float32: long sums, large
pre-activations and unstable recurrences cost more.  A run has luck of its own, so every run but the first moves each
weight by up to one step of float32, and a small tensor may still be lucky in all of them, hence the factor: of 12,000
random layers and outputs, from tame to chaotic, the worst used two thirds of it and half of them less than a tenth.
A wrong gate order, activation or epsilon is hundreds of times larger."""

FLOAT32 = np.finfo(np.float32)


@in_default_mode
def reference_run(graph: ModelSpec, feeds: Arrays, tolerance: float | None = None) -> tuple[Arrays, dict[str, float]]:
    """The tensors that a graph writes in float64, and the error allowed for each."""
    exact = reference.run(graph, feeds)
    names = [name for node in graph.nodes for name in node.outputs if name in exact]
    written = {name: exact[name] for name in (*names, *graph.constants, *feeds)}
    if tolerance is not None:
        return exact, dict.fromkeys(written, tolerance)
    rng = np.random.default_rng(0)
    strays = dict.fromkeys(written, 0.0)
    with reference.precision(np.float32), np.errstate(all="ignore"):
        for peer in range(PEERS):
            moved = [_moved(node, rng) for node in graph.nodes] if peer else graph.nodes
            rounded = reference.run(replace(graph, nodes=moved), feeds)
            for name, value in written.items():
                error = errors(rounded[name], value)[0]
                strays[name] = max(strays[name], error if np.isfinite(error) else 0.0)
    return exact, {name: max(ROUNDING * _scale(exact[name]), PEER_FACTOR * stray) for name, stray in strays.items()}


def _moved(node: Node, rng: np.random.Generator) -> Node:
    """The node with each weight moved by up to one step of float32."""
    weights = {name: np.asarray(weight, np.float32) for name, weight in node.weights.items()}
    weights = {name: w + np.spacing(w) * rng.integers(-1, 2, w.shape, np.int8) for name, w in weights.items()}
    bodies = {
        key: replace(body, nodes=[_moved(inner, rng) for inner in body.nodes]) for key, body in node.graphs.items()
    }
    return replace(node, weights=weights, graphs=bodies)


def _scale(array: np.ndarray) -> float:
    array = np.asarray(array, np.float64)
    return max(1.0, float(np.abs(array[np.isfinite(array)]).max(initial=0.0)))


def errors(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """The largest absolute error, and the largest in float32 steps at the wanted value.

    >>> errors(np.array([1.0, np.nan]), np.array([1.0 + 2**-23, np.nan]))
    (1.1920928955078125e-07, 1.0)
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    want = np.where(np.abs(want) > FLOAT32.max, np.copysign(np.inf, want), want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - want))
    error = np.where(np.isnan(error), np.inf, error)
    scale = np.where(np.isnan(want), 1.0, np.clip(np.abs(want), FLOAT32.tiny, 2.0**127))
    step = np.spacing(scale.astype(np.float32)).astype(np.float64)
    ulp = np.where(error <= FLOAT32.tiny, 0.0, error / step)
    return float(error.max(initial=0.0)), float(ulp.max(initial=0.0))


def recorded_problems(spec: ModelSpec, run: Callable[[Arrays, list[str]], Arrays]) -> list[str]:
    """How the outputs that ``run(feeds, names)`` gives differ from the recorded ones of a model, in words.

    What the engine recorded it gives again bit for bit, on any machine.  Recordings of others, and of nodes that run in
    NumPy or in other packages, may differ by what rounding costs either side.
    """
    feeds = {t.name: spec.recorded[t.name] for t in spec.inputs if t.name in spec.recorded}
    wanted = {t.name: spec.recorded[t.name] for t in spec.outputs if t.name in spec.recorded}
    given = run(feeds, list(wanted))
    problems = [
        f"output {name!r} is {given[name].dtype} {given[name].shape}, recorded was {want.dtype} {want.shape}"
        for name, want in wanted.items()
        if (given[name].shape, given[name].dtype.kind) != (want.shape, want.dtype.kind)
    ]
    differ = [name for name, want in wanted.items() if not np.array_equal(given[name], want, equal_nan=True)]
    if problems or not differ:
        return problems
    allowed = reference_run(spec, feeds)[1]
    found = {name: errors(given[name], wanted[name])[0] for name in differ}
    return [
        f"output {name!r} is up to {error:.3g} from the recorded one, allowed are {2 * allowed[name]:.3g}"
        for name, error in found.items()
        if error > 2 * allowed[name]
    ]
