"""Models of several layers: masks and states on their way, names, errors, threads."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, assert_bits, error, flat, normal
from tolerances import RECURRENT, SOFTMAX

import fastrnn
from fastrnn import reference
from fastrnn.spec import ModelSpec, Tensor


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
    assert_bits([model(x=IDS)], [model(IDS)], "by name")
    with pytest.raises(fastrnn.ShapeError, match=r"unknown: ids; missing: x\); the model takes 'x'"):
        model(ids=IDS)
    with pytest.raises(fastrnn.ShapeError, match=r"unknown: speaker\); the model takes 'x'"):
        model(IDS, speaker=1)
    with pytest.raises(fastrnn.ShapeError, match="by position and by name: x"):
        model(IDS, x=IDS)


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


def test_explain_and_size_of_a_model():
    model = tagger()
    plans = model.explain()
    assert [plan["op"] for plan in plans] == ["embedding", "lstm", "layer_norm", "dense"]
    packed = plans[-1]["backend"] == "packed"
    kernels = ["numpy", "lstm", "layer_norm", "product"] if packed else ["numpy", "blas + lstm", "layer_norm", "blas"]
    assert [plan["kernel"] for plan in plans] == kernels
    assert model.nbytes == sum(layer.nbytes for layer in model.layers.values()) > 0
    assert list(model.layers) == [node.name for node in model.spec.nodes]
    assert {name.split(".")[0] for name in model.tensors} == set(model.layers)


def test_threads_of_a_model():
    """``threads=`` of a model overrides the process-wide number, and no bit depends on it."""
    case = Case.of("lstm", hidden_size=100, input_size=64, batch=16, seq_len=20)
    model = fastrnn.Model(fastrnn.Sequential(case.layer()).spec, threads=3)
    fastrnn.set_num_threads(1)
    (layer,) = model.layers.values()
    assert layer.explain(16, 20)["threads"] == model.explain(16, 20)[0]["threads"] == 3
    assert model.explain(1, 1)[0]["threads"] == 1
    assert_bits(flat(model(case.x)), flat(case.layer()(case.x)), "three threads and one")


def test_a_graph_without_layers_gives_its_input_back():
    """Such is a file whose only layers do nothing at inference, as Dropout."""
    model = fastrnn.Model(ModelSpec([], [Tensor("x", None)], [Tensor("x", None)]))
    assert model([[1.0, 2.0]]).tolist() == [[1.0, 2.0]]
