# SPDX-License-Identifier: Apache-2.0
"""Reads the JSON files of a checkpoint, and refuses values that the files' classes do not take."""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.files import is_pointer

MOST_LAYERS = 1000  # layers of a model; a config with more is damaged, and would keep the loader busy for ever
MOST_TIMES = 100  # a size may be at most this many times the class' default


def read_json(file: Path, purpose: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: the file to read.
        purpose: what the file belongs to, for errors.

    Raises:
        CheckpointError: the file holds something else.
    """
    check_no_pointer(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not valid JSON ({error}); restore the original file of {purpose}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not {type(content).__name__}; restore the original")
    return content


def check_no_pointer(file: Path) -> None:
    """Raises CheckpointError if a file is a Git LFS pointer, which stands for the file until it is fetched."""
    if file.is_file() and is_pointer(file):
        raise CheckpointError(
            f"{file}: is a Git LFS pointer of {file.stat().st_size} bytes, not the file itself; run `git lfs pull` in "
            f"the checkpoint's folder, or download it with `hf download`"
        )


def typed_config(kind: Any, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A diffusers config with the class' defaults for what it leaves out.

    Types are those of the class' own signature. A number whose default is positive must be positive: all of them are
    sizes.

    Args:
        kind: the class whose config it is.
        config: the content of `file`, a config.json.
        file: where the config comes from, for errors.

    Raises:
        CheckpointError: a value has another type than the class takes, or a size is not positive.
    """
    hints = typing.get_type_hints(kind.__init__)
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for name, value in config.items():
        if name not in hints or name not in defaults:
            continue
        problem = _type_problem(hints[name], value, defaults[name]) or _size_problem(value, defaults[name])
        if problem:
            raise CheckpointError(
                f"{file}: {name} {value!r} is nothing that {kind.__name__} takes: {problem} (default "
                f"{defaults[name]!r}); restore the original file of the checkpoint"
            )
    return {**defaults, **config}


def _type_problem(hint: Any, value: Any, default: Any) -> str | None:
    """Describes what is wrong with the type of a JSON value; None if nothing is."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and len(arguments) == 1:
        hint = tuple[arguments[0], ...]  # type: ignore[valid-type]  # diffusers writes tuple[int] for any length
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (PydanticUserError, TypeError):
        return None  # a hint that is no type of JSON
    try:
        adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        if value == default:
            return None  # the hint is narrower than what the class takes
        return error.errors()[0]["msg"]
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)) and default and not value:
        return "It must not be empty"
    return None


def _size_problem(value: Any, default: Any) -> str | None:
    """Numbers whose defaults are all positive must be positive and finite."""
    values, defaults = ((item,) if not isinstance(item, (tuple, list)) else item for item in (value, default))
    numbers = [number for number in values if isinstance(number, (int, float)) and not isinstance(number, bool)]
    if not all(math.isfinite(number) for number in numbers):
        return "It must be finite"
    sizes = [number for number in defaults if isinstance(number, (int, float)) and not isinstance(number, bool)]
    if sizes and all(size > 0 for size in sizes):
        if any(number <= 0 for number in numbers):
            return "It must be positive"
        if any(number > max(MOST_LAYERS, MOST_TIMES * max(sizes)) for number in numbers):
            return f"It must be at most {MOST_TIMES} times the default"
    return None
