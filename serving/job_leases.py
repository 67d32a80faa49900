# SPDX-License-Identifier: Apache-2.0
"""`Leases`: how workers take jobs from a store, keep them, and end them.

A worker holds its job by a lease, which it renews; a job whose worker is gone goes back to the queue, or fails with a
reason after `most_attempts`. Leases are measured by `time.monotonic`, a clock that nobody can set, and hold the id of
the machine's boot, within which alone its values can be compared.
"""

from __future__ import annotations

import errno
import json
import math
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving.job import Job, LeaseLostError, Status
from vorta_trt.serving.job_records import read_result
from vorta_trt.serving.job_recovery import Recovery
from vorta_trt.serving.job_rows import record_end

WORKER_LOST = "worker_lost"
_HELD = "id = ? AND worker = ? AND attempt = ? AND status = 'in_progress'"


class Leases(Recovery):
    """The part of a `JobStore` that workers use."""

    _short_at = -math.inf  # when the disk was last seen full

    def claim(self, worker: str, models: Sequence[str]) -> Job | None:
        """Gives a worker the next job of these models, or None.

        The user with the fewest running jobs comes first; among several, the one whose last turn is longest ago. Of one
        user's jobs, the oldest comes first.

        Raises:
            WriteError: A job waits, but it has to wait until the disk has space for its videos.
        """
        if not models:
            return None
        marks = ", ".join("?" * len(models))
        waiting = f"SELECT 1 FROM jobs WHERE status = 'queued' AND model IN ({marks}) LIMIT 1"
        if not self._data.read(waiting, *models):  # without the lock for writing
            return None
        if self.is_short_of_space:
            raise WriteError(self.folder, errno.ENOSPC, "the disk is full, so jobs wait; free some space")
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
        """Stores the progress of a worker's job and renews its lease; returns whether the job is to be cancelled.

        Raises:
            LeaseLostError: The job is not the worker's any more.
            WriteError: The disk is full.
        """

        def report() -> list[sqlite3.Row]:
            with self._data.change(lasting=False) as change:
                return change.execute(
                    "UPDATE jobs SET stage = COALESCE(?, stage), step = COALESCE(?, step), lease_until = ? "
                    f"WHERE {_HELD} RETURNING cancelling",
                    (stage, step, time.monotonic() + self.lease_seconds, *_holder(job)),
                ).fetchall()

        rows = self._if_there_is_space(report)
        if not rows:
            raise _lost(job)
        return bool(rows[0]["cancelling"])

    def complete(self, job: Job, report: Mapping[str, Any]) -> None:
        """Marks a worker's job as completed; its results are in its folder.

        Raises:
            LeaseLostError: The job is not the worker's any more.
        """
        self._finish(job, Status.COMPLETED, report=json.dumps(report), step=job.steps)
        self.files.remove_results(job.id, job.attempt)

    def fail(self, job: Job, code: str, message: str) -> None:
        """Marks a worker's job as failed.

        Raises:
            LeaseLostError: The job is not the worker's any more.
        """
        self._finish(job, Status.FAILED, error_code=code, error_message=message[:4000])

    def finish_cancelled(self, job: Job) -> None:
        """Marks a worker's job as cancelled, after the worker has stopped it.

        Raises:
            LeaseLostError: The job is not the worker's any more.
        """
        self._finish(job, Status.CANCELLED)

    def give_back(self, job: Job) -> None:
        """Returns a worker's job to the queue because the worker stops; this does not count as an attempt.

        Raises:
            LeaseLostError: The job is not the worker's any more.
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

        def finish() -> None:
            with self._data.change() as change:
                done = change.execute(f"UPDATE jobs SET {names} WHERE {_HELD}", (*settings.values(), *_holder(job)))
                if not done.rowcount:
                    raise _lost(job)
                record_end(change, job.id)

        self._even_if_full(finish)
        self._note_end(job.id)

    def take_back(self, *, worker: str | None = None, everyone: bool = False) -> list[Job]:
        """Returns jobs of lost workers to the queue, or fails them after `most_attempts`; returns these jobs.

        If a worker ended after its result was in place, but before it said so, its job is completed.

        Args:
            worker: Name of a worker that is known to be gone; None: all workers whose leases have ended.
            everyone: Whether all workers are known to be gone.
        """
        values: tuple[object, ...] = (self._boot, time.monotonic())
        condition = "(lease_boot <> ? OR lease_until < ?)"
        if worker is not None:
            condition, values = "worker = ?", (worker,)
        elif everyone:
            condition, values = "1", ()
        elif self._leases_stand_still():
            return []
        found = f"SELECT id, cancelling, attempt FROM jobs WHERE status = 'in_progress' AND {condition}"
        if not self._data.read(found, *values):
            return []
        ended = self._even_if_full(lambda: self._take_back(found, values))
        for job_id, attempt in ended.items():
            self.files.remove_results(job_id, attempt)
            self._note_end(job_id)
        return [self.get(job_id) for job_id in ended]

    def _leases_stand_still(self) -> bool:
        """Whether the disk is full, so that leases cannot be renewed, or was full less than a lease ago."""
        if self.is_short_of_space:
            self._short_at = time.monotonic()
        return time.monotonic() - self._short_at < self.lease_seconds

    def _take_back(self, found: str, values: tuple[object, ...]) -> dict[str, int | None]:
        """Ends or requeues the jobs that a query finds; returns their ids, with the attempt whose result was taken."""
        made: dict[str, int | None] = {}
        with self._data.change() as change:
            rows = change.execute(found, values).fetchall()
            for row in rows:
                made[row["id"]] = None
                if (result := None if row["cancelling"] else read_result(self.files.folder(row["id"]))) is not None:
                    self._complete(change, row["id"], result)  # its worker died before it could say so
                    record_end(change, row["id"])
                    made[row["id"]] = result.attempt
                elif row["cancelling"] or row["attempt"] >= self.most_attempts:
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
                    record_end(change, row["id"])
                else:
                    change.execute(
                        "UPDATE jobs SET status = 'queued', stage = '', step = 0, worker = NULL, lease_until = NULL "
                        "WHERE id = ?",
                        (row["id"],),
                    )
        return made


def order_of_turns(waiting: Iterable[Job], running: Iterable[Job], served: Mapping[str, int]) -> list[Job]:
    """Jobs that wait, in the order in which `Leases.claim` will give them out.

    Args:
        waiting: Jobs in the order of their creation.
        running: Jobs that run, in the order in which they will end; when one ends, another one begins.
        served: Number of each user's last turn, as in the table `users`.
    """
    of_user: dict[str, deque[Job]] = {}
    for job in waiting:
        of_user.setdefault(job.user, deque()).append(job)
    slots = deque(job.user for job in running)
    turns, order = dict(served), []
    while of_user:
        if slots:
            slots.popleft()
        at_work = Counter(slots)
        user = min(of_user, key=lambda each: (at_work[each], turns.get(each, 0), of_user[each][0].sequence))
        order.append(of_user[user].popleft())
        if not of_user[user]:
            del of_user[user]
        slots.append(user)
        turns[user] = 1 + max(turns.values(), default=0)
    return order


def _holder(job: Job) -> tuple[object, ...]:
    return job.id, job.worker, job.attempt


def _lost(job: Job) -> LeaseLostError:
    return LeaseLostError(f"job {job.id}: is not this worker's any more; it was deleted, or given to another")
