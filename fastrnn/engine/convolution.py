"""Convolutions packed as dense layers: a window of the input is a row of a matrix product."""

from __future__ import annotations

import numpy as np

from .. import _core, runtime
from ..arrays import F32, c_array
from ..lazy_array import in_memory
from ..spec import Node
from ..spec import activation as activation_of


class Convolution:
    """The packed weights of a ``conv`` or ``conv_transpose`` node.

    A convolution has one product for each group, its columns in the order (kernel, channel).  A transposed one
    multiplies each element by all of the kernel, its rows in that order, and adds up where the results overlap.  Where
    each channel has a kernel of its own (``depthwise``) there is no product, but a sum over the kernel.

    Attributes
    ----------
    kernel : tuple of int
    channels, features : int
        Of the input and the output.
    """

    def __init__(self, node: Node, backend: str | None = None):
        weight = c_array(in_memory(node.weights["weight"]), F32)
        bias = in_memory(node.weights.get("bias"))
        groups, transposed = node.attr("groups"), node.op == "conv_transpose"
        self.node = node
        self.name, self.kernel = node.name, weight.shape[2:]
        outer, inner = weight.shape[0], weight.shape[1] * groups
        self.channels, self.features = (outer, inner) if transposed else (inner, outer)
        self.group_channels, self.group_features = self.channels // groups, self.features // groups
        self.bias = None if bias is None else c_array(bias, F32)
        given = node.attrs.get("activation", "linear")
        self.activation = None if given == "linear" else activation_of(given)
        self.depthwise = not transposed and groups > 1 and self.group_channels == self.group_features == 1
        self.taps = c_array(weight.reshape(self.features, -1).T, F32) if self.depthwise else weight[:0].copy()
        self.handles = []
        if self.depthwise:
            return
        fused = self.activation or activation_of("linear")
        self.backend = runtime.choose_backend(backend)
        for g, part in enumerate(np.split(weight, groups)):
            if transposed:  # (in, out, *kernel) -> (*kernel, out; in)
                matrix = np.moveaxis(part, (0, 1), (-1, -2)).reshape(-1, self.group_channels)
                shift = None
            else:  # (out, in, *kernel) -> (out; *kernel, in)
                matrix = np.moveaxis(part, 1, -1).reshape(self.group_features, -1)
                shift = None if self.bias is None else self.bias[g * self.group_features :][: self.group_features]
            self.handles.append(_core.DenseHandle(c_array(matrix, F32), shift, fused, self.backend))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What a call reads as it is, not packed."""
        return (self.taps,) if self.bias is None else (self.taps, self.bias)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(handle.nbytes for handle in self.handles) + sum(array.nbytes for array in self.arrays)
