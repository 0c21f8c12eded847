"""Hostile, damaged and oversized files: an error that says what is wrong, nothing run, little memory, little time."""

import gc
import os
import time
import tracemalloc
from pathlib import Path

import fuzz_loaders
import hostile_torch
import make_hostile
import pytest

from fastrnn.errors import FastrnnError, FormatError
from fastrnn.loaders import load_layer_nodes, load_spec, load_tensors

ATTACKS = make_hostile.attacks()
SECONDS = 5  # the largest take a fraction of it on a quiet machine


@pytest.fixture(scope="module", autouse=True)
def canary(tmp_path_factory):
    """Run in an empty folder, and look whether an attack left its mark there."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("canary")
    os.chdir(folder)
    yield
    os.chdir(before)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_attack(attack, tmp_path):
    path = tmp_path / attack.name
    path.write_bytes(attack.data)
    start = time.perf_counter()
    with pytest.raises(FastrnnError, match=f"(?s){attack.error}") as error:
        load_spec(path)
    assert time.perf_counter() - start < SECONDS
    message = str(error.value)
    assert attack.name in message
    assert len(message) < 6000
    assert ";" in message, "no hint of what to do"
    assert message.encode()  # can be printed


@pytest.mark.parametrize("attack", [a for a in ATTACKS if len(a.data) > 10_000], ids=lambda a: a.name)
def test_memory_is_bounded_by_the_file(attack, tmp_path):
    path = tmp_path / attack.name
    path.write_bytes(attack.data)
    gc.collect()
    tracemalloc.start()
    try:
        with pytest.raises(FastrnnError):
            load_tensors(path) and load_spec(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(attack.data) + (4 << 20)


@pytest.mark.parametrize("name", ["pickle_system.pt", "pickle_laughs.pt", "storage_size_wraps.pt", "frnn_cycle.frnn"])
def test_other_entrances(name, tmp_path):
    """load_layer_nodes and load_tensors refuse what load_spec refuses."""
    attack = next(a for a in ATTACKS if a.name == name)
    path = tmp_path / name
    path.write_bytes(attack.data)
    with pytest.raises(FastrnnError, match=attack.error):
        load_tensors(path)
    with pytest.raises(FastrnnError, match=attack.error):
        load_layer_nodes(path, ["a"])


def test_good_files_are_read(tmp_path):
    """The files that the attacks change are fine themselves."""
    for name, data in (
        ("a.pt", hostile_torch.GOOD_PT),
        ("a.safetensors", make_hostile.one()),
        ("a.frnn", make_hostile.frnn()),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert load_tensors(path)
    assert load_spec(tmp_path / "a.pt").nodes[0].op == "lstm"


def test_things_that_are_not_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="current folder"):
        load_spec(tmp_path / "absent.pt")
    with pytest.raises(FormatError, match="is a directory"):
        load_spec(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FormatError, match="not a regular file"):
        load_spec(tmp_path / "pipe.pt")
    with pytest.raises(FormatError, match="not a path"):
        load_spec("a\0b.pt")


def test_fuzz():
    fuzz_loaders.run(count=300, seed=0)
