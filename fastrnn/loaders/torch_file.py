"""The ``.pt`` archives of ``torch.save`` and ``torch.jit.save``, read without PyTorch and without a general unpickler.

The archive holds ``<stem>/data.pkl``, a pickle whose tensors are calls of ``_rebuild_tensor_v2(storage, offset, size,
stride, ...)``, and one uncompressed member ``<stem>/data/<key>`` for each storage.  Every offset, size and stride is
checked in Python's unbounded integers against the bytes that the member really has, before a view is made.

``torch.save`` of a whole module, and ``torch.jit.save`` (TorchScript), write objects.  Their classes are never looked
at: an object is what the pickle gave to it, and the path of attributes to a tensor is its name.  Constants of a
TorchScript program are in ``<stem>/constants.pkl`` and ``<stem>/constants/<key>``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError
from .archive import Member, read_directory, stored
from .files import Data, File, TensorFile, name_list, short, view_array
from .limits import MAX_NAME_LENGTH, MAX_RANK, MAX_SHARING, MIB, check_shape
from .pickle_vm import MAX_ARGUMENTS, SAVE_HINT, Record, StateDict, interpret
from .torch_names import named_tensors

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
class Tensor:
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

    Keys of nested dictionaries, positions in lists, and names of attributes, parameters and submodules are joined with
    dots.  Constants of a TorchScript program are called ``constants.0`` and so on.

    Values that are not tensors (epochs, configurations, objects of any class) are passed over.  A tensor that is not
    dense has a name, and is an error when it is read.

    Raises
    ------
    FormatError
        The file is damaged, or its tensors do not fit into its storages.
    UnsupportedError
        It is a file of PyTorch before 1.6, or holds no tensors.
    """
    file = File(path)
    if is_legacy(file):
        raise UnsupportedError(
            "this is a bare pickle, as torch.save wrote it before PyTorch 1.6; in PyTorch,"
            f" `torch.save(torch.load({os.fspath(path)!r}, weights_only=True), 'new.pt')` writes the format that is"
            " read here (weights_only=False where it holds a whole module and you trust it)"
        )
    members = read_directory(file)
    stem = _stem(members)
    big_endian = _big_endian(file, members.get(stem + "byteorder"))

    def unpickled(name: str, folder: str) -> tuple[Any, list[str]]:
        def load_storage(identifier: Any) -> _Storage | Record:
            return _storage(identifier, members, stem + folder)

        return interpret(stored(file, members[stem + name]), _FUNCTIONS, _CONSTANTS, load_storage)

    value, unknown = unpickled("data.pkl", "data/")
    if f"{stem}constants.pkl" in members:
        if not isinstance(value, Record):
            raise FormatError(
                f"this TorchScript archive holds {_kind(value)}, expected a module; get a fresh copy of the file"
            )
        constants, more = unpickled("constants.pkl", "constants/")
        value, unknown = {"constants": constants, "": value}, [*unknown, *more]  # the last value comes first
    if isinstance(value, Tensor):
        raise UnsupportedError(f"the file holds {_kind(value)}, which has no name; {SAVE_HINT}")
    found = named_tensors(value, Tensor)
    if not found.tensors and not found.others:
        objects = f" and Python objects that fastrnn never builds: {name_list(unknown)}" if unknown else ""
        raise UnsupportedError(
            f"the file has no tensors, it holds {_kind(value)}{objects}; nothing was run. If the file is yours,"
            f" {SAVE_HINT}"
        )
    dense = {name: tensor for name, tensor in found.tensors.items() if isinstance(tensor, Tensor)}
    total = sum(tensor.nbytes for tensor in dense.values())
    if total > MAX_SHARING * len(file) + MIB:
        raise FormatError(f"the tensors claim {total} bytes together, the file has {len(file)}; {SAVE_HINT}")
    checked: dict[str, bytes | memoryview] = {}  # members whose checksum has been compared

    def read(name: str) -> np.ndarray:
        if name not in dense:
            strange = [f"{key} ({what!r})" for key, what in found.tensors.items() if key not in dense]
            raise UnsupportedError(
                f"tensors are quantized, not dense or of a dtype that NumPy lacks: {name_list(strange)}; save the"
                " state_dict of the float model, or tensor.dequantize(), tensor.to_dense() or tensor.float(); the other"
                " layers can be taken with fastrnn.load_layers"
            )
        tensor = dense[name]
        if tensor.member.name not in checked:
            checked[tensor.member.name] = stored(file, tensor.member)
        data = checked[tensor.member.name]
        return view_array(data, tensor.dtype, tensor.shape, tensor.offset, tensor.strides, big_endian)

    return TensorFile(found.tensors, read, found.roots, found.others, found.modules)


def is_legacy(file: Data) -> bool:
    """Whether a file begins with the number that torch.save wrote before PyTorch 1.6."""
    return b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19" in bytes(file[:32])


def _stem(members: Iterable[str]) -> str:
    """The folder of the archive that holds data.pkl, with its slash."""
    stems = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(stems) != 1:
        raise UnsupportedError(
            f"the zip archive has {len(stems)} members called data.pkl in its top folders, expected 1:"
            f" torch.save did not write it; {SAVE_HINT}"
        )
    return stems[0]


def _big_endian(file: Data, member: Member | None) -> bool:
    if member is None:  # before PyTorch 2.1
        return False
    text = bytes(stored(file, member)[:16])
    if text not in (b"little", b"big"):
        raise FormatError(f"the byte order of the archive is {short(text)}, not little or big; the file is damaged")
    return text == b"big"


def _storage(identifier: Any, members: dict[str, Member], folder: str) -> _Storage | Record:
    """The storage of a persistent identifier ("storage", type, key, device, number of elements)."""
    if not (isinstance(identifier, tuple) and len(identifier) == 5 and identifier[0] == "storage"):
        raise FormatError("the pickle refers to something that is not a storage; the file is damaged")
    _, dtype, key, _, count = identifier
    if isinstance(dtype, Record):
        return dtype  # of quantized numbers, for example
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


def _rebuild_tensor_v2(call: Record) -> Tensor | Record:
    match call.arguments:
        case (_Storage(member, dtype), offset, shape, stride, _, _, *metadata) if dtype != _UNTYPED:
            return _tensor(member, dtype, offset, shape, stride, metadata)
    return _unread(call, "tensor")


def _rebuild_tensor_v3(call: Record) -> Tensor | Record:
    match call.arguments:
        case (_Storage(member), offset, shape, stride, _, _, _Dtype() as dtype, *metadata) if dtype != _UNTYPED:
            return _tensor(member, dtype, offset, shape, stride, metadata)
    return _unread(call, "tensor")


def _unread(call: Record, what: str) -> Record:
    """The call itself, if it was given something that is a record."""
    if not any(isinstance(part, Record) for part in call.arguments or ()):
        raise FormatError(f"the pickle makes a {what} from wrong values; the file is damaged")
    return call


def _tensor(member: Member, dtype: str, offset: Any, shape: Any, stride: Any, metadata: list[Any]) -> Tensor:
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
        return Tensor(member, dtype, shape, 0, (0,) * len(shape))
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
    return Tensor(member, dtype, shape, offset * item, strides)


def _rebuild_parameter(call: Record) -> Tensor | Record:
    arguments = call.arguments or ()
    if not 3 <= len(arguments) <= 4 or not isinstance(arguments[0], Tensor):
        return _unread(call, "parameter")
    return arguments[0]


def _rebuild_from_type(call: Record) -> Any:
    """A tensor of a subclass, or with attributes: (function, class, arguments of the function, attributes)."""
    match call.arguments:
        case (Record(name=name, arguments=None), Record(), tuple() as given, _) if name in _TENSORS:
            return _TENSORS[name](Record(name, given[:MAX_ARGUMENTS]))
    return _unread(call, "tensor")


def _ordered_dict(call: Record) -> StateDict:
    if call.arguments:
        raise FormatError(f"the pickle makes an OrderedDict in an unknown way; {SAVE_HINT}")
    return StateDict()


def _first_argument(call: Record) -> Any:
    """What a set, size, device or byte string is made from; no weight depends on any of them."""
    return call.arguments[0] if call.arguments else None


_TENSORS: dict[str, Callable[[Record], Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_FUNCTIONS: dict[str, Callable[[Record], Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _ordered_dict,
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


def _kind(value: Any) -> str:
    if isinstance(value, Record):
        return f"an object {value!r}"
    return "a single tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
