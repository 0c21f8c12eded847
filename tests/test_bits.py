"""Promise 1: a row's float32 result depends on nothing but the row.

Not on the batch, the position in it, the number of threads, the cuts of a sequence into calls, ragged neighbours or
the instruction set.  Compared with ``==`` (NaN equals NaN), never with a tolerance.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import bits_sweep
import numpy as np
import pytest
from cases import FMA_ISAS, ISAS, VARIANTS, Case, assert_bits, cases, flat, parts, state_of, take
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn

BAD = (np.nan, np.inf, -np.inf, 3e38)
seeds = st.integers(0, 1000)


def layer_on(case: Case, isa: str, threads: int = 1):
    """The packed layer built for an instruction set; the next calls use ``threads``."""
    fastrnn.set_isa(isa)
    fastrnn.set_num_threads(threads)
    return case.layer()


def arrays_of(case: Case) -> list[np.ndarray]:
    return [case.x, *parts(case.initial)]


def call(layer, case: Case, arrays: list[np.ndarray], **options) -> list[np.ndarray]:
    return flat(layer(arrays[0], state_of(case, arrays[1:]), **options))


def lengths_of(case: Case, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, case.seq_len + 1, case.batch)


@settings(max_examples=60)
@given(case=cases(), seed=seeds, ragged=st.booleans())
def test_instruction_sets(case, seed, ragged):
    options = {"lengths": lengths_of(case, seed)} if ragged else {}
    results = [call(layer_on(case, isa), case, arrays_of(case), **options) for isa in FMA_ISAS]
    for isa, result in zip(FMA_ISAS, results, strict=True):
        assert_bits(result, results[0], f"{isa} and {FMA_ISAS[0]}, {case} {options}")


@settings(max_examples=60)
@given(case=cases(), isa=st.sampled_from(ISAS), seed=seeds, ragged=st.booleans())
def test_threads(case, isa, seed, ragged):
    options = {"lengths": lengths_of(case, seed)} if ragged else {}
    layer = layer_on(case, isa)
    alone = call(layer, case, arrays_of(case), **options)
    for team, threads in itertools.product(fastrnn.info()["teams"], (2, 3, 4)):
        fastrnn.set_team(team)
        fastrnn.set_num_threads(threads)
        assert_bits(
            call(layer, case, arrays_of(case), **options),
            alone,
            f"{threads} threads of {team}, {isa}, {case} {options}",
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_split_a_call(variant, isa):
    """The random cases above may miss one; here the plan says that each was taken."""
    shapes = {
        "batch": {"batch": 16, "hidden_size": 100},
        "directions": {"batch": 1, "hidden_size": 130, "direction": "bidirectional concat"},
        "hidden": {"batch": 2, "hidden_size": 300, "num_layers": 2},
    }
    for split, shape in shapes.items():
        case = Case.of(variant, input_size=100, seq_len=50, **shape)
        layer = layer_on(case, isa)
        alone = call(layer, case, arrays_of(case))
        seen = set()
        for threads in (2, 3, 4):
            fastrnn.set_num_threads(threads)
            seen.add(layer.explain(case.batch, case.seq_len)["split"])
            assert_bits(call(layer, case, arrays_of(case)), alone, f"{threads} threads, {isa}, {case}")
        assert split in seen, f"split {seen}, expected {split!r}: {case}"


@settings(max_examples=60)
@given(case=cases(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), seed=seeds, ragged=st.booleans())
def test_batch_and_position(case, isa, threads, seed, ragged):
    """Any rows in any order, some of them twice, and each alone."""
    rng = np.random.default_rng(seed)
    lengths = lengths_of(case, seed) if ragged else None
    layer = layer_on(case, isa, threads)
    whole = call(layer, case, arrays_of(case), lengths=lengths)
    picks = [
        rng.integers(0, case.batch, rng.integers(1, 2 * case.batch + 1)),
        rng.permutation(case.batch),
        rng.integers(0, case.batch, 1),
    ]
    for rows in picks:
        some = call(layer, case, take(case, rows, arrays_of(case)), lengths=None if lengths is None else lengths[rows])
        assert_bits(
            some, take(case, rows, whole), f"rows {rows} of {case} lengths {lengths} on {isa}, {threads} threads"
        )


@pytest.mark.parametrize("direction", ["forward", "bidirectional sum"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_that_run_in_slices(variant, threads, ragged, direction, isa):
    """More rows than wait in a cache run one part after another; each row as it does alone."""
    case = Case.of(variant, batch=1100, seq_len=4, direction=direction, num_layers=2)
    lengths = lengths_of(case, 1) if ragged else None
    layer = layer_on(case, isa, threads)
    whole = call(layer, case, arrays_of(case), lengths=lengths)
    for rows in ([0, 1], [511, 512, 513], [1099], list(range(250, 300))):
        some = call(layer, case, take(case, rows, arrays_of(case)), lengths=None if lengths is None else lengths[rows])
        assert_bits(some, take(case, rows, whole), f"rows {rows} of {case} on {isa}, {threads} threads")


@settings(max_examples=60)
@given(case=cases(directions=("forward",)), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), data=st.data())
def test_cuts_in_time(case, isa, threads, data):
    cuts = data.draw(st.lists(st.integers(0, case.seq_len), max_size=6) | st.just(list(range(case.seq_len))))
    layer = layer_on(case, isa, threads)
    axis = 1 if case.node.attr("batch_first") else 0
    whole = call(layer, case, arrays_of(case))
    pieces, state = [], case.initial
    for begin, end in itertools.pairwise([0, *sorted(cuts), case.seq_len]):
        y, state = layer(np.take(case.x, range(begin, end), axis), state)
        pieces.append(y)
    assert_bits(
        [np.concatenate(pieces, axis), *parts(state)], whole, f"cuts {cuts} of {case} on {isa}, {threads} threads"
    )


@settings(max_examples=60)
@given(
    case=cases(),
    isa=st.sampled_from(ISAS),
    threads=st.integers(1, 3),
    seed=seeds,
    bad=st.sampled_from(BAD),
    ragged=st.booleans(),
)
def test_neighbours(case, isa, threads, seed, bad, ragged):
    """NaN, infinities and other lengths in the other rows, and garbage beyond a length, change no bit of a row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, case.seq_len + 1, case.batch) if ragged else np.full(case.batch, case.seq_len)
    layer = layer_on(case, isa, threads)
    clean = call(layer, case, arrays_of(case), lengths=lengths)

    arrays = [array.copy() for array in arrays_of(case)]
    rows = arrays[0] if case.node.attr("batch_first") else arrays[0].swapaxes(0, 1)
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = bad
    assert_bits(
        call(layer, case, arrays, lengths=lengths), clean, f"{bad} beyond {lengths}: {case} on {isa}, {threads} threads"
    )

    kept = rng.integers(0, case.batch)
    others = [b for b in range(case.batch) if b != kept]
    rows[others] = bad
    for part in arrays[1:]:
        part[:, others] = bad
    if ragged:
        lengths[others] = rng.integers(0, case.seq_len + 1, len(others))
    spoiled = call(layer, case, arrays, lengths=lengths)
    assert_bits(
        take(case, [kept], spoiled),
        take(case, [kept], clean),
        f"row {kept} beside {bad}: {case} on {isa}, {threads} threads",
    )


@settings(max_examples=40)
@given(case=cases(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), seed=seeds)
def test_ragged_rows_alone(case, isa, threads, seed):
    """A row of a ragged batch is what it is by itself, without padding."""
    lengths = lengths_of(case, seed)
    layer = layer_on(case, isa, threads)
    whole = call(layer, case, arrays_of(case), lengths=lengths)
    axis = 1 if case.node.attr("batch_first") else 0
    for row in range(min(case.batch, 4)):
        arrays = take(case, [row], arrays_of(case))
        alone = call(layer, case, [np.take(arrays[0], range(lengths[row]), axis), *arrays[1:]])
        want = take(case, [row], whole)
        want[0] = np.take(want[0], range(lengths[row]), axis)
        assert_bits(alone, want, f"row {row} of lengths {lengths}: {case} on {isa}, {threads} threads")


@settings(max_examples=40)
@given(case=cases(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), seed=seeds)
def test_masked_steps_are_skipped(case, isa, threads, seed):
    """A masked sequence has the states of the sequence without these steps, whatever stands in them."""
    mask = np.random.default_rng(seed).random((case.batch, case.seq_len)) < 0.6
    layer = layer_on(case, isa, threads)
    arrays = [array.copy() for array in arrays_of(case)]
    rows = arrays[0] if case.node.attr("batch_first") else arrays[0].swapaxes(0, 1)
    rows[~mask] = np.nan
    states = call(layer, case, arrays, mask=mask)[1:]
    for row in range(min(case.batch, 4)):
        alone = replace(case, batch=1)
        short = rows[row][mask[row]][None] if case.node.attr("batch_first") else rows[row][mask[row]][:, None]
        want = call(layer, alone, [short, *take(case, [row], arrays)[1:]])[1:]
        note = f"row {row}, mask {mask[row]}: {case} on {isa}, {threads} threads"
        assert_bits([part[:, [row]] for part in states], want, note)


@pytest.mark.parametrize("kind", ["lstm", "lstm everything", "gru", "gru reset before", "rnn"])
def test_single_steps_for_a_long_time(kind, isa):
    """Two hundred single steps, by the layer and by the cell of the same weights, are one call."""
    case = Case.of(kind, hidden_size=37, input_size=20, batch=3, seq_len=200)
    layer = layer_on(case, isa)
    whole = flat(layer(case.x, case.initial))
    cell = None if case.options else case.cell()
    state, cell_state = case.initial, state_of(case, [part[0] for part in parts(case.initial)])
    for t in range(case.seq_len):
        y, state = layer(case.x[:, t : t + 1], state)
        assert_bits([y[:, 0]], [whole[0][:, t]], f"step {t} of {case}")
        if cell:
            cell_state = cell(case.x[:, t], cell_state)
            assert_bits(parts(cell_state), [part[0] for part in parts(state)], f"cell at step {t} of {case}")
    assert_bits(parts(state), whole[1:], case)


@settings(max_examples=20)
@given(case=cases(), isa=st.sampled_from(ISAS), team=st.sampled_from(fastrnn.info()["teams"]))
def test_results_written_to_given_arrays(case, isa, team):
    """``out=`` holds the same bits, whatever the arrays held before, and the call returns these arrays."""
    fastrnn.set_team(team)
    layer = layer_on(case, isa, 2)
    want = call(layer, case, arrays_of(case))
    given_arrays = [np.full_like(array, np.nan) for array in want]
    for _ in range(2):
        y, state = layer(case.x, case.initial, out=(given_arrays[0], state_of(case, given_arrays[1:])))
        assert all(a is b or a.base is b for a, b in zip(flat((y, state)), given_arrays, strict=True))
        assert_bits(given_arrays, want, f"{case} on {isa}")


def test_random_layers_called_in_random_ways():
    seen = bits_sweep.run(3000, seed=0)
    wanted = [f"split {split}" for split in ("none", "batch", "directions", "hidden")]
    wanted += [f"isa {isa}" for isa in ISAS] + [f"team {team}" for team in fastrnn.info()["teams"]]
    wanted += [f"by {by}" for by in ("layer", "cell", "last argument", "last layer")]
    assert min(seen[kind] for kind in wanted) >= 30, seen


# Layers without time


ROW_LAYERS = {
    "dense": lambda w: fastrnn.Dense(w, w[:, 0], activation="tanh", backend="packed"),
    "dense softmax": lambda w: fastrnn.Dense(w, activation="softmax", backend="packed"),
    "layer_norm": lambda w: fastrnn.LayerNorm(w[0], w[-1]),
    "layer_norm without weight": lambda w: fastrnn.LayerNorm(),
    "batch_norm": lambda w: fastrnn.BatchNorm(w[0], w[0] ** 2 + 0.1, w[0], w[-1]),
    "softmax": lambda w: fastrnn.Activation("softmax"),
    "log_softmax": lambda w: fastrnn.Activation("log_softmax"),
}


@pytest.mark.parametrize("name", ROW_LAYERS)
def test_rows_of_layers_without_time(name):
    rng = np.random.default_rng(0)
    for features, outputs in [(1, 1), (2, 3), (7, 5), (15, 16), (16, 17), (17, 33), (100, 40), (130, 260), (257, 9)]:
        w = rng.standard_normal((outputs, features)).astype(np.float32)
        x = rng.standard_normal((120, features)).astype(np.float32)
        results = {}
        for isa, threads in itertools.product(FMA_ISAS, (1, 2, 3)):
            fastrnn.set_isa(isa)
            fastrnn.set_num_threads(threads)
            layer = ROW_LAYERS[name](w)
            results[isa, threads] = layer(x)
        whole = results[FMA_ISAS[0], 1]
        for how, result in results.items():
            assert np.array_equal(result, whole), f"{name} {features}x{outputs} on {how}"
        for rows in ([5], [119, 0, 3], range(50), rng.permutation(120)):
            spoiled = x.copy()
            spoiled[[b for b in range(120) if b not in list(rows)]] = np.nan
            assert np.array_equal(layer(x[rows]), whole[rows]), f"{name} {features}x{outputs}: rows {rows}"
            assert np.array_equal(layer(spoiled)[rows], whole[rows]), (
                f"{name} {features}x{outputs}: rows {rows} beside NaN"
            )


def test_the_callers_floating_point_mode_stays(isa, backend):
    """Denormals are flushed inside of calls only."""
    case = Case()
    layer = case.layer(backend)
    small = np.float32(1e-40)
    for _ in range(2):
        layer(case.x, case.initial)
        assert small * np.float32(0.5) != 0
        assert np.float32(2e-38) * np.float32(0.25) != 0
