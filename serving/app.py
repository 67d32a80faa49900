# SPDX-License-Identifier: Apache-2.0
"""`create_app`: the web application over a job store and a catalogue; it makes no videos itself.

uvicorn.run(create_app(settings, store, catalogue))
"""

from __future__ import annotations

from fastapi import FastAPI

from vorta_trt.serving.catalogue import Catalogue
from vorta_trt.serving.job_store import JobStore
from vorta_trt.serving.settings import ServeSettings


def create_app(settings: ServeSettings, store: JobStore, catalogue: Catalogue) -> FastAPI:
    """The application.

    Args:
        settings: Of the server.
        store: The jobs, which workers take from there.
        catalogue: The models.
    """
    app = FastAPI(title="vorta-trt")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app
