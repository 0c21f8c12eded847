"""Relations between calls and between layers that hold exactly: no reference is needed to see them fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import DIRECTIONS, ISAS, MERGES, VARIANTS, Case, assert_bits, assert_close, cases, flat, parts, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import RECURRENT_LONG

import fastrnn

isas = st.sampled_from(ISAS)


def time_axis(case: Case) -> int:
    return 1 if case.node.attr("batch_first") else 0


def run(case: Case, isa: str, x=None, state=None, **call) -> list[np.ndarray]:
    fastrnn.set_isa(isa)
    return flat(case.layer()(case.x if x is None else x, case.initial if state is None else state, **call))


def stacked(case: Case, layer: int, direction: int) -> dict[str, np.ndarray]:
    """Weights of one layer in one direction, without their suffix."""
    suffix = f"_l{layer}" + ("_reverse" if direction else "")
    weights = case.node.weights
    return {name.removesuffix(suffix): array for name, array in weights.items() if name.endswith(suffix)}


def single(case: Case, layer: int, direction: int, **options):
    """One layer in one direction of a case, by itself."""
    attrs = {key: value for key, value in case.options if key != "num_layers"}
    return type(case.layer())(**stacked(case, layer, direction), **attrs, **options, backend="packed")


@settings(max_examples=40)
@given(case=cases(directions=("reverse",), num_layers=1), isa=isas)
def test_reverse_is_forward_on_the_reversed_input(case, isa):
    axis = time_axis(case)
    forward = run(replace(case, direction="forward"), isa, np.flip(case.x, axis))
    assert_bits(run(case, isa), [np.flip(forward[0], axis), *forward[1:]], f"{case} on {isa}")


@settings(max_examples=40)
@given(case=cases(directions=("reverse",), num_layers=1, seq_len=6, batch=5), isa=isas, seed=st.integers(0, 1000))
def test_reverse_begins_at_the_last_real_step(case, isa, seed):
    lengths = np.random.default_rng(seed).integers(0, 7, 5)
    x = case.x.copy()
    rows = x if case.node.attr("batch_first") else x.swapaxes(0, 1)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    want = run(replace(case, direction="forward"), isa, x, lengths=lengths)
    for row, length in zip(want[0] if case.node.attr("batch_first") else want[0].swapaxes(0, 1), lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    assert_bits(run(case, isa, lengths=lengths), want, f"lengths {lengths}, {case} on {isa}")


@settings(max_examples=40)
@given(case=cases(directions=DIRECTIONS[2:], num_layers=1), isa=isas)
def test_bidirectional_is_two_layers_merged(case, isa):
    fastrnn.set_isa(isa)
    states = [[part[[k]] for part in parts(case.initial)] for k in range(2)]
    forward, backward = (flat(single(case, 0, k, reverse=k == 1)(case.x, state_of(case, states[k]))) for k in range(2))
    want = [
        MERGES[case.node.attr("merge")](forward[0], backward[0]),
        *(np.concatenate(pair) for pair in zip(forward[1:], backward[1:], strict=True)),
    ]
    assert_bits(run(case, isa), want, f"{case} on {isa}")


@settings(max_examples=40)
@given(case=cases(directions=("forward", "reverse")), isa=isas)
def test_stacked_layers_are_layers_in_a_row(case, isa):
    fastrnn.set_isa(isa)
    x, finals = case.x, []
    for k in range(case.node.attr("num_layers")):
        state = state_of(case, [part[[k]] for part in parts(case.initial)])
        x, *final = flat(single(case, k, 0, reverse=case.direction == "reverse")(x, state))
        finals.append(final)
    want = [x, *(np.concatenate(arrays) for arrays in zip(*finals, strict=True))]
    assert_bits(run(case, isa), want, f"{case} on {isa}")


@settings(max_examples=30)
@given(case=cases(batch_first=True), isa=isas)
def test_time_first_is_a_transposed_batch_first(case, isa):
    options = dict(case.options) | {"batch_first": False}
    other = replace(case, options=tuple(options.items()))
    y, *state = run(other, isa, case.x.swapaxes(0, 1))
    assert_bits([y.swapaxes(0, 1), *state], run(case, isa), f"{case} on {isa}")


@settings(max_examples=30)
@given(case=cases(state=False), isa=isas)
def test_no_state_is_a_state_of_zeros(case, isa):
    zeros = state_of(case, [np.zeros_like(part) for part in run(case, isa)[1:]])
    assert_bits(run(case, isa, state=zeros), run(case, isa), f"{case} on {isa}")


@settings(max_examples=30)
@given(case=cases(bias=False), isa=isas)
def test_no_bias_is_a_bias_of_zeros(case, isa):
    fastrnn.set_isa(isa)
    count = case.node.attr("num_layers") * case.directions
    rows = case.node.weights["weight_ih_l0"].shape[0]
    with_bias = replace(case, bias=True)
    for name, array in with_bias.node.weights.items():
        array[...] = 0 if name.startswith("bias") else case.node.weights[name]
    assert count * rows == sum(a.size for name, a in with_bias.node.weights.items() if name.startswith("bias_ih"))
    assert_bits(run(with_bias, isa), run(case, isa), f"{case} on {isa}")


@settings(max_examples=30)
@given(case=cases(), isa=isas)
def test_full_lengths_and_full_masks_change_nothing(case, isa):
    want = run(case, isa)
    assert_bits(run(case, isa, lengths=np.full(case.batch, case.seq_len)), want, f"lengths, {case} on {isa}")
    assert_bits(run(case, isa, mask=np.ones((case.batch, case.seq_len), bool)), want, f"mask, {case} on {isa}")


@settings(max_examples=30)
@given(case=cases(variants=("gru", "gru reset before")), isa=isas)
def test_taking_update_gate_is_the_keeping_one_negated(case, isa):
    """1 - sigmoid(x) = sigmoid(-x): the other convention is the same network with the rows of z negated."""
    negated = replace(case, options=(*case.options, ("update_gate", "take")))
    z = slice(case.hidden_size, 2 * case.hidden_size)
    for array in negated.node.weights.values():
        array[z] *= -1
    assert_bits(run(negated, isa), run(case, isa), f"{case} on {isa}")


@settings(max_examples=30)
@given(case=cases(variants=("lstm", "gru", "rnn")), isa=isas)
def test_a_bound_that_nothing_reaches_is_none(case, isa):
    """The kernels' path for all variants against the short one for standard cells; they round differently."""
    bounded = replace(case, options=(*case.options, ("clip", 3e38)))
    assert_close(run(bounded, isa), run(case, isa), f"{case} on {isa}", RECURRENT_LONG)


@settings(max_examples=30)
@given(case=cases(variants=("lstm", "lstm peephole")), isa=isas)
def test_an_identity_projection_is_none(case, isa):
    fastrnn.set_isa(isa)
    case = replace(case, direction="forward", options=())
    weights = {name[:-3]: array for name, array in case.node.weights.items()}
    projected = fastrnn.LSTM(**weights, weight_hr=np.eye(case.hidden_size), backend="packed")
    assert_bits(flat(projected(case.x, case.initial)), run(case, isa), f"{case} on {isa}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_agree(variant, isa):
    case = Case.of(
        variant, hidden_size=33, input_size=20, batch=5, seq_len=9, direction="bidirectional concat", num_layers=2
    )
    packed, blas = (flat(case.layer(backend)(case.x, case.initial)) for backend in ("packed", "blas"))
    assert_close(blas, packed, case)


def test_known_values(isa, backend):
    """By hand: weights of zero, biases that open or close a gate."""
    zeros, ones = np.zeros((4, 1), np.float32), np.ones((1, 1, 1), np.float32)
    x = np.full((1, 3, 1), 9.0, np.float32)
    closed = fastrnn.LSTM(
        zeros, zeros, np.float32([-100, 100, 0, 100]), backend=backend
    )  # i = 0, f = 1, o = 1: c stays
    y, (_, c) = closed(x, (ones, 2 * ones))
    assert np.array_equal(c, 2 * ones)
    np.testing.assert_allclose(y.ravel(), np.tanh([2, 2, 2]), rtol=3e-7)
    counter = fastrnn.LSTM(
        zeros, zeros, np.float32([100, 100, 100, 100]), backend=backend
    )  # all gates 1, g = 1: c counts
    assert np.array_equal(counter(x)[1][1].ravel(), [3.0])
    keep = fastrnn.GRU(zeros[:3], zeros[:3], np.float32([0, 100, 5]), backend=backend)  # z = 1: h stays
    assert np.array_equal(keep(x, 0.25 * ones)[0].ravel(), [0.25] * 3)
    take = fastrnn.GRU(zeros[:3], zeros[:3], np.float32([0, -100, 100]), backend=backend)  # z = 0: h = n = 1
    assert np.array_equal(take(x, 0.25 * ones)[0].ravel(), [1.0] * 3)
    total = fastrnn.RNN(np.float32([[1]]), np.float32([[1]]), activation="linear", backend=backend)  # a running sum
    assert np.array_equal(total(x)[0].ravel(), [9, 18, 27])
