# SPDX-License-Identifier: Apache-2.0
"""Rows of a job store's tables: how jobs and their ends are read and written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vorta_trt.serving.job import Job, Status

MOST_ENDS = 10_000  # that are kept
MOST_DELETED = 100_000  # whose ids are kept
_FIELDS = tuple(field.name for field in fields(Job))
COLUMNS = ", ".join(_FIELDS)


@dataclass(frozen=True)
class End:
    """How a job ended; known longer than the job, whom its owner may delete. Times are those of `Job`.

    Attributes:
        number: Counted.
        model: Of the job.
        worker: Which one had it; None: none.
        status: "completed", "failed" or "cancelled".
        error_code: Of a failure.
        created_at: Of the job.
        started_at: Of the job.
        completed_at: Of the job.
        report: Of the job.
    """

    number: int
    model: str
    worker: str | None
    status: Status
    error_code: str | None
    created_at: float
    started_at: float | None
    completed_at: float
    report: dict[str, Any] | None


def record_end(change: sqlite3.Connection, job_id: str) -> None:
    """Keeps how a job ended, in the transaction that ends it."""
    change.execute(
        "INSERT INTO ends (model, worker, status, error_code, created_at, started_at, completed_at, report) SELECT "
        "model, worker, status, error_code, created_at, started_at, completed_at, report FROM jobs WHERE id = ?",
        (job_id,),
    )
    change.execute("DELETE FROM ends WHERE number <= (SELECT max(number) FROM ends) - ?", (MOST_ENDS,))


def record_deleted(change: sqlite3.Connection, job_id: str) -> None:
    """Keeps a job's id and place, in the transaction that deletes it: its folder goes, and pages may begin after it."""
    change.execute(
        "INSERT OR IGNORE INTO deleted (sequence, id, user) SELECT sequence, id, user FROM jobs WHERE id = ?", (job_id,)
    )
    change.execute("DELETE FROM deleted WHERE sequence <= (SELECT max(sequence) FROM deleted) - ?", (MOST_DELETED,))


def insert(change: sqlite3.Connection, job_id: str, record: Mapping[str, Any]) -> None:
    """Queues a job that `JobFiles.write_request` wrote."""
    values = {**record, "id": job_id, "status": Status.QUEUED.value, "request": json.dumps(record["request"])}
    marks = ", ".join("?" * len(values))
    change.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def job_of(row: sqlite3.Row) -> Job:
    """The job of a row of `COLUMNS`."""
    values = {name: row[name] for name in _FIELDS}
    values["request"] = json.loads(values["request"])
    values["report"] = None if values["report"] is None else json.loads(values["report"])
    values["status"], values["cancelling"] = Status(values["status"]), bool(values["cancelling"])
    return Job(**values)
