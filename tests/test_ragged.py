"""Sequences of different lengths: lengths, lists of arrays, and masks as Keras means them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import DIRECTIONS, MERGES, VARIANTS, Case, assert_bits, assert_close, error, flat
from tolerances import TWO_FLOAT32

import fastrnn

KINDS = ("lstm", "gru", "gru reset before", "rnn")
BATCH, SEQ_LEN = 7, 6
LENGTHS = {
    "in any order": (3, 6, 0, 1, 6, 2, 5),
    "longest first": (6, 5, 4, 3, 2, 1, 0),
    "shortest first": (0, 0, 1, 2, 3, 3, 4),
    "all": (6,) * 7,
    "none": (0,) * 7,
}
MASKS = {
    "holes": np.random.default_rng(5).random((BATCH, SEQ_LEN)) < 0.6,
    "padded at the end": np.arange(SEQ_LEN) < np.array(LENGTHS["in any order"])[:, None],
    "padded at the beginning": np.arange(SEQ_LEN) >= np.array(LENGTHS["in any order"])[:, None],
    "everything": np.ones((BATCH, SEQ_LEN), bool),
    "nothing": np.zeros((BATCH, SEQ_LEN), bool),
}


def ragged(variant: str, **changes) -> Case:
    return Case.of(variant, batch=BATCH, seq_len=SEQ_LEN, hidden_size=9, **changes)


# Lengths


@pytest.mark.parametrize("variant", VARIANTS)
def test_lengths(variant, isa, backend):
    for k, (order, direction, state) in enumerate(itertools.product(LENGTHS, DIRECTIONS, (True, False))):
        lengths = np.array(LENGTHS[order])
        changes = {"num_layers": 1 + k % 3, "batch_first": k % 2 == 0, "return_sequences": k % 5 != 4}
        case = ragged(variant, direction=direction, state=state, **changes)
        ours = flat(case.layer(backend)(case.x, case.initial, lengths))
        assert_close(ours, case.expected(lengths=lengths), f"{case} lengths {lengths}")


@pytest.mark.parametrize("kind", KINDS)
def test_beyond_a_length_y_is_zero_and_the_state_is_that_of_the_last_step(kind, isa, backend):
    case = ragged(kind)
    lengths = np.array(LENGTHS["in any order"])
    y, *state = flat(case.layer(backend)(case.x, case.initial, lengths=lengths))
    for b, length in enumerate(lengths):
        assert not y[b, length:].any(), f"row {b}, length {length}"
        if length == 0:
            assert_bits(
                [part[:, b] for part in state],
                [part[:, b] for part in flat((y, case.initial))[1:]],
                f"row {b} of length 0",
            )
        else:
            assert_bits([state[0][0, b]], [y[b, length - 1]], f"h of row {b}, length {length}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_sequences(kind, isa, backend):
    lengths = np.array(LENGTHS["in any order"])
    for direction, batch_first in itertools.product(DIRECTIONS, (True, False)):
        case = ragged(kind, direction=direction, batch_first=batch_first)
        layer = case.layer(backend)
        rows = case.x if batch_first else case.x.swapaxes(0, 1)
        whole = flat(layer(case.x, case.initial, lengths))
        for make in (list, tuple):
            sequences = make(row[:length] for row, length in zip(rows, lengths, strict=True))
            assert_bits(flat(layer(sequences, case.initial)), whole, f"{make.__name__} {case}")
    short = [row[:2] for row in ragged(kind).x]
    y, _ = ragged(kind).layer(backend)(short)
    assert y.shape == (BATCH, 2, 9), "as long as the longest sequence"


def test_a_list_holds_what_an_array_may_be(isa):
    case = ragged("gru")
    layer = case.layer()
    row = case.x[0]
    want = flat(layer(np.stack([row, row])))
    assert_bits(flat(layer([row.tolist(), row.astype(np.float64)])), want, "lists and float64")
    y, h = layer([])
    assert (y.shape, h.shape) == ((0, 0, 9), (1, 0, 9))
    y, h = layer([np.empty((0, 3))])
    assert (y.shape, h.shape) == ((1, 0, 9), (1, 1, 9))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_integers_of_any_kind(dtype):
    case = ragged("gru", direction="bidirectional concat")
    lengths = np.array(LENGTHS["in any order"])
    want = flat(case.layer()(case.x, case.initial, lengths))
    assert_bits(flat(case.layer()(case.x, case.initial, lengths.astype(dtype))), want, dtype)
    assert_bits(flat(case.layer()(case.x, case.initial, lengths.tolist())), want, "list")


def test_one_sequence_without_a_batch_axis():
    for kind, batch_first in itertools.product(KINDS, (True, False)):
        case = Case.of(kind, batch=1, batch_first=batch_first, direction="bidirectional concat")
        layer, x = case.layer(), case.x.reshape(case.seq_len, case.input_size)
        for call in ({"lengths": np.array([2])}, {"mask": np.array([[True, False, False, True]])}):
            whole = flat(layer(case.x, case.initial, **call))
            alone = {key: value[0] for key, value in call.items()}
            want = [whole[0].reshape(case.seq_len, -1), *(part[:, 0] for part in whole[1:])]
            assert_bits(flat(layer(x, case.initial, **call)), want, f"{case} {call}")
            assert_bits(flat(layer(x, case.initial, **alone)), want, f"{case} {alone}")


# Masks


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks(variant, isa, backend):
    for k, (kind, direction, zero) in enumerate(itertools.product(MASKS, DIRECTIONS, (True, False))):
        mask = MASKS[kind]
        changes = {
            "num_layers": 1 + k % 3,
            "batch_first": k % 2 == 0,
            "return_sequences": k % 3 != 2,
            "state": k % 5 != 4,
        }
        case = ragged(variant, direction=direction, zero_output_for_mask=zero, **changes)
        ours = flat(case.layer(backend)(case.x, case.initial, mask=mask))
        assert_close(ours, case.expected(mask=mask), f"{case} mask {kind!r}")


def test_a_mask_of_numbers():
    case = ragged("lstm")
    want = flat(case.layer()(case.x, mask=MASKS["holes"]))
    for mask in (MASKS["holes"].astype(np.int64), MASKS["holes"].astype(np.float32), MASKS["holes"].tolist()):
        assert_bits(flat(case.layer()(case.x, mask=mask)), want, type(mask))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "GRU reset before", "SimpleRNN"])
def test_masks_of_live_keras_layers(cell):
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(3).standard_normal((BATCH, SEQ_LEN, 3), np.float32)
    name, options = (cell, {}) if cell != "GRU reset before" else ("GRU", {"reset_after": False})
    for backwards, sequences, zero in itertools.product((False, True), (True, False), (False, True)):
        keras.utils.set_random_seed(1)
        options |= {"go_backwards": backwards, "return_sequences": sequences, "zero_output_for_mask": zero}
        layer = getattr(keras.layers, name)(5, return_state=True, bias_initializer="uniform", **options)
        layer.build(x.shape)
        model = fastrnn.from_keras(layer)
        for kind, mask in MASKS.items():
            want = [keras.ops.convert_to_numpy(a) for a in layer(x, mask=keras.ops.convert_to_tensor(mask))]
            y, *states = flat(model(x, mask=mask))
            for k, (a, b) in enumerate(zip([y, *(part[0] for part in states)], want, strict=True)):
                assert error(a, b) <= TWO_FLOAT32, (
                    f"output {k} of {name} {options} with mask {kind!r}: error {error(a, b):.1e}"
                )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_masks_of_live_bidirectional_keras_layers(cell):
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(4).standard_normal((BATCH, SEQ_LEN, 3), np.float32)
    for sequences, merge in itertools.product((True, False), MERGES):
        keras.utils.set_random_seed(2)
        layer = keras.layers.Bidirectional(getattr(keras.layers, cell)(5, return_sequences=sequences), merge_mode=merge)
        layer.build(x.shape)
        model = fastrnn.from_keras(layer)
        for kind, mask in MASKS.items():
            want = keras.ops.convert_to_numpy(layer(x, mask=keras.ops.convert_to_tensor(mask)))
            y, _ = model(x, mask=mask)
            assert error(y, want) <= TWO_FLOAT32, (
                f"{cell} {merge} return_sequences={sequences} mask {kind!r}: {error(y, want):.1e}"
            )


# What is refused


def test_lengths_that_are_refused():
    case = ragged("lstm")
    layer = case.layer()
    wrong = {
        r"\(7,\) integers.*\(6,\)": np.ones(6, int),
        r"\(7,\) integers.*\(7, 1\)": np.ones((7, 1), int),
        r"\(7,\) integers, got float64": np.ones(7),
        r"\(7,\) integers, got bool": np.ones(7, bool),
        r"0 \.\. 6, got 1 \.\. 7": np.array([1, 2, 3, 4, 5, 6, 7]),
        r"0 \.\. 6, got -1 \.\. 6": np.array([1, 2, 3, 4, 5, 6, -1]),
        r"lengths must lie in": np.array([1, 2, 3, 4, 5, 6, 2**63], np.uint64),
    }
    for text, lengths in wrong.items():
        with pytest.raises(fastrnn.ShapeError, match=text):
            layer(case.x, lengths=lengths)
    with pytest.raises(ValueError, match="lengths"):  # what the page promises
        layer(case.x, lengths=[7] * 7)


def test_masks_that_are_refused():
    case = ragged("lstm", batch_first=False)
    layer = case.layer()
    for mask in (np.ones((SEQ_LEN, BATCH), bool), np.ones((BATCH, SEQ_LEN, 1), bool), np.ones(SEQ_LEN, bool)):
        with pytest.raises(fastrnn.ShapeError, match=r"mask must be \(batch, seq_len\) = \(7, 6\)"):
            layer(case.x, mask=mask)
    with pytest.raises(fastrnn.ShapeError, match="<U1"):
        layer(case.x, mask=np.full((BATCH, SEQ_LEN), "x"))
    with pytest.raises(fastrnn.ShapeError, match="lengths and mask together"):
        layer(case.x, lengths=np.ones(7, int), mask=MASKS["holes"])


def test_lists_that_are_refused():
    case = ragged("lstm")
    layer, rows = case.layer(), list(case.x)
    with pytest.raises(fastrnn.ShapeError, match=r"\(seq_len, 3\): x\[1\] is \(6, 2\), x\[6\] is \(3,\)"):
        layer([*rows[:1], rows[1][:, :2], *rows[2:6], rows[6][0]])
    with pytest.raises(fastrnn.ShapeError, match="its own lengths"):
        layer(rows, lengths=np.ones(7, int))
    with pytest.raises(fastrnn.ShapeError, match="its own lengths"):
        layer(rows, mask=MASKS["holes"])
    with pytest.raises(fastrnn.ShapeError, match=r"x\[1\].*complex"):
        layer([rows[0], rows[1] * 1j])
