"""The C library by itself: the same bits on ARM as on x86, and nothing that the sanitizers find.

ARM programs are cross-built and run by an emulator; without the tools (Debian: gcc-aarch64-linux-gnu, qemu-user) the
tests skip and say so.
"""

import os
import subprocess

import pytest
from clibrary import find, isa_flags, program

# Where flushing to zero comes before rounding, or after it, is printed as 0 by bits.c.
WHAT = ("layers", "functions")
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
    return program(tmp_path_factory.mktemp("native"), find("gcc"), TUNED)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """A command that runs the program on ARM."""
    emulator, compiler = find("qemu-aarch64"), find("aarch64-linux-gnu-gcc")
    return emulator, program(tmp_path_factory.mktemp("arm"), compiler, "neon", "-O3", "-static", machine="aarch64")


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
    tuned = [name for name in output(native, "isas").split() if name != "generic"]
    if len(tuned) < 2:
        pytest.skip(f"this machine has {', '.join(tuned) or 'no tuned kernels'} only")
    first, *rest = [output(native, what, name).splitlines() for name in tuned]
    for name, lines in zip(tuned[1:], rest, strict=True):
        assert_same_lines(first, lines, (tuned[0], name))


@pytest.mark.parametrize("what", WHAT)
def test_neon_gives_the_same_bits(native, arm, what):
    tuned = [name for name in output(native, "isas").split() if name != "generic"]
    if not tuned:
        pytest.skip("this machine has no tuned kernels to compare with")
    ours = output(native, what, tuned[0]).splitlines()
    assert len(ours) > 40
    assert_same_lines(ours, output(*arm, what, "neon").splitlines(), (tuned[0], "neon"))


def test_every_case_is_a_real_one(native):
    """Not all zeros, not all alike: a comparison of nothing would pass."""
    name = output(native, "isas").split()[0]
    lines = output(native, "layers", name).splitlines()
    values = [set(line.partition(":")[2].split()) - {"y", "h", "c", "0"} for line in lines]
    assert len(lines) > 200
    assert all(values)
    assert sum(len(v) for v in values) > 50_000
    generic = output(native, "functions", "generic").splitlines()
    assert name == "generic" or generic != output(native, "functions", name).splitlines(), "hashes see no difference"


def runs_here(native):
    if TUNED not in output(native, "isas").split():
        pytest.skip(f"this machine has no {TUNED}")


def test_undefined_behaviour(native, tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer over everything that bits.c does."""
    runs_here(native)
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    bits = program(tmp_path, find("gcc"), TUNED, *flags)
    for what in (*WHAT, "threads"):
        output(bits, what, TUNED, env={"UBSAN_OPTIONS": "print_stacktrace=1"})


def test_data_races(native, tmp_path):
    """ThreadSanitizer over every split, several callers at once and calls that are stopped (POSIX threads)."""
    runs_here(native)
    bits = program(tmp_path, find("gcc"), TUNED, "-O1", "-g", "-fsanitize=thread")
    fixed = subprocess.run([find("setarch"), "-R", "true"], capture_output=True).returncode == 0
    unrandomised = [find("setarch"), "-R"] if fixed else []  # its shadow memory does not bear every layout
    output(*unrandomised, bits, "threads", TUNED)
