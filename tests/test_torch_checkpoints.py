"""Checkpoints that hold more than tensors, and whole pickled modules: nothing of it is built, the tensors are found."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import pathlib
import random
import re
import uuid
import zipfile

import hostile_torch
import numpy as np
import pytest
from hostile_torch import number, pt, text

import fastrnn
from fastrnn.errors import FormatError, UnsupportedError
from fastrnn.loaders import load_spec, load_tensors

torch = pytest.importorskip("torch")
from test_load_torch import assert_same, save  # noqa: E402

nn = torch.nn


class Phase(enum.Enum):
    TRAIN = "train"


class Flags(enum.IntFlag):
    A = 1


@dataclasses.dataclass
class Options:
    hidden: int = 5
    shape: tuple = (1, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    rate: float = 0.5


Pair = collections.namedtuple("Pair", "mean std")


class Easy(dict):
    """As EasyDict and the like: items are attributes, too."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        self[name] = value


class Ordered(collections.OrderedDict):
    pass


class Words(list):
    pass


class Ids(set):
    pass


class Point(tuple):
    __slots__ = ()


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, [2]


class OwnState:
    def __getstate__(self):
        return 7

    def __setstate__(self, state):
        raise AssertionError("called")


class Reduced:
    def __init__(self, words=()):
        raise AssertionError("called")

    def __reduce__(self):
        return Reduced, (["a"],), {"x": 1}, iter([1, 2]), iter([("k", 3), (4, 5)])


class Factory:
    @classmethod
    def make(cls, value):
        raise AssertionError("called")

    def __reduce__(self):
        return Factory.make, (3,)


class WithOptions:
    def __new__(cls, *args, **options):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {"b": np.zeros(2)}


class Node:
    """A part of a circle."""

    def __init__(self, depth=0):
        self.next = Node(depth - 1) if depth else self
        self.next.back = self


class Subclass(torch.Tensor):
    pass


def function(x):
    raise AssertionError("called")


def circle():
    pair = ([],)
    pair[0].append(pair)
    return pair


def trained():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


def scheduler():
    return torch.optim.lr_scheduler.StepLR(trained(), 3)


RECORD = np.dtype([("a", "<f4"), ("b", "<i8", (2,))])
OBJECTS = {
    **{f"scalar {kind}": np.dtype(kind).type(1) for kind in "?bBhHiIlLqQefdgFDG"},
    **{f"array {kind}": np.ones(3, kind) for kind in ("?", "i1", "u8", ">i4", "f2", "f4", "f8", "c16", "S3", "U4")},
    "array of no axes": np.array(2.5),
    "array by columns": np.asfortranarray(np.ones((2, 3))),
    "array of objects": np.array([None, {"a": 1}, Options()], object),
    "array of records": np.zeros(2, RECORD),
    "record array": np.zeros(2, RECORD).view(np.recarray),
    "masked array": np.ma.masked_array([1, 2], [True, False]),
    "dates": np.array(["2020-01-01"], "datetime64[D]"),
    "date scalar": np.datetime64("2020-01-01"),
    "duration": np.timedelta64(3, "s"),
    "void": np.void(b"abc"),
    "numpy dtype": RECORD,
    "numpy type": np.float32,
    "ufunc": np.tanh,
    "nan and inf": (np.nan, np.inf, -np.inf),
    "random state": np.random.RandomState(0),
    "state of it": np.random.RandomState(0).get_state(),
    "random generator": np.random.default_rng(0),
    "Python's random": random.Random(0),
    "state of that": random.getstate(),
    "argparse": argparse.Namespace(hidden=5, deep=argparse.Namespace(a=[1])),
    "path": pathlib.PurePosixPath("runs/1"),
    "path of here": pathlib.Path("runs/1"),
    "Counter": collections.Counter("aab"),
    "defaultdict": collections.defaultdict(int, a=1),
    "defaultdict of lists": collections.defaultdict(list, {1: [2]}),
    "OrderedDict subclass": Ordered(a=1),
    "OrderedDict": collections.OrderedDict(a=1),
    "deque": collections.deque([1, 2], 3),
    "ChainMap": collections.ChainMap({"a": 1}),
    "dict subclass": Easy(a=1, b=Easy(c=2)),
    "list subclass": Words(["a", "b"]),
    "set subclass": Ids([1, 2]),
    "tuple subclass": Point((1, 2)),
    "frozenset": frozenset({1, 2}),
    "set": {1, "a", (2, 3)},
    "namedtuple": Pair(np.zeros(2), np.ones(2)),
    "enum": Phase.TRAIN,
    "flags": Flags.A,
    "dataclass": Options(),
    "frozen dataclass": Frozen(),
    "slots": Slots(),
    "own state": OwnState(),
    "reduced": Reduced.__new__(Reduced),
    "factory": Factory(),
    "options of new": WithOptions(),
    "function": function,
    "method": Slots().__init__,
    "method of a class": Factory.make,
    "partial": functools.partial(function, 1, b=2),
    "builtin": len,
    "class": Slots,
    "module's class": nn.LSTM,
    "slice": slice(1, None),
    "range": range(3),
    "ellipsis": ...,
    "complex": 1j,
    "bytes": b"\x00\xff",
    "long bytes": bytes(100_000),
    "bytearray": bytearray(b"\xff"),
    "big": 1 << 3000,
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 3),
    "date": datetime.date(2020, 1, 2),
    "time": datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    "uuid": uuid.UUID(int=1),
    "pattern": re.compile("a"),
    "error": ValueError("a"),
    "device": torch.device("cpu"),
    "dtypes": [torch.float32, torch.float8_e4m3fn, torch.qint8, torch.complex32],
    "size": torch.Size([1, 2]),
    "torch generator": torch.Generator(),
    "returned": torch.max(torch.ones(2, 2), 0),
    "storage": torch.ones(2).untyped_storage(),
    "optimizer": trained(),
    "scheduler": scheduler(),
    "scaler": torch.amp.GradScaler("cpu"),
    "module": nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()),
    "parameters": nn.ParameterList([nn.Parameter(torch.ones(2))]),
    "keys": {(1, 2): "a", b"b": 1, Phase.TRAIN: 2, None: 3, 1.5: 4, True: 5, frozenset(): 6, np.float64(2): 7},
    "keys of one text": {"8": 8, 8: 9},
    "keys that are tensors": {torch.ones(2): 1, torch.ones(2): 2},
    "circle": circle(),
    "circle of objects": Node(),
    "long chain of objects": Node(200),
    "nested lists": functools.reduce(lambda inner, _: [inner], range(100), []),
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"rnn": nn.GRU(4, 5, batch_first=True), "fc": nn.Linear(5, 2)})


def check_network(path, network, root=""):
    """The layers of the network are found and right, and all its tensors have their names."""
    tensors = fastrnn.load(path).tensors
    for name, value in network.state_dict().items():
        assert_same(tensors[root + name], value)
    layers = fastrnn.load_layers(path, [f"{root}rnn", f"{root}fc"])
    x = torch.randn(2, 6, 4)
    np.testing.assert_allclose(layers[f"{root}rnn"](x.numpy())[0], network["rnn"](x)[0].detach(), atol=1e-6)
    assert fastrnn.load(path, prefix=f"{root}rnn.").batch_first


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_tensors(tmp_path, network, name):
    """Before, after and around them, in every protocol that torch.save takes."""
    for protocol in (2, 5):
        checkpoint = {"before": OBJECTS[name], "state_dict": network.state_dict(), "after": [OBJECTS[name]]}
        path = save(checkpoint, tmp_path / "t.pt", pickle_protocol=protocol)
        check_network(path, network, "state_dict.")


def test_all_objects_at_once(tmp_path, network):
    for protocol in (2, 3, 4, 5):
        path = save([OBJECTS, {"net": network.state_dict()}], tmp_path / "t.pt", pickle_protocol=protocol)
        check_network(path, network, "1.net.")


def test_large_vocabularies(tmp_path):
    """More pairs, words and levels than the tensors of a checkpoint may have."""
    words = b"}(" + b"".join(text(str(k)) + number(k) for k in range(60_000)) + b"u"
    pairs = b"](" + b"".join(number(k) + number(k) + b"\x86" for k in range(60_000)) + b"e"
    levels = b"]" * 100 + b"a" * 99
    path = tmp_path / "t.pt"
    path.write_bytes(
        pt(
            hostile_torch.state(
                ("words", words),
                ("pairs", pairs),
                ("levels", levels),
                ("net", b"}" + text("w") + hostile_torch.tensor() + b"s"),
            )
        )
    )
    assert list(load_tensors(path)) == ["net.w"]


def with_names_of(path, old: bytes, new: bytes):
    """The archive with another module path in its pickle, as another version of a package writes it."""
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member).replace(old, new))
    return path


def test_numpy_of_both_versions(tmp_path, network):
    """NumPy 2 calls numpy._core what was numpy.core."""
    checkpoint = {
        "state_dict": network.state_dict(),
        "loss": np.float64(2),
        "mean": np.ones(3),
        "rng": np.random.RandomState(0),
    }
    path = save(checkpoint, tmp_path / "t.pt")
    core = np.ones(3).__reduce__()[0].__module__.encode().removesuffix(b".multiarray")
    for name in (b"numpy._core", b"numpy.core"):
        path = with_names_of(path, core, name)
        check_network(path, network, "state_dict.")
        core = name


AROUND = {
    "OrderedDict": collections.OrderedDict,
    "subclass": Ordered,
    "items and attributes": Easy,
    "defaultdict": lambda state: collections.defaultdict(int, state),
    "named tuple": lambda state: Pair(state, state),
    "attributes": lambda state: argparse.Namespace(net=state),
    "dataclass": lambda state: Options(hidden=state),
    "list": lambda state: Words([state, state]),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_tensors_inside_of_objects(tmp_path, network, around):
    """A state_dict in objects of any kind, at the top of the file too."""
    state = network.state_dict()
    for root, value in (("", around(state)), ("deep.1.", {"deep": [0, around(state)]})):
        found = load_tensors(save(value, tmp_path / "t.pt"))
        inner = {name.removeprefix(root) for name in found}
        assert {name.rpartition("rnn.")[2] for name in inner if "rnn." in name} == {
            name.removeprefix("rnn.") for name in state if "rnn." in name
        }
    assert fastrnn.load_layers(tmp_path / "t.pt", [next(iter(found)).partition("rnn.")[0] + "rnn"])


def test_tensors_of_subclasses_and_with_attributes(tmp_path, network):
    state = dict(network.state_dict())
    state["rnn.weight_ih_l0"] = state["rnn.weight_ih_l0"].as_subclass(Subclass)
    state["rnn.weight_hh_l0"].note = Options()
    state["fc.weight"] = nn.Parameter(state["fc.weight"])
    state["fc.weight"].note = Node()
    state["fc.bias"] = nn.Buffer(state["fc.bias"])
    check_network(save({"net": state}, tmp_path / "t.pt"), network, "net.")


def test_circles_with_tensors(tmp_path):
    node, tensor = Node(3), torch.ones(2)
    node.weight, node.self, node.next.tensor = tensor, [node, {"again": node}], tensor
    found = load_tensors(save({"root": node}, tmp_path / "t.pt"))
    assert {"root.weight", "root.next.tensor"} <= set(found)
    assert not any("again" in name or "back.next" in name for name in found)
    assert len(found) == 2


def test_shared_containers_have_every_name(tmp_path, network):
    state = network.state_dict()
    path = save({"model": state, "best": state}, tmp_path / "t.pt")
    assert {name.partition(".")[0] for name in load_tensors(path)} == {"model", "best"}


def test_objects_where_tensors_should_be(tmp_path, network):
    """An error that names the place and the object."""
    state = dict(network.state_dict())
    array = state["rnn.weight_hh_l0"].numpy()
    for value, name in (
        (array, "_reconstruct"),
        (array.flat[0], "scalar"),
        (Options(), "test_torch_checkpoints.Options"),
    ):
        path = save({"net": state | {"rnn.weight_hh_l0": value}}, tmp_path / "t.pt")
        words = rf"'net\.rnn\.weight_hh_l0' is an object .*{name}.*torch\.as_tensor"
        with pytest.raises(UnsupportedError, match=words):
            fastrnn.load_layers(path, ["rnn"])
        with pytest.raises(UnsupportedError, match=words):
            fastrnn.load(path, prefix="net.rnn.")
        assert fastrnn.load_layers(path, ["fc"])
        assert "net.rnn.weight_hh_l0" not in fastrnn.load(path).tensors
    path = save({name: tensor.numpy() for name, tensor in state.items()}, tmp_path / "t.pt")
    with pytest.raises(UnsupportedError, match=r"'fc\.bias'.*'fc\.weight'.*torch\.as_tensor"):
        fastrnn.load_layers(path, ["fc"])
    with pytest.raises(FormatError, match=r"no tensors, but 'fc\.bias' is an object.*'rnn\.weight_ih_l0'"):
        fastrnn.load(path, prefix="")


def test_tensors_that_are_not_dense(tmp_path, network):
    """They have names, and are an error that names them all where they are read."""
    strange = {
        "sparse": torch.eye(3).to_sparse(), "meta": torch.ones(3, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }  # fmt: skip
    path = save({"net": network.state_dict(), "strange": strange}, tmp_path / "t.pt")
    assert fastrnn.load_layers(path, ["rnn"])
    for load in (load_tensors, lambda path: fastrnn.load(path).tensors):
        with pytest.raises(
            UnsupportedError, match=r"float8.*_v3\(torch\.float8_e4m3fn\).*meta.*quantized.*qtensor.*sparse"
        ):
            load(path)


def test_a_file_without_tensors(tmp_path):
    for value, words in (
        ({"a": np.ones(2), "b": Options()}, r"_reconstruct.*Options"),
        ([1], "holds a list"),
        (Node(), "Node"),
    ):
        with pytest.raises(UnsupportedError, match=rf"no tensors.*{words}.*nothing was run"):
            load_tensors(save(value, tmp_path / "t.pt"))


def test_what_is_refused_alone_is_not_run_beside_tensors(tmp_path, monkeypatch):
    """The programs of the attacks, in a file with a good layer: it loads, and their mark is not there."""
    monkeypatch.chdir(tmp_path)
    gru = nn.GRU(2, 1, bias=False)
    good = {"weight_ih_l0": (3, 2), "weight_hh_l0": (3, 1)}
    layer = (
        b"}("
        + b"".join(
            text(key) + hostile_torch.tensor(size=hostile_torch.ints(*shape), stride=hostile_torch.ints(shape[1], 1))
            for key, shape in good.items()
        )
        + b"u"
    )
    for label, (value, _) in hostile_torch.commands().items():
        path = tmp_path / f"{label}.pt"
        path.write_bytes(pt(hostile_torch.state(("a", value), ("rnn", layer))))
        assert fastrnn.load_layers(path, ["rnn"])["rnn"].hidden_size == gru.hidden_size
        assert set(load_tensors(path)) == {f"rnn.{key}" for key in good}
    assert not (tmp_path / hostile_torch.CANARY).exists()


# Whole modules


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, dropout=0.1)})
        self.late = nn.GRU(3, 4)
        self.rnn = nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
        self.cell = nn.RNNCell(3, 4, nonlinearity="relu", bias=False)
        self.projected = nn.LSTM(3, 4, proj_size=2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4, eps=0.25), nn.ReLU(), nn.Linear(4, 2))
        self.norm = nn.LayerNorm(4, eps=0.5)
        self.words, self.conv = nn.Embedding(7, 3, padding_idx=0), nn.Conv1d(3, 3, 3)
        self.tied = self.head[3]
        self.plain, self.options, self.parent = torch.ones(2), Options(), [self]
        self.listed = [nn.Linear(2, 2)]
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.own = Own(3, 4)

    def forward(self, x):
        raise AssertionError("called")


class Own(nn.GRU):
    """A class of the user's, with the attributes of its base."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.manual_seed(0)
    module = Net().eval()
    module.head[1].running_mean += 1
    return module, save(module, tmp_path_factory.mktemp("whole") / "net.pt")


def test_whole_module(whole):
    """Every parameter and buffer under its name, and the tensors in other attributes."""
    module, path = whole
    tensors = fastrnn.load(path).tensors
    named = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    for name, value in named.items():
        assert_same(tensors[name], value)
    assert set(tensors) - set(named) == {"plain", "listed.0.weight", "listed.0.bias"}


LAYERS = [
    "encoder.rnn",
    "late",
    "rnn",
    "cell",
    "projected",
    "own",
    "head.0",
    "head.1",
    "head.3",
    "tied",
    "norm",
]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_a_whole_module(whole, name):
    """Class and attributes say what a layer is: options that a state_dict does not have."""
    module, path = whole
    part = module.get_submodule(name)
    layer = fastrnn.load_layers(path, [name])[name]
    if isinstance(part, nn.Embedding):
        x = torch.arange(6).reshape(2, 3)
    else:
        size = next(
            (getattr(part, key) for key in ("input_size", "in_features", "num_features") if hasattr(part, key)), None
        )
        lead = (2,) if isinstance(part, (nn.BatchNorm1d, nn.RNNCell)) else (2, 5)
        x = torch.randn(*lead, size or part.normalized_shape[0])
    theirs, ours = part(x), layer(x.numpy())
    if isinstance(theirs, tuple):
        theirs, ours = theirs[0], ours[0]
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-6)
    if hasattr(part, "batch_first"):
        assert layer.batch_first is part.batch_first


def test_embeddings_of_a_whole_module(whole):
    """Their class says what they are; no mapping is needed."""
    module, path = whole
    ids = torch.arange(6).reshape(2, 3)
    assert_same(fastrnn.load_layers(path, ["words"])["words"](ids.numpy()), module.words(ids))


def test_prefix_of_a_whole_module(whole):
    module, path = whole
    x = torch.randn(2, 5, 3)
    for name in ("encoder.rnn", "late", "rnn"):
        for prefix in (name, f"{name}."):
            y, _ = fastrnn.load(path, prefix=prefix)(x.numpy())
            np.testing.assert_allclose(y, module.get_submodule(name)(x)[0].detach(), atol=1e-6)
    with pytest.raises(FormatError, match="file says 'relu'"):
        fastrnn.load(path, prefix="rnn.", nonlinearity="tanh")


def test_whole_layers(tmp_path):
    """A file of one recurrent layer is a model of it."""
    x = torch.randn(2, 5, 3)
    for part in (nn.LSTM(3, 4), nn.GRU(3, 4, batch_first=True), nn.RNN(3, 4, nonlinearity="relu")):
        model = fastrnn.load(save(part, tmp_path / "t.pt"))
        np.testing.assert_allclose(model(x.numpy())[0], part(x)[0].detach(), atol=1e-6)
    for wrapped in (nn.DataParallel(part), nn.Sequential(part)):
        name = next(name for name, inner in wrapped.named_modules() if inner is part)
        layer = fastrnn.load_layers(save(wrapped, tmp_path / "t.pt"), [name])[name]
        np.testing.assert_allclose(layer(x.numpy())[0], part(x)[0].detach(), atol=1e-6)


def test_modules_in_checkpoints(tmp_path, whole):
    module, _ = whole
    path = save({"epoch": 3, "model": module, "ema": [module.late]}, tmp_path / "t.pt")
    layers = fastrnn.load_layers(path, ["model.late", "ema.0", "encoder.rnn"])
    assert not layers["model.late"].batch_first
    assert not layers["ema.0"].batch_first
    assert layers["encoder.rnn"].batch_first


def test_layers_that_are_refused(tmp_path, whole):
    _, path = whole
    with pytest.raises(UnsupportedError, match=r"'conv': is nn\.Conv1d.*load_tensors"):
        fastrnn.load_layers(path, ["conv"])
    with pytest.raises(FormatError, match=r"asked for 'gru', but it is nn\.LSTM; ask for 'lstm'"):
        fastrnn.load_layers(path, {"encoder.rnn": fastrnn.GRU})
    assert fastrnn.load_layers(path, {"encoder.rnn": fastrnn.LSTM})
    with pytest.raises(FormatError, match=r"no layers called 'decoder'.*its layers.*'encoder\.rnn'"):
        fastrnn.load_layers(path, ["decoder"])
    changed = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2, max_norm=1.0))
    changed[0].register_forward_pre_hook(function)
    path = save(changed, tmp_path / "t.pt")
    with pytest.raises(UnsupportedError, match=r"forward hooks.*remove_weight_norm"):
        fastrnn.load_layers(path, ["0"])
    with pytest.raises(UnsupportedError, match="max_norm"):
        fastrnn.load_layers(path, ["1"])


def test_old_files_say_what_to_do(tmp_path, network):
    for value in (network, network.state_dict(), {"a": np.ones(2)}):
        path = save(value, tmp_path / "t.pt", _use_new_zipfile_serialization=False)
        for load in (load_spec, load_tensors):
            with pytest.raises(UnsupportedError, match=r"before PyTorch 1\.6.*torch\.save\(torch\.load"):
                load(path)
