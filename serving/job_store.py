# SPDX-License-Identifier: Apache-2.0
"""`JobStore`: the jobs of one folder, durable, shared by servers and workers of one machine.

A worker holds its job by a lease, which it renews; a job whose worker is gone goes back to the queue, or fails with a
reason after `most_attempts`. Leases are counted by the clock that nobody sets (`time.monotonic`, with the run of the
machine that it belongs to). The order is that of a counter, so a clock that is set back changes neither.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vorta_trt.serving.job import (
    Job,
    JobError,
    JobNotFoundError,
    KeyReusedError,
    LeaseLostError,
    NewJob,
    QueueFullError,
    Status,
)
from vorta_trt.serving.job_database import Database, boot
from vorta_trt.serving.job_files import REQUEST, JobFiles
from vorta_trt.serving.settings import DAY

LOCK = "server.lock"
WORKER_LOST = "worker_lost"
MOST_ENDS = 10_000
_FIELDS = tuple(field.name for field in fields(Job))
_COLUMNS = ", ".join(_FIELDS)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerState:
    """What a worker last said of itself.

    Attributes:
        name: Its name.
        process: Its process id.
        state: "starting", "ready", "draining", "failed".
        detail: More of it: models that are loaded, bytes on the GPU, the reason of a failure.
        age: Seconds since it said so.
    """

    name: str
    process: int
    state: str
    detail: dict[str, Any]
    age: float


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


class JobStore:
    """See the module.

    Args:
        folder: Where jobs and results lie; made if there is none. On a local disk: SQLite's log needs one.
        exclusive: Refuse a folder that another exclusive owner, a `vorta-trt serve`, has; workers are not exclusive.
        most_queued: How many jobs may wait.
        most_per_user: How many of one user.
        keep_seconds: How long results stay after completion.
        lease_seconds: How long a lease lasts that is not renewed.
        most_attempts: How often a job is begun.

    Raises:
        JobError: Another server has the folder.
        WriteError, OSError: The folder cannot be written.

    Attributes:
        folder: As given.
        files: The files of the jobs.
        recovered: How many jobs were read from their folders since the database was damaged.
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
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.most_queued, self.most_per_user = most_queued, most_per_user or most_queued
        self.keep_seconds, self.lease_seconds, self.most_attempts = keep_seconds, lease_seconds, most_attempts
        self._lock = self._take(exclusive)
        self._boot = boot()
        self.files = JobFiles(self.folder)
        self._data = Database(self.folder)
        self.recovered = 0 if self._data.moved_aside is None else self._read_folders()
        if exclusive:
            self.files.sweep({str(row["id"]) for row in self._data.read("SELECT id FROM jobs")}, alone=True)

    def _take(self, exclusive: bool) -> int | None:
        if not exclusive:
            return None
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode(errors="replace") or "unknown"
            os.close(lock)
            raise JobError(
                f"jobs {self.folder}: the server with process id {owner} has this folder; stop it, or give another one"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock

    def close(self) -> None:
        """Closes the database and gives the folder free."""
        self._data.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- clients -------------------------------------------------------------------------------------------------------

    def create(self, new: NewJob, images: Mapping[str, bytes] | None = None) -> tuple[Job, bool]:
        """Queues a job; it is on the disk when this returns.

        Args:
            new: The job.
            images: Files of the request, by the names that `new.request` has for them.

        Returns:
            The job, and whether it is new: one of the same idempotency key is given back as it is.

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
                _insert(change, job_id, record)
        except sqlite3.IntegrityError:  # the same key, at the same time
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
            f"SELECT {_COLUMNS}, fingerprint FROM jobs WHERE user = ? AND idempotency_key = ?",
            new.user,
            new.idempotency_key,
        )
        if not rows:
            return None
        if rows[0]["fingerprint"] != new.fingerprint:
            raise KeyReusedError(
                "Idempotency-Key: belongs to another request; use a new key for a new request, or send the same request"
            )
        return _job(rows[0])

    def _check_room(self, read: Any, user: str) -> None:
        everyone = read("SELECT count(*) AS n FROM jobs WHERE status = 'queued'")[0]["n"]
        if everyone >= self.most_queued:
            raise QueueFullError(f"queue: {everyone} jobs wait, and no more than {self.most_queued} may; try later")
        own = read("SELECT count(*) AS n FROM jobs WHERE status = 'queued' AND user = ?", user)[0]["n"]
        if own >= self.most_per_user:
            raise QueueFullError(
                f"queue: {own} of your jobs wait, and no more than {self.most_per_user} may; try later"
            )

    def get(self, job_id: str, user: str | None = None) -> Job:
        """A job.

        Args:
            job_id: Its id.
            user: Whose it must be; None: anybody's.

        Raises:
            JobNotFoundError: There is none.
        """
        rows = self._data.read(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", job_id)
        if not rows or (user is not None and rows[0]["user"] != user):
            raise JobNotFoundError(f"video {job_id[:64]!r}: there is none; it was deleted, has expired, or never was")
        return _job(rows[0])

    def page(
        self, user: str | None = None, *, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> tuple[list[Job], bool]:
        """Jobs in order, and whether there are more.

        Args:
            user: Whose; None: everybody's.
            after: Id of the last job of the page before.
            limit: How many.
            newest_first: The order.

        Raises:
            JobNotFoundError: There is no job `after`.
        """
        conditions: list[str] = ["1"]
        values: list[object] = []
        if user is not None:
            conditions.append("user = ?")
            values.append(user)
        if after is not None:
            conditions.append(f"sequence {'<' if newest_first else '>'} ?")
            values.append(self.get(after, user).sequence)
        rows = self._data.read(
            f"SELECT {_COLUMNS} FROM jobs WHERE {' AND '.join(conditions)} "
            f"ORDER BY sequence {'DESC' if newest_first else 'ASC'} LIMIT ?",
            *values,
            limit + 1,
        )
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, job_id: str, user: str | None = None) -> Job:
        """Cancels a job: one that waits at once, a running one at its next step; what is over stays as it is.

        Raises:
            JobNotFoundError: There is none.
        """
        self.get(job_id, user)
        with self._data.change() as change:
            done = change.execute(
                "UPDATE jobs SET status = 'cancelled', completed_at = ?, expires_at = ? "
                "WHERE id = ? AND status = 'queued'",
                (time.time(), time.time() + self.keep_seconds, job_id),
            )
            if done.rowcount:
                _record_end(change, job_id)
            change.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND status = 'in_progress'", (job_id,))
        self._note_end(job_id)
        return self.get(job_id, user)

    def delete(self, job_id: str, user: str | None = None) -> None:
        """Cancels a job and removes it with its results.

        Raises:
            JobNotFoundError: There is none.
        """
        self.get(job_id, user)
        with self._data.change() as change:
            ended = change.execute(
                "UPDATE jobs SET status = 'cancelled', completed_at = ? WHERE id = ? AND completed_at IS NULL",
                (time.time(), job_id),
            )
            if ended.rowcount:
                _record_end(change, job_id)
            if change.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount == 0:
                raise JobNotFoundError(f"video {job_id[:64]!r}: there is none; it was deleted meanwhile")
        self.files.remove(job_id)

    def position(self, job: Job) -> int:
        """How many jobs were queued before one that waits, of all users."""
        query = "SELECT count(*) AS n FROM jobs WHERE status = 'queued' AND sequence < ?"
        return int(self._data.read(query, job.sequence)[0]["n"])

    def unfinished(self) -> list[Job]:
        """All jobs that run or wait, in order."""
        query = f"SELECT {_COLUMNS} FROM jobs WHERE status IN ('in_progress', 'queued') ORDER BY sequence"
        return [_job(row) for row in self._data.read(query)]

    def counts(self) -> dict[Status, int]:
        """How many jobs there are of each status."""
        rows = self._data.read("SELECT status, count(*) AS n FROM jobs GROUP BY status")
        return {status: 0 for status in Status} | {Status(row["status"]): int(row["n"]) for row in rows}

    def ends_after(self, number: int, limit: int = 1000) -> list[End]:
        """How jobs ended, in order; of the last 10,000.

        Args:
            number: Of the last end that is known; 0 for all.
            limit: How many.
        """
        rows = self._data.read("SELECT * FROM ends WHERE number > ? ORDER BY number LIMIT ?", number, limit)
        values = [dict(row) for row in rows]
        for value in values:
            value["status"] = Status(value["status"])
            value["report"] = None if value["report"] is None else json.loads(value["report"])
        return [End(**value) for value in values]

    def last_end(self) -> int:
        """The number of the last end."""
        return int(self._data.read("SELECT COALESCE(max(number), 0) AS n FROM ends")[0]["n"])

    # -- workers -------------------------------------------------------------------------------------------------------

    def claim(self, worker: str, models: Sequence[str]) -> Job | None:
        """Gives a worker the next job of these models, or None.

        The next one is that of the user of whom the fewest run, then of the one whose turn is longest ago; of one user,
        the oldest.
        """
        if not models:
            return None
        marks = ", ".join("?" * len(models))
        waiting = f"SELECT 1 FROM jobs WHERE status = 'queued' AND model IN ({marks}) LIMIT 1"
        if not self._data.read(waiting, *models):  # without the lock for writing
            return None
        with self._data.change() as change:
            row = change.execute(
                f"""SELECT id, user FROM jobs AS job WHERE status = 'queued' AND model IN ({marks}) ORDER BY
                (SELECT count(*) FROM jobs AS other WHERE other.user = job.user AND other.status = 'in_progress'),
                COALESCE((SELECT served FROM users WHERE users.user = job.user), 0), sequence LIMIT 1""",
                tuple(models),
            ).fetchone()
            if row is None:
                return None
            change.execute(
                "INSERT INTO users VALUES (?, (SELECT COALESCE(max(served), 0) + 1 FROM users)) "
                "ON CONFLICT (user) DO UPDATE SET served = excluded.served",
                (row["user"],),
            )
            change.execute(
                "UPDATE jobs SET status = 'in_progress', worker = ?, attempt = attempt + 1, started_at = ?, step = 0, "
                "stage = '', lease_boot = ?, lease_until = ? WHERE id = ?",
                (worker, time.time(), self._boot, time.monotonic() + self.lease_seconds, row["id"]),
            )
        return self.get(row["id"])

    def report_progress(self, job: Job, *, stage: str | None = None, step: int | None = None) -> bool:
        """Says how far a worker's job is, and renews the lease; returns whether the job is to be cancelled.

        Raises:
            LeaseLostError: It is not the worker's any more.
        """
        with self._data.change() as change:
            rows = change.execute(
                "UPDATE jobs SET stage = COALESCE(?, stage), step = COALESCE(?, step), lease_until = ? "
                f"WHERE {_HELD} RETURNING cancelling",
                (stage, step, time.monotonic() + self.lease_seconds, *_holder(job)),
            ).fetchall()
        if not rows:
            raise _lost(job)
        return bool(rows[0]["cancelling"])

    def complete(self, job: Job, report: Mapping[str, Any]) -> None:
        """The results of a worker's job are in its folder.

        Raises:
            LeaseLostError: It is not the worker's any more.
        """
        self._finish(job, Status.COMPLETED, report=json.dumps(report), step=job.steps)
        self.files.remove_results(job.id, job.attempt)

    def fail(self, job: Job, code: str, message: str) -> None:
        """A worker's job failed.

        Raises:
            LeaseLostError: It is not the worker's any more.
        """
        self._finish(job, Status.FAILED, error_code=code, error_message=message[:4000])

    def finish_cancelled(self, job: Job) -> None:
        """A worker's job was broken off since it was to be cancelled.

        Raises:
            LeaseLostError: It is not the worker's any more.
        """
        self._finish(job, Status.CANCELLED)

    def give_back(self, job: Job) -> None:
        """A worker's job waits again, since the worker stops; this is no attempt.

        Raises:
            LeaseLostError: It is not the worker's any more.
        """
        if self.report_progress(job):
            self.finish_cancelled(job)
            return
        with self._data.change() as change:
            done = change.execute(
                "UPDATE jobs SET status = 'queued', stage = '', step = 0, attempt = attempt - 1, worker = NULL, "
                f"lease_until = NULL WHERE {_HELD}",
                _holder(job),
            )
        if not done.rowcount:
            raise _lost(job)

    def _finish(self, job: Job, status: Status, **values: object) -> None:
        settings = {"status": status.value, "completed_at": time.time(), "stage": "", "lease_until": None, **values}
        settings["expires_at"] = time.time() + self.keep_seconds
        names = ", ".join(f"{name} = ?" for name in settings)
        with self._data.change() as change:
            done = change.execute(f"UPDATE jobs SET {names} WHERE {_HELD}", (*settings.values(), *_holder(job)))
            if not done.rowcount:
                raise _lost(job)
            _record_end(change, job.id)
        self._note_end(job.id)

    def take_back(self, *, worker: str | None = None, everyone: bool = False) -> list[Job]:
        """Jobs whose workers are gone wait again, or fail after `most_attempts`; returns them.

        Args:
            worker: One that is known to be gone; None: all whose lease has ended.
            everyone: All workers are known to be gone.
        """
        values: tuple[object, ...] = (self._boot, time.monotonic())
        condition = "(lease_boot <> ? OR lease_until < ?)"
        if worker is not None:
            condition, values = "worker = ?", (worker,)
        elif everyone:
            condition, values = "1", ()
        found = f"SELECT id, cancelling, attempt FROM jobs WHERE status = 'in_progress' AND {condition}"
        if not self._data.read(found, *values):
            return []
        with self._data.change() as change:
            rows = change.execute(found, values).fetchall()
            for row in rows:
                if row["cancelling"] or row["attempt"] >= self.most_attempts:
                    status = Status.CANCELLED if row["cancelling"] else Status.FAILED
                    code, message = (
                        (None, None)
                        if row["cancelling"]
                        else (
                            WORKER_LOST,
                            f"the worker was lost {row['attempt']} times while it made this video, so it is not tried "
                            f"again; the server's log says how it ended",
                        )
                    )
                    change.execute(
                        "UPDATE jobs SET status = ?, error_code = ?, error_message = ?, completed_at = ?, "
                        "expires_at = ?, stage = '', lease_until = NULL WHERE id = ?",
                        (status.value, code, message, time.time(), time.time() + self.keep_seconds, row["id"]),
                    )
                    _record_end(change, row["id"])
                else:
                    change.execute(
                        "UPDATE jobs SET status = 'queued', stage = '', step = 0, worker = NULL, lease_until = NULL "
                        "WHERE id = ?",
                        (row["id"],),
                    )
        for row in rows:
            self._note_end(row["id"])
        return [self.get(row["id"]) for row in rows]

    def expire(self) -> int:
        """Removes jobs whose time is over, with their results; returns how many."""
        rows = self._data.read("SELECT id FROM jobs WHERE expires_at < ?", time.time())
        for row in rows:
            try:
                self.delete(row["id"])
            except JobNotFoundError:  # somebody else did
                continue
        return len(rows)

    # -- states of workers ---------------------------------------------------------------------------------------------

    def say(self, worker: str, state: str, detail: Mapping[str, Any] | None = None) -> None:
        """A worker's sign of life."""
        with self._data.change() as change:
            change.execute(
                "INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "process = excluded.process, state = excluded.state, detail = excluded.detail, boot = excluded.boot, "
                "seen = excluded.seen",
                (worker, os.getpid(), state, json.dumps(detail or {}), self._boot, time.monotonic()),
            )

    def forget_worker(self, worker: str) -> None:
        """A worker is gone."""
        with self._data.change() as change:
            change.execute("DELETE FROM workers WHERE name = ?", (worker,))

    def workers(self) -> list[WorkerState]:
        """All workers that gave a sign of life in the last three leases."""
        rows = self._data.read("SELECT * FROM workers WHERE boot = ? ORDER BY name", self._boot)
        now = time.monotonic()
        states = [
            WorkerState(row["name"], row["process"], row["state"], json.loads(row["detail"]), now - row["seen"])
            for row in rows
        ]
        return [state for state in states if state.age < 3 * self.lease_seconds]

    def _note_end(self, job_id: str) -> None:
        """Beside the job's files: how it failed or was cancelled."""
        try:
            job = self.get(job_id)
        except JobNotFoundError:
            return
        if job.status in (Status.FAILED, Status.CANCELLED):
            end = {"status": job.status.value, "error_code": job.error_code, "error_message": job.error_message}
            self.files.write_end(job_id, {**end, "completed_at": job.completed_at})

    def _read_folders(self) -> int:
        """Fills a new database from the folders of the jobs."""
        found = sorted(self.files.records(), key=lambda record: record[1]["created_at"])
        with self._data.change() as change:
            for job_id, record, attempt, end in found:
                _insert(change, job_id, record)
                if end is None:
                    continue
                values: dict[str, object] = {"completed_at": end["completed_at"]}
                values["expires_at"] = end["completed_at"] + self.keep_seconds
                if attempt is None:
                    values.update({name: end[name] for name in ("status", "error_code", "error_message")})
                else:
                    values.update(status=Status.COMPLETED.value, attempt=attempt, started_at=end["started_at"])
                    values.update(step=record["steps"], report=json.dumps(end["report"]))
                names = ", ".join(f"{name} = ?" for name in values)
                change.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), job_id))
        logger.error("jobs %s: %d jobs were read from their folders (%s)", self.folder, len(found), REQUEST)
        return len(found)


_HELD = "id = ? AND worker = ? AND attempt = ? AND status = 'in_progress'"


def _holder(job: Job) -> tuple[object, ...]:
    return job.id, job.worker, job.attempt


def _lost(job: Job) -> LeaseLostError:
    return LeaseLostError(f"job {job.id}: is not this worker's any more; it was deleted, or given to another")


def _record_end(change: sqlite3.Connection, job_id: str) -> None:
    change.execute(
        "INSERT INTO ends (model, worker, status, error_code, created_at, started_at, completed_at, report) SELECT "
        "model, worker, status, error_code, created_at, started_at, completed_at, report FROM jobs WHERE id = ?",
        (job_id,),
    )
    change.execute("DELETE FROM ends WHERE number <= (SELECT max(number) FROM ends) - ?", (MOST_ENDS,))


def _insert(change: sqlite3.Connection, job_id: str, record: Mapping[str, Any]) -> None:
    values = {**record, "id": job_id, "status": Status.QUEUED.value, "request": json.dumps(record["request"])}
    marks = ", ".join("?" * len(values))
    change.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in _FIELDS}
    values["request"] = json.loads(values["request"])
    values["report"] = None if values["report"] is None else json.loads(values["report"])
    values["status"], values["cancelling"] = Status(values["status"]), bool(values["cancelling"])
    return Job(**values)


def user_of(key: str | None) -> str:
    """How jobs name the owner of an API key, which is written nowhere."""
    return "" if key is None else hashlib.sha256(b"vorta-trt " + key.encode()).hexdigest()[:32]
