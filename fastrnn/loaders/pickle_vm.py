"""A machine for the pickles inside ``.pt`` files that can build nothing but plain values.

A pickle is a program for a small stack machine.  Python's own machine imports and calls whatever the program names, so
it must never see a file from a stranger.  This one knows the opcodes of protocols 2 to 5, and a closed table of
functions that stand in for PyTorch's.  Every other global, and whatever the program makes with one, becomes a
``Record``: a name and what was given to it.  Nothing is imported or called, so a checkpoint may hold objects of any
kind beside its tensors.

Values cost little more than their opcodes: no opcode of the table copies a value that an earlier one made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pickletools import opcodes
from struct import Struct
from typing import Any

from ..errors import FormatError
from .files import short
from .limits import MAX_GLOBAL_LENGTH, MAX_PICKLE_STEPS

MAX_ARGUMENTS = 16  # of a function of the table
NUMBER = "\0"
"""Begins the keys of a dictionary that were numbers: {1: a, "1": b} has two."""
SAVE_HINT = "save the weights alone in PyTorch: torch.save(model.state_dict(), path)"


class StateDict(dict):
    """Stands in for ``collections.OrderedDict``; ``state_dict._metadata``, its one attribute, is dropped."""

    __slots__ = ()


class Record:
    """Stands in for a global outside of the tables, and for what the pickle makes with it.

    Attributes
    ----------
    name : str
        "module.name" of the class or function.
    arguments : tuple or None
        What it was called with; None where it was not.
    state : object
        What the object was given as its attributes, or None.
    items, entries : list, dict or None
        What was appended to it, and stored in it by keys.
    """

    __slots__ = ("arguments", "entries", "items", "name", "state")

    def __init__(self, name: str, arguments: tuple | None = None):
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.items: list[Any] | None = None
        self.entries: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Its name and those of the records that it was made from, for messages."""
        parts = (self, *(self.arguments or ())[:MAX_ARGUMENTS])
        name, *others = (repr(part.name[:200])[1:-1] for part in parts if isinstance(part, Record))
        return f"{name}({', '.join(others)})" if others else name


def interpret(
    program: bytes | memoryview,
    functions: Mapping[str, Callable[[Record], Any]],
    constants: Mapping[str, Any],
    persistent_load: Callable[[Any], Any],
) -> tuple[Any, list[str]]:
    """Run a pickle; return its value, and the names of the globals in it that are in neither table.

    Parameters
    ----------
    program : bytes or memoryview
        The pickle.
    functions, constants : mapping
        The globals that are known, as "module.name".  A function gets the record of its call with a short tuple of
        arguments, and returns what the call gives, or the record itself.
    persistent_load : callable
        Gets the persistent identifiers of the pickle and returns what they stand for.

    Raises
    ------
    FormatError
        It is damaged, too long, or uses opcodes that no pickler of Python 3 writes.
    """
    machine = _Machine(memoryview(program), functions, constants, persistent_load)
    try:
        return machine.run(), list(machine.unknown)
    except (IndexError, UnicodeDecodeError):
        raise FormatError(f"the pickle is damaged near byte {machine.position}; get a fresh copy of the file") from None


class _Machine:
    def __init__(
        self,
        program: memoryview,
        functions: Mapping[str, Callable[[Record], Any]],
        constants: Mapping[str, Any],
        persistent_load: Callable[[Any], Any],
    ):
        self.program, self.position = program, 0
        self.functions, self.constants, self.persistent_load = functions, constants, persistent_load
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.unknown: dict[str, None] = {}

    def run(self) -> Any:
        for _ in range(MAX_PICKLE_STEPS):
            if self.position >= len(self.program):
                break
            code = self.program[self.position]
            self.position += 1
            if code == _STOP:
                if self.outer or len(self.stack) != 1 or self.position != len(self.program):
                    raise FormatError("the pickle does not end with one value; get a fresh copy of the file")
                return self.stack[0]
            handler = _HANDLERS.get(code)
            if handler is None:
                name = next((op.name for op in opcodes if op.code == chr(code)), f"the byte {code:#04x}")
                raise FormatError(
                    f"the pickle uses {name} at byte {self.position - 1}, torch.save does not write it; {SAVE_HINT}"
                )
            handler(self)
        self.take(1)
        raise FormatError(f"the pickle takes more than {MAX_PICKLE_STEPS} steps; {SAVE_HINT}")

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes of the program."""
        begin = self.position
        self.skip(count)
        return self.program[begin : self.position]

    def skip(self, count: int) -> None:
        if self.position + count > len(self.program):
            raise FormatError(f"the pickle ends in the middle of a value (byte {self.position}); the file is truncated")
        self.position += count

    def number(self, layout: Struct) -> Any:
        begin = self.position
        self.skip(layout.size)
        return layout.unpack_from(self.program, begin)[0]

    def line(self) -> str:
        ahead = bytes(self.program[self.position : self.position + MAX_GLOBAL_LENGTH])
        size = ahead.find(b"\n") + 1 or MAX_GLOBAL_LENGTH + 1
        if size > len(ahead) == MAX_GLOBAL_LENGTH:
            raise FormatError(f"a name in the pickle has more than {MAX_GLOBAL_LENGTH} bytes; the file is damaged")
        return str(self.take(size)[:-1], "utf-8")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def global_value(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is not text"
        if full in self.constants:
            return self.constants[full]
        if full not in self.functions:
            self.unknown[full] = None
        return Record(full)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Record) or not isinstance(arguments, tuple):
            raise FormatError(
                "the pickle calls a value that is not a function, or without a tuple of arguments; the file is damaged"
            )
        call = Record(function.name, arguments)
        known = self.functions.get(function.name) if function.arguments is None else None
        if known is not None and len(arguments) > MAX_ARGUMENTS:
            raise FormatError("the pickle calls a function without a short tuple of arguments; the file is damaged")
        self.stack.append(call if known is None else known(call))

    def new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Record) or not isinstance(arguments, tuple):
            raise FormatError("the pickle makes a new object of a plain value; the file is damaged")
        self.stack.append(Record(kind.name, arguments))

    def new_object_with_names(self) -> None:
        options, arguments = self.stack.pop(), self.stack.pop()
        self.stack.append((arguments, options))
        self.new_object()

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record) and target.state is None:
            target.state = state
        elif not isinstance(target, StateDict):
            raise FormatError("the pickle sets attributes of a plain value; the file is damaged")

    def persistent_id(self) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items = target.items if target.items is not None else []
            target = target.items
        if not isinstance(target, list):
            raise FormatError("the pickle appends to a value that is not a list; the file is damaged")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.entries = target.entries if target.entries is not None else {}
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise FormatError("the pickle stores items in a value that is not a dictionary; the file is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            text = _key(key, len(target))
            if text in target:
                raise FormatError(f"the key {short(text.removeprefix(NUMBER))} is stored twice; the file is damaged")
            target[text] = value

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(_BYTE)), "little", signed=True))

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def list_of_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def tuple_of_mark(self) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise FormatError("the pickle makes a tuple of values that are not there; the file is damaged")
        self.stack[-count:] = [items]

    def protocol(self) -> None:
        version = self.number(_BYTE)
        if version > 5:
            raise FormatError(f"the pickle has protocol {version}, at most 5 is known; {SAVE_HINT}")


_BYTE, _SHORT, _SIGNED, _UNSIGNED, _LONG, _DOUBLE = map(Struct, ("B", "<H", "<i", "<I", "<Q", ">d"))


def _key(key: Any, position: int) -> str:
    """A dictionary key as text; one that is neither text nor a number has its position for a name.

    Text alone is hashed with a secret, so a file cannot choose keys that collide; and hashing a deep tuple recurses.
    """
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, float) or (isinstance(key, int) and key.bit_length() <= 64):
        return f"{NUMBER}{key}"
    return f"#{position}"


def _push_number(layout: Struct) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(m.number(layout))


def _push_text(layout: Struct) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(str(m.take(m.number(layout)), "utf-8", "surrogatepass"))


def _push_bytes(layout: Struct) -> Callable[[_Machine], None]:
    """Bytes are passed over: no tensor depends on them, and arrays of NumPy are large."""

    def push(m: _Machine) -> None:
        m.skip(m.number(layout))
        m.stack.append(b"")

    return push


def _memo_get(layout: Struct) -> Callable[[_Machine], None]:
    def get(m: _Machine) -> None:
        index = m.number(layout)
        if index not in m.memo:
            raise FormatError("the pickle uses a value before it is made; the file is damaged")
        m.stack.append(m.memo[index])

    return get


def _memo_put(layout: Struct) -> Callable[[_Machine], None]:
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
    "FRAME": lambda m: m.skip(8),  # a hint about buffering
    "MARK": _Machine.mark,
    # Values
    "NONE": lambda m: m.stack.append(None),
    "NEWTRUE": lambda m: m.stack.append(True),
    "NEWFALSE": lambda m: m.stack.append(False),
    "BININT": _push_number(_SIGNED),
    "BININT1": _push_number(_BYTE),
    "BININT2": _push_number(_SHORT),
    "BINFLOAT": _push_number(_DOUBLE),
    "LONG1": _Machine.long,
    "LONG4": _push_bytes(_UNSIGNED),  # more than 255 bytes: no size of a tensor
    "SHORT_BINUNICODE": _push_text(_BYTE),
    "BINUNICODE": _push_text(_UNSIGNED),
    "BINUNICODE8": _push_text(_LONG),
    "SHORT_BINBYTES": _push_bytes(_BYTE),
    "BINBYTES": _push_bytes(_UNSIGNED),
    "BINBYTES8": _push_bytes(_LONG),
    "BYTEARRAY8": _push_bytes(_LONG),
    # Containers; a set is read as a list, so that nothing is hashed
    "EMPTY_TUPLE": lambda m: m.stack.append(()),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_SET": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "FROZENSET": _Machine.list_of_mark,
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "APPEND": lambda m: m.extend([m.stack.pop()]),
    "APPENDS": lambda m: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m: m.extend(m.pop_mark()),
    "SETITEM": _set_item,
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    # Memo; a tuple that holds itself is made, dropped, and taken from there
    "POP": _Machine.pop,
    "POP_MARK": lambda m: m.pop_mark(),
    "BINPUT": _memo_put(_BYTE),
    "LONG_BINPUT": _memo_put(_UNSIGNED),
    "MEMOIZE": _memoize,
    "BINGET": _memo_get(_BYTE),
    "LONG_BINGET": _memo_get(_UNSIGNED),
    # Globals and calls: those of the closed table, or records
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_names,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
_CODES = {op.name: ord(op.code) for op in opcodes}
_HANDLERS = {_CODES[name]: handler for name, handler in _OPCODES.items()}
_STOP = _CODES["STOP"]
