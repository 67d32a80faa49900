# SPDX-License-Identifier: Apache-2.0
"""`Worker`: takes jobs from the store, one after the other, and makes their videos with the model's pipeline.

    worker = Worker(store, catalogue)
    outcome = worker.run(stop)      # a threading.Event that ends it; the running job is finished first

A job is cancelled at the next step. After an error that may be the engine's, the job fails with the reason, and a
warm-up tells whether the engine still works. If it does not, the worker returns, and whoever started it starts another
one in a new process, since a CUDA error lasts as long as its process.

A thread gives signs of life. If no step or stage has begun for a long time, it stops renewing the lease and says
"hung".
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.failures import describe_failure
from vorta_trt.serving.job import Job, LeaseLostError
from vorta_trt.serving.job_store import JobStore
from vorta_trt.serving.job_videos import make_videos
from vorta_trt.serving.loaded_models import LoadedModels
from vorta_trt.serving.settings import STALL_SECONDS
from vorta_trt.serving.tracing import record_spans
from vorta_trt.serving.worker_states import HUNG

IDLE_SECONDS = 0.01  # between two looks at an empty queue, each of which takes microseconds; see `Worker.wake`
FULL_SECONDS = 10.0  # between two looks at a full disk
logger = logging.getLogger(__name__)


class Outcome(str, Enum):
    """Why a worker's `run` returned."""

    STOPPED = "stopped"
    ENGINE_FAILED = "engine failed"
    NOT_READY = "not ready"


class _CancelledError(Exception):
    """The job is to be cancelled."""


class _StoppedError(Exception):
    """The worker is to stop at once, and its job to wait again."""


class Worker:
    """See the module.

    Args:
        store: The jobs.
        catalogue: The models.
        name: Name of this worker, which no other worker may have; None makes one.
        models: The loaded pipelines; None loads them from the catalogue.
        stall_seconds: After how long without a step or stage, while it works, the worker says that it hangs.
        wake: Event that wakes the worker, see the attribute; None makes one.

    Attributes:
        name: Name of this worker.
        wake: Event to set after a job was queued: an idle worker then looks at once, otherwise every `IDLE_SECONDS`.
        reason: Why `run` returned an outcome other than STOPPED.
        abort: Event to set to stop at the next step and return the running job to the queue.
    """

    def __init__(
        self,
        store: JobStore,
        catalogue: Catalogue,
        *,
        name: str | None = None,
        models: LoadedModels | None = None,
        stall_seconds: float = STALL_SECONDS,
        wake: threading.Event | None = None,
    ) -> None:
        self.wake = wake or threading.Event()
        self.name = name or f"worker-{os.getpid()}-{time.time_ns():x}"
        self.reason = ""
        self.abort = threading.Event()
        self._store, self._catalogue = store, catalogue
        self._models = models or LoadedModels(catalogue)
        self._state = "starting"
        self._job: Job | None = None
        self._stall_seconds = stall_seconds
        self._busy_since: float | None = None  # the last step or stage; None: there is nothing to do

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> Outcome:
        """Warms up, and then makes videos until it is stopped or the engine fails."""
        with self.ready() as is_ready:
            if not is_ready:
                return Outcome.NOT_READY
            while not (stop.is_set() or self.abort.is_set()):
                self.wake.clear()  # before the look: a job that is queued meanwhile sets it again
                try:
                    done = self.run_next()
                except WriteError as error:  # the engine stays loaded, and jobs wait
                    logger.warning("worker %s: %s", self.name, error)
                    stop.wait(FULL_SECONDS)
                    continue
                if done is None:
                    self.wake.wait(IDLE_SECONDS)
                elif not done:
                    return Outcome.ENGINE_FAILED
            return Outcome.STOPPED

    @contextmanager
    def ready(self) -> Iterator[bool]:
        """Loads the models and warms up, and gives signs of life until the block ends.

        Yields:
            Whether the warm-up succeeded; if not, `reason` says why.
        """
        with self._signs_of_life():
            try:
                yield self._warm_up()
            finally:
                self._models.close()

    def run_next(self) -> bool | None:
        """Makes the videos of the next job.

        Returns:
            Whether the engine is in order; None if no job waits.

        Raises:
            WriteError: A job waits, and the disk is full.
        """
        job = self._store.claim(self.name, self._catalogue.names)
        if job is None:
            return None
        self._job = job
        self._go_on()
        log = logging.LoggerAdapter(logger, {"job": job.id})
        log.info("started, attempt %d", job.attempt)
        try:
            return self._run(job, log)
        except LeaseLostError as error:
            log.info("%s", error)
            return True
        finally:
            self._job = self._busy_since = None

    def _run(self, job: Job, log: logging.LoggerAdapter[logging.Logger]) -> bool:
        """Runs a job; returns whether the engine still works."""
        try:
            report = self._make(job)
        except LeaseLostError:
            raise
        except _CancelledError:
            self._store.finish_cancelled(job)
            log.info("cancelled at step %d of %d", self._store.get(job.id).step, job.steps)
        except _StoppedError:
            self._store.give_back(job)
            log.info("waits again, since the worker stops")
        except Exception as error:
            code, message, in_order = describe_failure(error)
            if isinstance(error, FileNotFoundError) and not self._store.files.folder(job.id).is_dir():
                raise LeaseLostError(f"job {job.id}: was deleted") from error
            log.error("failed, %s: %s", code, message, exc_info=error)
            self._store.fail(job, code, message)
            if in_order and not self._models.is_over(job.model):
                return True
            return self._is_in_order(job.model, message, log)
        else:
            self._store.complete(job, report)
            record_spans(job, report)
            log.info("completed in %.1f s", report["seconds"])
        return True

    def _is_in_order(self, model: str, message: str, log: logging.LoggerAdapter[logging.Logger]) -> bool:
        """Whether the engine makes a short video after an error; if not, `reason` says why."""
        self._job = None  # it has ended
        self._go_on()
        try:
            self._models.check(model, self._go_on)
        except Exception as error:
            self.reason = f"{message}; then the warm-up failed: {describe_failure(error)[1]}"
            log.error("the engine failed: %s", self.reason, exc_info=error)
            self._say("failed")
            return False
        log.info("the engine is in order: a short video was made after the error")
        return True

    # -- a job ---------------------------------------------------------------------------------------------------------

    def _make(self, job: Job) -> dict[str, Any]:
        """Makes the videos of a job in its folder; returns the report."""
        began = time.time()

        def tell(stage: str, step: int | None) -> None:
            self._go_on()
            if self.abort.is_set():
                raise _StoppedError
            try:
                cancelling = self._store.report_progress(job, stage=stage, step=step)
            except WriteError:  # there may be space again when the video is done
                return
            if cancelling:
                raise _CancelledError

        tell("loading the model", None)
        return make_videos(job, self._models.get(job.model), self._store.files, tell, began)

    # -- readiness -----------------------------------------------------------------------------------------------------

    def _warm_up(self) -> bool:
        self._go_on()
        try:
            self._models.warm_up(self._go_on)
        except Exception as error:
            self.reason = describe_failure(error)[1]
            logger.error("worker %s: the warm-up failed: %s", self.name, self.reason, exc_info=error)
            self._say("failed")
            return False
        finally:
            self._busy_since = None
        self._say("ready")
        return True

    def _go_on(self) -> None:
        """Notes that a step or stage begins."""
        self._busy_since = time.monotonic()

    @property
    def hangs(self) -> bool:
        """Whether no step or stage has begun for a long time, though there is work."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > self._stall_seconds

    def _say(self, state: str | None = None) -> None:
        self._state = state or self._state
        detail = {"engines": self._models.engines(), "gpu_memory_bytes": _gpu_memory(), "reason": self.reason}
        try:
            self._store.say(self.name, self._state, detail)
        except WriteError as error:  # it tries again, and no worker counts as dead while the disk is full
            logger.warning("worker %s: no sign of life (%s)", self.name, error)

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Renews the lease of the running job, and the worker's state, in a thread."""
        over = threading.Event()

        def live() -> None:
            while not over.wait(self._store.lease_seconds / 4):
                try:
                    if self.hangs:
                        reason = f"no step or stage has begun for {self._stall_seconds:g} s: the engine hangs"
                        self._store.say(self.name, HUNG, {"reason": reason})
                        continue
                    self._say()
                    if (job := self._job) is not None:
                        self._store.report_progress(job)
                except LeaseLostError:
                    continue  # the next step finds it
                except Exception as error:
                    logger.warning("worker %s: no sign of life (%s)", self.name, error)

        self._say()
        thread = threading.Thread(target=live, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self._state != "failed":
                with suppress(WriteError):  # it is forgotten after three leases
                    self._store.forget_worker(self.name)


def _gpu_memory() -> int | None:
    """Bytes of this GPU that are in use; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
