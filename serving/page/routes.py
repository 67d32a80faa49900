# SPDX-License-Identifier: Apache-2.0
"""The routes of the page: the page itself, its form, and its two files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from vorta_trt.serving.access import COOKIE
from vorta_trt.serving.api_errors import ApiError, api_error
from vorta_trt.serving.bodies import read_values
from vorta_trt.serving.page.markup import login_page, main_page, video_card
from vorta_trt.serving.service import Service
from vorta_trt.serving.video_view import VideoObject

FILES = {"page.css": "text/css", "page.js": "text/javascript"}
SHOWN = 50  # jobs
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
WEEK = 7 * 24 * 3600


def page_router(service: Service) -> APIRouter:
    """The page over a service."""
    router = APIRouter(include_in_schema=False)
    models = list(service.catalogue.models.values())

    def cards(user: str) -> list[VideoObject]:
        return service.views(service.store.page(user, limit=SHOWN)[0])

    def shown(
        user: str, error: str | None = None, status: int = 200, sent: Mapping[str, Any] | None = None
    ) -> HTMLResponse:
        page = main_page(models, cards(user), logout=service.access.wants_key, error=error, sent=sent)
        return HTMLResponse(page, status, HEADERS)

    @router.get("/")
    def page(request: Request) -> Response:
        try:
            user = service.access.user(request)
        except ApiError:
            return HTMLResponse(login_page(), headers=HEADERS)
        return shown(user)

    @router.post("/login")
    async def login(request: Request) -> Response:
        values, _ = await read_values(request, service.settings.most_upload_bytes)
        key = values.get("key")
        if not isinstance(key, str) or service.access.user_of(key) is None:
            return HTMLResponse(login_page(wrong=True), 401, HEADERS)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, key, max_age=WEEK, httponly=True, samesite="strict", secure=secure)
        return answer

    @router.post("/logout")
    def logout() -> Response:
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    @router.post("/")
    async def ask(request: Request) -> Response:
        user = service.access.user(request)
        values: dict[str, Any] = {}
        try:
            values, form = await read_values(request, service.settings.most_upload_bytes)
            await service.ask(_of_page(values), form, user, None)
        except Exception as error:
            if (answer := api_error(error)) is None:
                raise
            return await run_in_threadpool(shown, user, str(answer), answer.status, values)
        return RedirectResponse("/", 303)

    @router.get("/page/videos")
    def videos(request: Request) -> HTMLResponse:
        found = cards(service.access.user(request))
        return HTMLResponse("\n".join(map(video_card, found)) or '<p class="empty">No videos yet.</p>', headers=HEADERS)

    @router.post("/page/cancel/{video_id}")
    def cancel(request: Request, video_id: str) -> Response:
        service.store.cancel(video_id, service.access.user(request))
        return RedirectResponse("/", 303)

    @router.post("/page/delete/{video_id}")
    def delete(request: Request, video_id: str) -> Response:
        service.store.delete(video_id, service.access.user(request))
        return RedirectResponse("/", 303)

    @router.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in FILES:
            raise ApiError(404, "page: has no such file", "not_found")
        content = Path(__file__).with_name(name).read_bytes()
        return Response(content, media_type=FILES[name], headers={"Cache-Control": "no-cache"})

    return router


def _of_page(values: dict[str, Any]) -> dict[str, Any]:
    """A request's fields from the page's form, whose size includes the frames, and whose empty files mean none."""
    given = {name: value for name, value in values.items() if value != b""}
    size = given.pop("page_size", None)
    if isinstance(size, str) and " " in size:
        given["size"], given["num_frames"] = size.split(" ", 1)
    return given
