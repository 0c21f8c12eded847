"""The engines that are compared: one small class each, all given the same workload and number of threads.

An engine is built for one workload: ``engine()`` runs it and returns what the engine itself returns, in the layout
that suits it best; ``engine.result()`` is that as an array like ``Workload.exact()``.  Only ``engine()`` is timed.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from workloads import Workload

import fastrnn


class Engine(ABC):
    """An engine with a network built in it and the input that it runs on."""

    name: str
    packages: tuple[str, ...]
    ragged_only = False

    @classmethod
    def installed(cls) -> bool:
        return all(importlib.util.find_spec(package) for package in cls.packages)

    @classmethod
    def supports(cls, work: Workload) -> bool:
        """Whether the engine can do this at all, rightly."""
        return work.lengths is not None or not cls.ragged_only

    @abstractmethod
    def __init__(self, work: Workload, threads: int) -> None: ...

    @abstractmethod
    def __call__(self) -> Any: ...

    @abstractmethod
    def result(self) -> np.ndarray: ...


class Fastrnn(Engine):
    name, packages = "fastrnn", ("fastrnn",)

    def __init__(self, work: Workload, threads: int) -> None:
        fastrnn.set_num_threads(threads)
        self.layer = fastrnn.from_torch(work.rnn.weights)
        self.x, self.lengths = work.x, work.lengths
        self.state = work.state[0] if len(work.state) == 1 else work.state or None

    def __call__(self) -> Any:
        return self.layer(self.x, self.state, lengths=self.lengths)

    def result(self) -> np.ndarray:
        return self()[0]


class Torch(Engine):
    """The module as users call it; a ragged batch is a packed sequence, packed and padded again in the call."""

    name, packages = "PyTorch", ("torch",)

    def __init__(self, work: Workload, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        module = getattr(torch.nn, work.rnn.op.upper())
        input_size = work.x.shape[-1]
        self.rnn = module(
            input_size,
            work.hidden_size,
            work.rnn.attr("num_layers"),
            batch_first=True,
            bidirectional=work.bidirectional,
        ).eval()
        # Copies: weights that were read from a file may be read-only, which torch warns of.
        self.rnn.load_state_dict({name: torch.tensor(w) for name, w in work.rnn.weights.items()})
        self.x = torch.from_numpy(work.x)
        state = tuple(torch.from_numpy(s) for s in work.state)
        self.state = state[0] if len(state) == 1 else state or None
        self.lengths = None if work.lengths is None else torch.from_numpy(work.lengths)
        self.directions = 1 + work.bidirectional
        self.head = None
        if work.head:
            weight, bias = work.head.weights["weight"], work.head.weights["bias"]
            self.head = (torch.tensor(weight), torch.tensor(bias))

    def __call__(self) -> Any:
        import torch

        with torch.inference_mode():
            if self.lengths is not None:
                return self.packed()
            y, state = self.rnn(self.x, self.state)
            if self.head is None:
                return y, state
            h_n = (state[0] if isinstance(state, tuple) else state)[-self.directions :]
            return torch.nn.functional.linear(h_n.transpose(0, 1).flatten(1), *self.head), state

    def packed(self) -> Any:
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        rows = pack_padded_sequence(self.x, self.lengths, batch_first=True, enforce_sorted=False)
        y, state = self.rnn(rows)
        return pad_packed_sequence(y, batch_first=True, total_length=self.x.shape[1])[0], state

    def result(self) -> np.ndarray:
        return self()[0].numpy()


class TorchPadded(Torch):
    """The padded batch without lengths: for a forward layer the real steps are right, the rest is thrown away."""

    name, ragged_only = "PyTorch padded", True

    @classmethod
    def supports(cls, work: Workload) -> bool:
        return super().supports(work) and not work.bidirectional

    def __init__(self, work: Workload, threads: int) -> None:
        super().__init__(work, threads)
        self.real = np.arange(work.x.shape[1]) < work.lengths[:, None]
        self.lengths = None

    def result(self) -> np.ndarray:
        return super().result() * self.real[..., None]


class OnnxRuntime(Engine):
    name, packages = "ONNX Runtime", ("onnxruntime", "onnx")

    def __init__(self, work: Workload, threads: int) -> None:
        import onnxruntime
        from onnx_graph import build, feeds

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(build(work), options, providers=["CPUExecutionProvider"])
        self.feeds = feeds(work)

    def __call__(self) -> Any:
        return self.session.run(None, self.feeds)

    def result(self) -> np.ndarray:
        return batch_first(self()[0])


class OpenVINO(Engine):
    """Inputs and output shared with the caller; float32 asked for, as some CPUs would choose bfloat16."""

    name, packages = "OpenVINO", ("openvino", "onnx")

    def __init__(self, work: Workload, threads: int) -> None:
        import openvino
        from onnx_graph import build, feeds

        core = openvino.Core()
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        self.model = core.compile_model(core.read_model(build(work)), "CPU", options)
        self.request = self.model.create_infer_request()
        self.feeds = feeds(work)

    def __call__(self) -> Any:
        return self.request.infer(self.feeds, share_inputs=True, share_outputs=True)

    def result(self) -> np.ndarray:
        return batch_first(np.array(self()[0]))


PEERS: list[type[Engine]] = [Torch, TorchPadded, OnnxRuntime, OpenVINO]


def batch_first(y: np.ndarray) -> np.ndarray:
    """(batch, seq_len, features) of what an ONNX graph returns; logits stay."""
    if y.ndim == 4:
        y = y[:, 0]
    return y.swapaxes(0, 1) if y.ndim == 3 else y


def peers(work: Workload, threads: int) -> list[Engine]:
    """Every installed peer that can run the workload, built and ready."""
    return [peer(work, threads) for peer in PEERS if peer.installed() and peer.supports(work)]
