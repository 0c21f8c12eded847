"""Neighbours that become one node: products with constants, what follows a product, and small idioms of exporters.

Each rule is ``rule(flow, node)``: it looks from a node back at what it reads and rewrites where all is certain.
``RULES`` has those of each kind of node, in the order in which they are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np

from ..spec import GATES, ROW_ACTIVATIONS, Node, activation
from .dataflow import Flow
from .shape_rules import Sizes

PRODUCTS = ("dense", "conv", "conv_transpose")
VIEWS = ("reshape", "flatten", "squeeze", "unsqueeze")  # other axes, the same elements in the same order
NEAR = 16  # views behind each other that are looked through
POWERS = {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal"}


def is_linear(node: Node) -> bool:
    """Whether a product has no activation yet."""
    return node.op == "conv_transpose" or activation(node.attr("activation"))[0] == "linear"


def dense_from_matmul(flow: Flow, node: Node) -> None:
    """x @ W with a constant matrix W."""
    matrix = flow.constant(node.inputs[1])
    if matrix is None or matrix.ndim != 2 or matrix.dtype.kind != "f":
        return
    weight = np.ascontiguousarray(matrix.T)
    flow.change(node, op="dense", inputs=node.inputs[:1], attrs={}, weights={"weight": weight})


def bias_from_add(flow: Flow, node: Node) -> None:
    """A constant vector of features that is added to a product, or taken away, is its bias."""
    function = node.attr("function")
    if function not in ("add", "sub"):
        return
    for x, other in permutations(node.inputs) if function == "add" else [node.inputs]:
        array, product = flow.constant(other), flow.inner(x, node)
        if array is None or product is None or product.op not in PRODUCTS or not is_linear(product):
            continue
        bias = bias_vector(product, array, flow.facts.rank(x))
        if bias is not None and "bias" not in product.weights:
            bias = -bias if function == "sub" else bias
            flow.absorb(product, node, weights={**product.weights, "bias": bias})
            return


def features(product: Node) -> int:
    """The number of features that a product gives."""
    weight = product.weights["weight"]
    return weight.shape[1] * product.attr("groups") if product.op == "conv_transpose" else len(weight)


def bias_vector(product: Node, array: np.ndarray, rank: int | None) -> np.ndarray | None:
    """A constant that broadcasts against a product of ``rank`` axes as a vector of its features, if it does."""
    trailing = product.weights["weight"].ndim - 2  # axes behind that of the features
    shape, size = array.shape, features(product)
    if array.dtype.kind != "f" or array.size not in (1, size) or len(shape) > (rank or trailing + 1):
        return None
    if array.size == 1:
        return np.full(size, array.reshape(()), array.dtype)
    at = len(shape) - 1 - trailing
    return array.reshape(-1) if at >= 0 and shape[at] == size else None


def scale_into_product(flow: Flow, node: Node) -> None:
    """Batch normalisation with recorded moments scales the weights of a product; they are rounded once more."""
    product = flow.inner(node.inputs[0], node)
    if product is None or product.op not in ("dense", "conv") or not is_linear(product):
        return
    axis_fits = node.attr("channels_first") if product.op == "conv" else not node.attr("channels_first")
    if not (axis_fits or (product.op == "dense" and flow.facts.rank(node.inputs[0]) == 2)):
        return
    moments = {key: array.astype(np.float64) for key, array in node.weights.items()}
    scale = moments.get("weight", 1.0) / np.sqrt(moments["var"] + node.attr("eps"))
    weight, bias = product.weights["weight"], product.weights.get("bias", np.zeros(1))
    shift = (bias.astype(np.float64) - moments["mean"]) * scale + moments.get("bias", 0.0)
    if not (np.isfinite(scale).all() and scale.shape == shift.shape == (len(weight),)):
        return
    scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    flow.absorb(product, node, weights={"weight": scaled.astype(weight.dtype), "bias": shift.astype(weight.dtype)})


def activate_product(flow: Flow, node: Node) -> None:
    """The activation of a dense or convolutional layer."""
    product = flow.inner(node.inputs[0], node)
    if product is None or product.op not in ("dense", "conv") or not is_linear(product):
        return
    wanted = node.attr("activation")
    if activation(wanted)[0] not in ROW_ACTIVATIONS or product.op == "dense":
        flow.absorb(product, node, attrs={**product.attrs, "activation": wanted})


def softmax_of_rows(flow: Flow, node: Node) -> None:
    """Softmax over the last axis is an activation."""
    rank = flow.facts.rank(node.inputs[0])
    if node.attr("axis") == -1 or (rank is not None and node.attr("axis") == rank - 1):
        name = "log_softmax" if node.attr("logarithm") else "softmax"
        flow.change(node, op="activation", attrs={"activation": name})


def activation_from_power(flow: Flow, node: Node) -> None:
    """x * x, x ** 2, x ** 0.5 and x ** -1 of floating-point numbers."""
    x, other = node.inputs
    function = node.attr("function")
    name = "square" if function == "mul" and x == other else None
    if function == "pow" and (exponent := flow.scalar(other)) is not None:
        name = POWERS.get(exponent)
    if name is not None and flow.facts.is_float(x):
        flow.change(node, op="activation", inputs=(x,), attrs={"activation": name})


def silu_from_product(flow: Flow, node: Node) -> None:
    """x * sigmoid(x)."""
    if node.attr("function") != "mul":
        return
    for x, other in permutations(node.inputs):
        gate = flow.inner(other, node)
        if (
            gate is not None
            and gate.op == "activation"
            and gate.inputs == (x,)
            and gate.attr("activation") == "sigmoid"
        ):
            flow.remove(gate)
            flow.change(node, op="activation", inputs=(x,), attrs={"activation": "silu"})
            return


def joined_transposes(flow: Flow, node: Node) -> None:
    """A transpose of a transpose."""
    first, rank = flow.writer(node.inputs[0], "transpose"), flow.facts.rank(node.inputs[0])
    if first is None or rank is None:
        return
    inner, outer = (n.attr("perm") or range(rank)[::-1] for n in (first, node))
    flow.change(node, inputs=first.inputs, attrs={"perm": [inner[k] for k in outer]})


def squeezed_again(flow: Flow, node: Node) -> None:
    """Axes that are added and taken away at once."""
    first, rank = flow.writer(node.inputs[0], "unsqueeze"), flow.facts.rank(node.inputs[0])
    axes = node.attr("axes")
    if first is None or rank is None or axes is None:
        return
    if {axis % rank for axis in axes} == {axis % rank for axis in first.attr("axes")}:
        flow.change(node, op="identity", inputs=first.inputs, attrs={})


def squeezed_before(flow: Flow, node: Node) -> None:
    """Axes go before a transpose that moves them, to where they came from."""
    first, rank, axes = flow.inner(node.inputs[0], node), flow.facts.rank(node.inputs[0]), node.attr("axes")
    if first is None or first.op != "transpose" or rank is None or axes is None:
        return
    perm = list(first.attr("perm") or range(rank)[::-1])
    gone = sorted(perm[axis] for axis in axes)
    rest = [k for k in perm if k not in gone]
    between = flow.fresh(node.outputs[0])
    flow.change(first, op="squeeze", outputs=(between,), attrs={"axes": gone})
    flow.change(node, op="transpose", inputs=(between,), attrs={"perm": [sorted(rest).index(k) for k in rest]})


def reshaped_again(flow: Flow, node: Node) -> None:
    """Only the last of two reshapes counts, where it does not copy sizes of what the first one made."""
    first, wanted = flow.writer(node.inputs[0]), flow.constant(node.inputs[1])
    if first is None or first.op not in VIEWS or wanted is None:
        return
    if not (node.attr("zero_copies") and (wanted == 0).any()) and (wanted != 0).all():
        flow.change(node, inputs=(first.inputs[0], node.inputs[1]))


def viewed_as_before(flow: Flow, node: Node) -> None:
    """Other axes and back: the elements lie in one order, so an equal shape is an equal tensor."""
    shape, name = flow.facts.shape(node.outputs[0]), node.inputs[0]
    for _ in range(NEAR):
        first = flow.writer(name)
        if first is None or first.op not in VIEWS:
            return
        name = first.inputs[0]
        if shape is not None and shape == flow.facts.shape(name) and shape.count(None) <= 1:
            flow.change(node, op="identity", inputs=(name,), attrs={})
            return


def before_view(flow: Flow, node: Node) -> None:
    """What is done to each feature of a product is done before its axes change, so that the two can be fused."""
    for x in node.inputs:
        view = flow.inner(x, node)
        product = flow.inner(view.inputs[0], view) if view is not None and view.op in VIEWS else None
        if view is None or product is None or product.op not in PRODUCTS or not is_linear(product):
            continue
        if node.op == "activation":
            allowed = activation(node.attr("activation"))[0] not in ROW_ACTIVATIONS
        else:
            others = [flow.constant(other) for other in node.inputs if other != x]
            shapes = [flow.facts.shape(name) for name in (view.inputs[0], x)]
            allowed = (
                node.attr("function") in ("add", "sub")
                and product.op == "dense"
                and all(array is not None and array.ndim == 1 for array in others)
                and all(shape is not None and shape[-1:] == (features(product),) for shape in shapes)
            )
        if allowed:
            between = flow.fresh(node.outputs[0])
            fields = {"op": view.op, "inputs": (between, *view.inputs[1:]), "attrs": view.attrs}
            inputs = tuple(view.inputs[0] if name == x else name for name in node.inputs)
            flow.change(view, op=node.op, inputs=inputs, outputs=(between,), attrs=node.attrs)
            flow.change(node, **fields)
            return


def equal_leading(a: Sizes | None, b: Sizes | None) -> bool:
    """Whether two shapes are certainly equal but for the last axis, given equal numbers of rows."""
    return a is not None and b is not None and a[:-1] == b[:-1] and a[:-1].count(None) <= 1


def dense_between_reshapes(flow: Flow, node: Node) -> None:
    """Rows that are laid out as a matrix for a product and back (Keras' Tensordot) need neither."""
    dense = flow.inner(node.inputs[0], node)
    rows = flow.writer(dense.inputs[0], "reshape") if dense is not None and dense.op == "dense" else None
    if dense is None or rows is None:
        return
    x, laid_out, result = (flow.facts.shape(name) for name in (rows.inputs[0], rows.outputs[0], node.outputs[0]))
    if not (equal_leading(x, result) and x and laid_out and result):
        return
    if x[-1] is not None and x[-1] == laid_out[-1] and result[-1] == features(dense):
        flow.remove(node)
        flow.change(dense, inputs=rows.inputs[:1], outputs=node.outputs)


def dense_between_transposes(flow: Flow, node: Node) -> None:
    """A convolution of one tap between transposes that put the features last is a dense layer."""
    conv = flow.inner(node.inputs[0], node)
    first = flow.writer(conv.inputs[0], "transpose") if conv is not None and conv.op == "conv" else None
    if conv is None or first is None:
        return
    weight, rank = conv.weights["weight"], conv.weights["weight"].ndim
    to_last, to_front = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    plain = conv.attr("groups") == 1 and not any(conv.attr("pads") or ()) and set(conv.attr("strides") or (1,)) == {1}
    if not plain or set(weight.shape[2:]) != {1} or list(node.attr("perm") or ()) != to_last:
        return
    if list(first.attr("perm") or ()) == to_front:
        weights = {**conv.weights, "weight": weight.reshape(weight.shape[:2])}
        attrs = {"activation": conv.attr("activation")}
        flow.remove(node)
        flow.change(conv, op="dense", inputs=first.inputs, outputs=node.outputs, weights=weights, attrs=attrs)


def recurrent_between_transposes(flow: Flow, node: Node) -> None:
    """A layer that wants time first between transposes from and to batch first, or the other way round."""
    layer = flow.inner(node.inputs[0], node)
    if layer is None or layer.op not in GATES or layer.attr("unbatched") or not layer.attr("return_sequences"):
        return
    first, swap = flow.writer(layer.inputs[0], "transpose"), [1, 0, 2]
    if first is None or layer.outputs[0] != node.inputs[0]:
        return
    if list(first.attr("perm") or ()) == list(node.attr("perm") or ()) == swap:
        flow.remove(node)
        flow.change(
            layer,
            inputs=first.inputs + layer.inputs[1:],
            outputs=node.outputs + layer.outputs[1:],
            attrs={**layer.attrs, "batch_first": not layer.attr("batch_first")},
        )


def norm_from_quotient(flow: Flow, node: Node) -> None:
    """(x - mean) / sqrt(mean((x - mean) ** 2) + eps) over the last axis."""
    difference, root = flow.writer(node.inputs[0], "binary"), flow.writer(node.inputs[1], "activation")
    if node.attr("function") != "div" or difference is None or root is None or not _is(root, "sqrt"):
        return
    x, mean = difference.inputs
    total = flow.writer(root.inputs[0], "binary")
    if difference.attr("function") != "sub" or _mean_of(flow, mean) != x or total is None:
        return
    for variance, other in permutations(total.inputs) if total.attr("function") == "add" else ():
        eps, square = flow.scalar(other), flow.writer(_mean_of(flow, variance) or "", "activation")
        if eps is not None and eps >= 0 and square is not None and _is(square, "square"):
            if square.inputs == node.inputs[:1]:
                flow.change(node, op="layer_norm", inputs=(x,), attrs={"eps": eps})
            return


def _is(node: Node, name: str) -> bool:
    return activation(node.attr("activation"))[0] == name


def _mean_of(flow: Flow, name: str) -> str | None:
    """What a tensor is the mean of, over the last axis."""
    node, rank = flow.writer(name, "reduce"), flow.facts.rank(name)
    if node is None or node.attr("function") != "mean" or not node.attr("keepdims") or rank is None:
        return None
    axes = node.attr("axes") or ()
    return node.inputs[0] if [axis % rank for axis in axes] == [rank - 1] else None


def scale_into_norm(flow: Flow, node: Node) -> None:
    """The gain and the shift behind a normalisation."""
    key = {"mul": "weight", "add": "bias"}.get(node.attr("function"))
    if key is None:
        return
    for x, other in permutations(node.inputs):
        norm, array, shape = flow.inner(x, node), flow.constant(other), flow.facts.shape(x)
        if norm is None or norm.op != "layer_norm" or array is None or shape is None or norm.attr("axes") != 1:
            continue
        if array.shape == shape[-1:] and not norm.weights.keys() & {key, "bias"}:
            flow.absorb(norm, node, weights={**norm.weights, key: array})
            return


Rule = Callable[[Flow, Node], None]

RULES: dict[str, tuple[Rule, ...]] = {
    "matmul": (dense_from_matmul,),
    "binary": (
        activation_from_power,
        bias_from_add,
        silu_from_product,
        norm_from_quotient,
        scale_into_norm,
        before_view,
    ),
    "batch_norm": (scale_into_product,),
    "activation": (activate_product, before_view),
    "softmax": (softmax_of_rows,),
    "transpose": (joined_transposes, dense_between_transposes, recurrent_between_transposes),
    "squeeze": (squeezed_again, viewed_as_before, squeezed_before),
    "unsqueeze": (viewed_as_before,),
    "flatten": (viewed_as_before,),
    "reshape": (viewed_as_before, reshaped_again, dense_between_reshapes),
}
