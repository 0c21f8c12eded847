"""A machine for the pickles inside ``.pt`` files that can build nothing but plain values.

A pickle is a program for a small stack machine.  Python's own machine imports and calls whatever the program names, so
it must never see a file from a stranger.  This one knows the opcodes that ``torch.save`` writes for dictionaries of
tensors, and a closed table of functions that stand in for PyTorch's.  A name outside of the table becomes an inert
token: the program runs on to its end, nothing is imported or called, and one error names all such tokens.

Values cost little more than their opcodes: no opcode of the table copies a value that an earlier one made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pickletools import opcodes
from typing import Any

from ..errors import FormatError, UnsupportedError
from .files import name_list, short
from .limits import MAX_PICKLE_SIZE, MAX_PICKLE_STEPS

_MAX_ARGUMENTS = 16
SAVE_HINT = "save the weights alone in PyTorch: torch.save(model.state_dict(), path)"


class StateDict(dict):
    """Stands in for ``collections.OrderedDict``, the only object that may be given attributes (they are dropped)."""

    __slots__ = ()


class ScriptObject:
    """Stands in for an instance of a class of the file's own program: its attributes, and none of its methods."""

    __slots__ = ("state",)

    def __init__(self, state: Any = None):
        self.state = state


class _ScriptClass:
    """Stands in for every class of the file's own program."""


_SCRIPT_CLASS = _ScriptClass()


class _Refused:
    """Stands in for every global outside of the table, and for whatever is made with one."""


_REFUSED = _Refused()


def interpret(
    program: memoryview,
    functions: Mapping[str, Callable[[tuple], Any]],
    constants: Mapping[str, Any],
    persistent_load: Callable[[Any], Any],
    classes: str = "",
) -> Any:
    """Run a pickle and return its value.

    Parameters
    ----------
    program : memoryview
        The pickle.
    functions, constants : mapping
        The globals that the pickle may name, as "module.name".  A function gets the tuple of its arguments.
    persistent_load : callable
        Gets the persistent identifiers of the pickle and returns what they stand for.
    classes : str
        Names that begin so are classes of the file's own program; their instances become ``ScriptObject``.

    Raises
    ------
    UnsupportedError
        It names globals outside of the tables; the error lists all of them.
    FormatError
        It is damaged, too large, or uses other opcodes than ``torch.save`` does.
    """
    if len(program) > MAX_PICKLE_SIZE:
        raise FormatError(f"the pickle has {len(program)} bytes, at most {MAX_PICKLE_SIZE} are read; {SAVE_HINT}")
    machine = _Machine(bytes(program), functions, constants, persistent_load, classes)
    try:
        value = machine.run()
    except (FormatError, IndexError, struct.error, UnicodeDecodeError) as error:
        if not machine.refused:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"the pickle is damaged near byte {machine.position}; get a fresh copy of the file"
            ) from None
    if machine.refused:
        raise UnsupportedError(
            f"the file asks for Python objects that fastrnn never builds: {name_list(machine.refused)};"
            f" nothing was run. If the file is yours, {SAVE_HINT}"
        )
    return value


class _Machine:
    def __init__(
        self,
        program: bytes,
        functions: Mapping[str, Callable[[tuple], Any]],
        constants: Mapping[str, Any],
        persistent_load: Callable[[Any], Any],
        classes: str,
    ):
        self.program, self.position = program, 0
        self.functions, self.constants, self.persistent_load = functions, constants, persistent_load
        self.classes = classes
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.refused: set[str] = set()

    def run(self) -> Any:
        for _ in range(MAX_PICKLE_STEPS):
            code = self.take(1)[0]
            if code == _STOP:
                if self.outer or len(self.stack) != 1 or self.position != len(self.program):
                    raise FormatError("the pickle does not end with one value; get a fresh copy of the file")
                return self.stack[0]
            handler = _HANDLERS.get(code)
            if handler is None:
                name = next((op.name for op in opcodes if op.code == chr(code)), f"the byte {code:#04x}")
                raise FormatError(
                    f"the pickle uses {name} at byte {self.position - 1}, no state_dict does; {SAVE_HINT}"
                )
            handler(self)
        raise FormatError(f"the pickle takes more than {MAX_PICKLE_STEPS} steps; {SAVE_HINT}")

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes of the program."""
        end = self.position + count
        if end > len(self.program):
            raise FormatError(f"the pickle ends in the middle of a value (byte {self.position}); the file is truncated")
        data = self.program[self.position : end]
        self.position = end
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.program.find(b"\n", self.position) + 1 or len(self.program) + 1
        return self.take(end - self.position)[:-1].decode("utf-8")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def global_value(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is not text"
        if full in self.functions:
            return self.functions[full]
        if full in self.constants:
            return self.constants[full]
        if self.classes and full.startswith(self.classes):
            return _SCRIPT_CLASS
        self.refused.add(full)
        return _REFUSED

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            raise FormatError("the pickle calls a function without a short tuple of arguments; the file is damaged")
        if function is _REFUSED or any(item is _REFUSED for item in arguments):
            self.stack.append(_REFUSED)
        elif function is _SCRIPT_CLASS:
            self.stack.append(ScriptObject(arguments))
        elif callable(function):
            self.stack.append(function(arguments))
        else:
            raise FormatError("the pickle calls a value that is not a function; the file is damaged")

    def new_object(self) -> None:
        self.stack.pop()
        if self.stack[-1] is _SCRIPT_CLASS:
            self.stack[-1] = ScriptObject()
        elif self.stack[-1] is not _REFUSED:
            raise FormatError(f"the pickle makes a new object of a plain value; {SAVE_HINT}")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, ScriptObject) and target.state is None:
            target.state = state
        # What a StateDict gets is state_dict._metadata, versions of the modules.
        elif target is not _REFUSED and not isinstance(target, StateDict):
            raise FormatError(f"the pickle sets attributes of a plain value; {SAVE_HINT}")

    def persistent_id(self) -> None:
        identifier = self.stack.pop()
        short_tuple = isinstance(identifier, tuple) and len(identifier) <= _MAX_ARGUMENTS
        refused = short_tuple and any(item is _REFUSED for item in identifier)
        self.stack.append(_REFUSED if refused else self.persistent_load(identifier))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif target is not _REFUSED:
            raise FormatError("the pickle appends to a value that is not a list; the file is damaged")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if target is _REFUSED:
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise FormatError("the pickle stores items in a value that is not a dictionary; the file is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            text = _key(key)
            if text in target:
                raise FormatError(f"the key {short(text)} is stored twice; the file is damaged")
            target[text] = value

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number("B")), "little", signed=True))

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def tuple_of_mark(self) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise FormatError("the pickle makes a tuple of values that are not there; the file is damaged")
        self.stack[-count:] = [items]

    def protocol(self) -> None:
        version = self.number("B")
        if version > 5:
            raise FormatError(f"the pickle has protocol {version}, at most 5 is known; {SAVE_HINT}")


def _key(key: Any) -> str:
    """A dictionary key as text.

    Text alone is hashed with a secret, so a file cannot choose keys that collide; and hashing a deep tuple recurses.
    """
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, float) or (isinstance(key, int) and key.bit_length() <= 64):
        return str(key)
    raise FormatError(f"the dictionary key {short(key)} is neither text nor an ordinary number; {SAVE_HINT}")


def _push_number(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.number(layout))


def _push_text(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.take(m.number(layout)).decode("utf-8", "surrogatepass"))


def _push_bytes(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.take(m.number(layout)))


def _memo_get(layout: str) -> Callable[[_Machine], None]:
    def get(m: _Machine) -> None:
        index = m.number(layout)
        if index not in m.memo:
            raise FormatError("the pickle uses a value before it is made; the file is damaged")
        m.stack.append(m.memo[index])

    return get


def _memo_put(layout: str) -> Callable[[_Machine], None]:
    def put(m: _Machine) -> None:
        m.memo[m.number(layout)] = m.stack[-1]

    return put


def _global(m: _Machine) -> None:
    module = m.line()
    m.stack.append(m.global_value(module, m.line()))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.stack.append(m.global_value(module, name))


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items([key, value])


def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


_OPCODES: dict[str, Callable[[_Machine], Any]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda m: m.take(8),  # a hint about buffering
    "MARK": _Machine.mark,
    # Values
    "NONE": lambda m: m.stack.append(None),
    "NEWTRUE": lambda m: m.stack.append(True),
    "NEWFALSE": lambda m: m.stack.append(False),
    "BININT": _push_number("<i"),
    "BININT1": _push_number("B"),
    "BININT2": _push_number("<H"),
    "BINFLOAT": _push_number(">d"),
    "LONG1": _Machine.long,
    "SHORT_BINUNICODE": _push_text("B"),
    "BINUNICODE": _push_text("<I"),
    "BINUNICODE8": _push_text("<Q"),
    "SHORT_BINBYTES": _push_bytes("B"),
    "BINBYTES": _push_bytes("<I"),
    "BINBYTES8": _push_bytes("<Q"),
    # Containers; a set is read as a list, so that nothing is hashed
    "EMPTY_TUPLE": lambda m: m.stack.append(()),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_SET": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "APPEND": lambda m: m.extend([m.stack.pop()]),
    "APPENDS": lambda m: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m: m.extend(m.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    # Memo
    "BINPUT": _memo_put("B"),
    "LONG_BINPUT": _memo_put("<I"),
    "MEMOIZE": _memoize,
    "BINGET": _memo_get("B"),
    "LONG_BINGET": _memo_get("<I"),
    # Globals and calls, from the closed table only
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
_CODES = {op.name: ord(op.code) for op in opcodes}
_HANDLERS = {_CODES[name]: handler for name, handler in _OPCODES.items()}
_STOP = _CODES["STOP"]
