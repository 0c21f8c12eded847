"""The compiled parts: one C library per instruction set, the rest of the C library, and two thin extensions.

Switches, from the environment: FASTRNN_SANITIZE=address,undefined  FASTRNN_OPENMP=0  FASTRNN_NATIVE=1
"""

import hashlib
import os
import platform
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ISA_FLAGS = {
    "x86_64": {
        "generic": [],
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"],
    },
    "aarch64": {"generic": [], "neon": []},
}
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
HEADERS = sorted(map(str, Path("src_c").rglob("*.h")))
SOURCES = sorted(map(str, Path("src_c").glob("*.c")))
KERNELS = sorted(map(str, Path("src_c/kernels").glob("*.c")))

# No -ffast-math: it would change results, and at link time the floating-point mode of the whole process.
# Python's own flags have -fwrapv, which costs the kernels an eighth of their speed.
CFLAGS = [
    "-std=gnu11",
    "-O3",
    "-fno-wrapv",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]
LDFLAGS = ["-pthread"]
if os.environ.get("FASTRNN_NATIVE") == "1":
    CFLAGS.append("-mtune=native")
if sanitize := os.environ.get("FASTRNN_SANITIZE"):
    CFLAGS += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-g", "-O1"]
    LDFLAGS.append(f"-fsanitize={sanitize}")
OPENMP = [] if os.environ.get("FASTRNN_OPENMP") == "0" else ["-fopenmp"]


def c_library(name, sources, flags=()):
    return name, {
        "sources": sources,
        "include_dirs": ["src_c"],
        "obj_deps": {"": HEADERS},
        "cflags": [*CFLAGS, *flags],
    }


class BuildExt(build_ext):
    """Build the C libraries first, so that `build_ext --inplace` and editable installs work on their own."""

    def run(self):
        self.run_command("build_clib")
        super().run()


kernels = [
    c_library(f"frnn_kernels_{isa}", [f"src_c/kernels/kernels_{isa}.c"], flags)
    for isa, flags in ISA_FLAGS.get(MACHINE, {"generic": []}).items()
]
core = c_library("frnn", SOURCES, OPENMP)
libraries = [core, *kernels]


def extension(name, libraries=()):
    return Extension(
        f"fastrnn.{name}",
        [f"fastrnn/{name}.pyx"],
        include_dirs=["src_c", numpy.get_include()],
        libraries=list(libraries),
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=["-O2", "-fvisibility=hidden", *[f for f in CFLAGS if "sanitize" in f]],
        extra_link_args=LDFLAGS + OPENMP,
        depends=HEADERS + SOURCES + KERNELS + ["fastrnn/_c_api.pxd"],
    )


# Objects of one set of flags must not be linked into a build of another.
FLAVOUR = hashlib.sha256(repr((CFLAGS, LDFLAGS, OPENMP)).encode()).hexdigest()[:8]

setup(
    options={"build": {"build_temp": f"build/temp.{FLAVOUR}", "build_lib": f"build/lib.{FLAVOUR}"}},
    libraries=libraries,
    ext_modules=[extension("_core", [name for name, _ in libraries]), extension("_blas")],
    cmdclass={"build_ext": BuildExt},
)
