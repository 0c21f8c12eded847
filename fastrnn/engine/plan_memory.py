"""The memory of a model's plans: how much each holds, which of them are kept, and the blocks in which they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import run_limits
from ..spec import Node
from .builder import HostStep
from .plan import Blocks, Plan

if TYPE_CHECKING:
    from .executable import Executable

Key = tuple[Any, ...]


@dataclass
class Stop:
    """Where a plan ends before its graph does: the node that comes next, or None where its inputs have to be read
    first; the tensors that the rest needs, and those whose elements it depends on."""

    rest: Executable
    node: Node | None
    inputs: list[str]


class Memory:
    """What the levels of a model's executable share.

    All levels together keep at most ``MAX_PLANS`` plans of ``MAX_PLAN_BYTES`` (:mod:`fastrnn.run_limits`), and one
    whatever it holds.  The plan that was used least recently goes first, and with it what stands behind its stop.
    No lock: each change is one operation of a dict, and where threads meet, a plan more or less goes.
    """

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.bodies: dict[tuple[int, frozenset[str]], tuple[Executable, list[str]]] = {}
        self.clock = count()
        self._kept: dict[int, tuple[dict[Key, Plan], Key, Plan]] = {}

    @property
    def plans(self) -> list[Plan]:
        """Those that are kept."""
        return [plan for _, _, plan in list(self._kept.values())]

    def keep(self, plans: dict[Key, Plan], key: Key, plan: Plan) -> Plan:
        """Keep a new plan among those of its level, ``plans``; returns the one that another thread made before."""
        kept = plans.setdefault(key, plan)
        if kept is plan:
            self._kept[id(plan)] = plans, key, plan
            self._touch(plan)
            self._make_room()
        return kept

    def _touch(self, plan: Plan | None) -> None:
        """Used now, as are the plans that led to it; the first of these last, so that it outlives the others."""
        while plan is not None:
            plan.used = next(self.clock)
            plan = None if plan.before is None else plan.before()

    def _make_room(self) -> None:
        kept = sorted(self.plans, key=lambda plan: plan.used)
        held = sum(plan.nbytes for plan in kept)
        for plan in kept[:-1]:
            if len(self._kept) <= run_limits.MAX_PLANS and held <= run_limits.MAX_PLAN_BYTES:
                break
            held -= self._drop(plan)

    def _drop(self, plan: Plan) -> int:
        """Forget a plan and those behind it; returns their bytes."""
        entry = self._kept.pop(id(plan), None)
        if entry is None:
            return 0
        plans, key, _ = entry
        plans.pop(key, None)
        behind = [] if plan.stop is None else list(plan.stop.rest.plans.values())
        return plan.nbytes + sum(map(self._drop, behind))


# What Python takes for objects of a plan, about: tests compare the sums with tracemalloc.
_PLAN, _VALUE, _STEP, _LEVEL, _ENTRY = 1800, 450, 900, 1200, 100


def plan_bytes(plan: Plan, key: Key, shared: Iterable[np.ndarray]) -> int:
    """Bytes that a plan holds beside packed weights and the ``shared`` arrays of its graph."""
    values = {*plan.inputs, *plan.results}
    for item in plan.items:
        if isinstance(item, HostStep):
            values.update((*item.inputs, *item.outputs))
    arrays = [*plan.program.shared, *(value.known for value in values if value.known is not None)]
    held = _PLAN + plan.program.nbytes + _VALUE * len(values) + _STEP * len(plan.items) + _key_bytes(key)
    if plan.stop is not None:
        rest = plan.stop.rest
        arrays += rest.constants.values()
        names = len(rest.inputs) + len(rest.outputs) + len(rest.constants)
        held += _LEVEL + _ENTRY * names + 8 * len(rest.nodes)
    return held + array_bytes(arrays, shared)


def array_bytes(arrays: Iterable[np.ndarray], shared: Iterable[np.ndarray]) -> int:
    """Bytes of the memory that arrays look at, each once, but for that of the ``shared`` ones."""
    owners = {id(owner): owner for owner in map(_owner, arrays)}
    for array in shared:
        owners.pop(id(_owner(array)), None)
    return sum(owner.nbytes + _ENTRY for owner in owners.values())


def _owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory a view looks at."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _key_bytes(key: Key) -> int:
    """Of shapes, dtypes and elements."""
    return sum(_ENTRY + sum(len(part) * (1 if isinstance(part, bytes) else 40) for part in of or ()) for of in key)
