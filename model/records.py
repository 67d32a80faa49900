# SPDX-License-Identifier: Apache-2.0
"""Settings, and records of JSON files, as pydantic models whose errors are one sentence: key, value, rule."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from vorta_trt.model.files import BYTE_ORDER_MARK, absence, refuse_pointer
from vorta_trt.plugins.errors import VortaError

_SHOWN = 60  # characters of a value in a message
Content = TypeVar("Content")
AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


class JsonFileError(VortaError, ValueError):
    """A file is not the JSON that it should be."""


class Settings(BaseModel):
    """Base of the settings that a user chooses: immutable, with finite numbers; unknown names are refused.

    Raises:
        ValueError: A setting is invalid; the message is that of `first_error`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(first_error(error)) from error


class Record(BaseModel):
    """Base of records in JSON files: immutable, with finite numbers and strict types; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


def read_json(file: Path, kind: type[Content], refuse: Callable[[str], Exception]) -> Content:
    """Reads a JSON file, in UTF-8, with or without a byte order mark.

    Args:
        file: The file.
        kind: Type of the content: a `Record`, or a list or a dict of them.
        refuse: Makes the error from a text that says what is wrong; adds the name of the file and the remedy.

    Raises:
        Exception: The one that `refuse` makes: the file is no JSON, or a value of it breaks a rule.
        PointerError: The file is a pointer of Git LFS.
        OSError: The file cannot be read.
    """
    refuse_pointer(file, "JSON file")
    content = file.read_bytes().removeprefix(BYTE_ORDER_MARK)
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise refuse(first_error(error)) from error


def load_record(kind: type[AnyRecord], path: str | os.PathLike[str], what: str, remedy: str) -> AnyRecord:
    """Reads a file as a record.

    Args:
        kind: The model of its content.
        path: The file.
        what: What the file is, for messages, such as "calibrated routes".
        remedy: What to do about a damaged file, for messages.

    Raises:
        FileNotFoundError: There is no such file.
        JsonFileError: The content is something else; the message names the file, the key, the value and the rule.
    """

    def refuse(found: str) -> JsonFileError:
        return JsonFileError(f"{what} {path}: {found}; {remedy}")

    _check_file(Path(path), what, remedy)
    return read_json(Path(path), kind, refuse)


def load_content(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """Reads a JSON file whose content others check. Takes and raises what `load_record` does."""
    _check_file(Path(path), what, remedy)
    try:
        return json.loads(Path(path).read_bytes().removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise JsonFileError(f"{what} {path}: is not valid JSON ({error}); {remedy}") from error


def _check_file(path: Path, what: str, remedy: str) -> None:
    if path.is_dir():
        raise JsonFileError(f"{what} {path}: is a folder; give the JSON file")
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}: {absence(path)}; {remedy}")
    refuse_pointer(path, what)


def first_error(error: ValidationError) -> str:
    """Says what the first error of a validation is, e.g. "samples.3.name 5: must be a valid string"."""
    return all_errors(error)[0]


def all_errors(error: ValidationError) -> list[str]:
    """Describes all errors of a validation, each in the form of `first_error`."""
    return [_sentence(details) for details in error.errors(include_url=False)]


def _sentence(details: Any) -> str:
    rule: str = details["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    key = ".".join(map(str, details["loc"]))
    match details["type"]:
        case "json_invalid":
            return f"is not valid JSON ({rule.removeprefix('Invalid JSON: ')})"
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden":
            return f"{key}: is not known"
        case "value_error" if not key:
            return rule
    value = repr(details["input"])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return f"{key or 'content'} {shown}: {rule}"
