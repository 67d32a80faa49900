# SPDX-License-Identifier: Apache-2.0
"""Groups of options: a command's parameter whose type is an `Options` class stands for one option per field.

A group is declared once and taken by as many commands as need it:

    @dataclass(frozen=True)
    class Pictures(Options):
        plot: Annotated[Path | None, typer.Option(help="Draw the report into this file.")] = None

    @command("vorta-trt show --plot a.png")
    def show(pictures: Pictures) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

Collect = Callable[[Mapping[str, Any]], dict[str, Any]]


class Options:
    """Base of option groups, which are frozen dataclasses: every field has a default and a `typer.Option`."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The group's options, as parameters of a command."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(cls)  # type: ignore[arg-type]
        ]


def expanded(function: Callable[..., None]) -> tuple[inspect.Signature, Collect]:
    """A command's signature with every group replaced by its options, and a function that builds the groups from them.

    Raises:
        TypeError: Two groups have an option of the same name.
    """
    groups: dict[str, type[Options]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        is_group = isinstance(kind, type) and issubclass(kind, Options)
        if is_group:
            groups[parameter.name] = kind
        for option in kind.parameters() if is_group else [parameter]:
            if option.name in parameters:
                raise TypeError(f"{function.__name__}: has two options {option.name}; rename one")
            parameters[option.name] = option.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    def collect(given: Mapping[str, Any]) -> dict[str, Any]:
        options = dict(given)
        for name, kind in groups.items():
            own = {option.name: options.pop(option.name) for option in kind.parameters()}
            options[name] = kind(**own)
        return options

    return inspect.Signature(list(parameters.values())), collect
