# SPDX-License-Identifier: Apache-2.0
"""Ray Serve: the application of `vorta-trt serve` as ingress, and replicas that make the videos; see docs/ray.md.

    serve run deploy/ray.yaml

Jobs are in the job store, a folder of the machine, and not in Ray. The ingress sends the replicas one call for every
unfinished job, so that Ray's queue, by which it scales, is as long as the store's. A replica that gets a call takes the
next job from the store. When a replica is lost, its job goes back to the store's queue, or fails with a reason after as
many attempts as the settings allow, and the ingress sends another call.

This module has no `from __future__ import annotations`: Ray Serve looks at the type of the argument of `build`.
"""

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.job import Status
from vorta_trt.serving.job_store import JobStore
from vorta_trt.serving.ray_resources import ReplicaResources, machines_of_cluster
from vorta_trt.serving.settings import ModelSettings, ServeSettings
from vorta_trt.serving.worker import FULL_SECONDS, Worker
from vorta_trt.serving.worker_process import ENGINE_FAILED, open_store

INGRESS, REPLICAS = "Ingress", "Replica"  # names of the deployments
LOOK_SECONDS = 0.25  # between two counts of the unfinished jobs
SUSPICION_SECONDS = 10.0  # how long to look for dead processes after a lost call: a killed one takes a while
logger = logging.getLogger(__name__)


class RaySettings(ServeSettings):
    """What a server on Ray is started with: `args` of the configuration file."""

    gpus: float | None = Field(default=None, ge=0)
    """GPUs of a replica, which make every video together. None: as many as the bundle is built for. A fraction shares
    one GPU with other replicas. 0 runs exported ONNX files on the CPU, in as many processes as the model's `gpus`."""
    cpus: float = Field(default=1, ge=0)
    """Processors that Ray counts for a replica."""
    min_replicas: int = Field(default=1, ge=1)
    """Replicas that are always there."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas that there are at most, when more jobs wait."""
    upscale_seconds: float = Field(default=10, ge=0)
    """How long jobs must wait before a replica is added."""
    downscale_seconds: float = Field(default=600, ge=0)
    """How long a replica must be idle before it is removed."""
    drain_seconds: float = Field(default=1800, gt=0)
    """How long a replica that is being removed may take to finish its job."""

    @model_validator(mode="after")
    def _check_replica(self) -> "RaySettings":
        if self.gpus is None or self.gpus == 0:
            return self
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus {self.gpus:g}: must be whole above 1; parts of a GPU are below it")
        for model in self.models:
            if model.gpus not in (None, self.ranks):
                raise ValueError(
                    f"gpus {self.gpus:g} of a replica, and {model.gpus} of model {model.name}: give it once"
                )
        return self

    @property
    def ranks(self) -> int | None:
        """How many processes of a replica make a video together; None: as many as the model says, or is built for."""
        return max(1, int(self.gpus)) if self.gpus else None

    @property
    def models_of_replica(self) -> tuple[ModelSettings, ...]:
        """The models, with the GPUs of a replica."""
        if self.ranks is None:
            return self.models
        return tuple(model.model_copy(update={"gpus": self.ranks}) for model in self.models)


class Replica:
    """Makes the videos of one job at a time.

    Args:
        settings: Settings of the server.

    Raises:
        RuntimeError: The warm-up failed; the message says why.
    """

    def __init__(self, settings: RaySettings) -> None:
        self._thread = ThreadPoolExecutor(1)  # the only thread that uses the engines
        self._open = ExitStack()
        self._thread.submit(self._start, settings).result()

    async def work(self) -> None:
        """Takes the next job of the store, if there is one."""
        try:
            in_order = await asyncio.get_running_loop().run_in_executor(self._thread, self._worker.run_next)
        except WriteError as error:  # the engine stays loaded, and jobs wait
            logger.warning("worker %s: %s", self._worker.name, error)
            await asyncio.sleep(FULL_SECONDS)
            return
        if in_order is False:  # a CUDA error lasts as long as its process
            logger.error("the engine failed, and this replica ends: %s", self._worker.reason)
            os._exit(ENGINE_FAILED)

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if self._worker.hangs:
            raise RuntimeError(f"worker {self._worker.name}: no step or stage has begun for too long; it hangs")

    def __del__(self) -> None:
        self._thread.submit(self._open.close).result()

    def _start(self, settings: RaySettings) -> None:
        store = open_store(settings)
        self._open.callback(store.close)
        self._worker = Worker(
            store,
            Catalogue(settings.models),
            name=f"ray-{os.getpid()}-{os.urandom(4).hex()}",
            stall_seconds=settings.stall_seconds,
        )
        if not self._open.enter_context(self._worker.ready()):
            raise RuntimeError(f"the warm-up failed: {self._worker.reason}")


class Ingress:
    """Sends the calls to the replicas.

    Args:
        settings: Settings of the server.
        replicas: Ray Serve's handle of the replicas.
    """

    def __init__(self, settings: RaySettings, replicas: Any) -> None:
        self._store, self._replicas = open_store(settings), replicas
        self._calls: set[asyncio.Task[None]] = set()
        self._suspicious_until = time.monotonic() + SUSPICION_SECONDS  # an earlier server may have left some, too
        self._dispatcher = asyncio.create_task(self._dispatch())  # Ray's own `__init__` runs in the event loop

    async def _dispatch(self) -> None:
        while True:
            try:
                if time.monotonic() < self._suspicious_until:
                    await asyncio.to_thread(take_back_of_dead, self._store)
                counts = await asyncio.to_thread(self._store.counts)
                unfinished = sum(counts.get(status, 0) for status in (Status.QUEUED, Status.IN_PROGRESS))
                for _ in range(unfinished - len(self._calls)):
                    call = asyncio.create_task(self._call())
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
            except Exception as error:
                logger.error("the jobs cannot be looked at: %s", error, exc_info=error)
            await asyncio.sleep(LOOK_SECONDS)

    async def _call(self) -> None:
        try:
            await self._replicas.work.remote()
        except Exception as error:
            logger.warning("a replica is lost: %s", error)
            self._suspicious_until = time.monotonic() + SUSPICION_SECONDS


def take_back_of_dead(store: JobStore) -> None:
    """Requeues the jobs of workers whose processes are gone, without waiting for the end of their leases."""
    for worker in store.workers():
        if not is_alive(worker.process):
            for job in store.take_back(worker=worker.name):
                logger.warning("its replica is lost: %s", job.status.value, extra={"job": job.id})
            store.forget_worker(worker.name)


def is_alive(process: int) -> bool:
    """Whether a process runs. A zombie, which has ended but was not waited for, does not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def build(settings: RaySettings) -> Any:
    """Builds the Ray Serve application; `import_path` of a configuration file names this function.

    Raises:
        ValueError: The GPUs do not suit the model, or the Ray that this process is connected to has too few of them.
    """
    import ray
    from ray import serve

    models = settings.models_of_replica
    gpus = Catalogue(models).gpus
    replica = ReplicaResources(gpus if settings.gpus is None else settings.gpus, settings.cpus)
    if ray.is_initialized():
        replica.check(machines_of_cluster(), settings.min_replicas)
    # Waiting times are estimated by the number of workers.
    settings = settings.model_copy(update={"models": models, "workers": settings.max_replicas})

    def application() -> Any:  # in the ingress' process
        from vorta_trt.serving.app import create_app

        return create_app(settings, open_store(settings, exclusive=True), Catalogue(settings.models))

    replicas = serve.deployment(
        Replica,
        name=REPLICAS,
        max_ongoing_requests=1,
        **replica.options(),
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": max(settings.min_replicas, settings.max_replicas),
            "target_ongoing_requests": 1,  # calls per replica
            "upscale_delay_s": settings.upscale_seconds,
            "downscale_delay_s": settings.downscale_seconds,
        },
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    ingress = serve.deployment(
        serve.ingress(application)(Ingress), name=INGRESS, num_replicas=1, ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(settings, replicas.bind(settings))
