"""What one core of this machine does at best, now: multiply and add in registers, and read from caches and memory.

    python bench/ceilings.py

FMA: GFLOP/s in float32 of each instruction set.  Reads: GB/s of loads, pass after pass over a block that a cache
holds: half of the L1 or L2 cache, four times L2 (but at most half of L3), and twice L3.  A C program is compiled for
it, so figures are left out where there is no C compiler.  On a machine that others use they change within minutes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from c_program import compiler, program
from command import heading, line, parser
from host import cpu_model

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
NO_COMPILER = "No C compiler, so no ceilings of this machine."


def measure(blocks: Iterable[int] = ()) -> tuple[dict[str, float], list[float]]:
    """FMA peak of each instruction set (GFLOP/s), the best first, and read rates of blocks of bytes (GB/s)."""
    command = [str(program("ceilings")), *map(str, blocks)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    words = [line.split() for line in lines]
    return {isa: float(value) for kind, isa, value in words if kind == "fma"}, [
        float(value) for kind, _, value in words if kind == "read"
    ]


def ceilings(levels: Iterable[str] = ("L1", "L2", "L3", "memory")) -> dict[str, dict[str, Any]]:
    """``fma`` by instruction set, ``bytes`` and ``read`` by level; empty where there is no compiler."""
    if compiler() is None:
        return {}
    blocks = {level: size for level, size in level_blocks().items() if level in set(levels)}
    fma, read = measure(blocks.values())
    return {"fma": fma, "bytes": blocks, "read": dict(zip(blocks, read, strict=True))}


def level_blocks() -> dict[str, int]:
    """Bytes to read for each level."""
    size = USUAL | cache_sizes()
    return {
        "L1": size["L1"] // 2,
        "L2": size["L2"] // 2,
        "L3": min(4 * size["L2"], size["L3"] // 2),
        "memory": 2 * size["L3"],
    }


def cache_sizes() -> dict[str, int]:
    """Bytes of the caches for data, as far as the system says."""
    found = {}
    for cache in CACHES.glob("index*"):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = int(size[:-1]) << 10
    return found


def main(argv: list[str] | None = None) -> int:
    parser(__doc__).parse_args(argv)
    found = ceilings()
    if not found:
        print(NO_COMPILER)
        return 1
    print(f"### {cpu_model()}, one core\n\n{heading(['FMA'], ['GFLOP/s'])}")
    for isa, rate in found["fma"].items():
        print(line([isa, f"{rate:.0f}"]))
    print(f"\n{heading(['reads from'], ['KiB', 'GB/s'])}")
    for level, rate in found["read"].items():
        print(line([level, found["bytes"][level] >> 10, f"{rate:.0f}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
