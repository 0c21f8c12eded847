"""fastrnn: trained LSTM, GRU and simple RNN networks on CPUs."""

from . import errors, reference
from .batcher import Batcher
from .cells import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .errors import (
    ArgumentError,
    ClosedError,
    ConcurrentUseError,
    DeadlineError,
    FastrnnError,
    FormatError,
    PoolFullError,
    QueueFullError,
    ShapeError,
    UnknownStreamError,
    UnsupportedError,
)
from .layers import Activation, BatchNorm, Dense, Embedding, LayerNorm, Masking
from .model import Model, Sequential, from_keras, from_onnx, from_torch, load, load_layers, load_tensors, save
from .runtime import get_num_threads, info, set_isa, set_num_threads, set_team
from .runtime import version as _version
from .streams import Pool, Stream
from .verify import verify

__version__ = _version()

__all__ = [
    "GRU", "LSTM", "RNN", "Activation", "ArgumentError", "BatchNorm", "Batcher", "ClosedError", "ConcurrentUseError",
    "DeadlineError", "Dense", "Embedding", "FastrnnError", "FormatError", "GRUCell", "LSTMCell", "LayerNorm",
    "Masking", "Model", "Pool", "PoolFullError", "QueueFullError", "RNNCell", "Sequential", "ShapeError", "Stream",
    "UnknownStreamError", "UnsupportedError", "__version__", "errors", "from_keras", "from_onnx", "from_torch",
    "get_num_threads", "info", "load", "load_layers", "load_tensors", "reference", "save", "set_isa",
    "set_num_threads", "set_team", "verify",
]  # fmt: skip
