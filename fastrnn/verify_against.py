"""What a model is compared with: recordings, other models, and live frameworks.

Each gives tensors by the names that the model's own graph has for them.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .errors import FormatError, ShapeError, UnsupportedError
from .inspect import optional_inputs
from .layers import Layer
from .loaders import FORMATS
from .model import Model, as_model, load
from .spec import ModelSpec

Arrays = dict[str, np.ndarray]

MODEL_SUFFIXES = tuple(suffix for row in FORMATS for suffix in row.suffixes)


class Other(Protocol):
    """What a model is compared with."""

    label: str

    def inputs(self, spec: ModelSpec) -> Arrays | None:
        """The inputs that belong to its tensors; None: it runs on any."""

    def lacks(self, spec: ModelSpec) -> set[str]:
        """Inputs that the model may do without and that this side does not take."""

    def tensors(self, model: Any, feeds: Arrays, engine: Arrays) -> Arrays:
        """Its tensors for these inputs, by the names of the model's; ``engine`` are those of the model."""


def other_side(against: Any) -> Other:
    """What :func:`fastrnn.verify` may compare with, but the reference.

    Raises
    ------
    UnsupportedError
        It is nothing that a model can be compared with.
    """
    if isinstance(against, (str, os.PathLike)):
        suffix = Path(against).suffix
        if suffix == ".npz":
            return Recording(_read_npz(against), os.fspath(against))
        if suffix in MODEL_SUFFIXES:
            return Twin(load(against), os.fspath(against))
    elif isinstance(against, Mapping):
        return Recording({str(name): np.asarray(array) for name, array in against.items()}, "recorded arrays")
    elif isinstance(against, (Model, Layer)):
        return Twin(as_model(against), f"another {type(against).__name__}")
    # Layers of Keras on its torch backend are torch modules too, so Keras goes first.
    for name, kind, run in (("keras", "Layer", _run_keras), ("torch", "nn.Module", _run_torch)):
        framework = sys.modules.get(name)
        if framework is not None and isinstance(against, attrgetter(kind)(framework)):
            return Framework(against, run)
    what = repr(os.fspath(against)) if isinstance(against, (str, os.PathLike)) else f"a {type(against).__name__}"
    raise UnsupportedError(
        f"cannot compare with {what}; pass 'reference', 'recorded', the path of an .npz file that holds inputs and"
        f" outputs by name, a dict of arrays, a model or the path of one ({', '.join(MODEL_SUFFIXES)}), a torch module"
        " or a Keras model"
    )


class Recording:
    """Arrays by name: inputs, outputs, and any inner tensor."""

    def __init__(self, arrays: Arrays, label: str):
        self.arrays, self.label = arrays, label

    def inputs(self, spec: ModelSpec) -> Arrays:
        return {t.name: self.arrays[t.name] for t in spec.inputs if t.name in self.arrays}

    def lacks(self, spec: ModelSpec) -> set[str]:
        return set()

    def tensors(self, model: Any, feeds: Arrays, engine: Arrays) -> Arrays:
        return {name: array for name, array in self.arrays.items() if name not in feeds}


def _read_npz(path: str | os.PathLike[str]) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise FormatError(
            f"{os.fspath(path)}: not an .npz file of plain arrays ({error}); save it with numpy.savez"
        ) from error


class Twin:
    """Another model of this engine.

    Inputs and outputs belong together by name, or else by their order.  Inner tensors are compared where both models
    run a node of the same name and kind.
    """

    def __init__(self, model: Model, label: str):
        self.model, self.label = model, label

    def inputs(self, spec: ModelSpec) -> None:
        return None

    def lacks(self, spec: ModelSpec) -> set[str]:
        return optional_inputs(spec) - {t.name for t in self.model.inputs}

    def tensors(self, model: Any, feeds: Arrays, engine: Arrays) -> Arrays:
        theirs = self.model.spec
        needed = [t.name for t in theirs.inputs if t.name in feeds or t.name not in optional_inputs(theirs)]
        renamed = _pairs(list(feeds), needed, "input(s)")
        found = self.model.trace({renamed.get(name, name): array for name, array in feeds.items()})
        outputs = _pairs([t.name for t in model.spec.outputs], [t.name for t in theirs.outputs], "output(s)")
        named = {name: found[other] for name, other in outputs.items()}
        nodes = {(node.name, node.op): node for node in self.model.graph.nodes}
        for node in model.graph.nodes:
            twin = nodes.get((node.name, node.op))
            for name, other in zip(node.outputs, twin.outputs) if twin else ():
                if name and other and name in engine and engine[name].shape == found[other].shape:
                    named.setdefault(name, found[other])
        return named


def _pairs(mine: Sequence[str], theirs: Sequence[str], what: str) -> dict[str, str]:
    """Names of ours and what they are called there: those that both have, or else all in their order."""
    if shared := [name for name in mine if name in theirs]:
        return dict(zip(shared, shared))
    if len(mine) != len(theirs):
        raise ShapeError(
            f"one model has {len(mine)} {what} ({', '.join(mine)}), the other {len(theirs)} ({', '.join(theirs)}), and"
            " no name is the same; load both with outputs=[...] naming what they share"
        )
    return dict(zip(mine, theirs))


class Framework:
    """A live module of PyTorch, or a model or layer of Keras."""

    def __init__(self, live: Any, run: Callable[[ModelSpec, Any, Arrays, Arrays], Arrays]):
        self.live, self.label, self._run = live, f"a live {type(live).__name__}", run

    def inputs(self, spec: ModelSpec) -> None:
        return None

    def lacks(self, spec: ModelSpec) -> set[str]:
        return set()

    def tensors(self, model: Any, feeds: Arrays, engine: Arrays) -> Arrays:
        try:
            return self._run(model.spec, self.live, feeds, engine)
        except Exception as error:  # whatever a framework raises
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise UnsupportedError(
                f"{self.label} does not take {shapes} ({type(error).__name__}: {error}); pass inputs= that suit it"
            ) from error


def _run_torch(spec: ModelSpec, module: Any, feeds: Arrays, engine: Arrays) -> Arrays:
    """Run a torch module in evaluation mode, recording the submodules that bear the names of our layers."""
    import torch

    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    given = [torch.from_numpy(np.array(feeds[t.name])) for t in spec.inputs if t.name in feeds]
    x, *state = (t.to(parameter) if t.is_floating_point() else t for t in given)
    recurrent = isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase)
    arguments = [x, tuple(state) if len(state) > 1 else state[0]] if recurrent and state else [x, *state]

    submodules = dict(module.named_modules())
    training = {submodule: submodule.training for submodule in submodules.values()}
    seen: Arrays = {}

    def record(names: tuple[str, ...]) -> Callable[[Any, Any, Any], None]:
        def hook(submodule: Any, _arguments: Any, result: Any) -> None:
            batch_first = getattr(submodule, "batch_first", True)
            seen.update(_named(names, _unpacked(result, [engine.get(name) for name in names], batch_first)))

        return hook

    hooks = [
        submodules[node.name].register_forward_hook(record(node.outputs))
        for node in spec.nodes
        if node.name in submodules and submodules[node.name] is not module
    ]
    try:
        module.eval()
        with torch.no_grad():
            result = module(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
        for submodule, mode in training.items():
            submodule.training = mode
    names: Iterable[str] = [tensor.name for tensor in spec.outputs]
    if recurrent:
        names = spec.nodes[-1].outputs
    if isinstance(module, torch.nn.RNNCellBase):  # h, or (h, c), where our nodes have y too
        result = [next(iter(_flatten(result))), result]
    like = [engine.get(name) for name in names]
    return seen | _named(names, _unpacked(result, like, getattr(module, "batch_first", True)))


def _unpacked(result: Any, like: Sequence[np.ndarray | None], batch_first: bool) -> Any:
    """A result of torch whose packed sequences are padded to the lengths of ours, with zeros as ours."""
    from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

    if isinstance(result, PackedSequence):
        ours = like[0] if like else None
        total = None if ours is None or ours.ndim < 2 else ours.shape[1 if batch_first else 0]
        if total is not None and total < len(result.batch_sizes):
            total = None
        return pad_packed_sequence(result, batch_first, total_length=total)[0]
    if isinstance(result, tuple) and result and isinstance(result[0], PackedSequence):
        return (_unpacked(result[0], like, batch_first), *result[1:])
    return result


def _run_keras(spec: ModelSpec, live: Any, feeds: Arrays, engine: Arrays) -> Arrays:
    """Run a Keras model or layer, recording the layers that bear the names of ours."""
    import keras

    given = [feeds[t.name] for t in spec.inputs if t.name in feeds]
    result = live(given if len(given) > 1 else given[0], training=False)
    named = _named([tensor.name for tensor in spec.outputs], result)
    outputs_of = {node.name: node.outputs[:1] for node in spec.nodes}  # y; states come in another order
    layers = [layer for layer in getattr(live, "layers", []) if layer.name in outputs_of and _called_once(layer)]
    if layers:
        results = keras.Model(live.inputs, [layer.output for layer in layers])(given, training=False)
        for layer, result in zip(layers, [results] if len(layers) == 1 else results, strict=True):
            named = _named(outputs_of[layer.name], result) | named
    return named


def _called_once(layer: Any) -> bool:
    """Whether a Keras layer has one output in the graph, not several or (inside another layer) none."""
    try:
        return layer.output is not None
    except (AttributeError, ValueError):
        return False


def _named(names: Iterable[str], result: Any) -> Arrays:
    """Name the tensors of a nested result in order, as arrays; an empty name skips one."""
    flat = list(_flatten(result))
    return {
        name: np.asarray(t.detach().cpu().double() if hasattr(t, "detach") else t)
        for name, t in zip(names, flat, strict=False)
        if name
    }


def _flatten(result: Any) -> Iterable[Any]:
    if isinstance(result, Mapping):
        result = tuple(result.values())
    if isinstance(result, tuple | list):
        for item in result:
            yield from _flatten(item)
    else:
        yield result
