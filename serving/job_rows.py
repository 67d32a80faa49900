# SPDX-License-Identifier: Apache-2.0
"""Rows of a job store's tables: how jobs and their ends are read and written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vorta_trt.serving.job import Job, Status

MOST_ENDS = 10_000  # of jobs; older ones are forgotten
MOST_DELETED = 100_000  # jobs whose ids are kept
_FIELDS = tuple(field.name for field in fields(Job))
COLUMNS = ", ".join(_FIELDS)


@dataclass(frozen=True)
class End:
    """How a job ended. It is kept longer than the job, which its owner may delete. Times are seconds since 1970.

    Attributes:
        number: Number that grows from end to end.
        model: Name of the job's model.
        worker: Name of the worker that last had the job; None if none had it.
        status: "completed", "failed" or "cancelled".
        error_code: Word for programs that names the failure; None if the job did not fail.
        created_at: When the job was queued.
        started_at: When a worker last took the job; None if none did.
        completed_at: When the job was completed, failed or was cancelled.
        report: Measurements of a completed job, see `Job`; None for other jobs.
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
    """Records how a job ended, in the transaction that ends it."""
    change.execute(
        "INSERT INTO ends (model, worker, status, error_code, created_at, started_at, completed_at, report) SELECT "
        "model, worker, status, error_code, created_at, started_at, completed_at, report FROM jobs WHERE id = ?",
        (job_id,),
    )
    change.execute("DELETE FROM ends WHERE number <= (SELECT max(number) FROM ends) - ?", (MOST_ENDS,))


def record_deleted(change: sqlite3.Connection, job_id: str) -> None:
    """Records a deleted job, in the transaction that deletes it: its folder has to go, and pages may follow it."""
    change.execute(
        "INSERT OR IGNORE INTO deleted (sequence, id, user) SELECT sequence, id, user FROM jobs WHERE id = ?", (job_id,)
    )
    change.execute("DELETE FROM deleted WHERE sequence <= (SELECT max(sequence) FROM deleted) - ?", (MOST_DELETED,))


def insert(change: sqlite3.Connection, job_id: str, record: Mapping[str, Any]) -> None:
    """Inserts a job in the state "queued"; `JobFiles.write_request` has written its folder."""
    values = {**record, "id": job_id, "status": Status.QUEUED.value, "request": json.dumps(record["request"])}
    marks = ", ".join("?" * len(values))
    change.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def job_of(row: sqlite3.Row) -> Job:
    """The job that a row with the columns `COLUMNS` holds."""
    values = {name: row[name] for name in _FIELDS}
    values["request"] = json.loads(values["request"])
    values["report"] = None if values["report"] is None else json.loads(values["report"])
    values["status"], values["cancelling"] = Status(values["status"]), bool(values["cancelling"])
    return Job(**values)
