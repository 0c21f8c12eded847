"""ONNX models for the tests, and what runs them: our loader with the reference or the engine, and ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.loaders import onnx as loader
from fastrnn.spec import ModelSpec

onnx = pytest.importorskip("onnx", reason="the ONNX loader needs onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
Arrays = Mapping[str, np.ndarray]

node = helper.make_node


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def value(name: str, like: np.ndarray | None = None, shape: Sequence[Any] | None = None) -> Any:
    """Name and type of a tensor; float32 where nothing is known."""
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32) if like is None else like.dtype)
    return helper.make_tensor_value_info(name, dtype, shape if like is None else like.shape)


def graph(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[str], weights: Arrays | None = None) -> Any:
    initializers = [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    return helper.make_graph(list(nodes), "g", list(inputs), [value(name) for name in outputs], initializers)


def model(
    nodes: Sequence[Any],
    feeds: Arrays,
    outputs: Sequence[str],
    weights: Arrays | None = None,
    opset: int = 18,
    **more: Any,
) -> Any:
    """A model whose inputs are like the arrays that feed it; outputs have no declared shape."""
    whole = graph(nodes, [value(name, array) for name, array in feeds.items()], outputs, weights)
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", ())]
    made = helper.make_model(whole, opset_imports=opsets, ir_version=8, **more)
    for output in made.graph.output:  # of any type: ONNX Runtime infers it
        output.ClearField("type")
    return made


def spec_of(proto: Any, **options: Any) -> ModelSpec:
    """What the loader makes of the bytes of a model, valid."""
    spec = loader.from_object(proto.SerializeToString(), **options)
    spec.validate()
    return spec


def ours(proto: Any, feeds: Arrays, dtype: type = np.float64) -> list[np.ndarray]:
    """The outputs by the reference, in the precision ``dtype``."""
    spec = spec_of(proto)
    given = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in feeds.items()}
    with reference.precision(dtype):
        tensors = reference.run(spec, given)
    return [tensors[t.name] for t in spec.outputs]


def engines(proto: Any, feeds: Arrays) -> list[np.ndarray]:
    """The outputs by the engine."""
    spec = spec_of(proto)
    made = fastrnn.Model(spec).run(feeds)
    return [made[t.name] for t in spec.outputs]


def theirs(proto: Any, feeds: Arrays) -> list[np.ndarray]:
    """The outputs by ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def theirs_or_none(proto: Any, feeds: Arrays) -> list[np.ndarray] | None:
    """The same; None where ONNX Runtime refuses the model: it wants some inputs to be constant."""
    try:
        return theirs(proto, feeds)
    except Exception:
        return None


def assert_close(got: Sequence[np.ndarray], want: Sequence[np.ndarray], tolerance: float, where: object = "") -> None:
    """Shapes and, but for the precision, dtypes are equal; floats differ by at most ``tolerance``, relative above 1."""
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want)):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (where, k)
        if b.dtype.kind in "fV":  # V: bfloat16
            assert a.dtype.kind == "f", (where, k)
            np.testing.assert_allclose(a, b.astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=str((where, k)))
        else:
            assert a.dtype == b.dtype, (where, k)
            np.testing.assert_array_equal(a, b, err_msg=str((where, k)))


def bind(proto: Any, feeds: Arrays, names: Sequence[str]) -> tuple[Any, dict[str, np.ndarray]]:
    """The model with the inputs ``names`` as initializers, and the feeds that are left."""
    bound = onnx.ModelProto()
    bound.CopyFrom(proto)
    kept = [v for v in bound.graph.input if v.name not in names]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.graph.initializer.extend(numpy_helper.from_array(np.asarray(feeds[name]), name) for name in names)
    return bound, {name: array for name, array in feeds.items() if name not in names}


@cache
def node_cases() -> list[Any]:
    """ONNX's own tests of single operators."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)
