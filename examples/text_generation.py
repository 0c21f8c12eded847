"""Write headlines with textgenrnn, a network of 2018 whose file today's Keras cannot open.

    python examples/text_generation.py ../shared/models/textgenrnn --prefix "The " --count 5

The file holds weights alone, those of the LSTMs in the layout of cuDNN.  ``load_layers`` takes single layers out of it
by name; the attention between them, a layer that its author wrote, is four lines of NumPy.  Needs
``pip install "fastrnn[keras]"``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastrnn

LENGTH = 40
"""Characters that the network looks at."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where textgenrnn_weights.hdf5 and textgenrnn_vocab.json are")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.2, help="higher is bolder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    vocabulary = json.loads((options.folder / "textgenrnn_vocab.json").read_text(encoding="utf-8"))
    predict = network(options.folder / "textgenrnn_weights.hdf5")
    rng = np.random.default_rng(options.seed)
    for _ in range(options.count):
        print(write(predict, vocabulary, options.prefix, options.temperature, rng))
    return 0


def network(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """ids (batch, 40) -> probabilities of the next character (batch, 465)."""
    layers = fastrnn.load_layers(
        path,
        {
            "embedding": "Embedding",
            "rnn_1": "LSTM",
            "rnn_2": "LSTM",
            "output": {"class_name": "Dense", "config": {"activation": "softmax"}},
        },
    )
    attention = fastrnn.load_tensors(path)["attention/attention/attention_W:0"]

    def predict(ids: np.ndarray) -> np.ndarray:
        words = layers["embedding"](ids)
        first, _ = layers["rnn_1"](words)
        second, _ = layers["rnn_2"](first)
        seen = np.concatenate([words, first, second], axis=-1)
        score = (seen @ attention)[..., 0]
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True) + np.float32(1e-7)
        return layers["output"](np.einsum("bt,btf->bf", weight, seen))

    return predict


def write(
    predict: Callable[[np.ndarray], np.ndarray],
    vocabulary: dict[str, int],
    prefix: str,
    temperature: float,
    rng: np.random.Generator,
    longest: int = 90,
) -> str:
    """A text that begins with ``prefix``, character by character."""
    characters = {number: character for character, number in vocabulary.items()}
    text = ["<s>", *prefix]
    while len(text) < longest:
        ids = [vocabulary.get(character, 0) for character in text][-LENGTH:]
        chances = predict(np.array([[0] * (LENGTH - len(ids)) + ids]))[0].astype(np.float64)
        chances[0] = 0  # padding is no character
        chances = chances ** (1 / temperature)
        following = characters[int(rng.choice(len(chances), p=chances / chances.sum()))]
        if following == "<s>":
            break
        text.append(following)
    return "".join(text[1:])


if __name__ == "__main__":
    sys.exit(main())
