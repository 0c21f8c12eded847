"""Compare a model with the float64 reference, with the framework that it came from, or with recorded outputs.

Layers are compared one at a time: each gets the *engine's* own input to that layer in the reference too, so an error
shows at the layer that makes it and does not accumulate.  The outputs of the whole model are compared end to end.
Live frameworks and recordings run on their own from the inputs, so there errors do accumulate.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import as_array
from .errors import FormatError, ShapeError, UnsupportedError
from .inspect import consumer, input_sizes, optional_inputs, table
from .model import as_model
from .spec import ModelSpec, Tensor
from .tolerance import errors, reference_run

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class LayerReport:
    """The largest error of a layer, or of an output (``op`` is then "output"); ``tolerance`` is what was allowed."""

    name: str
    op: str
    max_abs: float
    max_ulp: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found: ``layers`` one at a time, ``outputs`` end to end."""

    against: str
    layers: list[LayerReport]
    outputs: list[LayerReport]

    @property
    def ok(self) -> bool:
        """Whether every layer and every output is within its tolerance."""
        return all(row.ok for row in self.layers + self.outputs)

    @property
    def max_abs(self) -> float:
        """The largest absolute error of the outputs."""
        return max((row.max_abs for row in self.outputs), default=0.0)

    @property
    def max_ulp(self) -> float:
        """The largest error of the outputs in units of the last place of float32."""
        return max((row.max_ulp for row in self.outputs), default=0.0)

    def __str__(self) -> str:
        rows = [
            (row.name, row.op, f"{row.max_abs:.2e}", f"{row.max_ulp:.1f}", f"{row.tolerance:.1e}", _verdict(row.ok))
            for row in self.layers + self.outputs
        ]
        head = ("layer", "kind", "max abs", "max ulp", "allowed", "")
        return f"{table(head, rows)}\n{_verdict(self.ok)}: against {self.against}, largest error {self.max_abs:.2e}"


def verify(
    model: Any,
    against: Any = "reference",
    *,
    inputs: Mapping[str, Any] | np.ndarray | None = None,
    seed: int = 0,
    batch: int = 4,
    seq_len: int = 20,
    tolerance: float | None = None,
) -> Report:
    """Run a model and something to trust on the same inputs, and report the largest errors.

    Parameters
    ----------
    model : Model or layer
        What to check.
    against : "reference", "recorded", torch module, Keras model or layer, path of an .npz file or dict of arrays
        What to trust.  Recorded arrays hold the inputs and the outputs by name, and any inner tensor; "recorded"
        are those that the model's own file holds.  Submodules of
        a torch module and layers of a Keras model are compared with the layers that have their names.
    inputs : dict of arrays or array, optional
        Inputs by name; random ones that suit the graph (ids within the table, some steps masked) when absent.
    seed, batch, seq_len : int
        Of the random inputs.
    tolerance : float, optional
        Largest absolute error allowed; by default ``max(ROUNDING, PEER_FACTOR x the error of float32 NumPy)``,
        relative to the largest value; twice that where the other side rounds too.

    Returns
    -------
    Report
        With ``ok``, ``max_abs``, ``max_ulp``, ``layers``, ``outputs``; ``str(report)`` is a table.  An error in ULP
        is counted in steps of float32 at the reference's value; up to the smallest normal number it counts as 0,
        because the engine flushes smaller ones.  NaN equals NaN.

    Raises
    ------
    ShapeError
        Inputs or outputs do not fit the model.
    FormatError
        A recording lacks a tensor or holds one that the model does not know.
    UnsupportedError
        ``against`` is none of the above.
    """
    model = model if hasattr(model, "trace") else as_model(model)
    spec: ModelSpec = model.spec
    alone = isinstance(against, str) and against == "reference"
    if isinstance(against, str) and against == "recorded":
        if not spec.recorded:
            raise UnsupportedError("the model holds no recorded arrays; fastrnn.save(..., recorded=...) stores them")
        against = spec.recorded
    recorded = None if alone else _recording(against)
    if recorded is not None:
        inputs = {t.name: recorded[t.name] for t in spec.inputs if t.name in recorded}
    feeds = random_inputs(spec, seed, batch, seq_len) if inputs is None else _feeds(spec, inputs)

    engine: Arrays = model.trace(feeds)
    exact, allowed = reference_run(spec, feeds, tolerance)
    if alone:
        layers = []
        for node in model.graph.nodes:  # the nodes that run; each is given what the engine gave it
            single = ModelSpec([node], [], [])
            layers.append(_row(node.name, node.op, node.outputs, engine, *reference_run(single, engine, tolerance)))
        outputs = [_row(t.name, "output", [t.name], engine, exact, allowed) for t in spec.outputs]
        return Report("the float64 reference", layers, outputs)

    expected = _live_tensors(spec, against, feeds) if recorded is None else _known(spec, recorded)
    missing = [t.name for t in spec.outputs if t.name not in expected]
    if missing:
        raise ShapeError(
            f"there is nothing to compare the outputs {missing} with: the other side gives only "
            f"{[name for name in expected if name not in feeds]}; load the model with outputs=[...] naming those"
        )
    if tolerance is None:  # both sides round
        allowed = {name: 2 * value for name, value in allowed.items()}
    known = [(node, [name for name in node.outputs if name in expected]) for node in model.graph.nodes]
    layers = [_row(node.name, node.op, tensors, engine, expected, allowed) for node, tensors in known if tensors]
    outputs = [_row(t.name, "output", [t.name], engine, expected, allowed) for t in spec.outputs]
    return Report(_describe(against), layers, outputs)


_SKIPPED = ("mask", "lengths")


def random_inputs(spec: ModelSpec, seed: int = 0, batch: int = 4, seq_len: int = 20) -> Arrays:
    """Inputs that suit a graph: ids within the table, masked steps where something masks, else normal numbers.

    States are given, masks and lengths that the graph can do without are not.

    >>> from fastrnn.spec import Node
    >>> node = Node("embedding", "words", ("ids",), ("y",), weights={"weight": np.zeros((3, 2))})
    >>> graph = ModelSpec([node], [Tensor("ids", (None, None), "int64")], [Tensor("y", None)])
    >>> random_inputs(graph, batch=2, seq_len=5)["ids"].shape
    (2, 5)
    """
    rng = np.random.default_rng(seed)
    skipped = {name for name in optional_inputs(spec) if (consumer(spec, name) or ("", "mask"))[1] in _SKIPPED}
    wanted = [tensor for tensor in spec.inputs if tensor.name not in skipped]
    sizes = input_sizes(spec, batch, seq_len)
    unknown = [tensor.name for tensor in wanted if sizes[tensor.name] is None]
    if unknown:
        raise ShapeError(f"the shapes of inputs {unknown} are not known; pass inputs={{name: array}}")
    return {tensor.name: np.asarray(_random_input(spec, tensor, rng, sizes[tensor.name], seq_len)) for tensor in wanted}


def _random_input(spec: ModelSpec, tensor: Tensor, rng: np.random.Generator, sizes: Any, seq_len: int) -> Any:
    node, role = consumer(spec, tensor.name) or (None, "")
    tail = rng.integers(0, max(sizes[1], 1), sizes[0]) if len(sizes) > 1 else np.zeros(sizes[:1], int)

    if node is not None and node.op == "embedding":
        ids = rng.integers(0, len(node.weights["weight"]), sizes)
        for row, length in enumerate(tail if node.attr("mask_zero") else ()):
            ids[row, len(ids[row]) - length :] = 0
        return ids.astype(tensor.dtype)
    if role == "lengths":
        return rng.integers(0, seq_len + 1, sizes).astype(tensor.dtype)
    if role == "mask" or tensor.dtype == "bool":
        return rng.random(sizes) < 0.8
    if np.issubdtype(np.dtype(tensor.dtype), np.integer):
        return np.asarray(rng.integers(0, 2, sizes)).astype(tensor.dtype)
    x = np.asarray(rng.standard_normal(sizes)).astype(tensor.dtype)
    for row, length in enumerate(tail if node is not None and node.op == "masking" else ()):
        x[row, len(x[row]) - length :] = node.attr("mask_value")  # type: ignore[union-attr]
    return x


# Comparing


def _row(
    name: str, op: str, tensors: Iterable[str], engine: Arrays, expected: Arrays, allowed: dict[str, float]
) -> LayerReport:
    """Compare some tensors of the engine with what is expected; the worst one makes the row."""
    rows = []
    for tensor in filter(None, tensors):
        got, want = engine[tensor], expected[tensor]
        if got.shape != want.shape:
            raise ShapeError(
                f"tensor {tensor!r} of {op} {name!r} has shape {got.shape}, what it is compared with has {want.shape}; "
                "check that both are the same model and were given the same inputs"
            )
        error, ulp = errors(got, want)
        rows.append(LayerReport(name, op, error, ulp, allowed[tensor], error <= allowed[tensor]))
    return max(rows, key=lambda row: (not row.ok, row.max_abs))


def _verdict(ok: bool) -> str:
    return "ok" if ok else "MISMATCH"


# The other side: recordings and live frameworks


def _feeds(spec: ModelSpec, inputs: Any) -> Arrays:
    """Inputs by name in the precision of the engine, so that rounding them is not counted as an error."""
    names = [tensor.name for tensor in spec.inputs]
    if not isinstance(inputs, Mapping):
        inputs = {names[0]: inputs}
    missing = set(names) - optional_inputs(spec) - set(inputs)
    if missing or set(inputs) - set(names):
        raise ShapeError(f"inputs {sorted(inputs)} were given, the model takes {sorted(names)}; pass those")
    feeds = {
        tensor.name: (as_array(inputs[tensor.name]), tensor.dtype) for tensor in spec.inputs if tensor.name in inputs
    }
    return {name: array.astype(dtype) if dtype == "float32" else array for name, (array, dtype) in feeds.items()}


def _recording(against: Any) -> Arrays | None:
    """The arrays of a dict or an .npz file; None for anything else."""
    if isinstance(against, Mapping):
        return {str(name): np.asarray(array) for name, array in against.items()}
    if not isinstance(against, str | os.PathLike):
        return None
    if Path(against).suffix != ".npz":
        raise UnsupportedError(
            f"cannot compare with {os.fspath(against)!r}; pass 'reference', 'recorded', the path of an .npz file that "
            "holds inputs and outputs by name, a dict of arrays, a torch module or a Keras model"
        )
    try:
        with np.load(against, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise FormatError(
            f"{os.fspath(against)}: not an .npz file of plain arrays ({error}); save it with numpy.savez"
        ) from error


def _known(spec: ModelSpec, recorded: Arrays) -> Arrays:
    names = {t.name for t in spec.inputs} | {name for node in spec.nodes for name in node.outputs if name}
    unknown = sorted(set(recorded) - names)
    if unknown:
        raise FormatError(f"the recording holds {unknown}, which the model does not know; it has {sorted(names)}")
    return recorded


def _live_tensors(spec: ModelSpec, live: Any, feeds: Arrays) -> Arrays:
    """The tensors of our graph that a live object of a framework computes, by our names."""
    # Layers of Keras on its torch backend are torch modules too, so Keras goes first.
    for name, kind, run in (("keras", "Layer", _run_keras), ("torch", "nn.Module", _run_torch)):
        framework = sys.modules.get(name)
        if framework is not None and isinstance(live, attrgetter(kind)(framework)):
            return run(spec, live, feeds)
    raise UnsupportedError(
        f"cannot compare with a {type(live).__name__}; pass 'reference', the path of an .npz file, a dict of arrays, "
        "a torch module or a Keras model"
    )


def _run_torch(spec: ModelSpec, module: Any, feeds: Arrays) -> Arrays:
    """Run a torch module in evaluation mode, recording the submodules that bear the names of our layers."""
    import torch

    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    given = [torch.from_numpy(np.array(feeds[t.name])) for t in spec.inputs if t.name in feeds]
    x, *state = (t.to(parameter) if t.is_floating_point() else t for t in given)
    recurrent = isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase)
    arguments = [x, tuple(state) if len(state) > 1 else state[0]] if recurrent and state else [x, *state]

    submodules = dict(module.named_modules())
    training = {submodule: submodule.training for submodule in submodules.values()}
    seen: Arrays = {}

    def record(names: tuple[str, ...]) -> Callable[[Any, Any, Any], None]:
        return lambda _module, _arguments, result: seen.update(_named(names, result))

    hooks = [
        submodules[node.name].register_forward_hook(record(node.outputs))
        for node in spec.nodes
        if node.name in submodules and submodules[node.name] is not module
    ]
    try:
        module.eval()
        with torch.no_grad():
            result = module(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
        for submodule, mode in training.items():
            submodule.training = mode
    names: Iterable[str] = [tensor.name for tensor in spec.outputs]
    if recurrent:
        names = spec.nodes[-1].outputs
    if isinstance(module, torch.nn.RNNCellBase):  # h, or (h, c), where our nodes have y too
        result = [next(iter(_flatten(result))), result]
    return seen | _named(names, result)


def _run_keras(spec: ModelSpec, live: Any, feeds: Arrays) -> Arrays:
    """Run a Keras model or layer, recording the layers that bear the names of ours."""
    import keras

    given = [feeds[t.name] for t in spec.inputs if t.name in feeds]
    result = live(given if len(given) > 1 else given[0], training=False)
    named = _named([tensor.name for tensor in spec.outputs], result)
    outputs_of = {node.name: node.outputs[:1] for node in spec.nodes}  # y; states come in another order
    layers = [layer for layer in getattr(live, "layers", []) if layer.name in outputs_of and _called_once(layer)]
    if layers:
        results = keras.Model(live.inputs, [layer.output for layer in layers])(given, training=False)
        for layer, result in zip(layers, [results] if len(layers) == 1 else results, strict=True):
            named = _named(outputs_of[layer.name], result) | named
    return named


def _called_once(layer: Any) -> bool:
    """Whether a Keras layer has one output in the graph, not several or (inside another layer) none."""
    try:
        return layer.output is not None
    except (AttributeError, ValueError):
        return False


def _named(names: Iterable[str], result: Any) -> Arrays:
    """Name the tensors of a nested result in order, as arrays; an empty name skips one."""
    flat = list(_flatten(result))
    return {
        name: np.asarray(t.detach().cpu().double() if hasattr(t, "detach") else t)
        for name, t in zip(names, flat, strict=False)
        if name
    }


def _flatten(result: Any) -> Iterable[Any]:
    if isinstance(result, Mapping):
        result = tuple(result.values())
    if isinstance(result, tuple | list):
        for item in result:
            yield from _flatten(item)
    else:
        yield result


def _describe(against: Any) -> str:
    if isinstance(against, Mapping):
        return "recorded arrays"
    return os.fspath(against) if isinstance(against, str | os.PathLike) else f"a live {type(against).__name__}"
