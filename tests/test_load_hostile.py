"""Hostile, damaged and oversized files: an error that says what is wrong, nothing run, little memory, little time."""

import gc
import os
import time
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import fuzz_loaders
import hostile_native
import hostile_torch
import make_hostile
import pytest
from cases import layer_nodes
from fuzz_corpus import corpus
from scripts import run

from fastrnn.errors import FastrnnError, FormatError
from fastrnn.loaders import load_spec, load_tensors

ATTACKS = make_hostile.attacks()
SECONDS = 5  # of the processor; the largest take a fraction of it


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
    start = time.process_time()
    with pytest.raises(FastrnnError, match=f"(?s){attack.error}") as error:
        load_spec(path)
    assert time.process_time() - start < SECONDS
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
    """load_layers and load_tensors refuse what load_spec refuses."""
    attack = next(a for a in ATTACKS if a.name == name)
    path = tmp_path / name
    path.write_bytes(attack.data)
    with pytest.raises(FastrnnError, match=attack.error):
        load_tensors(path)
    with pytest.raises(FastrnnError, match=attack.error):
        layer_nodes(path, ["a"])


def test_good_files_are_read(tmp_path):
    """The files that the attacks change are fine themselves."""
    for name, data in (
        ("a.pt", hostile_torch.GOOD_PT),
        ("a.safetensors", make_hostile.one()),
        ("a.frnn", hostile_native.frnn()),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert load_tensors(path)
    assert load_spec(tmp_path / "a.pt").nodes[0].op == "lstm"


WATCH = """
import os, sys
sys.path.insert(0, sys.argv[1])
os.environ["KERAS_BACKEND"] = "torch"
from pathlib import Path
from fuzz_loaders import OPENED, load
from fuzz_corpus import corpus
for seed in corpus():
    for name, data in {seed.name: seed.data, **seed.beside}.items():
        Path(name).write_bytes(data)
    load(Path(seed.name).resolve(), seed)  # imports what it needs
    with OPENED.watched() as opened:
        load(Path(seed.name).resolve(), seed)
    print(seed.name, *sorted({os.path.relpath(path) for path in opened}))
"""


def test_no_other_file_is_opened(tmp_path):
    """Seen by the interpreter's own hook in a process that loads each format; external data are beside a model."""
    found = run(WATCH, Path(fuzz_loaders.__file__).parent, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    opened = dict(line.split(" ", 1) for line in found.stdout.splitlines())
    beside = {"external.onnx": ". external.onnx weights.bin"}
    assert opened == {name: beside.get(name, name) for name in opened}
    assert {"lstm.frnn", "lstm.safetensors", "script.jit"} <= set(opened)


def test_a_symbolic_link_in_an_archive_is_only_bytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as target, zipfile.ZipFile(BytesIO(hostile_torch.GOOD_PT)) as source:
        for member in source.infolist():
            data = source.read(member)
            member.external_attr = 0o120777 << 16  # what a link has, to a path that its data hold
            target.writestr(member, data)
    assert set(load_tensors(tmp_path / "a.pt")) == {"weight_ih_l0", "weight_hh_l0"}


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
    seeds = corpus()
    fuzz_loaders.check_seeds(seeds)
    outcomes = fuzz_loaders.run(seeds, count=800)
    assert not outcomes.failures, outcomes.report()
