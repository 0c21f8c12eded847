"""The command ``fastrnn``: inspect, run, verify, convert and bench model files, and ask the machine what it can do.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .errors import FastrnnError, FormatError, ShapeError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    from .inspect import LayerInfo

CHUNK = 256  # rows in a chunk of `run`, unless --batch-size says otherwise: enough to keep every core busy

HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (FileNotFoundError, "check the path; `fastrnn run` takes arrays as --input NAME=PATH"),
    (FileExistsError, "pass --force to overwrite, or choose another --output"),
    (PermissionError, "check who may read or write the path"),
    (UnsupportedError, "`fastrnn doctor` shows what this build has; docs/formats.md lists what can be loaded"),
    (
        FormatError,
        "`fastrnn inspect FILE` shows what a file holds, `fastrnn COMMAND --help` the options for its format",
    ),
    (ShapeError, "`fastrnn inspect FILE` shows the names, shapes and dtypes of inputs and outputs"),
    (Exception, "`fastrnn COMMAND --help` shows the options"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        from .runtime import version

        print(f"fastrnn {version()}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    try:
        code = args.command(args)
        sys.stdout.flush()  # here, so that a closed pipe shows here
        return code
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
        text = "load only what these layers or tensors need, a comma list (default: the outputs of the model)"
        command.add_argument("--outputs", type=lambda text: text.split(","), metavar="NAME,...", help=text)
        return command

    add_file("inspect", inspect, "print layers, shapes, parameters, work and bytes a step")

    command = add_file("run", run_files, "run a model on arrays from files")
    text = ".npy, .npz (arrays by name) or .csv (a row is a time step); may be repeated"
    command.add_argument(
        "--input", "-i", action="append", required=True, metavar="[NAME=]PATH", dest="inputs", help=text
    )
    text = ".npy or .csv (one output), .npz (all, by name), or a directory (one .npy each)"
    command.add_argument("--output", "-o", required=True, metavar="PATH", help=text)
    command.add_argument("--lengths", help="real steps of each row: 5,3,8 or a .npy or .csv file")
    command.add_argument("--threads", type=_positive, help="number of threads")
    command.add_argument("--batch-size", type=_positive, default=CHUNK, help=f"rows at a time (default {CHUNK})")
    command.add_argument("--force", action="store_true", help="overwrite existing files")

    command = add_file("verify", verify, "compare a model with the float64 reference or with recorded outputs")
    text = "what to trust; an .npz holds inputs and outputs by name, so may a .frnn file itself"
    command.add_argument("--against", default="reference", metavar="reference|recorded|PATH.npz", help=text)
    command.add_argument("--seed", type=int, default=0, help="of the random inputs (default 0)")
    command.add_argument("--batch", type=_positive, default=4, help="rows of the random inputs (default 4)")
    command.add_argument("--seq-len", type=_positive, default=20, help="steps of the random inputs (default 20)")
    command.add_argument("--tolerance", type=float, help="largest absolute error allowed (default: by rounding)")

    command = add_file("convert", convert, "write a model of any format as a .frnn file")
    command.add_argument("--output", "-o", required=True, metavar="OUT.frnn", help="the file to write")
    text = "compare the file with its source on N random inputs, and record one in it (default 0)"
    command.add_argument("--verify", type=_positive, default=0, metavar="N", help=text)
    text = "an input for these runs instead of a random one: .npy, .npz or .csv; may be repeated"
    command.add_argument("--input", "-i", action="append", default=[], metavar="[NAME=]PATH", dest="inputs", help=text)
    command.add_argument("--force", action="store_true", help="overwrite an existing file")

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
    given = {name: getattr(args, name) for name in ("prefix", "nonlinearity", "config", "outputs")}
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
    """Print what a file holds; its weights are not packed for the engine."""
    from .inspect import compact, describe, shape_str, table, total
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
        (_placed(r), r.kind, shape_str(r.input_shape), shape_str(r.output_shape), r.parameters, r.macs, r.weight_bytes,
         r.detail)
        for r in [*compact(rows), total(rows)]
    ]  # fmt: skip
    for title, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            print(f"{title:7}{tensor.name}  {shape_str(tensor.shape)}  {tensor.dtype}")
    print(f"\n{table(head, cells)}")
    return 0


def _placed(row: LayerInfo) -> str:
    """The name of a layer behind the body that it stands in."""
    return f"{row.body.rpartition('.')[2]}: {row.name}" if row.body else row.name


# run


def run_files(args: argparse.Namespace) -> int:
    """Run a model on arrays from files."""
    from .cli_run import run

    result = run(args, _options(args))
    if args.json:
        _print_json(result)
        return 0
    for name, shape in result["outputs"].items():
        print(f"{name}  {tuple(shape)}")
    print(f"{result['seconds']:.3f} s -> {', '.join(result['files'])}")
    return 0


# verify


def verify(args: argparse.Namespace) -> int:
    """Compare a model with the reference or a recording; 1 where they differ."""
    from .model import load
    from .verify import verify as compare

    model = load(args.file, **_options(args))
    report = compare(
        model, args.against, seed=args.seed, batch=args.batch, seq_len=args.seq_len, tolerance=args.tolerance
    )
    if args.json:
        found = {"ok": report.ok, "max_abs": report.max_abs, "max_ulp": report.max_ulp}
        _print_json({"file": args.file, **found, **asdict(report)})
    else:
        print(report)
    return 0 if report.ok else 1


# convert


def convert(args: argparse.Namespace) -> int:
    """Write a model as a .frnn file."""
    from .cli_convert import convert as write

    found = write(args, _options(args))
    if args.json:
        _print_json(found)
        return 0
    print(f"{found['output']}  {found['nodes']} nodes, {found['parameters']:,} parameters, {found['bytes']:,} bytes")
    if found["verified"]:
        print(f"the same outputs as {found['source']} in {found['verified']} runs; one is recorded")
    return 0


# bench


def bench(args: argparse.Namespace) -> int:
    """Time a model on random inputs of several shapes, turn by turn, so that a slow moment hits all of them."""
    import numpy as np

    from .inspect import describe, table, total
    from .model import load
    from .runtime import info
    from .verify import random_inputs

    models = {n: load(args.file, threads=n, **_options(args)) for n in args.threads}
    spec = next(iter(models.values())).spec
    macs = total(describe(spec)).macs
    given = {(b, t): random_inputs(spec, 0, b, t) for b in args.batch for t in args.seq_len}
    # A file may fix the length; what is timed is what is reported.
    inputs = {(b, _steps(feed, b, t)): feed for (b, t), feed in given.items()}
    cases = [(b, t, n) for b, t in inputs for n in args.threads]
    feeds = {case: inputs[case[:2]] for case in cases}
    times: dict[tuple[int, int, int], list[float]] = {case: [] for case in cases}

    def call(case: tuple[int, int, int]) -> float:
        started = time.perf_counter()
        models[case[2]].run(feeds[case])
        return time.perf_counter() - started

    for case in cases:
        call(case)  # warm up
    end = time.perf_counter() + args.seconds * len(cases)
    while time.perf_counter() < end or not times[cases[-1]]:
        for case in cases:
            turn = time.perf_counter() + min(args.seconds, 0.05)
            while not times[case] or time.perf_counter() < turn:
                times[case].append(call(case))

    rows = []
    for (batch, seq_len, threads), taken in times.items():
        median, p99 = np.percentile(taken, [50, 99])
        steps = batch * seq_len
        rows.append(
            {"batch": batch, "seq_len": seq_len, "threads": threads, "calls": len(taken), "median_us": median * 1e6,
             "p99_us": p99 * 1e6, "steps_per_s": steps / median, "gflops": 2e-9 * macs * steps / median}
        )  # fmt: skip
    plans = [
        {"batch": batch, "seq_len": seq_len, "threads": threads, "layers": models[threads].explain(batch, seq_len)}
        for batch, seq_len, threads in cases
    ]
    machine = {key: info()[key] for key in ("version", "isa", "team")}
    if args.json:
        _print_json({"file": args.file, **machine, "rows": rows, "plans": plans})
        return 0
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    head = ("batch", "seq_len", "threads", "calls", "median us", "p99 us", "steps/s", "GFLOP/s")
    print(table(head, [[v if isinstance(v, int) else f"{v:.1f}" for v in row.values()] for row in rows]))
    keys = ("layer", "kernel", "split", "threads")
    cells = [
        [plan["batch"], plan["seq_len"], *(layer.get(key, "") for key in keys)]
        for plan in plans
        for layer in plan["layers"]
    ]
    print(f"\n{table(('batch', 'seq_len', *keys), cells)}")
    return 0


def _steps(feeds: Mapping[str, np.ndarray], batch: int, seq_len: int) -> int:
    """Time steps of the first input: what its axes but the last have more than the batch."""
    first = next(iter(feeds.values()), None)
    if first is None or first.ndim < 3:
        return seq_len
    return first.size // first.shape[-1] // max(batch, 1) if first.size else seq_len


# doctor


def doctor(args: argparse.Namespace) -> int:
    """Print what this machine and this build offer."""
    from .doctor import as_text, diagnose

    facts = diagnose()
    if args.json:
        _print_json(facts)
    else:
        print(as_text(facts))
    return 0
