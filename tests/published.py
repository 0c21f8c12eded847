"""Models that others trained and published: in the folder FASTRNN_MODELS, or in shared/models beside the repository."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest

MODELS = Path(os.environ.get("FASTRNN_MODELS", Path(__file__).resolve().parents[2] / "shared" / "models"))
SILERO = ("silero_vad", "silero_vad_16k_op15", "silero_vad_openvino_16k", "silero_vad_op18_ifless")


def published(*parts: str) -> Path:
    """A file or folder of them; without it the test is skipped."""
    path = MODELS.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; set FASTRNN_MODELS to the folder of the published models")
    return path


def silero_frames() -> np.ndarray:
    """The recording that comes with silero, 512 samples a frame with the last 64 of the frame before."""
    with wave.open(str(published("silero_vad", "test.wav"))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    samples = np.concatenate([np.zeros(64, np.float32), samples, np.zeros(-len(samples) % 512, np.float32)])
    return np.lib.stride_tricks.sliding_window_view(samples, 576)[::512].copy()
