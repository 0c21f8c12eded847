"""Process-wide choices: instruction set, threads, backend.

Read from the environment at import: ``FASTRNN_ISA``, ``FASTRNN_NUM_THREADS``, ``FASTRNN_TEAM``.
"""

from __future__ import annotations

import functools
import math
import os
import platform
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from . import _core
from .arguments import described, near
from .errors import ArgumentError, UnsupportedError

BACKENDS = ("packed", "blas")

MAX_THREADS = 128
"""Of a call: the largest team (``src_c/team.h``)."""


def _choose_isa(name: str, source: str) -> None:
    if not isinstance(name, str) or not _core.set_isa(name):
        raise UnsupportedError(
            f"{source} asks for the instruction set {name!r}, which this machine or build does not have; "
            f"available: {', '.join(_core.isas())}"
        )


def set_isa(name: str) -> None:
    """Choose the instruction set of layers built from now on.

    Parameters
    ----------
    name : str
        One of ``fastrnn.info()["isas"]``.

    Raises
    ------
    UnsupportedError
        The name is unknown, or this machine cannot run it.
    """
    _choose_isa(name, "set_isa")


def _choose_team(name: str, source: str) -> None:
    if not isinstance(name, str) or not _core.set_team(name):
        raise UnsupportedError(
            f"{source} asks for the thread backend {name!r}, which is unknown; available: {', '.join(_core.teams())}"
        )


def set_team(name: str) -> None:
    """Choose the thread backend of all later calls: ``"posix"`` or ``"openmp"``.

    Raises
    ------
    UnsupportedError
        The name is not one of ``fastrnn.info()["teams"]``.
    """
    _choose_team(name, "set_team")


def _quota(group: Path) -> float:
    """CPUs that one control group grants (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``); infinity where it sets no limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # not there; "max"
            continue
    return math.inf


def cgroup_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float | None:
    """CPUs that the control groups of this process grant, or None where they set no limit.

    The smallest quota counts, from the process's own group up to the root.  ``own`` has a line for each hierarchy,
    ``0::/path`` in v2 and ``4:cpu,cpuacct:/path`` in v1; in a container the path may be one that only its host sees.
    """
    mounts = {"": Path(root), "cpu": Path(root, "cpu")}
    groups = set(mounts.values())
    try:
        lines = os.fsdecode(Path(own).read_bytes()).split("\n")
    except OSError:
        lines = []
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        for mount in (mounts[name] for name in controllers.split(",") if name in mounts):
            inside = PurePosixPath(path.lstrip("/"))
            groups |= {mount / group for group in (inside, *inside.parents)}
    quota = min(map(_quota, groups))
    return None if quota == math.inf else quota


def affinity() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def default_threads() -> int:
    """min(affinity, control-group quota), at least 1.  The quota is rounded down: beyond it threads are throttled."""
    quota = cgroup_quota()
    return max(1, min(MAX_THREADS, affinity(), affinity() if quota is None else int(quota)))


_num_threads: int | None = None


def check_threads(n: Any, source: str) -> int:
    """A number of threads as an integer, at most ``MAX_THREADS``."""
    try:
        count = int(n)
    except (TypeError, ValueError, OverflowError):
        count = 0
    if count < 1 or (isinstance(n, float) and n != count):
        raise ArgumentError(f"{source} must be a whole number of at least 1, got {described(n)}")
    return min(count, MAX_THREADS)


def set_num_threads(n: int | None) -> None:
    """Set the number of threads of the next calls; None goes back to the default.

    The default is the smaller of the CPU affinity and the control group's quota; a number given here is honoured,
    up to ``MAX_THREADS``.  Small calls use one thread all the same.
    """
    global _num_threads
    _num_threads = None if n is None else check_threads(n, "the number of threads")


def get_num_threads() -> int:
    """The number of threads that the next call may use."""
    return _num_threads or default_threads()


@functools.cache
def _blas_problem() -> str | None:
    """Load SciPy's BLAS; why it cannot be had, or None."""
    try:
        from . import _blas
    except Exception as error:  # an ABI mismatch comes as TypeError or ImportError, a broken SciPy as anything
        return f"{type(error).__name__}: {error}"
    _core.set_blas(_blas.sgemm_address())
    return None


def choose_backend(name: str | None) -> str:
    """The backend of a new layer: the one asked for; by default ``"packed"``, whose bits depend on no batch.

    Raises
    ------
    UnsupportedError
        ``"blas"`` is asked for and SciPy's BLAS cannot be loaded, or the name is unknown.
    """
    if name is None:
        return BACKENDS[0]
    if not isinstance(name, str) or name not in BACKENDS:
        raise UnsupportedError(f"unknown backend {described(name)}; known: {', '.join(BACKENDS)}{near(name, BACKENDS)}")
    if name == "blas" and (problem := _blas_problem()):
        raise UnsupportedError(
            f'backend="blas" needs SciPy\'s BLAS, which could not be loaded ({problem}); '
            'reinstall fastrnn with the installed SciPy, or use backend="packed"'
        )
    return name


@functools.cache
def version() -> str:
    """Version of the installed package."""
    return metadata.version("fastrnn")


def info() -> dict[str, Any]:
    """What this build and this process run on.

    Returns
    -------
    dict
        ``version``; ``isa`` and ``isas`` (best first); ``threads``, ``thread_limits``; ``team`` and ``teams``;
        ``backend`` (of new layers); ``blas`` (None: not loaded yet); ``openmp`` (built in); ``machine``, ``python``.
    """
    blas = None
    if _blas_problem.cache_info().currsize:
        problem = _blas_problem()
        blas = f"unavailable: {problem}" if problem else f"scipy {metadata.version('scipy')}"
    return {
        "version": version(),
        "isa": _core.isa(),
        "isas": _core.isas(),
        "threads": get_num_threads(),
        "thread_limits": {
            "affinity": affinity(),
            "cgroup_quota": cgroup_quota(),
            "env": os.environ.get("FASTRNN_NUM_THREADS"),
            "set": _num_threads,
        },
        "team": _core.team(),
        "teams": _core.teams(),
        "backend": choose_backend(None),
        "blas": blas,
        "openmp": "openmp" in _core.teams(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _read_environment() -> None:
    if name := os.environ.get("FASTRNN_ISA"):
        _choose_isa(name, "FASTRNN_ISA")
    if name := os.environ.get("FASTRNN_TEAM"):
        _choose_team(name, "FASTRNN_TEAM")
    if count := os.environ.get("FASTRNN_NUM_THREADS"):
        set_num_threads(check_threads(count, "FASTRNN_NUM_THREADS"))


_read_environment()
