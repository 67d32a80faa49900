# SPDX-License-Identifier: Apache-2.0
"""`create_app`: the web application over a job store and a catalogue; it makes no videos itself.

uvicorn.run(create_app(settings, store, catalogue))
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from vorta_trt.serving import api_errors
from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.guard import Guard
from vorta_trt.serving.job_store import JobStore
from vorta_trt.serving.metrics import Metrics
from vorta_trt.serving.page.routes import page_router
from vorta_trt.serving.service import Service
from vorta_trt.serving.settings import ServeSettings
from vorta_trt.serving.videos_api import videos_router

LOOK_SECONDS = 1.0  # between two checks for lost workers and for jobs that ended
EXPIRE_SECONDS = 60.0
FORM_BYTES = 1 << 16  # bytes that the form's encoding adds to an upload
NO_UPLOAD = dict.fromkeys(("/login", "/logout"), 1 << 13)  # largest body in bytes, by path; no API key is needed
logger = logging.getLogger(__name__)


def create_app(
    settings: ServeSettings,
    store: JobStore,
    catalogue: Catalogue,
    *,
    draining: threading.Event | None = None,
    on_queued: Callable[[], None] = lambda: None,
    workers: Callable[[str], bool] = lambda name: True,
) -> FastAPI:
    """The application.

    Args:
        settings: Settings of the server.
        store: The jobs; workers take them from there.
        catalogue: The models.
        draining: Event to set when the server stops: new jobs are refused then, and everything else goes on.
        on_queued: Called in any thread after a job was queued.
        workers: Tells by a worker's name whether its jobs count in this application's metrics. Where several
            applications share a store, each counts the jobs of its own workers.
    """
    service = Service(settings, store, catalogue, draining or threading.Event(), on_queued)
    metrics = Metrics(service, workers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        keeping = asyncio.create_task(_keep_house(service, metrics, stopping))
        yield
        stopping.set()
        await keeping

    app = FastAPI(
        title="vorta-trt",
        description="Videos from prompts and images, after OpenAI's video API.",
        lifespan=lifespan,
        responses=api_errors.RESPONSES,
        docs_url=None,  # these pages would load scripts from other servers
        redoc_url=None,
    )
    app.state.service = service
    api_errors.install(app)

    app.add_middleware(
        Guard, access=service.access, most_bytes=settings.most_upload_bytes + FORM_BYTES, less_bytes=NO_UPLOAD
    )

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is alive."""
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"model": dict[str, Any], "description": "Not ready, and why"}})
    def ready() -> JSONResponse:
        """Whether videos can be made: a model is loaded, and its warm-up gave finite values."""
        is_ready, why = service.readiness()
        return JSONResponse(why, 200 if is_ready else 503)

    @app.get("/metrics", response_class=Response)
    def measured() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=metrics.content_type)

    app.include_router(videos_router(service))
    app.include_router(page_router(service))
    return app


async def _keep_house(service: Service, metrics: Metrics, stopping: asyncio.Event) -> None:
    """Requeues the jobs of lost workers, removes expired jobs and counts ended ones, until `stopping` is set."""
    expired = -EXPIRE_SECONDS
    while not stopping.is_set():
        try:
            for job in await run_in_threadpool(service.store.take_back):
                logger.warning("its worker is lost: %s", job.status.value, extra={"job": job.id})
            await run_in_threadpool(metrics.take_in)
            if time.monotonic() - expired > EXPIRE_SECONDS:
                expired = time.monotonic()
                await run_in_threadpool(service.store.expire)
        except Exception as error:
            logger.error("housekeeping: %s", error, exc_info=error)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
