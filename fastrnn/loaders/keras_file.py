"""The files that Keras writes: where the configuration, the version and the weights of a model are.

===============  ==================================================  ===========================================
file             configuration                                       a weight
===============  ==================================================  ===========================================
``.keras``       ``config.json`` in the zip archive                  ``layers/lstm_1/cell/vars/0`` in its HDF5 file
``.weights.h5``  none                                                ``layers/lstm_1/cell/vars/0``
``.h5``          attribute ``model_config``                          ``model_weights/encoder/.../lstm_cell/kernel``
old weights      none                                                ``encoder/.../kernel:0``
===============  ==================================================  ===========================================

The first two name a layer by its class and its rank among the layers of that class, and a weight by its number; the
last two name both as the model does.  :class:`LayerWeights` hides the difference.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FastrnnError, FormatError, ShapeError, UnsupportedError
from . import archive
from .archive import Member
from .files import Data, File, name_list, short
from .hdf5 import MAGIC as HDF5_MAGIC
from .hdf5 import HDF5File, Stored
from .limits import MAX_CONFIG_SIZE, MAX_INFLATION, MAX_NESTING
from .state_dict import as_float32

OPTIMIZER_GROUPS = ("optimizer", "optimizer_weights")
"""Groups at the root of an HDF5 file that hold the state of an optimizer: not part of the model."""

_MEMBERS = {"config.json", "metadata.json", "model.weights.h5"}
_UNNAMED = ("Functional", "Model", "Sequential", "TimeDistributed")
"""Layers whose weights Keras 3 may name as if they stood outside: they were built before these were called."""
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second one is that of TensorFlow 2.12 to 2.15


@dataclass(frozen=True)
class Version:
    """The version of Keras that wrote a file: some names mean different things."""

    major: int
    minor: int
    standalone: bool  # "2.2.4", not "2.2.4-tf": Keras before it became a part of TensorFlow

    @classmethod
    def parse(cls, text: str | None) -> Version:
        """The version from its text; Keras 3, then the newest, leaves it out of ``to_json()`` and ``.weights.h5``."""
        if text is None:
            return cls(3, sys.maxsize, False)
        found = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.|$)", text)
        if not found:
            raise FormatError(f"keras_version is {short(text)}, expected something like '3.1.0'; the file is damaged")
        major, minor = int(found[1]), int(found[2])
        if major < 2:
            raise UnsupportedError(f"the model was saved by Keras {text}; load and save it with Keras 2 or 3")
        return cls(major, minor, (major, minor) < (2, 4) and not text.endswith("-tf"))

    def __lt__(self, version: tuple[int, int]) -> bool:
        return (self.major, self.minor) < version

    def __ge__(self, version: tuple[int, int]) -> bool:
        return not self < version


@dataclass
class Checkpoint:
    """What one file holds: a configuration or None, the version if it is known, and the weights."""

    where: str
    config: dict[str, Any] | None
    version: str | None
    weights: LayerWeights


@dataclass
class LayerWeights:
    """The weights of one layer, or of a whole model: ``found`` maps names inside the layer to stored tensors.

    ``by_path`` tells how weights are named: by a path of attributes and a number, or by names of layers and weights.
    ``used`` collects, for all layers of a file together, the names of the tensors that were asked for.
    """

    by_path: bool
    found: Mapping[str, Stored]
    used: set[str] = field(default_factory=set)

    def part(self, path: str, name: str = "") -> LayerWeights:
        """The weights of a layer inside this one: at ``path``, or those whose name goes through ``name`` first.

        Without a name the part is no level of its own in a file that names its weights.
        """
        found = self.found
        if self.by_path:  # Keras 2 has private attributes where Keras 3 writes their public names
            starts = (f"{path}/", f"_{path}/")
            found = {
                key.removeprefix(start): v for start in starts for key, v in found.items() if key.startswith(start)
            }
        elif name:
            levels = {key: f"/{key}/".find(f"/{name}/") for key in found}
            first = min((f"/{key}"[:at].count("/") for key, at in levels.items() if at >= 0), default=0)
            found = {key: found[key] for key, at in levels.items() if at >= 0 and f"/{key}"[:at].count("/") == first}
        return LayerWeights(self.by_path, found, self.used)

    def top(self, name: str) -> LayerWeights:
        """The weights of a layer of the outermost model, in a file that names its weights."""
        found = {key[len(name) + 1 :]: value for key, value in self.found.items() if key.startswith(name + "/")}
        return LayerWeights(self.by_path, found, self.used)

    def below(self, name: str) -> LayerWeights:
        """The weights that start with a name, of which the container of all layers may be left off."""
        if not self.by_path:
            return self.top(name)
        parts = [self.part(start + name) for start in ("", *(f"{container}/" for container in _CONTAINERS))]
        return next((part for part in parts if part.found), parts[0])

    def shape(self, index: int, label: str) -> tuple[int, ...] | None:
        """The shape of weight number ``index``, called ``label``, or None where there is no such weight."""
        stored = self._find(index, label)
        return stored.shape if stored else None

    def take(self, index: int, label: str, *shapes: tuple[int | None, ...]) -> np.ndarray:
        """Read weight number ``index``, called ``label``, as float32; its shape must fit one of ``shapes``."""
        stored = self._find(index, label)
        if stored is None:
            have = name_list(self.found) or "none"
            raise FormatError(f"weight {label!r} is missing; its weights in the file: {have}")
        if not any(_fits(stored.shape, shape) for shape in shapes):
            wanted = " or ".join(str(shape).replace("None", "any") for shape in shapes)
            raise ShapeError(
                f"weight {label!r} has shape {stored.shape}, its configuration asks for {wanted};"
                " do the configuration and the weights belong together?"
            )
        self.used.add(stored.name)
        return as_float32(stored.read(), f"weight {label!r}").reshape(stored.shape)

    def drop(self) -> None:
        """Mark all weights as known: those of a layer that was not asked for."""
        self.used.update(stored.name for stored in self.found.values())

    def _find(self, index: int, label: str) -> Stored | None:
        if self.by_path:
            return self.found.get(f"vars/{index}")
        found = [stored for key, stored in self.found.items() if _label(key) == label]
        if len(found) > 1:
            names = name_list(stored.name for stored in found)
            raise FormatError(f"several weights could be {label!r}: {names}; rename the layers in Keras")
        return found[0] if found else None


def layer_weights(layers: list[tuple[str, str]], model: LayerWeights, is_top: bool) -> list[LayerWeights]:
    """The weights of each of ``layers``, (class, name) pairs in the order of the configuration of one model."""
    container = next((c for c in _CONTAINERS if any(key.startswith(c + "/") for key in model.found)), _CONTAINERS[0])
    ranks: Counter[str] = Counter()
    parts = []
    for class_name, name in layers:
        snake = snake_case(class_name)
        rank, ranks[snake] = ranks[snake], ranks[snake] + 1
        if not model.by_path:
            part = model.top(name) if is_top else model.part("", name)
            if not part.found and class_name in _UNNAMED:
                part = model
        elif container == _CONTAINERS[0]:
            part = model.part(f"{container}/{snake}_{rank}" if rank else f"{container}/{snake}")
        else:  # versions count differently there, but all of them count upwards
            groups = {
                key.split("/")[1] for key in model.found if re.match(rf"{container}/{re.escape(snake)}(_\d+)?/", key)
            }
            ordered = sorted(groups, key=lambda group: int(group[len(snake) + 1 :] or 0))
            part = model.part(f"{container}/{ordered[rank]}" if rank < len(ordered) else f"{container}/{snake}_{rank}")
        parts.append(part)
    return parts


def snake_case(class_name: str) -> str:
    """The name of a class as Keras writes it into paths.

    >>> [snake_case(name) for name in ("LSTM", "SimpleRNN", "BatchNormalization", "ReLU", "CuDNNGRU")]
    ['lstm', 'simple_rnn', 'batch_normalization', 're_lu', 'cu_dnngru']
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """Open a ``.keras`` or HDF5 file; the kind is told by its content.  Tensors are read while it is open.

    Raises
    ------
    FileNotFoundError, FormatError, UnsupportedError
        There is no such file; it is damaged, hostile or of another format; it needs what is not read.
    """
    where = Path(path).name
    with errors_name(where):
        data: Data = File(path)
        config: dict[str, Any] | None = None
        version: str | None = None
        if bytes(data[:4]) == archive.MAGIC:
            config, version, data = _unpack(data)
        elif bytes(data[:8]) != HDF5_MAGIC:
            raise FormatError("neither a zip archive (.keras) nor an HDF5 file (.h5); check the name of the file")
        with HDF5File(data[:], OPTIMIZER_GROUPS) as file:
            entries = {name: stored for name, stored in file.entries.items() if "/seed_generator/" not in f"/{name}"}
            by_path = not file.has_attribute("keras_version", "layer_names")
            if config is None:
                text = file.text("model_config")
                config = parse_json(text) if text is not None else None
                version = file.text("keras_version")
            found = {name.removeprefix("model_weights/"): stored for name, stored in entries.items()}
            yield Checkpoint(where, config, version, LayerWeights(by_path, found))


@contextlib.contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Put the name of a file or object in front of the text of errors."""
    try:
        yield
    except FastrnnError as error:
        if not str(error).startswith(where):
            error.args = (f"{where}: {error}",)
        raise


def read_config(source: Any) -> tuple[dict[str, Any], str | None]:
    """A model's configuration and version from a dict, a ``.json``, ``.keras`` or ``.h5`` file, or a live model."""
    if isinstance(source, Mapping):
        try:
            config = parse_json(json.dumps(source))  # get_config() has tuples where files have lists
        except (TypeError, RecursionError) as error:
            raise FormatError(
                f"config= holds what JSON cannot ({short(str(error))}); pass model.to_json() in a file"
            ) from None
        return config, _version_in(config)
    if not isinstance(source, (str, os.PathLike)):
        return live_config(source)
    data, where = File(source), Path(source).name
    if bytes(data[:4]) == archive.MAGIC or bytes(data[:8]) == HDF5_MAGIC:
        with open_checkpoint(source) as checkpoint:
            if checkpoint.config is None:
                raise FormatError(
                    f"{where}: has no configuration; name the file that model.to_json() or model.save() wrote"
                )
            return checkpoint.config, checkpoint.version
    with errors_name(where):
        config = parse_json(data)
    return config, _version_in(config)


def live_config(layer: Any) -> tuple[dict[str, Any], str]:
    """The configuration of a live Keras 3 layer or model, as it would be saved."""
    modules = {base.__module__.partition(".")[0] for base in type(layer).__mro__}
    if "keras" not in modules or not hasattr(layer, "get_config"):
        raise UnsupportedError(
            f"expected a Keras 3 layer or model, got {type(layer).__module__}.{type(layer).__name__};"
            " save it with its own library as a .keras or .h5 file and load that"
        )
    import keras

    where = f"{type(layer).__name__} {layer.name!r}"
    try:
        serialized = json.dumps(keras.saving.serialize_keras_object(layer))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"{where} cannot be serialized ({short(str(error))}); is it a class of your own?"
        ) from None
    return parse_json(serialized), keras.__version__


def parse_json(text: str | Data) -> dict[str, Any]:
    """Parse a JSON object; no NaN, no key twice, no deep nesting."""
    problem = f"larger than {MAX_CONFIG_SIZE} bytes"
    if len(text) <= MAX_CONFIG_SIZE:
        try:
            text = text if isinstance(text, str) else bytes(text[:]).decode()
            value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
            problem = f"nested deeper than {4 * MAX_NESTING} levels" if _depth(value) > 4 * MAX_NESTING else ""
            if not problem and not isinstance(value, dict):
                problem = f"a {type(value).__name__}, expected an object"
        except (ValueError, RecursionError) as error:
            problem = f"not valid JSON ({short(str(error))})"
    if problem:
        raise FormatError(f"the configuration is {problem}; get a fresh copy of the file")
    return value


def _version_in(config: Mapping[str, Any]) -> str | None:
    version = config.get("keras_version")
    return version if version is None else str(version)


def _unpack(data: Data) -> tuple[dict[str, Any], str, bytes | memoryview]:
    """Configuration, version and weights of a .keras archive."""
    members = archive.read_directory(data)
    files = {name: member for name, member in members.items() if not name.endswith("/")}
    if other := set(files) - _MEMBERS:
        raise UnsupportedError(
            f"the archive also holds {name_list(other)}, only {name_list(_MEMBERS)} are read; save a model"
            " without assets, its weights in one HDF5 file"
        )
    if missing := _MEMBERS - set(files):
        raise FormatError(f"the archive lacks {name_list(missing)}; is it a .keras file, and complete?")
    texts = {name: parse_json(_content(data, files[name])) for name in ("config.json", "metadata.json")}
    version = texts["metadata.json"].get("keras_version")
    if not isinstance(version, str):
        raise FormatError("metadata.json has no keras_version; the file is damaged")
    return texts["config.json"], version, _content(data, files["model.weights.h5"])


def _content(data: Data, member: Member) -> bytes | memoryview:
    """The data of a member.  Keras does not compress, but packing such a file again by hand may."""
    if member.method != zlib.DEFLATED or member.flags & 1:
        return archive.stored(data, member)
    problem = f"would inflate to {member.size} bytes, more than {MAX_INFLATION} times its packed size"
    if member.size <= MAX_INFLATION * member.packed_size:
        packed = data[member.start : member.start + member.packed_size]
        try:
            content = zlib.decompressobj(-15).decompress(packed, member.size + 1)
        except zlib.error as error:
            raise FormatError(f"member {member.name!r} is damaged ({error}); get a fresh copy of the file") from None
        if len(content) == member.size and zlib.crc32(content) == member.crc:
            return memoryview(content)
        problem = "does not match its size and checksum"
    raise FormatError(f"member {member.name!r} {problem}; get a fresh copy of the file")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _depth(value: Any) -> int:
    """How deep lists and dicts are nested."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (list, dict))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _label(name: str) -> str:
    """The name of a weight without what TensorFlow adds to make it unique: "lstm/kernel_1:0" is a "kernel"."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", name.rpartition("/")[2])
