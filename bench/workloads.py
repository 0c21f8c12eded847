"""What is measured: shapes, and the network and input that every engine gets for one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrnn import reference
from fastrnn.spec import GATES, ModelSpec, Node, Tensor

CELLS = ("LSTM", "GRU", "RNN")

TOLERANCE = 1e-5
"""An engine whose result is further than this from float64 computes something else, and its time means nothing."""

SHAPES: dict[str, list[tuple[int, int, int, int]]] = {
    # (batch, seq_len, input_size, hidden_size)
    "seq": [
        (1, 100, 16, 32),
        (1, 100, 64, 64),
        (1, 100, 128, 128),
        (1, 100, 256, 256),
        (1, 50, 512, 512),
        (1, 25, 1024, 1024),
        (4, 50, 256, 256),
        (8, 50, 512, 512),
        (16, 25, 1024, 1024),
        (32, 50, 128, 128),
        (32, 50, 256, 256),
        (128, 25, 256, 256),
        (128, 20, 512, 512),
        (64, 10, 1024, 1024),
    ],
    "step": [
        (1, 1, 16, 32),
        (1, 1, 64, 64),
        (1, 1, 128, 128),
        (1, 1, 256, 256),
        (1, 1, 512, 512),
        (16, 1, 128, 128),
        (64, 1, 128, 128),
        (256, 1, 128, 128),
        (64, 1, 512, 512),
    ],
    "ragged": [(32, 200, 128, 128), (32, 100, 256, 256), (64, 60, 64, 512), (8, 400, 64, 128)],
}
"""Shapes of each mode: whole sequences, one time step a call, sequences of different lengths in one batch."""


@dataclass(frozen=True)
class Workload:
    """A network and one input.

    ``spec`` is one recurrent node, maybe with a dense node on its last hidden state.  ``x`` is
    (batch, seq_len, input_size); ``state`` is (h,) or (h, c), given by the caller; ``lengths`` is (batch,).
    """

    spec: ModelSpec
    x: np.ndarray
    state: tuple[np.ndarray, ...] = ()
    lengths: np.ndarray | None = None

    @property
    def rnn(self) -> Node:
        return self.spec.nodes[0]

    @property
    def head(self) -> Node | None:
        return self.spec.nodes[1] if len(self.spec.nodes) > 1 else None

    @property
    def bidirectional(self) -> bool:
        return self.rnn.attr("direction") == "bidirectional"

    @property
    def hidden_size(self) -> int:
        return self.rnn.weights["weight_hh_l0"].shape[1]

    @property
    def steps(self) -> int:
        """Real time steps of all rows together."""
        batch, seq_len = self.x.shape[:2]
        return batch * seq_len if self.lengths is None else int(self.lengths.sum())

    @property
    def flops(self) -> int:
        """Floating point operations of the matrix products: a multiplication and an addition a weight and step."""
        return 2 * self.steps * sum(w.size for w in self.rnn.weights.values() if w.ndim == 2)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for node in self.spec.nodes for weight in node.weights.values())

    @property
    def bytes_a_step(self) -> int:
        """Bytes of weights that a step of one row must read: the recurrent matrices, and its part of the input
        matrices, which a call may read only once."""
        weights = {name: w.nbytes for name, w in self.rnn.weights.items() if w.ndim == 2}
        once = sum(size for name, size in weights.items() if name.startswith("weight_ih"))
        return sum(weights.values()) - once + once // self.x.shape[1]

    def exact(self) -> np.ndarray:
        """The result in float64, by the reference."""
        feeds = dict(zip(self.rnn.inputs, (self.x, *self.state), strict=True))
        return reference.run(self.spec, feeds, self.lengths)[self.spec.outputs[0].name]


def random_workload(
    mode: str, cell: str, shape: tuple[int, int, int, int], num_layers: int = 1, bidirectional: bool = False
) -> Workload:
    """A layer with weights as PyTorch initialises them and normal input, the same for the same arguments.

    A step carries a state; of ragged lengths about two thirds of the padded steps are empty.
    """
    batch, seq_len, input_size, hidden_size = shape
    rng = np.random.default_rng([*shape, CELLS.index(cell), num_layers, bidirectional])
    suffixes = ["", "_reverse"] if bidirectional else [""]
    rows = len(GATES[cell.lower()]) * hidden_size
    bound = hidden_size**-0.5
    weights = {}
    for layer in range(num_layers):
        columns = hidden_size * len(suffixes) if layer else input_size
        for suffix in suffixes:
            sizes = {"weight_ih": (rows, columns), "weight_hh": (rows, hidden_size), "bias_ih": rows, "bias_hh": rows}
            for name, size in sizes.items():
                weights[f"{name}_l{layer}{suffix}"] = rng.uniform(-bound, bound, size).astype(np.float32)
    count = {"LSTM": 2}.get(cell, 1) if mode == "step" else 0
    states = (num_layers * len(suffixes), batch, hidden_size)
    state = tuple(rng.uniform(-1, 1, states).astype(np.float32) for _ in range(count))
    lengths = None
    if mode == "ragged":
        lengths = ragged_lengths(batch, seq_len, rng)
    node = Node(
        cell.lower(),
        "rnn",
        ("x", "h_0", "c_0")[: 1 + count],
        ("y",),
        {"num_layers": num_layers, "direction": "bidirectional" if bidirectional else "forward"},
        weights,
    )
    inputs = [Tensor("x", (None, None, input_size))]
    inputs += [Tensor(name, (states[0], None, hidden_size)) for name in node.inputs[1:]]
    outputs = [Tensor("y", (None, None, hidden_size * len(suffixes)))]
    x = rng.standard_normal((batch, seq_len, input_size), np.float32)
    return Workload(ModelSpec([node], inputs, outputs), x, state, lengths)


def ragged_lengths(batch: int, seq_len: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Lengths with a long tail; the first row has all steps."""
    rng = rng or np.random.default_rng(0)
    lengths = rng.lognormal(np.log(seq_len / 4), 0.7, batch).astype(np.int64).clip(1, seq_len)
    lengths[0] = seq_len
    return lengths
