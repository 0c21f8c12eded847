"""Time followed through a graph, from its inputs on, while the graph that runs step by step is written.

The rules of :mod:`fastrnn.graph.time_axis` say where time goes, :mod:`fastrnn.graph.histories` what is carried.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .. import operators
from ..errors import FastrnnError
from ..spec import GATES, ModelSpec, Node, Tensor
from .facts import Facts
from .histories import CARRIES, settle
from .time_axis import RULES, Kind, Of, Time, UnfollowedError, trace
from .writer import Writer

BATCH, OTHER, STEPS = 10_007, 10_037, 1 << 20
"""Sizes that free axes have while time is followed: the first one that is not time is the batch.  Some triple, to see
what depends on them."""


@dataclass(frozen=True)
class StreamState:
    """A tensor that a call takes as ``input`` and gives as ``output`` for the next call.

    ``shape`` is without the batch axis.  It starts as zeros; an axis that is None there has the length ``first`` then,
    and may have another one after each call.  ``batch_axis`` is where the batch stands in the tensor, -1 where that is
    not known: ``shape`` is all of it then, for a batch of 1.
    """

    input: str
    output: str
    shape: tuple[int | None, ...]
    batch_axis: int
    dtype: str = "float32"
    first: int = 0


def followed_time(spec: ModelSpec, own: Collection[str]) -> Follower:
    """Time followed along the axes of the inputs with which most recurrent layers run over it and least goes wrong."""
    axes: dict[str, int] = {}
    best = Follower(spec, axes, own)
    for tensor in spec.inputs:
        if tensor.name in own:
            continue
        for axis in range(len(sizes_of(spec, tensor))):
            found = Follower(spec, axes | {tensor.name: axis}, own)
            if found.rank() < best.rank():
                best = found
        axes = best.axes
    return best


def sizes_of(spec: ModelSpec, tensor: Tensor) -> tuple[int | None, ...]:
    """The declared shape, or that which the first reader needs."""
    if tensor.shape is not None:
        return tensor.shape
    for node in spec.nodes:
        if tensor.name in node.inputs:
            weight = node.weights.get("weight", node.weights.get("weight_ih_l0"))
            if node.op == "embedding":
                return None, None
            return None, None, None if weight is None else weight.shape[1]
    return ()


class Known(Facts):
    """Facts on sizes that are all known: whole numbers are followed through arithmetic too."""

    def _value_of(self, node: Node) -> np.ndarray | None:
        value = super()._value_of(node)
        if value is not None or node.op not in ("binary", "reduce", "where"):
            return value
        given = [self.values.get(name) for name in node.inputs]
        if any(a is None or None in a.ravel().tolist() or not self._is_whole(n) for a, n in zip(given, node.inputs)):
            return None
        try:
            return operators.evaluate(node, [np.asarray(a, np.int64) for a in given])[0].astype(object)
        except FastrnnError:
            return None

    def _is_whole(self, name: str) -> bool:
        return self.dtypes.get(name, "").startswith(("int", "bool"))


def sized_facts(spec: ModelSpec, axes: Mapping[str, int], steps: int, times: int) -> Known:
    """What is known before the first node, with ``steps`` along the free ones of these axes of the inputs, and with
    ``times`` the usual size along the other free ones."""
    facts = Known()
    facts.enter(spec)
    for tensor in spec.inputs:
        sizes = list(sizes_of(spec, tensor))
        axis = axes.get(tensor.name)
        rest = iter([BATCH * times, *[OTHER * times] * len(sizes)])
        for k, n in enumerate(sizes):
            if n is None:
                sizes[k] = steps if k == axis else next(rest)
        facts.learn(tensor.name, tuple(sizes), tensor.dtype)
    return facts


class Follower(Writer):
    """Time in a graph from given axes of its inputs on, and the graph that carries what its steps need."""

    def __init__(self, spec: ModelSpec, axes: Mapping[str, int], own: Collection[str]) -> None:
        super().__init__(spec)
        self.spec, self.axes, self.own = spec, dict(axes), set(own)
        self.times: dict[str, Of] = dict.fromkeys(own, Kind.STATE)
        self.problems: dict[str, None] = {}
        self.states: list[StreamState] = []
        self.reached: set[str] = set()
        self.lost: set[str] = set()
        self._last_nodes: list[Node] = []
        self.new_inputs: list[Tensor] = []
        self.new_outputs: list[Tensor] = []
        self._outputs = {t.name for t in spec.outputs}
        self._layers = {node.name for node in spec.all_nodes() if node.op in GATES}
        self._facts = sized_facts(spec, axes, STEPS, 1)
        self._longer, self._wider = sized_facts(spec, axes, 3 * STEPS, 1), sized_facts(spec, axes, STEPS, 3)
        self._any_batch = any(BATCH in self.shape(t.name) for t in spec.inputs)
        for name, axis in axes.items():
            self.times[name] = Time(axis, self.shape(name)[axis])
        for node in spec.nodes:
            self._follow(node)
        self._finish()

    # What the rules ask for.

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._facts.shape(name)
        if shape is None or None in shape:
            raise UnfollowedError(f"works on {name!r}, whose shape is not known")
        return shape  # type: ignore[return-value]

    def value(self, name: str) -> np.ndarray | None:
        value = self._facts.values.get(name)
        return None if value is None or None in value.ravel().tolist() else value

    def readers(self, name: str) -> list[Node] | None:
        return None if name in self._outputs else [node for node in self.spec.nodes if name in node.inputs]

    def sized(self, size: int) -> str:
        for tensor in self.spec.inputs:
            if size in self.shape(tensor.name):
                return tensor.name
        raise UnfollowedError("reshapes the batch and time at once")

    def is_free(self, size: int) -> bool:
        return size > 0 and (size % BATCH == 0 or size % OTHER == 0)

    def batch_axis(self, name: str) -> int:
        """The axis that the batch is in, -1 where that is not known."""
        time = self._batch().get(name)
        return time.axis if isinstance(time, Time) else -1

    def _batch(self) -> dict[str, Of]:
        """The batch, followed as time is."""
        shapes = {t.name: self.shape(t.name) for t in self.spec.inputs}
        return trace(self, self.spec.nodes, {n: Time(s.index(BATCH), BATCH) for n, s in shapes.items() if BATCH in s})

    # What they write.

    def problem(self, node: str, reason: str) -> None:
        op = next(n.op for n in self.spec.nodes if n.name == node)
        self.problems[f"{op} {node!r} {reason}"] = None

    def state(
        self, name: str, like: str, shape: Sequence[int], batch_axis: int, varies: int | None = None, first: int = 0
    ) -> tuple[str, str]:
        size = shape[batch_axis] if batch_axis >= 0 else 0
        if self.is_free(size) and size % OTHER and size != BATCH and varies is None:
            return self._state_of_rows(name, like, shape, batch_axis)
        if any(self.is_free(n) for k, n in enumerate(shape) if k != batch_axis or n != BATCH):
            raise UnfollowedError(f"would keep a state of {_text(shape)}, whose size the model does not say")
        if size != BATCH and self._any_batch:
            raise UnfollowedError("would keep a state for the whole batch together")
        if size not in (1, BATCH):
            batch_axis = -1
        whole = [None if k == varies or n == BATCH else n for k, n in enumerate(shape)]
        rest = tuple(n for k, n in enumerate(whole) if k != batch_axis)
        dtype = self._facts.dtypes.get(like, "float32")
        old, new = self.fresh(name), self.fresh(f"{name}/next")
        self.new_inputs.append(Tensor(old, tuple(whole), dtype))
        self.new_outputs.append(Tensor(new, tuple(whole), dtype))
        self.states.append(StreamState(old, new, rest, batch_axis, dtype, 0 if varies is None else first))
        return old, new

    def _state_of_rows(self, name: str, like: str, shape: Sequence[int], axis: int) -> tuple[str, str]:
        """A state of rows of which several belong to one of the batch: the caller has an axis for these."""
        batch = self._batch().get(like)
        if not isinstance(batch, Time) or self.shape(like)[batch.axis] != shape[axis]:
            raise UnfollowedError(f"would keep a state of {_text(shape)}, whose size the model does not say")
        before, after = ([n] if n > 1 else [] for n in (shape[axis] // BATCH // batch.inner, batch.inner))
        rows = [*shape[:axis], -1, *shape[axis + 1 :]]
        apart = [*shape[:axis], *before, BATCH, *after, *shape[axis + 1 :]]
        old, new = self.state(name, like, apart, axis + len(before))
        merged = self.add("reshape", f"{name}/rows", (old, self.number(rows)))
        result = self.fresh(f"{name}/rows/next")
        target = self.number([-1 if n == BATCH else n for n in apart])
        self._last_nodes.append(Node("reshape", self.fresh(new), (result, target), (new,)))
        return merged, result

    # Following.

    def _follow(self, node: Node) -> None:
        for facts in (self._facts, self._longer, self._wider):
            facts.prepare_bodies(node)
            facts.add(node)
        read = [*node.inputs, *(name for body in node.graphs.values() for n in body.all_nodes() for name in n.inputs)]
        kinds = {t for t in map(self.times.get, read) if isinstance(t, Kind)}
        before = len(self.problems)
        if node.op in ("shape", "size"):
            self.put(node)
        elif Kind.UNKNOWN in kinds:
            self.lost |= {node.name} & self._layers
            self.times |= dict.fromkeys(node.outputs, Kind.UNKNOWN)
        elif any(isinstance(self.times.get(name), Time) for name in read):
            self._follow_steps(node, kinds)
        else:
            kind = next((kind for kind in (Kind.LAST, Kind.STATE) if kind in kinds), None)
            self.times |= dict.fromkeys(node.outputs, kind)
            self.put(node)
        if len(self.problems) == before:
            self._compare(node)

    def _follow_steps(self, node: Node, kinds: set[Kind]) -> None:
        given = [self.times.get(name) if name else None for name in node.inputs]
        try:
            if kinds and not (node.op in GATES and kinds == {Kind.STATE}):
                raise UnfollowedError(f"joins steps with what is {' and '.join(sorted(kind.value for kind in kinds))}")
            made: Of | list[Of] = CARRIES[node.op](self, node, given) if node.op in CARRIES else None
            if made is None:
                if node.op not in RULES:
                    raise UnfollowedError("is not known to work step by step")
                made = RULES[node.op](self, node, given)
                if isinstance(made, Time) and made.inner > 1:
                    raise UnfollowedError("makes one axis of time and what comes after it")
                self.put(node)
            times = made if isinstance(made, list) else [made]
        except UnfollowedError as reason:
            self.problem(node.name, str(reason))
            times = [self._guess(name, given) for name in node.outputs]
        self.times |= {name: time for name, time in zip(node.outputs, times) if name}

    def _guess(self, name: str, given: Sequence[Of]) -> Of:
        """Where time may be after a node that cannot run step by step, so that those behind it are found too."""
        shape = self._facts.shape(name)
        for time in given:
            if isinstance(time, Time) and shape is not None and shape[time.axis : time.axis + 1] == (time.size,):
                return replace(time, tail=0, zeros=0)
        return Kind.UNKNOWN

    def _compare(self, node: Node) -> None:
        """A size that depends on the steps is along the axis that was followed, and rows of the batch stay apart."""
        if node.op == "cast" and node.attr("dtype").startswith("float") and self._depends(node.inputs[0]):
            self.problem(node.name, "calculates with the length of the sequence")
        for name in node.outputs:
            time, shape = self.times.get(name), self._facts.shape(name)
            if time is Kind.UNKNOWN or not name:
                continue
            if shape is None:
                if isinstance(time, Time):
                    self.problem(node.name, f"gives {name!r}, whose shape is not known")
                continue
            axis = time.axis if isinstance(time, Time) else -1
            sizes = zip(shape, *(facts.shape(name) or () for facts in (self._longer, self._wider)))
            for k, (n, longer, wider) in enumerate(sizes):
                if k != axis and longer != n:
                    self.problem(node.name, "makes a tensor as long as the sequence, which is not followed")
                    self.times[name] = Kind.UNKNOWN
                elif axis >= 0 and wider != n and not (n and self.is_free(n) and wider in (3 * n, 9 * n)):
                    self.problem(node.name, "works along the batch")

    def _depends(self, name: str) -> bool:
        """Whether whole numbers are others in a longer sequence."""
        one, two = self._facts.values.get(name), self._longer.values.get(name)
        return one is not None and two is not None and not np.array_equal(one, two)

    def _finish(self) -> None:
        writers = {name: node.name for node in self.spec.nodes for name in node.outputs}
        for tensor in self.spec.outputs:
            time = self.times.get(tensor.name)
            if not isinstance(time, Time):
                continue
            if time.tail:
                settle(self, time)
            shape = self._facts.shape(tensor.name)
            if tensor.name in writers and shape is not None and shape[time.axis] != time.size:
                self.problem(writers[tensor.name], "gives an output with one axis for time and something else")

    # The end.

    @property
    def carrying(self) -> set[str]:
        """The recurrent layers that run over time; in a model that has none, the windows."""
        return self.reached & self._layers if self._layers else self.reached

    @property
    def has_layers(self) -> bool:
        """Whether recurrent layers run over time."""
        return bool(self.reached & self._layers)

    @property
    def complete(self) -> bool:
        """Whether the graph runs step by step, and all layers whose state the caller carries run over its steps."""
        carried = {
            node.name
            for node in self.spec.all_nodes()
            if node.op in GATES and any(self.times.get(name) is Kind.STATE for name in node.inputs)
        }
        fits = carried <= self.reached and not (self.own and self._fixed)
        return not self.problems and bool(self.carrying) and fits

    @property
    def _fixed(self) -> int:
        """Inputs of which the model says how many steps they have."""
        return sum(
            t.name in self.axes and sizes_of(self.spec, t)[self.axes[t.name]] is not None for t in self.spec.inputs
        )

    def rank(self) -> tuple[int, ...]:
        """Less is better: something is carried, over axes of any length, and all runs step by step."""
        some = len(self.carrying)
        return not some, not (some or self.lost), self._fixed, bool(self.problems), -some, len(self.problems)

    def refusal(self) -> str:
        """Why not."""
        if self.problems:
            lines = "\n  ".join(self.problems)
            text = f"{len(self.problems)} layer(s) cannot run on a stream, step by step:\n  {lines}"
        else:
            model = self.spec.source or "the model"
            text = f"{model} has no recurrent layer, convolution or pool over time, so it has no state"
        return text

    def time_axis(self) -> dict[str, int | None]:
        names = [t.name for t in (*self.spec.inputs, *self.spec.outputs)]
        return {n: t.axis if isinstance(t := self.times.get(n), Time) else None for n in names}

    def written(self) -> ModelSpec:
        spec = self.spec
        inputs, outputs = [*spec.inputs, *self.new_inputs], [*spec.outputs, *self.new_outputs]
        return ModelSpec(
            [*self.nodes, *self._last_nodes], inputs, outputs, self.constants, spec.nested_state, spec.source
        )


def _text(shape: Sequence[int]) -> str:
    return "(" + ", ".join("?" if n and not (n % BATCH and n % OTHER) else str(n) for n in shape) + ")"
