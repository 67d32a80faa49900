# SPDX-License-Identifier: Apache-2.0
"""A worker in a process of its own, and `WorkerProcesses`, which starts and restarts workers.

A CUDA error, a leak or a hang does not reach beyond its process. The server's own process makes no videos, and answers
at once whatever the workers do. A worker ends with its server, however that ends: it watches its standard input, whose
other end the server holds. What the server writes there means that a job was queued.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from vorta_trt.model.write_errors import WriteError
from vorta_trt.serving.job_store import JobStore
from vorta_trt.serving.settings import ServeSettings
from vorta_trt.serving.worker_gpus import gpus_of
from vorta_trt.serving.worker_states import HUNG, WorkerState

ENGINE_FAILED, NOT_READY, ORPHAN = 70, 71, 72  # exit codes
LONGEST_PAUSE_SECONDS = 60.0  # before a worker that keeps ending is started again
LOOK_SECONDS = 1.0  # between two looks at a worker
SILENT_LEASES = 2  # a worker is killed after so many leases without a sign of life
NICE = 5  # the server answers first where processors are few
logger = logging.getLogger(__name__)


def main() -> int:
    """Runs one worker. Arguments: its settings as JSON, its name, and two flags, to log everything and to log JSON."""
    settings, name = ServeSettings.model_validate_json(sys.argv[1]), sys.argv[2]
    debug, as_json = sys.argv[3] == "1", sys.argv[4] == "1"
    wake = threading.Event()
    threading.Thread(target=_hear_server, args=(wake,), name="server", daemon=True).start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server, which signals its workers
    os.nice(NICE)

    from vorta_trt.serving.catalogue import Catalogue
    from vorta_trt.serving.failures import describe_failure
    from vorta_trt.serving.logs import set_up_logs
    from vorta_trt.serving.tracing import set_up_tracing
    from vorta_trt.serving.worker import Outcome, Worker

    set_up_logs(debug, as_json=as_json)
    store = open_store(settings)
    try:
        catalogue = Catalogue(settings.models)
    except Exception as error:  # a file is gone that was there when the server started
        logger.error("worker %s: %s", name, error)
        with suppress(WriteError):
            store.say(name, "failed", {"reason": describe_failure(error)[1]})
        return NOT_READY
    worker = Worker(store, catalogue, name=name, stall_seconds=settings.stall_seconds, wake=wake)
    signal.signal(signal.SIGUSR1, lambda *_: worker.abort.set())
    end_tracing = set_up_tracing()
    outcome = worker.run(stop)
    store.close()
    end_tracing()
    return {Outcome.STOPPED: 0, Outcome.ENGINE_FAILED: ENGINE_FAILED, Outcome.NOT_READY: NOT_READY}[outcome]


def open_store(settings: ServeSettings, *, exclusive: bool = False) -> JobStore:
    """The job store that settings describe."""
    return JobStore(
        settings.jobs,
        exclusive=exclusive,
        most_queued=settings.most_queued,
        most_per_user=settings.limit_per_user,
        keep_seconds=settings.keep_seconds,
        lease_seconds=settings.lease_seconds,
        most_attempts=settings.most_attempts,
    )


def _hear_server(wake: threading.Event) -> None:
    """Sets `wake` when the server says that a job was queued, and ends this process when the server is gone."""
    while os.read(0, 4096):
        wake.set()
    os._exit(ORPHAN)


class WorkerProcesses:
    """The workers of a server.

    A worker that ended, for whatever reason, is started again, after pauses that grow as long as it makes no video. The
    store says why it ended until the next one is ready. A worker that hangs is killed: one that says so, or one that
    gives no sign of life, for two leases while it works, or for `stall_seconds` while it starts.

    Args:
        settings: Settings of the server.
        store: Jobs of the server.
        gpus: Number of GPUs that each worker has.
        debug: Whether workers log everything.
        as_json: Whether workers log JSON.
        command: Command that runs a worker; settings, name and flags are appended.
    """

    def __init__(
        self,
        settings: ServeSettings,
        store: JobStore,
        *,
        gpus: int = 1,
        debug: bool = False,
        as_json: bool = True,
        command: Sequence[str] = (sys.executable, "-m", "vorta_trt.serving.worker_process"),
    ) -> None:
        self._command = command
        self._settings, self._store, self._gpus = settings, store, gpus
        self._flags = [str(int(debug)), str(int(as_json))]
        self._stopping = threading.Event()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._keep, args=(number,), name=f"worker {number}", daemon=True)
            for number in range(settings.workers)
        ]

    def start(self) -> None:
        """Starts all workers."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Makes idle workers look for a new job at once. Never waits; a worker that misses it finds the job later."""
        with self._lock:
            for process in self._processes.values():
                assert process.stdin is not None
                with suppress(BlockingIOError, BrokenPipeError):  # it hangs, or has just ended
                    os.write(process.stdin.fileno(), b"\n")

    def drain(self) -> None:
        """Lets each worker finish its job, and take no more."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def abort(self) -> None:
        """Lets each worker stop at its next step; its job waits for the next start of the server."""
        self._stopping.set()
        self._signal(signal.SIGUSR1)

    def join(self, timeout: float | None = None) -> bool:
        """Waits until all workers have ended; returns whether they have."""
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def process_ids(self) -> Sequence[int]:
        """Process ids of the running workers."""
        with self._lock:
            return [process.pid for process in self._processes.values()]

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            for process in self._processes.values():
                process.send_signal(number)

    def _keep(self, number: int) -> None:
        """Runs one worker, again and again."""
        failures = 0  # since the last video
        reason: str | None = None  # why the last one ended
        while not self._stopping.is_set():
            name = f"worker-{number}-{os.getpid()}-{time.time_ns():x}"
            made = False
            try:
                ended = self._store.last_end()
                code, why = self._run(number, name, reason)
                reason = why or self._reason_of(name, code)
                for job in self._store.take_back(worker=name):
                    logger.warning("%s; the job is %s", reason, job.status.value, extra={"job": job.id})
                self._store.forget_worker(name)
                made = any(
                    end.worker == name and end.report is not None for end in self._store.ends_after(ended, limit=10_000)
                )
            except Exception as error:  # the job database fails, or there is no memory for a process
                reason = f"{type(error).__name__}: {error}"
            if self._stopping.is_set():
                break
            failures = 1 if made else failures + 1
            pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(failures - 1, 30))
            logger.error("worker %s ended (%s); it is started again in %g s", name, reason, pause)
            self._pause(number, reason, pause)
        with suppress(Exception):
            self._store.forget_worker(_kept(number))

    def _pause(self, number: int, reason: str, seconds: float) -> None:
        """Waits, while the store says why there is no worker."""
        end = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
            self._tell(number, reason)
            self._stopping.wait(min(left, self._settings.lease_seconds))

    def _tell(self, number: int, reason: str) -> None:
        try:
            self._store.say(_kept(number), "failed", {"reason": reason})
        except Exception as error:
            logger.warning("worker %d: %s", number, error)

    def _run(self, number: int, name: str, reason: str | None) -> tuple[int, str | None]:
        """Runs a worker until it ends; returns its exit code, and why it was killed here."""
        settings = self._settings.model_copy(update={"api_keys": ()})  # everybody may read a process's arguments
        command = [*self._command, settings.model_dump_json(), name, *self._flags]
        environment = {**os.environ, **gpus_of(settings, number, self._gpus)}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with self._lock:
            self._processes[number] = process
        if self._stopping.is_set():  # it was set before the process could be told
            process.terminate()
        why = self._watch(process, number, name, reason)
        code = process.wait()
        with self._lock:
            del self._processes[number]
        process.stdin.close()
        return code, why

    def _watch(self, process: subprocess.Popen[bytes], number: int, name: str, reason: str | None) -> str | None:
        """Waits until a worker ends. If it hangs, kills it and returns why.

        Args:
            process: Process of the worker.
            number: Number of the worker.
            name: Name of the worker.
            reason: Why the worker before ended, which the store says until this one is ready.
        """
        heard, told = time.monotonic(), -math.inf
        while True:
            try:
                process.wait(min(LOOK_SECONDS, self._settings.lease_seconds / 4))
                return None
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            try:
                state = next((each for each in self._store.workers() if each.name == name), None)
                heard = heard if state is None else max(heard, now - state.age)
                if self._store.is_short_of_space:
                    heard = now  # no worker can give a sign of life
                if state is not None and state.state == "ready" and reason is not None:
                    reason = None
                    self._store.forget_worker(_kept(number))
            except Exception as error:
                logger.warning("worker %s: cannot be watched (%s)", name, error)
                heard = now
                continue
            if reason is not None and now - told > self._settings.lease_seconds:
                told = now
                self._tell(number, reason)
            if (why := self._fault(state, now - heard)) is not None:
                logger.error("worker %s is killed: %s", name, why)
                process.kill()
                return why

    def _fault(self, state: WorkerState | None, silent: float) -> str | None:
        """Why a worker has to be killed; None if it does not."""
        if state is not None and state.state == HUNG:
            return str(state.detail["reason"])
        works = state is not None and state.state != "starting"
        limit = SILENT_LEASES * self._settings.lease_seconds if works else self._settings.stall_seconds
        return f"the worker gave no sign of life for {limit:g} s" if silent > limit else None

    def _reason_of(self, name: str, code: int) -> str:
        """Why a worker ended."""
        known = [worker for worker in self._store.workers() if worker.name == name and worker.state == "failed"]
        return str(known[0].detail["reason"]) if known else f"the worker ended ({_ended(code)})"


def _kept(number: int) -> str:
    """The name under which the store says why there is no worker."""
    return f"no-worker-{number}"


def _ended(code: int) -> str:
    """How a process ended, in words."""
    if code == ENGINE_FAILED:
        return "its engine failed"
    if code == NOT_READY:
        return "its warm-up failed"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
