"""HDF5 files, read strictly: what Keras writes and nothing more.

The HDF5 library only interprets the structure of the file.  The bytes of a tensor are sliced from the file and inflated
here, so that no filter, no link to another file and no declared size decides about memory.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np

from ..errors import FastrnnError, FormatError, UnsupportedError
from .files import need, short
from .limits import MAX_CONFIG_SIZE, MAX_INFLATION, MAX_NAME_LENGTH, MAX_NESTING, MAX_OBJECTS, check_shape

MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Stored:
    """A tensor that can be read: its name in the file, its shape, and the function that reads it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class HDF5File:
    """The datasets of an HDF5 file by path, and its text attributes; a context manager.

    Parameters
    ----------
    data : bytes-like
        The whole file.
    skip : names of groups at the root that are not looked into, such as an optimizer's state

    Raises
    ------
    FormatError
        The file is damaged, or has soft or external links, data in other files, virtual datasets, or groups that
        contain themselves.
    """

    def __init__(self, data: bytes | memoryview, skip: tuple[str, ...] = ()):
        try:
            import h5py
        except ImportError:
            raise need("h5py", "keras") from None
        if bytes(data[:8]) != MAGIC:
            raise FormatError("it does not start as an HDF5 file does; is it complete, and is it a Keras file?")
        self._content = content = bytes(data)
        self._h5py = h5py
        self._left = MAX_INFLATION * len(data)
        self._read: dict[str, np.ndarray] = {}
        self.entries: dict[str, Stored] = {}
        with self._guard("the file"):
            self._file = h5py.File(io.BytesIO(content), "r")
        try:
            with self._guard("the file"):
                self._walk(skip)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> HDF5File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has_attribute(self, *attributes: str) -> bool:
        """Whether the root group has one of ``attributes``."""
        with self._guard("the attributes"):
            return any(attribute in self._file.attrs for attribute in attributes)

    def text(self, attribute: str) -> str | None:
        """A text attribute of the root group, or None where there is none."""
        with self._guard(f"attribute {attribute!r}"):
            attributes = self._file.attrs
            if attribute not in attributes:
                return None
            handle = attributes.get_id(attribute)
            is_text = handle.get_type().get_class() == self._h5py.h5t.STRING
            if not is_text or prod(handle.shape) != 1 or handle.get_storage_size() > MAX_CONFIG_SIZE:
                raise self._damaged(f"attribute {attribute!r} is not a text")
            if handle.get_type().is_variable_str():
                self._check_texts(attribute)
            value = attributes[attribute]
            value = value.reshape(-1)[0] if isinstance(value, np.ndarray) else value
            return value.decode() if isinstance(value, bytes) else str(value)

    def _check_texts(self, attribute: str) -> None:
        """HDF5 takes memory for what a text claims before it looks, and follows a heap without an end forever."""
        texts = list(_find_texts(self._content, attribute))
        if not texts or any(length > len(self._content) for length, _ in texts):
            raise self._damaged(f"attribute {attribute!r} is longer than the file")
        if not all(_is_sound_heap(self._content, heap) for _, heap in texts):
            raise self._damaged(f"the heap in which attribute {attribute!r} lies has no end")

    def _walk(self, skip: tuple[str, ...]) -> None:
        """List all datasets.  Every object is met once: a second link to it would make a cycle or share memory."""
        pending: list[tuple[str, int, Any]] = [("", 0, self._file)]
        seen = {self._address(self._file)}
        while pending:
            path, depth, group = pending.pop()
            if depth > MAX_NESTING:
                raise self._damaged(f"groups are nested deeper than {MAX_NESTING} levels")
            for name in group:
                full = f"{path}/{name}" if path else name
                if len(full) > MAX_NAME_LENGTH:
                    raise self._damaged(f"the name {short(full)} is longer than {MAX_NAME_LENGTH} characters")
                link = group.get(name, getlink=True)
                if not isinstance(link, self._h5py.HardLink):
                    raise self._damaged(
                        f"{short(full)} is a {type(link).__name__}; such links can lead out of the file"
                    )
                if not path and name in skip:
                    continue
                found = group[name]
                if self._address(found) in seen:
                    raise self._damaged(f"{short(full)} is a second link to something that has a name already")
                seen.add(self._address(found))
                if len(seen) > MAX_OBJECTS:
                    raise self._damaged(f"it holds more than {MAX_OBJECTS} groups and datasets")
                if isinstance(found, self._h5py.Group):
                    pending.append((full, depth + 1, found))
                elif isinstance(found, self._h5py.Dataset):
                    self.entries[full] = self._entry(full, found)
                else:
                    raise self._damaged(f"{short(full)} is neither a group nor a dataset")

    def _address(self, found: Any) -> int:
        return int(self._h5py.h5o.get_info(found.id).addr)

    def _entry(self, name: str, dataset: Any) -> Stored:
        if dataset.id.get_create_plist().get_external_count():
            raise self._damaged(f"dataset {short(name)} keeps its data in another file")
        if dataset.is_virtual:
            raise self._damaged(f"dataset {short(name)} is virtual, its data lie in other datasets")
        if dataset.shape is None:
            raise self._damaged(f"dataset {short(name)} has no shape")
        shape = tuple(int(n) for n in dataset.shape)
        check_shape(shape, f"dataset {short(name)}")
        return Stored(name, shape, lambda: self._tensor(name, dataset, shape))

    def _tensor(self, name: str, dataset: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The array of a dataset; bfloat16 is widened to float32."""
        if name not in self._read:
            with self._guard(f"dataset {short(name)}"):
                dtype = self._dtype(name, dataset)
                size = prod(shape) * dtype.itemsize
                if size > self._left:
                    raise self._damaged(
                        f"dataset {short(name)} declares {size} bytes; the tensors together would exceed"
                        f" {MAX_INFLATION} times the size of the file"
                    )
                self._left -= size
                raw = np.empty(shape, dtype) if 0 in shape else self._data(name, dataset, shape, dtype)
                if dtype.kind == "u":  # bfloat16: the upper half of a float32
                    raw = (raw.astype(np.uint32) << 16).view(np.float32)
                self._read[name] = raw
        return self._read[name]

    def _dtype(self, name: str, dataset: Any) -> np.dtype:
        h5t, stored = self._h5py.h5t, dataset.id.get_type()
        for bits in (16, 32, 64):
            for letter, order in (("L", "<"), ("B", ">")):
                if stored == getattr(h5t, f"IEEE_F{bits}{letter}E"):
                    return np.dtype(f"{order}f{bits // 8}")
        if stored.get_class() == h5t.OPAQUE and stored.get_size() == 2:  # how Keras stores bfloat16
            return np.dtype("<u2")
        raise UnsupportedError(
            f"dataset {short(name)} holds {short(str(dataset.dtype))}, only float16, bfloat16, float32"
            " and float64 weights are read; save the model without quantization"
        )

    def _data(self, name: str, dataset: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        plist = dataset.id.get_create_plist()
        layout, h5d = plist.get_layout(), self._h5py.h5d
        if layout == h5d.CHUNKED:
            return self._chunks(name, dataset, shape, dtype)
        if layout == h5d.COMPACT:  # inside the object's header, so at most 64 KiB
            return np.asarray(dataset[()]).view(dtype) if dtype.kind == "u" else np.asarray(dataset[()])
        offset, size = dataset.id.get_offset(), prod(shape) * dtype.itemsize
        if offset is None or dataset.id.get_storage_size() != size:
            raise self._damaged(f"dataset {short(name)} declares {size} bytes that the file does not hold")
        return np.frombuffer(self._slice(name, offset, size), dtype).reshape(shape)

    def _chunks(self, name: str, dataset: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Put a chunked dataset together; gzip and shuffle are undone here, each chunk within its known size."""
        h5z, plist, chunk = self._h5py.h5z, dataset.id.get_create_plist(), dataset.chunks
        filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
        unknown = set(filters) - {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE}
        if unknown or len(set(filters)) != len(filters):
            raise UnsupportedError(
                f"dataset {short(name)} uses the HDF5 filters {filters}, only gzip (1) and shuffle (2),"
                " each once, are read; save the model again without compression"
            )
        chunk_size = prod(chunk) * dtype.itemsize
        grid = [range(ceil(n / step)) for n, step in zip(shape, chunk, strict=True)]
        count = dataset.id.get_num_chunks()
        if chunk_size > self._left or count != prod(len(axis) for axis in grid):
            raise self._damaged(f"dataset {short(name)} declares chunks that the file does not hold")
        result = np.empty(shape, dtype)
        for place in product(*grid):
            start = tuple(k * step for k, step in zip(place, chunk, strict=True))
            info = dataset.id.get_chunk_info_by_coord(start)
            if info.byte_offset is None or info.filter_mask:
                raise self._damaged(f"dataset {short(name)} lacks a chunk")
            raw: bytes | memoryview = self._slice(name, info.byte_offset, info.size)
            for number in reversed(filters):
                raw = _inflate(raw, chunk_size) if number == h5z.FILTER_DEFLATE else _unshuffle(raw, dtype.itemsize)
            if len(raw) != chunk_size:
                raise self._damaged(f"a chunk of dataset {short(name)} has the wrong size")
            block = np.frombuffer(raw, dtype).reshape(chunk)
            inside = tuple(slice(0, n - s) for n, s in zip(shape, start, strict=True))
            result[tuple(slice(s, s + step) for s, step in zip(start, chunk, strict=True))] = block[inside]
        return result

    def _slice(self, name: str, offset: int, size: int) -> memoryview:
        if offset + size > len(self._content):
            raise self._damaged(f"the data of dataset {short(name)} lie beyond the end of the file")
        return memoryview(self._content)[offset : offset + size]

    def _damaged(self, what: str) -> FormatError:
        return FormatError(f"the HDF5 file is damaged or was tampered with: {what}; get a fresh copy of it")

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Whatever h5py, HDF5 or zlib raise on a broken file is a FormatError."""
        try:
            yield
        except (FastrnnError, MemoryError):
            raise
        except Exception as error:
            raise self._damaged(f"reading {what} failed ({type(error).__name__}: {short(str(error))})") from error


def _find_texts(content: bytes, attribute: str) -> Iterator[tuple[int, int]]:
    """Length and heap of each variable text that could be the value of ``attribute``, wherever it stands in the file.

    An attribute is a header (version, flags, and the sizes of name, type and shape), these three, and the value.
    """
    name = attribute.encode() + b"\0"
    at = content.find(name)
    while at >= 0:
        for version, header_at, unit in ((1, at - 8, 8), (2, at - 8, 1), (3, at - 9, 1)):
            if header_at < 0 or content[header_at] != version:
                continue
            name_size, *sizes = struct.unpack_from("<3H", content, header_at + 2)
            type_at = at + -(-name_size // unit) * unit
            value_at = type_at + sum(-(-size // unit) * unit for size in sizes)
            if name_size == len(name) and value_at + 12 <= len(content) and content[type_at] & 15 == 9:  # variable
                yield struct.unpack_from("<IQ", content, value_at)
        at = content.find(name, at + 1)


def _is_sound_heap(content: bytes, at: int) -> bool:
    """Whether the list of objects of a heap ends where the heap does.

    An object has a header of 16 bytes (number, references, 0, size) and fills whole groups of 8; number 0 is what is
    free, and its size counts the header.
    """
    if content[at : at + 8] != b"GCOL\x01\0\0\0" or at + 16 > len(content):
        return False
    end = at + struct.unpack_from("<Q", content, at + 8)[0]
    if end > len(content):
        return False
    at += 16
    while end - at >= 16:
        number, size = struct.unpack_from("<H6xQ", content, at)
        step = size if number == 0 else 16 + (size + 7) // 8 * 8
        if step < 16 or step > end - at:
            return False
        at += step
    return True


def _inflate(raw: memoryview | bytes, size: int) -> bytes:
    """Inflate gzip data that must come to ``size`` bytes; a byte more is enough to see that they do not."""
    return zlib.decompressobj().decompress(raw, size + 1)


def _unshuffle(raw: memoryview | bytes, width: int) -> bytes:
    """Undo HDF5's shuffle, which stores the first bytes of all elements, then the second ones, and so on."""
    return np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()
