"""``fastrnn convert``: a model of any format as a ``.frnn`` file, checked against what it was made from."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .cli_run import read_arrays
from .errors import FormatError
from .file_writer import check_target, write_file
from .inspect import describe, total
from .loaders import load_spec
from .loaders.native import spec_from_bytes, spec_to_bytes
from .model import Model
from .verify import random_inputs

BATCH, SEQ_LEN = 2, 10  # of the random inputs; the file holds one of them


def convert(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Do what the command line asks; returns what was read, written and compared.

    The outputs must have the same bits: both sides are the same engine.
    """
    target = Path(args.output)
    if target.suffix != ".frnn":
        raise FormatError(f"--output {target}: expected a name that ends in .frnn")
    if target.exists() and not args.force:
        raise FileExistsError(f"there already: {target}")
    check_target(target)  # before the work, not after it
    spec = load_spec(args.file, **options)
    source = Model(spec)  # a file that fastrnn cannot run is of no use
    runs = []
    given = read_arrays(args.inputs, spec)
    for seed in range(args.verify):
        feeds = {**random_inputs(spec, seed, BATCH, SEQ_LEN), **given}
        runs.append((feeds, source.run(feeds)))
    if runs:
        spec = replace(spec, recorded={**runs[0][1], **runs[0][0]})
    data = spec_to_bytes(spec)
    converted = Model(spec_from_bytes(data)) if runs else source
    for feeds, expected in runs:
        given = converted.run(feeds)
        differ = [name for name, want in expected.items() if not np.array_equal(given[name], want, equal_nan=True)]
        if differ:
            raise FormatError(
                f"the converted model gives other outputs {differ}; nothing was written, please report it"
            )
    write_file(target, lambda file: file.write(data))
    found = total(describe(spec))
    return {
        "source": args.file,
        "output": str(target),
        "bytes": len(data),
        "nodes": len(list(spec.all_nodes())),
        "parameters": found.parameters,
        "verified": len(runs),
    }
