"""What the options of several commands share: groups of them, the words for their values, bounds.

A group is a frozen dataclass whose fields carry their `typer.Option`. A command takes it as one parameter:

    @with_option_groups
    def run(model: Annotated[str, typer.Argument()], sampling: SamplingOptions) -> None: ...

and the command line sees the fields, each an option of its own, where that parameter stands.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.models import OptionInfo

# click's UsageError, from whichever click this typer uses: newer ones carry their own.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with every parameter that is a dataclass replaced by the fields of it."""
    hints = _hints(command)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    names = {name: [field.name for field in dataclasses.fields(group)] for name, group in groups.items()}

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        made = {name: group(**{field: values.pop(field) for field in names[name]}) for name, group in groups.items()}
        command(**values, **made)

    parameters = [
        each
        for parameter in inspect.signature(command).parameters.values()
        for each in (
            _fields(groups[parameter.name])
            if parameter.name in groups
            else [parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)]
        )
    ]
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def with_metavars(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, the values of its options that have no name of their own called N, X or TEXT in its help."""
    hints = _hints(command)
    command.__annotations__ = hints  # where annotations are text, each evaluation makes other options
    for hint in hints.values():
        kind, *details = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        word = next((_METAVARS[each] for each in (kind, *typing.get_args(kind)) if each in _METAVARS), None)
        for option in details:
            if isinstance(option, OptionInfo) and option.metavar is None:
                option.metavar = word
    return command


def within(least: int, most: int) -> Callable[[int | None], int | None]:
    """A callback for an option that is a number from `least` to `most`, where the help would show a bound of no interest."""

    def checked(value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"it must be from {least} to {most}")
        return value

    return checked


def _hints(command: Callable[..., None]) -> dict[str, Any]:
    """The types of the parameters as written; `get_type_hints` wraps those with a default of None before Python 3.11."""
    return {name: each.annotation for name, each in inspect.signature(command, eval_str=True).parameters.items()}


def _fields(group: Any) -> Iterator[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
