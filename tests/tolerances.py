"""The one table of tolerances: how far float32 may be from the float64 reference, and why.

An error is ``|ours - reference| / max(1, |reference|)``.  What must be the same bits needs no tolerance.
"""

from __future__ import annotations

import numpy as np

# Up to three layers, seven steps and dot products of 257 terms: of thousands of random layers the worst had 1.9e-6.
RECURRENT = 3e-6
# Hundreds of steps: random layers of these sizes forget an error faster than new ones arrive; the worst had 7e-7.
RECURRENT_LONG = 3e-6
# One dot product of at most 300 terms of size 1, and an activation.
DENSE = 3e-6
# Sums over a row, one square root, one division.
NORM = 2e-6
# One exponential, one sum, one division or difference.
SOFTMAX = 1e-6
# Up to a dozen operators in a row, relative to the largest number in the graph.
PROGRAM = 5e-6
# Two computations in float32 against each other, by us and by PyTorch or Keras: both errors.
TWO_FLOAT32 = 5e-6

# Promise 2: an error is at most twice that of the best peer, or this.
PEER_FACTOR, PEER_FLOOR = 2.0, 2e-7

# Absolute error next to 0: denormals are flushed, also those that x of up to 100 multiplies in x * sigmoid(x).
FLUSHED = 256 * float(np.finfo(np.float32).tiny)

ULP: dict[str, float] = {
    # Largest error in units in the last place of the result: what tests/ulp_sweep.py measures, rounded up; of sigmoid,
    # tanh and exp over all numbers.
    "linear": 0, "relu": 0, "relu6": 0, "hard_tanh": 0, "thresholded_relu": 0, "affine": 0, "abs": 0, "neg": 0,
    "sign": 0, "floor": 0, "ceil": 0, "round": 0, "square": 0.5, "sqrt": 0.5, "reciprocal": 0.5, "log": 0.51,
    "leaky_relu": 1, "elu": 1.5, "celu": 1.5, "softsign": 2, "exp": 1.25, "selu": 2.5,
    "erf": 2.5, "sigmoid": 2.5, "tanh": 2.75, "scaled_tanh": 2.75, "silu": 3.5, "softplus": 3.5, "log_sigmoid": 4,
    "mish": 6,
}  # fmt: skip
ABSOLUTE: dict[str, float] = {
    # Differences of nearly equal numbers, as in every float32 implementation: the error is relative to max(1, |y|).
    "hard_sigmoid": 1e-7, "hard_swish": 1.5e-7, "gelu": 2e-7, "gelu_tanh": 3.5e-7,
}  # fmt: skip
