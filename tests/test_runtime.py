"""What the process-wide settings do, and what is said when they cannot be had."""

from pathlib import Path

import numpy as np
import pytest
from scripts import ROOT, check, run

import fastrnn
from fastrnn import runtime

INFO = fastrnn.info()
SHOW = "import fastrnn; info = fastrnn.info(); print(info['isa'], info['team'], info['threads'])"


def layer(**options):
    rng = np.random.default_rng(0)
    return fastrnn.LSTM(rng.standard_normal((32, 4)), rng.standard_normal((32, 8)), **options)


# ---- The environment ----


@pytest.mark.parametrize("name", INFO["isas"])
def test_isa_from_the_environment(name):
    assert check(SHOW, FASTRNN_ISA=name).split()[0] == name


@pytest.mark.parametrize("name", INFO["teams"])
def test_team_from_the_environment(name):
    assert check(SHOW, FASTRNN_TEAM=name).split()[1] == name


def test_threads_from_the_environment():
    assert check(SHOW, FASTRNN_NUM_THREADS="7").split()[2] == "7"


def test_empty_variables_mean_nothing():
    assert check(SHOW, FASTRNN_ISA="", FASTRNN_TEAM="", FASTRNN_NUM_THREADS="") == check(SHOW)


@pytest.mark.parametrize(
    ("name", "value", "available"),
    [
        ("FASTRNN_ISA", "sse9", INFO["isas"]),
        ("FASTRNN_ISA", "AVX2", INFO["isas"]),
        ("FASTRNN_ISA", "neon" if INFO["machine"] == "x86_64" else "avx2", INFO["isas"]),
        ("FASTRNN_TEAM", "tbb", INFO["teams"]),
        ("FASTRNN_NUM_THREADS", "0", ["at least 1"]),
        ("FASTRNN_NUM_THREADS", "-2", ["at least 1"]),
        ("FASTRNN_NUM_THREADS", "two", ["whole number"]),
        ("FASTRNN_NUM_THREADS", "1.5", ["whole number"]),
    ],
)
def test_a_wrong_variable_is_an_error_that_says_what_there_is(name, value, available):
    done = run("import fastrnn", **{name: value})
    error = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert error.startswith(("fastrnn.errors.UnsupportedError", "fastrnn.errors.ArgumentError"))
    assert value in error
    assert all(word in error for word in available), error
    assert name in error, f"the message does not name {name}: {error}"


# ---- Instruction sets and teams ----


@pytest.mark.parametrize("name", INFO["isas"])
def test_set_isa_acts_on_layers_built_afterwards(name):
    fastrnn.set_isa(INFO["isas"][-1])
    before = layer()
    fastrnn.set_isa(name)
    assert fastrnn.info()["isa"] == name
    assert layer().explain()["isa"] == name
    assert before.explain()["isa"] == INFO["isas"][-1]


def test_a_layer_keeps_its_isa_when_it_is_called_under_another():
    x = np.random.default_rng(1).standard_normal((2, 5, 4))
    for name in INFO["isas"]:
        fastrnn.set_isa(name)
        built = layer(backend="packed")
        expected = built(x)[0]
        for other in INFO["isas"]:
            fastrnn.set_isa(other)
            assert np.array_equal(built(x)[0], expected)


@pytest.mark.parametrize("name", ["", "sse9", "avx", "avx2 ", "GENERIC"])
def test_set_isa_refuses_what_it_does_not_know(name):
    with pytest.raises(fastrnn.UnsupportedError, match=INFO["isas"][-1]):
        fastrnn.set_isa(name)
    assert fastrnn.info()["isa"] == INFO["isa"]


def test_set_team():
    for name in INFO["teams"]:
        fastrnn.set_team(name)
        assert fastrnn.info()["team"] == name
    with pytest.raises(fastrnn.UnsupportedError, match=INFO["teams"][0]):
        fastrnn.set_team("tbb")
    assert fastrnn.info()["team"] == INFO["teams"][-1]


def test_the_posix_team_is_always_there_and_the_default():
    assert INFO["teams"][0] == "posix"
    assert INFO["openmp"] == ("openmp" in INFO["teams"])


# ---- Threads ----


def test_set_num_threads():
    fastrnn.set_num_threads(3)
    assert fastrnn.get_num_threads() == fastrnn.info()["threads"] == 3
    fastrnn.set_num_threads(np.int64(5))
    assert fastrnn.get_num_threads() == 5
    fastrnn.set_num_threads(None)
    assert fastrnn.get_num_threads() == runtime.default_threads()


@pytest.mark.parametrize("count", [0, -1, 1.5, "many", [], float("nan"), float("inf")])
def test_set_num_threads_refuses_what_is_no_count(count):
    with pytest.raises(ValueError, match="at least 1"):
        fastrnn.set_num_threads(count)
    assert fastrnn.get_num_threads() == INFO["threads"]


@pytest.mark.parametrize("count", [runtime.MAX_THREADS + 1, 2**62, 2**64, 1e30])
def test_a_number_beyond_the_largest_team_means_the_largest(count):
    fastrnn.set_num_threads(count)
    assert fastrnn.get_num_threads() == fastrnn.info()["threads"] == runtime.MAX_THREADS
    plan = layer().explain(4 * runtime.MAX_THREADS, 100)
    assert (plan["split"], plan["threads"]) == ("batch", runtime.MAX_THREADS)
    x = np.zeros((3, 7, 4), np.float32)
    assert np.isfinite(layer()(x)[0]).all()


def test_the_largest_team_is_the_same_number_in_c():
    header = (ROOT / "src_c" / "team.h").read_text()
    assert f"enum {{ FRNN_MAX_MEMBERS = {runtime.MAX_THREADS} }};" in header


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def quota(folder, files, own=""):
    """What a process is granted that finds these files in the cgroup file system, and itself where ``own`` says."""
    return runtime.cgroup_quota(write(folder / "cgroup", files), str(Path(write(folder, {"own": own}), "own")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("0 100000\n", None),
        ("100000 0\n", None),
        ("100000\n", None),
        ("", None),
        ("a lot\n", None),
    ],
)
def test_quota_of_cgroup_v2(tmp_path, text, expected):
    assert quota(tmp_path, {"cpu.max": text}) == expected


@pytest.mark.parametrize(
    ("allowed", "period", "expected"),
    [
        ("-1\n", "100000\n", None),
        ("250000\n", "100000\n", 2.5),
        ("100000\n", "0\n", None),
        ("\n", "100000\n", None),
        ("100000\n", None, None),
    ],
)
def test_quota_of_cgroup_v1(tmp_path, allowed, period, expected):
    files = {"cpu/cpu.cfs_quota_us": allowed} | ({} if period is None else {"cpu/cpu.cfs_period_us": period})
    assert quota(tmp_path, files) == expected


def v1(**groups):
    """Files of cgroup v1: ``a_b`` stands for /a/b and ``_`` for the root."""
    files = {}
    for group, allowed in groups.items():
        folder = f"cpu/{group.strip('_').replace('_', '/')}"
        files |= {f"{folder}/cpu.cfs_quota_us": f"{allowed}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    return files


V2 = {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "200000 100000\n", "a/b/c/cpu.max": "max 100000\n"}
OWN_V1 = "9:name=systemd:/x\n4:cpu,cpuacct:{}\n3:memory:/m\n0::/\n"


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        pytest.param(V2, "0::/a/b\n", 2.0, id="its own"),
        pytest.param(V2, "0::/a/b/c\n", 2.0, id="its parent's"),
        pytest.param(V2, "0::/a\n", 3.0, id="not its child's"),
        pytest.param(V2, "0::/other\n", None, id="not its sibling's"),
        pytest.param(V2 | {"a/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5, id="the smallest"),
        pytest.param(V2 | {"cpu.max": "100000 100000\n"}, "0::/a/b\n", 1.0, id="the root's, of a container"),
        pytest.param({"cpu.max": "100000 100000\n"}, "0::/docker/1f2e\n", 1.0, id="a path of the host"),
        pytest.param(V2, "0::/../../a\n", None, id="outside the namespace"),
        pytest.param(V2, "", None, id="empty"),
        pytest.param(V2, "nonsense\n\n:\n0:", None, id="nonsense"),
        pytest.param(v1(a=300000, a_b=200000), OWN_V1.format("/a/b"), 2.0, id="v1, its own"),
        pytest.param(v1(a=100000, a_b=200000), OWN_V1.format("/a/b"), 1.0, id="v1, its parent's"),
        pytest.param(v1(_=150000, a=-1), OWN_V1.format("/a/b"), 1.5, id="v1, the root's"),
        pytest.param(v1(x=100000, m=100000), OWN_V1.format("/a"), None, id="v1, paths of other hierarchies"),
        pytest.param(v1(a=200000), "4:cpu:/a\n", 2.0, id="v1, cpu alone"),
    ],
)
def test_quota_of_the_process_s_own_group(tmp_path, files, own, expected):
    assert quota(tmp_path, files, own) == expected


def test_no_cgroup(tmp_path):
    assert quota(tmp_path, {}) is None
    assert runtime.cgroup_quota(str(tmp_path), str(tmp_path / "absent")) is None
    assert runtime.cgroup_quota(str(tmp_path / "absent"), str(tmp_path / "absent")) is None


@pytest.mark.parametrize(("quota", "cpus", "expected"), [(None, 8, 8), (2.9, 8, 2), (0.4, 8, 1), (16.0, 8, 8)])
def test_the_default_is_the_smaller_of_affinity_and_quota(monkeypatch, quota, cpus, expected):
    monkeypatch.setattr(runtime, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(runtime, "affinity", lambda: cpus)
    assert runtime.default_threads.__wrapped__() == expected


def test_affinity_is_honoured():
    confine = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    assert check(f"{confine}; import fastrnn; print(fastrnn.get_num_threads())") == "1\n"


# ---- What info says ----


def test_info():
    assert INFO.keys() >= {"version", "isa", "isas", "threads", "team", "teams", "backend", "blas", "openmp"}
    assert INFO["version"] == fastrnn.__version__
    assert INFO["isa"] in INFO["isas"]
    assert INFO["isas"][-1] == "generic"
    assert set(INFO["isas"]) <= {"generic", "avx2", "avx512", "avx512vnni", "neon"}


def test_the_best_isa_is_the_default():
    assert check(SHOW).split()[0] == INFO["isas"][0]


# ---- BLAS ----


@pytest.mark.parametrize("isa", INFO["isas"])
def test_blas_is_for_those_who_ask(isa):
    """A row alone has the bits that it has in a batch, on the portable kernels too."""
    fastrnn.set_isa(isa)
    assert fastrnn.info()["backend"] == "packed"
    for built in (layer(), fastrnn.Dense(np.ones((2, 2))), fastrnn.Sequential(layer(), fastrnn.Dense(np.ones((2, 8))))):
        assert "blas" not in str(built.explain())
    x = np.random.default_rng(0).standard_normal((40, 9, 4))
    whole = layer()(x)[0]
    for row in range(len(x)):
        np.testing.assert_array_equal(layer()(x[row : row + 1])[0][0], whole[row])
    assert layer(backend="blas").explain()["backend"] == "blas"


def test_an_unknown_backend():
    with pytest.raises(fastrnn.UnsupportedError, match="packed, blas"):
        layer(backend="cuda")


BROKEN_BLAS = """
import sys
import numpy as np

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "fastrnn._blas":
            raise {error}

sys.meta_path.insert(0, Broken())
import fastrnn

def layer(**options):
    return fastrnn.LSTM(np.ones((32, 4)), np.ones((32, 8)), **options)

assert fastrnn.info()["blas"] is None
y, _ = layer(backend="packed")(np.zeros((1, 2, 4)))
for build in (lambda: layer(backend="blas"), lambda: fastrnn.Dense(np.ones((2, 2)), backend="blas")):
    try:
        build()
    except fastrnn.UnsupportedError as error:
        assert "signature of sgemm" in str(error), error
        assert 'backend="packed"' in str(error), error
    else:
        raise AssertionError("built without BLAS")
assert "signature of sgemm" in fastrnn.info()["blas"]
"""


@pytest.mark.parametrize("error", ["TypeError", "ImportError", "RuntimeError"])
def test_a_scipy_that_does_not_fit(error):
    """Cython raises TypeError where SciPy's signatures differ from those of the build."""
    check(BROKEN_BLAS.replace("{error}", f"{error}('signature of sgemm')"))
