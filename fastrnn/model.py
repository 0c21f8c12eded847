"""Models: a graph of layers with named inputs and outputs, and the functions that make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import cells, runtime
from .arrays import as_array, as_float32
from .errors import ShapeError
from .layers import Activation, BatchNorm, Dense, Embedding, Layer, LayerNorm, Masking, Stack, Unstack
from .recurrent import Recurrent
from .spec import OPS, ModelSpec, Node, Tensor

LAYERS: dict[str, type[Layer]] = {
    "lstm": cells.LSTM,
    "gru": cells.GRU,
    "rnn": cells.RNN,
    "dense": Dense,
    "embedding": Embedding,
    "masking": Masking,
    "layer_norm": LayerNorm,
    "batch_norm": BatchNorm,
    "activation": Activation,
    "stack": Stack,
    "unstack": Unstack,
}
"""The class that runs each kind of node."""

_CELLS: dict[str, type[Layer]] = {"lstm": cells.LSTMCell, "gru": cells.GRUCell, "rnn": cells.RNNCell}


def build_layer(node: Node, backend: str | None = None) -> Layer:
    """The layer that runs a node."""
    kinds = _CELLS if OPS[node.op].attrs.get("unbatched") is not None and node.attr("unbatched") else LAYERS
    return kinds[node.op].from_node(node, backend)


class Model:
    """A network: call it with arrays, or run it by names.

    A model is immutable after it is built; any number of threads may call it at once.

    Attributes
    ----------
    inputs, outputs : list of fastrnn.spec.Tensor
        Objects with ``name``, ``shape`` (None where free) and ``dtype``, in the file's order.
    spec : ModelSpec
        The graph: nodes, weights, attributes.
    layers : dict
        Layers by name, in running order.
    """

    def __init__(self, spec: ModelSpec, *, backend: str | None = None, threads: int | None = None):
        spec.validate()
        threads = None if threads is None else runtime.check_threads(threads, "threads")
        self.spec = spec
        self.inputs, self.outputs = list(spec.inputs), list(spec.outputs)
        self.layers = {node.name: build_layer(node, backend) for node in spec.nodes}
        self._backend, self._threads = backend, threads
        for layer in self.layers.values():
            layer.threads = threads
        self._steps = [(self.layers[node.name], node) for node in spec.nodes]
        first = next(iter(self.layers.values()), None)  # a graph may have nothing to run
        alone = len(spec.nodes) == 1 and spec.nested_state
        self._bare = first if alone and isinstance(first, Recurrent) else None
        self._optional = {
            t for node in spec.nodes for t, what in zip(node.inputs, OPS[node.op].inputs) if what.endswith("?")
        }

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run on arrays in the order of ``inputs``.

        One output gives an array, several a tuple in the order of ``outputs``.  A model that is one recurrent layer
        takes and returns what the layer does: ``y, state = model(x, state=None, lengths=None)``; where a final
        recurrent layer came from PyTorch the result is ``(y, state)`` too.
        """
        if self._bare is not None:
            return self._bare(*inputs, **options)
        if options:
            raise TypeError(
                f"unexpected option(s) {', '.join(options)}: only a model of one recurrent layer takes them"
            )
        required = [t.name for t in self.inputs if t.name not in self._optional]
        if not len(required) <= len(inputs) <= len(self.inputs):
            raise ShapeError(
                f"the model takes {len(self.inputs)} input(s) ({self._names(self.inputs)}), got {len(inputs)}"
            )
        values = self._run({t.name: x for t, x in zip(self.inputs, inputs)})
        results = [values[t.name] for t in self.outputs]
        if self.spec.nested_state:
            return results[0], (tuple(results[1:]) if len(results) > 2 else results[1])
        return results[0] if len(results) == 1 else tuple(results)

    def run(self, feeds: Mapping[str, Any], outputs: str | Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Run by names: ``{input: array}`` gives ``{output: array}``, all outputs or those asked for."""
        wanted = (
            [t.name for t in self.outputs]
            if outputs is None
            else [outputs]
            if isinstance(outputs, str)
            else list(outputs)
        )
        unknown = [name for name in wanted if name not in {t.name for t in self.outputs}]
        if unknown:
            raise ShapeError(
                f"no output named {', '.join(map(repr, unknown))}; the model has {self._names(self.outputs)}"
            )
        values = self._run(feeds)
        return {name: values[name] for name in wanted}

    def trace(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run by names and return every tensor of the graph."""
        return {name: value for name, value in self._run(feeds).items() if value is not None}

    def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        names = {t.name for t in self.inputs}
        wrong = sorted(set(feeds) - names)
        missing = sorted(names - set(feeds) - self._optional)
        if wrong or missing:
            parts = [f"unknown: {', '.join(wrong)}"] if wrong else []
            parts += [f"missing: {', '.join(missing)}"] if missing else []
            raise ShapeError(f"inputs do not fit ({'; '.join(parts)}); the model takes {self._names(self.inputs)}")
        values: dict[str, Any] = dict.fromkeys(names)
        for tensor in self.inputs:
            if feeds.get(tensor.name) is not None:
                values[tensor.name] = self._take(tensor, feeds[tensor.name])
        for layer, node in self._steps:
            results = layer.run_node([values[name] if name else None for name in node.inputs])
            values.update(zip(node.outputs, results))
        values.pop("", None)
        return values

    def _take(self, tensor: Tensor, value: Any) -> np.ndarray:
        array = as_float32(value, tensor.name) if tensor.dtype == "float32" else as_array(value)
        shape = tensor.shape
        if shape is not None and self._bare is None and not self._fits(array.shape, shape):
            text = ", ".join("?" if n is None else str(n) for n in shape)
            raise ShapeError(f"input {tensor.name!r} must be ({text}), got shape {array.shape}")
        return array

    @staticmethod
    def _fits(got: tuple[int, ...], declared: Sequence[int | None]) -> bool:
        return len(got) == len(declared) and all(d is None or d == n for n, d in zip(got, declared))

    @staticmethod
    def _names(tensors: Iterable[Tensor]) -> str:
        return ", ".join(repr(t.name) for t in tensors)

    @property
    def batch_first(self) -> bool:
        """Of a model that is one recurrent layer; else True."""
        return self._bare.batch_first if self._bare is not None else True

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(layer.nbytes for layer in self.layers.values())

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Weights by ``layer.weight`` name, as float32 arrays."""
        return {f"{node.name}.{key}": value for node in self.spec.nodes for key, value in node.weights.items()}

    def explain(self, batch: int = 1, seq_len: int = 100) -> list[dict[str, Any]]:
        """How each layer runs in a call of this size: kernel, backend, bytes of weights; of recurrent layers also
        instruction set and split over threads."""
        return [layer.explain(batch, seq_len) for layer in self.layers.values()]

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[Any, ...]]:
        from .loaders import native

        return _from_bytes, (native.spec_to_bytes(self.spec), self._backend, self._threads)

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{node.name}: {node.op}' for node in self.spec.nodes)})"


def _from_bytes(data: bytes, backend: str | None, threads: int | None) -> Model:
    from .loaders import native

    return Model(native.spec_from_bytes(data), backend=backend, threads=threads)


def _features(layer: Layer) -> tuple[int | None, int | None]:
    """Sizes of the last axis that a layer takes and gives; None: any, and what it takes."""
    if isinstance(layer, Recurrent):
        return layer.input_size, layer._features
    if isinstance(layer, Dense):
        return layer.input_size, layer.output_size
    return None, layer.node.weights["weight"].shape[1] if isinstance(layer, Embedding) else None


def Sequential(*layers: Layer) -> Model:  # noqa: N802 (it stands where a class does elsewhere)
    """A model of layers in a row.

    A recurrent layer passes its y on; a final one makes the model return ``(y, state)``.  Masks that an
    :class:`Embedding` or :class:`Masking` makes reach the recurrent layers after it.

    Examples
    --------
    >>> model = Sequential(Dense(np.eye(2)), Activation("relu"))
    >>> model([[1.0, -1.0]])
    array([[1., 0.]], dtype=float32)
    """
    strange = [type(layer).__name__ for layer in layers if not isinstance(layer, Layer)]
    if strange:
        raise TypeError(
            f"a model is made of fastrnn's layers, got {', '.join(strange)}; from_torch and from_keras convert others"
        )
    backends = {layer._backend for layer in layers} - {None}
    if len(backends) > 1:
        raise ShapeError(
            f"the layers of a model have one backend, got {' and '.join(sorted(map(str, backends)))}; build them alike"
        )
    nodes: list[Node] = []
    tensor, mask = "x", ""
    features: int | None = None
    for k, layer in enumerate(layers):
        node, name = layer.node, f"{k}_{layer.name}"
        takes, gives = _features(layer)
        if None not in (takes, features) and takes != features:
            raise ShapeError(f"{layer.name!r} takes {takes} features, what stands before it gives {features}")
        features = gives or features
        op = OPS[node.op]
        inputs = [tensor if what == "x" or what == "ids" else mask if what == "mask?" else "" for what in op.inputs]
        written = [f"{name}.{what.rstrip('?')}" for what in op.outputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        nodes.append(Node(node.op, name, tuple(inputs), tuple(written), node.attrs, node.weights))
        tensor = written[0]
        if node.op == "masking" or (node.op == "embedding" and node.attr("mask_zero")):
            mask = written[1]
        elif isinstance(layer, Recurrent) and not node.attr("return_sequences"):
            mask = ""
    if not nodes:
        raise ShapeError("a model needs at least one layer")
    final = isinstance(layers[-1], Recurrent)
    ids = nodes[0].op == "embedding"
    outputs = [Tensor(name, None) for name in (nodes[-1].outputs if final else nodes[-1].outputs[:1])]
    spec = ModelSpec(nodes, [Tensor("x", None, "int64" if ids else "float32")], outputs, nested_state=final)
    return Model(spec, backend=next(iter(backends), None))


def as_model(layer: Layer | Model) -> Model:
    """A model of one layer; a model is returned as it is."""
    if isinstance(layer, Model):
        return layer
    node = layer.node
    final = isinstance(layer, Recurrent)
    outputs = [Tensor(name, None) for name in (node.outputs if final else node.outputs[:1])]
    inputs = [
        Tensor(name, None, "bool" if name == "mask" else "int64" if name == "ids" else "float32")
        for name in node.inputs
        if name
    ]
    return Model(ModelSpec([node], inputs, outputs, nested_state=final), backend=layer._backend, threads=layer.threads)


def load(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
    **options: Any,
) -> Model:
    """Load a trained network.

    Parameters
    ----------
    path : str or path
        ``.keras``, ``.h5``, ``.weights.h5`` (with ``config=``), ``.pt``/``.pth`` and ``.safetensors`` (a bare recurrent
        layer, or ``prefix=``), ``.frnn``.  The format is told by the contents.
    backend : "packed" or "blas", optional
    threads : int, optional
        Threads of this model's calls; default: ``fastrnn.set_num_threads``.
    dtype : "float32"
        The arithmetic of the kernels.
    **options
        Of the format: ``prefix=``, ``nonlinearity=`` (PyTorch), ``config=``, ``outputs=`` (Keras).

    Raises
    ------
    FormatError
        The file is damaged, hostile, or not of a known format.
    UnsupportedError
        The network uses something that fastrnn does not run; everything of the kind is named.
    """
    from . import loaders

    _check_dtype(dtype)
    return Model(loaders.load_spec(path, **options), backend=backend, threads=threads)


def load_layers(
    path: str | os.PathLike[str], names: Any, *, backend: str | None = None, **options: Any
) -> dict[str, Layer]:
    """Single layers of a file by name, wherever they stand in it.

    Parameters
    ----------
    names : list of str, or mapping of prefix to class
        ``["lstm_1"]``, or ``{"encoder.rnn": fastrnn.LSTM}`` where the tensors alone do not tell the kind.
    **options
        Of the format: ``config=`` (Keras weights files).

    Returns
    -------
    dict of name to layer
    """
    from . import loaders

    return {name: build_layer(node, backend) for name, node in loaders.load_layer_nodes(path, names, **options).items()}


def from_torch(
    module: Any, *, backend: str | None = None, threads: int | None = None, dtype: str = "float32", **options: Any
) -> Layer | Model:
    """A layer or model from a live PyTorch module or a state_dict.

    Parameters
    ----------
    module : nn.LSTM, nn.GRU, nn.RNN, their cells, nn.Sequential of supported layers, or a state_dict
    **options
        ``prefix=`` takes the keys that begin with it and ignores the others; ``nonlinearity=`` of an RNN state_dict.

    Returns
    -------
    Layer
        Of a single module or a state_dict: ``y, state = layer(x, state=None, lengths=None)``.
    Model
        Of a Sequential.
    """
    from .loaders import torch as loader

    _check_dtype(dtype)
    spec = loader.from_object(module, **options)
    spec.validate()
    if len(spec.nodes) == 1 and type(module).__name__ != "Sequential":
        layer = build_layer(spec.nodes[0], backend)
        layer.threads = threads
        return layer
    return Model(spec, backend=backend, threads=threads)


def from_keras(
    model_or_layer: Any,
    *,
    outputs: list[str] | None = None,
    backend: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
) -> Model:
    """A model from a live Keras model or built layer; ``outputs`` keeps only what these layers or tensors need."""
    from .loaders import keras as loader

    _check_dtype(dtype)
    return Model(loader.from_object(model_or_layer, outputs=outputs), backend=backend, threads=threads)


def save(model: Model | Layer, path: str | os.PathLike[str]) -> None:
    """Write a model as ``.frnn``: safetensors with the graph in its metadata.

    An existing file is replaced whole or not at all.
    """
    from .loaders import native

    native.save_spec(as_model(model).spec, path)


def _check_dtype(dtype: str) -> None:
    if dtype != "float32":
        raise ShapeError(f'dtype={dtype!r} is not available; this version computes in "float32"')
