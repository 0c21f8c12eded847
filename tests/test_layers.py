"""Layers without time, models of layers, and what layers say about themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import ISAS, SIZES, SUM_BLOCKS, VARIANTS, Case, assert_bits, assert_close, error, flat
from tolerances import DENSE, NORM, RECURRENT, SOFTMAX

import fastrnn
from fastrnn import reference
from fastrnn.spec import ACTIVATIONS, Node


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal(shape, np.float32)


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
        ids = rng(1).integers(0, 11, shape).astype(dtype)
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


# Models


def tagger(backend: str | None = None) -> fastrnn.Model:
    """Ids to class probabilities: embedding with a mask, two directions, a normalisation, a dense layer."""
    lstm = Case.of("lstm", input_size=6, hidden_size=5, direction="bidirectional concat")
    return fastrnn.Sequential(
        fastrnn.Embedding(normal(9, 6), mask_zero=True),
        lstm.layer(backend),
        fastrnn.LayerNorm(normal(10, seed=1), normal(10, seed=2)),
        fastrnn.Dense(normal(4, 10, seed=3), activation="softmax", backend=backend),
    )


IDS = np.array([[1, 5, 2, 0, 0], [3, 8, 1, 1, 4], [0, 2, 0, 7, 0]])


def test_sequential_against_the_reference(isa, backend):
    model = tagger(backend)
    want = reference.run(model.spec, {"x": IDS})
    trace = model.trace({"x": IDS})
    assert set(trace) == set(want)
    for name, array in trace.items():
        assert np.max(np.abs(array.astype(float) - want[name])) <= RECURRENT, name
    y = model(IDS)
    assert isinstance(y, np.ndarray)
    assert y.shape == (3, 5, 4)
    assert error(y.sum(-1), np.ones((3, 5))) <= SOFTMAX
    assert_bits([y], [trace[model.outputs[0].name]], "the trace ends in the output")


def test_sequential_passes_masks_on(isa):
    """A masked step is skipped: the model on ids with holes is the layer with the mask."""
    model = tagger("packed")
    layers = list(model.layers.values())
    y, _ = layers[1](layers[0](IDS), mask=IDS != 0)
    assert_bits([model(IDS)], [layers[3](layers[2](y))], "mask")
    gru = Case.of("gru", input_size=2)
    x = gru.x.copy()
    x[0, 1:3] = 0
    model = fastrnn.Sequential(
        fastrnn.Masking(), fastrnn.Dense(np.eye(2, dtype=np.float32)), gru.layer(), gru_of(5).layer()
    )
    masked = ~(x == 0).all(-1)
    first, _ = gru.layer()(x, mask=masked)
    assert_bits(
        flat(model(x)), flat(gru_of(5).layer()(first, mask=masked)), "through a dense layer, into two recurrent ones"
    )


def gru_of(size: int, **changes) -> Case:
    return Case.of("gru", input_size=size, hidden_size=size, **changes)


def test_sequential_keeps_the_backend_of_its_layers(backend):
    model = fastrnn.Sequential(Case.of("gru").layer(backend), fastrnn.Dense(normal(2, 5), backend=backend))
    assert [plan["backend"] for plan in model.explain()] == [backend, backend]
    with pytest.raises(fastrnn.ShapeError, match="one backend, got blas and packed"):
        fastrnn.Sequential(Case.of("gru").layer("packed"), fastrnn.Dense(normal(2, 5), backend="blas"))


def test_a_final_recurrent_layer_gives_its_state(isa, backend):
    for variant in ("lstm", "gru", "rnn"):
        case = Case.of(variant, input_size=4)
        model = fastrnn.Sequential(fastrnn.Dense(np.eye(4, dtype=np.float32), backend=backend), case.layer(backend))
        x = normal(2, 5, 4)
        result = model(x)
        assert isinstance(result, tuple)
        assert isinstance(result[1], tuple) == (variant == "lstm")
        assert error(result[0], case.layer(backend)(x)[0]) <= RECURRENT
        assert len(model.outputs) == len(flat(result))
        named = model.run({"x": x})
        assert list(named) == [tensor.name for tensor in model.outputs]
        assert_bits(list(named.values()), flat(result), "by name")
    last = fastrnn.Sequential(Case.of("gru").layer(backend).last(), fastrnn.Dense(normal(2, 5), backend=backend))
    assert last(Case.of("gru").x).shape == (2, 2)


def test_a_model_of_one_recurrent_layer_behaves_as_the_layer():
    case = Case.of("lstm")
    model = fastrnn.Sequential(case.layer())
    want = flat(case.layer()(case.x, case.initial, np.array([2, 4])))
    assert_bits(flat(model(case.x, case.initial, np.array([2, 4]))), want, "lengths")
    assert_bits(flat(model(case.x[0])), flat(case.layer()(case.x[0])), "unbatched")
    assert model(case.x, outputs="last")[0].shape == (2, 5)
    assert model.batch_first
    assert not fastrnn.Sequential(Case.of("gru", batch_first=False).layer()).batch_first


def test_inputs_and_outputs_by_name():
    model = tagger()
    (tensor,) = model.inputs
    assert (tensor.name, tensor.dtype) == ("x", "int64")
    (output,) = model.outputs
    assert_bits(list(model.run({"x": IDS}, [output.name]).values()), [model(IDS)], "asked for")
    assert model.run({"x": IDS}, []) == {}
    with pytest.raises(fastrnn.ShapeError, match=r"unknown: ids; missing: x\); the model takes 'x'"):
        model.run({"ids": IDS})
    with pytest.raises(fastrnn.ShapeError, match=r"missing: x"):
        model.run({})
    with pytest.raises(fastrnn.ShapeError, match=rf"no output named 'a', 'b'; the model has '{output.name}'"):
        model.run({"x": IDS}, ["a", "b"])
    with pytest.raises(fastrnn.ShapeError, match=r"1 input\(s\) \('x'\), got 2"):
        model(IDS, IDS)
    with pytest.raises(fastrnn.ShapeError, match=r"1 input\(s\) \('x'\), got 0"):
        model()
    with pytest.raises(TypeError, match="lengths"):
        model(IDS, lengths=[1, 2, 3])


def test_a_models_errors_name_the_layer():
    model = fastrnn.Sequential(fastrnn.Dense(normal(3, 2), name="first"), fastrnn.Dense(normal(3, 3), name="second"))
    with pytest.raises(fastrnn.ShapeError, match=r"first.*last axis is 2"):
        model(normal(2, 5))
    with pytest.raises(fastrnn.ShapeError, match="at least one layer"):
        fastrnn.Sequential()


def test_layers_that_do_not_fit_are_refused_while_building():
    dense = fastrnn.Dense(normal(5, 3), name="dense")
    for before, gives in [
        (fastrnn.Dense(normal(2, 4)), 2),
        (fastrnn.Embedding(normal(9, 4)), 4),
        (Case.of("gru", direction="bidirectional concat").layer(), 10),
        (Case.of("lstm projection").layer(), 2),
    ]:
        with pytest.raises(fastrnn.ShapeError, match=f"'dense' takes 3 features, what stands before it gives {gives}"):
            fastrnn.Sequential(before, fastrnn.Activation("relu"), dense)


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match="fastrnn's layers, got int"):
        fastrnn.Sequential(fastrnn.Activation("relu"), 3)


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
    assert plan["nbytes"] == layer.nbytes
    assert (plan["split"], plan["threads"]) == (("none", 1) if backend == "blas" else ("batch", 3))
    assert layer.explain(batch=1, seq_len=1)["threads"] == 1, "small work runs on one thread"
    fastrnn.set_num_threads(1)
    assert layer.explain(batch=64, seq_len=50)["threads"] == 1


def test_a_layer_keeps_the_instruction_set_it_was_built_with():
    layers = {}
    for isa in ISAS:
        fastrnn.set_isa(isa)
        layers[isa] = Case.of("gru").layer(), fastrnn.Dense(normal(2, 3), backend="packed")
    for isa, pair in layers.items():
        for layer in pair:
            assert layer.explain()["isa"] == isa


def test_explain_and_size_of_a_model():
    model = tagger()
    plans = model.explain()
    assert [plan["op"] for plan in plans] == ["embedding", "lstm", "layer_norm", "dense"]
    assert model.nbytes == sum(layer.nbytes for layer in model.layers.values()) > 0
    assert list(model.layers) == [node.name for node in model.spec.nodes]
    assert {name.split(".")[0] for name in model.tensors} == set(model.layers)


def test_threads_of_a_model():
    """``threads=`` of a model overrides the process-wide number, and no bit depends on it."""
    case = Case.of("lstm", hidden_size=100, input_size=64, batch=16, seq_len=20)
    model = fastrnn.Model(fastrnn.Sequential(case.layer()).spec, threads=3)
    fastrnn.set_num_threads(1)
    (layer,) = model.layers.values()
    assert layer.explain(16, 20)["threads"] == 3
    assert_bits(flat(model(case.x)), flat(case.layer()(case.x)), "three threads and one")


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
    assert info["isa"] == info["isas"][0]
    assert info["version"] == fastrnn.__version__
