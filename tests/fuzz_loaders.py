"""Mutates valid model files of every registered format and loads them.

    python tests/fuzz_loaders.py --count 100000 --seed 1

A mutant must load or raise a ``FastrnnError``, within 2 seconds and with memory bounded by its size (that of Python and
NumPy; what libraries in C take is not seen).  A failure leaves the file in the current folder.
"""

import argparse
import io
import os
import pickletools
import random
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import hostile_torch

from fastrnn.errors import FastrnnError
from fastrnn.loaders import FORMATS, load_spec, load_tensors, native, safetensors
from fastrnn.spec import ModelSpec, Node, Tensor

SECONDS = 2.0
BYTES = 100  # of memory for each byte of the file, and
BYTES_MORE = 16 << 20

OPCODES = [
    b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"K\x00", b"X\x00\x00\x00\x00", b"N", b"\x88", b"]",
    b"}", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"Q", b"b", b"s", b"u", b"e", b"a", b"h\x00",
    b"cos\nsystem\n",
]  # fmt: skip
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


def lstm_spec() -> ModelSpec:
    rng = np.random.default_rng(0)
    weights = {
        f"{name}_l0{end}": rng.standard_normal(shape).astype(np.float32)
        for end in ("", "_reverse")
        for name, shape in (("weight_ih", (8, 3)), ("weight_hh", (8, 2)), ("bias_ih", (8,)), ("bias_hh", (8,)))
    }
    attrs = {"direction": "bidirectional", "gate_activation": ("hard_sigmoid", 0.2, 0.5), "clip": None}
    nodes = [
        Node("lstm", "rnn", ("x",), ("a",), attrs, weights),
        Node("dense", "head", ("a",), ("y",), {}, {"weight": np.ones((2, 4), np.float32)}),
    ]
    return ModelSpec(nodes, [Tensor("x", (None, None, 3))], [Tensor("y", None)])


def torch_file() -> bytes:
    """A checkpoint; by PyTorch where it is installed."""
    weights = lstm_spec().nodes[0].weights
    try:
        import torch
    except ImportError:
        return hostile_torch.GOOD_PT
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state": {key: torch.from_numpy(array).half() for key, array in weights.items()}}, buffer)
    return buffer.getvalue()


def keras_files() -> dict[str, bytes]:
    """The three Keras containers, where Keras is installed."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import h5py  # noqa: F401
        import keras
    except ImportError:
        return {}
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(2), keras.layers.Dense(2, activation="softmax")])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".keras", ".h5"):
            path = Path(folder) / f"model{suffix}"
            model.save(path)
            found[suffix] = path.read_bytes()
    return found


def corpus() -> dict[str, bytes]:
    """A small valid file for each suffix of the registry that can be made here."""
    weights = lstm_spec().nodes[0].weights
    return {
        ".pt": torch_file(),
        ".safetensors": b"".join(safetensors.chunks(weights, {"a": "b"})),
        ".frnn": native.spec_to_bytes(lstm_spec()),
        **keras_files(),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change a file in one to eight places: bits, numbers, pieces moved, repeated, dropped; headers more than data."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        if not result:
            break
        at = rng.randrange(len(result) if rng.random() < 0.5 else min(len(result), 2048))
        kind = rng.randrange(8)
        if kind == 0:
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[at] = rng.randrange(256)
        elif kind == 2:
            layout = rng.choice("BHIQ")
            number = struct.pack("<" + layout, rng.choice(INTERESTING) % (1 << 8 * struct.calcsize(layout)))
            result[at : at + len(number)] = number
        elif kind == 3:
            del result[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            piece = result[at : at + rng.randrange(1, 64)]
            result[at:at] = piece * rng.choice((1, 2, 100))
        elif kind == 5:
            del result[at:]
        elif kind == 6:
            digits = [k for k, byte in enumerate(result[:4096]) if chr(byte).isdigit()]
            if digits:
                result[rng.choice(digits)] = ord(rng.choice('0123456789-.e"[{'))
        else:
            source = rng.randrange(len(result))
            piece = result[source : source + rng.randrange(1, 64)]
            result[at : at + len(piece)] = piece
    return bytes(result)


def mutate_member(data: bytes, rng: random.Random) -> bytes:
    """Change one member of a zip file and write the archive anew, so that its checksums are right."""
    buffer = io.BytesIO()
    by_opcode = rng.random() < 0.6
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        names = source.namelist()
        chosen = rng.choice([n for n in names if n.endswith((".pkl", ".json", ".h5"))] or names)
        for name in names:
            contents = source.read(name)
            if name == chosen:
                contents = (mutate_pickle if by_opcode and name.endswith(".pkl") else mutate)(contents, rng)
            target.writestr(name, contents)
    return buffer.getvalue()


def mutate_pickle(data: bytes, rng: random.Random) -> bytes:
    """Move, repeat, drop and swap whole opcodes, which keeps more of a pickle alive than changing its bytes."""
    positions = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    opcodes = [data[start:end] for start, end in pairwise(positions)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(1, len(opcodes)), rng.randrange(1, len(opcodes))
        kind = rng.randrange(4)
        if kind == 0 and len(opcodes) > 2:
            del opcodes[at]
        elif kind == 1:
            opcodes.insert(at, opcodes[other])
        elif kind == 2:
            opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
        else:
            opcodes[at] = rng.choice(OPCODES)
    return b"".join(opcodes)


def mutate_native(data: bytes, rng: random.Random) -> bytes:
    """Change the spec of a .frnn file and make its checksum right."""
    entries, metadata, start = safetensors.read_header(memoryview(data))
    old = zlib.crc32(metadata["spec"].encode())
    metadata["spec"] = mutate(metadata["spec"].encode(), rng).decode("latin-1")
    new = zlib.crc32(metadata["spec"].encode())
    metadata["checksums"] = metadata["checksums"].replace(str(old), str(new))
    tensors = {name: safetensors.read_entry(memoryview(data)[start:], entry) for name, entry in entries.items()}
    return b"".join(safetensors.chunks(tensors, metadata))


def mutant(seeds: dict[str, bytes], seed: int) -> tuple[str, bytes]:
    """The suffix and the bytes of the mutant of one seed."""
    rng = random.Random(seed)
    suffix = rng.choice(sorted(seeds))
    data = seeds[suffix]
    if suffix == ".frnn" and rng.random() < 0.7:
        return suffix, mutate_native(data, rng)
    if zipfile.is_zipfile(io.BytesIO(data)) and rng.random() < 0.7:
        return suffix, mutate_member(data, rng)
    return suffix, mutate(data, rng)


def load(path: Path) -> str:
    """Load a file in both ways; returns what came of it."""
    outcomes = []
    for loader in (load_tensors, load_spec):
        try:
            loader(path)
            outcomes.append("loaded")
        except FastrnnError as error:
            outcomes.append(type(error).__name__)
    return "/".join(outcomes)


def run(count: int, seed: int, only: str = "") -> dict[str, int]:
    """Load ``count`` mutants, ``only`` of files with one suffix; returns how many had each outcome.

    Raises
    ------
    AssertionError
        A mutant raised another error, took too long or too much memory.
    """
    seeds = corpus()
    outcomes: dict[str, int] = {}
    missing = [row.name for row in FORMATS if not set(row.suffixes) & set(seeds)]
    assert missing in ([], ["keras"]), f"no valid file of the formats {missing} to start from"
    seeds = {suffix: data for suffix, data in seeds.items() if suffix.startswith(only)}
    with tempfile.TemporaryDirectory() as folder:
        for suffix, data in seeds.items():
            path = Path(folder) / f"good{suffix}"
            path.write_bytes(data)
            assert "loaded" in load(path), f"the valid {suffix} file does not load"  # and imports the modules
        for k in range(count):
            suffix, data = mutant(seeds, seed * 1_000_003 + k)
            path = Path(folder) / f"mutant{suffix}"
            path.write_bytes(data)
            tracemalloc.start()
            start = time.process_time()
            try:
                outcome = load(path)
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            seconds = time.process_time() - start
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            good = not set(outcome.split("/")) - {"loaded", "FormatError", "UnsupportedError", "ShapeError"}
            if not good or seconds > SECONDS or peak > BYTES * len(data) + BYTES_MORE:
                kept = Path(f"failed_{seed}_{k}{suffix}").resolve()
                kept.write_bytes(data)
                raise AssertionError(f"--seed {seed}, mutant {k}: {outcome}, {seconds:.2f} s, {peak} bytes; see {kept}")
            key = f"{suffix} {outcome}"
            outcomes[key] = outcomes.get(key, 0) + 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description="Load mutated model files of every format.")
    parser.add_argument("--count", type=int, default=1000, help="number of mutants (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--only", default="", help="suffix of the files to mutate, as in .pt (default all)")
    options = parser.parse_args()
    for outcome, count in sorted(run(options.count, options.seed, options.only).items()):
        print(f"{count:8d}  {outcome}")


if __name__ == "__main__":
    main()
