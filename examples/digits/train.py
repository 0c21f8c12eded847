"""Train the two networks of this example and write them in three formats each.

    python examples/digits/train.py            # needs torch, keras, safetensors and scikit-learn; about a minute

The data are scikit-learn's handwritten digits: 1797 images of 8x8 pixels, read a row a time step.  One image in five
is held out; it takes no part in the training.  Every source of chance is seeded, so a second run on the same machine
and versions gives the same weights.  Nothing here is needed to run the example: the files are part of the repository.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

from pathlib import Path

import keras
import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from fastrnn.spec import GATE_ORDER, GATES

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 60
BATCH = 32


class Classifier(nn.Module):
    """A recurrent layer and a linear head on the last hidden state of each of its directions."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.rnn(x)
        h_n = state[0] if isinstance(state, tuple) else state  # (directions, batch, hidden_size)
        return self.head(h_n.transpose(0, 1).flatten(1))


def networks() -> dict[str, Classifier]:
    """The untrained networks by the name of their files."""
    torch.manual_seed(SEED)
    return {
        "gru": Classifier(nn.GRU(8, 64, batch_first=True)),
        "bilstm": Classifier(nn.LSTM(8, 48, batch_first=True, bidirectional=True)),
    }


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (uint8, 0..16) and labels: to train with, then held out."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=SEED
    )
    return train_x, train_y, test_x, test_y


def scale(images: np.ndarray) -> torch.Tensor:
    """The input of the networks: float32 from 0 to 1."""
    return torch.from_numpy(images.astype(np.float32) / 16)


def vary(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images that could have been written too: some moved by a pixel in each direction, all with a little noise."""
    down, right = (int(k) for k in torch.randint(-1, 2, (2,), generator=generator))
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    moved = padded[:, 1 + down : 9 + down, 1 + right : 9 + right]
    move = torch.rand(len(x), 1, 1, generator=generator) < 0.3
    return torch.where(move, moved, x) + 0.1 * torch.randn(x.shape, generator=generator)


def train(network: Classifier, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Adam on the cross entropy, with a learning rate that rises and falls once.

    Every image gets fresh noise each time, and a third of them moves by a pixel: 1437 images are few.
    """
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(network(vary(x[rows], generator)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def keras_weights(rnn: nn.RNNBase, suffix: str) -> list[np.ndarray]:
    """Kernel, recurrent kernel and bias as Keras stores them: transposed, its own gate order, GRU with both biases."""
    cell = rnn.mode.lower()
    ours, theirs = GATES[cell], GATE_ORDER["keras"][cell]

    def permuted(name: str) -> np.ndarray:
        blocks = np.split(getattr(rnn, name + suffix).detach().numpy(), len(ours))
        return np.concatenate([blocks[ours.index(gate)] for gate in theirs])

    biases = [permuted("bias_ih"), permuted("bias_hh")]
    bias = np.stack(biases) if cell == "gru" else biases[0] + biases[1]
    return [permuted("weight_ih").T, permuted("weight_hh").T, bias]


def to_keras(network: Classifier, name: str) -> keras.Model:
    """The same function as a Keras model."""
    rnn = network.rnn
    layer = getattr(keras.layers, rnn.mode)(rnn.hidden_size, name="rnn")
    if rnn.bidirectional:
        layer = keras.layers.Bidirectional(layer, name="rnn")
    model = keras.Sequential([keras.Input((8, 8)), layer, keras.layers.Dense(10, name="head")], name=name)
    suffixes = ["_l0", "_l0_reverse"] if rnn.bidirectional else ["_l0"]
    model.get_layer("rnn").set_weights([array for suffix in suffixes for array in keras_weights(rnn, suffix)])
    head = network.head
    model.get_layer("head").set_weights([head.weight.detach().numpy().T, head.bias.detach().numpy()])
    return model


def save(network: Classifier, name: str, x: torch.Tensor) -> None:
    """Write NAME.pt, NAME.safetensors and NAME.keras, after a check that Keras computes what PyTorch does."""
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    model = to_keras(network, name)
    with torch.inference_mode():
        difference = (network(x) - model(x)).abs().max().item()
    if not difference < 1e-5:
        raise SystemExit(f"{name}: Keras and PyTorch differ by {difference:.1e}; the weights were not permuted rightly")
    torch.save(state, HERE / f"{name}.pt")
    save_file(state, HERE / f"{name}.safetensors")
    model.save(HERE / f"{name}.keras")
    print(f"{name}: largest difference between Keras and PyTorch {difference:.1e}")


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_x, train_y, test_x, test_y = split()
    np.savez_compressed(HERE / "data" / "held_out.npz", images=test_x, labels=test_y)
    for name, network in networks().items():
        train(network, scale(train_x), torch.from_numpy(train_y.astype(np.int64)))
        network.eval()
        with torch.inference_mode():
            correct = (network(scale(test_x)).argmax(1).numpy() == test_y).sum()
        print(f"{name}: {correct} of {len(test_y)} held-out images are right ({100 * correct / len(test_y):.1f} %)")
        save(network, name, scale(test_x))


if __name__ == "__main__":
    main()
