"""Reads a pickle without running it: a small interpreter of the opcodes that torch.save writes.

Python's own unpickler imports what a pickle names and calls it; even with a restricted find_class a hostile memo index makes
it allocate gigabytes. Here nothing is imported or called: a name becomes a `Global`, and a call is answered only by the
functions the caller passes for that name. Opcode meanings: pickletools in the standard library.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyedge.errors import CheckpointError, UnsafePickleError

# A training checkpoint of a thousand tensors with optimizer state needs about 100,000; each opcode may make us hold an object.
_MAX_OPCODES = 1_000_000


@dataclass(frozen=True)
class Global:
    """A name a pickle refers to, as `module.name`; never imported."""

    name: str


@dataclass
class Inert:
    """An object of a kind that is known to be harmless and of no use here, such as argparse.Namespace."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


Call = Callable[..., Any]


class _Mark:
    pass


_MARK = _Mark()


@dataclass
class PickleMachine:
    """Evaluates a pickle to plain containers.

    `functions` answers calls of the names it holds; names in `inert` become `Inert` values; any other name is refused with
    UnsafePickleError. `load_persistent` turns a persistent id into a value.
    """

    functions: Mapping[str, Call]
    inert: frozenset[str]
    load_persistent: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def load(self, data: bytes, origin: str) -> Any:
        """The value a pickle describes; raises UnsafePickleError or, when it is damaged, CheckpointError."""
        try:
            return self._run(data)
        except (UnsafePickleError, CheckpointError):
            raise
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            OverflowError,
            RecursionError,
            UnicodeError,
        ) as error:
            raise CheckpointError(f"the pickle in {origin} is damaged ({type(error).__name__}: {error})") from error

    def _run(self, data: bytes) -> Any:
        for count, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
            if count > _MAX_OPCODES:
                raise CheckpointError(f"the pickle in the checkpoint has more than {_MAX_OPCODES:,} opcodes")
            name = opcode.name
            if name == "STOP":
                return self.stack[-1]
            if name in _PUSH_ARGUMENT:
                self.stack.append(argument)
            elif (constant := _CONSTANTS.get(name)) is not None:
                self.stack.append(constant())
            elif (step := _STEPS.get(name)) is not None:
                step(self, argument)
            elif name not in _IGNORED:
                raise UnsafePickleError(f"the pickle uses opcode {name}, which no tensor needs")
        raise ValueError("no STOP opcode")

    def _since_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise IndexError("no mark on the stack")

    def _refer(self, name: str) -> Global:
        if name not in self.functions and name not in self.inert:
            raise UnsafePickleError(f"the pickle asks for {name}, which is neither a tensor nor a plain container")
        return Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise UnsafePickleError(f"the pickle calls a {type(function).__name__}")
        if function.name in self.functions:
            return self.functions[function.name](*arguments)
        return Inert(function.name, arguments)


def _pop_tuple(count: int) -> Callable[[PickleMachine, Any], None]:
    def step(machine: PickleMachine, _argument: Any) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) < count:
            raise IndexError("stack is too short")
        machine.stack[-count:] = [items]

    return step


def _make(container: Callable[[list[Any]], Any]) -> Callable[[PickleMachine, Any], None]:
    def step(machine: PickleMachine, _argument: Any) -> None:
        items = machine._since_mark()
        machine.stack.append(container(items))

    return step


def _append(machine: PickleMachine, _argument: Any) -> None:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])


def _appends(machine: PickleMachine, _argument: Any) -> None:
    items = machine._since_mark()
    _extend(machine.stack[-1], items)


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise TypeError(f"cannot append to {type(target).__name__}")


def _setitem(machine: PickleMachine, _argument: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine.stack[-1], [key, value])


def _setitems(machine: PickleMachine, _argument: Any) -> None:
    items = machine._since_mark()
    _update(machine.stack[-1], items)


def _update(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        target.update(_pairs(items))
    elif not isinstance(target, Inert):
        raise TypeError(f"cannot set items of {type(target).__name__}")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(key: Any) -> Any:
    """Keys of training state may be tensors or objects; those are of no use here and become their identity."""
    return key if isinstance(key, str | int | float | bytes | bool | type(None)) else id(key)


def _drop_to_mark(machine: PickleMachine, _argument: Any) -> None:
    """ADDITEMS too: sets are Inert, so what would be added to one goes."""
    machine._since_mark()


def _pop(machine: PickleMachine, _argument: Any) -> None:
    machine.stack.pop()


def _global(machine: PickleMachine, argument: str) -> None:
    machine.stack.append(machine._refer(argument.replace(" ", ".", 1)))


def _stack_global(machine: PickleMachine, _argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine._refer(f"{module}.{name}"))


def _reduce(machine: PickleMachine, _argument: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine._call(function, arguments))


def _new_object_ex(machine: PickleMachine, _argument: Any) -> None:
    _keywords, arguments, function = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine._call(function, arguments))


def _build(machine: PickleMachine, _argument: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Inert):
        machine.stack[-1].state = state


def _persistent(machine: PickleMachine, _argument: Any) -> None:
    machine.stack.append(machine.load_persistent(machine.stack.pop()))


def _put(machine: PickleMachine, argument: Any) -> None:
    machine.memo[int(argument)] = machine.stack[-1]


def _memoize(machine: PickleMachine, _argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: PickleMachine, argument: Any) -> None:
    machine.stack.append(machine.memo[int(argument)])


_IGNORED = frozenset({"PROTO", "FRAME"})
_PUSH_ARGUMENT = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Inert("set"),
    "MARK": lambda: _MARK,
}
_STEPS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "TUPLE1": _pop_tuple(1),
    "TUPLE2": _pop_tuple(2),
    "TUPLE3": _pop_tuple(3),
    "TUPLE": _make(tuple),
    "LIST": _make(list),
    "DICT": _make(_pairs),
    "FROZENSET": _make(lambda _items: Inert("frozenset")),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "ADDITEMS": _drop_to_mark,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_object_ex,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "POP": _pop,
    "POP_MARK": _drop_to_mark,
    "DUP": lambda machine, _argument: machine.stack.append(machine.stack[-1]),
}
