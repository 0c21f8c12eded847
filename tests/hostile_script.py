"""Attacks on TorchScript archives: graphs of objects that explode or have no end, and programs in their pickles."""

from collections.abc import Iterator

from hostile_torch import (
    CANARY,
    Attack,
    call,
    laughs,
    name,
    number,
    program,
    pt,
    state,
    storage,
    tensor,
    text,
    tuple_of,
)

CLASS = name("__torch__.net", "Net")
NEW = b")\x81"  # an object of the class on the stack
CONSTANTS = program(tuple_of())


def attributes(*items: tuple[str, bytes]) -> bytes:
    """Give the object on the stack its attributes."""
    return b"}(" + b"".join(text(key) + value for key, value in items) + b"ub"


def module(*items: tuple[str, bytes]) -> bytes:
    return CLASS + NEW + attributes(*items)


def script(pickle: bytes, constants: bytes = CONSTANTS, **members: bytes) -> bytes:
    """An archive of torch.jit.save; its program is no program."""
    fixed = {"m/constants.pkl": constants, "m/code/__torch__/net.py": b"import os; os.abort()"}
    return pt(pickle, fixed | {f"m/{key}": data for key, data in members.items()})


GOOD = script(program(module(("training", b"\x89"), ("rnn", module(("weight", tensor()))))))


def script_attacks() -> Iterator[Attack]:
    hidden = call(name("os", "system"), text(f"touch {CANARY}"))
    deep = 100_000
    chain = (
        CLASS
        + b"q\x00"
        + NEW
        + b"}"
        + text("a")
        + (b"h\x00" + NEW + b"}" + text("a")) * deep
        + b"N"
        + b"sb" * (deep + 1)
    )
    cases = {
        "dictionary": (script(state(("a", tensor()))), "a dict, expected a module"),
        "tensor": (script(program(tensor())), "a single tensor, expected a module"),
        "no_constants": (pt(program(module(("a", tensor())))), "'a'.*no recurrent weights"),
        "system": (script(program(module(("a", hidden)))), r"os\.system"),
        "system_constants": (script(program(module()), program(hidden)), r"os\.system"),
        "other_class": (script(program(name("__torch_x__", "A") + NEW)), "__torch_x__"),
        "class_of_torch": (script(program(module(("a", name("torch.jit._script", "ScriptModule"))))), "ScriptModule"),
        "class_as_value": (script(program(CLASS)), "no tensors.*Net"),
        "built_twice": (script(program(module(("a", tensor())) + attributes(("b", tensor())))), "sets attributes"),
        "built_tensor": (script(program(tensor() + attributes(("b", tensor())))), "attributes of a plain value"),
        "append": (script(program(CLASS + NEW + text("a") + b"a")), "no tensors"),
        "items": (script(program(CLASS + NEW + text("a") + b"Ns")), "no tensors"),
        "key": (script(program(b"}" + CLASS + NEW + b"Ns")), "a dict, expected a module"),
        "self": (script(program(CLASS + NEW + b"q\x00" + attributes(("a", b"h\x00")))), "no tensors"),
        "self_in_list": (script(program(CLASS + NEW + b"q\x00" + attributes(("a", b"](h\x00e")))), "no tensors"),
        "self_as_state": (script(program(CLASS + NEW + b"q\x00h\x00b")), "no tensors"),
        "deep": (script(program(chain)), "no tensors"),
        "laughs": (script(program(module(("a", laughs(b"]", module(("w", tensor()))))))), "50000 containers"),
        "same_name": (
            script(program(module(("constants", b"](" + tensor() + b"e"))), program(tuple_of(tensor(held=storage(12)))),
                   **{"constants/0": bytes(48)}), "are called 'constants.0'"),
        "constant_storage": (script(program(module()), program(tuple_of(tensor()))), "storage '0' is not in"),
        "constants_cut": (script(program(module()), b"\x80\x02("), "truncated"),
        "constants_view": (
            script(program(module()), program(tuple_of(tensor(number(1)))), **{"constants/0": bytes(48)}),
            "reaches to byte 52"),
        "count": (script(program(module(("a", tensor(held=storage(1 << 40)))))), "should hold"),
        "no_tensors": (script(program(module(("a", b"N")))), "no tensors"),
    }  # fmt: skip
    for label, (data, words) in cases.items():
        yield Attack(f"script_{label}.jit", data, words)
