"""``fastrnn bench``: a model on random inputs of several shapes, in turns, so that a slow moment hits all of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from .inspect import batch_axes, table
from .model import Model, load
from .runtime import info
from .spec import GATES, OPS, Graph, ModelSpec, Node
from .verify import random_inputs

Arrays = dict[str, np.ndarray]
Case = tuple[int, int, int]  # batch, seq_len, threads

TURN = 0.05  # seconds


def bench(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Do what the command line asks; returns what ran, the times, and how each layer ran."""
    models = {n: load(args.file, threads=n, **options) for n in args.threads}
    model = next(iter(models.values()))
    inputs = _inputs(model.spec, args.batch, args.seq_len)
    work = {sizes: flops(model.graph, model.trace(feeds)) for sizes, feeds in inputs.items()}
    times = _times(models, {(*sizes, n): feeds for sizes, feeds in inputs.items() for n in args.threads}, args.seconds)
    rows = []
    for (batch, seq_len, threads), taken in times.items():
        median, p99 = np.percentile(taken, [50, 99])
        rows.append(
            {"batch": batch, "seq_len": seq_len, "threads": threads, "calls": len(taken), "median_us": median * 1e6,
             "p99_us": p99 * 1e6, "steps_per_s": batch * seq_len / median,
             "gflops": 1e-9 * work[batch, seq_len] / median}
        )  # fmt: skip
    plans = [
        {"batch": batch, "seq_len": seq_len, "threads": threads, "layers": models[threads].explain(batch, seq_len)}
        for batch, seq_len, threads in times
    ]
    machine = {key: info()[key] for key in ("version", "isa", "team")}
    return {"file": args.file, **machine, "rows": rows, "plans": plans}


def _inputs(spec: ModelSpec, batches: list[int], lengths: list[int]) -> dict[tuple[int, int], Arrays]:
    """Inputs for each pair of sizes that the file leaves open; sizes that it fixes are said, and timed once."""
    asked = {(b, t): _full(spec, b, t) for b in batches for t in lengths}
    found: dict[tuple[int, int], Arrays] = {}
    for sizes, feeds in asked.items():
        found.setdefault(_sizes(spec, feeds, *sizes), feeds)
    for k, name in enumerate(("batch", "seq_len")):
        left_out = sorted({sizes[k] for sizes in asked} - {sizes[k] for sizes in found})
        if left_out:
            fixed = ", ".join(map(str, sorted({sizes[k] for sizes in found})))
            print(f"{name} {', '.join(map(str, left_out))}: the file fixes it at {fixed}", file=sys.stderr)
    return found


def _full(spec: ModelSpec, batch: int, seq_len: int) -> Arrays:
    """Random inputs in which every step is real: padding would be skipped, and time less than the shape says."""
    return random_inputs(spec, 0, batch, seq_len, padded=False)


def _sizes(spec: ModelSpec, feeds: Arrays, batch: int, seq_len: int) -> tuple[int, int]:
    """Rows and steps of the first input as it is."""
    first = spec.inputs[0] if spec.inputs else None
    if first is None or first.name not in feeds:
        return batch, seq_len
    array, declared = feeds[first.name], first.shape
    rows = batch_axes(spec).get(first.name, declared.index(None) if declared and None in declared else 0)
    steps = [n for k, n in enumerate(array.shape) if k not in (rows, array.ndim - 1)]
    if array.dtype.kind in "iu":  # ids have no features
        steps = [n for k, n in enumerate(array.shape) if k != rows]
    return (array.shape[rows] if array.ndim > 1 else 1), prod(steps)


def _times(models: Mapping[int, Model], feeds: Mapping[Case, Arrays], seconds: float) -> dict[Case, list[float]]:
    """Seconds of each call."""
    times: dict[Case, list[float]] = {case: [] for case in feeds}

    def call(case: Case) -> float:
        started = time.perf_counter()
        models[case[2]].run(feeds[case])
        return time.perf_counter() - started

    for case in feeds:
        call(case)  # warm up
    end = time.perf_counter() + seconds * len(feeds)
    while time.perf_counter() < end or not all(times.values()):
        for case, taken in times.items():
            turn = time.perf_counter() + min(seconds, TURN)
            while not taken or time.perf_counter() < turn:
                taken.append(call(case))
    return times


def flops(graph: Graph, tensors: Mapping[str, np.ndarray]) -> float:
    """Multiplications and additions of the matrix products of a call, from the shapes of its tensors.

    Masked steps and those beyond a length do not count, nor do bodies of control flow.
    """
    return sum(2.0 * _products(node, tensors) for node in graph.nodes)


def _products(node: Node, tensors: Mapping[str, np.ndarray]) -> int:
    """Multiply-accumulates of a node."""
    matrices = sum(weight.size for name, weight in node.weights.items() if name.startswith("weight"))
    x = tensors[node.inputs[0]] if node.inputs and node.inputs[0] else np.empty(0)
    if node.op in GATES:
        return matrices * _steps(node, x, tensors)
    if node.op == "dense":
        return matrices * (x.size // max(x.shape[-1], 1))
    if node.op == "conv":
        y = tensors[node.outputs[0]]
        return matrices * (y.size // max(y.shape[1], 1))
    if node.op == "conv_transpose":
        return matrices * (x.size // max(x.shape[1], 1))
    if node.op == "matmul":
        return tensors[node.outputs[0]].size * x.shape[-1]
    return 0


def _steps(node: Node, x: np.ndarray, tensors: Mapping[str, np.ndarray]) -> int:
    """Time steps of all rows that a recurrent node takes."""
    roles = dict(zip(OPS[node.op].inputs, node.inputs))
    for role in ("mask?", "lengths?"):
        if roles.get(role) in tensors:
            return int(np.sum(tensors[roles[role]]))
    return x.size // max(x.shape[-1], 1)


def as_text(found: dict[str, Any]) -> str:
    """The rows of :func:`bench` as tables."""
    head = ("batch", "seq_len", "threads", "calls", "median us", "p99 us", "steps/s", "GFLOP/s")
    rows = [[v if isinstance(v, int) else f"{v:.1f}" for v in row.values()] for row in found["rows"]]
    keys = ("layer", "kernel", "split", "threads")
    cells = [
        [plan["batch"], plan["seq_len"], *(layer.get(key, "") for key in keys)]
        for plan in found["plans"]
        for layer in plan["layers"]
    ]
    machine = ", ".join(f"{key} {found[key]}" for key in ("version", "isa", "team"))
    return "\n".join([machine, table(head, rows), "", table(("batch", "seq_len", *keys), cells)])
