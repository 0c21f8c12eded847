"""Which layer some weights of Keras belong to, where no configuration tells: their names and shapes do."""

from __future__ import annotations

import re
from typing import Any

from ..errors import FormatError, UnsupportedError
from ..spec import GATES
from .files import name_list
from .keras_file import LayerWeights

CLASSES = {
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn": "SimpleRNN",
    "dense": "Dense",
    "embedding": "Embedding",
    "layer_norm": "LayerNormalization",
    "batch_norm": "BatchNormalization",
}
"""Our kinds of layers, and the classes of Keras that they are."""

_CELL_OF_GATES = {len(GATES[cell]): cell for cell in ("lstm", "gru", "rnn")}
_LABELS = {
    "recurrent": ("kernel", "recurrent_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "embedding": ("embeddings",),
    "layer_norm": ("gamma", "beta"),
    "batch_norm": ("gamma", "beta", "moving_mean", "moving_variance"),
}
Shapes = dict[str, tuple[int, ...]]


def layer_of_weights(weights: LayerWeights, kind: str | None, where: str) -> dict[str, Any]:
    """The serialized form of the layer that has such weights: ``kind`` is a key of ``CLASSES``, or None to find it out.

    Raises
    ------
    FormatError
        They are the weights of something else; the error says of what.
    UnsupportedError
        They can be those of several layers, all of which the error names.
    """
    forward = _forward(weights)
    inside, wrapped = forward or ("", weights)
    fitting = _fitting(wrapped)
    shapes = ", ".join(f"{name} {stored.shape}" for name, stored in sorted(weights.found.items())[:12])
    found = f"{where!r} has the weights {shapes}"
    classes = " or ".join(CLASSES[op] for op in fitting)
    if kind is not None and kind not in fitting:
        raise FormatError(
            f"{found}: asked for {CLASSES[kind]}, but they can be those of {classes or 'no such layer'}; ask for that,"
            ' or pass {"class_name": ..., "config": {...}}'
        )
    if kind is None and (len(fitting) != 1 or fitting == ["layer_norm"]):
        raise UnsupportedError(
            f"{found}, which can be those of {classes or 'none of ' + ', '.join(CLASSES.values())}"
            f"{' or another normalisation' if 'layer_norm' in fitting else ''}; pass config=FILE_OR_MODEL, or a mapping"
            f" to a class, as in {{{where!r}: {CLASSES[fitting[0]] if fitting else 'Conv1D'!r}}}"
        )
    op = kind or fitting[0]
    config: dict[str, Any] = {"return_sequences": True} if op in GATES else {}
    if op == "gru":
        after = resets_after(wrapped)
        if after is None:
            raise UnsupportedError(
                f"{found}, a GRU without biases, which do not tell reset_after; pass config=FILE_OR_MODEL, or"
                ' {"class_name": "GRU", "config": {"return_sequences": True, "reset_after": ...}}'
            )
        config["reset_after"] = after
    if op in ("layer_norm", "batch_norm"):
        labels = _labelled(wrapped, op)
        config |= {"scale": "gamma" in labels, "center": "beta" in labels}
    layer: dict[str, Any] = {"class_name": CLASSES[op], "config": config}
    if forward is None:
        return layer
    config["name"] = inside
    return {"class_name": "Bidirectional", "config": {"layer": layer}}


def _forward(weights: LayerWeights) -> tuple[str, LayerWeights] | None:
    """The name and the weights of the first of the two layers of a Bidirectional, if they are such."""
    if weights.by_path:
        part = weights.part("forward_layer")
        return ("", part) if part.found else None
    levels = {level for name in weights.found for level in name.split("/")[:-1] if re.match("forward_.", level)}
    if len(levels) != 1 or not any("/backward_" in f"/{name}" for name in weights.found):
        return None
    (level,) = levels
    return level.removeprefix("forward_"), weights.part("", level)


def _fitting(weights: LayerWeights) -> list[str]:
    """The kinds of layers that have weights of such names and shapes."""
    recurrent = _labelled(weights, "recurrent")
    kernel, hidden = recurrent.get("kernel", ()), recurrent.get("recurrent_kernel", ())
    if len(kernel) == len(hidden) == 2 and hidden[0] and kernel[1] == hidden[1] and hidden[1] % hidden[0] == 0:
        cell = _CELL_OF_GATES.get(hidden[1] // hidden[0])
        return [cell] if cell else []
    dense, fitting = _labelled(weights, "dense"), []
    if len(dense.get("kernel", ())) == 2 and dense.get("bias", dense["kernel"][1:]) == dense["kernel"][1:]:
        fitting.append("dense")
    if len(_labelled(weights, "embedding").get("embeddings", ())) == 2:
        fitting.append("embedding")
    for op in ("layer_norm", "batch_norm"):
        shapes = _labelled(weights, op)
        whole = {"moving_mean", "moving_variance"} <= set(shapes) if op == "batch_norm" else bool(shapes)
        if whole and len(set(shapes.values())) == 1 and (op == "layer_norm" or len(shapes["moving_mean"]) == 1):
            fitting.append(op)
    return fitting


def _labelled(weights: LayerWeights, kind: str) -> Shapes:
    """The shapes of the weights by their labels, if they are those of such a layer; else empty.

    Weights that only have numbers are all weights of the layer in order; two of a batch normalisation are its
    statistics.
    """
    labels = _LABELS[kind]
    if not weights.by_path:
        shapes = {label: shape for k, label in enumerate(labels) if (shape := weights.shape(k, label)) is not None}
        return shapes if len(shapes) == len(weights.found) else {}
    part = weights.part("cell") if kind == "recurrent" and weights.part("cell").found else weights
    count = len(part.found)
    if kind == "batch_norm" and count == 2:
        labels = labels[2:]
    shapes = {label: stored.shape for k, label in enumerate(labels) if (stored := part.found.get(f"vars/{k}"))}
    whole = len(shapes) == count == len(weights.found) and (
        kind not in ("layer_norm", "batch_norm") or count == len(labels)
    )
    return shapes if whole else {}


def resets_after(weights: LayerWeights) -> bool | None:
    """What the biases of a GRU tell of ``reset_after``; None where there are none."""
    shapes = _labelled(weights, "recurrent")
    return shapes["bias"] != shapes["kernel"][1:] if "bias" in shapes else None


def missing_layers(names: list[str], known: list[str]) -> FormatError:
    """The error for names that are neither of layers nor of weights."""
    if known:
        return FormatError(f"no layer is called {name_list(names)}; its layers: {name_list(known)}")
    return FormatError(f"no weight starts with {name_list(names)}; load_tensors() shows all names")
