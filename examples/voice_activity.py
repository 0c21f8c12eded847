"""Find speech in a recording with the silero network, frame by frame as a live stream would.

    python examples/voice_activity.py ../shared/models/silero_vad
    python examples/voice_activity.py MODEL.onnx RECORDING.wav --threshold 0.6

Takes the folder of the published model with its test recording, or any of its ONNX files (they differ in how the
exporters wrote the network; here they all run on the same LSTM kernel) and a 16 kHz mono recording.  Needs
``pip install "fastrnn[onnx]"``.  Prints where speech is, and how much faster than real time one thread found it.
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastrnn

RATE, FRAME, CONTEXT = 16_000, 512, 64
"""Samples a second, in a frame, and of the frame before that the network sees again."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an ONNX file, or the folder of the published model")
    parser.add_argument("recording", type=Path, nargs="?", help="16 kHz, mono, 16 bit; default: test.wav in the folder")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability that counts as speech")
    options = parser.parse_args(argv)
    folder = options.model if options.model.is_dir() else options.model.parent
    model = fastrnn.load(folder / "silero_vad.onnx" if options.model.is_dir() else options.model)
    samples = read(options.recording or folder / "test.wav")

    start = time.perf_counter()
    probabilities = list(detect(model, samples))
    seconds = time.perf_counter() - start

    for begin, end in segments(np.array(probabilities) > options.threshold):
        print(f"speech from {begin * FRAME / RATE:6.2f} s to {end * FRAME / RATE:6.2f} s")
    length = len(samples) / RATE
    per_frame, speed = 1e6 * seconds / max(len(probabilities), 1), length / seconds
    print(f"{length:.1f} s of audio in {seconds:.3f} s: {per_frame:.0f} us a frame, {speed:,.0f} times real time")
    return 0


def read(path: Path) -> np.ndarray:
    """Samples from -1 to 1."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            sys.exit(f"{path} must be {RATE} Hz, mono, 16 bit")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def detect(model: fastrnn.Model, samples: np.ndarray) -> Iterator[float]:
    """The probability of speech in each frame; what one call gives as state the next one takes."""
    names = {tensor.name for tensor in model.inputs}
    feeds = {"state": np.zeros((2, 1, 128), np.float32)}
    if "sr" in names:  # some exports hold a network for 8 kHz as well
        feeds["sr"] = np.array(RATE)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples, np.zeros(-len(samples) % FRAME, np.float32)])
    for at in range(0, len(padded) - CONTEXT, FRAME):
        feeds["input"] = padded[None, at : at + CONTEXT + FRAME]
        made = model.run(feeds)
        feeds["state"] = made["stateN"]
        yield float(made["output"][0, 0])


def segments(speech: np.ndarray) -> Iterator[tuple[int, int]]:
    """First frame, and the one after the last, of each run of speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speech, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


if __name__ == "__main__":
    sys.exit(main())
