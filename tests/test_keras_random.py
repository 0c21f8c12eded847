"""Random models with masks, states, wrappers, merges and models in models: fastrnn computes what Keras 3 and 2 do."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare_keras import problems, recorded_problems

pytest.importorskip("h5py")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_keras_3(first, tmp_path):
    """100 models alive, one file of each; the command in CONTRIBUTING.md tries more."""
    pytest.importorskip("keras")
    for seed in range(first, first + 10):
        assert problems(seed, tmp_path, ("live", ("m.keras", "m.h5")[seed % 2])) == []


def test_keras_2(tmp_path):
    """40 recorded models, whose files obey the rules of Keras 2."""
    found = list(recorded_problems(Path(__file__).with_name("keras2.tar.xz"), tmp_path))
    assert len(found) == 40
    assert [line for lines in found for line in lines] == []
