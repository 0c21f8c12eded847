"""Read handwritten digits with two trained recurrent networks, each from three file formats, and check the results.

    python examples/digits/run.py                  # --help shows the options

Needs numpy and fastrnn; reads the .keras files where h5py is installed, times PyTorch, ONNX Runtime and OpenVINO
beside fastrnn where they are, and draws a picture where matplotlib is.  The exit code is 1 if a network reads less
than 95 % of the images rightly, or if a result is further than 1e-5 from the float64 reference.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import show
from peers import race

import fastrnn
from fastrnn import reference

HERE = Path(__file__).resolve().parent
NETWORKS = {"gru": fastrnn.GRU, "bilstm": fastrnn.LSTM}
SUFFIXES = (".pt", ".safetensors", ".keras")
BATCHES = (1, 64)
ACCURACY = 0.95
TOLERANCE = 1e-5


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    fastrnn.set_num_threads(options.threads)
    images, labels = held_out()
    x = images.astype(np.float32) / 16  # (image, row, column): a row is a time step of 8 features
    show.heading(len(images), options.threads)
    problems: list[str] = []
    predictions: dict[str, np.ndarray] = {}
    for name, cell in NETWORKS.items():
        models = {f"{name}{suffix}": load(HERE / f"{name}{suffix}", cell) for suffix in SUFFIXES if readable(suffix)}
        first = next(iter(models.values()))
        exact = float64(first, x)
        logits = {file: model(x) for file, model in models.items()}
        problems += check(logits, exact, labels)
        show.network(first.spec)
        show.files(logits, exact, labels)
        show.times({batch: race(first, x[:batch], options.threads, options.peers) for batch in BATCHES})
        predictions[name] = next(iter(logits.values())).argmax(1)
    if not readable(".keras"):
        show.no_keras()
    show.confusion(predictions, labels)
    show.images(images, labels, predictions)
    show.picture(options.out / "digits.png", images, labels, predictions)
    show.verdict(problems)
    return 1 if problems else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every engine (default 1)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="time fastrnn alone")
    parser.add_argument("--out", type=Path, default=HERE / "out", metavar="DIR", help="where the picture goes")
    return parser.parse_args(argv)


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8) uint8 from 0 to 16 and labels (n,) that took no part in the training."""
    with np.load(HERE / "data" / "held_out.npz") as data:
        return data["images"], data["labels"]


def readable(suffix: str) -> bool:
    """Whether what the format needs is installed."""
    return suffix != ".keras" or importlib.util.find_spec("h5py") is not None


def load(path: Path, cell: type) -> Any:
    """The network in a file, as a function of (batch, 8, 8) that returns logits (batch, 10).

    A .keras file says what its layers are.  A state_dict holds arrays alone, so we say which layers they belong to.
    """
    if path.suffix == ".keras":
        return fastrnn.load(path)
    layers = fastrnn.load_layers(path, {"rnn": cell, "head": fastrnn.Dense})
    return fastrnn.Sequential(layers["rnn"].last(), layers["head"])


def float64(model: Any, x: np.ndarray) -> np.ndarray:
    """The logits in float64, by the equations of ``fastrnn.reference``."""
    spec = model.spec
    return reference.run(spec, {spec.inputs[0].name: x})[spec.outputs[0].name]


def check(logits: dict[str, np.ndarray], exact: np.ndarray, labels: np.ndarray) -> list[str]:
    """What is wrong with the results of the files of a network."""
    problems = []
    for file, values in logits.items():
        accuracy, difference = (values.argmax(1) == labels).mean(), np.abs(values - exact).max()
        if accuracy < ACCURACY:
            problems.append(f"{file}: accuracy {accuracy:.1%}, expected at least {ACCURACY:.0%}")
        if not difference <= TOLERANCE:
            problems.append(f"{file}: {difference:.1e} from the float64 reference, expected at most {TOLERANCE:.0e}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
