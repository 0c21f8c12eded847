"""An example of what a module takes, made from the layers that its arguments reach first."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from itertools import islice, product
from math import prod
from typing import Any, NamedTuple

from ..errors import UnsupportedError
from .torch_modules import RECURRENT, class_name, is_leaf
from .torch_trace import outline

_TRIES = 200
# No size that layers, directions or parts often have: what fits by accident is another model.
SIZES = {"batch": 3, "time": 7, "length": 64, "longer length": 1024}
OTHER_SIZES = SIZES | {"batch": 4, "time": 9}


class Guess(NamedTuple):
    """A shape: numbers are sizes that a layer fixes, names those that are free."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"

    def tensor(self, floating: Any, free: Mapping[str, int]) -> Any:
        """An example with these free sizes; ``floating`` is the dtype of floating-point numbers."""
        torch = sys.modules["torch"]
        sizes = [n if isinstance(n, int) else free[n] for n in self.shape]
        if self.dtype == "lengths":
            return torch.arange(free["time"], free["time"] - sizes[0], -1)
        if self.dtype == "float32":
            return torch.linspace(-1, 1, prod(sizes), dtype=floating).reshape(sizes)
        return torch.zeros(sizes, dtype=getattr(torch, self.dtype))

    def free(self) -> tuple[int | None, ...]:
        return tuple(n if isinstance(n, int) else None for n in self.shape)


def required(module: Any) -> list[str]:
    """Names of the arguments of forward that have no default."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def named(module: Any, example_inputs: Any) -> dict[str, Any]:
    """Examples that the user gives: one tensor, a tuple in the order of the arguments, or a mapping by name."""
    if isinstance(example_inputs, Mapping):
        given = dict(example_inputs)
    else:
        values = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        if len(values) > len(names):
            raise UnsupportedError(f"example_inputs has {len(values)} values, forward takes {len(names)} arguments")
        given = dict(zip(names, values))
    missing = [name for name in required(module) if name not in given]
    if missing:
        raise UnsupportedError(f"example_inputs lacks {', '.join(missing)}")
    return given


def options(module: Any, names: list[str], sure: bool = False) -> dict[str, list[Any]]:
    """What each argument may be, the likeliest first: nests of ``Guess``; empty where no layer tells.

    Where the graph does not say which layer a single argument reaches, the first ones of the module are tried, unless
    only a ``sure`` answer helps.
    """
    graph = outline(module, names)
    modules = dict(module.named_modules())
    leaves = [part for part in modules.values() if is_leaf(part)]
    whole = any(class_name(part) in RECURRENT and not class_name(part).endswith("Cell") for part in leaves)
    found = {}
    for name in names:
        places = [node for node in graph.nodes if node.op == "placeholder" and node.target == name]
        found[name] = list(_for_argument(places[0], graph, modules, whole)) if places else []
        if not found[name] and len(names) == 1 and not sure:
            found[name] = [guess for part in leaves for guess in _for_layer(part, 0, None, whole)][:8]
    return found


_ANY = [Guess(("batch", "time")), Guess(("batch",), "lengths"), Guess(("batch",)), Guess(("batch", "time"), "bool")]


def guesses(choices: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Nests of ``Guess`` for all arguments, the likeliest first."""
    any_of = {name: sorted(_ANY, key=lambda guess: (guess.dtype == "lengths") < ("len" in name)) for name in choices}
    chosen = product(*(found or any_of[name] for name, found in choices.items()))
    yield from (dict(zip(choices, values)) for values in islice(chosen, _TRIES))


def matching(example: Any, choices: list[Any]) -> Any:
    """The first guess that an example fits, or the example itself."""
    return next((guess for guess in choices if _fits(example, guess)), example)


def _fits(example: Any, guess: Any) -> bool:
    if isinstance(guess, Guess):
        shape = getattr(example, "shape", None)
        return shape is not None and len(shape) == len(guess.shape) and all(
            a == n for a, n in zip(shape, guess.free()) if n is not None
        )  # fmt: skip
    both = isinstance(example, (tuple, list)) and len(example) == len(guess)
    return both and all(map(_fits, example, guess))


def _for_argument(placeholder: Any, graph: Any, modules: Mapping[str, Any], whole: bool) -> Iterator[Any]:
    """Follow an argument to the first layer that it reaches."""
    reached, batch_first = {placeholder}, None
    pack = sys.modules["torch"].nn.utils.rnn.pack_padded_sequence
    for node in graph.nodes:
        if not reached & set(node.all_input_nodes):
            continue
        if node.target is pack:
            if _among(reached, (*node.args[1:2], node.kwargs.get("lengths"))):
                yield Guess(("batch",), "lengths")
                return
            batch_first = (*node.args, False, False)[2] or node.kwargs.get("batch_first", False)
        if node.op != "call_module":
            reached.add(node)
            continue
        arguments = (*node.args, *node.kwargs.values())
        position = next((k for k, argument in enumerate(arguments) if _among(reached, argument)), 0)
        state = arguments[position]
        part = (
            next((k for k, s in enumerate(state) if s in reached), None) if isinstance(state, (tuple, list)) else None
        )
        direct = placeholder in node.all_input_nodes
        natural = list(_for_layer(modules[node.target], position, part, whole, direct))
        if batch_first is not None:  # of the packed sequence, whatever the layer says
            natural = [g._replace(shape=(*(("batch", "time") if batch_first else ("time", "batch")), *g.shape[2:]))
                       for g in natural]  # fmt: skip
        if not natural:
            continue
        yield from natural
        if not direct:
            yield from (changed for guess in natural if isinstance(guess, Guess) for changed in _changed(guess))
        return


def _among(reached: set[Any], argument: Any) -> bool:
    if isinstance(argument, (tuple, list)):
        return any(_among(reached, item) for item in argument)
    return argument.__hash__ is not None and argument in reached


def _changed(guess: Guess) -> Iterator[Guess]:
    """Shapes that a transpose, an unsqueeze or a selection turns into the guessed one."""
    shape = guess.shape
    if len(shape) > 1:
        yield guess._replace(shape=(*shape[:-2], shape[-1], shape[-2]))
        yield from (guess._replace(shape=shape[:k] + shape[k + 1 :]) for k in (len(shape) - 2, len(shape) - 1, 0))
    yield from (guess._replace(shape=("batch", extra, *shape[1:])) for extra in ("time", "batch"))
    yield guess._replace(shape=("batch", *shape))


def _for_layer(m: Any, position: int, part: int | None, whole: bool, direct: bool = True) -> Iterator[Any]:
    """What a layer takes at a position of its arguments; ``part`` of the tuple there."""
    name = class_name(m)
    if name in RECURRENT:
        yield from _for_recurrent(m, name, position, part, direct)
    elif name == "Embedding":
        yield from (Guess(("batch", "time"), "int64"), Guess(("batch",), "int64"))
    elif name == "Linear":
        shapes = [("batch", m.in_features), ("batch", "time", m.in_features)]
        yield from (Guess(shape) for shape in (reversed(shapes) if whole else shapes))
    elif name.startswith(("Conv", "Reflection", "Replication")) and hasattr(m, "kernel_size"):
        axes = len(m.kernel_size)
        yield from (Guess(("batch", m.in_channels, *[length] * axes)) for length in ("length", "longer length"))
    elif name == "LayerNorm":
        yield from (Guess((*lead, *m.normalized_shape)) for lead in (("batch", "time"), ("batch",)))
    elif name == "BatchNorm1d":
        yield from (Guess(("batch", m.num_features)), Guess(("batch", m.num_features, "time")))
    elif name in ("BatchNorm2d", "InstanceNorm2d"):
        yield Guess(("batch", m.num_features, "length", "length"))
    elif name in ("GroupNorm", "InstanceNorm1d"):
        yield Guess(("batch", m.num_channels if name == "GroupNorm" else m.num_features, "length"))
    elif name == "MultiheadAttention":
        lead = ("batch", "time") if m.batch_first else ("time", "batch")
        yield Guess((*lead, m.embed_dim)) if position < 3 else Guess(("batch", "time"), "bool")
    elif name:  # a layer that takes anything
        yield from (
            Guess(("batch", "time")),
            Guess(("batch", "time", "length")),
            Guess(("batch", "time", "length", "length")),
        )


def _for_recurrent(m: Any, name: str, position: int, part: int | None, direct: bool) -> Iterator[Any]:
    if position == 0:
        lead = ("batch",) if name.endswith("Cell") else ("batch", "time") if m.batch_first else ("time", "batch")
        yield Guess((*lead, m.input_size))
        return
    lead = ("batch",) if name.endswith("Cell") else (m.num_layers * (1 + m.bidirectional), "batch")
    h = Guess((*lead, getattr(m, "proj_size", 0) or m.hidden_size))
    c = Guess((*lead, m.hidden_size))
    if part is not None:
        yield c if part else h
        yield from (Guess((2, *c.shape)), Guess((*c.shape, 2)))  # one tensor of both states
    elif name.startswith("LSTM"):
        if direct:
            yield h, c
        else:
            yield from (Guess((2, *c.shape)), Guess((*c.shape, 2)))
    else:
        yield h
