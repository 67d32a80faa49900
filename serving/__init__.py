# SPDX-License-Identifier: Apache-2.0
"""Videos over HTTP: durable jobs, the workers that run them, and the web application; names are loaded on first use.

settings = ServeSettings(models=[ModelSettings(source="model.bundle")], jobs="jobs")
catalogue = Catalogue(settings.models)                  # what may be asked for; needs no GPU
store = JobStore(settings.jobs)                         # shared by processes of one machine
Worker(store, catalogue).run(stop)                      # takes jobs, one after the other
app = create_app(settings, store, catalogue)            # FastAPI
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vorta_trt.serving.app import create_app as create_app
    from vorta_trt.serving.catalogue import Catalogue as Catalogue
    from vorta_trt.serving.job import Job as Job
    from vorta_trt.serving.job_store import JobStore as JobStore
    from vorta_trt.serving.settings import ModelSettings as ModelSettings
    from vorta_trt.serving.settings import ServeSettings as ServeSettings
    from vorta_trt.serving.video_request import VideoRequest as VideoRequest
    from vorta_trt.serving.worker import Worker as Worker

_HOME = {
    "Catalogue": "catalogue",
    "Job": "job",
    "JobStore": "job_store",
    "ModelSettings": "settings",
    "ServeSettings": "settings",
    "VideoRequest": "video_request",
    "Worker": "worker",
    "create_app": "app",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_attributes(__name__, _HOME)
