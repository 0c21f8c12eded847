"""What users pass to public functions, checked against the annotations before anything is done with it."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from .errors import ArgumentError

Function = TypeVar("Function", bound=Callable[..., Any])

MOST = 2**31 - 1  # of whole numbers; C takes no larger ones

_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (Integral,)),
    "float": ("a number", (Real,)),
    "bool": ("True or False", (bool, np.bool_, Integral)),
    "str": ("a text", (str,)),
    "tuple": ("a tuple", (tuple,)),
    "list": ("a list", (Iterable,)),
    "Iterable": ("a list", (Iterable,)),
    "Sequence": ("a list", (Iterable,)),
    "Mapping": ("a dict", (Mapping,)),
    "bytes": ("bytes", (bytes, bytearray, memoryview)),
    "os.PathLike": ("a path", (os.PathLike,)),
    "None": ("None", (type(None),)),
}


def checked(**least: int) -> Callable[[Function], Function]:
    """Check the arguments of a function by their annotations; ``least`` are the smallest whole numbers it takes.

    What is annotated as ``Any`` (arrays, objects of frameworks) is left to the function itself.

    >>> @checked(count=1)
    ... def repeat(text: str, count: int = 1) -> str:
    ...     return text * count
    >>> repeat("a", cuont=2)
    Traceback (most recent call last):
    fastrnn.errors.ArgumentError: repeat(text, count=1) has no option 'cuont'; did you mean 'count'?
    >>> repeat("a", 0)
    Traceback (most recent call last):
    fastrnn.errors.ArgumentError: repeat(text, count=1): count is 0, expected a whole number from 1
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            try:
                given = signature.bind(*args, **options).arguments
            except TypeError as error:
                raise ArgumentError(f"{_form(function)} {_unbound(signature, options, str(error))}") from None
            for name, value in given.items():
                if problem := _problem(signature.parameters[name], value, least.get(name)):
                    raise ArgumentError(f"{_form(function)}: {problem}{_advice(signature, given, name)}")
            return function(*args, **options)

        return call  # type: ignore[return-value]

    return decorate


def near(name: object, known: Iterable[str]) -> str:
    """The end of an error about a name: the known one that it may stand for, if there is one.

    >>> near("num_threads", ["backend", "threads"])
    "; did you mean 'threads'?"
    """
    found = get_close_matches(str(name), list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def described(value: object) -> str:
    """A value in an error: short, and of arrays and objects only the kind."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (str, bytes, bool, Real)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    return f"a {type(value).__name__}"


def _form(function: Callable[..., Any]) -> str:
    """A function as it is called: name and parameters."""
    parts = []
    for p in inspect.signature(function).parameters.values():
        if p.name != "self":
            stars = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
            parts.append(f"{stars}{p.name}" + ("" if p.default is p.empty else f"={p.default!r}"))
    owner, _, name = function.__qualname__.rpartition(".")
    return f"{owner if name == '__init__' else name}({', '.join(parts)})"


def _unbound(signature: inspect.Signature, options: Mapping[str, Any], problem: str) -> str:
    unknown = [name for name in options if name not in signature.parameters]
    return f"has no option {unknown[0]!r}{near(unknown[0], signature.parameters)}" if unknown else f"- {problem}"


def _problem(parameter: inspect.Parameter, value: Any, least: int | None) -> str:
    """What is wrong with a value, or nothing."""
    kinds = _kinds(parameter)
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name == "self" or not kinds:
        return ""
    if not any(_is(value, kind) for kind in kinds):
        wanted = dict.fromkeys(_KINDS[kind][0] if kind in _KINDS else f"a {kind}" for kind in kinds)
        return f"{parameter.name} is {described(value)}, expected {' or '.join(wanted)}"
    if "int" in kinds and value is not None and not (-MOST if least is None else least) <= value <= MOST:
        bound = f"from {least}" if least is not None and value < least else f"of at most {MOST}"
        return f"{parameter.name} is {described(value)}, expected a whole number {bound}"
    return ""


def _kinds(parameter: inspect.Parameter) -> list[str]:
    """The names in an annotation; none where it takes anything."""
    text = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
    while text != (text := re.sub(r"\[[^\[\]]*\]", "", text)):
        pass
    names = [name.strip() for name in text.split("|") if name.strip()]
    return [] if {"Any", "np.ndarray"} & set(names) else names  # what takes arrays takes whatever becomes one


def _is(value: Any, kind: str) -> bool:
    if kind not in _KINDS:
        return any(base.__name__ == kind for base in type(value).__mro__)
    if kind in ("int", "float") and isinstance(value, bool):
        return False
    if kind in ("list", "Iterable", "Sequence") and isinstance(value, (str, bytes, Mapping)):
        return False
    return isinstance(value, _KINDS[kind][1])


def _advice(signature: inspect.Signature, given: Mapping[str, Any], wrong: str) -> str:
    """What was probably meant."""
    kinds = _kinds(signature.parameters[wrong])
    for name, value in given.items():
        other = _kinds(signature.parameters[name])
        fits = name != wrong and any(_is(value, kind) for kind in kinds)
        if fits and any(_is(given[wrong], kind) for kind in other):
            return f"; {wrong} and {name} are swapped"
    return advice(given[wrong]) if {"Model", "Layer"} & set(kinds) else ""


def advice(value: object) -> str:
    """How an object of another kind becomes a model."""
    if isinstance(value, (str, os.PathLike)):
        return "; fastrnn.load(path) reads files"
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    made = next((name for name in ("keras", "torch", "onnx") if name in packages), "")
    return f"; fastrnn.from_{made}(...) converts it" if made else ""
