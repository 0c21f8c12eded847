"""From a model to one that also takes the lengths of its sequences: spec in, spec out.

A batch of sequences of different lengths is padded to the longest.  In the written graph each row has the result that
its sequence alone has in the given one: recurrent nodes get the lengths, sums and maxima over time end with the
sequence, "the last step" is its last, and convolutions see the padding that they would see behind it.
:mod:`fastrnn.graph.ragged_rules` says how, for each kind of node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import UnsupportedError
from ..spec import GATES, OPS, ModelSpec, Node, Tensor
from .follow_time import BATCH, STEPS, sizes_of
from .optimize import drop_dead
from .ragged import Given, Made, Need, Ragged, Steps
from .ragged_rules import RAGGED, step_by_step
from .time_axis import RULES, Time, UnfollowedError

POSITIONS = ("range", "fill", "expand", "tile", "slice")
"""Kinds of nodes that may make as many steps as a sequence has, each of them the same for all sequences."""

SIZES = ("add", "sub", "mul", "equal", "not_equal")
"""Functions of whole numbers that tell the size for a short sequence from that for a long one."""
COUNTS = "calculates with the length of the sequence"


class Place(NamedTuple):
    """The axes of the batch and of time in a tensor, and how many axes it has."""

    batch: int
    time: int
    rank: int


@dataclass(frozen=True)
class WithLengths:
    """A spec that takes its inputs and then ``lengths``, (batch,) int64.

    ``places`` says for each input that has sequences where they are; ``needs``, what lengths must be at least.
    """

    spec: ModelSpec
    lengths: str
    places: dict[str, Place]
    needs: tuple[Need, ...]


def with_lengths(spec: ModelSpec) -> WithLengths:
    """A model that respects the lengths of its sequences.

    Raises
    ------
    UnsupportedError
        Nodes cannot respect them; all are named, with the reason.  Or it is not known which axis is time.
    """
    followed = _followed(spec)
    if not followed.axes:
        names = ", ".join(repr(t.name) for t in spec.inputs)
        raise UnsupportedError(
            "lengths= needs an axis of time, and nothing in the model tells which: no recurrent layer, convolution or"
            f" pool runs over an axis of the inputs ({names}) that may have any length"
        )
    if followed.problems:
        lines = "\n  ".join([*followed.problems, *_own_lengths(spec)])
        raise UnsupportedError(
            f"{len(followed.problems)} layer(s) cannot respect lengths; call the model with sequences of one length,"
            f" without lengths=:\n  {lines}"
        )
    return followed.written()


def _own_lengths(spec: ModelSpec) -> list[str]:
    """What to do with models that take lengths as an input."""
    given = [node for node in spec.nodes if node.op in GATES and len(node.inputs) == len(OPS[node.op].inputs)]
    found = [node.name for node in given if node.inputs[-1]]
    return [f"{', '.join(found)}: lengths come from an input of the model; give them there"] if found else []


def _followed(spec: ModelSpec) -> Follower:
    """Time followed along the axes of the inputs over which most recurrent layers run, and least goes wrong."""
    layers = any(node.op in GATES for node in spec.all_nodes())
    best = Follower(spec, {})
    before = None
    while before != best.axes:
        before = best.axes
        for tensor in spec.inputs:
            for axis, size in enumerate(sizes_of(spec, tensor)):
                if tensor.name not in before and size != 1:
                    found = Follower(spec, before | {tensor.name: axis})
                    if found.rank(layers) < best.rank(layers):
                        best = found
    return best if best.axes else Follower(spec, _free_axes(spec))


def _free_axes(spec: ModelSpec) -> dict[str, int]:
    """In a model that has nothing that runs over time: the only free axis beside the batch."""
    axes = {}
    for tensor in spec.inputs:
        free = [k for k, n in enumerate(sizes_of(spec, tensor)) if n is None]
        if free[:1] == [0] and len(free) == 2:
            axes[tensor.name] = free[1]
    return axes


class Follower(Ragged):
    """Time in a graph from given axes of its inputs on, and the graph that respects lengths."""

    def __init__(self, spec: ModelSpec, axes: Mapping[str, int]) -> None:
        super().__init__(_freed(spec, axes), axes)
        self.problems: dict[str, None] = {}
        self._original = spec
        self._unknown: set[str] = set()
        self._counts: set[str] = set()  # numbers that depend on the length: (batch,) in the new graph
        self._ends: list[Node] = []
        for tensor in spec.inputs:
            self._enter(tensor)
        for node in self.spec.nodes:
            self._follow(node)
        for tensor in spec.outputs:
            self._finish(tensor.name)

    def rank(self, layers: bool) -> tuple[int, ...]:
        """Less is better: something runs over time, along axes of any length, much of it, and little cannot."""
        found = len(self.layers if layers else self.windows)
        fixed = sum(
            sizes_of(self._original, t)[self.axes[t.name]] is not None for t in self.spec.inputs if t.name in self.axes
        )
        return not found, fixed, -found, len(self.problems)

    def _enter(self, tensor: Tensor) -> None:
        """Time and the batch in an input: the first axis that is not time, if it is not that of features."""
        shape = self.shape(tensor.name) if self.facts.shape(tensor.name) else ()
        axis = self.axes.get(tensor.name)
        if axis is not None:
            self.times[tensor.name] = (Steps(axis, shape[axis], lengths=self.lengths),)
            rows = 1 if axis == 0 else 0
            is_one = len(shape) == 2 and tensor.dtype.startswith("float") and self.is_fixed(shape[rows])
            if len(shape) < 2 or is_one:
                self._problem(f"input {tensor.name!r} has no axis for several sequences")
            else:
                self.batch[tensor.name] = Time(rows, shape[rows])
        elif BATCH in shape:
            self.batch[tensor.name] = Time(shape.index(BATCH), BATCH)

    def _problem(self, text: str) -> None:
        self.problems[text] = None

    def _follow(self, node: Node) -> None:
        read = [*node.inputs, *_read_inside(node)]
        if node.op in ("shape", "size"):
            self.put(node)
            return
        if self._unknown.intersection(read):
            self._unknown.update(filter(None, node.outputs))
            return
        given = [self.times.get(name, ()) for name in node.inputs]
        try:
            self._follow_batch(node)
            node = self._with_counts(node, given)
            if not any(self.times.get(name) for name in read):
                made = self._without_steps(node)
                self.put(node)
            else:
                rule = RAGGED.get(node.op)
                found = rule(self, node, given) if rule is not None else None
                if found is None:
                    found = step_by_step(self, node, given)
                    self.put(node)
                made = found
            self._check(node, made)
        except UnfollowedError as reason:
            self._problem(f"{node.op} {node.name!r} {reason}")
            self._unknown.update(filter(None, node.outputs))
            return
        self.times |= {name: steps for name, steps in zip(node.outputs, made) if name and steps}

    def _with_counts(self, node: Node, given: Given) -> Node:
        """A node that calculates with the number of steps: each sequence has its own."""
        lengths = [name for name in node.inputs if name and self.depends(name)]
        if lengths and not self._is_size(node, given):
            found = {name: self.count(name) for name in lengths}
            if None in found.values():
                raise UnfollowedError(COUNTS)
            node = replace(node, inputs=tuple(found.get(name) or name for name in node.inputs))
        counts = {name for name in node.inputs if name in self._counts or name in self.made_lengths}
        if any(name in self._counts or self.depends(name) for name in _read_inside(node)):
            raise UnfollowedError(COUNTS)
        if not counts:
            return node
        result = node.outputs[0]
        if self.shape(result) in ((), (1,)):
            if node.op not in ("cast", "unary", "activation", "binary"):
                raise UnfollowedError(COUNTS)
            self._counts.add(result)
            return node
        if node.op not in ("binary", "where") or result not in self.batch:
            raise UnfollowedError(COUNTS)
        rank, batch = len(self.shape(result)), self.batch_axis(result)
        aligned = {name: self.aligned_lengths(name, rank, batch) for name in counts}
        return replace(node, inputs=tuple(aligned.get(name, name) for name in node.inputs))

    def _is_size(self, node: Node, given: Given) -> bool:
        """Whether a node that reads the number of steps makes a size or a place of it."""
        if node.op == "binary" and self.value(node.outputs[0]) is not None:
            return node.attr("function") in SIZES or (node.attr("function") == "div" and self.divides(*node.inputs))
        if node.op in ("slice", "range") and not given[0]:
            return self._from_the_first(node)
        places = ("slice", "gather", "range", "reshape", "expand", "tile", "fill", "pad")
        return self.value(node.outputs[0]) is not None or (
            node.op in places and (node.op != "gather" or bool(given[0]))
        )

    def _without_steps(self, node: Node) -> Made:
        """A tensor that is as long as a sequence, and the same for all of them."""
        made: Made = []
        for name in node.outputs:
            shape, longer = self.facts.shape(name) or (), self.longer.shape(name) or ()
            axes = [k for k, (n, m) in enumerate(zip(shape, longer)) if n != m]
            made.append(())
            if axes:
                if node.op not in POSITIONS or [shape[k] for k in axes] != [STEPS] or not self._from_the_first(node):
                    raise UnfollowedError("makes a tensor as long as the sequence, of which it is not known how")
                made[-1] = (Steps(axes[0], STEPS, lengths=self.lengths),)
        return made

    def _from_the_first(self, node: Node) -> bool:
        """Whether the steps of a shorter sequence are the first ones of a longer one."""
        fixed = [node.inputs[k] for k in {"range": (0, 2), "slice": (1, 4)}.get(node.op, ()) if k < len(node.inputs)]
        return not any(self.value(name) is None or self.depends(name) for name in fixed if name)

    def _follow_batch(self, node: Node) -> None:
        """The batch goes its way as time does; recurrent nodes say where it is in what they give."""
        given = [self.batch.get(name) for name in node.inputs]
        if not any(given):
            shape = self.facts.shape(node.outputs[0]) or ()
            if node.op in ("fill", "expand") and shape.count(BATCH) == 1:
                self.batch[node.outputs[0]] = Time(shape.index(BATCH), BATCH)
            return
        made: object = None
        try:
            if node.op in GATES and given[0] is not None and self._is_along_batch(node, given[0]):
                y = given[0].axis if node.attr("return_sequences") else 0
                made = [replace(given[0], axis=y), *[replace(given[0], axis=1)] * 2]
            elif node.op in RULES:
                made = RULES[node.op](self, node, given)
        except UnfollowedError:
            if any(time is not None and time.size == BATCH for time in given):
                raise UnfollowedError("joins the sequences of a batch") from None
        for name, time in zip(node.outputs, made if isinstance(made, list) else [made]):
            if name and isinstance(time, Time):
                self.batch[name] = time

    def _is_along_batch(self, node: Node, batch: Time) -> bool:
        """Whether a recurrent node runs over an axis of three, and the batch is its batch."""
        rank = len(self.shape(node.inputs[0]))
        return rank == 3 and not node.attr("unbatched") and batch.axis == (0 if node.attr("batch_first") else 1)

    def _check(self, node: Node, made: Made) -> None:
        """Sizes that depend on the steps are along the axes that were followed."""
        for name, times in zip(node.outputs, made):
            shape, longer = self.facts.shape(name), self.longer.shape(name)
            if name and times and shape is None:
                raise UnfollowedError(f"gives {name!r}, whose shape is not known")
            followed = {steps.axis for steps in times}
            if any(n != m and k not in followed for k, (n, m) in enumerate(zip(shape or (), longer or ()))):
                raise UnfollowedError("makes a tensor as long as the sequence, which is not followed")

    def _finish(self, name: str) -> None:
        """Outputs are 0 beyond the lengths."""
        writer = next((node for node in self.spec.nodes if name in node.outputs), None)
        if name in self._unknown or writer is None:
            return
        try:
            if name in self._counts:
                raise UnfollowedError(COUNTS)
            result = name
            for steps in self.times.get(name, ()):
                result = self.filled(result, steps, 0, like=name)
        except UnfollowedError as reason:
            self._problem(f"{writer.op} {writer.name!r}, whose output is one of the model's, {reason}")
            return
        if result != name:
            self._ends.append(Node("identity", self.fresh(f"{name}/output"), (result,), (name,)))

    def written(self) -> WithLengths:
        """The graph, once there are no problems."""
        within = {node.outputs[0]: self.fresh(f"{node.outputs[0]}/padded") for node in self._ends}

        def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(within.get(name, name) for name in names)

        nodes = [replace(node, inputs=renamed(node.inputs), outputs=renamed(node.outputs)) for node in self.nodes]
        inputs = [*self._original.inputs, Tensor(self.lengths, (None,), "int64")]
        spec = replace(self.spec, nodes=[*nodes, *self._ends], inputs=inputs, constants=self.constants, recorded={})
        drop_dead(spec, set())
        places = {n: Place(self.batch[n].axis, axis, len(self.shape(n))) for n, axis in self.axes.items()}
        return WithLengths(spec, self.lengths, places, tuple(self.needs))


def _read_inside(node: Node) -> list[str]:
    """What the nodes in the bodies of a node read."""
    return [name for body in node.graphs.values() for inner in body.all_nodes() for name in inner.inputs]


def _freed(spec: ModelSpec, axes: Mapping[str, int]) -> ModelSpec:
    """A spec whose axes of time may have any length."""
    inputs = []
    for tensor in spec.inputs:
        axis, shape = axes.get(tensor.name), tensor.shape
        if shape is not None and axis is not None:
            tensor = replace(tensor, shape=(*shape[:axis], None, *shape[axis + 1 :]))
        inputs.append(tensor)
    return replace(spec, inputs=inputs)
