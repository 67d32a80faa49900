# SPDX-License-Identifier: Apache-2.0
"""`serve`: the server of `vorta-trt serve`: the web application in this process, each worker in a process of its own.

SIGTERM or Ctrl-C drains the server: it takes no new jobs and finishes those that run, and clients can poll and fetch
jobs until then. Jobs that wait are kept for the next start. A second signal returns the running jobs to the queue at
their next step.
"""

from __future__ import annotations

import gc
import logging
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from types import FrameType

import uvicorn

from vorta_trt.serving.app import create_app
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.connections import MOST_CONNECTIONS, Connection
from vorta_trt.serving.settings import ServeSettings
from vorta_trt.serving.worker_gpus import check_engines_have_a_gpu, check_gpus_of_workers
from vorta_trt.serving.worker_process import WorkerProcesses, open_store

BACKLOG = 512
SWITCH_SECONDS = 0.0005  # after which a thread gives up the interpreter, by default 5 ms: answers wait for it
IDLE_SECONDS = 30  # of a connection between two requests
LAST_ANSWERS_SECONDS = 10  # for downloads, when the server ends
logger = logging.getLogger(__name__)


def serve(
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    debug: bool = False,
    as_json: bool = True,
    on_start: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until it is told to stop.

    Args:
        settings: Settings of the server.
        host: The address to listen at.
        port: The port; 0 is any free one.
        debug: Log everything.
        as_json: Log JSON.
        on_start: Called with the server's URL when it listens.

    Raises:
        JobError: Another server has the folder of jobs.
        ValueError, OSError: A model cannot be read, there are too few GPUs, or the port is taken.
        VortaError: A model is a TensorRT engine, and there is no GPU.
    """
    _allow_open_files(4 * MOST_CONNECTIONS)
    catalogue = Catalogue(settings.models)  # finds errors before the folder of jobs is made
    check_engines_have_a_gpu(catalogue)
    check_gpus_of_workers(catalogue, settings.workers)
    with listen(host, port) as listening, closing(open_store(settings, exclusive=True)) as store:
        # The workers of these jobs belonged to an earlier server, and ended with it.
        for job in store.take_back(everyone=True):
            logger.warning("its server ended: %s", job.status.value, extra={"job": job.id})
        store.sweep()
        workers = WorkerProcesses(settings, store, gpus=catalogue.gpus, debug=debug, as_json=as_json)
        draining = threading.Event()
        app = create_app(settings, store, catalogue, draining=draining, on_queued=workers.wake)
        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()  # a collection of all that is loaded by now takes 0.4 s, in which nobody is answered
        server = _Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                server_header=False,
                http=Connection,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
                h11_max_incomplete_event_size=1 << 16,
            ),
            workers,
            draining,
            on_start,
        )
        try:
            server.run(sockets=[listening])
        finally:
            workers.abort()
            workers.join()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        ValueError: The address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once (TCP_NODELAY) where a socket names its protocol; else each waits 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        return listening
    except OSError as error:
        listening.close()
        raise ValueError(f"host {host}, port {port}: {error.strerror or error}; give others") from error


def _allow_open_files(number: int) -> None:
    """Raises this process's limit of open files: each connection is one, and the usual 1024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        most = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class _Server(uvicorn.Server):
    """uvicorn's server, which starts workers, and drains them before it ends."""

    def __init__(
        self,
        config: uvicorn.Config,
        workers: WorkerProcesses,
        draining: threading.Event,
        on_start: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._workers, self._draining, self._on_start = workers, draining, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started or not sockets:
            return
        self._workers.start()
        host, port = sockets[0].getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        logger.info("listens at %s", url)
        self._on_start(url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining.is_set():
            logger.warning("stops at the next step; jobs that run will wait for the next start")
            self._workers.abort()
            return
        self._draining.set()
        logger.warning("%s: finishes the jobs that run, and takes no new ones", signal.Signals(sig).name)
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self._workers.drain()
        self._workers.join()
        self.should_exit = True
