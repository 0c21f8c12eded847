"""Named tensors with PyTorch's names -> nodes; what .pt, .safetensors and live state_dicts have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import FastrnnError, FormatError, ShapeError, UnsupportedError
from ..spec import GATES, ModelSpec, Node, Tensor
from .files import Module, TensorFile, name_list
from .limits import MAX_LAYERS

_RECURRENT_KEY = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(0|[1-9][0-9]{0,5})(_reverse)?)?")
_WEIGHT_HH = re.compile(r"(.*\.)?weight_hh(_l0)?", re.DOTALL)
_CELL_OF_GATES = {len(GATES[cell]): cell for cell in ("lstm", "gru", "rnn")}  # PyTorch has no other cells

PLAIN_WEIGHTS = {
    "dense": {"weight": "weight", "bias": "bias"},
    "embedding": {"weight": "weight"},
    "layer_norm": {"weight": "weight", "bias": "bias"},
    "batch_norm": {"running_mean": "mean", "running_var": "var", "weight": "weight", "bias": "bias"},
}
"""PyTorch's name -> ours for the weights of layers that are not recurrent."""
_IGNORED_KEYS = {"batch_norm": {"num_batches_tracked"}}  # of training only
_PLAIN_KEYS = {key for names in PLAIN_WEIGHTS.values() for key in names}

MODULES = {
    **{f"{cell}{end}": cell.lower() for cell in ("LSTM", "GRU", "RNN") for end in ("", "Cell")},
    "Linear": "dense", "Embedding": "embedding", "LayerNorm": "layer_norm", "BatchNorm1d": "batch_norm",
}  # fmt: skip
"""torch.nn's class -> kind of the layers that have weights."""


def layer_kinds() -> tuple[str, ...]:
    """Kinds of layers that ``load_layers`` finds among named tensors."""
    return (*GATES, *PLAIN_WEIGHTS)


def as_float32(value: Any, where: str) -> np.ndarray:
    """Return a C-contiguous float32 copy of a tensor or array of float32, float16, bfloat16 (torch) or float64.

    A copy, because a model must not change with the module or the arrays that it was taken from.

    Raises
    ------
    ShapeError
        The dtype is not floating point, or a float64 value does not fit into float32.
    """
    array = _to_numpy(value, where)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ShapeError(
            f"{where}: is {array.dtype}, expected float32, float16, bfloat16 or float64; dequantize the weights"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.array(array, np.float32, order="C")
    lost = int(np.count_nonzero(np.isinf(result) & np.isfinite(array))) if array.dtype.itemsize == 8 else 0
    if lost:
        raise ShapeError(
            f"{where}: {lost} float64 value(s) are too large for float32 (3.4e38); scale or clip the weights"
        )
    return result


def _to_numpy(value: Any, where: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):
        raise ShapeError(f"{where}: is of type {type(value).__name__}, expected a NumPy array or a torch tensor")
    try:
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return value.numpy(force=True)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"{where}: is not a dense tensor with data ({error}); pass a dense float tensor"
        ) from error


def select(tensors: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Names under ``prefix`` without it -> full names; the dot at the end of a prefix may be left off."""
    strange = [key for key in tensors if not isinstance(key, str)]
    if strange:
        raise FormatError(f"a state_dict has names of text, found {name_list(strange)}")
    if prefix and not prefix.endswith(".") and any(key.startswith(prefix + ".") for key in tensors):
        prefix += "."
    return {key[len(prefix) :]: key for key in tensors if key.startswith(prefix)}


def spec_from_state_dict(
    tensors: Mapping[str, Any], *, prefix: str = "", nonlinearity: str | None = None, source: str = ""
) -> ModelSpec:
    """Build the model of one recurrent layer from the state_dict of ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` or a cell.

    Parameters
    ----------
    tensors : mapping of str to array or tensor
        Names as PyTorch writes them: ``weight_ih_l0``, ``weight_hh_l0_reverse``, ...; without ``_l0`` they are those
        of a cell.
    prefix : str
        Take the tensors whose names start so and ignore all others.  Without it, tensors of other layers are an error.
    nonlinearity : {"tanh", "relu"}, optional
        Of a simple RNN, whose state_dict does not say it; default "tanh".
    """
    chosen = select(tensors, prefix)
    others, modules = getattr(tensors, "others", {}), getattr(tensors, "modules", {})
    wrong = {name: others[name] for name in select(others, prefix).values()}
    unknown = other_layers(chosen)
    if _is_quantized(tensors, (prefix,)):
        raise UnsupportedError(f"found the weights of a quantized module; {_FLOAT_HINT}")
    if unknown or not chosen:
        found = f"tensors that are not of one recurrent layer: {name_list(unknown)}" if chosen else "no tensors"
        under = f" under the prefix {prefix!r}" if prefix else ""
        raise FormatError(f"found {found}{under}{_instead(wrong, ', but ')}; {_prefix_hint(tensors)}")
    if wrong:
        raise UnsupportedError(f"found {_instead(wrong)}; {TENSOR_HINT}")
    given = {key: tensors[name] for key, name in chosen.items()}
    node = layer_node(given, "", None, modules.get(prefix.removesuffix(".")), nonlinearity)
    return bare_spec(node, source)


_FLOAT_HINT = "take the state_dict of the float module that it was made from"


def _is_quantized(tensors: Iterable[str], prefixes: Iterable[str]) -> bool:
    """Whether weights under a prefix are packed as PyTorch's quantized modules pack them."""
    starts = tuple(prefix.rstrip(".") + "." if prefix else "" for prefix in prefixes)
    packed = ("_packed_params", "_all_weight_values")
    return any(key.startswith(starts) and not set(packed).isdisjoint(key.split(".")) for key in tensors)


TENSOR_HINT = "save it as a tensor, torch.as_tensor(array)"


def _instead(others: Mapping[str, str], before: str = "") -> str:
    """What stands where weights should, named."""
    if not others:
        return ""
    listed = ", ".join(f"{name!r} is an object {what}" for name, what in sorted(others.items())[:40])
    more = f" and {len(others) - 40} more" if len(others) > 40 else ""
    return f"{before}{listed}{more}, no tensor"


def is_weight(key: str) -> bool:
    """Whether a name without its prefix is that of a weight that layers here have."""
    return key in _PLAIN_KEYS or _RECURRENT_KEY.fullmatch(key) is not None


def other_layers(names: Iterable[str]) -> list[str]:
    """Names that are not those of the weights of one recurrent layer."""
    return [name for name in names if not _RECURRENT_KEY.fullmatch(name)]


def _prefix_hint(tensors: Iterable[str]) -> str:
    prefixes = sorted({match[1] or "" for key in tensors if (match := _WEIGHT_HH.fullmatch(key))})
    if not prefixes:
        return (
            "no recurrent weights (weight_hh_l0 or weight_hh) are among the names;"
            ' fastrnn.load_layers(path, {"name": "dense"}) reads other layers'
        )
    first = prefixes[0]
    if first == "":
        return "the recurrent weights have no prefix: take the other tensors out, or fastrnn.load_layers(path, [''])"
    return (
        f"recurrent weights stand under {name_list(prefixes)}: pass prefix={first!r},"
        f" or fastrnn.load_layers(path, [{first[:-1]!r}, ...])"
    )


def recurrent_node(
    tensors: Mapping[str, Any],
    name: str = "",
    op: str | None = None,
    nonlinearity: str | None = None,
    batch_first: bool = True,
) -> Node:
    """Build a recurrent node from tensors that are named as in PyTorch, without a prefix.

    The cell follows from the shapes: ``weight_hh`` has 4 (LSTM), 3 (GRU) or 1 (RNN) times as many rows as the hidden
    size, which is its number of columns, or that of ``weight_hr`` where there is a projection.

    Raises
    ------
    FormatError
        Tensors are missing, or belong to something else; the error names all of them.
    ShapeError
        The shapes do not fit together.
    """
    where = f"layer {name!r}" if name else "the state_dict"
    stacked, num_layers, bidirectional = _stack(tensors, where)
    unbatched = not any("_l" in key for key in tensors)
    arrays = {key: as_float32(tensors[given], f"{where}: {given!r}") for key, given in stacked.items()}
    cell = _cell(arrays, where)
    if op not in (None, cell):
        raise FormatError(f"{where}: asked for {op!r}, but its weights have the shapes of {cell!r}; ask for {cell!r}")
    _check_recurrent_shapes(arrays, cell, num_layers, bidirectional, where)
    attrs: dict[str, Any] = {"num_layers": num_layers, "batch_first": batch_first}
    if bidirectional:
        attrs["direction"] = "bidirectional"
    if unbatched:
        attrs["unbatched"] = True
    if cell == "rnn":
        attrs["activation"] = nonlinearity or "tanh"
    if nonlinearity not in (None, "tanh", "relu"):
        raise UnsupportedError(f"{where}: nonlinearity is {nonlinearity!r}, expected 'tanh' or 'relu', PyTorch's two")
    if nonlinearity and cell != "rnn":
        raise FormatError(f"{where}: has the weights of {cell!r}, but nonlinearity= is for a simple RNN; leave it out")
    inputs, outputs = wiring(cell)
    return Node(cell, name or cell, inputs, outputs, attrs, arrays)


def wiring(op: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the input and output tensors of a layer that stands alone."""
    states = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}.get(op, ())
    return ("x", *(f"{s}_0" for s in states)), ("y", *(f"{s}_n" for s in states))


def _stack(tensors: Mapping[str, Any], where: str) -> tuple[dict[str, str], int, bool]:
    """Map our weight names to the given ones; check that no layer, direction or bias is missing."""
    parts = {}
    for key in tensors:
        match = _RECURRENT_KEY.fullmatch(key)
        if match:
            parts[key] = (match[1], int(match[2] or 0), match[3] or "")
    extra = [key for key in tensors if key not in parts]
    cell_keys = [key for key in parts if "_l" not in key]
    if extra or len(cell_keys) not in (0, len(parts)) or "weight_hr" in cell_keys:
        raise FormatError(f"{where}: {name_list(extra or parts)} are not the weights of one recurrent layer")
    num_layers = 1 + max((layer for _, layer, _ in parts.values()), default=0)
    if num_layers > min(MAX_LAYERS, len(parts)):
        raise FormatError(
            f"{where}: {name_list(parts)} name layer {num_layers - 1}, but most layers before it are missing"
        )
    kinds = {"weight_ih", "weight_hh"} | {kind for kind, _, _ in parts.values()}
    if kinds & {"bias_ih", "bias_hh"}:
        kinds |= {"bias_ih", "bias_hh"}
    ends = sorted({""} | {end for _, _, end in parts.values()})
    stacked = {f"{kind}_l{layer}{end}": key for key, (kind, layer, end) in parts.items()}
    wanted = [f"{kind}_l{layer}{end}" for layer in range(num_layers) for end in ends for kind in sorted(kinds)]
    missing = [key.removesuffix("_l0") if cell_keys else key for key in wanted if key not in stacked]
    if missing:
        raise FormatError(f"{where}: tensors are missing: {name_list(missing)}; found {name_list(parts)}")
    return stacked, num_layers, "_reverse" in ends


def _cell(arrays: Mapping[str, np.ndarray], where: str) -> str:
    weight_hh, weight_hr = arrays["weight_hh_l0"], arrays.get("weight_hr_l0")
    if weight_hh.ndim != 2 or (weight_hr is not None and weight_hr.ndim != 2):
        raise ShapeError(f"{where}: weight_hh and weight_hr must be matrices, weight_hh has shape {weight_hh.shape}")
    hidden_size = (weight_hh if weight_hr is None else weight_hr).shape[1]
    gates, rest = divmod(weight_hh.shape[0], hidden_size) if hidden_size else (0, 0)
    cell = _CELL_OF_GATES.get(gates)
    if cell is None or rest or (weight_hr is not None and cell != "lstm"):
        raise ShapeError(
            f"{where}: weight_hh has {weight_hh.shape[0]} rows for a hidden size of {hidden_size}, "
            "expected 4 times as many (LSTM), 3 times (GRU) or as many (RNN)"
        )
    return cell


def _check_recurrent_shapes(
    arrays: Mapping[str, np.ndarray], cell: str, num_layers: int, bidirectional: bool, where: str
) -> None:
    rows = len(arrays["weight_hh_l0"])
    hidden_size = rows // len(GATES[cell])
    output_size = len(arrays["weight_hr_l0"]) if "weight_hr_l0" in arrays else hidden_size
    weight_ih = arrays["weight_ih_l0"]
    input_size = weight_ih.shape[1] if weight_ih.ndim == 2 else 0
    problems = []
    for key, array in arrays.items():
        kind, _, position = key.rpartition("_l")
        columns = input_size if position.split("_")[0] == "0" else output_size * (1 + bidirectional)
        expected: tuple[int, ...] = {
            "weight_ih": (rows, columns),
            "weight_hh": (rows, output_size),
            "weight_hr": (output_size, hidden_size),
        }.get(kind, (rows,))
        if array.shape != expected:
            problems.append(f"{key} has shape {array.shape}, expected {expected}")
    if problems:
        raise ShapeError(f"{where}: the shapes do not fit together: {'; '.join(problems)}")


def plain_node(tensors: Mapping[str, Any], name: str, op: str) -> Node:
    """Build the node of a layer that is not recurrent from tensors that are named as in PyTorch, without a prefix."""
    where = f"layer {name!r} ({op})"
    ours = PLAIN_WEIGHTS[op]
    unknown = set(tensors) - set(ours) - _IGNORED_KEYS.get(op, set())
    required = {"running_mean", "running_var"} if op == "batch_norm" else {"weight"}
    if unknown or not required <= set(tensors):
        raise FormatError(
            f"{where}: found {name_list(tensors)}, expected {name_list(ours)}; "
            "name another kind of layer in the mapping, or leave this layer out"
        )
    arrays = {ours[key]: as_float32(value, f"{where}: {key!r}") for key, value in tensors.items() if key in ours}
    shapes = {key: array.shape for key, array in arrays.items()}
    if op in ("dense", "embedding"):
        fits = len(shapes["weight"]) == 2 and shapes.get("bias", shapes["weight"][:1]) == shapes["weight"][:1]
    else:
        first = next(iter(shapes.values()))
        fits = len(set(shapes.values())) == 1 and (len(first) == 1 or (op == "layer_norm" and len(first) > 1))
    if not fits:
        listed = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise ShapeError(f"{where}: the weights do not have the shapes of such a layer: {listed}")
    attrs = {"channels_first": True} if op == "batch_norm" else {}
    return Node(op, name, *wiring(op), attrs, arrays)


def layer_node(
    tensors: Mapping[str, Any],
    name: str,
    op: str | None = None,
    module: Module | None = None,
    nonlinearity: str | None = None,
) -> Node:
    """Build the node of one layer.

    Its kind is ``op``, or that of the ``module`` that the tensors were in, or else follows from their names and shapes
    where these leave no doubt.  Options are those of the module.

    Raises
    ------
    UnsupportedError
        The kind is in doubt, or the module is of a class, or has settings, that are not computed.
    FormatError, ShapeError
        The tensors are not those of such a layer.
    """
    kind, settings = module or Module("", {})
    where, known = f"layer {name!r}", MODULES.get(kind)
    if any(settings.get(key) for key in ("_forward_hooks", "_forward_pre_hooks")):
        raise UnsupportedError(
            f"{where}: is nn.{kind} with forward hooks, as weight_norm and spectral_norm set them; remove them"
            " (torch.nn.utils.remove_weight_norm), then save again"
        )
    if kind and not known and op is None:
        raise UnsupportedError(
            f"{where}: is nn.{kind}, of which no layer is built; those of {', '.join(MODULES)} are,"
            " fastrnn.load_tensors gives its tensors"
        )
    if known and op not in (None, known):
        raise FormatError(f"{where}: asked for {op!r}, but it is nn.{kind}; ask for {known!r}")
    if kind == "Embedding" and settings.get("max_norm") is not None:
        raise UnsupportedError(f"{where}: is Embedding with max_norm, which changes the weights in the forward pass")
    op = op or known
    if op in GATES or (op is None and any(_RECURRENT_KEY.fullmatch(key) for key in tensors)):
        told = settings.get("nonlinearity") if kind.startswith("RNN") else _NONLINEARITIES.get(settings.get("mode"))
        if told and nonlinearity not in (None, told):
            raise FormatError(f"{where}: nonlinearity={nonlinearity!r}, but the file says {told!r}; leave it out")
        batch_first = settings.get("batch_first") is not False
        return recurrent_node(tensors, name, op, nonlinearity or told, batch_first)
    if op is None:
        ranks = {key: np.ndim(value) for key, value in tensors.items()}
        if "running_mean" in ranks:
            op = "batch_norm"
        elif ranks == {"weight": 2, "bias": 1}:
            op = "dense"
        else:
            raise UnsupportedError(
                f"{where}: {name_list(tensors)} do not say what kind of layer they belong to;"
                f" pass a mapping, as in {{{name!r}: 'layer_norm'}} (kinds: {', '.join([*GATES, *PLAIN_WEIGHTS])})"
            )
    if op == "layer_norm" and known and not tensors:
        made = Node(op, name or op, *wiring(op), {"axes": len(settings["normalized_shape"])})
    else:
        made = plain_node(tensors, name or op, op)
    if op in ("layer_norm", "batch_norm") and isinstance(settings.get("eps"), (int, float)):
        made.attrs["eps"] = settings["eps"]
    return made


_NONLINEARITIES: dict[Any, str] = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}  # as subclasses of nn.RNN say it


def layer_nodes(file: TensorFile, names: Mapping[str, str | None]) -> dict[str, Node]:
    """Build a node for each name; a name is a prefix below one of the roots of the file.

    Raises
    ------
    FormatError
        Names are not in the file, or in several places of it; the error lists all of them.
    UnsupportedError
        Objects stand where the weights of a layer should.
    """
    groups = _by_owner((*file, *file.others))
    known_roots = sorted(set(file.roots), key=len)
    places = {name: [r for r in known_roots if (r + name).rstrip(".") in groups] for name in names}
    absent = [name for name, found in places.items() if not found]
    quantized = [name for name in names if _is_quantized(file, (root + name for root in known_roots))]
    if quantized:
        raise UnsupportedError(f"the layers {name_list(quantized)} are quantized; {_FLOAT_HINT}")
    if absent:
        raise FormatError(f"no layers called {name_list(absent)} in the file; its layers: {name_list(groups)}")
    doubtful = Counter({name: len(found) for name, found in places.items() if len(found) > 1 and found[0] != ""})
    if doubtful:
        options = [root + name for name in doubtful for root in places[name]]
        raise FormatError(f"layers are in the file more than once: {name_list(options)}; ask by one of these names")
    paths = {name: (found[0] + name).rstrip(".") for name, found in places.items()}
    wrong = {key: file.others[key] for path in paths.values() for key in groups[path].values() if key in file.others}
    if wrong:
        raise UnsupportedError(f"{_instead(wrong)}; {TENSOR_HINT}")
    return {
        name: layer_node({k: file[v] for k, v in groups[path].items()}, name, names[name], file.modules.get(path))
        for name, path in paths.items()
    }


def possible_layers(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the tensors under each prefix may be: rows of ``name``, ``kinds`` that they fit, and ``detail`` in words."""
    rows = []
    for name, keys in _by_owner(tensors).items():
        parts = {weight: tensors[key] for weight, key in keys.items()}
        kinds = [op for op in (*GATES, *PLAIN_WEIGHTS) if _fits(parts, name, op)]
        if kinds:
            shapes = ", ".join(f"{weight} {np.shape(value)}" for weight, value in sorted(parts.items()))
            rows.append({"name": name, "kinds": kinds, "detail": shapes})
    return rows


def _fits(tensors: Mapping[str, Any], name: str, op: str) -> bool:
    try:
        layer_node(tensors, name, op)
    except FastrnnError:
        return False
    return True


def _by_owner(tensors: Iterable[str]) -> dict[str, dict[str, str]]:
    """Prefixes of the names -> names of weights below them -> whole names."""
    groups: dict[str, dict[str, str]] = {}
    for key in tensors:
        owner, _, weight = key.rpartition(".")
        groups.setdefault(owner, {})[weight] = key
    return groups


def bare_spec(node: Node, source: str) -> ModelSpec:
    """The model of one recurrent layer: initial states are optional inputs, the result is (y, state)."""
    inputs, outputs = (recurrent_tensors(node, names) for names in (node.inputs, node.outputs))
    spec = ModelSpec([node], inputs, outputs, nested_state=True, source=source)
    spec.validate()
    return spec


def recurrent_tensors(node: Node, names: Iterable[str]) -> list[Tensor]:
    """The tensors x, y, h_0, c_0, h_n or c_n of a recurrent node, with their shapes."""
    rows, output_size = node.weights["weight_hh_l0"].shape
    directions = 2 if node.attr("direction") == "bidirectional" else 1
    steps: tuple[int | None, ...] = (None, None)
    stack: tuple[int | None, ...] = (node.attr("num_layers") * directions, None)
    if node.attr("unbatched"):
        steps = stack = (None,)
    shapes = {
        "x": (*steps, node.weights["weight_ih_l0"].shape[1]),
        "y": (*steps, output_size * directions),
        "h": (*stack, output_size),
        "c": (*stack, rows // len(GATES[node.op])),
    }
    return [Tensor(name, shapes[name[0]]) for name in names]
