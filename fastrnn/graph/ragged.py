"""Tensors whose rows have different numbers of steps, and the nodes that treat what is beyond them.

A batch of such rows is padded; ``Steps`` says along which axis, and which tensor holds the steps of each row.  What is
beyond them is anything until :meth:`Ragged.filled` writes a number there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import operators
from ..spec import ModelSpec
from .follow_time import BATCH, OTHER, STEPS, Known, sized_facts
from .time_axis import Time, UnfollowedError
from .writer import Writer

Formula = tuple[tuple[str, int], ...]
"""Functions of BINARY and their second operands, one after the other: ``(("add", 2), ("div", 3))``."""


@dataclass(frozen=True)
class Steps(Time):
    """An axis of time in a padded batch; ``lengths`` is the tensor, (batch,) int64, of the steps of each row."""

    lengths: str = ""


Given = Sequence[tuple[Steps, ...]]
"""The steps of each input of a node: a tensor may have several axes of time."""
Made = list[tuple[Steps, ...]]
"""The steps of each output."""


@dataclass(frozen=True)
class Need:
    """Steps that each sequence must have, because of a node: ``formula`` of its length is at least ``least``."""

    formula: Formula
    least: int
    node: str

    def holds(self, lengths: np.ndarray) -> np.ndarray:
        """For each length, whether it is enough."""
        return applied(self.formula, lengths) >= self.least


def applied(formula: Formula, lengths: np.ndarray) -> np.ndarray:
    """Lengths after nodes that make more or fewer steps."""
    for function, number in formula:
        lengths = operators.BINARY[function](lengths, np.int64(number))
    return lengths


def extended(formula: Formula, step: tuple[str, int]) -> Formula:
    """A formula with one more step, in the shortest form, so that equal ones are the same.

    >>> extended((("add", -2), ("max", 0)), ("add", -2))
    (('add', -4),)
    """
    shrinks = any(function == "add" and number < 0 for function, number in formula)
    if step in (("add", 0), ("div", 1), ("mul", 1)) or (step == ("max", 0) and not shrinks):
        return formula
    if step[0] == "add" and step[1] < 0 and len(formula) > 1 and formula[-1] == ("max", 0):
        function, number = formula[-2]
        if function == "add" and number < 0:
            return extended(formula[:-2], ("add", number + step[1]))
    if step[0] == "add" and formula and formula[-1][0] == "add":
        return extended(formula[:-1], ("add", formula[-1][1] + step[1]))
    return (*formula, step)


class Ragged(Writer):
    """A graph that is written from ``spec`` for sequences of different lengths, whose time is along ``axes``.

    ``times`` and ``batch`` say where time and the batch are in each tensor, as far as nodes have been followed.
    """

    def __init__(self, spec: ModelSpec, axes: Mapping[str, int]) -> None:
        super().__init__(spec)
        self.spec, self.axes = spec, dict(axes)
        self.lengths = self.fresh("lengths")
        self.times: dict[str, tuple[Steps, ...]] = {}
        self.batch: dict[str, Time] = {}
        self.layers: set[str] = set()
        self.windows: set[str] = set()
        self.needs: dict[Need, None] = {}
        self._formulas: dict[str, Formula] = {self.lengths: ()}
        self._derived: dict[Formula, str] = {(): self.lengths}
        self._present: dict[Any, str] = {}
        self._filled: dict[Any, str] = {}
        self.facts, self.longer = (self._followed(n) for n in (STEPS, 3 * STEPS))

    def _followed(self, steps: int) -> Known:
        facts = sized_facts(self.spec, self.axes, steps, 1)
        facts.follow(self.spec)
        return facts

    # What is known of the graph that is read.

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape for sequences of ``STEPS``; UnfollowedError where it is not known."""
        shape = self.facts.shape(name)
        if shape is None or None in shape:
            raise UnfollowedError(f"works on {name!r}, whose shape is not known")
        return shape  # type: ignore[return-value]

    def dtype(self, name: str) -> np.dtype:
        """The dtype; UnfollowedError where it is not known."""
        found = self.facts.dtypes.get(name)
        if found is None:
            raise UnfollowedError(f"works on {name!r}, whose dtype is not known")
        return np.dtype("float32" if found.startswith("float") else found)

    def value(self, name: str, facts: Known | None = None) -> np.ndarray | None:
        """The whole numbers of a small tensor, None where they are not known."""
        value = (facts or self.facts).values.get(name)
        return None if value is None or None in value.ravel().tolist() else value

    def depends(self, name: str) -> bool:
        """Whether the whole numbers of a tensor are others in longer sequences."""
        one, two = self.facts.values.get(name), self.longer.values.get(name)
        return one is not None and two is not None and not np.array_equal(one, two)

    def batch_axis(self, name: str) -> int:
        """The axis of the rows."""
        batch = self.batch.get(name)
        if batch is None or batch.inner > 1 or self.shape(name)[batch.axis] != batch.size:
            raise UnfollowedError(f"works on {name!r}, of which it is not known where the sequences are")
        return batch.axis

    def whole(self, name: str, steps: Steps) -> None:
        """Refuse an axis that holds more than time."""
        if self.shape(name)[steps.axis] != steps.size:
            raise UnfollowedError("has one axis for time and something else")

    def is_fixed(self, size: int) -> bool:
        """Whether the model says how large an axis is."""
        return all(size % n for n in (BATCH, OTHER, STEPS))

    # Lengths.

    @property
    def made_lengths(self) -> Collection[str]:
        """The tensors of lengths."""
        return self._formulas.keys()

    def derived(self, lengths: str, *more: tuple[str, int]) -> str:
        """The tensor of lengths after a node that changes them."""
        formula = self._formulas[lengths]
        for step in more:
            formula = extended(formula, step)
        for k in range(1, len(formula) + 1):
            if formula[:k] not in self._derived:
                function, number = formula[k - 1]
                last = self._derived[formula[: k - 1]]
                name = self.add("binary", "lengths", (last, self.number(number)), function=function)
                self._derived[formula[:k]], self._formulas[name] = name, formula[:k]
        return self._derived[formula]

    def joined(self, lengths: str, more: str | int) -> str:
        """The lengths of sequences that follow each other."""
        if isinstance(more, int):
            return self.derived(lengths, ("add", more))
        if self._formulas[lengths] != self._formulas[more]:
            raise UnfollowedError("puts sequences of other lengths behind others")
        return self.derived(lengths, ("mul", 2))

    def need(self, steps: Steps, least: int, node: str) -> None:
        """Each sequence must have ``least`` of these steps."""
        if least > 0:
            self.needs[Need(self._formulas[steps.lengths], least, node)] = None

    def count(self, name: str) -> str | None:
        """The tensor that has for each sequence what a number of the graph is for it alone: some times its length, and
        a number more.  None: it is something else."""
        found = self._linear(name)
        if found is None or found[0].size != 1:
            return None
        times, more = (int(part.item()) for part in found)
        return self.derived(self.lengths, ("mul", times), ("add", more)) if times > 0 else None

    def divides(self, name: str, by: str) -> bool:
        """Whether a size is divided without a remainder, whatever the number of steps."""
        found, number = self._linear(name), self.value(by)
        if found is None or number is None or self.depends(by) or not np.all(number):
            return False
        return not any(np.any(part % number) for part in found)

    def _linear(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Whole numbers as some times the number of steps and a number more."""
        one, two = (self.value(name, facts) for facts in (self.facts, self.longer))
        if one is None or two is None:
            return None
        times = np.asarray((two - one) // (2 * STEPS), object)
        more = np.asarray(one - times * STEPS, object)
        return (times, more) if np.array_equal(two, 3 * STEPS * times + more) else None

    def positions(self, like: str, axis: int) -> str:
        """The vector 0, 1, 2 ... along an axis of a tensor."""
        size = self.add("shape", f"{like}/steps", (like,), start=axis, end=axis + 1)
        size = self.add("squeeze", f"{like}/count", (size,), axes=[0])
        return self.add("range", f"{like}/positions", (self.number(0), size, self.number(1)))

    def aligned_lengths(self, lengths: str, rank: int, batch: int) -> str:
        """Lengths as a tensor that is broadcast to one whose batch is there."""
        return self.add("unsqueeze", f"{lengths}/rows", (lengths,), axes=[k for k in range(rank) if k != batch])

    def present(self, like: str, steps: Steps) -> str:
        """Whether each step is one of its sequence, broadcast to ``like``."""
        rank, batch = len(self.shape(like)), self.batch_axis(like)
        key = steps.lengths, steps.axis, batch, rank
        if key not in self._present:
            at = self.positions(like, steps.axis)
            at = self.add("unsqueeze", f"{at}/axes", (at,), axes=[k for k in range(rank) if k != steps.axis])
            rows = self.aligned_lengths(steps.lengths, rank, batch)
            self._present[key] = self.add("binary", f"{like}/present", (at, rows), function="less")
        return self._present[key]

    # What is beyond them.

    def filled(self, name: str, steps: Steps, number: Any, like: str = "") -> str:
        """The tensor with a number beyond the steps of each row; ``like``: one that is known and as large."""
        like = like or name
        self.whole(like, steps)
        key = name, steps.axis, steps.lengths, str(number)
        if key not in self._filled:
            outside = self.fresh("numbers/beyond")
            self.constants[outside] = np.asarray(number, self.dtype(like))
            present = self.present(like, steps)
            self._filled[key] = self.add("where", f"{name}/filled", (present, name, outside))
        return self._filled[key]

    def is_filled(self, name: str, steps: Steps, number: Any) -> None:
        """Remember that a tensor has this number there already."""
        self._filled[name, steps.axis, steps.lengths, str(number)] = name

    def taken(self, name: str, indices: str, axis: int) -> str:
        """Steps by indices that are broadcast to the tensor, but for the number of steps."""
        count = self.add("shape", f"{name}/taken", (indices,), start=axis, end=axis + 1)
        parts = [self.add("shape", f"{name}/before", (name,), start=0, end=axis)] if axis else []
        parts += [count, self.add("shape", f"{name}/after", (name,), start=axis + 1, end=None)]
        shape = self.add("concat", f"{name}/shape", parts, axis=0)
        indices = self.add("expand", f"{name}/indices", (indices, shape))
        return self.add("gather_elements", f"{name}/steps", (name, indices), axis=axis)

    def from_end(self, name: str, steps: Steps, offsets: Sequence[int], node: str) -> str:
        """Steps counted from the end of each sequence: -1 is its last."""
        self.need(steps, -min(offsets, default=0), node)
        rank, batch = len(self.shape(name)), self.batch_axis(name)
        shape = [len(offsets) if k == steps.axis else 1 for k in range(rank)]
        numbers = self.fresh("numbers/from_end")
        self.constants[numbers] = np.asarray(offsets, np.int64).reshape(shape)
        rows = self.aligned_lengths(steps.lengths, rank, batch)
        indices = self.add("binary", f"{name}/from_end", (rows, numbers), function="add")
        return self.taken(name, indices, steps.axis)

    def reversed(self, name: str, steps: Steps) -> str:
        """The steps of each sequence in reverse order."""
        rank, batch = len(self.shape(name)), self.batch_axis(name)
        rows = self.aligned_lengths(steps.lengths, rank, batch)
        at = self.positions(name, steps.axis)
        at = self.add("unsqueeze", f"{at}/axes", (at,), axes=[k for k in range(rank) if k != steps.axis])
        back = self.add("binary", f"{name}/last", (rows, self.number(-1)), function="add")
        back = self.add("binary", f"{name}/back", (back, at), function="sub")
        indices = self.add("where", f"{name}/order", (self.present(name, steps), back, at))
        return self.taken(name, indices, steps.axis)

    def closed_up(self, name: str, like: str, steps: Steps, following: str, axis: int) -> str:
        """Sequences and what follows them in the padded tensor, without the gap between the two.

        ``like`` has the axes of ``name``, ``following`` is its second part.
        """
        rank, batch = len(self.shape(like)), self.batch_axis(like)
        at = self.positions(name, axis)
        rows = self.aligned_lengths(steps.lengths, rank, batch)
        sizes = [self.add("shape", f"{name}/size", (part,), start=axis, end=axis + 1) for part in (name, following)]
        gap = self.add("binary", f"{name}/first", sizes, function="sub")  # where the second part is
        last = self.add("binary", f"{name}/last", (sizes[0], self.number(-1)), function="add")
        at = self.add("unsqueeze", f"{at}/axes", (at,), axes=[k for k in range(rank) if k != axis])
        gap = self.add("binary", f"{name}/gap", (gap, rows), function="sub")
        behind = self.add("binary", f"{name}/behind", (at, gap), function="add")
        behind = self.add("binary", f"{name}/inside", (behind, last), function="min")
        first = self.add("binary", f"{name}/is_first", (at, rows), function="less")
        indices = self.add("where", f"{name}/order", (first, at, behind))
        return self.taken(name, indices, axis)


def less(times: Sequence[Steps], axes: set[int], keepdims: bool) -> tuple[Steps, ...]:
    """Steps when other axes have been reduced."""
    if keepdims:
        return tuple(times)
    return tuple(replace(steps, axis=steps.axis - sum(k < steps.axis for k in axes)) for steps in times)


def along(times: Sequence[Steps], axis: int) -> Steps | None:
    """The steps that are along an axis."""
    return next((steps for steps in times if steps.axis == axis), None)


def no_more(times: Sequence[Sequence[Steps]]) -> None:
    """Refuse other inputs with steps."""
    if any(times):
        raise UnfollowedError("takes more than one tensor of steps")
