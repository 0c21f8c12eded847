"""Random PyTorch modules as streams, pools and batchers: the bits of the whole sequence, or a refusal with a reason.

    python tests/random_streams.py --count 500 --seed 1

Modules have time before or after the batch, no batch, bands folded into the batch, convolutions, strides, transposes
and reshapes, several inputs, states that the caller carries and learned initial ones, and sizes that are free or fixed.
Each is converted live and by way of ONNX.  What is taken is cut at random places.  Prints what was refused and why; the
exit code is 1 where a result differs, or where anything but a ``FastrnnError`` of ``stream()``, ``pool()`` or
``Batcher()`` says that there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import fastrnn
from fastrnn.errors import FastrnnError
from fastrnn.graph.streaming import streamed

nn = torch.nn
SIZES = {"b": 3, "t": 11, "f": 6, "q": 4}
LAYOUTS = ("btf", "btf", "tbf", "bft", "tf", "btqf", "bqtf", "bftq", "tqf", "qtf", "tbqf")
Step = Callable[[torch.Tensor], torch.Tensor]


class Drawn(nn.Module):
    """Steps in a row; ``layout`` names the axes of what the last one gives, merged ones by several letters."""

    def __init__(self, pick: random.Random, layout: str, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.pick, self.layout, self.size = pick, list(layout), dict(sizes)
        self.parts = nn.ModuleList()
        self.steps: list[Step] = []
        self.last_state = self.learned = False

    def forward(self, x, more=None, speaker=None, h=None):
        if more is not None:
            x = torch.cat([x, more], -1)
        if speaker is not None:
            x = x + speaker
        state = h
        for step in self.steps:
            made = step(x, state) if isinstance(step, Carried) else step(x)
            x, state = made if isinstance(made, tuple) else (made, state)
        return x if state is None else (x, state)

    # Growing.

    def grow(self) -> None:
        for _ in range(self.pick.randrange(1, 5)):
            self.pick.choice(GROWTH)(self)

    def turn(self, layout: list[str]) -> None:
        perm = [self.layout.index(axis) for axis in layout]
        if perm != sorted(perm):
            self.steps.append(lambda x: x.permute(perm))
        self.layout = list(layout)

    def rows(self, along: str, batch_first: bool) -> bool:
        """Turn and merge axes to what a recurrent layer over ``along`` takes."""
        if along not in self.layout or "f" not in self.layout:
            return False
        others = [axis for axis in self.layout if axis not in (along, "f")]
        if not others:
            self.turn([along, "f"])
            return True
        self.turn([*others, along, "f"])
        if len(others) == 2:
            if self.pick.random() < 0.5:
                self.steps.append(lambda x: x.flatten(0, 1))
            else:
                self.steps.append(lambda x: x.reshape(-1, x.shape[2], x.shape[3]))
            self.layout = ["".join(others), along, "f"]
        if not batch_first:
            self.turn([along, self.layout[0], "f"])
        return len(others) <= 2

    def apart(self) -> None:
        """Axes that were merged, apart again."""
        merged = next((axis for axis in self.layout if len(axis) > 1), None)
        if merged is None:
            return
        at = self.layout.index(merged)
        fixed = [self.size[axis] if axis == "q" else -1 for axis in merged]

        def split(x):
            return x.reshape(*x.shape[:at], *fixed, *x.shape[at + 1 :])

        self.steps.append(split)
        self.layout[at : at + 1] = list(merged)

    def add(self, part: nn.Module) -> nn.Module:
        self.parts.append(part.eval())
        return part


class Recurs(nn.Module):
    """A recurrent layer of which y goes on."""

    def __init__(self, rnn: nn.Module, learned: bool) -> None:
        super().__init__()
        self.rnn = rnn
        states = 2 if isinstance(rnn, nn.LSTM) else 1
        count = rnn.num_layers * (2 if rnn.bidirectional else 1)
        self.learned = nn.ParameterList(
            nn.Parameter(torch.randn(count, 1, rnn.hidden_size)) for _ in range(states * learned)
        )

    def forward(self, x):
        if not len(self.learned):
            return self.rnn(x)[0]
        states = [h.expand(-1, x.shape[0 if self.rnn.batch_first else 1], -1).contiguous() for h in self.learned]
        return self.rnn(x, tuple(states) if len(states) > 1 else states[0])[0]


class Carried(nn.Module):
    """A GRU whose state the caller carries."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x, h):
        return self.rnn(x, h)


def recurrent(d: Drawn, along: str = "t", both: float = 0.08) -> None:
    batch_first = d.pick.random() < 0.7
    if not d.rows(along, batch_first):
        return
    kind, both_ways = d.pick.choice([nn.LSTM, nn.GRU, nn.RNN]), d.pick.random() < both
    layers = d.pick.choice([1, 1, 2])
    rnn = kind(d.size["f"], 5, layers, batch_first=batch_first, bidirectional=both_ways)
    learned = d.pick.random() < 0.15 and len(d.layout) == 3
    d.steps.append(d.add(Recurs(rnn, learned)))
    d.size["f"] = 10 if both_ways else 5
    if d.pick.random() < 0.6:
        d.apart()


def over_bands(d: Drawn) -> None:
    if "q" in d.layout:
        recurrent(d, "q", 0.5)


def dense(d: Drawn) -> None:
    if "f" in d.layout:
        d.turn([*[axis for axis in d.layout if axis != "f"], "f"])
        d.steps.append(
            d.add(d.pick.choice([nn.Linear(d.size["f"], d.size["f"]), nn.LayerNorm(d.size["f"]), nn.Tanh()]))
        )


def convolution(d: Drawn) -> None:
    kernel, stride = d.pick.choice([2, 3]), d.pick.choice([1, 1, 1, 2])
    pads = d.pick.choice([(kernel - 1, 0), (kernel - 1, 0), (0, 0), (kernel // 2, kernel // 2)])
    if sorted(d.layout) == ["b", "f", "t"]:
        d.turn(["b", "f", "t"])
        conv = d.add(nn.Conv1d(d.size["f"], 5, kernel, stride))
        d.steps.append(lambda x: conv(nn.functional.pad(x, pads)))
    elif sorted(d.layout) == ["b", "f", "q", "t"]:
        d.turn(["b", "f", "t", "q"])
        conv = d.add(nn.Conv2d(d.size["f"], 5, (kernel, 3), (stride, 1), padding=(0, 1)))
        d.steps.append(lambda x: conv(nn.functional.pad(x, (0, 0, *pads))))
    elif sorted(d.layout) == ["f", "t"]:
        d.turn(["f", "t"])
        conv = d.add(nn.Conv1d(d.size["f"], 5, kernel, stride))
        d.steps.append(lambda x: conv(nn.functional.pad(x, pads)))
    else:
        return
    d.size["f"] = 5


def shuffle(d: Drawn) -> None:
    layout = list(d.layout)
    d.pick.shuffle(layout)
    d.turn(layout)


def reduce(d: Drawn) -> None:
    axis = d.pick.choice(["q", "q", "f", "t", "b"])
    if axis in d.layout and len(d.layout) > 2 and d.pick.random() < 0.5:
        at = d.layout.index(axis)
        d.steps.append(lambda x: x.mean(at))
        del d.layout[at]


def last(d: Drawn) -> None:
    if "t" in d.layout and len(d.layout) > 1 and d.pick.random() < 0.5:
        at = d.layout.index("t")
        d.steps.append(lambda x: x.select(at, -1))
        del d.layout[at]


def along_axis(d: Drawn) -> None:
    at = d.pick.randrange(len(d.layout))
    d.steps.append(d.pick.choice([lambda x: x.softmax(at), lambda x: x.cumsum(at), lambda x: x * 2]))


def flat_bands(d: Drawn) -> None:
    if "q" in d.layout and "f" in d.layout:
        d.turn([*[axis for axis in d.layout if axis not in "qf"], "q", "f"])
        d.steps.append(lambda x: x.flatten(-2))
        d.layout.remove("q")
        d.size["f"] *= d.size["q"]


GROWTH = (recurrent,) * 5 + (dense, dense, convolution, shuffle, reduce, last, along_axis, flat_bands, over_bands)


@dataclass
class Case:
    """A module, what it takes, and which axes of that are the batch and time; -1 and None: it has none."""

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, tuple[int, int | None]]
    free: str


def drawn(seed: int) -> Case:
    pick = random.Random(seed)
    torch.manual_seed(seed)
    sizes = SIZES | {"b": pick.choice([1, 3, 3, 3])}
    layout = pick.choice(LAYOUTS)
    shape = [sizes[axis] for axis in layout]
    axes = {"x": (layout.find("b"), layout.index("t"))}
    inputs = {"x": torch.randn(shape)}
    module = Drawn(pick, layout, sizes)
    if layout.endswith("f") and pick.random() < 0.12:
        inputs["more"], axes["more"] = torch.randn(shape), axes["x"]
        module.size["f"] *= 2
    elif layout == "btf" and pick.random() < 0.12:
        inputs["speaker"], axes["speaker"] = torch.randn(sizes["b"], 1, sizes["f"]), (0, None)
    elif layout in ("btf", "tbf") and pick.random() < 0.2:
        layers = pick.choice([1, 2])
        inputs["h"], axes["h"] = torch.zeros(layers, sizes["b"], 5), (1, None)
        module.steps.append(module.add(Carried(nn.GRU(sizes["f"], 5, layers, batch_first=layout == "btf"))))
        module.size["f"] = 5
    module.grow()
    # A file whose only free size is time, and that has layers over bands, does not say that these are not the steps.
    free = pick.choice(["bt", "bt", "b", ""] if "q" in layout else ["bt", "bt", "bt", "b", "t", ""])
    if "b" not in layout:
        free = "" if "q" in layout else free.replace("b", "")
    return Case(module.eval(), inputs, axes, free)


def converted(case: Case, seed: int) -> Iterator[tuple[str, Any]]:
    """Models of the module; those that PyTorch or fastrnn cannot convert are left out."""
    pick = random.Random(-seed - 1)
    names = list(case.inputs)
    values = tuple(case.inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = case.inputs if len(names) > 1 or pick.random() < 0.5 else None
        with contextlib.suppress(FastrnnError):
            yield "live", fastrnn.from_torch(case.module, example_inputs=example)
        file = io.BytesIO()
        dynamic = {
            name: {
                axis: word
                for axis, word in zip(axes, ("batch", "time"))
                if axis is not None and axis >= 0 and word[0] in case.free
            }
            for name, axes in case.axes.items()
        }
        try:
            torch.onnx.export(
                case.module, ({**case.inputs},) if len(names) > 1 else values, file, dynamo=False, input_names=names,
                dynamic_axes={name: axes for name, axes in dynamic.items() if axes},
            )  # fmt: skip
        except Exception:  # whatever the exporter does not know
            return
        try:
            yield "onnx", fastrnn.from_onnx(file.getvalue())
        except FastrnnError:
            return


class WrongError(Exception):
    """A result that differs."""


def runs(model: Any, case: Case) -> bool:
    """Whether the model takes what the module takes; a guess at its inputs may be another."""
    try:
        model(*(tensor.numpy() for tensor in case.inputs.values()))
    except FastrnnError:
        return False
    return True


def check(model: Any, case: Case, how: str, seed: int) -> str:
    """The reason for which there is no stream, "" where it has the bits of the whole sequence."""
    names = {tensor.name: name for tensor, name in zip(model.inputs, case.inputs)}
    feeds = {name: case.inputs[mine].numpy() for name, mine in names.items()}
    try:
        made = streamed(model.spec)
        carried = {state.input for state in made.states}
        data = {t.name: feeds[t.name] for t in made.inputs}
        axes = {
            name: (made.batch_axis[name], made.time_axis[name]) for name in (*data, *(t.name for t in made.outputs))
        }
        rows = {array.shape[axes[name][0]] if axes[name][0] >= 0 else 1 for name, array in data.items()}
        live = Lives(model, how, batch := max(rows, default=1))
    except FastrnnError as error:
        return str(error) or type(error).__name__
    for name in data:
        declared = next(t for t in model.inputs if t.name == name).shape
        if axes[name][1] is None and "h" in case.inputs and declared[case.axes[names[name]][1] or 0] is not None:
            continue  # a fixed number of steps with a state of its own is a frame
        if axes[name] != case.axes[names[name]] and declared[axes[name][1] or 0] is not None:
            raise WrongError(f"{name!r} has batch and time in {case.axes[names[name]]}, taken were {axes[name]}")
    if len({array.shape[axes[name][1]] for name, array in data.items() if axes[name][1] is not None}) > 1:
        return "one of the inputs has a single step here; in a stream all have the same"
    has_time = any(axes[name][1] is not None for name in data)
    sequences = {name: arranged(array, *axes[name]) for name, array in data.items()}
    steps = max((a.shape[1] for name, a in sequences.items() if axes[name][1] is not None), default=3)
    for name in data:
        if axes[name][1] is None:  # the same at every step
            sequences[name] = np.repeat(sequences[name][:, None], steps, 1)
    zeros = {name: np.zeros_like(array) for name, array in feeds.items() if name in carried}
    whole = model.run({**feeds, **zeros})
    wants = {t.name: arranged(whole[t.name], *axes[t.name]) for t in made.outputs}
    if not has_time:
        frames = []
        for _ in range(steps):
            found = model.run({**feeds, **zeros})
            zeros = {state.input: found[state.output] for state in made.states}
            frames.append(found)
        wants = {t.name: np.stack([arranged(f[t.name], *axes[t.name]) for f in frames], 1) for t in made.outputs}
    each = [axes[t.name][1] is not None or not has_time for t in made.outputs]
    for result, (name, want) in zip(live.run(sequences, each, np.random.default_rng(seed)), wants.items()):
        if result.shape[0] != batch or not np.array_equal(result, want, equal_nan=True):
            raise WrongError(f"{name!r} differs, {result.shape} from {want.shape}")
    return ""


def arranged(array: np.ndarray, batch: int, time: int | None) -> np.ndarray:
    """(batch, time, ...); (batch, ...) of what has no time."""
    if batch < 0:
        array, batch, time = array[None], 0, None if time is None else time + 1
    return np.moveaxis(array, batch, 0) if time is None else np.moveaxis(array, (batch, time), (0, 1))


class Lives:
    """A batch of sequences as a stream, in a pool or through a batcher."""

    def __init__(self, model: Any, how: str, batch: int) -> None:
        self.how, self.batch = how, batch
        if how == "stream":
            self.live: Any = model.stream(batch)
        elif how == "pool":
            self.live = model.pool(batch + 1)
            self.handles = [self.live.open() for _ in range(batch)]
        else:
            self.live = fastrnn.Batcher(model, max_batch=batch + 1)

    def run(self, data: dict[str, np.ndarray], each: list[bool], rng: np.random.Generator) -> list[np.ndarray]:
        """Results of (batch, time, ...) arrays, joined along time where there is something for ``each`` step."""
        if self.how == "batcher":
            with self.live as live:
                results = [live.submit(one({n: a[row] for n, a in data.items()})) for row in range(self.batch)]
                return stacked([flat(future.result(60)) for future in results])
        steps = next(iter(data.values())).shape[1]
        edges = [0, *sorted(rng.integers(0, steps + 1, 3).tolist()), steps]
        pieces = []
        for first, end in pairwise(edges):
            if end == first:
                continue
            chunk = {n: a[:, first:end] for n, a in data.items()}
            if self.how == "stream":
                made = self.live(one(chunk if self.batch > 1 else {n: a[0] for n, a in chunk.items()}))
                made = flat(made) if self.batch > 1 else [a[None] for a in flat(made)]
            else:
                made = self.live.step(
                    self.handles, [one({n: a[k] for n, a in chunk.items()}) for k in range(self.batch)]
                )
                made = stacked([flat(y) for y in made])
            pieces.append(made)
        return [np.concatenate(parts, 1) if joined else parts[-1] for joined, *parts in zip(each, *pieces)]


def one(data: dict[str, Any]) -> Any:
    return next(iter(data.values())) if len(data) == 1 else data


def flat(made: Any) -> list[np.ndarray]:
    return list(made) if isinstance(made, tuple) else [made]


def stacked(rows: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.stack(parts) for parts in zip(*rows)]


def trials(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(what it was, reason of the refusal or "", fault or "")."""
    for k in range(seed * count, (seed + 1) * count):
        case = drawn(k)
        try:
            with torch.no_grad():
                case.module(**case.inputs)
        except RuntimeError:
            continue  # the module itself does not run
        for source, model in converted(case, k):
            if not isinstance(model, fastrnn.model.Model) or not runs(model, case):
                continue
            for how in ("stream", "pool", "batcher"):
                what = f"{k} {source} {how}"
                try:
                    reason = check(model, case, how, k)
                except Exception as error:
                    yield what, "", f"{type(error).__name__}: {error}"
                else:
                    yield what, reason, ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    run = faults = 0
    reasons: Counter[str] = Counter()
    for what, reason, fault in trials(options.count, options.seed):
        run += not reason and not fault
        faults += bool(fault)
        if fault:
            print(f"{what}: {fault}", flush=True)
        if reason:
            reasons[re.sub(r"'[^']*'|\d+", "*", reason.replace("\n", " "))[:150]] += 1
    for reason, count in reasons.most_common():
        print(f"{count:6} refused: {reason}")
    print(f"{run} run, {sum(reasons.values())} refused, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
