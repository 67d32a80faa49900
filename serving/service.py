# SPDX-License-Identifier: Apache-2.0
"""`Service`: what the routes of the application share: jobs, models, limits, estimates, and whether it is ready."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi.concurrency import run_in_threadpool

from vorta_trt.serving.access import Access
from vorta_trt.serving.api_errors import ApiError
from vorta_trt.serving.bodies import Body, read_body
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.estimates import Estimates, Outlook
from vorta_trt.serving.job import Job, NewJob, QueueFullError, Status
from vorta_trt.serving.job_store import JobStore
from vorta_trt.serving.remote_images import RemoteImages
from vorta_trt.serving.settings import ServeSettings
from vorta_trt.serving.video_view import VideoObject, view
from vorta_trt.serving.worker_states import HUNG

MOST_KEY = 255  # letters of an idempotency key
MOST_DECODED = 2  # requests whose images are decoded at a time
MOST_UNDECODED = 32  # requests that wait for decoding
NOTHING = Outlook(None, None)  # the outlook of a job that has ended
logger = logging.getLogger(__name__)


@dataclass
class Service:
    """See the module.

    Attributes:
        settings: Settings of the server.
        store: The jobs.
        catalogue: The models.
        draining: Set while the server stops: jobs that run go on, and no new ones are taken.
        on_queued: Called after a job was queued.
        access: Checks who may use the server.
        estimates: Predicts when jobs will be done.
        remote: Fetches images from allowed hosts.
    """

    settings: ServeSettings
    store: JobStore
    catalogue: Catalogue
    draining: threading.Event = field(default_factory=threading.Event)
    on_queued: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.access = Access(self.settings.api_keys, self.settings.hosts)
        self.estimates = Estimates(self.store, self.catalogue, self.settings.workers)
        self.remote = RemoteImages(self.settings.image_hosts, self.settings.most_upload_bytes)
        self._decoding = CapacityLimiter(MOST_DECODED)

    async def ask(self, values: Mapping[str, Any], form: bool, user: str, key: str | None) -> Job:
        """Queues what a client sent, if its model can run it; see `read_values` and `JobStore.create`.

        Everything cheap is checked before an image is decoded, and only a few requests decode images at a time.

        Args:
            values: Fields that `read_values` returned.
            form: Whether the body is a form, as `read_values` returned.
            user: User who sent the request.
            key: Idempotency key, or None.

        Raises:
            ApiError, RequestError: The request is refused.
        """
        body = await run_in_threadpool(self._read, values, form, key)
        if not body.images:
            return await run_in_threadpool(self._create, body, user, key)
        if self._decoding.statistics().tasks_waiting >= MOST_UNDECODED:
            raise ApiError(503, "too many images are being read; try again", "busy", retry_after=5)
        return await to_thread.run_sync(self._create, body, user, key, limiter=self._decoding)

    def check_open(self) -> None:
        """Raises ApiError while the server stops."""
        if self.draining.is_set():
            raise ApiError(503, "the server stops; ask again when it is back", "draining", retry_after=10)

    def _read(self, values: Mapping[str, Any], form: bool, key: str | None) -> Body:
        self.check_open()
        if key is not None and not (0 < len(key) <= MOST_KEY and key.isprintable()):
            raise ApiError(
                400,
                f"Idempotency-Key: must have 1 to {MOST_KEY} printable letters",
                "invalid_value",
                field="Idempotency-Key",
            )
        body = read_body(values, form, self.settings.most_image_pixels, self.remote)
        request = body.request
        if request.n > self.settings.most_videos:
            raise ApiError(
                400,
                f"n {request.n}: no more than {self.settings.most_videos} videos are made at once",
                "invalid_value",
                field="n",
            )
        self.catalogue.get(request.model).check(request, body.images.keys())
        return body

    def _create(self, body: Body, user: str, key: str | None) -> Job:
        accepted = self.catalogue.accept(body.request, {name: image.load() for name, image in body.images.items()})
        model = self.catalogue.get(accepted.model)
        planned = model.plan(accepted.params, accepted.size)
        flops = model.flops(planned)
        values = {
            **accepted.to_dict(),
            "images": {name: f"{name}.{image.suffix}" for name, image in body.images.items()},
        }
        meant = values | {
            f"sha256 {name}": hashlib.sha256(image.content).hexdigest() for name, image in body.images.items()
        }
        new = NewJob(
            user,
            accepted.model,
            values,
            len(planned.schedule.timesteps) * accepted.n,
            None if flops is None else flops * accepted.n,
            key,
            hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest(),
        )
        try:
            job, is_new = self.store.create(
                new, {values["images"][name]: image.content for name, image in body.images.items()}
            )
        except QueueFullError as error:
            raise ApiError(429, str(error), "queue_full", retry_after=self.estimates.until_free()) from None
        if is_new:
            self.on_queued()
            logger.info("queued", extra={"job": job.id})
        return job

    def view(self, job: Job) -> VideoObject:
        """What a client sees of a job."""
        return self.views([job])[0]

    def views(self, jobs: Sequence[Job]) -> list[VideoObject]:
        """What a client sees of jobs."""
        over = all(job.status.is_final for job in jobs)
        ahead = {} if over else self.estimates.outlook(*jobs)
        looks = [NOTHING if job.status.is_final else ahead.get(job.id, NOTHING) for job in jobs]
        return [
            view(job, eta=look.seconds, position=look.position if job.status is Status.QUEUED else None)
            for job, look in zip(jobs, looks, strict=True)
        ]

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether videos can be made now, and why or why not."""
        workers, lease = self.store.workers(), self.store.lease_seconds
        ready = [worker for worker in workers if worker.state == "ready" and worker.age < lease]
        reasons = [str(worker.detail["reason"]) for worker in workers if worker.state in ("failed", HUNG)]
        silent = [worker for worker in workers if worker.state == "ready" and worker.age >= lease]
        reasons += [f"a worker has given no sign of life for {worker.age:.0f} s" for worker in silent]
        if self.draining.is_set():
            return False, {"status": "draining"}
        if ready:
            return True, {"status": "ready", "workers": len(ready)}
        if self.store.is_short_of_space:
            reasons = ["the disk is full, so jobs wait until there is space"]
        return False, {"status": "failed", "reasons": reasons} if reasons else {"status": "starting"}
