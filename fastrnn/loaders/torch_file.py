"""The ``.pt`` archives of ``torch.save`` and ``torch.jit.save``, read without PyTorch and without a general unpickler.

The archive holds ``<stem>/data.pkl``, a pickle whose tensors are calls of ``_rebuild_tensor_v2(storage, offset, size,
stride, ...)``, and one uncompressed member ``<stem>/data/<key>`` for each storage.  Every offset, size and stride is
checked in Python's unbounded integers against the bytes that the member really has, before a view is made.

``torch.jit.save`` (TorchScript) writes objects of classes whose program lies beside them.  The program is never looked
at: an object is the dictionary of its attributes, and the path of attributes to a tensor is its name.  Constants of the
program are in ``<stem>/constants.pkl`` and ``<stem>/constants/<key>``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from .archive import Member, read_directory, stored
from .files import TensorFile, map_file, short, view_array
from .limits import (
    MAX_CONTAINERS,
    MAX_NAME_LENGTH,
    MAX_NESTING,
    MAX_PICKLE_STEPS,
    MAX_RANK,
    MAX_SHARING,
    MAX_TENSORS,
    MIB,
    check_shape,
)
from .pickle_vm import SAVE_HINT, ScriptObject, StateDict, interpret

ITEM_SIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex128": 16, "complex64": 8, "bool": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
}  # fmt: skip

_STORAGE_DTYPE = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64",
}  # fmt: skip
_UNTYPED = "untyped"  # a storage whose tensors bring their own dtype (_rebuild_tensor_v3)


@dataclass(frozen=True)
class _Storage:
    """A persistent identifier: which member holds the elements, and of what type."""

    member: Member
    dtype: str


@dataclass(frozen=True)
class _Tensor:
    """A tensor as a checked view of a member; offset and strides in bytes."""

    member: Member
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZE[self.dtype]


def read_checkpoint(path: str | os.PathLike[str]) -> TensorFile:
    """Read the names of all tensors of a ``.pt`` file.

    Nested dictionaries, and attributes of TorchScript's modules, are joined with dots.  Constants of a TorchScript
    program are called ``constants.0`` and so on.

    Values that are not tensors (epochs, configurations) are passed over.

    Raises
    ------
    FormatError
        The file is damaged, or its tensors do not fit into its storages.
    UnsupportedError
        It is a whole pickled module, a file of PyTorch before 1.6, or holds tensors that are not dense.
    """
    file = map_file(path)
    if file[:1] == b"\x80":
        raise UnsupportedError(
            "this is a bare pickle, as torch.save wrote it before PyTorch 1.6 (or a pickle of something else);"
            " load it with PyTorch, then torch.save(model.state_dict(), path) writes the format that is read here"
        )
    members = read_directory(file)
    stem = _stem(members)
    big_endian = _big_endian(file, members.get(stem + "byteorder"))

    script = f"{stem}constants.pkl" in members

    def unpickled(name: str, folder: str) -> Any:
        def load_storage(identifier: Any) -> _Storage:
            return _storage(identifier, members, stem + folder)

        classes = "__torch__." if script else ""
        return interpret(stored(file, members[stem + name]), _FUNCTIONS, _CONSTANTS, load_storage, classes)

    value = unpickled("data.pkl", "data/")
    if script:
        if not isinstance(value, ScriptObject):
            raise FormatError(
                f"this TorchScript archive holds {_kind(value)}, expected a module; get a fresh copy of the file"
            )
        value = {"constants": unpickled("constants.pkl", "constants/"), "": value}  # the last comes first
    tensors, roots = _flatten(value)
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > MAX_SHARING * len(file) + MIB:
        raise FormatError(f"the tensors claim {total} bytes together, the file has {len(file)}; {SAVE_HINT}")
    checked: dict[str, memoryview] = {}  # members whose checksum has been compared

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        if tensor.member.name not in checked:
            checked[tensor.member.name] = stored(file, tensor.member)
        data = checked[tensor.member.name]
        return view_array(data, tensor.dtype, tensor.shape, tensor.offset, tensor.strides, big_endian)

    return TensorFile(tensors, read, roots)


def _stem(members: Iterable[str]) -> str:
    """The folder of the archive that holds data.pkl, with its slash."""
    stems = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(stems) != 1:
        raise UnsupportedError(
            f"the zip archive has {len(stems)} members called data.pkl in its top folders, expected 1:"
            f" torch.save did not write it; {SAVE_HINT}"
        )
    return stems[0]


def _big_endian(file: memoryview, member: Member | None) -> bool:
    if member is None:  # before PyTorch 2.1
        return False
    text = bytes(stored(file, member)[:16])
    if text not in (b"little", b"big"):
        raise FormatError(f"the byte order of the archive is {short(text)}, not little or big; the file is damaged")
    return text == b"big"


def _storage(identifier: Any, members: dict[str, Member], folder: str) -> _Storage:
    """The storage of a persistent identifier ("storage", type, key, device, number of elements)."""
    if not (isinstance(identifier, tuple) and len(identifier) == 5 and identifier[0] == "storage"):
        raise FormatError("the pickle refers to something that is not a storage; the file is damaged")
    _, dtype, key, _, count = identifier
    if not isinstance(dtype, _Dtype) or not isinstance(key, str) or type(count) is not int:
        raise FormatError("the pickle describes a storage with values of wrong types; the file is damaged")
    member = members.get(folder + key[:MAX_NAME_LENGTH])
    if member is None:
        raise FormatError(f"the storage {short(key)} is not in the archive; the file is truncated or damaged")
    if count * ITEM_SIZE.get(dtype, 1) != member.size:
        raise FormatError(
            f"the storage {short(key)} should hold {short(count)} elements of {dtype}, but has {member.size} bytes;"
            " the file is damaged"
        )
    return _Storage(member, dtype)


class _Dtype(str):
    """The name of a dtype: a key of ITEM_SIZE, or "untyped"."""


def _rebuild_tensor_v2(arguments: tuple) -> _Tensor:
    match arguments:
        case (_Storage(member, dtype), offset, shape, stride, _, _, *metadata) if dtype != _UNTYPED:
            return _tensor(member, dtype, offset, shape, stride, metadata)
    raise FormatError("the pickle makes a tensor from wrong values; the file is damaged")


def _rebuild_tensor_v3(arguments: tuple) -> _Tensor:
    match arguments:
        case (_Storage(member), offset, shape, stride, _, _, _Dtype() as dtype, *metadata) if dtype != _UNTYPED:
            return _tensor(member, dtype, offset, shape, stride, metadata)
    raise FormatError("the pickle makes a tensor from wrong values; the file is damaged")


def _tensor(member: Member, dtype: str, offset: Any, shape: Any, stride: Any, metadata: list[Any]) -> _Tensor:
    """Check that a view (offset, size and stride in elements) lies inside of the member."""
    where = f"a tensor in {short(member.name)}"
    if any(metadata):
        raise UnsupportedError(f"{where}: is stored as conjugated or negated; {SAVE_HINT} after .resolve_neg()")
    for sizes in (shape, stride):
        if not isinstance(sizes, tuple) or len(sizes) > MAX_RANK:
            raise FormatError(
                f"{where}: size and stride must be tuples of at most {MAX_RANK} numbers; the file is damaged"
            )
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise FormatError(f"{where}: offset, size and stride must be integers >= 0; the file is damaged")
    item, count = ITEM_SIZE[dtype], check_shape(shape, where)
    if count == 0:
        return _Tensor(member, dtype, shape, 0, (0,) * len(shape))
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if (last + 1) * item > member.size:
        end = short((last + 1) * item)
        raise FormatError(f"{where}: reaches to byte {end}, the storage has {member.size}; the file is damaged")
    if count * item > member.size:
        raise UnsupportedError(
            f"{where}: is an expanded view of {short(count)} elements on {member.size} bytes; store tensor.contiguous()"
        )
    # The stride of a dimension of 1 is not used, and may be any number.
    strides = tuple(step * item if n > 1 else item for n, step in zip(shape, stride, strict=True))
    return _Tensor(member, dtype, shape, offset * item, strides)


def _rebuild_parameter(arguments: tuple) -> _Tensor:
    if not 3 <= len(arguments) <= 4 or not isinstance(arguments[0], _Tensor):
        raise FormatError("the pickle makes a parameter from wrong values; the file is damaged")
    return arguments[0]


def _ordered_dict(arguments: tuple) -> StateDict:
    if arguments:
        raise FormatError(f"the pickle makes an OrderedDict in an unknown way; {SAVE_HINT}")
    return StateDict()


def _first_argument(arguments: tuple) -> Any:
    """What a set, size, device or byte string is made from; no weight depends on any of them."""
    return arguments[0] if arguments else None


_FUNCTIONS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": _first_argument,
    "torch.device": _first_argument,
    "builtins.set": _first_argument,
    "__builtin__.set": _first_argument,
    "_codecs.encode": _first_argument,
    **{f"torch.jit._pickle.build_{kind}list": _first_argument for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": _first_argument,
}
_CONSTANTS: dict[str, _Dtype] = {
    **{f"torch.{name}": _Dtype(dtype) for name, dtype in _STORAGE_DTYPE.items()},
    **{f"torch.{dtype}": _Dtype(dtype) for dtype in ITEM_SIZE},
    "torch.storage.UntypedStorage": _Dtype(_UNTYPED),
}


def _flatten(value: Any) -> tuple[dict[str, _Tensor], list[str]]:
    """All tensors by their dotted path, and the path of each dictionary (see ``TensorFile.roots``)."""
    if not isinstance(value, dict):
        raise UnsupportedError(f"the file holds {_kind(value)}, expected a dictionary of tensors; {SAVE_HINT}")
    tensors: dict[str, _Tensor] = {}
    roots: list[str] = []
    pending: list[tuple[str, Any]] = [("", value)]
    visits = 0
    while pending:
        path, container = pending.pop()
        roots.append(path)
        items = list(_items(container))
        visits += len(items)  # a shared container counts each time: a small pickle can describe a huge tree
        if visits > MAX_PICKLE_STEPS:
            raise FormatError(f"the checkpoint has more than {MAX_PICKLE_STEPS} values; {SAVE_HINT}")
        for key, item in items:
            if not isinstance(item, (_Tensor, *_CONTAINERS)):
                continue
            name = path + key
            if len(name) > MAX_NAME_LENGTH:
                raise FormatError(f"the name {short(name)} has {len(name)} characters; the file is damaged")
            if isinstance(item, _Tensor) and name in tensors:
                raise FormatError(f"two tensors are called {short(name)}; {SAVE_HINT}")
            if isinstance(item, _Tensor):
                tensors[name] = item
            else:
                pending.append((name + "." if name else "", item))
            containers = len(roots) + len(pending)
            if name.count(".") > MAX_NESTING or len(tensors) > MAX_TENSORS or containers > MAX_CONTAINERS:
                raise FormatError(
                    f"the checkpoint is nested deeper than {MAX_NESTING} levels, or has more than {MAX_TENSORS} tensors"
                    f" or {MAX_CONTAINERS} containers; {SAVE_HINT}"
                )
    return tensors, roots


_CONTAINERS = (dict, list, tuple, ScriptObject)


def _kind(value: Any) -> str:
    return "a single tensor" if isinstance(value, _Tensor) else f"a {type(value).__name__}"


def _all_in(item: Any, tensors: set[_Tensor]) -> bool:
    """Whether an attribute is a list of nothing but these tensors."""
    return isinstance(item, list) and len(item) > 0 and all(isinstance(t, _Tensor) and t in tensors for t in item)


def _items(container: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(container, ScriptObject):
        container = container.state if isinstance(container.state, (dict, list, tuple)) else (container.state,)
        if isinstance(container, dict):
            # Recurrent modules keep a list of their own weights beside them.
            own = {item for item in container.values() if isinstance(item, _Tensor)}
            container = {key: item for key, item in container.items() if not _all_in(item, own)}
    if isinstance(container, dict):
        yield from container.items()
    else:
        yield from ((str(index), item) for index, item in enumerate(container))
