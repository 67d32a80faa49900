# SPDX-License-Identifier: Apache-2.0
"""`make_videos`: makes the videos of a job with a pipeline, in the job's folder, and reports on them."""

from __future__ import annotations

import json
import resource
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.runtime.sampling.params import LARGEST_SEED
from vorta_trt.runtime.video_file import BackgroundFiles
from vorta_trt.serving.accepted import Accepted
from vorta_trt.serving.job import Job
from vorta_trt.serving.job_files import RESULT, JobFiles
from vorta_trt.serving.step_watch import StepWatch, Tell
from vorta_trt.serving.thumbnail import write_thumbnail

if TYPE_CHECKING:
    from vorta_trt.runtime.pipelines.pipeline import GeneratedVideo, VortaPipeline

WRITING = "writing the video"


def make_videos(job: Job, pipeline: VortaPipeline, files: JobFiles, tell: Tell, began: float) -> dict[str, Any]:
    """Makes the videos of a job. When this returns, the folder of its attempt is complete.

    Args:
        job: The job.
        pipeline: Loaded pipeline of the job's model.
        files: Folders of all jobs.
        tell: Called as every step and stage begins, see `StepWatch`.
        began: When the work on the job began, in seconds since 1970.

    Returns:
        The report: seconds, steps, memory and FLOPs of the job, and the seed, files and stages of every video.

    Raises:
        FileNotFoundError: The job was deleted meanwhile.
        WriteError, VortaError: The videos cannot be made or written.
    """
    accepted = Accepted.from_dict(job.request)
    watch = StepWatch(tell)
    images: Mapping[str, Any] = {
        argument: files.folder(job.id) / name for argument, name in (accepted.images or {}).items()
    }
    with (
        files.new_result(job.id, job.attempt) as folder,
        BackgroundFiles(lambda number: folder / _file(number), accepted.fps) as writing,
    ):
        parts: list[dict[str, Any]] = []

        def write(number: int, video: GeneratedVideo) -> None:
            watch.stage(WRITING, number, accepted.n)
            parts.append(_finish(folder, number, video, accepted.fps, writing))

        pipeline.generate_each(
            [accepted.prompt] * accepted.n,
            write,
            accepted.params.updated(seed=None),
            seeds=_seeds(accepted),
            size=accepted.video,
            on_step=watch.step,
            on_stage=watch.stage,
            on_frames=writing.write,
            **images,
        )
        report = {
            "seconds": time.time() - began,
            "videos": parts,
            "steps": watch.report(),
            "peak_memory_mb": _peak_memory_mb(),
            "flops": job.flops,
        }
        record = {"started_at": job.started_at, "completed_at": time.time(), "report": report}
        (folder / RESULT).write_text(json.dumps(record), encoding="utf-8")
    return report


def _seeds(accepted: Accepted) -> list[int]:
    """The seeds, one for each video: from the request's seed upward, or at random if it has none."""
    first = accepted.params.seed
    if first is None:
        return [secrets.randbits(32) for _ in range(accepted.n)]
    return [(first + number) % (LARGEST_SEED + 1) for number in range(accepted.n)]


def _file(number: int) -> str:
    """Name of a video's file."""
    return f"{number}.mp4"


def _finish(folder: Path, number: int, video: GeneratedVideo, fps: float, writing: BackgroundFiles) -> dict[str, Any]:
    """Finishes the files of a video, whose frames were written as they were decoded; returns its part of the report."""
    began = time.perf_counter()
    write_thumbnail(folder / f"{number}.webp", video.frames)  # while the last frames are encoded
    writing.finish()
    seconds = time.perf_counter() - began
    return {
        **video.to_dict(),
        "file": _file(number),
        "thumbnail": f"{number}.webp",
        "stages": {**video.stage_seconds, "encode": seconds},
        "length": len(video.frames) / fps,
    }


def _peak_memory_mb() -> float:
    """Peak memory in MB: torch's on the GPU where there is one, else that of this process."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
