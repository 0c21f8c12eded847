"""What a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import fastrnn

PACKAGES = ("fastrnn", "numpy", "torch", "onnxruntime", "openvino")


def cpu_model() -> str:
    """The name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the installed engines."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(threads: int) -> dict[str, object]:
    """Processor, instruction set of fastrnn, threads and versions."""
    return {"cpu": cpu_model(), "isa": fastrnn.info()["isa"], "threads": threads, "versions": versions()}
