"""Arithmetic between layers that Keras writes into the graph of a model.

Keras 3 has operations (class "Add" of module ``keras.src.ops.numpy``), Keras 2.4 and later layers that name a function
of TensorFlow (TFOpLambda, SlicingOpLambda), Keras 2.0 to 2.3 nodes of a TensorFlow graph (TensorFlowOpLayer).  All end
in the functions of :data:`FUNCTIONS`; the other tables say which.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import FastrnnError, FormatError, UnsupportedError
from .files import short
from .keras_config import Call, Config, Converted
from .keras_emit import Emitter
from .keras_file import parse_json
from .keras_functions import FUNCTIONS
from .keras_masks import SAME_TENSOR
from .keras_moves import whole_numbers

TF_LAYERS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")


def is_operation(class_name: str) -> bool:
    """Whether an entry of the list of layers is arithmetic."""
    return class_name in TF_LAYERS or ".ops." in class_name.rpartition(">")[0] + "."


def operation_class(class_name: str, item: Config, config: Config) -> str:
    """The class of an entry of the list of layers; ``.h5`` files of Keras 3 do not tell an Add from the layer Add.

    There every layer says whether it is trainable, and no operation does.
    """
    calls = item.get("inbound_nodes")
    by_keras3 = isinstance(calls, list) and calls and isinstance(calls[0], dict)
    if (
        by_keras3
        and item.get("module") is None
        and "trainable" not in config
        and _SAME.get(class_name, class_name) in FUNCTIONS
    ):
        return f"keras.ops>{class_name}"
    return class_name


def operation(call: Call) -> Converted:
    """Convert arithmetic.

    Raises
    ------
    UnsupportedError
        It is not in the tables, or is used in a way that is not supported.
    """
    emit = Emitter(call.name)
    try:
        name, places, options = _named(call)
        if name not in FUNCTIONS:
            raise UnsupportedError(f"the operation {short(name)} is not supported; known are {', '.join(FUNCTIONS)}")
        function = FUNCTIONS[name]
        known = inspect.signature(function).parameters
        options = {key: value for key, value in options.items() if key in known or value not in (None, False, [], "")}
        result = function(emit, *places, **options)
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        # The functions take their arguments for what Keras writes.
        if isinstance(error, FastrnnError):
            raise
        raise UnsupportedError(f"an operation on other arguments than is known ({short(str(error))})") from None
    results = result if isinstance(result, list) else [result]
    return emit.done(*(value if name in SAME_TENSOR else replace(value, mask=None) for value in results))


def _named(call: Call) -> tuple[str, list[Any], dict[str, Any]]:
    """The key of ``FUNCTIONS``, its arguments by place, and those by name."""
    places, options = list(call.arguments), dict(call.options)
    if call.class_name == "TensorFlowOpLayer":
        return _graph_node(call.config, places)
    if call.class_name in TF_LAYERS:
        name, options = _tf_function(call.config, options)
        return name, places, options
    name = call.class_name.rpartition(">")[2]
    name = _SAME.get(name, name)
    hidden = ("name",) if name == "Cast" else ("name", "dtype")
    return name, places, options | {key: value for key, value in call.config.items() if key not in hidden}


_SAME = {
    "TrueDivide": "Divide", "Amax": "Max", "Amin": "Min", "Copy": "Identity", "StopGradient": "Identity",
    "Fabs": "Absolute", "LinalgNorm": "Norm",
}  # fmt: skip
"""Other names of Keras 3."""

TF_FUNCTIONS: dict[str, tuple[str, dict[str, str]]] = {
    # function of TensorFlow: key of FUNCTIONS, its arguments behind the first one under our names
    **{
        name: (ours, {"y": "x2"})
        for ours, names in {
            "Add": ("math.add", "__operators__.add"), "Subtract": ("math.subtract",), "Multiply": ("math.multiply",),
            "Divide": ("math.divide", "math.truediv", "realdiv"), "FloorDivide": ("math.floordiv",),
            "Power": ("math.pow",), "Maximum": ("math.maximum",), "Minimum": ("math.minimum",),
            "Mod": ("math.mod", "math.floormod"), "Equal": ("math.equal",), "NotEqual": ("math.not_equal",),
            "Less": ("math.less",), "LessEqual": ("math.less_equal",), "Greater": ("math.greater",),
            "GreaterEqual": ("math.greater_equal",), "LogicalAnd": ("math.logical_and",),
            "LogicalOr": ("math.logical_or",), "LogicalXor": ("math.logical_xor",),
        }.items()
        for name in names
    },
    **{
        name: (ours, {})
        for ours, names in {
            "Negative": ("math.negative",), "Absolute": ("math.abs",), "Sign": ("math.sign",),
            "Square": ("math.square",), "Sqrt": ("math.sqrt",), "Rsqrt": ("math.rsqrt",),
            "Reciprocal": ("math.reciprocal",), "Exp": ("math.exp",), "Expm1": ("math.expm1",),
            "Log": ("math.log",), "Log1p": ("math.log1p",), "Erf": ("math.erf",), "Floor": ("math.floor",),
            "Ceil": ("math.ceil",), "Round": ("math.round",), "Sin": ("math.sin",), "Cos": ("math.cos",),
            "Tan": ("math.tan",), "Sinh": ("math.sinh",), "Cosh": ("math.cosh",),
            "Tanh": ("math.tanh", "nn.tanh"), "Sigmoid": ("math.sigmoid", "nn.sigmoid"),
            "Softplus": ("math.softplus", "nn.softplus"), "Softsign": ("nn.softsign", "math.softsign"),
            "LogSigmoid": ("math.log_sigmoid",), "Relu": ("nn.relu",), "Relu6": ("nn.relu6",), "Selu": ("nn.selu",),
            "Elu": ("nn.elu",), "Silu": ("nn.silu", "nn.swish"), "LogicalNot": ("math.logical_not",),
            "ZerosLike": ("zeros_like",), "OnesLike": ("ones_like",),
            "Identity": ("identity", "stop_gradient"), "ConvertToTensor": ("convert_to_tensor",),
            "AddN": ("math.add_n",), "Shape": ("shape", "compat.v1.shape"),
        }.items()
        for name in names
    },
    **{
        f"math.reduce_{name}": (ours, {"axis": "axis", "keepdims": "keepdims"})
        for name, ours in {
            "sum": "Sum", "mean": "Mean", "max": "Max", "min": "Min", "prod": "Prod", "any": "Any", "all": "All",
            "variance": "Var", "std": "Std", "logsumexp": "Logsumexp",
        }.items()
    },
    "norm": ("Norm", {"ord": "ord", "axis": "axis", "keepdims": "keepdims"}),
    "math.argmax": ("Argmax", {"axis": "axis"}),
    "math.argmin": ("Argmin", {"axis": "axis"}),
    "math.cumsum": ("Cumsum", {"axis": "axis"}),
    "math.l2_normalize": ("L2Normalize", {"axis": "axis", "epsilon": "epsilon"}),
    "nn.softmax": ("Softmax", {"axis": "axis"}),
    "nn.log_softmax": ("LogSoftmax", {"axis": "axis"}),
    "nn.leaky_relu": ("LeakyRelu", {"alpha": "negative_slope"}),
    "nn.gelu": ("Gelu", {"approximate": "approximate"}),
    "clip_by_value": ("Clip", {"clip_value_min": "x_min", "clip_value_max": "x_max"}),
    "where": ("Where", {"x": "x1", "y": "x2"}),
    "cast": ("Cast", {"dtype": "dtype"}),
    "linalg.matmul": ("Matmul", {"b": "x2", "transpose_a": "transpose_a", "transpose_b": "transpose_b"}),
    "reshape": ("Reshape", {"shape": "newshape"}),
    "expand_dims": ("ExpandDims", {"axis": "axis"}),
    "squeeze": ("Squeeze", {"axis": "axis"}),
    "transpose": ("Transpose", {"perm": "axes"}),
    "concat": ("Concatenate", {"axis": "axis"}),
    "stack": ("Stack", {"axis": "axis"}),
    "unstack": ("Unstack", {"num": "num", "axis": "axis"}),
    "split": ("SizedSplit", {"num_or_size_splits": "sizes", "axis": "axis"}),
    "gather": ("Take", {"indices": "indices", "axis": "axis"}),
    "tile": ("Tile", {"multiples": "repeats"}),
    "repeat": ("Repeat", {"repeats": "repeats", "axis": "axis"}),
    "broadcast_to": ("BroadcastTo", {"shape": "shape"}),
    "reverse": ("Flip", {"axis": "axis"}),
    "pad": ("Pad", {"paddings": "pad_width", "mode": "mode", "constant_values": "constant_values"}),
    "__operators__.getitem": ("GetItem", {"slice_spec": "key"}),
}  # fmt: skip


def _tf_function(config: Config, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The operation that a layer of Keras 2.4 and later names, and its arguments under our names."""
    name = config.get("function")
    if not isinstance(name, str):
        raise FormatError(f"'function' is {short(name)}, expected the name of a function; the file is damaged")
    name = name.removeprefix("tf.").removeprefix("compat.v1.")
    if name not in TF_FUNCTIONS:
        raise UnsupportedError(
            f"the function tf.{short(name)[1:-1]} is not supported; known are {', '.join(TF_FUNCTIONS)}"
        )
    ours, names = TF_FUNCTIONS[name]
    given = {key: value for key, value in options.items() if key != "name" and value is not None}
    if ours == "Gelu":
        given.setdefault("approximate", False)
    if ours in ("Argmax", "Argmin"):
        given.setdefault("axis", 0)
    if ours == "Take":
        given.setdefault("axis", 0)
    return ours, {names.get(key, key): value for key, value in given.items()}


_GRAPH_OPS: dict[str, str] = {
    "AddV2": "Add", "BiasAdd": "Add", "Sub": "Subtract", "Mul": "Multiply", "RealDiv": "Divide", "Div": "Divide",
    "FloorDiv": "FloorDivide", "FloorMod": "Mod", "Pow": "Power", "Neg": "Negative", "Abs": "Absolute",
    "BatchMatMul": "Matmul", "BatchMatMulV2": "Matmul", "MatMul": "Matmul", "ConcatV2": "Concatenate", "Pack": "Stack",
    "SelectV2": "Where", "Select": "Where", "GatherV2": "Take", "Inv": "Reciprocal",
}  # fmt: skip
"""Operator of a TensorFlow graph: key of ``FUNCTIONS``, where they have other names."""


def _graph_node(config: Config, places: list[Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """The operation of a node of a TensorFlow graph, its inputs with the constants among them, and its options."""
    node_def, constants = config.get("node_def"), config.get("constants")
    node_def = parse_json(node_def) if isinstance(node_def, str) else node_def
    constants = {} if constants is None else constants
    if (
        not isinstance(node_def, Mapping)
        or not isinstance(node_def.get("op"), str)
        or not isinstance(constants, Mapping)
    ):
        raise FormatError("'node_def' is not the JSON of a node; the configuration is damaged")
    op, attrs = node_def["op"], node_def.get("attr", {})
    inputs = list(places[0]) if places and isinstance(places[0], list) else list(places)
    for key in sorted(constants, key=lambda key: int(key) if str(key).isdecimal() else 0):
        if not str(key).isdecimal() or int(key) > len(inputs):
            raise FormatError(f"constant {short(key)} of {len(inputs)} inputs; the configuration is damaged")
        inputs.insert(int(key), constants[key])
    name = str(_GRAPH_OPS.get(op, op))
    if not isinstance(attrs, Mapping):
        raise FormatError(f"'attr' is {short(attrs)}, expected an object; the configuration is damaged")
    values = {key: _attribute(value) for key, value in attrs.items()}
    options: dict[str, Any] = {}
    if name == "Matmul":
        options = {f"transpose_{k}": values.get(f"adj_{'xy'[i]}", values.get(f"transpose_{k}", False))
                   for i, k in enumerate("ab")}  # fmt: skip
    elif "keep_dims" in values:
        options = {"keepdims": bool(values["keep_dims"])}
    elif name == "Squeeze":
        options = {"axis": values.get("squeeze_dims") or None}
    elif name == "Stack":
        inputs, options = [inputs], {"axis": int(values.get("axis") or 0)}
    elif name == "Concatenate":
        inputs, options = [inputs[:-1]], {"axis": inputs[-1] if inputs else None}
    elif name == "Cast":
        kinds = {"DT_BOOL": "bool", "DT_INT32": "int32", "DT_INT64": "int64", "DT_FLOAT": "float32"}
        options = {"dtype": kinds.get(str(values.get("DstT")), "float32")}
    elif name == "StridedSlice":
        return "GetItem", [inputs[0], _strided(inputs, values)] if len(inputs) == 4 else [], {}
    elif name == "Take" and len(inputs) == 3:
        inputs, options = inputs[:2], {"axis": inputs[2]}
    return name, inputs, options


def _attribute(value: Any) -> Any:
    """The value of an attribute: JSON names its type, and writes 64 bits as a text."""
    if not isinstance(value, Mapping):
        return None
    for key, inner in value.items():
        if key == "list" and isinstance(inner, Mapping):
            return [int(n) for n in inner.get("i", []) if str(n).lstrip("-").isdecimal()]
        if key == "i":
            return int(inner) if str(inner).lstrip("-").isdecimal() else None
        return inner
    return None


def _strided(inputs: list[Any], values: Mapping[str, Any]) -> list[Any]:
    """The index of a StridedSlice, from its bounds and its masks of bits."""
    begins, ends, steps = (whole_numbers(part, "a bound of a slice") for part in inputs[1:])
    masks = {key: values.get(f"{key}_mask") or 0 for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
    index: list[Any] = []
    for k, (begin, end, step) in enumerate(zip(begins, ends, steps)):
        marked = {key for key, mask in masks.items() if type(mask) is int and mask >> k & 1}
        if "ellipsis" in marked:
            index.append(Ellipsis)
        elif "new_axis" in marked:
            index.append(None)
        elif "shrink_axis" in marked:
            index.append(begin)
        else:
            index.append(slice(None if "begin" in marked else begin, None if "end" in marked else end, step))
    return index
