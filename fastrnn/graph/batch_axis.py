"""Where the rows of a batch are, followed through a graph as time is: no row may meet another on the way.

The rules are those of :mod:`fastrnn.graph.time_axis`, with rows in place of steps, and one more for recurrent nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..spec import GATES, Node
from .time_axis import RULES, Given, Of, Rule, Sizes, Time, UnfollowedError, less

OVER_ROWS = "runs over the batch"

SAME_ROWS = ("expand", "tile", "fill")
"""Nodes that repeat what they read as often as there are rows, without having read one."""


def batch_axis_of(shape: Sequence[int | None], time: int | None) -> int:
    """The axis of an input that is the batch: the first one beside time that is free or of size 1; -1: there is none.

    >>> batch_axis_of((None, None, 40), 1), batch_axis_of((10, 1, 40), 0), batch_axis_of((None, 40), 0)
    (0, 1, -1)
    """
    return next((k for k, n in enumerate(shape) if k != time and n in (None, 1)), -1)


def follow_rows(
    f: Sizes, nodes: Iterable[Node], times: Mapping[str, Of], batch: int
) -> tuple[dict[str, Of], dict[str, str]]:
    """Where the rows of these tensors go, and, by the names of nodes, why that is not certain.

    ``batch`` is the size that the batch has meanwhile.
    """
    found, problems = dict(times), dict[str, str]()
    extend_rows(f, nodes, found, problems, batch)
    return found, problems


def extend_rows(f: Sizes, nodes: Iterable[Node], found: dict[str, Of], problems: dict[str, str], batch: int) -> None:
    """The same, from where the rows of the nodes before these go."""
    for node in nodes:
        given = [found.get(name) for name in node.inputs]
        try:
            if node.op in SAME_ROWS and not any(given):
                made: Of | list[Of] = _by_size(f, node.outputs[0], batch)
            elif not any(given) or node.op in ("shape", "size"):
                continue
            elif node.op in ROW_RULES:
                made = ROW_RULES[node.op](f, node, given)
            else:
                made = [_by_size(f, name, batch) for name in node.outputs]
        except UnfollowedError as reason:
            problems[node.name] = str(reason)
            continue
        found |= {name: of for name, of in zip(node.outputs, made if isinstance(made, list) else [made]) if name}


def becomes_rows(f: Sizes, nodes: Iterable[Node], name: str, axis: int) -> bool:
    """Whether this axis of a tensor is that of the rows in the first recurrent node that takes the tensor."""
    nodes, size = list(nodes), f.shape(name)[axis]
    found = follow_rows(f, nodes, {name: Time(axis, size)}, size)[0]
    for node in nodes:
        if node.op not in GATES:
            continue
        for k, given in enumerate(node.inputs[: 3 if node.op == "lstm" else 2]):
            of = found.get(given)
            if isinstance(of, Time):
                shape = f.shape(given)
                single = node.attr("unbatched") or (len(shape) == 2 and k > 0)
                rows = 0 if single or (k == 0 and node.attr("batch_first")) else 1
                return of.axis == rows < len(shape) - 1 and shape[rows] == size
    return False


def _by_size(f: Sizes, name: str, batch: int) -> Of:
    """The only axis that is as long as the batch, of a tensor that was made in a way that is not followed."""
    try:
        shape = f.shape(name)
    except UnfollowedError:
        return None
    return Time(shape.index(batch), batch) if shape.count(batch) == 1 else None


def _recurrent(f: Sizes, node: Node, given: Given) -> list[Of]:
    """Rows are along the axis that is neither time nor features; states, masks and lengths have the same ones."""
    x, shape = given[0], f.shape(node.inputs[0])
    single = len(shape) == 2
    along = None if node.attr("unbatched") else 0 if single or not node.attr("batch_first") else 1
    rows = 0 if along is None else 1 - along
    if not isinstance(x, Time):
        raise UnfollowedError("takes a state for each row of the batch, and steps that are the same for all")
    if x.axis != rows or (single and along is not None):
        raise UnfollowedError(OVER_ROWS if x.axis == along else "reads across the batch")
    count = 2 if node.op == "lstm" else 1
    for k, (name, of) in enumerate(zip(node.inputs[1:], given[1:])):
        if name and (
            not isinstance(of, Time) or (of.size, of.inner) != (x.size, x.inner) or not _first(f, name, k < count, of)
        ):
            raise UnfollowedError(f"takes {name!r}, whose rows are not those of the batch")
    y = x if along is None or node.attr("return_sequences") else less(x, [along])
    return [y, *[_state(x, 0 if along is None else 1)] * (len(node.outputs) - 1)]


def _first(f: Sizes, name: str, is_state: bool, of: Time) -> bool:
    """Whether rows are where a state, (num_layers, batch, size) or (batch, size), a mask or lengths have them."""
    return of.axis == (1 if is_state and len(f.shape(name)) == 3 else 0)


def _state(x: Time, axis: int) -> Time:
    return Time(axis, x.size, x.inner)


ROW_RULES: dict[str, Rule] = {**RULES, **dict.fromkeys(tuple(GATES), _recurrent)}
