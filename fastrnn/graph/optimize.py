"""From the graph as a file has it to the graph that runs: the same results from fewer nodes.

Constants are folded, branches that are known are taken, nodes that do nothing or that nobody needs are dropped, equal
nodes become one, neighbours are fused (:mod:`fastrnn.graph.fuse`) and cells that a framework has taken apart become
recurrent nodes again (:mod:`fastrnn.graph.recognize`).  Specs in, specs out: nothing here knows files or the engine.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Set
from typing import Any

import numpy as np

from .. import operators
from ..errors import FastrnnError
from ..lazy_array import in_memory
from ..spec import OPS, Graph, ModelSpec, Node
from .dataflow import Flow, copied
from .fuse import RULES as FUSE
from .recognize import RULES as RECOGNIZE
from .shape_rules import product

ROUNDS = 40  # one is enough for most models; a bound for hostile ones
FOLDED_BYTES = 1 << 26  # constants may grow by that and by some times the size of the model
FOLDED_TIMES = 8


def optimize(
    spec: ModelSpec, keep: Iterable[str] = (), shapes: Mapping[str, tuple[int | None, ...]] | None = None
) -> ModelSpec:
    """A spec with the same inputs, outputs and results that runs faster.

    Results are equal up to the rounding of weights that were joined.  Names of inputs, of outputs and of the tensors
    in ``keep`` remain; an output may have become a constant.  The given spec is not changed; arrays are shared.

    Parameters
    ----------
    spec : ModelSpec
    keep : names of tensors, optional
        What must still be there beside the outputs.
    shapes : dict, optional
        Shapes of inputs where more is known than the spec says; the result is for them alone.  Conditions on shapes,
        as TorchScript writes them, are then constants.
    """
    keep = set(keep)
    spec = copied(spec)
    for graph in (spec, *(body for node in spec.all_nodes() for body in node.graphs.values())):
        graph.constants = {name: in_memory(array) for name, array in graph.constants.items()}  # a run reads them
    room = FOLDED_BYTES + FOLDED_TIMES * sum(array.nbytes for _, array in spec.all_constants())
    for _ in range(ROUNDS):
        drop_dead(spec, keep)
        flow = Flow(spec, keep, shapes)
        room = _sweep(flow, spec, room, {})
        flow.finish()
        if not flow.changed:
            break
    drop_dead(spec, keep)
    spec.validate()
    return spec


def _sweep(flow: Flow, graph: Graph, room: int, known: MutableMapping[Any, tuple[str, ...]]) -> int:
    """Try all rules on the nodes of a graph and of its bodies, in running order; returns the room left to fold."""
    for name, array in graph.constants.items():
        flow.facts.learn(name, array.shape, str(array.dtype), array)
    for node in list(graph.nodes):
        if not flow.alive(node):
            continue
        flow.facts.prepare_bodies(node)
        for body in node.graphs.values():
            room = _sweep(flow, body, room, ChainMap({}, known))
        flow.facts.add(node)
        if node.name in flow.facts.misfits:
            continue
        room -= fold(flow, node, room)
        op = node.op
        rules: list[Callable[[Flow, Node], None]] = [
            inline_if,
            drop_identity,
            *RECOGNIZE.get(op, ()),
            *FUSE.get(op, ()),
        ]
        for rule in rules:
            if flow.alive(node) and node.op == op:
                rule(flow, node)
        if flow.alive(node):
            merge_equal(flow, node, known)
    return room


def fold(flow: Flow, node: Node, room: int) -> int:
    """Run an operator whose inputs are constants, or whose result is known; returns the bytes that it takes.

    Layers and activations are left: only the engine gives their bits.  So are ONNX's other operators: how much
    memory they take is not known before they run.
    """
    if node.op not in operators.FUNCTIONS or node.op == "operator":
        return 0
    known = flow.facts.values.get(node.outputs[0])
    arrays = [flow.constant(name) if name else None for name in node.inputs]
    if known is not None and None not in known.ravel().tolist():
        results: tuple[np.ndarray, ...] = (known.astype(flow.facts.dtypes[node.outputs[0]]),)
    elif not node.inputs or any(name and array is None for name, array in zip(node.inputs, arrays)):
        return 0
    else:
        shapes = [flow.facts.shape(name) for name in node.outputs if name]
        sizes = [None if shape is None else product(shape) for shape in shapes]
        if any(n is None or 8 * n > room for n in sizes):
            return 0
        try:
            results = operators.evaluate(node, arrays)
        except FastrnnError:
            return 0  # it may stand where it never runs; if not, the run says what is wrong
    for name, array in zip(node.outputs, results):
        if name:
            flow.make_constant(name, np.asarray(array), flow.home(node))
    flow.remove(node)
    return sum(np.asarray(array).nbytes for array in results)


def inline_if(flow: Flow, node: Node) -> None:
    """A branch that is always taken stands in place of its ``if``."""
    condition = flow.constant(node.inputs[0]) if node.op == "if" else None
    if condition is not None:
        flow.inline(node, node.graphs["then" if np.all(condition) else "else"])


def drop_identity(flow: Flow, node: Node) -> None:
    """What does nothing goes; the name of a wanted result goes to the node that makes it."""
    source = passed_on(flow, node) if len(node.outputs) == 1 else None
    if source is None:
        return
    target = node.outputs[0]
    if target not in flow.wanted:
        flow.substitute(target, source)
        flow.remove(node)
        return
    maker = flow.writer(source)
    if maker is not None and source not in flow.wanted and flow.home(maker) is flow.home(node):
        flow.remove(node)
        flow.substitute(source, target)
        flow.change(maker, outputs=tuple(target if name == source else name for name in maker.outputs))


def passed_on(flow: Flow, node: Node) -> str | None:
    """The input that the only output of a node is equal to."""
    if node.op == "binary":
        neutral = {"mul": (0, 1), "div": (1,)}.get(node.attr("function"), ())
        others = [node.inputs[1 - k] for k in neutral if flow.scalar(node.inputs[k]) == 1]
        return next((name for name in others if flow.facts.is_float(name)), None)
    test = NOTHING.get(node.op)
    return node.inputs[0] if test is not None and test(flow, node) else None


def _whole_slice(flow: Flow, node: Node) -> bool:
    starts, ends, _, steps = ([flow.constant(name) for name in node.inputs[1:]] + [None, None])[:4]
    if starts is None or ends is None or (len(node.inputs) > 4 and node.inputs[4] and steps is None):
        return False
    forward = steps is None or bool((steps == 1).all())
    return forward and not starts.any() and bool((ends >= 2**31 - 1).all())


def _same_dtype(flow: Flow, node: Node) -> bool:
    given = flow.facts.dtypes.get(node.inputs[0], "")
    return given == node.attr("dtype") or (given.startswith("float") and node.attr("dtype").startswith("float"))


def _same_order(flow: Flow, node: Node) -> bool:
    """A transpose that moves only axes of one element."""
    perm, shape = node.attr("perm"), flow.facts.shape(node.inputs[0])
    if perm is None or shape is None or [shape[k] for k in perm] != list(shape):
        return perm is not None and list(perm) == sorted(perm)
    moved = [k for k in perm if shape[k] != 1]
    return moved == sorted(moved)


def _no_padding(flow: Flow, node: Node) -> bool:
    pads = flow.constant(node.inputs[1])
    return pads is not None and not pads.any()


def _same_shape(flow: Flow, node: Node) -> bool:
    before, after = flow.facts.shape(node.inputs[0]), flow.facts.shape(node.outputs[0])
    return before is not None and before == after and None not in before


NOTHING: dict[str, Callable[[Flow, Node], bool]] = {
    "identity": lambda flow, node: True,
    "activation": lambda flow, node: node.attr("activation") in ("linear", ["linear"], ("linear",)),
    "cast": _same_dtype,
    "concat": lambda flow, node: len(node.inputs) == 1,
    "split": lambda flow, node: True,  # into one part
    "squeeze": lambda flow, node: node.attr("axes") is not None and len(node.attr("axes")) == 0,
    "unsqueeze": lambda flow, node: len(node.attr("axes")) == 0,
    "transpose": _same_order,
    "pad": _no_padding,
    "slice": _whole_slice,
    "reshape": _same_shape,
    "expand": _same_shape,
}
"""Whether the only output of a node is its first input, for each kind of node that may do nothing."""


def merge_equal(flow: Flow, node: Node, known: MutableMapping[Any, tuple[str, ...]]) -> None:
    """Let the first of equal operators serve the readers of the others; ``known`` are the outputs of those before."""
    if node.weights or node.graphs or node.op == "operator" or flow.wanted.intersection(node.outputs):
        return
    attrs = {**OPS[node.op].attrs, **node.attrs}
    key = node.op, tuple(_meaning(flow, name) for name in node.inputs), repr(sorted(attrs.items())), len(node.outputs)
    first = known.setdefault(key, node.outputs)
    if first is node.outputs:
        return
    if any(name and flow.writer(name) is None for name in first):
        known[key] = node.outputs  # another rule has had the first one
        return
    for old, new in zip(node.outputs, first):
        flow.substitute(old, new)
    flow.remove(node)


def _meaning(flow: Flow, name: str) -> Any:
    """What two inputs have in common that are the same: a name, or the value of a small constant."""
    array = flow.constant(name)
    return name if array is None or array.size > 64 else (str(array.dtype), array.shape, array.tobytes())


def drop_dead(graph: Graph, keep: Set[str]) -> set[str]:
    """Drop the nodes and constants that no output and none of the tensors in ``keep`` depends on.

    Returns all that the graph reads, tensors around it included.
    """
    needed = {*keep, *(t.name for t in graph.outputs)}
    alive: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.intersection(node.outputs):
            continue
        alive.append(node)
        if node.op == "if":
            _drop_unread_outputs(node, needed)
        needed.update(node.inputs)
        for body in node.graphs.values():
            needed |= drop_dead(body, keep)
    graph.nodes[:] = reversed(alive)
    for name in [name for name in graph.constants if name not in needed]:
        del graph.constants[name]
    return needed


def _drop_unread_outputs(node: Node, needed: set[str]) -> None:
    read = [k for k, name in enumerate(node.outputs) if name in needed]
    node.outputs = tuple(node.outputs[k] for k in read)
    for body in node.graphs.values():
        body.outputs[:] = [body.outputs[k] for k in read]
