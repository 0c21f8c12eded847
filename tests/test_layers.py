"""Layers without time, and what layers and the library say about themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import ISAS, POSITIVE, SIZES, SUM_BLOCKS, VARIANTS, Case, assert_close, error, normal
from tolerances import DENSE, NORM

import fastrnn
from fastrnn import reference
from fastrnn.spec import ACTIVATIONS, Node

# Dense


def test_dense_of_every_size(isa, backend):
    for seed, (size, rows) in enumerate(itertools.product((*SIZES, *SUM_BLOCKS), (0, 1, 2, 5, 49))):
        outputs = (*SIZES, *SUM_BLOCKS)[(seed * 7) % 11]
        weight, x = normal(outputs, size, seed=seed) / np.float32(np.sqrt(size)), normal(rows, size, seed=seed + 1)
        bias = None if seed % 3 == 0 else normal(outputs, seed=seed + 2)
        y = fastrnn.Dense(weight, bias, backend=backend)(x)
        want = reference.dense(
            Node("dense", "d", (), (), {}, {"weight": weight} | ({} if bias is None else {"bias": bias})), x
        )
        assert_close([y], [want], f"{rows} rows, {size} to {outputs}", DENSE)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_with_every_activation(name, isa, backend):
    weight, bias, x = normal(17, 9) / 3, normal(17, seed=1) / 3, normal(2, 5, 9, seed=2)
    if name in POSITIVE:
        weight, bias, x = abs(weight), abs(bias), abs(x)
    node = Node("dense", "d", (), (), {"activation": name}, {"weight": weight, "bias": bias})
    assert_close(
        [fastrnn.Dense(weight, bias, activation=name, backend=backend)(x)], [reference.dense(node, x)], name, DENSE
    )


def test_dense_on_any_axes(isa, backend):
    layer = fastrnn.Dense(normal(3, 4), normal(3), backend=backend)
    x = normal(2, 3, 5, 4)
    whole = layer(x)
    assert whole.shape == (2, 3, 5, 3)
    for index in np.ndindex(2, 3):
        assert error(layer(x[index]), whole[index]) <= DENSE
    assert layer(x[0, 0, 0]).shape == (3,)
    assert layer(np.zeros((0, 7, 4))).shape == (0, 7, 3)


def test_dense_threads(isa):
    layer = fastrnn.Dense(normal(200, 130), normal(200), activation="tanh", backend="packed")
    x = normal(501, 130)
    fastrnn.set_num_threads(1)
    alone = layer(x)
    for team, threads in itertools.product(fastrnn.info()["teams"], (2, 3, 4)):
        fastrnn.set_team(team)
        fastrnn.set_num_threads(threads)
        assert np.array_equal(layer(x), alone), f"{threads} threads of {team}"


def test_dense_errors():
    w = normal(2, 3)
    for wrong, text in [
        (normal(3), r"\(3,\)"),
        (normal(0, 3), r"\(0, 3\)"),
        (normal(3, 0), r"\(3, 0\)"),
        (normal(1, 2, 3), r"\(1, 2, 3\)"),
    ]:
        with pytest.raises(fastrnn.ShapeError, match=rf"weight must be \(output_size, input_size\).*got {text}"):
            fastrnn.Dense(wrong)
    with pytest.raises(fastrnn.ShapeError, match=r"bias must be \(2,\), got \(3,\)"):
        fastrnn.Dense(w, normal(3))
    with pytest.raises(fastrnn.ShapeError, match="complex"):
        fastrnn.Dense(w * 1j)
    with pytest.raises(fastrnn.FormatError, match=r"'swishy'; known: linear, sigmoid"):
        fastrnn.Dense(w, activation="swishy")
    with pytest.raises(fastrnn.UnsupportedError, match=r"'mkl'; known: packed, blas"):
        fastrnn.Dense(w, backend="mkl")
    for x in (normal(4, 2), 1.0, normal(3, 1)):
        with pytest.raises(fastrnn.ShapeError, match=r"'head' takes arrays whose last axis is 3, got shape \("):
            fastrnn.Dense(w, name="head")(x)


# Embedding and Masking


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_embedding(dtype):
    table = normal(11, 5)
    layer = fastrnn.Embedding(table)
    for shape in [(), (3,), (2, 4), (0,), (2, 0), (2, 3, 4)]:
        ids = np.random.default_rng(1).integers(0, 11, shape).astype(dtype)
        assert np.array_equal(layer(ids), table[np.asarray(ids).astype(int)]), f"ids of shape {shape}"
    assert np.array_equal(layer([[1, 2], [3, 4]]), table[[[1, 2], [3, 4]]])
    y, mask = fastrnn.Embedding(table, mask_zero=True).run_node([np.array([[0, 3, 0]])])
    assert mask.tolist() == [[False, True, False]]
    assert np.array_equal(y, table[[[0, 3, 0]]])


def test_embedding_errors():
    layer = fastrnn.Embedding(normal(3, 2), name="words")
    refused = [
        ([3], "from 0 to 2, got 3 to 3"),
        ([-1, 1], "from 0 to 2, got -1 to 1"),
        ([2**40], "from 0 to 2"),
        (np.array([2**64 - 1], np.uint64), "from 0 to 2"),
        ([np.inf], "from 0 to 2"),
        ([-np.inf], "from 0 to 2"),
        ([np.nan], "whole numbers"),
        ([0.5], "whole numbers.*float64"),
        (["a"], "whole numbers.*<U1"),
        ([True], "whole numbers.*bool"),
        ([1j], "whole numbers.*complex"),
        ([None], "whole numbers.*object"),
    ]
    for ids, text in refused:
        with pytest.raises(fastrnn.ShapeError, match=f"'words' takes .*{text}"):
            layer(ids)
    with pytest.raises(fastrnn.ShapeError, match=r"weight must be \(rows, features\), got \(3,\)"):
        fastrnn.Embedding(normal(3))


def test_embedding_copies_rows():
    table = normal(4, 2)
    layer = fastrnn.Embedding(table)
    y = layer([0, 1])
    y[...] = 99
    assert np.array_equal(layer([0, 1]), table[:2])


@pytest.mark.parametrize("value", [0.0, -1.0, 0.1])
def test_masking(value):
    x = normal(3, 4, 2)
    x[0, 1] = x[2, 3] = value
    x[1, 2, 0] = value  # one feature of two: not masked
    node = Node("masking", "m", (), (), {"mask_value": value})
    y, mask = fastrnn.Masking(value).run_node([x])
    want, want_mask = reference.masking(node, x)
    assert np.array_equal(y, want)
    assert np.array_equal(mask, want_mask)
    assert mask.sum() == 10


# Normalisation


def test_layer_norm(isa):
    for shape, weighted in itertools.product(
        [(1,), (2, 5), (3, 16), (2, 3, 17), (4, 100), (1, 1000), (0, 4)], (True, False)
    ):
        x = normal(*shape) * 3 + 1
        weights = {"weight": normal(shape[-1], seed=1), "bias": normal(shape[-1], seed=2)} if weighted else {}
        for eps in (1e-5, 0.1):
            node = Node("layer_norm", "n", (), (), {"eps": eps}, weights)
            assert_close(
                [fastrnn.LayerNorm(**weights, eps=eps)(x)], [reference.layer_norm(node, x)], f"{shape} {eps}", NORM
            )


def test_layer_norm_over_several_axes(isa):
    x, weight, bias = normal(2, 3, 4, 5), normal(4, 5, seed=1), normal(4, 5, seed=2)
    node = Node("layer_norm", "n", (), (), {}, {"weight": weight, "bias": bias})
    assert_close([fastrnn.LayerNorm(weight, bias)(x)], [reference.layer_norm(node, x)], "weight of two axes", NORM)
    node = Node("layer_norm", "n", (), (), {"axes": 3}, {})
    assert_close([fastrnn.LayerNorm(axes=3)(x)], [reference.layer_norm(node, x)], "three axes", NORM)


def test_layer_norm_far_from_zero(isa):
    """The variance is taken about the mean, so a large mean costs no more than the inputs' own rounding."""
    x = (normal(4, 64) + 1000).astype(np.float32)
    node = Node("layer_norm", "n", (), (), {}, {})
    assert error(fastrnn.LayerNorm()(x), reference.layer_norm(node, x)) <= 1e-4


def test_layer_norm_errors():
    with pytest.raises(fastrnn.ShapeError, match=r"one shape, got \[\(2,\), \(3,\)\]"):
        fastrnn.LayerNorm(normal(2), normal(3))
    with pytest.raises(fastrnn.ShapeError, match=r"end in \(2,\), got shape \(3, 3\)"):
        fastrnn.LayerNorm(normal(2))(normal(3, 3))
    with pytest.raises(fastrnn.ShapeError, match=r"end in 3 axes, got shape \(3, 3\)"):
        fastrnn.LayerNorm(axes=3)(normal(3, 3))


def test_batch_norm(isa):
    for features, given in itertools.product((1, 3, 16, 17, 100), itertools.product((True, False), repeat=2)):
        weights = {"mean": normal(features), "var": normal(features, seed=1) ** 2}
        weights |= {"weight": normal(features, seed=2)} if given[0] else {}
        weights |= {"bias": normal(features, seed=3)} if given[1] else {}
        layer = fastrnn.BatchNorm(**weights, eps=1e-3)
        x = normal(5, 4, features, seed=4)
        node = Node("batch_norm", "n", (), (), {"eps": 1e-3}, weights)
        assert_close(
            [layer(x)], [reference.batch_norm(node, x)], f"{features} {given}", 10 * NORM
        )  # divides by small deviations
        first = fastrnn.BatchNorm(**weights, eps=1e-3, channels_first=True)
        for shape in [(2, features), (2, features, 5), (2, features, 3, 4), (0, features, 2)]:
            x = normal(*shape, seed=5)
            node = Node("batch_norm", "n", (), (), {"eps": 1e-3, "channels_first": True}, weights)
            assert_close([first(x)], [reference.batch_norm(node, x)], f"channels first {shape}", 10 * NORM)


def test_batch_norm_errors():
    with pytest.raises(fastrnn.ShapeError, match=r"var must be \(2,\), got \(1,\)"):
        fastrnn.BatchNorm(normal(2), normal(1))
    with pytest.raises(fastrnn.ShapeError, match=r"mean must be \(features,\), got \(2, 2\)"):
        fastrnn.BatchNorm(normal(2, 2), normal(2))
    with pytest.raises(fastrnn.ShapeError, match=r"last axis is 2, got shape \(3, 3\)"):
        fastrnn.BatchNorm(normal(2), np.ones(2))(normal(3, 3))
    with pytest.raises(fastrnn.ShapeError, match=r"axis 1 is 2, got shape \(3, 4, 2\)"):
        fastrnn.BatchNorm(normal(2), np.ones(2), channels_first=True)(normal(3, 4, 2))


# What layers say about themselves


@pytest.mark.parametrize("variant", VARIANTS)
def test_attributes(variant, isa, backend):
    case = Case.of(variant, hidden_size=9, input_size=3, num_layers=2, direction="bidirectional concat")
    layer = case.layer(backend)
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.bidirectional) == (3, 9, 2, True)
    assert layer.output_size == case.output_size
    assert layer.batch_first
    assert layer.op == case.op
    weights = sum(
        array.nbytes for name, array in case.node.weights.items() if not name.startswith(("bias_hh", "peephole"))
    )
    assert weights <= layer.nbytes <= 30 * weights, "packed weights are the weights, padded to whole vectors"
    assert repr(layer).startswith(type(layer).__name__)


def test_explain(isa, backend):
    layer = Case.of("lstm", hidden_size=100).layer(backend)
    fastrnn.set_num_threads(3)
    plan = layer.explain(batch=64, seq_len=50)
    assert plan["isa"] == isa
    assert plan["backend"] == backend
    assert plan["kernel"] == ("blas + lstm" if backend == "blas" else "lstm")
    assert plan["nbytes"] == layer.nbytes
    assert (plan["split"], plan["threads"]) == (("none", 1) if backend == "blas" else ("batch", 3))
    assert layer.explain(batch=1, seq_len=1)["threads"] == 1, "small work runs on one thread"
    fastrnn.set_num_threads(1)
    assert layer.explain(batch=64, seq_len=50)["threads"] == 1


@pytest.mark.parametrize(
    ("variant", "kernel"),
    [
        ("lstm projection", "lstm + projection"),
        ("lstm peephole", "lstm variant"),
        ("lstm everything", "lstm variant + projection"),
        ("gru", "gru"),
        ("gru clip reset before", "gru_reset_before variant"),
        ("rnn relu", "rnn variant"),
    ],
)
def test_explain_names_the_kernel(variant, kernel, backend):
    layer = Case.of(variant).layer(backend)
    assert layer.explain()["kernel"] == ("blas + " if backend == "blas" else "") + kernel


def test_a_layer_keeps_the_instruction_set_it_was_built_with():
    layers = {}
    for isa in ISAS:
        fastrnn.set_isa(isa)
        layers[isa] = Case.of("gru").layer(), fastrnn.Dense(normal(2, 3), backend="packed")
    for isa, pair in layers.items():
        for layer in pair:
            assert layer.explain()["isa"] == isa


def test_numbers_of_threads_that_are_refused():
    for wrong in (0, -1, 1.5, "many", [2], np.nan):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            fastrnn.set_num_threads(wrong)
    fastrnn.set_num_threads(5)
    assert fastrnn.get_num_threads() == fastrnn.info()["threads"] == 5
    fastrnn.set_num_threads(None)
    assert 1 <= fastrnn.get_num_threads() <= fastrnn.info()["thread_limits"]["affinity"]


def test_names_that_are_refused():
    with pytest.raises(fastrnn.UnsupportedError, match=rf"'mmx'.*available: {', '.join(ISAS)}"):
        fastrnn.set_isa("mmx")
    with pytest.raises(fastrnn.UnsupportedError, match=r"'windows'.*posix"):
        fastrnn.set_team("windows")


def test_info():
    info = fastrnn.info()
    assert {"version", "isa", "isas", "threads", "team", "blas", "openmp"} <= set(info)
    assert info["isa"] in info["isas"]
    assert info["version"] == fastrnn.__version__


@pytest.mark.parametrize("strange", [np.asfortranarray, lambda a: a.astype(np.float64), lambda a: a.astype(np.float16)])
def test_weights_of_a_node_may_come_in_any_layout(strange):
    """C takes aligned, contiguous float32; a node from a file or a user may hold anything else."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    node = Node("dense", "dense", ("x",), ("y",), {}, {"weight": strange(weight)})
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(fastrnn.Dense.from_node(node)(x), x @ weight.T)
