"""Which inputs of a model are states, and which outputs they are for the next call."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..errors import UnsupportedError
from ..spec import GATES, Graph, ModelSpec, Node, Tensor
from .batch_axis import becomes_rows
from .facts import Facts
from .time_axis import UnfollowedError

MARKERS = (
    "in", "out", "input", "output", "inputs", "outputs", "prev", "previous", "next", "new", "old", "past", "present",
    "initial", "init", "final", "last", "cur", "current", "n", "0", "y", "of", "from", "to",
)  # fmt: skip
"""Parts of names that say before or after, not of what."""

MOVES = ("identity", "slice", "gather", "squeeze", "unsqueeze", "reshape", "transpose", "split", "concat", "cast",
         "expand", "flatten", "stack", "unstack", "where", "binary")  # fmt: skip
"""What a state may pass between the model's edge and a recurrent node; of ``binary`` the states of other branches."""

FREE = 10_007  # the size that a free axis has while it is followed


def paired(spec: ModelSpec, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """``{input: output}`` of the states that the model declares; ``given`` are pairs ``{output: input}``.

    Raises
    ------
    UnsupportedError
        Which belong together is not certain, or the given pairs do not fit.
    """
    return _checked(spec, given) if given is not None else _Pairing(spec).by_layers()


def refuse_backwards(spec: ModelSpec, pairs: Mapping[str, str]) -> None:
    """Refuse states of layers that read a sequence from its end; all are named."""
    starts = _Pairing(spec).roles_of_inputs()
    roles = set().union(*(starts.get(name, set()) for name in pairs))
    wrong = [
        f"{n.op} {n.name!r}"
        for n in spec.all_nodes()
        if roles & {f"{n.name} {w}" for w in "hc"}
        if n.attr("direction") != "forward"
    ]
    if wrong:
        raise UnsupportedError(
            f"{', '.join(wrong)}: runs backwards or in both directions, so it reads steps that have not come yet"
        )


def paired_by_name(spec: ModelSpec, by_shape: bool = True) -> dict[str, str]:
    """``{input: output}`` by name and by shape, of a model whose graph does not say which inputs are states."""
    pairing = _Pairing(spec)
    pairing.may_use_shapes = by_shape
    return pairing.by_names()


def hint(spec: ModelSpec) -> str:
    """How to name states, where some input may be one."""
    lines = _candidates(spec.inputs, spec.outputs)
    if len(spec.inputs) < 2 or not lines:
        return ""
    return "\nif inputs are states, say which output follows each, " + _form(lines)


def _candidates(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    found = {_text(i): [o for o in outputs if _fits(i, o)] for i in inputs}
    return {i: fit for i, fit in found.items() if fit}


def _form(candidates: Mapping[str, Sequence[Tensor]]) -> str:
    """The argument to give, and what may stand in it."""
    lines = [f"\n  {i}: {', '.join(map(_text, fit)) or 'no output fits'}" for i, fit in candidates.items()]
    return 'as states={"output": "input"}:' + "".join(lines)


def _fits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(None in (m, n) or m == n for m, n in zip(a.shape, b.shape))


def _may_be_state(tensor: Tensor) -> bool:
    """Whether at most the batch is free."""
    return tensor.shape is not None and len(tensor.shape) > 0 and tensor.shape.count(None) <= 1


def _text(tensor: Tensor) -> str:
    sizes = "?" if tensor.shape is None else ", ".join("?" if n is None else str(n) for n in tensor.shape)
    return f"{tensor.name!r} {tensor.dtype} ({sizes})"


def _checked(spec: ModelSpec, given: Mapping[str, str]) -> dict[str, str]:
    inputs, outputs = {t.name: t for t in spec.inputs}, {t.name: t for t in spec.outputs}
    problems = [f"{o!r} is no output" for o in given if o not in outputs]
    problems += [f"{i!r} is no input" for i in given.values() if i not in inputs]
    problems += [f"{i!r} is given twice" for i in {i for i in given.values() if list(given.values()).count(i) > 1}]
    for o, i in given.items():
        if o in outputs and i in inputs and not _fits(inputs[i], outputs[o]):
            problems.append(f"output {_text(outputs[o])} does not fit input {_text(inputs[i])}")
    if problems:
        raise UnsupportedError(
            f"the states do not fit the model: {'; '.join(problems)}; states={{output: input}} takes outputs"
            f" ({', '.join(map(_text, spec.outputs))}) and inputs ({', '.join(map(_text, spec.inputs))})"
        )
    return {i: o for o, i in given.items()}


def stem(name: str) -> tuple[str, ...]:
    """What a name says beside before and after: equal for an input and the output that follows it.

    >>> stem("h_in") == stem("h_out") == stem("h0") == stem("hn") == ("h",)
    True
    """
    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.rpartition("/")[2].partition(":")[0])
    parts = re.findall(r"[a-z]+|\d+", name.lower())
    parts = [part[:-1] if part in ("hn", "cn") else part for part in parts]
    parts = [part for part in parts if part not in MARKERS]
    return tuple(parts) if any(part.isalpha() for part in parts) else ()


class _Pairing:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.found: dict[str, str] = {}
        self.may_use_shapes = True
        self._edges: dict[str, set[str]] = {}
        self._starts: dict[str, set[str]] = {}  # roles: the states of recurrent nodes that a tensor begins
        self._ends: dict[str, set[str]] = {}  # and those that it is the result of
        self._last_outputs: dict[str, set[str]] = {}
        self._collect(spec)

    def _collect(self, graph: Graph) -> None:
        for node in graph.nodes:
            if node.op in GATES:
                self._recurrent(node)
            elif node.op in MOVES:
                for name in node.inputs:
                    self._edges.setdefault(name, set()).update(filter(None, node.outputs))
            for body in node.graphs.values():
                self._collect(body)
                if node.op == "if":
                    for result, output in zip(body.outputs, node.outputs):
                        self._edges.setdefault(result.name, set()).add(output)

    def _recurrent(self, node: Node) -> None:
        count = 2 if node.op == "lstm" else 1
        roles = [f"{node.name} {which}" for which in "hc"[:count]]
        for name, role in zip(node.inputs[1:], roles):
            if name:
                self._starts.setdefault(name, set()).add(role)
        for name, role in zip(node.outputs[1:], roles):
            if name:
                self._ends.setdefault(name, set()).add(role)
        if node.attr("unbatched") or not node.attr("return_sequences"):
            self._last_outputs.setdefault(node.outputs[0], set()).add(roles[0])

    def _reached(self, name: str) -> set[str]:
        """The tensors that are the given one, moved."""
        met, waiting = {name}, [name]
        while waiting:
            for other in self._edges.get(waiting.pop(), ()):
                if other not in met:
                    met.add(other)
                    waiting.append(other)
        return met

    def by_layers(self) -> dict[str, str]:
        """Pairs of inputs that begin the state of recurrent nodes; where there are some, others too."""
        starts = self.roles_of_inputs()
        self._by_roles(starts)
        return self.by_names(starts) if starts else {}

    def by_names(self, starts: Collection[str] = ()) -> dict[str, str]:
        """The pairs so far, those of equal names, and where there are some those of shapes that fit no others."""
        self._by_names()
        if self.found or self.may_use_shapes:
            self._by_shape()
        inputs, outputs = self._free()
        left = [t for t in inputs if t.name in starts]
        if self.found:
            left += [t for t in inputs[1:] if t not in left and any(_fits(t, o) for o in outputs[1:])]
        if left:
            lines = {_text(t): [o for o in outputs if _fits(t, o)] for t in left}
            raise UnsupportedError("which output follows each of these inputs is not certain; say it, " + _form(lines))
        return {t.name: self.found[t.name] for t in self.spec.inputs if t.name in self.found}

    def roles_of_inputs(self) -> dict[str, set[str]]:
        """The states that each input begins; not of those that also are what a layer runs over."""
        roles = {}
        for tensor in self.spec.inputs:
            found = set().union(*(self._starts.get(name, set()) for name in self._reached(tensor.name)))
            if found:
                roles[tensor.name] = found
        return roles

    def _roles_of_outputs(self, ends: Mapping[str, set[str]]) -> dict[str, set[str]]:
        roles: dict[str, set[str]] = {}
        for source, found in ends.items():
            for name in self._reached(source):
                roles.setdefault(name, set()).update(found)
        return roles

    def _free(self) -> tuple[list[Tensor], list[Tensor]]:
        gone = set(self.found.values())
        return (
            [t for t in self.spec.inputs if t.name not in self.found],
            [t for t in self.spec.outputs if t.name not in gone],
        )

    def _by_roles(self, starts: Mapping[str, set[str]]) -> None:
        """An input that begins states, and an output that they end as; h may be the output of a last step too."""
        ends = self._roles_of_outputs(self._ends)
        both = {name: set(found) for name, found in ends.items()}
        for name, found in self._roles_of_outputs(self._last_outputs).items():
            both.setdefault(name, set()).update(found)
        for roles in (ends, both):
            inputs, outputs = self._free()
            for tensor in inputs:
                wanted = starts.get(tensor.name)
                fit = [o for o in outputs if wanted and roles.get(o.name) == wanted and _fits(tensor, o)]
                rivals = [i for i in inputs if starts.get(i.name) == wanted]
                if len(fit) == len(rivals) == 1:
                    self.found[tensor.name] = fit[0].name

    def _by_names(self) -> None:
        inputs, outputs = self._free()
        pairs = []
        for tensor in filter(_may_be_state, inputs):
            own = stem(tensor.name)
            fit = [o for o in outputs if own and stem(o.name) == own and _fits(tensor, o)]
            if len(fit) == 1 and sum(stem(i.name) == own for i in inputs) == 1:
                pairs.append((tensor.name, fit[0].name))
        if len(pairs) in (len(inputs), len(outputs)):  # what is left is no data: the first input is
            pairs = [pair for pair in pairs if pair[0] != inputs[0].name]
        self.found |= dict(pairs)

    def _by_shape(self) -> None:
        """Only the two fit each other.  The first input and the first output are data."""
        inputs, outputs = self._free()
        inputs, outputs = inputs[1:], outputs[1:]
        for tensor in filter(_may_be_state, inputs):
            fit = [o for o in outputs if _fits(tensor, o)]
            if len(fit) == 1 and sum(_fits(i, fit[0]) for i in inputs) == 1:
                self.found[tensor.name] = fit[0].name


def batch_axes(specs: Sequence[ModelSpec], names: Iterable[str]) -> Iterator[int]:
    """The axis of each of these inputs that is the batch, -1 where that is not known.

    It is the free axis, or that which becomes the batch of a recurrent node that the state begins, in the first of
    these forms of the model that has one.
    """
    declared = {t.name: t.shape or () for t in specs[0].inputs}
    for name in names:
        shape = declared[name]
        free = [k for k, n in enumerate(shape) if n is None]
        if len(free) == 1:
            yield free[0]
            continue
        yield next((axis for spec in specs if (axis := axis_of_rows(spec, name)) >= 0), -1)


def axis_of_rows(spec: ModelSpec, name: str) -> int:
    """The axis of an input that is the batch of the recurrent layers, -1 where they do not tell."""
    sizes = _Declared(spec)
    axes = [k for k in range(len(sizes.shape(name))) if becomes_rows(sizes, spec.nodes, name, k)]
    return axes[0] if len(axes) == 1 else -1


class _Declared:
    """Sizes of tensors, for the rules of time; a free one is any."""

    def __init__(self, spec: ModelSpec) -> None:
        self._facts = Facts()
        self._facts.enter(spec)
        for tensor in spec.inputs:
            shape = None if tensor.shape is None else tuple(FREE if n is None else n for n in tensor.shape)
            self._facts.learn(tensor.name, shape, tensor.dtype)
        self._facts.follow(spec)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._facts.shape(name)
        if shape is None or None in shape:
            raise UnfollowedError("is not known")
        return shape  # type: ignore[return-value]
