"""Whole published models beside ONNX Runtime and Keras on the same files: us a call, batch 1, one thread.

    python bench/models.py
    FASTRNN_MODELS=/path/to/models python bench/models.py --rounds 15

silero_vad and dtln run as a stream: frame after frame, the state of one call going into the next.  stock_lstm runs one
sequence a call: ONNX Runtime gets an equal graph, Keras its compiled predict function.  Results are compared before
anything is timed.  `cold` gives the processor's caches to somebody else before each call, as between two frames of a
live stream.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from command import heading, line, parser, prepare
from host import describe
from onnx_graph import of_layers
from timing import interleave, medians, ratio

import fastrnn

MODELS = Path(os.environ.get("FASTRNN_MODELS", Path(__file__).parents[2] / "shared" / "models"))
STREAMS = {
    # file: (input, state in, state out, other inputs, size of a frame)
    "silero_vad/silero_vad.onnx": ("input", "state", "stateN", {"sr": np.array(16000)}, (1, 576)),
    "silero_vad/silero_vad_16k_op15.onnx": ("input", "state", "stateN", {"sr": np.array(16000)}, (1, 576)),
    "silero_vad/silero_vad_openvino_16k.onnx": ("input", "state", "stateN", {}, (1, 576)),
    "silero_vad/silero_vad_op18_ifless.onnx": ("input", "state", "stateN", {"sr": np.array(16000)}, (1, 576)),
    "dtln/model_1.onnx": ("input_2", "input_3", "tf_op_layer_stack_2", {}, (1, 1, 257)),
    "dtln/model_2.onnx": ("input_4", "input_5", "tf_op_layer_stack_5", {}, (1, 1, 512)),
}
STATES = {"silero_vad": (2, 1, 128), "dtln": (1, 2, 128, 2)}
STOCKS = {"stock_lstm/AAPL/model.keras": (1, 60, 22), "stock_lstm/MSFT_1cf95fa/model.keras": (1, 60, 1)}
TOLERANCE = 2e-5  # of a state, which may be as large as 30
COLD_CALLS, COLD_BYTES = 300, 64 << 20

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--isa")
    options.add_argument("--rounds", type=int, default=9, metavar="N")
    arguments = options.parse_args(argv)
    os.environ.setdefault("KERAS_BACKEND", "torch")
    if not MODELS.is_dir():
        sys.exit(f"no models at {MODELS}: set FASTRNN_MODELS")
    prepare(1, arguments.isa)
    fastrnn.set_num_threads(1)
    host = describe(1)
    print(f"### Whole models: us a call, batch 1, one thread\n\n{host['cpu']}; fastrnn on {host['isa']}\n")
    print(heading(["model"], ["fastrnn", "ONNX Runtime", "Keras", "ratio", "cold: fastrnn", "ONNX Runtime", "ratio"]))
    warm, cold = [], []
    for name, calls in contenders():
        times = interleave(calls, arguments.rounds)
        us = {who: 1e6 * seconds for who, seconds in medians(times).items()}
        away = {who: 1e6 * cold_call(call) for who, call in calls.items() if who != "Keras"}
        ratios = ratio(times, "fastrnn"), away["ONNX Runtime"] / away["fastrnn"]
        warm.append(ratios[0])
        cold.append(ratios[1])
        keras = f"{us['Keras']:.0f}" if "Keras" in us else ""
        cells = [f"{us['fastrnn']:.1f}", f"{us['ONNX Runtime']:.1f}", keras, f"{ratios[0]:.2f}"]
        cells += [f"{away['fastrnn']:.1f}", f"{away['ONNX Runtime']:.1f}", f"{ratios[1]:.2f}"]
        print(line([name, *cells]), flush=True)
    for what, found in (("", warm), ("cold, ", cold)):
        print(f"\n{what}smallest {min(found):.2f}, geometric mean {statistics.geometric_mean(found):.2f}")
    return 0


def contenders() -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    for name, (x, state_in, state_out, others, shape) in STREAMS.items():
        model, session = fastrnn.load(MODELS / name), session_of((MODELS / name).read_bytes())
        runs: dict[str, Run] = {"fastrnn": model.run, "ONNX Runtime": session}
        feeds = {t.name: others[t.name] for t in model.inputs if t.name in others}
        state = np.zeros(STATES[name.split("/")[0]], np.float32)
        streams = {who: Stream(run, x, state_in, state_out, feeds, shape, state) for who, run in runs.items()}
        for _ in range(50):
            check(name, *(stream() for stream in streams.values()))
        yield name, dict(streams)
    for name, shape in STOCKS.items():
        yield name, stock(name, shape)


class Stream:
    """Frames of noise, one a call, each with the state that the call before gave."""

    def __init__(
        self, run: Run, x: str, state_in: str, state_out: str, feeds: dict, shape: tuple[int, ...], state: np.ndarray
    ):
        self.run, self.x, self.state_in, self.state_out = run, x, state_in, state_out
        self.feeds = {**feeds, state_in: state}
        self.frames = np.random.default_rng(0).random((64, *shape), np.float32) * np.float32(0.1)
        self.at = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.feeds[self.x] = self.frames[self.at]
        self.at = (self.at + 1) % len(self.frames)
        made = self.run(self.feeds)
        self.feeds[self.state_in] = made[self.state_out]
        return made


def session_of(model: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds)))


def stock(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    import keras
    import torch

    torch.set_num_threads(1)
    x = np.random.default_rng(0).random(shape, np.float32)
    model, live = fastrnn.load(MODELS / name), keras.models.load_model(MODELS / name, compile=False)
    session = session_of(of_layers([node for node in model.graph.nodes if node.weights], x))
    live.make_predict_function()
    calls = {
        "fastrnn": lambda: model(x),
        "ONNX Runtime": lambda: session({"x": x}),
        "Keras": lambda: live.predict_function([(x,)]),
    }
    check(name, {"y": calls["fastrnn"]()}, {"y": next(iter(calls["ONNX Runtime"]().values()))})
    check(name, {"y": calls["fastrnn"]()}, {"y": np.asarray(live.predict_on_batch(x))})
    return calls


def check(name: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    for tensor, array in theirs.items():
        if np.abs(ours[tensor] - array).max() > TOLERANCE:
            sys.exit(f"{name}: {tensor} differs by {np.abs(ours[tensor] - array).max()}")


def cold_call(call: Callable[[], Any]) -> float:
    """The median of calls each of which comes after other work has taken the caches."""
    other, seconds = np.zeros(COLD_BYTES // 4, np.float32), []
    for _ in range(COLD_CALLS):
        other += 1
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
