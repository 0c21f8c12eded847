"""ONNX models, version 7 of the standard operators and later; nothing in a file is run at load.

The onnx package is needed for its protobuf classes, for the descriptions of operators, and for those operators that
have no kernel here (:mod:`fastrnn.onnx_operator`).  What runs natively is :data:`fastrnn.loaders.onnx_ops.NATIVE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import FormatError
from ..spec import ModelSpec
from .files import short
from .onnx_file import OnnxFile, load_tensors

__all__ = ["from_object", "load_layers", "load_spec", "load_tensors"]


def load_spec(path: str | os.PathLike[str], *, outputs: Iterable[str] | None = None) -> ModelSpec:
    """Load a ``.onnx`` file.

    Parameters
    ----------
    path : str or path
        External data must lie in its folder or below it, as regular files.
    outputs : list of str, optional
        Tensors, or nodes for all their outputs; everything that they do not need is left out.  Default: the outputs
        of the model.

    Raises
    ------
    FormatError
        The file is damaged or hostile.
    UnsupportedError
        It needs operators or options that are not supported, all of them named; or onnx is not installed.
    """
    spec = _whole(path, outputs)
    spec.source = os.fspath(path)
    return spec


def from_object(model: Any, *, outputs: Iterable[str] | None = None) -> ModelSpec:
    """A spec from a path, the bytes of a file, or an ``onnx.ModelProto``; bytes have no external data."""
    if isinstance(model, (str, os.PathLike)):
        return load_spec(model, outputs=outputs)
    return _whole(model, outputs)


def supported() -> dict[str, Iterable[str]]:
    """Operators that run natively, for the table in docs/formats.md; all others of the standard set are slow."""
    from .onnx_ops import NATIVE

    return {"operators": NATIVE}


def load_layers(path: str | os.PathLike[str], names: Iterable[str] | Mapping[str, Any]) -> dict[str, ModelSpec]:
    """Nodes by name, those in bodies too, each alone in a spec; problems of other nodes do not matter."""
    from .onnx_spec import single_layer

    builder = _converted(path)
    return {name: single_layer(builder, name) for name in names}


def _whole(source: Any, outputs: Iterable[str] | None) -> ModelSpec:
    from .onnx_spec import whole_model

    return whole_model(_converted(source, outputs))


def _converted(source: Any, outputs: Iterable[str] | None = None) -> Any:
    from .onnx_build import Builder

    builder = Builder(OnnxFile(source), None if outputs is None else list(outputs))
    try:
        builder.build()
    except (UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"the model is damaged: {short(str(error))}; get a fresh copy of the file") from None
    return builder
