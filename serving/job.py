# SPDX-License-Identifier: Apache-2.0
"""`Job`: a request for videos, from the moment it is queued until it is deleted or expires."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from vorta_trt.plugins.errors import VortaError


class Status(str, Enum):
    """Where a job is in its life."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the job."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class JobError(VortaError):
    """Something that a job store refuses."""


class JobNotFoundError(JobError):
    """There is no such job, or it is somebody else's."""


class QueueFullError(JobError):
    """Too many jobs wait, so another one is refused."""


class KeyReusedError(JobError):
    """An idempotency key came again with another request."""


class LeaseLostError(JobError):
    """A worker's job was deleted, or given to another worker."""


@dataclass(frozen=True)
class NewJob:
    """What a job is created from.

    Attributes:
        user: Owner of the job: a digest of the API key, or "" if the server has no keys.
        model: Name of the model in the catalogue.
        request: The accepted request as JSON: prompt, params, size, n, fps, images; see `Accepted.to_dict`.
        steps: Denoising steps of all videos together.
        flops: Predicted FLOPs of these steps; None if unknown.
        idempotency_key: Idempotency key that the client gave, or None.
        fingerprint: Digest of the accepted request and its images, by which a repeated request is recognized.
    """

    user: str
    model: str
    request: dict[str, Any]
    steps: int
    flops: float | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class Job:
    """A job as the store knows it; times are seconds since 1970.

    Attributes:
        id: "video_" and 32 random hexadecimal digits.
        sequence: Number that grows from job to job.
        user: See `NewJob`.
        model: See `NewJob`.
        request: See `NewJob`.
        status: Where the job is in its life.
        stage: What is being done, in words, such as "loading the model", "denoising" or "decoding"; "" while the job
            waits, and after it has ended.
        step: Denoising steps that are done, of all videos together.
        steps: Denoising steps of all videos together.
        flops: See `NewJob`.
        created_at: When the job was queued.
        started_at: When a worker last took the job.
        completed_at: When the job was completed, failed or was cancelled.
        expires_at: When the job and its results are removed.
        attempt: How many times a worker has taken the job.
        worker: Name of the worker that last took it.
        cancelling: Whether the running job will be cancelled at its next step.
        error_code: Word for programs that names the failure; None if the job did not fail.
        error_message: Message for people that explains the failure; None if the job did not fail.
        report: Measurements of a completed job: seconds by stage and step, memory; None for other jobs.
    """

    id: str
    sequence: int
    user: str
    model: str
    request: dict[str, Any]
    status: Status
    stage: str
    step: int
    steps: int
    flops: float | None
    created_at: float
    started_at: float | None
    completed_at: float | None
    expires_at: float | None
    attempt: int
    worker: str | None
    cancelling: bool
    error_code: str | None
    error_message: str | None
    report: dict[str, Any] | None

    @property
    def progress(self) -> int:
        """Percent: the share of denoising steps that are done, and 100 when the videos can be fetched."""
        if self.status is Status.COMPLETED:
            return 100
        return min(99, 100 * self.step // max(1, self.steps))
