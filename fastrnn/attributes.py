"""What the attributes of nodes may be: kinds of values.

A kind is a function that gives "" for a value of its kind, and for any other the words for what it should be.  It is
where everything that can be said of a value by itself is said, so that what reads attributes need not look again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Integral
from typing import Any

import numpy as np

Kind = Callable[[Any], str]

MOST_AXES = 32
"""Axes of a tensor: NumPy's limit, of all versions that are used."""

MAX_SPATIAL, MAX_CONV_SPATIAL = 6, 3
"""Axes of a pool and of a convolution beside batch and channels: FRNN_MAX_AXES are 8, the windows of a convolution have
each twice."""

LARGEST = (1 << 31) - 1
"""Of a number that sizes are computed with: sums and products of some of them fit 64 bits."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most


def _bounds(least: int, most: int) -> str:
    if most >= LARGEST:
        return f" >= {least}" if least >= 0 else ""
    return f" from {least} to {most}"


def whole(least: int = -LARGEST, most: int = LARGEST) -> Kind:
    """A whole number within bounds."""
    return lambda value: "" if _is_whole(value, least, most) else f"a whole number{_bounds(least, most)}"


def wholes(least: int = -LARGEST, most: int = LARGEST, count: int = MOST_AXES, distinct: bool = False) -> Kind:
    """At most ``count`` whole numbers within bounds."""

    def kind(value: Any) -> str:
        fits = isinstance(value, (tuple, list)) and len(value) <= count
        if fits and all(_is_whole(n, least, most) for n in value) and not (distinct and len(set(value)) < len(value)):
            return ""
        return f"{'different ' if distinct else ''}whole numbers{_bounds(least, most)}, at most {count} of them"

    return kind


AXIS = whole(-MOST_AXES, MOST_AXES - 1)
AXES = wholes(-MOST_AXES, MOST_AXES - 1, distinct=True)


def permutation(value: Any) -> str:
    """Each of the numbers from 0 on once."""
    fits = isinstance(value, (tuple, list)) and len(value) <= MOST_AXES
    if fits and all(_is_whole(n, 0, MOST_AXES) for n in value) and sorted(value) == list(range(len(value))):
        return ""
    return f"the whole numbers from 0 on, each once, at most {MOST_AXES} of them"


def is_number(value: Any) -> bool:
    """Whether float32 holds it: finite and not larger than that, infinite, or not a number."""
    if isinstance(value, Integral):
        return not isinstance(value, bool) and abs(int(value)) <= FLOAT32_MAX
    return isinstance(value, (float, np.floating)) and (abs(value) <= FLOAT32_MAX or not math.isfinite(value))


def number(value: Any) -> str:
    return "" if is_number(value) else "a number"


def number_or_truth(value: Any) -> str:
    """What fills a tensor of any dtype."""
    return "" if isinstance(value, (bool, np.bool_)) or is_number(value) else "a number"


def small(value: Any) -> str:
    """What is added to a variance."""
    return "" if is_number(value) and math.isfinite(value) and value >= 0 else "a finite number >= 0"


def bound(value: Any) -> str:
    """What values are clipped to."""
    return "" if is_number(value) and value > 0 else "a positive number"


def flag(value: Any) -> str:
    return "" if isinstance(value, (bool, np.bool_)) else "True or False"


def text(value: Any) -> str:
    return "" if isinstance(value, str) else "a text"


def choice(known: Collection[str]) -> Kind:
    """One of some texts."""
    return lambda value: "" if isinstance(value, str) and value in known else f"one of {', '.join(known)}"


def optional(kind: Kind) -> Kind:
    """None, or of the kind."""

    def either(value: Any) -> str:
        expected = "" if value is None else kind(value)
        return expected and f"{expected}, or None"

    return either


def activation(known: Mapping[str, Any], rows: Collection[str] = (), with_rows: bool = True) -> Kind:
    """A name, or a name and its two numbers; one of ``rows`` works along the last axis, which its number may say."""
    names = [name for name in known if with_rows or name not in rows]

    def kind(value: Any) -> str:
        name, *numbers = value if isinstance(value, (tuple, list)) and value else (value,)
        if not isinstance(name, str) or not all(n is None or is_number(n) for n in numbers) or len(numbers) > 2:
            return "a text, or a text and two numbers"
        if any(n is not None and math.isnan(n) for n in numbers):
            return "a text, or a text and two numbers"
        if name not in names:
            return f"one of {', '.join(names)}"
        return f"{name} along the last axis, -1" if name in rows and numbers and numbers[0] not in (None, -1) else ""

    return kind
