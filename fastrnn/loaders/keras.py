"""Weights and graphs from Keras, without Keras or TensorFlow: files are read as JSON and HDF5, nothing in them runs.

Supported are Sequential and functional models, nested ones included, of the layers of
:data:`fastrnn.loaders.keras_layers.CONVERTERS`, saved by Keras 2 or 3 as ``.keras``, ``.h5`` or ``.weights.h5``; and
the same as live Keras 3 objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from ..spec import ModelSpec
from .hdf5 import Stored
from .keras_build import build_spec, find_layers, layer_spec
from .keras_config import MODELS
from .keras_file import LayerWeights, Version, errors_name, live_config, open_checkpoint, read_config
from .keras_recurrent import CELLS
from .keras_weights import CLASSES, layer_of_weights, missing_layers, resets_after


def load_spec(path: str | os.PathLike[str], *, config: Any = None, outputs: Iterable[str] | None = None) -> ModelSpec:
    """Load a whole model.

    Parameters
    ----------
    path : str or path
        A ``.keras`` or ``.h5`` file, or with ``config`` a file of weights alone.  Its content tells what it is.
    config : dict, path or Keras model, optional
        The model that the weights belong to: ``model.get_config()``, a file with ``model.to_json()``, a ``.keras`` or
        ``.h5`` file, or the model itself.
    outputs : list of str, optional
        Layers or tensors to compute; everything that they do not need is left out.  A layer stands for its model
        outputs, or for all its outputs where it has none.  Default: the outputs of the model.

    Returns
    -------
    ModelSpec
        Tensors have the names of the layers that make them; the second output of a layer is ``name:1``.

    Raises
    ------
    FormatError
        The file is damaged or hostile, or weights are missing or belong to no layer.
    ShapeError
        A weight does not have the shape that the configuration asks for.
    UnsupportedError
        It needs layers or options that are not supported, all of them named; or h5py is not installed.

    Notes
    -----
    A ``stateful`` layer computes what Keras computes right after ``reset_states()``.  ``dropout`` and
    ``recurrent_dropout`` are for training.
    """
    with open_checkpoint(path) as checkpoint:
        model, version = checkpoint.config, checkpoint.version
        if config is not None:
            model, stated = read_config(config)
            version = version or stated
        if model is None:
            raise FormatError(
                "has weights and no configuration; pass config=FILE_OR_MODEL: the .keras, .h5 or"
                " .json file of the model, its get_config(), or the live model; single layers: load_layers()"
            )
        return build_spec(model, checkpoint.weights, Version.parse(version), checkpoint.where, outputs)


def load_layers(
    path: str | os.PathLike[str], layers: Iterable[str] | Mapping[str, Any], *, config: Any = None
) -> dict[str, ModelSpec]:
    """Load single layers, for models that cannot be loaded as a whole.

    Parameters
    ----------
    path : str or path
        Any file that :func:`load_spec` or :func:`load_tensors` reads.
    layers : list of str, or dict
        Names of layers of the model; or, where the file has no configuration, where the weights of each layer start
        in the file ("rnn_1", "layers/lstm").  A dict also says what each of them is: one of our classes or its ``op``,
        the name of a Keras class, or the whole serialized form ``{"class_name": "LSTM", "config": {...}}``; in a list,
        or with None, it follows from the names and shapes of the weights, where these leave no doubt.  Sizes, biases,
        directions and ``reset_after`` follow from the weights, too; what else is not given is as in Keras'
        constructor, and a recurrent layer returns sequences; the text "GRU" without biases resets before.
    config : optional
        As for :func:`load_spec`.

    Returns
    -------
    dict
        A spec for each layer, its input called x.  A recurrent layer also gives its final state.

    Raises
    ------
    FormatError, ShapeError, UnsupportedError
        As for :func:`load_spec`; also where the file has no such layer.
    """
    with open_checkpoint(path) as checkpoint:
        where, weights = checkpoint.where, checkpoint.weights
        model, stated = (checkpoint.config, checkpoint.version) if config is None else read_config(config)
        version = Version.parse(checkpoint.version or stated)
        given = layers if isinstance(layers, Mapping) else dict.fromkeys(layers)
        kinds = {name: getattr(kind, "op", kind) for name, kind in given.items()}
        open_kinds = [name for name, kind in kinds.items() if kind is None or (type(kind) is str and kind in CLASSES)]
        described, known = _described(model, weights, open_kinds)
        specs = {}
        for name, kind in kinds.items():
            if name in described:
                specs[name] = layer_spec(*described[name], version, where)
                continue
            part = weights.below(name)
            if not part.found:
                raise missing_layers([name], known if name in open_kinds else [])
            serialized: Any = kind
            if name in open_kinds:
                serialized = layer_of_weights(part, kind, name)
            elif isinstance(kind, str):
                options = {"return_sequences": True} if kind in CELLS else {}
                if CELLS.get(kind) == "gru":
                    options["reset_after"] = resets_after(part) or False
                serialized = {"class_name": kind, "config": options}
            specs[name] = layer_spec(serialized, part, version, where)
        return specs


def _described(
    model: Any, weights: LayerWeights, names: list[str]
) -> tuple[dict[str, tuple[dict[str, Any], LayerWeights]], list[str]]:
    """The layers of the configuration that have these names, and the names of all; none where it is of no use."""
    if model is None or not names:
        return {}, []
    try:
        return find_layers(model, weights, names)
    except UnsupportedError:  # a class of its author's own
        return {}, []


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Load the raw weights by their path in the HDF5 file; the state of an optimizer is left out.

    Raises
    ------
    FormatError, UnsupportedError
        The file is damaged or hostile; h5py is not installed.
    """
    with open_checkpoint(path) as checkpoint:
        arrays = {stored.name: stored.read() for stored in checkpoint.weights.found.values()}
    return {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}


def has_model(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds the configuration of its model beside the weights."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config is not None


def supported() -> dict[str, Iterable[str]]:
    """What is converted, for the table in docs/formats.md."""
    from .keras_functions import FUNCTIONS
    from .keras_layers import CONVERTERS

    cells = [name for name in CELLS if name.endswith("Cell")]
    return {"layers": CONVERTERS, "cells": [*cells, "StackedRNNCells"], "operations": sorted(FUNCTIONS)}


def from_object(model_or_layer: Any, *, outputs: Iterable[str] | None = None) -> ModelSpec:
    """Convert a live Keras 3 model or layer.

    Parameters
    ----------
    model_or_layer : keras.Model or keras.layers.Layer
        Built: called once, or with a known input shape.
    outputs : list of str, optional
        As for :func:`load_spec`; for models only.

    Raises
    ------
    UnsupportedError
        It is not built, not a Keras 3 object, or needs what is not supported.
    """
    config, stated = live_config(model_or_layer)
    version = Version.parse(stated)
    where = f"{type(model_or_layer).__name__} {model_or_layer.name!r}"
    if not model_or_layer.built:
        raise UnsupportedError(f"{where} is not built, so it has no weights yet; call it once, or build(input_shape)")
    is_model = config.get("class_name") in MODELS
    weights = LayerWeights(False, dict(_live_tensors(model_or_layer, "")))
    with errors_name(where):
        if is_model:
            return build_spec(config, weights, version, where, outputs)
        return layer_spec(config, weights, version, where)


def _live_tensors(layer: Any, where: str) -> Iterator[tuple[str, Stored]]:
    """The weights of a layer, those in models under the names of all models around them."""
    inside = getattr(layer, "layer", layer)  # of a TimeDistributed
    if hasattr(inside, "layers"):
        for part in inside.layers:
            yield from _live_tensors(part, f"{where}{part.name}/")
    else:
        yield from ((f"{where}{variable.path}", _live_tensor(variable)) for variable in layer.weights)


def _live_tensor(variable: Any) -> Stored:
    def read() -> np.ndarray:
        import keras

        return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)

    return Stored(variable.path, tuple(variable.shape), read)
