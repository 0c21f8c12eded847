"""What a user installs: the source archive, the wheel made from it, and what the compiled modules ask of a process."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from c_objects import isa_flags
from clibrary import find
from scripts import ROOT, check, environment

import fastrnn

VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M).group(1)

LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "build", "dist", "*.egg-info", "*.so", "*.o", "*.a", "_core.c", "_blas.c", "out",
)  # fmt: skip


def build(folder: Path, hook: str, target: Path) -> Path:
    """Call a hook of the build backend, as pip does, with what is installed here; the file that it made."""
    code = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, hook, str(target)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"CC": "gcc"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source archive, made from a copy of the tree without anything that was built in it."""
    for package in ("setuptools", "Cython"):
        pytest.importorskip(package)
    find("gcc")
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    return build(folder / "tree", "build_sdist", folder)


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """A folder with the package as pip installs it, built from the source archive: the one long build here."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # older patch releases of Python have none
        archive.extractall(folder)
    wheel = build(folder / sdist.name.removesuffix(".tar.gz"), "build_wheel", folder)
    assert sys.implementation.cache_tag.replace("cpython-", "cp") in wheel.name
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    if subprocess.run([*command[:3], "--version"], capture_output=True).returncode:
        shutil.unpack_archive(wheel, folder / "site", "zip")
    else:
        subprocess.run(command, check=True)
    return folder / "site"


def test_the_source_archive_has_what_a_build_and_a_test_need(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [path.relative_to(ROOT).as_posix() for path in (ROOT / "src_c").rglob("*.[ch]")]
    wanted += [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fastrnn").rglob("*.py*")
        if path.suffix in (".py", ".pyx", ".pyi")
    ]
    wanted += ["fastrnn/_c_api.pxd", "fastrnn/py.typed", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    wanted += ["tests/conftest.py", "tests/test_package.py", "tests/c/bits.c", "tests/c/bits.h"]
    assert sorted(set(wanted) - names) == []
    assert [name for name in names if name.endswith((".so", ".o", ".a", ".pyc"))] == []
    assert [name for name in names if name in ("fastrnn/_core.c", "fastrnn/_blas.c")] == [], "generated sources"


RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import fastrnn
assert fastrnn.__file__.startswith(sys.argv[1]), fastrnn.__file__
assert fastrnn._core.__file__.startswith(sys.argv[1]), fastrnn._core.__file__
assert fastrnn.__version__ == sys.argv[2]
rng = np.random.default_rng(0)
w_ih, w_hh, x = rng.standard_normal((32, 4)), rng.standard_normal((32, 8)), rng.standard_normal((2, 5, 4))
for name in fastrnn.info()["isas"]:
    fastrnn.set_isa(name)
    for backend in ("packed", "blas"):
        y, (h, c) = fastrnn.LSTM(w_ih, w_hh, backend=backend)(x)
        assert np.allclose(y[:, -1], h[0])
        assert np.abs(y).max() > 0.01
print(*fastrnn.info()["isas"])
"""


def test_the_wheel_runs_from_anywhere(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(installed), VERSION],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == fastrnn.info()["isas"]


def test_the_wheel_holds_the_package_and_nothing_else(installed):
    names = {
        path.relative_to(installed).as_posix()
        for path in installed.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = {name for name in names if name.startswith("fastrnn/")}
    others = {name for name in names - package if not name.startswith(("fastrnn-", "bin/"))}
    assert not others
    assert {"fastrnn/py.typed", "fastrnn/_core.pyi", "fastrnn/_blas.pyi", "fastrnn/loaders/__init__.py"} <= package
    assert {Path(name).suffix for name in package} <= {".py", ".pyi", ".so", ".typed", ".pyx", ".pxd"}
    entry = next(installed.glob("fastrnn-*.dist-info/entry_points.txt")).read_text()
    assert "fastrnn = fastrnn.cli:main" in entry
    assert list(installed.glob("fastrnn-*.dist-info/licenses/LICENSE"))


@pytest.fixture(params=["_core", "_blas"])
def module(request, installed):
    """A compiled module of the wheel."""
    return next((installed / "fastrnn").glob(f"{request.param}.*.so"))


def lines(*command):
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_module_exports_its_init_function_only(module):
    symbols = [line.split() for line in lines(find("nm"), "-D", "--defined-only", module)]
    assert [words[-1] for words in symbols] == [f"PyInit_{module.name.partition('.')[0]}"]


def test_a_module_needs_no_library_but_the_system_s(module):
    needed = {
        match[1] for line in lines(find("readelf"), "-d", module) if (match := re.search(r"NEEDED.*\[(.+)\]", line))
    }
    assert {re.sub(r"\.so.*", "", name) for name in needed} <= {
        "libc",
        "libm",
        "libpthread",
        "libgomp",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }


def test_loading_a_module_leaves_the_floating_point_mode_alone(module):
    """-ffast-math and -Ofast link crtfastmath.o, whose constructor flushes denormals in the whole process."""
    symbols = {line.split()[-1] for line in lines(find("nm"), module)}
    assert f"PyInit_{module.name.partition('.')[0]}" in symbols, "the module is stripped: nothing can be told"
    assert "set_fast_math" not in symbols
    check(
        "import numpy as np; import fastrnn; from fastrnn import _blas; assert np.float32(1e-40) * np.float32(0.5) > 0"
    )


def test_no_flag_ties_the_build_to_this_machine_or_relaxes_arithmetic():
    text = (ROOT / "setup.py").read_text()
    flags = re.findall(r"[\"'](-[a-zA-Z][^\"'\s]*)", text)
    assert not [
        flag for flag in flags if re.match(r"-(Ofast|ffast-math|funsafe|fassociative|march=native|mcpu=native)", flag)
    ]
    assert "-ffp-contract=off" in flags


def test_every_table_of_this_machine_is_in_the_build():
    built = set(isa_flags())
    assert set(fastrnn.info()["isas"]) <= built
    assert "neon" in built or platform.machine() != "aarch64"


def test_the_version_stands_in_one_place():
    assert fastrnn.__version__ == metadata.version("fastrnn") == fastrnn.info()["version"] == VERSION
    shown = subprocess.run(
        [sys.executable, "-m", "fastrnn", "--version"], capture_output=True, text=True, env=environment()
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == ["fastrnn", VERSION]
    literal = re.compile(rf"[\"']{re.escape(VERSION)}[\"']")
    sources = [
        ROOT / "setup.py",
        *(ROOT / "fastrnn").rglob("*.py"),
        *(ROOT / "fastrnn").rglob("*.pyx"),
        *(ROOT / "src_c").rglob("*.[ch]"),
    ]
    assert [path.name for path in sources if literal.search(path.read_text())] == []
