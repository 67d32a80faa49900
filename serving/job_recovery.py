# SPDX-License-Identifier: Apache-2.0
"""`Recovery`: makes the job database agree with the jobs' folders when a server starts.

The folders are right: a database that is damaged, empty, missing or older than the folders is filled from them. A
folder that cannot be read is put aside, never removed.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping, Set

from vorta_trt.serving.job import Status
from vorta_trt.serving.job_records import Record, Result, read_record, read_result
from vorta_trt.serving.job_rows import insert, record_end
from vorta_trt.serving.stored_jobs import StoredJobs

logger = logging.getLogger(__name__)


class Recovery(StoredJobs):
    """The part of a `JobStore` that a starting server uses. Only the folder's exclusive owner may call it."""

    def take_in_folders(self) -> int:
        """Adds the jobs of folders that the database lacks; returns how many.

        All are added in one transaction, so a kill in the middle changes nothing, and the next start does it again.
        """
        known = {row["id"] for row in self._data.read("SELECT id FROM jobs UNION SELECT id FROM deleted")}
        found: list[Record] = []
        for job_id in self.files.ids():
            if job_id in known:
                continue
            try:
                found.append(read_record(self.files.folder(job_id)))
            except (OSError, ValueError) as error:
                self._put_aside(job_id, error)
        if not found:
            return 0
        doubled = self._even_if_full(lambda: self._take_in_all(found))
        for job_id in doubled:
            self._put_aside(job_id, "another job has its idempotency key")
        count = len(found) - len(doubled)
        logger.error("jobs %s: %d that the database lacked were read from their folders", self.folder, count)
        return count

    def _take_in_all(self, found: list[Record]) -> list[str]:
        """Adds jobs to the database; returns the ids of those that were not added."""
        with self._data.change() as change:
            ordered = sorted(found, key=lambda each: float(each.request["created_at"]))
            return [record.id for record in ordered if not self._take_in(change, record)]

    def _take_in(self, change: sqlite3.Connection, record: Record) -> bool:
        """Adds a job, unless it has not ended and another job has its idempotency key; returns whether it did."""
        key = change.execute(
            "SELECT 1 FROM jobs WHERE user = ? AND idempotency_key = ?",
            (record.request["user"], record.request["idempotency_key"]),
        )
        taken = key.fetchone() is not None
        if taken and record.result is None and record.end is None:
            return False
        insert(change, record.id, {**record.request, "idempotency_key": None} if taken else record.request)
        if record.result is not None:
            self._complete(change, record.id, record.result)
        elif record.end is not None:
            end = record.end
            change.execute(
                "UPDATE jobs SET status = ?, error_code = ?, error_message = ?, completed_at = ?, expires_at = ? "
                "WHERE id = ?",
                (
                    end.status,
                    end.error_code,
                    end.error_message,
                    end.completed_at,
                    end.completed_at + self.keep_seconds,
                    record.id,
                ),
            )
        return True

    def _complete(self, change: sqlite3.Connection, job_id: str, result: Result) -> None:
        """Marks a job as completed, with the result that is in its folder."""
        change.execute(
            "UPDATE jobs SET status = ?, attempt = ?, started_at = ?, completed_at = ?, expires_at = ?, report = ?, "
            "step = steps, stage = '', lease_until = NULL WHERE id = ?",
            (
                Status.COMPLETED.value,
                result.attempt,
                result.started_at,
                result.completed_at,
                result.completed_at + self.keep_seconds,
                json.dumps(result.report),
                job_id,
            ),
        )

    def _put_aside(self, job_id: str, reason: object) -> None:
        try:
            logger.error("job %s: cannot be taken in (%s); it is in %s now", job_id, reason, self.files.lose(job_id))
        except OSError as error:
            logger.error("job %s: cannot be taken in (%s); its folder stays (%s)", job_id, reason, error)

    def take_results(self) -> None:
        """Completes the jobs that wait although their result is there, as after an older database was restored."""
        waiting = self._data.read("SELECT id FROM jobs WHERE status = 'queued' AND cancelling = 0")
        found = {row["id"]: read_result(self.files.folder(row["id"])) for row in waiting}
        if not any(found.values()):
            return
        self._even_if_full(lambda: self._take_results(found))

    def _take_results(self, found: Mapping[str, Result | None]) -> None:
        with self._data.change() as change:
            for job_id, result in found.items():
                if result is not None:
                    self._complete(change, job_id, result)
                    record_end(change, job_id)
                    logger.warning("its result was there already", extra={"job": job_id})

    def sweep(self) -> None:
        """Removes what killed servers and workers left: folders of deleted jobs, and attempts that made no result.

        Jobs without a folder are removed from the database, as after a database from before a deletion was restored.
        """
        self.take_results()
        rows = self._data.read("SELECT id, attempt, status FROM jobs")
        completed = Status.COMPLETED.value
        known = {row["id"]: row["attempt"] if row["status"] == completed else None for row in rows}
        deleted = {row["id"] for row in self._data.read("SELECT id FROM deleted")}
        self.files.sweep(known, deleted)
        if gone := known.keys() - set(self.files.ids()):
            self._even_if_full(lambda: self._forget(gone))
            logger.error("jobs %s: %d had no folders any more, and are not listed now", self.folder, len(gone))

    def _forget(self, gone: Set[str]) -> None:
        with self._data.change() as change:
            change.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in gone])
