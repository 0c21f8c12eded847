"""Some of the random modules of ``random_streams.py``: the bits of the whole sequence, or refused with a reason."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
from random_streams import trials


def test_random_modules():
    results = list(trials(30, seed=0))
    assert [f"{what}: {fault}" for what, _, fault in results if fault] == []
    run = [what for what, reason, _ in results if not reason]
    assert len(run) > 10
    assert {what.split()[1:][k] for what in run for k in (0, 1)} == {"live", "onnx", "stream", "pool", "batcher"}
    assert all(len(reason) > 20 for _, reason, _ in results if reason), "a refusal says why"
