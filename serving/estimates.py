# SPDX-License-Identifier: Apache-2.0
"""`Estimates`: when jobs will be done: the plan's predicted cost, times what a unit of cost took so far.

A unit is a FLOP of the transformer where the plan knows them, else a step. What is not denoising (texts, decoding,
writing) counts as it was measured, by the video.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vorta_trt.model.video_size import VideoSize
from vorta_trt.serving.accepted import Accepted
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.job import Job, Status
from vorta_trt.serving.job_rows import End
from vorta_trt.serving.job_store import JobStore

WEIGHT = 0.3  # of the newest measurement in the average
FRESH_SECONDS = 0.2  # for which an outlook is told to everyone who asks


@dataclass
class _Measured:
    """Averages of one model and size: seconds of a unit, and seconds of a video beside denoising."""

    unit: float
    rest: float


@dataclass(frozen=True)
class Outlook:
    """What is ahead of a job.

    Attributes:
        seconds: Until it is done; None if nobody knows.
        position: How many jobs wait before it; None if it runs.
    """

    seconds: float | None
    position: int | None


class Estimates:
    """See the module.

    Args:
        store: The jobs, of which the latest ends are read.
        catalogue: The models.
        workers: How many jobs run at a time.
    """

    def __init__(self, store: JobStore, catalogue: Catalogue, workers: int = 1) -> None:
        self._store, self._catalogue, self._workers = store, catalogue, max(1, workers)
        self._measured: dict[tuple[str, tuple[int, ...]], _Measured] = {}
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # others wait for who looks, and take what that one found
        self._seen: dict[str, Outlook] = {}
        self._seen_at = -math.inf

    def learn(self, end: End) -> None:
        """Takes in how long a job took."""
        if end.status is not Status.COMPLETED or end.report is None:
            return
        for video in end.report["videos"]:
            units = self._units_of_report(end.report)
            denoise = video["stages"].get("denoise", 0.0)
            rest = sum(seconds for stage, seconds in video["stages"].items() if stage != "denoise")
            key = end.model, tuple(video["size"])
            with self._lock:
                known = self._measured.setdefault(key, _Measured(denoise / units, rest))
                known.unit += WEIGHT * (denoise / units - known.unit)
                known.rest += WEIGHT * (rest - known.rest)

    def outlook(self, *jobs: Job) -> Mapping[str, Outlook]:
        """What is ahead of every job that runs or waits, by its id; as it was at most `FRESH_SECONDS` ago.

        To look takes a while for each job in the queue, and many clients ask for their jobs many times a second.

        Args:
            jobs: That must be in it if they are not over.
        """
        with self._looking:
            fresh = time.monotonic() - self._seen_at < FRESH_SECONDS
            if not (fresh and all(job.id in self._seen for job in jobs if not job.status.is_final)):
                self._seen = self._look()
                self._seen_at = time.monotonic()
            return self._seen

    def _look(self) -> dict[str, Outlook]:
        found: dict[str, Outlook] = {}
        before: float | None = 0.0  # seconds of all jobs before the one that is looked at; None: unknown
        waiting = 0
        for job in self._store.unfinished():
            runs = job.status is Status.IN_PROGRESS
            own = self._left_of_running(job) if runs else self._whole(job)
            if runs:
                found[job.id] = Outlook(own, None)
            else:
                ahead = None if before is None or own is None else before / self._workers + own
                found[job.id] = Outlook(ahead, waiting)
                waiting += 1
            before = None if before is None or own is None else before + own
        return found

    def until_free(self) -> float:
        """Seconds until another job begins; 10 where nobody knows."""
        running = [each.seconds for each in self.outlook().values() if each.position is None]
        return min((seconds for seconds in running if seconds is not None), default=10.0)

    def _whole(self, job: Job) -> float | None:
        measured = self._of(job)
        count = int(job.request["n"])
        return None if measured is None else self._units(job) * measured.unit + count * measured.rest

    def _left_of_running(self, job: Job) -> float | None:
        measured = self._of(job)
        if measured is None:
            return None
        count = int(job.request["n"])
        each = job.steps // count
        videos_left = count - job.step // max(1, each)
        return self._units(job) * (1 - self._share_done(job)) * measured.unit + max(0, videos_left) * measured.rest

    def _share_done(self, job: Job) -> float:
        """The share of a job's cost that is behind it."""
        accepted = Accepted.from_dict(job.request)
        each = max(1, job.steps // accepted.n)
        whole, step = divmod(job.step, each)
        cost = self._catalogue.get(job.model).plan(accepted.params, accepted.size).steps.cost
        if cost is None:
            return job.step / max(1, job.steps)
        shares = [cost.share(number) for number in range(each)]
        return float(min(1.0, (whole + sum(shares[:step]) / max(sum(shares), 1e-9)) / accepted.n))

    def _of(self, job: Job) -> _Measured | None:
        size = VideoSize.parse(job.request["size"])
        with self._lock:
            return self._measured.get((job.model, (size.frames, size.height, size.width)))

    @staticmethod
    def _units(job: Job) -> float:
        """Of the whole job."""
        return float(job.flops if job.flops is not None else job.steps)

    @staticmethod
    def _units_of_report(report: dict[str, object]) -> float:
        """Of one of its videos."""
        videos, flops, steps = report["videos"], report["flops"], report["steps"]
        assert isinstance(videos, list) and isinstance(steps, dict)
        units = float(flops) if isinstance(flops, float | int) else float(steps["computed"] + steps["reused"])
        return max(units / len(videos), 1e-9)
