"""What ONNX says of operators and types: schemas from the onnx package, declared types of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, UnsupportedError
from .files import name_list
from .onnx_file import dtype_name
from .onnx_node import Call

OLDEST = 7
"""The oldest version of the standard operators that is read."""


def newest() -> int:
    from onnx import defs

    return defs.onnx_opset_version()


def check_version(opsets: Mapping[str, int], standard: bool) -> None:
    """Refuse a version of the standard operators that is not read; ``standard``: some of the nodes are of them."""
    version = opsets.get("", 0)
    if OLDEST <= version <= newest() or ("" not in opsets and not standard):
        return
    if version < 1:
        raise UnsupportedError(
            "it does not say which version of ONNX's operators it uses; export it again with one of"
            f" {OLDEST} to {newest()}, such as opset_version=17 of torch.onnx.export, or name the version it was made"
            " for: `model = onnx.load(path)`, `del model.opset_import[:]`,"
            " `model.opset_import.append(onnx.helper.make_opsetid('', 17))`, `onnx.save(model, 'named.onnx')`"
        )
    step = "update the onnx package"
    if version < OLDEST:
        step = "convert it: `onnx.save(onnx.version_converter.convert_version(onnx.load(path), 17), 'converted.onnx')`"
    raise UnsupportedError(f"it uses version {version} of ONNX's operators, {OLDEST} to {newest()} are read; {step}")


_QUANTIZED = re.compile("Q[A-Z]|.*[Qq]uant|MatMulInteger|MatMul.*(NBits|Q4)")
"""Names of onnxruntime's operators on weights below 32 bits."""


def other_domain(domain: str, op_type: str) -> str:
    """What to do about an operator that is not of the standard set."""
    if domain.startswith("com.microsoft"):
        if _QUANTIZED.match(op_type):
            return "where onnxruntime's quantization puts it; load the float model that was quantized"
        return (
            "where onnxruntime's graph optimization puts it; load the model from before it, or export without it"
            " (no optimized_model_filepath, no onnxruntime.transformers.optimizer)"
        )
    if domain.startswith("ai.onnx.ml"):
        return "classical machine learning, which is not run; export the network alone, without its preprocessing"
    return "only ONNX's standard operators are run; export the model with these alone"


def check_schema(call: Call) -> Any:
    """The schema of an operator; its attributes and the number of its inputs and outputs must fit it."""
    from onnx import defs

    try:
        schema = defs.get_schema(call.op_type, call.version, "")
    except defs.SchemaError:
        schema = None
    if schema is None or schema.deprecated:
        raise UnsupportedError(
            f"is no operator of version {call.version} of ONNX's standard set; export the model again, with standard"
            " operators of the version that the file names"
        )
    unknown = set(call.attributes) - set(schema.attributes)
    if unknown:
        raise FormatError(f"has the unknown attributes {name_list(unknown)}; the file is damaged")
    if not schema.min_input <= len(call.inputs) <= schema.max_input or len(call.wanted) > schema.max_output:
        raise FormatError(
            f"has {len(call.inputs)} inputs and {len(call.wanted)} outputs, expected {schema.min_input} to"
            f" {schema.max_input} and at most {schema.max_output}; the file is damaged"
        )
    single = defs.OpSchema.FormalParameterOption.Single
    missing = [p.name for k, p in enumerate(schema.inputs) if p.option == single and call.get(k) is None]
    if missing:
        raise FormatError(f"its inputs {name_list(missing)} are missing; the file is damaged")
    return schema


def declared(proto: Any) -> tuple[tuple[int | None, ...] | None, str]:
    """Shape and dtype of a ValueInfoProto; None where they are free."""
    kind = proto.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)
    return shape, dtype_name(kind.elem_type) or "float32"


def is_untaken(proto: Any) -> bool:
    """Whether an input is something that cannot be given."""
    return not proto.type.HasField("tensor_type") or dtype_name(proto.type.tensor_type.elem_type) is None
