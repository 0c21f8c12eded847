"""Types of _core.pyx, which says what each name is for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Activation = tuple[str, float, float]
Weights = Sequence[np.ndarray | None]  # weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, peephole

ACTIVATION_KINDS: dict[str, int]
CELLS: dict[str, int]
MERGES: dict[str, int]
BACKENDS: dict[str, int]
PADDINGS: dict[str, int]

def isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> bool: ...
def teams() -> list[str]: ...
def team() -> str: ...
def set_team(name: str) -> bool: ...
def set_blas(sgemm: int) -> None: ...

class RecurrentHandle:
    def __init__(
        self,
        cell: str,
        weights: list[Weights],
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int,
        directions: int,
        reverse: bool,
        merge: str,
        gate: Activation,
        candidate: Activation,
        hidden: Activation,
        clip: float | None,
        cell_clip: float | None,
        proj_clip: float | None,
        coupled_input_forget: bool,
        reset_before: bool,
        backend: str,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def explain(self, batch: int, seq_len: int, threads: int) -> dict[str, Any]: ...
    def forward(
        self,
        x: np.ndarray,
        batch_first: bool,
        h_0: np.ndarray | None,
        c_0: np.ndarray | None,
        y: np.ndarray | None,
        h_n: np.ndarray | None,
        c_n: np.ndarray | None,
        lengths: np.ndarray | None,
        times: np.ndarray | None,
        padding: str,
        reverse_output: bool,
        threads: int,
    ) -> None: ...
    def forward_exact(self, x: Any, state: Any, out: Any, batch_first: bool, features: int, threads: int) -> Any: ...

class DenseHandle:
    backend: str
    def __init__(self, weight: np.ndarray, bias: np.ndarray | None, act: Activation, backend: str) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def forward(self, rows: int, x: np.ndarray, y: np.ndarray, threads: int) -> None: ...

class RowKernels:
    isa: str
    def __init__(self) -> None: ...
    def activate(self, act: Activation, x: np.ndarray, y: np.ndarray) -> None: ...
    def softmax(self, rows: int, n: int, x: np.ndarray, y: np.ndarray, logarithm: bool) -> None: ...
    def layer_norm(
        self,
        rows: int,
        n: int,
        x: np.ndarray,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        eps: float,
        y: np.ndarray,
    ) -> None: ...
    def scale_shift(
        self, rows: int, n: int, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, y: np.ndarray
    ) -> None: ...

BINARY_KINDS: dict[str, int]
REDUCTION_KINDS: dict[str, int]
STEP_KINDS: dict[str, int]

class Program:
    count: int
    constants: np.ndarray
    shared: list[np.ndarray]
    nbytes: int
    def __init__(
        self,
        steps: list[dict[str, Any]],
        constants: np.ndarray,
        inputs: int,
        outputs: int,
        shared: list[np.ndarray],
        flops: float,
        kernels: RowKernels,
    ) -> None: ...
    def scratch(self, threads: int, first: int, last: int) -> int: ...
    def run(
        self,
        block: np.ndarray,
        inputs: list[np.ndarray],
        outputs: list[np.ndarray],
        threads: int,
        first: int,
        last: int,
        size: int,
    ) -> None: ...

class FloatMode:
    def __enter__(self) -> None: ...
    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...

class Owner:
    def __init__(self, what: str) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...

class RowStates:
    h: np.ndarray
    c: np.ndarray | None
    capacity: int
    def __init__(self, net: RecurrentHandle, capacity: int) -> None: ...
    def step(self, x: Any, out: Any, rows: np.ndarray | None, threads: int) -> np.ndarray | None: ...
    def chunk(self, x: np.ndarray, y: np.ndarray | None, rows: np.ndarray | None, threads: int) -> None: ...
    def advance(
        self,
        x: list[np.ndarray],
        y: list[np.ndarray] | None,
        positions: np.ndarray | None,
        lengths: np.ndarray,
        seq_len: int,
        rows: np.ndarray | None,
        threads: int,
    ) -> None: ...

def find_rows(
    ids: list[int] | np.ndarray, generations: np.ndarray, stamps: np.ndarray, stamp: int, rows: np.ndarray
) -> int: ...
def gather_steps(arrays: list[np.ndarray], begins: np.ndarray, count: int, out: np.ndarray) -> None: ...
def scatter_steps(source: np.ndarray, arrays: list[np.ndarray], begins: np.ndarray, count: int) -> None: ...
