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
    """So many jobs wait that another one is refused."""


class KeyReusedError(JobError):
    """An idempotency key came again with another request."""


class LeaseLostError(JobError):
    """A worker's job was deleted, or given to another worker."""


@dataclass(frozen=True)
class NewJob:
    """What a job is created from.

    Attributes:
        user: Whose it is: a digest of the API key, or "" where there are none.
        model: Its name in the catalogue.
        request: The accepted request as JSON: prompt, params, size, n, fps, images; see `Accepted.to_dict`.
        steps: Denoising steps of all its videos.
        flops: Predicted for them; None if unknown.
        idempotency_key: Given by the client, or None.
        fingerprint: Of everything that the client sent, to know the same request again.
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
        sequence: Grows from job to job.
        user: See `NewJob`.
        model: See `NewJob`.
        request: See `NewJob`.
        status: Where it is.
        stage: What is being done: "text", "condition", "denoise", "decode", "encode", "loading"; "" while it waits.
        step: Denoising steps that are done, of all its videos.
        steps: How many there will be.
        flops: See `NewJob`.
        created_at: When it was queued.
        started_at: When a worker took it last.
        completed_at: When it was completed, failed or cancelled.
        expires_at: When its results go.
        attempt: How often a worker took it.
        worker: Which one did last.
        cancelling: Whether it will be cancelled at the next step.
        error_code: Of a failure.
        error_message: Of a failure.
        report: How it went: seconds by stage and step, memory; None until it is completed.
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
