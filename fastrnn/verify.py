"""Compare a model with the float64 reference, with the framework that it came from, or with recorded outputs.

Layers are compared one at a time: each gets the *engine's* own input to that layer in the reference too, so an error
shows at the layer that makes it and does not accumulate.  The outputs of the whole model are compared end to end.
Live frameworks and recordings run on their own from the inputs, so there errors do accumulate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arguments import checked
from .arrays import as_array, as_float32
from .errors import ShapeError, UnsupportedError
from .float_mode import in_default_mode
from .inspect import check_size, consumer, input_sizes, optional_inputs, table
from .lazy_array import from_file
from .model import as_model
from .spec import OPS, ModelSpec, Tensor, reads, with_arrays
from .tolerance import errors, reference_run
from .verify_against import Other, other_side

Arrays = dict[str, np.ndarray]
REFERENCE = "the float64 reference"


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
    """What :func:`verify` found: ``layers`` one at a time, ``outputs`` end to end.

    ``inputs`` says in words what both sides ran on; ``not_compared`` names the tensors that one of them lacks.
    """

    against: str
    layers: list[LayerReport]
    outputs: list[LayerReport]
    inputs: str = ""
    not_compared: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every layer and every output is within its tolerance."""
        return all(row.ok for row in self.layers + self.outputs)

    @property
    def max_abs(self) -> float:
        """The largest absolute error of the outputs, or of the layers where no output was compared."""
        return max((row.max_abs for row in self.outputs or self.layers), default=0.0)

    @property
    def max_ulp(self) -> float:
        """The same in units of the last place of float32."""
        return max((row.max_ulp for row in self.outputs or self.layers), default=0.0)

    def __str__(self) -> str:
        rows = [
            (row.name, row.op, f"{row.max_abs:.2e}", f"{row.max_ulp:.1f}", f"{row.tolerance:.1e}", _verdict(row.ok))
            for row in self.layers + self.outputs
        ]
        head = ("layer", "kind", "max abs", "max ulp", "allowed", "")
        counts = f"{len(self.layers)} layer(s) and {len(self.outputs)} output(s) compared, on {self.inputs}"
        lines = [f"{_verdict(self.ok)}: against {self.against}, largest error {self.max_abs:.2e}", counts]
        if self.not_compared:
            lines.append(f"not compared, as one side lacks them: {', '.join(self.not_compared)}")
        if self.against == REFERENCE:
            lines.append(
                "This checks the arithmetic of the graph as it was read. Whether the file says what its framework"
                " computes shows a comparison with the live module or with recorded outputs."
            )
        return "\n".join([table(head, rows), *lines])


@checked(batch=1, seq_len=1, seed=0)
@in_default_mode
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
    against : "reference", "recorded", torch module, Keras model or layer, Model or layer, path, or dict of arrays
        What to trust.  The reference checks the arithmetic of the graph that was loaded, all others also what it was
        loaded from.  Recorded arrays hold inputs and outputs by name, and any inner tensor; "recorded" are those that
        the model's own file holds.  A path is that of an .npz file of such arrays, or of another model, whose inputs
        and outputs belong to this one's by name, or else by their order.  Submodules of a torch module, also those
        that take packed sequences, and layers of a Keras model are compared with the layers that have their names.
    inputs : dict of arrays or array, optional
        Inputs by name, or those that a recording lacks; random ones that suit the graph (ids within the table, some
        steps masked, lengths from the longest to the shortest and at least 1) when absent.
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
        Inputs or outputs do not fit the model, or no tensor can be compared.
    FormatError
        The file of a recording or of another model cannot be read.
    UnsupportedError
        ``against`` is none of the above.
    """
    model = model if hasattr(model, "spec") else as_model(model)
    spec: ModelSpec = with_arrays(model.spec, from_file)  # a file that has changed is nothing to compare with
    if isinstance(against, str) and against == "recorded":
        if not spec.recorded:
            raise UnsupportedError("the model holds no recorded arrays; fastrnn.save(..., recorded=...) stores them")
        against = spec.recorded
    other = None if isinstance(against, str) and against == "reference" else other_side(against)
    feeds, described = _inputs(spec, other, inputs, (seed, batch, seq_len))

    engine: Arrays = model.trace(feeds)
    exact, allowed = reference_run(spec, feeds, tolerance)
    if other is None:
        layers = []
        for node in model.graph.nodes:  # the nodes that run; each is given what the engine gave it
            single = ModelSpec([node], [], [])
            read = {name: engine[name] for name in reads([node]) if name in engine}
            layers.append(_row(node.name, node.op, node.outputs, engine, *reference_run(single, read, tolerance)))
        outputs = [_row(t.name, "output", [t.name], engine, exact, allowed) for t in spec.outputs]
        return Report(REFERENCE, layers, outputs, described)

    expected = other.tensors(model, feeds, engine)
    if tolerance is None:  # both sides round
        allowed = {name: 2 * value for name, value in allowed.items()}
    known = [(node, [name for name in node.outputs if name in expected]) for node in model.graph.nodes]
    layers = [_row(node.name, node.op, tensors, engine, expected, allowed) for node, tensors in known if tensors]
    outputs = [_row(t.name, "output", [t.name], engine, expected, allowed) for t in spec.outputs if t.name in expected]
    compared = {name for _, tensors in known for name in tensors} | {row.name for row in outputs}
    if not compared:
        raise ShapeError(
            f"there is nothing to compare: the model gives {[t.name for t in spec.outputs]}, the other side has "
            f"{sorted(expected)}; name its arrays as the model does, or load the model with outputs=[...]"
        )
    lacking = [t.name for t in spec.outputs if t.name not in expected] + sorted(set(expected) - compared)
    return Report(other.label, layers, outputs, described, lacking)


def _inputs(spec: ModelSpec, other: Other | None, given: Any, random: tuple[int, int, int]) -> tuple[Arrays, str]:
    """What both sides run on, and in words where it comes from."""
    held = other.inputs(spec) if other else None
    if given is None and held is None:
        lacking = other.lacks(spec) if other else ()
        feeds = {name: array for name, array in random_inputs(spec, *random).items() if name not in lacking}
        return feeds, f"random inputs {_shapes(feeds)}, seed {random[0]}"
    held = held or {}
    named = {} if given is None else given if isinstance(given, Mapping) else {spec.inputs[0].name: given}
    if twice := sorted(set(named) & set(held)):
        raise ShapeError(f"the recording holds the inputs {twice}; leave them out of inputs=")
    feeds = _feeds(spec, {**held, **named})
    return feeds, f"{'recorded' if held else 'given'} inputs {_shapes(feeds)}"


def _shapes(arrays: Arrays) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())


_SKIPPED = ("mask", "lengths")


def random_inputs(spec: ModelSpec, seed: int = 0, batch: int = 4, seq_len: int = 20, *, padded: bool = True) -> Arrays:
    """Inputs that suit a graph: ids within the table, masked steps where something masks, else normal numbers.

    States are given, masks and lengths that the graph can do without are not.  Not ``padded``: all steps are real.

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
    for tensor in wanted:
        check_size(tensor, sizes[tensor.name] or ())
    return {t.name: np.asarray(_random_input(spec, t, rng, sizes[t.name], seq_len, padded)) for t in wanted}


def _lengths(spec: ModelSpec) -> set[str]:
    """The tensors that recurrent nodes read as their lengths, as they are or cast."""
    nodes = list(spec.all_nodes())
    found = {
        name for node in nodes for declared, name in zip(OPS[node.op].inputs, node.inputs) if declared == "lengths?"
    }
    for node in reversed(nodes):
        if node.op == "cast" and node.outputs[0] in found:
            found.add(node.inputs[0])
    return found


def _random_input(
    spec: ModelSpec, tensor: Tensor, rng: np.random.Generator, sizes: Any, seq_len: int, padded: bool
) -> Any:
    node, role = consumer(spec, tensor.name) or (None, "")
    tail = rng.integers(0, max(sizes[1], 1), sizes[0]) if padded and len(sizes) > 1 else np.zeros(sizes[:1], int)

    if node is not None and node.op == "embedding":
        masks, rows = node.attr("mask_zero"), len(node.weights["weight"])
        ids = rng.integers(int(masks and not padded and rows > 1), rows, sizes)
        for row, length in enumerate(tail if masks else ()):
            ids[row, len(ids[row]) - length :] = 0
        return ids.astype(tensor.dtype)
    if tensor.name in _lengths(spec):  # as torch packs sequences: none is empty, the longest is first and fills its row
        least = min(1, seq_len) if padded else seq_len
        lengths = np.sort(rng.integers(least, seq_len + 1, sizes), axis=None)[::-1].reshape(sizes)
        lengths[:1] = seq_len
        return lengths.astype(tensor.dtype)
    if role == "mask" or tensor.dtype == "bool":
        return rng.random(sizes) < (0.8 if padded else 1.0)
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


def _feeds(spec: ModelSpec, inputs: Mapping[str, Any]) -> Arrays:
    """Inputs by name in the precision of the engine, so that rounding them is not counted as an error."""
    names = [tensor.name for tensor in spec.inputs]
    missing = set(names) - optional_inputs(spec) - set(inputs)
    if missing or set(inputs) - set(names):
        raise ShapeError(f"inputs {sorted(inputs)} were given, the model takes {sorted(names)}; pass those")
    given = [tensor for tensor in spec.inputs if tensor.name in inputs]
    arrays = {tensor.name: (inputs[tensor.name], tensor.dtype == "float32") for tensor in given}
    return {name: as_float32(value, name) if floats else as_array(value) for name, (value, floats) in arrays.items()}
