"""Random graphs of views, copies and arithmetic: what the reference says, and the same bits however they run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cases import FMA_ISAS, ISAS, assert_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import PROGRAM

import fastrnn
from fastrnn import reference
from fastrnn.engine.executable import Executable
from fastrnn.model import pack
from fastrnn.spec import ModelSpec, Node, Tensor

MAX_ELEMENTS = 20_000
SMOOTH = ("tanh", "sigmoid", "relu", "abs", "neg", "softsign", "linear")  # an error does not become a larger one


@dataclass
class Example:
    """A graph as it grows, with the values of its tensors; ``batched``: rows of axis 0 do not meet."""

    batched: bool
    given_values: bool
    """Shapes, bounds and the like come with the call, as inputs; else they are constants."""
    nodes: list[Node] = field(default_factory=list)
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"{name} = {a.dtype}{list(a.shape)}" for name, a in self.feeds.items()]
        lines += [f"{name} = {a.tolist()}" for name, a in self.constants.items()]
        for node in self.nodes:
            shapes = ", ".join(f"{name} {list(self.values[name].shape)}" for name in node.outputs)
            lines.append(f"{shapes} = {node.op}({', '.join(node.inputs)}) {node.attrs or ''}")
        return "\n".join(lines)

    def numbers(self, values: Any) -> str:
        """The name of a tensor of whole numbers."""
        name, array = f"n{len(self.constants) + len(self.feeds)}", np.array(values, np.int64)
        (self.feeds if self.given_values else self.constants)[name] = array
        self.values[name] = array
        return name

    def floats(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.values[name] = array
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, weights: Any = None, **attrs: Any) -> None:
        k = len(self.nodes)
        names = tuple(f"t{k}_{n}" for n in range(outputs))
        node = Node(op, f"{op}{k}", inputs, names, attrs, weights or {})
        self.nodes.append(node)
        self.values |= reference.run_node(node, self.values)

    @property
    def tensors(self) -> list[str]:
        """What a next node may read, the newest last: floats, not too many and not too large."""
        own = ((name, a) for name, a in self.values.items() if name[0] in "xt" and a.dtype.kind == "f")
        return [name for name, a in own if a.size <= MAX_ELEMENTS and np.abs(a).max(initial=0) < 1e4]

    def model(self, backend: str | None = None) -> fastrnn.Model:
        return fastrnn.Model(self.spec(), backend=backend)

    def spec(self) -> ModelSpec:
        inputs = [Tensor(name, None, str(array.dtype)) for name, array in self.feeds.items()]
        outputs = [Tensor(name, None) for node in self.nodes for name in node.outputs]
        return ModelSpec(self.nodes, inputs, outputs, self.constants)


def shapes(draw: st.DrawFn, least: int, most: int) -> list[int]:
    """Small ones, and some whose element-wise steps run in blocks."""
    size = st.sampled_from((3, 1, 2, 4, 5, 7, 17, 80, 0))
    shape = draw(st.lists(size, min_size=least, max_size=most))
    while np.prod(shape) > MAX_ELEMENTS / 5:
        shape.pop()
    return shape


def random(draw: st.DrawFn, shape: Any) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype(np.float32)


def grow(draw: st.DrawFn, e: Example) -> None:
    """One more node, which reads one of the newest tensors."""
    tensors = e.tensors
    x = tensors[-1 - draw(st.integers(0, min(3, len(tensors) - 1)))]
    shape = e.values[x].shape
    ndim, first = len(shape), 1 if e.batched else 0
    own = list(range(first, ndim))  # the axes that nodes may change
    kind = draw(st.sampled_from(KINDS))
    if kind == "unary":
        e.add("activation", x, activation=draw(st.sampled_from(SMOOTH)))
    elif kind == "binary":
        function = draw(st.sampled_from(("add", "sub", "mul", "min", "max", "prelu")))
        fits = [name for name in tensors if _fits(e, shape, e.values[name].shape)]
        scalar = draw(st.sampled_from((0.5, -1.25)))
        row = [draw(st.sampled_from((1, n))) for n in shape[first:]]
        y = draw(st.sampled_from((*fits, "scalar", "row")))
        y = (
            e.floats(np.array(scalar, np.float32))
            if y == "scalar"
            else e.floats(random(draw, row))
            if y == "row"
            else y
        )
        pair = (x, y) if e.batched or draw(st.booleans()) else (y, x)
        e.add("binary", *pair, function=function)
    elif kind == "where":
        e.add("unary", x, function="isinf")
        e.add("where", e.nodes[-1].outputs[0], e.floats(np.array(2, np.float32)), x)
    elif kind == "tile":
        e.add("tile", x, e.numbers([*[1] * first, *(draw(st.integers(0, 3)) for _ in own)]))
    elif kind == "stack" and ndim < 5 and not e.batched:
        e.add("stack", x, x)
    elif kind == "transpose":
        e.add("transpose", x, perm=[*range(first), *draw(st.permutations(own))])
    elif kind == "unsqueeze" and ndim < 5:
        e.add("unsqueeze", x, axes=[draw(st.integers(first, ndim))])
    elif kind == "squeeze" and any(shape[k] == 1 for k in own):
        e.add("squeeze", x, axes=[draw(st.sampled_from([k for k in own if shape[k] == 1]))])
    elif kind == "expand":
        wanted = [n if n != 1 or k < first else draw(st.integers(0, 3)) for k, n in enumerate(shape)]
        more = [] if e.batched else draw(st.lists(st.integers(1, 3), max_size=1))
        e.add("expand", x, e.numbers([*more, *(1 if k < first else n for k, n in enumerate(wanted))]))
    elif kind == "reshape" and 0 not in shape[first:]:
        e.add("reshape", x, e.numbers([*[0] * first, *_other_shape(draw, shape[first:])]))
    elif kind == "flatten" and ndim > first:
        e.add("flatten", x, axis=1 if e.batched else draw(st.integers(0, ndim)))
    elif own:
        axis = {"conv": 1, "lstm": 2, "matmul": ndim - 1, "dense": ndim - 1, "norm": ndim - 1}.get(kind, -1)
        _grow_along(draw, e, kind, x, axis if axis in own else draw(st.sampled_from(own)))


def _fits(e: Example, shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two tensors broadcast; rows of a batch only to the same rows."""
    if e.batched:
        return len(shape) == len(other) and all(1 in (a, b) or a == b for a, b in zip(shape, other, strict=True))
    pairs = zip(shape[::-1], other[::-1], strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def _other_shape(draw: st.DrawFn, shape: tuple[int, ...]) -> list[int]:
    left, wanted = int(np.prod(shape)), []
    for _ in range(draw(st.integers(0, 3))):
        wanted.append(draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0])))
        left //= wanted[-1]
    return [*wanted, draw(st.sampled_from((left, -1)))]


def _grow_along(draw: st.DrawFn, e: Example, kind: str, x: str, axis: int) -> None:
    shape = e.values[x].shape
    ndim, n = len(shape), shape[axis]
    if kind == "slice":
        bound, step = st.integers(-n - 1, n + 1), draw(st.sampled_from((1, 1, 2, 3, -1, -2)))
        bounds = [draw(bound)], [draw(bound)], [axis], [step]
        e.add("slice", x, *(e.numbers(value) for value in bounds))
    elif kind == "split":
        cut = draw(st.integers(0, n))
        e.add("split", x, outputs=2, axis=axis, sizes=[cut, n - cut])
    elif kind == "concat":
        rest = shape[:axis] + shape[axis + 1 :]
        fits = [t for t in e.tensors if (s := e.values[t].shape)[:axis] + s[axis + 1 :] == rest and len(s) == ndim]
        e.add("concat", x, *draw(st.lists(st.sampled_from(fits), min_size=1, max_size=2)), axis=axis)
    elif kind == "pad":
        mode = draw(st.sampled_from(("constant", "edge", "reflect", "wrap")))
        most = {"constant": 3, "edge": 3 if n else 0, "reflect": max(n - 1, 0), "wrap": n}[mode]
        pads = [draw(st.integers(-(n // 2) if mode == "constant" else 0, most)) for _ in range(2)]
        value = e.floats(np.array(0.5, np.float32)) if mode == "constant" else ""
        e.add("pad", x, e.numbers(pads), value, e.numbers([axis]), mode=mode)
    elif kind == "gather" and n:
        indices = draw(st.integers(-n, n - 1) | st.lists(st.integers(-n, n - 1), max_size=3))
        e.add("gather", x, e.numbers(indices), axis=axis)
    elif kind == "reduce":
        functions = ("sum", "l1", "mean", "max", "min", "sum_square", "l2", "log_sum_exp") if n else ("sum", "l1")
        e.add("reduce", x, function=draw(st.sampled_from(functions)), axes=[axis], keepdims=draw(st.booleans()))
    elif kind == "cumsum":
        e.add("cumsum", x, axis=axis, reverse=draw(st.booleans()))
    elif kind == "conv" and ndim in (3, 4) and e.values[x].size and axis == 1:
        kernel = [draw(st.integers(1, min(size, 3))) for size in shape[2:]]
        pads = [draw(st.integers(0, 1)) for _ in range(2 * len(kernel))]
        options = {"strides": [draw(st.integers(1, 3)) for _ in kernel], "pads": pads}
        groups = draw(st.sampled_from((1, n)))
        features = groups * draw(st.integers(1, 2))
        op = draw(st.sampled_from(("conv", "conv", "conv_transpose", "pool")))
        if op == "pool":
            e.add("pool", x, kernel=kernel, function=draw(st.sampled_from(("max", "mean"))), **options)
        else:
            outer, inner = (features, n // groups) if op == "conv" else (n, features // groups)
            weight = random(draw, (outer, inner, *kernel)) / np.float32(n * np.prod(kernel))
            e.add(op, x, weights={"weight": weight, "bias": random(draw, features)}, groups=groups, **options)
    elif kind == "norm" and n and axis == ndim - 1:
        e.add("activation", x, activation="tanh")
        weights = {"weight": random(draw, n), "bias": random(draw, n)}
        x = e.nodes[-1].outputs[0]
        if draw(st.booleans()):
            e.add("layer_norm", x, weights=weights, axes=1, eps=0.1)
        else:
            statistics = {"mean": random(draw, n), "var": abs(random(draw, n)) + np.float32(0.1)}
            e.add("batch_norm", x, weights=weights | statistics)
    elif kind == "softmax" and n:
        e.add("softmax", x, axis=axis)
    elif kind == "matmul" and axis == ndim - 1 and axis - 1 in range(int(e.batched), axis):
        e.add("transpose", x, perm=[*range(axis - 1), axis, axis - 1])
        e.add("matmul", *draw(st.permutations((x, e.nodes[-1].outputs[0]))))
    elif kind == "dense" and n and axis == ndim - 1:
        weights = {"weight": random(draw, (draw(st.integers(1, 20)), n)) / np.float32(n)}
        e.add("dense", x, weights=weights, activation="tanh")
    elif kind == "lstm" and ndim == 3 and axis == 2 and n and 0 not in shape:
        weights = {"weight_ih_l0": random(draw, (20, n)) / 3, "weight_hh_l0": random(draw, (20, 5)) / 3}
        e.add("lstm", x, weights=weights, return_sequences=draw(st.booleans()))


KINDS = (
    "unary", "unary", "binary", "binary", "transpose", "unsqueeze", "squeeze", "expand", "reshape", "flatten", "slice",
    "slice", "split", "concat", "concat", "pad", "pad", "gather", "reduce", "softmax", "matmul", "dense", "lstm",
    "where", "tile", "stack", "cumsum", "conv", "conv", "conv", "lstm", "lstm", "norm",
)  # fmt: skip


@st.composite
def examples(draw: st.DrawFn, batched: bool = False, batch: int = 0) -> Example:
    e = Example(batched, draw(st.booleans()))
    for k in range(draw(st.integers(1, 2))):
        least = draw(st.sampled_from((2, 3, 0)))
        shape = [batch, *shapes(draw, max(least - 1, 0), 3)] if batched else shapes(draw, least, 4)
        e.feeds[f"x{k}"] = e.values[f"x{k}"] = random(draw, shape)
    for _ in range(draw(st.integers(4, 14))):
        grow(draw, e)
    if not e.nodes:
        e.add("identity", "x0")
    return e


def run(model: fastrnn.Model, e: Example, **changed: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float32, copy=False) for array in model.run(e.feeds | changed).values()]


@settings(max_examples=300)
@given(e=examples(), isa=st.sampled_from(ISAS))
def test_any_graph_gives_what_the_reference_gives(e, isa):
    fastrnn.set_isa(isa)
    kept = {name: array.copy() for name, array in e.feeds.items()}
    spec = e.spec()
    plain = Executable(spec.nodes, list(e.feeds), [t.name for t in spec.outputs], spec.constants, pack(spec))
    once = plain.run(list(e.feeds.values()), 1)
    largest = max(1.0, *(float(np.abs(a).max(initial=0)) for a in e.values.values() if np.isfinite(a).all()))
    model = e.model()
    for made in (once, run(model, e), run(model, e)):
        for tensor, ours in zip(spec.outputs, made, strict=True):
            want = e.values[tensor.name]
            assert ours.shape == want.shape, f"{tensor.name} on {isa}\n{e}"
            np.testing.assert_allclose(
                ours, want, rtol=0, atol=PROGRAM * largest, err_msg=f"{tensor.name} on {isa}\n{e}"
            )
    for name, array in e.feeds.items():
        assert np.array_equal(array, kept[name]), f"input {name} was changed\n{e}"


@settings(max_examples=200)
@given(e=examples())
def test_bits_depend_on_neither_threads_nor_isa_nor_other_outputs(e):
    whole = []
    for isa in FMA_ISAS:
        fastrnn.set_isa(isa)
        model = e.model()
        for threads in (1, 2):
            fastrnn.set_num_threads(threads)
            whole.append(run(model, e))
            assert_bits(whole[-1], whole[0], f"{threads} threads on {isa}\n{e}")
    spec = e.spec()
    last = fastrnn.Model(ModelSpec(spec.nodes, spec.inputs, spec.outputs[-1:], spec.constants))
    assert_bits(run(last, e), whole[0][-1:], f"only the last output\n{e}")


@settings(max_examples=200)
@given(e=examples(batched=True, batch=5), isa=st.sampled_from(ISAS), cut=st.integers(1, 4))
def test_a_row_does_not_depend_on_its_batch(e, isa, cut):
    fastrnn.set_isa(isa)
    model = e.model("packed")
    whole = run(model, e)
    for rows in (slice(0, cut), slice(cut, 5)):
        part = run(model, e, **{name: array[rows] for name, array in e.feeds.items() if name[0] == "x"})
        assert_bits(part, [array[rows] for array in whole], f"rows {rows} on {isa}\n{e}")
