"""A thousand live streams on two cores: the silero network hears a frame of each every 32 ms.

    python examples/voice_pool.py ../shared/models/silero_vad
    python examples/voice_pool.py ../shared/models/silero_vad --streams 2000 --seconds 30
    python examples/voice_pool.py

Takes the folder of the published model with its test recording; every stream plays the recording from another place.
Without a folder the GRU of examples/digits reads rows of images, 100 a second.  Frames come due at different moments,
as those of live callers do; every few milliseconds a pool advances the streams whose frame is there.  Each process has
a pool of its own and all share the weights.  Prints the real-time factor (the part of the time in which the processes
compute), and how long after its last sample a frame has its answer.
Needs ``pip install "fastrnn[onnx]"`` for the network of silero.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from voice_activity import CONTEXT, FRAME, RATE, read

import fastrnn

DIGITS = Path(__file__).resolve().parent / "digits"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the published model")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--processes", type=int, default=2, help="that share the streams, on one thread each")
    parser.add_argument("--every", type=float, default=0.004, metavar="SECONDS", help="between two looks for frames")
    parser.add_argument("--batch", type=int, default=256, help="streams of a call at most, a power of two")
    options = parser.parse_args(argv)
    fastrnn.set_num_threads(1)
    network, pool_options, frames, period = silero(options.folder) if options.folder else digits()
    fork = multiprocessing.get_context("fork")  # so that all processes share one copy of the weights
    results: Any = fork.SimpleQueue()

    def serve(streams: int) -> None:
        live = Live(network.pool(streams, **pool_options), frames, options.batch)
        live.warm_up()
        ran = live.run(options.seconds, period, options.every)
        alone = network.stream(**pool_options)
        same = [np.array_equal(alone.step(frames[k % len(frames)]), y) for k, y in enumerate(live.first)]
        results.put((*ran, bool(same) and all(same)))

    shares = [len(share) for share in np.array_split(np.arange(options.streams), options.processes)]
    workers = [fork.Process(target=serve, args=(share,)) for share in shares]
    for worker in workers:
        worker.start()
    busy, elapsed, waits, same = zip(*(results.get() for _ in workers))
    for worker in workers:
        worker.join()

    work, waited = sum(busy), np.concatenate(waits)
    print(f"{options.streams:,} streams, a frame of {1e3 * period:.0f} ms each, {options.processes} processes")
    print(f"real-time factor {work / sum(elapsed):.2f}: {len(waited):,} frames in {max(elapsed):.1f} s")
    p50, p99 = np.percentile(waited, [50, 99]) * 1e3
    print(f"a frame has its answer after {p50:.1f} ms, p99 {p99:.1f} ms; {1e6 * work / len(waited):.1f} us of work")
    print(f"the first stream of each process has {'the same' if all(same) else 'OTHER'} bits as alone")
    return 0 if all(same) else 1


def silero(folder: Path) -> tuple[Any, dict[str, Any], np.ndarray, float]:
    """The network, options of its streams, frames of the recording, and seconds of a frame."""
    samples = np.concatenate([np.zeros(CONTEXT, np.float32), read(folder / "test.wav")])
    frames = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + FRAME)[::FRAME].copy()
    return fastrnn.load(folder / "silero_vad.onnx"), {"constants": {"sr": RATE}}, frames, FRAME / RATE


def digits() -> tuple[Any, dict[str, Any], np.ndarray, float]:
    layers = fastrnn.load_layers(DIGITS / "gru.safetensors", {"rnn": fastrnn.GRU, "head": fastrnn.Dense})
    with np.load(DIGITS / "data" / "held_out.npz") as data:
        return layers["rnn"], {}, data["images"].reshape(-1, 8).astype(np.float32) / 16, 0.01


class Live:
    """Streams that all play the same frames, each from a place of its own."""

    def __init__(self, pool: fastrnn.Pool, frames: np.ndarray, batch: int):
        self.pool, self.frames, self.batch = pool, frames, batch
        self.handles = np.array([pool.open() for _ in range(pool.capacity)])
        self.at = np.arange(pool.capacity) * len(frames) // pool.capacity
        self.first: list[np.ndarray] = []

    def warm_up(self) -> None:
        """Calls of all sizes, since a model is planned at the first call of a size."""
        for size in sorted({len(piece) for piece in self.pieces(np.arange(2 * self.batch - 1))}):
            some = self.handles[:size]
            self.pool.step(some, self.frames[: len(some)])
        for handle in self.handles:
            self.pool.reset(handle)

    def pieces(self, ready: np.ndarray) -> Iterator[np.ndarray]:
        """Parts with as many streams as a power of two: few sizes, so that all have their plan."""
        while len(ready):
            size = min(self.batch, 1 << (len(ready).bit_length() - 1))
            yield ready[:size]
            ready = ready[size:]

    def step(self, ready: np.ndarray) -> None:
        y = self.pool.step(self.handles[ready], self.frames[self.at[ready]])
        self.at[ready] = (self.at[ready] + 1) % len(self.frames)
        if ready[0] == 0:  # ready streams are in order
            self.first.append(y[0].copy())

    def run(self, seconds: float, period: float, every: float) -> tuple[float, float, np.ndarray]:
        """Seconds of work, seconds in all, and how long each frame waited for its answer."""
        begin = time.perf_counter()
        due = begin + period * np.random.default_rng(0).random(len(self.handles))
        busy, waited = 0.0, []
        while (now := time.perf_counter()) < begin + seconds:
            for ready in self.pieces(np.flatnonzero(due <= now)):
                start = time.perf_counter()
                self.step(ready)
                done = time.perf_counter()
                busy += done - start
                waited.append(done - due[ready])
                due[ready] += period
            time.sleep(max(0.0, now + every - time.perf_counter()))
        return busy, time.perf_counter() - begin, np.concatenate(waited)


if __name__ == "__main__":
    sys.exit(main())
