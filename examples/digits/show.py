"""What run.py prints and draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

import fastrnn
from fastrnn.spec import ModelSpec

SHADES = " .:-=+*#@"  # of a pixel from 0 to 16, two values a shade
TITLES = {"gru": "GRU", "bilstm": "bidirectional LSTM"}
PRINTED, DRAWN, PER_LINE = 8, 12, 4


def heading(count: int, threads: int) -> None:
    print(f"Handwritten digits, 8x8 pixels, a row a time step: {count} images that took no part in the training.")
    print(f"fastrnn {fastrnn.__version__} on {fastrnn.info()['isa']}, {threads} thread{'s' * (threads > 1)}")


def network(spec: ModelSpec) -> None:
    rnn = spec.nodes[0]
    both = "bidirectional " * (rnn.attr("direction") == "bidirectional")
    count = sum(weight.size for node in spec.nodes for weight in node.weights.values())
    title = f"{both}{rnn.op.upper()} with {rnn.weights['weight_hh_l0'].shape[1]} units, {count:,} weights"
    print(f"\n{title}\n{'=' * len(title)}")


def files(logits: dict[str, np.ndarray], exact: np.ndarray, labels: np.ndarray) -> None:
    """Accuracy and differences of a network's files."""
    print(f"{'file':20}{'accuracy':>10}{'right':>10}{'max. difference from float64':>32}")
    for file, values in logits.items():
        right = values.argmax(1) == labels
        count = f"{right.sum()}/{len(right)}"
        print(f"{file:20}{right.mean():>10.1%}{count:>10}{np.abs(values - exact).max():>32.1e}")
    if len(logits) > 1:
        print(f"{'largest difference between the files':40}{np.ptp(list(logits.values()), axis=0).max():>32.1e}")


def times(races: dict[int, dict[str, tuple[float, float]]]) -> None:
    """Microseconds a sequence for each batch size, and the error, of each engine."""
    print(f"\n{'us a sequence':20}" + "".join(f"{f'batch {batch}':>10}" for batch in races)
          + f"{'max. difference from float64':>32}")  # fmt: skip
    for engine in next(iter(races.values())):
        row = [race[engine] for race in races.values()]
        print(f"{engine:20}" + "".join(f"{seconds * 1e6:>10.2f}" for seconds, _ in row)
              + f"{max(error for _, error in row):>32.1e}")  # fmt: skip


def no_keras() -> None:
    print('\nThe .keras files were left out: h5py is not installed (pip install "fastrnn[keras]").')


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """counts[a, b]: how many images of the digit a were read as b."""
    return np.bincount(labels.astype(int) * 10 + predicted, minlength=100).reshape(10, 10)


def confusion(predictions: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """The confusion matrices side by side: rows are digits, columns what they were read as."""
    blocks = []
    for name, predicted in predictions.items():
        lines = [f"{TITLES[name]}: digit by row, read as".ljust(35), " " * 4 + "".join(f"{b:>3}" for b in range(10))]
        for digit, counts in enumerate(confusion_matrix(labels, predicted)):
            lines.append(f"{digit:>3} " + "".join(f"{count or '.':>3}" for count in counts))
        blocks.append(lines)
    print()
    for line in zip(*blocks, strict=True):
        print("    ".join(part.ljust(35) for part in line).rstrip())


def chosen(labels: np.ndarray, predictions: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Indices of the images to look at: the mistakes first, then the first image of each digit in turn."""
    wrong = np.any([predicted != labels for predicted in predictions.values()], axis=0)
    _, first = np.unique(labels, return_index=True)
    order = np.concatenate([np.flatnonzero(wrong), first, np.arange(len(labels))])
    return order[np.sort(np.unique(order, return_index=True)[1])][:count]


def images(pixels: np.ndarray, labels: np.ndarray, predictions: dict[str, np.ndarray]) -> None:
    """A few images as text, with what the networks read in them."""
    print(f"\nA few images and what the {readers(predictions)} read, mistakes first")
    which = chosen(labels, predictions, PRINTED)
    for start in range(0, len(which), PER_LINE):
        part = which[start : start + PER_LINE]
        print()
        for row in range(8):
            print("   ".join("".join(2 * SHADES[value // 2] for value in pixels[k, row]) for k in part).rstrip())
        print("   ".join(caption(k, labels, predictions).ljust(16) for k in part).rstrip())


def readers(predictions: dict[str, np.ndarray]) -> str:
    return " and the ".join(TITLES[name] for name in predictions)


def caption(k: int, labels: np.ndarray, predictions: dict[str, np.ndarray]) -> str:
    read = [predicted[k] for predicted in predictions.values()]
    wrong = " <--" * any(digit != labels[k] for digit in read)
    return f"{labels[k]}: read {' '.join(map(str, read))}{wrong}"


def picture(path: Path, pixels: np.ndarray, labels: np.ndarray, predictions: dict[str, np.ndarray]) -> None:
    """Draw the confusion matrices and some images where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print("\nNo picture: matplotlib is not installed.")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
    for axes, (name, predicted) in zip(top.subplots(1, len(predictions)), predictions.items(), strict=True):
        counts = confusion_matrix(labels, predicted)
        axes.imshow(counts, cmap="Blues")
        for digit, read in np.argwhere(counts):
            color = "white" if digit == read else "darkred"
            axes.text(read, digit, counts[digit, read], ha="center", va="center", color=color)
        axes.set(title=f"{TITLES[name]}: {(predicted == labels).mean():.1%} right", xlabel="read as", ylabel="digit",
                 xticks=range(10), yticks=range(10))  # fmt: skip
    bottom.suptitle(f"digit: what the {readers(predictions)} read")
    cells = bottom.subplots(2, DRAWN // 2).flat
    for axes, k in zip(cells, chosen(labels, predictions, DRAWN), strict=True):
        wrong = any(predicted[k] != labels[k] for predicted in predictions.values())
        axes.imshow(pixels[k], cmap="gray_r")
        axes.set_title(caption(k, labels, predictions).removesuffix(" <--"), color="darkred" if wrong else "black")
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"\nPicture: {path}")


def verdict(problems: list[str]) -> None:
    print("\n" + ("\n".join(f"FAILED {problem}" for problem in problems) or "All results are right."))
