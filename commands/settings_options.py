# SPDX-License-Identifier: Apache-2.0
"""Makes groups of options from the fields of a `Settings` model, with its types, defaults, bounds and descriptions."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

import typer

from vorta_trt.commands.expand import Options
from vorta_trt.commands.options import usage

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from vorta_trt.model.records import Settings


class SettingsOptions(Options):
    """One option per field. For a field that is itself a model (weights), one per field of that (diffusion_weight).

    Attributes:
        names: Fields that the command takes; None takes all.
    """

    names: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, **given: Any) -> None:
        self._given = {name: value.value if isinstance(value, Enum) else value for name, value in given.items()}

    @classmethod
    @abc.abstractmethod
    def model(cls) -> type[Settings]:
        """Imports the model and returns it; called only when the command is asked for."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Returns the options, as parameters of a command."""
        return [_parameter(name, field) for name, field, _ in cls._options()]

    def settings(self, **more: Any) -> Any:
        """Makes the model from the given options and `more`.

        Raises:
            typer.BadParameter: A value breaks a rule of the model.
        """
        nested: dict[str, dict[str, Any]] = {}
        for name, _, (outer, inner) in self._options():
            if outer:
                nested.setdefault(outer, {})[inner] = self._given[name]
            else:
                more[inner] = self._given[name]
        with usage():
            kind = self.model()
            parts = {name: kind.model_fields[name].annotation(**values) for name, values in nested.items()}  # type: ignore[misc]
            return kind(**more, **parts)

    @classmethod
    def _options(cls) -> Iterator[tuple[str, FieldInfo, tuple[str, str]]]:
        """Yields the option's name, the field, and the field's place: the outer field's name ("" without), its own."""
        for name, field in cls.model().model_fields.items():
            if cls.names is not None and name not in cls.names:
                continue
            inside = getattr(field.annotation, "model_fields", None)
            if inside is None:
                yield name, field, ("", name)
            else:
                for inner, part in inside.items():
                    yield f"{inner}_{name.removesuffix('s')}", part, (name, inner)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind: Any = field.annotation
    default = field.default
    if get_origin(kind) is Literal:
        choices = {choice: choice for choice in get_args(kind)}
        make: Any = Enum  # mypy takes a call of Enum for a definition
        kind = make(name, choices, type=str)
        default = kind(default)
    least = next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None)
    about = typer.Option(help=field.description, min=least)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, about])
