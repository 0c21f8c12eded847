"""The shapes of weights: which belong to a node, and what they have to be for each other and its attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .attributes import MAX_CONV_SPATIAL, MAX_SPATIAL

GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": "n"}
"""Gates of each cell, in our order (PyTorch's)."""

Weights = Mapping[str, np.ndarray]
Attr = Callable[[str], Any]


def weight_suffixes(num_layers: int, direction: str) -> list[str]:
    """Suffixes of recurrent weights in the order in which they are stacked.

    >>> weight_suffixes(2, "bidirectional")
    ['_l0', '_l0_reverse', '_l1', '_l1_reverse']
    """
    ends = ["", "_reverse"] if direction == "bidirectional" else [""]
    return [f"_l{layer}{end}" for layer in range(num_layers) for end in ends]


def _recurrent(op: str, attr: Attr, weights: Weights) -> Iterable[str]:
    gates, directions = len(GATES[op]), 2 if attr("direction") == "bidirectional" else 1
    hh = weights.get("weight_hh_l0")
    if hh is None or hh.ndim != 2 or hh.shape[0] % gates or not hh.size:
        yield f"weight_hh must be ({gates} * hidden_size, output_size), got {None if hh is None else hh.shape}"
        return
    hidden = hh.shape[0] // gates
    projection, first = weights.get("weight_hr_l0"), weights.get("weight_ih_l0")
    output = projection.shape[0] if projection is not None and projection.ndim == 2 else hidden
    size = first.shape[-1] if first is not None and first.ndim else 0
    for k, suffix in enumerate(weight_suffixes(attr("num_layers"), attr("direction"))):
        shapes = {
            "weight_ih": (gates * hidden, size if k < directions else directions * output),
            "weight_hh": (gates * hidden, output),
            "bias_ih": (gates * hidden,),
            "bias_hh": (gates * hidden,),
            "weight_hr": (output, hidden),
            "peephole": (3 * hidden,),
        }
        for name, shape in shapes.items():
            array = weights.get(name + suffix)
            if array is None and name in ("weight_ih", "weight_hh"):
                yield f"{name}{suffix} is missing"
            elif array is not None and array.shape != shape:
                yield f"{name}{suffix} must be {shape}, got {array.shape}"
        if ("weight_hr" + suffix in weights) != (projection is not None):
            yield f"weight_hr{suffix} must be given for all layers and directions, or for none"


def _vectors(weights: Weights, size: int, *names: str) -> Iterable[str]:
    for name in names:
        if name in weights and weights[name].shape != (size,):
            yield f"{name} must be ({size},), got {weights[name].shape}"


def _dense(op: str, attr: Attr, weights: Weights) -> Iterable[str]:
    shape = weights["weight"].shape
    if len(shape) != 2 or 0 in shape:
        return [f"weight must be (output_size, input_size), both at least 1, got {shape}"]
    return _vectors(weights, shape[0], "bias")


def _embedding(op: str, attr: Attr, weights: Weights) -> Iterable[str]:
    shape = weights["weight"].shape
    return [] if len(shape) == 2 and 0 not in shape else [f"weight must be (rows, features), got {shape}"]


def _layer_norm(op: str, attr: Attr, weights: Weights) -> Iterable[str]:
    shapes = {array.shape for array in weights.values()}
    if len(shapes) > 1:
        yield f"weight and bias must have one shape, got {sorted(shapes)}"
    elif () in shapes:
        yield "weight and bias must have at least one axis"
    elif "weight" not in weights and shapes and len(*shapes) != attr("axes"):
        yield f"bias must have {attr('axes')} axes, got {weights['bias'].shape}"


def _batch_norm(op: str, attr: Attr, weights: Weights) -> Iterable[str]:
    mean, var = weights["mean"], weights["var"]
    if mean.ndim != 1:
        yield f"mean must be (features,), got {mean.shape}"
        return
    yield from _vectors(weights, len(mean), "var", "weight", "bias")
    if not np.all(var + attr("eps") > 0):
        yield "var + eps must be positive"


def _windows(op: str, attr: Attr, weights: Weights) -> Iterable[str]:
    shape, groups = weights["weight"].shape, attr("groups")
    most = 2 + (MAX_CONV_SPATIAL if op == "conv" else MAX_SPATIAL)
    if not 3 <= len(shape) <= most or 0 in shape or shape[0] % groups:
        axes = f"at least 3 axes and at most {most}"
        yield f"weight must have {axes}, none of size 0, the first a multiple of groups={groups}; got {shape}"
    else:
        yield from _vectors(weights, shape[1] * groups if op == "conv_transpose" else shape[0], "bias")


_RULES: dict[str, Callable[[str, Attr, Weights], Iterable[str]]] = {
    **dict.fromkeys(GATES, _recurrent),
    "dense": _dense,
    "embedding": _embedding,
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "conv": _windows,
    "conv_transpose": _windows,
}


def shape_problems(op: str, attr: Attr, weights: Weights) -> list[str]:
    """What is wrong with the shapes of a node's weights; all that it needs are there."""
    return list(_RULES[op](op, attr, weights)) if op in _RULES else []
