"""Activations by themselves: errors in ULP, the same bits on every instruction set, NaN, infinities, axes."""

from __future__ import annotations

import numpy as np
import pytest
from cases import FMA_ISAS, ISAS, POSITIVE
from tolerances import ABSOLUTE, SOFTMAX, ULP
from ulp_sweep import ELEMENTWISE, checksum, floats, measure, native

import fastrnn
from fastrnn import reference
from fastrnn.spec import ACTIVATIONS, ROW_ACTIVATIONS

STRIDE = 2053  # prime, so that every exponent and every pattern of low bits is met


def test_every_activation_has_a_bound():
    assert sorted(ULP | ABSOLUTE) == sorted(ELEMENTWISE)
    assert set(ELEMENTWISE) | set(ROW_ACTIVATIONS) == set(ACTIVATIONS)


@pytest.fixture(scope="module")
def ulp(tmp_path_factory):
    return native(tmp_path_factory.mktemp("ulp"))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_largest_error(name, ulp, record_property):
    """Also: NaN gives NaN and nothing else does, infinities are where the limit is infinite."""
    x = floats(STRIDE)
    for isa, worst in measure(ulp, name, STRIDE).items():
        record_property(f"{isa}_ulp", worst.ulp)
        record_property(f"{isa}_absolute", worst.absolute)
        worst.assert_within_bounds(name, isa)
        fastrnn.set_isa(isa)
        assert checksum(x, fastrnn.Activation(name)(x)) == worst.checksum, f"{name} on {isa} is not what was measured"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_same_bits_on_every_instruction_set(name):
    x = np.concatenate([floats(STRIDE), np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40], np.float32)])
    if name in ROW_ACTIVATIONS:
        x = np.random.default_rng(0).normal(0, 5, (300, 77)).astype(np.float32)
    results = []
    for isa in FMA_ISAS:
        fastrnn.set_isa(isa)
        results.append(fastrnn.Activation(name)(x))
    for isa, result in zip(FMA_ISAS, results, strict=True):
        assert np.array_equal(result, results[0], equal_nan=True), f"{isa} and {FMA_ISAS[0]} differ in {name}"


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_element_does_not_depend_on_its_place(name, isa):
    x = np.random.default_rng(1).normal(0, 3, 67).astype(np.float32)
    x = abs(x) if name in POSITIVE else x
    layer = fastrnn.Activation(name)
    whole = layer(x)
    for begin in range(0, 17):
        for end in (begin + 1, begin + 5, 67):
            part = layer(x[begin:end].copy())
            assert np.array_equal(part, whole[begin:end]), f"{name} of elements {begin} to {end} on {isa}"
    assert np.array_equal(layer(x[:60].reshape(3, 4, 5)), whole[:60].reshape(3, 4, 5))


@pytest.mark.parametrize(
    "value",
    [
        ("hard_sigmoid", 1 / 6, 0.5),
        ("affine", -2.0, 0.25),
        ("leaky_relu", 0.3),
        ("thresholded_relu", -0.5),
        ("scaled_tanh", 0.5, 3.0),
        ("elu", 0.25),
        ("selu", 2.0, 0.5),
        ("hard_tanh", -2.0, 0.5),
        ("celu", 0.25),
    ],
)
def test_alpha_and_beta(value, isa):
    x = np.random.default_rng(2).normal(0, 2, 999).astype(np.float32)
    np.testing.assert_allclose(fastrnn.Activation(value)(x), reference.activate(value, x), rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("name", ROW_ACTIVATIONS)
def test_rows(name, isa):
    rng = np.random.default_rng(3)
    for shape in [
        (1,),
        (2,),
        (1, 1),
        (5, 7),
        (3, 15),
        (3, 16),
        (4, 17),
        (2, 3, 33),
        (2, 100),
        (3, 1000),
        (0, 5),
        (2, 0, 4),
    ]:
        x = (rng.standard_normal(shape) * 8).astype(np.float32)
        y = fastrnn.Activation(name)(x)
        assert y.shape == x.shape
        error = np.abs(y - reference.activate(name, x)) / np.maximum(1, np.abs(y))
        assert error.max(initial=0) <= SOFTMAX, f"{name} of {shape}"
        for index in np.ndindex(shape[:-1]):
            assert np.array_equal(fastrnn.Activation(name)(x[index]), y[index]), f"row {index} of {shape} alone"


def test_softmax_of_extremes(isa):
    rows = [
        [1e30, 0, -1e30],
        [-1e30, -1e30, -1e30],
        [np.inf, 0, 0],
        [0, -np.inf, 0],
        [88, 89, 1000],
        [-np.inf] * 3,
        [0, np.nan, 1],
        [1, 2, 3],
    ]
    x = np.array(rows, np.float32)
    with np.errstate(invalid="ignore"):
        for name in ROW_ACTIVATIONS:
            want = reference.activate(name, x)
            np.testing.assert_allclose(
                fastrnn.Activation(name)(x), want, rtol=1e-6, atol=1e-6, err_msg=f"{name} on {isa}"
            )


def test_tanh_keeps_its_relative_accuracy_near_zero(isa):
    x = np.float32(10.0) ** np.arange(-30, -3, dtype=np.float32)
    for sign in (1, -1):
        y = fastrnn.Activation("tanh")(sign * x)
        np.testing.assert_allclose(y, np.tanh(sign * x.astype(np.float64)), rtol=3e-7)
    assert np.signbit(fastrnn.Activation("tanh")(np.float32([-0.0]))).all()


def test_sigmoid_and_tanh_saturate_and_are_symmetric(isa):
    big = np.float32([20, 90, 1e10, 3e38, np.inf])
    assert np.array_equal(fastrnn.Activation("tanh")(big), np.ones(5))
    assert np.array_equal(fastrnn.Activation("sigmoid")(big), np.ones(5))
    assert (fastrnn.Activation("sigmoid")(-big[1:]) <= np.finfo(np.float32).tiny).all()
    x = np.random.default_rng(4).normal(0, 4, 10000).astype(np.float32)
    assert np.array_equal(fastrnn.Activation("tanh")(-x), -fastrnn.Activation("tanh")(x))


def test_the_input_stays(isa):
    x = np.linspace(-3, 3, 50, dtype=np.float32)
    kept = x.copy()
    for name in ACTIVATIONS:
        fastrnn.Activation(name)(x)
        assert np.array_equal(x, kept), name


def test_an_activation_keeps_the_instruction_set_it_was_built_with():
    """``set_isa`` acts on layers built afterwards; generic is the one whose bits differ."""
    if ISAS[-1] in FMA_ISAS:
        pytest.skip("one kind of bits on this machine")
    x = np.linspace(-80, 80, 999, dtype=np.float32)
    fastrnn.set_isa("generic")
    layer = fastrnn.Activation("sigmoid")
    before = layer(x)
    fastrnn.set_isa(ISAS[0])
    assert not np.array_equal(fastrnn.Activation("sigmoid")(x), before), "the bits do not tell the sets apart"
    assert np.array_equal(layer(x), before)
