"""Arrays in .npy, .npz and .csv files: read without pickles, written in one piece or not at all."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from .errors import FormatError, ShapeError
from .file_writer import write_file

SUFFIXES = (".npy", ".npz", ".csv")


def read(path: Path) -> dict[str, np.ndarray] | np.ndarray:
    """Read the array of a .npy or .csv file, or the arrays of an .npz file by name.

    A row of a .csv file becomes a row of a 2-D array; a first line that holds no numbers is a header.

    Raises
    ------
    FormatError
        The file is of another kind, damaged, or holds Python objects.
    """
    if path.suffix not in SUFFIXES:
        raise FormatError(f"{path}: unknown kind of array file {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".csv":
            return _read_csv(path)
        with path.open("rb") as file:  # np.load leaves a file open where the contents are damaged
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise FormatError(
            f"{path}: not a {path.suffix} file of plain numbers ({error}); write it with numpy"
        ) from error


def _read_csv(path: Path) -> np.ndarray:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if lines and not any(_is_number(field) for field in lines[0].split(",")):
        del lines[0]
    if not lines:
        raise FormatError(f"{path}: no rows of numbers")
    return np.loadtxt(lines, delimiter=",", ndmin=2)


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def write(path: Path, array: np.ndarray) -> None:
    """Write an array to a .npy file, or one of at most two dimensions to a .csv file."""
    if path.suffix == ".csv":
        if array.ndim > 2:
            raise ShapeError(f"{path}: a table has two dimensions, the output has the shape {array.shape}; write .npy")
        write_file(path, lambda file: np.savetxt(file, np.atleast_1d(array), fmt="%.9g", delimiter=","))
    else:
        write_file(path, lambda file: np.save(file, array))
