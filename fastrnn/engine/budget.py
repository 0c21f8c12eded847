"""What the steps of a plan may cost: bounded by the sizes of the inputs and of the model, before anything is taken.

A file of some bytes may ask for a pool of a million taps, or for a tensor of a terabyte.  Real networks stay far below
these limits, as each of their tensors is made of inputs and weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .. import run_limits
from ..errors import UnsupportedError
from ..spec import Node


@dataclass
class Limits:
    """Of all plans of a run: elements that the steps of one read and write, and its floating-point operations."""

    elements: int
    flops: float

    @classmethod
    def of(cls, nodes: Sequence[Node], constants: Iterable[np.ndarray], arrays: Sequence[np.ndarray | None]) -> Limits:
        """The limits of a run of these nodes on these inputs."""
        given = sum(array.size for array in arrays if array is not None)
        count, held = _size(nodes)
        held += sum(array.size for array in constants)
        elements = run_limits.WORK + run_limits.WORK_EACH * (given + held) + run_limits.WORK_NODE * count
        return cls(elements, run_limits.FLOPS_EACH * (elements + held * (given + run_limits.ROWS)))


def _size(nodes: Sequence[Node]) -> tuple[int, int]:
    """How many nodes there are with those in bodies, and the elements of their weights and constants."""
    count = held = 0
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            count += 1
            held += sum(weight.size for weight in node.weights.values())
            for graph in node.graphs.values():
                held += sum(array.size for array in graph.constants.values())
                waiting.append(graph.nodes)
    return count, held


@dataclass
class Budget:
    """What a plan has asked for so far; ``node`` is the one that asks."""

    limits: Limits
    node: Node | None = None
    elements: int = 0
    flops: float = 0.0

    def spend(self, elements: int, flops: float = 0.0, steps: int = 1) -> None:
        """Steps that read and write so many elements.

        Raises
        ------
        UnsupportedError
            The plan would cost more than the limits allow; the node is named.
        """
        self.elements += max(elements, 0) + run_limits.WORK_STEP * steps
        self.flops += flops
        if self.elements <= self.limits.elements and self.flops <= self.limits.flops:
            return
        where = "the outputs" if self.node is None else f"{self.node.op} {self.node.name!r}"
        what = f"{self.elements} elements, at most {self.limits.elements}"
        if self.flops > self.limits.flops:
            what = f"{self.flops:.3g} operations, at most {self.limits.flops:.3g}"
        raise UnsupportedError(
            f"{where}: up to here a run takes {what} are run for inputs and weights of these sizes"
            " (fastrnn.run_limits); the file is damaged, or its input far too large for it"
        )
