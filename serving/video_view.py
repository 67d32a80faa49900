# SPDX-License-Identifier: Apache-2.0
"""What a client sees of a job: OpenAI's video object, with more fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from vorta_trt.model.video_size import VideoSize
from vorta_trt.serving.job import Job, Status


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A job and its videos."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    size: str
    seconds: str
    prompt: str
    error: VideoError | None = None
    url: str | None = None
    num_outputs: int
    peak_memory_mb: float | None = None
    inference_time_s: float | None = None
    remixed_from_video_id: str | None = None
    # Fields that OpenAI's object does not have:
    num_frames: int
    fps: float
    stage: str
    step: int
    steps: int
    queue_position: int | None = None
    eta_seconds: float | None = None
    seeds: list[int] | None = None


class VideoList(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class DeletedVideo(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def view(job: Job, *, eta: float | None = None, position: int | None = None) -> VideoObject:
    """A job as clients see it.

    Args:
        job: The job.
        eta: Seconds until it is done.
        position: How many jobs wait before it.
    """
    size, fps = VideoSize.parse(job.request["size"]), float(job.request["fps"])
    report: dict[str, Any] = job.report or {}
    done = job.status is Status.COMPLETED
    return VideoObject(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=job.progress,
        created_at=int(job.created_at),
        completed_at=None if job.completed_at is None else int(job.completed_at),
        expires_at=None if job.expires_at is None else int(job.expires_at),
        size=f"{size.width}x{size.height}",
        seconds=f"{size.frames / fps:g}",
        prompt=job.request["prompt"],
        error=None if job.error_code is None else VideoError(code=job.error_code, message=job.error_message or ""),
        url=f"/v1/videos/{job.id}/content" if done else None,
        num_outputs=int(job.request["n"]),
        peak_memory_mb=report.get("peak_memory_mb"),
        inference_time_s=report.get("seconds"),
        num_frames=size.frames,
        fps=fps,
        stage=job.stage,
        step=job.step,
        steps=job.steps,
        queue_position=position,
        eta_seconds=None if eta is None else round(eta, 2),
        seeds=[video["seed"] for video in report["videos"]] if done and report else None,
    )
