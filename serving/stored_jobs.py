# SPDX-License-Identifier: Apache-2.0
"""`StoredJobs`: what all parts of a job store share: database, files, limits, and one job by its id."""

from __future__ import annotations

from pathlib import Path

from vorta_trt.serving.job import Job, JobNotFoundError, Status
from vorta_trt.serving.job_database import Database, boot
from vorta_trt.serving.job_files import JobFiles
from vorta_trt.serving.job_rows import COLUMNS, job_of


class StoredJobs:
    """See `JobStore`, which is made of this, `Recovery`, `Leases` and `WorkerStates`.

    Args:
        folder: Of the jobs.
        keep_seconds: How long results stay after completion.
        lease_seconds: How long a lease lasts that is not renewed.
        most_attempts: How often a job is begun.

    Attributes:
        folder: As given.
        files: The files of the jobs.
    """

    def __init__(self, folder: Path, keep_seconds: float, lease_seconds: float, most_attempts: int) -> None:
        self.folder = folder
        self.keep_seconds, self.lease_seconds, self.most_attempts = keep_seconds, lease_seconds, most_attempts
        self.files = JobFiles(folder)
        self._boot = boot()
        self._data = Database(folder)

    def get(self, job_id: str, user: str | None = None) -> Job:
        """A job.

        Args:
            job_id: Its id.
            user: Whose it must be; None: anybody's.

        Raises:
            JobNotFoundError: There is none.
        """
        rows = self._data.read(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", job_id)
        if not rows or (user is not None and rows[0]["user"] != user):
            raise JobNotFoundError(f"video {job_id[:64]!r}: there is none; it was deleted, has expired, or never was")
        return job_of(rows[0])

    def _note_end(self, job_id: str) -> None:
        """Beside the job's files: how it failed or was cancelled."""
        try:
            job = self.get(job_id)
        except JobNotFoundError:
            return
        if job.status in (Status.FAILED, Status.CANCELLED):
            end = {"status": job.status.value, "error_code": job.error_code, "error_message": job.error_message}
            self.files.write_end(job_id, {**end, "completed_at": job.completed_at})
