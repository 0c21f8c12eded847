"""Files as the loaders see them: bytes and named tensors that are read on demand."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError, UnsupportedError


class File:
    """A regular file that is read on demand, as ``file[begin:end]``.

    Nothing is mapped: a mapped file that is cut ends the process with SIGBUS, and one that is rewritten in place
    changes arrays that are in use.  The file stays open, so it may be renamed, replaced or removed.

    Raises
    ------
    FileNotFoundError
        There is nothing at ``path``.
    FormatError
        It is a directory, a device or a pipe, or it is empty.
    """

    _handle = -1

    def __init__(self, path: str | os.PathLike[str]):
        name = os.fspath(path)
        try:
            status = Path(name).stat()
        except FileNotFoundError:
            here = str(Path.cwd())
            raise FileNotFoundError(
                f"no file at {name!r} (current folder: {here!r}); check the name, relative paths start there"
            ) from None
        except ValueError as error:  # a NUL in the name
            raise FormatError(f"{name!r} is not a path: {error}; check the name") from None
        if stat.S_ISREG(status.st_mode):
            handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK)  # it may have become a pipe by now
            self._own(handle, name)
            status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise FormatError(f"{name!r} is a directory, expected a file; name the model file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{name!r} is not a regular file; copy its contents into one first")
        if status.st_size == 0:
            raise FormatError(f"{name!r} is empty; was the download or the save interrupted?")

    @classmethod
    def of_handle(cls, handle: int, name: str) -> File:
        """A file that is open already; ``handle`` is closed with it."""
        file = cls.__new__(cls)
        file._own(handle, name)
        return file

    def _own(self, handle: int, name: str) -> None:
        status = os.fstat(handle)
        self._handle, self._name, self._size, self._time = handle, name, status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """A part of the file as it was when it was opened; ``FormatError`` where it has been written since."""
        begin, end, _ = part.indices(self._size)
        data = self.read(begin, end)
        if os.fstat(self._handle).st_mtime_ns != self._time:
            raise self.changed()
        return data

    def read(self, begin: int, end: int) -> bytes:
        """The bytes that are there now, for readers who have a checksum; ``FormatError`` where the size has changed."""
        parts, left = [], max(end - begin, 0)
        while left and (part := os.pread(self._handle, left, end - left)):
            parts.append(part)
            left -= len(part)
        if left or os.fstat(self._handle).st_size != self._size:
            raise self.changed()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def changed(self) -> FormatError:
        """The error for contents that are not those that were opened."""
        return FormatError(
            f"{self._name!r} has changed since it was opened; load it again, and replace files by renaming others, as"
            " fastrnn.save does"
        )

    @property
    def is_one_of_many(self) -> bool:
        """Whether the process has so many files open that this one should not stay so."""
        return self._handle > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


Data = bytes | memoryview | File
"""Contents of a file: they have a length, and parts."""


class Module(NamedTuple):
    """What a file says of a layer beside its tensors: the class of torch.nn, "" for any other, and its attributes."""

    kind: str
    settings: Mapping[str, Any]


class TensorFile(Mapping[str, np.ndarray]):
    """Tensors of a file by name; one is read when it is asked for.

    Attributes
    ----------
    roots : tuple of str
        The prefixes at which a model may start: "" and, in a checkpoint of nested dictionaries, the path of each
        dictionary with a dot at its end.
    others : mapping
        Names where a weight is to be expected, and what stands there instead.
    modules : mapping
        The modules of a file that holds whole ones, by their paths.
    """

    def __init__(
        self,
        entries: dict[str, Any],
        read: Callable[[str], np.ndarray],
        roots: Iterable[str] = ("",),
        others: Mapping[str, str] | None = None,
        modules: Mapping[str, Module] | None = None,
    ):
        self._entries, self._read, self.roots = entries, read, tuple(roots)
        self.others, self.modules = others or {}, modules or {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._entries:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:  # without reading it
        return name in self._entries


def view_array(
    data: bytes | memoryview,
    dtype: str,
    shape: tuple[int, ...],
    offset: int,
    strides: tuple[int, ...] | None = None,
    big_endian: bool = False,
) -> np.ndarray:
    """View bytes as an array; "bfloat16" is widened to float32, and bool made 0 or 1.

    Offset and strides are in bytes; the caller has checked that they stay inside of ``data``.
    """
    stored = {"bfloat16": "u2", "bool": "u1"}.get(dtype, dtype)
    if 0 in shape:
        array = np.empty(shape, stored)
    else:
        array = np.ndarray(shape, np.dtype(stored).newbyteorder(">" if big_endian else "<"), data, offset, strides)
    if dtype == "bfloat16":  # the upper half of a float32
        array = np.asarray(array.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "bool":
        array = np.asarray(array != 0)  # NumPy makes a scalar of an array without axes
    return array


def name_list(names: Iterable[object], most: int = 40) -> str:
    """Names for an error message, quoted and sorted; a list longer than ``most`` ends in its count."""
    texts = sorted(short(name) for name in names)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def short(value: object, most: int = 80) -> str:
    """A value from a file, safe to print: short, and never the inside of a container."""
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value[:most]) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= most + 2 else text[:most] + "..."


def need(package: str, extra: str) -> UnsupportedError:
    """The error for an optional package that is not installed."""
    return UnsupportedError(f'this needs {package}, which is not installed: pip install "fastrnn[{extra}]"')
