# SPDX-License-Identifier: Apache-2.0
"""`StoredJobs`: what all parts of a job store share: database, files, limits, and one job by its id."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving.disk_reserve import Reserve, is_full
from vorta_trt.serving.job import Job, JobNotFoundError, Status
from vorta_trt.serving.job_database import Database, boot
from vorta_trt.serving.job_files import JobFiles
from vorta_trt.serving.job_rows import COLUMNS, job_of

T = TypeVar("T")
logger = logging.getLogger(__name__)


class StoredJobs:
    """See `JobStore`, which is made of this, `Recovery`, `Leases` and `WorkerStates`.

    Args:
        folder: Folder of the jobs.
        keep_seconds: How long results stay after completion.
        lease_seconds: How long a lease lasts if it is not renewed.
        most_attempts: How many times a job is begun whose workers are lost.

    Attributes:
        folder: Folder of the jobs, as given.
        files: The files of the jobs.
    """

    def __init__(self, folder: Path, keep_seconds: float, lease_seconds: float, most_attempts: int) -> None:
        self.folder = folder
        self.keep_seconds, self.lease_seconds, self.most_attempts = keep_seconds, lease_seconds, most_attempts
        self.files = JobFiles(folder)
        self._boot = boot()
        self._reserve = Reserve(folder)
        self._data = self._even_if_full(lambda: Database(folder))

    @property
    def is_short_of_space(self) -> bool:
        """Whether the disk has no space for more videos."""
        return self._reserve.is_short()

    def _even_if_full(self, act: Callable[[], T]) -> T:
        """Runs a change that ends or removes jobs; if the disk is full, with space from the reserve.

        Raises:
            WriteError: The disk is full even so.
        """
        try:
            return act()
        except sqlite3.OperationalError as error:
            if not is_full(error, self.folder):
                raise
            logger.warning("jobs %s: the disk is full (%s); the reserve is used", self.folder, error)
            self._reserve.free_some()
        return self._if_there_is_space(act)

    def _if_there_is_space(self, act: Callable[[], T]) -> T:
        """Runs a change that can wait until there is space.

        Raises:
            WriteError: The disk is full.
        """
        try:
            return act()
        except sqlite3.OperationalError as error:
            if not is_full(error, self.folder):
                raise
            reason = f"the disk is full, so the job database cannot be used ({error}); free some space"
            raise WriteError(self.folder, errno.ENOSPC, reason) from error

    def get(self, job_id: str, user: str | None = None) -> Job:
        """The job with an id.

        Args:
            job_id: Id of the job.
            user: Owner that the job must have; None: any owner.

        Raises:
            JobNotFoundError: There is no such job.
        """
        rows = self._data.read(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", job_id)
        if not rows or (user is not None and rows[0]["user"] != user):
            raise JobNotFoundError(f"video {job_id[:64]!r}: there is none; it was deleted, has expired, or never was")
        return job_of(rows[0])

    def _note_end(self, job_id: str) -> None:
        """Writes into the job's folder how the job failed or was cancelled."""
        try:
            job = self.get(job_id)
        except JobNotFoundError:
            return
        if job.status in (Status.FAILED, Status.CANCELLED):
            end = {"status": job.status.value, "error_code": job.error_code, "error_message": job.error_message}
            self.files.write_end(job_id, {**end, "completed_at": job.completed_at})
