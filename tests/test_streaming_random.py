"""Graphs of random operators on random axes: what is taken as a stream has the bits of the whole sequence."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streaming_graph import array, play, recurrent

import fastrnn
from fastrnn.errors import FastrnnError, UnsupportedError
from fastrnn.graph.facts import Facts
from fastrnn.graph.streaming import streamed
from fastrnn.spec import GATES, ModelSpec, Node, Tensor

SHAPES = {
    (2, 12, 4): (None, None, 4),
    (2, 12, 2, 3): (None, None, 2, 3),
    (12, 2, 4): (None, None, 4),
    (2, 4, 12): (None, 4, None),
}
END = 2**63 - 1


class Draw:
    """A graph that grows by random nodes on tensors of known shapes."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.shape = self.pick.choice(list(SHAPES))
        self.facts = Facts()
        self.facts.learn("x", self.shape, "float32")
        self.tensors = ["x"]
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []

    def constant(self, value) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        self.facts.learn(name, self.constants[name].shape, str(self.constants[name].dtype), self.constants[name])
        return name

    def add(self, op: str, inputs: tuple, attrs: dict | None = None, weights: dict | None = None) -> str:
        return self.put(Node(op, f"t{len(self.nodes)}", inputs, (f"t{len(self.nodes)}",), attrs or {}, weights or {}))

    def put(self, node: Node) -> str:
        self.nodes.append(node)
        self.facts.add(node)
        return node.outputs[0]

    def grow(self) -> bool:
        """One more tensor; False where the graph would not run."""
        x = self.tensors[-1] if self.pick.random() < 0.8 else self.pick.choice(self.tensors)
        shape = self.facts.shape(x)
        if not shape:
            return False
        new = self.pick.choice(GROWTH)(self, x, shape, self.pick.randrange(len(shape)))
        made = self.facts.shape(new)
        self.tensors.append(new)
        return made is not None and None not in made and 0 not in made


def layer(d: Draw, x: str, shape: tuple, axis: int) -> str:
    if len(shape) not in (2, 3):
        return x
    options = (
        {"batch_first": d.pick.random() < 0.7, "return_sequences": d.pick.random() < 0.8} if len(shape) == 3 else {}
    )
    name = f"t{len(d.nodes)}"
    return d.put(recurrent(name, x, name, shape[-1], 3, d.pick.choice(list(GATES)), **options))


def window(d: Draw, x: str, shape: tuple, axis: int) -> str:
    if len(shape) < 3:
        return x
    kernel = [d.pick.randrange(1, 4) for _ in shape[2:]]
    dilations = [d.pick.choice([1, 1, 2]) for _ in kernel]
    begins = [d.pick.choice([0, (k - 1) * dilation, 1]) for k, dilation in zip(kernel, dilations)]
    attrs = {"strides": [d.pick.choice([1, 1, 2, 3]) for _ in kernel], "dilations": dilations}
    attrs["pads"] = [*begins, *(d.pick.choice([0, 0, 0, 1]) for _ in kernel)]
    if d.pick.random() < 0.6:
        return d.add("conv", (x,), attrs, {"weight": array(3, shape[1], *kernel)})
    if any(pad >= size for pad, size in zip(attrs["pads"], kernel * 2)):
        attrs["pads"] = [0] * len(attrs["pads"])
    kind = {"function": d.pick.choice(["max", "mean"]), "count_include_pad": d.pick.random() < 0.5}
    return d.add("pool", (x,), {**attrs, **kind, "kernel": kernel})


def move(d: Draw, x: str, shape: tuple, axis: int) -> str:
    perm = list(range(len(shape)))
    d.pick.shuffle(perm)
    merged = [*shape[:axis], -1, *shape[axis + 2 :]]
    choices: list[tuple] = [
        ("transpose", (x,), {"perm": perm}),
        ("reshape", (x, d.constant(merged))),
        ("reshape", (x, d.constant([0 if k < axis else n for k, n in enumerate(merged)]))),
        ("flatten", (x,), {"axis": axis}),
        ("unsqueeze", (x,), {"axes": [axis]}),
        ("tile", (x, d.constant([1 if k != axis else d.pick.choice([1, 2]) for k in range(len(shape))]))),
    ]
    return d.add(*d.pick.choice(choices))


def reshape_by_shape(d: Draw, x: str, shape: tuple, axis: int) -> str:
    """As exporters write it: sizes of this tensor or of the input, and what is left."""
    sizes = d.add("shape", (d.pick.choice(["x", x]),), {"start": 0, "end": 2})
    rest = d.pick.choice([-1, int(np.prod(shape)) // int(np.prod(d.facts.numbers(sizes))) or 1])
    return d.add("reshape", (x, d.add("concat", (sizes, d.constant([rest])))))


def part(d: Draw, x: str, shape: tuple, axis: int) -> str:
    numbers = [
        [d.pick.choice([0, 0, 1, -1, -2])],
        [d.pick.choice([END, -1, -2, 2])],
        [axis],
        [d.pick.choice([1, 1, 2])],
    ]
    pads = [0] * (2 * len(shape))
    pads[axis], pads[axis + len(shape)] = d.pick.randrange(4), d.pick.choice([0, 0, 1])
    index = d.constant(d.pick.choice([0, -1, [-1], [0, 1], [[0], [1]]]))
    choices: list[tuple] = [
        ("slice", (x, *map(d.constant, numbers))),
        ("pad", (x, d.constant(pads))),
        ("gather", (x, index), {"axis": axis}),
    ]
    return d.add(*d.pick.choice(choices))


def along(d: Draw, x: str, shape: tuple, axis: int) -> str:
    keep = {"axes": [axis], "keepdims": d.pick.random() < 0.5, "function": "mean"}
    choices = [("softmax", {"axis": axis}), ("cumsum", {"axis": axis}), ("reduce", keep)]
    op, attrs = d.pick.choice(choices)
    return d.add(op, (x,), attrs)


def features(d: Draw, x: str, shape: tuple, axis: int) -> str:
    at = d.pick.choice([1, len(shape) - 1]) if len(shape) > 1 else 0
    norm = {"mean": array(shape[at]), "var": abs(array(shape[at]))}
    choices: list[tuple] = [
        ("dense", {"activation": d.pick.choice(["tanh", "softmax"])}, {"weight": array(3, shape[-1])}),
        ("layer_norm", {}, {"weight": array(shape[-1])}),
        ("batch_norm", {"channels_first": at == 1 and len(shape) > 1}, norm),
    ]
    op, attrs, weights = d.pick.choice(choices)
    return d.add(op, (x,), attrs, weights)


def join(d: Draw, x: str, shape: tuple, axis: int) -> str:
    other = d.pick.choice(d.tensors)
    constant = d.constant(array(*[d.pick.choice([1, n]) for n in shape[axis:]]))
    choices: list[tuple] = [
        ("binary", (x, d.pick.choice([other, constant])), {"function": "add"}),
        ("concat", (x, other), {"axis": axis}),
        ("where", (d.constant(True), x, other)),
        ("matmul", (x, d.pick.choice([other, d.constant(array(shape[-1], 3))]))),
    ]
    return d.add(*d.pick.choice(choices))


def positions(d: Draw, x: str, shape: tuple, axis: int) -> str:
    """Times 0, 1, 2 ... along an axis."""
    size = d.add("squeeze", (d.add("shape", (x,), {"start": axis, "end": axis + 1}),), {"axes": [0]})
    count = d.add("cast", (d.add("range", (d.constant(0), size, d.constant(1))),))
    vector = d.add("reshape", (count, d.constant([-1 if k == axis else 1 for k in range(len(shape))])))
    return d.add("binary", (x, vector), {"function": "mul"})


GROWTH: list[Callable[[Draw, str, tuple, int], str]] = [
    *[layer] * 5, *[move] * 4, *[part] * 2, *[along] * 2, *[features] * 2, *[join] * 2, window, window,
    reshape_by_shape, positions,
]  # fmt: skip


def drawn(seed: int) -> tuple[ModelSpec, tuple[int, ...]] | None:
    d = Draw(seed)
    for _ in range(d.pick.randrange(1, 7)):
        if not d.grow():
            return None
    wanted = {d.tensors[-1], d.pick.choice(d.tensors)} - {"x"}
    outputs = [Tensor(name, None) for name in sorted(wanted)]
    return ModelSpec(d.nodes, [Tensor("x", SHAPES[d.shape])], outputs, d.constants), d.shape


def test_some_of_the_graphs_are_streams():
    taken = 0
    for seed in range(300):
        if found := drawn(seed):
            try:
                taken += bool(streamed(found[0]).states)
            except FastrnnError:
                continue
    assert taken >= 10


@given(seed=st.integers(0, 2**40), cuts=st.lists(st.integers(0, 12), max_size=6))
@settings(max_examples=400, deadline=None)
def test_what_is_taken_has_the_same_bits(seed, cuts):
    found = drawn(seed)
    if found is None or not found[0].outputs:
        return
    spec, shape = found
    x = array(*shape)
    try:
        whole = fastrnn.Model(spec).run({"x": x})
    except FastrnnError:
        return  # it does not run at all
    try:
        made = streamed(spec)
    except UnsupportedError:
        return
    time = made.time_axis["x"]
    assert time is not None
    batch = next(shape[k] for k, n in enumerate(SHAPES[shape]) if n is None and k != time)
    for name, result in play(made, {"x": x}, [min(cut, shape[time]) for cut in cuts], batch).items():
        assert np.array_equal(result, whole[name], equal_nan=True), name
