"""Models: a graph of layers with named inputs and outputs, and the functions that make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from . import _core, cells, runtime
from .arguments import advice, checked, described, near
from .arrays import as_array, as_float32, is_whole
from .engine import Convolution, Executable
from .errors import ArgumentError, FormatError, ShapeError, UnsupportedError
from .explain import explain
from .fingerprint import Fingerprint, of_model
from .float_mode import in_default_mode
from .graph.lengths import WithLengths, with_lengths
from .graph.optimize import optimize
from .graph.streaming import Streamed, streamed
from .inspect import batch_axes, optional_inputs
from .layers import Activation, BatchNorm, Dense, Embedding, Layer, LayerNorm, Masking, Stack, Unstack
from .lazy_array import from_file
from .model_store import ModelStore
from .recurrent import Recurrent
from .sequences import as_batch, is_list_of_sequences
from .spec import OPS, Graph, ModelSpec, Node, Tensor, with_arrays
from .streams import Pool, Store, Stream
from .tolerance import recorded_problems

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

LAYER_OPTIONS = {"x", "state", "lengths", "mask", "out", "outputs"}
"""What a recurrent layer takes by name."""

_CELLS: dict[str, type[Layer]] = {"lstm": cells.LSTMCell, "gru": cells.GRUCell, "rnn": cells.RNNCell}


def pack(graph: Graph, backend: str | None = None, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What runs the nodes of a graph and of the bodies in it, by their names: layers, and packed convolutions.

    Those that are ``known`` already, of the same attributes and the same arrays, are taken from there.
    """
    packed: dict[str, Any] = {}
    for node in graph.all_nodes():
        old = (known or {}).get(node.name)
        if old is not None and _same(old.node, node):
            packed[node.name] = old
        elif node.op in LAYERS:
            packed[node.name] = build_layer(node, backend)
        elif node.op in ("conv", "conv_transpose"):
            packed[node.name] = Convolution(node, backend)
    return packed


def _same(node: Node, other: Node) -> bool:
    """Whether two nodes need the same packed weights."""
    return (node.op, node.attrs, node.weights.keys()) == (other.op, other.attrs, other.weights.keys()) and all(
        array is other.weights[key] or np.array_equal(array, other.weights[key]) for key, array in node.weights.items()
    )


def build_layer(node: Node, backend: str | None = None) -> Layer:
    """The layer that runs a node."""
    kinds = _CELLS if OPS[node.op].attrs.get("unbatched") is not None and node.attr("unbatched") else LAYERS
    return kinds[node.op].from_node(node, backend)


class _SequencesGiven(Exception):  # noqa: N818 (a question, not an error)
    """An input is a list of sequences of different lengths."""


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

    @checked()
    @in_default_mode
    def __init__(
        self,
        spec: ModelSpec,
        *,
        backend: str | None = None,
        threads: int | None = None,
        packed: Mapping[str, Any] | None = None,
    ):
        spec.validate()
        threads = None if threads is None else runtime.check_threads(threads, "threads")
        self.spec = spec
        self.graph = optimize(spec)
        self.inputs, self.outputs = list(spec.inputs), list(spec.outputs)
        self._backend, self._threads = backend, threads
        self._packed = pack(self.graph, backend, packed)
        self._isa_kernels = _core.RowKernels()
        self.layers = {name: layer for name, layer in self._packed.items() if isinstance(layer, Layer)}
        for layer in self.layers.values():
            layer.threads = threads
        self._input_names = [t.name for t in self.inputs]
        self._output_names = [t.name for t in self.outputs]
        self._names_taken = dict.fromkeys(self._input_names).keys()
        self._taken = [(t.name, np.dtype(t.dtype)) for t in self.inputs]
        self._executable = self._executable_for(self._output_names)
        first = next(iter(self.layers.values()), None)  # a graph may have nothing to run
        alone = len(spec.nodes) == 1 and spec.nested_state
        self._bare = first if alone and isinstance(first, Recurrent) else None
        self._optional = optional_inputs(spec)
        self._fingerprint: Fingerprint | None = None
        self._rebuilt_from: Model | None = None
        self._streams: dict[frozenset[tuple[str, str]] | None, tuple[Streamed, Model]] = {}

    def _executable_for(self, outputs: list[str]) -> Executable:
        choices = [t.name for t in self.inputs if t.shape == () and not t.dtype.startswith("float")]
        return Executable(
            self.graph.nodes,
            self._input_names,
            outputs,
            self.graph.constants,
            self._packed,
            choices,
            optional_by_value=True,
            check=self._check_shapes,
            isa_kernels=self._isa_kernels,
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run on arrays in the order of ``inputs``, or by their names: ``model(ids, speaker=s)``.

        One output gives an array, several a tuple in the order of ``outputs``.  A model that is one recurrent layer
        takes and returns what the layer does: ``y, state = model(x, state=None, lengths=None)``; where a final
        recurrent layer came from PyTorch the result is ``(y, state)`` too.

        Parameters
        ----------
        *inputs, **named
            A list of sequences of different lengths stands for their batch.
        lengths : (batch,) integers in 0 .. seq_len, optional
            Steps that each sequence has; see :meth:`run`.  An input of that name comes first.

        Raises
        ------
        ShapeError
            Inputs are missing, unknown or given twice, or arrays do not fit.
        UnsupportedError
            Nodes cannot respect lengths; all of them are named.
        """
        if self._bare is not None and not (named and (named.keys() - LAYER_OPTIONS) & self._names_taken):
            if named and (unknown := sorted(named.keys() - LAYER_OPTIONS)):
                known = sorted(LAYER_OPTIONS | self._names_taken)
                hint = near(unknown[0], known)
                raise ArgumentError(f"no input or option {unknown[0]!r}{hint}; known: {', '.join(known)}")
            return self._bare(*inputs, **named)
        feeds, lengths = dict(zip(self._input_names, inputs)), None
        if named:
            if "lengths" not in self._names_taken:
                lengths = named.pop("lengths", None)
            if twice := sorted(feeds.keys() & named):
                raise ShapeError(f"given by position and by name: {', '.join(twice)}")
            feeds |= named
        least = 0 if named else len(self.inputs) - len(self._optional)
        if not least <= len(inputs) <= len(self.inputs):
            raise ShapeError(
                f"the model takes {len(self.inputs)} input(s) ({self._names(self.inputs)}), got {len(inputs)}"
            )
        results = self._run(self._executable, feeds, lengths)
        if self.spec.nested_state:
            return results[0], (tuple(results[1:]) if len(results) > 2 else results[1])
        return results[0] if len(results) == 1 else tuple(results)

    def run(
        self, feeds: Mapping[str, Any], outputs: str | Iterable[str] | None = None, lengths: Any = None
    ) -> dict[str, np.ndarray]:
        """Run by names: ``{input: array}`` gives ``{output: array}``, all outputs or those asked for.

        Parameters
        ----------
        feeds : dict of arrays
            A list of sequences of different lengths stands for their batch.
        outputs : name or names, optional
        lengths : (batch,) integers in 0 .. seq_len, optional
            Steps that each sequence of a padded batch has, in all inputs that have sequences.  Each row then has the
            result of its sequence alone; outputs with steps are 0 beyond it.  An input named ``lengths`` comes first.

        Raises
        ------
        ShapeError
            Names, shapes or lengths do not fit.
        UnsupportedError
            Nodes cannot respect lengths; all of them are named.
        """
        wanted = self._wanted(outputs)
        if not isinstance(feeds, Mapping):
            raise ArgumentError(self._no_mapping(feeds))
        if lengths is not None and "lengths" in self._names_taken:
            feeds, lengths = {"lengths": lengths, **feeds}, None
        values = dict(zip(self._output_names, self._run(self._executable, feeds, lengths)))
        return {name: values[name] for name in wanted}

    def _wanted(self, outputs: str | Iterable[str] | None) -> list[str]:
        """Names of the outputs that are asked for."""
        if outputs is None:
            return self._output_names
        wanted = [outputs] if isinstance(outputs, str) or not isinstance(outputs, Iterable) else list(outputs)
        unknown = [name for name in wanted if not isinstance(name, str) or name not in self._output_names]
        if unknown:
            raise ShapeError(
                f"no output named {', '.join(map(described, unknown))}; the model has {self._names(self.outputs)}"
                f"{near(unknown[0], self._output_names)}"
            )
        return wanted

    def _no_mapping(self, feeds: Any) -> str:
        names = ", ".join(f"{name!r}: array" for name in self._input_names)
        return f"run takes a dict of arrays by input name, got {described(feeds)}; write model.run({{{names}}})"

    def trace(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Run by names and return every tensor of the graph that runs (``self.graph``), the inputs included."""
        if not isinstance(feeds, Mapping):
            raise ArgumentError(self._no_mapping(feeds))
        written = [name for node in self.graph.nodes for name in node.outputs if name]
        given = [name for name in self._input_names if feeds.get(name) is not None]
        made = list(dict.fromkeys([*given, *self.graph.constants, *written]))
        return dict(zip(made, self._run(self._executable_for(made), feeds)))

    def _run(self, executable: Executable, feeds: Mapping[str, Any], lengths: Any = None) -> list[np.ndarray]:
        if feeds.keys() != self._names_taken:
            feeds = self._complete(feeds)
        if lengths is not None:
            return self._run_sequences(feeds, lengths)
        try:
            arrays = [
                value if type(value) is np.ndarray and value.dtype is tensor_dtype else self._take(name, value)
                for (name, tensor_dtype), value in zip(self._taken, map(feeds.__getitem__, self._input_names))
            ]
        except _SequencesGiven:
            if executable is not self._executable:
                raise ShapeError("sequences of different lengths are for calls and run(); give arrays") from None
            return self._run_sequences(feeds, None)
        return executable.run(arrays, self._threads or runtime.get_num_threads())

    def _run_sequences(self, feeds: Mapping[str, Any], lengths: Any) -> list[np.ndarray]:
        """Outputs for a batch of sequences of different lengths."""
        plan, model = self._with_lengths
        return model._run(model._executable, as_batch(plan, feeds, lengths))

    @cached_property
    def _with_lengths(self) -> tuple[WithLengths, Model]:
        plan = with_lengths(self.graph)
        model = self.rebuilt(plan.spec)
        model._executable.memory = self._executable.memory  # the plans of both are this model's
        return plan, model

    @cached_property
    def _batch_axes(self) -> dict[str, int]:
        return batch_axes(self.spec)

    def _complete(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """All inputs, absent ones as None."""
        names = self._input_names
        wrong = sorted(str(name) for name in feeds if name not in names)
        missing = sorted(name for name in names if feeds.get(name) is None and name not in self._optional)
        if wrong or missing:
            parts = [f"unknown: {', '.join(wrong)}"] if wrong else []
            parts += [f"missing: {', '.join(missing)}"] if missing else []
            hint = near(wrong[0], missing or names) if wrong else ""
            taken = self._names(self.inputs)
            raise ShapeError(f"inputs do not fit ({'; '.join(parts)}); the model takes {taken}{hint}")
        return {name: feeds.get(name) for name in names}

    def _take(self, name: str, value: Any) -> np.ndarray | None:
        if value is None:
            if name not in self._optional:
                self._complete({name: None})
            return None
        tensor = self.inputs[self._input_names.index(name)]
        if isinstance(value, (list, tuple)) and is_list_of_sequences(value, self._batch_axes.get(name, 0)):
            raise _SequencesGiven
        return as_float32(value, name) if tensor.dtype == "float32" else _as_dtype(value, tensor)

    def _check_shapes(self, arrays: Sequence[np.ndarray | None]) -> None:
        for tensor, array in zip(self.inputs, arrays):
            shape = tensor.shape
            if array is None or shape is None or self._bare is not None or self._fits(array.shape, shape):
                continue
            text = ", ".join("?" if n is None else str(n) for n in shape)
            raise ShapeError(f"input {tensor.name!r} must be ({text}), got shape {array.shape}")

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
        """Bytes of packed weights: of all that a call reads, constants of the graph too."""
        constants = sum(array.nbytes for _, array in self.graph.all_constants())
        return sum(layer.nbytes for layer in self._packed.values()) + constants

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Weights by ``layer.weight`` name, and constants of the graph by theirs.

        Those of a ``.frnn`` file are read from it; ``FormatError`` where it has changed since it was loaded.
        """
        weights = {f"{node.name}.{key}": value for node in self.spec.all_nodes() for key, value in node.weights.items()}
        arrays = weights | dict(self.spec.all_constants())
        return {name: from_file(array) for name, array in arrays.items()}

    @checked(batch=1, seq_len=0)
    def explain(self, batch: int = 1, seq_len: int = 100) -> list[dict[str, Any]]:
        """What runs each node in a call of this size.

        Rows have ``layer``, ``op``, ``kernel``, ``backend``, ``nbytes`` (of packed weights) and ``slow``: why
        a node is, or empty.  Those of recurrent layers also have the instruction set and the split over threads.
        """
        return explain(self.spec, self._executable, self._packed, batch, seq_len)

    def rebuilt(self, spec: ModelSpec) -> Model:
        """A model of another graph, with the packed weights of this one where they are the same."""
        model = Model(spec, backend=self._backend, threads=self._threads, packed=self._packed)
        model._rebuilt_from = self
        return model

    def fingerprint(self, constants: Mapping[str, Any], states: Mapping[str, str]) -> Fingerprint:
        """What the states of its streams belong to: this model, or the one that it was rebuilt from, with constant
        inputs, and outputs that go into inputs.  It is made when it is first asked for: all weights are read."""
        if self._rebuilt_from is not None:
            return self._rebuilt_from.fingerprint(constants, states)
        if self._fingerprint is None:
            self._fingerprint = of_model(self.spec)  # two threads make the same
        written = {t.name: k for k, t in enumerate(self.outputs)}
        fixed = tuple(
            (k, np.asarray(constants[t.name], t.dtype)) for k, t in enumerate(self.inputs) if t.name in constants
        )
        pairs = tuple((k, written.get(states[t.name])) for k, t in enumerate(self.inputs) if t.name in states)
        return self._fingerprint.of(fixed, pairs)

    @checked()
    def streamed(self, states: Mapping[str, str] | None = None) -> tuple[Streamed, Model]:
        """The model that carries its state from call to call, for :mod:`fastrnn.model_store`; made once."""
        key = None if states is None else frozenset(states.items())
        if key not in self._streams:
            made = streamed(self.spec, states)
            self._streams[key] = made, self.rebuilt(made.spec)
        return self._streams[key]

    def stream(
        self, batch: int = 1, *, constants: Mapping[str, Any] | None = None, states: Mapping[str, str] | None = None
    ) -> Stream:
        """A live sequence, or ``batch`` of them that advance together; see :class:`fastrnn.streams.Stream`.

        Parameters
        ----------
        constants : mapping, optional
            Inputs that are the same at every step: ``{"sr": 16000}``.
        states : mapping of output to input, optional
            Which outputs go into which inputs of the next step, where names and shapes do not tell.

        Raises
        ------
        UnsupportedError
            Layers read steps that have not come yet; all of them are named.
        """
        return Stream(self, batch, constants=constants, states=states)

    def pool(
        self,
        capacity: int,
        *,
        idle_limit: float | None = None,
        constants: Mapping[str, Any] | None = None,
        states: Mapping[str, str] | None = None,
    ) -> Pool:
        """Live sequences by the thousand; see :class:`fastrnn.streams.Pool`, and :meth:`stream` for the options."""
        return Pool(self, capacity, idle_limit=idle_limit, constants=constants, states=states)

    def store(
        self, capacity: int, constants: Mapping[str, Any] | None = None, states: Mapping[str, str] | None = None
    ) -> Store:
        """States of ``capacity`` streams, for :mod:`fastrnn.streams`."""
        if self._bare is not None:
            return self._bare.store(capacity, constants, states)
        for name, given in (("constants", constants), ("states", states)):
            if not isinstance(given, (Mapping, type(None))):
                raise ArgumentError(f"{name} is {described(given)}, expected a dict by names of inputs")
        return ModelStore(self, capacity, constants or {}, states)

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[Any, ...]]:
        from .loaders import native

        return _from_bytes, (native.spec_to_bytes(self.spec), self._backend, self._threads)

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{node.name}: {node.op}' for node in self.spec.nodes)})"


class Weights(Model):
    """Weights by name from a file that does not say how they make a network: ``tensors``, and nothing that runs."""

    def __init__(self, tensors: Mapping[str, np.ndarray], reason: str):
        self.inputs, self.outputs, self.layers = [], [], {}
        self._tensors, self._reason = tensors, reason  # those of a file are read when they are asked for

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of the file by their names there."""
        return dict(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.tensors.values())

    def __getattr__(self, name: str) -> Any:
        """Whatever else a model has needs the network."""
        if name.startswith("__"):  # pickle and copy ask for methods
            raise AttributeError(name)
        raise UnsupportedError(f"the file names weights, and no network that could be run: {self._reason}")

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[Any, ...]]:
        return Weights, (self.tensors, self._reason)

    def __repr__(self) -> str:
        return f"Weights({len(self._tensors)} tensors)"


def _as_dtype(value: Any, tensor: Tensor) -> np.ndarray:
    """Whole numbers or truth values as the array that an input declares."""
    array, wanted = as_array(value), np.dtype(tensor.dtype)
    if array.dtype == wanted:
        return array
    if array.size and not is_whole(array):
        raise ShapeError(f"input {tensor.name!r} takes whole numbers ({tensor.dtype}), got dtype {array.dtype}")
    return array.astype(wanted)


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


@in_default_mode
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
        hint = "; write Sequential(*layers)" if isinstance(layers[0], (list, tuple)) else ""
        raise ArgumentError(
            f"a model is made of fastrnn's layers, got {', '.join(strange)}; from_torch and from_keras convert others"
            f"{hint}"
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


@in_default_mode
def as_model(layer: Layer | Model) -> Model:
    """A model of one layer; a model is returned as it is."""
    if isinstance(layer, Model):
        return layer
    if not isinstance(layer, Layer):
        raise ArgumentError(f"expected a model or a layer of fastrnn, got {described(layer)}{advice(layer)}")
    node = layer.node
    final = isinstance(layer, Recurrent)
    outputs = [Tensor(name, None) for name in (node.outputs if final else node.outputs[:1])]
    inputs = [
        Tensor(name, None, {"mask": "bool", "ids": "int64", "lengths": "int64"}.get(name, "float32"))
        for name in node.inputs
        if name
    ]
    return Model(ModelSpec([node], inputs, outputs, nested_state=final), backend=layer._backend, threads=layer.threads)


@checked()
@in_default_mode
def load(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
    verify: bool = False,
    **options: Any,
) -> Model:
    """Load a trained network.

    Parameters
    ----------
    path : str or path
        ``.keras``, ``.h5``, ``.weights.h5`` (with ``config=``), ``.pt``/``.pth`` and ``.safetensors`` (a bare recurrent
        layer, or ``prefix=``), ``.onnx``, ``.frnn``.  The format is told by the contents.
    backend : "packed" or "blas", optional
    threads : int, optional
        Threads of this model's calls; default: ``fastrnn.set_num_threads``.
    dtype : "float32"
        The arithmetic of the kernels.
    verify : bool
        Run the model on the inputs that its ``.frnn`` file recorded; the outputs must be the recorded ones, bit for
        bit or, where rounding may differ, within what :func:`fastrnn.verify` allows.
    **options
        Of the format: ``prefix=``, ``nonlinearity=`` (PyTorch), ``config=`` (Keras),
        ``outputs=`` (Keras, ONNX).

    Raises
    ------
    FormatError
        The file is damaged, hostile, or not of a known format; or its outputs are not the recorded ones.
    UnsupportedError
        The network uses something that fastrnn does not run; everything of the kind is named.

    Notes
    -----
    A ``.pt``, ``.jit`` or ``.safetensors`` file names weights and does not say of what network.  One that holds more
    than one recurrent layer, and is loaded without ``prefix=``, gives a model that has ``tensors``, the raw arrays by
    name, and cannot be run; :func:`load_layers` builds layers from it.
    """
    from . import loaders

    _check_dtype(dtype)
    try:
        spec = loaders.load_spec(path, **options)
    except FormatError as error:
        tensors = None if options else loaders.load_weights(path)
        if tensors is None:
            raise
        return Weights(tensors, str(error))
    model = Model(spec, backend=backend, threads=threads)
    if verify:
        _replay(model, path)
    return model


def _replay(model: Model, path: str | os.PathLike[str]) -> None:
    if not any(t.name in model.spec.recorded for t in model.outputs):
        raise UnsupportedError(
            f"{os.fspath(path)!r} holds no recorded outputs; fastrnn.save(..., recorded=...) and"
            " `fastrnn convert --verify 1` store them"
        )
    problems = recorded_problems(with_arrays(model.spec, from_file), model.run)
    if problems:
        raise FormatError(
            f"{os.fspath(path)!r} does not give what it recorded: {'; '.join(problems)}; make the file again from its"
            " source, and report it if that does not help"
        )


@checked()
@in_default_mode
def load_layers(
    path: str | os.PathLike[str],
    names: str | Iterable[str] | Mapping[str, Any],
    *,
    backend: str | None = None,
    **options: Any,
) -> dict[str, Layer | Model]:
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
        A convolution, and what is several nodes here, comes as a model of its own.
    """
    from . import loaders

    specs = loaders.load_layer_specs(path, names, **options)
    return {name: _single(spec, backend) for name, spec in specs.items()}


def _single(spec: ModelSpec, backend: str | None) -> Layer | Model:
    known = len(spec.nodes) == 1 and spec.nodes[0].op in LAYERS
    return build_layer(spec.nodes[0], backend) if known else Model(spec, backend=backend)


@checked()
@in_default_mode
def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The raw arrays of any model file by their names in it; those of nested dictionaries are joined with dots.

    Nothing is built, so it also reads files whose network fastrnn cannot run.  Optimizer states of Keras are left out.

    Raises
    ------
    FormatError, UnsupportedError
        The file cannot be read.
    """
    from . import loaders

    return loaders.load_tensors(path)


@checked()
@in_default_mode
def from_torch(
    module: Any, *, backend: str | None = None, threads: int | None = None, dtype: str = "float32", **options: Any
) -> Layer | Model:
    """A layer or model from a live PyTorch module or a state_dict.

    Parameters
    ----------
    module : nn.LSTM, nn.GRU, nn.RNN, their cells, nn.Sequential of supported layers, any other module whose forward
        torch.fx can capture, or a state_dict
    **options
        ``prefix=`` takes the keys that begin with it and ignores the others; ``nonlinearity=`` of an RNN state_dict;
        ``example_inputs=`` shows what the forward of a module takes, where its layers do not tell.

    Returns
    -------
    Layer
        Of a single layer of torch.nn or a state_dict: ``y, state = layer(x, state=None, lengths=None)``.
    Model
        Of every other module.
    """
    from .loaders import torch as loader

    _check_dtype(dtype)
    known = ("prefix", "nonlinearity", "example_inputs")
    if unknown := sorted(set(options) - set(known)):
        raise ArgumentError(
            f"from_torch has no option {unknown[0]!r}{near(unknown[0], (*known, 'backend', 'threads', 'dtype'))}"
        )
    spec = loader.from_object(module, **options)
    spec.validate()
    if loader.is_layer(module) and len(spec.nodes) == 1:
        layer = build_layer(spec.nodes[0], backend)
        layer.threads = threads
        return layer
    return Model(spec, backend=backend, threads=threads)


@checked()
@in_default_mode
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


@checked()
@in_default_mode
def from_onnx(
    model: Any,
    *,
    outputs: list[str] | None = None,
    backend: str | None = None,
    threads: int | None = None,
    dtype: str = "float32",
) -> Model:
    """A model from the path or the bytes of an ONNX file, or an ``onnx.ModelProto``.

    ``outputs`` keeps only what these tensors need; a node stands for all its outputs.  Bytes have no external data.
    """
    from .loaders import onnx as loader

    _check_dtype(dtype)
    return Model(loader.from_object(model, outputs=outputs), backend=backend, threads=threads)


@checked()
@in_default_mode
def save(model: Model | Layer, path: str | os.PathLike[str], *, recorded: Mapping[str, Any] | None = None) -> None:
    """Write a model as ``.frnn``: safetensors with the graph in its metadata.

    An existing file is replaced whole or not at all, also in a crash, and gives its mode and owner to the new one.
    Symbolic links are followed; other hard links keep the old contents.

    Parameters
    ----------
    path : str or path
        A regular file, or none yet; ``.frnn`` is the usual end of its name, one of another format is refused.
    recorded : dict of arrays, optional
        Inputs by name, and outputs: those that the framework of the model gave, or else what the model gives.  The
        file holds them, for ``load(path, verify=True)``.

    Raises
    ------
    FormatError
        There is something at ``path`` that is no regular file, or its name is that of another format.
    OSError
        The folder or the file may not be written, or the disk is full; the old file is as it was.
    """
    from .loaders import check_destination, native

    check_destination(path)  # before the work, not after it
    native.save_spec(_with_recorded(as_model(model), recorded), path)


def _with_recorded(model: Model, recorded: Mapping[str, Any] | None) -> ModelSpec:
    if recorded is None:
        return model.spec
    known = [t.name for t in (*model.inputs, *model.outputs)]
    if unknown := sorted(set(recorded) - set(known)):
        raise ShapeError(f"recorded arrays {unknown} are neither inputs nor outputs; those are {known}")
    arrays = {name: as_array(array) for name, array in recorded.items()}
    feeds = {t.name: arrays[t.name].astype(t.dtype) for t in model.inputs if t.name in arrays}
    given = model.run(feeds)
    return replace(model.spec, recorded={**given, **arrays, **feeds})


def _check_dtype(dtype: str) -> None:
    if dtype != "float32":
        raise ShapeError(f'dtype={dtype!r} is not available; this version computes in "float32"')
