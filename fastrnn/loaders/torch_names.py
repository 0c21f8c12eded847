"""What the pickle of a ``.pt`` file holds -> the names of its tensors: the paths that lead to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ..errors import FormatError
from .files import Module, short
from .limits import MAX_CONTAINERS, MAX_NAME_LENGTH, MAX_NESTING, MAX_PICKLE_STEPS, MAX_TENSORS
from .pickle_vm import NUMBER, SAVE_HINT, Record
from .state_dict import is_weight

_PLAIN = (dict, list, tuple)
_SIMPLE = (bool, int, float, str)


@dataclass
class Names:
    """Tensors by their names, those that are not dense as records; and what ``TensorFile`` has beside them."""

    tensors: dict[str, Any] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    modules: dict[str, Module] = field(default_factory=dict)


def named_tensors(value: Any, tensor: type) -> Names:
    """Find the values of the type ``tensor``, under every path that leads to them.

    Only containers that hold tensors, however deep, count for the limits: a checkpoint may have a large vocabulary, and
    objects that refer to each other.

    Raises
    ------
    FormatError
        Two tensors have one name, or there are too many, or too deep ones.
    """
    names = Names()
    holders = _holders(value, tensor)
    pending: list[tuple[str, Any, Any]] = [("", value, None)] if id(value) in holders else []
    visits = 0
    while pending:
        path, container, above = pending.pop()
        way = (id(container), above)
        names.roots.append(path)
        if isinstance(container, Record) and isinstance(container.state, dict):
            names.modules[path.removesuffix(".")] = _module(container.name, container.state)
        visits += _size(container)  # a shared container counts each time: a small pickle can describe a huge tree
        if visits > MAX_PICKLE_STEPS:
            raise FormatError(f"the checkpoint has more than {MAX_PICKLE_STEPS} values; {SAVE_HINT}")
        for key, item in _items(container, tensor):
            wanted = isinstance(item, tensor) or _stands_for_a_tensor(key, item)
            if (not wanted and id(item) not in holders) or _within(item, way):
                continue
            name = path + key.removeprefix(NUMBER)
            if len(name) > MAX_NAME_LENGTH:
                raise FormatError(f"the name {short(name)} has {len(name)} characters; the file is damaged")
            if wanted and name in names.tensors:
                raise FormatError(f"two tensors are called {short(name)}; {SAVE_HINT}")
            if isinstance(item, tensor) or (wanted and _is_tensor(item)):
                names.tensors[name] = item
            elif wanted:
                names.others[name] = repr(item)
            if id(item) in holders:
                pending.append((name + "." if name else "", item, way))
            containers = len(names.roots) + len(pending)
            count = len(names.tensors) + len(names.others)
            if name.count(".") > MAX_NESTING or count > MAX_TENSORS or containers > MAX_CONTAINERS:
                raise FormatError(
                    f"the checkpoint is nested deeper than {MAX_NESTING} levels, or has more than {MAX_TENSORS} tensors"
                    f" or {MAX_CONTAINERS} containers; {SAVE_HINT}"
                )
    return names


def _holders(value: Any, tensor: type) -> set[int]:
    """Identities of the containers in which there are tensors that a name leads to.

    Each container is looked at once and not once for each path: many references to one cost nothing, and circles end.
    Those that are deeper than names may go are not looked at.
    """
    pending, seen = [value], {id(value)}
    holders: set[int] = set()
    others: list[Any] = []  # that hold containers
    depth, level_end = 0, 1
    for k, container in enumerate(pending):  # which grows
        if k == level_end:
            depth, level_end = depth + 1, len(pending)
        if depth > MAX_NESTING + 1:  # one more, whose names are an error
            break
        inner = False
        for key, item in _items(container, tensor):
            if isinstance(item, tensor) or _stands_for_a_tensor(key, item):
                holders.add(id(container))
            if _size(item):
                inner = True
                if id(item) not in seen:
                    seen.add(id(item))
                    pending.append(item)
        if inner and id(container) not in holders:
            others.append(container)
    for _ in range(MAX_NESTING):  # each time at least those that are one level farther from a tensor
        others, before = [], others
        for container in reversed(before):
            if any(id(item) in holders for _, item in _items(container, tensor)):
                holders.add(id(container))
            else:
                others.append(container)
        others.reverse()
        if len(others) == len(before):
            break
    return holders


def _size(value: Any) -> int:
    """How many values are in a container; 0 of everything else."""
    if isinstance(value, Record):
        parts = (value.arguments, value.items, value.entries, value.state)
        return sum(len(part) if isinstance(part, _PLAIN) else part is not None for part in parts)
    return len(value) if isinstance(value, _PLAIN) else 0


def _stands_for_a_tensor(key: str, item: Any) -> bool:
    """Whether a record is a tensor that is not dense, or where a weight of a layer has its place."""
    return isinstance(item, Record) and (_is_tensor(item) or is_weight(key.rpartition(".")[2]))


def _is_tensor(item: Record) -> bool:
    """Whether a call makes a tensor, to judge by the name of the function."""
    last = item.name.rpartition(".")[2]
    return item.arguments is not None and (last.startswith("_rebuild_") or last.endswith("Tensor"))


def _within(item: Any, way: Any) -> bool:
    """Whether a container is one of those that led here."""
    while way is not None:
        if way[0] == id(item):
            return True
        way = way[1]
    return False


def _items(container: Any, tensor: type) -> Iterator[tuple[str, Any]]:
    """The tensors, containers and records in a container, with the text that leads to each."""
    found = (tensor, Record, *_PLAIN)
    if not isinstance(container, Record):
        return _pairs(container, found)
    parts = [_pairs(part, found) for part in (container.arguments, container.items, container.entries) if part]
    return chain(*parts, _attributes(container.state, tensor, found))


def _pairs(container: Any, found: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(container, dict):
        return ((key, item) for key, item in container.items() if isinstance(item, found))
    return ((str(index), item) for index, item in enumerate(container) if isinstance(item, found))


def _attributes(state: Any, tensor: type, found: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """What an object was given as its attributes; parameters, buffers and submodules of a module are among them."""
    match state:
        case (None | dict(), dict() as slots):  # of a class with __slots__
            return chain(_pairs(state[0] or {}, found), _pairs(slots, found))
        case {"_parameters": dict() as parameters, "_buffers": dict() as buffers, "_modules": dict() as modules}:
            inner = (parameters, buffers, modules)
            own = {value for value in parameters.values() if isinstance(value, tensor)}
            rest = (pair for pair in _pairs(state, found) if not any(pair[1] is part for part in inner))
            return chain(_without_own(rest, own), *(_pairs(part, found) for part in inner))
        case dict():
            own = {value for value in state.values() if isinstance(value, tensor)}
            return _without_own(_pairs(state, found), own)
        case list() | tuple():
            return _pairs(state, found)
    return _pairs([state], found)


def _without_own(pairs: Iterable[tuple[str, Any]], own: set[Any]) -> Iterator[tuple[str, Any]]:
    """All but lists of nothing but the object's own tensors, as recurrent modules keep them beside their weights."""
    kinds = {type(value) for value in own}
    for key, item in pairs:
        listed = isinstance(item, list) and item and all(type(part) in kinds and part in own for part in item)
        if not listed:
            yield key, item


def _module(name: str, state: dict[str, Any]) -> Module:
    kind = name.rpartition(".")[2] if name.startswith("torch.nn.") else ""
    settings = {key: value for key, value in state.items() if value is None or isinstance(value, _SIMPLE)}
    for key in ("_forward_hooks", "_forward_pre_hooks"):
        settings[key] = bool(state.get(key))
    return Module(kind, settings)
