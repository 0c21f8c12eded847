"""The C library by itself: the same bits on ARM as on x86, and nothing that the sanitizers find.

ARM programs are cross-built and run by an emulator; without the tools (Debian: gcc-aarch64-linux-gnu, qemu-user) the
tests skip and say so.
"""

import os
import subprocess

import pytest
import ulp_sweep
from c_objects import isa_flags
from clibrary import find, program
from ulp_sweep import ELEMENTWISE, measure

WHAT = {"layers": "bits", "calls": "bits", "rows": "bits", "elements": "steps", "program": "steps"}
"""What can be compared, and the program of tests/c that prints it."""
TUNED = next((name for name in isa_flags() if name != "generic"), "generic")
"""Instrumented by the sanitizers; one table stands for all, as all are made from the same source."""


def output(*command, env=None, timeout=300):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout, env=os.environ | (env or {})
    )
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-8000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The command that runs a program on this machine, by its name."""
    folder = tmp_path_factory.mktemp("native")
    return lambda name: (program(folder, find("gcc"), (TUNED,), name=name),)


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory):
    """The command that runs a program on ARM, by its name."""
    emulator, compiler = find("qemu-aarch64"), find("aarch64-linux-gnu-gcc")
    folder, flags = tmp_path_factory.mktemp("arm"), ("-O3", "-static")
    return lambda name: (emulator, program(folder, compiler, ("neon",), *flags, name=name, machine="aarch64"))


def assert_same_lines(ours, theirs, names):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if a != b:
            words = [k for k, (p, q) in enumerate(zip(a.split(), b.split(), strict=False)) if p != q]
            raise AssertionError(
                f"{names}: {len(words)} results differ in {a.partition(':')[0]!r}, the first at word {words[0]}"
            )


@pytest.mark.parametrize("what", WHAT)
def test_all_instruction_sets_of_this_machine_give_the_same_bits(native, what):
    command = native(WHAT[what])
    tuned = [name for name in output(*command, "isas").split() if name != "generic"]
    if len(tuned) < 2:
        pytest.skip(f"this machine has {', '.join(tuned) or 'no tuned kernels'} only")
    first, *rest = [output(*command, what, name).splitlines() for name in tuned]
    for name, lines in zip(tuned[1:], rest, strict=True):
        assert_same_lines(first, lines, (tuned[0], name))


@pytest.mark.parametrize("what", WHAT)
def test_neon_gives_the_same_bits(native, on_arm, what):
    command = native(WHAT[what])
    tuned = [name for name in output(*command, "isas").split() if name != "generic"]
    if not tuned:
        pytest.skip("this machine has no tuned kernels to compare with")
    ours = output(*command, what, tuned[0]).splitlines()
    assert len(ours) >= 20
    assert_same_lines(ours, output(*on_arm(WHAT[what]), what, "neon").splitlines(), (tuned[0], "neon"))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_neon_gives_the_same_bits_of_activations(on_arm, tmp_path, name):
    ours, theirs = (measure(command, name, 65537) for command in (ulp_sweep.native(tmp_path), on_arm("ulp")))
    for isa, worst in theirs.items():
        worst.assert_within_bounds(name, isa)
    assert {worst.checksum for isa, worst in ours.items() if isa != "generic"} <= {theirs["neon"].checksum}


def test_every_case_is_a_real_one(native):
    """Not all zeros, not all alike: a comparison of nothing would pass."""
    name = output(*native("bits"), "isas").split()[0]
    lines = output(*native("bits"), "layers", name).splitlines()
    values = [set(line.partition(":")[2].split()) - {"y", "h", "c", "0"} for line in lines]
    assert len(lines) > 200
    assert all(values)
    assert sum(len(v) for v in values) > 50_000
    for what in set(WHAT) - {"layers"}:
        generic = output(*native(WHAT[what]), what, "generic").splitlines()
        tuned = output(*native(WHAT[what]), what, name).splitlines()
        assert name == "generic" or generic != tuned, "hashes see no difference"


def runs_here(native):
    if TUNED not in output(*native("bits"), "isas").split():
        pytest.skip(f"this machine has no {TUNED}")


def test_undefined_behaviour(native, tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer over everything that the programs do."""
    runs_here(native)
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    programs = {name: program(tmp_path, find("gcc"), (TUNED,), *flags, name=name) for name in ("bits", "steps", "ulp")}
    for what, name in (*WHAT.items(), ("threads", "bits")):
        output(programs[name], what, TUNED, env={"UBSAN_OPTIONS": "print_stacktrace=1"})
    for name in ELEMENTWISE:
        measure([programs["ulp"]], name, 1 << 17)


def test_data_races(native, tmp_path):
    """ThreadSanitizer over every split, several callers at once and calls that are stopped (POSIX threads)."""
    runs_here(native)
    bits = program(tmp_path, find("gcc"), (TUNED,), "-O1", "-g", "-fsanitize=thread")
    fixed = subprocess.run([find("setarch"), "-R", "true"], capture_output=True).returncode == 0
    unrandomised = [find("setarch"), "-R"] if fixed else []  # its shadow memory does not bear every layout
    output(*unrandomised, bits, "threads", TUNED)
