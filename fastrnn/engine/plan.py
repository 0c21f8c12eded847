"""Plans: what a graph does for inputs of one set of shapes, and the memory that a run of it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np

from .. import _core, run_limits
from ..arrays import c_array
from ..float_mode import FloatMode
from .budget import Limits
from .builder import HostStep, Segment
from .tensors import F32, Value


class Blocks:
    """Memory for intermediate results, kept from run to run; runs at the same time have a block each.

    As many wait for the next run as take ``MAX_IDLE_BYTES`` together; one always does.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """At least ``size`` floats that begin at a cache line."""
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(0, np.float32)
        if block.size < size:
            whole = np.empty(size + 16, np.float32)
            block = whole[(-whole.ctypes.data // F32.itemsize) % 16 :][:size]
        return block

    def put_back(self, block: np.ndarray) -> None:
        free = self._free
        if not free or sum(other.nbytes for other in list(free)) + block.nbytes <= run_limits.MAX_IDLE_BYTES:
            free.append(block)


@dataclass
class Run:
    """The arrays of a run in progress; ``held`` are those that only Python holds."""

    block: np.ndarray
    arrays: Sequence[np.ndarray]
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    held: dict[Value, np.ndarray] = field(default_factory=dict)


@dataclass
class Plan:
    """What to do for inputs of one set of shapes."""

    inputs: list[Value]
    program: _core.Program
    items: list[Segment | HostStep]
    results: list[Value]
    block_size: int
    stop: Any
    """Where the graph goes on, an ``executable.Stop``; None: the plan is all of it."""
    limits: Limits
    """Of the run, which the plans behind its stop have too."""
    before: ref[Plan] | None = None
    """The plan whose stop led here; None: the first of a run."""
    scratch: dict[tuple[int, int], int] = field(default_factory=dict)
    nbytes: int = 0
    """Bytes that the plan holds beside the packed weights."""
    used: int = 0
    """When it was used last, by the clock of its ``Memory``."""

    def __post_init__(self) -> None:
        self._floats_in = [k for k, value in enumerate(self.inputs) if value.buffer is not None]
        self._floats_out = [value.shape for value in self.results if value.is_float]
        self._in_c = all(isinstance(item, Segment) for item in self.items)
        self._only_floats = len(self._floats_out) == len(self.results)

    def run(self, arrays: Sequence[np.ndarray], threads: int, blocks: Blocks) -> list[np.ndarray]:
        """Results for input arrays."""
        if self._in_c:
            return self._run(arrays, threads, blocks)
        with FloatMode():
            return self._run(arrays, threads, blocks)

    def _run(self, arrays: Sequence[np.ndarray], threads: int, blocks: Blocks) -> list[np.ndarray]:
        block = blocks.take(self.block_size)
        inputs = [c_array(arrays[k], F32) for k in self._floats_in]
        outputs = [np.empty(shape, np.float32) for shape in self._floats_out]
        run = Run(block, arrays, inputs, outputs)
        try:
            for item in self.items:
                if isinstance(item, Segment):
                    size = self.scratch.get((item.first, threads))
                    if size is None:
                        size = self.program.scratch(threads, item.first, item.last)
                        self.scratch[item.first, threads] = size
                    self.program.run(block, inputs, outputs, threads, item.first, item.last, size)
                else:
                    self._run_host(item, run)
            if self._only_floats:
                return outputs
            made = iter(outputs)
            return [next(made) if value.is_float else np.array(self._read(value, run)) for value in self.results]
        finally:
            blocks.put_back(block)

    def _run_host(self, step: HostStep, run: Run) -> None:
        made = step.function(*(self._read(value, run) for value in step.inputs))
        for value, array in zip(step.outputs, made):
            if value.is_float:
                self._read(value, run)[...] = array
            else:
                run.held[value] = array

    def _read(self, value: Value, run: Run) -> np.ndarray:
        """A tensor as NumPy sees it."""
        if value.known is not None:
            return value.known
        if value.buffer is None:
            return run.held[value] if value in run.held else run.arrays[self.inputs.index(value)]
        slot = value.buffer.slot
        if slot == "block":
            return _view(run.block, value.buffer.offset, value)
        if slot == "constant":
            return _view(self.program.constants, value.buffer.offset, value)
        kind, k = slot
        arrays = {"input": run.inputs, "output": run.outputs, "shared": self.program.shared}[kind]
        return _view(arrays[k], 0, value)


def _view(array: np.ndarray, start: int, value: Value) -> np.ndarray:
    if value.size == 0:
        return np.empty(value.shape, np.float32)
    strides = [stride * F32.itemsize for stride in value.strides]
    return np.ndarray(value.shape, F32, array, (start + value.offset) * F32.itemsize, strides)
