"""Operators of ONNX that have no kernel: nodes of the kind ``operator``, which hold their NodeProto."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from .. import onnx_operator
from ..errors import UnsupportedError
from .limits import MAX_OPERATOR
from .onnx_file import dtype_name
from .onnx_node import Call, Value

REFUSED = (
    "Bernoulli", "ImageDecoder", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip
"""Operators of the standard set that are not run: random numbers and images.  Neither are those that work on
sequences, optionals and strings, or have bodies."""

_OLDEST = {"Hardmax": 13, "Resize": 11, "RoiAlign": 16}
"""Operators that meant something else before these versions, which the implementations do not know."""

_SINCE = {"DequantizeLinear": 19, "QuantizeLinear": 19}
"""Operators whose implementations begin with these versions, which compute what those before them do."""

_TYPE_NAMES = {"float": "float32", "double": "float32", "float16": "float32", "bfloat16": "float32"}


def slow(call: Call) -> list[Value]:
    """Emit the operator itself."""
    if call.op_type in REFUSED:
        raise UnsupportedError("makes random numbers or reads images, which is not run; remove it from the model")
    if call.version < _OLDEST.get(call.op_type, 0):
        raise UnsupportedError(
            f"version {call.version} computes something else than version {_OLDEST[call.op_type]}, which is run;"
            " convert it with onnx.version_converter"
        )
    kinds = [parameter.types for parameter in (*call.schema.inputs, *call.schema.outputs)]
    if any(all(not _is_array(kind) for kind in types) for types in kinds) or any(
        a.HasField("g") or a.graphs for a in call.attributes.values()
    ):
        raise UnsupportedError(
            "works on sequences, optional values or strings, or has a body; only operators on arrays are run"
        )
    from onnx import NodeProto

    count = max((k + 1 for k, wanted in enumerate(call.wanted) if wanted), default=1)
    count = max(count, call.schema.min_output)
    proto = NodeProto(
        op_type=call.op_type,
        input=[f"x{k}" if value else "" for k, value in enumerate(call.inputs)],
        output=[f"y{k}" for k in range(count)],
        attribute=[_plain(name, attribute) for name, attribute in sorted(call.attributes.items())],
    )
    if proto.ByteSize() > MAX_OPERATOR:
        raise UnsupportedError(f"its attributes take {proto.ByteSize()} bytes, at most {MAX_OPERATOR} are kept")
    attrs: dict[str, Any] = {
        "kind": call.op_type,
        "version": max(call.version, _SINCE.get(call.op_type, 0)),
        "proto": base64.b64encode(proto.SerializeToString(deterministic=True)).decode(),
    }
    values = call.emit_many("operator", call.inputs, outputs=count, rank=None, **attrs)
    for node in call.nodes[-1:]:
        onnx_operator.check(node)
    for value, dtype in zip(values, _output_types(call)):
        value.dtype = dtype if value.array is None else value.dtype
    return values


def _is_array(kind: str) -> bool:
    return kind.startswith("tensor(") and kind != "tensor(string)"


def _plain(name: str, attribute: Any) -> Any:
    """The attribute as it is in the file, or as the function's call gives it."""
    copy = type(attribute)()
    copy.CopyFrom(attribute)
    copy.name = name
    copy.ClearField("doc_string")
    return copy


def _output_types(call: Call) -> Iterator[str]:
    """The dtype of each output: that of an input of the same type, the only one there is, or what ``dtype`` says."""
    dtypes = {parameter.type_str: value.dtype for parameter, value in zip(call.schema.inputs, call.inputs) if value}
    for k in range(len(call.proto.output)):
        parameter = call.schema.outputs[min(k, len(call.schema.outputs) - 1)]
        types = {_TYPE_NAMES.get(kind[7:-1], kind[7:-1]) for kind in parameter.types}
        stated = call.get_int("dtype", 0) or call.get_int("output_dtype", 0) or call.get_int("to", 0)
        if parameter.type_str in dtypes:
            yield dtypes[parameter.type_str]
        elif len(types) == 1:
            yield types.pop()
        else:
            yield (dtype_name(stated) if stated else None) or "float32"
