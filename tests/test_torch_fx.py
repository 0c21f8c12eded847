"""Live PyTorch modules captured by torch.fx: layers, functions, methods and whole models, against PyTorch itself."""

import copy
import pickle

import numpy as np
import pytest

import fastrnn
from fastrnn import reference
from fastrnn.loaders.torch import from_object

torch = pytest.importorskip("torch")
from test_load_torch import trained  # noqa: E402

nn = torch.nn
F = torch.nn.functional
rnn = torch.nn.utils.rnn


def flat(result) -> list:
    """The tensors of PyTorch's nested result in order."""
    if isinstance(result, dict):
        return [tensor for part in result.values() for tensor in flat(part)]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result if part is not None for tensor in flat(part)]
    return [torch.as_tensor(result)]


def feeds(inputs: tuple, spec) -> dict:
    return dict(zip([t.name for t in spec.inputs], [t.numpy() for t in flat(inputs)], strict=True))


def check(module, *calls, example=None) -> None:
    """The spec computes what PyTorch does on each of the calls, which may have other free sizes than the example."""
    module.eval()
    before = copy.deepcopy(module.state_dict())
    spec = from_object(module, example_inputs=example)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    model = pickle.loads(pickle.dumps(fastrnn.Model(spec)))  # by way of the native format
    for inputs in calls:
        results = reference.run(spec, feeds(inputs, spec))
        engine = model.run(feeds(inputs, spec))
        with torch.no_grad():
            expected = flat(module(*copy.deepcopy(inputs)))
        assert len(spec.outputs) == len(expected)
        for tensor, theirs in zip(spec.outputs, expected):
            ours = results[tensor.name]
            assert ours.shape == tuple(theirs.shape)
            assert ours.ndim == len(tensor.shape)
            assert np.dtype(tensor.dtype).kind == theirs.detach().numpy().dtype.kind
            np.testing.assert_allclose(ours, theirs.detach().double().numpy(), rtol=1e-4, atol=2e-6)
            np.testing.assert_allclose(engine[tensor.name], ours, rtol=1e-4, atol=4e-6)


class Calls(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        self.register_parameter("weight", nn.Parameter(torch.linspace(-1, 1, 6)))
        self.register_buffer("table", torch.arange(300.0).reshape(50, 6) / 50)


class One(Calls):
    def forward(self, x):
        return self.function(self, x)


class Two(Calls):
    def forward(self, x, y):
        return self.function(self, x, y)


# Functions of one input of shape (batch, time, 6)

FUNCTIONS = {
    "arithmetic": lambda m, x: (x + 1) * 2 - x / 3 + (1 - x) ** 2 - 1 / (x * x + 1) + x**3,
    "add_alpha": lambda m, x: torch.add(x, x, alpha=2) - torch.sub(x, 1, alpha=3),
    "activations": lambda m, x: F.relu(x) + torch.sigmoid(x) * x.tanh() + F.silu(x) + F.gelu(x) + x.relu() + F.mish(x),
    "more_activations": lambda m, x: (
        F.elu(x, 0.5)
        + F.leaky_relu(x, 0.2)
        + F.hardtanh(x, -0.5, 0.5)
        + F.softplus(x)
        + F.selu(x)
        + F.hardsigmoid(x)
        + F.hardswish(x)
        + F.logsigmoid(x)
        + F.softsign(x)
        + F.relu6(x)
        + F.celu(x, 0.7)
        + F.gelu(x, approximate="tanh")
        + F.softplus(x, beta=2.0)
    ),
    "unary": lambda m, x: (
        x.abs().sqrt()
        + x.exp()
        - (x.abs() + 1).log()
        + x.neg()
        + x.sin() * torch.cos(x)
        + torch.floor(x)
        + x.ceil()
        + torch.sign(x)
        + x.square()
        + (x.abs() + 1).rsqrt()
        + torch.erf(x)
        + torch.log1p(x * x)
        + x.round()
        + x.reciprocal().clamp(-2, 2)
    ),
    "clamp": lambda m, x: x.clamp(-0.5, 0.5) + x.clamp(min=0) + torch.clamp(x, max=0.1) + x.clamp_min(0.2),
    "compare": lambda m, x: ((x > 0) & (x <= 1), ~(x == 0) | (x < -1), x.ne(0), x.ge(0.5), torch.logical_not(x > 0)),
    "where": lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)) + torch.where(x > 0, 1.0, x) + x.where(x < 0, -x),
    "masked_fill": lambda m, x: x.masked_fill(x > 0, float("-inf")).exp(),
    "bool_arithmetic": lambda m, x: ((x > 0).float() * x, (x > 0).sum(1), (x > 0).long() + 1, (x > 0) * 2.0),
    "reductions": lambda m, x: (x.sum(1), x.mean(dim=-1, keepdim=True), x.amax(1), x.amin((1, 2)), x.sum(), x.prod(2)),
    "max": lambda m, x: (x.max(dim=1)[0], x.max(1).values, x.max(), x.min(-1)[1], torch.max(x, -x), x.max(2).indices),
    "argmax": lambda m, x: (x.argmax(-1), x.argmax(), torch.argmin(x, dim=1, keepdim=True)),
    "norm": lambda m, x: (x.norm(dim=-1), x.norm(p=1, dim=2, keepdim=True), F.normalize(x, dim=-1), x.norm()),
    "var": lambda m, x: (x.var(1), x.std(dim=2, unbiased=False), x.std(-1, keepdim=True), x.var()),
    "logsumexp": lambda m, x: (x.logsumexp(1), x.cumsum(1), (x > 0).any(1), (x > 0).all()),
    "softmax": lambda m, x: (F.softmax(x, -1), x.softmax(1), torch.log_softmax(x, dim=2), F.log_softmax(x, 1)),
    "slices": lambda m, x: (
        x[:, -1],
        x[:, 0, 1:4],
        x[..., ::2],
        x[:, 1:],
        x[:, :-1, None],
        x[0],
        x[..., -1],
        x[:, -2:],
    ),
    "new_axes": lambda m, x: (x[:, None], x[None, ..., 0], x[:, -1, None, :, None]),
    "indices": lambda m, x: (x[:, :, [0, 3]], x[:, m.table[:2, 1].long()], x.index_select(2, torch.tensor([5, 0]))),
    "last_steps": lambda m, x: x[torch.arange(x.size(0)), torch.full((x.size(0),), -2)],
    "shapes": lambda m, x: (
        x.view(x.size(0), -1),
        x.reshape(-1, 6),
        x.flatten(1),
        x.flatten(),
        x.view(x.shape[0], -1, 2, 3),
    ),
    "sizes": lambda m, x: x.reshape(x.size(0) * x.size(1), x.size(2)) / x.size(1) + x.shape[-1] // 4,
    "unpacked": lambda m, x: (lambda b, t, f: x.reshape(b, t * f // 2, 2))(*x.shape),
    "shape_sum": lambda m, x: x.reshape(x.shape[:-1] + (2, 3)),  # noqa: RUF005 (as people write it)
    "unflatten": lambda m, x: (x.unflatten(2, (2, 3)), x.flatten(0, 1), x.unflatten(-1, (3, -1)).flatten(2, 3)),
    "axes": lambda m, x: (
        x.transpose(1, 2),
        x.permute(2, 0, 1),
        x.permute((1, 0, 2)),
        x[0].t(),
        x.mT,
        x[:, 0].T,
        x.swapaxes(0, -1),
    ),
    "unsqueeze": lambda m, x: (
        x.unsqueeze(-1),
        x.unsqueeze(1).squeeze(1),
        x[:, :, :1].squeeze(),
        x[:, :, :1].squeeze(-1),
        x.squeeze(0),
    ),
    "cat": lambda m, x: (
        torch.cat([x, x * 2], -1),
        torch.stack([x, -x], dim=1),
        torch.cat((x, x), dim=1),
        torch.stack((x, x), -1),
    ),
    "cat_kinds": lambda m, x: torch.cat([x, (x > 0).long()], 1),
    "split": lambda m, x: (x.split(4, dim=-1), torch.split(x, [1, 5], 2), x.chunk(4, -1), torch.chunk(x, 2, dim=2)),
    "unbind": lambda m, x: (x[:, :, :3].unbind(-1), [step * 2 for step in x.unbind(2)]),
    "narrow": lambda m, x: (x.narrow(1, 1, 2), x.select(1, -1), x.flip(1), torch.flip(x, [0, 2])),
    "expand": lambda m, x: (x[:, :1].expand(-1, 4, -1), x[:, 0].unsqueeze(1).expand_as(x), x[:, :1].expand(x.size())),
    "repeat": lambda m, x: (x.repeat(1, 2, 1), x[:, 0].repeat(3, 1, 1), x.repeat(1, x.size(1), 1), torch.tile(x, (2,))),
    "gather": lambda m, x: torch.gather(x, 1, (x[:, :1] > 0).long()),
    "pad": lambda m, x: (
        F.pad(x, (1, 2)),
        F.pad(x, (0, 0, 1, 0), value=3.0),
        F.pad(x, (2, 1), "reflect"),
        F.pad(x, (1, 1), mode="replicate"),
        F.pad(x, (1, 1), mode="circular"),
        F.pad(x, (-1, 0)),
    ),
    "new": lambda m, x: (
        torch.zeros(x.size(0), 3),
        torch.ones(2, x.size(1), device=x.device),
        x.new_zeros(x.size(0), 2),
        torch.full((x.size(1), 2), 0.5),
        torch.ones_like(x),
        x.new_full((2,), 7.0),
        torch.zeros(x.shape),
    ),
    "arange": lambda m, x: (torch.arange(x.size(1)), torch.arange(1, x.size(1), 2), torch.arange(x.size(1)).float()),
    "mask": lambda m, x: torch.arange(x.size(1))[None, :] < torch.arange(x.size(0))[:, None],
    "causal": lambda m, x: (torch.triu(torch.ones(x.size(1), x.size(1)), diagonal=1), torch.tril(x @ x.mT)),
    "matmul": lambda m, x: (x @ x.mT, torch.bmm(x, x.transpose(1, 2)), torch.matmul(x, m.weight), m.table @ x[0].t()),
    "addmm": lambda m, x: torch.addmm(m.table[:4, :4], x[0, :4], x[0, :4].t(), beta=2.0),
    "einsum": lambda m, x: (
        torch.einsum("btf,btg->bfg", x, x),
        torch.einsum("btf,f->bt", x, m.weight),
        torch.einsum("btf->tb", x),
        torch.einsum("bif,bjf->bij", x, x),
        torch.einsum("btf,btf->b", x, x),
        torch.einsum("ij,kj", x[0], x[1]),
        torch.einsum("f,g->gf", m.weight, m.weight),
        torch.einsum("btf,kf->kbt", x, m.table),
    ),
    "parameters": lambda m, x: x * m.weight + m.table[: x.size(1)] + torch.tensor([0.5, 1, 2, 3, 4, 5]),
    "linear": lambda m, x: (F.linear(x, m.table, m.table[:, 0]), F.linear(x, x[0])),
    "embedding": lambda m, x: F.embedding((x > 0).long(), m.table),
    "layer_norm": lambda m, x: (F.layer_norm(x, (6,), m.weight), F.layer_norm(x, [6])),
    "functions": lambda m, x: (
        F.glu(x),
        F.dropout(x, 0.5, m.training),
        F.max_pool1d(x, 2),
        F.avg_pool1d(x, 3, 1, 1),
        F.adaptive_avg_pool1d(x, 1),
        F.prelu(x, torch.tensor([0.3])),
    ),
    "attention": lambda m, x: (
        F.scaled_dot_product_attention(x, x, x),
        F.scaled_dot_product_attention(x, x, x, x @ x.mT > 0),
    ),
    "in_place": lambda m, x: (x * 1).add_(2).mul_(x).relu_(),
    "in_place_later": lambda m, x: (lambda y: (y.mul_(2), y + 1)[1])(x + 1),
    "ranks": lambda m, x: x * x.dim() if x.dim() == 3 and x.ndim == 3 and len(x.shape) == 3 else x[0],
    "types": lambda m, x: (
        x.to(torch.float32),
        x.long(),
        x.to(x.device),
        x.double().float(),
        (x > 0).type_as(x),
        x.int() // 2,
    ),
    "integers": lambda m, x: (
        x.long() // 2,
        x.long() % 3,
        x.long() / 2,
        -x.long(),
        abs(x.long()),
        torch.div(x, 2, rounding_mode="floor"),
    ),
    "constant": lambda m, x: (x, x, torch.tensor(3.0), m.weight, 1.5),
    "nothing": lambda m, x: x.contiguous().detach().clone(),
    "dictionary": lambda m, x: {"a": x + 1, "b": (x, x * 2)},
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    calls = [(torch.randn(b, t, 6) * 2,) for b, t in ((4, 5), (5, 7))]
    if name in ("unbind", "split"):
        calls.append((torch.randn(1, 3, 6),))
    check(One(FUNCTIONS[name]), *calls, example=calls[0])


# Layers: (layer, shape of the input with 2 and 5 as the free sizes)

LAYERS = [
    (nn.Conv1d(6, 4, 3), (2, 6, 5)),
    (nn.Conv1d(6, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False), (2, 6, 9)),
    (nn.Conv1d(6, 4, 4, padding="same"), (2, 6, 5)),
    (nn.Conv1d(6, 4, 3, padding="valid"), (6, 5)),
    (nn.Conv1d(6, 4, 3, padding=2, padding_mode="reflect"), (2, 6, 5)),
    (nn.Conv1d(6, 4, 3, padding=1, padding_mode="replicate"), (2, 6, 5)),
    (nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 5)),
    (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 3, 7, 5)),
    (nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), (2, 3, 7, 5)),
    (nn.Conv2d(3, 6, 3, groups=3), (3, 7, 5)),
    (nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 6, 5)),
    (nn.ConvTranspose2d(3, 4, 3, stride=2, dilation=2, bias=False), (2, 3, 4, 5)),
    (nn.MaxPool1d(2), (2, 6, 5)),
    (nn.MaxPool1d(3, 2, padding=1, ceil_mode=True), (2, 6, 6)),
    (nn.MaxPool2d((2, 3), dilation=2), (2, 3, 7, 8)),
    (nn.AvgPool1d(3, 2, padding=1), (2, 6, 5)),
    (nn.AvgPool1d(3, 2, padding=1, count_include_pad=False, ceil_mode=True), (2, 6, 6)),
    (nn.AvgPool2d(2), (2, 3, 7, 8)),
    (nn.AdaptiveAvgPool1d(1), (2, 6, 5)),
    (nn.AdaptiveMaxPool1d(1), (2, 6, 5)),
    (nn.AdaptiveAvgPool2d((1, 1)), (2, 3, 7, 5)),
    (nn.AdaptiveMaxPool2d(1), (2, 3, 7, 5)),
    (nn.BatchNorm1d(6), (2, 6, 5)),
    (nn.BatchNorm2d(3, eps=1e-2), (2, 3, 7, 5)),
    (nn.LayerNorm([5, 6]), (2, 5, 6)),
    (nn.GroupNorm(3, 6), (2, 6, 5)),
    (nn.GroupNorm(1, 6, affine=False), (2, 6, 5, 4)),
    (nn.InstanceNorm1d(6), (2, 6, 5)),
    (nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (2, 6, 5)),
    (nn.InstanceNorm2d(3, affine=True), (2, 3, 7, 5)),
    (nn.RMSNorm(6), (2, 5, 6)),
    (nn.PReLU(), (2, 5, 6)),
    (nn.PReLU(6), (2, 6, 5)),
    (nn.GLU(1), (2, 6, 5)),
    (nn.Softmax(1), (2, 6, 5)),
    (nn.LogSoftmax(1), (2, 6, 5)),
    (nn.CELU(0.5), (2, 5)),
    (nn.Flatten(), (2, 6, 5)),
    (nn.Flatten(0, 1), (2, 6, 5)),
    (nn.Unflatten(1, (2, 3)), (2, 6, 5)),
    (nn.ReflectionPad1d((2, 1)), (2, 6, 5)),
    (nn.ReflectionPad2d(1), (2, 3, 4, 5)),
    (nn.ReplicationPad1d(2), (2, 6, 5)),
    (nn.ZeroPad1d(1), (2, 6, 5)),
    (nn.ZeroPad2d((1, 0, 2, 1)), (2, 3, 4, 5)),
    (nn.ConstantPad1d(1, 0.5), (2, 6, 5)),
    (nn.Linear(6, 4, bias=False), (2, 5, 6)),
    (nn.Embedding(9, 4, padding_idx=2), "ids"),
    (nn.Dropout2d(), (2, 5)),
    (nn.ReLU(inplace=True), (2, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_layer(layer, shape):
    """In a module of the user's, on the shape of the example and on another batch."""
    trained(layer)
    if shape == "ids":
        calls = [(torch.randint(0, 9, (n, 3)),) for n in (2, 4)]
    else:
        calls = [(torch.randn(shape),), (torch.randn(3 if shape[0] == 2 else shape[0], *shape[1:]),)]
    check(One(lambda m, x: m.layers[0](x * 1), layer), *calls, example=calls[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(cell, batch_first):
    """All outputs, with and without states; two calls of one layer; a sequence without a batch."""
    layer = getattr(nn, cell)(6, 4, 2, bidirectional=True, batch_first=batch_first)

    def forward(m, x):
        y, state = m.layers[0](x)
        again, _ = m.layers[0](x, state)
        single, _ = m.layers[0](x[0])
        return y[..., :4] * again[..., 4:], state, single

    check(One(forward, layer), (torch.randn(2, 5, 6),), (torch.randn(3, 7, 6),), example=torch.randn(4, 3, 6))


def test_projection():
    check(One(lambda m, x: m.layers[0](x), nn.LSTM(6, 4, proj_size=2)), (torch.randn(5, 2, 6),))


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(cell):
    layer = getattr(nn, cell)(6, 6)

    def forward(m, x):
        state = m.layers[0](x[:, 0])
        h = state[0] if cell == "LSTMCell" else state
        return m.layers[0](h, state), m.layers[0](x[0, 0])

    check(One(forward, layer), (torch.randn(2, 5, 6),), example=torch.randn(3, 3, 6))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_packed_sequences(cell, batch_first):
    """Lengths in any order; PyTorch cuts the result after the longest; the layer's own batch_first does not count."""
    layer = getattr(nn, cell)(6, 4, bidirectional=True, batch_first=not batch_first)

    def forward(m, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=batch_first, enforce_sorted=False)
        out, state = m.layers[0](packed)
        y, n = rnn.pad_packed_sequence(out, batch_first=True)
        whole, _ = rnn.pad_packed_sequence(out, batch_first=batch_first, total_length=x.size(1 if batch_first else 0))
        return y, n, state, whole

    shape = (3, 5) if batch_first else (5, 3)
    calls = [(torch.randn(*shape, 6), torch.tensor(n)) for n in ([2, 5, 3], [1, 4, 4])]
    check(Two(forward, layer), *calls)
    check(Two(forward, layer), *calls, example=calls[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(batch_first):
    layer = nn.MultiheadAttention(6, 2, batch_first=batch_first)
    nn.init.normal_(layer.in_proj_bias)
    x, mask = torch.randn(3, 3, 6), torch.tensor([[False, False, True]] * 3)
    check(Two(lambda m, x, mask: m.layers[0](x, x, x, key_padding_mask=mask), layer), (x, mask), example=(x, mask))
    x, causal = torch.randn(3, 5, 6) if batch_first else torch.randn(5, 3, 6), torch.ones(5, 5).triu(1).bool()
    module = One(lambda m, x: m.layers[0](x, x * 2, x + 1, attn_mask=causal, need_weights=False)[0], layer)
    check(module, (x,), example=x)
    check(One(lambda m, x: m.layers[0](x, x, x, average_attn_weights=False), layer), (x,))
    other = nn.MultiheadAttention(6, 3, kdim=4, vdim=5, bias=False, batch_first=batch_first)
    example = (torch.randn(2, 2, 6), torch.randn(2, 2, 9))
    check(Two(lambda m, x, y: m.layers[0](x, y[..., :4], y[..., 4:]), other), example, example=example)
