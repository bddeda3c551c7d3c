"""Options that several commands share, defined once.

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


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with every parameter that is a dataclass replaced by the fields of it."""
    hints = typing.get_type_hints(command, include_extras=True)
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


def _fields(group: Any) -> Iterator[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
