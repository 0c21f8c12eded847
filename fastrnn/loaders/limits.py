"""What a file may ask of a loader: the one table of limits.

A limit exists so that memory and time stay bounded by the size of the file, whatever the file claims.  Each is far
above what real recurrent networks need; an error that names one of them means a damaged or hostile file.
"""

from __future__ import annotations

from math import prod

from ..errors import FormatError

KIB, MIB = 1 << 10, 1 << 20

# Zip archives (.pt, and the directory of a .keras file)
MAX_MEMBERS = 65_536
MAX_DIRECTORY_SIZE = 16 * MIB

# Pickles inside .pt archives: a value costs at most about 100 bytes for each opcode
MAX_PICKLE_STEPS = 4_000_000  # vocabularies of a checkpoint take three for each word
MAX_GLOBAL_LENGTH = 1_024  # characters of the name of a class

# Containers of a checkpoint that lead to tensors
MAX_NESTING = 32
MAX_CONTAINERS = 50_000
MAX_NAME_LENGTH = 512

# Tensors
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_SHARING = 8  # all tensors of a file together, in bytes, against the size of the file
MAX_EMPTY = 1 << 31  # product of the other dimensions of a tensor that has a dimension of 0

# JSON header of .safetensors and .frnn: parsed JSON takes up to about 25 times its text
MAX_HEADER_SIZE = 4 * MIB

# Keras: the JSON that describes a model, and the HDF5 file of its weights
MAX_CONFIG_SIZE = 8 * MIB
MAX_OBJECTS = 100_000  # groups and datasets
MAX_INFLATION = 100  # all tensors of a file together, inflated, against the size of the file
MAX_CALLS = 4_096  # of layers, those of nested models included
MAX_CALL_NODES = 65_536  # that these calls become
MAX_UNITS = 1 << 24  # of one layer; rows of an embedding

# ONNX: nodes of a model, those in bodies and called functions included; what constants that are computed at load take
MAX_NODES = 32_768
MAX_EXPANSION = 16  # nodes of called functions, counted each time, for each node of the file
MAX_FOLDED = 16 * MIB  # bytes read and written to compute them, and
MAX_FOLDING = 64  # times the size of the file
MAX_FIELDS = 1 << 20  # of the model and its graphs
MAX_PROTO = 2 << 30  # bytes, protobuf's own limit
MAX_OPERATOR = 1 * MIB  # bytes of one slow operator with its attributes

# Layers stacked in one recurrent node
MAX_LAYERS = 1_024


def check_shape(shape: tuple[int, ...], where: str) -> int:
    """Return the number of elements of ``shape``, or raise ``FormatError`` where no real tensor has such a shape."""
    if len(shape) > MAX_RANK:
        raise FormatError(f"{where}: has {len(shape)} dimensions, at most {MAX_RANK} are read; the file is damaged")
    if any(type(n) is not int or n < 0 for n in shape):
        raise FormatError(f"{where}: its shape is not a list of integers >= 0; the file is damaged")
    if 0 in shape and prod(n or 1 for n in shape) > MAX_EMPTY:
        raise FormatError(f"{where}: an empty tensor with a dimension of {max(shape)}; the file is damaged")
    return prod(shape)
