# SPDX-License-Identifier: Apache-2.0
"""The routes under `/v1`: OpenAI's video API, cancelling, and the routes of the running step as a picture."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable
from starlette.types import Receive, Scope, Send

from vorta_trt.serving.api_errors import ApiError
from vorta_trt.serving.bodies import read_values
from vorta_trt.serving.job import Job, Status
from vorta_trt.serving.routes_picture import routes_picture
from vorta_trt.serving.service import Service
from vorta_trt.serving.video_request import VideoRequest
from vorta_trt.serving.video_view import DeletedVideo, VideoList, VideoObject

MOST_LISTED = 100
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")}
            for kind in ("application/json", "multipart/form-data")
        },
    }
}


class Order(str, Enum):
    """By age: the oldest job first, or the newest."""

    asc = "asc"
    desc = "desc"


class Variant(str, Enum):
    """Which file of a job is sent: a video or its thumbnail."""

    video = "video"
    thumbnail = "thumbnail"


def videos_router(service: Service) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix="/v1")
    store, settings = service.store, service.settings

    def find(request: Request, video_id: str) -> Job:
        return store.get(video_id, service.access.user(request))

    @router.post("/videos", response_model=VideoObject, openapi_extra=_BODY)
    async def create_video(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> VideoObject:
        """Queues a job; its videos can be fetched when it is completed."""
        user = service.access.user(request)  # before the body is read
        service.check_open()
        values, form = await read_values(request, settings.most_upload_bytes)
        job = await service.ask(values, form, user, idempotency_key)
        return await run_in_threadpool(service.view, job)

    @router.get("/videos", response_model=VideoList)
    def list_videos(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
        order: Order = Order.desc,
    ) -> VideoList:
        """The caller's jobs, page by page."""
        user = service.access.user(request)
        jobs, more = store.page(user, after=after, limit=limit, newest_first=order is Order.desc)
        data = service.views(jobs)
        ends = {"first_id": data[0].id, "last_id": data[-1].id} if data else {}
        return VideoList(data=data, has_more=more, **ends)

    @router.get("/videos/{video_id}", response_model=VideoObject)
    def get_video(request: Request, video_id: str) -> VideoObject:
        """A job, and how far it is."""
        return service.view(find(request, video_id))

    @router.delete("/videos/{video_id}", response_model=DeletedVideo)
    def delete_video(request: Request, video_id: str) -> DeletedVideo:
        """Cancels a job, and removes it with its videos."""
        store.delete(video_id, service.access.user(request))
        return DeletedVideo(id=video_id)

    @router.post("/videos/{video_id}/cancel", response_model=VideoObject)
    def cancel_video(request: Request, video_id: str) -> VideoObject:
        """Cancels a job: one that waits at once, a running one at its next step."""
        return service.view(store.cancel(video_id, service.access.user(request)))

    @router.head("/videos/{video_id}/content", include_in_schema=False)
    @router.get("/videos/{video_id}/content", response_class=FileResponse)
    def get_content(
        request: Request,
        video_id: str,
        variant: Variant = Variant.video,
        index: Annotated[int, Query(ge=0, le=63)] = 0,
    ) -> FileResponse:
        """A video, or its picture, of a completed job.

        If a job has several videos, `index` says which one, from 0.
        """
        job = find(request, video_id)
        path = content_of(service, job, variant, index)
        kind, suffix = ("video/mp4", "mp4") if variant is Variant.video else ("image/webp", "webp")
        return HeldFile(path, media_type=kind, filename=f"{job.id}-{index}.{suffix}")

    @router.get("/videos/{video_id}/routes", response_class=Response)
    def get_routes(request: Request, video_id: str, step: Annotated[int | None, Query(ge=0)] = None) -> Response:
        """The routes of a step (default: the running one) as a PNG: a row for every layer, a column for every head."""
        return Response(routes_picture(service.catalogue, find(request, video_id), step), media_type="image/png")

    @router.get("/models")
    def list_models(request: Request) -> dict[str, Any]:
        """The models, with the sizes and LoRA files of each."""
        service.access.user(request)
        return {"object": "list", "data": [_model(service, name) for name in service.catalogue.names]}

    @router.get("/models/{name}")
    def get_model(request: Request, name: str) -> dict[str, Any]:
        """One model."""
        service.access.user(request)
        if name not in service.catalogue.names:
            raise ApiError(
                404, f"model: there are {', '.join(service.catalogue.names)}", "model_not_found", field="model"
            )
        return _model(service, name)

    return router


class HeldFile(FileResponse):
    """A response with a file that is opened at once, so that a download goes on if its job is deleted meanwhile.

    Raises:
        ApiError: The file is gone.
    """

    def __init__(self, path: Path, *, media_type: str, filename: str) -> None:
        try:
            self._file = path.open("rb")
        except OSError:
            raise ApiError(404, f"{filename}: is gone from the server's disk", "video_not_found") from None
        held = f"/proc/self/fd/{self._file.fileno()}"
        super().__init__(
            held,
            media_type=media_type,
            filename=filename,
            content_disposition_type="inline",
            stat_result=os.fstat(self._file.fileno()),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file, or the requested range of it; a malformed Range header is ignored (RFC 9110, 14.2)."""
        try:
            headers = Headers(scope=scope)
            given, version = headers.get("range"), headers.get("if-range")
            try:
                if given is not None and (version is None or self._should_use_range(version)):
                    self._parse_range_header(given, os.fstat(self._file.fileno()).st_size)
            except MalformedRangeHeader:
                scope = {**scope, "headers": [each for each in scope["headers"] if each[0] != b"range"]}
            except RangeNotSatisfiable as error:
                told = f"Range: the file has {error.max_size} bytes; ask for some of these"
                answer = ApiError(416, told, "range_not_satisfiable", field="Range").response()
                answer.headers["Content-Range"] = f"bytes */{error.max_size}"
                await answer(scope, receive, send)
                return
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def content_of(service: Service, job: Job, variant: Variant, index: int) -> Path:
    """The file of a completed job.

    Raises:
        ApiError: The job is not completed, or has fewer videos.
    """
    if job.status is not Status.COMPLETED or job.report is None:
        raise ApiError(
            409, f"video {job.id}: is {job.status.value}; it has content when it is completed", "not_completed"
        )
    videos = job.report["videos"]
    if index >= len(videos):
        raise ApiError(
            404, f"index {index}: the job has {len(videos)} videos, from 0 on", "video_not_found", field="index"
        )
    name = videos[index]["file" if variant is Variant.video else "thumbnail"]
    return service.store.files.result(job.id, job.attempt) / str(name)


def _model(service: Service, name: str) -> dict[str, Any]:
    model = service.catalogue.get(name)
    sizes = [
        {"size": f"{size.width}x{size.height}", "num_frames": size.frames, "seconds": size.frames / rate}
        for rate in [model.planner.frames_per_second]
        for size in model.sizes
    ]
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "vorta-trt",
        "sizes": sizes,
        "fps": model.planner.frames_per_second,
        "lora": list(model.loras),
        "images": list(model.images),
        "defaults": model.defaults,
    }
