# SPDX-License-Identifier: Apache-2.0
"""`JobStore`: the jobs of one folder, durable, shared by servers and workers of one machine.

Clients queue, read, cancel and delete jobs here; workers take them by `Leases`. Jobs are ordered by a counter, and
leases use a monotonic clock, so setting back the system's clock changes neither.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vorta_trt.model.files import make_folder
from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving.folder_lock import lock_folder
from vorta_trt.serving.job import Job, JobNotFoundError, KeyReusedError, NewJob, QueueFullError, Status
from vorta_trt.serving.job_leases import Leases, order_of_turns
from vorta_trt.serving.job_rows import COLUMNS, End, insert, job_of, record_deleted, record_end
from vorta_trt.serving.settings import DAY
from vorta_trt.serving.worker_states import WorkerStates


class JobStore(Leases, WorkerStates):
    """See the module.

    Args:
        folder: Folder of jobs and results, made if it does not exist. It must be on a local disk, for SQLite's log.
        exclusive: Whether to refuse a folder that has another exclusive owner, a `vorta-trt serve`. Workers are not
            exclusive.
        most_queued: How many jobs may wait. One job of each user may wait in any case.
        most_per_user: How many jobs of one user may wait; None: as many as `most_queued`.
        keep_seconds: How long results stay after completion.
        lease_seconds: How long a lease lasts if it is not renewed.
        most_attempts: How many times a job is begun whose workers are lost.

    Raises:
        JobError: Another server has the folder.
        WriteError, OSError: The folder cannot be written.

    Attributes:
        folder: Absolute path of the folder.
        files: The files of the jobs.
        recovered: How many jobs were read from their folders because the database lacked them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        exclusive: bool = False,
        most_queued: int = 64,
        most_per_user: int | None = None,
        keep_seconds: float = 7 * DAY,
        lease_seconds: float = 30.0,
        most_attempts: int = 3,
    ) -> None:
        folder = Path(folder).absolute()
        make_folder(folder, 0o700)
        self.most_queued, self.most_per_user = most_queued, most_per_user or most_queued
        self._lock = lock_folder(folder) if exclusive else None
        try:
            super().__init__(folder, keep_seconds, lease_seconds, most_attempts)
            if exclusive:
                self._reserve.keep()
            self.recovered = self.take_in_folders() if exclusive or self._data.moved_aside is not None else 0
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        """Closes the database and releases the folder."""
        self._data.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create(self, new: NewJob, images: Mapping[str, bytes] | None = None) -> tuple[Job, bool]:
        """Queues a job; it is on the disk when this returns.

        Args:
            new: The job.
            images: Contents of the image files, by the file names in `new.request`.

        Returns:
            The job, and whether it is new. If the same request came before with its idempotency key, this is that job.

        Raises:
            QueueFullError: Too many jobs wait.
            KeyReusedError: The idempotency key belongs to another request.
            WriteError: The disk is full.
        """
        if (known := self._of_key(new)) is not None:
            return known, False
        self._check_room(self._data.read, new.user)  # before anything is written
        job_id, created = f"video_{secrets.token_hex(16)}", time.time()
        record = {
            "user": new.user,
            "model": new.model,
            "request": new.request,
            "steps": new.steps,
            "flops": new.flops,
            "created_at": created,
            "idempotency_key": new.idempotency_key,
            "fingerprint": new.fingerprint,
        }
        self.files.write_request(job_id, record, images or {})
        try:
            with self._data.change() as change:
                self._check_room(lambda query, *values: change.execute(query, values).fetchall(), new.user)
                insert(change, job_id, record)
        except sqlite3.IntegrityError:  # another request with the same key came at the same time
            self.files.remove(job_id)
            known = self._of_key(new)
            if known is None:
                raise
            return known, False
        except BaseException:
            self.files.remove(job_id)
            raise
        return self.get(job_id), True

    def _of_key(self, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        rows = self._data.read(
            f"SELECT {COLUMNS}, fingerprint FROM jobs WHERE user = ? AND idempotency_key = ?",
            new.user,
            new.idempotency_key,
        )
        if not rows:
            return None
        if rows[0]["fingerprint"] != new.fingerprint:
            raise KeyReusedError(
                "Idempotency-Key: belongs to another request; use a new key for a new request, or send the same request"
            )
        return job_of(rows[0])

    def _check_room(self, read: Any, user: str) -> None:
        everyone = read("SELECT count(*) AS n FROM jobs WHERE status = 'queued'")[0]["n"]
        own = read("SELECT count(*) AS n FROM jobs WHERE status = 'queued' AND user = ?", user)[0]["n"]
        if own and everyone >= self.most_queued:  # a user without a waiting job may always add one
            raise QueueFullError(f"queue: {everyone} jobs wait, and no more than {self.most_queued} may; try later")
        if own >= self.most_per_user:
            raise QueueFullError(
                f"queue: {own} of your jobs wait, and no more than {self.most_per_user} may; try later"
            )

    def page(
        self, user: str | None = None, *, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> tuple[list[Job], bool]:
        """Jobs in order, and whether there are more.

        Args:
            user: Owner of the jobs; None: everybody's jobs.
            after: Id of the last job of the page before; it may have been deleted since.
            limit: Largest number of jobs.
            newest_first: Whether the newest jobs come first; if not, the oldest do.

        Raises:
            JobNotFoundError: There is no job `after`, and the store knows of no deleted one.
        """
        conditions: list[str] = ["1"]
        values: list[object] = []
        if user is not None:
            conditions.append("user = ?")
            values.append(user)
        if after is not None:
            conditions.append(f"sequence {'<' if newest_first else '>'} ?")
            values.append(self._place(after, user))
        rows = self._data.read(
            f"SELECT {COLUMNS} FROM jobs WHERE {' AND '.join(conditions)} "
            f"ORDER BY sequence {'DESC' if newest_first else 'ASC'} LIMIT ?",
            *values,
            limit + 1,
        )
        return [job_of(row) for row in rows[:limit]], len(rows) > limit

    def _place(self, job_id: str, user: str | None) -> int:
        """Sequence number of a job, which may have been deleted."""
        rows = self._data.read("SELECT sequence, user FROM deleted WHERE id = ?", job_id)
        if rows and user in (None, rows[0]["user"]):
            return int(rows[0]["sequence"])
        return self.get(job_id, user).sequence

    def cancel(self, job_id: str, user: str | None = None) -> Job:
        """Cancels a job: a waiting one at once, a running one at its next step. A job that has ended stays as it is.

        Raises:
            JobNotFoundError: There is no such job.
        """
        self.get(job_id, user)
        self._even_if_full(lambda: self._cancel(job_id))
        self._note_end(job_id)
        return self.get(job_id, user)

    def _cancel(self, job_id: str) -> None:
        with self._data.change() as change:
            done = change.execute(
                "UPDATE jobs SET status = 'cancelled', completed_at = ?, expires_at = ? "
                "WHERE id = ? AND status = 'queued'",
                (time.time(), time.time() + self.keep_seconds, job_id),
            )
            if done.rowcount:
                record_end(change, job_id)
            change.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND status = 'in_progress'", (job_id,))

    def delete(self, job_id: str, user: str | None = None) -> None:
        """Cancels a job and removes it with its results.

        Raises:
            JobNotFoundError: There is no such job.
        """
        self.get(job_id, user)
        try:
            self._even_if_full(lambda: self._delete(job_id))
        except WriteError:  # removing its files makes space
            self.files.remove(job_id)
            self._even_if_full(lambda: self._delete(job_id))
        self.files.remove(job_id)
        if self._lock is not None:
            self._reserve.keep()

    def _delete(self, job_id: str) -> None:
        with self._data.change() as change:
            ended = change.execute(
                "UPDATE jobs SET status = 'cancelled', completed_at = ? WHERE id = ? AND completed_at IS NULL",
                (time.time(), job_id),
            )
            if ended.rowcount:
                record_end(change, job_id)
            record_deleted(change, job_id)
            if change.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount == 0:
                raise JobNotFoundError(f"video {job_id[:64]!r}: there is none; it was deleted meanwhile")

    def unfinished(self) -> list[Job]:
        """All jobs that run, in the order in which they began, then all that wait, in the order in which they will run.

        `claim` keeps this order if the running jobs end in the order in which they began, and no new jobs come.
        """
        query = f"SELECT {COLUMNS} FROM jobs WHERE status IN ('in_progress', 'queued') ORDER BY sequence"
        jobs = [job_of(row) for row in self._data.read(query)]
        served = {row["user"]: int(row["served"]) for row in self._data.read("SELECT * FROM users")}
        running = [job for job in jobs if job.status is Status.IN_PROGRESS]
        running.sort(key=lambda job: job.started_at or 0.0)
        return running + order_of_turns([job for job in jobs if job.status is Status.QUEUED], running, served)

    def counts(self) -> dict[Status, int]:
        """How many jobs there are of each status."""
        rows = self._data.read("SELECT status, count(*) AS n FROM jobs GROUP BY status")
        return {status: 0 for status in Status} | {Status(row["status"]): int(row["n"]) for row in rows}

    def ends_after(self, number: int, limit: int = 1000) -> list[End]:
        """How jobs ended, oldest first. The store knows the last 10,000 ends.

        Args:
            number: Number of the last end that the caller knows; 0 for all.
            limit: Largest number of ends.
        """
        rows = self._data.read("SELECT * FROM ends WHERE number > ? ORDER BY number LIMIT ?", number, limit)
        values = [dict(row) for row in rows]
        for value in values:
            value["status"] = Status(value["status"])
            value["report"] = None if value["report"] is None else json.loads(value["report"])
        return [End(**value) for value in values]

    def last_end(self) -> int:
        """The number of the last end; 0 if there is none."""
        return int(self._data.read("SELECT COALESCE(max(number), 0) AS n FROM ends")[0]["n"])

    def expire(self) -> int:
        """Removes expired jobs with their results; returns how many had expired."""
        if self._lock is not None:
            self._reserve.keep()
        rows = self._data.read("SELECT id FROM jobs WHERE expires_at < ?", time.time())
        for row in rows:
            try:
                self.delete(row["id"])
            except JobNotFoundError:  # somebody else did
                continue
        return len(rows)
