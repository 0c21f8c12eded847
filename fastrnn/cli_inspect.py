"""``fastrnn inspect``: the layers of a model, or the tensors of a file of weights and what they may be."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from .errors import FormatError
from .graph.optimize import optimize
from .inspect import LayerInfo, compact, describe, shape_str, table, total
from .loaders import bare_weights, load_spec, possible_layers


def inspect(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Do what the command line asks; returns the rows to print."""
    try:
        spec = load_spec(args.file, **options)
    except FormatError:
        weights = None if options else bare_weights(args.file)
        if weights is None:
            raise
        tensors = [
            {"name": name, "shape": list(array.shape), "dtype": array.dtype.name} for name, array in weights.items()
        ]
        return {"file": args.file, "tensors": tensors, "possible_layers": possible_layers(weights)}
    rows = describe(spec if args.as_written else optimize(spec))
    return {
        "file": args.file,
        "as_written": args.as_written,
        "inputs": [asdict(tensor) for tensor in spec.inputs],
        "outputs": [asdict(tensor) for tensor in spec.outputs],
        "layers": [asdict(row) for row in rows],
        "total": {key: getattr(total(rows), key) for key in ("parameters", "macs", "weight_bytes")},
    }


def as_text(found: dict[str, Any]) -> str:
    """The rows of :func:`inspect` as tables."""
    return _weights_text(found) if "tensors" in found else _model_text(found)


def _model_text(found: dict[str, Any]) -> str:
    rows = [LayerInfo(**row) for row in found["layers"]]
    head = ("layer", "kind", "input", "output", "parameters", "MACs/step", "bytes/step", "options")
    cells = [
        (_placed(r), r.kind, shape_str(r.input_shape), shape_str(r.output_shape), r.parameters, r.macs, r.weight_bytes,
         r.detail)
        for r in [*compact(rows), total(rows)]
    ]  # fmt: skip
    lines = [
        f"{title:7}{tensor['name']}  {shape_str(tensor['shape'])}  {tensor['dtype']}"
        for title in ("input", "output")
        for tensor in found[title + "s"]
    ]
    shown = (
        "the layers of the file" if found["as_written"] else "the graph that runs; --as-written shows the file's own"
    )
    return "\n".join([*lines, "", table(head, cells), "", shown])


def _placed(row: LayerInfo) -> str:
    """The name of a layer behind the body that it stands in."""
    return f"{row.body.rpartition('.')[2]}: {row.name}" if row.body else row.name


def _weights_text(found: dict[str, Any]) -> str:
    tensors = [(t["name"], shape_str(t["shape"]), t["dtype"]) for t in found["tensors"]]
    layers = [(row["name"], " or ".join(row["kinds"]), row["detail"]) for row in found["possible_layers"]]
    lines = ["The file names weights, and no network.", "", table(("tensor", "shape", "dtype"), tensors), ""]
    if layers:
        names = [row["name"] for row in found["possible_layers"] if len(row["kinds"]) == 1] or [layers[0][0]]
        lines += [table(("possible layer", "kind", "sizes"), layers), ""]
        lines += [f"fastrnn.load_layers({found['file']!r}, {names[:1]!r}) builds layers; Sequential joins them."]
    return "\n".join(lines)
