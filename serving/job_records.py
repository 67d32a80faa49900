# SPDX-License-Identifier: Apache-2.0
"""`Record`: a job as read from its folder, which is checked, since a crash or a bad disk may have damaged it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

REQUEST, RESULT, END = "request.json", "result.json", "end.json"
RESULT_FOLDER = re.compile(r"result-(\d{1,9})")
_Time = Annotated[float, Field(gt=0, lt=1e12)]


class _Asked(BaseModel, extra="allow"):
    """The fields of an accepted request that a server cannot do without."""

    prompt: str
    n: int = Field(ge=1)
    size: str = Field(pattern=r"^\d+x\d+x\d+$")


class _Request(BaseModel):
    """`request.json`."""

    user: str
    model: str
    request: _Asked
    steps: int = Field(ge=0)
    flops: float | None = None
    created_at: _Time
    idempotency_key: str | None = None
    fingerprint: str = ""


class End(BaseModel):
    """`end.json`: how a job failed or was cancelled."""

    status: Literal["failed", "cancelled"]
    error_code: str | None = None
    error_message: str | None = None
    completed_at: _Time


class _Video(BaseModel, extra="allow"):
    file: str = Field(pattern=r"^\w[\w.-]*$")


class _Report(BaseModel, extra="allow"):
    videos: list[_Video]


class _Result(BaseModel):
    """`result.json`."""

    started_at: _Time | None = None
    completed_at: _Time
    report: _Report


@dataclass(frozen=True)
class Result:
    """The result of an attempt, all of whose files are there.

    Attributes:
        attempt: Number of the attempt.
        started_at: When the attempt began.
        completed_at: When the attempt was done.
        report: Measurements, see `Job`.
    """

    attempt: int
    started_at: float | None
    completed_at: float
    report: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A job as described by its folder.

    Attributes:
        id: Id of the job.
        request: The columns of a new job.
        result: The complete result; None if there is none.
        end: How the job failed or was cancelled; None if it did not.
    """

    id: str
    request: dict[str, Any]
    result: Result | None
    end: End | None


def read_record(folder: Path) -> Record:
    """Reads a job's folder.

    Raises:
        OSError, ValueError: The folder cannot be read, or it holds results none of which is complete.
    """
    request = _Request.model_validate(_load(folder / REQUEST)).model_dump()
    result = read_result(folder)
    if result is None and any(RESULT_FOLDER.fullmatch(path.name) for path in folder.iterdir()):
        raise ValueError("it has a result that is not whole")
    end = folder / END
    return Record(folder.name, request, result, None if result or not end.exists() else End.model_validate(_load(end)))


def read_result(folder: Path) -> Result | None:
    """The result of a job's last attempt with a complete result; None if there is none."""
    found = [(int(match[1]), path) for path in _entries(folder) if (match := RESULT_FOLDER.fullmatch(path.name))]
    for attempt, path in sorted(found, reverse=True):
        try:
            content = _load(path / RESULT)
            result = _Result.model_validate(content)
        except (OSError, ValueError):
            continue
        if all((path / video.file).is_file() for video in result.report.videos):
            return Result(attempt, result.started_at, result.completed_at, content["report"])
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
