"""The command ``fastrnn``: inspect, run, verify and bench model files, and ask the machine what it can do.

Results go to standard output, with ``--json`` as one JSON value; progress and errors go to standard error.  Exit codes:
0 done, 1 ``verify`` found a mismatch, 2 an error.  Subcommands import what they need when they run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FastrnnError, FormatError, ShapeError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from .spec import ModelSpec, Tensor

CHUNK = 256  # rows in a chunk of `run`, unless --batch-size says otherwise: enough to keep every core busy

HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (FileNotFoundError, "check the path; `fastrnn run` takes arrays as --input NAME=PATH"),
    (FileExistsError, "pass --force to overwrite, or choose another --output"),
    (PermissionError, "check who may read or write the path"),
    (UnsupportedError, "`fastrnn doctor` shows what this build has; docs/formats.md lists what can be loaded"),
    (FormatError, "`fastrnn inspect FILE` shows what a file holds, `fastrnn COMMAND --help` the options for its format"),
    (ShapeError, "`fastrnn inspect FILE` shows the names, shapes and dtypes of inputs and outputs"),
    (Exception, "`fastrnn COMMAND --help` shows the options"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        from . import __version__

        print(f"fastrnn {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return args.command(args)
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("fastrnn: interrupted", file=sys.stderr)
        return 130
    except (FastrnnError, OSError, ValueError) as error:
        return _report_error(error, args.json)


def _report_error(error: Exception, as_json: bool) -> int:
    hint = next(hint for kind, hint in HINTS if isinstance(error, kind))
    text = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
    print(f"fastrnn: error: {text}\nhint: {hint}", file=sys.stderr)
    if as_json:
        _print_json({"error": {"type": type(error).__name__, "message": text, "hint": hint}})
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastrnn", description="Run trained LSTM, GRU and RNN networks on CPUs.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None, json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(command=function)
        command.add_argument("--json", action="store_true", help="print one JSON value")
        return command

    def add_file(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = add(name, function, text)
        command.add_argument("file", metavar="FILE", help="model: .keras .h5 .pt .pth .safetensors .frnn")
        command.add_argument("--prefix", help="take only the keys of a state_dict that start with this")
        command.add_argument("--nonlinearity", help="of a simple RNN in a state_dict: tanh (default) or relu")
        command.add_argument("--config", help="the model's configuration, for .weights.h5")
        return command

    add_file("inspect", inspect, "print layers, shapes, parameters, work and bytes a step")

    command = add_file("run", run, "run a model on arrays from files")
    command.add_argument("--input", "-i", action="append", required=True, metavar="[NAME=]PATH", dest="inputs",
                         help=".npy, .npz (arrays by name) or .csv (a row is a time step); may be repeated")  # fmt: skip
    command.add_argument("--output", "-o", required=True, metavar="PATH",
                         help=".npy or .csv (one output), .npz (all, by name), or a directory (one .npy each)")  # fmt: skip
    command.add_argument("--lengths", help="real steps of each row: 5,3,8 or a .npy or .csv file")
    command.add_argument("--threads", type=_positive, help="number of threads")
    command.add_argument("--batch-size", type=_positive, default=CHUNK, help=f"rows at a time (default {CHUNK})")
    command.add_argument("--force", action="store_true", help="overwrite existing files")

    command = add_file("verify", verify, "compare a model with the float64 reference or with recorded outputs")
    command.add_argument("--against", default="reference", metavar="reference|PATH.npz",
                         help="what to trust; an .npz holds inputs and outputs by name")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the random inputs (default 0)")
    command.add_argument("--batch", type=_positive, default=4, help="rows of the random inputs (default 4)")
    command.add_argument("--seq-len", type=_positive, default=20, help="steps of the random inputs (default 20)")
    command.add_argument("--tolerance", type=float, help="largest absolute error allowed (default: by rounding)")

    command = add_file("bench", bench, "time a model on random inputs")
    command.add_argument("--batch", type=_numbers, default=[1, 8], help="rows, a comma list (default 1,8)")
    command.add_argument("--seq-len", type=_numbers, default=[100], help="steps, a comma list (default 100)")
    command.add_argument("--threads", type=_numbers, default=[1], help="threads, a comma list (default 1)")
    command.add_argument("--seconds", type=float, default=1.0, help="time for each row of the table (default 1)")

    add("doctor", doctor, "print what this machine and this build offer, and what may go wrong")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The loader's options that were given."""
    given = {name: getattr(args, name) for name in ("prefix", "nonlinearity", "config")}
    return {name: value for name, value in given.items() if value is not None}


def _print_json(value: Any) -> None:
    def ready(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): ready(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [ready(entry) for entry in item]
        return str(item) if isinstance(item, float) and not math.isfinite(item) else item  # JSON has no inf and nan

    print(json.dumps(ready(value), indent=2, allow_nan=False, default=str))


# inspect


def inspect(args: argparse.Namespace) -> int:
    """Print what a file holds.  Nothing is built, so it works where the engine does not."""
    from .inspect import describe, shape_str, table, total
    from .loaders import load_spec

    spec = load_spec(args.file, **_options(args))
    rows = describe(spec)
    if args.json:
        _print_json(
            {
                "file": args.file,
                "inputs": [asdict(tensor) for tensor in spec.inputs],
                "outputs": [asdict(tensor) for tensor in spec.outputs],
                "layers": [asdict(row) for row in rows],
                "total": {key: getattr(total(rows), key) for key in ("parameters", "macs", "weight_bytes")},
            }
        )
        return 0
    head = ("layer", "kind", "input", "output", "parameters", "MACs/step", "bytes/step", "options")
    cells = [
        (r.name, r.kind, shape_str(r.input_shape), shape_str(r.output_shape), r.parameters, r.macs, r.weight_bytes,
         r.detail)
        for r in [*rows, total(rows)]
    ]  # fmt: skip
    for title, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            print(f"{title:7}{tensor.name}  {shape_str(tensor.shape)}  {tensor.dtype}")
    print(f"\n{table(head, cells)}")
    return 0


# run


def run(args: argparse.Namespace) -> int:
    """Run a model on arrays from files, in chunks of rows."""
    import numpy as np

    from . import load

    target = Path(args.output)
    model = load(args.file, **_options(args), **({"threads": args.threads} if args.threads else {}))
    names = [tensor.name for tensor in model.outputs]
    files = _output_files(target, names, args.output.endswith("/"))
    existing = [str(path) for path in files if path.exists()]
    if existing and not args.force:
        raise FileExistsError(f"{', '.join(existing)} exist(s) already")

    spec: ModelSpec = model.spec
    given = _read_inputs(args.inputs, spec)
    feeds, added = _with_batch(spec, given)
    lengths = None if args.lengths is None else _read_lengths(args.lengths)
    started = time.perf_counter()
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feed, chunk_lengths in _chunks(spec, feeds, lengths, args.batch_size):
        extra = {} if chunk_lengths is None else {"lengths": chunk_lengths}
        for name, array in model.run(feed, names, **extra).items():
            chunks[name].append(array)
    outputs = {name: _joined(spec, name, parts, added) for name, parts in chunks.items()}
    seconds = time.perf_counter() - started

    if target.suffix == ".npz":
        _write(target, lambda file: np.savez(file, **outputs))  # type: ignore[arg-type]
    else:
        for path, name in zip(files, names, strict=True):
            _write_array(path, outputs[name])
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    if args.json:
        _print_json({"outputs": shapes, "files": [str(path) for path in files], "seconds": seconds})
    else:
        for name, shape in shapes.items():
            print(f"{name}  {tuple(shape)}  float32")
        print(f"{seconds:.3f} s -> {', '.join(str(path) for path in files)}")
    return 0
