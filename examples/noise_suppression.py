"""Take the noise out of a recording with DTLN: two networks, a frame of 8 ms after the other.

    python examples/noise_suppression.py ../shared/models/dtln NOISY.wav CLEAN.wav

The first network makes a mask for the magnitudes of the spectrum, the second one filters what comes out of it; frames
of 512 samples overlap, each 128 after the one before.  The states of both travel from call to call.  The recording must
be 16 kHz, mono, 16 bit.  Needs ``pip install "fastrnn[onnx]"``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastrnn

RATE, FRAME, HOP = 16_000, 512, 128


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where model_1.onnx and model_2.onnx are")
    parser.add_argument("noisy", type=Path)
    parser.add_argument("clean", type=Path, help="is written")
    options = parser.parse_args(argv)
    samples = read(options.noisy)

    start = time.perf_counter()
    frames = list(suppress(options.folder, samples))
    seconds = time.perf_counter() - start

    result = np.zeros(HOP * len(frames) + FRAME, np.float32)
    for k, frame in enumerate(frames):
        result[k * HOP : k * HOP + FRAME] += frame
    write(options.clean, result[: len(samples)])
    length = len(samples) / RATE
    print(f"{length:.1f} s of audio in {seconds:.2f} s, {length / seconds:.0f} times real time; wrote {options.clean}")
    return 0


def suppress(folder: Path, samples: np.ndarray) -> Iterator[np.ndarray]:
    """The filtered frames, to be added where they overlap."""
    mask_of, filtered = (fastrnn.load(folder / f"model_{k}.onnx") for k in (1, 2))
    states = [np.zeros((1, 2, 128, 2), np.float32) for _ in range(2)]
    for at in range(0, len(samples) - FRAME + 1, HOP):
        spectrum = np.fft.rfft(samples[at : at + FRAME])
        magnitude = np.abs(spectrum).astype(np.float32)
        mask, states[0] = mask_of(magnitude[None, None], states[0])
        estimate = np.fft.irfft(spectrum * mask[0, 0]).astype(np.float32)
        frame, states[1] = filtered(estimate[None, None], states[1])
        yield frame[0, 0]


def read(path: Path) -> np.ndarray:
    """Samples from -1 to 1."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            sys.exit(f"{path} must be {RATE} Hz, mono, 16 bit")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def write(path: Path, samples: np.ndarray) -> None:
    """A 16-bit recording; an old file stays until the new one is whole."""
    handle, name = tempfile.mkstemp(dir=path.resolve().parent, suffix=".wav")
    with os.fdopen(handle, "wb") as raw, wave.open(raw, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    Path(name).replace(path)


if __name__ == "__main__":
    sys.exit(main())
