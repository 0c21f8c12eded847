"""Cells that a framework has taken apart become recurrent nodes again.

A cell is found from its end: the product h = o * tanh(c) of an LSTM, the mixture h = (1 - z) * n + z * h of a GRU, the
activation of an RNN.  Which part of the weights belongs to which gate follows from what is done with it, never from
an order.  Where anything is not certain (a gate that is read elsewhere, weights that are no constants, rows that may
broadcast), the nodes stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations, product

import numpy as np

from ..spec import CELL_ACTIVATIONS, Node, activation
from .affine import Activation, Affine, NoMatch, Reader
from .cell_parts import (
    become_cell,
    carried,
    check_cell,
    diagonal,
    inputs_of,
    is_complement,
    matches,
    options,
    reaches_output,
    root_of,
    weights_of,
)
from .dataflow import Flow
from .recognize_scan import recognize_layer


def recognize_lstm(flow: Flow, node: Node) -> None:
    """h = o * act(c), c = f * c_0 + i * g."""
    if node.attr("function") != "mul":
        return
    for o, active in permutations(node.inputs):
        hidden = flow.writer(active, "activation")
        total = flow.writer(hidden.inputs[0] if hidden is not None else active, "binary")
        if total is None or total.attr("function") != "add" or flow.home(total) is not flow.home(node):
            continue
        for parts in _products(flow, total):
            if matches(_lstm, flow, node, total, hidden, o, *parts):
                return


def _products(flow: Flow, total: Node) -> Iterator[tuple[str, str, str, str]]:
    """All ways to read a sum of two products as f * c + i * g."""
    for forget, new in permutations(total.inputs):
        a, b = flow.writer(forget, "binary"), flow.writer(new, "binary")
        if a is not None and b is not None:
            for (f, c), (i, g) in product(permutations(a.inputs), permutations(b.inputs)):
                yield f, c, i, g


def _lstm(flow: Flow, end: Node, total: Node, hidden: Node | None, o: str, f: str, c: str, i: str, g: str) -> None:
    reader = Reader(flow, flow.home(end))
    c_new = total.outputs[0]
    for name in total.inputs:
        reader.take(name, "binary", "mul")
    if hidden is not None:
        reader.take(hidden.outputs[0], "activation")
        if activation(hidden.attr("activation"))[0] not in CELL_ACTIVATIONS:
            raise NoMatch
    act, forget = reader.gate(f)
    coupled = is_complement(flow, i, f)
    if coupled:
        reader.take(i, "binary")
    act_i, enter = (act, Affine(forget.units)) if coupled else reader.gate(i)
    act_o, leave = reader.gate(o)
    act_g, new = reader.gate(g)
    read = [*enter.weights, *forget.weights, *new.weights]
    if not act == act_i == act_o or not leave.weights.keys() <= set(read):
        raise NoMatch  # the node stands where c is made: what only o reads may come later
    peepholes = [diagonal(reader, gate, cell) for gate, cell in ((enter, c), (forget, c), (leave, c_new))]
    gates = [enter, forget, new, leave]
    x, h = inputs_of(reader, gates, c)
    attrs = options(gate_activation=act, cell_activation=act_g)
    attrs |= options(hidden_activation=hidden.attr("activation") if hidden is not None else "linear")
    attrs |= {"coupled_input_forget": True} if coupled else {}
    weights = weights_of(gates, x, h)
    if any(p is not None for p in peepholes):
        rows = [np.zeros(forget.units) if p is None else p for p in peepholes]
        weights["peephole_l0"] = np.concatenate(rows).astype(weights["weight_ih_l0"].dtype)
    check_cell(reader, h, c, (*x, h, c), gates, end, total)
    flow.remove(end)
    become_cell(flow, total, "lstm", x, (h, c), (end.outputs[0], "", c_new), attrs, weights)


def recognize_gru(flow: Flow, node: Node) -> None:
    """h = z * a + (1 - z) * b, where one of a and b is the old h."""
    if node.attr("function") == "add":
        for z, a, b, between in _mixtures(flow, node):
            if matches(_gru, flow, node, between, z, a, b, "keep") or matches(
                _gru, flow, node, between, z, b, a, "take"
            ):
                return


def _mixtures(flow: Flow, node: Node) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """All (z, a, b) with which a sum is z * a + (1 - z) * b or b + z * (a - b), and the tensors between."""
    for first, second in permutations(node.inputs):
        left, right = flow.writer(first, "binary"), flow.writer(second, "binary")
        if right is None or right.attr("function") != "mul":
            continue
        for z, other in permutations(right.inputs):
            difference = flow.writer(other, "binary")
            if difference is not None and difference.attr("function") == "sub" and difference.inputs[1] == first:
                yield z, difference.inputs[0], first, (second, other)
            if left is not None and left.attr("function") == "mul":
                for complement, b in permutations(left.inputs):
                    if is_complement(flow, complement, z):
                        yield z, other, b, (first, second, complement)


def _gru(flow: Flow, end: Node, between: Sequence[str], z: str, h: str, n: str, update: str) -> None:
    """z = 1 gives h where ``update`` is "keep", n where it is "take"."""
    reader = Reader(flow, flow.home(end))
    for name in between:
        reader.take(name, "binary")
    act, update_gate = reader.gate(z)
    act_n, new = reader.gate(n)
    after = bool(new.plain)
    if after:
        act_r, reset, of_h = _reset_after(reader, new, h)
    else:
        act_r, reset, of_h = _reset_before(reader, new, h)
    of_x = Affine(
        new.units, {name: w for name, w in new.weights.items() if after or name != of_h.plain[0]}, bias=new.bias
    )
    if act_r != act or h in of_x.weights or update_gate.plain or reset.plain:
        raise NoMatch
    gates = [reset, update_gate, of_x + Affine(new.units, of_h.weights)]
    x, _ = inputs_of(reader, gates, h, state=h)
    weights = weights_of(gates, x, h)
    if of_h.bias is not None:
        bias = np.concatenate([np.zeros(2 * new.units), of_h.bias])
        weights["bias_hh_l0"] = bias.astype(weights["weight_hh_l0"].dtype)
    check_cell(reader, h, h, (*x, h), gates, end)
    attrs = options(gate_activation=act, cell_activation=act_n) | {"reset_after": after, "update_gate": update}
    become_cell(flow, end, "gru", x, (h,), end.outputs, attrs, weights)


def _reset_after(reader: Reader, new: Affine, h: str) -> tuple[Activation, Affine, Affine]:
    """The reset gate r and U h + b of the one term r * (U h + b)."""
    if len(new.plain) != 1:
        raise NoMatch
    for r, inner in permutations(reader.take(new.plain[0], "binary", "mul").inputs):
        attempt = Reader(reader.flow, reader.home)
        try:
            act, reset = attempt.gate(r)
            product = attempt.affine(inner)
        except NoMatch:
            continue
        if set(product.weights) == {h} and not product.plain:
            reader.seen |= attempt.seen
            return act, reset, product
    raise NoMatch


def _reset_before(reader: Reader, new: Affine, h: str) -> tuple[Activation, Affine, Affine]:
    """The reset gate r and U of the one term U (r * h), whose tensor is the ``plain`` one."""
    for name, weight in new.weights.items():
        node = reader.flow.writer(name, "binary")
        if node is not None and node.attr("function") == "mul" and h in node.inputs:
            reader.take(name, "binary")
            act, reset = reader.gate(node.inputs[1 - node.inputs.index(h)])
            return act, reset, Affine(new.units, {h: weight}, [name])
    raise NoMatch


def recognize_rnn(flow: Flow, node: Node) -> None:
    """h = act(W x + U h_0 + b), where h_0 certainly is a state."""
    matches(_rnn, flow, node)


def _rnn(flow: Flow, end: Node) -> None:
    reader = Reader(flow, flow.home(end))
    act, total = reader.gate(end.outputs[0])
    states = [name for name in total.weights if _is_state(flow, end, name) and reader.units(name) == total.units]
    if not states or total.plain:
        raise NoMatch
    x, h = inputs_of(reader, [total], states[-1], state=states[-1])
    check_cell(reader, h, h, (*x, h), [total], end)
    become_cell(flow, end, "rnn", x, (h,), end.outputs, options(activation=act), weights_of([total], x, h))


def _is_state(flow: Flow, end: Node, name: str) -> bool:
    """Whether a tensor is an input of the model or carried by a loop, and ``end`` makes its next value."""
    graph, new = flow.home(end), end.outputs[0]
    while (node := flow.owner(graph)) is not None and node.op == "if":
        graph = flow.home(node)
    if node is None:
        return root_of(flow, name) in {t.name for t in graph.inputs} and reaches_output(flow, new)
    return graph is flow.home(end) and carried(flow, graph).get(name) == new


Rule = Callable[[Flow, Node], None]

RULES: dict[str, tuple[Rule, ...]] = {
    "binary": (recognize_lstm, recognize_gru),
    "activation": (recognize_rnn,),
    "dense": (recognize_rnn,),
    "scan": (recognize_layer,),
}
