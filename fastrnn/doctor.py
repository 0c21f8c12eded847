"""What this machine and this build offer, and what may go wrong: the text behind ``fastrnn doctor``."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import UnsupportedError

PACKAGES = ("numpy", "scipy", "h5py", "onnx", "torch", "keras", "onnxruntime", "openvino")
OPENMP_LIBRARIES = ("libgomp", "libiomp", "libomp")


def diagnose() -> dict[str, Any]:
    """Gather facts; ``problems`` lists in words what deserves attention."""
    from .runtime import choose_backend, info

    facts = info()
    runtimes = openmp_runtimes()
    try:
        choose_backend("blas")
        blas_problem = None
    except UnsupportedError as error:
        blas_problem = str(error)
    limits = facts["thread_limits"]
    facts |= {
        "cpu": cpu_name(),
        "system": platform.platform(),
        "threads_why": threads_why(limits),
        "blas": {"scipy": version_of("scipy"), "library": scipy_blas(), "problem": blas_problem},
        "openmp": {"built": facts["openmp"], "runtimes": runtimes},
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("FASTRNN_")},
    }
    facts["problems"] = problems(facts)
    return facts


def problems(facts: dict[str, Any]) -> list[str]:
    """What deserves attention in the facts of :func:`diagnose`."""
    found = []
    runtimes, limits = facts["openmp"]["runtimes"], facts["thread_limits"]
    if len(runtimes) > 1:
        found.append(
            f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(runtimes)}): their threads compete; "
            "use one build of each library, or FASTRNN_TEAM=posix"
        )
    if facts["blas"]["problem"]:
        found.append(facts["blas"]["problem"])
    if facts["isa"] == "generic":
        found.append(
            "the portable kernels run, as this CPU has no tuned ones or FASTRNN_ISA=generic; "
            'backend="blas" may be faster, and gives up that bits do not depend on the batch'
        )
    elif facts["isa"] != facts["isas"][0]:
        found.append(f"{facts['isa']} was chosen, though this CPU has {facts['isas'][0]}: unset FASTRNN_ISA")
    if facts["threads"] > limits["affinity"]:
        found.append(f"{facts['threads']} threads share {limits['affinity']} CPUs: lower FASTRNN_NUM_THREADS")
    return found


def threads_why(limits: dict[str, Any]) -> str:
    """The limits on the number of threads, in words.

    >>> threads_why({"affinity": 4, "cgroup_quota": 1.5, "env": None})
    'affinity 4, control-group quota 1.5, FASTRNN_NUM_THREADS not set'
    """
    quota = "none" if limits["cgroup_quota"] is None else f"{limits['cgroup_quota']:g}"
    asked = "not set" if limits["env"] is None else limits["env"]
    return f"affinity {limits['affinity']}, control-group quota {quota}, FASTRNN_NUM_THREADS {asked}"


def openmp_runtimes(maps: str = "/proc/self/maps") -> list[str]:
    """Paths of the OpenMP runtimes that are loaded into a process; none where the system does not tell."""
    try:
        lines = Path(maps).read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    return sorted(path for path in paths if Path(path).name.startswith(OPENMP_LIBRARIES))


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The CPU's name for itself, or its architecture where the system does not tell."""
    with suppress(OSError):
        for line in Path(cpuinfo).read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def scipy_blas() -> str | None:
    """Name and version of the BLAS that SciPy was built with."""
    with suppress(ImportError, KeyError, TypeError):
        import scipy

        blas = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    return None


def version_of(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def as_text(facts: dict[str, Any]) -> str:
    """The facts of :func:`diagnose` as lines for a reader."""
    blas, openmp = facts["blas"], facts["openmp"]
    loaded = ", ".join(openmp["runtimes"]) or "none"
    lines = {
        "fastrnn": f"{facts['version']}, Python {facts['python']}",
        "system": facts["system"],
        "CPU": facts["cpu"],
        "ISA": f"{facts['isa']} (of {', '.join(facts['isas'])})",
        "kernels": f"{facts['backend']}, {facts['isa']}",
        "threads": f"{facts['threads']} ({facts['threads_why']})",
        "team": f"{facts['team']} (of {', '.join(facts['teams'])})",
        "BLAS": f"SciPy {blas['scipy']}, {blas['library']}, {'not usable' if blas['problem'] else 'usable'}",
        "OpenMP": f"{'built in' if openmp['built'] else 'not built in'}, loaded: {loaded}",
        "packages": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "environment": ", ".join(f"{name}={value}" for name, value in facts["environment"].items()) or "no FASTRNN_*",
    }
    width = max(map(len, lines))
    verdict = [f"problem: {problem}" for problem in facts["problems"]] or ["no problems found"]
    return "\n".join([f"{name.ljust(width)}  {value}" for name, value in lines.items()] + verdict)
