"""States of live sequences: one form that everything takes, and bytes that only their own network takes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from cases import assert_bits, normal, parts

import fastrnn
from fastrnn import fingerprint
from fastrnn.loaders import safetensors
from fastrnn.spec import ModelSpec, Node, Tensor

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CLASSES = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}


def layer(op="gru", num_layers=1, seed=0, **options):
    gates = GATES[op]
    ih = [normal(gates * 5, 4 if k == 0 else 5, seed=seed + k) / 3 for k in range(num_layers)]
    hh = [normal(gates * 5, 5, seed=seed + k + 9) / 3 for k in range(num_layers)]
    return CLASSES[op](ih, hh, **options)


def head(seed=0):
    return fastrnn.Dense(normal(3, 5, seed=seed), normal(3, seed=seed + 1))


def embedding():
    return fastrnn.Embedding(normal(7, 4))


def row(*layers):
    """A model of layers in a row, which says that it takes a batch of sequences of ids."""
    spec = fastrnn.Sequential(embedding(), *layers).spec
    return fastrnn.Model(replace(spec, inputs=[Tensor("x", (None, None), "int64")]))


def declared(scale=1.0, names=("x", "h", "sr", "y", "h_out"), **attrs) -> fastrnn.Model:
    """A GRU that takes a frame, its state and a whole number, and gives its state."""
    x, h, sr, y, h_out = names
    weights = {"weight_ih_l0": normal(15, 4), "weight_hh_l0": normal(15, 5) * np.float32(scale)}
    nodes = [
        Node("unsqueeze", "turn", (x,), ("xs",), {"axes": (0,)}),
        Node("gru", "gru", ("xs", h), ("ys", h_out), {"batch_first": False, **attrs}, weights),
        Node("squeeze", "back", ("ys",), ("y1",), {"axes": (0,)}),
        Node("cast", "rate", (sr,), ("rate",), {"dtype": "float32"}),
        Node("binary", "scale", ("y1", "rate"), (y,), {"function": "mul"}),
    ]
    inputs = [Tensor(x, (None, 4)), Tensor(h, (1, None, 5)), Tensor(sr, (), "int64")]
    return fastrnn.Model(ModelSpec(nodes, inputs, [Tensor(y, (None, 5)), Tensor(h_out, (1, None, 5))]))


def networks():
    for op in GATES:
        for num_layers in (1, 2):
            yield f"{op} {num_layers}", layer(op, num_layers), {}
        yield f"{op} last", layer(op).last(), {}
        yield f"{op} time first", layer(op, batch_first=False), {}
        yield f"Sequential {op}", fastrnn.Sequential(layer(op, 2)), {}
        yield f"{op} and head", row(layer(op), head()), {}
        yield f"head of the last {op}", row(layer(op).last(), head()), {}
        yield f"{op} and its state", row(layer(op)), {}
    yield "declared", declared(), {"constants": {"sr": 16000}}


NETWORKS = {name: (network, options) for name, network, options in networks()}


def sequence(network, steps, seed=0):
    ids = isinstance(network, fastrnn.Model) and network.inputs[0].dtype == "int64"
    return np.random.default_rng(seed).integers(0, 7, steps) if ids else normal(steps, 4, seed=seed)


def begun(network, options, steps=3):
    stream = fastrnn.streams.Stream(network, **options)
    stream(sequence(network, steps))
    return stream


def flat(state):
    return [state[name] for name in sorted(state)] if isinstance(state, dict) else list(parts(state))


# ---- One form ----


@pytest.mark.parametrize("name", NETWORKS)
def test_states_are_handed_over(name):
    network, options = NETWORKS[name]
    x, more = sequence(network, 6), sequence(network, 4, seed=1)
    stream = fastrnn.streams.Stream(network, **options)
    stream(x)
    pool = fastrnn.streams.Pool(network, 2, **options)
    handle, other = pool.open(), pool.open()
    pool.step([handle], [x])
    with fastrnn.Batcher(network, **options) as batcher:
        _, answered = batcher.submit(x, final_state=True).result(30)
        states = {"stream": stream.state, "pool": pool.state(handle), "batcher": answered}
        if isinstance(network, fastrnn.streams.Stream) or hasattr(network, "hidden_size"):
            states["layer"] = network(x[None] if network.batch_first else x[:, None])[1]
        want = stream(more)
        for source, state in states.items():
            assert_bits(flat(state), flat(states["stream"]), f"the state of a {source}")
            assert [a.shape for a in flat(state)] == [a.shape for a in flat(states["stream"])]
            taker = fastrnn.streams.Stream(network, **options)
            taker.state = state
            pool.set_state(other, state)
            y = [taker(more), pool.step([other], [more])[0], batcher.open(state).submit(more).result(30)]
            if hasattr(network, "hidden_size"):
                y.append(network(more, state)[0])
            for part in y:
                assert_bits([part], [want], f"from the state of a {source}")
        for wrong in (None, 5, "state", [1, 2]):
            with pytest.raises(fastrnn.ShapeError):
                stream.state = wrong
            if wrong is not None:
                with pytest.raises(fastrnn.ShapeError):
                    batcher.open(wrong)
        assert batcher.stats().sessions == 0, "a refused state opens no session"


@pytest.mark.parametrize("op", GATES)
def test_the_state_of_a_call_of_one_sequence(op):
    net, x, more = layer(op, 2), normal(5, 4), normal(3, 4, seed=1)
    state = net(x)[1]
    assert flat(state)[0].ndim == 2
    stream, pool = net.stream(), net.pool(1)
    handle = pool.open()
    stream.state = state
    pool.set_state(handle, state)
    with fastrnn.Batcher(net) as batcher:
        y = batcher.open(state).submit(more).result(30)
    assert_bits([stream(more), pool.step([handle], [more])[0], y], [net(more, state)[0]] * 3, op)


def test_states_of_a_model_are_what_it_takes():
    model = declared()
    stream = model.stream(2, constants={"sr": 3})
    stream(normal(2, 4, 4))
    state, x = stream.state, normal(2, 4, seed=5)
    assert state["h"].shape == (1, 2, 5)
    made = model.run({"x": x, "sr": np.array(3), **state})
    assert_bits([stream.step(x), stream.state["h"]], [made["y"], made["h_out"]], "as the model takes it")


def test_a_session_begins_in_its_state_again():
    """Until a chunk of it is answered."""
    net, x = layer("lstm"), normal(6, 4)
    state = net(x)[1]
    with fastrnn.Batcher(net) as batcher, batcher.open(state) as session:
        for part in parts(state):
            part += 1
        with pytest.raises(fastrnn.DeadlineError):
            session.submit(x, deadline=0).result(30)
        assert_bits([session.submit(x).result(30)], [net(x, net(x)[1])[0]], "copied")


# ---- The last step ----


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "declared"])
def test_answers_are_what_a_call_gives(name):
    network, _ = NETWORKS[name]
    time_first = not getattr(network, "batch_first", True)
    with fastrnn.Batcher(network, max_batch=3, max_steps_per_tick=4) as batcher:
        x = [sequence(network, steps, seed=steps) for steps in (9, 1, 20, 5)]
        futures = [batcher.submit(one) for one in x]
        for future, one in zip(futures, x):
            y = network(one[:, None] if time_first else one[None])
            y = y[0] if isinstance(y, tuple) else y
            assert_bits([future.result(30)], [y[:, 0] if time_first else y[0]], name)


@pytest.mark.parametrize("op", GATES)
def test_the_last_step_of_streams_and_pools(op):
    net, x = layer(op, 2), normal(3, 9, 4)
    last = net.last()
    want = [net(x[:, :n])[0][:, -1] for n in (4, 9)]
    for network in (last, fastrnn.Sequential(last)):
        stream, out = network.stream(3), np.empty((3, 5), np.float32)
        assert_bits([stream(x[:, :4]), stream(x[:, 4:], out=out), out], [*want, want[1]], "a chunk")
        assert_bits([network.stream(3).step(x[:, 0].copy())], [net(x[:, :1])[0][:, 0]], "a step")
        pool = network.pool(3)
        handles = [pool.open() for _ in range(3)]
        made = pool.step(handles[::-1], [x[k, : 4 + k] for k in (2, 1, 0)])
        assert_bits(made, [net(x[k : k + 1, : 4 + k])[0][0, -1] for k in (2, 1, 0)], "chunks of a pool")
        assert_bits(pool.step(handles, [x[k, :0] for k in range(3)]), made[::-1], "no more steps")
        with fastrnn.Batcher(network) as batcher, batcher.open() as session:
            assert_bits([batcher.submit(x[0, :0]).result(30)], [last(x[:1, :0])[0][0]], "no step")
            for n in (4, 9):
                y = session.submit(x[0, n - 4 if n == 4 else 4 : n]).result(30)
                assert_bits([y], [net(x[:1, :n])[0][0, -1]], "chunks")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (fastrnn.LSTMCell(normal(20, 4), normal(20, 5)), "is a cell"),
        (fastrnn.Dense(np.eye(2)), "takes? a recurrent layer or a model, got Dense"),
        (5, "takes? a recurrent layer or a model, got int"),
    ],
)
def test_what_has_no_states_is_refused(network, reason):
    for make in (fastrnn.Batcher, fastrnn.streams.Stream, lambda network: fastrnn.streams.Pool(network, 2)):
        with pytest.raises(fastrnn.UnsupportedError, match=reason.replace("takes?", "take")):
            make(network)


# ---- Bytes know their network ----


def ways(network, tmp_path):
    """The same network by other ways."""
    path = tmp_path / "net.frnn"
    fastrnn.save(network, path)
    yield "saved", fastrnn.load(path)
    fastrnn.save(fastrnn.load(path), tmp_path / "again.frnn")
    yield "saved again", fastrnn.load(tmp_path / "again.frnn")
    yield "pickled", pickle.loads(pickle.dumps(network))
    yield "copied", copy.deepcopy(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_states_are_restored_whatever_way_the_network_took(name, tmp_path):
    network, options = NETWORKS[name]
    stream, more = begun(network, options), sequence(network, 4, seed=1)
    data, want = stream.save(), stream(more)
    for way, other in ways(network, tmp_path):
        taker = fastrnn.streams.Stream(other, **options)
        taker.restore(data)
        assert_bits([taker(more)], [want], way)
        pool = fastrnn.streams.Pool(other, 2, **options)
        handle = pool.restore(data)
        pool.grow(5)
        stream.restore(pool.export(handle))
        assert_bits([stream(more)], [want], f"{way}, and back")


def changed(network, weight, by=1e-3):
    """The same network with one weight changed."""
    spec = copy.deepcopy(fastrnn.model.as_model(network).spec)
    for node in spec.nodes:
        if weight in node.weights:
            node.weights[weight] = np.array(node.weights[weight])
            node.weights[weight].flat[-1] += np.float32(by)
            return fastrnn.Model(spec)
    raise AssertionError(f"no {weight}")


@pytest.mark.parametrize("name", NETWORKS)
def test_other_weights_are_refused_or_taken_when_asked_for(name):
    network, options = NETWORKS[name]
    data = begun(network, options).save()
    other = changed(network, "weight_hh_l0")
    stream, pool = fastrnn.streams.Stream(other, **options), fastrnn.streams.Pool(other, 2, **options)
    for restore in (stream.restore, pool.restore):
        with pytest.raises(fastrnn.FormatError, match=r"its graph is the same, its weights are not.*any_weights=True"):
            restore(data)
    assert len(pool) == 0
    stream.restore(data, any_weights=True)
    want = fastrnn.streams.Stream(other, **options)
    want.state = begun(network, options).state
    x = sequence(network, 3, seed=2)
    assert_bits(
        [stream(x), pool.step([pool.restore(data, any_weights=True)], [x])[0]], [want(x)] * 2, "trained further"
    )


def others():
    """Networks whose states have the same names and shapes."""
    gru, lstm = layer("gru"), layer("lstm")
    yield gru, layer("gru", reset_after=False)
    yield gru, layer("gru", update_gate="take")
    yield gru, layer("gru", clip=1.0)
    yield gru, layer("gru", cell_activation="relu")
    yield gru, layer("rnn")
    yield layer("gru", gate_activation="hard_sigmoid"), layer("gru", gate_activation=("hard_sigmoid", 1 / 6, 0.5))
    yield lstm, layer("lstm", coupled_input_forget=True)
    yield lstm, layer("lstm", hidden_activation="linear")
    yield (
        row(gru, head()),
        row(gru, fastrnn.Activation("tanh"), head()),
    )
    yield row(gru, head()), row(gru)
    yield declared(), declared(clip=2.0)


@pytest.mark.parametrize("pair", list(others()))
def test_another_graph_is_always_refused(pair):
    options = {"constants": {"sr": 1}} if len(getattr(pair[0], "inputs", [])) == 3 else {}
    data = begun(pair[0], options).save()
    stream = fastrnn.streams.Stream(pair[1], **options)
    before = flat(stream.state)
    for any_weights in (False, True):
        with pytest.raises(fastrnn.FormatError, match="another network"):
            stream.restore(data, any_weights=any_weights)
    assert_bits(flat(stream.state), before, "a refused state changes nothing")


def test_constants_and_pairs_belong_to_the_state():
    model = declared()
    data = begun(model, {"constants": {"sr": 16000}}).save()
    for same in (16000, 16000.0, np.int32(16000), np.array(16000)):
        model.stream(constants={"sr": same}).restore(data)
    model.stream(constants={"sr": 16000}, states={"h_out": "h"}).restore(data)
    with pytest.raises(fastrnn.FormatError, match="constants= or states="):
        model.stream(constants={"sr": 8000}).restore(data, any_weights=True)

    def two(**pairs):
        nodes = [
            Node("rnn", "a", ("x", "p"), ("u", "p2"), {}, {"weight_ih_l0": normal(5, 4), "weight_hh_l0": normal(5, 5)}),
            Node("rnn", "b", ("x", "q"), ("v", "q2"), {}, {"weight_ih_l0": normal(5, 4), "weight_hh_l0": normal(5, 5)}),
        ]
        state = (1, None, 5)
        spec = ModelSpec(
            nodes,
            [Tensor("x", (None, 1, 4)), Tensor("p", state), Tensor("q", state)],
            [Tensor("u", (None, 1, 5)), Tensor("v", (None, 1, 5)), Tensor("p2", state), Tensor("q2", state)],
        )
        return fastrnn.Model(spec).stream(states=pairs)

    data = two(p2="p", q2="q").save()
    two(q2="q", p2="p").restore(data)
    with pytest.raises(fastrnn.FormatError, match="constants= or states="):
        two(p2="q", q2="p").restore(data)


def test_names_and_orders_do_not_matter():
    model, x = declared(), normal(3, 4)
    renamed = declared(names=("frame", "hidden", "rate_in", "out", "hidden_out"))
    stream, other = begun(model, {"constants": {"sr": 2}}), renamed.stream(constants={"rate_in": 2})
    other.restore(stream.save())
    assert_bits([other(x)], [stream(x)], "other names of states")
    spec = row(layer("lstm", 2), head()).spec
    other = copy.deepcopy(spec)
    for node in other.nodes:
        node.name += "!"
        node.attrs = dict(reversed([*fingerprint.OPS[node.op].attrs.items()])) | node.attrs
        node.weights = dict(reversed(node.weights.items()))
        if node.op == "lstm":
            node.attrs |= {"gate_activation": ["sigmoid", 0, None], "num_layers": np.int64(2)}
            node.inputs = (*node.inputs, "", "")
    assert fingerprint.of_model(other) == fingerprint.of_model(spec)
    net = layer("lstm", 2)
    for same in (net.last(), layer("lstm", 2, name="other"), layer("lstm", 2, batch_first=False)):
        assert same.fingerprint() == net.fingerprint()
    fastrnn.set_num_threads(2)
    assert layer("lstm", 2, backend="blas").fingerprint() == net.fingerprint()


def test_it_is_made_once(monkeypatch):
    made, of_layer = [], fingerprint.of_layer
    monkeypatch.setattr("fastrnn.recurrent.of_layer", lambda node: (made.append(node), of_layer(node))[1])
    net = layer()
    streams = [net.stream() for _ in range(8)]
    assert made == []
    data = streams[0].save()
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda stream: stream.save(), streams)) == {data}
    assert len(made) == 1


def test_bytes_of_version_1():
    """As fastrnn 0.1.0 wrote them."""
    net = layer("lstm")
    stream = begun(net, {})
    states = stream._store.read(None)
    from fastrnn.loaders import state_bytes

    metadata = {"format": "fastrnn-state", "version": "1", "checksum": str(state_bytes._checksum(states, {}))}
    old = b"".join(safetensors.chunks(states, metadata))
    taker, pool = net.stream(), net.pool(2)
    for restore in (taker.restore, pool.restore):
        with pytest.raises(fastrnn.FormatError, match=r"version 1.*any_weights=True"):
            restore(old)
    taker.restore(old, any_weights=True)
    assert_bits(parts(taker.state), parts(stream.state), "read all the same")
    pool.restore(old, any_weights=True)
    with pytest.raises(fastrnn.FormatError, match="another network"):
        layer("lstm", 2).stream().restore(old, any_weights=True)
