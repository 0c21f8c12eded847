"""Files are written whole or not at all, and only where a regular file is or will be."""

import errno
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import ROOT, environment

import fastrnn
from fastrnn import cli, errors
from fastrnn.file_writer import write_file
from fastrnn.loaders.safetensors import save_tensors

OLD, NEW = b"old" * 1000, b"new" * 3000


def write(path, data=NEW):
    write_file(path, lambda file: file.write(data))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(OLD)
    return path


def layer():
    return fastrnn.RNN(np.eye(2), np.zeros((2, 2)))


def save_layer(path):
    fastrnn.save(layer(), path)


def command(*args):
    """A command that must do as it is told, or raise what stopped it."""
    parsed = cli._parser().parse_args(list(map(str, args)))
    parsed.command(parsed)


def convert(path):
    save_layer(path.parent / "source.frnn")
    command("convert", path.parent / "source.frnn", "-o", path, "--force")


def run(path):
    fastrnn.save(fastrnn.Sequential(fastrnn.Dense(np.eye(2))), path.parent / "source.frnn")
    np.save(path.parent / "x.npy", np.ones((3, 2), np.float32))
    command("run", path.parent / "source.frnn", "-i", path.parent / "x.npy", "-o", path, "--force")


WRITERS = {
    "save": (save_layer, "m.frnn"),
    "save without a suffix": (save_layer, "m"),
    "save_tensors": (lambda path: save_tensors({"a": np.ones(3)}, path), "t.safetensors"),
    "convert": (convert, "c.frnn"),
    "run, one array": (run, "y.npy"),
    "run, arrays": (run, "y.npz"),
    "run, a table": (run, "y.csv"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["fifo", "socket", "link to a fifo", "directory"])
def test_what_is_no_regular_file_stays(tmp_path, writer, kind, monkeypatch):
    write_it, name = WRITERS[writer]
    path = tmp_path / name
    if kind == "socket":
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    elif kind == "directory":
        path.mkdir()
        (path / "held").touch()
    else:
        os.mkfifo(tmp_path / "pipe" if kind.startswith("link") else path)
        if kind.startswith("link"):
            path.symlink_to("pipe")
    before = path.stat(), path.is_symlink()
    if kind == "directory" and writer.startswith("run"):  # the folder takes the files
        write_it(path)
    else:
        words = {"fifo": "a pipe", "link to a fifo": "a pipe"}.get(kind, f"a {kind}")
        with pytest.raises(errors.FormatError, match=f"{re.escape(name)}' is {words}"):
            write_it(path)
    assert os.path.samestat(path.stat(), before[0])
    assert stat.S_IFMT(path.stat().st_mode) == stat.S_IFMT(before[0].st_mode)
    assert path.is_symlink() == before[1]


def test_only_the_writer_writes():
    """A second way to open a file for writing would be a second set of faults."""
    writing = r"""\.write_(text|bytes)\(|open\([^()]*["'][wxa]b?\+?["']|O_WRONLY|O_RDWR|O_CREAT|\.touch\("""
    found = {
        path.name
        for path in (ROOT / "fastrnn").rglob("*.py*")
        if path.suffix in (".py", ".pyx") and re.search(writing, path.read_text())
    }
    # cli: /dev/null for a closed pipe; foreign: what it tells users to write
    assert found == {"file_writer.py", "cli.py", "foreign.py"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444, 0o755])
def test_mode_stays(old, mode):
    old.chmod(mode)
    if not os.access(old, os.W_OK):
        with pytest.raises(PermissionError, match="write-protected"):
            write(old)
        assert old.read_bytes() == OLD
    else:
        write(old)
        assert old.read_bytes() == NEW
    assert stat.S_IMODE(old.stat().st_mode) == mode


def test_nobody_else_reads_the_new_file_early(old):
    old.chmod(0o600)
    seen = []

    def fill(file):
        seen.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))

    write_file(old, fill)
    assert seen == [0o600]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_usual_mode(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_stays(old):
    os.chown(old, 1234, 2345)
    old.chmod(0o640)
    write(old)
    status = old.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o640)


def test_a_group_that_cannot_be_given_loses_its_rights(old, monkeypatch):
    old.chmod(0o674)
    status = os.stat_result([*old.stat()[:5], os.getgid() + 1, *old.stat()[6:]])
    monkeypatch.setattr("fastrnn.file_writer.check_target", lambda path: (old, status))

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    write(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o644


def test_extended_attributes_stay(old):
    try:
        os.setxattr(old, "user.note", b"kept")
    except (AttributeError, OSError):
        pytest.skip("no extended attributes here")
    write(old)
    assert os.getxattr(old, "user.note") == b"kept"


def test_links(old, tmp_path):
    (tmp_path / "soft").symlink_to("old")
    (tmp_path / "softer").symlink_to("soft")
    os.link(old, tmp_path / "hard")
    write(tmp_path / "softer")
    assert (tmp_path / "soft").is_symlink()
    assert (tmp_path / "softer").is_symlink()
    assert old.read_bytes() == NEW
    assert (tmp_path / "hard").read_bytes() == OLD
    (tmp_path / "dangling").symlink_to("made")
    write(tmp_path / "dangling")
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "made").read_bytes() == NEW
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="circle"):
        write(tmp_path / "circle")
    assert (tmp_path / "circle").is_symlink()


def test_names_in_proc(tmp_path, old):
    """/dev/stdout and the like are names of open files, some of them removed or never named."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w"), pytest.raises(errors.FormatError, match="is a pipe"):
        write(f"/proc/self/fd/{writer}")
    with old.open("r+b") as file:
        write(f"/proc/self/fd/{file.fileno()}")
        assert old.read_bytes() == NEW
        with pytest.raises(errors.FormatError, match="no name any more"):  # what was replaced
            write(f"/proc/self/fd/{file.fileno()}")
    assert names(tmp_path) == ["old"]
    with pytest.raises(OSError, match="/proc/fastrnn"):  # a folder in which nobody makes files
        write("/proc/fastrnn")


def test_names(tmp_path, monkeypatch):
    for name in ("n" * 255, "ü" * 127, "a b\n'c", "-rf", b"bytes"):
        path = tmp_path / os.fsdecode(name)
        write(path if isinstance(name, str) else os.fsencode(path))
        write(path, OLD)
        assert path.read_bytes() == OLD
    with pytest.raises(OSError, match="name too long"):
        write(tmp_path / ("n" * 256))
    monkeypatch.chdir(tmp_path)
    write("relative")
    write("./../" + tmp_path.name + "/relative2")
    assert len(names(tmp_path)) == 7
    for wrong in ("", "relative/", "relative3/", ".", "a\0b", 1, None, 1.5):
        with pytest.raises(errors.FastrnnError):
            write(wrong)
    with pytest.raises(FileNotFoundError, match=r"no such folder.*missing"):
        write("missing/file")
    with pytest.raises(OSError, match="relative"):
        write("relative/file")
    assert len(names(tmp_path)) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError("10 requested and 3 written"), SystemExit])
def test_what_goes_wrong_while_writing(old, error):
    def fill(file):
        file.write(NEW)
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError) as caught:
        write_file(old, fill)
    assert isinstance(error, type) or "3 written; nothing was written" in str(caught.value)
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["old"]


@pytest.mark.parametrize("call", ["write", "open", "fsync", "replace"])
def test_a_full_disk(old, call, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", ".fastrnn-1.tmp" if call == "open" else None)

    if call == "write":
        fill = full
    else:
        fill = lambda file: file.write(NEW)  # noqa: E731
        monkeypatch.setattr(*{"replace": ("pathlib.Path.replace", full)}.get(call, (os, call, full)))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_file(old, fill)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    if call != "open":
        assert str(old) in str(caught.value)
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["old"]


def test_a_limit_of_the_system(old):
    """The kernel itself refuses: a file may not grow beyond RLIMIT_FSIZE."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=f"nothing was written: '{old}'") as caught:
            write_file(old, lambda file: np.save(file, np.ones(10_000)))
        with pytest.raises(OSError, match="nothing was written"):
            write_file(old, lambda file: file.writelines([b"x" * 3000] * 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["old"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(old):
    old.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="nothing was written"):
            write(old)
        assert old.read_bytes() == OLD
    finally:
        old.parent.chmod(0o700)


def process(code, *args):
    command = [sys.executable, "-c", f"import sys\nfrom fastrnn.file_writer import write_file\n{code}", *map(str, args)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )


def test_a_killed_process_leaves_the_old_file(old):
    code = """def fill(file):
        file.write(b"half")
        file.flush()
        print("ready", flush=True)
        sys.stdin.read()
    write_file(sys.argv[1], fill)"""
    for _ in range(2):  # the second finds what the first left
        with process(code.replace("\n    ", "\n"), old) as writer:
            assert writer.stdout.readline() == "ready\n"
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        assert old.read_bytes() == OLD
    assert len(names(old.parent)) == 3
    write(old)
    assert old.read_bytes() == NEW


def test_two_processes_at_once(old):
    """Each reader sees what one of them wrote, whole."""
    code = """for k in range(20):
    write_file(sys.argv[1], lambda file: [file.write(sys.argv[2].encode() * 1000) for _ in range(50)])"""
    writers = [process(code, old, letter) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        data = old.read_bytes()
        assert data in (OLD, b"a" * 50_000, b"b" * 50_000)
        seen.add(data[:1])
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert old.read_bytes()[:1] in (b"a", b"b")
    assert names(old.parent) == ["old"]


OTHERS = (
    ".onnx",
    ".ONNX",
    ".pt",
    ".pth",
    ".keras",
    ".h5",
    ".weights.h5",
    ".safetensors",
    ".npz",
    ".pkl",
    ".ort",
    ".json",
)


@pytest.mark.parametrize("suffix", OTHERS)
def test_names_of_other_formats_are_refused(tmp_path, suffix):
    with pytest.raises(errors.FormatError, match=r"other programs would take for another format.*\.frnn'"):
        fastrnn.save(layer(), tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.frnn", "x.FRNN", "x", "x.v2", "x.frnn.bak"])
def test_other_names_are_fine(tmp_path, name):
    fastrnn.save(layer(), tmp_path / name)
    assert fastrnn.load(tmp_path / name).layers


def test_a_bad_target_is_found_before_the_work(tmp_path, monkeypatch):
    model = fastrnn.Sequential(fastrnn.Dense(np.eye(2)))
    monkeypatch.setattr(fastrnn.Model, "run", lambda *_: pytest.fail("it ran first"))
    with pytest.raises(errors.FormatError):
        fastrnn.save(model, tmp_path / "x.onnx", recorded={"x": np.ones((1, 2))})
    with pytest.raises(errors.FormatError):
        fastrnn.save(model, tmp_path, recorded={"x": np.ones((1, 2))})
