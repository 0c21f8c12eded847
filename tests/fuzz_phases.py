"""What a fuzzed model goes through once it is loaded: everything that a user may do with it, on small inputs."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn.errors import FastrnnError
from fastrnn.inspect import compact, describe, input_sizes, table, total
from fastrnn.verify import random_inputs

BATCH, STEPS = 2, 3
MOST_WEIGHTS = 1 << 20
"""Elements of a model that is run, and of its inputs: a larger one takes its time, and rightly."""


class Subject:
    """A loaded model, and what was made of it so far."""

    def __init__(self, spec: Any, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.model: Any = None
        self.feeds: dict[str, np.ndarray] = {}


def inspect(subject: Subject) -> None:
    rows = describe(subject.spec)
    table(("layer", "kind", "detail"), [(row.name, row.kind, row.detail) for row in compact(rows)])
    total(rows)


def build(subject: Subject) -> None:
    subject.model = fastrnn.Model(subject.spec)


def run(subject: Subject) -> None:
    try:
        subject.feeds = random_inputs(subject.spec, batch=BATCH, seq_len=STEPS)
    except FastrnnError:  # shapes that the model does not tell
        subject.feeds = {t.name: np.ones(_some_shape(t.shape), t.dtype) for t in subject.spec.inputs}
    subject.model.run(subject.feeds)


def _some_shape(shape: Any) -> list[int]:
    return [BATCH, STEPS, 4] if shape is None else [min(STEPS if n is None else n, 64) for n in shape[:8]]


def explain(subject: Subject) -> None:
    subject.model.explain(batch=BATCH, seq_len=STEPS)


def stream(subject: Subject) -> None:
    live = subject.model.stream()
    live.step(_frames(live, []))
    live.step(_frames(live, []))
    state = live.save()
    live(_frames(live, [STEPS]))
    live.restore(state)
    live.reset()


def pool(subject: Subject) -> None:
    made = subject.model.pool(2)
    handles = [made.open(), made.open()]
    made.step(handles, _frames(made, [2]))
    made.step(handles[:1], _frames(made, [1]))
    made.restore(made.export(handles[0])) if made.capacity > 2 else made.close(handles[0])


def _frames(live: Any, lead: list[int]) -> Any:
    """Frames of all inputs, with these axes in front."""
    store = live._store
    if not hasattr(store, "_inputs"):
        return np.ones((*lead, live.network.input_size if hasattr(live.network, "input_size") else _bare_size(live)))
    frames = {t.name: np.ones([*lead, *_some_shape(store._frame(t.name))], t.dtype) for t in store._inputs}
    return frames if len(frames) != 1 else next(iter(frames.values()))


def _bare_size(live: Any) -> int:
    return live.network._bare.input_size


def save(subject: Subject) -> None:
    path = subject.folder / "saved.frnn"
    path.unlink(missing_ok=True)
    fastrnn.save(subject.model, path)
    fastrnn.load(path).run(subject.feeds)


def verify(subject: Subject) -> None:
    fastrnn.verify(subject.model, inputs=subject.feeds)


PHASES: tuple[Callable[[Subject], None], ...] = (inspect, build, run, explain, stream, pool, save, verify)
NEEDED = (build, run)
"""Phases without which those after them have nothing to work on."""


def is_small(spec: Any) -> bool:
    size = sum(array.size for node in spec.all_nodes() for array in node.weights.values())
    return size + sum(prod(shape or ()) for shape in input_sizes(spec, BATCH, STEPS).values()) <= MOST_WEIGHTS
