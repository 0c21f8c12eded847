"""What all tests share: instruction sets, backends, one thread for the peers, and settings put back after each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest
from cases import ISAS

import fastrnn
from fastrnn import runtime

os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras reads it when it is imported

# Failures must come again on another machine, and a busy machine must not make any.
hypothesis.settings.register_profile("fastrnn", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("fastrnn")


def pytest_report_header() -> str:
    info = fastrnn.info()
    return (
        f"fastrnn {info['version']}: instruction sets {', '.join(ISAS)}; backends {', '.join(runtime.BACKENDS)}; "
        f"threads {info['threads']} ({', '.join(info['teams'])})"
    )


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Every test leaves the process-wide settings as it found them; PyTorch runs on one thread."""
    if (torch := sys.modules.get("torch")) and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    before = fastrnn.info()
    yield
    fastrnn.set_isa(before["isa"])
    fastrnn.set_team(before["team"])
    fastrnn.set_num_threads(before["thread_limits"]["set"])


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """Layers built in the test use this instruction set."""
    fastrnn.set_isa(request.param)
    return request.param


@pytest.fixture(params=runtime.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Where the matrix products come from: our packed kernels, or SciPy's BLAS."""
    try:
        return runtime.choose_backend(request.param)
    except fastrnn.UnsupportedError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["alone", "torch"])
def first(request: pytest.FixtureRequest) -> str:
    """Who used threads before fastrnn was imported: the first argument of a script that begins with ``TORCH``."""
    if request.param == "torch":
        pytest.importorskip("torch")
    return request.param
