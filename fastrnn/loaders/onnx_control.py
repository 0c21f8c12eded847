"""If, Loop and Scan of ONNX: ``converter(call, builder, scope)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import FormatError, UnsupportedError
from .onnx_node import Call, Value


def _if(call: Call, builder: Any, scope: Any) -> Sequence[Value]:
    condition = call.need(0)
    if condition.array is not None:
        if condition.array.size != 1:
            raise FormatError(f"its condition has {condition.array.size} elements, expected 1; the file is damaged")
        chosen = "then_branch" if condition.array.reshape(())[()] else "else_branch"
        results = builder.inline(call.get_graph(chosen), scope)
    else:
        branches = [builder.body(call.get_graph(f"{which}_branch"), scope, ()) for which in ("then", "else")]
        (then, results), (other, others) = branches
        _check_count(len(others), len(results), "outputs in its else branch")
        _check_count(len(results), len(call.wanted), "outputs in its branches")
        for a, b in zip(results, others):
            a.rank = a.rank if a.rank == b.rank else None
        results = _emit(call, "if", (condition,), results, {"then": then, "else": other})
    _check_count(len(results), len(call.wanted), "outputs in its branch")
    return results


def _loop(call: Call, builder: Any, scope: Any) -> Sequence[Value]:
    carried = [call.need(k) for k in range(2, len(call.inputs))]
    inputs = [Value("", "int64", 0), Value("", "bool", 0), *carried]
    body, results = builder.body(call.get_graph("body"), scope, inputs)
    _check_count(len(results) - 1, len(call.wanted), "outputs after the condition in its body")
    finals = [
        Value("", value.dtype, value.rank if k < len(carried) or value.rank is None else value.rank + 1)
        for k, value in enumerate(results[1:])
    ]
    return _emit(call, "loop", call.inputs, finals, {"body": body})


def _scan(call: Call, builder: Any, scope: Any) -> Sequence[Value]:
    if call.version < 9:
        raise UnsupportedError("Scan before version 9 works on batches; convert it with onnx.version_converter")
    count = call.get_int("num_scan_inputs")
    carried = len(call.inputs) - count
    if count < 1 or carried < 0:
        raise FormatError(f"it scans {count} of {len(call.inputs)} inputs; the file is damaged")
    inputs = [call.need(k) for k in range(len(call.inputs))]
    parts = [Value("", x.dtype, None if x.rank is None or k < carried else x.rank - 1) for k, x in enumerate(inputs)]
    body, results = builder.body(call.get_graph("body"), scope, parts)
    _check_count(len(results), len(call.wanted), "outputs in its body")
    attrs = {
        "num_scanned": count,
        "axes": call.get_ints("scan_input_axes"),
        "directions": call.get_ints("scan_input_directions"),
        "output_axes": call.get_ints("scan_output_axes"),
        "output_directions": call.get_ints("scan_output_directions"),
    }
    for key, numbers in attrs.items():
        expected = len(results) - carried if "output" in key else count
        if isinstance(numbers, list) and len(numbers) != expected:
            raise FormatError(f"{len(numbers)} scan {key}, expected {expected}; the file is damaged")
    finals = [
        Value("", value.dtype, value.rank if k < carried or value.rank is None else value.rank + 1)
        for k, value in enumerate(results)
    ]
    return _emit(call, "scan", inputs, finals, {"body": body}, **attrs)


def _emit(
    call: Call, op: str, inputs: Sequence[Value | None], results: list[Value], graphs: dict[str, Any], **attrs: Any
) -> list[Value]:
    """The node, with outputs of the types of ``results``."""
    values = call.emit_many(op, inputs, outputs=len(results), graphs=graphs, **attrs)
    for value, like in zip(values, results):
        value.dtype, value.rank = like.dtype, like.rank
    return values


def _check_count(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise FormatError(f"{found} {what}, expected {expected}; the file is damaged")


CONTROL_FLOW: dict[str, Callable[[Call, Any, Any], Sequence[Value]]] = {"If": _if, "Loop": _loop, "Scan": _scan}
