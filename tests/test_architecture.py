"""The tree is the architecture: who may import whom, what C may know, and what a kernel file may export."""

import ast
import graphlib
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from c_objects import SOURCES, compiled, isa_flags
from clibrary import find, kernel_object
from scripts import ROOT, check

PACKAGE = ROOT / "fastrnn"

LADDER = (
    {"errors", "run_limits", "attributes"},
    {"arguments", "file_writer", "lazy_array", "weight_shapes", "_core", "_blas"},
    {"float_mode"},
    {"spec", "arrays", "array_files"},
    {"onnx_operator_work"},
    {"onnx_operator", "fingerprint"},
    {"operators"},
    {"operator_sizes"},
    {"graph"},
    {"runtime", "reference", "sequences"},
    {"inspect", "tolerance"},
    {"loaders"},
    {"streams"},
    {"layer_store", "model_store"},
    {"layers"},
    {"recurrent"},
    {"cells", "engine"},
    {"explain"},
    {"model"},
    {"batcher_answers", "batcher_stats"},
    {"batcher_queue"},
    {"scheduler"},
    {"batcher"},
    {"verify_against"},
    {"verify"},
    {"fastrnn"},
    {"cli_run", "cli_inspect", "cli_bench", "doctor"},
    {"cli_convert"},
    {"cli"},
    {"__main__"},
)
"""Lowest first; a module imports from the rungs below it.  ``fastrnn`` is the package's own __init__."""

APART = {
    "loaders": {
        "arrays",
        "_core",
        "_blas",
        "runtime",
        "layers",
        "recurrent",
        "cells",
        "model",
    },  # they know formats, never handles
    "layers": {"loaders"},  # they know shapes, never files
    "recurrent": {"loaders"},
    "cells": {"loaders"},
}


def name_of(path: Path) -> tuple[str, ...]:
    """A module's name within the package, as parts; () is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {name_of(path): path for suffix in (".py", ".pyx") for path in PACKAGE.rglob(f"*{suffix}")}


def imports(name: tuple[str, ...], only_at_top: bool = False) -> set[tuple[str, ...]]:
    """Modules of the package that a module imports, wherever in it."""
    path = MODULES[name]
    if path.suffix == ".pyx":  # not Python: its imports are lines
        found = re.findall(r"^from \. c?import (\w+)|^from \.(\w+) c?import", path.read_text(), re.M)
        return {(a or b,) for a, b in found} & MODULES.keys()
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name[:-1]
    found = set()
    for node in tree.body if only_at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            absolute = [tuple(alias.name.split(".")) for alias in node.names]
            found |= {module[1:] for module in absolute if module[0] == "fastrnn"}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            if not node.level:
                if module[0] != "fastrnn":
                    continue
                module = module[1:]
            for alias in node.names:
                full = (*base, *module, alias.name)
                found.add(full if full in MODULES else full[:-1])
    return found - {name}


def rung(name: tuple[str, ...]) -> int:
    own = name[0] if name else "fastrnn"
    rungs = [k for k, modules in enumerate(LADDER) if own in modules]
    assert rungs, f"{own} stands on no rung of LADDER: give it one"
    return rungs[0]


def unit(name: tuple[str, ...]) -> str:
    return name[0] if name else "fastrnn"


def dotted(name: tuple[str, ...]) -> str:
    return ".".join(("fastrnn", *name))


def test_imports_go_down():
    wrong = [
        f"{dotted(name)} imports {dotted(other)}"
        for name in MODULES
        for other in imports(name)
        if unit(name) != unit(other) and rung(other) >= rung(name)
    ]
    assert not wrong


def test_every_rung_is_in_use():
    assert {unit(name) for name in MODULES} == set().union(*LADDER)


@pytest.mark.parametrize("who", APART)
def test_formats_handles_and_files_are_apart(who):
    wrong = [
        f"{dotted(name)} imports {dotted(other)}"
        for name in MODULES
        if unit(name) == who
        for other in imports(name)
        if unit(other) in APART[who]
    ]
    assert not wrong


def test_no_module_needs_itself():
    graph = {name: imports(name, only_at_top=True) for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_the_test_sees_imports():
    assert {("spec",), ("errors",)} <= imports(("loaders", "native"))
    assert ("_core",) in imports(("layers",))
    assert ("loaders",) in imports(("model",))


def test_importing_the_package_imports_nothing_optional():
    code = "import sys; import fastrnn; print(*sorted({'.'.join(name.split('.')[:2]) for name in sys.modules}))"
    loaded = set(check(code).split())
    optional = {
        "torch",
        "keras",
        "tensorflow",
        "h5py",
        "onnx",
        "onnxruntime",
        "safetensors",
        "pandas",
        "scipy",
        "scipy.linalg",
        "fastrnn._blas",
    }
    assert "numpy" in loaded
    assert not loaded & optional


def public(names) -> set[str]:
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", ["_core", "_blas"])
def test_stubs_name_what_the_compiled_modules_have(name):
    module = pytest.importorskip(f"fastrnn.{name}")
    known = {node.name: node for node in ast.parse((PACKAGE / f"{name}.pyi").read_text()).body if hasattr(node, "name")}
    compiled_names = {
        key for key in public(vars(module)) if getattr(vars(module)[key], "__module__", None) == module.__name__
    }
    assert public(known) == compiled_names
    for key in compiled_names:
        if isinstance(known[key], ast.ClassDef):
            own = {n.name if hasattr(n, "name") else n.target.id for n in known[key].body}
            assert public(own) == public(vars(getattr(module, key))), key


# ---- C ----

C_FILES = sorted(SOURCES.rglob("*.[ch]"))


def code_of(path: Path) -> str:
    """C without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)


def test_c_knows_no_python():
    assert len(C_FILES) > 20
    assert [path.name for path in C_FILES if re.search(r"\bPython\.h|\bPy[A-Z_]\w+|numpy/", code_of(path))] == []


def test_only_one_file_calls_blas():
    callers = [path.name for path in C_FILES if path.suffix == ".c" and re.search(r"gemm|gemv|cblas", code_of(path))]
    assert callers == ["blas.c"]


def test_the_library_neither_prints_nor_aborts_nor_reads_the_environment():
    forbidden = r"\b(printf|fprintf|puts|perror|abort|exit|getenv|setenv|signal|sigaction)\s*\("
    assert [(path.name, match[1]) for path in C_FILES for match in re.finditer(forbidden, code_of(path))] == []


def exported(symbols_of: Path) -> set[str]:
    lines = subprocess.run(
        [find("nm"), "--defined-only", "--extern-only", str(symbols_of)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1] for line in lines.splitlines()}


@pytest.mark.parametrize("isa", isa_flags())
def test_kernels_export_their_table_and_nothing_else(isa):
    """Anything shared would let the linker put one instruction set's code where another's belongs."""
    assert exported(kernel_object(find("gcc"), isa)) == {f"frnn_kernels_{isa}"}


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.c")), ids=lambda path: path.name)
def test_names_of_the_library_begin_with_its_prefix(source):
    assert {name for name in exported(compiled(find("gcc"), source, "-O0")) if not name.startswith("frnn_")} == set()


# ---- Files ----


WRITTEN = (".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".md")


def test_file_names_are_unique():
    folders = ("fastrnn", "src_c", "tests", "bench", "docs", "examples")
    written = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in WRITTEN]
    assert len(written) > 200
    names = Counter(path.name for path in written if path.name not in ("__init__.py", "README.md"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_a_name_of_a_module_is_set_once(path):
    """The second of two limits of one name would silently replace the first."""
    targets = [
        target.id
        for statement in ast.parse(path.read_text()).body
        for target in (statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)])
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name)
    ]
    assert [name for name, count in Counter(targets).items() if count > 1] == []
