"""Graphs that run: a plan for each set of input shapes, made at its first use and kept.

With the shapes of the inputs known, all shapes are, so a plan (:mod:`fastrnn.engine.plan`) has no questions left.  What
depends on the elements of a tensor (the condition of an If, a shape that is an input, a Loop) ends a plan: the
rest of the graph is planned once these elements are there, again for each set of shapes and of such values.

The executable of a model, those behind its stops and those of bodies keep their plans in one :class:`Memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import ref

import numpy as np

from .. import _core, operators
from ..arrays import c_array
from ..attributes import MOST_AXES
from ..errors import FastrnnError, ShapeError, UnsupportedError
from ..float_mode import FloatMode
from ..run_limits import MAX_CHOICES, MAX_PLANS, MAX_VALUES
from ..spec import Graph, Node, reads
from .budget import Budget, Limits
from .builder import Builder, HostStep, NeedsValue
from .lower import lower
from .plan import Plan
from .plan_memory import Key, Memory, Stop, plan_bytes
from .tensors import F32, Value

__all__ = ["MAX_PLANS", "Executable"]

_UNPLANNED = ("loop", "scan", "operator")  # run by Python, node by node


class Executable:
    """A graph, ready to run.

    Parameters
    ----------
    nodes : list of Node
    inputs : list of str
        Tensors that a run brings along; those in ``by_value`` are small, and plans depend on their elements (with
        ``optional_by_value`` only as long as these are few: a choice such as a sampling rate, not a counter).
    outputs : list of str
    constants : mapping of str to ndarray
    layers : mapping of str to layer
        What was packed for the nodes, by their names.
    isa_kernels : RowKernels, optional
        Of the instruction set on which all plans run, whenever they are made; default: the one in use now.
    inner : bool
        It stands behind a stop, or is a body.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, np.ndarray],
        layers: Mapping[str, Any],
        by_value: Iterable[str] = (),
        optional_by_value: bool = False,
        check: Callable[[Sequence[np.ndarray | None]], None] | None = None,
        isa_kernels: _core.RowKernels | None = None,
        inner: bool = False,
    ):
        self.nodes, self.inputs, self.outputs = list(nodes), list(inputs), list(outputs)
        self.constants, self.layers = dict(constants), layers
        self.plans: dict[Key, Plan] = {}
        by_value = set(by_value)
        self._by_value, self._any_by_value = [name in by_value for name in inputs], bool(by_value)
        self._check = check
        self._isa_kernels = isa_kernels or _core.RowKernels()
        self._inherited: dict[str, Any] = {"isa_kernels": self._isa_kernels, "inner": True}
        self._choices: set[bytes] = set()
        self._optional_by_value = bool(by_value) and optional_by_value
        self.memory = None if inner else Memory()

    def run(
        self,
        arrays: Sequence[np.ndarray | None],
        threads: int,
        memory: Memory | None = None,
        before: Plan | None = None,
    ) -> list[np.ndarray]:
        """Outputs for inputs: float32 arrays, or arrays of another dtype; None: an absent optional one.

        An inner executable is given the ``memory`` of the one around it, and the plan whose stop led here.  It holds
        neither, so that what is behind a plan goes when the plan does.
        """
        memory = memory or self.memory
        assert memory is not None
        if self._any_by_value:
            key: Key = tuple(
                None if a is None else (a.shape, a.tobytes()) if by_value else (a.shape, a.dtype.char)
                for a, by_value in zip(arrays, self._by_value)
            )
        else:
            key = tuple([None if a is None else (a.shape, a.dtype.char) for a in arrays])
        plan = self.plans.get(key)
        if plan is None:
            if self._check is not None:
                self._check(arrays)
            if self._optional_by_value and self._too_many_choices(arrays):
                return self.run(arrays, threads)
            with FloatMode():
                plan = self.plan(arrays, None if before is None else before.limits)
            plan.before = None if before is None else ref(before)
            plan.nbytes = plan_bytes(plan, key, self._own_arrays())
            plan = memory.keep(self.plans, key, plan)
        else:
            plan.used = next(memory.clock)
        results = plan.run([a for a in arrays if a is not None], threads, memory.blocks)
        return results if plan.stop is None else self._go_on(plan, results, threads, memory)

    def _own_arrays(self) -> Iterator[np.ndarray]:
        """Those that plans share with the graph."""
        yield from self.constants.values()
        for node in self.nodes:
            yield from (array for array in node.weights.values() if isinstance(array, np.ndarray))
        for layer in self.layers.values():
            yield from layer.arrays

    def _too_many_choices(self, arrays: Sequence[np.ndarray | None]) -> bool:
        """Give up plans that depend on values when there are too many of these."""
        chosen = [a.tobytes() for a, by_value in zip(arrays, self._by_value) if by_value and a is not None]
        self._choices.add(b"|".join(chosen))
        if len(self._choices) <= MAX_CHOICES:
            return False
        self._by_value, self._any_by_value, self._optional_by_value = [False] * len(self.inputs), False, False
        return True

    def plan(
        self,
        arrays: Sequence[np.ndarray | None],
        limits: Limits | None = None,
        kernels: list[tuple[Node, str]] | None = None,
    ) -> Plan:
        """The plan for arrays like these, within the limits of its run; ``kernels`` is told what runs each node."""
        limits = limits or Limits.of(self.nodes, self.constants.values(), arrays)
        builder = Builder(Budget(limits), self._isa_kernels)
        values: dict[str, Value] = {
            name: Value(array.shape, array.dtype, array) for name, array in self.constants.items()
        }
        inputs = []
        for name, array, by_value in zip(self.inputs, arrays, self._by_value):
            if array is None:
                continue
            if by_value:
                kept = np.array(array)
                values[name] = Value(kept.shape, kept.dtype, kept)
                inputs.append(Value(kept.shape, kept.dtype))
            else:
                floats = array.dtype == F32
                values[name] = builder.input(array.shape) if floats else Value(array.shape, array.dtype)
                inputs.append(values[name])
        pending = list(self.nodes)[::-1]
        results: list[str] = list(self.outputs)
        stop = None
        while pending:
            node = pending.pop()
            if node.op in _UNPLANNED:
                stop = self._stop([node, *pending[::-1]], node, values)
                break
            try:
                before = len(builder.steps)
                if node.op == "if":
                    pending += self._branch(node, values)
                    continue
                self._lower(builder, node, values)
                if kernels is not None:
                    kernels.append((node, _kernel(builder, before)))
            except NeedsValue as question:
                stop = self._stop([node, *pending[::-1]], None, values, question.name)
                break
        if stop is not None:
            results = stop.inputs
        builder.budget.node = None
        shown = [self._result(name, values) for name in results]
        results_, items, program, size = builder.finish(shown)
        return Plan(inputs, program, items, results_, size, stop, limits)

    def _result(self, name: str, values: Mapping[str, Value]) -> Value:
        if name not in values:
            raise ShapeError(f"output {name!r} was not made: an optional input that it depends on is absent")
        return values[name]

    def _lower(self, builder: Builder, node: Node, values: dict[str, Value]) -> None:
        given: list[Any] = [values.get(name) for name in node.inputs]
        builder.budget.node = node
        try:
            made = lower(builder, node, self.layers.get(node.name), given)
            if any(value.ndim > MOST_AXES or min(value.shape, default=0) < 0 for value in made):
                raise ValueError(f"a tensor would have more than {MOST_AXES} axes, or fewer than no elements")
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            if isinstance(error, FastrnnError):
                raise
            absent = [name for name in node.inputs if name and name not in values]
            if absent:
                raise ShapeError(
                    f"{node.op} {node.name!r} cannot run without {', '.join(absent)}: it is, or depends on, an optional"
                    " input of the model that was not given"
                ) from None
            shapes = ", ".join("-" if value is None else f"{value.dtype} {value.shape}" for value in given)
            raise ShapeError(f"{node.op} {node.name!r} cannot run on {shapes}: {error}") from None
        values.update((name, value) for name, value in zip(node.outputs, made) if name)

    def _branch(self, node: Node, values: dict[str, Value]) -> list[Node]:
        """The nodes of the branch that an If takes, last first; they name their outputs as the If does."""
        condition = values[node.inputs[0]].known
        if condition is None:
            raise NeedsValue(node.inputs[0])
        graph = node.graphs["then" if np.all(condition) else "else"]
        values.update((name, Value(a.shape, a.dtype, a)) for name, a in graph.constants.items())
        named = [
            Node("identity", f"{node.name}/{name}", (inner.name,), (name,))
            for name, inner in zip(node.outputs, graph.outputs)
            if name
        ]
        return [*named[::-1], *graph.nodes[::-1]]

    def _stop(self, rest: list[Node], node: Node | None, values: Mapping[str, Value], question: str = "") -> Stop:
        known = {name: value.known for name, value in values.items() if value.known is not None}
        read = reads(rest, self.outputs)
        needed = [name for name in read if name in values and name not in known]
        if question and values[question].size > MAX_VALUES:
            raise UnsupportedError(
                f"{rest[0].op} {rest[0].name!r} depends on the {values[question].size} elements of {question!r};"
                f" at most {MAX_VALUES} can decide what is run"
            )
        after = rest if node is None else rest[1:]
        made = [] if node is None else [name for name in node.outputs if name]
        constants = {name: known[name] for name in read if name in known}
        following = Executable(
            after,
            [*needed, *made],
            self.outputs,
            constants,
            self.layers,
            [question],
            **self._inherited,
        )
        return Stop(following, node, needed)

    def _go_on(self, plan: Plan, results: list[np.ndarray], threads: int, memory: Memory) -> list[np.ndarray]:
        stop: Stop = plan.stop
        values: dict[str, np.ndarray] = dict(zip(stop.inputs, results))
        if stop.node is not None:
            seen = {**stop.rest.constants, **values}
            with FloatMode():
                made = self._run_node(stop.node, seen, threads, memory, plan)
            values.update((name, array) for name, array in zip(stop.node.outputs, made) if name)
        return stop.rest.run([values.get(name) for name in stop.rest.inputs], threads, memory, plan)

    def _run_node(
        self, node: Node, values: Mapping[str, np.ndarray], threads: int, memory: Memory, before: Plan
    ) -> list[np.ndarray]:
        """Control flow, or an operator of another library."""

        def bodies(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            executable, around = self._body(graph, values, memory)
            given = {**{name: values[name] for name in around}, **feeds}
            return executable.run([_plain(given.get(name)) for name in executable.inputs], threads, memory, before)

        inputs = [values.get(name) if name else None for name in node.inputs]
        return [_required(array) for array in operators.evaluate(node, inputs, bodies)]

    def _body(self, graph: Graph, values: Mapping[str, np.ndarray], memory: Memory) -> tuple[Executable, list[str]]:
        """What runs a body, and the tensors around it that it reads; the same wherever the body is met."""
        key = id(graph), frozenset(values)
        found = memory.bodies.get(key)
        if found is None:
            own = [t.name for t in graph.inputs]
            outputs = [t.name for t in graph.outputs]
            around = [name for name in reads(graph.nodes, outputs) if name in values and name not in own]
            executable = Executable(
                graph.nodes, [*own, *around], outputs, graph.constants, self.layers, **self._inherited
            )
            found = memory.bodies.setdefault(key, (executable, around))
        return found

    def describe(self, arrays: Sequence[np.ndarray | None]) -> tuple[list[tuple[Node, str]], Stop | None]:
        """What runs each node for inputs like these, up to where the plan stops."""
        kernels: list[tuple[Node, str]] = []
        return kernels, self.plan(arrays, kernels=kernels).stop


def _plain(array: np.ndarray | None) -> np.ndarray | None:
    """As ``Executable.run`` takes it."""
    if array is None or array.dtype.kind != "f":
        return array
    return c_array(array, F32)


def _required(array: np.ndarray) -> np.ndarray:
    plain = _plain(np.asarray(array))
    assert plain is not None
    return plain


def _kernel(builder: Builder, before: int) -> str:
    """What a node's steps are: kernels of C, NumPy, or no step at all."""
    kinds: dict[str, None] = {}
    for step in builder.steps[before:]:
        kinds["numpy" if isinstance(step, HostStep) else str(step.fields["kind"])] = None
    return " + ".join(kinds) or "view"
