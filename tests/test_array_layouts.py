"""Arrays wherever they lie: at odd addresses, in the other byte order, in fields of records, repeated or read-only.

C reads floats at multiples of their size alone; ``make asan`` runs this file under UndefinedBehaviorSanitizer, which
says so where one is not.
"""

import numpy as np
import pytest

import fastrnn
from fastrnn.arrays import F32, c_array
from fastrnn.spec import Graph, ModelSpec, Node, Tensor

RNG = np.random.default_rng(5)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# ---- Ways to lie ----


def at_odd_address(array, offset=1):
    """The same elements, in order, at an address that is no multiple of their size."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64 + offset
    odd = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    odd[...] = array
    assert odd.flags.c_contiguous
    assert not odd.flags.aligned or array.size == 0 or array.itemsize == 1
    return odd


def in_a_buffer(array):
    return np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


def in_records(array):
    records = np.zeros(array.shape, np.dtype([("before", "u1"), ("field", array.dtype)]))
    records["field"] = array
    return records["field"]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def without_alignment(array):
    """As DLPack hands it over, from a library that has no NumPy arrays."""

    class Tensor:
        def __init__(self):
            self.array = at_odd_address(array)
            self.ndim, self.shape = array.ndim, array.shape

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    return Tensor() if array.dtype.kind != "b" else at_odd_address(array)


LAYOUTS = {
    "odd address": at_odd_address,
    "odd by two": lambda a: at_odd_address(a, 2 if a.itemsize > 2 else 1),
    "buffer": in_a_buffer,
    "field": in_records,
    "byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "byte order, odd": lambda a: at_odd_address(a.astype(a.dtype.newbyteorder())),
    "read-only": read_only,
    "Fortran order": np.asfortranarray,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "DLPack": without_alignment,
}


@pytest.fixture(params=LAYOUTS)
def laid(request):
    return LAYOUTS[request.param]


def same(made, wanted) -> bool:
    """Bits and shapes of results, and of whatever is in them."""
    if isinstance(wanted, (tuple, list)):
        return len(made) == len(wanted) and all(map(same, made, wanted))
    if isinstance(wanted, dict):
        return made.keys() == wanted.keys() and all(same(made[name], wanted[name]) for name in wanted)
    return made.dtype == wanted.dtype and made.shape == wanted.shape and made.tobytes() == wanted.tobytes()


# ---- Layers ----

X, H, C = floats(3, 5, 4), floats(1, 3, 6), floats(1, 3, 6)
CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(cell, laid=lambda a: a, **options):
    rng = np.random.default_rng(1)
    shapes = ((6 * CELLS[cell], 4), (6 * CELLS[cell], 6), (6 * CELLS[cell],), (6 * CELLS[cell],))
    return getattr(fastrnn, cell)(*(laid(rng.normal(size=s).astype(np.float32)) for s in shapes), **options)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layers(cell, laid):
    layer = recurrent(cell)

    def state(how, *arrays):
        return tuple(map(how, arrays)) if cell == "LSTM" else how(arrays[0])

    lengths, mask = np.array([2, 5, 0]), RNG.random((3, 5)) < 0.5
    plain = lambda a: a  # noqa: E731
    for how_x, how_state in ((laid, plain), (plain, laid), (laid, laid)):
        assert same(layer(how_x(X), state(how_state, H, C)), layer(X, state(plain, H, C)))
    assert same(layer(X, lengths=laid(lengths)), layer(X, lengths=lengths))
    assert same(layer(X, mask=laid(mask)), layer(X, mask=mask))
    assert same(layer(laid(X), outputs="last"), layer(X, outputs="last"))
    assert same(layer(laid(X[0])), layer(X[0]))
    assert same(layer([laid(X[0]), laid(X[1, :2])]), layer([X[0], X[1, :2]]))
    assert same(layer(laid(X[:0])), layer(X[:0]))
    assert same(layer(laid(X[:, :0])), layer(X[:, :0]))
    assert same(recurrent(cell, laid)(X), layer(X))
    assert same(recurrent(cell, laid, backend="packed").last()(X), layer.last()(X))


@pytest.mark.parametrize("cell", CELLS)
def test_cells_of_a_step(cell, laid):
    rng = np.random.default_rng(1)
    layer = getattr(fastrnn, cell + "Cell")(*(rng.normal(size=(6 * CELLS[cell], n)) for n in (4, 6)))
    h = (laid(H[0]), laid(C[0])) if cell == "LSTM" else laid(H[0])
    plain = (H[0], C[0]) if cell == "LSTM" else H[0]
    assert same(layer(laid(X[:, 0]), h), layer(X[:, 0], plain))


def test_results_are_never_written_to_odd_addresses():
    layer = recurrent("GRU")
    y, h = np.empty((3, 5, 6), np.float32), np.empty((1, 3, 6), np.float32)
    for out in ((at_odd_address(y), h), (y, at_odd_address(h)), (in_records(y), h), (y, h.astype(">f4"))):
        with pytest.raises(fastrnn.ShapeError, match=r"C-contiguous, aligned|must be float32"):
            layer(X, out=out)
    stream = layer.stream(3)
    with pytest.raises(fastrnn.ShapeError, match="aligned"):
        stream.step(X[:, 0], out=at_odd_address(y[:, 0]))
    pool = layer.pool(3)
    with pytest.raises(fastrnn.ShapeError, match="aligned"):
        pool.step([pool.open() for _ in range(3)], X[:, 0], out=at_odd_address(y[:, 0]))


LAYERS = {
    "dense": lambda laid: fastrnn.Dense(laid(DENSE), laid(DENSE[:, 0]), activation="tanh"),
    "softmax": lambda laid: fastrnn.Dense(laid(DENSE), activation="softmax"),
    "layer norm": lambda laid: fastrnn.LayerNorm(laid(DENSE[0]), laid(DENSE[1])),
    "batch norm": lambda laid: fastrnn.BatchNorm(laid(DENSE[0]), laid(DENSE[1] ** 2), laid(DENSE[2]), laid(DENSE[3])),
    "channels": lambda laid: fastrnn.BatchNorm(laid(DENSE[:5, 0]), laid(DENSE[:5, 1] ** 2), channels_first=True),
    "activation": lambda laid: fastrnn.Activation("sigmoid"),
    "masking": lambda laid: fastrnn.Masking(0.0),
}
DENSE = floats(7, 4)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_without_time(kind, laid):
    layer = LAYERS[kind](lambda a: a)
    assert same(layer(laid(X)), layer(X))
    assert same(LAYERS[kind](laid)(laid(X)), layer(X))
    assert same(layer(laid(X[:0])), layer(X[:0]))


def test_embeddings(laid):
    ids = np.array([[1, 2, 0], [3, 1, 1]])
    assert same(fastrnn.Embedding(laid(DENSE))(laid(ids)), fastrnn.Embedding(DENSE)(ids))


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 5, 4)])
def test_arrays_that_repeat_elements(shape):
    one = floats(*shape[1:2], 1)
    repeated = np.broadcast_to(one, shape)
    layer = recurrent("LSTM")
    assert same(layer(repeated), layer(repeated.copy()))
    h = np.broadcast_to(np.float32(0.5), (1, shape[0], 6))
    assert same(layer(X[: shape[0]], (h, h)), layer(X[: shape[0]], (h.copy(), h.copy())))
    lengths = np.broadcast_to(np.int64(3), shape[:1])
    assert same(layer(repeated, lengths=lengths), layer(repeated.copy(), lengths=lengths.copy()))


# ---- Models ----


def every_kind_of_step(laid) -> fastrnn.Model:
    """Convolutions, products, layers, host steps, a stop and a loop, with weights and constants laid so."""
    w = np.random.default_rng(2)

    def weight(*shape):
        return laid(w.normal(size=shape).astype(np.float32))

    more = Graph(
        [
            Node("binary", "more", ("t", "step"), ("t2",), {"function": "add"}),
            Node("identity", "go_on", ("go",), ("go2",)),
        ],
        [Tensor("k", (), "int64"), Tensor("go", (), "bool"), Tensor("t", None)],
        [Tensor("go2", (), "bool"), Tensor("t2", None)],
    )
    rnn = {"weight_ih_l0": weight(18, 4), "weight_hh_l0": weight(18, 6)}
    nodes = [
        Node("conv", "conv", ("x",), ("c",), {"pads": (1, 1)}, {"weight": weight(5, 5, 3), "bias": weight(5)}),
        Node("conv", "depth", ("c",), ("d",), {"pads": (1, 1), "groups": 5}, {"weight": weight(5, 1, 3)}),
        Node("binary", "scaled", ("d", "table"), ("e",), {"function": "mul"}),
        Node("cumsum", "total", ("e",), ("f",), {"axis": 1}),
        Node("gru", "gru", ("f", "h"), ("y", "h_n"), {"num_layers": 1}, rnn),
        Node("dense", "dense", ("y",), ("z",), {}, {"weight": weight(6, 6), "bias": weight(6)}),
        Node("layer_norm", "norm", ("z",), ("n",), {}, {"weight": weight(6), "bias": weight(6)}),
        Node("matmul", "product", ("n", "square"), ("p",)),
        Node("gather", "rows", ("p", "ids"), ("q",), {"axis": 1}),
        Node("loop", "loop", ("times", "", "q"), ("out",), graphs={"body": more}),
    ]
    constants = {"table": weight(1, 5, 4), "square": weight(6, 6), "step": weight(6)}
    inputs = [Tensor("x", None), Tensor("h", None), Tensor("ids", (None,), "int64"), Tensor("times", (1,), "int64")]
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor(n, None) for n in ("out", "h_n", "f")], constants))


FEEDS = {"x": floats(3, 5, 4), "h": floats(1, 3, 6), "ids": np.array([4, 0, 2]), "times": np.array([3])}


def test_models_their_weights_and_constants(laid):
    plain = every_kind_of_step(lambda a: a)
    wanted = plain.run(FEEDS)
    feeds = {name: laid(array) for name, array in FEEDS.items()}
    assert same(plain.run(feeds), wanted)
    assert same(plain.trace(feeds), plain.trace(FEEDS))


def test_weights_that_lie_so(laid):
    if laid is without_alignment:
        pytest.skip("a spec holds arrays of NumPy")
    assert same(every_kind_of_step(laid).run(FEEDS), every_kind_of_step(lambda a: a).run(FEEDS))


def test_a_file_that_puts_tensors_at_odd_addresses(tmp_path):
    """Tensors of a .safetensors file follow each other without gaps, and its header may have any length."""
    import json

    weights = {"weight_ih_l0": floats(24, 4), "weight_hh_l0": floats(24, 6), "bias_ih_l0": floats(24)}
    weights["bias_hh_l0"] = weights["bias_ih_l0"]
    at, header = 0, {}
    for name, array in weights.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (at, at + array.nbytes)}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 4 + 1)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in weights.values()))
    model = fastrnn.load(path)
    assert same(model(X), fastrnn.LSTM(*weights.values())(X))


# ---- Streams ----


def test_streams_and_pools(laid):
    layer = recurrent("LSTM")
    made, wanted = [], []
    for how, results in ((laid, made), (lambda a: a, wanted)):
        of_handles = at_odd_address if laid is without_alignment else how  # these are integers or an array
        stream, pool = layer.stream(3), layer.pool(4)
        stream.state = how(H.copy()), how(C.copy())
        handles = np.array([pool.open() for _ in range(3)])
        results += [stream.step(how(X[:, 0])), stream(how(X)), stream.state]
        results += [
            pool.step(of_handles(handles), how(X[:, 0])),
            pool.step(handles, [how(X[0]), how(X[1, :2]), how(X[2])]),
        ]
        pool.set_state(int(handles[0]), (how(H[:, :1]), how(C[:, :1])))
        results += [pool.step(of_handles(handles), how(X[:, 1])), pool.state(int(handles[0]))]
    assert same(made, wanted)


def test_batchers(laid):
    layer = recurrent("GRU")
    with fastrnn.Batcher(layer) as batcher:
        y = batcher.submit(laid(X[0])).result()
    assert same(np.asarray(y), layer(X[0])[0])


# ---- The helper ----


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", ">i8", "<f8", "?"])
def test_what_c_takes(laid, dtype):
    if laid is without_alignment:
        pytest.skip("not an array")
    array = (RNG.random((3, 4)) * 9).astype(dtype)
    native = np.dtype(dtype).newbyteorder("=")
    made = c_array(laid(array), native)
    assert made.dtype == native
    assert made.dtype.isnative
    assert made.flags.c_contiguous
    assert made.flags.aligned
    assert np.array_equal(made, array)


def test_what_already_is_so_is_not_copied():
    x = floats(3, 4)
    assert c_array(x, F32) is x
    assert np.shares_memory(c_array(x[1:], F32), x)
    assert type(c_array(x.view(np.recarray), F32)) is np.ndarray
