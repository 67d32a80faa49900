# SPDX-License-Identifier: Apache-2.0
"""`Estimates`: predicts when jobs will be done, from the cost of their plans and the time per unit of cost so far.

A unit is a FLOP of the transformer where the plan knows its FLOPs, else a step. The other stages (encoding texts,
decoding, writing) are taken as their measured seconds per video.
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

WEIGHT = 0.3  # weight of the newest measurement in the average
FRESH_SECONDS = 0.2  # how long a computed outlook is reused


@dataclass
class _Measured:
    """Averages of one model and video size: seconds per unit of cost, and seconds per video outside denoising."""

    unit: float
    rest: float


@dataclass(frozen=True)
class Outlook:
    """How long a job still takes, and how many jobs come before it.

    Attributes:
        seconds: Seconds until the job is done; None if unknown.
        position: Number of jobs that wait before it; None if it runs.
    """

    seconds: float | None
    position: int | None


class Estimates:
    """See the module.

    Args:
        store: The jobs, of which the unfinished ones are read.
        catalogue: The models.
        workers: Number of jobs that run at a time.
    """

    def __init__(self, store: JobStore, catalogue: Catalogue, workers: int = 1) -> None:
        self._store, self._catalogue, self._workers = store, catalogue, max(1, workers)
        self._measured: dict[tuple[str, tuple[int, ...]], _Measured] = {}
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # one thread computes; the others wait and take its result
        self._seen: dict[str, Outlook] = {}
        self._seen_at = -math.inf

    def learn(self, end: End) -> None:
        """Updates the averages by a completed job."""
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
        """The outlook of every job that runs or waits, by its id; at most `FRESH_SECONDS` old.

        Computing it takes time for each job in the queue, and many clients ask for their jobs many times a second.

        Args:
            jobs: Jobs that the result must contain, unless they have ended.
        """
        with self._looking:
            fresh = time.monotonic() - self._seen_at < FRESH_SECONDS
            if not (fresh and all(job.id in self._seen for job in jobs if not job.status.is_final)):
                self._seen = self._look()
                self._seen_at = time.monotonic()
            return self._seen

    def _look(self) -> dict[str, Outlook]:
        found: dict[str, Outlook] = {}
        before: float | None = 0.0  # seconds of all earlier jobs together; None: unknown
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
        """Seconds until another job begins; 10 if unknown."""
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
        """The share of a job's cost that is done."""
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
        """Units of cost of a whole job."""
        return float(job.flops if job.flops is not None else job.steps)

    @staticmethod
    def _units_of_report(report: dict[str, object]) -> float:
        """Units of cost of one video of a completed job."""
        videos, flops, steps = report["videos"], report["flops"], report["steps"]
        assert isinstance(videos, list) and isinstance(steps, dict)
        units = float(flops) if isinstance(flops, float | int) else float(steps["computed"] + steps["reused"])
        return max(units / len(videos), 1e-9)
