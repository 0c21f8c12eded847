"""Layers without time: names, shapes and checks over the kernels.

A layer is built from arrays or from a :class:`~fastrnn.spec.Node`, is immutable, and may be called from any number of
threads.  Recurrent layers are in :mod:`fastrnn.recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from . import _core, runtime
from .arguments import checked, described
from .arrays import F32, as_array, as_float32, c_array, is_whole
from .errors import ArgumentError, ShapeError
from .float_mode import FloatMode, in_default_mode
from .lazy_array import LazyArray, in_memory
from .spec import OPS, ROW_ACTIVATIONS, Node, activation, layer_problems

Inputs = Sequence[np.ndarray | None]
Outputs = tuple[np.ndarray, ...]
AnyLayer = TypeVar("AnyLayer", bound="Layer")


def make_node(op: str, name: str, weights: dict[str, Any], attrs: dict[str, Any]) -> Node:
    """A stand-alone node: tensors named as ``OPS`` names them, absent weights and default attributes left out.

    Weights are copied: users may write to their arrays, and mapped ones end the process where their file is cut.
    """
    arrays = {key: np.array(as_float32(value, key)) for key, value in weights.items() if value is not None}
    missing = [key for key in OPS[op].weights if weights.get(key, "") is None]
    sizes = [f"{key} is {described(weights[key])}" for key, array in arrays.items() if array.ndim == 0]
    sizes += [f"{key} is None" for key in missing]
    if sizes:
        raise ArgumentError(
            f"{op} {name!r} is made of trained weights, as arrays; {', '.join(sizes)}. from_torch, from_keras and load"
            " make layers with their weights"
        )
    if (form := attrs.get("activation")) is not None:
        activation(form)  # an error here, before it is compared
    given = {key: value for key, value in attrs.items() if value != OPS[op].attrs[key]}
    plain = [tuple(n.rstrip("?") for n in names) for names in (OPS[op].inputs, OPS[op].outputs)]
    return Node(op, name, plain[0], plain[1], given, arrays)


class Layer:
    """What all layers share.

    Attributes
    ----------
    node : Node
        Weights and attributes, framework-neutral.
    name : str
        What errors and reports call the layer.
    nbytes : int
        Bytes of packed weights: of all that a call reads.
    threads : int or None
        Of this layer's calls, at most; None: ``fastrnn.set_num_threads`` says.
    """

    op: ClassVar[str]
    node: Node
    _thread_count: int | None = None

    @in_default_mode
    def __init__(self, node: Node, backend: str | None = None):
        if not isinstance(node, Node):
            raise ArgumentError(f"a layer is built from a Node, got {described(node)}")
        given = node
        weights = {key: as_float32(in_memory(value), key) for key, value in node.weights.items()}
        self.node = node = replace(node, weights=weights)
        self.name = node.name
        self._kernels = _core.RowKernels()
        self._backend = backend
        for key in OPS[node.op].attrs:
            if key.endswith("activation"):
                activation(node.attr(key))
        problems = layer_problems(node)
        if problems:
            raise ShapeError(f"{self.op} {self.name!r}: " + "; ".join(problems))
        self._build()
        # What stays in a file has been packed, and needs no second place in memory.
        lazy = {key: value for key, value in given.weights.items() if isinstance(value, LazyArray)}
        self.node = replace(node, weights=node.weights | lazy)

    @classmethod
    def from_node(cls: type[AnyLayer], node: Node, backend: str | None = None) -> AnyLayer:
        """Build from a description; shapes are checked, weights are packed."""
        layer = cls.__new__(cls)
        Layer.__init__(layer, node, backend)
        return layer

    def _build(self) -> None:
        pass

    def run_node(self, inputs: Inputs) -> Outputs:
        """Outputs of the node for its inputs, in the order of ``OPS``."""
        raise NotImplementedError

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What a call reads as it is, not packed."""
        return ()

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(array.nbytes for array in self.arrays)

    @checked(batch=1, seq_len=0)
    def explain(self, batch: int = 1, seq_len: int = 100) -> dict[str, Any]:
        """How the layer runs in a call of this size: kernel, backend, bytes of weights, and more where it is known."""
        return {
            "layer": self.name,
            "op": self.op,
            "kernel": self._kernel(),
            "backend": "numpy",
            "nbytes": self.nbytes,
        }

    def _kernel(self) -> str:
        """What computes the outputs: a function of the C kernels' table, or NumPy."""
        return "numpy"

    @property
    def threads(self) -> int | None:
        return self._thread_count

    @threads.setter
    def threads(self, count: int | None) -> None:
        self._thread_count = None if count is None else runtime.check_threads(count, "threads")

    def _threads(self) -> int:
        return self._thread_count or runtime.get_num_threads()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the layer; each kind says what it takes and gives."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., Layer], tuple[Any, ...]]:
        return type(self).from_node, (self.node, self._backend)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key}={value.shape}" for key, value in self.node.weights.items())
        return f"{type(self).__name__}({shapes})"


class Stateless(Layer):
    """A layer that takes one array and gives one."""

    def __call__(self, x: Any) -> np.ndarray:
        """Run the layer on one array."""
        return self.run_node([self._input(x)])[0]

    def _input(self, x: Any) -> np.ndarray:
        return as_float32(x, f"the input of {self.name!r}")


def _rows(x: np.ndarray, size: int, name: str) -> int:
    """Number of rows of ``size`` features in x."""
    if x.ndim == 0 or x.shape[-1] != size:
        raise ShapeError(f"{name!r} takes arrays whose last axis is {size}, got shape {x.shape}")
    return x.size // size if size else 0


def _apply(kernels: _core.RowKernels, value: tuple[str, float, float], x: np.ndarray, y: np.ndarray) -> None:
    if value[0] in ROW_ACTIVATIONS:
        n = x.shape[-1] if x.ndim else 1
        kernels.softmax(x.size // n if n else 0, n, x, y, value[0] == "log_softmax")
    else:
        kernels.activate(value, x, y)


class Dense(Stateless):
    """Fully connected layer.

    Computes ``y = activation(x @ weight.T + bias)`` over the last axis of x.

    Parameters
    ----------
    weight : (output_size, input_size) float32
    bias : (output_size,) float32, optional
    activation : str or (str, alpha, beta)
        A key of ``fastrnn.spec.ACTIVATIONS``.

    Raises
    ------
    ShapeError
        Shapes do not fit together; raised when the layer is built, or when x does not fit it.

    Examples
    --------
    >>> layer = Dense(np.eye(3, dtype=np.float32)[:2], activation="relu")
    >>> layer([[-1.0, 2.0, 5.0]])
    array([[0., 2.]], dtype=float32)
    """

    op = "dense"

    @checked()
    def __init__(
        self,
        weight: Any,
        bias: Any = None,
        *,
        activation: str | tuple | list = "linear",
        name: str = "dense",
        backend: str | None = None,
    ):
        weights = {"weight": weight, "bias": bias}
        super().__init__(make_node("dense", name, weights, {"activation": activation}), backend)

    def _build(self) -> None:
        weight = self.node.weights["weight"]
        self.output_size, self.input_size = weight.shape
        self._activation = activation(self.node.attr("activation"))
        self.row_activation = self._activation[0] if self._activation[0] in ROW_ACTIVATIONS else None
        self._used_backend = runtime.choose_backend(self._backend)
        fused = activation("linear") if self.row_activation else self._activation
        self._handle = _core.DenseHandle(weight, self.node.weights.get("bias"), fused, self._used_backend)

    def run_node(self, inputs: Inputs) -> Outputs:
        x = inputs[0]
        assert x is not None
        rows = _rows(x, self.input_size, self.name)
        y = np.empty((*x.shape[:-1], self.output_size), np.float32)
        self._handle.forward(rows, x, y, self._threads())
        if self.row_activation:
            _apply(self._kernels, self._activation, y, y)
        return (y,)

    @property
    def nbytes(self) -> int:
        return self._handle.nbytes

    @checked(batch=1, seq_len=0)
    def explain(self, batch: int = 1, seq_len: int = 100) -> dict[str, Any]:
        return super().explain(batch, seq_len) | {"backend": self._used_backend, "isa": self._kernels.isa}

    def _kernel(self) -> str:
        return "blas" if self._used_backend == "blas" else "product"


class Embedding(Stateless):
    """Rows of a table: ``y[...] = weight[ids[...]]``.

    Parameters
    ----------
    weight : (rows, features) float32
    mask_zero : bool
        Keras' convention: id 0 means "no step"; the layer then also gives the mask ``ids != 0``.

    Raises
    ------
    ShapeError
        ids are not integers, or lie outside 0 .. rows - 1.
    """

    op = "embedding"

    @checked()
    def __init__(self, weight: Any, *, mask_zero: bool = False, name: str = "embedding"):
        super().__init__(make_node("embedding", name, {"weight": weight}, {"mask_zero": mask_zero}))

    def _build(self) -> None:
        self._table = self.node.weights["weight"]

    def _input(self, x: Any) -> np.ndarray:
        return as_array(x)

    def run_node(self, inputs: Inputs) -> Outputs:
        ids = as_array(inputs[0])
        table = self._table
        if ids.size and ids.dtype.kind not in "iu" and (ids.dtype.kind == "b" or not is_whole(ids)):
            raise ShapeError(f"{self.name!r} takes whole numbers as ids, got dtype {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= len(table)):
            raise ShapeError(f"{self.name!r} takes ids from 0 to {len(table) - 1}, got {ids.min()} to {ids.max()}")
        ids = ids.astype(np.int64, copy=False)
        return np.take(table, ids, axis=0), ids != 0

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self._table,)


class Masking(Stateless):
    """Keras' Masking: steps whose features all equal ``mask_value`` become zeros, and False in the mask."""

    op = "masking"

    @checked()
    def __init__(self, mask_value: float = 0.0, *, name: str = "masking"):
        super().__init__(make_node("masking", name, {}, {"mask_value": mask_value}))

    def run_node(self, inputs: Inputs) -> Outputs:
        x = inputs[0]
        assert x is not None
        with FloatMode():
            return self._masked(x)

    def _masked(self, x: np.ndarray) -> Outputs:
        mask = np.any(x != np.float32(self.node.attr("mask_value")), axis=-1)
        return np.where(mask[..., None], x, np.float32(0)), mask


class LayerNorm(Stateless):
    """Layer normalisation (Ba et al. 2016) over the last axis, or over all axes that weight has.

    Computes ``y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias``.

    Parameters
    ----------
    weight, bias : float32 arrays of one shape, optional
    eps : float
    axes : int, optional
        Number of trailing axes: those that weight or bias has, or 1.
    """

    op = "layer_norm"

    @checked()
    def __init__(
        self,
        weight: Any = None,
        bias: Any = None,
        *,
        eps: float = 1e-5,
        axes: int | None = None,
        name: str = "layer_norm",
    ):
        weights = {"weight": weight, "bias": bias}
        shaped = next((as_array(array).ndim for array in weights.values() if array is not None), None)
        if None not in (axes, shaped) and axes != shaped:
            raise ShapeError(f"layer_norm {name!r}: axes is {axes!r}, weight and bias have {shaped}; leave axes out")
        attrs = {"eps": eps, "axes": 1 if axes is None else axes}
        super().__init__(make_node("layer_norm", name, weights, attrs))

    def _build(self) -> None:
        self.weight, self.bias = self.node.weights.get("weight"), self.node.weights.get("bias")

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(array for array in (self.weight, self.bias) if array is not None)

    def row_size(self, x_shape: tuple[int, ...]) -> int:
        """Elements that are normalised together."""
        shape = next((value.shape for value in self.node.weights.values()), None)
        axes = self.node.attr("axes") if shape is None else len(shape)
        if len(x_shape) < axes or (shape is not None and x_shape[len(x_shape) - axes :] != shape):
            raise ShapeError(f"{self.name!r} takes arrays that end in {shape or f'{axes} axes'}, got shape {x_shape}")
        return int(np.prod(x_shape[len(x_shape) - axes :]))

    def run_node(self, inputs: Inputs) -> Outputs:
        x = inputs[0]
        assert x is not None
        n = self.row_size(x.shape)
        y = np.empty(x.shape, np.float32)
        self._kernels.layer_norm(x.size // n if n else 0, n, x, self.weight, self.bias, self.node.attr("eps"), y)
        return (y,)

    def _kernel(self) -> str:
        return "layer_norm"


class BatchNorm(Stateless):
    """Batch normalisation at inference: ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per feature.

    Parameters
    ----------
    mean, var : (features,) float32
    weight, bias : (features,) float32, optional
    eps : float
    channels_first : bool
        Features are axis 1 instead of the last one.
    """

    op = "batch_norm"

    @checked()
    def __init__(
        self,
        mean: Any,
        var: Any,
        weight: Any = None,
        bias: Any = None,
        *,
        eps: float = 1e-5,
        channels_first: bool = False,
        name: str = "batch_norm",
    ):
        weights = {"mean": mean, "var": var, "weight": weight, "bias": bias}
        super().__init__(make_node("batch_norm", name, weights, {"eps": eps, "channels_first": channels_first}))

    def _build(self) -> None:
        w = {key: value.astype(np.float64) for key, value in self.node.weights.items()}
        scale = w.get("weight", 1.0) / np.sqrt(w["var"] + self.node.attr("eps"))
        self._scale = c_array(scale, F32)
        self._shift = c_array(w.get("bias", 0.0) - w["mean"] * scale, F32)

    def run_node(self, inputs: Inputs) -> Outputs:
        x = inputs[0]
        assert x is not None
        if self.node.attr("channels_first") and x.ndim > 2:
            if x.shape[1] != len(self._scale):
                raise ShapeError(f"{self.name!r} takes arrays whose axis 1 is {len(self._scale)}, got shape {x.shape}")
            (y,) = self._last(c_array(np.moveaxis(x, 1, -1), F32))
            return (np.ascontiguousarray(np.moveaxis(y, -1, 1)),)
        return self._last(x)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self._scale, self._shift

    def _last(self, x: np.ndarray) -> Outputs:
        n = len(self._scale)
        rows = _rows(x, n, self.name)
        y = np.empty(x.shape, np.float32)
        self._kernels.scale_shift(rows, n, x, self._scale, self._shift, y)
        return (y,)

    def _kernel(self) -> str:
        return "scale_shift"


class Stack(Layer):
    """Arrays of one shape along a new first axis: the states of single directions become those of a layer."""

    op = "stack"

    def run_node(self, inputs: Inputs) -> Outputs:
        return (np.stack([x for x in inputs if x is not None]),)


class Unstack(Layer):
    """The parts of an array along its first axis: the inverse of :class:`Stack`."""

    op = "unstack"

    def run_node(self, inputs: Inputs) -> Outputs:
        assert inputs[0] is not None
        return tuple(inputs[0])


class Activation(Stateless):
    """An activation by itself; softmax and log_softmax run over the last axis.

    Examples
    --------
    >>> Activation("relu")([-1.0, 2.0])
    array([0., 2.], dtype=float32)
    """

    op = "activation"

    @checked()
    def __init__(self, activation: str | tuple | list, *, name: str = "activation"):
        super().__init__(make_node("activation", name, {}, {"activation": activation}))

    def _build(self) -> None:
        self._activation = activation(self.node.attr("activation"))

    def run_node(self, inputs: Inputs) -> Outputs:
        x = inputs[0]
        assert x is not None
        y = np.empty(x.shape, np.float32)
        _apply(self._kernels, self._activation, x, y)
        return (y,)

    def _kernel(self) -> str:
        return "softmax" if self._activation[0] in ROW_ACTIVATIONS else "activate"
