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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from .errors import FastrnnError, FormatError, ShapeError, UnsupportedError

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
    from .loaders import FORMATS

    suffixes = [suffix for row in FORMATS for suffix in row.suffixes]
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
        command.add_argument("file", metavar="FILE", help=f"model: {' '.join(suffixes)}")
        command.add_argument("--prefix", help="take only the keys of a state_dict that start with this")
        command.add_argument("--nonlinearity", help="of a simple RNN in a state_dict: tanh (default) or relu")
        command.add_argument("--config", help="the model's configuration, for .weights.h5")
        text = "load only what these layers or tensors need, a comma list (default: the outputs of the model)"
        command.add_argument("--outputs", type=lambda text: text.split(","), metavar="NAME,...", help=text)
        return command

    command = add_file("inspect", inspect, "print layers, shapes, parameters, work and bytes a step")
    text = "the layers of the file, rather than the graph that runs"
    command.add_argument("--as-written", action="store_true", help=text)

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

    text = "compare a model with the float64 reference, with recorded outputs or with another model"
    command = add_file("verify", verify, text)
    text = (
        "what to trust; an .npz holds inputs and outputs by name, so may a .frnn file itself (recorded); "
        "the reference checks the arithmetic, not what the file says"
    )
    command.add_argument("--against", default="reference", metavar="reference|recorded|PATH", help=text)
    text = "an input instead of a random one: .npy, .npz or .csv; may be repeated"
    command.add_argument("--input", "-i", action="append", default=[], metavar="[NAME=]PATH", dest="inputs", help=text)
    command.add_argument("--seed", type=_whole, default=0, help="of the random inputs (default 0)")
    command.add_argument("--batch", type=_positive, default=4, help="rows of the random inputs (default 4)")
    command.add_argument("--seq-len", type=_positive, default=20, help="steps of the random inputs (default 20)")
    command.add_argument("--tolerance", type=_amount, help="largest absolute error allowed (default: by rounding)")

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
    command.add_argument("--seconds", type=_amount, default=1.0, help="time for each row of the table (default 1)")

    add("doctor", doctor, "print what this machine and this build offer, and what may go wrong")
    return parser


def _whole(text: str, least: int = 0) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
    return number


def _positive(text: str) -> int:
    return _whole(text, 1)


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
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
    from .cli_inspect import as_text
    from .cli_inspect import inspect as look

    found = look(args, _options(args))
    if args.json:
        _print_json(found)
    else:
        print(as_text(found))
    return 0


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
    from .cli_run import read_arrays
    from .model import load
    from .verify import verify as compare

    model = load(args.file, **_options(args))
    sizes = {"seed": args.seed, "batch": args.batch, "seq_len": args.seq_len, "tolerance": args.tolerance}
    report = compare(model, args.against, inputs=read_arrays(args.inputs, model.spec) or None, **sizes)
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
    """Time a model on random inputs."""
    from .cli_bench import as_text
    from .cli_bench import bench as measure

    found = measure(args, _options(args))
    if args.json:
        _print_json(found)
    else:
        print(as_text(found))
    return 0


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
