"""PyTorch's matrix products, einsum and attention -> nodes; registered in ``torch_ops.FUNCTIONS``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .torch_build import Builder, Ref
from .torch_layers import linear
from .torch_ops import masked_fill, op, refuse, where
from .torch_reductions import softmax


@op("matmul", "bmm", "mm", "mv", "dot")
def _matmul(b: Builder, input: Ref, other: Ref) -> Ref:
    return b.matmul(input, other)


@op("addmm", "baddbmm")
def _addmm(b: Builder, input: Ref, a: Ref, c: Ref, beta: float = 1, alpha: float = 1) -> Ref:
    product = b.matmul(a, c) if alpha == 1 else b.mul(b.matmul(a, c), alpha)
    return b.add(product, input if beta == 1 else b.mul(input, beta))


@op()
def glu(b: Builder, input: Ref, dim: int = -1) -> Ref:
    value, gate = b.emit_many("split", [input], [(input.rank, "f")] * 2, {"axis": dim % input.rank})
    return b.mul(value, b.activation(gate, "sigmoid"))


@op()
def einsum(b: Builder, equation: str, *operands: Any) -> Ref:
    """One or two operands, each letter once in each."""
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else list(operands)
    left, _, wanted = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "->" not in equation:
        wanted = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    refuse("." in equation or len(tensors) > 2 or any(len(set(t)) < len(t) for t in terms), f"einsum of {equation!r}")
    for k, term in enumerate(terms):  # sum over what only this operand has
        others = wanted + "".join(terms[:k] + terms[k + 1 :])
        alone = [axis for axis, letter in enumerate(term) if letter not in others]
        if alone:
            tensors[k] = b.reduce("sum", tensors[k], alone)
            terms[k] = "".join(letter for letter in term if letter in others)
    if len(tensors) == 1:
        return b.transpose(tensors[0], [terms[0].index(letter) for letter in wanted])
    a, c = terms
    summed = [letter for letter in a if letter in c and letter not in wanted]
    batch = [letter for letter in wanted if letter in a and letter in c]
    rows, columns = [letter for letter in a if letter not in c], [letter for letter in c if letter not in a]
    if len(summed) == 1:
        order = [*batch, *rows[:-1], *columns[:-1], *rows[-1:], *columns[-1:]]
        before = [*batch, *rows[:-1], *columns[:-1]]
        x = _letters(b, tensors[0], a, [*before, *rows[-1:], *summed])
        y = _letters(b, tensors[1], c, [*before, *summed, *columns[-1:]])
        x, y = (x if rows else b.unsqueeze(x, -2)), (y if columns else b.unsqueeze(y, -1))
        product = b.matmul(x, y)
        product = b.squeeze(product, *([] if rows else [-2]), *([] if columns else [-1]))
    else:
        order = [*batch, *rows, *columns]
        factors = [_letters(b, t, term, [*order, *summed]) for t, term in zip(tensors, terms)]
        product = b.mul(*factors)
        product = b.reduce("sum", product, list(range(len(order), len(order) + len(summed)))) if summed else product
    return b.transpose(product, [order.index(letter) for letter in wanted])


def _letters(b: Builder, x: Ref, have: str, want: list[str]) -> Ref:
    """x with its axes in the wanted order, and new ones for the letters that it does not have."""
    x = b.transpose(x, [have.index(letter) for letter in want if letter in have])
    return b.unsqueeze(x, *(k for k, letter in enumerate(want) if letter not in have))


@op()
def scaled_dot_product_attention(
    b: Builder,
    query: Ref,
    key: Ref,
    value: Ref,
    attn_mask: Ref | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Ref:
    refuse(is_causal or enable_gqa, "attention with is_causal or enable_gqa")
    width: Any = b.activation(b.cast(b.size(query, -1), "f"), "sqrt")
    scores = b.matmul(query, b.swap(key, -1, -2))
    scores = b.divide(scores, width) if scale is None else b.mul(scores, scale)
    return b.matmul(softmax(b, masked_scores(b, scores, attn_mask, keep=True), -1), value)


def masked_scores(b: Builder, scores: Ref, mask: Ref | None, keep: bool) -> Ref:
    """Scores with a mask added, or -inf where a mask of truth values does not keep them."""
    if mask is None:
        return scores
    if mask.kind != "b":
        return b.add(scores, mask)
    return where(b, mask, scores, -math.inf) if keep else masked_fill(b, scores, mask, -math.inf)


def attention(b: Builder, m: Any, query: Ref, key: Ref, value: Ref, key_padding_mask: Ref | None = None,
              need_weights: bool = True, attn_mask: Ref | None = None, average_attn_weights: bool = True,
              is_causal: bool = False) -> tuple[Ref, Ref | None]:  # fmt: skip
    """``nn.MultiheadAttention``: heads of softmax(q k^T / sqrt(d)) v."""
    refuse(query.rank != 3, "MultiheadAttention without a batch")
    refuse(m.bias_k is not None or m.add_zero_attn, "MultiheadAttention with add_bias_kv or add_zero_attn")
    heads, width = m.num_heads, m.head_dim
    if m.in_proj_weight is None:
        weights = [b.constant(w.detach().numpy()) for w in (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)]
    else:
        weights = [b.constant(w) for w in np.split(m.in_proj_weight.detach().numpy(), 3)]
    biases: list[Any] = [None] * 3
    if m.in_proj_bias is not None:
        biases = [b.constant(part) for part in np.split(m.in_proj_bias.detach().numpy(), 3)]
    parts = []
    for x, weight, bias in zip((query, key, value), weights, biases):
        x = x if m.batch_first else b.swap(x, 0, 1)
        y = linear(b, x, weight, bias)
        y = b.reshape(y, [b.size(y, 0), b.size(y, 1), heads, width])
        parts.append(b.transpose(y, [0, 2, 1, 3]))
    q, k, v = parts
    scores = b.mul(b.matmul(q, b.swap(k, -1, -2)), 1 / math.sqrt(width))
    if attn_mask is not None and attn_mask.rank == 3:
        attn_mask = b.reshape(attn_mask, [-1, heads, b.size(attn_mask, 1), b.size(attn_mask, 2)])
    scores = masked_scores(b, scores, attn_mask, keep=False)
    if key_padding_mask is not None:
        scores = masked_scores(b, scores, b.unsqueeze(key_padding_mask, 1, 2), keep=False)
    weight = softmax(b, scores, -1)
    y = b.transpose(b.matmul(weight, v), [0, 2, 1, 3])
    y = b.reshape(y, [b.size(y, 0), b.size(y, 1), heads * width])
    y = linear(
        b, y, *(None if t is None else b.constant(t.detach().numpy()) for t in (m.out_proj.weight, m.out_proj.bias))
    )
    y = y if m.batch_first else b.swap(y, 0, 1)
    shown = b.reduce("mean", weight, [1]) if average_attn_weights else weight
    return y, shown if need_weights else None
