"""NumPy's part of a result in the floating-point mode that a process begins with, whatever mode the caller is in.

Rounding and denormals belong to a thread.  C sets its own mode in each call (``src_c/float_mode.h``); what is computed
in Python (host steps, constants, weights that are joined, the float64 reference) is computed inside ``FloatMode()``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ._core import FloatMode

__all__ = ["FloatMode", "in_default_mode"]

P = ParamSpec("P")
R = TypeVar("R")


def in_default_mode(function: Callable[P, R]) -> Callable[P, R]:
    """The function, always run in that mode."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        with FloatMode():
            return function(*args, **options)

    return run
