"""The one table of tolerances: how far float32 may be from the float64 reference, and why.

An error is ``|ours - reference| / max(1, |reference|)``.  What must be the same bits needs no tolerance.
"""

from __future__ import annotations

import numpy as np

# Up to three layers, seven steps and dot products of 257 terms: of thousands of random layers the worst had 1.2e-6.
RECURRENT = 3e-6
# Hundreds of steps: random layers of these sizes forget an error faster than new ones arrive; measured 1.5e-6.
RECURRENT_LONG = 5e-6
# One dot product of at most 300 terms of size 1, and an activation.
DENSE = 3e-6
# Sums over a row, one square root, one division.
NORM = 2e-6
# One exponential, one sum, one division or difference.
SOFTMAX = 1e-6
# Two computations in float32 against each other, by us and by PyTorch or Keras: both errors.
TWO_FLOAT32 = 5e-6

# Promise 2: an error is at most twice that of the best peer, or this.
PEER_FACTOR, PEER_FLOOR = 2.0, 2e-7

# Results nearer to 0 than this may be 0: denormals are flushed, also those that lead to a result.
FLUSHED = 4 * float(np.finfo(np.float32).tiny)
