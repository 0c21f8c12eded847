"""Model files -> ModelSpec.

``FORMATS`` is the registry.  To add a format, write one module here with ``load_spec(path, **options)`` and
``load_tensors(path)``, and add its row; modules are imported when a file needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import described, near
from ..errors import FastrnnError, FormatError, UnsupportedError
from ..file_writer import check_target
from ..spec import GATES, ModelSpec, Node, Tensor
from .files import Data, File, name_list, short
from .foreign import FOREIGN, foreign, refused, refused_archive, refused_folder
from .state_dict import PLAIN_WEIGHTS, other_layers, possible_layers

__all__ = [
    "FORMATS",
    "Format",
    "bare_weights",
    "check_destination",
    "find_format",
    "load_layer_specs",
    "load_spec",
    "load_tensors",
    "load_weights",
    "possible_layers",
]


@dataclass(frozen=True)
class Format:
    """A row of the registry.

    ``sniff`` looks at the file; contents count for more than the suffix.  ``options`` are the keywords of the
    module's ``load_spec``.  A format with ``has_graph`` describes its layers, and its module may have
    ``load_layers(path, names, **layer_options) -> dict of ModelSpec`` for those of a model that cannot be loaded as a
    whole; the others only name tensors, and their modules have ``open_tensors(path) -> TensorFile``.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[Data], bool]
    module: str
    options: tuple[str, ...] = ()
    has_graph: bool = False
    layer_options: tuple[str, ...] = ()


def _member_names(file: Data) -> Iterable[str]:
    from .archive import MAGIC, read_directory

    if file[:4] != MAGIC:
        return ()
    try:
        return read_directory(file)
    except FormatError:  # the loader that the suffix chooses reports it
        return ()


def _is_torch(file: Data) -> bool:
    from .torch_file import is_legacy

    return is_legacy(file) or any(name.endswith("/data.pkl") for name in _member_names(file))


def _is_keras(file: Data) -> bool:
    return file[:8] == b"\x89HDF\r\n\x1a\n" or "config.json" in _member_names(file)


def _is_safetensors(file: Data) -> bool:
    return file[8:9] == b"{" and int.from_bytes(file[:8], "little") <= len(file) - 8


def _is_onnx(file: Data) -> bool:
    # Protobuf: field 1 (ir_version) is a small number, then another field of ModelProto begins.
    start = bytes(file[:3])
    return len(start) == 3 and start[0] == 8 and 0 < start[1] < 128 and start[2:] in _MODEL_FIELDS


_MODEL_FIELDS = (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")


def _is_native(file: Data) -> bool:
    from .native import FORMAT
    from .safetensors import read_header

    try:
        return _is_safetensors(file) and read_header(file)[1].get("format") == FORMAT
    except (FormatError, UnsupportedError):
        return False


FORMATS = (
    Format("native", (".frnn",), _is_native, "native", has_graph=True),
    Format("safetensors", (".safetensors",), _is_safetensors, "safetensors", ("prefix", "nonlinearity")),
    Format("torch", (".pt", ".pth", ".jit"), _is_torch, "torch", ("prefix", "nonlinearity")),
    Format("keras", (".keras", ".h5", ".hdf5"), _is_keras, "keras", ("config", "outputs"), True, ("config",)),
    Format("onnx", (".onnx",), _is_onnx, "onnx", ("outputs",), True),
)


_NOT_OURS = {".ckpt", ".csv", ".zip", *(suffix for kind in FOREIGN for suffix in kind.suffixes)}


def find_format(path: str | os.PathLike[str]) -> Format:
    """Find out by its contents, or else by its suffix, of which format a file is.

    Raises
    ------
    FileNotFoundError
        There is nothing at ``path``.
    FormatError
        It is not a regular file, is empty, or is of no known format.
    UnsupportedError
        It is of a format that this version does not read.
    """
    if Path(path).is_dir():
        raise refused_folder(path)
    file = File(path)
    suffix, members = Path(path).suffix.lower(), list(_member_names(file))
    by_contents = next((row for row in FORMATS if row.sniff(file)), None)
    kind = foreign(path, file, members, surely=by_contents is not None)
    if by_contents is not None and (by_contents.name != "onnx" or kind is None):
        return by_contents
    if kind is not None:
        raise refused(path, kind)
    if error := refused_archive(path, members):
        raise error
    for by_suffix in FORMATS:
        if suffix in by_suffix.suffixes:
            return by_suffix
    known = ", ".join(suffix for row in FORMATS for suffix in row.suffixes)
    raise FormatError(
        f"{os.fspath(path)!r} starts with {short(bytes(file[:8]))}, which no known format does; expected one of {known}"
    )


def check_destination(path: str | os.PathLike[str]) -> None:
    """Check that a ``.frnn`` file can be written to ``path``, and would not pass for a file of another format.

    Raises
    ------
    FormatError
        The name ends as those of another format do, or there is something that is no regular file.
    OSError
        The folder is not there, or the file may not be written.
    """
    check_target(path)
    given = Path(os.fsdecode(path))
    others = {suffix for row in FORMATS for suffix in row.suffixes} - {".frnn"}
    if given.suffix.lower() in others | _NOT_OURS:
        raise FormatError(
            f"{str(given)!r} ends in {given.suffix!r}, which other programs would take for another format; fastrnn"
            f" writes its own: call it {given.stem + '.frnn'!r}"
        )


def load_spec(path: str | os.PathLike[str], **options: Any) -> ModelSpec:
    """Load a model of any known format.

    Parameters
    ----------
    path : path
        A ``.frnn``, ``.keras``, ``.h5``, ``.onnx``, ``.pt``, ``.pth`` or ``.safetensors`` file.
    **options
        ``prefix`` and ``nonlinearity`` for state_dicts (.pt, .pth, .safetensors), ``config`` for Keras, ``outputs``
        for Keras and ONNX.

    Raises
    ------
    FastrnnError
        The file cannot be read; the message starts with its name and says why, and what to do.
    """
    row = find_format(path)
    _check_options(path, row, options, row.options)
    with _Named(path):
        return _module(row).load_spec(path, **options)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the raw arrays of a model file by name; nested checkpoint dictionaries are joined with dots."""
    row = find_format(path)
    with _Named(path):
        return _module(row).load_tensors(path)


def load_weights(path: str | os.PathLike[str]) -> Mapping[str, np.ndarray] | None:
    """The tensors of a file that only names tensors, if they are of more than one recurrent layer; else None."""
    row = find_format(path)
    if row.has_graph:
        return None
    with _Named(path):
        file = _module(row).open_tensors(path)
        return file if other_layers(file) else None


def bare_weights(path: str | os.PathLike[str]) -> Mapping[str, np.ndarray] | None:
    """The tensors of a file that names tensors and describes no network; None where it describes one."""
    row = find_format(path)
    with _Named(path):
        module = _module(row)
        if not row.has_graph:
            return module.open_tensors(path)
        return None if not hasattr(module, "has_model") or module.has_model(path) else module.load_tensors(path)


def load_layer_specs(
    path: str | os.PathLike[str], names: Iterable[str] | Mapping[str, Any], **options: Any
) -> dict[str, ModelSpec]:
    """Load single layers of a larger file.

    Parameters
    ----------
    path : path
        A model file of any known format.
    names : list of str, or mapping of str to kind
        Prefixes of tensors ("encoder.lstm"), below the top or below a nested dictionary of a checkpoint; for formats
        that describe their layers, names of layers.  A kind is a key of ``spec.OPS`` or a class with such an attribute
        ``op``; with a list it follows from the shapes of the tensors where these leave no doubt.  For Keras weights
        without a configuration it can also be the name of a Keras class, see ``loaders.keras.load_layers``.
    **options
        ``config`` for Keras weights.

    Returns
    -------
    dict
        A graph for each name: of one node, from x (and h_0, c_0) to y (and h_n, c_n), or of the several that the layer
        of another framework became.
    """
    from .state_dict import layer_nodes

    if isinstance(names, str):
        raise UnsupportedError(f"names is the text {names!r}, expected a list of names or a mapping; write [{names!r}]")
    if strange := [name for name in names if not isinstance(name, str)]:
        raise UnsupportedError(f"names of layers are texts, got {described(strange[0])}")
    row = find_format(path)
    _check_options(path, row, options, row.layer_options)
    module = _module(row)
    given = names if isinstance(names, Mapping) else dict.fromkeys(names)
    kinds = {name: getattr(kind, "op", kind) for name, kind in given.items()}
    unknown = [f"{name}: {kind}"[:80] for name, kind in kinds.items() if kind not in (None, *_LOADABLE)]
    with _Named(path):
        has_layers = row.has_graph and hasattr(module, "load_layers")  # which may be of kinds of its own
        if unknown and not has_layers:
            raise UnsupportedError(
                f"not kinds of layers with weights: {name_list(unknown)}; known: {', '.join(_LOADABLE)}"
            )
        if not row.has_graph:
            file = module.open_tensors(path)
            return {name: _alone(node) for name, node in layer_nodes(file, kinds).items()}
        if has_layers:
            specs = _rewired(module.load_layers(path, kinds, **options))
        else:
            specs = _graph_layers(module, path, list(kinds), options)
        found = {name: " + ".join(node.op for node in spec.nodes) for name, spec in specs.items()}
        wrong = [
            f"{name} is {found[name]}, not {op}" for name, op in kinds.items() if op in _LOADABLE and op != found[name]
        ]
        if wrong:
            raise FormatError(f"layers are of another kind: {name_list(wrong)}; ask for what they are")
        return specs


_LOADABLE = (*GATES, *PLAIN_WEIGHTS)


def _graph_layers(
    module: Any, path: str | os.PathLike[str], names: list[str], options: Mapping[str, Any]
) -> dict[str, ModelSpec]:
    """Layers of a model that describes itself, by name."""
    spec = module.load_spec(path, **options)
    nodes = {node.name: node for node in spec.nodes}
    absent = [name for name in names if name not in nodes]
    if absent:
        raise FormatError(f"no layers called {name_list(absent)} in the file; its layers: {name_list(nodes)}")
    return {name: _alone(nodes[name]) for name in names}


def _rewired(specs: Mapping[str, ModelSpec]) -> dict[str, ModelSpec]:
    """Tensors of single nodes have the names that ours have."""
    return {name: _alone(spec.nodes[0]) if len(spec.nodes) == 1 else spec for name, spec in specs.items()}


def _alone(node: Node) -> ModelSpec:
    """A graph of one node."""
    from .state_dict import wiring

    inputs, outputs = wiring(node.op)
    alone = replace(node, inputs=inputs, outputs=outputs)
    return ModelSpec([alone], [Tensor(name, None) for name in inputs], [Tensor(name, None) for name in outputs])


def _check_options(
    path: str | os.PathLike[str], row: Format, options: Mapping[str, Any], known: tuple[str, ...]
) -> None:
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UnsupportedError(
            f"{os.fspath(path)!r} is read as {row.name}, which has no option {name_list(unknown)} here;"
            f" its options: {', '.join(known) or 'none'}{near(unknown[0], (*known, *OF_ALL_FORMATS))}"
        )


OF_ALL_FORMATS = ("backend", "threads", "dtype", "verify")
"""Options of ``fastrnn.load``, whatever the file."""


def _module(row: Format) -> Any:
    return import_module(f".{row.module}", __name__)


class _Named:
    """Puts the name of the file before the message of an error that does not start with it."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FastrnnError) and not str(error).startswith(Path(self.path).name):
            error.args = (f"{self.path!r}: {error}",)
