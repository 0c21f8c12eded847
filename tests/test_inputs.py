"""What may be passed as an array, what is refused and what the error says; inputs are read, never written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import (
    ISAS,
    VARIANTS,
    Case,
    assert_bits,
    flat,
    misaligned,
    out_for,
    parts,
    read_only,
    state_of,
    strided,
    take,
)
from cases import cases as layers
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn

FORMS = {
    "strided": strided,
    "misaligned": misaligned,
    "read-only": read_only,
    "negative strides": lambda x: np.flip(np.flip(x).copy()),
    "fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "big-endian": lambda x: x.astype(">f4"),
    "float64": lambda x: x.astype(np.float64),
    "long double": lambda x: x.astype(np.longdouble),
    "big-endian float64": lambda x: x.astype(">f8"),
    "nested lists": lambda x: x.tolist(),
    "a subclass": lambda x: np.ma.masked_array(x),
    "a buffer": memoryview,
    "in a structure": lambda x: np.rec.fromarrays([x, x], names="a,b")["a"],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_numbers(form, backend):
    make = FORMS[form]
    for variant, batch_first in itertools.product(("lstm", "gru", "rnn"), (True, False)):
        case = Case.of(variant, direction="bidirectional concat", batch_first=batch_first)
        layer = case.layer(backend)
        want = flat(layer(case.x, case.initial))
        if form != "nested lists" or batch_first:  # a list is a list of sequences
            assert_bits(flat(layer(make(case.x), case.initial)), want, f"x, {case}")
        state = state_of(case, [make(part) for part in parts(case.initial)])
        assert_bits(flat(layer(case.x, state)), want, f"state, {case}")


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool", ">i4"])
def test_other_types_are_cast(dtype, backend):
    case = Case.of("gru")
    x = (case.x * 3).astype(dtype)
    layer = case.layer(backend)
    assert_bits(flat(layer(x)), flat(layer(x.astype(np.float32))), dtype)
    dense = fastrnn.Dense(case.node.weights["weight_ih_l0"], backend=backend)
    assert_bits([dense(x)], [dense(x.astype(np.float32))], dtype)


def test_weights_of_other_types_and_forms():
    case = Case.of("lstm projection", peephole=True)
    weights = {name[:-3]: array.astype(np.float16).astype(np.float32) for name, array in case.node.weights.items()}
    want = flat(fastrnn.LSTM(**weights)(case.x, case.initial))
    for make in (*FORMS.values(), lambda w: w.astype(np.float16)):
        made = {name: make(array) for name, array in weights.items()}
        assert_bits(flat(fastrnn.LSTM(**made)(case.x, case.initial)), want, make)


# PyTorch and DLPack


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    case = Case.of("lstm", direction="bidirectional concat")
    layer = case.layer()
    want = flat(layer(case.x, case.initial))
    forms = {
        "a tensor": torch.from_numpy,
        "with gradient": lambda a: torch.from_numpy(a).requires_grad_(),
        "of a graph": lambda a: torch.from_numpy(a).requires_grad_() * 1,
        "strided": lambda a: torch.from_numpy(strided(a)),
        "transposed": lambda a: torch.from_numpy(np.ascontiguousarray(a.T)).permute(2, 1, 0),
        "expanded": lambda a: torch.from_numpy(a)[None].expand(3, *a.shape)[1],
        "float64": lambda a: torch.from_numpy(a).double(),
        "a parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a)),
        "conjugated view": lambda a: torch.complex(torch.from_numpy(a), torch.zeros(a.shape)).conj().real,
        "negated view": lambda a: torch.complex(torch.zeros(a.shape), torch.from_numpy(-a)).conj().imag,
    }
    for form, make in forms.items():
        assert_bits(flat(layer(make(case.x), case.initial)), want, f"x is {form}")
        assert_bits(flat(layer(case.x, tuple(make(part) for part in case.initial))), want, f"the state is {form}")
        assert_bits(
            flat(layer([make(row) for row in case.x], case.initial)) if form != "transposed" else want,
            want,
            f"rows are {form}",
        )
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.from_numpy(case.x).to(dtype)
        assert_bits(flat(layer(x)), flat(layer(x.float().numpy())), dtype)
    assert_bits(flat(layer(torch.from_numpy(case.x).int())), flat(layer(case.x.astype(np.int32))), "integers")
    lengths = torch.tensor([1, 4])
    assert_bits(flat(layer(torch.from_numpy(case.x), lengths=lengths)), flat(layer(case.x, lengths=[1, 4])), "lengths")
    mask = np.array([[True, False, True, True], [False, True, True, False]])
    assert_bits(flat(layer(case.x, mask=torch.from_numpy(mask))), flat(layer(case.x, mask=mask)), "mask")
    ids = torch.tensor([[1, 2]])
    assert fastrnn.Embedding(np.eye(3))(ids).tolist() == [[[0, 1, 0], [0, 0, 1]]]
    with pytest.raises(fastrnn.ShapeError, match="complex"):
        layer(torch.from_numpy(case.x).to(torch.complex64))


class Exporter:
    """An object that knows DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OldExporter(Exporter):
    """The protocol before its options: a read-only array cannot be exported."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


@pytest.mark.parametrize("kind", [Exporter, OldExporter])
def test_dlpack_objects(kind):
    case = Case.of("lstm")
    layer = case.layer()
    want = flat(layer(case.x, case.initial))
    assert_bits(flat(layer(kind(case.x), case.initial)), want, "x")
    assert_bits(flat(layer(case.x, tuple(kind(part) for part in case.initial))), want, "state")
    assert_bits(flat(layer(kind(strided(case.x)), case.initial)), want, "strided")
    assert_bits(flat(layer(kind(case.x.astype(np.float64)), case.initial)), want, "float64")
    assert fastrnn.Dense(np.eye(3))(kind(case.x)).shape == case.x.shape


def test_dlpack_objects_on_another_device():
    class Elsewhere(Exporter):
        def __dlpack__(self, **options):
            raise BufferError("this array is on an accelerator")

        def __dlpack_device__(self):
            return (2, 0)

    with pytest.raises((fastrnn.ShapeError, BufferError)):
        Case().layer()(Elsewhere(Case().x))


# What is refused


NO_NUMBERS = {
    "complex": np.zeros((2, 4, 3), np.complex64),
    "text": np.full((2, 4, 3), "a"),
    "bytes": np.full((2, 4, 3), b"a"),
    "a string": "hello",
    "objects": np.full((2, 4, 3), None),
    "None": None,
    "a mapping": {},
    "a set": {1.0},
    "dates": np.zeros((2, 4, 3), "M8[s]"),
    "durations": np.zeros((2, 4, 3), "m8[s]"),
    "structures": np.zeros((2, 4, 3), "f4,f4"),
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_what_holds_no_real_numbers(what):
    case = Case.of("lstm")
    wrong = NO_NUMBERS[what]
    with pytest.raises(fastrnn.ShapeError, match=r"x must hold real numbers.*got dtype"):
        case.layer()(wrong)
    with pytest.raises(fastrnn.ShapeError, match=r"'dense' must hold real numbers.*got dtype"):
        fastrnn.Dense(np.eye(3))(wrong)
    if wrong is not None:  # test_half_a_state
        with pytest.raises(fastrnn.ShapeError, match=r"h must hold real numbers.*got dtype"):
            case.layer()(case.x, (wrong, case.initial[1]))
        with pytest.raises(fastrnn.ShapeError, match=r"c must hold real numbers.*got dtype"):
            case.layer()(case.x, (case.initial[0], wrong))
        with pytest.raises(fastrnn.ShapeError, match=r"weight_ih_l0 must hold real numbers"):
            fastrnn.LSTM(wrong, case.node.weights["weight_hh_l0"])


def test_shapes_of_x():
    """The error names what was found and what was expected."""
    for batch_first, axes in [(True, r"\(batch, seq_len, 3\)"), (False, r"\(seq_len, batch, 3\)")]:
        layer = Case.of("gru", batch_first=batch_first).layer()
        for shape in [(), (3,), (4, 2), (2, 4, 2), (2, 4, 4), (2, 4, 0), (1, 2, 4, 3), (0,)]:
            text = str(shape).replace("(", r"\(").replace(")", r"\)")
            with pytest.raises(fastrnn.ShapeError, match=rf"x must be {axes} or \(seq_len, 3\), got shape {text}$"):
                layer(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="x must be"):  # a ShapeError is a ValueError
        layer(np.zeros(3))


def test_shapes_of_states():
    case = Case.of("lstm projection", num_layers=2)
    layer, (h, c) = case.layer(), case.initial
    for name, wrong in [
        ("h", (h[:1], c)), ("h", (h[:, :1], c)), ("h", (h[..., :1], c)), ("h", (h[0], c)), ("h", (c, h)),
        ("c", (h, c[:1])), ("c", (h, c[:, 1:])), ("c", (h, c[..., 1:])), ("c", (h, h)), ("c", (h, c[None])),
    ]:  # fmt: skip
        shape = (2, 2, 2) if name == "h" else (2, 2, 5)
        with pytest.raises(fastrnn.ShapeError) as caught:
            layer(case.x, wrong)
        found = wrong["hc".index(name)].shape
        for text in (f"{name} must be (num_layers * directions, batch, size)", str(shape), str(found)):
            assert text in str(caught.value), f"{text!r} in {caught.value}"
    for wrong in (h, (h,), (h, c, c), {"h": h}, "hc"):
        with pytest.raises(fastrnn.ShapeError, match=r"tuple \(h, c\)"):
            layer(case.x, wrong)
    with pytest.raises(fastrnn.ShapeError, match="h must"):
        Case.of("gru").layer()(case.x, (Case.of("gru").initial, Case.of("gru").initial))


@pytest.mark.parametrize("form", [np.float32, np.float64])
def test_half_a_state(form):
    """A state that lacks a part is refused, whatever the type of x; so is half an ``out``."""
    case = Case.of("lstm")
    layer, (h, c), (y, h_n, c_n) = case.layer(), case.initial, out_for(case)
    for wrong in ((h, None), (None, c), (None, None)):
        with pytest.raises(fastrnn.ShapeError, match=r"[hc] must"):
            layer(case.x.astype(form), wrong)
    for wrong in ((h_n, None), (None, c_n), (None, None)):
        with pytest.raises(fastrnn.ShapeError, match=r"out [hc] must"):
            layer(case.x.astype(form), (h, c), out=(y, wrong))


def test_a_2d_x_is_one_sequence():
    for variant, batch_first in itertools.product(("lstm", "gru", "rnn"), (True, False)):
        case = Case.of(variant, batch=1, batch_first=batch_first, direction="bidirectional concat", num_layers=2)
        layer = case.layer()
        y, *states = flat(layer(case.x, case.initial))
        want = [y.reshape(4, 10), *(part[:, 0] for part in states)]
        x = case.x.reshape(4, 3)
        flat_state = state_of(case, [part[:, 0] for part in parts(case.initial)])
        assert_bits(flat(layer(x, flat_state)), want, f"states without a batch axis, {case}")
        assert_bits(flat(layer(x, case.initial)), want, f"states with one, {case}")
        out = (np.empty((4, 10), np.float32), state_of(case, [np.empty_like(part) for part in want[1:]]))
        assert_bits(flat(layer(x, flat_state, out=out)), want, f"out, {case}")
        assert_bits(flat(out), want, f"out arrays, {case}")
        assert layer(x, outputs="last")[0].shape == (10,)


# Cells


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_shapes_of_cells(cell):
    case = Case.of(cell)
    layer = case.cell()
    for shape in [(), (2,), (2, 4), (2, 4, 3)]:
        with pytest.raises(fastrnn.ShapeError, match=r"x must be|got shape"):
            layer(np.zeros(shape, np.float32))
    h = np.zeros((2, 5), np.float32)
    for wrong in (h[0], h[None], h[:1], h[:, :4]):
        with pytest.raises(fastrnn.ShapeError, match=r"h must|state must"):
            layer(case.x[:, 0], (wrong, h) if cell == "lstm" else wrong)


# Values that are not finite; inputs stay


@settings(max_examples=40)
@given(
    case=layers(batch=5),
    isa=st.sampled_from(ISAS),
    backend=st.sampled_from(("packed", "blas")),
    bad=st.sampled_from((np.nan, np.inf, -np.inf)),
    where=st.sampled_from(("x", "h", "c")),
    row=st.integers(0, 4),
    data=st.data(),
)
def test_bad_values_stay_in_their_row(case, isa, backend, bad, where, row, data):
    """Also on the backends and instruction sets whose bits may differ with the batch: the other rows stay finite."""
    fastrnn.set_isa(isa)
    layer = case.layer(backend)
    arrays = [case.x.copy(), *(part.copy() for part in parts(case.initial))]
    k = min({"x": 0, "h": 1, "c": 2}[where], len(arrays) - 1)
    axis = 0 if k == 0 and case.node.attr("batch_first") else 1
    place = [data.draw(st.integers(0, n - 1)) for n in arrays[k].shape]
    place[axis] = row
    arrays[k][tuple(place)] = bad
    result = flat(layer(arrays[0], state_of(case, arrays[1:])))
    others = take(case, [b for b in range(5) if b != row], result)
    assert all(np.isfinite(array).all() for array in others), f"{bad} in {where}{place}: {case} {isa} {backend}"
    if np.isnan(bad) and k == 0 and case.direction == "forward":
        y = take(case, [row], result)[0].squeeze(0 if case.node.attr("batch_first") else 1)
        t = place[1 if case.node.attr("batch_first") else 0]
        assert np.isnan(y[t:]).any(-1).all(), f"NaN in x at step {t} is lost: {case} {isa} {backend}"
        assert np.isfinite(y[:t]).all(), f"NaN goes back in time: {case} {isa} {backend}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_are_never_written(variant, isa, backend):
    rng = np.random.default_rng(0)
    for direction in ("forward", "reverse", "bidirectional sum"):
        case = Case.of(variant, direction=direction, num_layers=2, batch=4)
        lengths, mask = rng.integers(0, 5, 4), rng.random((4, 4)) < 0.5
        arrays = [case.x.copy(), *(part.copy() for part in parts(case.initial))]
        kept = [array.copy() for array in arrays]
        locked = [read_only(array) for array in arrays]
        layer = case.layer(backend)
        for call in ({}, {"lengths": read_only(lengths)}, {"mask": read_only(mask)}, {"outputs": "last"}):
            y, state = layer(locked[0], state_of(case, locked[1:]), **call)
            for array in flat((y, state)):
                array += 1  # results are the caller's own
            assert_bits(arrays, kept, f"{case} {call}")


@pytest.mark.parametrize("variant", ["lstm", "gru", "rnn"])
def test_results_share_no_memory(variant, backend):
    for batch_first, call in itertools.product((True, False), ({}, {"outputs": "last"}, {"lengths": np.array([2, 4])})):
        case = Case.of(variant, batch_first=batch_first)
        arrays = [case.x, *parts(case.initial), *flat(case.layer(backend)(case.x, case.initial, **call))]
        for a, b in itertools.combinations(arrays, 2):
            assert not np.shares_memory(a, b), f"{case} {call}"
