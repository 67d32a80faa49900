# SPDX-License-Identifier: Apache-2.0
"""Reading JSON files that a user gives: one way, whose errors name the file, the key, the value and the rule.

class Record(JsonRecord):
    steps: int = Field(gt=0)

record = load_record(Record, "plan.json", "plan", remedy="make it again")
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vorta_trt.model.files import refuse_pointer
from vorta_trt.plugins.errors import VortaError


class JsonFileError(VortaError, ValueError):
    """A file is not the JSON that it should be."""


class JsonRecord(BaseModel):
    """A record in a JSON file: types are taken as they are, numbers are finite, unknown keys are errors."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


Record = TypeVar("Record", bound=BaseModel)


def load_record(kind: type[Record], path: str | os.PathLike[str], what: str, remedy: str) -> Record:
    """Reads a file as a record.

    Args:
        kind: the model of its content.
        path: the file.
        what: it is, for messages, as "calibrated routes".
        remedy: what to do about a damaged file, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        JsonFileError: another content; the message names the file, the key, the value and the rule.
    """
    text = _read(Path(path), what, remedy)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise JsonFileError(f"{what} {path}: {explain(error)}; {remedy}") from error


def read_json(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """Reads a file whose content others check. Takes and raises what `load_record` does."""
    text = _read(Path(path), what, remedy)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise JsonFileError(f"{what} {path}: is not JSON ({error}); {remedy}") from error


def explain(error: ValidationError) -> str:
    """The first thing that a record's check found, as "key: rule, not value"."""
    return problems_of(error)[0]


def problems_of(error: ValidationError) -> list[str]:
    """Everything that a record's check found, as "key: rule, not value"."""
    return [_problem(entry) for entry in error.errors(include_url=False)]


def _problem(entry: Any) -> str:
    where = ".".join(map(str, entry["loc"])) or "content"
    if entry["type"] == "json_invalid":
        return f"is not JSON ({entry['ctx']['error']})"
    if entry["type"] == "missing":
        return f"{where}: is missing"
    if entry["type"] == "value_error":  # of a rule over several keys, which says what was given
        return f"{where}: {entry['msg'].removeprefix('Value error, ')}"
    given = repr(entry["input"])
    return f"{where}: {entry['msg']}, not {given if len(given) <= 60 else given[:57] + '...'}"


def _read(path: Path, what: str, remedy: str) -> str:
    if path.is_dir():
        raise JsonFileError(f"{what} {path}: is a folder; give the JSON file")
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}: no such file; {remedy}")
    refuse_pointer(path, what)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonFileError(f"{what} {path}: is not UTF-8 text ({error}); {remedy}") from error
