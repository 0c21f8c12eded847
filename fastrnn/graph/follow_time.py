"""Time followed through a graph, from its inputs on, while the graph that runs step by step is written.

The rules of :mod:`fastrnn.graph.time_axis` say where time goes, :mod:`fastrnn.graph.histories` what is carried.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from .. import operators
from ..errors import FastrnnError
from ..run_limits import MAX_STATE_BYTES
from ..spec import GATES, ModelSpec, Node, Tensor
from .batch_axis import OVER_ROWS, batch_axis_of, becomes_rows, extend_rows, follow_rows
from .facts import Facts
from .histories import CARRIES, DIRECTIONS, settle
from .optimize import optimize
from .time_axis import FUTURE, RULES, Kind, Of, Time, UnfollowedError
from .writer import Writer

BATCH, OTHER, STEPS = 10_007, 10_037, 1 << 20
"""Sizes that free axes have while time is followed.  Some triple, to see what depends on them."""

ROW_BY_ROW = ("embedding", "dense", "masking", "layer_norm", "batch_norm", "activation", "identity")
"""Layers that leave all axes but the last one alone; an embedding adds that."""


@dataclass(frozen=True)
class StreamState:
    """A tensor that a call takes as ``input`` and gives as ``output`` for the next call.

    ``shape`` is without the batch axis.  It starts as ``initial``, or as zeros; an axis that is None there has the
    length ``first`` then, and may have another one after each call.  ``batch_axis`` is where the batch stands in the
    tensor, -1 where that is not known: ``shape`` is all of it then, for a batch of 1.
    """

    input: str
    output: str
    shape: tuple[int | None, ...]
    batch_axis: int
    dtype: str = "float32"
    first: int = 0
    initial: np.ndarray | None = field(default=None, compare=False)


def fixed_batch(name: str, size: int, axis: int) -> str:
    """Why a model made for one number of rows is no stream."""
    return f"input {name!r} has a fixed batch of {size} in axis {axis}; a stream needs one that is free, or 1"


def followed_time(spec: ModelSpec, own: Collection[str]) -> Follower:
    """Time followed along the axes of the inputs with which most recurrent layers run over it and least goes wrong."""
    axes: dict[str, int] = {}
    best = Follower(spec, axes, own)
    for tensor in spec.inputs:
        if tensor.name in own:
            continue
        for axis in range(len(tensor.shape or ())):
            found = Follower(spec, axes | {tensor.name: axis}, own)
            if found.rank() < best.rank():
                best = found
        axes = best.axes
    return best


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


def sizes_of(spec: ModelSpec, tensor: Tensor) -> tuple[int | None, ...]:
    """The declared shape of an input, or that which the layers on its way to the first recurrent one need."""
    if tensor.shape is not None:
        return tensor.shape
    name, size, is_ids = tensor.name, None, False
    while (node := next((n for n in spec.nodes if name in n.inputs[:1]), None)) is not None:
        weights = node.weights
        if node.op in GATES:
            rows = (None,) if node.attr("unbatched") else (None, None)
            return rows if is_ids else (*rows, size or weights["weight_ih_l0"].shape[1])
        if node.op not in ROW_BY_ROW or (node.op == "batch_norm" and node.attr("channels_first")):
            break
        is_ids = is_ids or (node.op == "embedding" and size is None)
        key = "mean" if node.op == "batch_norm" else "weight"
        if node.op != "embedding" and key in weights:
            size = size or weights[key].shape[-1]
        name = node.outputs[0]
    return ()


def sized_facts(
    spec: ModelSpec, axes: Mapping[str, int], steps: int, times: int, rows: Mapping[str, int] | None = None
) -> Known:
    """What is known before the first node, with ``steps`` along the free ones of these axes of the inputs, and with
    ``times`` the usual size along the other free ones, of which the batch is the first, or that of ``rows``."""
    facts = Known()
    facts.enter(spec)
    for tensor in spec.inputs:
        shape, time = sizes_of(spec, tensor), axes.get(tensor.name)
        free = [k for k, n in enumerate(shape) if n is None and k != time]
        batch = rows[tensor.name] if rows is not None else free[0] if free else -1
        sizes = {time: steps, batch: BATCH * times}
        whole = tuple(sizes.get(k, OTHER * times) if n is None else n for k, n in enumerate(shape))
        facts.learn(tensor.name, None if not shape and tensor.shape is None else whole, tensor.dtype)
    return facts


class Follower(Writer):
    """Time in a graph from given axes of its inputs on, and the graph that carries what its steps need.

    ``rows`` are the axes of the batch in the inputs, -1 where there is none.
    """

    def __init__(
        self, spec: ModelSpec, axes: Mapping[str, int], own: Collection[str], rows: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(spec)
        self.spec, self.axes, self.own = spec, dict(axes), set(own)
        self.rows = dict(rows) if rows is not None else {t.name: self._row_axis(t) for t in spec.inputs}
        self.times: dict[str, Of] = dict.fromkeys(own, Kind.STATE)
        self.problems: dict[str, None] = {}  # of nodes
        self.input_problems: list[str] = []
        self._refused: set[str] = set()
        self.states: list[StreamState] = []
        self.reached: set[str] = set()
        self.lost: set[str] = set()
        self._last_nodes: list[Node] = []
        self.new_inputs: list[Tensor] = []
        self.new_outputs: list[Tensor] = []
        self._outputs = {t.name for t in spec.outputs}
        self._ops = {node.name: node.op for node in spec.nodes}
        self._readers: dict[str, list[Node]] = {}
        for node in spec.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers.setdefault(name, []).append(node)
        self._rows_so_far: dict[str, Of] = {}
        self._seen, self._rowed = 0, 0
        self._layers = {node.name for node in spec.all_nodes() if node.op in GATES}
        sizes = ((STEPS, 1), (3 * STEPS, 1), (STEPS, 3))
        self._facts, self._longer, self._wider = (sized_facts(spec, axes, *size, self.rows) for size in sizes)
        self._any_batch = any(BATCH in (self._facts.shape(t.name) or ()) for t in spec.inputs)
        for name, axis in axes.items():
            self.times[name] = Time(axis, self.shape(name)[axis])
        for node in spec.nodes:
            self._follow(node)
        self._finish()

    def _row_axis(self, tensor: Tensor) -> int:
        shape = tensor.shape or ()
        if tensor.name in self.own:  # the first axis of a state may be 1 for other reasons
            return shape.index(None) if None in shape else -1
        return batch_axis_of(shape, self.axes.get(tensor.name))

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
        return None if name in self._outputs else self._readers.get(name, [])

    def sized(self, size: int) -> str:
        for tensor in self.spec.inputs:
            if size in (self._facts.shape(tensor.name) or ()):
                return tensor.name
        raise UnfollowedError("reshapes the batch and time at once")

    def is_free(self, size: int) -> bool:
        return size > 0 and (size % BATCH == 0 or size % OTHER == 0)

    def batch_axis(self, name: str) -> int:
        """The axis that the batch is in, -1 where that is not known."""
        rows = self._rows_of(name)
        return rows.axis if isinstance(rows, Time) else -1

    def _rows_of(self, name: str) -> Of:
        """Where the rows of a tensor are that a node seen so far has made."""
        if not self._rowed:
            self._rows_so_far = self._row_starts()
        nodes = self.spec.nodes[self._rowed : self._seen]
        extend_rows(self, nodes, self._rows_so_far, {}, BATCH if self._any_batch else 1)
        self._rowed = self._seen
        return self._rows_so_far.get(name)

    def _row_starts(self) -> dict[str, Of]:
        return {name: Time(axis, self.shape(name)[axis]) for name, axis in self.rows.items() if axis >= 0}

    def follow_rows(self) -> tuple[dict[str, Of], dict[str, str]]:
        """The batch, followed as time is, as far as that is known."""
        return follow_rows(self, self.spec.nodes, self._row_starts(), BATCH if self._any_batch else 1)

    # What they write.

    def problem(self, node: str, reason: str) -> None:
        op = self._ops[node]
        self.problems[f"{op} {node!r} {reason}"] = None
        self._refused.add(node)

    def initial(self, name: str) -> np.ndarray | None:
        inputs = [
            replace(t, shape=tuple(2 if n is None else n for n in sizes_of(self.spec, t))) for t in self.spec.inputs
        ]
        outputs = [Tensor(name, None)]
        return optimize(replace(self.spec, inputs=inputs, outputs=outputs, nested_state=False)).constants.get(name)

    def state(
        self,
        name: str,
        like: str,
        shape: Sequence[int],
        batch_axis: int,
        varies: int | None = None,
        first: int = 0,
        initial: np.ndarray | None = None,
    ) -> tuple[str, str]:
        size = shape[batch_axis] if batch_axis >= 0 else 0
        if self.is_free(size) and size % OTHER and size != BATCH and varies is None:
            return self._state_of_rows(name, like, shape, batch_axis, initial)
        if any(self.is_free(n) for k, n in enumerate(shape) if k != batch_axis or n != BATCH):
            raise UnfollowedError(f"would keep a state of {_text(shape)}, whose size the model does not say")
        if size != BATCH and self._any_batch:
            raise UnfollowedError("would keep a state for the whole batch together")
        if size not in (1, BATCH):
            batch_axis = -1
        whole = [None if k == varies or n == BATCH else n for k, n in enumerate(shape)]
        rest = tuple(n for k, n in enumerate(whole) if k != batch_axis)
        if 8 * prod(first if n is None else n for n in rest) > MAX_STATE_BYTES:
            raise UnfollowedError(f"would keep a state of {_text(shape)}, more than {MAX_STATE_BYTES} bytes a stream")
        dtype = self._facts.dtypes.get(like, "float32")
        old, new = self.fresh(name), self.fresh(f"{name}/next")
        self.new_inputs.append(Tensor(old, tuple(whole), dtype))
        self.new_outputs.append(Tensor(new, tuple(whole), dtype))
        if initial is not None and batch_axis >= 0:
            initial = initial.take(0, batch_axis)
        self.states.append(StreamState(old, new, rest, batch_axis, dtype, 0 if varies is None else first, initial))
        return old, new

    def _state_of_rows(
        self, name: str, like: str, shape: Sequence[int], axis: int, initial: np.ndarray | None
    ) -> tuple[str, str]:
        """A state of rows of which several belong to one of the batch: the caller has an axis for these."""
        batch = self._rows_of(like)
        if not isinstance(batch, Time) or self.shape(like)[batch.axis] != shape[axis]:
            raise UnfollowedError(f"would keep a state of {_text(shape)}, whose size the model does not say")
        before, after = ([n] if n > 1 else [] for n in (shape[axis] // BATCH // batch.inner, batch.inner))
        rows = [*shape[:axis], -1, *shape[axis + 1 :]]
        apart = [*shape[:axis], *before, BATCH, *after, *shape[axis + 1 :]]
        if initial is not None:  # the same for all rows
            ones = [1] * (1 + len(before) + len(after))
            initial = initial.take([0], axis).reshape([*shape[:axis], *ones, *shape[axis + 1 :]])
        old, new = self.state(name, like, apart, axis + len(before), initial=initial)
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
        self._seen += 1
        read = [*node.inputs, *(name for body in node.graphs.values() for n in body.all_nodes() for name in n.inputs)]
        kinds = {t for t in map(self.times.get, read) if isinstance(t, Kind)}
        before = len(self.problems)
        if node.op in ("shape", "size"):
            self.put(node)
        elif Kind.UNKNOWN in kinds:
            self.lost |= {node.name} & self._layers
            if node.op in GATES and node.attr("direction") != "forward":
                self.problem(node.name, f"{DIRECTIONS[node.attr('direction')]}, so it {FUTURE}")
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
        shape, longer = self._facts.shape(name), self._longer.shape(name)
        if shape is None or longer is None:
            return Kind.UNKNOWN
        axes = [k for k, (n, more) in enumerate(zip(shape, longer)) if n != more]
        if len(axes) != 1:
            return Kind.UNKNOWN if axes else Kind.LAST
        time = next((t for t in given if isinstance(t, Time)), Time(axes[0], 0))
        return Time(axes[0], shape[axes[0]] or 0, clock=time.clock)

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
        self.row_axis = self._finish_rows(writers)

    def _finish_rows(self, writers: Mapping[str, str]) -> dict[str, int]:
        """The axis of the batch in each input and output, -1 where it has none; problems where that is not certain."""
        found, problems = self.follow_rows()
        axes = dict(self.rows)
        many = not self.takes_one_row
        for tensor in self.spec.inputs:
            axis, declared = self.axes.get(tensor.name), tensor.shape or ()
            free = [k for k, n in enumerate(declared) if n is None and k not in (axis, axes[tensor.name])]
            if axis is not None and declared[axis] is not None and free:
                text = f"has layers over axis {axis}, which is fixed, and axis {free[0]} is free"
                self.input_problems.append(f"input {tensor.name!r} {text}; which of them is time is not certain")
        for name, axis in self.axes.items():
            if axes[name] < 0:
                self.input_problems.append(self._without_rows(name, axis))
        for name, reason in problems.items() if many else ():
            # Where a frame is taken a call, what cannot be followed need not be wrong; what reads along rows is.
            if name not in self._refused and (self.axes or reason in (FUTURE, OVER_ROWS)):
                self.problem(name, "works along the batch")
        for tensor in self.spec.outputs:
            shape, rows, time = self._facts.shape(tensor.name), found.get(tensor.name), self.times.get(tensor.name)
            if isinstance(rows, Time) and shape is not None and shape[rows.axis] == rows.size:
                axes[tensor.name] = rows.axis
            elif not many:
                axes[tensor.name] = batch_axis_of(shape or (1,), time.axis if isinstance(time, Time) else None)
            else:  # where nodes could not be followed, by its size
                axes[tensor.name] = shape.index(BATCH) if shape and shape.count(BATCH) == 1 else 0
                if shape is not None and self.axes and tensor.name in writers and writers[tensor.name] not in problems:
                    self.problem(writers[tensor.name], f"gives {tensor.name!r}, in which no axis is that of the batch")
        return axes

    @property
    def takes_one_row(self) -> bool:
        """Whether some input has room for one row only, so that each row has a call of its own."""
        return any(
            axis >= 0 and self.shape(name)[axis] == 1 for name, axis in self.rows.items() if name not in self.own
        )

    def _without_rows(self, name: str, time: int) -> str:
        shape = self.shape(name)
        others = [k for k in range(len(shape)) if k != time]
        rows = next((k for k in others if becomes_rows(self, self.spec.nodes, name, k)), None)
        if rows is not None:
            return fixed_batch(name, shape[rows], rows)
        return (
            f"input {name!r} has no axis for a batch beside axis {time}, its time: it takes a sequence without a batch"
        )

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
        fits = carried <= self.reached and not (self.own and self.fixed)
        return not self.problems and not self.input_problems and bool(self.carrying) and fits

    @property
    def fixed(self) -> int:
        """Inputs of which the model says how many steps they have."""
        return sum(t.name in self.axes and (t.shape or ())[self.axes[t.name]] is not None for t in self.spec.inputs)

    def rank(self) -> tuple[int, ...]:
        """Less is better: something is carried, over axes of any length, and all runs step by step."""
        some, wrong = len(self.carrying), len(self.problems) + len(self.input_problems)
        return not some, not (some or self.lost), self.fixed, bool(wrong), -some, wrong

    def refusal(self) -> str:
        """Why not."""
        if not self.problems and not self.input_problems:
            model = self.spec.source or "the model"
            return f"{model} has no recurrent layer, convolution or pool over time, so it has no state"
        if not self.problems:
            return "; ".join(self.input_problems)
        lines = "\n  ".join([*self.problems, *self.input_problems])
        return f"{len(self.problems)} layer(s) cannot run on a stream, step by step:\n  {lines}"

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
