"""Pools and streams under a random schedule for minutes: the bits stay right and the memory flat.

    python tests/soak_streams.py --minutes 10

Two pools, of an LSTM and of a GRU, take and lose streams; random ones of them take steps, chunks, resets, moves to
another pool or to a Stream and back, and are closed after some 200 steps at most.  What a stream gave is compared with
the layer on its whole sequence.  Prints a line every ten seconds; the exit code is 1 where a bit differs, or where the
process has grown by more than 4 MiB since the first tenth of the time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

import fastrnn

CAPACITY, INPUT_SIZE, HIDDEN_SIZE, LIFE = 500, 16, 48, 200
GROWTH = 4 << 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    fastrnn.set_num_threads(2)
    rng = np.random.default_rng(options.seed)
    worlds = [World(make, gates, rng) for make, gates in ((fastrnn.LSTM, 4), (fastrnn.GRU, 3))]
    begin = said = time.monotonic()
    end, warm = begin + 60 * options.minutes, begin + 6 * options.minutes
    first, ticks = 0, 0
    while (now := time.monotonic()) < end:
        for world in worlds:
            world.tick()
        ticks += 1
        if not first and now >= warm:
            first = resident()
        if now - said >= 10:
            print(f"{now - begin:5.0f} s: {ticks:,} ticks, {resident() / 2**20:.1f} MiB", flush=True)
            said = now
    for world in worlds:
        world.check_all()
    checked, grown = sum(world.checked for world in worlds), resident() - first
    print(f"{ticks:,} ticks, {checked:,} streams with the right bits, {grown / 2**20:+.1f} MiB")
    return int(first > 0 and grown > GROWTH)


class World:
    """A pool, and what each of its streams has read and given."""

    def __init__(self, make: type[fastrnn.LSTM | fastrnn.GRU], gates: int, rng: np.random.Generator):
        shapes = (gates * HIDDEN_SIZE, INPUT_SIZE), (gates * HIDDEN_SIZE, HIDDEN_SIZE)
        self.layer = make(*(rng.uniform(-0.3, 0.3, shape).astype(np.float32) for shape in shapes))
        self.rng, self.checked = rng, 0
        self.pool, self.stream = self.layer.pool(CAPACITY // 10), self.layer.stream()
        # Written to here and used again and again, so that what grows is not ours.
        sizes = INPUT_SIZE, HIDDEN_SIZE
        self.spare = [[np.full((LIFE + 40, size), 7, np.float32) for size in sizes] for _ in range(CAPACITY)]
        self.x: dict[int, np.ndarray] = {}
        self.y: dict[int, np.ndarray] = {}
        self.ends: dict[int, int] = {}

    def tick(self) -> None:
        self.open(self.rng.integers(0, 20))
        handles = self.some(0.5)
        if self.rng.random() < 0.7:
            self.step(handles, np.ones(len(handles), np.int64))
        else:
            self.step(handles, self.rng.integers(0, 20, len(handles)))
        for handle in self.some(0.02):
            self.finish(handle)
            self.pool.reset(handle)
            self.forget(handle)
            self.begin(handle)
        for handle in self.some(0.02):
            self.move(handle)
        for handle in [handle for handle in self.x if self.ends[handle] >= LIFE]:
            self.close(handle)

    def open(self, count: int) -> None:
        for _ in range(count):
            if len(self.pool) == self.pool.capacity:
                if self.pool.capacity < CAPACITY:
                    self.pool.grow(self.pool.capacity + 50)
                else:
                    self.pool = self.layer.pool(CAPACITY // 10)  # and the old one goes, with all its streams
                    for handle in list(self.x):
                        self.forget(handle)
            self.begin(self.pool.open())

    def begin(self, handle: int) -> None:
        self.x[handle], self.y[handle] = self.spare.pop()
        self.rng.standard_normal(out=self.x[handle], dtype=np.float32)
        self.ends[handle] = 0

    def some(self, part: float) -> list[int]:
        handles = np.array(sorted(self.x), np.int64)
        return self.rng.permutation(handles[self.rng.random(len(handles)) < part]).tolist()

    def step(self, handles: list[int], counts: np.ndarray) -> None:
        at = [self.ends[handle] for handle in handles]
        chunks = [self.x[h][begin : begin + count] for h, begin, count in zip(handles, at, counts, strict=True)]
        one_each = len(handles) > 0 and (counts == 1).all()
        made = self.pool.step(handles, np.concatenate(chunks) if one_each else chunks)
        for handle, begin, count, y in zip(handles, at, counts.tolist(), made, strict=True):
            self.y[handle][begin : begin + count] = y
            self.ends[handle] += count

    def move(self, handle: int) -> None:
        """Through a Stream, where it takes a step, and back under another handle."""
        at = self.ends[handle]
        self.stream.restore(self.pool.export(handle))
        self.y[handle][at] = self.stream.step(self.x[handle][at])
        self.pool.close(handle)
        other = self.pool.restore(self.stream.save())
        for kept in (self.x, self.y, self.ends):
            kept[other] = kept.pop(handle)
        self.ends[other] += 1

    def close(self, handle: int) -> None:
        self.finish(handle)
        self.pool.close(handle)
        self.forget(handle)

    def forget(self, handle: int) -> None:
        self.spare.append([self.x.pop(handle), self.y.pop(handle)])
        del self.ends[handle]

    def finish(self, handle: int) -> None:
        end = self.ends[handle]
        if not np.array_equal(self.layer(self.x[handle][:end])[0], self.y[handle][:end]):
            sys.exit(f"a stream of {type(self.layer).__name__} has other bits than its whole sequence of {end} steps")
        self.checked += 1

    def check_all(self) -> None:
        for handle in list(self.x):
            self.finish(handle)


def resident() -> int:
    """Bytes of the process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
