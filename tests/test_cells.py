"""Every cell and every option against the float64 reference, on every instruction set and on the BLAS backend."""

from __future__ import annotations

import itertools
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from cases import DIRECTIONS, SIZES, SUM_BLOCKS, VARIANTS, Case, assert_bits, assert_close, flat, parts, state_of
from tolerances import RECURRENT_LONG

import fastrnn
from fastrnn import reference
from fastrnn.spec import ACTIVATIONS, CELL_ACTIVATIONS, ROW_ACTIVATIONS, Node

KINDS = ("lstm", "gru", "gru reset before", "rnn")


def check(case: Case, backend: str, note: object = "", tolerance: float | None = None, **call) -> None:
    given = {} if tolerance is None else {"tolerance": tolerance}
    assert_close(
        flat(case.layer(backend)(case.x, case.initial, **call)), case.expected(**call), f"{case} {note}", **given
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size(variant, isa, backend):
    """Each hidden size meets other choices of everything else."""
    sizes = (*SIZES, *SUM_BLOCKS)
    inputs, batches, lengths = cycle(sizes[3:] + sizes[:3]), cycle((3, 1, 5, 2, 4, 13, 7)), cycle((3, 1, 7, 2))
    layers, directions, flags = cycle((1, 2, 3)), cycle(DIRECTIONS), cycle((True, False, True, True, False))
    for seed, size in enumerate(sizes):
        changes = {"hidden_size": size, "input_size": next(inputs), "batch": next(batches), "seq_len": next(lengths)}
        changes |= {"num_layers": next(layers), "direction": next(directions), "batch_first": next(flags)}
        check(Case.of(variant, **changes, bias=next(flags), state=next(flags), seed=seed), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination(kind, isa, backend):
    axes = {
        "num_layers": (1, 2, 3),
        "direction": DIRECTIONS,
        "batch_first": (True, False),
        "return_sequences": (True, False),
        "bias": (True, False),
        "state": (True, False),
    }
    for values in itertools.product(*axes.values()):
        check(Case.of(kind, **dict(zip(axes, values, strict=True))), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_output_in_the_order_of_processing(kind, isa, backend):
    for layers, batch_first in itertools.product((1, 2), (True, False)):
        case = Case.of(kind, direction="reverse", num_layers=layers, batch_first=batch_first, reverse_output=True)
        check(case, backend)
        check(case, backend, "ragged", lengths=np.array([1, 3]))
        check(case, backend, "masked", mask=np.array([[False, True, False, True], [True, True, True, False]]))
    with pytest.raises(fastrnn.UnsupportedError, match="reverse_output"):
        Case.of(kind, direction="bidirectional concat", reverse_output=True).layer()


CUSTOM = {  # alpha and beta that are not the defaults
    "hard_sigmoid": (0.3, 0.4),
    "affine": (0.7, -0.2),
    "leaky_relu": (0.2,),
    "thresholded_relu": (0.3,),
    "scaled_tanh": (1.3, 0.6),
    "elu": (0.7,),
}


@pytest.mark.parametrize("name", CELL_ACTIVATIONS)
def test_every_activation_in_every_place(name, isa, backend):
    slots = [
        *itertools.product(["lstm", "lstm projection"], ["gate_activation", "cell_activation", "hidden_activation"]),
        *itertools.product(["gru", "gru reset before"], ["gate_activation", "cell_activation"]),
        ("rnn", "activation"),
    ]
    values = [name, (name, *CUSTOM[name])] if name in CUSTOM else [name]
    for (variant, slot), value, size in itertools.product(slots, values, (5, 17)):
        # Small weights and few steps, as cells with an unbounded gate grow exponentially.
        check(Case.of(variant, **{slot: value}, hidden_size=size, seq_len=3, scale=0.5), backend)


def test_activations_that_no_cell_has(isa):
    for name in sorted(set(ACTIVATIONS) - set(CELL_ACTIVATIONS)):
        with pytest.raises(fastrnn.UnsupportedError, match=name):
            Case.of("lstm", cell_activation=name).layer()
    assert set(ROW_ACTIVATIONS).isdisjoint(CELL_ACTIVATIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind, isa, backend):
    """Batch and time of 0 and 1."""
    for batch, seq_len in itertools.product((0, 1), (0, 1)):
        for direction, layers, sequences in itertools.product(DIRECTIONS, (1, 2), (True, False)):
            changes = {"batch": batch, "seq_len": seq_len, "direction": direction, "num_layers": layers}
            check(Case.of(kind, **changes, return_sequences=sequences), backend)
            check(Case.of(kind, **changes, state=False), backend, "ragged", lengths=np.full(batch, seq_len))


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_two_biases(kind, isa, backend):
    """The sum of both is what counts, but for the candidate of a GRU that resets after the product."""
    case = Case.of(kind)
    for missing in ("bias_ih", "bias_hh"):
        weights = {name[:-3]: array for name, array in case.node.weights.items() if name != missing + "_l0"}
        layer = type(case.layer())(**weights, **dict(case.options), backend=backend)
        kept = {name: array for name, array in case.node.weights.items() if name != missing + "_l0"}
        node = Node(case.op, case.op, ("x",), ("y",), case.attrs, kept)
        want = [
            a
            for a in reference.recurrent(node, case.x, *([case.initial] if case.op != "lstm" else case.initial))
            if a is not None
        ]
        assert_close(flat(layer(case.x, case.initial)), want, f"{kind} without {missing}")


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences(kind, isa, backend):
    """Longer than two chunks of time steps, so state and input products pass from chunk to chunk."""
    for direction, layers, batch in [("forward", 2, 3), ("bidirectional concat", 1, 5), ("reverse", 1, 40)]:
        case = Case.of(kind, direction=direction, num_layers=layers, batch=batch, hidden_size=100)
        chunk = case.layer(backend).explain(batch, 10**6)["chunk_steps"]
        check(replace(case, seq_len=2 * chunk + 1), backend, tolerance=RECURRENT_LONG)


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
def test_cells(op, batch, isa, backend):
    for size, with_state in itertools.product((1, 9, 16, 33), (True, False)):
        case = Case.of(op, hidden_size=size, batch=1 if batch is None else batch, seq_len=1, state=with_state)
        at = 0 if batch is None else slice(None)  # no batch axis
        state = state_of(case, [part[0, at] for part in parts(case.initial)])
        ours = parts(case.cell(backend)(case.x[at, 0], state))
        assert_close(ours, [part[0, at] for part in case.expected()[1:]], f"cell of {case}, batch {batch}")


@pytest.mark.parametrize("kind", KINDS)
def test_last_output_only(kind, isa, backend):
    """``outputs="last"``, ``last()`` and ``return_sequences=False`` are one thing: the final h of each direction."""
    for direction, layers, batch_first in itertools.product(DIRECTIONS, (1, 2), (True, False)):
        case = Case.of(kind, direction=direction, num_layers=layers, batch_first=batch_first)
        layer = case.layer(backend)
        whole = flat(layer(case.x, case.initial))
        only = Case.of(kind, direction=direction, num_layers=layers, batch_first=batch_first, return_sequences=False)
        results = {
            "outputs": layer(case.x, case.initial, outputs="last"),
            "last()": layer.last()(case.x, case.initial),
            "return_sequences": only.layer(backend)(case.x, case.initial),
            "out": layer(
                case.x, case.initial, outputs="last", out=empty_like(layer(case.x, case.initial, outputs="last"))
            ),
        }
        want = [*only.expected()[:1], *case.expected()[1:]]
        for how, result in results.items():
            assert_close(flat(result), want, f"{how} {case}")
            assert_bits(flat(result)[1:], whole[1:], f"states by {how} {case}")
            assert not np.shares_memory(flat(result)[0], flat(result)[1]), f"y is a view of h: {how} {case}"
        if direction == "forward":
            at_end = whole[0][:, -1] if batch_first else whole[0][-1]
            assert_bits(flat(results["outputs"])[:1], [at_end], case)
        again = only.layer(backend)(case.x, case.initial, outputs="all")
        assert_bits(flat(again), whole, f"outputs=all {case}")


def empty_like(result):
    """Arrays to write a result to."""
    y, state = result
    parts = [np.full_like(part, np.nan) for part in flat((y, state))]
    return parts[0], tuple(parts[1:]) if isinstance(state, tuple) else parts[1]


# Options that do not fit together


@pytest.mark.parametrize("gate", ["relu", ("hard_sigmoid", 0.2, 0.4)])
def test_taking_gate_needs_a_symmetric_activation(gate):
    with pytest.raises(fastrnn.UnsupportedError, match="update_gate"):
        Case.of("gru take", gate_activation=gate).layer()


def test_options_that_do_not_exist():
    with pytest.raises(TypeError, match=r"reset_after.*known: .*cell_clip"):
        Case.of("lstm", reset_after=True).layer()
    with pytest.raises(fastrnn.FormatError, match="swishy"):
        Case.of("rnn", activation="swishy").layer()
    with pytest.raises(fastrnn.UnsupportedError, match=r"mkl.*packed, blas"):
        Case().layer("mkl")
    w = np.zeros((4, 1), np.float32)
    with pytest.raises(fastrnn.ShapeError, match="exclude each other"):
        fastrnn.LSTM(w, w, bidirectional=True, reverse=True)


def test_values_that_do_not_exist():
    wrong = {"merge": "sideways", "update_gate": "half", "clip": -1.0}
    with pytest.raises(fastrnn.ShapeError) as caught:
        Case.of("gru", **wrong).layer()
    for key, value in wrong.items():
        assert key in str(caught.value), key
        assert repr(value) in str(caught.value), key
    for clip in (0, np.nan, "1", -np.inf):
        with pytest.raises(fastrnn.ShapeError, match="proj_clip must be a positive number"):
            Case.of("lstm projection", proj_clip=clip).layer()


def test_all_wrong_shapes_are_named():
    w = {name[:-3]: array for name, array in Case.of("lstm projection clipped", peephole=True).node.weights.items()}
    wrong = w | {"weight_ih": w["weight_ih"][:-1], "bias_hh": w["bias_hh"][1:], "peephole": w["peephole"][:2]}
    with pytest.raises(fastrnn.ShapeError) as caught:
        fastrnn.LSTM(**wrong)
    for text in ("weight_ih", "bias_hh", "peephole", str(w["weight_ih"].shape), str(wrong["weight_ih"].shape)):
        assert text in str(caught.value), text


def test_wrong_counts_of_arrays():
    w = np.zeros((4, 1), np.float32)
    with pytest.raises(fastrnn.ShapeError, match=r"weight_hh.*_l0, _l1.*got 1"):
        fastrnn.LSTM([w, w], [w])
    with pytest.raises(fastrnn.ShapeError, match="weight_hh"):
        fastrnn.LSTM(w, np.zeros((3, 1), np.float32))
    with pytest.raises(fastrnn.ShapeError, match="weight_hh"):
        fastrnn.GRU(np.zeros((0, 1)), np.zeros((0, 1)))
    with pytest.raises(fastrnn.ShapeError, match=r"real numbers.*complex"):
        fastrnn.RNN(np.zeros((1, 1), complex), np.zeros((1, 1)))


def test_weights_are_copied(isa, backend):
    """A layer keeps its results when the arrays that it was made from change."""
    case = Case.of("lstm everything", seed=99)
    weights = {name[:-3]: array.copy() for name, array in case.node.weights.items()}
    layer = fastrnn.LSTM(**weights, **dict(case.options), backend=backend)
    before = flat(layer(case.x, case.initial))
    for array in weights.values():
        array[...] = np.nan
    assert_bits(flat(layer(case.x, case.initial)), before, "after the weights were overwritten")
